package view

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/blobstore/blobstoretest"
	"holdfast/catalog"
	"holdfast/integrity"
	"holdfast/integrity/audit"
	"holdfast/internal/volume"
)

// fakeEngine is an Engine and a Scrub whose state is in fields.
type fakeEngine struct {
	mu         sync.Mutex
	failures   []integrity.Result
	recoveries []integrity.Attempt
	events     []integrity.Event
	more       chan struct{}
	damaged    []integrity.Damaged
	described  int
	checks     int
	words      []string
	completed  map[string][]byte
	refuse     error
}

func (e *fakeEngine) Status(context.Context) (integrity.Status, error) {
	return integrity.Status{Healthy: true, Summary: "healthy: nothing is damaged"}, nil
}

func (e *fakeEngine) Check(_ context.Context, p string, o integrity.CheckOptions, fn func(integrity.Result) error) (integrity.Summary, error) {
	e.checks++
	for _, typ := range integrity.CheckTypes() {
		if err := fn(integrity.Result{Type: typ, Path: p, Passed: true}); err != nil {
			return integrity.Summary{}, err
		}
	}
	return integrity.Summary{Files: 1, Checks: 5}, nil
}

func (e *fakeEngine) Failures(_ context.Context, after int64, fn func(int64, integrity.Result) error) error {
	for i := after; i < int64(len(e.failures)); i++ {
		if err := fn(i+1, e.failures[i]); err != nil {
			return err
		}
	}
	return nil
}

func (e *fakeEngine) Recoveries(_ context.Context, after int64, fn func(int64, integrity.Attempt) error) error {
	e.mu.Lock()
	list := e.recoveries
	e.mu.Unlock()
	for i := after; i < int64(len(list)); i++ {
		if err := fn(i+1, list[i]); err != nil {
			return err
		}
	}
	return nil
}

