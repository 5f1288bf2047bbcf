package blobstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"
)

// parallelFrom is the number of blocks in one read from which on they are verified by two goroutines.
const parallelFrom = 4

func sortHashes(h []Hash) []Hash {
	slices.SortFunc(h, func(a, b Hash) int { return bytes.Compare(a[:], b[:]) })
	return slices.Compact(h)
}

func encodings() [2]string { return [2]string{encRaw, encZstd} }

func (s *files) readAt(ctx context.Context, ref Ref, p []byte, off int64) (int, error) {
	if ref.Size <= BlockSize {
		return s.readSmall(ctx, ref, p, off)
	}
	for attempt := 0; ; attempt++ {
		current := s.current(ref.Hash)
		lay, cached, err := s.layout(ctx, ref)
		var n int
		if err == nil {
			n, err = readRange(ctx, ref.Hash, lay, s.blocks, p, off, s.fetcher(ref.Hash, lay))
		}
		if err == nil || attempt == 2 || !lookElsewhere(err) {
			return n, err
		}
		if attempt == 0 && (cached || !current()) {
			s.forget(ref.Hash, false) // compressed, replaced or deleted in the meantime
			continue
		}
		if lay == nil || !s.otherExists(ref.Hash, lay) {
			return 0, err
		}
		// A crash left the blob in both encodings, and the described one has rotted since.
		s.forget(ref.Hash, false)
		if _, err2 := s.rebuildSidecar(ctx, ref, PartContent, err, true); err2 != nil {
			return 0, err
		}
		attempt = 1
	}
}

func (s *files) otherExists(h Hash, lay *layout) bool {
	enc := encZstd
	if lay.starts != nil {
		enc = encRaw
	}
	f, err := s.openContent(h, enc)
	if err != nil {
		return false
	}
	f.release()
	return true
}

// readSmall reads a blob of at most one block, which its name vouches for: the sidecar is not needed.
func (s *files) readSmall(ctx context.Context, ref Ref, p []byte, off int64) (int, error) {
	if b, ok := s.blocks.get(blockKey{ref.Hash, 0}); ok && int64(len(b)) == ref.Size {
		return copy(p, b[off:]), nil
	}
	current := s.current(ref.Hash)
	direct := off == 0 && int64(len(p)) >= ref.Size
	var plain []byte
	if direct {
		plain = p[:ref.Size]
	} else {
		plain = make([]byte, ref.Size)
	}
	worse, err := s.loadSmall(ref, plain)
	if errors.Is(err, ErrNotFound) && !current() {
		worse, err = s.loadSmall(ref, plain) // it was between two encodings
	}
	if err != nil {
		return 0, err
	}
	if worse != nil {
		if _, err := s.rebuildSidecar(ctx, ref, PartContent, worse, true); err != nil && !lookElsewhere(err) {
			return 0, err
		}
	}
	if direct {
		return len(plain), nil
	}
	s.blocks.put(blockKey{ref.Hash, 0}, plain, int64(len(plain))+128, current)
	return copy(p, plain[off:]), nil
}

// loadSmall fills plain, of ref.Size bytes, with verified content. worse says what is wrong with content in another encoding than that in which it was found.
func (s *files) loadSmall(ref Ref, plain []byte) (worse, err error) {
	err = fmt.Errorf("blob %s: %w", ref.Hash, ErrNotFound)
	for _, enc := range encodings() {
		e := s.loadSmallAs(ref, enc, plain)
		if e == nil {
			return worse, nil
		}
		if !errors.Is(e, ErrNotFound) && errors.Is(err, ErrNotFound) {
			err = e
		}
		if errors.Is(e, ErrDamaged) {
			worse = e
		}
	}
	return nil, err
}

