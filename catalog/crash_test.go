package catalog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/blobstore/blobstoretest"
	"holdfast/internal/sqldb"
)

// A failure of the applier at any step loses nothing, is visible, and ends when its cause does.
func TestApplierFaults(t *testing.T) {
	for _, s := range []stage{stageDurable, stageBodies, stageRows, stageBlobSeq} {
		t.Run(fmt.Sprint("stage ", s), func(t *testing.T) {
			var broken atomic.Bool
			w := newWorld(t, 7+uint64(s), func(o *Options) {
				o.fault = func(at stage) error {
					if at == s && broken.Load() {
						return unix.EIO
					}
					return nil
				}
			})
			broken.Store(true)
			for range 60 {
				w.step0flush()
			}
			ctx := context.Background()
			if s != stageBlobSeq {
				wantErr(t, w.c.Flush(ctx), unix.EIO)
				wantErr(t, must[Stats](t)(w.c.Stats(ctx)).LastError, unix.EIO)
			} else {
				if err := w.c.Flush(ctx); err != nil {
					t.Fatal(err)
				}
				wantErr(t, w.c.syncBodies(ctx), unix.EIO)
			}
			w.check(Head)
			kill(w.c)
			broken.Store(false)
			w.m.forget()
			w.c = openCatalog(t, w.opt)
			w.check(Head)
			w.checkMeta()
			w.checkRebuild()
		})
	}
}

// step0flush is a step of which a failing Flush is no surprise.
func (w *world) step0flush() {
	for {
		seed := w.rnd.Uint64()
		if p := rand.New(rand.NewPCG(seed, 1)).IntN(100); p < 95 {
			w.rnd = rand.New(rand.NewPCG(seed, 1))
			w.step()
			w.rnd = rand.New(rand.NewPCG(seed, 2))
			return
		}
	}
}

func TestNoSpaceStopsMutations(t *testing.T) {
	blobs := newMemBlobs()
	c := newCatalog(t, func(o *Options) { o.Blobs, o.PendingBytes = blobs, 64<<10 })
	ctx, who := context.Background(), testActor()
	f := createFile(t, c, Root, "f")
	blobs.fail(unix.ENOSPC)
	var err error
	commits := 0
	for err == nil && commits < 10_000 {
		_, err = c.Commit(ctx, who, whole(f.Ino, []byte(fmt.Sprint("body ", commits, strings.Repeat(".", 1000)))))
		commits++
	}
	wantErr(t, err, ErrNoSpace)
	wantErr(t, must[Stats](t)(c.Stats(ctx)).LastError, unix.ENOSPC)
	done := make(chan error, 1)
	blobs.fail(nil)
	go func() {
		for {
			_, err := c.Commit(ctx, who, whole(f.Ino, []byte("after")))
			if !errors.Is(err, ErrNoSpace) {
				done <- err
				return
			}
			if err := c.Flush(ctx); err != nil {
				done <- err
				return
			}
		}
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	n := 0
	if err := c.Versions(ctx, f.Ino, false, func(Version) error { n++; return nil }); err != nil || n != commits {
		t.Fatalf("%d versions (%v), want %d: what was refused must not be there", n, err, commits)
	}
}

func TestWaitForRoomEndsWithContext(t *testing.T) {
	c := newCatalog(t, func(o *Options) { o.PendingBytes = 1 })
	createOrFail := func(ctx context.Context, name string) error {
		_, err := c.Create(ctx, testActor(), Root, name, NewInode{Mode: unix.S_IFREG})
		return err
	}
	if err := createOrFail(context.Background(), "a"); err != nil { // waits until the root is applied
		t.Fatal(err)
	}
	c.app.mu.Lock()
	defer c.app.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- createOrFail(ctx, "b") }()
	cancel()
	wantErr(t, <-done, context.Canceled)
}

// powerCut copies a store as a power cut would leave it: of the journal what was synced and any part of the rest; of the blobs
// what was synced.
func powerCut(t *testing.T, w *world, synced int64) {
	kill(w.c)
	dir := filepath.Join(w.opt.Dir, journalName)
	names, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	last := filepath.Join(dir, names[len(names)-1].Name())
	fi, err := os.Stat(last)
	if err != nil {
		t.Fatal(err)
	}
	if len(names) > 1 { // older segments were synced when they ended
		synced = 0
		t.Fatal("the test's segments must be large")
	}
	cut := synced + w.rnd.Int64N(fi.Size()-synced+1)
	if err := os.Truncate(last, cut); err != nil {
		t.Fatal(err)
	}
	w.blobs.powerCut()
}

