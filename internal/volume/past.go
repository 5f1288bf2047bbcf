package volume

import (
	"context"
	"errors"
	"fmt"
	"path"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/catalog"
)

// The past of the store. A moment is the number of a journal record: what is said of it is the state after that record, and
// never changes. catalog.Head is the state after the newest record, without what open files have staged.

// Newest returns the number of the newest journal record, 0 when there is none.
func (v *Volume) Newest(ctx context.Context) (catalog.Seq, error) {
	s, err := v.cat.Stats(ctx)
	return s.Seq, err
}

// SeqAt is catalog.SeqAt.
func (v *Volume) SeqAt(ctx context.Context, t time.Time) (catalog.Seq, error) {
	return v.cat.SeqAt(ctx, t)
}

// TimeOf is catalog.TimeOf.
func (v *Volume) TimeOf(ctx context.Context, seq catalog.Seq) (time.Time, error) {
	return v.cat.TimeOf(ctx, seq)
}

// GetAt is catalog.GetAt.
func (v *Volume) GetAt(ctx context.Context, ino catalog.Ino, at catalog.Seq) (catalog.Inode, error) {
	return v.cat.GetAt(ctx, ino, at)
}

// LookupAt is catalog.LookupAt.
func (v *Volume) LookupAt(ctx context.Context, parent catalog.Ino, name string, at catalog.Seq) (catalog.Inode, error) {
	return v.cat.LookupAt(ctx, parent, name, at)
}

// ReadDirAt is catalog.ReadDirAt.
func (v *Volume) ReadDirAt(ctx context.Context, dir catalog.Ino, after uint64, max int, at catalog.Seq) ([]catalog.DirEntry, error) {
	return v.cat.ReadDirAt(ctx, dir, after, max, at)
}

// GetXattrAt is catalog.GetXattrAt.
func (v *Volume) GetXattrAt(ctx context.Context, ino catalog.Ino, name string, at catalog.Seq) ([]byte, error) {
	return v.cat.GetXattrAt(ctx, ino, name, at)
}

// ListXattrAt is catalog.ListXattrAt.
func (v *Volume) ListXattrAt(ctx context.Context, ino catalog.Ino, at catalog.Seq) ([]string, error) {
	return v.cat.ListXattrAt(ctx, ino, at)
}

// DirNames is catalog.DirNames.
func (v *Volume) DirNames(ctx context.Context, dir catalog.Ino, after uint64, max int) ([]catalog.PastName, error) {
	return v.cat.DirNames(ctx, dir, after, max)
}

// VersionRange is catalog.VersionRange.
func (v *Volume) VersionRange(ctx context.Context, ino catalog.Ino, from, to uint64) ([]catalog.Version, error) {
	return v.cat.VersionRange(ctx, ino, from, to)
}

// ResolveAt finds the inode that p led to after the record at, as Resolve does now. Where one of its directories was called otherwise then, the
// directory that p leads to now is followed to where it was. ErrNotExist.
func (v *Volume) ResolveAt(ctx context.Context, p string, at catalog.Seq) (catalog.Inode, error) {
	row, err := v.cat.GetAt(ctx, catalog.Root, at)
	if errors.Is(err, catalog.ErrStale) {
		return row, catalog.ErrNotExist // before the store was made
	}
	for name := range strings.SplitSeq(strings.Trim(path.Clean("/"+p), "/"), "/") {
		if err != nil || name == "" {
			break
		}
		row, err = v.cat.LookupAt(ctx, row.Ino, name, at)
	}
	if !errors.Is(err, catalog.ErrNotExist) && !errors.Is(err, catalog.ErrNotDir) {
		return row, err
	}
	parent, name, nowErr := v.resolveParent(ctx, p)
	if nowErr != nil {
		return row, err
	}
	followed, nowErr := v.cat.LookupAt(ctx, parent.Ino, name, at)
	if errors.Is(nowErr, catalog.ErrNotExist) || errors.Is(nowErr, catalog.ErrStale) || errors.Is(nowErr, catalog.ErrNotDir) {
		return row, err
	}
	return followed, nowErr
}

// PastHandle is a regular file as it was, open for reading. Its methods may be called concurrently; Close once, after the last of them. As long as it
// is open, retention leaves the moment alone.
type PastHandle struct {
	v       *Volume
	ino     catalog.Ino
	at      catalog.Seq
	size    int64
	release func()

	mu      sync.Mutex
	loaded  bool    // guarded by mu
	content spanMap // does not change once loaded
}

