package blobstore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"holdfast/internal/sqldb"
)

func notFound(h Hash) error { return fmt.Errorf("blob %s: %w", h, ErrNotFound) }

func (s *rows) readAt(ctx context.Context, ref Ref, p []byte, off int64) (int, error) {
	if ref.Size <= BlockSize {
		return s.readSmall(ctx, ref, p, off)
	}
	for attempt := 0; ; attempt++ {
		current := s.current()
		lay, cached, err := s.layout(ctx, ref)
		if err == nil {
			var n int
			n, err = readRange(ctx, ref.Hash, lay, s.blocks, p, off, func(b int64, dst []byte) error { return s.fetch(ctx, ref.Hash, lay, b, dst) })
			if err == nil {
				return n, nil
			}
		}
		if attempt > 0 || !lookElsewhere(err) || !cached && current() {
			return 0, err
		}
		s.forget(ref.Hash) // replaced or deleted in the meantime
	}
}

func (s *rows) readSmall(ctx context.Context, ref Ref, p []byte, off int64) (int, error) {
	if b, ok := s.blocks.get(blockKey{ref.Hash, 0}); ok && int64(len(b)) == ref.Size {
		return copy(p, b[off:]), nil
	}
	current := s.current()
	direct := off == 0 && int64(len(p)) >= ref.Size
	var plain []byte
	if direct {
		plain = p[:ref.Size]
	} else {
		plain = make([]byte, ref.Size)
	}
	_, flaw, err := s.loadSmall(ctx, ref, plain)
	if err != nil {
		return 0, err
	}
	if flaw != nil {
		if _, err := s.mendSmall(ctx, ref.Hash); err != nil && !lookElsewhere(err) {
			return 0, err
		}
	}
	if direct {
		return len(plain), nil
	}
	s.blocks.put(blockKey{ref.Hash, 0}, plain, int64(len(plain))+128, current)
	return copy(p, plain[off:]), nil
}

// loadSmall fills plain, of ref.Size bytes, with verified content, and returns the row's columns, and what is wrong with them.
func (s *rows) loadSmall(ctx context.Context, ref Ref, plain []byte) (k columns, flaw, err error) {
	err = s.db.Read(ctx, func(c *sqldb.Conn) error {
		st := c.Prep("SELECT "+columnList+", body FROM blob WHERE hash = ?").BindBytes(1, ref.Hash[:])
		ok, err := st.Step()
		if err != nil {
			return blobErr(ref.Hash, err)
		}
		if !ok {
			return notFound(ref.Hash)
		}
		k.scan(st)
		var why error
		for _, zstd := range [...]int64{k.zstd, 1 - min(k.zstd, 1)} { // the name decides, not the column
			if err := s.body(st, 10, zstd, plain); err != nil {
				if why == nil {
					why = err
				}
			} else if sha256.Sum256(plain) == ref.Hash {
				if flaw = k.flaw(ref.Hash); flaw == nil && (k.size != ref.Size || k.zstd != zstd || k.stored != int64(st.Len(10))) {
					flaw = notDescribed(ref.Hash)
				}
				return nil
			} else if why == nil {
				why = errors.New("it does not have its hash")
			}
		}
		return &DamageError{ref.Hash, "content", "its row in blobs.db: " + why.Error()}
	})
	return k, flaw, err
}

func notDescribed(h Hash) error {
	return &DamageError{h, "sidecar", "its row in blobs.db does not describe the content"}
}

// fetch fills dst with block b, verified.
func (s *rows) fetch(ctx context.Context, h Hash, lay *layout, b int64, dst []byte) error {
	into := dst
	err := s.db.Read(ctx, func(c *sqldb.Conn) error {
		st := c.Prep("SELECT body FROM block WHERE id = ?").BindInt64(1, lay.first+b)
		ok, err := st.Step()
		if err != nil {
			return blobErr(h, err)
		}
		n := st.Len(0)
		switch {
		case !ok:
			return &DamageError{h, fmt.Sprintf("block %d", b), "it is missing in blobs.db"}
		case n > len(dst) || n == 0:
			return &DamageError{h, fmt.Sprintf("block %d", b), fmt.Sprintf("it takes %d bytes in blobs.db", n)}
		case n < len(dst):
			into = s.codec.buf()[:]
		}
		into = into[:st.CopyBytes(0, into[:n])]
		return nil
	})
	if &into[0] != &dst[0] {
		defer s.codec.free((*[BlockSize]byte)(into[:BlockSize]))
	}
	if err != nil {
		return err
	}
	return s.codec.unpack(h, lay, b, dst, into)
}

