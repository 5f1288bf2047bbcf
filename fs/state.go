package fs

import (
	"context"

	"golang.org/x/sys/unix"

	"holdfast/catalog"
	"holdfast/integrity/view"
	"holdfast/internal/volume"
)

// IntegrityName is the name of the directory that shows the state of the data, in the root of a mount.
const IntegrityName = ".integrity"

// Integrity returns the tree of the state of vol's data, to be planted in the root of its mount.
func Integrity(vol *volume.Volume, tree *view.Tree) Virtual {
	return Virtual{Name: IntegrityName, Tree: state{Tree: tree, vol: vol}}
}

// state makes view.Tree a Tree: names cannot be changed, and two kinds of files can be written.
type state struct {
	*view.Tree
	vol *volume.Volume
}

var (
	_ Tree   = state{}
	_ Direct = stateFile{}
)

func (s state) OpenFile(ctx context.Context, _ catalog.Actor, ino catalog.Ino, flags volume.OpenFlags) (Handle, error) {
	f, err := s.Tree.Open(ctx, ino, flags.Write || flags.Truncate)
	if err != nil {
		return nil, err
	}
	return stateFile{f, ino}, nil
}

// SetAttr accepts what programs set when they write a file, and keeps nothing of it: a size before writing, and times.
func (s state) SetAttr(ctx context.Context, _ catalog.Actor, ino catalog.Ino, set SetAttr) (catalog.Inode, error) {
	row, err := s.Get(ctx, ino)
	if err != nil {
		return row, err
	}
	if set.Mode != nil || set.UID != nil || set.GID != nil || row.Mode&0o200 == 0 {
		return row, catalog.ErrReadOnly
	}
	if set.Size != nil {
		row.Size = *set.Size
	}
	return row, nil
}

func (s state) StatFS(ctx context.Context) (volume.StatFS, error) { return s.vol.StatFS(ctx) }

func (s state) Sync(ctx context.Context) error { return s.vol.Sync(ctx) }

func (state) GetXattr(context.Context, catalog.Ino, string) ([]byte, error) {
	return nil, catalog.ErrNoXattr
}

func (state) ListXattr(context.Context, catalog.Ino) ([]string, error) { return nil, nil }

func (state) Create(context.Context, catalog.Actor, catalog.Ino, string, catalog.NewInode) (catalog.Inode, error) {
	return catalog.Inode{}, catalog.ErrReadOnly
}

func (state) Link(context.Context, catalog.Actor, catalog.Ino, catalog.Ino, string) (catalog.Inode, error) {
	return catalog.Inode{}, catalog.ErrReadOnly
}

func (state) Unlink(context.Context, catalog.Actor, catalog.Ino, string) (catalog.Inode, error) {
	return catalog.Inode{}, catalog.ErrReadOnly
}

func (state) Rmdir(context.Context, catalog.Actor, catalog.Ino, string) error {
	return catalog.ErrReadOnly
}

func (state) Rename(context.Context, catalog.Actor, catalog.Ino, string, catalog.Ino, string, uint) (*catalog.Inode, error) {
	return nil, catalog.ErrReadOnly
}

func (state) SetXattr(context.Context, catalog.Actor, catalog.Ino, string, []byte, uint) error {
	return catalog.ErrReadOnly
}

func (state) RemoveXattr(context.Context, catalog.Actor, catalog.Ino, string) error {
	return catalog.ErrReadOnly
}

// CreateFile says of a name that is there that it is, so that it is opened instead.
func (s state) CreateFile(ctx context.Context, _ catalog.Actor, parent catalog.Ino, name string, _ catalog.NewInode, _ volume.OpenFlags) (catalog.Inode, Handle, error) {
	if _, err := s.Lookup(ctx, parent, name); err == nil {
		return catalog.Inode{}, nil, catalog.ErrExist
	}
	return catalog.Inode{}, nil, catalog.ErrReadOnly
}

func (state) Tmpfile(context.Context, catalog.Actor, catalog.Ino, catalog.NewInode, volume.OpenFlags) (catalog.Inode, Handle, error) {
	return catalog.Inode{}, nil, catalog.ErrReadOnly
}

func (state) CopyRange(context.Context, Handle, int64, Handle, int64, int64) (int64, error) {
	return 0, unix.EXDEV // the kernel then copies through read and write
}

// stateFile is an open file of the state.
type stateFile struct {
	view.File
	ino catalog.Ino
}

func (f stateFile) Ino() catalog.Ino { return f.ino }

func (stateFile) KeepCache() bool { return false }

func (f stateFile) WriteAt(ctx context.Context, p []byte, off int64, _ volume.WriteFlags) (int, error) {
	return f.File.WriteAt(ctx, p, off)
}

func (stateFile) Fsync(context.Context, bool) error { return nil }

func (stateFile) Allocate(context.Context, uint32, int64, int64) error { return unix.EOPNOTSUPP }

func (stateFile) Seek(context.Context, int64, int) (int64, error) { return 0, unix.EINVAL }

func (f stateFile) Close(context.Context) { f.File.Close() }
