package catalog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strconv"
	"testing"
	"time"

	"holdfast/blobstore"
	"holdfast/blobstore/blobstoretest"
	"holdfast/internal/sqldb"
)

// testPolicy fits the pace of pruneWorld, whose operations are minutes apart.
func testPolicy() Policy {
	return Policy{Path: "/", Dir: Root, KeepAll: 3 * time.Hour, Hourly: 12 * time.Hour, Daily: 60 * time.Hour, Weekly: 300 * time.Hour}
}

func newPruneWorld(t *testing.T, seed uint64, change func(*Options)) *world {
	w := &world{t: t, rnd: rand.New(rand.NewPCG(seed, 1)), blobs: newMemBlobs()}
	w.clk.step = int64(7 * time.Minute)
	w.opt = testOptions(t, blobstoretest.TempDir(t), w.blobs)
	w.opt.Now = w.clk.read
	w.opt.SegmentBytes = 64 << 10
	if change != nil {
		change(&w.opt)
	}
	w.c = openCatalog(t, w.opt)
	w.m = newModel(w.clk.tick())
	if err := w.c.Init(context.Background(), testActor(), NewInode{Mode: 0o755}); err != nil {
		t.Fatal(err)
	}
	return w
}

// housekeeping lets the model follow records that change nothing that it knows of.
func (w *world) housekeeping() {
	for len(w.m.past) <= int(w.seq()) {
		w.m.past, w.m.times = append(w.m.past, w.m.past[len(w.m.past)-1]), append(w.m.times, w.m.now)
	}
}