// largeRow is what is stored of a large blob beside its blocks. first is 0 when the row of large is missing.
type largeRow struct {
	cols   columns
	first  int64
	large  bool   // of retire: there is a row of large
	hashes []byte // nil when they do not fit the size
}

// loadLarge returns the rows of h as they are; size tells how many hashes are to be expected.
func (s *rows) loadLarge(ctx context.Context, h Hash, size int64) (r largeRow, err error) {
	err = s.db.Read(ctx, func(c *sqldb.Conn) error {
		st := c.Prep(`SELECT b.id, b.size, b.stored, b.zstd, b.level, b.version, b.time, b.backups, b.last_backup, b.sum,
			ifnull(l.first, 0), l.hashes FROM blob b LEFT JOIN large l ON l.id = b.id WHERE b.hash = ?`).BindBytes(1, h[:])
		ok, err := st.Step()
		if err != nil {
			return blobErr(h, err)
		}
		if !ok {
			return notFound(h)
		}
		r.cols.scan(st)
		r.first = st.Int64(10)
		if size < 0 {
			size = r.cols.size
		}
		if size > BlockSize && int64(st.Len(11)) == 32*blockCount(size) {
			r.hashes = st.AppendBytes(nil, 11)
		}
		return nil
	})
	return r, err
}

func (r *largeRow) layout(size int64) *layout {
	return &layout{size: size, hashes: r.hashes, first: r.first, root: RootOf(r.hashes)}
}

func (s *rows) layout(ctx context.Context, ref Ref) (lay *layout, cached bool, err error) {
	if lay, ok := s.layouts.get(ref.Hash); ok && lay.vouched(ref) {
		return lay, true, nil
	}
	current := s.current()
	r, err := s.loadLarge(ctx, ref.Hash, ref.Size)
	if err != nil {
		return nil, false, err
	}
	if r.hashes != nil && r.cols.size == ref.Size {
		if lay := r.layout(ref.Size); lay.vouched(ref) {
			s.layouts.put(ref.Hash, lay, lay.cost(), current)
			return lay, false, nil
		}
	}
	lay, _, _, err = s.mendLarge(ctx, ref)
	return lay, false, err
}

// scanLarge reads all blocks and returns what a Hasher would, and the length of each as stored. It checks the name.
func (s *rows) scanLarge(ctx context.Context, h Hash, size, first int64) (sum Summed, frames []uint32, err error) {
	hasher := NewHasher()
	stored, spare := s.codec.buf(), s.codec.buf()
	defer s.codec.free(stored)
	defer s.codec.free(spare)
	for b := range blockCount(size) {
		want := blockLen(size, b)
		n := 0
		err := s.db.Read(ctx, func(c *sqldb.Conn) error {
			st := c.Prep("SELECT body FROM block WHERE id = ?").BindInt64(1, first+b)
			ok, err := st.Step()
			if err != nil {
				return blobErr(h, err)
			}
			if n = st.Len(0); !ok || n == 0 || n > want {
				return &DamageError{h, fmt.Sprintf("block %d", b), "it is missing in blobs.db, or has a wrong length"}
			}
			st.CopyBytes(0, stored[:n])
			return nil
		})
		if err != nil {
			return sum, nil, err
		}
		plain := stored[:n]
		if n < want {
			plain = spare[:want]
			if err := s.codec.decode(plain, stored[:n]); err != nil {
				return sum, nil, &DamageError{h, fmt.Sprintf("block %d", b), err.Error()}
			}
		}
		hasher.Write(plain)
		frames = append(frames, uint32(n))
	}
	if sum = hasher.Sum(); sum.Ref.Hash != h {
		return sum, nil, &DamageError{h, "content", "it does not have its hash"}
	}
	return sum, frames, nil
}

