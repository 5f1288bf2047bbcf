package snapshots

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/catalog"
	"holdfast/internal/volume"
)

// past is a store on which restores and undos are tried.
type past struct {
	t   *testing.T
	vol *volume.Volume
}

func newPast(t *testing.T) past {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "store")
	if _, err := volume.Init(t.Context(), dir, volume.InitOptions{}); err != nil {
		t.Fatal(err)
	}
	vol, err := volume.Open(t.Context(), volume.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := vol.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return past{t, vol}
}

func agent(name string) catalog.Actor { return catalog.Actor{Agent: name, Program: "test", PID: 7} }

func (p past) ok(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p past) now() catalog.Seq {
	p.t.Helper()
	p.ok(p.vol.Sync(p.t.Context())) // times that wait for a record get it
	seq, err := p.vol.Newest(p.t.Context())
	p.ok(err)
	return seq
}

// since is a time that tells what has happened so far from what follows.
func (p past) since() time.Time {
	p.t.Helper()
	at, err := p.vol.TimeOf(p.t.Context(), p.now())
	p.ok(err)
	return at
}

func (p past) write(who, name, text string) {
	p.t.Helper()
	row, err := p.vol.Resolve(p.t.Context(), name)
	var h *volume.Handle
	if errors.Is(err, catalog.ErrNotExist) {
		dir, base := splitPath(name)
		parent, err := p.vol.Resolve(p.t.Context(), dir)
		p.ok(err)
		_, h, err = p.vol.CreateFile(p.t.Context(), agent(who), parent.Ino, base, catalog.NewInode{Mode: unix.S_IFREG | 0o644}, volume.OpenFlags{Write: true})
		p.ok(err)
	} else {
		p.ok(err)
		h, err = p.vol.OpenFile(p.t.Context(), agent(who), row.Ino, volume.OpenFlags{Write: true, Truncate: true})
		p.ok(err)
	}
	if text != "" {
		_, err = h.WriteAt(p.t.Context(), []byte(text), 0, volume.WriteFlags{})
		p.ok(err)
	}
	p.ok(h.Flush(p.t.Context()))
	h.Close(p.t.Context())
}

func (p past) mkdir(who, name string) {
	p.t.Helper()
	dir, base := splitPath(name)
	parent, err := p.vol.Resolve(p.t.Context(), dir)
	p.ok(err)
	_, err = p.vol.Create(p.t.Context(), agent(who), parent.Ino, base, catalog.NewInode{Mode: unix.S_IFDIR | 0o755})
	p.ok(err)
}

func (p past) remove(who, name string) {
	p.t.Helper()
	p.ok(p.vol.RemovePath(p.t.Context(), agent(who), name, true))
}

func (p past) rename(who, from, to string) {
	p.t.Helper()
	p.ok(p.tryRename(who, from, to))
}

func (p past) tryRename(who, from, to string) error {
	d1, n1 := splitPath(from)
	d2, n2 := splitPath(to)
	r1, err := p.vol.Resolve(p.t.Context(), d1)
	if err != nil {
		return err
	}
	r2, err := p.vol.Resolve(p.t.Context(), d2)
	if err != nil {
		return err
	}
	_, err = p.vol.Rename(p.t.Context(), agent(who), r1.Ino, n1, r2.Ino, n2, 0)
	return err
}

