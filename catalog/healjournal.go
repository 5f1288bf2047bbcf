package catalog

import (
	"context"
	"errors"
	"fmt"
	"io"

	"holdfast/blobstore"
	"holdfast/catalog/journal"
	"holdfast/internal/sqldb"
)

// JournalReport says what HealJournal found.
type JournalReport struct {
	Healed []*journal.DamageError `json:"healed"` // byte for byte what was written again
	Left   []*journal.DamageError `json:"left"`   // what these records said is known to catalog.db only
	// Checkpoint is the record up to which a checkpoint of catalog.db now stands for what is left; 0 when none was needed or could be made, and Why says why.
	Checkpoint Seq    `json:"checkpoint"`
	Why        string `json:"why"`
}

// JournalHeaders checks the headers of the journal's segments, which Records does not where they cost no record: see journal.Log.Headers.
func (c *Catalog) JournalHeaders(ctx context.Context) ([]*journal.DamageError, error) {
	list, err := c.j.Headers(ctx)
	return list, failed("check the journal", err)
}

// HealJournal looks for damage in the whole journal and heals what can be proved to be what was written: bodies of small blobs from the blobstore, single flipped
// bits, headers of segments. What cannot be healed stays reported, now and by every later reading; the state that catalog.db has from those records is
// saved in a checkpoint, if its rows are intact, so that a rebuild does not need them. ErrReadOnly.
func (c *Catalog) HealJournal(ctx context.Context) (rep JournalReport, err error) {
	if c.opt.ReadOnly {
		return rep, ErrReadOnly
	}
	select {
	case c.pruneTurn <- struct{}{}:
		defer func() { <-c.pruneTurn }()
	case <-ctx.Done():
		return rep, ctx.Err()
	}
	if err := c.Flush(ctx); err != nil && !errors.Is(err, ErrDamaged) {
		return rep, err
	}
	found, err := c.j.Heal(ctx, func(seq uint64, head []byte) ([]byte, error) { return c.bodyOf(ctx, seq, head) })
	rep.Healed, rep.Left = found.Healed, found.Left
	if err != nil {
		return rep, failed("heal the journal", err)
	}
	for _, d := range rep.Healed {
		c.log.Warn("damage to the journal was healed", "damage", d)
	}
	lost := Seq(0)
	for _, d := range rep.Left {
		c.log.Error("damage to the journal cannot be healed", "damage", d)
		if d.Last >= d.First {
			lost = max(lost, Seq(d.Last))
		}
	}
	if lost > 0 {
		rep.Checkpoint, rep.Why, err = c.saveFor(ctx, lost)
	}
	return rep, err
}

// bodyOf puts the body of a record together from the blobstore.
func (c *Catalog) bodyOf(ctx context.Context, seq uint64, head []byte) ([]byte, error) {
	r, err := DecodeRecord(journal.Entry{Seq: seq, Head: head, BodyDropped: true})
	if err != nil {
		return nil, err
	}
	var body []byte
	for i := range r.Blobs {
		ref := r.Blobs[i].Ref
		if ref.Size > blobstore.MaxSmall { // never in a record
			continue
		}
		b := make([]byte, ref.Size)
		for n := 0; n < len(b); {
			got, err := c.blobs.ReadAt(ctx, ref, b[n:], int64(n))
			if err != nil && !(errors.Is(err, io.EOF) && n+got == len(b)) {
				return nil, err
			}
			if got == 0 {
				return nil, fmt.Errorf("blob %s: %w", ref.Hash, io.ErrUnexpectedEOF)
			}
			n += got
		}
		body = append(body, b...)
	}
	return body, nil
}

// saveFor makes sure that a checkpoint stands for the records up to lost. why says why it does not.
func (c *Catalog) saveFor(ctx context.Context, lost Seq) (covered Seq, why string, err error) {
	list, err := checkpoints(c.opt.Dir)
	if err != nil {
		return 0, "", failed("list the checkpoints", err)
	}
	if len(list) > 0 && list[0].applied >= lost {
		return list[0].applied, "", nil
	}
	if c.app.meta.applied < lost {
		return 0, "catalog.db does not have these records either", nil
	}
	bad, err := c.firstBadRow(ctx)
	switch {
	case err != nil:
		return 0, "", err
	case bad != nil:
		c.noteCorrupt(bad)
		return 0, bad.Error(), nil
	}
	covered, err = c.makeCheckpoint(ctx)
	if errors.Is(err, ErrNoSpace) {
		return 0, err.Error(), nil
	}
	c.endComparison()
	return covered, "", err
}

// firstBadRow reads all of catalog.db and returns what is wrong with it, as far as it can tell by itself.
func (c *Catalog) firstBadRow(ctx context.Context) (bad, err error) {
	if c.Damaged() {
		return fmt.Errorf("catalog.db is damaged: %w", sqldb.ErrCorrupt), nil
	}
	err = c.db.Snapshot(ctx, func(conn *sqldb.Conn) error {
		for t := range tableCount {
			s := &scan{t: t}
			if err := s.begin(conn, nil); err != nil {
				return err
			}
			for s.ok {
				if err := s.next(); err != nil {
					return err
				}
			}
			if err := checkIndexes(conn, t, func(f Finding) { bad = fmt.Errorf("catalog.db: %s: %w", f.String(), sqldb.ErrCorrupt) }); err != nil {
				return err
			}
		}
		return nil
	})
	if errors.Is(err, sqldb.ErrCorrupt) {
		return err, nil
	}
	return bad, failed("read catalog.db", err)
}
