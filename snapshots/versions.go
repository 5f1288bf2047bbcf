package snapshots

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"holdfast/catalog"
)

const (
	// versionCookie is the position of the versions of a path, by number; names below it, if it ever was a directory, come before.
	versionCookie = 1 << 62
	// A name of a version is no longer than its parts: number, time, agent, extension.
	maxAgentPart = 64
	maxExtPart   = 32
	// manySpans is when a history is not read anew at each question but once in a second.
	manySpans = 1024
)

// pathDir is a path below `versions`: a directory of the versions that the path had, and of the names that were ever below it.
type pathDir struct {
	t *Tree
	n *node
	plain
}

// history returns where the path led, as of the newest record.
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
	if err := t.count(ctx, h, n.hist); err != nil {
		return nil, err
	}
	n.hist = h
	return h, nil
}

// count finds the versions of each span of a regular file. What old says of spans that have ended still holds.
func (t *Tree) count(ctx context.Context, h, old *history) error {
	known := make(map[catalog.NameSpan]era)
	if old != nil {
		for _, e := range old.eras {
			if e.To != catalog.Head {
				known[e.NameSpan] = e
			}
		}
	}
	shown := make(map[catalog.Ino]uint64)
	before := uint64(0)
	for _, s := range h.spans {
		if s.Type&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		e, ok := known[s]
		if !ok {
			e = era{NameSpan: s, first: 1}
			switch row, err := t.store.GetAt(ctx, s.Ino, s.From); {
			case err == nil:
				e.first = max(row.Ver, 1)
			case !errors.Is(err, catalog.ErrStale):
				return err
			}
			last := s.To
			if last != catalog.Head {
				last--
			}
			row, err := t.store.GetAt(ctx, s.Ino, last)
			if err != nil && !errors.Is(err, catalog.ErrStale) {
				return err
			}
			e.last = max(row.Ver, e.first-1)
		}
		e.before = before
		e.shown = max(e.first, shown[s.Ino]+1)
		shown[s.Ino] = max(e.last, shown[s.Ino])
		before = e.count()
		h.eras = append(h.eras, e)
	}
	return nil
}

// shows reports whether a path that led there has a place below `versions`.
func shows(spans []catalog.NameSpan) bool {
	return slices.ContainsFunc(spans, func(s catalog.NameSpan) bool {
		return s.Type&unix.S_IFMT == unix.S_IFDIR || s.Type&unix.S_IFMT == unix.S_IFREG
	})
}

// newestDir returns the directory that the path led to last.
func newestDir(spans []catalog.NameSpan) (catalog.Ino, bool) {
	for _, s := range slices.Backward(spans) {
		if s.Type&unix.S_IFMT == unix.S_IFDIR {
			return s.Ino, true
		}
	}
	return 0, false
}

func (d pathDir) get(ctx context.Context) (catalog.Inode, error) {
	h, err := d.t.history(ctx, d.n)
	if err != nil {
		return catalog.Inode{}, err
	}
	if len(h.spans) == 0 {
		return catalog.Inode{}, catalog.ErrStale // retention has taken it
	}
	// Who may read the directory that the path was, or was in, may read this one.
	guard, isDir := newestDir(h.spans)
	if !isDir {
		above, err := d.t.history(ctx, d.n.parent)
		if err != nil {
			return catalog.Inode{}, err
		}
		guard, _ = newestDir(above.spans)
	}
	from, err := d.t.store.GetAt(ctx, guard, catalog.Head)
	if err != nil {
		return catalog.Inode{}, err
	}
	row := directory(from, d.n.num)
	row.Parent = d.n.root
	if d.n.parent != nil {
		row.Parent = d.n.parent.num
	}
	// The list changes when the file that the path led to last does.
	last := h.spans[len(h.spans)-1]
	switch r, err := d.t.store.GetAt(ctx, last.Ino, catalog.Head); {
	case err == nil:
		row.Mtime = max(r.Mtime, r.Ctime)
		row.Ctime = row.Mtime
	case !errors.Is(err, catalog.ErrStale):
		return row, err
	}
	return row, nil
}

func (d pathDir) lookup(ctx context.Context, name string) (catalog.Inode, error) {
	if name == ".." {
		if d.n.parent == nil {
			return home{t: d.t, dir: d.n.root}.get(ctx)
		}
		return pathDir{t: d.t, n: d.n.parent}.get(ctx)
	}
	h, err := d.t.history(ctx, d.n)
	if err != nil {
		return catalog.Inode{}, err
	}
	if number, ok := versionNumber(name); ok {
		e, err := d.version(ctx, h, number)
		if err == nil && e.Name == name {
			return e.Inode, nil
		}
		if err != nil && !errors.Is(err, catalog.ErrNotExist) {
			return catalog.Inode{}, err
		}
	}
	spans, err := d.t.store.Under(ctx, h.spans, name)
	if err != nil {
		return catalog.Inode{}, err
	}
	if !shows(spans) {
		return catalog.Inode{}, catalog.ErrNotExist
	}
	return d.child(name).get(ctx)
}

