package fusetest

import (
	"context"

	"golang.org/x/sys/unix"

	"holdfast/catalog"
	"holdfast/fs"
	"holdfast/internal/volume"
)

// memMax is the size of the largest file of a Memory.
const memMax = 1 << 30

type memHandle struct {
	m     *Memory
	n     *memNode
	flags volume.OpenFlags
}

var _ fs.Tree = (*Memory)(nil)

func (m *Memory) CreateFile(_ context.Context, _ catalog.Actor, parent catalog.Ino, name string, n catalog.NewInode, flags volume.OpenFlags) (catalog.Inode, fs.Handle, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.fault("create"); err != nil {
		return catalog.Inode{}, nil, err
	}
	node, err := m.create(parent, name, n)
	if err != nil {
		return catalog.Inode{}, nil, err
	}
	return node.row, &memHandle{m, node, flags}, nil
}

func (m *Memory) Tmpfile(_ context.Context, _ catalog.Actor, parent catalog.Ino, n catalog.NewInode, flags volume.OpenFlags) (catalog.Inode, fs.Handle, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, err := m.dir(parent)
	if err != nil {
		return catalog.Inode{}, nil, err
	}
	if d.row.Mode&unix.S_ISGID != 0 {
		n.GID = d.row.GID
	}
	node := m.make(n)
	return node.row, &memHandle{m, node, flags}, nil
}

func (m *Memory) OpenFile(_ context.Context, _ catalog.Actor, ino catalog.Ino, flags volume.OpenFlags) (fs.Handle, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.fault("open"); err != nil {
		return nil, err
	}
	n, err := m.get(ino)
	if err != nil {
		return nil, err
	}
	if n.entries != nil {
		return nil, catalog.ErrIsDir
	}
	if flags.Truncate {
		n.resize(0)
		touch(n)
		if flags.KillPriv {
			n.killPriv()
		}
	}
	return &memHandle{m, n, flags}, nil
}

func (m *Memory) CopyRange(ctx context.Context, src fs.Handle, srcOff int64, dst fs.Handle, dstOff, n int64) (int64, error) {
	from, ok := src.(*memHandle)
	if !ok {
		return 0, unix.EXDEV
	}
	m.mu.Lock()
	data := append([]byte(nil), from.n.data[min(srcOff, int64(len(from.n.data))):min(srcOff+n, int64(len(from.n.data)))]...)
	m.mu.Unlock()
	done, err := dst.WriteAt(ctx, data, dstOff, volume.WriteFlags{})
	return int64(done), err
}

func (h *memHandle) Ino() catalog.Ino { return h.n.row.Ino }
func (h *memHandle) KeepCache() bool  { return !h.m.Uncached }

func (h *memHandle) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	if err := h.m.fault("read"); err != nil {
		return 0, err
	}
	return copy(p, h.n.data[min(off, int64(len(h.n.data))):]), nil
}

func (h *memHandle) WriteAt(_ context.Context, p []byte, off int64, flags volume.WriteFlags) (int, error) {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	if err := h.m.fault("write"); err != nil {
		return 0, err
	}
	if !h.flags.Write {
		return 0, unix.EBADF
	}
	if off+int64(len(p)) > memMax {
		return 0, unix.EFBIG
	}
	if end := off + int64(len(p)); end > int64(len(h.n.data)) {
		h.n.resize(end)
	}
	copy(h.n.data[off:], p)
	if !flags.Cached {
		touch(h.n)
	}
	if flags.KillPriv {
		h.n.killPriv()
	}
	return len(p), nil
}

func (h *memHandle) Flush(context.Context) error       { return h.m.locked("flush") }
func (h *memHandle) Fsync(context.Context, bool) error { return h.m.locked("fsync") }
func (h *memHandle) Close(context.Context)             { h.m.locked("close") }

func (m *Memory) locked(op string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.fault(op)
}

func (h *memHandle) Allocate(_ context.Context, mode uint32, off, n int64) error {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	if mode&^(unix.FALLOC_FL_KEEP_SIZE|unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_ZERO_RANGE) != 0 {
		return unix.EOPNOTSUPP
	}
	if off+n > memMax {
		return unix.ENOSPC
	}
	if mode&unix.FALLOC_FL_KEEP_SIZE == 0 && off+n > int64(len(h.n.data)) {
		h.n.resize(off + n)
	}
	if mode&^unix.FALLOC_FL_KEEP_SIZE != 0 {
		clear(h.n.data[min(off, int64(len(h.n.data))):min(off+n, int64(len(h.n.data)))])
	}
	touch(h.n)
	return nil
}

// Seek takes blocks of 4096 zero bytes for holes.
func (h *memHandle) Seek(_ context.Context, off int64, whence int) (int64, error) {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	const block = 4096
	size := int64(len(h.n.data))
	if off < 0 || off >= size {
		return 0, unix.ENXIO
	}
	for at := off; at < size; at = at - at%block + block {
		start := at - at%block
		hole := true
		for _, c := range h.n.data[start:min(start+block, size)] {
			hole = hole && c == 0
		}
		if hole == (whence == unix.SEEK_HOLE) {
			return at, nil
		}
	}
	if whence == unix.SEEK_HOLE {
		return size, nil
	}
	return 0, unix.ENXIO
}
