package snapshots

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/catalog"
	"holdfast/internal/volume"
)

// text is what a file holds; "none" when there is none.
func (p past) text(name string) string {
	p.t.Helper()
	var out strings.Builder
	err := p.vol.ReadPath(p.t.Context(), name, volume.Moment{}, &out)
	if errors.Is(err, catalog.ErrNotExist) {
		return "none"
	}
	p.ok(err)
	return out.String()
}

func (p past) want(texts ...string) {
	p.t.Helper()
	for i := 0; i < len(texts); i += 2 {
		if got := p.text(texts[i]); got != texts[i+1] {
			p.t.Errorf("%s holds %q, want %q", texts[i], got, texts[i+1])
		}
	}
}

func leftPaths(r Result) (list []string) {
	for _, s := range r.Steps {
		if s.Action == StepLeft {
			list = append(list, s.Path+" by "+s.Agent)
		}
	}
	slices.Sort(list)
	return list
}

func (p past) left(r Result, want ...string) {
	p.t.Helper()
	if got := leftPaths(r); !slices.Equal(got, want) {
		p.t.Errorf("left %q, want %q", got, want)
	}
}

// TestUndoLeavesTheWorkOfOthers: what another agent has built on stays, unless forced.
func TestUndoLeavesTheWorkOfOthers(t *testing.T) {
	p := newPast(t)
	p.mkdir("b", "/d")
	for _, f := range []string{"/d/wrote", "/d/renamed", "/d/gone", "/d/again", "/d/twice"} {
		p.write("b", f, "old")
	}
	start := p.since()
	p.write("a", "/d/wrote", "a")
	p.write("b", "/d/wrote", "b on a")
	p.rename("a", "/d/renamed", "/d/moved")
	p.write("b", "/d/moved", "b on moved")
	p.remove("a", "/d/gone")
	p.remove("a", "/d/again")
	p.write("b", "/d/again", "b anew")
	p.write("a", "/d/twice", "a1")
	p.write("b", "/d/twice", "b1")
	p.write("a", "/d/twice", "a2")
	p.mkdir("a", "/mine")
	p.write("a", "/mine/a", "a")
	p.write("b", "/mine/b", "b")
	p.write("a", "/new", "a")

	u := Undo{Agent: "a", Since: start}
	before := p.state("/", catalog.Head, true)
	dry := u
	dry.DryRun = true
	p.undo(dry)
	p.same("after a dry run", p.state("/", catalog.Head, true), before)
	second := p.since()
	r := p.undo(u)
	p.left(r, "/d/again by b", "/d/moved by b", "/d/renamed by b", "/d/wrote by b", "/mine by b")
	p.want("/d/wrote", "b on a", "/d/moved", "b on moved", "/d/renamed", "none", "/d/gone", "old", "/d/again", "b anew",
		"/d/twice", "b1", "/mine/a", "none", "/mine/b", "b", "/new", "none")

	p.undo(Undo{Agent: "restorer", Since: second})
	p.same("the undo undone", p.state("/", catalog.Head, true), before)
	u.Force = true
	p.undo(u)
	p.want("/d/wrote", "old", "/d/renamed", "b on moved", "/d/moved", "none", "/d/gone", "old", "/d/again", "old", "/d/twice", "old", "/mine/a", "none",
		"/new", "none")
}

// TestUndoIntoADirectoryMadeAnew: files of a directory that was removed come back beside what others have put into a new one of that name.
// TestUndoInADirectoryThatIsGone: what cannot come back, since another agent has removed the directory that it was in, is reported under the path that it had.
func TestUndoInADirectoryThatIsGone(t *testing.T) {
	p := newPast(t)
	p.mkdir("b", "/top")
	p.mkdir("b", "/top/d")
	p.write("b", "/top/d/gone", "old")
	p.write("b", "/top/d/kept", "old")
	since := p.since()
	p.remove("evil", "/top/d/gone")
	p.remove("c", "/top/d")
	p.mkdir("c", "/top/other")
	for _, path := range []string{"/", "/top", "/top/d"} {
		p.left(p.undo(Undo{Agent: "evil", Since: since, Path: path}), "/top/d/gone by ")
	}
	p.want("/top/d/gone", "none")
}

