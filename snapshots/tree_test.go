package snapshots

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/catalog"
	"holdfast/internal/volume"
)

// put writes a file as an agent, in place when it is there.
func (w *twin) put(agent, p, text string) catalog.Inode {
	w.t.Helper()
	who := catalog.Actor{Agent: agent, Program: "test", PID: 1}
	dir, err := w.vol.Resolve(w.ctx, path.Dir(p))
	w.ok(err)
	row, err := w.vol.Lookup(w.ctx, dir.Ino, path.Base(p))
	if errors.Is(err, catalog.ErrNotExist) {
		row, err = w.vol.Create(w.ctx, who, dir.Ino, path.Base(p), catalog.NewInode{Mode: unix.S_IFREG | 0o644})
	}
	w.ok(err)
	h, err := w.vol.OpenFile(w.ctx, who, row.Ino, volume.OpenFlags{Write: true, Truncate: true})
	w.ok(err)
	_, err = h.WriteAt(w.ctx, []byte(text), 0, volume.WriteFlags{})
	w.ok(err)
	w.ok(h.Flush(w.ctx))
	h.Close(w.ctx)
	return row
}

func (w *twin) mkdir(p string) catalog.Inode {
	w.t.Helper()
	dir, err := w.vol.Resolve(w.ctx, path.Dir(p))
	w.ok(err)
	row, err := w.vol.Create(w.ctx, w.who(), dir.Ino, path.Base(p), catalog.NewInode{Mode: unix.S_IFDIR | 0o750, UID: 5})
	w.ok(err)
	return row
}

func (w *twin) mv(from, to string) {
	w.t.Helper()
	a, err := w.vol.Resolve(w.ctx, path.Dir(from))
	w.ok(err)
	b, err := w.vol.Resolve(w.ctx, path.Dir(to))
	w.ok(err)
	_, err = w.vol.Rename(w.ctx, w.who(), a.Ino, path.Base(from), b.Ino, path.Base(to), 0)
	w.ok(err)
}

func (w *twin) rm(p string) {
	w.t.Helper()
	w.ok(w.vol.RemovePath(w.ctx, w.who(), p, true))
}

func (w *twin) newest() catalog.Seq {
	w.t.Helper()
	seq, err := w.vol.Newest(w.ctx)
	w.ok(err)
	return seq
}

// at follows a path below the .snapshots of the root.
func (w *twin) at(p string) catalog.Inode {
	w.t.Helper()
	row, err := w.lookup(catalog.Root, strings.Split(p, "/")...)
	if err != nil {
		w.t.Fatalf("%s: %v", p, err)
	}
	return row
}

// texts reads the files of a directory below the .snapshots of the root, in order of name, without the time in the name of a version.
func (w *twin) texts(p string) string {
	w.t.Helper()
	var out []string
	entries := w.list(w.at(p).Ino)
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		row := w.at(p + "/" + name)
		if isDir(row.Mode) {
			out = append(out, name+"/")
			continue
		}
		number, agent := name[:4], name[len("0001-2006-01-02T15:04:05Z-"):]
		out = append(out, fmt.Sprintf("%s %s %s", number, agent, w.content(row.Ino)))
	}
	return strings.Join(out, "; ")
}

func (w *twin) missing(p string) {
	w.t.Helper()
	if _, err := w.lookup(catalog.Root, strings.Split(p, "/")...); !errors.Is(err, catalog.ErrNotExist) {
		w.t.Errorf("%s: %v, want ErrNotExist", p, err)
	}
}

func (w *twin) wantTexts(p, want string) {
	w.t.Helper()
	if got := w.texts(p); got != want {
		w.t.Errorf("%s holds\n%s, want\n%s", p, got, want)
	}
}