// state describes all that is below a path after a record, one line for each name.
func (p past) state(top string, at catalog.Seq, times bool) []string {
	p.t.Helper()
	ctx := p.t.Context()
	row, err := p.vol.ResolveAt(ctx, top, at)
	if errors.Is(err, catalog.ErrNotExist) {
		return nil
	}
	p.ok(err)
	links := make(map[catalog.Ino]string)
	var lines []string
	line := func(path string, row catalog.Inode) error {
		xattrs, err := xattrsAt(ctx, p.vol, row.Ino, at)
		p.ok(err)
		text := fmt.Sprintf("%s %o %d:%d %q %q", path, row.Mode, row.UID, row.GID, row.Target, xattrs)
		if times {
			text += fmt.Sprint(" ", row.Mtime)
		}
		if row.Mode&unix.S_IFMT == unix.S_IFREG {
			h, err := p.vol.OpenPast(ctx, row.Ino, at)
			p.ok(err)
			data := make([]byte, row.Size)
			if _, err := h.ReadAt(ctx, data, 0); err != nil {
				p.t.Fatal(path, err)
			}
			text += fmt.Sprintf(" %d %x", row.Size, sha256.Sum256(data))
		}
		if !isDir(row.Mode) {
			if links[row.Ino] == "" {
				links[row.Ino] = path
			}
			text += " = " + links[row.Ino]
		}
		lines = append(lines, text)
		return nil
	}
	p.ok(line(top, row))
	var walk func(catalog.Ino, string)
	walk = func(dir catalog.Ino, path string) { // sorted, so that of the names of a file the same one is the first
		var list []catalog.DirEntry
		p.ok(walkDir(ctx, p.vol, dir, at, func(e catalog.DirEntry) error {
			list = append(list, e)
			return nil
		}))
		slices.SortFunc(list, func(a, b catalog.DirEntry) int { return strings.Compare(a.Name, b.Name) })
		for _, e := range list {
			p.ok(line(path+"/"+e.Name, e.Inode))
			if isDir(e.Inode.Mode) {
				walk(e.Inode.Ino, path+"/"+e.Name)
			}
		}
	}
	if isDir(row.Mode) {
		walk(row.Ino, strings.TrimSuffix(top, "/"))
	}
	return lines
}

func (p past) same(what string, got, want []string) {
	p.t.Helper()
	for i := range max(len(got), len(want)) {
		g, w := "nothing", "nothing"
		if i < len(got) {
			g = got[i]
		}
		if i < len(want) {
			w = want[i]
		}
		if g != w {
			p.t.Fatalf("%s:\n got %s\nwant %s", what, g, w)
		}
	}
}

func (p past) restore(r Restore) Result {
	p.t.Helper()
	res, err := r.Run(p.t.Context(), p.vol, agent("restorer"))
	p.ok(err)
	return res
}

func (p past) undo(u Undo) Result {
	p.t.Helper()
	res, err := u.Run(p.t.Context(), p.vol, agent("restorer"))
	p.ok(err)
	return res
}

// randomly does n random things below top.
func (p past) randomly(r *rand.Rand, who, top string, n int) {
	p.t.Helper()
	ctx := p.t.Context()
	for range n {
		var files, dirs []string
		root, err := p.vol.Resolve(ctx, top)
		p.ok(err)
		dirs = append(dirs, top)
		p.ok(walkNow(ctx, p.vol, root.Ino, top, func(_ place, path string, row catalog.Inode) error {
			if isDir(row.Mode) {
				dirs = append(dirs, path)
			} else {
				files = append(files, path)
			}
			return nil
		}))
		fresh := dirs[r.IntN(len(dirs))] + "/" + fmt.Sprintf("n%d", r.IntN(12))
		if _, err := p.vol.Resolve(ctx, fresh); err == nil {
			continue
		}
		any := append(slices.Clone(files), dirs[1:]...)
		pick := func(list []string) string { return list[r.IntN(len(list))] }
		switch op := r.IntN(11); {
		case op < 2:
			p.mkdir(who, fresh)
		case op < 4 || len(files) == 0:
			p.write(who, fresh, strings.Repeat(fmt.Sprint(r.Uint32()), 1+r.IntN(900)))
		case op == 4:
			f := pick(files)
			if row, err := p.vol.Resolve(ctx, f); err == nil && row.Mode&unix.S_IFMT == unix.S_IFREG {
				p.write(who, f, strings.Repeat(fmt.Sprint(r.Uint32()), r.IntN(400)))
			}
		case op == 5:
			p.remove(who, pick(any))
		case op < 8:
			if err := p.tryRename(who, pick(any), fresh); err != nil && !errors.Is(err, catalog.ErrInvalid) {
				p.t.Fatal(err)
			}
		case op == 8:
			row, err := p.vol.Resolve(ctx, pick(files))
			p.ok(err)
			dir, base := splitPath(fresh)
			parent, err := p.vol.Resolve(ctx, dir)
			p.ok(err)
			_, err = p.vol.Link(ctx, agent(who), row.Ino, parent.Ino, base)
			p.ok(err)
		case op == 9:
			row, err := p.vol.Resolve(ctx, pick(any))
			p.ok(err)
			p.ok(p.vol.SetXattr(ctx, agent(who), row.Ino, "user.x", []byte(fmt.Sprint(r.Uint32())), 0))
		default:
			row, err := p.vol.Resolve(ctx, pick(any))
			p.ok(err)
			mode, uid := uint32(r.IntN(0o1000)), r.Uint32N(9)
			_, err = p.vol.SetAttr(ctx, agent(who), row.Ino, volume.SetAttr{Mode: &mode, UID: &uid})
			p.ok(err)
		}
	}
}

