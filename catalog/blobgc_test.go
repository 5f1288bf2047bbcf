package catalog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/blobstore"
	"holdfast/internal/sqldb"
)

// gone is a catalog with a file of n versions of which a Prune keeps the last.
func gone(t *testing.T, n int) (*Catalog, *memBlobs, Options, PruneOptions) {
	t.Helper()
	clk := &clock{now: time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC).UnixNano(), step: int64(time.Second)}
	blobs := newMemBlobs()
	var opt Options
	c := newCatalog(t, func(o *Options) {
		o.Now, o.Blobs = clk.read, blobs
		opt = *o
	})
	file := createFile(t, c, Root, "f")
	beat(t, c, clk, file.Ino, n)
	if err := c.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	clk.now += int64(48 * time.Hour)
	p := DefaultPolicy()
	p.KeepAll, p.Hourly, p.Daily, p.Weekly = 0, 0, 0, 0
	return c, blobs, opt, PruneOptions{Policies: []Policy{p}, Sweep: true}
}

// checkGone checks that nothing is left but the newest content, in the blob store and on the list of what is to go.
func checkGone(t *testing.T, c *Catalog, blobs *memBlobs) {
	t.Helper()
	if n := len(blobs.names()); n != 1 {
		t.Errorf("%d blobs are left", n)
	}
	for _, forgotten := range []bool{false, true} {
		if list, err := loadLoose(t.Context(), c.db, blobstore.Hash{}, forgotten, 10); err != nil || len(list) > 0 {
			t.Errorf("still to go: %d, %v", len(list), err)
		}
	}
}

// A deletion fails, the disk being full or bad, or the process ends, in the middle of a batch: whatever went, the next run deletes the rest, and nothing that is named.
func TestDeletionEndsHalfWay(t *testing.T) {
	for _, cause := range []error{unix.EIO, unix.ENOSPC, errFault} {
		for _, at := range []int{0, 1, 300, blobstore.MaxDelete - 1, blobstore.MaxDelete + 5} {
			t.Run(fmt.Sprint(cause, at), func(t *testing.T) {
				t.Parallel()
				c, blobs, opt, o := gone(t, 700)
				n := 0
				blobs.deleting = func(int, []blobstore.Hash) error {
					if n++; n > at {
						return cause
					}
					return nil
				}
				_, err := c.Prune(t.Context(), o)
				if !errors.Is(err, cause) || errors.Is(cause, unix.ENOSPC) && !errors.Is(err, ErrNoSpace) {
					t.Fatal(err)
				}
				if left := len(blobs.names()); left != 700-at {
					t.Fatalf("%d blobs are left after %d deletions", left, at)
				}
				blobs.deleting = nil
				if errors.Is(cause, errFault) {
					kill(c)
					c = openCatalog(t, opt)
				}
				must[PruneReport](t)(c.Prune(t.Context(), o))
				checkGone(t, c, blobs)
			})
		}
	}
}

// While a batch is deleted, whoever wants to name one of its blobs waits for its end, and then finds the blob gone and brings it; a blob that was pinned before, or that is named
// again by a record that is not in catalog.db yet, is not deleted.
func TestDeletionOfManySparesWhatIsNamed(t *testing.T) {
	ctx := t.Context()
	c, blobs, _, o := gone(t, 300)
	names := blobs.names()
	row := must[Inode](t)(c.Lookup(ctx, Root, "f"))
	now := must[[]Extent](t)(c.Extents(ctx, row.Ino, Head))[0].Blob.Hash
	names = slices.DeleteFunc(names, func(h blobstore.Hash) bool { return h == now })
	pinned, wanted := names[10], names[20]
	if err := c.Pin(ctx, pinned); err != nil {
		t.Fatal(err)
	}
	body := bytes.Clone(blobs.data[wanted])
	var came atomic.Bool
	done := make(chan error, 1)
	blobs.deleting = func(i int, list []blobstore.Hash) error {
		if slices.Contains(list, pinned) {
			return errors.New("a pinned blob is in the batch")
		}
		if i == 0 {
			go func() {
				err := c.Pin(ctx, wanted)
				came.Store(true)
				if err == nil {
					if _, known, err2 := c.HasBlob(ctx, wanted); err2 != nil || known {
						err = fmt.Errorf("a deleted blob is known: %v, %w", known, err2)
					}
					defer c.Unpin(wanted)
				}
				if err == nil {
					_, err = c.Commit(ctx, testActor(), whole(row.Ino, body))
				}
				done <- err
			}()
		}
		if came.Load() {
			return errors.New("a blob was pinned while it was deleted")
		}
		return nil
	}
	if _, err := c.Prune(ctx, o); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := c.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	for _, h := range []blobstore.Hash{pinned, wanted} {
		if !blobs.has(h) {
			t.Errorf("blob %s was deleted", h)
		}
	}
	blobs.deleting = nil
	c.Unpin(pinned)
	if _, err := c.Prune(ctx, o); err != nil {
		t.Fatal(err)
	}
	if got := blobs.names(); !slices.Contains(got, wanted) || slices.Contains(got, pinned) {
		t.Errorf("%d blobs are left", len(got))
	}
}