// After a power cut the store is as it was after some record: never before the last Sync, and nothing in between is missing.
func TestPowerCut(t *testing.T) {
	for seed := range uint64(5) {
		w := newWorld(t, 100+seed, func(o *Options) {
			o.SegmentBytes = 1 << 30
			o.fault = func(stage) error { return unix.EIO } // the applier does not sync in between
		})
		ctx := context.Background()
		promised, size := Seq(0), int64(0)
		for i := range 80 {
			w.step0flush()
			if i == 20+int(seed)*5 {
				if err := w.c.Sync(ctx); err != nil {
					t.Fatal(err)
				}
				w.m.now = w.clk.now
				w.m.sync()
				promised, size = w.seq(), w.c.j.Bytes()
			}
		}
		powerCut(t, w, size)
		w.opt.fault = nil
		w.c = openCatalog(t, w.opt)
		at := w.seq()
		if at < promised {
			t.Fatalf("seed %d: record %d was promised, the store is at %d", seed, promised, at)
		}
		w.m.saved = w.m.past[at]
		w.m.past, w.m.times = w.m.past[:at+1], w.m.times[:at+1]
		w.m.unuse()
		w.m.forget()
		w.tmps, w.pool = nil, nil
		w.check(Head)
		w.checkMeta()
		for range 30 {
			w.step()
		}
		w.check(Head)
	}
}

// A large blob that a power cut took ends the journal before the record that names it, when nobody was promised that record.
func TestUnsyncedBlobIsLost(t *testing.T) {
	w := newWorld(t, 3, func(o *Options) { o.fault = func(stage) error { return unix.EIO } })
	ctx, who := context.Background(), testActor()
	w.m.now = w.clk.tick()
	f := createFile(t, w.c, Root, "f")
	body := []byte("a large one")
	w.blobs.put(body)
	cm := whole(f.Ino, body)
	cm.Blobs[0].Body, cm.UnsyncedBlobs = nil, true
	must[Inode](t)(w.c.Commit(ctx, who, cm))
	createFile(t, w.c, Root, "later")
	kill(w.c)
	w.blobs.powerCut()
	w.opt.fault = nil

	ro := w.opt
	ro.ReadOnly = true
	w.c = openCatalog(t, w.opt)
	if s := must[Stats](t)(w.c.Stats(ctx)); s.Seq != 2 {
		t.Fatalf("the store is at record %d, want 2", s.Seq)
	}
	row := must[Inode](t)(w.c.Lookup(ctx, Root, "f"))
	_, err := w.c.Lookup(ctx, Root, "later")
	if row.Size != 0 || !errors.Is(err, ErrNotExist) {
		t.Fatal(row, err)
	}
	if kept, err := filepath.Glob(filepath.Join(w.opt.Dir, "quarantine", "*.dropped-*")); err != nil || len(kept) != 1 {
		t.Fatal("what was dropped is not in quarantine:", kept, err)
	}
	w.blobs.put(body)
	must[Inode](t)(w.c.Commit(ctx, who, cm))
	if err := w.c.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	kill(w.c)
	w.blobs.powerCut() // Sync made it durable
	w.c = openCatalog(t, w.opt)
	if row := must[Inode](t)(w.c.Get(ctx, f.Ino)); row.Size != int64(len(body)) {
		t.Fatal(row)
	}
}

// The end of a segment syncs the journal: the blobs that its records name come first.
func TestSegmentEndSyncsBlobsFirst(t *testing.T) {
	blobs := newMemBlobs()
	c := newCatalog(t, func(o *Options) {
		o.Blobs, o.SegmentBytes = blobs, 16<<10
		o.fault = func(stage) error { return unix.EIO }
	})
	ctx, who := context.Background(), testActor()
	f := createFile(t, c, Root, "f")
	body := []byte("a large one")
	blobs.put(body)
	cm := whole(f.Ino, body)
	cm.Blobs[0].Body, cm.UnsyncedBlobs = nil, true
	seq := must[Stats](t)(c.Stats(ctx)).Seq + 1
	must[Inode](t)(c.Commit(ctx, who, cm))
	for i := 0; must[Stats](t)(c.Stats(ctx)).Synced < seq; i++ {
		createFile(t, c, Root, strconv.Itoa(i))
	}
	if !blobs.synced[cm.Sum] {
		t.Fatal("the record is durable and its blob is not")
	}
	c.opt.fault = nil
}

