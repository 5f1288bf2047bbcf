package snapshots

import (
	"context"
	"errors"

	"holdfast/catalog"
)

// pastNode is an inode as it was at the moment of a view.
type pastNode struct {
	t   *Tree
	v   *view
	ino catalog.Ino
}

func (p pastNode) get(ctx context.Context) (catalog.Inode, error) {
	row, err := p.t.store.GetAt(ctx, p.ino, p.v.seq)
	if err != nil {
		return row, p.thinned(err)
	}
	return p.v.row(row)
}

// thinned logs what retention has thinned away.
func (p pastNode) thinned(err error) error {
	if errors.Is(err, catalog.ErrThinned) {
		p.t.refuse(p.v.root, Moment{Seq: p.v.seq}.String(), err)
	}
	return err
}

func (p pastNode) lookup(ctx context.Context, name string) (catalog.Inode, error) {
	if name == ".." && p.ino == p.v.root {
		return home{t: p.t, dir: p.v.root}.get(ctx)
	}
	row, err := p.t.store.LookupAt(ctx, p.ino, name, p.v.seq)
	if err == nil && isDir(row.Mode) && name != "." && name != ".." {
		err = p.t.store.Exact(ctx, row.Ino, p.v.seq) // it may have a policy of its own
	}
	if err != nil {
		return row, p.thinned(err)
	}
	return p.v.row(row)
}

func (p pastNode) readDir(ctx context.Context, after uint64, max int) ([]catalog.DirEntry, error) {
	list, err := p.t.store.ReadDirAt(ctx, p.ino, after, max, p.v.seq)
	if err != nil {
		return nil, p.thinned(err)
	}
	for i := range list {
		if list[i].Inode, err = p.v.row(list[i].Inode); err != nil {
			return nil, err
		}
	}
	return list, nil
}

func (p pastNode) getXattr(ctx context.Context, name string) ([]byte, error) {
	return p.t.store.GetXattrAt(ctx, p.ino, name, p.v.seq)
}

func (p pastNode) listXattr(ctx context.Context) ([]string, error) {
	return p.t.store.ListXattrAt(ctx, p.ino, p.v.seq)
}

func (p pastNode) open(ctx context.Context) (*File, error) {
	h, err := p.t.store.OpenPast(ctx, p.ino, p.v.seq)
	if err != nil {
		return nil, p.thinned(err)
	}
	return &File{past: h}, nil
}

// What a moment was does not change.
func (p pastNode) entryValid(string, bool) uint64 { return validForever }
func (p pastNode) attrValid() uint64              { return validForever }
