package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// A socket address holds at most 107 bytes of path and a store may lie deeper than that, so the socket is addressed through a
// descriptor of the store's directory.
type socketDir struct {
	dir *os.File
}

func openSocketDir(store string) (socketDir, error) {
	fd, err := unix.Open(store, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return socketDir{}, &os.PathError{Op: "open", Path: store, Err: err}
	}
	return socketDir{os.NewFile(uintptr(fd), store)}, nil
}

func (d socketDir) addr() *net.UnixAddr {
	return &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("/proc/self/fd/%d/%s", d.dir.Fd(), SocketName)}
}

// unlink removes the socket; a missing one is no error. Anything but a socket is left alone.
func (d socketDir) unlink() error {
	var st unix.Stat_t
	err := unix.Fstatat(int(d.dir.Fd()), SocketName, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "stat", Path: filepath.Join(d.dir.Name(), SocketName), Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return fmt.Errorf("%s is in the way: it is not a socket; move it elsewhere", filepath.Join(d.dir.Name(), SocketName))
	}
	if err := unix.Unlinkat(int(d.dir.Fd()), SocketName, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "remove", Path: filepath.Join(d.dir.Name(), SocketName), Err: err}
	}
	return nil
}

// listen makes the socket, replacing one that a killed daemon left behind. The caller must hold the store's lock, which is what
// makes every socket found there a stale one.
func (d socketDir) listen(ctx context.Context) (*net.UnixListener, error) {
	if err := d.unlink(); err != nil {
		return nil, err
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		// A socket file takes its mode from the socket: so it is never there with a wider one, whatever the umask.
		var inner error
		if err := c.Control(func(fd uintptr) { inner = unix.Fchmod(int(fd), 0o600) }); err != nil {
			return err
		}
		return inner
	}}
	ln, err := lc.Listen(ctx, "unix", d.addr().Name)
	if err != nil {
		return nil, fmt.Errorf("make the control socket %s: %w", filepath.Join(d.dir.Name(), SocketName), err)
	}
	ul := ln.(*net.UnixListener)
	ul.SetUnlinkOnClose(false)
	return ul, nil
}

// errNoDaemon: nobody listens on the socket, or there is none.
var errNoDaemon = errors.New("no daemon listens")

func (d socketDir) dial(ctx context.Context) (*net.UnixConn, error) {
	var nd net.Dialer
	c, err := nd.DialContext(ctx, "unix", d.addr().Name)
	switch {
	case err == nil:
		return c.(*net.UnixConn), nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ENOTDIR):
		return nil, errNoDaemon
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return nil, fmt.Errorf("%s: %w; ask its owner, or use the files in the mount", filepath.Join(d.dir.Name(), SocketName), ErrForbidden)
	default:
		return nil, fmt.Errorf("connect to %s: %w", filepath.Join(d.dir.Name(), SocketName), err)
	}
}

// peer returns who is at the other end, by the kernel's word.
func peer(c net.Conn) (unix.Ucred, error) {
	uc, ok := c.(syscall.Conn)
	if !ok {
		return unix.Ucred{}, fmt.Errorf("not a socket: %T", c)
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return unix.Ucred{}, err
	}
	var cred *unix.Ucred
	var inner error
	if err := raw.Control(func(fd uintptr) {
		cred, inner = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return unix.Ucred{}, err
	}
	if inner != nil {
		return unix.Ucred{}, inner
	}
	return *cred, nil
}
