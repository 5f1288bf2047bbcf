package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/blobstore"
	"holdfast/internal/durable"
)

// Extracted says what Extract wrote.
type Extracted struct {
	Backup  string   `json:"backup"`
	Entries int64    `json:"entries"`
	Bytes   int64    `json:"bytes"`
	Without []string `json:"without,omitempty"` // what could not be made or set, for instance by an ordinary user; at most maxWithout of them
	Left    int64    `json:"left,omitempty"`    // how many more
}

const maxWithout = 1000

// Extract writes what was at or below from (an absolute path) in a backup into the directory dir, which must be empty or missing: an ordinary tree, with
// modes, times, links and extended attributes, and owners when the process may set them. name "" is the newest. Nothing is written outside dir, whatever the
// manifest says. Content that cannot be read whole is an error, and what was written stays.
func (p *Place) Extract(ctx context.Context, name, from, dir string, done func(path string)) (Extracted, error) {
	info, err := p.find(name)
	if err != nil {
		return Extracted{}, err
	}
	from = path.Clean("/" + from)
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return Extracted{}, fmt.Errorf("%s: there are files in it; choose a directory that is empty or does not exist", dir)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Extracted{}, err
	}
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return Extracted{}, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return Extracted{}, err
	}
	defer root.Close()
	x := &extractor{p: p, root: root, from: from, links: make(map[string]Entry)}
	x.res.Backup = info.Name
	_, err = p.each(ctx, info.Name, func(e Entry) error {
		rel, ok := x.place(string(e.Path))
		if !ok {
			return nil
		}
		if err := x.entry(ctx, rel, e); err != nil {
			return fmt.Errorf("%s: %w", e.Path, err)
		}
		x.res.Entries++
		if done != nil {
			done(string(e.Path))
		}
		return nil
	})
	if err != nil {
		return x.res, err
	}
	if x.res.Entries == 0 {
		return x.res, fmt.Errorf("%w: there is no %s in the backup %s", ErrNotExist, from, info.Name)
	}
	// A directory's mode and times come last: what is made in it needs the one and changes the other.
	for i := len(x.dirs) - 1; i >= 0; i-- {
		x.attributes(x.dirs[i].rel, x.dirs[i].entry)
	}
	return x.res, durable.SyncDir(dir)
}

type extractor struct {
	p    *Place
	root *os.Root
	from string
	dirs []extractedDir
	// links are files outside of from that had the first of several names.
	links map[string]Entry
	res   Extracted
	buf   []byte
}

type extractedDir struct {
	rel   string
	entry Entry
}

// place returns where a path of the manifest goes, relative to the directory.
func (x *extractor) place(p string) (string, bool) {
	switch {
	case x.from == "/" && p == "/":
		return ".", true
	case x.from == "/":
		return p[1:], true
	case p == x.from:
		return path.Base(p), true
	case strings.HasPrefix(p, x.from+"/"):
		return path.Join(path.Base(x.from), p[len(x.from)+1:]), true
	}
	return "", false
}

func (x *extractor) entry(ctx context.Context, rel string, e Entry) error {
	if e.Link != "" {
		if first, ok := x.place(string(e.Link)); ok {
			return x.root.Link(first, rel)
		}
		// Its first name lies outside of what is extracted: it gets the content from there.
		source, err := x.outside(ctx, string(e.Link))
		if err != nil {
			return err
		}
		source.Path = e.Path
		e = source
	}
	switch e.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if rel != "." {
			if err := x.root.Mkdir(rel, 0o700); err != nil {
				return err
			}
		}
		x.dirs = append(x.dirs, extractedDir{rel, Entry{Path: e.Path, Mode: e.Mode, UID: e.UID, GID: e.GID, Atime: e.Atime, Mtime: e.Mtime, Xattrs: e.Xattrs}})
		return nil
	case unix.S_IFREG:
		if err := x.content(ctx, rel, e); err != nil {
			return err
		}
	case unix.S_IFLNK:
		if err := x.root.Symlink(string(e.Target), rel); err != nil {
			return err
		}
	case unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR, unix.S_IFBLK:
		if err := x.node(rel, e); err != nil {
			x.without(e, err)
			return nil
		}
	default:
		return fmt.Errorf("%w: there is no such kind of file", ErrDamaged)
	}
	x.attributes(rel, e)
	return nil
}

