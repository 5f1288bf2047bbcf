package fs

import (
	"context"
	"errors"
	"sync"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"holdfast/catalog"
	"holdfast/internal/volume"
)

// openFlags turns those of open(2) into ours. Every handle can read: with the writeback cache the kernel reads through handles that were
// opened for writing only.
func openFlags(flags uint32, kill uint32) volume.OpenFlags {
	return volume.OpenFlags{
		Read:     true,
		Write:    flags&unix.O_ACCMODE != unix.O_RDONLY,
		Truncate: flags&unix.O_TRUNC != 0,
		KillPriv: kill&gofuse.OPEN_KILL_SUIDGID != 0,
	}
}

// opened numbers a handle and fills out.
func (f *FileSystem) opened(b *branch, h Handle, who catalog.Actor, flags volume.OpenFlags, out *gofuse.OpenOut) {
	o := &file{Handle: h, tree: b, ino: h.Ino(), who: who, writes: flags.Write}
	if o.writes {
		f.writers.add(b.node(o.ino), 1)
	}
	direct, ok := h.(Direct)
	o.stream = ok && direct.Stream()
	out.Fh = f.handles.add(o)
	switch {
	case o.stream:
		out.OpenFlags = gofuse.FOPEN_DIRECT_IO | gofuse.FOPEN_NONSEEKABLE
	case ok:
		out.OpenFlags = gofuse.FOPEN_DIRECT_IO
	case h.KeepCache():
		out.OpenFlags = gofuse.FOPEN_KEEP_CACHE
	}
}

// Open opens a file.
func (f *FileSystem) Open(_ <-chan struct{}, in *gofuse.OpenIn, out *gofuse.OpenOut) gofuse.Status {
	f.count(opOpen)
	b, ino := f.at(in.NodeId)
	if b == nil {
		return estale
	}
	flags := openFlags(in.Flags, in.Mode)
	flags.Cached = true
	var who catalog.Actor
	if flags.Write || flags.Truncate {
		who = f.callers.writer(in.Caller)
	}
	h, err := b.OpenFile(f.ctx, who, ino, flags)
	if err != nil {
		return f.status(opOpen, in.NodeId, err)
	}
	f.opened(b, h, who, flags, out)
	return gofuse.OK
}

// Create makes and opens a file. When the name is taken although the kernel did not know of it, the file is opened, unless O_EXCL
// forbids that.
func (f *FileSystem) Create(_ <-chan struct{}, in *gofuse.CreateIn, name string, out *gofuse.CreateOut) gofuse.Status {
	f.count(opCreate)
	b, parent := f.at(in.NodeId)
	if b == nil {
		return estale
	}
	if f.virtual(in.NodeId, name) != nil {
		return eexist
	}
	flags := openFlags(in.Flags, in.OpenFlags)
	who := f.callers.writer(in.Caller)
	n := catalog.NewInode{Mode: unix.S_IFREG | in.Mode&07777, UID: in.Uid, GID: in.Gid}
	row, h, err := b.CreateFile(f.ctx, who, parent, name, n, flags)
	if errors.Is(err, catalog.ErrExist) && in.Flags&unix.O_EXCL == 0 {
		row, err = b.Lookup(f.ctx, parent, name)
		if err != nil || row.Mode&unix.S_IFMT != unix.S_IFREG {
			// Gone again, or something that cannot be the answer: the kernel walks the path once more.
			return estale
		}
		if h, err = b.OpenFile(f.ctx, who, row.Ino, flags); err == nil && flags.Truncate {
			row, err = b.Get(f.ctx, row.Ino)
		}
	}
	if err != nil {
		return f.status(opCreate, in.NodeId, err)
	}
	f.opened(b, h, who, flags, &out.OpenOut)
	b.entry(&out.EntryOut, parent, name, &row)
	return gofuse.OK
}

