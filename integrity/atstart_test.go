package integrity_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"holdfast/catalog"
	"holdfast/internal/sqldb"
	"holdfast/internal/volume"
)

// TestRowsThatAreGone takes rows out of a catalog.db that was not closed cleanly. No read could see that they are missing, so the start finds it.
func TestRowsThatAreGone(t *testing.T) {
	w := newWorld(t, volume.StorageHybrid)
	ctx := t.Context()
	row, err := w.vol.Resolve(ctx, "/tasks")
	if err != nil {
		t.Fatal(err)
	}
	w.put("/tasks/f", []byte("one"))
	if err := w.vol.SetXattr(ctx, actor(), row.Ino, "user.x", []byte("y"), 0); err != nil {
		t.Fatal(err)
	}
	w.reopen(func() {
		if err := os.Remove(filepath.Join(w.dir, "catalog.db.sums")); err != nil {
			t.Fatal(err)
		}
		w.sql(filepath.Join(w.dir, "catalog.db"), func(c *sqldb.Conn) error {
			return errors.Join(c.Prep("DELETE FROM xattrs WHERE name = ?").BindBytes(1, []byte("user.x")).Exec(), c.Prep("DELETE FROM dentries WHERE name = ?").BindBytes(1, []byte("f")).Exec())
		})
	})
	w.want("/tasks/f", []byte("one"))
	if v, err := w.vol.GetXattr(ctx, row.Ino, "user.x"); err != nil || string(v) != "y" {
		t.Errorf("%q %v", v, err)
	}
	healed := false
	for _, a := range w.attempts() {
		healed = healed || a.DataID == "catalog" && a.Successful
	}
	if st, err := w.vol.Catalog().Stats(ctx); err != nil || !healed || w.vol.Catalog().Damaged() {
		t.Errorf("healed %v: %+v %v", healed, st, err)
	}
	if _, err := w.vol.Resolve(ctx, "/tasks/none"); !errors.Is(err, catalog.ErrNotExist) {
		t.Error(err)
	}
}
