package kernel

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	// maxLinks is how many symbolic links a path may lead through.
	maxLinks = 40
	// answerTime is how long a daemon may take to show that it lives.
	answerTime = 2 * time.Second
)

var (
	// ErrMountPoint: the directory cannot be mounted on.
	ErrMountPoint = errors.New("cannot mount there")
	// ErrBusy: programs still use the mount.
	ErrBusy = errors.New("the mount is in use")
	// ErrNotMounted: nothing is mounted on the directory.
	ErrNotMounted = errors.New("not mounted")
)

// Server serves one mount.
type Server struct {
	raw  *gofuse.Server
	dir  string
	done chan struct{}
}

// Mount mounts raw on dir and serves it until it is unmounted. On return the mount is in the table, the kernel's greeting is
// answered and requests are served.
func Mount(raw gofuse.RawFileSystem, dir string, o Options) (*Server, error) {
	dir, err := checkMountPoint(dir, o)
	if err != nil {
		return nil, err
	}
	opts := o.fuseOptions()
	srv, err := gofuse.NewServer(raw, dir, opts)
	if err != nil {
		return nil, mountError(dir, err)
	}
	// Not WaitMount: it opens a file in the mount, and a process that touches what it serves can wait for itself.
	s := &Server{raw: srv, dir: dir, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		srv.Serve()
	}()
	if os.Geteuid() == 0 {
		if err := raiseReadAhead(dir); err != nil {
			o.Log.Warn("cannot raise the mount's readahead; large first reads will be slower", "mount", dir, "error", err)
		}
	}
	return s, nil
}

// checkMountPoint returns dir as the mount table will name it.
func checkMountPoint(dir string, o Options) (string, error) {
	abs, err := Resolve(dir)
	if err != nil {
		return "", fmt.Errorf("%s: %w: %w", dir, ErrMountPoint, err)
	}
	if dead, _, err := isDead(abs); err == nil && dead {
		return "", fmt.Errorf("%s: %w: a mount is left there whose daemon has died; unmount it first", dir, ErrMountPoint)
	}
	if abs, err = filepath.EvalSymlinks(abs); err != nil {
		return "", fmt.Errorf("%s: %w: %w", dir, ErrMountPoint, err)
	}
	st, err := os.Stat(abs)
	if err != nil {
		return "", fmt.Errorf("%s: %w: %w", dir, ErrMountPoint, err)
	}
	if !st.IsDir() {
		return "", fmt.Errorf("%s: %w: it is not a directory", dir, ErrMountPoint)
	}
	if m, ok, err := At(abs); err == nil && ok && m.IsOurs() {
		return "", fmt.Errorf("%s: %w: %s is mounted there already", dir, ErrMountPoint, m.Source)
	}
	if store, err := filepath.EvalSymlinks(o.Store); err == nil && filepath.IsAbs(store) {
		if within(store, abs) {
			return "", fmt.Errorf("%s: %w: it would hide the store in %s", dir, ErrMountPoint, o.Store)
		}
		if within(abs, store) {
			return "", fmt.Errorf("%s: %w: it lies inside the store in %s", dir, ErrMountPoint, o.Store)
		}
	}
	d, err := os.Open(abs)
	if err != nil {
		return "", fmt.Errorf("%s: %w: %w", dir, ErrMountPoint, err)
	}
	defer d.Close()
	if names, _ := d.Readdirnames(1); len(names) > 0 && !has(o.Extra, "nonempty") {
		return "", fmt.Errorf("%s: %w: it is not empty, and its files would be hidden (the option nonempty allows it)", dir, ErrMountPoint)
	}
	return abs, nil
}

func has(list []string, want string) bool {
	for _, s := range list {
		if s == want {
			return true
		}
	}
	return false
}

// within reports whether path is dir or lies below it. Both are clean and absolute.
func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

func mountError(dir string, err error) error {
	switch {
	case errors.Is(err, unix.ENOENT):
		if _, statErr := os.Stat("/dev/fuse"); statErr != nil {
			return fmt.Errorf("mounting on %s: /dev/fuse is missing: load the kernel's fuse module, or give the container the device: %w", dir, err)
		}
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("mounting on %s: not allowed: run as root, or install fusermount3 (package fuse3): %w", dir, err)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("mounting on %s: the kernel does not know one of the mount options: %w", dir, err)
	case errors.Is(err, exec.ErrNotFound):
		return fmt.Errorf("mounting on %s: fusermount3 is missing: install the package fuse3, or mount as root: %w", dir, err)
	}
	if text := err.Error(); strings.Contains(text, "fusermount exited") {
		return fmt.Errorf("mounting on %s: fusermount3 refused, and has said why: the directory must be yours, and /dev/fuse open to you", dir)
	}
	return fmt.Errorf("mounting on %s: %w", dir, err)
}

