package control

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"

	"holdfast/catalog"
	"holdfast/internal/volume"
)

func sha(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// newStore makes a store in a directory of its own and returns it.
func newStore(t testing.TB) string {
	t.Helper()
	dir := t.TempDir() + "/store"
	if _, err := volume.Init(t.Context(), dir, volume.InitOptions{}); err != nil {
		t.Fatal(err)
	}
	return dir
}

func openVolume(t testing.TB, dir string) *volume.Volume {
	t.Helper()
	v, err := volume.Open(t.Context(), volume.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return v
}

// serve serves ops in a directory of its own and returns a connected client.
func serve(t testing.TB, dir string, ops Ops) *Client {
	t.Helper()
	s, err := Listen(t.Context(), dir, ops, quiet())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // whatever a failed test left running is broken off
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
	})
	return connect(t, dir)
}

func connect(t testing.TB, dir string) *Client {
	t.Helper()
	c, err := Connect(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// implementations are what the conformance suite runs on: each has the directory /tasks.
// Making a store costs some syncs, so each test gets a copy of the template.
func implementations(template string) map[string]func(t *testing.T) Ops {
	store := func(t *testing.T) string {
		dir := t.TempDir()
		if err := os.CopyFS(dir, os.DirFS(template)); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	mem := func() *memory {
		m := newMemory()
		m.mkdir("/tasks")
		return m
	}
	return map[string]func(t *testing.T) Ops{
		"memory":           func(*testing.T) Ops { return mem() },
		"client of memory": func(t *testing.T) Ops { return serve(t, t.TempDir(), mem()) },
		"local":            func(t *testing.T) Ops { return NewLocal(openVolume(t, store(t)), nil, nil) },
		"client of local": func(t *testing.T) Ops {
			dir := store(t)
			return serve(t, dir, NewLocal(openVolume(t, dir), nil, nil))
		},
	}
}

func TestConformance(t *testing.T) {
	for name, open := range implementations(newStore(t)) {
		t.Run(name, func(t *testing.T) {
			for _, test := range []struct {
				name string
				run  func(*testing.T, Ops)
			}{
				{"contents", testContents}, {"versions", testVersions}, {"names", testNames}, {"removal", testRemoval},
				{"errors", testErrors}, {"broken put", testBrokenPut}, {"random", testRandom}, {"concurrent", testConcurrent},
			} {
				t.Run(test.name, func(t *testing.T) { test.run(t, open(t)) })
			}
		})
	}
}

func me() Caller {
	return Caller{Agent: "agent-1", Program: "a test", UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), PID: uint32(os.Getpid())}
}

func put(t *testing.T, ops Ops, p string, data []byte) Entry {
	t.Helper()
	e, err := ops.Put(t.Context(), me(), p, 0o640, bytes.NewReader(data))
	if err != nil {
		t.Fatalf("put %s: %v", p, err)
	}
	return e
}

func get(t *testing.T, ops Ops, p string, at Selector) []byte {
	t.Helper()
	var out bytes.Buffer
	n, err := ops.Get(t.Context(), p, at, &out)
	if err != nil || n != int64(out.Len()) {
		t.Fatalf("get %s at %v: %d bytes of %d, %v", p, at, n, out.Len(), err)
	}
	return out.Bytes()
}

func logOf(t *testing.T, ops Ops, p string) []LogEntry {
	t.Helper()
	var all []LogEntry
	if err := ops.Log(t.Context(), p, func(l LogEntry) error { all = append(all, l); return nil }); err != nil {
		t.Fatalf("log %s: %v", p, err)
	}
	return all
}

func random(seed uint64, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}

func testContents(t *testing.T, ops Ops) {
	for i, size := range []int{0, 1, 4096, 64<<10 - 1, 64<<10 + 1, 128<<10 + 7, 3<<20 + 11} {
		data := random(uint64(i), size)
		p := fmt.Sprintf("/tasks/%d", size)
		e := put(t, ops, p, data)
		if e.Size != int64(size) || e.Name != fmt.Sprint(size) || e.Type != "file" || e.Mode != unix.S_IFREG|0o640 {
			t.Errorf("put of %d bytes answered %+v", size, e)
		}
		if got := get(t, ops, p, Selector{}); !bytes.Equal(got, data) {
			t.Errorf("%d bytes came back as %d others", size, len(got))
		}
		st, err := ops.Stat(t.Context(), p)
		if err != nil || st.Size != int64(size) || st.UID != uint32(os.Getuid()) || st.GID != uint32(os.Getgid()) {
			t.Errorf("stat: %+v, %v", st, err)
		}
	}
	st, err := ops.Status(t.Context())
	if err != nil || st.Storage != "hybrid" || st.Problems == nil {
		t.Errorf("status: %+v, %v", st, err)
	}
}

func testVersions(t *testing.T, ops Ops) {
	var all [][]byte
	for i := range 4 {
		all = append(all, random(uint64(i), 1000+i))
		put(t, ops, "/tasks/v", all[i])
	}
	entries := logOf(t, ops, "/tasks/v")
	if len(entries) != len(all) {
		t.Fatalf("%d log entries for %d versions: %+v", len(entries), len(all), entries)
	}
	for i, l := range entries {
		if l.Number != i+1 || l.SHA256 != sha(all[i]) || l.Size != int64(len(all[i])) || l.Agent != "agent-1" || l.Program != "a test" ||
			l.UID != uint32(os.Getuid()) || l.PID != uint32(os.Getpid()) || l.Removed {
			t.Errorf("entry %d: %+v", i, l)
		}
		if got := get(t, ops, "/tasks/v", Selector{Number: i + 1}); !bytes.Equal(got, all[i]) {
			t.Errorf("version %d is not what was put", i+1)
		}
		if got := get(t, ops, "/tasks/v", Selector{Time: l.Time}); !bytes.Equal(got, all[i]) {
			t.Errorf("the version at %v is not number %d", l.Time, i+1)
		}
	}
	stop := errors.New("enough")
	seen := 0
	if err := ops.Log(t.Context(), "/tasks/v", func(LogEntry) error { seen++; return stop }); !errors.Is(err, stop) || seen != 1 {
		t.Errorf("a log that was stopped went on for %d entries and returned %v", seen, err)
	}
	_, err := ops.Get(t.Context(), "/tasks/v", Selector{Number: 99}, io.Discard)
	if !errors.Is(err, catalog.ErrNotExist) {
		t.Errorf("version 99: %v", err)
	}
	_, err = ops.Get(t.Context(), "/tasks/v", Selector{Time: entries[0].Time.AddDate(-1, 0, 0)}, io.Discard)
	if !errors.Is(err, catalog.ErrNotExist) {
		t.Errorf("a year before: %v", err)
	}
}

func testNames(t *testing.T, ops Ops) {
	names := []string{
		"plain", "with space", "per%20cent", "a&b=c;d", "question?", "hash#", "plus+", "at@3", "quote\"'", "new\nline", "tab\t",
		"\xff\xfe not utf-8", "ünïcode", "back\\slash", strings.Repeat("n", catalog.MaxName), ".hidden", "..", "%",
	}
	want := map[string]bool{}
	for _, n := range names {
		if n == ".." {
			continue
		}
		put(t, ops, "/tasks/"+n, []byte(n))
		want[n] = true
		if st, err := ops.Stat(t.Context(), "/tasks/"+n); err != nil || st.Name != n {
			t.Errorf("stat %q: %q, %v", n, st.Name, err)
		}
	}
	err := ops.List(t.Context(), "/tasks", func(e Entry) error {
		if !want[e.Name] {
			t.Errorf("%q was never put, or listed twice", e.Name)
		}
		delete(want, e.Name)
		return nil
	})
	if err != nil || len(want) > 0 {
		t.Errorf("list: %v, missing %v", err, want)
	}
	for n := range names {
		if got := get(t, ops, "/tasks/../../tasks/./"+names[0], Selector{}); string(got) != names[0] {
			t.Errorf("%d: dots were not resolved", n)
		}
	}
}

func testRemoval(t *testing.T, ops Ops) {
	ctx := t.Context()
	put(t, ops, "/tasks/a", []byte("one"))
	put(t, ops, "/tasks/b", []byte("two"))
	if err := ops.Remove(ctx, me(), "/tasks", false); !errors.Is(err, catalog.ErrNotEmpty) {
		t.Errorf("removing a full directory: %v", err)
	}
	if err := ops.Remove(ctx, me(), "/tasks/a", false); err != nil {
		t.Fatal(err)
	}
	if _, err := ops.Stat(ctx, "/tasks/a"); !errors.Is(err, catalog.ErrNotExist) {
		t.Errorf("stat of a removed file: %v", err)
	}
	if err := ops.Remove(ctx, me(), "/tasks/a", false); !errors.Is(err, catalog.ErrNotExist) {
		t.Errorf("removing twice: %v", err)
	}
	l := logOf(t, ops, "/tasks/a")
	if len(l) != 2 || l[0].Number != 1 || !l[1].Removed || l[1].Number != 0 {
		t.Errorf("log of a removed file: %+v", l)
	}
	if got := get(t, ops, "/tasks/a", Selector{Number: 1}); string(got) != "one" {
		t.Errorf("version 1 of a removed file: %q", got)
	}
	if err := ops.Remove(ctx, me(), "/tasks", true); err != nil {
		t.Fatal(err)
	}
	if _, err := ops.Stat(ctx, "/tasks/b"); !errors.Is(err, catalog.ErrNotExist) {
		t.Errorf("what was below a removed directory: %v", err)
	}
	if err := ops.Remove(ctx, me(), "/", true); err == nil {
		t.Error("the root was removed")
	}
}

func testErrors(t *testing.T, ops Ops) {
	ctx := t.Context()
	put(t, ops, "/tasks/f", []byte("x"))
	for _, c := range []struct {
		what string
		err  error
		want error
	}{
		{"put without a directory", second(ops.Put(ctx, me(), "/no/f", 0o644, strings.NewReader("x"))), catalog.ErrNotExist},
		{"put below a file", second(ops.Put(ctx, me(), "/tasks/f/g", 0o644, strings.NewReader("x"))), catalog.ErrNotDir},
		{"put on a directory", second(ops.Put(ctx, me(), "/tasks", 0o644, strings.NewReader("x"))), catalog.ErrIsDir},
		{"put with a long name", second(ops.Put(ctx, me(), "/tasks/"+strings.Repeat("x", 256), 0o644, strings.NewReader("x"))), catalog.ErrNameTooLong},
		{"put with a NUL", second(ops.Put(ctx, me(), "/tasks/\x00", 0o644, strings.NewReader("x"))), catalog.ErrInvalid},
		{"a path over the limit", second(ops.Stat(ctx, strings.Repeat("/x", MaxPath))), catalog.ErrNameTooLong},
		{"get of nothing", second(ops.Get(ctx, "/tasks/none", Selector{}, io.Discard)), catalog.ErrNotExist},
		{"get of a directory", second(ops.Get(ctx, "/tasks", Selector{}, io.Discard)), catalog.ErrIsDir},
		{"list of a file", ops.List(ctx, "/tasks/f", func(Entry) error { return nil }), catalog.ErrNotDir},
		{"list of nothing", ops.List(ctx, "/none", func(Entry) error { return nil }), catalog.ErrNotExist},
		{"log of nothing", ops.Log(ctx, "/tasks/none", func(LogEntry) error { return nil }), catalog.ErrNotExist},
		{"unmount", ops.Unmount(ctx, false), ErrNotMounted},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, want %v", c.what, c.err, c.want)
		}
	}
	// A put that was refused before its content was asked for must not wait for it.
	endless, w := io.Pipe()
	defer w.Close()
	if _, err := ops.Put(ctx, me(), "/no/f", 0o644, endless); !errors.Is(err, catalog.ErrNotExist) {
		t.Errorf("put without a directory, of a content that never comes: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

func testBrokenPut(t *testing.T, ops Ops) {
	put(t, ops, "/tasks/f", []byte("old"))
	broken := errors.New("the disk of the source")
	for _, r := range []io.Reader{
		iotest.ErrReader(broken),
		io.MultiReader(bytes.NewReader(random(1, 100)), iotest.ErrReader(broken)),
		io.MultiReader(bytes.NewReader(random(1, 3<<20)), iotest.ErrReader(broken)),
	} {
		if _, err := ops.Put(t.Context(), me(), "/tasks/f", 0o644, r); !errors.Is(err, broken) {
			t.Errorf("a put whose source broke: %v", err)
		}
	}
	// An end of file that is not one must not pass for one.
	r := io.MultiReader(bytes.NewReader(random(1, 100)), iotest.ErrReader(io.ErrUnexpectedEOF))
	if _, err := ops.Put(t.Context(), me(), "/tasks/f", 0o644, r); err == nil {
		t.Error("a source that broke off passed for complete")
	}
	if got := get(t, ops, "/tasks/f", Selector{}); string(got) != "old" {
		t.Errorf("after broken puts the file holds %d bytes", len(got))
	}
	if l := logOf(t, ops, "/tasks/f"); len(l) != 1 {
		t.Errorf("after broken puts the log has %d entries", len(l))
	}
}

// testRandom compares random operations with the model in memory.
func testRandom(t *testing.T, ops Ops) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	model := newMemory()
	model.mkdir("/tasks")
	ctx := t.Context()
	paths := []string{"/tasks/a", "/tasks/b", "/tasks/@1", "/tasks/a/x", "/none/x", "/tasks"}
	for i := range 60 {
		p := paths[rnd.IntN(len(paths))]
		var got, want error
		switch rnd.IntN(5) {
		case 0, 1:
			data := random(rnd.Uint64(), rnd.IntN(100_000))
			_, got = ops.Put(ctx, me(), p, 0o600, bytes.NewReader(data))
			_, want = model.Put(ctx, me(), p, 0o600, bytes.NewReader(data))
		case 2:
			if p == "/tasks" {
				continue
			}
			got, want = ops.Remove(ctx, me(), p, false), model.Remove(ctx, me(), p, false)
		case 3:
			at := Selector{Number: rnd.IntN(4)}
			var a, b bytes.Buffer
			_, got = ops.Get(ctx, p, at, &a)
			_, want = model.Get(ctx, p, at, &b)
			if !bytes.Equal(a.Bytes(), b.Bytes()) {
				t.Fatalf("step %d: %s at %v: %d bytes, the model has %d", i, p, at, a.Len(), b.Len())
			}
		case 4:
			var a, b []string
			got = ops.Log(ctx, p, func(l LogEntry) error { a = append(a, fmt.Sprint(l.Number, l.SHA256, l.Removed)); return nil })
			want = model.Log(ctx, p, func(l LogEntry) error { b = append(b, fmt.Sprint(l.Number, l.SHA256, l.Removed)); return nil })
			if p == "/tasks" || p == "/none/x" || p == "/tasks/a/x" {
				continue // directories have no log, and whether the parent or the name is missing may differ
			}
			if !slices.Equal(a, b) {
				t.Fatalf("step %d: log of %s:\n%v\nthe model has\n%v", i, p, a, b)
			}
		}
		if (got == nil) != (want == nil) {
			t.Fatalf("step %d on %s: %v, the model says %v", i, p, got, want)
		}
	}
}

// testConcurrent lets many put to one path: each reader sees one content as a whole, and each version stays.
func testConcurrent(t *testing.T, ops Ops) {
	const writers, each = 6, 4
	content := func(w, i int) []byte { return bytes.Repeat([]byte{byte('a' + w)}, 70_000+i) }
	put(t, ops, "/tasks/f", content(0, 0))
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				if _, err := ops.Put(t.Context(), me(), "/tasks/f", 0o644, bytes.NewReader(content(w, i))); err != nil {
					t.Error(err)
				}
				var out bytes.Buffer
				if _, err := ops.Get(t.Context(), "/tasks/f", Selector{}, &out); err != nil {
					t.Error(err)
				} else if b := out.Bytes(); !bytes.Equal(b, content(int(b[0]-'a'), len(b)-70_000)) {
					t.Errorf("a mixture of %d bytes was read", len(b))
				}
			}
		})
	}
	wg.Wait()
	if l := logOf(t, ops, "/tasks/f"); len(l) != 1+writers*each {
		t.Errorf("%d versions are logged, %d were put", len(l), 1+writers*each)
	}
}