func TestUndoIntoADirectoryMadeAnew(t *testing.T) {
	p := newPast(t)
	p.mkdir("b", "/d")
	p.mkdir("b", "/d/sub")
	p.write("b", "/d/one", "1")
	p.write("b", "/d/sub/two", "2")
	p.write("b", "/d/both", "old")
	start := p.since()
	p.remove("a", "/d")
	p.mkdir("b", "/d")
	p.write("b", "/d/both", "new")
	r := p.undo(Undo{Agent: "a", Since: start})
	p.want("/d/one", "1", "/d/sub/two", "2", "/d/both", "new")
	p.left(r, "/d by b", "/d/both by ")
}

// TestUndoOfAPath takes back what anybody did there, and nothing else; what was moved out of the path comes back.
func TestUndoOfAPath(t *testing.T) {
	p := newPast(t)
	p.mkdir("b", "/d")
	p.mkdir("b", "/e")
	p.write("b", "/d/x", "x")
	p.write("b", "/d/y", "y")
	start := p.since()
	p.rename("a", "/d/x", "/e/x")
	p.write("b", "/d/y", "new")
	p.write("a", "/e/z", "z")
	p.left(p.undo(Undo{Since: start, Path: "/d"}))
	p.want("/d/x", "x", "/d/y", "y", "/e/x", "none", "/e/z", "z")
}

// TestRestoreOfOneFile: what an open handle has staged is a version, and what came from elsewhere stays.
func TestRestoreOfOneFile(t *testing.T) {
	p := newPast(t)
	ctx := t.Context()
	p.mkdir("a", "/d")
	p.write("a", "/d/f", "one")
	at := p.now()
	row, err := p.vol.Resolve(ctx, "/d/f")
	p.ok(err)
	h, err := p.vol.OpenFile(ctx, agent("b"), row.Ino, volume.OpenFlags{Read: true, Write: true})
	p.ok(err)
	_, err = h.WriteAt(ctx, []byte("staged"), 0, volume.WriteFlags{})
	p.ok(err)
	p.restore(Restore{Path: "/d/f", At: at})
	p.want("/d/f", "one")
	h.Close(ctx)
	p.want("/d/f", "one")
	found := false
	p.ok(p.vol.Log(ctx, "/d/f", func(e volume.LogEntry) error {
		found = found || e.Size == int64(len("staged")) && e.Agent == "b"
		return nil
	}))
	if !found {
		t.Error("what an open file had staged when its place was taken is no version")
	}
	// What came from elsewhere stays.
	p.mkdir("a", "/e")
	p.write("a", "/e/g", "g")
	at = p.now()
	p.rename("a", "/e", "/d/e")
	r := p.restore(Restore{Path: "/d", At: at})
	p.left(r, "/d/e by ")
	p.want("/d/e/g", "g")
}

// TestRestoreRefuses: each with an error that says what to do, and nothing changed.
func TestRestoreRefuses(t *testing.T) {
	p := newPast(t)
	p.mkdir("a", "/d")
	p.write("a", "/d/f", "one")
	at := p.now()
	p.mkdir("a", "/later")
	p.remove("a", "/d")
	before := p.now()
	for _, c := range []struct {
		r    Restore
		want error
	}{
		{Restore{Path: "/d/f", At: at}, catalog.ErrNotExist}, // its directory is gone
		{Restore{Path: "/later", At: at}, catalog.ErrNotExist},
		{Restore{Path: "/never", At: at}, catalog.ErrNotExist},
		{Restore{Path: "/d", At: at, To: "/none"}, catalog.ErrNotExist},
		{Restore{Path: "/", At: at, To: "/later"}, catalog.ErrInvalid},
		{Restore{Path: "/d/f/x", At: at}, catalog.ErrNotDir},
	} {
		if _, err := c.r.Run(t.Context(), p.vol, agent("a")); !errors.Is(err, c.want) {
			t.Errorf("%+v: %v, want %v", c.r, err, c.want)
		}
	}
	if now := p.now(); now != before {
		t.Errorf("%d records were written", now-before)
	}
	p.restore(Restore{Path: "/d", At: at, To: "/later"})
	if _, err := (Restore{Path: "/d", At: at, To: "/later"}).Run(t.Context(), p.vol, agent("a")); !errors.Is(err, catalog.ErrExist) {
		t.Errorf("a second copy in the same place: %v", err)
	}
	p.want("/later/d/f", "one", "/d/f", "none")
}

