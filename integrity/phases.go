package integrity

import (
	"context"
	"encoding/binary"
	"errors"
	"math"
	"sync/atomic"
	"time"

	"holdfast/blobstore"
	"holdfast/catalog"
	"holdfast/catalog/journal"
	"holdfast/internal/volume"
)

// The phases of a cycle, in their order.
const (
	phaseBlobs    = "blobs"
	phaseSecond   = "second"
	phaseCatalog  = "catalog"
	phaseJournal  = "journal"
	phaseVersions = "versions"
	phaseDone     = "done"
)

const (
	stepBlobs   = 64
	stepBytes   = 16 << 20
	stepRecords = 1 << 14
	stepInodes  = 64
)

// position is how far a walk through the store is.
type position struct {
	Phase string         `json:"phase"`
	Hash  blobstore.Hash `json:"hash"` // phaseBlobs, phaseSecond: behind this one
	Seq   catalog.Seq    `json:"seq"`  // phaseCatalog, phaseJournal: behind this record
	Ino   catalog.Ino    `json:"ino"`  // phaseVersions: behind this inode
	Made  int64          `json:"made"`
}

func (p *position) next(phase string) {
	p.Phase, p.Hash, p.Seq, p.Ino = phase, blobstore.Hash{}, 0, 0
}

// fraction estimates how much of a cycle lies behind the position; newest is the number of the newest record, last that of the last inode.
func (p *position) fraction(newest catalog.Seq, last catalog.Ino) float64 {
	part := func(x, of float64) float64 {
		if of <= 0 {
			return 0
		}
		return min(x/of, 1)
	}
	hashed := part(float64(binary.BigEndian.Uint64(p.Hash[:8])), math.MaxUint64)
	recorded := part(float64(p.Seq), float64(newest))
	switch p.Phase {
	case phaseBlobs:
		return 0.6 * hashed
	case phaseSecond:
		return 0.6 + 0.2*hashed
	case phaseCatalog:
		return 0.8 + 0.05*recorded
	case phaseJournal:
		return 0.85 + 0.05*recorded
	case phaseVersions:
		return 0.9 + 0.1*part(float64(p.Ino), float64(last))
	}
	return 1
}

// step checks a small part of the store, from pos on, and moves pos behind it.
func (c *checker) step(ctx context.Context, pos *position) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	switch pos.Phase {
	case phaseBlobs:
		return c.stepBlobs(ctx, pos)
	case phaseSecond:
		return c.stepSecond(ctx, pos)
	case phaseCatalog:
		return c.stepCatalog(ctx, pos)
	case phaseJournal:
		return c.stepJournal(ctx, pos)
	case phaseVersions:
		return c.stepVersions(ctx, pos)
	}
	pos.next(phaseDone)
	return nil
}

// stepBlobs checks blobs in the order of their names, and sees that each has what its level promises.
func (c *checker) stepBlobs(ctx context.Context, pos *position) error {
	if pos.Hash == (blobstore.Hash{}) {
		if err := c.sound(ctx); err != nil {
			return err
		}
	}
	page, err := c.e.cat.Blobs(ctx, pos.Hash, stepBlobs)
	if err != nil {
		pos.next(phaseSecond)
		return c.unreadable(ctx, "", "catalog", err)
	}
	if len(page) == 0 {
		pos.next(phaseSecond)
		if c.o.Repair {
			return c.e.forgetGone(ctx)
		}
		return nil
	}
	for bytes, i := int64(0), 0; i < len(page) && bytes < stepBytes; i++ {
		ref := page[i].Ref
		if err := ctx.Err(); err != nil {
			return err
		}
		healthy, err := c.blob(ctx, "", ref)
		if err != nil {
			return err
		}
		if healthy && c.o.Repair {
			if err := c.uphold(ctx, pos, ref); err != nil {
				return err
			}
		}
		bytes += ref.Size
		pos.Hash = ref.Hash
	}
	return nil
}

// uphold makes what is missing of what the level of a blob promises.
func (c *checker) uphold(ctx context.Context, pos *position, ref blobstore.Ref) error {
	level, err := c.e.levelOf(ctx, ref.Hash)
	if err != nil || level == catalog.LevelBasic {
		return err
	}
	made, err := c.e.uphold(ctx, ref, level)
	pos.Made += made
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		c.sum.Skipped++
		if !errors.Is(err, volume.ErrSecond) {
			c.e.log.Warn("what the level of a blob promises cannot be made now; it is tried again in the next cycle", "blob", ref.Hash, "level", level, "error", err)
		}
	}
	return nil
}

