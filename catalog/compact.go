package catalog

import (
	"context"
	"errors"
	"fmt"

	"holdfast/blobstore"
	"holdfast/catalog/journal"
	"holdfast/internal/sqldb"
)

const (
	// compactRecord is what a record that is of no use any more takes in the journal, roughly.
	compactRecord = 400
	// compactMin is how much a compaction has to promise before one is made, and compactShare that it has to be one part in so many of the
	// journal; what the rewriting of one segment has to save is one part in segmentShare.
	compactMin   = 4 << 20
	compactShare = 8
	segmentShare = 16
	// shrinkPages is the number of pages that one step gives back to the filesystem.
	shrinkPages = 256
	// movedStep is the number of places that one transaction corrects.
	movedStep = 2048
)

// CompactReport says what Compact saved.
type CompactReport struct {
	Segments     int   `json:"segments"` // that were rewritten
	JournalBytes int64 `json:"journal_bytes"`
	Heads        int   `json:"heads"`  // of records of which nothing is left but number, time and hash
	Bodies       int   `json:"bodies"` // of small blobs that nothing names any more
	Pages        int   `json:"pages"`  // of catalog.db that are still free, because the database cannot shrink
}

// Compact makes the journal and catalog.db smaller by what Prune has taken away. Records that are older than the horizon lose what they say when nothing of
// it is left, and bodies of blobs that are forgotten; the hash chain goes through. What is needed to rebuild catalog.db without them is first
// saved in a checkpoint. With force it looks at the whole journal; otherwise only when there is much to gain.
func (c *Catalog) Compact(ctx context.Context, force bool, pause func(context.Context) error) (rep CompactReport, err error) {
	if c.opt.ReadOnly {
		return rep, ErrReadOnly
	}
	if pause == nil {
		pause = func(ctx context.Context) error { return ctx.Err() }
	}
	select {
	case c.pruneTurn <- struct{}{}:
		defer func() { <-c.pruneTurn }()
	case <-ctx.Done():
		return rep, ctx.Err()
	}
	if c.Damaged() {
		return rep, errPruneDamaged()
	}
	for {
		left, err := c.db.Shrink(ctx, shrinkPages)
		if err != nil {
			return rep, failed("shrink catalog.db", err)
		}
		if left == rep.Pages || left < shrinkPages {
			rep.Pages = left
			break
		}
		rep.Pages = left
		if err := pause(ctx); err != nil {
			return rep, err
		}
	}
	gain := c.pruneDebt * compactRecord
	if !force && (gain < compactMin || gain < c.j.Bytes()/compactShare) {
		return rep, nil
	}
	if err := c.compactJournal(ctx, pause, &rep); err != nil {
		return rep, fmt.Errorf("compact the journal: %w", err)
	}
	c.pruneDebt = 0
	return rep, nil
}

// errPruneDamaged: what catalog.db says cannot be trusted, and deletions cannot be taken back.
func errPruneDamaged() error {
	return fmt.Errorf("%w: nothing is deleted while catalog.db is damaged; rebuild it first, or mount the store again", ErrDamaged)
}

func (c *Catalog) compactJournal(ctx context.Context, pause func(context.Context) error, rep *CompactReport) error {
	if err := c.Flush(ctx); err != nil {
		return err
	}
	horizon, err := c.Horizon(ctx)
	if err != nil {
		return err
	}
	segments := c.j.Segments()
	old := segments[:0:0]
	for i := 0; i+1 < len(segments) && Seq(segments[i+1].First) <= horizon+1; i++ {
		old = append(old, segments[i])
	}
	if len(old) == 0 {
		return nil
	}
	// Without a checkpoint every head is needed; bodies may go all the same.
	covered, err := c.makeCheckpoint(ctx)
	c.endComparison() // it goes on from records that are about to go
	switch {
	case errors.Is(err, ErrNoSpace):
		c.log.Warn("no room for a checkpoint of catalog.db: the journal loses bodies only", "err", err)
	case err != nil:
		return err
	}
	for _, s := range old {
		if err := c.compactSegment(ctx, s, covered, pause, rep); err != nil {
			var damage *journal.DamageError
			if errors.As(err, &damage) {
				c.log.Warn("a damaged journal segment is not compacted", "segment", s.Name, "err", err)
				continue
			}
			return err
		}
	}
	return nil
}

// compactSegment rewrites one segment; covered is the newest record whose rows a checkpoint has.
func (c *Catalog) compactSegment(ctx context.Context, s journal.SegmentInfo, covered Seq, pause func(context.Context) error, rep *CompactReport) error {
	if err := c.opt.check(stageCompact); err != nil {
		return err
	}
	bodies := make(map[uint64][]blobstore.Hash) // of the records that keep one
	places := make(map[uint64]journal.Pos)
	keep := func(e journal.Entry) (journal.Keep, error) {
		if e.HeadDropped {
			return journal.KeepNone, nil
		}
		r, err := DecodeRecord(e)
		if err != nil {
			return journal.KeepAll, nil // it is damage, and none of ours to hide
		}
		k, kept, err := c.worth(ctx, &r, covered)
		if len(kept) > 0 {
			bodies[e.Seq] = kept
		}
		return k, err
	}
	res, err := c.j.Rewrite(ctx, s.First, s.Bytes/segmentShare, keep, func(seq uint64, pos journal.Pos) { places[seq] = pos }, pause)
	if len(places) > 0 { // it was rewritten, even if a last sync failed
		if merr := c.noteMoved(ctx, bodies, places, pause); err == nil {
			err = merr
		}
	}
	if err != nil {
		return failed("compact", err)
	}
	if saved := res.Before - res.After; saved > 0 {
		rep.Segments, rep.JournalBytes = rep.Segments+1, rep.JournalBytes+saved
		rep.Heads, rep.Bodies = rep.Heads+res.Heads, rep.Bodies+res.Bodies
	}
	return nil
}

