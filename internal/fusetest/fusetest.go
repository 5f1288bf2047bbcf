// Package fusetest mounts filesystems for tests. The mount is served by a child process, a copy of the test binary: a process that
// touches a mount which it serves itself can wait for itself. A test package that uses it calls Main from its TestMain.
package fusetest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/catalog"
	"holdfast/fs"
	"holdfast/fs/floor"
	"holdfast/internal/volume"
)

// What a mount serves.
const (
	Volume = "volume" // a store, made when it is not there
	Mem    = "memory" // a Memory, which is gone with the process
	Floor  = "floor"  // the benchmark floor
)

const configVariable = "HOLDFAST_FUSETEST"

// Options say what to mount.
type Options struct {
	Kind       string // default Volume
	Storage    string // of a volume: default hybrid
	Mount      []string
	AllowOther bool
	ReadOnly   bool
	Debug      bool   // the child logs requests; they are shown when the test fails
	Virtual    string // the name under which a Memory is served besides; "": none
	Env        []string
	User       uint32 // the child runs as this user; 0: as the test
}

// config is what the child is told.
type config struct {
	Options
	Store, Dir string
}

// command is a line for the child, answer its reply.
type command struct {
	Do     string
	Op     string      `json:",omitempty"`
	Errno  int         `json:",omitempty"`
	Panic  bool        `json:",omitempty"`
	Parent catalog.Ino `json:",omitempty"`
	Name   string      `json:",omitempty"`
	Data   string      `json:",omitempty"`
}

type answer struct {
	Error    string            `json:",omitempty"`
	Requests map[string]uint64 `json:",omitempty"`
	Log      []volume.LogEntry `json:",omitempty"`
}

// Main runs the tests of a package, or serves a mount for one of them. Its result is for os.Exit.
func Main(m *testing.M) int {
	text := os.Getenv(configVariable)
	if text == "" {
		return m.Run()
	}
	syscall.Umask(0)
	if err := serve(text, os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "serving a mount for a test:", err)
		return 1
	}
	return 0
}

// Mount is a mounted filesystem.
type Mount struct {
	Dir   string // where it is mounted
	Store string // the store's directory; "" when nothing is on disk
	t     testing.TB
	cfg   config

	mu    sync.Mutex
	child *exec.Cmd
	in    io.WriteCloser
	out   *bufio.Reader
	errs  *logBuffer
}

// logBuffer is a bytes.Buffer that may be read while it is written.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// New mounts a fresh filesystem, and unmounts it at the end of the test, when a store is checked as well.
func New(t testing.TB, opt Options) *Mount {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Fatalf("this test needs FUSE, and /dev/fuse is not there: load the kernel's fuse module, or give the container the device (%v)", err)
	}
	if opt.Kind == "" {
		opt.Kind = Volume
	}
	base := t.TempDir()
	m := &Mount{t: t, Dir: filepath.Join(base, "mnt"), cfg: config{Options: opt}}
	if err := os.Mkdir(m.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if opt.User != 0 {
		check(t, os.Chown(base, int(opt.User), int(opt.User)))
		check(t, os.Chown(m.Dir, int(opt.User), int(opt.User)))
	}
	if opt.AllowOther || opt.User != 0 {
		for dir := base; len(dir) > len(os.TempDir()); dir = filepath.Dir(dir) {
			os.Chmod(dir, 0o755)
		}
	}
	if opt.Kind == Volume {
		m.Store = filepath.Join(base, "store")
	}
	m.cfg.Store, m.cfg.Dir = m.Store, m.Dir
	m.Start()
	t.Cleanup(func() {
		m.Stop()
		if m.Store != "" {
			if err := CheckStore(m.Store); err != nil {
				t.Errorf("the store is not in order after the test: %v", err)
			}
		}
	})
	return m
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o755)
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// SetReadOnly says how the next Start opens and mounts the store.
func (m *Mount) SetReadOnly(on bool) { m.cfg.ReadOnly = on }

