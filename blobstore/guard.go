package blobstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// Part says of what kind a damaged place is.
type Part string

// The parts of a blob.
const (
	PartContent Part = "content" // the content as a whole, or a place in it that no block hash covers
	PartBlock   Part = "block"   // one block; Index is its number
	PartSidecar Part = "sidecar" // the sidecar's file is damaged or missing
	PartParity  Part = "parity"  // the parity is damaged, or is not that of the content
	PartRow     Part = "row"     // the columns of a row of blobs.db that describe the blob
	PartMissing Part = "missing" // the content is gone, and something else of the blob is there
)

// Finding is one damaged place of a blob.
type Finding struct {
	Part   Part
	Index  int    // the number of the block, else 0
	Off    int64  // where the place begins in the stored bytes (of the parity, for PartParity)
	Len    int64  // its length; 0: not known
	Detail string // for people
}

// Repaired says what Repair has made anew. Nothing of it set: all was intact.
type Repaired struct {
	Content bool  // from the parity
	Sidecar bool  // from the content
	Parity  bool  // from the content
	Bytes   int64 // bytes of content that were damaged and have been computed
}

// Any reports whether anything was repaired.
func (r Repaired) Any() bool { return r.Content || r.Sidecar || r.Parity }

// Guarded is what a healer needs of a store: to find out what is damaged, and to mend it from what the store itself has. Its methods may be
// called concurrently with each other and with those of Store. Protect and Repair of large blobs take turns, so that their memory (about 64 MiB)
// is needed once; the first of them in a process also makes tables of 74 MiB that stay.
type Guarded interface {
	// Inspect verifies all that the store holds of ref: content block by block against the root, or all of it against the name, sidecar or row, parity where there is
	// one. No findings: all is intact. The content is read once, from the medium where that can be had. Findings are in order of the parts and
	// of the offsets. Nothing is changed. Errors: ErrNotFound when nothing of the blob is there, else I/O and cancellation only.
	Inspect(ctx context.Context, ref Ref) ([]Finding, error)
	// Protect makes the parity of a blob of more than MaxSmall bytes, unless there is one for its stored bytes; durable on return. The content is
	// verified while it is read: ErrDamaged, ErrNotFound. A smaller blob needs none: made is false.
	Protect(ctx context.Context, ref Ref) (made bool, err error)
	// Parity says whether there is a parity for the blob as it is stored, and the bytes that it takes. It does not verify it.
	Parity(ctx context.Context, h Hash) (bytes int64, ok bool, err error)
	// Repair mends what is damaged from what the store itself has: a sidecar from content, content from parity, parity from content. The result is
	// verified against the blob's name and root before it replaces anything, and durable on return. ErrDamaged when that is not enough, ErrNotFound when
	// there is neither content nor parity: nothing is changed then. A sidecar made anew has level basic and no backups.
	Repair(ctx context.Context, ref Ref) (Repaired, error)
	// Raw opens the stored bytes as they lie, not verified, and says how many there are. The caller closes them, before the store. ErrNotFound.
	Raw(ctx context.Context, h Hash) (io.ReadCloser, int64, error)
	// SetLevel sets the integrity_level of a blob, up or down; durable after the next Sync. ErrNotFound, ErrInvalid.
	SetLevel(ctx context.Context, h Hash, level string) error
	// SetBackup sets backup_count and last_backup (zero: none); durable after the next Sync. ErrNotFound, ErrInvalid.
	SetBackup(ctx context.Context, h Hash, count int, last time.Time) error
}

// guardedPlace is what a place does for Guarded. Arguments are checked; of two places the other is asked after ErrNotFound.
type guardedPlace interface {
	inspect(ctx context.Context, ref Ref) ([]Finding, error)
	protect(ctx context.Context, ref Ref) (bool, error)
	parity(ctx context.Context, h Hash) (int64, bool, error)
	mend(ctx context.Context, ref Ref) (Repaired, error)
	raw(ctx context.Context, h Hash) (io.ReadCloser, int64, error)
	// amend changes the sidecar of a blob, which it first makes anew when it is damaged.
	amend(ctx context.Context, h Hash, change func(*Sidecar)) error
}

// guarded runs fn on the place where a blob of that size belongs, and on the other when the blob is not there.
func (s *store) guarded(ctx context.Context, size int64, write bool, fn func(context.Context, place) error) error {
	if size < 0 || size > maxBlob {
		return fmt.Errorf("a blob of %d bytes: %w", size, ErrInvalid)
	}
	ctx, err := s.enter(ctx, write)
	if err != nil {
		return err
	}
	defer s.leave(ctx)
	own, other := s.order(size)
	err = fn(ctx, own)
	if other != nil && errors.Is(err, ErrNotFound) {
		err = fn(ctx, other)
	}
	return err
}

func (s *store) Inspect(ctx context.Context, ref Ref) (found []Finding, err error) {
	err = s.guarded(ctx, ref.Size, false, func(ctx context.Context, p place) (err error) { found, err = p.inspect(ctx, ref); return err })
	return found, err
}

func (s *store) Protect(ctx context.Context, ref Ref) (made bool, err error) {
	err = s.guarded(ctx, ref.Size, true, func(ctx context.Context, p place) (err error) {
		if ref.Size <= MaxSmall {
			return nil
		}
		made, err = p.protect(ctx, ref)
		return err
	})
	return made, err
}

func (s *store) Parity(ctx context.Context, h Hash) (n int64, ok bool, err error) {
	err = s.guarded(ctx, maxBlob, false, func(ctx context.Context, p place) (err error) { n, ok, err = p.parity(ctx, h); return err })
	return n, ok, err
}

func (s *store) Repair(ctx context.Context, ref Ref) (done Repaired, err error) {
	err = s.guarded(ctx, ref.Size, true, func(ctx context.Context, p place) (err error) { done, err = p.mend(quiet(ctx), ref); return err })
	return done, err
}

func (s *store) Raw(ctx context.Context, h Hash) (r io.ReadCloser, n int64, err error) {
	err = s.guarded(ctx, maxBlob, false, func(ctx context.Context, p place) (err error) { r, n, err = p.raw(ctx, h); return err })
	return r, n, err
}

func (s *store) SetLevel(ctx context.Context, h Hash, level string) error {
	if levelRank(level) < 0 {
		return fmt.Errorf("blob %s: level %q; choose basic, advanced or critical: %w", h, level, ErrInvalid)
	}
	level = levelName(levelRank(level))
	return s.guarded(ctx, maxBlob, true, func(ctx context.Context, p place) error {
		return p.amend(ctx, h, func(sc *Sidecar) { sc.IntegrityLevel = level })
	})
}

func (s *store) SetBackup(ctx context.Context, h Hash, count int, last time.Time) error {
	if y := last.Year(); count < 0 || !last.IsZero() && (y < 1700 || y > 2200) {
		return fmt.Errorf("blob %s: %d backups, the last one of %s: %w", h, count, last, ErrInvalid)
	}
	return s.guarded(ctx, maxBlob, true, func(ctx context.Context, p place) error {
		return p.amend(ctx, h, func(sc *Sidecar) {
			sc.BackupCount, sc.LastBackup = count, nil
			if !last.IsZero() {
				t := stamp(last)
				sc.LastBackup = &t
			}
		})
	})
}

// turn waits until no other Protect or Repair of the store runs; done ends the turn.
func turn(ctx context.Context, token chan struct{}) (done func(), err error) {
	select {
	case token <- struct{}{}:
		return func() { <-token }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