// worth says what of a record is still of use: its body, while a blob in it is named by a file; its head, while a row that it wrote is left, or
// the body needs it. kept are the blobs whose bodies stay.
func (c *Catalog) worth(ctx context.Context, r *Record, covered Seq) (k journal.Keep, kept []blobstore.Hash, err error) {
	k = journal.KeepHead
	err = c.db.Read(ctx, func(conn *sqldb.Conn) error {
		for i := range r.Blobs {
			if r.Blobs[i].Body == nil {
				continue
			}
			_, size, err := blobUse(conn, r.Blobs[i].Ref.Hash)
			if err != nil {
				return err
			}
			if size >= 0 {
				k, kept = journal.KeepAll, append(kept, r.Blobs[i].Ref.Hash)
			}
		}
		if k == journal.KeepAll || r.Seq > covered {
			return nil
		}
		left, err := anyRow(conn, r)
		if err == nil && !left {
			k = journal.KeepNone
		}
		return err
	})
	return k, kept, c.readFailed("read what is left of a record", err)
}

// anyRow says whether a row that a record wrote is left. What it says of snapshots, conflicts and retention is in a checkpoint.
func anyRow(c *sqldb.Conn, r *Record) (bool, error) {
	found := false
	look := func(query string, name []byte, args ...int64) error {
		if found {
			return nil
		}
		st := c.Prep(query)
		n := 0
		for _, a := range args {
			n++
			st.BindInt64(n, a)
		}
		if name != nil {
			st.BindBytes(n+1, name)
		}
		ok, err := st.Step()
		if err != nil || !ok {
			return err
		}
		found = true
		return st.Done()
	}
	seq := int64(r.Seq)
	var errs []error
	for i := range r.Inodes {
		errs = append(errs, look("SELECT 1 FROM inodes WHERE ino = ? AND from_seq = ?", nil, int64(r.Inodes[i].Ino), seq))
	}
	for i := range r.Dentries {
		errs = append(errs, look("SELECT 1 FROM dentries WHERE parent = ? AND from_seq = ? AND name = ?", []byte(r.Dentries[i].Name), int64(r.Dentries[i].Parent), seq))
	}
	for i := range r.Xattrs {
		errs = append(errs, look("SELECT 1 FROM xattrs WHERE ino = ? AND from_seq = ? AND name = ?", []byte(r.Xattrs[i].Name), int64(r.Xattrs[i].Ino), seq))
	}
	for i := range r.Splices {
		errs = append(errs, look("SELECT 1 FROM extents WHERE ino = ? AND from_seq = ? LIMIT 1", nil, int64(r.Splices[i].Ino), seq))
	}
	for i := range r.Versions {
		errs = append(errs, look("SELECT 1 FROM versions WHERE ino = ? AND num = ?", nil, int64(r.Versions[i].Ino), int64(r.Versions[i].Num)))
	}
	return found, errors.Join(errs...)
}

// noteMoved corrects where the bodies of blobs lie in a segment that was rewritten.
func (c *Catalog) noteMoved(ctx context.Context, bodies map[uint64][]blobstore.Hash, places map[uint64]journal.Pos, pause func(context.Context) error) error {
	type move struct {
		hash blobstore.Hash
		seq  uint64
		pos  journal.Pos
	}
	var moves []move
	for seq, hashes := range bodies {
		for _, h := range hashes {
			moves = append(moves, move{h, seq, places[seq]})
		}
	}
	for len(moves) > 0 {
		n := min(movedStep, len(moves))
		err := c.db.Write(ctx, func(conn *sqldb.Conn) error {
			for _, m := range moves[:n] {
				err := moveBlob(conn, m.hash, func(b *blobRow) bool {
					was := b.pos
					b.pos.Offset = m.pos.Offset
					return b.seq == Seq(m.seq) && was.Segment == m.pos.Segment && was.Offset >= 0
				})
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return failed("write catalog.db", err)
		}
		if moves = moves[n:]; len(moves) > 0 {
			if err := pause(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// entryOf reads a record whose place is known, or was before a compaction.
func (c *Catalog) entryOf(ctx context.Context, seq Seq, pos journal.Pos) (found journal.Entry, err error) {
	e, err := c.j.ReadAt(pos, uint64(seq))
	if err == nil || !errors.Is(err, journal.ErrDamaged) {
		return e, err
	}
	stop := errors.New("stop")
	rerr := c.j.Replay(ctx, uint64(seq), func(e journal.Entry) error {
		if e.Seq == uint64(seq) {
			found = e
			found.Head, found.Body = append([]byte(nil), e.Head...), append([]byte(nil), e.Body...)
		}
		return stop
	})
	if errors.Is(rerr, stop) && found.Seq == uint64(seq) {
		return found, nil
	}
	return e, err
}
