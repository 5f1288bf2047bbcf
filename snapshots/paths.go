package snapshots

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/catalog"
)

// manySpans is when the history of a path is not read anew at each question but once in a second.
const manySpans = 1024

// history is where a path led, and when. It does not change once it is made.
type history struct {
	asOf  catalog.Seq // the newest record when it was read
	read  time.Time
	spans []catalog.NameSpan // by From; that of a directory which is there now reaches back to the beginning
	eras  []era              // of the regular files among them, for a path below `versions`
}

// dirs lists the directories that the path led to.
func (h *history) dirs() []catalog.Ino {
	var dirs []catalog.Ino
	for _, s := range h.spans {
		if isDir(s.Type) && !slices.Contains(dirs, s.Ino) {
			dirs = append(dirs, s.Ino)
		}
	}
	return dirs
}

func isFile(mode uint32) bool { return mode&unix.S_IFMT == unix.S_IFREG }

// history returns where the path of a node led, as of the newest record.
func (t *Tree) history(ctx context.Context, n *node) (*history, error) {
	newest, err := t.store.Newest(ctx)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	now := t.now()
	if h := n.hist; h != nil && (h.asOf >= newest || len(h.spans) >= manySpans && now.Sub(h.read) < time.Second && !now.Before(h.read)) {
		return h, nil
	}
	h := &history{asOf: newest, read: now}
	if n.parent == nil {
		h.spans = []catalog.NameSpan{{Ino: n.root, Type: unix.S_IFDIR, From: 0, To: catalog.Head}}
	} else {
		above, err := t.history(ctx, n.parent)
		if err != nil {
			return nil, err
		}
		if h.spans, err = t.store.Under(ctx, above.spans, n.name); err != nil {
			return nil, err
		}
	}
	if !n.deleted {
		if err := t.count(ctx, h, n.hist); err != nil {
			return nil, err
		}
	}
	n.hist = h
	return h, nil
}

// pathRow makes the row of the directory that a path is shown as. Who may read the directory that the path was, or else the one it was in, may read this
// one.
func (t *Tree) pathRow(ctx context.Context, n *node, h *history) (catalog.Inode, error) {
	if len(h.spans) == 0 {
		return catalog.Inode{}, catalog.ErrStale // retention has taken it
	}
	dirs := h.dirs()
	if len(dirs) == 0 && n.parent != nil {
		above, err := t.history(ctx, n.parent)
		if err != nil {
			return catalog.Inode{}, err
		}
		dirs = above.dirs()
	}
	if len(dirs) == 0 {
		return catalog.Inode{}, catalog.ErrStale
	}
	from, err := t.store.GetAt(ctx, dirs[len(dirs)-1], catalog.Head)
	if err != nil {
		return catalog.Inode{}, err
	}
	row := directory(from, n.num)
	row.Parent = n.root
	if n.parent != nil {
		row.Parent = n.parent.num
	}
	return row, nil
}

// names calls fn with the names that were ever below a path, behind the position after, until it returns false. A name comes once, at its place in the
// first of the directories that had it while the path led there.
func (t *Tree) names(ctx context.Context, h *history, after uint64, fn func(name string, cookie uint64, spans []catalog.NameSpan) (bool, error)) error {
	const page = 256
	dirs := h.dirs()
	for {
		var found []catalog.PastName
		// Of directories with a full page, what lies behind it is not known: all that is behind the first such end waits.
		end := uint64(versionCookie)
		for _, dir := range dirs {
			part, err := t.store.DirNames(ctx, dir, after, page)
			if err != nil {
				return err
			}
			if len(part) == page {
				end = min(end, part[page-1].Cookie)
			}
			for _, n := range part {
				first, err := t.firstWith(ctx, h, dirs, n.Name)
				if err != nil {
					return err
				}
				if first == dir {
					found = append(found, n)
				}
			}
		}
		// Positions differ in all of the store.
		slices.SortFunc(found, func(a, b catalog.PastName) int { return cmp.Compare(a.Cookie, b.Cookie) })
		for _, n := range found {
			if n.Cookie > end {
				break
			}
			spans, err := t.store.Under(ctx, h.spans, n.Name)
			if err != nil {
				return err
			}
			if more, err := fn(n.Name, n.Cookie, spans); err != nil || !more {
				return err
			}
		}
		if end == versionCookie {
			return nil
		}
		after = end
	}
}