// Tmpfile makes and opens a file without a name.
func (f *FileSystem) Tmpfile(_ <-chan struct{}, in *gofuse.CreateIn, out *gofuse.CreateOut) gofuse.Status {
	f.count(opTmpfile)
	b, parent := f.at(in.NodeId)
	if b == nil {
		return estale
	}
	flags := openFlags(in.Flags, in.OpenFlags)
	who := f.callers.writer(in.Caller)
	n := catalog.NewInode{Mode: unix.S_IFREG | in.Mode&07777, UID: in.Uid, GID: in.Gid}
	row, h, err := b.Tmpfile(f.ctx, who, parent, n, flags)
	if err != nil {
		return f.status(opTmpfile, in.NodeId, err)
	}
	f.opened(b, h, who, flags, &out.OpenOut)
	b.entry(&out.EntryOut, parent, "", &row)
	return gofuse.OK
}

// readResult is the answer to READ: a part of the buffer that go-fuse gave us. It is used again.
type readResult struct {
	data []byte
	pool *sync.Pool
}

func (r *readResult) Bytes([]byte) ([]byte, gofuse.Status) { return r.data, gofuse.OK }
func (r *readResult) Size() int                            { return len(r.data) }
func (r *readResult) Done() {
	r.data = nil
	r.pool.Put(r)
}

// untilClosed returns a context that ends when the kernel interrupts the request too. stop must be called.
func untilClosed(ctx context.Context, cancel <-chan struct{}) (_ context.Context, stop func()) {
	ctx, end := context.WithCancel(ctx)
	go func() {
		select {
		case <-cancel:
			end()
		case <-ctx.Done():
		}
	}()
	return ctx, end
}

// Read reads verified content straight into the answer.
func (f *FileSystem) Read(cancel <-chan struct{}, in *gofuse.ReadIn, buf []byte) (gofuse.ReadResult, gofuse.Status) {
	f.count(opRead)
	h := f.handles.get(in.Fh)
	if h == nil {
		return nil, gofuse.EBADF
	}
	ctx := f.ctx
	if h.stream {
		interruptible, stop := untilClosed(ctx, cancel)
		defer stop()
		ctx = interruptible
	}
	n, err := h.ReadAt(ctx, buf, int64(in.Offset))
	if err != nil {
		return nil, f.status(opRead, in.NodeId, err)
	}
	r := f.results.Get().(*readResult)
	r.data = buf[:n]
	return r, gofuse.OK
}

// Write stages what was written.
func (f *FileSystem) Write(_ <-chan struct{}, in *gofuse.WriteIn, data []byte) (uint32, gofuse.Status) {
	f.count(opWrite)
	h := f.handles.get(in.Fh)
	if h == nil {
		return 0, gofuse.EBADF
	}
	n, err := h.WriteAt(f.ctx, data, int64(in.Offset), volume.WriteFlags{
		Cached:   in.WriteFlags&gofuse.WRITE_CACHE != 0,
		KillPriv: in.WriteFlags&gofuse.WRITE_KILL_SUIDGID != 0,
	})
	return uint32(n), f.status(opWrite, in.NodeId, err)
}

// Writev is Write for data in pieces.
func (f *FileSystem) Writev(cancel <-chan struct{}, in *gofuse.WriteIn, data [][]byte) (uint32, gofuse.Status) {
	if len(data) == 1 {
		return f.Write(cancel, in, data[0])
	}
	part := *in
	var done uint32
	for _, p := range data {
		n, st := f.Write(cancel, &part, p)
		done += n
		if st != gofuse.OK && done == 0 {
			return 0, st
		}
		if st != gofuse.OK || int(n) < len(p) {
			break
		}
		part.Offset += uint64(n)
	}
	return done, gofuse.OK
}

// Flush is the close of one descriptor: what was written becomes a version, and the program learns if that failed. The caller's own
// process is not looked at: it may be in the middle of exec or exit.
func (f *FileSystem) Flush(_ <-chan struct{}, in *gofuse.FlushIn) gofuse.Status {
	f.count(opFlush)
	h := f.handles.get(in.Fh)
	if h == nil {
		return gofuse.EBADF
	}
	return f.status(opFlush, in.NodeId, h.Flush(f.ctx))
}

