package fs

import (
	"errors"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"holdfast/catalog"
	"holdfast/fs/internal/kernel"
)

const (
	estale = gofuse.Status(unix.ESTALE)
	eexist = gofuse.Status(unix.EEXIST)
	efbig  = gofuse.Status(unix.EFBIG)
)

// Lookup finds a name. A missing one is an answer that the kernel may keep.
func (f *FileSystem) Lookup(_ <-chan struct{}, in *gofuse.InHeader, name string, out *gofuse.EntryOut) gofuse.Status {
	f.count(opLookup)
	b, ino := f.at(in.NodeId)
	if b == nil {
		return estale
	}
	if v := f.virtual(in.NodeId, name); v != nil {
		b, name = v, "."
	} else if name == ".." && b.top(ino) {
		b, name = f.trees[0], "."
	}
	var (
		row catalog.Inode
		err error
	)
	if name == "." {
		// A file handle is being resolved; it may be that of a file.
		row, err = b.Get(f.ctx, ino)
	} else {
		row, err = b.Lookup(f.ctx, ino, name)
	}
	if err != nil {
		if errors.Is(err, catalog.ErrNotExist) {
			b.noEntry(out, ino, name)
			return gofuse.OK
		}
		return f.status(opLookup, in.NodeId, err)
	}
	if row.Nlink == 0 && name == "." {
		// It was removed, and is not open, or the kernel would not have to ask.
		return estale
	}
	b.entry(out, ino, name, &row)
	return gofuse.OK
}

// Forget has nothing to do: nothing is kept.
func (f *FileSystem) Forget(_, _ uint64) { f.count(opForget) }

// GetAttr answers by number; the store knows what is open.
func (f *FileSystem) GetAttr(_ <-chan struct{}, in *gofuse.GetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	f.count(opGetAttr)
	b, ino := f.at(in.NodeId)
	if b == nil {
		return estale
	}
	row, err := b.Get(f.ctx, ino)
	if err != nil {
		return f.status(opGetAttr, in.NodeId, err)
	}
	b.attr(out, &row)
	f.grown(b, in.NodeId, &row)
	return gofuse.OK
}

// grown tells the kernel the size of a file that grows by itself: see Grower. The answer to the question does not wait for it.
func (f *FileSystem) grown(b *branch, node uint64, row *catalog.Inode) {
	if g, ok := b.Tree.(Grower); !ok || row.Size == 0 || !g.Grows(row.Ino) {
		return
	}
	if s := f.server.Load(); s != nil {
		last := row.Size - 1
		go func() { f.notified(node, s.InodeNotifyStoreCache(node, last, []byte{'\n'})) }()
	}
}

// Statx is GetAttr with the time of birth.
func (f *FileSystem) Statx(_ <-chan struct{}, in *gofuse.StatxIn, out *gofuse.StatxOut) gofuse.Status {
	f.count(opStatx)
	b, ino := f.at(in.NodeId)
	if b == nil {
		return estale
	}
	row, err := b.Get(f.ctx, ino)
	if err != nil {
		return f.status(opStatx, in.NodeId, err)
	}
	kernel.Statx(out, &row, b.node(row.Ino), b.attrValid(row.Ino))
	f.grown(b, in.NodeId, &row)
	return gofuse.OK
}

// SetAttr sets mode, owner, size and times. The kernel also uses it to tell the times that it looks after.
func (f *FileSystem) SetAttr(_ <-chan struct{}, in *gofuse.SetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	f.count(opSetAttr)
	b, ino := f.at(in.NodeId)
	if b == nil {
		return estale
	}
	set, st := setAttr(&in.SetAttrInCommon)
	if st != gofuse.OK {
		return st
	}
	var who catalog.Actor
	if in.Valid&gofuse.FATTR_FH != 0 {
		if h := f.handles.get(in.Fh); h != nil && h.tree == b && h.ino == ino {
			set.Handle, who = h.Handle, h.who
		}
	}
	switch {
	case set.Handle != nil:
	case set.Mode == nil && set.UID == nil && set.GID == nil && set.Size == nil && set.Atime == nil && set.Ctime != nil:
		// It may be the kernel that writes times back, on behalf of a process that holds its own address space locked: do not
		// look into the process. The kernel does so with mtime and ctime, and never tells another time with them.
		who = f.callers.known(in.Caller)
	default:
		who = f.callers.actor(in.Caller)
	}
	row, err := b.SetAttr(f.ctx, who, ino, set)
	if err != nil {
		return f.status(opSetAttr, in.NodeId, err)
	}
	b.attr(out, &row)
	return gofuse.OK
}