func (d pathDir) child(name string) pathDir {
	return pathDir{t: d.t, n: d.t.nodes.child(d.n, d.n.root, name, catalog.Version{})}
}

func (d pathDir) readDir(ctx context.Context, after uint64, limit int) ([]catalog.DirEntry, error) {
	h, err := d.t.history(ctx, d.n)
	if err != nil {
		return nil, err
	}
	var list []catalog.DirEntry
	for after < versionCookie && len(list) < limit {
		part, next, err := d.names(ctx, h, after, limit-len(list))
		if err != nil {
			return nil, err
		}
		list, after = append(list, part...), next
	}
	if len(list) < limit {
		part, err := d.versions(ctx, h, after-versionCookie, limit-len(list))
		if err != nil {
			return nil, err
		}
		list = append(list, part...)
	}
	return list, nil
}

// names lists up to limit of the names that were ever below the path, behind the cookie after, and returns the position to go on from:
// versionCookie when there are no more.
func (d pathDir) names(ctx context.Context, h *history, after uint64, limit int) ([]catalog.DirEntry, uint64, error) {
	var dirs []catalog.Ino
	for _, s := range h.spans {
		if s.Type&unix.S_IFMT == unix.S_IFDIR && !slices.Contains(dirs, s.Ino) {
			dirs = append(dirs, s.Ino)
		}
	}
	var found []catalog.PastName
	for _, dir := range dirs {
		part, err := d.namesOf(ctx, h, dir, after, limit)
		if err != nil {
			return nil, 0, err
		}
		found = append(found, part...)
	}
	if len(found) == 0 {
		return nil, versionCookie, nil
	}
	// Positions differ in all of the store.
	slices.SortFunc(found, func(a, b catalog.PastName) int { return cmp.Compare(a.Cookie, b.Cookie) })
	var list []catalog.DirEntry
	for _, n := range found[:min(len(found), limit)] {
		after = n.Cookie
		row, err := d.child(n.Name).get(ctx)
		if errors.Is(err, catalog.ErrStale) {
			continue
		}
		if err != nil {
			return nil, 0, err
		}
		list = append(list, catalog.DirEntry{Name: n.Name, Cookie: n.Cookie, Inode: row})
	}
	return list, after, nil
}

// namesOf returns up to limit names of one of the directories that are shown, and that no other one has in an earlier place.
func (d pathDir) namesOf(ctx context.Context, h *history, dir catalog.Ino, after uint64, limit int) ([]catalog.PastName, error) {
	var out []catalog.PastName
	for len(out) < limit {
		names, err := d.t.store.DirNames(ctx, dir, after, limit-len(out), false)
		if err != nil || len(names) == 0 {
			return out, err
		}
		for _, n := range names {
			after = n.Cookie
			spans, err := d.t.store.Under(ctx, h.spans, n.Name)
			if err != nil {
				return nil, err
			}
			if !shows(spans) {
				continue
			}
			first, err := d.firstWith(ctx, h, n.Name)
			if err != nil {
				return nil, err
			}
			if first == dir {
				out = append(out, n)
			}
		}
	}
	return out, nil
}

// firstWith returns the first of the directories of the path that ever had the name while the path led there.
func (d pathDir) firstWith(ctx context.Context, h *history, name string) (catalog.Ino, error) {
	for _, s := range h.spans {
		spans, err := d.t.store.Under(ctx, []catalog.NameSpan{s}, name)
		if err != nil {
			return 0, err
		}
		if len(spans) > 0 {
			return s.Ino, nil
		}
	}
	return 0, nil
}

// versions lists the versions of the path behind the number done.
func (d pathDir) versions(ctx context.Context, h *history, done uint64, limit int) ([]catalog.DirEntry, error) {
	var list []catalog.DirEntry
	i := sort.Search(len(h.eras), func(i int) bool { return h.eras[i].count() > done })
	for ; i < len(h.eras) && len(list) < limit; i++ {
		e := &h.eras[i]
		from := max(e.shown, e.first+(max(done, e.before)-e.before))
		for from <= e.last && len(list) < limit {
			part, err := d.t.store.VersionRange(ctx, e.Ino, from, min(e.last, from+uint64(limit-len(list))-1)+1)
			if err != nil {
				return nil, err
			}
			if len(part) == 0 {
				break
			}
			for _, ver := range part {
				from = ver.Num + 1
				entry, err := d.entry(ctx, e, ver)
				if errors.Is(err, catalog.ErrStale) {
					continue
				}
				if err != nil {
					return nil, err
				}
				list = append(list, entry)
			}
		}
	}
	return list, nil
}