// Start mounts; New has done it once.
func (m *Mount) Start() {
	m.t.Helper()
	text, err := json.Marshal(m.cfg)
	if err != nil {
		m.t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		m.t.Fatal(err)
	}
	if m.cfg.User != 0 {
		// Where the test binary lies, other users need not get.
		own := filepath.Join(filepath.Dir(m.Dir), "daemon")
		if err := copyFile(exe, own); err != nil {
			m.t.Fatal(err)
		}
		exe = own
	}
	m.errs = new(logBuffer)
	m.child = exec.Command(exe)
	m.child.Env = append(append(os.Environ(), configVariable+"="+string(text)), m.cfg.Env...)
	m.child.Stderr = m.errs
	// Signals for the test's group are not for the daemon, which would leave a dead mount; it ends with its standard input.
	m.child.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if u := m.cfg.User; u != 0 {
		m.child.SysProcAttr.Credential = &syscall.Credential{Uid: u, Gid: u}
	}
	if m.in, err = m.child.StdinPipe(); err != nil {
		m.t.Fatal(err)
	}
	out, err := m.child.StdoutPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	m.out = bufio.NewReader(out)
	if err := m.child.Start(); err != nil {
		m.t.Fatal(err)
	}
	if a, err := m.reply(); err != nil || a.Error != "" {
		m.in.Close()
		m.child.Wait()
		m.child = nil
		m.t.Fatalf("mounting on %s: %v %s\n%s", m.Dir, err, a.Error, m.errs)
	}
}

func (m *Mount) reply() (answer, error) {
	var a answer
	line, err := m.out.ReadBytes('\n')
	if err != nil {
		return a, err
	}
	return a, json.Unmarshal(line, &a)
}

func (m *Mount) ask(c command) answer {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	line, err := json.Marshal(c)
	if err != nil {
		m.t.Fatal(err)
	}
	if _, err := m.in.Write(append(line, '\n')); err != nil {
		m.t.Fatalf("asking the mount's server: %v\n%s", err, m.errs)
	}
	a, err := m.reply()
	if err != nil || a.Error != "" {
		m.t.Fatalf("the mount's server: %v %s\n%s", err, a.Error, m.errs)
	}
	return a
}

// Kind is what the mount serves.
func (m *Mount) Kind() string { return m.cfg.Kind }

// Requests is the number of requests so far, by name.
func (m *Mount) Requests() map[string]uint64 {
	m.t.Helper()
	return m.ask(command{Do: "requests"}).Requests
}

// Fail lets the operation op of a Memory fail from now on; 0 ends that.
func (m *Mount) Fail(op string, errno syscall.Errno) {
	m.t.Helper()
	m.ask(command{Do: "fault", Op: op, Errno: int(errno)})
}

// Panic lets the operation op of a Memory panic from now on.
func (m *Mount) Panic(op string) {
	m.t.Helper()
	m.ask(command{Do: "fault", Op: op, Panic: true})
}

// Behind writes a file of the store without the mount, as commands do, and lets the kernel know.
func (m *Mount) Behind(path, data string) {
	m.t.Helper()
	m.ask(command{Do: "write", Name: path, Data: data})
}

// Log is the history of a path of the store.
func (m *Mount) Log(path string) []volume.LogEntry {
	m.t.Helper()
	return m.ask(command{Do: "log", Name: path}).Log
}

// Stderr is what the server has logged so far.
func (m *Mount) Stderr() string { return m.errs.String() }

// PID is the server's process.
func (m *Mount) PID() int { return m.child.Process.Pid }

// Stop unmounts and waits for the server's end.
func (m *Mount) Stop() {
	m.t.Helper()
	if m.child == nil {
		return
	}
	m.in.Close()
	err := m.child.Wait()
	m.child = nil
	if err != nil {
		m.t.Errorf("the mount's server: %v\n%s", err, m.errs)
		if _, err := fs.StaleMount(m.Dir); err != nil {
			m.t.Errorf("cleaning up: %v", err)
		}
	} else if m.t.Failed() && m.cfg.Debug {
		m.t.Logf("the mount's server said:\n%s", m.errs)
	}
}

// Remount unmounts and mounts again.
func (m *Mount) Remount() {
	m.t.Helper()
	m.Stop()
	m.Start()
}

// Kill kills the server, as a crash would, and leaves the dead mount.
func (m *Mount) Kill() {
	m.t.Helper()
	m.child.Process.Kill()
	m.child.Wait()
	m.in.Close()
	m.child = nil
}

// serve is the child: it mounts, answers commands until in ends, and unmounts.
func serve(text string, in io.Reader, out io.Writer) (err error) {
	var cfg config
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		return err
	}
	level := slog.LevelInfo
	if cfg.Debug {
		level = slog.LevelDebug
	}
	s := &served{cfg: cfg, log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})), out: json.NewEncoder(out)}
	if err := s.mount(context.Background()); err != nil {
		return errors.Join(s.out.Encode(answer{Error: err.Error()}), err)
	}
	if err := s.out.Encode(answer{}); err != nil {
		return err
	}
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		var c command
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			return err
		}
		if err := s.out.Encode(s.do(context.Background(), c)); err != nil {
			return err
		}
	}
	return s.unmount(context.Background())
}