func TestVersionsOfPaths(t *testing.T) {
	w := newTwin(t, 1)
	w.mkdir("/w")
	w.put("agent-1", "/w/plan.md", "one")
	w.put("agent-2", "/w/plan.md", "two")
	w.wantTexts("versions/w/plan.md", "0001 agent-1.md one; 0002 agent-2.md two")

	// A name that goes and comes back shows nothing twice, and numbers as the log does.
	w.mv("/w/plan.md", "/w/old.md")
	w.put("agent-1", "/w/plan.md", "three")
	w.rm("/w/plan.md")
	w.mv("/w/old.md", "/w/plan.md")
	w.put("a b/c\n", "/w/plan.md", "five")
	w.wantTexts("versions/w/plan.md", "0001 agent-1.md one; 0002 agent-2.md two; 0003 agent-1.md three; 0005 a_b_c_.md five")
	w.wantTexts("versions/w/old.md", "0001 agent-2.md two")

	// A directory that is renamed takes the history of its files along, and leaves at its old name what they were there.
	w.mv("/w", "/v")
	w.put("agent-1", "/v/plan.md", "six")
	w.wantTexts("versions/w/plan.md", "0001 agent-1.md one; 0002 agent-2.md two; 0003 agent-1.md three; 0005 a_b_c_.md five")
	w.wantTexts("versions/v/plan.md", "0001 agent-1.md one; 0002 agent-2.md two; 0003 agent-1.md three; 0005 a_b_c_.md five; 0006 agent-1.md six")

	// The file becomes a directory, and both are there.
	w.rm("/v/plan.md")
	w.mkdir("/v/plan.md")
	w.put("agent-1", "/v/plan.md/part", "p")
	if got := w.texts("versions/v/plan.md"); !strings.HasSuffix(got, "0006 agent-1.md six; part/") {
		t.Errorf("a path that was both: %s", got)
	}
	w.wantTexts("versions/v/plan.md/part", "0001 agent-1 p")
	// Deleted with its directory, and made anew.
	w.rm("/v")
	w.wantTexts("versions/v/plan.md/part", "0001 agent-1 p")
	w.mkdir("/v")
	w.mkdir("/v/plan.md")
	w.put("agent-2", "/v/plan.md/part", "q")
	w.wantTexts("versions/v/plan.md/part", "0001 agent-1 p; 0002 agent-2 q")
	// The directory that had come here from another name is gone: this path's history begins when it came.
	w.wantTexts("versions/v/plan.md", "0001 a_b_c_.md five; 0002 agent-1.md six; part/")

	for _, p := range []string{"versions/v/never", "versions/v/plan.md/part/0003-x", "versions/v/plan.md/part/0001-x", "versions/v/plan.md/part/0000-x", "versions/v/plan.md/part/99999999999999999999-x"} {
		w.missing(p)
	}
	// A directory's own versions start at it.
	dir, err := w.vol.Resolve(w.ctx, "/v/plan.md")
	w.ok(err)
	row, err := w.lookup(dir.Ino, versionsName, "part")
	w.ok(err)
	if got := slices.Sorted(maps.Keys(w.list(row.Ino))); len(got) != 1 || !strings.HasSuffix(got[0], "agent-2") {
		t.Errorf("the directory's own versions of part: %q", got)
	}
}

func TestVersionName(t *testing.T) {
	for name, want := range map[string]string{
		"plan.md": ".md", "a.tar.gz": ".gz", ".bashrc": "", "noext": "", "dot.": "", "x.\x01": "", "x.a b": "", "x." + strings.Repeat("e", 40): "", "ü.ö": ".ö",
	} {
		got := versionName(7, catalog.Version{Time: 1e18, Actor: catalog.Actor{Agent: "agent-3"}}, name)
		if got != "0007-2001-09-09T01:46:40Z-agent-3"+want {
			t.Errorf("%q: %q", name, got)
		}
	}
	long := versionName(1<<62, catalog.Version{Actor: catalog.Actor{Agent: strings.Repeat("ä/", 200)}}, "x."+strings.Repeat("e", 31))
	if len(long) > catalog.MaxName || strings.Contains(long, "/") {
		t.Errorf("%d bytes: %q", len(long), long)
	}
	if got := versionName(12345, catalog.Version{Actor: catalog.Actor{Agent: "\x00"}}, "f"); got != "12345-1970-01-01T00:00:00Z-_" {
		t.Errorf("%q", got)
	}
	if got := versionName(1, catalog.Version{}, "f"); !strings.HasSuffix(got, "-unknown") {
		t.Errorf("%q", got)
	}
}

