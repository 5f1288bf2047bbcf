package volume

import (
	"context"

	"holdfast/catalog"
)

// Touched is what a transaction changed that the kernel may have cached: names, and inodes whose attributes or content changed.
type Touched struct {
	Names  []NameKey
	Inodes []catalog.Ino
	// Revived are directories that had been removed and have a name again.
	Revived []catalog.Ino
}

// Reviver is what an Invalidator may be besides: it is told of directories that come back under their old number, before it is told of their names.
type Reviver interface{ Revived(ino catalog.Ino) }

// NameKey is a name in a directory.
type NameKey struct {
	Parent catalog.Ino
	Name   string
}

// Transact is catalog.Transact, durable on return; the kernel is then told of what fn adds to the Touched that it is given. A size that fn gives to an
// open file is not seen by those who have it open: give the name a new inode instead. fn may call the catalog's and the volume's reading methods, and no others.
func (v *Volume) Transact(ctx context.Context, who catalog.Actor, op catalog.Op, path string, fn func(*catalog.Tx, *Touched) error) (catalog.Seq, error) {
	var touched Touched
	seq, err := v.cat.Transact(ctx, who, op, path, func(tx *catalog.Tx) error { return fn(tx, &touched) })
	if err != nil {
		return 0, err
	}
	v.mu.RLock()
	i := v.invalidator
	v.mu.RUnlock()
	if i != nil {
		if r, ok := i.(Reviver); ok {
			for _, ino := range touched.Revived {
				r.Revived(ino)
			}
		}
		for _, n := range touched.Names {
			i.InvalidateEntry(n.Parent, n.Name)
			i.InvalidateInode(n.Parent)
		}
		for _, ino := range touched.Inodes {
			i.InvalidateInode(ino)
		}
	}
	return seq, v.cat.Sync(ctx)
}
