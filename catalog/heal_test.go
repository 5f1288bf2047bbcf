package catalog

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/blobstore/blobstoretest"
)

// segmentsOf lists the segment files of a store.
func segmentsOf(t *testing.T, dir string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, journalName, "*.seg"))
	if err != nil || len(list) == 0 {
		t.Fatal(list, err)
	}
	slices.Sort(list)
	return list
}

// One flipped bit anywhere in the journal heals, byte for byte.
func TestFlippedBitInJournalHeals(t *testing.T) {
	st := newIntegrityStore(t, 51, 60)
	ctx := context.Background()
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 1))
	o := st.copyTo(t, false)
	segs := segmentsOf(t, o.Dir)
	good := make(map[string][]byte)
	for _, s := range segs {
		b, err := os.ReadFile(s)
		if err != nil {
			t.Fatal(err)
		}
		good[s] = b
	}
	c := openCatalog(t, o)
	for i := range 60 {
		s := segs[rnd.IntN(len(segs))]
		bad := bytes.Clone(good[s])
		at := rnd.IntN(len(bad))
		if i%4 == 0 {
			at = rnd.IntN(4096) // the header
		}
		bad[at] ^= 1 << rnd.IntN(8)
		if err := os.WriteFile(s, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		rep, err := c.HealJournal(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if len(rep.Healed) != 1 || len(rep.Left) != 0 {
			t.Fatalf("seed %d: %s byte %d: %v", seed, s, at, rep)
		}
		if now, err := os.ReadFile(s); err != nil || !bytes.Equal(now, good[s]) {
			t.Fatalf("seed %d: %s byte %d is healed to something else: %v", seed, s, at, err)
		}
	}
	if rep, err := c.HealJournal(ctx); err != nil || len(rep.Healed)+len(rep.Left) > 0 {
		t.Fatal(rep, err)
	}
	if kept, err := filepath.Glob(filepath.Join(o.Dir, "quarantine", "*.seg.damaged-*")); err != nil || len(kept) != 60 {
		t.Fatal("what was damaged is not in quarantine:", len(kept), err)
	}
}

// A body that is gone comes back from the blobstore.
func TestBodyInJournalHeals(t *testing.T) {
	o := testOptions(t, blobstoretest.TempDir(t), newMemBlobs())
	ctx := context.Background()
	c := openCatalog(t, o)
	if err := c.Init(ctx, testActor(), NewInode{Mode: 0o755}); err != nil {
		t.Fatal(err)
	}
	body := bytes.Repeat([]byte("what a body says "), 2000)
	f := createFile(t, c, Root, "f")
	must[Inode](t)(c.Commit(ctx, testActor(), whole(f.Ino, body)))
	createFile(t, c, Root, "g")
	if err := c.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	seg := segmentsOf(t, o.Dir)[0]
	good, err := os.ReadFile(seg)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(good, body)
	for _, n := range []int{1, 100, 4096, len(body)} {
		bad := bytes.Clone(good)
		clear(bad[at : at+n])
		if err := os.WriteFile(seg, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		rep, err := c.HealJournal(ctx)
		if err != nil || len(rep.Healed) != 1 || len(rep.Left) > 0 {
			t.Fatal(n, rep, err)
		}
		if now, err := os.ReadFile(seg); err != nil || !bytes.Equal(now, good) {
			t.Fatal(n, "healed to something else", err)
		}
	}
	// Without the blobstore it cannot be made good, and is not made up.
	clear(o.Blobs.(*memBlobs).data)
	clear(good[at : at+4096])
	if err := os.WriteFile(seg, good, 0o600); err != nil {
		t.Fatal(err)
	}
	rep, err := c.HealJournal(ctx)
	if err != nil || len(rep.Healed) > 0 || len(rep.Left) != 1 || rep.Checkpoint == 0 {
		t.Fatal(rep, err)
	}
	if now, err := os.ReadFile(seg); err != nil || !bytes.Equal(now, good) {
		t.Fatal("it was changed", err)
	}
}

// What cannot be healed is reported, by every later look, and the state that came of it outlives catalog.db: a checkpoint stands for it.
func TestLostRecordsOutliveCatalog(t *testing.T) {
	st := newIntegrityStore(t, 61, 200)
	ctx := context.Background()
	if n := len(segmentsOf(t, st.opt.Dir)); n < 3 {
		t.Fatal("segments:", n)
	}
	ways := map[string]func(t *testing.T, segs []string, b []byte){
		"zeroed page": func(t *testing.T, segs []string, b []byte) {
			clear(b[8192:12288])
			if err := os.WriteFile(segs[1], b, 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"deleted": func(t *testing.T, segs []string, _ []byte) {
			if err := os.Remove(segs[1]); err != nil {
				t.Fatal(err)
			}
		},
		"truncated": func(t *testing.T, segs []string, b []byte) {
			if err := os.Truncate(segs[1], int64(len(b)/2)); err != nil {
				t.Fatal(err)
			}
		},
		"first deleted": func(t *testing.T, segs []string, _ []byte) {
			if err := os.Remove(segs[0]); err != nil {
				t.Fatal(err)
			}
		},
		"overwritten by another": func(t *testing.T, segs []string, b []byte) {
			if err := os.WriteFile(segs[0], b, 0o600); err != nil {
				t.Fatal(err)
			}
		},
	}
	for way, damage := range ways {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			o := st.copyTo(t, false)
			segs := segmentsOf(t, o.Dir)
			b, err := os.ReadFile(segs[1])
			if err != nil {
				t.Fatal(err)
			}
			damage(t, segs, b)
			c := openCatalog(t, o)
			if list := compareAll(t, c, 1000); len(list) == 0 || list[0].Table != "journal" || c.Damaged() {
				t.Fatal("compare:", list, c.Damaged())
			}
			if err := c.Rebuild(ctx); !errors.Is(err, ErrDamaged) {
				t.Fatal("a rebuild that loses records:", err)
			}
			var left int
			for range 2 {
				rep, err := c.HealJournal(ctx)
				if err != nil || len(rep.Left) == 0 || len(rep.Healed) > 0 || rep.Checkpoint == 0 || left > 0 && len(rep.Left) != left {
					t.Fatal(rep, err)
				}
				left = len(rep.Left)
			}
			if list := compareAll(t, c, 1000); len(list) > 0 {
				t.Fatal("compare on top of the checkpoint:", list)
			}
			if err := c.Rebuild(ctx); err != nil {
				t.Fatal(err)
			}
			if wrong, damaged := st.wrong(st.answers(c)); len(wrong) > 0 || damaged > 0 {
				t.Fatalf("%d damaged, wrong:\n%s", damaged, strings.Join(wrong, "\n"))
			}
			if err := c.Close(ctx); err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(filepath.Join(o.Dir, dbName)); err != nil {
				t.Fatal(err)
			}
			c = openCatalog(t, o)
			if wrong, damaged := st.wrong(st.answers(c)); len(wrong) > 0 || damaged > 0 {
				t.Fatalf("rebuilt at a start: %d damaged, wrong:\n%s", damaged, strings.Join(wrong, "\n"))
			}
		})
	}
}

// Segments that bear each other's names get their own back.
func TestSwappedSegments(t *testing.T) {
	st := newIntegrityStore(t, 71, 300)
	last := len(segmentsOf(t, st.opt.Dir)) - 1
	if last < 2 {
		t.Fatal("segments:", last+1)
	}
	for _, pair := range [][2]int{{0, 1}, {0, last}, {last - 1, last}} {
		for _, halfWay := range []bool{false, true} {
			o := st.copyTo(t, false)
			segs := segmentsOf(t, o.Dir)
			a, b, temp := segs[pair[0]], segs[pair[1]], filepath.Join(o.Dir, "x")
			steps := [][2]string{{a, temp}, {b, a}, {temp, b}}
			if halfWay { // as a process leaves it that is killed in the middle of mending
				steps = [][2]string{{b, strings.TrimSuffix(b, ".seg") + ".seg.misnamed"}, {a, strings.TrimSuffix(a, ".seg") + ".seg.misnamed"}}
			}
			for _, s := range steps {
				if err := os.Rename(s[0], s[1]); err != nil {
					t.Fatal(err)
				}
			}
			c := openCatalog(t, o)
			if d := must[Stats](t)(c.Stats(context.Background())).Damage; len(d) > 0 {
				t.Fatal(pair, d)
			}
			if rep, err := c.HealJournal(context.Background()); err != nil || len(rep.Healed)+len(rep.Left) > 0 {
				t.Fatal(pair, rep, err)
			}
			if list := compareAll(t, c, 1000); len(list) > 0 {
				t.Fatal(pair, list)
			}
		}
	}
}

// A random walk of damage to the journal: nothing panics, nothing is made up, what is left is reported, and the answers stay right.
func TestRandomJournalDamage(t *testing.T) {
	st := newIntegrityStore(t, 81, 150)
	ctx := context.Background()
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 1))
	for round := range 12 {
		o := st.copyTo(t, false)
		segs := segmentsOf(t, o.Dir)
		for range 1 + rnd.IntN(3) {
			s := segs[rnd.IntN(len(segs))]
			b, err := os.ReadFile(s)
			if err != nil {
				t.Fatal(err)
			}
			at := rnd.IntN(len(b))
			switch rnd.IntN(4) {
			case 0:
				b[at] ^= 1 << rnd.IntN(8)
			case 1:
				clear(b[at:min(len(b), at+4096)])
			case 2:
				for i := range min(64, len(b)-at) {
					b[at+i] = byte(rnd.Uint32())
				}
			case 3:
				copy(b[at:], b[rnd.IntN(len(b)):])
			}
			if err := os.WriteFile(s, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c, err := Open(ctx, o)
		if err != nil {
			t.Fatalf("seed %d round %d: %v", seed, round, err)
		}
		first, err := c.HealJournal(ctx)
		if err != nil {
			t.Fatalf("seed %d round %d: %v", seed, round, err)
		}
		again, err := c.HealJournal(ctx)
		if err != nil || len(again.Healed) > 0 || len(again.Left) != len(first.Left) {
			t.Fatalf("seed %d round %d: %v, then %v %v", seed, round, first, again, err)
		}
		if wrong, damaged := st.wrong(st.answers(c)); len(wrong) > 0 || damaged > 0 {
			t.Fatalf("seed %d round %d: %d damaged, wrong:\n%s", seed, round, damaged, strings.Join(wrong, "\n"))
		}
		if err := c.Close(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

func TestVerifyVersions(t *testing.T) {
	ctx := context.Background()
	var clk clock
	var o Options
	c := newCatalog(t, func(opt *Options) { opt.Now = clk.read; o = *opt })
	f := createFile(t, c, Root, "f")
	const n = 40
	for i := range n {
		clk.now += int64(time.Hour)
		must[Inode](t)(c.Commit(ctx, Actor{Agent: fmt.Sprint("a", i%3)}, whole(f.Ino, fmt.Appendf(nil, "version %d", i))))
		if i%5 == 0 {
			must[Inode](t)(c.SetAttr(ctx, testActor(), f.Ino, Change{Mode: ptr(uint32(0o600))}))
		}
	}
	verify := func(c *Catalog) (versions, proved int, kinds string) {
		t.Helper()
		var list []string
		versions, proved, err := c.VerifyVersions(ctx, f.Ino, func(p VersionProblem) error {
			list = append(list, fmt.Sprint(p.Kind, p.Num))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return versions, proved, strings.Join(list, " ")
	}
	for range 2 {
		if v, p, problems := verify(c); v != n || p != n || problems != "" {
			t.Fatal(v, p, problems)
		}
		if err := c.Flush(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := c.VerifyVersions(ctx, 999, nil); !errors.Is(err, ErrStale) {
		t.Fatal(err)
	}
	// Rows with sums that hold: whoever writes them knows how they are made.
	forge := func(change func(v *Version), num uint64) {
		t.Helper()
		v := must[Version](t)(c.Version(ctx, f.Ino, num))
		change(&v)
		if err := c.db.Write(ctx, forgeVersion(&v)); err != nil {
			t.Fatal(err)
		}
	}
	forge(func(v *Version) { v.Size++ }, 7)
	forge(func(v *Version) { v.Prev[0]++ }, 9)
	forge(func(v *Version) { v.Time -= int64(3 * time.Hour) }, 11)
	if v, p, problems := verify(c); v != n || p != n || problems != "digest7 digest9 link9 digest11 time11" {
		t.Fatal(v, p, problems)
	}
	if list := compareAll(t, c, 1000); len(list) != 3 {
		t.Fatal(list)
	}
	if err := c.Rebuild(ctx); err != nil {
		t.Fatal(err)
	}
	if v, p, problems := verify(c); v != n || p != n || problems != "" {
		t.Fatal(v, p, problems)
	}
	// What retention takes is no gap, what somebody else takes is one.
	if _, err := c.Prune(ctx, PruneOptions{Policies: []Policy{{Path: "/", Dir: Root, KeepAll: 20 * time.Hour}}}); err != nil {
		t.Fatal(err)
	}
	v, p, problems := verify(c)
	if v >= n || v < 15 || p != v || problems != "" {
		t.Fatal(v, p, problems)
	}
	for _, num := range []string{"35", "40"} {
		if err := c.db.Write(ctx, deleteVersion(num)); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, problems := verify(c); problems != "number35 number40" {
		t.Fatal(problems)
	}
	if err := c.Rebuild(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(ctx); err != nil {
		t.Fatal(err)
	}
	// A record that cannot be read.
	seg := segmentsOf(t, o.Dir)[0]
	b, err := os.ReadFile(seg)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.LastIndex(b, []byte("version 38"))
	binary.LittleEndian.PutUint64(b[at:], 0)
	if err := os.WriteFile(seg, b, 0o600); err != nil {
		t.Fatal(err)
	}
	c = openCatalog(t, o)
	if again, p, problems := verify(c); again != v || p != v-1 || problems != "record39" {
		t.Fatal(again, p, problems)
	}
}