func FuzzVersionName(f *testing.F) {
	f.Add("agent/3\n", "plan.md", uint64(7))
	f.Add("", "..", uint64(1<<63))
	f.Add("\xff\xfe", strings.Repeat("x.", 127), uint64(0))
	f.Fuzz(func(t *testing.T, agent, name string, number uint64) {
		got := versionName(number, catalog.Version{Actor: catalog.Actor{Agent: agent}}, name)
		if len(got) > catalog.MaxName || strings.ContainsAny(got, "/\x00\n ") || got == "" {
			t.Fatalf("%q", got)
		}
		if n, ok := versionNumber(got); number > 0 && number < 1e17 && (!ok || n != number) {
			t.Fatalf("%q is read as %d, %v", got, n, ok)
		}
	})
}

func TestDeleted(t *testing.T) {
	w := newTwin(t, 2)
	dir := w.mkdir("/notes")
	w.put("a", "/notes/keep", "k")
	w.put("a", "/notes/x", "x1")
	w.put("a", "/notes/x", "x2")
	w.mkdir("/notes/sub")
	w.put("a", "/notes/sub/y", "y")
	w.ok(w.vol.SetXattr(w.ctx, w.who(), dir.Ino, "user.note", []byte("n"), 0))
	before, err := w.vol.Get(w.ctx, dir.Ino)
	w.ok(err)
	w.missing("deleted/notes/x")
	// An editor's way to save is no deletion.
	w.put("a", "/notes/.tmp", "k2")
	w.mv("/notes/.tmp", "/notes/keep")
	x, err := w.vol.Resolve(w.ctx, "/notes/x")
	w.ok(err)
	w.rm("/notes/x")
	row := w.at("deleted/notes/x")
	if x.Ino, x.Parent = row.Ino, row.Parent; row != x {
		t.Errorf("x is shown as %+v and was %+v", row, x)
	}
	if got := w.content(row.Ino); string(got) != "x2" {
		t.Errorf("x was %q", got)
	}
	for _, p := range []string{"deleted/notes/.tmp", "deleted/notes/keep", "deleted/notes/sub/y"} {
		w.missing(p)
	}
	if got := slices.Sorted(maps.Keys(w.list(w.at("deleted/notes").Ino))); !slices.Equal(got, []string{"sub", "x"}) {
		t.Errorf("deleted in notes: %q", got)
	}

	// All of it, and a new directory of the same name.
	w.rm("/notes")
	row = w.at("deleted/notes")
	if row.Mode != before.Mode || row.UID != 5 {
		t.Errorf("the deleted directory is %o of %d", row.Mode, row.UID)
	}
	if v, err := w.tree.GetXattr(w.ctx, row.Ino, "user.note"); err != nil || string(v) != "n" {
		t.Errorf("its attribute: %q, %v", v, err)
	}
	if got := w.content(w.at("deleted/notes/sub/y").Ino); string(got) != "y" {
		t.Errorf("y was %q", got)
	}
	w.mkdir("/notes")
	w.put("a", "/notes/sub", "a file now")
	if got := w.content(w.at("deleted/notes/x").Ino); string(got) != "x2" {
		t.Errorf("x was %q", got)
	}
	if got := w.content(w.at("deleted/notes/keep").Ino); string(got) != "k2" {
		t.Errorf("keep was %q", got)
	}
	// What was in a directory is gone also when a file has its name now. The file itself is there.
	if got := w.content(w.at("deleted/notes/sub/y").Ino); string(got) != "y" {
		t.Errorf("y was %q", got)
	}
	if row := w.at("deleted/notes/sub"); !isDir(row.Mode) {
		t.Errorf("the deleted directory sub has the mode %o", row.Mode)
	}
	if got := slices.Sorted(maps.Keys(w.list(w.at("deleted/notes").Ino))); !slices.Equal(got, []string{"keep", "sub", "x"}) {
		t.Errorf("deleted in notes: %q", got)
	}
	w.put("a", "/notes/x", "x3")
	w.missing("deleted/notes/x")
	w.rm("/notes/sub")
	if got := w.content(w.at("deleted/notes/sub").Ino); string(got) != "a file now" {
		t.Errorf("sub was %q", got)
	}

	// What was deleted in a directory moves with it; what only moved is not deleted.
	w.mv("/notes", "/moved")
	if got := w.content(w.at("deleted/moved/sub").Ino); string(got) != "a file now" {
		t.Errorf("sub was %q", got)
	}
	w.missing("deleted/moved/x")
	if got := w.content(w.at("deleted/notes/keep").Ino); string(got) != "k2" {
		t.Errorf("keep of the older notes was %q", got)
	}
}

