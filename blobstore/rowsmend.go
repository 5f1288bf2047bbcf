package blobstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/zeebo/blake3"

	"holdfast/internal/sqldb"
)

func blockSum(plain []byte) [32]byte { return blake3.Sum256(plain) }

func (s *rows) protect(ctx context.Context, ref Ref) (bool, error) {
	done, err := turn(ctx, s.turns)
	if err != nil {
		return false, err
	}
	defer done()
	return s.makeParity(ctx, ref, false)
}

// makeParity is protect in its turn. With force a parity that looks right is replaced as well.
func (s *rows) makeParity(ctx context.Context, ref Ref, force bool) (made bool, err error) {
	if err := s.makeParityTable(ctx); err != nil {
		return false, blobErr(ref.Hash, err)
	}
	for attempt := 0; ; attempt++ {
		current := s.current()
		made, err := s.makeParityOnce(ctx, ref, force)
		if attempt == 3 || !errors.Is(err, errChanged) && (current() || !errors.Is(err, ErrDamaged)) {
			return made, err
		}
	}
}

func (s *rows) makeParityOnce(ctx context.Context, ref Ref, force bool) (made bool, err error) {
	l, err := s.locate(ctx, ref)
	if err != nil {
		return false, err
	}
	frames, err := s.lengths(ctx, ref, &l)
	if err != nil {
		return false, err
	}
	content := s.storedBlocks(ctx, ref.Hash, l.first, frames)
	enc := encodingOf(ref.Size, frames)
	pr, parErr := s.openParity(ctx, ref.Hash)
	if parErr == nil && !force && !pr.partial && pr.fits(ref, enc, content.length()) {
		return false, nil
	}
	if parErr != nil && !unreadable(parErr) {
		return false, parErr
	}
	if content.length() == 0 {
		return false, &DamageError{ref.Hash, "content", "there is nothing of it in blobs.db"}
	}
	digests := newStripeDigests(planFor(content.length()))
	sum, err := s.codec.sumBlocks(ctx, ref, tee{content, digests}, frames)
	if err != nil {
		return false, err
	}
	out, err := s.scratch()
	if err != nil {
		return false, err
	}
	defer out.Close()
	info := parityInfo{ref: sum.Ref, enc: enc, stored: content.length()}
	if err := buildParity(ctx, info, frames, content, digests, out); err != nil {
		return false, err
	}
	if err := s.storeParity(ctx, ref.Hash, out, info.total(&digests.plan), &l.largeRow); err != nil {
		return false, err
	}
	parityMade(ctx, ref.Hash, pr, parErr)
	return true, s.db.Sync(ctx)
}

// storeParity puts a parity into rows, in place of another. The piece 0 comes last, and only if the blob is still stored as it was.
func (s *rows) storeParity(ctx context.Context, h Hash, r io.ReaderAt, size int64, was *largeRow) error {
	if err := s.dropParity(ctx, h); err != nil {
		return err
	}
	piece := make([]byte, BlockSize)
	write := func(from, to int64) error {
		err := s.db.Write(ctx, func(c *sqldb.Conn) error {
			if from == 0 {
				if err := sameRow(c, h, was); err != nil {
					return err
				}
			}
			for n := from; n < to; n++ {
				b := piece[:min(BlockSize, size-n*BlockSize)]
				if _, err := r.ReadAt(b, n*BlockSize); err != nil && err != io.EOF {
					return err
				}
				if err := c.Prep("INSERT OR REPLACE INTO parity (hash, n, body) VALUES (?, ?, ?)").BindBytes(1, h[:]).BindInt64(2, n).BindBytes(3, b).Exec(); err != nil {
					return err
				}
			}
			return nil
		})
		return rowErr(err)
	}
	last := (size + BlockSize - 1) / BlockSize
	for from := int64(1); from < last; from += txnBlocks {
		if err := write(from, min(last, from+txnBlocks)); err != nil {
			return errors.Join(err, s.dropParity(context.WithoutCancel(ctx), h))
		}
	}
	if err := write(0, 1); err != nil {
		return errors.Join(err, s.dropParity(context.WithoutCancel(ctx), h))
	}
	return nil
}

// sameRow is errChanged when the blob has other blocks than it had, or none.
func sameRow(c *sqldb.Conn, h Hash, was *largeRow) error {
	st := c.Prep("SELECT b.stored, b.zstd, ifnull(l.first, 0) FROM blob b LEFT JOIN large l ON l.id = b.id WHERE b.hash = ?").BindBytes(1, h[:])
	ok, err := st.Step()
	if err != nil {
		return err
	}
	if !ok || st.Int64(0) != was.cols.stored || st.Int64(1) != was.cols.zstd || st.Int64(2) != was.first {
		err = errChanged
	}
	return errors.Join(err, st.Done())
}

