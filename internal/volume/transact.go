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
	// Replaced are files that have lost all names to new ones, which hold what the files were: what is written to them by who has them open is kept
	// beside the new ones, as a conflict.
	Replaced map[catalog.Ino]catalog.Ino
}

// replacement is what a transaction has put in the place of a file, and for whom.
type replacement struct {
	ino catalog.Ino
	who catalog.Actor
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
	seq, err := v.cat.Transact(ctx, who, op, path, func(tx *catalog.Tx) error {
		err := fn(tx, &touched)
		if err == nil {
			v.replace(touched.Replaced, who) // before any close can find the names gone
		}
		return err
	})
	if err != nil {
		v.forgetReplaced(touched.Replaced)
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

func (v *Volume) replace(all map[catalog.Ino]catalog.Ino, who catalog.Actor) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for old, ino := range all {
		if v.files[old] != nil {
			v.replaced[old] = replacement{ino, who}
		}
	}
}

func (v *Volume) forgetReplaced(all map[catalog.Ino]catalog.Ino) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for old := range all {
		delete(v.replaced, old)
	}
}

// replacementOf returns what has the place of a file now. false: the file has its name, or has lost it in another way.
func (v *Volume) replacementOf(ino catalog.Ino) (replacement, bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	by, ok := v.replaced[ino]
	return by, ok
}