// stepSecond checks second copies, mends them from the store, and removes those of blobs that nothing names any more.
func (c *checker) stepSecond(ctx context.Context, pos *position) error {
	full := errors.New("enough")
	page, err := ofSecond(ctx, c.e, func(s blobstore.Store) (page []blobstore.Hash, err error) {
		err = s.List(ctx, pos.Hash, func(h blobstore.Hash) error {
			page = append(page, h)
			if len(page) == stepBlobs {
				return full
			}
			return nil
		})
		if errors.Is(err, full) {
			err = nil
		}
		return page, err
	})
	if err != nil || len(page) == 0 {
		pos.next(phaseCatalog)
		if errors.Is(err, volume.ErrSecond) {
			c.sum.Skipped++
			c.e.SecondCopy(err)
			err = nil
		}
		switch {
		case errors.Is(err, blobstore.ErrNotFound):
			err = nil
		case isDamage(err) && ctx.Err() == nil:
			return c.failed(ctx, c.e.result(Checksum, blobsDB, ""), "second copies: "+err.Error())
		}
		return err
	}
	for bytes, i := int64(0), 0; i < len(page) && bytes < stepBytes; i++ {
		n, err := c.secondCopy(ctx, page[i])
		if err != nil {
			return err
		}
		bytes += n
		pos.Hash = page[i]
	}
	return nil
}

// ofSecond returns what fn says of the blob store with the second copies. When ctx has ended fn may still be at work, and writes to nothing that others use.
func ofSecond[T any](ctx context.Context, e *Engine, fn func(blobstore.Store) (T, error)) (v T, err error) {
	var got atomic.Pointer[T]
	err = e.vol.Second().With(ctx, func(s blobstore.Store) error {
		v, err := fn(s)
		got.Store(&v)
		return err
	})
	if p := got.Load(); p != nil {
		v = *p
	}
	return v, err
}

func (c *checker) secondCopy(ctx context.Context, h blobstore.Hash) (int64, error) {
	e := c.e
	if err := e.cat.Pin(ctx, h); err != nil {
		return 0, err
	}
	defer e.cat.Unpin(h)
	ref, ok, err := e.cat.HasBlob(ctx, h)
	if err != nil {
		return 0, c.unreadable(ctx, "", "catalog", err)
	}
	if !ok {
		if c.o.Repair {
			_, err = e.vol.Second().Remove(ctx, h, func() (bool, error) {
				_, ok, err := e.cat.HasBlob(ctx, h)
				return !ok, err
			})
		}
		return 0, err
	}
	found, err := ofSecond(ctx, e, func(s blobstore.Store) ([]blobstore.Finding, error) {
		if g, ok := s.(blobstore.Guarded); ok {
			return g.Inspect(ctx, ref)
		}
		return nil, s.Verify(ctx, ref)
	})
	c.sum.Blobs++
	c.sum.Bytes += ref.Size
	cause := damageOf(ref, found, err)
	if cause == nil {
		if err != nil && ctx.Err() == nil {
			c.sum.Skipped++
			err = nil
		} else if err == nil {
			e.unlist(ctx, secondID+h.String())
		}
		return ref.Size, err
	}
	r := e.result(Checksum, h.String(), first(e.paths(ctx, h)))
	r.Passed, r.Details = false, "second copy: "+cause.Error()
	c.sum.Failed++
	if c.o.Repair {
		began := e.now()
		err := e.mendSecond(recorded(ctx, healOf{h, true}), ref, found)
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		a := Attempt{Time: began.UTC(), DataID: r.DataID, Path: r.Path, Strategy: ChecksumMatch, Source: "the store, for the second copy", Successful: err == nil,
			Took: e.now().Sub(began), Bytes: ref.Size}
		if err != nil {
			a.Details, a.Bytes = err.Error(), 0
		}
		e.record(ctx, &a)
		r.RecoveryAttempted, r.RecoverySuccessful = true, err == nil
		if err == nil {
			c.sum.Healed++
			e.tell(EventHealed, r.DataID, r.Path, "the second copy was healed from the store")
		}
	}
	e.note(ctx, &r)
	e.listOther(ctx, secondID+h.String(), r.RecoverySuccessful, r.Details)
	return ref.Size, c.fn(r)
}

