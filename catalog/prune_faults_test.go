package catalog

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/catalog/journal"
)

// fullFS is a filesystem on which nothing more can be written while full is set.
type fullFS struct {
	journal.FS
	full *atomic.Bool
}

func (f fullFS) OpenFile(name string, flag int, perm os.FileMode) (journal.File, error) {
	if f.full.Load() && flag&os.O_CREATE != 0 {
		return nil, &os.PathError{Op: "open", Path: name, Err: unix.ENOSPC}
	}
	file, err := f.FS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return fullFile{file, f.full}, nil
}

type fullFile struct {
	journal.File
	full *atomic.Bool
}

func (f fullFile) WriteAt(p []byte, off int64) (int, error) {
	if f.full.Load() {
		return 0, unix.ENOSPC
	}
	return f.File.WriteAt(p, off)
}

// heartbeats is a catalog with a file of n versions, two days old, in small segments.
func heartbeats(t *testing.T, n int, change func(*Options)) (*Catalog, Options, Ino) {
	clk := &clock{now: time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC).UnixNano(), step: int64(time.Second)}
	var opt Options
	c := newCatalog(t, func(o *Options) {
		o.Now, o.SegmentBytes = clk.read, 16<<10
		change(o)
		opt = *o
	})
	file := createFile(t, c, Root, "f")
	beat(t, c, clk, file.Ino, n)
	clk.now += int64(48 * time.Hour)
	return c, opt, file.Ino
}

// On a full disk retention and compaction say so, take nothing away that they did not record, and go on when there is room again.
func TestPruneOnFullDisk(t *testing.T) {
	ctx := context.Background()
	full := new(atomic.Bool)
	c, opt, ino := heartbeats(t, 200, func(o *Options) { o.JournalFS = fullFS{journal.OS(), full} })
	if _, err := c.AutoSnapshots(ctx, c.opt.Now()); err != nil { // they take a record, too
		t.Fatal(err)
	}
	o := PruneOptions{Policies: []Policy{DefaultPolicy()}, Slice: 20}
	dry := o
	dry.DryRun = true
	want := must[PruneReport](t)(c.Prune(ctx, dry))

	full.Store(true)
	_, err := c.Prune(ctx, o)
	wantErr(t, err, ErrNoSpace)
	if got := versionNumbers(t, c, ino); len(got) != 200 {
		t.Fatalf("%d versions are left after a failed run", len(got))
	}
	for at := Seq(3); at <= 202; at++ {
		must[[]Extent](t)(c.Extents(ctx, ino, at))
	}
	full.Store(false)
	if rep := must[PruneReport](t)(c.Prune(ctx, o)); rep.Versions() != want.Versions() || rep.Blobs != want.Blobs || rep.Blobs < 190 {
		t.Fatalf("%+v, want %+v", rep, want)
	}

	full.Store(true)
	before := must[Stats](t)(c.Stats(ctx)).JournalBytes
	_, err = c.Compact(ctx, true, nil)
	wantErr(t, err, ErrNoSpace)
	full.Store(false)
	if now := must[Stats](t)(c.Stats(ctx)).JournalBytes; now != before {
		t.Fatalf("the journal has %d bytes after a compaction that failed, had %d", now, before)
	}
	if rep := must[CompactReport](t)(c.Compact(ctx, true, nil)); rep.JournalBytes < before/2 {
		t.Fatalf("%+v of %d bytes", rep, before)
	}
	left := versionNumbers(t, c, ino)
	if err := c.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if err := setAside(opt.Dir); err != nil {
		t.Fatal(err)
	}
	c = openCatalog(t, opt)
	if got := versionNumbers(t, c, ino); len(got) != len(left) || got[len(got)-1] != 200 {
		t.Fatalf("after a rebuild versions %v are left, were %v", got, left)
	}
}

// Without room for a checkpoint the journal loses bodies only, and a catalog.db that is lost is made from it whole.
func TestCompactWithoutCheckpoint(t *testing.T) {
	ctx := context.Background()
	c, opt, ino := heartbeats(t, 100, func(o *Options) {
		o.fault = func(s stage) error {
			if s == stageCheckpoint {
				return fmt.Errorf("no room: %w", ErrNoSpace)
			}
			return nil
		}
	})
	must[PruneReport](t)(c.Prune(ctx, PruneOptions{Policies: []Policy{DefaultPolicy()}}))
	if rep := must[CompactReport](t)(c.Compact(ctx, true, nil)); rep.Heads != 0 || rep.Bodies < 50 {
		t.Fatalf("%+v", rep)
	}
	want := must[[]Extent](t)(c.Extents(ctx, ino, Head))
	if err := c.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if err := setAside(opt.Dir); err != nil {
		t.Fatal(err)
	}
	c = openCatalog(t, opt)
	if got := must[[]Extent](t)(c.Extents(ctx, ino, Head)); len(got) != 1 || got[0] != want[0] {
		t.Fatalf("%+v, want %+v", got, want)
	}
}

// A checkpoint that has rotted is not used; what is lost with it is said, and what the journal still says is there.
func TestDamagedCheckpoint(t *testing.T) {
	ctx := context.Background()
	c, opt, _ := heartbeats(t, 100, func(*Options) {})
	must[PruneReport](t)(c.Prune(ctx, PruneOptions{Policies: []Policy{DefaultPolicy()}}))
	if rep := must[CompactReport](t)(c.Compact(ctx, true, nil)); rep.Heads == 0 {
		t.Fatalf("%+v", rep)
	}
	if err := c.Close(ctx); err != nil {
		t.Fatal(err)
	}
	list, err := checkpoints(opt.Dir)
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	name := filepath.Join(opt.Dir, checkpointDir, list[0].name)
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := setAside(opt.Dir); err != nil {
		t.Fatal(err)
	}
	c = openCatalog(t, opt)
	if said := must[Stats](t)(c.Stats(ctx)).Damage; len(said) < 2 {
		t.Fatal("what is lost is not said:", said)
	}
	if _, err := c.Lookup(ctx, Root, "f"); err != nil {
		t.Fatal("what the journal still says is not used:", err)
	}
}

func FuzzCheckpointName(f *testing.F) {
	f.Add(checkpointName(77, [32]byte{1, 2}))
	f.Add("0000000000000001-.db")
	f.Add("../../x.db")
	f.Fuzz(func(t *testing.T, name string) {
		if c, ok := parseCheckpointName(name); ok && checkpointName(c.applied, c.sum) != name {
			t.Fatalf("%q", name)
		}
	})
}
