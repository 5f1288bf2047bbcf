package fs

import (
	"context"
	"fmt"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"holdfast/catalog"
	"holdfast/fs/internal/kernel"
	"holdfast/internal/volume"
)

// Names is the part of a tree that has to do with names and attributes. Numbers are the tree's own; its root is catalog.Root. Errors are
// those of the catalog. Methods are called concurrently.
type Names interface {
	// Lookup understands "..".
	Lookup(ctx context.Context, parent catalog.Ino, name string) (catalog.Inode, error)
	// Get answers for removed inodes too (Nlink 0), as long as they are open.
	Get(ctx context.Context, ino catalog.Ino) (catalog.Inode, error)
	// Create makes what n.Mode says; it inherits the group of a set-gid directory.
	Create(ctx context.Context, who catalog.Actor, parent catalog.Ino, name string, n catalog.NewInode) (catalog.Inode, error)
	Link(ctx context.Context, who catalog.Actor, ino, parent catalog.Ino, name string) (catalog.Inode, error)
	Unlink(ctx context.Context, who catalog.Actor, parent catalog.Ino, name string) (catalog.Inode, error)
	Rmdir(ctx context.Context, who catalog.Actor, parent catalog.Ino, name string) error
	Rename(ctx context.Context, who catalog.Actor, oldParent catalog.Ino, oldName string, newParent catalog.Ino, newName string, flags uint) (*catalog.Inode, error)
	// ReadDir returns up to max entries behind the cookie after, without "." and "..". Cookies are above 2 and below 1<<63.
	ReadDir(ctx context.Context, dir catalog.Ino, after uint64, max int) ([]catalog.DirEntry, error)
	GetXattr(ctx context.Context, ino catalog.Ino, name string) ([]byte, error)
	ListXattr(ctx context.Context, ino catalog.Ino) ([]string, error)
	SetXattr(ctx context.Context, who catalog.Actor, ino catalog.Ino, name string, value []byte, flags uint) error
	RemoveXattr(ctx context.Context, who catalog.Actor, ino catalog.Ino, name string) error
	SetAttr(ctx context.Context, who catalog.Actor, ino catalog.Ino, set SetAttr) (catalog.Inode, error)
	// Sync makes everything durable that was closed before.
	Sync(ctx context.Context) error
	StatFS(ctx context.Context) (volume.StatFS, error)
}

// Files is the part of a tree that opens files.
type Files interface {
	// CreateFile makes and opens a regular file: catalog.ErrExist when the name is taken.
	CreateFile(ctx context.Context, who catalog.Actor, parent catalog.Ino, name string, n catalog.NewInode, flags volume.OpenFlags) (catalog.Inode, Handle, error)
	// Tmpfile makes and opens a file without a name.
	Tmpfile(ctx context.Context, who catalog.Actor, parent catalog.Ino, n catalog.NewInode, flags volume.OpenFlags) (catalog.Inode, Handle, error)
	OpenFile(ctx context.Context, who catalog.Actor, ino catalog.Ino, flags volume.OpenFlags) (Handle, error)
	// CopyRange copies into dst, a handle of this tree. src may come from another tree: EXDEV when it cannot be copied from.
	CopyRange(ctx context.Context, src Handle, srcOff int64, dst Handle, dstOff, n int64) (int64, error)
}

// Tree serves one part of the mount.
type Tree interface {
	Names
	Files
}

// Handle is an open file. *volume.Handle is one.
type Handle interface {
	Ino() catalog.Ino
	// KeepCache reports whether what the kernel has cached of the file still holds.
	KeepCache() bool
	// ReadAt returns less than len(p) only at the end of the file.
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	WriteAt(ctx context.Context, p []byte, off int64, flags volume.WriteFlags) (int, error)
	// Flush is a close(2): it saves what was written, and its error is the program's.
	Flush(ctx context.Context) error
	Fsync(ctx context.Context, dataOnly bool) error
	Allocate(ctx context.Context, mode uint32, off, n int64) error
	Seek(ctx context.Context, off int64, whence int) (int64, error)
	// Close is called once, after the last of the other calls.
	Close(ctx context.Context)
}

// Direct is a Handle whose content is not cached by the kernel and whose size need not be known: every read(2) and write(2) arrives as it is.
type Direct interface {
	Handle
	// Stream says that reads do not look at their offset, and may wait: their context ends when the kernel interrupts them.
	Stream() bool
}

// Grower is what a virtual tree offers when files of it grow while they are open. Under the writeback cache the kernel does not take the size of a file from the answers to
// its questions; it is told of a larger one besides, so that `tail -f` sees it at its next look.
type Grower interface {
	Grows(ino catalog.Ino) bool
}

// SetAttr is volume.SetAttr with a Handle of any tree.
type SetAttr struct {
	Mode, UID, GID      *uint32
	Size                *int64
	Atime, Mtime, Ctime *catalog.Timestamp
	Handle              Handle // nil: by number
	KillPriv            bool   // a new size takes set-uid and set-gid away
}

