package catalog

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"
)

// beat makes n versions of a file, a tick apart.
func beat(t *testing.T, c *Catalog, clk *clock, ino Ino, n int) {
	t.Helper()
	for i := range n {
		at := clk.tick()
		must[Inode](t)(c.Commit(context.Background(), testActor(), whole(ino, fmt.Appendf(make([]byte, 0, 1000), "%d %0980d", at, i))))
	}
}

func versionNumbers(t *testing.T, c *Catalog, ino Ino) (all []uint64) {
	t.Helper()
	if err := c.Versions(context.Background(), ino, false, func(v Version) error {
		all = append(all, v.Num)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// pruneAlike makes a dry run and then the run, which must say the same.
func pruneAlike(t *testing.T, c *Catalog, o PruneOptions) PruneReport {
	t.Helper()
	o.DryRun = true
	dry := must[PruneReport](t)(c.Prune(context.Background(), o))
	o.DryRun = false
	rep := must[PruneReport](t)(c.Prune(context.Background(), o))
	dry.DryRun, dry.Steps = false, rep.Steps
	if !reflect.DeepEqual(dry, rep) {
		t.Fatalf("the dry run says\n%+v\nand the run does\n%+v", dry, rep)
	}
	return rep
}

func newClockCatalog(t *testing.T, step time.Duration) (*Catalog, *clock) {
	clk := &clock{now: time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC).UnixNano(), step: int64(step)}
	return newCatalog(t, func(o *Options) { o.Now = clk.read }), clk
}

func TestPruneByCount(t *testing.T) {
	ctx := context.Background()
	c, clk := newClockCatalog(t, time.Second)
	file, other := createFile(t, c, Root, "heartbeat"), createFile(t, c, Root, "other")
	beat(t, c, clk, file.Ino, 50)
	must[Snapshot](t)(c.CreateSnapshot(ctx, testActor(), "by-hand", false))
	beat(t, c, clk, file.Ino, 50)
	beat(t, c, clk, other.Ino, 10)
	p := DefaultPolicy()
	p.MaxVersions = 10
	o := PruneOptions{Policies: []Policy{p}, Slice: 7}
	rep := pruneAlike(t, c, o)
	want := []uint64{50, 91, 92, 93, 94, 95, 96, 97, 98, 99, 100}
	if got := versionNumbers(t, c, file.Ino); !slices.Equal(got, want) {
		t.Fatalf("versions %v, want %v", got, want)
	}
	if got := versionNumbers(t, c, other.Ino); len(got) != 10 {
		t.Fatalf("of a file with few versions %v are left", got)
	}
	if r := rep.Policies[0]; r.ByCount != 89 || r.Versions != 89 || rep.Blobs != 89 {
		t.Fatalf("%+v", rep)
	}
	// Only what has changed since is looked at again, and nothing is left to do.
	if rep := pruneAlike(t, c, o); rep.Versions() != 0 {
		t.Fatalf("%+v", rep)
	}
	beat(t, c, clk, file.Ino, 5)
	if rep := pruneAlike(t, c, o); rep.Versions() != 5 {
		t.Fatalf("%+v", rep)
	}
	// A smaller bound holds for files that have not changed since, too.
	o.Policies[0].MaxVersions = 4
	if rep := pruneAlike(t, c, o); rep.Versions() != 6+6 {
		t.Fatalf("%+v", rep)
	}
	if s := must[Stats](t)(c.Stats(ctx)); s.Versions != 5+4 {
		t.Fatalf("%+v", s)
	}
}

func TestPruneBySize(t *testing.T) {
	ctx := context.Background()
	c, clk := newClockCatalog(t, time.Second)
	file := createFile(t, c, Root, "f")
	size := must[Inode](t)(c.Commit(ctx, testActor(), whole(file.Ino, fmt.Appendf(nil, "%d %0980d", clk.tick(), 0)))).Size
	beat(t, c, clk, file.Ino, 30)
	must[Snapshot](t)(c.CreateSnapshot(ctx, testActor(), "by-hand", false))
	beat(t, c, clk, file.Ino, 70)
	p := DefaultPolicy()
	p.MaxBytes = 10 * size
	rep := pruneAlike(t, c, PruneOptions{Policies: []Policy{p}, Slice: 7})
	got := versionNumbers(t, c, file.Ino)
	if n := len(got); n < 9 || n > 12 || got[n-1] != 101 || !slices.Contains(got, 31) || rep.Policies[0].BySize != 101-int64(n) {
		t.Fatalf("versions %v, %+v", got, rep)
	}
	if rep := pruneAlike(t, c, PruneOptions{Policies: []Policy{p}}); rep.Versions() != 0 {
		t.Fatalf("again: %+v", rep)
	}
	// By time alone more would stay: what is gone stays gone, and is not taken for exact.
	p.MaxBytes = 0
	pruneAlike(t, c, PruneOptions{Policies: []Policy{p}})
	_, err := c.GetAt(ctx, file.Ino, 10)
	wantErr(t, err, ErrThinned)
	wantErr(t, c.ExactMoment(ctx, "/", 10), ErrThinned)
	wantErr(t, err, ErrNotExist)
}

// A moment that somebody holds stays, an inode that is open too, until they let go.
func TestPruneSparesWhatIsInUse(t *testing.T) {
	ctx := context.Background()
	c, clk := newClockCatalog(t, time.Second)
	file, gone := createFile(t, c, Root, "f"), createFile(t, c, Root, "gone")
	beat(t, c, clk, gone.Ino, 3)
	beat(t, c, clk, file.Ino, 3)
	held := must[Stats](t)(c.Stats(ctx)).Seq
	want := must[[]Extent](t)(c.Extents(ctx, file.Ino, held))
	beat(t, c, clk, file.Ino, 20)
	must[Inode](t)(c.Unlink(ctx, testActor(), Root, "gone"))
	clk.now += int64(48 * time.Hour)
	beat(t, c, clk, file.Ino, 1)
	clk.now += int64(48 * time.Hour)
	c.Hold(held)
	open := true
	o := PruneOptions{Policies: []Policy{DefaultPolicy()}, Slice: 3, InUse: func(ino Ino) bool { return ino == gone.Ino && open }}
	pruneAlike(t, c, o)
	if got := must[[]Extent](t)(c.Extents(ctx, file.Ino, held)); !slices.Equal(got, want) {
		t.Fatalf("%+v, want %+v", got, want)
	}
	if got := must[[]Extent](t)(c.Extents(ctx, gone.Ino, Head)); len(got) != 1 {
		t.Fatalf("the content of an open file is %+v", got)
	}
	if _, err := c.JournalBody(ctx, want[0].Blob.Hash); err != nil {
		t.Fatal(err)
	}
	c.Release(held)
	open = false
	must[PruneReport](t)(c.Prune(ctx, o))
	if _, err := c.Extents(ctx, file.Ino, held); !errors.Is(err, ErrThinned) {
		t.Fatal("a moment that nobody holds any more:", err)
	}
	_, err := c.Get(ctx, gone.Ino)
	wantErr(t, err, ErrStale)
}

// A snapshot that is made while Prune is at work, behind its back, holds what it is of, whatever bound Prune goes on to apply.
func TestSnapshotDuringPrune(t *testing.T) {
	ctx := context.Background()
	for name, set := range map[string]func(*Policy){
		"by count": func(p *Policy) { p.MaxVersions = 1 },
		"by size":  func(p *Policy) { p.MaxBytes = 1 },
		"by age":   func(p *Policy) { p.KeepAll, p.Hourly, p.Daily, p.Weekly = 0, 0, 0, 0 },
	} {
		t.Run(name, func(t *testing.T) {
			c, clk := newClockCatalog(t, time.Second)
			file := createFile(t, c, Root, "f")
			beat(t, c, clk, file.Ino, 40)
			policy := DefaultPolicy()
			set(&policy)
			type kept struct {
				seq  Seq
				want []Extent
			}
			var all []kept
			o := PruneOptions{Policies: []Policy{policy}, Slice: 10, Pause: func(ctx context.Context) error {
				if len(all) == 20 {
					return ctx.Err()
				}
				beat(t, c, clk, file.Ino, 3)
				s := must[Snapshot](t)(c.CreateSnapshot(ctx, testActor(), fmt.Sprint("made-meanwhile-", len(all)), false))
				all = append(all, kept{s.Seq, must[[]Extent](t)(c.Extents(ctx, file.Ino, s.Seq))})
				beat(t, c, clk, file.Ino, 3)
				return c.Flush(ctx)
			}}
			for range 3 {
				must[PruneReport](t)(c.Prune(ctx, o))
			}
			if len(all) < 3 {
				t.Fatalf("Prune has paused %d times only", len(all))
			}
			for i, k := range all {
				got, err := c.Extents(ctx, file.Ino, k.seq)
				if err != nil || !slices.Equal(got, k.want) {
					t.Errorf("snapshot %d of v%d: %+v, %v, want %+v", i, k.seq, got, err, k.want)
				}
			}
		})
	}
}

// A moment that is held while Prune is at work, behind its back, is spared.
func TestHoldDuringPrune(t *testing.T) {
	ctx := context.Background()
	c, clk := newClockCatalog(t, time.Second)
	file := createFile(t, c, Root, "f")
	beat(t, c, clk, file.Ino, 40)
	held := Seq(25)
	want := must[[]Extent](t)(c.Extents(ctx, file.Ino, held))
	clk.now += int64(48 * time.Hour)
	once := false
	o := PruneOptions{Policies: []Policy{DefaultPolicy()}, Slice: 10, Pause: func(ctx context.Context) error {
		if !once {
			c.Hold(held)
			once = true
		}
		return ctx.Err()
	}}
	must[PruneReport](t)(c.Prune(ctx, o))
	if got := must[[]Extent](t)(c.Extents(ctx, file.Ino, held)); !slices.Equal(got, want) {
		t.Fatalf("%+v, want %+v", got, want)
	}
	c.Release(held)
	must[PruneReport](t)(c.Prune(ctx, o))
	if got := versionNumbers(t, c, file.Ino); !slices.Equal(got, []uint64{40}) {
		t.Fatalf("versions %v", got)
	}
}

func TestPruneOfConflicts(t *testing.T) {
	ctx := context.Background()
	c, clk := newClockCatalog(t, time.Second)
	file := createFile(t, c, Root, "f")
	beat(t, c, clk, file.Ino, 2)
	cm := whole(file.Ino, []byte("aside"))
	x := must[Conflict](t)(c.CommitAside(ctx, testActor(), cm, Conflict{WonBy: testActor()}))
	clk.tick()
	policies := []Policy{DefaultPolicy()}
	clk.now += int64(23 * time.Hour)
	pruneAlike(t, c, PruneOptions{Policies: policies})
	if list := must[[]Conflict](t)(c.Conflicts(ctx, 0, 10)); len(list) != 1 || len(must[[]Extent](t)(c.Extents(ctx, x.Side, Head))) != 1 {
		t.Fatalf("%+v", list)
	}
	clk.now += int64(2 * time.Hour)
	rep := pruneAlike(t, c, PruneOptions{Policies: policies})
	if list := must[[]Conflict](t)(c.Conflicts(ctx, 0, 10)); len(list) != 0 || rep.Blobs != 2 {
		t.Fatalf("%+v %+v", list, rep)
	}
	_, err := c.Get(ctx, x.Side)
	wantErr(t, err, ErrStale)
}

// Directories with policies of their own, files that move between them: what is shown of the past is what was, or an error, and the present is untouched.
func TestPruneDirectoriesRandom(t *testing.T) {
	seed := rand.Uint64() % 1e9
	t.Logf("seed %d", seed)
	w := newPruneWorld(t, seed, nil)
	ctx := context.Background()
	for _, name := range []string{"n0", "n1"} {
		w.m.now = w.clk.tick()
		must[Inode](t)(w.c.Create(ctx, testActor(), Root, name, NewInode{Mode: 0o040755}))
		if _, err := w.m.create(Root, name, NewInode{Mode: 0o040755}); err != nil {
			t.Fatal(err)
		}
		w.m.end()
	}
	strict, count := testPolicy(), testPolicy()
	strict.Path, strict.Dir, strict.KeepAll, strict.Hourly = "/n0", 2, 30*time.Minute, 2*time.Hour
	count.Path, count.Dir, count.MaxVersions = "/n1", 3, 2
	for round := range 6 {
		for range 60 {
			w.step()
		}
		if _, err := w.c.AutoSnapshots(ctx, w.clk.read()); err != nil {
			t.Fatal(err)
		}
		policies := []Policy{testPolicy(), strict, count}
		if round == 4 {
			policies = policies[:2] // a policy that is no more
		}
		pruneAlike(t, w.c, PruneOptions{Policies: policies, Slice: 1 + w.rnd.IntN(20)})
		w.forgetDead()
		w.housekeeping()
		for at := range Seq(len(w.m.past)) {
			if w.rnd.IntN(4) == 0 {
				w.checkKept(at, false)
			}
		}
		w.check(Head)
	}
	w.checkRebuild()
}

func TestAutoSnapshots(t *testing.T) {
	ctx := context.Background()
	clk := &clock{now: time.Date(2026, 3, 1, 10, 10, 0, 0, time.UTC).UnixNano(), step: int64(time.Minute)}
	c := newCatalog(t, func(o *Options) { o.Now = clk.read })
	file := createFile(t, c, Root, "f")
	take := func() (names []string) {
		t.Helper()
		for _, s := range must[[]Snapshot](t)(c.AutoSnapshots(ctx, clk.read())) {
			if !s.Auto {
				t.Errorf("%+v is not automatic", s)
			}
			names = append(names, s.Name)
		}
		return names
	}
	beat(t, c, clk, file.Ino, 3)
	if got := take(); got != nil {
		t.Fatal("in the middle of the hour:", got)
	}
	clk.now += int64(time.Hour)
	if got := take(); !slices.Equal(got, []string{"2026-03-01T11:00:00Z"}) {
		t.Fatal(got)
	}
	if s := must[Snapshot](t)(c.Snapshot(ctx, "2026-03-01T11:00:00Z")); s.Seq != 5 {
		t.Fatalf("%+v", s)
	}
	if got := take(); got != nil {
		t.Fatal("twice:", got)
	}
	clk.now += int64(24 * time.Hour)
	if got := take(); got != nil {
		t.Fatal("of hours in which nothing changed but the list of snapshots:", got)
	}
	beat(t, c, clk, file.Ino, 2) // 2026-03-02 11:13
	clk.now += int64(3 * time.Hour)
	beat(t, c, clk, file.Ino, 2) // 14:15
	must[Snapshot](t)(c.CreateSnapshot(ctx, testActor(), "2026-03-02T12:00:00Z", false))
	clk.now += int64(5 * time.Hour)
	if got := take(); !slices.Equal(got, []string{"2026-03-02T15:00:00Z"}) {
		t.Fatal("with one name that somebody has taken:", got)
	}
}

func TestLadder(t *testing.T) {
	now := time.Date(2026, 6, 30, 12, 30, 0, 0, time.UTC)
	var list []Snapshot
	for at := now.Truncate(time.Hour).AddDate(-2, 0, 0); at.Before(now); at = at.Add(time.Hour) {
		list = append(list, Snapshot{Name: at.Format(time.RFC3339), Auto: true, Time: at.UnixNano()})
	}
	list[100].Pinned, list[200].Auto = true, false
	p := DefaultPolicy()
	kept := p.keeps(list, now)
	has := func(s Snapshot) bool { return slices.Contains(kept, s) }
	if !has(list[100]) || !has(list[200]) {
		t.Error("a pinned snapshot, or one made by hand, is not kept")
	}
	counts := map[string]int{}
	for _, s := range kept {
		at := unixTime(s.Time)
		age := now.Sub(at)
		switch {
		case s.Pinned || !s.Auto:
		case age <= 7*24*time.Hour:
			counts["hourly"]++
		case age <= 30*24*time.Hour:
			counts["daily"]++
			if at.Hour() != 0 {
				t.Errorf("%s is kept, and is not the last of its day", s.Name)
			}
		default:
			counts["weekly"]++
			if at.Hour() != 0 || at.Weekday() != time.Monday || age > 365*24*time.Hour {
				t.Errorf("%s is kept, and is not the last of its week", s.Name)
			}
		}
	}
	if counts["hourly"] != 7*24 || counts["daily"] != 23 || counts["weekly"] < 47 || counts["weekly"] > 49 {
		t.Errorf("%v", counts)
	}
	// Thinning what was thinned, an hour later each time, takes one hour at a time and never what is still to be kept.
	for range 24 * 40 {
		now = now.Add(time.Hour)
		next := p.keeps(kept, now)
		days, before := map[int64]bool{}, map[int64]bool{}
		for _, s := range next {
			days[dayOf(unixTime(s.Time))] = true
		}
		for _, s := range kept {
			if age := now.Sub(unixTime(s.Time)); age <= 29*24*time.Hour {
				before[dayOf(unixTime(s.Time))] = true
			}
		}
		for d := range before {
			if !days[d] {
				t.Fatalf("at %v nothing is left of day %d", now, d)
			}
		}
		kept = next
	}
}

func TestPruneRefuses(t *testing.T) {
	c := newCatalog(t, nil)
	p := DefaultPolicy()
	other := p
	other.Path, other.Dir = "/a", 2
	negative := p
	negative.KeepAll = -1
	for _, list := range [][]Policy{nil, {other}, {p, p}, {negative}, {p, other, other}} {
		_, err := c.Prune(context.Background(), PruneOptions{Policies: list})
		wantErr(t, err, ErrInvalid)
	}
}
