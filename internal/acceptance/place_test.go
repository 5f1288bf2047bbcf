package acceptance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// startTime bounds how long a daemon may take to mount or to end; it is never waited for when things go well.
const startTime = 2 * time.Minute

// place is where a test works: a directory of a fresh Holdfast mount, or of HOLDFAST_TEST_DIR.
type place struct {
	t     *testing.T
	dir   string // the test's own directory, inside the mount
	mount *mount // nil for a plain directory
}

// placeOptions are for mounts; a plain directory ignores them.
type placeOptions struct {
	storage    string // "" means hybrid
	allowOther bool
	parent     string // the store is made in here; "" means a temporary folder
}

// newPlace makes a place and removes it at the end of the test.
func newPlace(t *testing.T, opt placeOptions) *place {
	t.Helper()
	if plain := os.Getenv(dirVar); plain != "" {
		dir, err := os.MkdirTemp(plain, "place-")
		must(t, err)
		must(t, os.Chmod(dir, 0o755))
		t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
		return &place{t: t, dir: dir}
	}
	m := newMount(t, opt)
	m.start()
	p := &place{t: t, dir: filepath.Join(m.dir, "work"), mount: m}
	must(t, os.Mkdir(p.dir, 0o755))
	return p
}

// reopen unmounts and mounts again, so that all that is read afterwards comes from the store.
func (p *place) reopen() {
	p.t.Helper()
	if p.mount == nil {
		unix.Sync()
		dropCaches()
		return
	}
	p.mount.stop()
	p.mount.start()
}

// checkReopened reopens the place and compares everything in it with what was there before.
func (p *place) checkReopened() {
	p.t.Helper()
	before := readTree(p.t, p.dir)
	p.reopen()
	p.compare(before, "after unmounting and mounting again")
}

func (p *place) compare(want tree, when string) {
	p.t.Helper()
	if diff := want.diff(readTree(p.t, p.dir)); diff != "" {
		p.t.Fatalf("%s the tree differs:\n%s", when, diff)
	}
}

// dropCaches empties the kernel's caches of clean pages, as far as the user may.
func dropCaches() {
	if f, err := os.OpenFile("/proc/sys/vm/drop_caches", os.O_WRONLY, 0); err == nil {
		f.WriteString("3")
		f.Close()
	}
}

// mount is a store and the daemon that serves it, one at a time.
type mount struct {
	t          *testing.T
	store, dir string
	options    placeOptions
	logName    string
	daemon     *daemon // nil while unmounted
}

// newMount makes a store. At the end of the test it is unmounted, and the daemon must have ended without a complaint.
func newMount(t *testing.T, opt placeOptions) *mount {
	t.Helper()
	if os.Getenv(binVar) == "" {
		t.Fatalf("this test needs Holdfast: unset %s", dirVar)
	}
	base := t.TempDir()
	must(t, os.Chmod(base, 0o755))
	must(t, os.Chmod(filepath.Dir(base), 0o755))
	m := &mount{t: t, store: filepath.Join(base, "store"), dir: filepath.Join(base, "mnt"), options: opt, logName: filepath.Join(base, "log")}
	if opt.parent != "" {
		m.store = filepath.Join(opt.parent, "store")
	}
	if m.options.storage == "" {
		m.options.storage = "hybrid"
	}
	must(t, os.Mkdir(m.dir, 0o755))
	t.Cleanup(m.cleanup)
	command{}.run(t, os.Getenv(binVar), "init", "--storage", m.options.storage, m.store)
	return m
}

// daemon is a running `holdfast mount -f`.
type daemon struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
	err  error         // how, valid after done
}

