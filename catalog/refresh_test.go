package catalog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/internal/sqldb"
)

func execLive(t *testing.T, c *Catalog, sql string) {
	t.Helper()
	err := c.db.Write(context.Background(), func(conn *sqldb.Conn) error {
		if err := conn.Prep(sql).Exec(); err != nil {
			return err
		}
		if conn.Changes() == 0 {
			return errors.New("nothing was changed: " + sql)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// What memory has learned from rows that were missing is forgotten with them, also under changes that wait for the applier.
func TestRebuildForgetsWhatWasWrong(t *testing.T) {
	ctx, who := context.Background(), testActor()
	var o Options
	var stuck atomic.Bool
	c := newCatalog(t, func(opt *Options) {
		opt.fault = func(s stage) error {
			if s == stageDurable && stuck.Load() {
				return unix.EIO
			}
			return nil
		}
		o = *opt
	})
	f := createFile(t, c, Root, "f")
	cm := Commit{Ino: f.Ino, Splice: Splice{Cut: NoCut}, NewVersion: true}
	for i := range int64(4) {
		b := bodyBlob(fmt.Appendf(nil, "part %d of the file", i))
		cm.Blobs = append(cm.Blobs, b)
		cm.Splice.Extents = append(cm.Splice.Extents, Extent{Off: i * 100, Len: b.Ref.Size, Blob: b.Ref})
	}
	cm.Size = 400
	must[Inode](t)(c.Commit(ctx, who, cm))
	for _, a := range []string{"user.a", "user.b"} {
		if err := c.SetXattr(ctx, who, f.Ino, a, []byte("value"), 0); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 10 {
		createFile(t, c, Root, fmt.Sprint("old", i))
	}
	must[Snapshot](t)(c.CreateSnapshot(ctx, who, "moment", false))
	if err := c.Close(ctx); err != nil {
		t.Fatal(err)
	}
	c = openCatalog(t, o)
	wrong := c.app.meta // with sums that hold
	wrong.files += 5
	if err := c.db.Write(ctx, wrong.save); err != nil {
		t.Fatal(err)
	}
	kill(c)
	c = openCatalog(t, o)
	execLive(t, c, "DELETE FROM extents WHERE off = 100")
	execLive(t, c, "DELETE FROM xattrs WHERE name = CAST('user.a' AS BLOB)")
	execLive(t, c, "DELETE FROM dentries WHERE name = CAST('old3' AS BLOB)")
	execLive(t, c, "DELETE FROM snapshots")
	if list := must[[]Extent](t)(c.Extents(ctx, f.Ino, Head)); len(list) != 3 {
		t.Fatal(list)
	}
	stuck.Store(true)
	for i := range 2 * learnAfter { // the directory gets a filter
		createFile(t, c, Root, fmt.Sprint("new", i))
	}
	if _, err := c.Lookup(ctx, Root, "old3"); !errors.Is(err, ErrNotExist) {
		t.Fatal(err)
	}
	b := bodyBlob([]byte("later"))
	later := Commit{Ino: f.Ino, Size: 400, Blobs: []NewBlob{b}, Splice: Splice{Cut: NoCut, Extents: []Extent{{Off: 300, Len: 5, Blob: b.Ref}}}}
	must[Inode](t)(c.Commit(ctx, who, later))
	if err := c.SetXattr(ctx, who, f.Ino, "user.c", []byte("value"), 0); err != nil {
		t.Fatal(err)
	}
	must[Snapshot](t)(c.CreateSnapshot(ctx, who, "later", false))
	if err := c.Rebuild(ctx); err != nil {
		t.Fatal(err)
	}
	check := func() {
		t.Helper()
		want := 5 // of the last part, which was replaced at its beginning, something is left
		if list := must[[]Extent](t)(c.Extents(ctx, f.Ino, Head)); len(list) != want || list[1].Off != 100 || list[3].Blob != b.Ref {
			t.Fatal(list)
		}
		if list := must[[]string](t)(c.ListXattr(ctx, f.Ino)); fmt.Sprint(list) != "[user.a user.b user.c]" {
			t.Fatal(list)
		}
		must[Inode](t)(c.Lookup(ctx, Root, "old3"))
		if list := must[[]Snapshot](t)(c.Snapshots(ctx)); len(list) != 2 || list[0].Name != "moment" || list[1].Name != "later" {
			t.Fatal(list)
		}
		if s := must[Stats](t)(c.Stats(ctx)); s.Files != 11+2*learnAfter {
			t.Fatalf("%d files", s.Files)
		}
	}
	check()
	stuck.Store(false)
	if err := c.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	check()
	if list := compareAll(t, c, 10); len(list) > 0 {
		t.Fatal(list)
	}
}

// A catalog.db that is known to be damaged is not vouched for, neither by the sums of a clean close nor by a checkpoint.
func TestDamagedCatalogIsNotVouchedFor(t *testing.T) {
	ctx := context.Background()
	st := newIntegrityStore(t, 91, 100)
	o := st.copyTo(t, false)
	c := openCatalog(t, o)
	if s := must[Stats](t)(c.Stats(ctx)); !s.KnownIntact {
		t.Fatal("closed cleanly and not known to be intact")
	}
	execLive(t, c, "UPDATE xattrs SET value = x'00' WHERE to_seq IS NULL")
	segs := segmentsOf(t, o.Dir)
	if err := os.Remove(segs[1]); err != nil {
		t.Fatal(err)
	}
	rep, err := c.HealJournal(ctx)
	if err != nil || rep.Checkpoint != 0 || rep.Why == "" || !c.Damaged() {
		t.Fatalf("%+v %v", rep, err)
	}
	if err := c.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(o.Dir, sumsName)); !errors.Is(err, os.ErrNotExist) {
		t.Fatal("the sums of a damaged catalog.db:", err)
	}
	if list, err := checkpoints(o.Dir); err != nil || len(list) > 0 {
		t.Fatal("a checkpoint of a damaged catalog.db:", list, err)
	}
}

// A write-ahead log beside a catalog.db that was closed cleanly is somebody else's.
func TestForeignWAL(t *testing.T) {
	ctx := context.Background()
	st := newIntegrityStore(t, 95, 40)
	o := st.copyTo(t, false)
	c := openCatalog(t, o)
	createFile(t, c, Root, "more")
	if err := c.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	wal, err := os.ReadFile(filepath.Join(o.Dir, dbName+"-wal"))
	if err != nil || len(wal) == 0 {
		t.Fatal(len(wal), err)
	}
	o = st.copyTo(t, false)
	if err := os.WriteFile(filepath.Join(o.Dir, dbName+"-wal"), wal, 0o600); err != nil {
		t.Fatal(err)
	}
	ro := o
	ro.ReadOnly = true
	_, err = Open(ctx, ro)
	wantErr(t, err, ErrDamaged)
	st.wantRight(t, "with another log", o)
}