// mendLarge reads a large blob whole and, when it has its name and ref's root, makes its other rows what they should be.
func (s *rows) mendLarge(ctx context.Context, ref Ref) (*layout, columns, []uint32, error) {
	select {
	case s.repair <- struct{}{}:
		defer func() { <-s.repair }()
	case <-ctx.Done():
		return nil, columns{}, nil, ctx.Err()
	}
	current := s.current()
	r, err := s.loadLarge(ctx, ref.Hash, ref.Size)
	if err != nil {
		return nil, r.cols, nil, err
	}
	if r.first <= 0 || r.first > 1<<60 {
		return nil, r.cols, nil, &DamageError{ref.Hash, "content", "blobs.db does not say where its blocks are"}
	}
	sum, frames, err := s.scanLarge(ctx, ref.Hash, ref.Size, r.first)
	if err != nil {
		return nil, r.cols, nil, err
	}
	if ref.Root != (Root{}) && sum.Ref.Root != ref.Root {
		return nil, r.cols, nil, &DamageError{ref.Hash, "root", "the content has its hash, but its blocks do not have the root that the blob should have"}
	}
	lay := &layout{size: ref.Size, hashes: sum.Blocks, first: r.first, root: sum.Ref.Root, whole: true}
	k := newColumns(ref, Meta{})
	if r.cols.check == r.cols.sum(ref.Hash) {
		k = r.cols
	}
	k.id, k.size, k.zstd, k.stored = r.cols.id, ref.Size, 0, 0
	for b, n := range frames {
		k.stored += int64(n)
		if int(n) < blockLen(ref.Size, int64(b)) {
			k.zstd = 1
		}
	}
	k.check = k.sum(ref.Hash)
	cause := r.cols.flaw(ref.Hash)
	switch {
	case cause != nil:
	case string(r.hashes) != string(sum.Blocks):
		cause = &DamageError{ref.Hash, "sidecar", "its block hashes in blobs.db are not the content's"}
	case k != r.cols:
		cause = notDescribed(ref.Hash)
	}
	if cause != nil {
		s.mendColumns(ctx, ref.Hash, &k, cause, current, func(c *sqldb.Conn) error {
			return c.Prep("UPDATE large SET hashes = ? WHERE id = ?").BindBytes(1, sum.Blocks).BindInt64(2, k.id).Exec()
		})
	}
	s.layouts.put(ref.Hash, lay, lay.cost(), current)
	return lay, k, frames, nil
}

// mendColumns writes the columns of a row anew, for the reason cause, and with more the rest, unless the blob may have been stored anew since. That they cannot be written is no
// reason to refuse the content, which is intact.
func (s *rows) mendColumns(ctx context.Context, h Hash, k *columns, cause error, current func() bool, more func(*sqldb.Conn) error) {
	m := Mending{Hash: h, Part: PartRow, Cause: cause, Source: fromContent, Err: errMendReadOnly}
	if !s.opt.ReadOnly {
		written := false
		m.Err = s.db.Write(ctx, func(c *sqldb.Conn) error {
			if written = current(); !written {
				return nil
			}
			if err := s.update(c, h, k.id, k); err != nil {
				return err
			}
			return more(c)
		})
		switch {
		case m.Err != nil:
			s.opt.Log.Error("a sidecar cannot be rebuilt", "blob", h.String(), "why", cause, "err", m.Err)
		case !written:
			return
		default:
			s.opt.Log.Warn("sidecar rebuilt from the content", "blob", h.String(), "why", cause)
		}
	}
	mended(ctx, m)
}

