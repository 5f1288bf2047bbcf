package snapshots

import (
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

	"holdfast/catalog"
)

const (
	// versionCookie is the position of the versions of a path, by number; names below it, if it ever was a directory, come before.
	versionCookie = 1 << 62
	// A name of a version is no longer than its parts: number, time, agent, extension.
	maxAgentPart = 64
	maxExtPart   = 32
)

// versionsDir is a path below `versions`: a directory of the versions that the path had, and of the names that were ever below it.
type versionsDir struct {
	plain
	t *Tree
	n *node
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
		if !isFile(s.Type) {
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
	return slices.ContainsFunc(spans, func(s catalog.NameSpan) bool { return isDir(s.Type) || isFile(s.Type) })
}

func (d versionsDir) get(ctx context.Context) (catalog.Inode, error) {
	h, err := d.t.history(ctx, d.n)
	if err != nil {
		return catalog.Inode{}, err
	}
	row, err := d.t.pathRow(ctx, d.n, h)
	if err != nil {
		return row, err
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

func (d versionsDir) lookup(ctx context.Context, name string) (catalog.Inode, error) {
	if name == ".." {
		if d.n.parent == nil {
			return home{t: d.t, dir: d.n.root}.get(ctx)
		}
		return versionsDir{t: d.t, n: d.n.parent}.get(ctx)
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

func (d versionsDir) child(name string) versionsDir {
	return versionsDir{t: d.t, n: d.t.nodes.path(d.n, name)}
}

func (d versionsDir) readDir(ctx context.Context, after uint64, limit int) ([]catalog.DirEntry, error) {
	h, err := d.t.history(ctx, d.n)
	if err != nil {
		return nil, err
	}
	var list []catalog.DirEntry
	if after < versionCookie {
		err := d.t.names(ctx, h, after, func(name string, cookie uint64, spans []catalog.NameSpan) (bool, error) {
			if !shows(spans) {
				return true, nil
			}
			row, err := d.child(name).get(ctx)
			switch {
			case err == nil:
				list = append(list, catalog.DirEntry{Name: name, Cookie: cookie, Inode: row})
			case !errors.Is(err, catalog.ErrStale):
				return false, err
			}
			return len(list) < limit, nil
		})
		if err != nil {
			return nil, err
		}
		after = versionCookie
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

// versions lists the versions of the path behind the number done.
func (d versionsDir) versions(ctx context.Context, h *history, done uint64, limit int) ([]catalog.DirEntry, error) {
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
func (d versionsDir) version(ctx context.Context, h *history, number uint64) (catalog.DirEntry, error) {
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

func (d versionsDir) entry(ctx context.Context, e *era, ver catalog.Version) (catalog.DirEntry, error) {
	number := e.before + ver.Num - e.first + 1
	name := versionName(number, ver, d.n.name)
	row, err := keptFile{t: d.t, n: d.t.nodes.file(d.n, name, ver.Ino, ver.Seq)}.get(ctx)
	return catalog.DirEntry{Name: name, Cookie: versionCookie + number, Inode: row}, err
}

func (d versionsDir) entryValid(name string, found bool) uint64 {
	if _, ok := versionNumber(name); ok && found {
		return validFixed
	}
	return 0
}

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