// firstWith returns the first of the directories that a path led to which had the name then.
func (t *Tree) firstWith(ctx context.Context, h *history, dirs []catalog.Ino, name string) (catalog.Ino, error) {
	if len(dirs) == 1 {
		return dirs[0], nil
	}
	for _, s := range h.spans {
		spans, err := t.store.Under(ctx, []catalog.NameSpan{s}, name)
		if err != nil {
			return 0, err
		}
		if len(spans) > 0 {
			return s.Ino, nil
		}
	}
	return 0, nil
}

// keptFile is a version of a path, or a file that was deleted, as it was then.
type keptFile struct {
	plain
	t *Tree
	n *node
}

func (f keptFile) get(ctx context.Context) (catalog.Inode, error) {
	row, err := f.t.store.GetAt(ctx, f.n.file, f.n.at)
	if err != nil {
		return row, err
	}
	row.Ino, row.Parent, row.Nlink = f.n.num, f.n.parent.num, 1
	return row, nil
}

func (f keptFile) getXattr(ctx context.Context, name string) ([]byte, error) {
	return f.t.store.GetXattrAt(ctx, f.n.file, name, f.n.at)
}

func (f keptFile) listXattr(ctx context.Context) ([]string, error) {
	return f.t.store.ListXattrAt(ctx, f.n.file, f.n.at)
}

func (f keptFile) open(ctx context.Context) (*File, error) {
	h, err := f.t.store.OpenPast(ctx, f.n.file, f.n.at)
	if err != nil {
		return nil, err
	}
	return &File{past: h}, nil
}

func (f keptFile) attrValid() uint64 { return validForever }

// deletedDir is a path below `deleted`: what is not there any more, as it was last. Directories that are there are ways to what was deleted in them.
type deletedDir struct {
	plain
	t *Tree
	n *node
}

// maxMoves is how many times something may have moved away from a path since what was deleted there is not looked for any further.
const maxMoves = 64

// gone finds what is shown of a path that led there: the span of what was deleted last, or of a directory that is there. false: nothing.
func (t *Tree) gone(ctx context.Context, spans []catalog.NameSpan) (catalog.NameSpan, bool, error) {
	for i, s := range slices.Backward(spans) {
		if s.To == catalog.Head {
			return s, isDir(s.Type), nil
		}
		if len(spans)-i > maxMoves {
			break
		}
		// What only moved away, itself or with a directory above, has a link still after the record that ended the span.
		row, err := t.store.GetAt(ctx, s.Ino, s.To)
		if err == nil && row.Nlink == 0 {
			return s, true, nil
		}
		if err != nil && !errors.Is(err, catalog.ErrStale) {
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
	s, ok, err := d.t.gone(ctx, h.spans)
	if err != nil {
		return row, err
	}
	if !ok || s.To == catalog.Head {
		return row, nil
	}
	was, err := d.t.store.GetAt(ctx, s.Ino, s.To-1)
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
	var row catalog.Inode
	if isDir(s.Type) {
		row, err = deletedDir{t: d.t, n: d.t.nodes.path(d.n, name)}.get(ctx)
	} else {
		row, err = keptFile{t: d.t, n: d.t.nodes.file(d.n, name, s.Ino, s.To-1)}.get(ctx)
	}
	if errors.Is(err, catalog.ErrStale) {
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
	s, err := d.span(ctx)
	if err != nil {
		return nil, err
	}
	return d.t.store.GetXattrAt(ctx, s.Ino, name, s.To-1)
}

func (d deletedDir) listXattr(ctx context.Context) ([]string, error) {
	s, err := d.span(ctx)
	if errors.Is(err, catalog.ErrNoXattr) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return d.t.store.ListXattrAt(ctx, s.Ino, s.To-1)
}

// span is that of the directory that was deleted. ErrNoXattr when it was not.
func (d deletedDir) span(ctx context.Context) (catalog.NameSpan, error) {
	h, err := d.t.history(ctx, d.n)
	if err != nil {
		return catalog.NameSpan{}, err
	}
	s, ok, err := d.t.gone(ctx, h.spans)
	if err == nil && (!ok || s.To == catalog.Head) {
		err = catalog.ErrNoXattr
	}
	return s, err
}