// setAttr says what a request wants to be set.
func setAttr(in *gofuse.SetAttrInCommon) (SetAttr, gofuse.Status) {
	set := SetAttr{KillPriv: in.Valid&gofuse.FATTR_KILL_SUIDGID != 0}
	if mode, ok := in.GetMode(); ok {
		set.Mode = &mode
	}
	if uid, ok := in.GetUID(); ok {
		set.UID = &uid
	}
	if gid, ok := in.GetGID(); ok {
		set.GID = &gid
	}
	if size, ok := in.GetSize(); ok {
		if size > catalog.MaxSize {
			return set, efbig
		}
		n := int64(size)
		set.Size = &n
	}
	if t, ok := in.GetATime(); ok {
		at := t.UnixNano()
		if in.Valid&gofuse.FATTR_ATIME_NOW == 0 {
			at = kernel.Join(in.Atime, in.Atimensec)
		}
		set.Atime = &at
	}
	if t, ok := in.GetMTime(); ok {
		at := t.UnixNano()
		if in.Valid&gofuse.FATTR_MTIME_NOW == 0 {
			at = kernel.Join(in.Mtime, in.Mtimensec)
		}
		set.Mtime = &at
	}
	if in.Valid&gofuse.FATTR_CTIME != 0 {
		at := kernel.Join(in.Ctime, in.Ctimensec)
		set.Ctime = &at
	}
	return set, gofuse.OK
}

// make makes a node that is not opened.
func (f *FileSystem) make(op opcode, in *gofuse.InHeader, name string, n catalog.NewInode, out *gofuse.EntryOut) gofuse.Status {
	f.count(op)
	b, parent := f.at(in.NodeId)
	if b == nil {
		return estale
	}
	if f.virtual(in.NodeId, name) != nil {
		return eexist
	}
	n.UID, n.GID = in.Uid, in.Gid
	row, err := b.Create(f.ctx, f.callers.actor(in.Caller), parent, name, n)
	if err != nil {
		return f.status(op, in.NodeId, err)
	}
	b.entry(out, parent, name, &row)
	return gofuse.OK
}

// Mknod makes a file, FIFO, socket or device node.
func (f *FileSystem) Mknod(_ <-chan struct{}, in *gofuse.MknodIn, name string, out *gofuse.EntryOut) gofuse.Status {
	return f.make(opMknod, &in.InHeader, name, catalog.NewInode{Mode: in.Mode, Rdev: in.Rdev}, out)
}

// Mkdir makes a directory.
func (f *FileSystem) Mkdir(_ <-chan struct{}, in *gofuse.MkdirIn, name string, out *gofuse.EntryOut) gofuse.Status {
	return f.make(opMkdir, &in.InHeader, name, catalog.NewInode{Mode: unix.S_IFDIR | in.Mode&07777}, out)
}

// Symlink makes a symbolic link.
func (f *FileSystem) Symlink(_ <-chan struct{}, in *gofuse.InHeader, target, name string, out *gofuse.EntryOut) gofuse.Status {
	if len(target) > catalog.MaxSymlink {
		return gofuse.Status(unix.ENAMETOOLONG)
	}
	return f.make(opSymlink, in, name, catalog.NewInode{Mode: unix.S_IFLNK | 0o777, Target: target}, out)
}

