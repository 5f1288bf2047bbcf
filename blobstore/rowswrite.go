package blobstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/zeebo/blake3"

	"holdfast/internal/sqldb"
)

// adopt copies a blob of more than one block into rows of block, in transactions of a few blocks, and names it last.
func (s *rows) adopt(ctx context.Context, sum Summed, meta Meta, staged *os.File, path string, durable bool) error {
	kept, damage, err := s.keepLarge(ctx, sum, meta)
	if err != nil {
		return err
	}
	if !kept {
		err := s.storeLarge(ctx, sum, meta, staged)
		replaced(ctx, sum.Ref, damage, err)
		if err != nil {
			return fmt.Errorf("adopt blob %s from %s: %w", sum.Ref.Hash, path, rowErr(err))
		}
	}
	if durable {
		if err := s.db.Sync(ctx); err != nil {
			return err
		}
	}
	return os.Remove(path)
}

// errRemade: blobs.db was made anew while a blob was written, without the blocks that nothing named yet.
var errRemade = errors.New("blobs.db was made anew meanwhile, without the blocks that were written before")

// storeTries is how often a blob is written when blobs.db is made anew again and again meanwhile.
const storeTries = 3

// storeLarge writes content into rows that are new, in place of what the blob had.
func (s *rows) storeLarge(ctx context.Context, sum Summed, meta Meta, plain io.ReaderAt) error {
	for try := 1; ; try++ {
		err := s.storeOnce(ctx, sum, meta, plain)
		if try == storeTries || !errors.Is(err, errRemade) {
			return err
		}
	}
}

func (s *rows) storeOnce(ctx context.Context, sum Summed, meta Meta, plain io.ReaderAt) error {
	n := blockCount(sum.Ref.Size)
	first := s.reserve(n)
	err := s.db.Write(ctx, func(c *sqldb.Conn) error {
		return c.Prep("INSERT INTO incomplete (first, count) VALUES (?, ?)").BindInt64(1, first).BindInt64(2, n).Exec()
	})
	if err == nil {
		err = s.writeLarge(ctx, sum, meta, plain, first)
	}
	if err != nil {
		if err2 := s.dropBlocks(context.WithoutCancel(ctx), first, n); err2 != nil {
			s.opt.Log.Warn("blocks of an incomplete blob stay until the store is opened again", "blob", sum.Ref.Hash.String(), "err", err2)
		}
	}
	return err
}

// reserve hands out numbers for n rows of block.
func (s *rows) reserve(n int64) (first int64) {
	s.nextMu.Lock()
	defer s.nextMu.Unlock()
	first = s.next
	s.next += n
	return first
}

// keepLarge says whether the blob is there and intact, by its block hashes; if so it raises its level where needed. damage says what is wrong with one that is there
// and is not intact.
func (s *rows) keepLarge(ctx context.Context, sum Summed, meta Meta) (kept bool, damage, err error) {
	h := sum.Ref.Hash
	current := s.current()
	r, err := s.loadLarge(ctx, h, sum.Ref.Size)
	switch {
	case errors.Is(err, ErrNotFound):
		return false, nil, nil
	case errors.Is(err, ErrDamaged):
		return false, err, nil
	case err != nil:
		return false, nil, err
	}
	lay := &layout{size: sum.Ref.Size, hashes: sum.Blocks, first: r.first}
	buf := s.codec.buf()
	defer s.codec.free(buf)
	for b := range blockCount(sum.Ref.Size) {
		if err := s.fetch(ctx, h, lay, b, buf[:blockLen(sum.Ref.Size, b)]); err != nil {
			if lookElsewhere(err) && !current() {
				return false, nil, nil // deleted or replaced meanwhile, maybe
			}
			if lookElsewhere(err) {
				s.opt.Log.Warn("a stored blob is damaged and is replaced by intact content", "blob", h.String(), "err", err)
				return false, err, nil
			}
			return false, nil, err
		}
	}
	good := r.cols.flaw(h) == nil && r.cols.size == sum.Ref.Size && bytes.Equal(r.hashes, sum.Blocks)
	level := int64(levelRank(meta.Level))
	if good && r.cols.level >= level {
		return true, nil, nil
	}
	if !good {
		if _, r.cols, _, err = s.mendLarge(ctx, sum.Ref); err != nil {
			return false, nil, err
		}
	}
	r.cols.level = max(level, r.cols.level)
	return true, nil, rowErr(s.db.Write(ctx, func(c *sqldb.Conn) error { return s.update(c, h, r.cols.id, &r.cols) }))
}