func (s *files) loadSmallAs(ref Ref, enc string, plain []byte) error {
	f, err := s.openContent(ref.Hash, enc)
	if err != nil {
		return err
	}
	defer f.release()
	damaged := func(part, format string, a ...any) error {
		return &DamageError{ref.Hash, part, fmt.Sprintf(format, a...)}
	}
	if enc == encRaw {
		if f.size != ref.Size {
			return damaged("size", "%s has %d bytes, not %d", s.path(ref.Hash, enc), f.size, ref.Size)
		}
		n, err := f.readAt(plain, 0)
		if err != nil {
			return fmt.Errorf("read %s: %w", s.path(ref.Hash, enc), err)
		}
		if n != len(plain) {
			return damaged("size", "%s ends after %d bytes", s.path(ref.Hash, enc), n)
		}
	} else {
		if f.size > BlockSize {
			return damaged("size", "%s has %d bytes", s.path(ref.Hash, enc), f.size)
		}
		buf := s.codec.buf()
		defer s.codec.free(buf)
		n, err := f.readAt(buf[:f.size], 0)
		if err != nil {
			return fmt.Errorf("read %s: %w", s.path(ref.Hash, enc), err)
		}
		if err := s.codec.decode(plain, buf[:n]); err != nil {
			return damaged("content", "%s: %v", s.path(ref.Hash, enc), err)
		}
	}
	if sha256.Sum256(plain) != ref.Hash {
		return damaged("content", "%s does not have its hash", s.path(ref.Hash, enc))
	}
	return nil
}

// readRange fills p from off of a blob of several blocks. fetch fills dst with block b, whole and verified. Whole blocks are fetched
// straight into p; of others, the rest is likely to be asked for next, so they are kept.
func readRange(ctx context.Context, h Hash, lay *layout, cache *lru[blockKey, []byte], p []byte, off int64,
	fetch func(b int64, dst []byte) error) (int, error) {
	n := int(min(int64(len(p)), lay.size-off))
	p = p[:n]
	part := func(from, to int) error {
		for at := from; at < to; {
			if err := ctx.Err(); err != nil {
				return err
			}
			b, skip := (off+int64(at))/BlockSize, int((off+int64(at))%BlockSize)
			size := blockLen(lay.size, b)
			take := min(size-skip, n-at)
			dst := p[at : at+take]
			at += take
			k := blockKey{h, b}
			if plain, ok := cache.get(k); ok && len(plain) == size {
				copy(dst, plain[skip:])
				continue
			}
			if take == size {
				if err := fetch(b, dst); err != nil {
					return err
				}
				continue
			}
			plain := make([]byte, size)
			if err := fetch(b, plain); err != nil {
				return err
			}
			cache.put(k, plain, int64(size)+128, func() bool { return true })
			copy(dst, plain[skip:])
		}
		return nil
	}
	if n < parallelFrom*BlockSize {
		return n, part(0, n)
	}
	half := n / 2
	half -= int((off + int64(half)) % BlockSize) // so that no block is fetched twice
	var g errgroup.Group
	g.Go(func() error { return part(half, n) })
	err := part(0, half)
	if err2 := g.Wait(); err == nil {
		err = err2
	}
	return n, err
}

// fetcher returns the fetch of readRange for a blob in a file.
func (s *files) fetcher(h Hash, lay *layout) func(int64, []byte) error {
	enc := encRaw
	if lay.starts != nil {
		enc = encZstd
	}
	return func(b int64, dst []byte) error {
		f, err := s.openCached(h, enc)
		if err != nil {
			return err
		}
		defer f.release()
		if f.size != lay.storedSize() {
			return &DamageError{h, "size", fmt.Sprintf("%s has %d bytes, not %d", s.path(h, enc), f.size, lay.storedSize())}
		}
		at, n := lay.stored(b)
		into := dst
		if n != len(dst) {
			buf := s.codec.buf()
			defer s.codec.free(buf)
			into = buf[:n]
		}
		got, err := f.readAt(into, at)
		if err != nil {
			return fmt.Errorf("read %s: %w", s.path(h, enc), err)
		}
		if got != n {
			return &DamageError{h, "size", fmt.Sprintf("%s ends after %d bytes", s.path(h, enc), at+int64(got))}
		}
		return s.codec.unpack(h, lay, b, dst, into)
	}
}

