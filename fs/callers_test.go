package fs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// fakeProc makes a directory like /proc with one process in it.
func fakeProc(t *testing.T, pid int, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	dir := filepath.Join(root, fmt.Sprint(pid))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestCallerIsThisProcess(t *testing.T) {
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	c := newCallers("/proc")
	got := c.actor(gofuse.Caller{Owner: gofuse.Owner{Uid: uint32(os.Getuid())}, Pid: uint32(os.Getpid())})
	if got.Program != strings.TrimSpace(string(comm)) || got.PID != uint32(os.Getpid()) || got.UID != uint32(os.Getuid()) || got.Agent == "" {
		t.Errorf("got %+v", got)
	}
	// A thread belongs to its process.
	done := make(chan struct{})
	go func() {
		defer close(done)
		if tid := unix.Gettid(); c.actor(gofuse.Caller{Pid: uint32(tid)}).PID != uint32(os.Getpid()) {
			t.Errorf("thread %d is taken for a process", tid)
		}
	}()
	<-done
}

func TestCallerAgent(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	cmd.Env = []string{"A=1", "NOT_HOLDFAST_AGENT=wrong", "HOLDFAST_AGENT=planner-7", "Z=2"}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	p := newProcReader("/proc")
	// Until the child is through with exec it has this process's environment, or none.
	deadline := time.Now().Add(10 * time.Second)
	var got caller
	for got = p.describe(uint32(cmd.Process.Pid), 0); got.actor.Agent != "planner-7" && time.Now().Before(deadline); {
		got = p.describe(uint32(cmd.Process.Pid), 0)
	}
	if got.actor.Agent != "planner-7" || got.actor.Program != "sleep" {
		t.Errorf("got %+v", got.actor)
	}
}

func TestCallerWithoutAgent(t *testing.T) {
	// No such process runs, so it is not taken for a thread of another.
	const pid = 1 << 30
	for _, c := range []struct{ cgroup, want string }{
		{"0::/system.slice/docker-abc123.scope\n", "docker-abc123"},
		{"0::/agents/reviewer\n", "reviewer"},
		{"0::/\n", "uid-987654/prog"},
		{"0::/user.slice/user-1000.slice/session-3.scope\n", "uid-987654/prog"},
		{"0::/init.scope\n", "uid-987654/prog"},
		{"", "uid-987654/prog"},
		{"nonsense", "uid-987654/prog"},
	} {
		p := newProcReader(fakeProc(t, pid, map[string]string{"comm": "prog\n", "environ": "A=1\x00", "cgroup": c.cgroup}))
		if got := p.describe(pid, 987654).actor; got.Agent != c.want || got.Program != "prog" {
			t.Errorf("cgroup %q: agent %q program %q, want %q", c.cgroup, got.Agent, got.Program, c.want)
		}
	}
	p := newProcReader(t.TempDir())
	if got := p.describe(pid, 987654).actor; got.Agent != "uid-987654" || got.Program != "" {
		t.Errorf("a process that is gone: %+v", got)
	}
	if got := newCallers("/proc").actor(gofuse.Caller{Owner: gofuse.Owner{Uid: 987654}}); got.PID != 0 || got.Agent != "uid-987654" {
		t.Errorf("the kernel: %+v", got)
	}
}

// TestCallerEnvironHangs: a process whose memory does not answer costs a short wait, and after a few of them none at all.
func TestCallerEnvironHangs(t *testing.T) {
	const pid = 1 << 30
	root := fakeProc(t, pid, map[string]string{"comm": "stuck\n"})
	fifo := filepath.Join(root, fmt.Sprint(pid), "environ")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	p := newProcReader(root)
	for range 2 * environReaders {
		if got := p.describe(pid, 987654).actor; got.Program != "stuck" || got.Agent != "uid-987654/stuck" {
			t.Fatalf("got %+v", got)
		}
	}
	if got := len(p.readers); got != environReaders {
		t.Errorf("%d readers hang, want %d", got, environReaders)
	}
	// They end when the process answers.
	f, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for len(p.readers) > 0 {
		// The readers may all have ended with the pipe full: nobody would make room for this write.
		if err := f.SetWriteDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write([]byte("HOLDFAST_AGENT=late\x00")); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
	}
}

func TestCallersNoticeExec(t *testing.T) {
	const pid = 1 << 30
	root := fakeProc(t, pid, map[string]string{"comm": "first\n", "environ": "HOLDFAST_AGENT=a\x00"})
	c := newCallers(root)
	who := gofuse.Caller{Owner: gofuse.Owner{Uid: 5}, Pid: pid}
	if got := c.known(who); got.Program != "" || got.UID != 5 {
		t.Errorf("known before it was looked at: %+v", got)
	}
	if got := c.actor(who); got.Program != "first" || got.Agent != "a" {
		t.Errorf("got %+v", got)
	}
	dir := filepath.Join(root, fmt.Sprint(pid))
	os.WriteFile(filepath.Join(dir, "comm"), []byte("second\n"), 0o644)
	os.WriteFile(filepath.Join(dir, "environ"), []byte("HOLDFAST_AGENT=b\x00"), 0o644)
	if got := c.writer(who); got.Program != "second" || got.Agent != "b" {
		t.Errorf("opening a file to write: %+v", got)
	}
	if got := c.known(who); got.Program != "second" {
		t.Errorf("known: %+v", got)
	}
	// Another user under the same number is somebody else.
	who.Uid = 6
	if got := c.known(who); got.Program != "" || got.UID != 6 {
		t.Errorf("another user: %+v", got)
	}
}

func TestCallersAreBounded(t *testing.T) {
	c := newCallers(t.TempDir())
	for pid := range uint32(3 * callerShards * maxCallers) {
		c.actor(gofuse.Caller{Pid: pid + 1})
	}
	for i := range c.shards {
		if n := len(c.shards[i].seen); n > maxCallers {
			t.Errorf("%d processes are remembered in one shard, want %d at most", n, maxCallers)
		}
	}
}

func FuzzEnviron(f *testing.F) {
	f.Add([]byte("A=1\x00HOLDFAST_AGENT=x\x00B=2\x00"), 3)
	f.Add([]byte("HOLDFAST_AGENT=x"), 1)
	f.Add([]byte("HOLDFAST_AGENT=\x00"), 100)
	f.Add([]byte("HOLDFAST_AGENTX=y\x00HOLDFAST_AGENT="+strings.Repeat("z", 500)+"\x00"), 7)
	f.Add([]byte("\x00\x00HOLDFAST_AGENT=\x1b[31m\xff\n\x00"), 2)
	f.Fuzz(func(t *testing.T, env []byte, size int) {
		size = max(1, min(size, 1<<16))
		var s environScanner
		for b := env; len(b) > 0 && !s.done; {
			n := min(size, len(b))
			s.feed(b[:n])
			b = b[n:]
			if cap(s.line) > 2*(len(agentVariable)+1+maxAgent)+64 {
				t.Fatalf("the scanner keeps %d bytes", cap(s.line))
			}
		}
		var want string
		for pair := range bytes.SplitSeq(env, []byte{0}) {
			if v, ok := bytes.CutPrefix(pair, []byte(agentVariable+"=")); ok && bytes.Contains(env, append(pair, 0)) {
				want = clean(v)
				break
			}
		}
		got := s.value()
		if bytes.HasSuffix(env, []byte{0}) && got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if len(got) > 4*maxAgent || strings.ContainsAny(got, "\n\x1b\x00") {
			t.Errorf("unclean name %q", got)
		}
	})
}

func TestAgentName(t *testing.T) {
	for name, want := range map[string]string{"agent-3": "agent-3", " spaced out ": "spaced out", "red\x1b[31m\n": "red?[31m", "zero\u200bwidth\u00a0": "zero?width",
		"bad\xff": "bad?", " \n": "", "ünï/code": "ünï/code", strings.Repeat("x", 1<<20): strings.Repeat("x", maxAgent)} {
		if got := AgentName(name); got != want {
			t.Errorf("%.80q is %q, want %q", name, got, want)
		}
	}
}

func FuzzCgroup(f *testing.F) {
	f.Add("0::/a/b.scope\n")
	f.Add("12:pids:/x\n0::/y\n")
	f.Add("::")
	f.Fuzz(func(t *testing.T, text string) {
		if name := cgroupName(text); strings.ContainsAny(name, "\n\x00") {
			t.Errorf("unclean name %q", name)
		}
	})
}

func BenchmarkCallerKnown(b *testing.B) {
	c := newCallers("/proc")
	who := gofuse.Caller{Owner: gofuse.Owner{Uid: uint32(os.Getuid())}, Pid: uint32(os.Getpid())}
	b.ReportAllocs()
	for b.Loop() {
		c.actor(who)
	}
}

func BenchmarkCallerWriter(b *testing.B) {
	c := newCallers("/proc")
	who := gofuse.Caller{Owner: gofuse.Owner{Uid: uint32(os.Getuid())}, Pid: uint32(os.Getpid())}
	for b.Loop() {
		c.writer(who)
	}
}

func BenchmarkCallerLook(b *testing.B) {
	c := newCallers("/proc")
	who := gofuse.Caller{Owner: gofuse.Owner{Uid: uint32(os.Getuid())}, Pid: uint32(os.Getpid())}
	for b.Loop() {
		c.look(who, time.Now())
	}
}