// mounted is what the servers of all kinds can do.
type mounted interface {
	Requests() map[string]uint64
	Unmount(lazy bool) error
	Wait()
}

type served struct {
	cfg    config
	log    *slog.Logger
	out    *json.Encoder
	vol    *volume.Volume
	memory *Memory
	srv    mounted

	mu     sync.Mutex
	faults map[string]command
}

func (s *served) mount(ctx context.Context) (err error) {
	uid, gid := uint32(os.Getuid()), uint32(os.Getgid())
	opt := fs.MountOptions{
		AllowOther: s.cfg.AllowOther, ReadOnly: s.cfg.ReadOnly, Options: s.cfg.Mount, Debug: s.cfg.Debug, Log: s.log,
	}
	if s.cfg.Virtual != "" {
		s.memory = NewMemory(uid, gid)
		opt.Virtual = []fs.Virtual{{Name: s.cfg.Virtual, Tree: s.memory}}
	}
	switch s.cfg.Kind {
	case Volume:
		if _, err := volume.ReadSettings(s.cfg.Store); errors.Is(err, volume.ErrNoStore) {
			if _, err := volume.Init(ctx, s.cfg.Store, volume.InitOptions{Storage: s.cfg.Storage, UID: uid, GID: gid, Log: s.log}); err != nil {
				return err
			}
		}
		if s.vol, err = volume.Open(ctx, volume.Options{Dir: s.cfg.Store, ReadOnly: s.cfg.ReadOnly, Log: s.log}); err != nil {
			return err
		}
		s.srv, err = fs.Mount(ctx, s.vol, s.cfg.Dir, opt)
	case Mem:
		tree := NewMemory(uid, gid)
		tree.Fault = s.fault
		s.srv, err = fs.MountTree(ctx, tree, s.cfg.Dir, opt)
	case Floor:
		s.srv, err = floor.Mount(s.cfg.Dir, s.cfg.Debug, s.log)
	default:
		err = fmt.Errorf("no such kind of mount: %q", s.cfg.Kind)
	}
	return err
}

func (s *served) fault(op string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.faults[op]
	switch {
	case !ok:
		return nil
	case c.Panic:
		panic("a test wanted this panic")
	}
	return syscall.Errno(c.Errno)
}

func (s *served) do(ctx context.Context, c command) answer {
	switch c.Do {
	case "requests":
		return answer{Requests: s.srv.Requests()}
	case "fault":
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.faults == nil {
			s.faults = make(map[string]command)
		}
		if s.faults[c.Op] = c; c.Errno == 0 && !c.Panic {
			delete(s.faults, c.Op)
		}
		return answer{}
	case "write":
		_, err := s.vol.WritePath(ctx, catalog.Actor{Agent: "behind", Program: "test"}, 0, c.Name, 0o644, bytes.NewReader([]byte(c.Data)))
		return failed(err)
	case "log":
		var all []volume.LogEntry
		err := s.vol.Log(ctx, c.Name, func(e volume.LogEntry) error {
			all = append(all, e)
			return nil
		})
		a := failed(err)
		a.Log = all
		return a
	}
	return answer{Error: "no such command: " + c.Do}
}

func failed(err error) answer {
	if err != nil {
		return answer{Error: err.Error()}
	}
	return answer{}
}

func (s *served) unmount(ctx context.Context) error {
	err := s.srv.Unmount(false)
	switch {
	case errors.Is(err, fs.ErrBusy):
		// The test has left something open, perhaps because it failed. It waits for this process, so this process cannot wait for it: the
		// end of the process is the end of what is open.
		if err := s.srv.Unmount(true); err != nil {
			return err
		}
	case err == nil, errors.Is(err, fs.ErrNotMounted):
		s.srv.Wait()
	default:
		return err
	}
	if s.vol != nil {
		return s.vol.Close(ctx)
	}
	return nil
}

// As runs fn on a thread of its own with the rights of another user, and waits for it. It needs root.
func As(t testing.TB, uid, gid int, groups []int, fn func()) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		// The thread is never unlocked, so it ends with the goroutine.
		err := become(uid, gid, groups)
		if err == nil {
			fn()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("becoming user %d: %v", uid, err)
	}
}

var errNotRoot = errors.New("only root can become somebody else")

func become(uid, gid int, groups []int) error {
	lockThread()
	if unix.Getuid() != 0 {
		return errNotRoot
	}
	return setThreadIDs(uid, gid, groups)
}