// version returns the version of that number.
func (d pathDir) version(ctx context.Context, h *history, number uint64) (catalog.DirEntry, error) {
	i := sort.Search(len(h.eras), func(i int) bool { return h.eras[i].count() >= number })
	if i == len(h.eras) || number == 0 {
		return catalog.DirEntry{}, catalog.ErrNotExist
	}
	e := &h.eras[i]
	num := e.first + (number - e.before - 1)
	if num < e.shown {
		return catalog.DirEntry{}, catalog.ErrNotExist
	}
	part, err := d.t.store.VersionRange(ctx, e.Ino, num, num+1)
	if err != nil {
		return catalog.DirEntry{}, err
	}
	if len(part) == 0 {
		return catalog.DirEntry{}, catalog.ErrNotExist
	}
	entry, err := d.entry(ctx, e, part[0])
	if errors.Is(err, catalog.ErrStale) {
		err = catalog.ErrNotExist
	}
	return entry, err
}

func (d pathDir) entry(ctx context.Context, e *era, ver catalog.Version) (catalog.DirEntry, error) {
	number := e.before + ver.Num - e.first + 1
	name := versionName(number, ver, d.n.name)
	n := d.t.nodes.child(d.n, d.n.root, name, ver)
	row, err := versionFile{t: d.t, n: n}.get(ctx)
	return catalog.DirEntry{Name: name, Cookie: versionCookie + number, Inode: row}, err
}

func (d pathDir) entryValid(name string, found bool) uint64 {
	if _, ok := versionNumber(name); ok && found {
		return validFixed
	}
	return 0
}

// versionFile is one version of a path, as it was when it was made.
type versionFile struct {
	plain
	t *Tree
	n *node
}

func (v versionFile) get(ctx context.Context) (catalog.Inode, error) {
	row, err := v.t.store.GetAt(ctx, v.n.ver.Ino, v.n.ver.Seq)
	if err != nil {
		return row, err
	}
	row.Ino, row.Parent, row.Nlink = v.n.num, v.n.parent.num, 1
	return row, nil
}

func (v versionFile) getXattr(ctx context.Context, name string) ([]byte, error) {
	return v.t.store.GetXattrAt(ctx, v.n.ver.Ino, name, v.n.ver.Seq)
}

func (v versionFile) listXattr(ctx context.Context) ([]string, error) {
	return v.t.store.ListXattrAt(ctx, v.n.ver.Ino, v.n.ver.Seq)
}

func (v versionFile) open(ctx context.Context) (*File, error) {
	h, err := v.t.store.OpenPast(ctx, v.n.ver.Ino, v.n.ver.Seq)
	if err != nil {
		return nil, err
	}
	return &File{past: h}, nil
}

func (v versionFile) attrValid() uint64 { return validForever }

// versionName is the name of a version of a path that is called name: number, time, agent, and the extension, so that programs know the file for
// what it is.
func versionName(number uint64, ver catalog.Version, name string) string {
	agent := sanitize(ver.Actor.Agent, maxAgentPart)
	if agent == "" {
		agent = "unknown"
	}
	ext := path.Ext(name)
	if len(ext) == len(name) || len(ext) > maxExtPart || ext == "." || sanitize(ext, maxExtPart) != ext {
		ext = ""
	}
	return fmt.Sprintf("%04d-%s-%s%s", number, time.Unix(0, ver.Time).UTC().Format(time.RFC3339), agent, ext)
}

// sanitize makes s a part of a file name that is bearable on a terminal: valid UTF-8 of at most max bytes without slashes, spaces and what cannot be
// printed.
func sanitize(s string, max int) string {
	s = strings.Map(func(r rune) rune {
		if r == '/' || r == utf8.RuneError || unicode.IsSpace(r) || !unicode.IsPrint(r) {
			return '_'
		}
		return r
	}, s)
	for len(s) > max {
		_, n := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-n]
	}
	return s
}

// versionNumber reads the number in front of the name of a version.
func versionNumber(name string) (uint64, bool) {
	digits, _, ok := strings.Cut(name, "-")
	if !ok || len(digits) < 4 || len(digits) > 18 || !isDigits(digits) {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 63)
	return n, err == nil
}
