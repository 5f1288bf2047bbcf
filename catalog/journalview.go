package catalog

import (
	"context"
	"errors"
	"fmt"
	"time"

	"holdfast/catalog/journal"
)

// JournalView reads a catalog's journal as it lies there: for those who prove what it says. All methods may be called concurrently, until the catalog is closed:
// then they return ErrClosed. What is damaged is ErrDamaged, and a *journal.DamageError says which records.
type JournalView struct{ c *Catalog }

// JournalView returns a view of the journal.
func (c *Catalog) JournalView() JournalView { return JournalView{c} }

// StoreID is the id of the store, with which the journal's chain begins.
func (v JournalView) StoreID() [16]byte { return v.c.opt.StoreID }

// End returns the newest record, and the newest that is known to be on stable storage.
func (v JournalView) End() (last, synced Seq) {
	n, _ := v.c.j.Last()
	return Seq(n), Seq(min(n, v.c.j.Synced()))
}

// SeqAt is Catalog.SeqAt.
func (v JournalView) SeqAt(ctx context.Context, t time.Time) (Seq, error) { return v.c.SeqAt(ctx, t) }

// Sync makes every record durable that was written before the call, and the blobs that they name. A catalog that is open read-only has none to sync.
func (v JournalView) Sync(ctx context.Context) error {
	if v.c.opt.ReadOnly {
		return nil
	}
	return v.c.Sync(ctx)
}

// Entries calls fn with each entry from the number from on, up to the newest at the time of the call, those that compaction has emptied included, until
// fn returns an error, which Entries returns. The entry's slices are valid only during fn.
func (v JournalView) Entries(ctx context.Context, from Seq, fn func(journal.Entry) error) error {
	return v.Follow(from).Read(ctx, fn)
}

// Link returns what the chain hash of a record is made of; ErrNotExist when there is no such record.
func (v JournalView) Link(ctx context.Context, seq Seq) (journal.Link, error) {
	if last, _ := v.End(); seq == 0 || seq > last {
		return journal.Link{}, fmt.Errorf("journal record %d: %w: the newest is %d", seq, ErrNotExist, last)
	}
	k, err := v.c.j.Link(ctx, uint64(seq))
	return k, failed(fmt.Sprintf("read journal record %d", seq), err)
}

// Follower reads the journal as it grows. It is for one goroutine.
type Follower struct{ cur *journal.Cursor }

// Follow returns a Follower whose first entry is from.
func (v JournalView) Follow(from Seq) *Follower { return &Follower{v.c.j.Cursor(uint64(from))} }

// Next is the number of the entry that Read begins with.
func (f *Follower) Next() Seq { return Seq(f.cur.Next()) }

// SkipTo makes a later entry the next one.
func (f *Follower) SkipTo(seq Seq) { f.cur.SkipTo(uint64(seq)) }

// Read calls fn with each entry that was not read yet, up to the newest at the time of the call: see JournalView.Entries. An entry for which fn returned an
// error counts as not read.
func (f *Follower) Read(ctx context.Context, fn func(journal.Entry) error) error {
	var inner error
	err := f.cur.Read(ctx, func(e journal.Entry) error {
		inner = fn(e)
		return inner
	})
	if inner != nil && errors.Is(err, inner) {
		return inner
	}
	return failed("read the journal", err)
}
