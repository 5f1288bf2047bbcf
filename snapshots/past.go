package snapshots

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

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
		return row, err
	}
	return p.v.row(row)
}

func (p pastNode) lookup(ctx context.Context, name string) (catalog.Inode, error) {
	if name == ".." && p.ino == p.v.root {
		return home{t: p.t, dir: p.v.root}.get(ctx)
	}
	row, err := p.t.store.LookupAt(ctx, p.ino, name, p.v.seq)
	if err != nil {
		return row, err
	}
	if row.Mode&unix.S_IFMT == unix.S_IFDIR {
		if err := p.t.exact(ctx, row.Ino, p.v.seq); err != nil {
			p.t.refuse(row.Ino, Moment{Seq: p.v.seq}.String(), err)
			return row, err
		}
	}
	return p.v.row(row)
}

func (p pastNode) readDir(ctx context.Context, after uint64, max int) ([]catalog.DirEntry, error) {
	list, err := p.t.store.ReadDirAt(ctx, p.ino, after, max, p.v.seq)
	if err != nil {
		return nil, err
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
		return nil, err
	}
	return &File{past: h}, nil
}

// What a moment was does not change.
func (p pastNode) entryValid(string, bool) uint64 { return validForever }
func (p pastNode) attrValid() uint64              { return validForever }

// deletedNode is a directory with what was deleted in it, or something that was deleted. Directories are followed by number: what was deleted in one is
// found where that is now, or under the name that it had when it was deleted itself. So every inode has one place.
type deletedNode struct {
	t   *Tree
	v   *view
	ino catalog.Ino
}

func (d deletedNode) row(row catalog.Inode) (catalog.Inode, error) {
	if row.Mode&unix.S_IFMT == unix.S_IFDIR {
		if row.Nlink > 0 {
			// What is deleted in it changes its times, and they tell the kernel that it has to read it again.
			row.Mtime = max(row.Mtime, row.Ctime)
		}
		row.Nlink, row.Size = 1, 0
	}
	row.Nlink = max(row.Nlink, 1)
	return d.v.row(row)
}

func (d deletedNode) get(ctx context.Context) (catalog.Inode, error) {
	row, err := d.t.store.GetAt(ctx, d.ino, catalog.Head)
	if err != nil {
		return row, err
	}
	return d.row(row)
}

// wanted returns the inode behind a name of this directory, and whether that is shown: it was deleted under this name, or it is a directory
// that is still there.
func (d deletedNode) wanted(ctx context.Context, s catalog.NameSpan) (catalog.Inode, bool, error) {
	isDir := s.Type&unix.S_IFMT == unix.S_IFDIR
	if s.To == catalog.Head {
		if !isDir {
			return catalog.Inode{}, false, nil
		}
	} else {
		// What only moved away has a link still, after the record in which the name ended.
		then, err := d.t.store.GetAt(ctx, s.Ino, s.To)
		if errors.Is(err, catalog.ErrStale) || err == nil && then.Nlink > 0 {
			return then, false, nil
		}
		if err != nil {
			return then, false, err
		}
	}
	row, err := d.t.store.GetAt(ctx, s.Ino, catalog.Head)
	if errors.Is(err, catalog.ErrStale) {
		return row, false, nil
	}
	return row, err == nil, err
}

func (d deletedNode) lookup(ctx context.Context, name string) (catalog.Inode, error) {
	if name == ".." {
		if d.ino == d.v.root {
			return home{t: d.t, dir: d.v.root}.get(ctx)
		}
		row, err := d.t.store.GetAt(ctx, d.ino, catalog.Head)
		if err != nil {
			return row, err
		}
		return deletedNode{t: d.t, v: d.v, ino: row.Parent}.get(ctx)
	}
	spans, err := d.t.store.NameHistory(ctx, d.ino, name)
	if err != nil || len(spans) == 0 {
		return catalog.Inode{}, errors.Join(err, catalog.ErrNotExist)
	}
	row, ok, err := d.wanted(ctx, spans[len(spans)-1])
	if err != nil {
		return row, err
	}
	if !ok {
		return row, catalog.ErrNotExist
	}
	return d.row(row)
}

func (d deletedNode) readDir(ctx context.Context, after uint64, max int) ([]catalog.DirEntry, error) {
	row, err := d.t.store.GetAt(ctx, d.ino, catalog.Head)
	if err != nil {
		return nil, err
	}
	if row.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil, catalog.ErrNotDir
	}
	var list []catalog.DirEntry
	for len(list) < max {
		names, err := d.t.store.DirNames(ctx, d.ino, after, max-len(list), true)
		if err != nil || len(names) == 0 {
			return list, err
		}
		for _, n := range names {
			after = n.Cookie
			row, ok, err := d.wanted(ctx, n.NameSpan)
			if err != nil {
				return nil, err
			}
			if !ok {
				continue
			}
			if row, err = d.row(row); err != nil {
				return nil, err
			}
			list = append(list, catalog.DirEntry{Name: n.Name, Cookie: n.Cookie, Inode: row})
		}
	}
	return list, nil
}

func (d deletedNode) getXattr(ctx context.Context, name string) ([]byte, error) {
	return d.t.store.GetXattrAt(ctx, d.ino, name, catalog.Head)
}

func (d deletedNode) listXattr(ctx context.Context) ([]string, error) {
	return d.t.store.ListXattrAt(ctx, d.ino, catalog.Head)
}

func (d deletedNode) open(ctx context.Context) (*File, error) {
	h, err := d.t.store.OpenPast(ctx, d.ino, catalog.Head)
	if err != nil {
		return nil, err
	}
	return &File{past: h}, nil
}

func (d deletedNode) entryValid(string, bool) uint64 { return 0 }
func (d deletedNode) attrValid() uint64              { return 0 }
