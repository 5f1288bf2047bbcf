package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/blobstore"
	"holdfast/catalog"
	"holdfast/internal/volume"
)

// childStore names the store that this test binary serves, when it is started as a daemon that a test kills.
const childStore = "HOLDFAST_TEST_SERVE"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childStore); dir != "" {
		fmt.Println(serveChild(dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// serveChild serves the store until the process is killed; it returns only when it cannot.
func serveChild(dir string) error {
	ctx := context.Background()
	v, err := volume.Open(ctx, volume.Options{Dir: dir})
	if err != nil {
		return err
	}
	if _, err := Listen(ctx, dir, NewLocal(v, nil, nil), quiet()); err != nil {
		return err
	}
	fmt.Println("ready")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func startChild(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childStore+"="+dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the child says %q, %v", line, err)
	}
	return cmd
}

func TestKilledServerKeepsTheOldVersion(t *testing.T) {
	dir := newStore(t)
	child := startChild(t, dir)
	c := connect(t, dir)
	if c.PID() != child.Process.Pid {
		t.Errorf("the daemon has pid %d, the client says %d", child.Process.Pid, c.PID())
	}
	put(t, c, "/tasks/f", []byte("old"))
	r, w := io.Pipe()
	result := make(chan error, 1)
	go func() {
		_, err := c.Put(t.Context(), me(), "/tasks/f", 0o644, r)
		result <- err
	}()
	if _, err := w.Write(random(1, 4<<20)); err != nil { // returns when it is on its way to the daemon
		t.Fatal(err)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if err := <-result; !errors.Is(err, ErrDisconnected) {
		t.Errorf("the put returned %v, want ErrDisconnected", err)
	}

	// The dead daemon's socket is still there, and recognised.
	if _, err := os.Lstat(filepath.Join(dir, SocketName)); err != nil {
		t.Fatal(err)
	}
	ops, err := Dial(t.Context(), dir, DialOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer ops.Close()
	if _, ok := ops.(*Local); !ok {
		t.Errorf("Dial of a store without a daemon gave a %T", ops)
	}
	if got := get(t, ops, "/tasks/f", Selector{}); string(got) != "old" {
		t.Errorf("the file holds %d bytes", len(got))
	}
	if l := logOf(t, ops, "/tasks/f"); len(l) != 1 {
		t.Errorf("the log has %d entries", len(l))
	}
}

func TestDial(t *testing.T) {
	dir := newStore(t)
	if _, err := Dial(t.Context(), t.TempDir(), DialOptions{}); !errors.Is(err, volume.ErrNoStore) {
		t.Errorf("a directory that is no store: %v", err)
	}
	child := startChild(t, dir)
	ops, err := Dial(t.Context(), dir, DialOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if c, ok := ops.(*Client); !ok || c.PID() != child.Process.Pid {
		t.Errorf("Dial of a served store gave a %T", ops)
	}
	if err := ops.Close(); err != nil {
		t.Error(err)
	}
	// Locked, and nobody listens: Dial waits, until its context ends here.
	other := newStore(t)
	openVolume(t, other)
	ctx, cancel := context.WithTimeout(t.Context(), 5*lockRetry)
	defer cancel()
	if _, err := Dial(ctx, other, DialOptions{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a locked store: %v", err)
	}
}

func TestReadOnlyCommandsShareAStore(t *testing.T) {
	dir := newStore(t)
	for range 2 {
		ops, err := Dial(t.Context(), dir, DialOptions{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		defer ops.Close()
		if _, err := ops.Put(t.Context(), me(), "/tasks/f", 0o644, strings.NewReader("x")); !errors.Is(err, catalog.ErrReadOnly) {
			t.Errorf("a put: %v", err)
		}
	}
}

func TestSocket(t *testing.T) {
	// Deeper than a socket address is long.
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 200), strings.Repeat("e", 200))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, SocketName)
	if _, err := Connect(t.Context(), dir); !errors.Is(err, ErrNotMounted) {
		t.Errorf("without a socket: %v", err)
	}
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(t.Context(), dir, newMemory(), quiet()); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a file in the way: %v", err)
	}
	if got, err := os.ReadFile(path); string(got) != "mine" {
		t.Errorf("the file in the way is now %q, %v", got, err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	// A socket that nobody listens on is replaced.
	stale, err := openSocketDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := stale.listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	stale.dir.Close()
	if _, err := Connect(t.Context(), dir); !errors.Is(err, ErrNotMounted) {
		t.Errorf("a stale socket: %v", err)
	}
	old := unix.Umask(0)
	s, err := Listen(t.Context(), dir, newMemory(), quiet())
	unix.Umask(old)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Lstat(path); err != nil || st.Mode() != os.ModeSocket|0o600 {
		t.Errorf("the socket: %v, %v", st.Mode(), err)
	}
	if _, err := connect(t, dir).Status(t.Context()); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Shutdown the socket is still there: %v", err)
	}
}

func TestErrorsKeepTheirMeaning(t *testing.T) {
	for _, k := range errorKinds() {
		w, status := toWire(fmt.Errorf("some file: %w", k.err))
		if status < 400 {
			t.Errorf("%s has status %d", k.code, status)
		}
		text, err := json.Marshal(w)
		if err != nil {
			t.Fatal(err)
		}
		var back wireError
		if err := json.Unmarshal(text, &back); err != nil {
			t.Fatal(err)
		}
		got := fromWire(back)
		if w.Code == "no-space" {
			k.err = catalog.ErrNoSpace
		}
		if !errors.Is(got, k.err) || !strings.Contains(got.Error(), "some file") {
			t.Errorf("%s arrives as %v", k.code, got)
		}
	}
	if err := fromWire(wireError{"text", "from the future"}); err == nil || err.Error() != "text" {
		t.Errorf("an unknown code: %v", err)
	}
	if err := fromWire(wireError{}); err == nil || err.Error() == "" {
		t.Errorf("an empty error: %v", err)
	}
	if w, _ := toWire(errors.New(strings.Repeat("x", 1<<20))); len(w.Error) > maxMessage {
		t.Errorf("an error text of %d bytes is sent", len(w.Error))
	}
}

func TestContentThatBreaksOff(t *testing.T) {
	m := newMemory()
	data := random(1, 1<<20)
	put(t, m, "/f", data)
	c := serve(t, t.TempDir(), m)
	for _, after := range []int64{0, 1, 100_000} {
		m.failGet, m.failAfter = &blobstore.DamageError{Part: "block 3", Detail: "ü\n"}, after
		var out bytes.Buffer
		n, err := c.Get(t.Context(), "/f", Selector{}, &out)
		if !errors.Is(err, blobstore.ErrDamaged) || n != after || !bytes.Equal(out.Bytes(), data[:after]) {
			t.Errorf("broken off after %d: got %d bytes and %v", after, n, err)
		}
	}
	full := errors.New("the destination is full")
	m.failGet = nil
	_, err := c.Get(t.Context(), "/f", Selector{}, writerFunc(func([]byte) (int, error) { return 0, full }))
	if !errors.Is(err, full) {
		t.Errorf("a writer that fails: %v", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// TestPutThatFailsInTheMiddle: the error must arrive although the content is endless.
func TestPutThatFailsInTheMiddle(t *testing.T) {
	m := newMemory()
	put(t, m, "/f", []byte("old"))
	c := serve(t, t.TempDir(), m)
	endless := readerFunc(func(p []byte) (int, error) { return len(p), nil })
	for i := range 60 { // the answer is lost now and then when the server does not take care
		after := []int64{0, 1, 1 << 20}[i%3]
		m.failPut, m.failAfter = fmt.Errorf("/f: %w", unix.ENOSPC), after
		if _, err := c.Put(t.Context(), me(), "/f", 0o644, endless); !errors.Is(err, catalog.ErrNoSpace) {
			t.Errorf("after %d bytes: %v", after, err)
		}
	}
	if got := get(t, c, "/f", Selector{}); string(got) != "old" {
		t.Errorf("the file holds %q", got)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// TestClientThatGoesAway speaks the protocol by hand and hangs up in the middle of a content.
func TestClientThatGoesAway(t *testing.T) {
	m := newMemory()
	put(t, m, "/f", []byte("old"))
	broke := make(chan error, 1)
	dir := t.TempDir()
	c := serve(t, dir, putHook{m, func(err error) { broke <- err }})
	for _, head := range []string{"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "Content-Length: 1000\r\n\r\nhello"} {
		conn, err := c.dir.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		target := request{method: "PUT", route: routeContent, path: "/f"}.target()
		fmt.Fprintf(conn, "PUT %s HTTP/1.1\r\nHost: holdfast\r\n%s", target, head)
		conn.Close()
		if err := <-broke; err == nil {
			t.Errorf("%q passed for a complete content", head)
		}
	}
	if got := get(t, c, "/f", Selector{}); string(got) != "old" {
		t.Errorf("the file holds %q", got)
	}
}

type putHook struct {
	Ops
	done func(error)
}

func (p putHook) Put(ctx context.Context, who Caller, path string, mode uint32, r io.Reader) (Entry, error) {
	e, err := p.Ops.Put(ctx, who, path, mode, r)
	p.done(err)
	return e, err
}

// raw sends text on a connection of its own and returns the status of the answer, 0 when the server hung up without one.
func raw(t *testing.T, c *Client, text string) int {
	t.Helper()
	conn, err := c.dir.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go io.WriteString(conn, text) // the server may hang up before it has read everything
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

func TestHostileRequests(t *testing.T) {
	m := newMemory()
	put(t, m, "/f", []byte("x"))
	c := serve(t, t.TempDir(), m)
	long := strings.Repeat("a", maxHeader+64<<10)
	for _, r := range []struct {
		text string
		want []int
	}{
		{"GET /v1/stat?path=/f HTTP/1.1\r\nHost: h\r\n\r\n", []int{200}},
		{"GET /v1/stat?path=/" + long + " HTTP/1.1\r\nHost: h\r\n\r\n", []int{431, 0}},
		{"GET /v1/stat?path=/f HTTP/1.1\r\nHost: h\r\nX: " + long + "\r\n\r\n", []int{431, 0}},
		{"GET /v1/stat HTTP/1.1\r\nHost: h\r\n\r\n", []int{400}},
		{"GET /v1/stat?path=/f&path=/g HTTP/1.1\r\nHost: h\r\n\r\n", []int{400}},
		{"GET /v1/stat?path=/f&evil=1 HTTP/1.1\r\nHost: h\r\n\r\n", []int{400}},
		{"GET /v1/stat?path=%zz HTTP/1.1\r\nHost: h\r\n\r\n", []int{400}},
		{"GET /v1/content?path=/f&number=-1 HTTP/1.1\r\nHost: h\r\n\r\n", []int{400}},
		{"GET /v1/content?path=/f&number=99999999999999999999 HTTP/1.1\r\nHost: h\r\n\r\n", []int{400}},
		{"GET /v1/content?path=/f&number=1&time=2020-01-01T00:00:00Z HTTP/1.1\r\nHost: h\r\n\r\n", []int{400}},
		{"GET /v1/content?path=/f&time=yesterday HTTP/1.1\r\nHost: h\r\n\r\n", []int{400}},
		{"PUT /v1/content?path=/f&mode=99 HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n", []int{400}},
		{"PUT /v1/content?path=/f&mode=177777 HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n", []int{400}},
		{"PUT /v1/content?path=/f&mode=600&agent=%00 HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n", []int{400}},
		{"DELETE /v1/node?path=/f&recursive=maybe HTTP/1.1\r\nHost: h\r\n\r\n", []int{400}},
		{"DELETE /v1/stat?path=/f HTTP/1.1\r\nHost: h\r\n\r\n", []int{400}},
		{"GET /etc/passwd HTTP/1.1\r\nHost: h\r\n\r\n", []int{400}},
		{"GET /v1/../v1/stat?path=/f HTTP/1.1\r\nHost: h\r\n\r\n", []int{400}},
		{"PUT /v1/content?path=/f&mode=600 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", []int{400, 500}},
		{"\x00\x01\x02\r\n\r\n", []int{400}},
	} {
		got, ok := raw(t, c, r.text), false
		for _, w := range r.want {
			ok = ok || got == w
		}
		if !ok {
			t.Errorf("%.80q: status %d, want one of %v", r.text, got, r.want)
		}
	}
	if got := get(t, c, "/f", Selector{}); string(got) != "x" {
		t.Errorf("afterwards the file holds %q", got)
	}
}

func TestOthersAreForbidden(t *testing.T) {
	s := &Server{ops: newMemory(), log: quiet()}
	for _, cred := range []any{nil, unix.Ucred{Uid: uint32(os.Geteuid()) + 1}} {
		r := httptest.NewRequest("GET", "/v1/status", nil)
		w := httptest.NewRecorder()
		s.handle(w, r.WithContext(context.WithValue(r.Context(), peerKey{}, cred)))
		if w.Code != http.StatusForbidden {
			t.Errorf("a caller %v got status %d", cred, w.Code)
		}
	}
}

// TestManyConnections holds more connections open than are served at once; a further one is served when some have gone.
func TestManyConnections(t *testing.T) {
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	l := newLimit(ln, 2)
	accepted := make(chan net.Conn)
	go func() {
		defer close(accepted)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	for range 3 {
		c, err := net.Dial("unix", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	first, second := <-accepted, <-accepted
	select {
	case <-accepted:
		t.Error("a third connection was accepted beside two open ones")
	default:
	}
	for range 2 { // closing twice gives up one place only
		first.Close()
	}
	third := <-accepted
	second.Close()
	third.Close()
	l.Close()
	for range accepted {
		t.Error("a connection that nobody made")
	}
}

func TestUnmountAndStatusOfAMount(t *testing.T) {
	m := newMemory()
	m.mounted, m.busy = true, true
	c := serve(t, t.TempDir(), m)
	st, err := c.Status(t.Context())
	if err != nil || !st.Mounted || st.Mount.PID != os.Getpid() || st.Requests["LOOKUP"] != 7 {
		t.Errorf("status: %+v, %v", st, err)
	}
	if err := c.Unmount(t.Context(), false); !errors.Is(err, ErrBusy) {
		t.Errorf("a busy mount: %v", err)
	}
	if err := c.Unmount(t.Context(), true); err != nil {
		t.Errorf("lazily: %v", err)
	}
	if err := c.Unmount(t.Context(), true); !errors.Is(err, ErrNotMounted) {
		t.Errorf("twice: %v", err)
	}
	if fmt.Sprint(m.unmounted) != "[false true]" {
		t.Errorf("the flags arrived as %v", m.unmounted)
	}
}

// TestShutdownAnswersWhatItBegan: a request in progress is answered before Shutdown returns; with a context that has ended it is broken off.
func TestShutdownAnswersWhatItBegan(t *testing.T) {
	for _, patient := range []bool{true, false} {
		began, release := make(chan struct{}), make(chan struct{})
		dir := t.TempDir()
		s, err := Listen(t.Context(), dir, statusHook{newMemory(), func(ctx context.Context) {
			close(began)
			select {
			case <-release:
			case <-ctx.Done():
			}
		}}, quiet())
		if err != nil {
			t.Fatal(err)
		}
		c := connect(t, dir)
		result := make(chan error, 1)
		go func() {
			_, err := c.Status(t.Context())
			result <- err
		}()
		<-began
		ctx, cancel := context.WithCancel(t.Context())
		down := make(chan error, 1)
		go func() { down <- s.Shutdown(ctx) }()
		if patient {
			close(release)
			if err := <-result; err != nil {
				t.Errorf("the request was not answered: %v", err)
			}
		} else {
			cancel()
			if err := <-result; !errors.Is(err, ErrDisconnected) {
				t.Errorf("the request that was broken off: %v", err)
			}
		}
		if err := <-down; err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		cancel()
		if _, err := c.Status(t.Context()); err == nil {
			t.Error("a server that was shut down answers")
		}
	}
}

type statusHook struct {
	Ops
	hook func(context.Context)
}

func (s statusHook) Status(ctx context.Context) (Status, error) {
	s.hook(ctx)
	return s.Ops.Status(ctx)
}

func TestWaitProcess(t *testing.T) {
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := WaitProcess(ctx, cmd.Process.Pid); !errors.Is(err, context.Canceled) {
		t.Errorf("a process that runs on: %v", err)
	}
	in.Close()
	if err := WaitProcess(t.Context(), cmd.Process.Pid); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if err := WaitProcess(t.Context(), cmd.Process.Pid); err != nil {
		t.Errorf("a process that has gone: %v", err)
	}
	if err := WaitProcess(t.Context(), 0); errors.Is(err, syscall.EINVAL) == (err == nil) {
		t.Errorf("no process: %v", err)
	}
}