func TestUnusableDatabaseIsRebuilt(t *testing.T) {
	damage := map[string]func(t *testing.T, path string){
		"missing":   func(t *testing.T, path string) { os.Remove(path) },
		"empty":     func(t *testing.T, path string) { os.Truncate(path, 0) },
		"cut":       func(t *testing.T, path string) { os.Truncate(path, 5000) },
		"no sqlite": func(t *testing.T, path string) { os.WriteFile(path, bytes.Repeat([]byte("no database "), 1000), 0o600) },
		"directory": func(t *testing.T, path string) { os.Remove(path); os.Mkdir(path, 0o700) },
		"version":   func(t *testing.T, path string) { script(t, path, "PRAGMA user_version = 99") },
		"meta":      func(t *testing.T, path string) { script(t, path, "DELETE FROM meta WHERE key = 'next_ino'") },
		"store": func(t *testing.T, path string) {
			script(t, path, "UPDATE meta SET value = x'00000000000000000000000000000000' WHERE key = 'store_id'")
		},
		"marker": func(t *testing.T, path string) {
			os.WriteFile(filepath.Join(filepath.Dir(path), rebuildName), nil, 0o600)
		},
	}
	w := newWorld(t, 11, nil)
	for range 80 {
		w.step()
	}
	w.m.now = w.clk.tick()
	if err := w.c.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	w.m.sync()
	w.m.forget()
	path := filepath.Join(w.opt.Dir, dbName)
	before := dump(t, w.opt.Dir)
	for name, break_ := range damage {
		break_(t, path)
		ro := w.opt
		ro.ReadOnly = true
		if c, err := Open(context.Background(), ro); !errors.Is(err, ErrDamaged) {
			if err == nil {
				c.Close(context.Background())
			}
			t.Fatalf("%s: a read-only open gives %v", name, err)
		}
		c, err := Open(context.Background(), w.opt)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		w.c = c
		w.check(Head)
		if err := c.Close(context.Background()); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if after := dump(t, w.opt.Dir); after != before {
			t.Fatalf("%s: %s", name, firstDifference(before, after))
		}
	}
	w.c = openCatalog(t, w.opt)
}

func script(t *testing.T, path, sql string) {
	t.Helper()
	db, err := sqldb.Open(context.Background(), sqldb.Options{Path: path, Schema: schema, Version: dbFormat})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Write(context.Background(), func(c *sqldb.Conn) error { return c.Script(sql) }); err != nil {
		t.Fatal(err)
	}
}

