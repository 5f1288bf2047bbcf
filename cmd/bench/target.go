package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// target is a filesystem to measure. It is started, used and stopped again for each turn, so at most one is being served at any time.
type target interface {
	Name() string
	// Start makes it, empty.
	Start(ctx context.Context) error
	// Dir is where the client works.
	Dir() string
	// Restart serves the same content from a new process. It returns false when nothing was done, because there is no process or because
	// the content does not outlive it.
	Restart(ctx context.Context) (bool, error)
	// PID is the serving process, 0 when there is none.
	PID() int
	// Counters returns how often each FUSE request was received. errNoCounters when the target does not count.
	Counters(ctx context.Context) (map[string]uint64, error)
	// Stop ends it and removes all that it kept.
	Stop() error
}

var errNoCounters = errors.New("this target does not count its requests")

// plain is a directory of the disk's own filesystem.
type plain struct {
	name string
	base string
}

func (p *plain) Name() string                          { return p.name }
func (p *plain) Dir() string                           { return p.base }
func (p *plain) PID() int                              { return 0 }
func (p *plain) Start(context.Context) error           { return os.MkdirAll(p.base, 0o755) }
func (p *plain) Restart(context.Context) (bool, error) { return false, nil }
func (p *plain) Counters(context.Context) (map[string]uint64, error) {
	return nil, errNoCounters
}
func (p *plain) Stop() error { return os.RemoveAll(p.base) }

// served is a filesystem that a process of its own serves, in the foreground, until it gets SIGTERM.
type served struct {
	name     string
	base     string // its folder: everything it has lies below
	mnt      string // the mount point, in base
	log      *slog.Logger
	keeps    bool                                       // its content outlives the process
	speaks   bool                                       // it says "ready" on its standard output when the mount can be used
	argv     []string                                   // the serving process
	before   func()                                     // called before it is started, unless nil
	make     func(ctx context.Context, s *served) error // makes what argv needs, in base
	counters func(ctx context.Context, s *served) (map[string]uint64, error)
	proc     *process
}

func (s *served) Name() string { return s.name }
func (s *served) Dir() string  { return s.mnt }
func (s *served) PID() int {
	if s.proc == nil {
		return 0
	}
	return s.proc.cmd.Process.Pid
}

func (s *served) Start(ctx context.Context) error {
	if err := os.MkdirAll(s.mnt, 0o755); err != nil {
		return fmt.Errorf("start %s: %w", s.name, err)
	}
	if s.make != nil {
		if err := s.make(ctx, s); err != nil {
			return fmt.Errorf("start %s: %w", s.name, err)
		}
	}
	return s.mount(ctx)
}

// mountLimit is how long a server may take until its mount answers.
const mountLimit = 2 * time.Minute

func (s *served) mount(ctx context.Context) error {
	if s.before != nil {
		s.before()
	}
	p, err := startProcess(s.argv)
	if err != nil {
		return fmt.Errorf("start %s: %w", s.name, err)
	}
	s.proc = p
	ctx, cancel := context.WithTimeoutCause(ctx, mountLimit, fmt.Errorf("%s was not mounted after %s", s.name, mountLimit))
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if !s.speaks && mounted(s.mnt) {
			return nil
		}
		select {
		case line := <-p.out.ch:
			if s.speaks && line == readyWord {
				return nil
			}
		case <-tick.C:
		case <-p.done:
			return fmt.Errorf("%s ended before it was mounted: %w", s.name, p.failure())
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), s.unmount())
		}
	}
}

// readyWord is what a server of this program says when its mount can be used. Looking at the mount is not enough: the protocol library opens a file
// in it first, and a server that is killed with a file open in its own mount waits for itself.
const readyWord = "ready"

func (s *served) Restart(ctx context.Context) (bool, error) {
	if !s.keeps {
		return false, nil
	}
	if err := s.unmount(); err != nil {
		return false, err
	}
	return true, s.mount(ctx)
}

func (s *served) Counters(ctx context.Context) (map[string]uint64, error) {
	if s.counters == nil {
		return nil, errNoCounters
	}
	return s.counters(ctx, s)
}