// launch starts the daemon and does not wait for it.
func (m *mount) launch() *daemon {
	m.t.Helper()
	log, err := os.OpenFile(m.logName, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	must(m.t, err)
	defer log.Close()
	args := []string{"mount", "-f"}
	if m.options.allowOther {
		args = append(args, "--allow-other")
	}
	d := &daemon{cmd: exec.Command(os.Getenv(binVar), append(args, m.store, m.dir)...), done: make(chan struct{})}
	d.cmd.Stdout, d.cmd.Stderr = log, log
	// The daemon ends with the test process, even when that is killed by a timeout.
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	must(m.t, d.cmd.Start())
	go func() {
		d.err = d.cmd.Wait()
		close(d.done)
	}()
	return d
}

// start mounts the store and waits until the mount answers.
func (m *mount) start() {
	m.t.Helper()
	m.daemon = m.launch()
	if err := m.waitMounted(m.daemon); err != nil {
		m.t.Fatalf("mounting %s: %v; the daemon's log:\n%s", m.store, err, m.log())
	}
}

func (m *mount) waitMounted(d *daemon) error {
	info, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	defer info.Close()
	ctx, cancel := context.WithTimeout(m.t.Context(), startTime)
	defer cancel()
	for {
		select {
		case <-d.done:
			return fmt.Errorf("the daemon ended: %w", errors.Join(errors.New("before the mount was there"), d.err))
		case <-ctx.Done():
			return errors.New("the mount did not appear in time")
		default:
		}
		// A dead mount of an earlier daemon may still cover the directory; it does not answer.
		var st unix.Statfs_t
		if isMounted(m.dir) && unix.Statfs(m.dir, &st) == nil {
			if _, err := os.Stat(m.dir); err == nil {
				return nil
			}
		}
		// The kernel reports a change of the mount table as an exceptional condition of this file.
		unix.Poll([]unix.PollFd{{Fd: int32(info.Fd()), Events: unix.POLLPRI}}, 20)
	}
}

// isMounted says whether a Holdfast mount is on dir.
func isMounted(dir string) bool {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		if len(fields) > 5 && fields[4] == dir && strings.Contains(line, " - fuse") {
			return true
		}
	}
	return false
}

// stop unmounts with the command that users use, and waits for the daemon.
func (m *mount) stop() {
	m.t.Helper()
	command{}.run(m.t, os.Getenv(binVar), "umount", m.dir)
	m.waitEnd()
	if m.daemon.err != nil {
		m.t.Errorf("the daemon ended with %v; its log:\n%s", m.daemon.err, m.log())
	}
	m.daemon = nil
}

func (m *mount) waitEnd() {
	m.t.Helper()
	select {
	case <-m.daemon.done:
	case <-time.After(startTime):
		m.daemon.cmd.Process.Kill()
		m.t.Fatalf("the daemon did not end after unmounting; its log:\n%s", m.log())
	}
}

// kill ends the daemon with SIGKILL. The dead mount stays; detach removes it.
func (m *mount) kill() {
	m.t.Helper()
	must(m.t, m.daemon.cmd.Process.Kill())
	<-m.daemon.done
	m.daemon = nil
}

func (m *mount) detach() {
	for isMounted(m.dir) && unix.Unmount(m.dir, unix.MNT_DETACH) == nil {
	}
}

func (m *mount) log() []byte {
	b, err := os.ReadFile(m.logName)
	if err != nil {
		return []byte(err.Error())
	}
	return tail(b)
}

func (m *mount) cleanup() {
	if m.daemon != nil {
		if m.t.Failed() {
			m.daemon.cmd.Process.Signal(syscall.SIGTERM)
			m.detach()
		} else {
			m.stopAtEnd()
		}
		m.waitEnd()
	}
	m.detach()
	b, err := os.ReadFile(m.logName)
	if err != nil {
		return
	}
	for _, bad := range []string{"DATA RACE", "panic:", "fatal error:", "goroutine 1 ["} {
		if bytes.Contains(b, []byte(bad)) {
			m.t.Errorf("the daemon's log has %q:\n%s", bad, b[max(0, bytes.Index(b, []byte(bad))-200):])
			return
		}
	}
	if m.t.Failed() {
		m.t.Logf("the daemon's log:\n%s", tail(b))
	}
}

// stopAtEnd is stop for a test whose context has ended.
func (m *mount) stopAtEnd() {
	out, err := exec.Command(os.Getenv(binVar), "umount", m.dir).CombinedOutput()
	if err != nil {
		m.t.Errorf("umount at the end: %v\n%s", err, out)
		m.daemon.cmd.Process.Signal(syscall.SIGTERM)
		m.detach()
	}
}

// credential makes a program run as another user; uid 0 means as the test itself.
func credential(uid uint32) *syscall.SysProcAttr {
	if uid == 0 {
		return nil
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
}
