package integrity

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/blobstore"
	"holdfast/internal/volume"
)

const (
	blobsDB = "blobs.db"
	// rebuildAgain is how long a heal that has failed does not look at the structure of blobs.db again, which means reading all of it.
	rebuildAgain = 10 * time.Second
)

// startedAnew notes that the start had to make blobs.db anew.
func (e *Engine) startedAnew(ctx context.Context) {
	b, ok := e.blobs.(blobstore.Rebuilder)
	if !ok || b.Rebuilt() == nil {
		return
	}
	e.rebuiltResult(ctx, "", b.Rebuilt(), nil)
}

// rebuiltResult records that blobs.db, of the store or of the second copies, was made anew, or why it could not be.
func (e *Engine) rebuiltResult(ctx context.Context, where string, cause, err error) Result {
	r := e.result(Checksum, blobsDB, "")
	r.Passed, r.Details, r.RecoveryAttempted, r.RecoverySuccessful = false, where+cause.Error(), true, err == nil
	a := Attempt{Time: r.Timestamp, DataID: blobsDB, Strategy: ChecksumMatch, Source: "its rows that can be read", Successful: err == nil, Took: e.now().Sub(r.Timestamp)}
	if err != nil {
		a.Details = err.Error()
	}
	e.record(ctx, &a)
	e.note(ctx, &r)
	if err == nil {
		if where == "" {
			e.unlist(ctx, blobsDB)
		}
		e.tell(EventHealed, blobsDB, "", where+"blobs.db was made anew; what it lacks is healed when it is met")
	}
	return r
}

// rebuildBlobs makes blobs.db anew when its structure is damaged, so that a heal that has failed may be tried again. It says whether it did.
func (e *Engine) rebuildBlobs(ctx context.Context) (bool, error) {
	b, ok := e.blobs.(blobstore.Rebuilder)
	if !ok || e.vol.ReadOnly() {
		return false, nil
	}
	e.rowsTurn.Lock()
	defer e.rowsTurn.Unlock()
	if !e.rowsSeen.IsZero() && e.now().Sub(e.rowsSeen) < rebuildAgain {
		return e.rowsMade, nil
	}
	done, err := rebuild(ctx, b, func(cause, err error) { e.rebuiltResult(ctx, "", cause, err) })
	e.rowsSeen, e.rowsMade = e.now(), done
	return done, err
}

func rebuild(ctx context.Context, b blobstore.Rebuilder, tell func(cause, err error)) (bool, error) {
	cause := b.Sound(ctx)
	if !isDamage(cause) {
		return false, cause
	}
	done, err := b.Rebuild(ctx)
	tell(cause, err)
	return done, err
}

// sound checks the structure of blobs.db, in the store and in the place of the second copies, before the blobs are: what then is missing is made up for on the way.
func (c *checker) sound(ctx context.Context) error {
	e := c.e
	if b, ok := e.blobs.(blobstore.Rebuilder); ok {
		if err := c.soundness(ctx, "", structure(ctx, b, c.o.Repair)); err != nil {
			return err
		}
	}
	found, err := ofSecond(ctx, e, func(s blobstore.Store) (structural, error) {
		b, ok := s.(blobstore.Rebuilder)
		if !ok {
			return structural{}, nil
		}
		if b.Rebuilt() != nil {
			e.log.Warn("blobs.db of the second copies was made anew", "cause", b.Rebuilt())
		}
		return structure(ctx, b, c.o.Repair), nil
	})
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, volume.ErrSecond) || errors.Is(err, blobstore.ErrNotFound):
		return nil // stepSecond says so
	case err != nil:
		return err
	}
	return c.soundness(ctx, "second copies: ", found)
}

// structural is what is wrong with the structure of a blobs.db.
type structural struct {
	cause   error
	rebuilt bool  // it was tried to make it anew
	err     error // what came of that
}

// structure looks at the structure of a blobs.db, and makes it anew when it is damaged and that is wanted.
func structure(ctx context.Context, b blobstore.Rebuilder, repair bool) (s structural) {
	if s.cause = b.Sound(ctx); isDamage(s.cause) && repair {
		_, s.err = b.Rebuild(ctx)
		s.rebuilt = true
	}
	return s
}

// soundness reports what structure found.
func (c *checker) soundness(ctx context.Context, where string, s structural) error {
	id := blobsDB
	if where != "" {
		id = secondID + blobsDB
	}
	switch {
	case s.cause == nil:
		c.e.unlist(ctx, id)
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case !isDamage(s.cause) && !errors.Is(s.cause, unix.EIO): // a page that cannot be read at all keeps nobody from checking the rest
		return s.cause
	case !s.rebuilt:
		c.e.listOther(ctx, id, false, s.cause.Error())
		return c.failed(ctx, c.e.result(Checksum, blobsDB, ""), where+s.cause.Error())
	}
	r := c.e.rebuiltResult(ctx, where, s.cause, s.err)
	c.e.listOther(ctx, id, s.err == nil, r.Details)
	c.sum.Failed++
	if s.err == nil {
		c.sum.Healed++
	}
	return c.fn(r)
}