func TestSnapshotsAreListed(t *testing.T) {
	w := newTwin(t, 3)
	w.put("a", "/f", "1")
	make := func(name string) {
		_, err := w.vol.CreateSnapshot(w.ctx, w.who(), name)
		w.ok(err)
	}
	make("first")
	make("same moment")
	w.put("a", "/f", "2")
	young := w.mkdir("/young")
	make("second")
	own := []string{readmeName, conflictsName, deletedName, versionsName}
	if got := slices.Sorted(maps.Keys(w.list(catalog.Root))); !slices.Equal(got, slices.Sorted(slices.Values(append([]string{"first", "same moment", "second"}, own...)))) {
		t.Errorf("listed: %q", got)
	}
	if got := slices.Sorted(maps.Keys(w.list(young.Ino))); !slices.Equal(got, slices.Sorted(slices.Values(append([]string{"second"}, own...)))) {
		t.Errorf("listed in a younger directory: %q", got)
	}
	if got := w.content(w.at("first/f").Ino); string(got) != "1" {
		t.Errorf("f was %q", got)
	}
	if got := w.content(w.at("second/f").Ino); string(got) != "2" {
		t.Errorf("f was %q", got)
	}
	if _, err := w.lookup(young.Ino, "first"); !errors.Is(err, ErrBefore) {
		t.Errorf("a snapshot from before the directory: %v", err)
	}
	_, err := w.vol.RenameSnapshot(w.ctx, w.who(), "first", "renamed")
	w.ok(err)
	w.missing("first")
	w.at("renamed/f")
	w.ok(w.vol.RemoveSnapshot(w.ctx, w.who(), "renamed"))
	w.missing("renamed")
	if text := string(w.content(w.at(readmeName).Ino)); strings.Count(text, "\n") < 20 || !strings.Contains(text, "cp -a .snapshots/@10m/") {
		t.Errorf("the README is short:\n%s", text)
	}
}

// clock is a time that a test sets.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) read() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// TestRelativeMomentStays: a time ago means one state for as long as a program uses it, within bounds, and not the one of an hour ago.
func TestRelativeMomentStays(t *testing.T) {
	w := newTwin(t, 4)
	c := clock{now: time.Now().Add(time.Hour)}
	w.tree = New(Options{Store: w.vol, Now: c.read})
	w.put("a", "/f", "1")
	w.at("@0s/f")
	first := w.at("@10m")
	// Ten minutes ago everything was as it is: the same record, and the same number.
	c.add(3 * time.Second)
	if got := w.at("@10m"); got.Ino != first.Ino {
		t.Errorf("another number for the same record: %d, %d", got.Ino, first.Ino)
	}
	// What is written from now on, by the clock of the store, lies an hour before the clock of the tree.
	w.put("a", "/f", "2")
	for range 5 { // used all the time: stays
		c.add(time.Second)
		if got := w.at("@10m"); got.Ino != first.Ino {
			t.Fatal("the moment moved while it was used")
		}
	}
	for range int(stickyMost/time.Second) + 1 {
		c.add(time.Second)
		w.at("@10m")
	}
	if got := w.at("@10m"); got.Ino == first.Ino {
		t.Error("the moment stayed for ever")
	}
	second := w.at("@10m")
	w.put("a", "/f", "3")
	c.add(stickyGap + time.Millisecond)
	if got := w.at("@10m"); got.Ino == second.Ino {
		t.Error("the moment stayed although nobody used it")
	}
	// A fixed time never waits.
	seq := w.newest()
	if got := w.content(w.at(fmt.Sprintf("@v%d/f", seq)).Ino); string(got) != "3" {
		t.Errorf("f is %q", got)
	}
}

