package snapshots

import (
	"context"
	"errors"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/catalog"
)

// home is the `.snapshots` of a directory: what moments there are to look at.
type home struct {
	plain
	t   *Tree
	dir catalog.Ino
}

// get makes a directory that belongs to who owns the directory it is in, and can be read by those who can read that. Its time is that of the newest
// record: it changes whenever the list of snapshots may have changed.
func (h home) get(ctx context.Context) (catalog.Inode, error) {
	return h.t.below(ctx, h.dir, h.dir)
}

// below makes the row of a directory that is shown in the `.snapshots` of dir, with the number ino.
func (t *Tree) below(ctx context.Context, dir, ino catalog.Ino) (catalog.Inode, error) {
	row, err := t.store.GetAt(ctx, dir, catalog.Head)
	if err != nil {
		return row, err
	}
	if row.Mode&unix.S_IFMT != unix.S_IFDIR {
		return row, catalog.ErrNotDir
	}
	newest, err := t.store.Newest(ctx)
	if err != nil {
		return row, err
	}
	at := time.Unix(0, row.Ctime)
	switch of, err := t.store.TimeOf(ctx, newest); {
	case err == nil:
		at = of
	case !errors.Is(err, catalog.ErrNotExist):
		return row, err
	}
	out := directory(row, ino)
	out.Parent = dir
	out.Atime, out.Mtime, out.Ctime = at.UnixNano(), at.UnixNano(), at.UnixNano()
	return out, nil
}

// directory makes the row of a directory of this tree from that of the directory whose permissions it has. Nothing is written here, so nobody may.
func directory(from catalog.Inode, ino catalog.Ino) catalog.Inode {
	return catalog.Inode{
		Ino: ino, Parent: ino, Mode: unix.S_IFDIR | from.Mode&0o555, UID: from.UID, GID: from.GID,
		Nlink: 1, // programs that count subdirectories are told that it cannot be known
		Atime: from.Atime, Mtime: max(from.Mtime, from.Ctime), Ctime: from.Ctime, Btime: from.Btime,
	}
}

// fixed are the entries that every `.snapshots` has, in order.
func (h home) fixed() []string {
	return []string{readmeName, versionsName, deletedName}
}

// entry returns one of the fixed entries.
func (h home) entry(ctx context.Context, name string) (catalog.Inode, error) {
	switch name {
	case readmeName:
		return readme{}.get(ctx)
	case versionsName:
		return versionsDir{t: h.t, n: h.t.nodes.top(h.dir, false)}.get(ctx)
	}
	return deletedDir{t: h.t, n: h.t.nodes.top(h.dir, true)}.get(ctx)
}

func (h home) lookup(ctx context.Context, name string) (catalog.Inode, error) {
	switch name {
	case "..":
		return h.get(ctx)
	case readmeName, versionsName, deletedName:
		return h.entry(ctx, name)
	}
	if !strings.HasPrefix(name, "@") {
		s, err := h.t.store.Snapshot(ctx, name)
		if err != nil {
			return catalog.Inode{}, err
		}
		return h.moment(ctx, name, s.Seq)
	}
	seq, err := h.t.resolve(ctx, name)
	if err != nil {
		h.t.refuse(h.dir, name, err)
		return catalog.Inode{}, err
	}
	row, err := h.moment(ctx, name, seq)
	if err != nil {
		h.t.refuse(h.dir, name, err)
	}
	return row, err
}

// moment returns the directory as it was after the record seq.
func (h home) moment(ctx context.Context, name string, seq catalog.Seq) (catalog.Inode, error) {
	if err := h.t.exact(ctx, h.dir, seq); err != nil {
		return catalog.Inode{}, err
	}
	row, err := h.t.store.GetAt(ctx, h.dir, seq)
	if errors.Is(err, catalog.ErrStale) || err == nil && row.Nlink == 0 {
		return row, momentError(ErrBefore, name, "the directory was not there at record v%d", seq)
	}
	if err != nil {
		return row, err
	}
	return h.t.views.of(viewKey{root: h.dir, seq: seq}).row(row)
}

const (
	fixedCookie    = 3 // of the first fixed entry
	snapshotCookie = 16
)

