package fs

import (
	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"holdfast/catalog"
)

// Offsets in a directory are the cookies of the entries; "." and ".." come before all cookies.
const (
	offDot    = 1
	offDotDot = 2

	direntBytes = 24  // of an entry in a READDIR answer, before the name
	entryBytes  = 128 // what READDIRPLUS puts before it
)

// OpenDir tells the kernel not to ask: directories are read by position and nothing is kept for an open one. The kernel then
// caches what it reads, and keeps that until the directory changes.
func (f *FileSystem) OpenDir(_ <-chan struct{}, _ *gofuse.OpenIn, out *gofuse.OpenOut) gofuse.Status {
	f.count(opOpenDir)
	if f.noOpenDir {
		return gofuse.ENOSYS
	}
	out.OpenFlags = gofuse.FOPEN_CACHE_DIR | gofuse.FOPEN_KEEP_CACHE
	return gofuse.OK
}

// ReleaseDir has nothing to do.
func (f *FileSystem) ReleaseDir(_ *gofuse.ReleaseIn) { f.count(opReleaseDir) }

// FsyncDir makes the store durable.
func (f *FileSystem) FsyncDir(_ <-chan struct{}, in *gofuse.FsyncIn) gofuse.Status {
	f.count(opFsyncDir)
	b, _ := f.at(in.NodeId)
	if b == nil {
		return estale
	}
	return f.status(opFsyncDir, in.NodeId, b.Sync(f.ctx))
}

// ReadDir lists names.
func (f *FileSystem) ReadDir(_ <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	f.count(opReadDir)
	return f.list(opReadDir, in, direntBytes, func(b *branch, e gofuse.DirEntry, _ *catalog.Inode) bool {
		return out.AddDirEntry(e)
	})
}

// ReadDirPlus lists names with attributes, which come from the same batch of rows.
func (f *FileSystem) ReadDirPlus(_ <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	f.count(opReadDirPlus)
	return f.list(opReadDirPlus, in, entryBytes+direntBytes, func(b *branch, e gofuse.DirEntry, row *catalog.Inode) bool {
		entry := out.AddDirLookupEntry(e)
		if entry != nil && row != nil {
			dir := catalog.Ino(in.NodeId - b.base)
			b.entry(entry, dir, e.Name, row)
		}
		return entry != nil
	})
}

// list calls add with the entries behind in.Offset until the directory ends or add says that the answer is full. row is nil for "." and
// "..", which the kernel knows anyway, and for names that cannot be looked up any more.
func (f *FileSystem) list(op opcode, in *gofuse.ReadIn, least int, add func(b *branch, e gofuse.DirEntry, row *catalog.Inode) bool) gofuse.Status {
	b, dir := f.at(in.NodeId)
	if b == nil {
		return estale
	}
	after := in.Offset
	if after < offDotDot {
		row, err := b.Get(f.ctx, dir)
		if err != nil {
			return f.status(op, in.NodeId, err)
		}
		if row.Mode&unix.S_IFMT != unix.S_IFDIR {
			return gofuse.ENOTDIR
		}
		above := b.node(row.Parent)
		if b.top(dir) {
			above = uint64(dir)
		}
		if after < offDot && !add(b, gofuse.DirEntry{Name: ".", Ino: in.NodeId, Mode: unix.S_IFDIR, Off: offDot}, nil) {
			return gofuse.OK
		}
		if !add(b, gofuse.DirEntry{Name: "..", Ino: above, Mode: unix.S_IFDIR, Off: offDotDot}, nil) {
			return gofuse.OK
		}
		after = offDotDot
	}
	room := int(in.Size)
	for room > least {
		want := room/(least+8) + 1
		entries, err := b.ReadDir(f.ctx, dir, after, want)
		if err != nil {
			return f.status(op, in.NodeId, err)
		}
		for i := range entries {
			e := &entries[i]
			entry := gofuse.DirEntry{Name: e.Name, Ino: b.node(e.Inode.Ino), Mode: e.Inode.Mode, Off: e.Cookie}
			row := &e.Inode
			if e.Thinned {
				row = nil // what it was is not known
			}
			if !add(b, entry, row) {
				return gofuse.OK
			}
			after = e.Cookie
			room -= least + len(e.Name)
		}
		if len(entries) == 0 {
			return gofuse.OK
		}
	}
	return gofuse.OK
}