// outside finds the entry of a path.
func (x *extractor) outside(ctx context.Context, p string) (Entry, error) {
	if e, ok := x.links[p]; ok {
		return e, nil
	}
	var found *Entry
	_, err := x.p.each(ctx, x.res.Backup, func(e Entry) error {
		if string(e.Path) == p && e.Link == "" {
			found = &e
		}
		return nil
	})
	if err != nil {
		return Entry{}, err
	}
	if found == nil {
		return Entry{}, fmt.Errorf("%w: it is a link to %q, which is not there", ErrDamaged, p)
	}
	x.links[p] = *found
	return *found, nil
}

// content writes a regular file.
func (x *extractor) content(ctx context.Context, rel string, e Entry) (err error) {
	f, err := x.root.OpenFile(rel, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Truncate(e.Size); err != nil {
		return err
	}
	if x.buf == nil {
		x.buf = make([]byte, copyBytes)
	}
	for _, ext := range e.Extents {
		ref, err := ext.Ref()
		if err != nil {
			return err
		}
		// An extent may reach over the end of a file that was cut.
		for at, end := int64(0), min(ext.Len, e.Size-ext.Off); at < end; {
			part := x.buf[:min(copyBytes, end-at)]
			n, err := x.p.blobs.ReadAt(ctx, ref, part, ext.BlobOff+at)
			if err == nil && n == 0 {
				err = &blobstore.DamageError{Hash: ref.Hash, Part: "size", Detail: "it is shorter than its size says"}
			}
			if err != nil {
				return err
			}
			if _, err := f.WriteAt(part[:n], ext.Off+at); err != nil {
				return err
			}
			at += int64(n)
			x.res.Bytes += int64(n)
		}
	}
	return nil
}

// linkTimes sets the times of a symbolic link itself.
func (x *extractor) linkTimes(rel string, e Entry) error {
	parent, err := x.root.Open(filepath.Dir(rel))
	if err != nil {
		return err
	}
	defer parent.Close()
	times := []unix.Timespec{unix.NsecToTimespec(e.Atime), unix.NsecToTimespec(e.Mtime)}
	return unix.UtimesNanoAt(int(parent.Fd()), filepath.Base(rel), times, unix.AT_SYMLINK_NOFOLLOW)
}

// node makes a pipe, socket or device.
func (x *extractor) node(rel string, e Entry) error {
	parent, err := x.root.Open(filepath.Dir(rel))
	if err != nil {
		return err
	}
	defer parent.Close()
	return unix.Mknodat(int(parent.Fd()), filepath.Base(rel), e.Mode&unix.S_IFMT|0o600, int(e.Rdev))
}

// attributes sets what can be set; what cannot is noted.
func (x *extractor) attributes(rel string, e Entry) {
	link := e.Mode&unix.S_IFMT == unix.S_IFLNK
	if err := x.root.Lchown(rel, int(e.UID), int(e.GID)); err != nil {
		x.without(e, err)
	}
	if link {
		if err := x.linkTimes(rel, e); err != nil {
			x.without(e, err)
		}
		return
	}
	if err := x.xattrs(rel, e); err != nil {
		x.without(e, err)
	}
	mode := fs.FileMode(e.Mode & 0o777)
	for bit, m := range map[uint32]fs.FileMode{unix.S_ISUID: fs.ModeSetuid, unix.S_ISGID: fs.ModeSetgid, unix.S_ISVTX: fs.ModeSticky} {
		if e.Mode&bit != 0 {
			mode |= m
		}
	}
	if err := x.root.Chmod(rel, mode); err != nil {
		x.without(e, err)
	}
	if err := x.root.Chtimes(rel, time.Unix(0, e.Atime), time.Unix(0, e.Mtime)); err != nil {
		x.without(e, err)
	}
}

func (x *extractor) xattrs(rel string, e Entry) error {
	kind := e.Mode & unix.S_IFMT
	if len(e.Xattrs) == 0 || kind != unix.S_IFREG && kind != unix.S_IFDIR {
		return nil
	}
	f, err := x.root.Open(rel)
	if err != nil {
		return err
	}
	defer f.Close()
	var errs []error
	for _, a := range e.Xattrs {
		if err := unix.Fsetxattr(int(f.Fd()), string(a.Name), a.Value, 0); err != nil {
			errs = append(errs, fmt.Errorf("extended attribute %s: %w", a.Name, err))
		}
	}
	return errors.Join(errs...)
}

func (x *extractor) without(e Entry, err error) {
	if len(x.res.Without) >= maxWithout {
		x.res.Left++
		return
	}
	x.res.Without = append(x.res.Without, fmt.Sprintf("%s: %v", e.Path, err))
}
