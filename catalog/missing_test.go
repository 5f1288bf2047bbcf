package catalog

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestMissingCatalogIsReported: that catalog.db was taken away is damage that is healed, and said.
func TestMissingCatalogIsReported(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, 1, nil)
	row := createFile(t, w.c, Root, "f")
	if s := must[Stats](t)(w.c.Stats(ctx)); len(s.Damage) != 0 {
		t.Errorf("a new store: %v", s.Damage)
	}
	if err := w.c.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(w.opt.Dir, dbName)); err != nil {
		t.Fatal(err)
	}
	w.c = must[*Catalog](t)(Open(ctx, w.opt))
	if s := must[Stats](t)(w.c.Stats(ctx)); len(s.Damage) != 1 || !errors.Is(s.Damage[0], ErrDamaged) {
		t.Errorf("after it was taken away: %v", s.Damage)
	}
	if got := must[Inode](t)(w.c.Lookup(ctx, Root, "f")); got != row {
		t.Errorf("%+v, not %+v", got, row)
	}
}
