package journal

import (
	"errors"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// FS is what the log needs of a filesystem; tests put faults behind it. Paths are as given in Options.Dir.
type FS interface {
	// OpenFile opens a regular file and never follows a symbolic link in the last element.
	OpenFile(name string, flag int, perm os.FileMode) (File, error)
	// ReadDir lists the names in a directory; fs.ErrNotExist when there is none.
	ReadDir(dir string) ([]string, error)
	Mkdir(dir string, perm os.FileMode) error
	Rename(from, to string) error
	Remove(name string) error
	// SyncDir makes the entries of a directory durable.
	SyncDir(dir string) error
}

// File is an open segment.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Size() (int64, error)
	Truncate(size int64) error
	// Datasync makes content and size durable (fdatasync). errRemoved: it has, but no name leads to the file any more.
	Datasync() error
}

// OS returns the operating system's FS.
func OS() FS { return osFS{} }

type osFS struct{}

func (osFS) OpenFile(name string, flag int, perm os.FileMode) (File, error) {
	// O_NONBLOCK: opening a FIFO that someone put in the segment's place must not hang.
	f, err := os.OpenFile(name, flag|unix.O_NOFOLLOW|unix.O_NONBLOCK, perm)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: name, Err: errors.New("not a regular file")}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return osFile{f}, nil
}

func (osFS) ReadDir(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

func (osFS) Mkdir(dir string, perm os.FileMode) error { return os.Mkdir(dir, perm) }
func (osFS) Rename(from, to string) error             { return os.Rename(from, to) }
func (osFS) Remove(name string) error                 { return os.Remove(name) }

func (osFS) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

type osFile struct{ *os.File }

func (f osFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// errRemoved: somebody has removed the file; what is written to it is gone once it is closed.
var errRemoved = errors.New("the file has been removed while it was open")

// named is errRemoved when no name leads to the file.
func (f osFile) named() error {
	var st unix.Stat_t
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var statErr error
	if err := raw.Control(func(fd uintptr) { statErr = unix.Fstat(int(fd), &st) }); err != nil {
		return err
	}
	if statErr == nil && st.Nlink == 0 {
		return errRemoved
	}
	return statErr
}

func (f osFile) Datasync() error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var syncErr error
	err = raw.Control(func(fd uintptr) {
		for {
			if syncErr = unix.Fdatasync(int(fd)); !errors.Is(syncErr, unix.EINTR) {
				return
			}
		}
	})
	if err == nil {
		err = syncErr
	}
	if err == nil {
		err = f.named()
	}
	if err != nil {
		return &fs.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
	}
	return nil
}
