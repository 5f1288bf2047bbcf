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
	// Valid is how long the kernel may rely on its names and attributes, in seconds. 0: not at all.
	Valid uint64
}

const (
	virtualBit = 1 << 62
	treeShift  = 56
	maxVirtual = 1 << (62 - treeShift) // node ids leave room for so many trees
	localMask  = 1<<treeShift - 1
)

// branch is a tree in its place: node = base + the tree's own number.
type branch struct {
	Tree
	name  string // in the root of the mount; "" for the store
	base  uint64
	valid uint64
}

func (b *branch) node(ino catalog.Ino) uint64 { return b.base + uint64(ino) }

func (b *branch) attr(out *gofuse.AttrOut, n *catalog.Inode) {
	out.AttrValid, out.AttrValidNsec = b.valid, 0
	kernel.Attr(&out.Attr, n, b.node(n.Ino))
}

func (b *branch) entry(out *gofuse.EntryOut, n *catalog.Inode) {
	kernel.Entry(out, n, b.node(n.Ino), b.valid)
}

// plant gives each tree its range of node ids.
func plant(store Tree, virtual []Virtual) ([]*branch, error) {
	if len(virtual) >= maxVirtual {
		return nil, fmt.Errorf("%d virtual trees, at most %d are possible", len(virtual), maxVirtual-1)
	}
	all := []*branch{{Tree: store, valid: kernel.Valid}}
	for i, v := range virtual {
		if v.Name == "" || v.Name == "." || v.Name == ".." || len(v.Name) > catalog.MaxName {
			return nil, fmt.Errorf("a virtual tree cannot be called %q", v.Name)
		}
		all = append(all, &branch{Tree: v.Tree, name: v.Name, base: virtualBit + uint64(i)<<treeShift, valid: v.Valid})
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

// virtual returns the virtual tree that name leads to in the directory node, or nil.
func (f *FileSystem) virtual(node uint64, name string) *branch {
	if node != gofuse.FUSE_ROOT_ID {
		return nil
	}
	for _, b := range f.trees[1:] {
		if b.name == name {
			return b
		}
	}
	return nil
}