func (h home) readDir(ctx context.Context, after uint64, limit int) ([]catalog.DirEntry, error) {
	if _, err := h.get(ctx); err != nil {
		return nil, err
	}
	var list []catalog.DirEntry
	for i, name := range h.fixed() {
		cookie := uint64(fixedCookie + i)
		if cookie <= after || len(list) == limit {
			continue
		}
		row, err := h.entry(ctx, name)
		if err != nil {
			return nil, err
		}
		list = append(list, catalog.DirEntry{Name: name, Cookie: cookie, Inode: row})
	}
	all, err := h.t.store.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	cookie := uint64(snapshotCookie)
	for _, s := range all {
		// A position that a snapshot keeps when others come and go.
		cookie = max(cookie+1, snapshotCookie+uint64(min(s.Seq, 1<<46))<<16)
		if cookie <= after {
			continue
		}
		if len(list) == limit {
			break
		}
		row, err := h.moment(ctx, s.Name, s.Seq)
		if errors.Is(err, catalog.ErrNotExist) {
			continue // the directory is younger
		}
		if err != nil {
			return nil, err
		}
		list = append(list, catalog.DirEntry{Name: s.Name, Cookie: cookie, Inode: row})
	}
	return list, nil
}

func (h home) entryValid(name string, found bool) uint64 {
	if !found {
		return 0 // what is the future now is not for long
	}
	switch name {
	case ".": // .snapshots itself
		return validForever
	case readmeName, versionsName, deletedName:
		return validFixed
	}
	if !strings.HasPrefix(name, "@") {
		return validRelative // a snapshot can be renamed and removed
	}
	if m, err := ParseMoment(name, h.t.now()); err != nil || m.Relative {
		return validRelative
	}
	return validFixed
}

func (h home) attrValid() uint64 { return 0 }

// resolution is what a relative text was found to mean.
type resolution struct {
	seq         catalog.Seq
	made, until time.Time
}

const (
	// A relative moment keeps its meaning while it is looked up again and again, so that a program that copies a tree by path copies one state: for
	// a 20th of its distance, within these bounds.
	stickyShare = 20
	stickyLeast = time.Second
	stickyMost  = 30 * time.Second
	// stickyGap is how long it keeps that without being looked up.
	stickyGap = 2 * time.Second
	// maxResolved bounds the texts that are remembered.
	maxResolved = 256
)

// resolve finds the record that a text beginning with "@" means.
func (t *Tree) resolve(ctx context.Context, text string) (catalog.Seq, error) {
	now := t.now()
	m, err := ParseMoment(text, now)
	if err != nil {
		return 0, err
	}
	if !m.Relative {
		return m.Resolve(ctx, t.store, t.store)
	}
	most := min(max(now.Sub(m.Time)/stickyShare, stickyLeast), stickyMost)
	t.mu.Lock()
	r, ok := t.resolved[text]
	if ok && now.Before(r.until) && !now.Before(r.made) && now.Sub(r.made) < most {
		r.until = now.Add(stickyGap)
		t.resolved[text] = r
		t.mu.Unlock()
		return r.seq, nil
	}
	t.mu.Unlock()
	seq, err := m.Resolve(ctx, t.store, t.store)
	if err != nil {
		return 0, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.resolved) >= maxResolved {
		clear(t.resolved)
	}
	t.resolved[text] = resolution{seq: seq, made: now, until: now.Add(stickyGap)}
	return seq, nil
}

// readme is the file README.
type readme struct{ plain }

func (readme) get(context.Context) (catalog.Inode, error) {
	n, err := number(readmeView, catalog.Root)
	return catalog.Inode{Ino: n, Parent: catalog.Root, Mode: unix.S_IFREG | 0o444, Nlink: 1, Size: int64(len(readmeText))}, err
}

func (readme) open(context.Context) (*File, error) { return &File{text: readmeText}, nil }
func (readme) attrValid() uint64                   { return validForever }

const readmeText = `The past of this directory, read-only. Nothing here takes room of its own, and nothing here changes what is there now.

  NAME/         a snapshot: this directory as it was then (holdfast snapshot create NAME)
  @10m/         ten minutes ago; also @90s @2h30m @1d @1w @today @yesterday (the midnights that began those days)
  @2026-11-22T23:15:07Z/   the state at that time
  @v1234/       the state after journal record 1234, as "holdfast log" shows them
  versions/P/   every version that the path P ever had: number, time, agent; P may be deleted or renamed
  deleted/P     what was deleted, as it was last

Moments are not listed: name one, and it is there. A directory's own .snapshots is not listed either: cd into it by name.

  ls -l .snapshots/@10m/                        what was here ten minutes ago
  cp -a .snapshots/@10m/plan.md .               get a file back (extents are copied, not bytes)
  cp -a .snapshots/deleted/notes .              get a deleted directory back
  diff -r .snapshots/@1h/ . | less              what has changed in an hour
  ls .snapshots/versions/plan.md/               who wrote plan.md, and when
  grep -r TODO .snapshots/@yesterday/           search the past

"No such file or directory" for a moment: it lies in the future or before the store, or retention has thinned it away; the log says which.
A time ago stays what it was while a program uses it, for up to half a minute; "holdfast log" and @v... name a state for good.
`