// raiseReadAhead lets the kernel read further ahead than FUSE's default of 128 KiB.
func raiseReadAhead(dir string) error {
	m, ok, err := At(dir)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("%s: %w", dir, ErrNotMounted)
	}
	return os.WriteFile(filepath.Join("/sys/class/bdi", m.Device, "read_ahead_kb"), fmt.Appendf(nil, "%d\n", readAheadKB), 0)
}

// Raw is the protocol server, for notifications.
func (s *Server) Raw() *gofuse.Server { return s.raw }

// Dir is the mount point.
func (s *Server) Dir() string { return s.dir }

// Wait returns when the mount is gone and every request is answered.
func (s *Server) Wait() { <-s.done }

// Done is closed when the mount is gone and every request is answered.
func (s *Server) Done() <-chan struct{} { return s.done }

// Unmount takes the mount down. ErrBusy when programs use it, unless lazy is set: then it disappears from the tree at once and
// ends when the last of them is done. It does not wait for that; Wait does.
func (s *Server) Unmount(lazy bool) error {
	select {
	case <-s.done:
		return nil
	default:
	}
	return Unmount(s.dir, lazy)
}

// Unmount takes down what is mounted on dir, an absolute path.
func Unmount(dir string, lazy bool) error {
	flags := unix.UMOUNT_NOFOLLOW
	if lazy {
		flags |= unix.MNT_DETACH
	}
	err := retry(func() error { return unix.Unmount(dir, flags) })
	if errors.Is(err, unix.EPERM) && os.Geteuid() != 0 {
		err = fusermount(dir, lazy)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%s: %w: close the programs that have files or their working directory there, or unmount lazily", dir, ErrBusy)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
		return fmt.Errorf("%s: %w", dir, ErrNotMounted)
	}
	return fmt.Errorf("unmounting %s: %w", dir, err)
}

func retry(f func() error) error {
	for {
		if err := f(); err != syscall.EINTR {
			return err
		}
	}
}

// fusermount unmounts with the set-uid helper, which is how a user other than root does it.
func fusermount(dir string, lazy bool) error {
	bin, err := exec.LookPath("fusermount3")
	if err != nil {
		if bin, err = exec.LookPath("fusermount"); err != nil {
			return fmt.Errorf("fusermount3 is missing: install the package fuse3: %w", err)
		}
	}
	mode := "-u"
	if lazy {
		mode = "-uz"
	}
	out, err := exec.Command(bin, mode, "--", dir).CombinedOutput()
	if err == nil {
		return nil
	}
	text := strings.TrimSpace(string(out))
	switch {
	case strings.Contains(text, "busy"):
		return unix.EBUSY
	case strings.Contains(text, "not found"), strings.Contains(text, "not mounted"):
		return unix.EINVAL
	}
	return fmt.Errorf("%s: %s: %w", bin, text, err)
}

// isDead reports whether dir is a mount whose daemon has died, for which the kernel answers ENOTCONN, and whether it is ours. A daemon
// that does not answer in time is not dead.
func isDead(dir string) (dead, ours bool, err error) {
	m, ok, err := At(dir)
	if err != nil || !ok || !strings.HasPrefix(m.Type, "fuse") {
		return false, false, err
	}
	// Not stat: attributes of a dead mount may still be in the kernel's cache.
	answer := make(chan error, 1)
	go func() { answer <- retry(func() error { return unix.Statfs(dir, new(unix.Statfs_t)) }) }()
	patience := time.NewTimer(answerTime)
	defer patience.Stop()
	select {
	case err := <-answer:
		return err == unix.ENOTCONN, err == unix.ENOTCONN && m.IsOurs(), nil
	case <-patience.C:
		return false, false, nil
	}
}

// CleanStale unmounts what a dead daemon left on dir and reports whether it did. A mount that answers, or whose daemon
// hangs, is not touched.
func CleanStale(dir string) (bool, error) {
	abs, err := Resolve(dir)
	if err != nil {
		return false, err
	}
	_, ours, err := isDead(abs)
	if err != nil || !ours {
		return false, err
	}
	if err := Unmount(abs, true); err != nil {
		return false, err
	}
	return true, nil
}

// Resolve returns dir as the mount table names it when it is a mount point, without touching what is mounted there: the parents'
// links are followed with the help of the filesystem, those of the last name by hand.
func Resolve(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	for range maxLinks {
		if parent, err := filepath.EvalSymlinks(filepath.Dir(abs)); err == nil {
			abs = filepath.Join(parent, filepath.Base(abs))
		}
		target, err := os.Readlink(abs)
		if err != nil {
			return abs, nil
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(abs), target)
		}
		abs = filepath.Clean(target)
	}
	return "", fmt.Errorf("%s: %w", dir, unix.ELOOP)
}