// Virtual is a tree that appears under Name in the root of the mount.
type Virtual struct {
	Name string
	Tree Tree
	// Valid is how long the kernel may rely on its names and attributes, in seconds. 0: not at all. A tree that implements Leases says so itself.
	Valid uint64
	// Everywhere: Name leads to the tree in every directory of the store, not only in the root. The number n of the tree, below 1<<40, is then what
	// Name leads to in the store's directory n.
	Everywhere bool
}

// Leases is what a virtual tree may offer besides: terms of its own for what the kernel may rely on, in seconds.
type Leases interface {
	// EntryValid is for the name in parent, which leads to child or (0) to nothing.
	EntryValid(parent catalog.Ino, name string, child catalog.Ino) uint64
	AttrValid(ino catalog.Ino) uint64
	// Generation differs for two uses of one number.
	Generation(ino catalog.Ino) uint64
}

const (
	virtualBit = 1 << 62
	treeShift  = 56
	maxVirtual = 1 << (62 - treeShift) // node ids leave room for so many trees
	dirNumbers = 1 << 40               // below them lie the numbers that a tree which is everywhere shares with the store
	localMask  = 1<<treeShift - 1
)

// branch is a tree in its place: node = base + the tree's own number.
type branch struct {
	Tree
	name  string // in the root of the mount; "" for the store
	base  uint64
	valid uint64
	every bool   // see Virtual.Everywhere
	lease Leases // nil: valid says it
}

func (b *branch) node(ino catalog.Ino) uint64 { return b.base + uint64(ino) }

func (b *branch) attr(out *gofuse.AttrOut, n *catalog.Inode) {
	out.AttrValid, out.AttrValidNsec = b.attrValid(n.Ino), 0
	kernel.Attr(&out.Attr, n, b.node(n.Ino))
}

func (b *branch) attrValid(ino catalog.Ino) uint64 {
	if b.lease != nil {
		return b.lease.AttrValid(ino)
	}
	return b.valid
}

// entry fills out for n, which name leads to in parent.
func (b *branch) entry(out *gofuse.EntryOut, parent catalog.Ino, name string, n *catalog.Inode) {
	kernel.Entry(out, n, b.node(n.Ino), b.valid)
	if b.lease != nil {
		out.EntryValid = b.lease.EntryValid(parent, name, n.Ino)
		out.AttrValid = b.lease.AttrValid(n.Ino)
		out.Generation = b.lease.Generation(n.Ino)
	}
}

// noEntry fills out for a name that leads nowhere.
func (b *branch) noEntry(out *gofuse.EntryOut, parent catalog.Ino, name string) {
	valid := b.valid
	if b.lease != nil {
		valid = b.lease.EntryValid(parent, name, 0)
	}
	kernel.NoEntry(out, valid)
}

// top reports whether a number is that of the tree itself, in whichever directory of the store: what is above it belongs to the store, and
// has the same number there.
func (b *branch) top(ino catalog.Ino) bool {
	return ino == catalog.Root || b.every && ino < dirNumbers
}

// plant gives each tree its range of node ids.
func plant(store Tree, virtual []Virtual) ([]*branch, error) {
	if len(virtual) >= maxVirtual {
		return nil, fmt.Errorf("%d virtual trees, at most %d are possible", len(virtual), maxVirtual-1)
	}
	all := []*branch{{Tree: store, valid: kernel.Valid, lease: new(revived)}}
	for i, v := range virtual {
		if v.Name == "" || v.Name == "." || v.Name == ".." || len(v.Name) > catalog.MaxName {
			return nil, fmt.Errorf("a virtual tree cannot be called %q", v.Name)
		}
		lease, _ := v.Tree.(Leases)
		all = append(all, &branch{
			Tree: v.Tree, name: v.Name, base: virtualBit + uint64(i)<<treeShift, valid: v.Valid, every: v.Everywhere, lease: lease,
		})
	}
	return all, nil
}

// at finds the tree that a node belongs to, and its number there. nil: there is no such tree.
func (f *FileSystem) at(node uint64) (*branch, catalog.Ino) {
	if node&virtualBit == 0 {
		return f.trees[0], catalog.Ino(node)
	}
	i := (node &^ virtualBit) >> treeShift
	if i >= uint64(len(f.trees)-1) {
		return nil, 0
	}
	return f.trees[i+1], catalog.Ino(node & localMask)
}

// virtual returns the virtual tree that name leads to in the directory node, or nil. Its number there is that of the directory.
func (f *FileSystem) virtual(node uint64, name string) *branch {
	if node&virtualBit != 0 {
		return nil
	}
	for _, b := range f.trees[1:] {
		if b.name == name && (node == gofuse.FUSE_ROOT_ID || b.every && node < dirNumbers) {
			return b
		}
	}
	return nil
}