func (e *fakeEngine) Events(ctx context.Context, after uint64, _ int) ([]integrity.Event, error) {
	for {
		e.mu.Lock()
		list, more := e.events, e.more
		e.mu.Unlock()
		if uint64(len(list)) > after {
			return list[after:], nil
		}
		select {
		case _, ok := <-more:
			if !ok {
				return nil, fmt.Errorf("ended: %w", catalog.ErrClosed)
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (e *fakeEngine) LastEvent() uint64 { return uint64(len(e.events)) }

func (e *fakeEngine) DamagedNames(_ context.Context, after string, max int) (names []string, err error) {
	for _, d := range e.damaged {
		if d.DataID > after && len(names) < max {
			names = append(names, d.DataID)
		}
	}
	return names, nil
}

func (e *fakeEngine) DamagedItem(_ context.Context, id string) (integrity.Damaged, error) {
	e.described++
	for _, d := range e.damaged {
		if d.DataID == id {
			return d, nil
		}
	}
	return integrity.Damaged{}, catalog.ErrNotExist
}

func (e *fakeEngine) Complete(_ context.Context, id string, r io.Reader) error {
	if e.refuse != nil {
		return e.refuse
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	e.completed[id] = b
	return nil
}

func (e *fakeEngine) word(w string) error          { e.words = append(e.words, w); return nil }
func (e *fakeEngine) Start(context.Context) error  { return e.word("start") }
func (e *fakeEngine) Pause(context.Context) error  { return e.word("pause") }
func (e *fakeEngine) Resume(context.Context) error { return e.word("resume") }
func (e *fakeEngine) Stop(context.Context) error   { return e.word("stop") }

// fakeScrub is the engine as a Scrub.
type fakeScrub struct{ *fakeEngine }

func (fakeScrub) Status(context.Context) (integrity.ScrubStatus, error) {
	return integrity.ScrubStatus{State: integrity.ScrubIdle, Cycle: 3}, nil
}

type world struct {
	t    *testing.T
	vol  *volume.Volume
	log  *audit.Log
	e    *fakeEngine
	tree *Tree
	now  time.Time
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir := filepath.Join(blobstoretest.TempDir(t), "store")
	if _, err := volume.Init(t.Context(), dir, volume.InitOptions{}); err != nil {
		t.Fatal(err)
	}
	vol, err := volume.Open(t.Context(), volume.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, vol: vol, now: time.Now(), e: &fakeEngine{more: make(chan struct{}, 10), completed: make(map[string][]byte)}}
	w.log, err = audit.Open(t.Context(), audit.Options{Dir: filepath.Join(dir, "audit"), Journal: vol.JournalView()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		if err := errors.Join(w.log.Close(ctx), vol.Close(ctx)); err != nil {
			t.Error(err)
		}
	})
	w.tree = New(Options{Engine: w.e, Scrub: fakeScrub{w.e}, Audit: w.log, Store: vol, Now: func() time.Time { return w.now }})
	return w
}

// put makes a file, in the place of one that may be there.
func (w *world) put(p, content string) {
	w.t.Helper()
	ctx, who := w.t.Context(), catalog.Actor{Agent: "agent-1", Program: "test"}
	dir, err := w.vol.Resolve(ctx, path.Dir(p))
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.vol.Unlink(ctx, who, dir.Ino, path.Base(p)); err != nil && !errors.Is(err, catalog.ErrNotExist) {
		w.t.Fatal(err)
	}
	_, h, err := w.vol.CreateFile(ctx, who, dir.Ino, path.Base(p), catalog.NewInode{Mode: unix.S_IFREG | 0o640}, volume.OpenFlags{Write: true})
	if err != nil {
		w.t.Fatal(err)
	}
	defer h.Close(ctx)
	if _, err := h.WriteAt(ctx, []byte(content), 0, volume.WriteFlags{}); err != nil {
		w.t.Fatal(err)
	}
	if err := h.Flush(ctx); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) walk(p string) catalog.Inode {
	w.t.Helper()
	row, err := w.find(p)
	if err != nil {
		w.t.Fatalf("%s: %v", p, err)
	}
	return row
}

func (w *world) find(p string) (row catalog.Inode, err error) {
	row.Ino = catalog.Root
	for name := range strings.SplitSeq(p, "/") {
		if row, err = w.tree.Lookup(w.t.Context(), row.Ino, name); err != nil {
			return row, err
		}
		again, err := w.tree.Get(w.t.Context(), row.Ino)
		if err != nil || again.Ino != row.Ino || again.Mode != row.Mode || again.Size != row.Size {
			w.t.Errorf("%s: looked up %+v, got %+v (%v)", p, row, again, err)
		}
	}
	return row, nil
}

// cat reads a file in small pieces, and compares its size.
func (w *world) cat(p string) string {
	w.t.Helper()
	row := w.walk(p)
	f, err := w.tree.Open(w.t.Context(), row.Ino, false)
	if err != nil {
		w.t.Fatalf("%s: %v", p, err)
	}
	defer f.Close()
	var out []byte
	buf := make([]byte, 333)
	for {
		n, err := f.ReadAt(w.t.Context(), buf, int64(len(out)))
		if err != nil {
			w.t.Fatalf("%s at %d: %v", p, len(out), err)
		}
		if out = append(out, buf[:n]...); n == 0 {
			break
		}
	}
	if size := w.walk(p).Size; size != int64(len(out)) {
		w.t.Errorf("%s has the size %d and %d bytes", p, size, len(out))
	}
	return string(out)
}

func (w *world) list(p string) (names []string) {
	w.t.Helper()
	dir := catalog.Root
	if p != "" {
		dir = w.walk(p).Ino
	}
	for after := uint64(0); ; {
		list, err := w.tree.ReadDir(w.t.Context(), dir, after, 2)
		if err != nil {
			w.t.Fatal(err)
		}
		if len(list) == 0 {
			return names
		}
		for _, e := range list {
			row, err := w.tree.Lookup(w.t.Context(), dir, e.Name)
			if err != nil || row.Ino != e.Inode.Ino || row.Mode != e.Inode.Mode || row.Size != e.Inode.Size {
				w.t.Errorf("%s/%s is listed as %+v and found as %+v (%v)", p, e.Name, e.Inode, row, err)
			}
			up, err := w.tree.Lookup(w.t.Context(), e.Inode.Ino, "..")
			if e.Inode.Mode&unix.S_IFMT == unix.S_IFDIR && (err != nil || up.Ino != dir) {
				w.t.Errorf("above %s/%s is %d, want %d (%v)", p, e.Name, up.Ino, dir, err)
			}
			names = append(names, e.Name)
			after = e.Cookie
		}
	}
}

func TestFiles(t *testing.T) {
	w := newWorld(t)
	w.put("/tasks/plan", "one")
	if got := strings.Join(w.list(""), " "); got != "README status.json summary checks failures recoveries.jsonl audit.jsonl events checkpoint proof manual scrub" {
		t.Error(got)
	}
	if got := w.cat("summary"); !strings.HasPrefix(got, "healthy") {
		t.Error(got)
	}
	var s integrity.Status
	if err := json.Unmarshal([]byte(w.cat("status.json")), &s); err != nil || !s.Healthy {
		t.Errorf("%+v, %v", s, err)
	}
	if got := w.cat("scrub"); !strings.Contains(got, `"cycle": 3`) {
		t.Error(got)
	}
	if head := w.cat("checkpoint"); !strings.Contains(head, "\n") {
		t.Error(head)
	}
	w.cat("README")
	// Checks and proofs have the names of the store.
	if got := strings.Join(w.list("checks"), " "); got != "messages tasks status config logs" {
		t.Error(got)
	}
	if got := w.list("checks/tasks"); len(got) != 1 || got[0] != "plan" || len(w.list("proof/tasks")) != 1 {
		t.Error(got)
	}
	lines := strings.Split(strings.TrimSpace(w.cat("checks/tasks/plan")), "\n")
	if len(lines) != 6 || !strings.Contains(lines[0], "/tasks/plan") || !json.Valid([]byte(lines[5])) {
		t.Errorf("%q", lines)
	}
	w.cat("checks/tasks/plan")
	if w.e.checks != 1 {
		t.Errorf("%d checks were made of what has not changed", w.e.checks)
	}
	w.put("/tasks/plan", "two") // another inode
	w.cat("checks/tasks/plan")
	w.now = w.now.Add(time.Hour)
	w.cat("checks/tasks/plan")
	if w.e.checks != 3 {
		t.Errorf("%d checks were made, want one for each version, and one later", w.e.checks)
	}
	p, err := audit.ParseProof([]byte(w.cat("proof/tasks/plan")))
	if err != nil {
		t.Fatal(err)
	}
	keys, err := audit.ParseKeys(w.log.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	if proven, err := p.Check(keys); err != nil || len(proven.Entries) != 1 || proven.Entries[0].Path != "/tasks/plan" {
		t.Errorf("%+v, %v", proven, err)
	}
	for _, bad := range []string{"none", "checks/none", "checks/tasks/none", "proof/none", "failures/1", "failures/000000001.json", "manual/none", "summary/x"} {
		if _, err := w.find(bad); !errors.Is(err, catalog.ErrNotExist) && !errors.Is(err, catalog.ErrNotDir) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	for _, n := range []catalog.Ino{0, 14, 99, 1 << 47, number(kindCheck, 1<<40), number(kindProof, 77777), number(kindFailure, 5), number(kindManual, 5), number(7, 1), 1<<56 - 1} {
		if _, err := w.tree.Get(t.Context(), n); err == nil {
			t.Errorf("there is a node %x", uint64(n))
		}
		if _, err := w.tree.Open(t.Context(), n, true); err == nil {
			t.Errorf("node %x opens", uint64(n))
		}
	}
}

func TestFailuresAndManual(t *testing.T) {
	w := newWorld(t)
	for i := range 5 {
		w.e.failures = append(w.e.failures, integrity.Result{CheckID: fmt.Sprint(i), Type: integrity.Checksum, Timestamp: w.now})
	}
	if got := w.list("failures"); len(got) != 5 || got[4] != "000000005.json" {
		t.Error(got)
	}
	if got := w.cat("failures/000000003.json"); !strings.Contains(got, `"check_id":"2"`) {
		t.Error(got)
	}
	ids := []string{strings.Repeat("1a", 32), strings.Repeat("1b", 32), "inode 12"}
	for _, id := range ids {
		w.e.damaged = append(w.e.damaged, integrity.Damaged{DataID: id, Since: w.now, Details: "block 3"})
	}
	if got := w.list("manual"); strings.Join(got, ",") != strings.Join(ids, ",") {
		t.Error(got)
	}
	if got := w.cat("manual/" + ids[1]); !strings.Contains(got, ids[1]) {
		t.Error(got)
	}
	// What is written completes it, from its beginning to its end.
	node := w.walk("manual/" + ids[0]).Ino
	good := bytes.Repeat([]byte("good"), 100_000)
	open := func() File {
		f, err := w.tree.Open(t.Context(), node, true)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	f := open()
	if err := f.Flush(t.Context()); err != nil || len(w.e.completed) != 0 {
		t.Errorf("a close without a write: %v", err)
	}
	for off := 0; off < len(good); off += 100_000 {
		if n, err := f.WriteAt(t.Context(), good[off:off+100_000], int64(off)); err != nil || n != 100_000 {
			t.Fatal(n, err)
		}
	}
	if _, err := f.WriteAt(t.Context(), good, 5); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("writing behind a hole: %v", err)
	}
	if err := f.Flush(t.Context()); err != nil || !bytes.Equal(w.e.completed[ids[0]], good) {
		t.Errorf("%v; %d bytes arrived", err, len(w.e.completed[ids[0]]))
	}
	if _, err := f.WriteAt(t.Context(), good, int64(len(good))); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("writing behind the end: %v", err)
	}
	f.Close()
	delete(w.e.completed, ids[0])
	f = open()
	if _, err := f.WriteAt(t.Context(), good, 0); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if len(w.e.completed) != 0 {
		t.Error("a content that was broken off is taken")
	}
	w.e.refuse = integrity.ErrWrongContent
	f = open()
	_, err := f.WriteAt(t.Context(), good, 0)
	if err == nil {
		err = f.Flush(t.Context())
	}
	if !errors.Is(err, integrity.ErrWrongContent) {
		t.Errorf("wrong content: %v", err)
	}
	f.Close()
}

func TestScrubCommands(t *testing.T) {
	w := newWorld(t)
	node := w.walk("scrub").Ino
	say := func(text string) error {
		f, err := w.tree.Open(t.Context(), node, true)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt(t.Context(), []byte(text), 0); err != nil {
			return err
		}
		return f.Flush(t.Context())
	}
	for _, word := range []string{"start\n", "pause", " resume \n", "stop"} {
		if err := say(word); err != nil {
			t.Errorf("%q: %v", word, err)
		}
	}
	if got := strings.Join(w.e.words, " "); got != "start pause resume stop" {
		t.Error(got)
	}
	for _, bad := range []string{"go", "start start", strings.Repeat("x", 100)} {
		if err := say(bad); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := w.tree.Open(t.Context(), w.walk("summary").Ino, true); !errors.Is(err, catalog.ErrReadOnly) {
		t.Errorf("writing to the summary: %v", err)
	}
}

func TestAuditLines(t *testing.T) {
	w := newWorld(t)
	name := strings.Repeat("a long name é ", 15)
	tasks, err := w.vol.Resolve(t.Context(), "/tasks")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.vol.Create(t.Context(), catalog.Actor{}, tasks.Ino, name, catalog.NewInode{Mode: unix.S_IFDIR | 0o755}); err != nil {
		t.Fatal(err)
	}
	long := "/tasks/" + name + "/" + name
	w.put("/tasks/plan", "one")
	w.put(long, "x")
	w.put("/tasks/\xff\xfe<&", "x")
	all := w.cat("audit.jsonl")
	newest, err := w.vol.Newest(t.Context())
	if err != nil || len(all) != int(newest)*auditLine {
		t.Fatalf("%d bytes for %d records, %v", len(all), newest, err)
	}
	found := 0
	for i := 0; i < len(all); i += auditLine {
		line := all[i : i+auditLine]
		var m mutation
		if err := json.Unmarshal([]byte(line), &m); err != nil || line[auditLine-1] != '\n' || strings.Count(line, "\n") != 1 {
			t.Fatalf("%q: %v", line, err)
		}
		if m.Seq != catalog.Seq(i/auditLine+1) {
			t.Errorf("line %d is of record %d", i/auditLine, m.Seq)
		}
		if m.Version > 0 && (m.Path == "/tasks/plan" || m.Cut && strings.HasSuffix(long, m.Path) && len(m.Path) > 50) && m.Agent == "agent-1" && len(m.SHA256) == 64 {
			found++
		}
	}
	if found != 2 {
		t.Errorf("%d of the files are there:\n%s", found, all)
	}
	// It grows while it is open.
	f, err := w.tree.Open(t.Context(), w.walk("audit.jsonl").Ino, false)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1<<20)
	if n, err := f.ReadAt(t.Context(), buf, int64(len(all))); n != 0 || err != nil {
		t.Errorf("%d bytes behind the end, %v", n, err)
	}
	w.put("/tasks/plan", "two")
	if n, err := f.ReadAt(t.Context(), buf, int64(len(all))-7); n < auditLine+7 || err != nil || !strings.HasPrefix(string(buf[7:n]), `{"seq":`) {
		t.Errorf("%d bytes, %v", n, err)
	}
}

func TestRecoveriesGrow(t *testing.T) {
	w := newWorld(t)
	add := func(n int) {
		w.e.mu.Lock()
		defer w.e.mu.Unlock()
		for range n {
			w.e.recoveries = append(w.e.recoveries, integrity.Attempt{Source: strings.Repeat("s", len(w.e.recoveries)*7%100), Strategy: integrity.ChecksumMatch})
		}
	}
	add(30)
	first := w.cat("recoveries.jsonl")
	f, err := w.tree.Open(t.Context(), w.walk("recoveries.jsonl").Ino, false)
	if err != nil {
		t.Fatal(err)
	}
	read := func(off int64, most int) string {
		buf := make([]byte, most)
		n, err := f.ReadAt(t.Context(), buf, off)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
	if read(0, 1<<20) != first || read(int64(len(first)), 100) != "" {
		t.Error("reading it at once differs from reading it in pieces")
	}
	add(10)
	w.now = w.now.Add(time.Minute)
	all := w.cat("recoveries.jsonl")
	if got := read(int64(len(first)), 1<<20); first+got != all || strings.Count(all, "\n") != 40 {
		t.Errorf("%d new bytes of %d", len(got), len(all)-len(first))
	}
	for _, off := range []int64{1, 500, int64(len(first)) - 3, int64(len(all)) - 1, int64(len(all)), int64(len(all)) + 9, 0} {
		if got, want := read(off, 77), all[min(int(off), len(all)):min(int(off)+77, len(all))]; got != want {
			t.Errorf("at %d: %q, want %q", off, got, want)
		}
	}
}

func TestEventsWait(t *testing.T) {
	w := newWorld(t)
	w.e.events = []integrity.Event{{Seq: 1, Text: "old"}}
	f, err := w.tree.Open(t.Context(), w.walk("events").Ino, false)
	if err != nil || !f.Stream() {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.ReadAt(ctx, make([]byte, 10), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	got := make(chan string)
	go func() {
		buf := make([]byte, 16)
		text := ""
		for off := int64(0); !strings.HasSuffix(text, "\n"); off += 16 {
			n, err := f.ReadAt(t.Context(), buf, off)
			if err != nil {
				text = err.Error() + "\n"
			}
			text += string(buf[:n])
		}
		got <- text
	}()
	w.e.mu.Lock()
	w.e.events = append(w.e.events, integrity.Event{Seq: 2, Text: "new"})
	w.e.mu.Unlock()
	w.e.more <- struct{}{}
	if text := <-got; !strings.Contains(text, `"text":"new"`) || strings.Contains(text, "old") {
		t.Error(text)
	}
	close(w.e.more)
	if n, err := f.ReadAt(t.Context(), make([]byte, 10), 0); n != 0 || err != nil {
		t.Errorf("at the end: %d, %v", n, err)
	}
}

// TestProofIsOfTheNewestVersion reads the proof of a file, which becomes another version right after that.
func TestProofIsOfTheNewestVersion(t *testing.T) {
	w := newWorld(t)
	keys, err := audit.ParseKeys(w.log.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	w.put("/tasks/plan", "1")
	ino := w.walk("proof/tasks/plan").Ino & thisMask
	for version := uint64(1); version < 4; version++ {
		if version > 1 {
			h, err := w.vol.OpenFile(t.Context(), catalog.Actor{Agent: "agent-1"}, ino, volume.OpenFlags{Write: true})
			if err != nil {
				t.Fatal(err)
			}
			_, err = h.WriteAt(t.Context(), []byte(fmt.Sprint(version)), 0, volume.WriteFlags{})
			if err := errors.Join(err, h.Flush(t.Context())); err != nil {
				t.Fatal(err)
			}
			h.Close(t.Context())
		}
		p, err := audit.ParseProof([]byte(w.cat("proof/tasks/plan")))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := p.Check(keys); err != nil || len(got.Entries) != 1 || got.Entries[0].Version != version {
			t.Errorf("the newest version is %d, proved is %+v (%v)", version, got, err)
		}
	}
}

// TestManyDamages lists what a disk leaves that has died: each thing is described once, and not once for every page, some heal meanwhile, and another listing goes on where this one was.
func TestManyDamages(t *testing.T) {
	w := newWorld(t)
	const n = 3000
	for i := range n {
		w.e.damaged = append(w.e.damaged, integrity.Damaged{DataID: fmt.Sprintf("%064x", i*7), Since: w.now, Details: "block 3"})
	}
	dir := w.walk("manual").Ino
	read := func(tree *Tree, after uint64) []catalog.DirEntry {
		list, err := tree.ReadDir(t.Context(), dir, after, 100)
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	var all []catalog.DirEntry
	for list := read(w.tree, 0); len(list) > 0; list = read(w.tree, all[len(all)-1].Cookie) {
		all = append(all, list...)
	}
	if len(all) != n || w.e.described > n+100 {
		t.Errorf("%d of %d listed, %d descriptions made", len(all), n, w.e.described)
	}
	for _, i := range []int{0, 1234, n - 1} {
		row, err := w.tree.Get(t.Context(), all[i].Inode.Ino)
		if err != nil || row.Size != all[i].Inode.Size || all[i].Name != w.e.damaged[i].DataID {
			t.Errorf("%d: %+v %v", i, row, err)
		}
	}
	other := New(w.tree.o) // which remembers nothing
	if list := read(other, all[1233].Cookie); len(list) != 100 || list[0].Name != all[1234].Name {
		t.Errorf("a listing goes on with %v", list[0].Name)
	}
	if row, err := other.Get(t.Context(), all[n-1].Inode.Ino); err != nil || row.Size != all[n-1].Inode.Size {
		t.Errorf("%+v %v", row, err)
	}
	at := all[99].Cookie
	w.e.damaged = w.e.damaged[50:]
	if list := read(w.tree, at); len(list) != 100 || list[0].Name != all[100].Name {
		t.Errorf("after fifty were healed the listing goes on with %v", list[0].Name)
	}
}