// Readlink returns a link's target.
func (f *FileSystem) Readlink(_ <-chan struct{}, in *gofuse.InHeader) ([]byte, gofuse.Status) {
	f.count(opReadlink)
	b, ino := f.at(in.NodeId)
	if b == nil {
		return nil, estale
	}
	row, err := b.Get(f.ctx, ino)
	if err != nil {
		return nil, f.status(opReadlink, in.NodeId, err)
	}
	if row.Mode&unix.S_IFMT != unix.S_IFLNK {
		return nil, gofuse.EINVAL
	}
	return []byte(row.Target), gofuse.OK
}

// Link gives a node one more name.
func (f *FileSystem) Link(_ <-chan struct{}, in *gofuse.LinkIn, name string, out *gofuse.EntryOut) gofuse.Status {
	f.count(opLink)
	b, parent := f.at(in.NodeId)
	from, ino := f.at(in.Oldnodeid)
	switch {
	case b == nil || from == nil:
		return estale
	case b != from:
		return gofuse.EXDEV
	case f.virtual(in.NodeId, name) != nil:
		return eexist
	}
	row, err := b.Link(f.ctx, f.callers.actor(in.Caller), ino, parent, name)
	if err != nil {
		return f.status(opLink, in.NodeId, err)
	}
	b.entry(out, parent, name, &row)
	return gofuse.OK
}

// Unlink takes a name away.
func (f *FileSystem) Unlink(_ <-chan struct{}, in *gofuse.InHeader, name string) gofuse.Status {
	f.count(opUnlink)
	b, parent := f.at(in.NodeId)
	if b == nil {
		return estale
	}
	if f.virtual(in.NodeId, name) != nil {
		return gofuse.EISDIR
	}
	_, err := b.Unlink(f.ctx, f.callers.actor(in.Caller), parent, name)
	return f.status(opUnlink, in.NodeId, err)
}

// Rmdir removes an empty directory.
func (f *FileSystem) Rmdir(_ <-chan struct{}, in *gofuse.InHeader, name string) gofuse.Status {
	f.count(opRmdir)
	b, parent := f.at(in.NodeId)
	if b == nil {
		return estale
	}
	if f.virtual(in.NodeId, name) != nil {
		return gofuse.EBUSY
	}
	return f.status(opRmdir, in.NodeId, b.Rmdir(f.ctx, f.callers.actor(in.Caller), parent, name))
}

// Rename moves a name, or exchanges two.
func (f *FileSystem) Rename(_ <-chan struct{}, in *gofuse.RenameIn, oldName, newName string) gofuse.Status {
	f.count(opRename)
	b, oldParent := f.at(in.NodeId)
	to, newParent := f.at(in.Newdir)
	switch {
	case b == nil || to == nil:
		return estale
	case b != to:
		return gofuse.EXDEV
	case f.virtual(in.NodeId, oldName) != nil || f.virtual(in.Newdir, newName) != nil:
		return gofuse.EBUSY
	case in.Flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0, in.Flags == unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE:
		return gofuse.EINVAL
	}
	_, err := b.Rename(f.ctx, f.callers.actor(in.Caller), oldParent, oldName, newParent, newName, uint(in.Flags))
	return f.status(opRename, in.NodeId, err)
}

// Access is never asked: the kernel checks permissions itself. Should it ask once, the answer is to do so.
func (f *FileSystem) Access(_ <-chan struct{}, _ *gofuse.AccessIn) gofuse.Status {
	f.count(opAccess)
	return gofuse.ENOSYS
}

// StatFs describes the device of the store.
func (f *FileSystem) StatFs(_ <-chan struct{}, in *gofuse.InHeader, out *gofuse.StatfsOut) gofuse.Status {
	f.count(opStatFS)
	b, _ := f.at(in.NodeId)
	if b == nil {
		return estale
	}
	st, err := b.StatFS(f.ctx)
	if err != nil {
		return f.status(opStatFS, in.NodeId, err)
	}
	*out = gofuse.StatfsOut{
		Blocks: st.Blocks, Bfree: st.Bfree, Bavail: st.Bavail, Files: st.Files, Ffree: st.Ffree,
		Bsize: st.Bsize, Frsize: st.Bsize, NameLen: catalog.MaxName,
	}
	return gofuse.OK
}