// TestDiff tells the kinds apart, whether it knows from the journal what was touched or not.
func TestDiff(t *testing.T) {
	p := newPast(t)
	ctx := t.Context()
	p.mkdir("a", "/d")
	p.mkdir("a", "/moved")
	for _, f := range []string{"/d/keep", "/d/content", "/d/mode", "/d/gone", "/d/old", "/moved/in", "/d/replaced"} {
		p.write("a", f, f)
	}
	a := p.now()
	p.write("a", "/d/content", "new")
	row, err := p.vol.Resolve(ctx, "/d/mode")
	p.ok(err)
	mode, uid := uint32(0o600), uint32(3)
	_, err = p.vol.SetAttr(ctx, agent("a"), row.Ino, volume.SetAttr{Mode: &mode, UID: &uid})
	p.ok(err)
	p.ok(p.vol.SetXattr(ctx, agent("a"), row.Ino, "user.x", []byte("1"), 0))
	p.remove("a", "/d/gone")
	p.rename("a", "/d/old", "/d/new")
	p.rename("a", "/moved", "/d/moved")
	p.write("a", "/d/moved/in", "changed")
	p.mkdir("a", "/d/fresh")
	p.write("a", "/d/fresh/f", "f")
	p.write("a", "/tmp", "atomic")
	p.rename("a", "/tmp", "/d/replaced")
	want := []string{
		"added /d/fresh", "added /d/fresh/f", "changed /d/content [content times]", "changed /d/mode [mode owner xattrs]",
		"changed /d/moved/in [content times]", "changed /d/replaced [content times]", "removed /d/gone",
		"renamed /d/moved from /moved", "renamed /d/new from /d/old",
	}
	diff := func(path string, a, b catalog.Seq) []string {
		var got []string
		p.ok(Diff(ctx, p.vol, a, b, path, func(d Difference) error {
			text := d.Kind + " " + d.Path
			if d.From != "" {
				text += " from " + d.From
			}
			if len(d.Fields) > 0 {
				text += fmt.Sprint(" ", d.Fields)
			}
			got = append(got, text)
			return nil
		}))
		slices.Sort(got)
		return got
	}
	b := p.now()
	p.same("by the journal", diff("/", a, b), want)
	p.same("below a path", diff("/d", a, b), want)
	p.same("of nothing", diff("/", b, b), nil)
	p.same("of one file", diff("/d/content", a, b), []string{"changed /d/content [content times]"})
	if back := diff("/", b, a); len(back) != len(want) {
		t.Errorf("backwards: %q", back)
	}
	// With a hard link the journal does not know all names.
	row, err = p.vol.Resolve(ctx, "/d/keep")
	p.ok(err)
	_, err = p.vol.Link(ctx, agent("a"), row.Ino, catalog.Root, "link")
	p.ok(err)
	want = append([]string{"added /link"}, want...)
	slices.Sort(want)
	p.same("by the trees", diff("/", a, p.now()), want)
	if err := Diff(ctx, p.vol, a, b, "/never", func(Difference) error { return nil }); !errors.Is(err, catalog.ErrNotExist) {
		t.Errorf("a path that never was: %v", err)
	}
	stop := errors.New("stop")
	if err := Diff(ctx, p.vol, a, b, "/", func(Difference) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("the caller's error: %v", err)
	}
	if row, err := p.vol.Resolve(ctx, "/d"); err != nil || row.Mode&unix.S_IFMT != unix.S_IFDIR {
		t.Error(err)
	}
}