// Release is the end of a handle.
func (f *FileSystem) Release(_ <-chan struct{}, in *gofuse.ReleaseIn) {
	f.count(opRelease)
	h := f.handles.remove(in.Fh)
	if h == nil {
		return
	}
	h.Close(f.ctx)
	if h.writes {
		f.writers.add(h.tree.node(h.ino), -1)
	}
}

// Fsync makes a file durable.
func (f *FileSystem) Fsync(_ <-chan struct{}, in *gofuse.FsyncIn) gofuse.Status {
	f.count(opFsync)
	h := f.handles.get(in.Fh)
	if h == nil {
		return gofuse.EBADF
	}
	return f.status(opFsync, in.NodeId, h.Fsync(f.ctx, in.FsyncFlags&1 != 0))
}

// Fallocate sets the size or empties a range.
func (f *FileSystem) Fallocate(_ <-chan struct{}, in *gofuse.FallocateIn) gofuse.Status {
	f.count(opFallocate)
	h := f.handles.get(in.Fh)
	if h == nil {
		return gofuse.EBADF
	}
	if in.Offset > catalog.MaxSize || in.Length > catalog.MaxSize {
		return efbig
	}
	return f.status(opFallocate, in.NodeId, h.Allocate(f.ctx, in.Mode, int64(in.Offset), int64(in.Length)))
}

// Lseek finds data and holes. While the file is open for writing the kernel may hold content that we have not seen and would report as a hole, so it is made to write
// that back first. The kernel holds the inode's lock during LSEEK, which writing back does not need, and the writes arrive as
// requests of their own.
func (f *FileSystem) Lseek(_ <-chan struct{}, in *gofuse.LseekIn, out *gofuse.LseekOut) gofuse.Status {
	f.count(opLseek)
	h := f.handles.get(in.Fh)
	if h == nil {
		return gofuse.EBADF
	}
	if in.Offset > catalog.MaxSize {
		return gofuse.Status(unix.ENXIO)
	}
	if f.writers.any(in.NodeId) {
		if s := f.server.Load(); s != nil {
			f.notified(in.NodeId, s.InodeNotify(in.NodeId, int64(in.Offset), 0))
		}
	}
	off, err := h.Seek(f.ctx, int64(in.Offset), int(in.Whence))
	if err != nil {
		return f.status(opLseek, in.NodeId, err)
	}
	out.Offset = uint64(off)
	return gofuse.OK
}

// CopyFileRange copies extents, not bytes, where both files belong to the store. The kernel has written back both ranges.
func (f *FileSystem) CopyFileRange(_ <-chan struct{}, in *gofuse.CopyFileRangeIn) (uint32, gofuse.Status) {
	f.count(opCopyRange)
	src, dst := f.handles.get(in.FhIn), f.handles.get(in.FhOut)
	if src == nil || dst == nil {
		return 0, gofuse.EBADF
	}
	if in.OffIn > catalog.MaxSize || in.OffOut > catalog.MaxSize {
		return 0, efbig
	}
	const most = 1 << 30 // the answer has 32 bits
	n, err := dst.tree.CopyRange(f.ctx, src.Handle, int64(in.OffIn), dst.Handle, int64(in.OffOut), int64(min(in.Len, most)))
	return uint32(n), f.status(opCopyRange, in.NodeId, err)
}

// Ioctl is answered here and forwarded to nothing: an ioctl of the disk below could be used against it.
func (f *FileSystem) Ioctl(_ <-chan struct{}, _ *gofuse.IoctlIn, _ []byte, _ *gofuse.IoctlOut, _ []byte) gofuse.Status {
	f.count(opIoctl)
	return gofuse.Status(unix.ENOTTY)
}
