package catalog

import (
	"context"
	"errors"
	"fmt"
	"testing"
)

// TestFiltersNeverLackAName asks for names that are there and names that are not, in directories that are new, that were there before the
// catalog was opened, that were emptied, and after the filters started anew.
func TestFiltersNeverLackAName(t *testing.T) {
	c := newCatalog(t, nil)
	ctx := context.Background()
	dir := createDir(t, c, Root, "d")
	file := func(name string) {
		t.Helper()
		createFile(t, c, dir.Ino, name)
	}
	there := func(name string, want bool) {
		t.Helper()
		_, err := c.Lookup(ctx, dir.Ino, name)
		if want && err != nil || !want && !errors.Is(err, ErrNotExist) {
			t.Fatalf("lookup %s: %v, there: %v", name, err, want)
		}
	}
	for i := range 100 {
		there(fmt.Sprint("n", i), false)
		file(fmt.Sprint("n", i))
		there(fmt.Sprint("n", i), true)
	}
	if !c.absent(dir.Ino, "other") {
		t.Error("a new directory has no filter")
	}
	// Opened again, the directory has no filter until names are missed; half of it is in catalog.db and half only in the journal.
	o := c.opt
	if err := c.Close(ctx); err != nil {
		t.Fatal(err)
	}
	c = openCatalog(t, o)
	for i := range 100 {
		file(fmt.Sprint("m", i))
	}
	for i := range 100 {
		there(fmt.Sprint("n", i), true)
		there(fmt.Sprint("m", i), true)
		there(fmt.Sprint("x", i), false)
	}
	if !c.absent(dir.Ino, "other") {
		t.Error("missing names have not led to a filter")
	}
	for i := range 100 {
		if _, err := c.Unlink(ctx, testActor(), dir.Ino, fmt.Sprint("n", i)); err != nil {
			t.Fatal(err)
		}
		there(fmt.Sprint("n", i), false)
		file(fmt.Sprint("n", i))
		there(fmt.Sprint("n", i), true)
	}
	c.mu.Lock()
	c.total = filterNames
	c.mu.Unlock()
	file("one more") // too many: all filters are dropped
	for i := range 100 {
		there(fmt.Sprint("n", i), true)
		there(fmt.Sprint("y", i), false)
	}
}