// writeLarge writes the blocks and then the rows that name them.
func (s *rows) writeLarge(ctx context.Context, sum Summed, meta Meta, staged io.ReaderAt, first int64) error {
	k := newColumns(sum.Ref, meta)
	k.stored = 0
	n := blockCount(sum.Ref.Size)
	for from := int64(0); from < n; from += txnBlocks {
		bodies, err := s.encodeBlocks(ctx, sum, staged, from, min(n, from+txnBlocks))
		if err != nil {
			return err
		}
		err = s.db.Write(ctx, func(c *sqldb.Conn) error {
			for i, body := range bodies {
				b := from + int64(i)
				if err := c.Prep("INSERT INTO block (id, body) VALUES (?, ?)").BindInt64(1, first+b).BindBytes(2, body).Exec(); err != nil {
					return err
				}
				k.stored += int64(len(body))
				if len(body) < blockLen(sum.Ref.Size, b) {
					k.zstd = 1
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	k.check = k.sum(sum.Ref.Hash)
	return s.nameLarge(ctx, sum, k, first, n)
}

// encodeBlocks reads, checks and compresses some blocks.
func (s *rows) encodeBlocks(ctx context.Context, sum Summed, r io.ReaderAt, from, to int64) ([][]byte, error) {
	bodies := make([][]byte, 0, to-from)
	for b := from; b < to; b++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		plain := make([]byte, blockLen(sum.Ref.Size, b))
		if n, err := r.ReadAt(plain, b*BlockSize); n != len(plain) {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		if blake3.Sum256(plain) != [32]byte(sum.Blocks[32*b:32*b+32]) {
			return nil, &DamageError{sum.Ref.Hash, fmt.Sprintf("block %d", b), "the staged file does not have its hash"}
		}
		body := plain
		if frame, ok := s.codec.encode(nil, plain); ok {
			body = frame
		}
		bodies = append(bodies, body)
	}
	return bodies, nil
}

// nameLarge makes the blob visible. What it replaces is dropped; when another caller has stored the same blob meanwhile, the newer replaces it.
func (s *rows) nameLarge(ctx context.Context, sum Summed, k columns, first, n int64) error {
	h := sum.Ref.Hash
	var old largeRow
	err := s.db.Write(ctx, func(c *sqldb.Conn) error {
		delta := Stats{1, k.size, k.stored}
		added, err := s.insert(c, h, &k, nil)
		if err != nil {
			return err
		}
		id := c.LastInsertRowID()
		if !added {
			if old, err = s.retire(c, h); err != nil {
				return err
			}
			id, delta = old.cols.id, Stats{0, k.size - old.cols.size, k.stored - old.cols.stored}
			if err := s.update(c, h, id, &k); err != nil {
				return err
			}
			if err := c.Prep("UPDATE blob SET body = NULL WHERE id = ?").BindInt64(1, id).Exec(); err != nil {
				return err
			}
		}
		if err := c.Prep("INSERT OR REPLACE INTO large (id, first, hashes) VALUES (?, ?, ?)").BindInt64(1, id).BindInt64(2, first).
			BindBytes(3, sum.Blocks).Exec(); err != nil {
			return err
		}
		if err := c.Prep("DELETE FROM incomplete WHERE first = ?").BindInt64(1, first).Exec(); err != nil {
			return err
		}
		if c.Changes() == 0 {
			return errRemade
		}
		return addTotal(c, delta)
	})
	if err != nil {
		return err
	}
	s.gen.Add(1)
	s.forget(h)
	if err := s.dropStaleParity(ctx, h, &k); err != nil {
		return err
	}
	if old.first > 0 {
		if err := s.dropBlocks(ctx, old.first, blockCount(old.cols.size)); err != nil {
			s.opt.Log.Warn("blocks of a replaced blob stay until the store is opened again", "blob", h.String(), "err", err)
		}
	}
	return nil
}

// retire marks the blocks of a blob, if it has any, as to be dropped, in the transaction that takes them from it.
func (s *rows) retire(c *sqldb.Conn, h Hash) (old largeRow, err error) {
	st := c.Prep("SELECT b.id, b.size, b.stored, l.first FROM blob b LEFT JOIN large l ON l.id = b.id WHERE b.hash = ?").BindBytes(1, h[:])
	ok, err := st.Step()
	if err != nil || !ok {
		return old, err
	}
	old.cols.id, old.cols.size, old.cols.stored, old.first, old.large = st.Int64(0), st.Int64(1), st.Int64(2), st.Int64(3), !st.IsNull(3)
	if err := st.Done(); err != nil {
		return old, err
	}
	if old.first > 0 {
		err = c.Prep("INSERT OR REPLACE INTO incomplete (first, count) VALUES (?, ?)").BindInt64(1, old.first).
			BindInt64(2, blockCount(old.cols.size)).Exec()
	}
	return old, err
}

// dropBlocks removes rows of block that no blob has, in bounded transactions, and then the row that names them as incomplete.
func (s *rows) dropBlocks(ctx context.Context, first, count int64) error {
	count = max(0, min(count, 1<<40)) // they come from the database
	for {
		gone := 0
		err := s.db.Write(ctx, func(c *sqldb.Conn) error {
			err := c.Prep("DELETE FROM block WHERE id IN (SELECT id FROM block WHERE id >= ? AND id < ? LIMIT ?)").
				BindInt64(1, first).BindInt64(2, first+count).BindInt64(3, txnBlocks).Exec()
			if err != nil {
				return err
			}
			if gone = c.Changes(); gone > 0 {
				return nil
			}
			return c.Prep("DELETE FROM incomplete WHERE first = ?").BindInt64(1, first).Exec()
		})
		if err != nil || gone == 0 {
			return err
		}
	}
}

// removeBatch is remove of many, in one transaction but for their blocks and parities, which go in bounded ones.
func (s *rows) removeBatch(ctx context.Context, hashes []Hash) error {
	there, err := s.present(ctx, hashes)
	if err != nil {
		return err
	}
	if len(there) > 0 {
		if err := s.removeRows(ctx, there); err != nil {
			return err
		}
	}
	s.removedMu.Lock()
	defer s.removedMu.Unlock()
	if !s.unsynced.Swap(false) {
		return nil
	}
	err = s.syncDB(ctx)
	if err != nil {
		s.unsynced.Store(true)
	}
	return err
}

func (s *rows) removeRows(ctx context.Context, there []Hash) error {
	defer s.unsynced.Store(true)
	var old []largeRow
	err := s.db.Write(ctx, func(c *sqldb.Conn) error {
		var delta Stats
		for i := range there {
			r, err := s.unname(c, there[i])
			if err != nil {
				return err
			}
			if r.cols.id == 0 {
				continue
			}
			delta = Stats{delta.Blobs - 1, delta.PlainBytes - r.cols.size, delta.StoredBytes - r.cols.stored}
			if r.first > 0 {
				old = append(old, r)
			}
		}
		return addTotal(c, delta)
	})
	if err != nil {
		return fmt.Errorf("delete %d blobs: %w", len(there), rowErr(err))
	}
	s.unsynced.Store(true) // also for who finds them gone already
	s.gen.Add(1)
	for i := range there {
		s.forget(there[i])
	}
	for i := range old {
		if err := s.dropBlocks(ctx, old[i].first, blockCount(old[i].cols.size)); err != nil {
			return rowErr(err)
		}
	}
	return nil
}

// present returns those of the blobs that have rows, without their parities, which it removes: without content nobody would look for them.
func (s *rows) present(ctx context.Context, hashes []Hash) (there []Hash, err error) {
	var protected []Hash
	hasParity := s.hasParity.Load()
	err = s.db.Read(ctx, func(c *sqldb.Conn) error {
		for i := range hashes {
			ok, err := c.Prep("SELECT 1 FROM blob WHERE hash = ?").BindBytes(1, hashes[i][:]).Step()
			if err != nil {
				return err
			}
			if ok {
				there = append(there, hashes[i])
			}
			if !hasParity {
				continue
			}
			if ok, err = c.Prep("SELECT 1 FROM parity WHERE hash = ? LIMIT 1").BindBytes(1, hashes[i][:]).Step(); err != nil {
				return err
			}
			if ok {
				protected = append(protected, hashes[i])
			}
		}
		return nil
	})
	if err != nil {
		return nil, rowErr(err)
	}
	if len(protected) > 0 {
		defer s.unsynced.Store(true)
	}
	for i := range protected {
		if err := s.dropParity(ctx, protected[i]); err != nil {
			return nil, fmt.Errorf("delete parity of blob %s: %w", protected[i], err)
		}
	}
	return there, nil
}

// unname removes the rows that make a blob visible, and a parity that was made since it was looked for. Its blocks are named by incomplete then. id 0: it was not there.
func (s *rows) unname(c *sqldb.Conn, h Hash) (old largeRow, err error) {
	if old, err = s.retire(c, h); err != nil || old.cols.id == 0 {
		return old, err
	}
	if err := c.Prep("DELETE FROM blob WHERE id = ?").BindInt64(1, old.cols.id).Exec(); err != nil {
		return old, err
	}
	if old.large {
		if err := c.Prep("DELETE FROM large WHERE id = ?").BindInt64(1, old.cols.id).Exec(); err != nil {
			return old, err
		}
	}
	if s.hasParity.Load() && old.cols.size > MaxSmall {
		return old, c.Prep("DELETE FROM parity WHERE hash = ?").BindBytes(1, h[:]).Exec()
	}
	return old, nil
}

func (s *rows) remove(ctx context.Context, h Hash) error {
	// The parity goes first: without content nobody would look for it.
	if err := s.dropParity(ctx, h); err != nil {
		return fmt.Errorf("delete parity of blob %s: %w", h, err)
	}
	// Most calls of a hybrid store concern a file: a look is cheaper than a transaction.
	var there bool
	err := s.db.Read(ctx, func(c *sqldb.Conn) (err error) {
		there, err = c.Prep("SELECT 1 FROM blob WHERE hash = ?").BindBytes(1, h[:]).Step()
		return err
	})
	if err != nil || !there {
		return rowErr(err)
	}
	var old largeRow
	err = s.db.Write(ctx, func(c *sqldb.Conn) (err error) {
		if old, err = s.unname(c, h); err != nil || old.cols.id == 0 {
			return err
		}
		return addTotal(c, Stats{-1, -old.cols.size, -old.cols.stored})
	})
	if err != nil {
		return fmt.Errorf("delete blob %s: %w", h, rowErr(err))
	}
	s.gen.Add(1)
	s.forget(h)
	if old.first > 0 {
		return rowErr(s.dropBlocks(ctx, old.first, blockCount(old.cols.size)))
	}
	return nil
}