// mendSecond writes a second copy anew from the store's, which is healed first if need be, and what describes it.
func (e *Engine) mendSecond(ctx context.Context, ref blobstore.Ref, found []blobstore.Finding) error {
	if len(found) == 0 || contentDamaged(found) {
		err := e.vol.CopySecond(ctx, ref)
		if isDamage(err) {
			if err = e.Heal(ctx, ref, err); err == nil {
				err = e.vol.CopySecond(ctx, ref)
			}
		}
		if err != nil {
			return err
		}
	}
	return e.vol.Second().With(ctx, func(s blobstore.Store) error {
		g, ok := s.(blobstore.Guarded)
		if !ok {
			return s.Verify(ctx, ref)
		}
		left, err := g.Inspect(ctx, ref)
		if err == nil && len(left) > 0 {
			if _, err = g.Repair(ctx, ref); err == nil {
				left, err = g.Inspect(ctx, ref)
			}
		}
		if err != nil {
			return err
		}
		return damageOf(ref, left, nil)
	})
}

// stepJournal reads records: frames, hashes, and the chain from one to the next.
func (c *checker) stepJournal(ctx context.Context, pos *position) error {
	if pos.Seq == 0 {
		c.records.begin()
		headers, err := c.e.cat.JournalHeaders(ctx)
		if err != nil {
			return err
		}
		for _, d := range headers {
			if err := c.journalDamage(ctx, d); err != nil {
				return err
			}
		}
	}
	enough := errors.New("enough")
	n := 0
	err := c.e.cat.Records(ctx, pos.Seq+1, func(r catalog.Record) error {
		pos.Seq = r.Seq
		if n++; n == stepRecords {
			return enough
		}
		return nil
	})
	if errors.Is(err, enough) {
		return nil
	}
	var d *journal.DamageError
	if errors.As(err, &d) && catalog.Seq(d.Last) > pos.Seq {
		pos.Seq = catalog.Seq(d.Last)
		return c.journalDamage(ctx, d)
	}
	pos.next(phaseVersions)
	if err != nil {
		return c.unreadable(ctx, "", "journal", err)
	}
	c.e.journalEnds(ctx, c.records)
	return nil
}

// stepVersions checks the versions of files, removed ones included.
func (c *checker) stepVersions(ctx context.Context, pos *position) error {
	page, err := c.e.cat.VersionedInodes(ctx, pos.Ino, stepInodes)
	if err != nil {
		pos.next(phaseDone)
		return c.unreadable(ctx, "", "catalog", err)
	}
	if len(page) == 0 {
		pos.next(phaseDone)
		return nil
	}
	for _, ino := range page {
		p, err := c.e.cat.Path(ctx, ino)
		if err != nil {
			p = ""
		}
		c.sum.Files++
		if err := c.chain(ctx, p, ino, false); err != nil {
			return err
		}
		pos.Ino = ino
	}
	return nil
}

// resilver makes the parity and the second copies that are missing, without reading what is there.
func (c *checker) resilver(ctx context.Context, pause func(context.Context) error) (made int64, err error) {
	pos := position{Phase: phaseBlobs}
	for {
		page, err := c.e.cat.Blobs(ctx, pos.Hash, stepBlobs)
		if err != nil || len(page) == 0 {
			return pos.Made, err
		}
		for i := range page {
			pos.Hash = page[i].Ref.Hash
			if err := c.e.cat.Pin(ctx, pos.Hash); err != nil {
				return pos.Made, err
			}
			_, ok, err := c.e.cat.HasBlob(ctx, pos.Hash)
			if ok && err == nil {
				err = c.uphold(ctx, &pos, page[i].Ref)
			}
			c.e.cat.Unpin(pos.Hash)
			if err != nil {
				return pos.Made, err
			}
			if c.e.vol.Second().Err() != nil {
				return pos.Made, nil // when it works again, this is done again
			}
		}
		if err := pause(ctx); err != nil {
			return pos.Made, err
		}
	}
}

// pace returns a function that waits, after a piece of work, in proportion to what it took: for long while others use the store, for a little otherwise.
func (e *Engine) pace(active, calm float64) func(context.Context) error {
	const longest = 2 * time.Second
	began, seen := time.Now(), e.vol.Activity()
	return func(ctx context.Context) error {
		share := calm
		if now := e.vol.Activity(); now != seen {
			share, seen = active, now
		}
		wait := time.NewTimer(min(time.Duration(float64(time.Since(began))*share), longest))
		defer wait.Stop()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-wait.C:
		}
		began = time.Now()
		return nil
	}
}