func TestNumbersAreForgotten(t *testing.T) {
	w := newTwin(t, 5) // four views, thirty nodes
	var seqs []catalog.Seq
	for i := range 6 {
		w.put("a", "/f", fmt.Sprint(i))
		seqs = append(seqs, w.newest())
	}
	old := w.at(fmt.Sprintf("@v%d", seqs[0]))
	for _, s := range seqs[1:] {
		w.at(fmt.Sprintf("@v%d", s))
	}
	if _, err := w.tree.Get(w.ctx, old.Ino); !errors.Is(err, catalog.ErrStale) {
		t.Errorf("a view that should have lost its number: %v", err)
	}
	for i, s := range seqs {
		if got := w.content(w.at(fmt.Sprintf("@v%d/f", s)).Ino); string(got) != fmt.Sprint(i) {
			t.Errorf("f was %q at %d", got, s)
		}
	}
	// A directory in use keeps its number, however many files are looked at in it.
	w.mkdir("/many")
	for i := range 60 {
		w.put("a", fmt.Sprint("/many/", i), "x")
	}
	top, dir := w.at("versions"), w.at("versions/many")
	for range 3 {
		if n := len(w.list(dir.Ino)); n != 60 {
			t.Errorf("%d names of 60", n)
		}
	}
	for _, ino := range []catalog.Ino{top.Ino, dir.Ino} {
		if _, err := w.tree.Get(w.ctx, ino); err != nil {
			t.Errorf("a directory in use: %v", err)
		}
	}
	for _, n := range []catalog.Ino{0, numberEnd, nodeBit | 1<<50, 20 << inoBits, 1<<56 - 1, 1 << 62} {
		if _, err := w.tree.Get(w.ctx, n); !errors.Is(err, catalog.ErrStale) {
			t.Errorf("number %#x: %v", n, err)
		}
	}
}

// TestViewNumbers: no two views share a number at a time, and one that is used again has another generation.
func TestViewNumbers(t *testing.T) {
	v := newViews(8)
	generations := make(map[uint64]uint64)
	for i := range 3 * lastView {
		x := v.of(viewKey{root: 1, seq: catalog.Seq(i)})
		if old, ok := generations[x.id]; ok && old == x.generation {
			t.Fatalf("view %d has number %d again, and generation %d", i, x.id, x.generation)
		}
		if x.id < firstView || x.id > lastView {
			t.Fatalf("number %d", x.id)
		}
		generations[x.id] = x.generation
		keep := v.of(viewKey{root: 2, seq: 7})
		if keep.id == x.id {
			t.Fatalf("two views have the number %d", x.id)
		}
		if again := v.get(keep.id); again != keep {
			t.Fatal("a view in use was forgotten")
		}
	}
}

// TestThinned: what retention has taken is refused, and said in the log.
func TestThinned(t *testing.T) {
	w := newTwin(t, 6)
	w.mkdir("/d")
	w.put("a", "/d/f", "1")
	seq := w.newest()
	dir, err := w.vol.Resolve(w.ctx, "/d")
	w.ok(err)
	var log bytes.Buffer
	w.tree = New(Options{Store: thinning{w.vol, dir.Ino, seq}, Log: slog.New(slog.NewTextHandler(&log, nil))})
	moment := fmt.Sprintf("@v%d", seq)
	w.at(moment)
	w.missing(moment + "/d")
	if _, err := w.lookup(dir.Ino, moment); !errors.Is(err, catalog.ErrThinned) {
		t.Errorf("%v", err)
	}
	if n := strings.Count(log.String(), "the nearest are v1 and v9"); n != 2 {
		t.Errorf("the log says it %d times:\n%s", n, log.String())
	}
	w.at(fmt.Sprintf("@v%d/d", seq-1))
}

type thinning struct {
	*volume.Volume
	dir catalog.Ino
	seq catalog.Seq
}

func (x thinning) Exact(ctx context.Context, ino catalog.Ino, at catalog.Seq) error {
	if ino == x.dir && at == x.seq {
		return fmt.Errorf("%w; the nearest are v1 and v9", catalog.ErrThinned)
	}
	return x.Volume.Exact(ctx, ino, at)
}

