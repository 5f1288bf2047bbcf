package fs

import (
	"context"
	"log/slog"

	"golang.org/x/sys/unix"

	"holdfast/catalog"
	"holdfast/internal/volume"
	"holdfast/snapshots"
)

// SnapshotsName is the name of the directory that shows the past of the directory it is in.
const SnapshotsName = ".snapshots"

// Snapshots returns the tree of the past of vol, to be planted in every directory of its mount.
func Snapshots(vol *volume.Volume, log *slog.Logger) Virtual {
	return Virtual{Name: SnapshotsName, Tree: past{Tree: snapshots.New(snapshots.Options{Store: vol, Log: log}), vol: vol}, Everywhere: true}
}

// past makes snapshots.Tree a Tree: whatever would change the past is ErrReadOnly.
type past struct {
	*snapshots.Tree
	vol *volume.Volume
}

var (
	_ Tree   = past{}
	_ Leases = past{}
	_ Handle = pastFile{}
)

func (p past) OpenFile(ctx context.Context, _ catalog.Actor, ino catalog.Ino, flags volume.OpenFlags) (Handle, error) {
	if flags.Write || flags.Truncate {
		return nil, catalog.ErrReadOnly
	}
	f, err := p.Tree.Open(ctx, ino)
	if err != nil {
		return nil, err
	}
	return pastFile{f}, nil
}

func (p past) StatFS(ctx context.Context) (volume.StatFS, error) { return p.vol.StatFS(ctx) }

// Sync has nothing to do: the past is as durable as it was when it was the present.
func (past) Sync(context.Context) error { return nil }

func (past) Create(context.Context, catalog.Actor, catalog.Ino, string, catalog.NewInode) (catalog.Inode, error) {
	return catalog.Inode{}, catalog.ErrReadOnly
}

func (past) Link(context.Context, catalog.Actor, catalog.Ino, catalog.Ino, string) (catalog.Inode, error) {
	return catalog.Inode{}, catalog.ErrReadOnly
}

func (past) Unlink(context.Context, catalog.Actor, catalog.Ino, string) (catalog.Inode, error) {
	return catalog.Inode{}, catalog.ErrReadOnly
}

func (past) Rmdir(context.Context, catalog.Actor, catalog.Ino, string) error {
	return catalog.ErrReadOnly
}

func (past) Rename(context.Context, catalog.Actor, catalog.Ino, string, catalog.Ino, string, uint) (*catalog.Inode, error) {
	return nil, catalog.ErrReadOnly
}

func (past) SetXattr(context.Context, catalog.Actor, catalog.Ino, string, []byte, uint) error {
	return catalog.ErrReadOnly
}

func (past) RemoveXattr(context.Context, catalog.Actor, catalog.Ino, string) error {
	return catalog.ErrReadOnly
}

func (past) SetAttr(context.Context, catalog.Actor, catalog.Ino, SetAttr) (catalog.Inode, error) {
	return catalog.Inode{}, catalog.ErrReadOnly
}

func (past) CreateFile(context.Context, catalog.Actor, catalog.Ino, string, catalog.NewInode, volume.OpenFlags) (catalog.Inode, Handle, error) {
	return catalog.Inode{}, nil, catalog.ErrReadOnly
}

func (past) Tmpfile(context.Context, catalog.Actor, catalog.Ino, catalog.NewInode, volume.OpenFlags) (catalog.Inode, Handle, error) {
	return catalog.Inode{}, nil, catalog.ErrReadOnly
}

func (past) CopyRange(context.Context, Handle, int64, Handle, int64, int64) (int64, error) {
	return 0, unix.EBADF // no handle of this tree is open for writing
}

// pastFile is an open file of the past.
type pastFile struct{ *snapshots.File }

// KeepCache is true: the past does not change.
func (pastFile) KeepCache() bool { return true }

func (pastFile) WriteAt(context.Context, []byte, int64, volume.WriteFlags) (int, error) {
	return 0, unix.EBADF
}
func (pastFile) Flush(context.Context) error                          { return nil }
func (pastFile) Fsync(context.Context, bool) error                    { return nil }
func (pastFile) Allocate(context.Context, uint32, int64, int64) error { return unix.EBADF }

// Close lets go of the moment, so that retention may thin it away.
func (f pastFile) Close(context.Context) {
	if past := f.Past(); past != nil {
		past.Close()
	}
}
