package catalog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"holdfast/internal/sqldb"
)

func names(list []Snapshot) (all []string) {
	for _, s := range list {
		all = append(all, s.Name)
	}
	return all
}

func TestSnapshotNames(t *testing.T) {
	for _, name := range []string{"a", "before-the-merge", "2026-01-31T11:00:00Z", "tagesende ü", "a@b", strings.Repeat("x", 255)} {
		if err := CheckSnapshotName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", ".", "..", ".a", "@10m", "a/b", "a\nb", "a\x00", "\x7f", "a\u0085", "\xff", "versions", "deleted", "conflicts", "README", strings.Repeat("x", 256)} {
		if err := CheckSnapshotName(name); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestSnapshotLife(t *testing.T) {
	ctx, who := context.Background(), testActor()
	var opt Options
	c := newCatalog(t, func(o *Options) { opt = *o })
	file := createFile(t, c, Root, "f")
	first := must[Snapshot](t)(c.CreateSnapshot(ctx, who, "one", false))
	if first.Seq != 2 || first.Auto || first.Pinned {
		t.Fatalf("%+v", first)
	}
	must[Inode](t)(c.Commit(ctx, who, whole(file.Ino, []byte("later"))))
	_, err := c.CreateSnapshot(ctx, who, "one", false)
	wantErr(t, err, ErrExist)
	_, err = c.CreateSnapshot(ctx, who, "a/b", false)
	wantErr(t, err, ErrInvalid)
	auto := must[Snapshot](t)(c.CreateSnapshot(ctx, who, "", true))
	if _, err := time.Parse(time.RFC3339, auto.Name); err != nil || !auto.Auto || auto.Seq != 4 {
		t.Fatalf("%+v %v", auto, err)
	}
	if row := must[Inode](t)(c.GetAt(ctx, file.Ino, first.Seq)); row.Size != 0 {
		t.Fatalf("the snapshot shows what came later: %+v", row)
	}

	must[Snapshot](t)(c.PinSnapshot(ctx, who, "one", true))
	wantErr(t, c.RemoveSnapshot(ctx, who, "one"), ErrPerm)
	_, err = c.RenameSnapshot(ctx, who, "one", auto.Name)
	wantErr(t, err, ErrExist)
	renamed := must[Snapshot](t)(c.RenameSnapshot(ctx, who, auto.Name, "mine"))
	if renamed.Auto || renamed.Seq != auto.Seq {
		t.Fatalf("%+v", renamed)
	}
	for _, err := range []error{
		func() error { _, err := c.Snapshot(ctx, auto.Name); return err }(),
		func() error { _, err := c.PinSnapshot(ctx, who, "none", true); return err }(),
		func() error { _, err := c.RenameSnapshot(ctx, who, "none", "x"); return err }(),
		c.RemoveSnapshot(ctx, who, "none"),
	} {
		wantErr(t, err, ErrNotExist)
	}
	before := must[Stats](t)(c.Stats(ctx)).Seq
	must[Snapshot](t)(c.PinSnapshot(ctx, who, "one", true))
	if after := must[Stats](t)(c.Stats(ctx)).Seq; after != before {
		t.Fatal("a change of nothing was recorded")
	}

	want := must[[]Snapshot](t)(c.Snapshots(ctx))
	if !reflect.DeepEqual(names(want), []string{"one", "mine"}) || !want[0].Pinned {
		t.Fatalf("%+v", want)
	}
	// The same after a kill, read-only over a journal that is not applied, after a restart, and after a rebuild.
	kill(c)
	for _, how := range []string{"read-only", "restart", "rebuild"} {
		o := opt
		o.ReadOnly = how == "read-only"
		if how == "rebuild" {
			if err := setAside(o.Dir); err != nil {
				t.Fatal(err)
			}
		}
		c := openCatalog(t, o)
		if got := must[[]Snapshot](t)(c.Snapshots(ctx)); !reflect.DeepEqual(got, want) {
			t.Fatalf("%s: %+v, want %+v", how, got, want)
		}
		if how == "rebuild" {
			must[Snapshot](t)(c.PinSnapshot(ctx, who, "one", false))
			if err := c.RemoveSnapshot(ctx, who, "one"); err != nil {
				t.Fatal(err)
			}
			if got := names(must[[]Snapshot](t)(c.Snapshots(ctx))); !reflect.DeepEqual(got, []string{"mine"}) {
				t.Fatal(got)
			}
		}
		if err := c.Close(ctx); err != nil {
			t.Fatal(how, err)
		}
	}
}

// Times that only memory has are part of the state that a snapshot is of.
func TestSnapshotHoldsDeferredTimes(t *testing.T) {
	ctx := context.Background()
	c := newCatalog(t, nil)
	file := createFile(t, c, Root, "f")
	at := file.Mtime + 5
	if err := c.SetAttrDeferred(ctx, file.Ino, Change{Mtime: &at}); err != nil {
		t.Fatal(err)
	}
	s := must[Snapshot](t)(c.CreateSnapshot(ctx, testActor(), "s", false))
	if row := must[Inode](t)(c.GetAt(ctx, file.Ino, s.Seq)); row.Mtime != at {
		t.Fatalf("mtime %d, want %d", row.Mtime, at)
	}
}

// downgrade makes the catalog.db of a closed store one of format 1.
func downgrade(t *testing.T, dir string) {
	t.Helper()
	db, err := sqldb.Open(context.Background(), sqldb.Options{Path: filepath.Join(dir, dbName), Schema: schema, Version: dbFormat})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.Write(context.Background(), func(c *sqldb.Conn) error {
		for t := range tableSnapshots {
			if err := c.Script(fmt.Sprintf("ALTER TABLE %s DROP COLUMN row_sum", t)); err != nil {
				return err
			}
		}
		return c.Script(`DROP TABLE snapshots; DROP TABLE conflicts; DROP TABLE gaps; DROP TABLE kept; DROP TABLE loose;
			DROP INDEX inodes_seq; DROP INDEX extents_blob; DROP INDEX dentries_ended; DELETE FROM meta WHERE key = 'thinned'; PRAGMA user_version = 1`)
	})
	if err := errors.Join(err, os.Remove(filepath.Join(dir, sumsName))); err != nil {
		t.Fatal(err)
	}
}

func TestUpgradeOfFormat1(t *testing.T) {
	ctx := context.Background()
	var opt Options
	c := newCatalog(t, func(o *Options) { opt = *o })
	for i := range 20 {
		must[Inode](t)(c.Commit(ctx, testActor(), whole(createFile(t, c, Root, fmt.Sprint(i)).Ino, []byte{byte(i + 1)})))
	}
	if err := c.Close(ctx); err != nil {
		t.Fatal(err)
	}
	want := dump(t, opt.Dir)
	downgrade(t, opt.Dir)
	ro := opt
	ro.ReadOnly = true
	c = openCatalog(t, ro)
	if _, err := c.Lookup(ctx, Root, "7"); err != nil {
		t.Fatal("an old store, read-only:", err)
	}
	if list := must[[]Snapshot](t)(c.Snapshots(ctx)); len(list) != 0 {
		t.Fatal(list)
	}
	if err := c.Close(ctx); err != nil {
		t.Fatal(err)
	}
	c = openCatalog(t, opt)
	if d := must[Stats](t)(c.Stats(ctx)).Damage; len(d) != 0 {
		t.Fatal("an old catalog.db counts as damage:", d)
	}
	must[Snapshot](t)(c.CreateSnapshot(ctx, testActor(), "s", false))
	if err := c.RemoveSnapshot(ctx, testActor(), "s"); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(ctx); err != nil {
		t.Fatal(err)
	}
	// But for the two records about the snapshot it is what it was.
	strip := func(s string) string {
		var keep []string
		for _, l := range strings.Split(s, "\n") {
			if !strings.HasPrefix(l, "meta: ") && !strings.HasPrefix(l, "times: ") {
				keep = append(keep, l)
			}
		}
		return strings.Join(keep, "\n")
	}
	if got := dump(t, opt.Dir); strip(got) != strip(want) {
		t.Fatal(firstDifference(strip(got), strip(want)))
	}
}