func seededRand(t *testing.T) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// TestRestoreModel restores a tree to random moments: afterwards it is what it was, and after restoring back, what it was before.
func TestRestoreModel(t *testing.T) {
	r := seededRand(t)
	p := newPast(t)
	p.mkdir("a", "/top")
	moments := []catalog.Seq{p.now()}
	for range 12 {
		p.randomly(r, "a", "/top", 12)
		moments = append(moments, p.now())
		at := moments[r.IntN(len(moments))]
		want, before, was := p.state("/top", at, true), p.state("/top", catalog.Head, true), p.now()
		dry := p.restore(Restore{Path: "/top", At: at, DryRun: true})
		p.same("after a dry run", p.state("/top", catalog.Head, true), before)
		res := p.restore(Restore{Path: "/top", At: at})
		if len(dry.Steps) != len(res.Steps) {
			t.Fatalf("the dry run told of %d steps, the restore of %d", len(dry.Steps), len(res.Steps))
		}
		p.same(fmt.Sprintf("restored to %d", at), p.state("/top", catalog.Head, true), want)
		if err := Diff(t.Context(), p.vol, at, p.now(), "/top", func(d Difference) error { return fmt.Errorf("%+v", d) }); err != nil {
			t.Fatal("diff after a restore:", err)
		}
		if r.IntN(2) == 0 {
			p.restore(Restore{Path: "/top", At: was})
			p.same("restored back", p.state("/top", catalog.Head, true), before)
		}
	}
}

// TestUndoModel lets an agent run amok on a tree, undoes it, and undoes that.
func TestUndoModel(t *testing.T) {
	r := seededRand(t)
	p := newPast(t)
	p.mkdir("good", "/top")
	p.mkdir("good", "/other")
	for range 12 {
		p.randomly(r, "good", "/top", 8)
		p.randomly(r, "good", "/other", 3)
		start := p.since()
		want := p.state("/top", catalog.Head, true)
		p.randomly(r, "amok", "/top", 1+r.IntN(12))
		p.randomly(r, "good", "/other", 3)
		wild, others := p.state("/top", catalog.Head, true), p.state("/other", catalog.Head, true)
		u := Undo{Agent: "amok", Since: start}
		if r.IntN(2) == 0 {
			u = Undo{Path: "/top", Since: start}
		}
		second := p.since()
		res := p.undo(u)
		for _, s := range res.Steps {
			if s.Action == StepLeft {
				t.Fatalf("left: %+v", s)
			}
		}
		p.same("undone", p.state("/top", catalog.Head, true), want)
		p.same("the work of others", p.state("/other", catalog.Head, true), others)
		p.undo(Undo{Agent: "restorer", Since: second})
		p.same("the undo undone", p.state("/top", catalog.Head, true), wild)
	}
}
