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
	"holdfast/internal/volume"
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

// shownFrom returns the first version of each era that no earlier era of the same inode has shown.
func shownFrom(eras []volume.Era) []uint64 {
	out, shown := make([]uint64, len(eras)), make(map[catalog.Ino]uint64)
	for i, e := range eras {
		out[i] = max(e.First, shown[e.Ino]+1)
		shown[e.Ino] = max(shown[e.Ino], e.Last)
	}
	return out
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
		e, ok, err := d.version(ctx, h, number)
		if err != nil || ok && e.Name == name {
			return e.Inode, err
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
	i := sort.Search(len(h.eras), func(i int) bool { return h.eras[i].Count() > done })
	for ; i < len(h.eras) && len(list) < limit; i++ {
		e := &h.eras[i]
		from := max(h.shown[i], e.First+(max(done, e.Before)-e.Before))
		for from <= e.Last && len(list) < limit {
			part, err := d.t.store.VersionRange(ctx, e.Ino, from, e.Last+1)
			if err != nil {
				return nil, err
			}
			if len(part) == 0 {
				break
			}
			for _, ver := range part {
				from = ver.Num + 1
				entry, ok, err := d.entry(ctx, e, ver)
				if err != nil {
					return nil, err
				}
				if ok {
					list = append(list, entry)
				}
				if len(list) == limit {
					break
				}
			}
		}
	}
	return list, nil
}

// version returns the version of that number. false: there is none.
func (d versionsDir) version(ctx context.Context, h *history, number uint64) (catalog.DirEntry, bool, error) {
	i := sort.Search(len(h.eras), func(i int) bool { return h.eras[i].Count() >= number })
	if i == len(h.eras) || number == 0 {
		return catalog.DirEntry{}, false, nil
	}
	e := &h.eras[i]
	num := e.First + (number - e.Before - 1)
	if num < h.shown[i] {
		return catalog.DirEntry{}, false, nil
	}
	part, err := d.t.store.VersionRange(ctx, e.Ino, num, num+1)
	if err != nil || len(part) == 0 {
		return catalog.DirEntry{}, false, err
	}
	return d.entry(ctx, e, part[0])
}

// entry makes the entry of a version. false: retention has taken it.
func (d versionsDir) entry(ctx context.Context, e *volume.Era, ver catalog.Version) (catalog.DirEntry, bool, error) {
	number := e.Number(ver.Num)
	name := versionName(number, ver, d.n.name)
	row, ok, err := d.t.keep(ctx, d.n, name, ver.Ino, ver.Seq)
	return catalog.DirEntry{Name: name, Cookie: versionCookie + number, Inode: row}, ok, err
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
	return fmt.Sprintf("%04d-%s-%s%s", number, time.Unix(0, ver.Time).UTC().Format(time.RFC3339), agentPart(ver.Actor), extension(name))
}

// agentPart is how an agent is called in a name.
func agentPart(a catalog.Actor) string {
	if agent := sanitize(a.Agent, maxAgentPart); agent != "" {
		return agent
	}
	return "unknown"
}

// extension is that of a path, with its dot, or "" when it has none that can be shown.
func extension(p string) string {
	name := path.Base(p)
	ext := path.Ext(name)
	if len(ext) == len(name) || len(ext) > maxExtPart || ext == "." || sanitize(ext, maxExtPart) != ext {
		return ""
	}
	return ext
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