// A blob that files name, or a record that is not applied yet, is not deleted even when the lists say that it may go.
func TestDeleteBlobsLooksOnce(t *testing.T) {
	ctx := t.Context()
	c, blobs, _, _ := gone(t, 3)
	row := must[Inode](t)(c.Lookup(ctx, Root, "f"))
	all := blobs.names()
	stray := []byte("no record names it")
	blobs.put(stray)
	list := append(slices.Clone(all), whole(row.Ino, stray).Sum)
	free, err := c.unused(ctx, list)
	if err != nil || len(free) != 1 || free[0] != list[len(all)] {
		t.Errorf("%v, %v", free, err)
	}
	if err := c.Pin(ctx, list[len(all)]); err != nil {
		t.Fatal(err)
	}
	deleted, done, err := c.deleteBlobs(ctx, list)
	if err != nil || len(deleted) > 0 || len(done) != len(all) || len(blobs.names()) != len(list) {
		t.Errorf("one is pinned: %d deleted, %d done, %d left, %v", len(deleted), len(done), len(blobs.names()), err)
	}
	c.Unpin(list[len(all)])
	deleted, done, err = c.deleteBlobs(ctx, list)
	if err != nil || len(deleted) != 1 || len(done) != len(list) || len(blobs.names()) != len(all) {
		t.Errorf("%d deleted, %d done, %d left, %v", len(deleted), len(done), len(blobs.names()), err)
	}
	if len(c.pins.dying) > 0 {
		t.Error("blobs cannot be pinned any more")
	}
}

// The records that forget blobs are written, and catalog.db does not get them: until it does, nobody relies on the blobs, and the next run deletes them.
func TestForgottenIsNotKnown(t *testing.T) {
	ctx := t.Context()
	var broken atomic.Bool
	armed := func(s stage) error {
		if broken.Load() && s == stageRows {
			return errFault
		}
		return nil
	}
	c, blobs, opt, o := gone(t, 30)
	opt.fault = armed
	if err := c.Close(ctx); err != nil {
		t.Fatal(err)
	}
	c = openCatalog(t, opt)
	row := must[Inode](t)(c.Lookup(ctx, Root, "f"))
	now := must[[]Extent](t)(c.Extents(ctx, row.Ino, Head))[0].Blob.Hash
	names := slices.DeleteFunc(blobs.names(), func(h blobstore.Hash) bool { return h == now })
	p := &pruner{c: c, o: o, db: c.db, rep: new(PruneReport)}
	if err := c.db.Write(ctx, func(conn *sqldb.Conn) error { // what a thinning of the history leaves
		if err := conn.Script("DELETE FROM extents WHERE to_seq IS NOT NULL"); err != nil {
			return err
		}
		for _, h := range names {
			if err := putLoose(conn, h[:], 0); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	broken.Store(true)
	if err := p.forget(ctx, names); !errors.Is(err, errFault) {
		t.Fatal(err)
	}
	for _, h := range names {
		if _, known, err := c.HasBlob(ctx, h); known || err != nil {
			t.Fatalf("a blob that is about to be forgotten is known: %v", err)
		}
	}
	broken.Store(false)
	if err := p.forget(ctx, names); err != nil {
		t.Fatal(err)
	}
	if err := c.deleteForgotten(ctx, func(context.Context) error { return nil }); err != nil {
		t.Fatal(err)
	}
	checkGone(t, c, blobs)
}