// TestBesideWhatIsThinned: what retention has thinned away in one directory does not stand in the way of undo and diff elsewhere, and is reported, never taken
// for empty.
func TestBesideWhatIsThinned(t *testing.T) {
	p := newPast(t)
	ctx := t.Context()
	p.mkdir("b", "/d")
	p.mkdir("b", "/beats")
	p.write("b", "/d/plan", "plan")
	p.write("b", "/beats/now", "0")
	none := volume.Span(0)
	policy := volume.Retention{Path: "/beats", KeepAll: &none, Hourly: &none, Daily: &none, Weekly: &none}
	if _, err := p.vol.SetRetention(ctx, policy, volume.RetentionChange{}); err != nil {
		t.Fatal(err)
	}
	from := p.now()
	start := p.since()
	for i := range 5 { // as programs do that replace a file
		p.write("a", "/beats/.tmp", fmt.Sprint(i))
		p.rename("a", "/beats/.tmp", "/beats/now")
	}
	p.write("a", "/d/plan", "junk")
	p.write("a", "/d/mess", "x")
	p.write("a", "/beats/last", "z")
	if rep, err := p.vol.Prune(ctx, false); err != nil || rep.Versions() == 0 {
		t.Fatalf("%+v, %v", rep, err)
	}
	to := p.now()
	var changed []string
	p.ok(Diff(ctx, p.vol, from, to, "/d", func(d Difference) error {
		changed = append(changed, d.Kind+d.Path)
		return nil
	}))
	if slices.Sort(changed); !slices.Equal(changed, []string{DiffAdded + "/d/mess", DiffChanged + "/d/plan"}) {
		t.Errorf("diff beside what is thinned: %q", changed)
	}
	for _, where := range []string{"/", "/beats"} {
		if err := Diff(ctx, p.vol, from, to, where, func(Difference) error { return nil }); !errors.Is(err, catalog.ErrThinned) {
			t.Errorf("diff of %s: %v", where, err)
		}
	}
	p.left(p.undo(Undo{Agent: "a", Since: start, Path: "/d", DryRun: true}))
	r := p.undo(Undo{Agent: "a", Since: start})
	p.left(r, "/beats by ", "/beats/last by ", "/beats/now by ")
	p.want("/d/plan", "plan", "/d/mess", "none", "/beats/now", "4", "/beats/last", "z")
}

// TestOpenFileIsPutBack: an agent has files open that another one puts back to what they were. What it writes from then on is kept beside the restored files; what it
// had written before is in their history, and nothing is kept of who has not written.
func TestOpenFileIsPutBack(t *testing.T) {
	p := newPast(t)
	ctx := t.Context()
	large := strings.Repeat("0123456789abcdef", 20_000)
	p.mkdir("b", "/d")
	for _, f := range []string{"/d/log", "/d/large", "/d/idle"} {
		p.write("b", f, "old")
	}
	at, since := p.now(), p.since()
	for _, f := range []string{"/d/log", "/d/large", "/d/idle"} {
		p.write("evil", f, "spoiled")
	}
	handles := make(map[string]*volume.Handle)
	for _, f := range []string{"/d/log", "/d/large", "/d/idle"} {
		row, err := p.vol.Resolve(ctx, f)
		p.ok(err)
		h, err := p.vol.OpenFile(ctx, agent("writer"), row.Ino, volume.OpenFlags{Read: true, Write: true})
		p.ok(err)
		handles[f] = h
	}
	add := func(f, text string, off int64) {
		_, err := handles[f].WriteAt(ctx, []byte(text), off, volume.WriteFlags{})
		p.ok(err)
		p.ok(handles[f].Flush(ctx)) // a duplicate of the descriptor was closed
	}
	// A dry run, and one that fails, put nothing in its place.
	_, err := Restore{Path: "/d", At: at, DryRun: true}.Run(ctx, p.vol, agent("ann"))
	p.ok(err)
	p.undo(Undo{Agent: "evil", Since: since})
	add("/d/log", " one", 7)
	add("/d/log", " two", 11)
	p.restore(Restore{Path: "/d", At: at}) // nothing is to be done any more
	add("/d/large", large, 7)
	p.want("/d/log", "old", "/d/large", "old", "/d/idle", "old")
	for _, h := range handles {
		h.Close(ctx)
	}
	p.want("/d/log", "old", "/d/large", "old", "/d/idle", "old")
	list, err := p.vol.Conflicts(ctx, 0, 100)
	p.ok(err)
	got := make(map[string]catalog.Conflict)
	for _, x := range list {
		got[x.Path] = x
	}
	if len(list) != 2 || len(got) != 2 {
		t.Fatalf("conflicts: %+v", list)
	}
	for f, want := range map[string]string{"/d/log": "spoiled one two", "/d/large": "spoiled" + large} {
		x := got[f]
		now, err := p.vol.Resolve(ctx, f)
		p.ok(err)
		if x.Ino != now.Ino || x.Side == 0 || x.Won != 0 || x.LostBy.Agent != "writer" || x.WonBy.Agent == "" {
			t.Errorf("%s: %+v", f, x)
		}
		h, err := p.vol.OpenPast(ctx, x.Side, x.Seq)
		p.ok(err)
		buf := make([]byte, len(want)+10)
		n, err := h.ReadAt(ctx, buf, 0)
		p.ok(err)
		h.Close()
		if string(buf[:n]) != want {
			t.Errorf("%s: %d bytes are kept, want %d", f, n, len(want))
		}
	}
}
