package snapshots

import (
	"context"
	"errors"
	"slices"

	"holdfast/catalog"
)

// deletedDir is a path below `deleted`: what is not there any more, as it was last. Directories that are there are ways to what was deleted in them.
type deletedDir struct {
	plain
	t *Tree
	n *node
}

// maxMoves is how many times something may have moved away from a path since what was deleted there is not looked for any further.
const maxMoves = 64

// gone finds what is shown of a path that led there: the span of what was deleted last, or of a directory that is there. Where a directory was
// deleted and something else has its name now, the directory is shown, for what was in it. false: nothing.
func (t *Tree) gone(ctx context.Context, spans []catalog.NameSpan) (catalog.NameSpan, bool, error) {
	taken := false
	for i, s := range slices.Backward(spans) {
		if s.To == catalog.Head && isDir(s.Type) {
			return s, true, nil
		}
		if len(spans)-i > maxMoves {
			break
		}
		taken = taken || s.To == catalog.Head
		if taken && !isDir(s.Type) {
			continue
		}
		// What only moved away, itself or with a directory above, has a link still after the record that ended the span.
		// Once it is deleted it stays so: where the record is thinned away, a later one says as much.
		at, err := t.store.ExactFrom(ctx, s.Ino, s.To)
		if err != nil {
			return s, false, err
		}
		row, err := t.store.GetAt(ctx, s.Ino, at)
		if err == nil && row.Nlink == 0 {
			return s, true, nil
		}
		if err != nil && !errors.Is(err, catalog.ErrStale) && !errors.Is(err, catalog.ErrNotExist) {
			return s, false, err
		}
	}
	return catalog.NameSpan{}, false, nil
}

func (d deletedDir) get(ctx context.Context) (catalog.Inode, error) {
	h, err := d.t.history(ctx, d.n)
	if err != nil {
		return catalog.Inode{}, err
	}
	row, err := d.t.pathRow(ctx, d.n, h)
	if err != nil {
		return row, err
	}
	ino, at, err := d.was(ctx)
	if errors.Is(err, catalog.ErrNoXattr) {
		return row, nil
	}
	if err != nil {
		return row, err
	}
	was, err := d.t.store.GetAt(ctx, ino, at)
	if err != nil {
		return row, err
	}
	was.Ino, was.Parent, was.Nlink = row.Ino, row.Parent, 1
	return was, nil
}

func (d deletedDir) lookup(ctx context.Context, name string) (catalog.Inode, error) {
	if name == ".." {
		if d.n.parent == nil {
			return home{t: d.t, dir: d.n.root}.get(ctx)
		}
		return deletedDir{t: d.t, n: d.n.parent}.get(ctx)
	}
	h, err := d.t.history(ctx, d.n)
	if err != nil {
		return catalog.Inode{}, err
	}
	spans, err := d.t.store.Under(ctx, h.spans, name)
	if err != nil {
		return catalog.Inode{}, err
	}
	row, ok, err := d.child(ctx, name, spans)
	if err == nil && !ok {
		err = catalog.ErrNotExist
	}
	return row, err
}

// child returns what is shown of a name below the path that led to spans. false: nothing.
func (d deletedDir) child(ctx context.Context, name string, spans []catalog.NameSpan) (catalog.Inode, bool, error) {
	s, ok, err := d.t.gone(ctx, spans)
	if err != nil || !ok {
		return catalog.Inode{}, false, err
	}
	if !isDir(s.Type) {
		return d.t.keep(ctx, d.n, name, s.Ino, s.To-1)
	}
	row, err := deletedDir{t: d.t, n: d.t.nodes.path(d.n, name)}.get(ctx)
	if errors.Is(err, catalog.ErrStale) || errors.Is(err, catalog.ErrNotExist) {
		return row, false, nil // retention has taken it
	}
	return row, err == nil, err
}

func (d deletedDir) readDir(ctx context.Context, after uint64, limit int) ([]catalog.DirEntry, error) {
	h, err := d.t.history(ctx, d.n)
	if err != nil {
		return nil, err
	}
	var list []catalog.DirEntry
	err = d.t.names(ctx, h, after, func(name string, cookie uint64, spans []catalog.NameSpan) (bool, error) {
		row, ok, err := d.child(ctx, name, spans)
		if ok {
			list = append(list, catalog.DirEntry{Name: name, Cookie: cookie, Inode: row})
		}
		return len(list) < limit, err
	})
	return list, err
}

func (d deletedDir) getXattr(ctx context.Context, name string) ([]byte, error) {
	ino, at, err := d.was(ctx)
	if err != nil {
		return nil, err
	}
	return d.t.store.GetXattrAt(ctx, ino, name, at)
}

func (d deletedDir) listXattr(ctx context.Context) ([]string, error) {
	ino, at, err := d.was(ctx)
	if errors.Is(err, catalog.ErrNoXattr) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return d.t.store.ListXattrAt(ctx, ino, at)
}

// was returns the directory that was deleted, and the record after which it is shown. ErrNoXattr when it was not deleted.
func (d deletedDir) was(ctx context.Context) (ino catalog.Ino, at catalog.Seq, err error) {
	h, err := d.t.history(ctx, d.n)
	if err != nil {
		return 0, 0, err
	}
	s, ok, err := d.t.gone(ctx, h.spans)
	if err == nil && (!ok || s.To == catalog.Head) {
		err = catalog.ErrNoXattr
	}
	if err != nil {
		return 0, 0, err
	}
	at, err = d.t.store.ExactFrom(ctx, s.Ino, s.To-1)
	return s.Ino, at, err
}