func (s *rows) mend(ctx context.Context, ref Ref) (done Repaired, err error) {
	end, err := turn(ctx, s.turns)
	if err != nil {
		return done, err
	}
	defer end()
	for attempt := 0; ; attempt++ {
		current := s.current()
		done, err = s.mendContent(ctx, ref)
		if err == nil || attempt == 3 || current() {
			break
		}
	}
	if err != nil {
		return Repaired{}, err
	}
	if done.Content {
		// The blocks were compressed again: the parity went with the old ones.
		if done.Parity, err = s.makeParity(ctx, ref, true); err != nil || done.Parity {
			return done, err
		}
	}
	if ref.Size <= MaxSmall {
		return done, nil
	}
	l, err := s.locate(ctx, ref)
	if err != nil {
		return done, err
	}
	pr, parErr := s.openParity(ctx, ref.Hash)
	if parErr != nil && !unreadable(parErr) {
		return done, parErr
	}
	found, err := inspectParity(ctx, pr, parErr, ref, l.cols.encoding(), l.cols.stored)
	if err == nil && len(found) > 0 {
		done.Parity, err = s.makeParity(ctx, ref, true)
	}
	return done, err
}

// mendContent makes sure of the content and of the columns that describe it.
func (s *rows) mendContent(ctx context.Context, ref Ref) (done Repaired, err error) {
	l, why := s.locate(ctx, ref)
	if why != nil && !unreadable(why) {
		return done, why
	}
	var frames []uint32
	if why == nil {
		if frames, err = s.lengths(ctx, ref, &l); err != nil {
			return done, err
		}
		_, why = s.codec.sumBlocks(ctx, ref, s.storedBlocks(ctx, ref.Hash, l.first, frames), frames)
	}
	if why != nil {
		if !unreadable(why) {
			return done, why
		}
		return s.fromParity(ctx, ref, &l, why)
	}
	found, err := s.inspectBlocks(ctx, ref, &l, frames)
	if err != nil || len(found) == 0 && l.why == nil {
		return done, err
	}
	if ref.Size > BlockSize {
		_, _, _, err = s.mendLarge(ctx, ref)
	} else {
		_, err = s.mendSmall(ctx, ref.Hash)
	}
	if err != nil {
		return done, err
	}
	if l, err = s.locate(ctx, ref); err == nil && l.why != nil {
		err = l.why // it could not be written
	}
	done.Sidecar = err == nil
	if err == nil {
		err = s.db.Sync(ctx)
	}
	return done, err
}

// plainBlocks gives the plain content of recovered frames, by whole blocks.
type plainBlocks struct {
	ref    Ref
	c      *codec
	r      atReader
	starts []int64
}

func (p *plainBlocks) ReadAt(dst []byte, off int64) (int, error) {
	buf, spare := p.c.buf(), p.c.buf()
	defer p.c.free(buf)
	defer p.c.free(spare)
	b := off / BlockSize
	plain, err := p.c.plainBlock(p.ref, p.r, b, p.starts[b], int(p.starts[b+1]-p.starts[b]), buf, spare)
	if err != nil {
		return 0, err
	}
	return copy(dst, plain), nil
}

// fromParity computes damaged content and stores it as a writer does. why is what is wrong with it, and the error when there is no parity.
func (s *rows) fromParity(ctx context.Context, ref Ref, l *rowsContent, why error) (done Repaired, err error) {
	h := ref.Hash
	pr, err := s.openParity(ctx, h)
	if err != nil {
		if unreadable(err) {
			err = damagedBy(h, why)
		}
		return done, err
	}
	if pr.ref.Size != ref.Size || ref.Root != (Root{}) && pr.ref.Root != ref.Root {
		return done, &DamageError{h, "parity", "it is that of a blob of another size or root"}
	}
	frames := rawFrames(ref.Size)
	if pr.enc != encRaw {
		if frames, err = pr.frames(); err != nil {
			return done, err
		}
		if frames == nil {
			return done, &DamageError{h, "parity", "it does not say how long the blocks are"}
		}
	}
	out, err := s.scratch()
	if err != nil {
		return done, err
	}
	defer out.Close()
	content := s.storedBlocks(ctx, h, l.first, frames)
	if done.Bytes, err = pr.recoverContent(ctx, content, out); err != nil {
		return Repaired{}, err
	}
	sum, err := s.codec.sumBlocks(ctx, ref, out, frames)
	if err != nil {
		return Repaired{}, err
	}
	meta, past := Meta{}, l.cols
	known := past.check == past.sum(h) && past.level >= 0 && past.level <= 2
	if known {
		meta = past.meta()
	}
	if err := s.storeRecovered(ctx, sum, meta, &plainBlocks{ref, s.codec, out, content.starts}); err != nil {
		return Repaired{}, fmt.Errorf("repair blob %s: %w", h, rowErr(err))
	}
	s.opt.Log.Warn("content computed from its parity", "blob", h.String(), "bytes", done.Bytes, "why", why)
	done.Content, done.Sidecar = true, l.why != nil
	if known && past.backups > 0 {
		if err := s.amend(ctx, h, past.setBackups); err != nil {
			return done, err
		}
	}
	return done, s.db.Sync(ctx)
}

// storeRecovered stores plain content as a writer does, in place of what is damaged.
func (s *rows) storeRecovered(ctx context.Context, sum Summed, meta Meta, plain io.ReaderAt) error {
	if sum.Ref.Size <= BlockSize {
		data := make([]byte, sum.Ref.Size)
		if _, err := plain.ReadAt(data, 0); err != nil {
			return err
		}
		return s.put(ctx, []Item{{Ref: sum.Ref, Meta: meta, Data: data}})
	}
	return s.storeLarge(ctx, sum, meta, plain)
}

var _ sparseFile = (*os.File)(nil)