// TestConflictsAreShown: each conflict is a JSON file and the content that lost.
func TestConflictsAreShown(t *testing.T) {
	w := newTwin(t, 7)
	w.mkdir("/team")
	for i := range 3 {
		name := fmt.Sprintf("/team/plan%d.md", i)
		row := w.put("zero", name, "base")
		open := func(agent string) *volume.Handle {
			h, err := w.vol.OpenFile(w.ctx, catalog.Actor{Agent: agent, Program: "test"}, row.Ino, volume.OpenFlags{Read: true, Write: true})
			w.ok(err)
			return h
		}
		a, b := open("agent-1"), open("agent/2")
		for _, x := range []struct {
			h    *volume.Handle
			text string
		}{{a, "mine"}, {b, "ours"}} {
			_, err := x.h.WriteAt(w.ctx, []byte(x.text), 0, volume.WriteFlags{})
			w.ok(err)
			w.ok(x.h.Flush(w.ctx))
		}
		a.Close(w.ctx)
		b.Close(w.ctx)
	}
	entries := w.list(w.at("conflicts").Ino)
	if len(entries) != 6 {
		t.Fatalf("%d files: %q", len(entries), slices.Collect(maps.Keys(entries)))
	}
	for name, e := range entries {
		if row := w.at("conflicts/" + name); row != e.Inode {
			t.Errorf("%s: listed as %+v, found as %+v", name, e.Inode, row)
		}
		if !strings.HasSuffix(name, ".json") {
			continue
		}
		var text struct {
			Path string
			Lost struct{ Agent, Content string }
			Won  struct{ Agent string }
		}
		w.ok(json.Unmarshal(w.content(e.Inode.Ino), &text))
		if !strings.HasPrefix(text.Path, "/team/plan") || text.Lost.Agent != "agent-1" || text.Won.Agent != "agent/2" {
			t.Errorf("%s says %+v", name, text)
		}
		if got := w.content(w.at("conflicts/" + text.Lost.Content).Ino); string(got) != "mine" || !strings.HasSuffix(text.Lost.Content, "-lost-agent-1.md") {
			t.Errorf("%s holds %q", text.Lost.Content, got)
		}
	}
	dir, err := w.vol.Resolve(w.ctx, "/team")
	w.ok(err)
	other, err := w.vol.Resolve(w.ctx, "/tasks")
	w.ok(err)
	for ino, want := range map[catalog.Ino]int{dir.Ino: 6, other.Ino: 0} {
		row, err := w.lookup(ino, conflictsName)
		w.ok(err)
		if n := len(w.list(row.Ino)); n != want {
			t.Errorf("%d files in the conflicts of directory %d, want %d", n, ino, want)
		}
	}
	for _, p := range []string{"conflicts/0001-x.json", "conflicts/x", "conflicts/9999-x"} {
		w.missing(p)
	}
}

// TestConcurrentReaders looks at moments, versions and deletions while the store changes. Two names that are exchanged all the time are both there, in every
// moment.
func TestConcurrentReaders(t *testing.T) {
	w := newTwin(t, 8)
	w.tree = New(Options{Store: w.vol, maxViews: 3, maxNodes: 8})
	dir := w.mkdir("/pair")
	w.put("a", "/pair/a", "1")
	w.put("a", "/pair/b", "2")
	first := w.newest()
	stop := make(chan struct{})
	var writers, readers sync.WaitGroup
	writers.Go(func() {
		for range 1500 {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := w.vol.Rename(w.ctx, catalog.Actor{}, dir.Ino, "a", dir.Ino, "b", catalog.RenameExchange); err != nil {
				t.Error(err)
				return
			}
		}
	})
	look := func(names ...string) (catalog.Inode, error) {
		for {
			row, err := w.lookup(catalog.Root, names...)
			if !errors.Is(err, catalog.ErrStale) {
				return row, err
			}
		}
	}
	for r := range 4 {
		readers.Go(func() {
			for i := range 60 {
				newest, err := w.vol.Newest(w.ctx)
				if err != nil {
					t.Error(err)
					return
				}
				moment := fmt.Sprintf("@v%d", first+catalog.Seq(i*(r+7))%(newest-first+1))
				x, err := look(moment, "pair", "a")
				if err != nil {
					t.Errorf("%s: %v", moment, err)
					return
				}
				y, err := look(moment, "pair", "b")
				if err != nil || x.Ino&inoMask == y.Ino&inoMask {
					t.Errorf("%s: a is inode %d, b %d, %v", moment, x.Ino&inoMask, y.Ino&inoMask, err)
					return
				}
				if _, err := look(versionsName, "pair", "a"); err != nil {
					t.Error(err)
					return
				}
				if d, err := look(deletedName, "pair"); err != nil {
					t.Error(err)
					return
				} else if list, err := w.tree.ReadDir(w.ctx, d.Ino, 0, 10); err != nil && !errors.Is(err, catalog.ErrStale) || len(list) > 0 {
					t.Errorf("deleted: %v, %v", list, err)
					return
				}
			}
		})
	}
	readers.Wait()
	close(stop)
	writers.Wait()
}
