package fs

import (
	"context"

	"golang.org/x/sys/unix"

	"holdfast/catalog"
	"holdfast/internal/volume"
)

// store makes a volume a Tree: it gives its handles the type that a Tree has.
type store struct{ *volume.Volume }

var (
	_ Tree               = store{}
	_ Handle             = (*volume.Handle)(nil)
	_ volume.Invalidator = (*FileSystem)(nil)
)

func (s store) CreateFile(ctx context.Context, who catalog.Actor, parent catalog.Ino, name string, n catalog.NewInode, flags volume.OpenFlags) (catalog.Inode, Handle, error) {
	row, h, err := s.Volume.CreateFile(ctx, who, parent, name, n, flags)
	if err != nil {
		return row, nil, err
	}
	return row, h, nil
}

func (s store) Tmpfile(ctx context.Context, who catalog.Actor, parent catalog.Ino, n catalog.NewInode, flags volume.OpenFlags) (catalog.Inode, Handle, error) {
	row, h, err := s.Volume.Tmpfile(ctx, who, parent, n, flags)
	if err != nil {
		return row, nil, err
	}
	return row, h, nil
}

func (s store) OpenFile(ctx context.Context, who catalog.Actor, ino catalog.Ino, flags volume.OpenFlags) (Handle, error) {
	h, err := s.Volume.OpenFile(ctx, who, ino, flags)
	if err != nil {
		return nil, err
	}
	return h, nil
}

func (s store) SetAttr(ctx context.Context, who catalog.Actor, ino catalog.Ino, set SetAttr) (catalog.Inode, error) {
	h, _ := set.Handle.(*volume.Handle)
	return s.Volume.SetAttr(ctx, who, ino, volume.SetAttr{
		Mode: set.Mode, UID: set.UID, GID: set.GID, Size: set.Size,
		Atime: set.Atime, Mtime: set.Mtime, Ctime: set.Ctime, Handle: h, KillPriv: set.KillPriv,
	})
}

func (s store) CopyRange(ctx context.Context, src Handle, srcOff int64, dst Handle, dstOff, n int64) (int64, error) {
	to, ok := dst.(*volume.Handle)
	if !ok {
		return 0, unix.EXDEV // the kernel then copies by reading and writing
	}
	switch from := src.(type) {
	case *volume.Handle:
		return volume.CopyRange(ctx, from, srcOff, to, dstOff, n)
	case pastFile:
		if past := from.Past(); past != nil {
			return volume.CopyPast(ctx, past, srcOff, to, dstOff, n)
		}
	}
	return 0, unix.EXDEV
}