// Bytes of catalog.db that rot never crash or hang the catalog, and where SQLite notices, the next start rebuilds it.
func TestDatabaseRot(t *testing.T) {
	w := newWorld(t, 12, nil)
	for range 80 {
		w.step()
	}
	w.m.now = w.clk.tick()
	if err := w.c.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(w.opt.Dir, dbName)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for range 15 {
		bad := bytes.Clone(good)
		at := w.rnd.IntN(len(bad) / 64)
		for i := range 64 {
			bad[at*64+i] ^= byte(1 + w.rnd.IntN(255))
		}
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := Open(context.Background(), w.opt)
		if err != nil {
			wantErr(t, err, ErrDamaged)
			os.Remove(filepath.Join(w.opt.Dir, rebuildName))
			continue
		}
		touchEverything(c, w.m.next)
		c.Close(context.Background())
		os.Remove(filepath.Join(w.opt.Dir, rebuildName))
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	os.Remove(path + "-wal")
	w.c = openCatalog(t, w.opt)
}

func touchEverything(c *Catalog, next Ino) {
	ctx := context.Background()
	for ino := Root; ino < next; ino++ {
		c.Get(ctx, ino)
		c.GetAt(ctx, ino, 40)
		c.Extents(ctx, ino, Head)
		c.Extents(ctx, ino, 40)
		c.ReadDir(ctx, ino, 0, 100)
		c.ReadDirAt(ctx, ino, 0, 100, 40)
		c.ListXattr(ctx, ino)
		c.Level(ctx, ino)
		c.Path(ctx, ino)
		c.Versions(ctx, ino, false, func(Version) error { return nil })
		c.Create(ctx, testActor(), ino, "rot", NewInode{Mode: unix.S_IFREG})
	}
	c.Flush(ctx)
}

// Records that the journal lost are reported and left out; the others are there, and numbers are not used again.
func TestDamagedJournal(t *testing.T) {
	o := testOptions(t, blobstoretest.TempDir(t), newMemBlobs())
	c := openCatalog(t, o)
	ctx, who := context.Background(), testActor()
	if err := c.Init(ctx, who, NewInode{Mode: 0o755}); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		createFile(t, c, Root, strconv.Itoa(i))
		if i == 15 { // later records say that those before are durable
			if err := c.Sync(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := c.Close(ctx); err != nil {
		t.Fatal(err)
	}
	segs, err := filepath.Glob(filepath.Join(o.Dir, journalName, "*.seg"))
	if err != nil || len(segs) != 1 {
		t.Fatal(segs, err)
	}
	b, err := os.ReadFile(segs[0])
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.LastIndex(b, []byte("/10"))
	b[at] ^= 1
	if err := os.WriteFile(segs[0], b, 0o600); err != nil {
		t.Fatal(err)
	}

	c = openCatalog(t, o) // catalog.db has all of it
	if list := must[[]DirEntry](t)(c.ReadDir(ctx, Root, 0, 100)); len(list) != 20 {
		t.Fatal(len(list))
	}
	if err := c.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if err := setAside(o.Dir); err != nil {
		t.Fatal(err)
	}
	c = openCatalog(t, o)
	s := must[Stats](t)(c.Stats(ctx))
	list := must[[]DirEntry](t)(c.ReadDir(ctx, Root, 0, 100))
	if len(list) != 19 || s.Seq != 21 || len(s.Damage) == 0 {
		t.Fatalf("%d entries, %+v", len(list), s)
	}
	if slices.ContainsFunc(list, func(e DirEntry) bool { return e.Name == "10" }) {
		t.Fatal("the lost record is there")
	}
	createFile(t, c, Root, "more")
}

// The journal is gone, the catalog is not: it stays, and its numbers are not used again.
func TestLostJournal(t *testing.T) {
	o := testOptions(t, blobstoretest.TempDir(t), newMemBlobs())
	c := openCatalog(t, o)
	ctx, who := context.Background(), testActor()
	if err := c.Init(ctx, who, NewInode{Mode: 0o755}); err != nil {
		t.Fatal(err)
	}
	createFile(t, c, Root, "a")
	if err := c.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(o.Dir, journalName)); err != nil {
		t.Fatal(err)
	}
	c = openCatalog(t, o)
	createFile(t, c, Root, "b")
	if s := must[Stats](t)(c.Stats(ctx)); s.Seq != 3 || len(s.Damage) == 0 || s.Files != 2 {
		t.Fatalf("%+v", s)
	}
}

func TestJournalBody(t *testing.T) {
	c := newCatalog(t, nil)
	ctx, who := context.Background(), testActor()
	f := createFile(t, c, Root, "f")
	cm := whole(f.Ino, []byte("one body"))
	must[Inode](t)(c.Commit(ctx, who, cm))
	for range 2 {
		if b, err := c.JournalBody(ctx, cm.Sum); err != nil || string(b) != "one body" {
			t.Fatalf("%q %v", b, err)
		}
		if ref, ok, err := c.HasBlob(ctx, cm.Sum); err != nil || !ok || ref.Size != 8 {
			t.Fatal(ref, ok, err)
		}
		if err := c.Flush(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := c.PendingBody(cm.Sum); ok {
		t.Fatal("an applied body is still pending")
	}
	_, err := c.JournalBody(ctx, [32]byte{1})
	wantErr(t, err, ErrNotExist)
}

// catalog.db never has a record that the journal could lose.
func TestAppliedIsDurable(t *testing.T) {
	var c *Catalog
	var ahead atomic.Int64
	c = newCatalog(t, func(o *Options) {
		o.fault = func(at stage) error {
			if at == stageSettle && Seq(c.j.Synced()) < c.app.meta.applied {
				ahead.Add(1)
			}
			return nil
		}
	})
	for i := range 20 {
		createFile(t, c, Root, strconv.Itoa(i))
		if err := c.Flush(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if n := ahead.Load(); n > 0 {
		t.Fatalf("catalog.db was ahead of the durable journal %d times", n)
	}
}

func TestTimeNeverGoesBack(t *testing.T) {
	w := newWorld(t, 13, nil)
	ctx := context.Background()
	start := w.clk.tick()
	for i, at := range []Timestamp{start, start - 500, 0, -7, start + 1, start + 1} {
		w.clk.mu.Lock()
		w.clk.now = at
		w.clk.mu.Unlock()
		createFile(t, w.c, Root, strconv.Itoa(i))
		if i == 2 {
			kill(w.c)
			w.c = openCatalog(t, w.opt)
		}
	}
	for range 2 {
		for at, want := range map[Timestamp]Seq{start - 1: 1, start: 5, start + 1: 7, start + 9: 7} {
			if got, err := w.c.SeqAt(ctx, unixTime(at)); err != nil || got != want {
				t.Fatalf("the last record at %+d is %d %v, want %d", at-start, got, err, want)
			}
		}
		if err := w.c.Flush(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for _, at := range []time.Time{{}, time.Unix(0, 0), time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC)} {
		if got, err := w.c.SeqAt(ctx, at); err != nil || got != 0 {
			t.Fatal(at, got, err)
		}
	}
	if got, err := w.c.SeqAt(ctx, time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)); err != nil || got != 7 {
		t.Fatal(got, err)
	}
}