// unpack makes dst the plain block b from stored, which is dst itself when the block is raw and in place already, and verifies it.
func (c *codec) unpack(h Hash, lay *layout, b int64, dst, stored []byte) error {
	if len(stored) != len(dst) {
		if err := c.decode(dst, stored); err != nil {
			return &DamageError{h, fmt.Sprintf("block %d", b), err.Error()}
		}
	} else if &stored[0] != &dst[0] {
		copy(dst, stored)
	}
	if blake3.Sum256(dst) != [32]byte(lay.hash(b)) {
		return &DamageError{h, fmt.Sprintf("block %d", b), "it does not have its hash"}
	}
	return nil
}

// layout returns the block hashes of a large blob, vouched for by its root or, when ref has none, by a pass over the whole content.
func (s *files) layout(ctx context.Context, ref Ref) (lay *layout, cached bool, err error) {
	if lay, ok := s.layouts.get(ref.Hash); ok && lay.vouched(ref) {
		return lay, true, nil
	}
	current := s.current(ref.Hash)
	lay, err = s.loadLayout(ref)
	if err == nil {
		s.layouts.put(ref.Hash, lay, lay.cost(), current)
		return lay, false, nil
	}
	lay, err = s.rebuildSidecar(ctx, ref, PartSidecar, err, false)
	return lay, false, err
}

func (s *files) loadLayout(ref Ref) (*layout, error) {
	sc, err := s.loadSidecar(ref.Hash, blockCount(ref.Size))
	if err != nil {
		return nil, err
	}
	lay := newLayout(&sc)
	if !lay.vouched(ref) {
		return nil, &DamageError{ref.Hash, "sidecar", "its size or its root is not the blob's"}
	}
	return lay, nil
}

