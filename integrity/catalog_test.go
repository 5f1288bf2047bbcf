package integrity_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"holdfast/catalog"
	"holdfast/integrity"
	"holdfast/internal/sqldb"
	"holdfast/internal/volume"
)

// editCatalog changes catalog.db behind everybody's back, and takes away what a clean close leaves to find that at once.
func (w *world) editCatalog(statement string) {
	w.t.Helper()
	if err := os.Remove(filepath.Join(w.dir, "catalog.db.sums")); err != nil && !errors.Is(err, os.ErrNotExist) {
		w.t.Fatal(err)
	}
	w.sql(filepath.Join(w.dir, "catalog.db"), func(c *sqldb.Conn) error {
		if err := c.Prep(statement).Exec(); err != nil {
			return err
		}
		if c.Changes() == 0 {
			return errors.New("nothing was changed")
		}
		return nil
	})
}

// TestReadsHealTheCatalog edits a row: the read that meets it fails, catalog.db is made anew while the store is open, and then everything is as it was.
func TestReadsHealTheCatalog(t *testing.T) {
	w := newWorld(t, volume.StorageHybrid)
	w.opt.CompareAtStart = -1
	body := noise(1, 1000)
	w.put("/tasks/a", body)
	for _, edit := range []string{"UPDATE inodes SET size = size + 1", "UPDATE extents SET blob_off = 1", "UPDATE dentries SET ino = ino + 1 WHERE name = CAST('a' AS BLOB)"} {
		w.reopen(func() { w.editCatalog(edit) })
		w.eng.Start()
		from := w.eng.LastEvent()
		if got, err := w.read("/tasks/a"); err == nil || !errors.Is(err, catalog.ErrDamaged) {
			t.Errorf("%s: %d bytes, %v", edit, len(got), err)
		}
		if e := w.await(from, integrity.EventHealed); e.DataID != "catalog" {
			t.Errorf("%+v", e)
		}
		w.want("/tasks/a", body)
	}
	if list := w.attempts(); len(list) != 3 || !list[0].Successful || list[0].DataID != "catalog" || list[0].Source != "journal" {
		t.Errorf("%+v", list)
	}
	if st, err := w.eng.Status(t.Context()); err != nil || !st.Healthy {
		t.Errorf("%+v %v", st, err)
	}
}

// TestCheckComparesTheCatalog takes rows away that no read would miss: the check of the store finds it, and makes it good only if it may.
func TestCheckComparesTheCatalog(t *testing.T) {
	w := newWorld(t, volume.StorageFile)
	w.opt.CompareAtStart = -1
	body := noise(1, 1000)
	w.put("/logs/a", body)
	w.put("/logs/b", noise(2, 100))
	w.reopen(func() { w.editCatalog("DELETE FROM dentries WHERE name = CAST('a' AS BLOB)") })
	for _, repair := range []bool{false, true} {
		n := 0
		sum, err := w.eng.CheckStore(t.Context(), integrity.CheckOptions{Repair: repair}, func(r integrity.Result) error {
			n++
			if r.DataID != "catalog" || r.Type != integrity.Checksum || r.RecoverySuccessful != repair {
				t.Errorf("%+v", r)
			}
			return nil
		})
		if err != nil || n == 0 || sum.Healthy() != repair {
			t.Errorf("repair %v: %d results, %+v %v", repair, n, sum, err)
		}
	}
	w.want("/logs/a", body)
	w.uphold() // nothing is left
}

// TestScrubHealsTheJournal flips a bit in the body of a record: the blob store has it as well.
func TestScrubHealsTheJournal(t *testing.T) {
	w := newWorld(t, volume.StorageHybrid)
	body := noise(1, 3000)
	w.put("/logs/a", body)
	w.put("/logs/b", noise(2, 100))
	w.reopen(func() {
		segments, err := filepath.Glob(filepath.Join(w.dir, "journal", "*.seg"))
		if err != nil || len(segments) == 0 {
			t.Fatal(segments, err)
		}
		for _, name := range segments {
			p, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if i := bytes.Index(p, body); i > 0 {
				p[i+1500] ^= 0x20
				if err := os.WriteFile(name, p, 0o600); err != nil {
					t.Fatal(err)
				}
				return
			}
		}
		t.Fatal("no segment has the content")
	})
	n := 0
	sum, err := w.eng.CheckStore(t.Context(), integrity.CheckOptions{Repair: true}, func(r integrity.Result) error {
		n++
		if !r.RecoverySuccessful || r.Type != integrity.Checksum {
			t.Errorf("%+v", r)
		}
		return nil
	})
	if err != nil || n == 0 || !sum.Healthy() {
		t.Errorf("%d results, %+v %v", n, sum, err)
	}
	w.uphold()
	w.want("/logs/a", body)
}