// keptMoments are those that must be as the model says: the last hours, and every snapshot.
func (w *world) keptMoments(p Policy) []Seq {
	var all []Seq
	for _, s := range must[[]Snapshot](w.t)(w.c.Snapshots(context.Background())) {
		all = append(all, s.Seq)
	}
	horizon := must[Seq](w.t)(w.c.SeqAt(context.Background(), w.clk.read().Add(-p.KeepAll)))
	for s := max(horizon, 1); s <= w.seq(); s++ {
		all = append(all, s)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// checkKept compares a moment with the model: exactly where must is set; else what is not thinned away.
func (w *world) checkKept(at Seq, must bool) {
	ctx := context.Background()
	thinned := func(err error) bool {
		if !errors.Is(err, ErrThinned) {
			return false
		}
		if must {
			w.fatal("moment %d must be kept: %v", at, err)
		}
		return true
	}
	for _, ino := range w.m.inos() {
		n := w.m.past[at][ino]
		row, err := w.c.GetAt(ctx, ino, at)
		absent := n == nil || n.row.Nlink == 0
		switch {
		case absent && errors.Is(err, ErrThinned): // it came and went in between
			continue
		case thinned(err):
			continue
		case absent:
			if err == nil && row.Nlink > 0 || err != nil && !errors.Is(err, ErrStale) {
				w.fatal("at %d: inode %d should not be there: %+v %v", at, ino, row, err)
			}
			continue
		}
		row.Base = 0
		if err != nil || row != n.row {
			w.fatal("at %d (must: %v): inode %d:\ngot  %+v %v\nwant %+v", at, must, ino, row, err, n.row)
		}
		names, err := w.c.ListXattrAt(ctx, ino, at)
		if !thinned(err) && (err != nil || len(names) != len(n.xattrs)) {
			w.fatal("at %d: attributes of %d: %v %v, want %v", at, ino, names, err, n.xattrs)
		}
		for k, v := range n.xattrs {
			if got, err := w.c.GetXattrAt(ctx, ino, k, at); !thinned(err) && (err != nil || string(got) != v) {
				w.fatal("at %d: attribute %s of %d: %q %v, want %q", at, k, ino, got, err, v)
			}
		}
		if n.names == nil {
			ext, err := w.c.Extents(ctx, ino, at)
			if thinned(err) {
				continue
			}
			if err != nil || row.Mode&typeMask == 0o100000 && !bytes.Equal(w.content(row.Size, ext), n.content) {
				w.fatal("at %d: content of %d differs (%d bytes): %+v %v", at, ino, row.Size, ext, err)
			}
			continue
		}
		w.checkKeptDir(at, n, thinned)
	}
}

func (w *world) checkKeptDir(at Seq, n *mnode, thinned func(error) bool) {
	ctx := context.Background()
	found := 0
	for after := uint64(0); ; {
		list, err := w.c.ReadDirAt(ctx, n.row.Ino, after, 3, at)
		if thinned(err) {
			return
		}
		if err != nil {
			w.fatal("at %d: directory %d: %v", at, n.row.Ino, err)
		}
		if len(list) == 0 {
			break
		}
		for _, e := range list {
			after = e.Cookie
			found++
			if n.names[e.Name] != e.Inode.Ino {
				w.fatal("at %d: %d/%s leads to %d, want %d", at, n.row.Ino, e.Name, e.Inode.Ino, n.names[e.Name])
			}
			row, err := w.c.LookupAt(ctx, n.row.Ino, e.Name, at)
			if thinned(err) {
				if !e.Thinned {
					w.fatal("at %d: %d/%s is thinned away, and listed as if it were not", at, n.row.Ino, e.Name)
				}
				continue
			}
			if want := w.m.past[at][e.Inode.Ino]; err != nil || row != e.Inode || want == nil {
				w.fatal("at %d: %d/%s is %+v %v, in the list %+v", at, n.row.Ino, e.Name, row, err, e.Inode)
			}
		}
	}
	if found != len(n.names) {
		w.fatal("at %d: directory %d has %d entries, want %v", at, n.row.Ino, found, n.names)
	}
	if _, err := w.c.LookupAt(ctx, n.row.Ino, "n99", at); !thinned(err) && !errors.Is(err, ErrNotExist) {
		w.fatal("at %d: a name that never was: %v", at, err)
	}
}

// checkPruned compares one of share kept moments with the model, and some others, and the versions with what is kept.
func (w *world) checkPruned(p Policy, share int) {
	kept := w.keptMoments(p)
	for at := range Seq(len(w.m.past)) {
		if _, must := slices.BinarySearch(kept, at); must && at > 0 && w.rnd.IntN(share) == 0 {
			w.checkKept(at, true)
		} else if w.rnd.IntN(5*share) == 0 {
			w.checkKept(at, false)
		}
	}
	w.check(Head)
	// A version is there as long as its time holds a kept moment, and can be read.
	ctx := context.Background()
	total := int64(0)
	for ino, n := range w.m.live {
		var have []Version
		err := w.c.Versions(ctx, ino, false, func(v Version) error {
			have = append(have, v)
			return nil
		})
		if n.row.Nlink == 0 && errors.Is(err, ErrStale) {
			continue
		}
		if err != nil {
			w.fatal("versions of %d: %v", ino, err)
		}
		total += int64(len(have))
		for _, v := range have {
			at, err := w.c.ExactFrom(ctx, ino, v.Seq)
			if err != nil || w.m.past[at][ino] == nil || w.m.past[at][ino].row.Ver != v.Num {
				w.fatal("version %d of %d is to be read at %d: %v", v.Num, ino, at, err)
			}
			ext, err := w.c.Extents(ctx, ino, at)
			if err != nil || !bytes.Equal(w.content(w.m.past[at][ino].row.Size, ext), w.m.past[at][ino].content) {
				w.fatal("version %d of %d at %d differs: %v", v.Num, ino, at, err)
			}
		}
		for _, at := range kept {
			if was := w.m.past[at][ino]; was != nil && was.row.Ver > 0 && n.row.Nlink > 0 &&
				!slices.ContainsFunc(have, func(v Version) bool { return v.Num == was.row.Ver }) {
				w.fatal("version %d of %d held at the kept moment %d and is gone", was.row.Ver, ino, at)
			}
		}
	}
	if s := must[Stats](w.t)(w.c.Stats(ctx)); s.Versions < total {
		w.fatal("stats say %d versions, there are %d", s.Versions, total)
	}
}

// checkBlobs looks for blobs that are stored and named by nothing.
func (w *world) checkBlobs() {
	ctx := context.Background()
	if err := w.c.Flush(ctx); err != nil {
		w.fatal("flush: %v", err)
	}
	for _, h := range w.blobs.names() {
		err := w.c.db.Read(ctx, func(c *sqldb.Conn) error {
			used, _, err := blobUse(c, h)
			if err == nil && !used {
				err = fmt.Errorf("blob %s is stored, and nothing names it", h)
			}
			return err
		})
		if err != nil {
			w.fatal("%v", err)
		}
	}
}

// prune makes the automatic snapshots that are due and thins, after a dry run that must say the same.
func (w *world) prune(p Policy, sweep bool) {
	ctx := context.Background()
	w.log = append(w.log, "prune")
	if _, err := w.c.AutoSnapshots(ctx, w.clk.read()); err != nil {
		w.fatal("automatic snapshots: %v", err)
	}
	o := PruneOptions{Policies: []Policy{p}, Slice: 1 + w.rnd.IntN(40), DryRun: true, Sweep: sweep}
	before := w.seq()
	dry, err := w.c.Prune(ctx, o)
	if err != nil || w.seq() != before {
		w.fatal("dry run: %v; it wrote %d records", err, w.seq()-before)
	}
	o.DryRun = false
	rep, err := w.c.Prune(ctx, o)
	if err != nil {
		w.fatal("prune: %v", err)
	}
	dry.DryRun, dry.Steps, rep.Steps, rep.Orphans = false, 0, 0, 0
	if sweep { // what it finds is not in the dry run
		dry.Blobs, dry.BlobBytes = rep.Blobs, rep.BlobBytes
	}
	if !reflect.DeepEqual(dry, rep) {
		w.fatal("the dry run says\n%+v\nand the run does\n%+v", dry, rep)
	}
	if w.rnd.IntN(2) == 0 {
		w.compact()
	}
	w.forgetDead()
	w.housekeeping()
}

// compact makes the journal smaller, and looks for the bodies of the blobs that are in use.
func (w *world) compact() {
	w.log = append(w.log, "compact")
	ctx := context.Background()
	rep, err := w.c.Compact(ctx, true, nil)
	if err != nil {
		w.fatal("compact: %v", err)
	}
	w.compacted.Segments, w.compacted.Heads, w.compacted.Bodies = w.compacted.Segments+rep.Segments, w.compacted.Heads+rep.Heads, w.compacted.Bodies+rep.Bodies
	w.checkBodies()
}

// checkBodies reads the bodies of all small blobs that are in use from the journal.
func (w *world) checkBodies() {
	ctx := context.Background()
	for h, body := range w.m.blobs {
		row, ok, err := w.c.loadBlob(ctx, h)
		if err != nil {
			w.fatal("blob %s: %v", h, err)
		}
		if !ok || row.pos.Offset < 0 {
			continue
		}
		if got, err := w.c.JournalBody(ctx, h); err != nil || !bytes.Equal(got, body) {
			w.fatal("the journal's copy of blob %s at %+v: %v", h, row.pos, err)
		}
	}
}

// forgetDead lets the model follow what is gone for good.
func (w *world) forgetDead() {
	for ino, n := range w.m.live {
		if _, err := w.c.Get(context.Background(), ino); n.row.Nlink == 0 && errors.Is(err, ErrStale) {
			delete(w.m.live, ino)
			delete(w.m.saved, ino)
		}
	}
}

func runPruneWorld(t *testing.T, seed uint64, steps int) CompactReport {
	t.Logf("seed %d", seed)
	w := newPruneWorld(t, seed, nil)
	p := testPolicy()
	ctx := context.Background()
	for i := range steps {
		if w.rnd.IntN(8) == 0 {
			w.transaction()
		} else {
			w.step()
		}
		if w.rnd.IntN(40) == 0 {
			w.m.sync() // a snapshot writes what is deferred
			must[Snapshot](t)(w.c.CreateSnapshot(ctx, testActor(), fmt.Sprintf("s%d", i), false))
			w.housekeeping()
		}
		if w.rnd.IntN(60) == 0 {
			for _, s := range must[[]Snapshot](t)(w.c.Snapshots(ctx)) {
				if !s.Auto && w.rnd.IntN(3) == 0 {
					if err := w.c.RemoveSnapshot(ctx, testActor(), s.Name); err != nil {
						w.fatal("remove a snapshot: %v", err)
					}
				}
			}
			w.housekeeping()
		}
		if i%70 == 69 {
			w.prune(p, false)
			w.checkPruned(p, 4)
			if w.rnd.IntN(2) == 0 {
				w.reopen(w.rnd.IntN(2) == 0)
			}
		}
	}
	w.clk.now += int64(5 * time.Hour)
	w.m.now = w.clk.tick()
	w.prune(p, true)
	w.checkPruned(p, 3)
	w.checkBlobs()
	if s := must[Stats](t)(w.c.Stats(ctx)); s.OldestVersion.IsZero() && s.Versions > 0 {
		t.Errorf("%+v", s)
	}
	w.checkRebuild()
	w.c = openCatalog(t, w.opt)
	w.checkPruned(p, 3)
	// Once all snapshots are gone and time has passed, only the present is left.
	for _, s := range must[[]Snapshot](t)(w.c.Snapshots(ctx)) {
		if err := w.c.RemoveSnapshot(ctx, testActor(), s.Name); err != nil {
			t.Fatal(err)
		}
	}
	w.housekeeping()
	w.clk.now += int64(1000 * time.Hour)
	w.m.now = w.clk.tick()
	w.prune(p, true)
	w.compact()
	w.check(Head)
	w.checkBlobs()
	err := w.c.db.Read(ctx, func(c *sqldb.Conn) error {
		for _, query := range []string{
			"SELECT count(*) FROM (SELECT ino FROM inodes GROUP BY ino HAVING count(*) > 1)",
			"SELECT count(*) FROM dentries WHERE to_seq IS NOT NULL", "SELECT count(*) FROM extents WHERE to_seq IS NOT NULL",
			"SELECT count(*) FROM xattrs WHERE to_seq IS NOT NULL", "SELECT count(*) FROM loose",
			"SELECT count(*) FROM inodes i WHERE nlink = 0",
		} {
			st := c.Prep(query)
			if _, err := st.Step(); err != nil {
				return err
			}
			if n := st.Int64(0); n > 0 {
				t.Errorf("%s: %d rows are left of the past", query, n)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return w.compacted
}

var errFault = errors.New("a fault for the test")

// TestPruneKilled ends the process at each kind of step of retention and compaction, at a random one, again and again: nothing that is kept is lost, and the
// next run goes on.
func TestPruneKilled(t *testing.T) {
	seed := rand.Uint64() % 1e9
	t.Logf("seed %d", seed)
	w := newPruneWorld(t, seed, nil)
	p := testPolicy()
	ctx := context.Background()
	const midBatch = stage(-1) // between two blobs of a batch that is deleted
	stages := []stage{stagePrune, stageDelete, stageCheckpoint, stageCompact, stageRows, stageDurable, stageSettle, midBatch}
	killed := 0
	for round := range 2 * len(stages) {
		for range 25 {
			w.step()
		}
		if w.rnd.IntN(3) == 0 {
			w.m.sync()
			must[Snapshot](t)(w.c.CreateSnapshot(ctx, testActor(), fmt.Sprintf("s%d", round), false))
			w.housekeeping()
		}
		w.clk.now += int64(time.Duration(w.rnd.IntN(5)) * time.Hour)
		at, left := stages[round%len(stages)], w.rnd.IntN(4)
		w.reopen(true)
		if err := w.c.Close(ctx); err != nil {
			t.Fatal(err)
		}
		o := w.opt
		armed := false
		o.fault = func(s stage) error {
			if armed && s == at {
				if left--; left < 0 {
					return errFault
				}
			}
			return nil
		}
		w.blobs.deleting = func(int, []blobstore.Hash) error { return o.fault(midBatch) }
		w.c = openCatalog(t, o)
		if _, err := w.c.AutoSnapshots(ctx, w.clk.read()); err != nil {
			t.Fatal(err)
		}
		armed = true
		_, err := w.c.Prune(ctx, PruneOptions{Policies: []Policy{p}, Slice: 7, Sweep: true})
		if err == nil {
			_, err = w.c.Compact(ctx, true, nil)
		}
		if err != nil && !errors.Is(err, errFault) {
			w.fatal("prune: %v", err)
		}
		if err != nil {
			killed++
		}
		kill(w.c)
		w.blobs.deleting = nil
		w.c = openCatalog(t, w.opt)
		w.forgetDead()
		w.housekeeping()
		w.checkPruned(p, 8)
		w.checkBodies()
		if round%5 == 4 {
			w.checkRebuild()
			w.c = openCatalog(t, w.opt)
		}
	}
	if killed < len(stages)/2 {
		t.Errorf("only %d runs were ended by a fault", killed)
	}
	w.prune(p, true)
	w.checkPruned(p, 3)
	w.checkBlobs()
}

// modelSteps names the environment variable with the number of random operations of TestPruneRandom, when they are to be more: docs/testing.md.
const modelSteps = "HOLDFAST_MODEL_STEPS"

// TestPruneRandom compares the moments that retention keeps with a plain model, over random operations. A world has as many moments to compare as it has
// operations, so many operations are many worlds.
func TestPruneRandom(t *testing.T) {
	const steps = 280
	seeds := []uint64{7, rand.Uint64() % 1e9}
	if text := os.Getenv(modelSteps); text != "" {
		total, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		for done := len(seeds) * steps; done < total; done += steps {
			seeds = append(seeds, rand.Uint64()%1e9)
		}
	}
	start := time.Now()
	var sum CompactReport // a small world may have nothing to compact
	for i, seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rep := runPruneWorld(t, seed, steps)
			sum.Segments, sum.Heads, sum.Bodies = sum.Segments+rep.Segments, sum.Heads+rep.Heads, sum.Bodies+rep.Bodies
		})
		if t.Failed() {
			break
		}
		if i%100 == 99 {
			t.Logf("%d operations in %s", (i+1)*steps, time.Since(start).Round(time.Second))
		}
	}
	if sum.Segments == 0 || sum.Heads == 0 || sum.Bodies == 0 {
		t.Errorf("compaction: %+v", sum)
	}
}