// stopLimit is how long a server may take to end after SIGTERM.
const stopLimit = 3 * time.Minute

// unmount ends the server; when it does not end by itself it is killed and its mount detached.
func (s *served) unmount() error {
	if s.proc == nil {
		return nil
	}
	err := s.proc.stop(stopLimit, func() {
		// This aborts the connection, so that whoever waits for the server, itself included, gets an error. That it may be busy does not matter.
		_ = unix.Unmount(s.mnt, unix.MNT_FORCE)
	})
	s.proc = nil
	if mounted(s.mnt) {
		out, e := exec.Command("fusermount3", "-u", "-z", s.mnt).CombinedOutput()
		if e != nil {
			return errors.Join(err, fmt.Errorf("unmount %s: %w: %s", s.mnt, e, bytes.TrimSpace(out)))
		}
		err = errors.Join(err, fmt.Errorf("%s ended and left its mount behind", s.name))
	}
	if err != nil {
		return fmt.Errorf("stop %s: %w", s.name, err)
	}
	return nil
}

func (s *served) Stop() error {
	err := s.unmount()
	if mounted(s.mnt) {
		return errors.Join(err, fmt.Errorf("%s is still mounted; unmount it with fusermount3 -u and remove %s", s.mnt, s.base))
	}
	return errors.Join(err, os.RemoveAll(s.base))
}

// mounted says whether something is mounted at dir: its device differs from its parent's, or it is a mount without a server.
func mounted(dir string) bool {
	var st, parent unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return errors.Is(err, unix.ENOTCONN)
	}
	return unix.Lstat(filepath.Dir(dir), &parent) == nil && st.Dev != parent.Dev
}

// process is a server that runs in the foreground. Closing its standard input is its sign that this program has died.
type process struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *lines
	stderr *tail
	done   chan struct{} // closed when it has ended; err is then set
	err    error
}

func startProcess(argv []string) (*process, error) {
	p := &process{cmd: exec.Command(argv[0], argv[1:]...), stderr: &tail{}, out: &lines{ch: make(chan string, 64)}, done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.stderr
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	p.cmd.WaitDelay = 10 * time.Second // for what its own children still hold open when it has ended
	// Its own process group: an interrupt from the terminal reaches this program only, which then stops it in order.
	p.cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// failure describes the end of a process that should not have ended.
func (p *process) failure() error {
	<-p.done
	if p.err == nil {
		return fmt.Errorf("exit status 0: %s", p.stderr.String())
	}
	return fmt.Errorf("%w: %s", p.err, p.stderr.String())
}

// stop sends SIGTERM and waits for the end; after limit it kills and calls abort. An unclean end is an error.
func (p *process) stop(limit time.Duration, abort func()) error {
	_ = p.cmd.Process.Signal(unix.SIGTERM) // it may have ended already
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C:
		_ = p.cmd.Process.Kill()
		abort()
		<-p.done
		return fmt.Errorf("it did not end within %s of SIGTERM and was killed: %s", limit, p.stderr.String())
	}
	_ = p.in.Close()
	if p.err != nil {
		return p.failure()
	}
	return nil
}

// tail keeps the last 4 KiB written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

func (t *tail) Write(p []byte) (int, error) {
	const keep = 4 << 10
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if len(t.b) > keep {
		t.b = append(t.b[:0], t.b[len(t.b)-keep:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.TrimSpace(t.b))
}

// lines passes what is written to it on, line by line; when nobody takes them, they are dropped.
type lines struct {
	ch   chan string
	part []byte
}

func (l *lines) Write(p []byte) (int, error) {
	const longest = 64 << 10
	l.part = append(l.part, p...)
	for {
		i := bytes.IndexByte(l.part, '\n')
		if i < 0 {
			break
		}
		select {
		case l.ch <- string(l.part[:i]):
		default:
		}
		l.part = l.part[i+1:]
	}
	if len(l.part) > longest {
		l.part = nil
	}
	return len(p), nil
}