// OpenPast opens what ino was after the record at. ErrStale when there was no such inode, ErrIsDir, ErrInvalid for anything else that is
// no regular file.
func (v *Volume) OpenPast(ctx context.Context, ino catalog.Ino, at catalog.Seq) (*PastHandle, error) {
	cat := v.cat
	cat.Hold(at)
	row, err := cat.GetAt(ctx, ino, at)
	switch {
	case err != nil:
	case row.Mode&unix.S_IFMT == unix.S_IFREG:
		h := &PastHandle{v: v, ino: ino, at: at, size: row.Size, release: sync.OnceFunc(func() { cat.Release(at) })}
		runtime.AddCleanup(h, func(release func()) { release() }, h.release) // for one that nobody closes
		return h, nil
	case row.Mode&unix.S_IFMT == unix.S_IFDIR:
		err = catalog.ErrIsDir
	default:
		err = catalog.ErrInvalid
	}
	cat.Release(at)
	return nil, err
}

// Close lets go of the moment.
func (h *PastHandle) Close() { h.release() }

// Ino is the inode that the handle reads.
func (h *PastHandle) Ino() catalog.Ino { return h.ino }

// Size is the file's size, in bytes.
func (h *PastHandle) Size() int64 { return h.size }

// load reads the extents, once for all reads through the handle.
func (h *PastHandle) load(ctx context.Context) (spanMap, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.loaded {
		return h.content, nil
	}
	m, err := h.v.contentAt(ctx, h.ino, h.at)
	if err != nil {
		return m, err
	}
	h.content, h.loaded = m, true
	return m, nil
}

// ReadAt fills p with verified bytes from off on and returns their number: less than len(p) only at the end of the file.
func (h *PastHandle) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, catalog.ErrInvalid
	}
	if off >= h.size {
		return 0, nil
	}
	m, err := h.load(ctx)
	if err != nil {
		return 0, err
	}
	p = p[:min(int64(len(p)), h.size-off)]
	if err := h.v.readSpans(ctx, m, p, off, off+int64(len(p))); err != nil {
		return 0, fmt.Errorf("inode %d of record %d at %d: %w", h.ino, h.at, off, err)
	}
	return len(p), nil
}

// Seek is lseek(2) with SEEK_DATA or SEEK_HOLE, as Handle.Seek.
func (h *PastHandle) Seek(ctx context.Context, off int64, whence int) (int64, error) {
	m, err := h.load(ctx)
	if err != nil {
		return 0, err
	}
	if off < 0 || off >= h.size {
		return 0, unix.ENXIO
	}
	data, hole := int64(-1), off
	m.walk(off, h.size, func(s span) bool {
		if data < 0 {
			data = s.off
		}
		if s.off > hole {
			return false
		}
		hole = s.end()
		return true
	})
	switch whence {
	case unix.SEEK_HOLE:
		return min(hole, h.size), nil
	case unix.SEEK_DATA:
		if data < 0 {
			return 0, unix.ENXIO
		}
		return data, nil
	}
	return 0, catalog.ErrInvalid
}

// CopyPast copies n bytes of src to dst as CopyRange does: dst names the same blobs, and nothing is read.
func CopyPast(ctx context.Context, src *PastHandle, srcOff int64, dst *Handle, dstOff, n int64) (int64, error) {
	if !dst.flags.Write {
		return 0, unix.EBADF
	}
	if srcOff < 0 || dstOff < 0 || n < 0 {
		return 0, catalog.ErrInvalid
	}
	if dstOff > catalog.MaxSize-n {
		return 0, unix.EFBIG
	}
	if n = min(n, src.size-srcOff); n <= 0 {
		return 0, nil
	}
	m, err := src.load(ctx)
	if err != nil {
		return 0, err
	}
	f := dst.f
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.learnSize(ctx); err != nil {
		return 0, err
	}
	f.dirty.put(span{off: dstOff, n: n, src: isZero}) // what no extent covers
	m.walk(srcOff, srcOff+n, func(s span) bool {
		s.off += dstOff - srcOff
		if err = f.pin(ctx, s.blob.Hash); err == nil {
			f.dirty.put(s)
		}
		return err == nil
	})
	if err != nil {
		return 0, err
	}
	if end := dstOff + n; end > f.size.Load() {
		f.size.Store(end)
	}
	f.changed(dst)
	return n, f.v.stamp(ctx, dst.who, f.ino, false)
}