// mendSmall does the same for a small blob, whose size need not be known.
func (s *rows) mendSmall(ctx context.Context, h Hash) (k columns, err error) {
	buf := s.codec.buf()
	defer s.codec.free(buf)
	var body []byte
	null := false
	current := s.current()
	err = s.db.Read(ctx, func(c *sqldb.Conn) error {
		st := c.Prep("SELECT "+columnList+", body FROM blob WHERE hash = ?").BindBytes(1, h[:])
		ok, err := st.Step()
		if err != nil {
			return blobErr(h, err)
		}
		if !ok {
			return notFound(h)
		}
		k.scan(st)
		if null = st.IsNull(10) || st.Len(10) > BlockSize; !null {
			body = buf[:st.CopyBytes(10, buf[:st.Len(10)])]
		}
		return nil
	})
	if err != nil {
		return k, err
	}
	damaged := &DamageError{h, "content", "its row in blobs.db does not have its hash"}
	if null {
		return k, damaged
	}
	fixed := newColumns(Ref{Hash: h, Size: int64(len(body))}, Meta{})
	if sha256.Sum256(body) != h {
		plain, err := s.codec.decodeUpTo(make([]byte, 0, BlockSize), body)
		if err != nil || sha256.Sum256(plain) != h {
			return k, damaged
		}
		fixed.size, fixed.zstd = int64(len(plain)), 1
	}
	cause := k.flaw(h)
	if cause == nil {
		if k.size == fixed.size && k.zstd == fixed.zstd && k.stored == fixed.stored {
			return k, nil
		}
		cause = notDescribed(h)
	}
	fixed.id, fixed.check = k.id, fixed.sum(h)
	s.mendColumns(ctx, h, &fixed, cause, current, func(*sqldb.Conn) error { return nil })
	return fixed, nil
}

func (s *rows) verify(ctx context.Context, ref Ref) error {
	if ref.Size > BlockSize {
		_, _, _, err := s.mendLarge(ctx, ref)
		if err != nil {
			s.forget(ref.Hash)
		}
		return err
	}
	k, flaw, err := s.loadSmall(ctx, ref, make([]byte, ref.Size))
	if err != nil {
		s.forget(ref.Hash)
		return err
	}
	if _, err := k.sidecarOf(ref.Hash, nil, nil); err != nil || flaw != nil {
		_, err = s.mendSmall(ctx, ref.Hash)
		return err
	}
	return nil
}

func (s *rows) sidecar(ctx context.Context, h Hash) (Sidecar, error) {
	r, err := s.loadLarge(ctx, h, -1)
	if err != nil {
		return Sidecar{}, err
	}
	if r.first == 0 {
		if sc, err := r.cols.sidecarOf(h, nil, nil); err == nil {
			return sc, nil
		}
		k, err := s.mendSmall(ctx, h)
		if err != nil {
			return Sidecar{}, err
		}
		return k.sidecarOf(h, nil, nil)
	}
	size := r.cols.size
	if r.hashes != nil {
		frames, err := s.frames(ctx, h, size, r.first)
		if err == nil {
			sc, err := r.cols.sidecarOf(h, r.hashes, frames)
			if err == nil {
				return sc, nil
			}
		}
	}
	if size <= BlockSize || size > 1<<62 {
		return Sidecar{}, &DamageError{h, "sidecar", fmt.Sprintf("its row in blobs.db says %d bytes", size)}
	}
	lay, k, frames, err := s.mendLarge(ctx, Ref{Hash: h, Size: size})
	if err != nil {
		return Sidecar{}, err
	}
	return k.sidecarOf(h, lay.hashes, frames)
}

// frames returns the stored length of each block.
func (s *rows) frames(ctx context.Context, h Hash, size, first int64) (frames []uint32, err error) {
	n := blockCount(size)
	err = s.db.Read(ctx, func(c *sqldb.Conn) error {
		st := c.Prep("SELECT length(body) FROM block WHERE id >= ? AND id < ? ORDER BY id").BindInt64(1, first).BindInt64(2, first+n)
		for {
			ok, err := st.Step()
			if err != nil || !ok {
				return blobErr(h, err)
			}
			frames = append(frames, uint32(min(st.Int64(0), BlockSize+1)))
		}
	})
	if err == nil && int64(len(frames)) != n {
		err = &DamageError{h, "content", "blocks are missing in blobs.db"}
	}
	return slices.Clip(frames), err
}
