package drill

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// place is where a worker has its copy of a scratch store.
type place struct {
	dir      string
	template *template
	of       string           // the template that it is a copy of
	stamps   map[string]stamp // of the files as they were copied
}

// stamp changes with every change of a file: nobody can set a ctime.
type stamp struct {
	ino, size   uint64
	sec, nanos  int64
	isDirectory bool
}

func stampOf(path string) (stamp, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return stamp{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return stamp{ino: st.Ino, size: uint64(st.Size), sec: st.Ctim.Sec, nanos: st.Ctim.Nsec, isDirectory: st.Mode&unix.S_IFMT == unix.S_IFDIR}, nil
}

// restore makes the place a copy of a template again. Only what has changed is copied.
func (p *place) restore(from string) error {
	if p.of != from {
		if err := os.RemoveAll(p.dir); err != nil {
			return err
		}
		p.stamps = make(map[string]stamp)
		p.of = from
	}
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return err
	}
	// What is there and does not belong goes; what has changed as well.
	var gone []string
	err := filepath.WalkDir(p.dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || path == p.dir {
			return err
		}
		rel, err := filepath.Rel(p.dir, path)
		if err != nil {
			return err
		}
		now, err := stampOf(path)
		if err != nil {
			return err
		}
		then, ok := p.stamps[rel]
		if ok && then.isDirectory && now.isDirectory || ok && then == now {
			return nil
		}
		gone = append(gone, path)
		delete(p.stamps, rel)
		if now.isDirectory {
			return fs.SkipDir
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, path := range gone {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	return p.fill(from)
}

// fill copies what is missing.
func (p *place) fill(from string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == from {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		to := filepath.Join(p.dir, rel)
		if then, ok := p.stamps[rel]; ok {
			if now, err := stampOf(to); err == nil && (now == then || now.isDirectory) {
				return nil
			}
		}
		switch {
		case d.IsDir():
			err = os.Mkdir(to, 0o700)
			if errors.Is(err, fs.ErrExist) {
				err = nil
			}
		case d.Type().IsRegular():
			err = copyFile(path, to)
		default:
			return nil
		}
		if err != nil {
			return err
		}
		p.stamps[rel], err = stampOf(to)
		return err
	})
}

func copyTree(from, to string) error {
	p := place{dir: to}
	return p.restore(from)
}

func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, in)
	return err
}