// rebuildSidecar makes the sidecar anew from content that has the blob's name and, where ref tells them, its size and root.
// ref.Size -1 means unknown. With force, a sidecar that looks right is not trusted. part and why say what was found damaged: PartContent is content in one encoding, which is removed
// when there is intact content in the other. Errors: ErrNotFound without any content, *DamageError.
func (s *files) rebuildSidecar(ctx context.Context, ref Ref, part Part, why error, force bool) (*layout, error) {
	select {
	case s.rebuild <- struct{}{}:
		defer func() { <-s.rebuild }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	current := s.current(ref.Hash)
	if !force && ref.Size >= 0 {
		if lay, err := s.loadLayout(ref); err == nil {
			return lay, nil // another caller has rebuilt it
		}
	}
	result := fmt.Errorf("blob %s: %w", ref.Hash, ErrNotFound)
	for _, enc := range encodings() {
		sc, err := s.describe(ctx, ref, enc)
		if err != nil {
			if errors.Is(err, ErrDamaged) && errors.Is(result, ErrNotFound) {
				result = err
			} else if !lookElsewhere(err) {
				return nil, err
			}
			continue
		}
		lay := newLayout(&sc)
		lay.whole = true
		if errors.Is(result, ErrDamaged) {
			part, why = PartContent, result
		}
		s.replaceSidecar(ctx, ref.Hash, sc, part, why, current)
		s.layouts.put(ref.Hash, lay, lay.cost(), current)
		return lay, nil
	}
	return nil, result
}

// describe reads the content of ref in one encoding, checks it, and returns a sidecar for it.
func (s *files) describe(ctx context.Context, ref Ref, enc string) (Sidecar, error) {
	f, err := s.openContent(ref.Hash, enc)
	if err != nil {
		return Sidecar{}, err
	}
	defer f.release()
	sum, frames, err := s.scan(ctx, ref, f, enc, nil)
	if err != nil {
		return Sidecar{}, err
	}
	if ref.Size >= 0 && ref.Root != (Root{}) && sum.Ref.Root != ref.Root {
		return Sidecar{}, &DamageError{ref.Hash, "root", "the content has its hash, but its blocks do not have the root that the blob should have"}
	}
	sc := newSidecar(sum, Meta{Time: time.Unix(f.mtime.Unix())})
	if enc == encZstd {
		sc = sc.encoded(frames)
	}
	return sc, nil
}

// replaceSidecar writes a rebuilt sidecar, and removes content in the other encoding when that is what is damaged. That it cannot be done is no reason to refuse the content, which
// is intact.
func (s *files) replaceSidecar(ctx context.Context, h Hash, sc Sidecar, part Part, why error, current func() bool) {
	m := Mending{Hash: h, Part: part, Cause: why, Source: fromContent, Err: errMendReadOnly}
	if part == PartContent {
		m.Source = fromOther
	}
	st := &s.stripes[h[0]]
	st.mu.Lock()
	defer st.mu.Unlock()
	old, err := s.loadSidecar(h, blockCount(sc.Size))
	fine := err == nil && describes(&old, Summed{Ref: Ref{Hash: h, Size: sc.Size}, Blocks: sc.Blocks}, sc.Encoding, sc.Frames)
	if fine && part == PartSidecar {
		return // the content was read because no root vouches for the sidecar
	}
	if !s.opt.ReadOnly {
		if !current() {
			return
		}
		if m.Err = s.writeRebuilt(h, sc, !fine, part == PartContent); m.Err != nil {
			s.opt.Log.Error("a sidecar cannot be rebuilt", "blob", h.String(), "why", why, "err", m.Err)
		} else {
			s.opt.Log.Warn("sidecar rebuilt from the content", "blob", h.String(), "why", why)
		}
	}
	mended(ctx, m)
}

// writeRebuilt is the work of replaceSidecar. The stripe is locked.
func (s *files) writeRebuilt(h Hash, sc Sidecar, write, dropOther bool) error {
	dir, err := s.dir(h[0])
	if err != nil {
		return err
	}
	if write {
		if err := s.writeSidecar(dir, h, sc, false); err != nil {
			return err
		}
		s.dirty.add(h)
	}
	if !dropOther {
		return nil
	}
	s.stripes[h[0]].counted = false
	s.forget(h, true)
	return s.removeName(dir, h, fileName(h, otherEncoding(sc.Encoding)))
}

// scan reads all of an open content file. Without expect it checks the name, and the size unless ref.Size is -1; with expect, the
// block hashes of a large blob, it checks those instead. It returns what a Hasher would (without expect) and the frames.
func (s *files) scan(ctx context.Context, ref Ref, f sizedFile, enc string, expect []byte) (sum Summed, frames []uint32, err error) {
	damaged := func(part, format string, a ...any) error {
		return &DamageError{ref.Hash, part, s.path(ref.Hash, enc) + " " + fmt.Sprintf(format, a...)}
	}
	stored, spare := s.codec.buf(), s.codec.buf()
	defer s.codec.free(stored)
	defer s.codec.free(spare)
	hasher := NewHasher()
	var size int64
	for at := int64(0); at < f.length(); {
		if err := ctx.Err(); err != nil {
			return sum, nil, err
		}
		b := size / BlockSize
		if size%BlockSize != 0 || ref.Size >= 0 && size >= ref.Size {
			return sum, nil, damaged("size", "goes on after %d bytes", size)
		}
		n, err := f.ReadAt(stored[:min(BlockSize, f.length()-at)], at)
		if err != nil {
			return sum, nil, fmt.Errorf("read %s: %w", s.path(ref.Hash, enc), err)
		}
		if n == 0 {
			return sum, nil, damaged("size", "ends after %d bytes", at)
		}
		plain := stored[:n]
		if enc == encZstd && hasMagic(plain) {
			if n, err = frameLen(plain); err == nil {
				plain, err = s.codec.decodeUpTo(spare[:0:BlockSize], stored[:n])
			}
			if err != nil {
				return sum, nil, damaged(fmt.Sprintf("block %d", b), "has a frame that cannot be decoded: %v", err)
			}
		}
		if expect == nil {
			hasher.Write(plain)
		} else if len(expect) < int(32*b+32) || blake3.Sum256(plain) != [32]byte(expect[32*b:32*b+32]) {
			return sum, nil, damaged(fmt.Sprintf("block %d", b), "does not have its hash")
		}
		frames = append(frames, uint32(n))
		size += int64(len(plain))
		at += int64(n)
	}
	if ref.Size >= 0 && size != ref.Size {
		return sum, nil, damaged("size", "holds %d bytes, not %d", size, ref.Size)
	}
	if expect != nil {
		return sum, frames, nil
	}
	if sum = hasher.Sum(); sum.Ref.Hash != ref.Hash {
		return sum, nil, damaged("content", "does not have its hash")
	}
	return sum, frames, nil
}

func (s *files) sidecar(ctx context.Context, h Hash) (Sidecar, error) {
	for attempt := 0; ; attempt++ {
		size, err := s.contentSize(h)
		if err != nil {
			return Sidecar{}, err
		}
		sc, err := s.loadSidecar(h, 1+size/8)
		if err == nil || attempt == 1 || !lookElsewhere(err) {
			return sc, err
		}
		lay, err := s.rebuildSidecar(ctx, Ref{Hash: h, Size: -1}, PartSidecar, err, true)
		if err != nil {
			return Sidecar{}, err
		}
		if s.opt.ReadOnly {
			enc := encRaw
			if lay.starts != nil {
				enc = encZstd
			}
			return s.describe(ctx, Ref{Hash: h, Size: lay.size, Root: lay.root}, enc)
		}
	}
}

// contentSize is the size of the larger of the content files of h.
func (s *files) contentSize(h Hash) (int64, error) {
	size, result := int64(-1), error(nil)
	for _, enc := range encodings() {
		f, err := s.openContent(h, enc)
		if err != nil {
			if result == nil || errors.Is(result, ErrNotFound) {
				result = err
			}
			continue
		}
		size = max(size, f.size)
		f.release()
	}
	if size < 0 {
		return 0, result
	}
	return size, nil
}

// verify reads the medium, not the cache of the operating system where that can be avoided.
func (s *files) verify(ctx context.Context, ref Ref) error {
	sc, why := s.loadSidecar(ref.Hash, blockCount(ref.Size))
	enc, other := sc.Encoding, encZstd
	if why == nil && (sc.Size != ref.Size || ref.Root != (Root{}) && RootOf(sc.Blocks) != ref.Root) {
		why = &DamageError{ref.Hash, "sidecar", "its size or its root is not the blob's"}
	}
	if why != nil {
		if !lookElsewhere(why) {
			return why
		}
		enc = encRaw
	} else if enc == encZstd {
		other = encRaw
	}
	part := PartSidecar
	sum, frames, err := s.verifyAs(ctx, ref, enc)
	if lookElsewhere(err) {
		if sum2, frames2, err2 := s.verifyAs(ctx, ref, other); err2 == nil {
			if why == nil || errors.Is(err, ErrDamaged) {
				part, why = PartContent, err
			}
			sum, frames, err = sum2, frames2, nil
		} else if errors.Is(err, ErrNotFound) {
			err = err2
		}
	}
	if err != nil {
		s.forget(ref.Hash, false)
		return err
	}
	if why == nil && (!bytes.Equal(sum.Blocks, sc.Blocks) || enc == encZstd && !slices.Equal(frames, sc.Frames)) {
		why = &DamageError{ref.Hash, "sidecar", "its block hashes or frames are not the content's"}
	}
	if why != nil {
		s.forget(ref.Hash, false)
		_, err = s.rebuildSidecar(ctx, ref, part, why, true)
	}
	return err
}

func (s *files) verifyAs(ctx context.Context, ref Ref, enc string) (Summed, []uint32, error) {
	f, err := s.openContent(ref.Hash, enc)
	if err != nil {
		return Summed{}, nil, err
	}
	defer f.release()
	adviseScan(f)
	sum, frames, err := s.scan(ctx, ref, f, enc, nil)
	if err == nil && ref.Root != (Root{}) && sum.Ref.Root != ref.Root {
		err = &DamageError{ref.Hash, "root", "the content has its hash, but its blocks do not have the root that the blob should have"}
	}
	return sum, frames, err
}
