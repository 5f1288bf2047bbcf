package snapshots

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/catalog"
	"holdfast/internal/volume"
)

// manySpans is when the history of a path is not read anew at each question but once in a second.
const manySpans = 1024

// history is where a path led, and when. It does not change once it is made.
type history struct {
	asOf  catalog.Seq // the newest record when it was read
	read  time.Time
	spans []catalog.NameSpan // by From; that of a directory which is there now reaches back to the beginning
	eras  []volume.Era       // of the regular files among them, for a path below `versions`
	shown []uint64           // for each of these the first version that no earlier one of the same inode has shown
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
	if n.kind == versionsKind {
		var old []volume.Era
		if n.hist != nil {
			old = n.hist.eras
		}
		if h.eras, err = t.store.Eras(ctx, h.spans, old); err != nil {
			return nil, err
		}
		h.shown = shownFrom(h.eras)
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
	dirs := h.dirs()
	for {
		var found []catalog.PastName
		// Of directories with a full page, what lies behind it is not known: all that is behind the first such end waits.
		end := uint64(versionCookie)
		for _, dir := range dirs {
			part, err := t.store.DirNames(ctx, dir, after, t.page)
			if err != nil {
				return err
			}
			if len(part) == t.page {
				end = min(end, part[t.page-1].Cookie)
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

// keep returns the row of a file below a path, as it was after the record at or, where that is thinned away, at the first moment after it that is
// kept. false: retention has taken it.
func (t *Tree) keep(ctx context.Context, parent *node, name string, ino catalog.Ino, at catalog.Seq) (catalog.Inode, bool, error) {
	at, err := t.store.ExactFrom(ctx, ino, at)
	if err != nil {
		return catalog.Inode{}, false, err
	}
	row, err := keptFile{t: t, n: t.nodes.file(parent, name, ino, at)}.get(ctx)
	if errors.Is(err, catalog.ErrStale) || errors.Is(err, catalog.ErrNotExist) {
		return row, false, nil
	}
	return row, err == nil, err
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
