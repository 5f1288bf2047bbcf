package blobstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// The modes of a store.
const (
	ModeFile     = "file"
	ModeDatabase = "database"
	ModeHybrid   = "hybrid"
)

// Options says what to open.
type Options struct {
	Dir        string // the store directory; blobs/ and blobs.db are made in it when they are missing
	Mode       string // ModeFile, ModeDatabase or ModeHybrid
	ReadOnly   bool   // nothing is written: sidecars are rebuilt in memory only, mutations return ErrReadOnly
	CacheBytes int64  // verified plain blocks kept in memory; default 32 MiB
	Log        *slog.Logger
	// Mended is told of damage that a call has met and made good, or worked around, on its way; nothing else says so: the call succeeds. It gets the context of the call, at its end,
	// in the goroutine that made it or in one of the store's own, from several at once. No lock of the store is held; it must not close the store. Damage that stays is told once.
	// What Repair and Rebuild mend they say themselves.
	Mended func(ctx context.Context, m Mending)
}

// place is one of the two ways to keep blobs: files or rows. Its methods mean what those of Store do; arguments are checked.
type place interface {
	guardedPlace
	readAt(ctx context.Context, ref Ref, p []byte, off int64) (int, error)
	put(ctx context.Context, items []Item) error
	adopt(ctx context.Context, sum Summed, meta Meta, staged *os.File, path string, durable bool) error
	sync(ctx context.Context) error
	sidecar(ctx context.Context, h Hash) (Sidecar, error)
	verify(ctx context.Context, ref Ref) error
	remove(ctx context.Context, h Hash) error
	removeBatch(ctx context.Context, hashes []Hash) error              // which are sorted
	names(ctx context.Context, first byte, after Hash) ([]Hash, error) // that begin with the byte first, sorted
	stats(ctx context.Context) (Stats, error)
	close() error
}

// store is the Store over one or two places.
type store struct {
	opt   Options
	codec *codec
	small place // where blobs of at most MaxSmall bytes live
	large place // where larger ones live; the same place except in hybrid mode

	teller  *teller
	closeMu sync.RWMutex // held for reading by each call
	closed  bool
}

// Open opens the blobs of the store in opt.Dir. The caller closes it. Only one process may have it open for writing.
// Errors wrap ErrDamaged when blobs.db is not usable, fs.ErrNotExist when it is opened read-only and is not there.
func Open(ctx context.Context, opt Options) (Store, error) {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.CacheBytes == 0 {
		opt.CacheBytes = 32 << 20
	}
	if !slices.Contains([]string{ModeFile, ModeDatabase, ModeHybrid}, opt.Mode) {
		return nil, fmt.Errorf("%q is not a storage mode; choose file, database or hybrid", opt.Mode)
	}
	c, err := newCodec()
	if err != nil {
		return nil, err
	}
	s := &store{opt: opt, codec: c, teller: &teller{fn: opt.Mended}}
	blocks := newLRU[blockKey, []byte](opt.CacheBytes)
	if opt.Mode != ModeFile {
		rows, err := openRows(ctx, opt, c, blocks)
		if err != nil {
			c.close()
			return nil, err
		}
		s.small, s.large = rows, rows
	}
	if opt.Mode != ModeDatabase {
		files, err := openFiles(opt, c, blocks, s.teller)
		if err != nil {
			if s.small != nil {
				s.small.close()
			}
			c.close()
			return nil, err
		}
		s.large = files
		if s.small == nil {
			s.small = files
		}
	}
	return s, nil
}

// blockKey names a verified block in memory.
type blockKey struct {
	hash Hash
	n    int64
}

// enter is called first by every method, which goes on with the context that it returns; leave, with that, when it returns.
func (s *store) enter(ctx context.Context, write bool) (context.Context, error) {
	if err := ctx.Err(); err != nil {
		return ctx, err
	}
	if write && s.opt.ReadOnly {
		return ctx, ErrReadOnly
	}
	s.closeMu.RLock()
	if s.closed {
		s.closeMu.RUnlock()
		return ctx, ErrClosed
	}
	return s.teller.begin(ctx), nil
}

func (s *store) leave(ctx context.Context) {
	s.closeMu.RUnlock()
	s.teller.end(ctx)
}

// order returns the places in which to look for a blob of that size, its own first; the second is nil when there is only one.
func (s *store) order(size int64) (own, other place) {
	own, other = s.large, s.small
	if size <= MaxSmall {
		own, other = other, own
	}
	if own == other {
		other = nil
	}
	return own, other
}

// lookElsewhere reports whether an error of a blob's own place leaves hope that the other has it.
func lookElsewhere(err error) bool { return errors.Is(err, ErrNotFound) || errors.Is(err, ErrDamaged) }

func (s *store) ReadAt(ctx context.Context, ref Ref, p []byte, off int64) (int, error) {
	if off < 0 || ref.Size < 0 {
		return 0, fmt.Errorf("read blob %s: offset %d in %d bytes: %w", ref.Hash, off, ref.Size, ErrInvalid)
	}
	ctx, err := s.enter(ctx, false)
	if err != nil {
		return 0, err
	}
	defer s.leave(ctx)
	if len(p) == 0 || off >= ref.Size && off > 0 {
		return 0, nil
	}
	own, other := s.order(ref.Size)
	n, err := own.readAt(ctx, ref, p, off)
	if err != nil && other != nil && lookElsewhere(err) {
		if n, err2 := other.readAt(ctx, ref, p, off); err2 == nil {
			workedAround(ctx, ref.Hash, err, nil)
			return n, nil
		} else if errors.Is(err, ErrNotFound) {
			err = err2
		}
	}
	return n, err
}

// workedAround notes that the blob's own place has it damaged, and the other, if that says nil, intact.
func workedAround(ctx context.Context, h Hash, own, other error) {
	if other == nil && errors.Is(own, ErrDamaged) {
		mended(ctx, Mending{Hash: h, Part: PartContent, Cause: own, Source: fromOther, Err: errNotMended})
	}
}

func (s *store) Verify(ctx context.Context, ref Ref) error {
	if ref.Size < 0 {
		return fmt.Errorf("verify blob %s: %d bytes: %w", ref.Hash, ref.Size, ErrInvalid)
	}
	ctx, err := s.enter(ctx, false)
	if err != nil {
		return err
	}
	defer s.leave(ctx)
	own, other := s.order(ref.Size)
	err = own.verify(ctx, ref)
	if err != nil && other != nil && lookElsewhere(err) {
		if err2 := other.verify(ctx, ref); err2 == nil || errors.Is(err, ErrNotFound) {
			workedAround(ctx, ref.Hash, err, err2)
			err = err2
		}
	}
	return err
}

func (s *store) Sidecar(ctx context.Context, h Hash) (Sidecar, error) {
	ctx, err := s.enter(ctx, false)
	if err != nil {
		return Sidecar{}, err
	}
	defer s.leave(ctx)
	sc, err := s.small.sidecar(ctx, h)
	if err != nil && s.small != s.large && lookElsewhere(err) {
		sc2, err2 := s.large.sidecar(ctx, h)
		if err2 == nil || errors.Is(err, ErrNotFound) {
			workedAround(ctx, h, err, err2)
			return sc2, err2
		}
	}
	return sc, err
}

func (s *store) PutBatch(ctx context.Context, items []Item) error {
	for i := range items {
		it := &items[i]
		switch {
		case len(it.Data) > MaxSmall:
			return fmt.Errorf("put blob %s: %d bytes are more than %d; adopt it from a file: %w", it.Ref.Hash, len(it.Data), MaxSmall, ErrInvalid)
		case int64(len(it.Data)) != it.Ref.Size || sha256.Sum256(it.Data) != it.Ref.Hash:
			return fmt.Errorf("put blob %s: its bytes have another hash or size: %w", it.Ref.Hash, ErrInvalid)
		case levelRank(it.Meta.Level) < 0 || it.Meta.Version < 0:
			return fmt.Errorf("put blob %s: level %q, version %d: %w", it.Ref.Hash, it.Meta.Level, it.Meta.Version, ErrInvalid)
		}
	}
	ctx, err := s.enter(ctx, true)
	if err != nil {
		return err
	}
	defer s.leave(ctx)
	if len(items) == 0 {
		return nil
	}
	return s.small.put(ctx, items)
}

func (s *store) Adopt(ctx context.Context, sum Summed, meta Meta, path string, durable bool) error {
	size := sum.Ref.Size
	if levelRank(meta.Level) < 0 || meta.Version < 0 || size < 0 ||
		size > BlockSize && (int64(len(sum.Blocks)) != 32*blockCount(size) || RootOf(sum.Blocks) != sum.Ref.Root) {
		return fmt.Errorf("adopt blob %s from %s: level %q, version %d, size %d or block hashes do not fit: %w",
			sum.Ref.Hash, path, meta.Level, meta.Version, size, ErrInvalid)
	}
	ctx, err := s.enter(ctx, true)
	if err != nil {
		return err
	}
	defer s.leave(ctx)
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "adopt", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() || fi.Size() != size {
		return fmt.Errorf("adopt blob %s from %s: the file has %d bytes and should have %d: %w", sum.Ref.Hash, path, fi.Size(), size, ErrInvalid)
	}
	own, _ := s.order(size)
	if s.opt.Mode == ModeHybrid && own == s.small || s.opt.Mode == ModeDatabase && size <= BlockSize {
		return s.adoptSmall(ctx, sum, meta, f, path, durable)
	}
	return own.adopt(ctx, sum, meta, f, path, durable)
}

// adoptSmall puts a staged file whose place is a row.
func (s *store) adoptSmall(ctx context.Context, sum Summed, meta Meta, f *os.File, path string, durable bool) error {
	data := make([]byte, sum.Ref.Size)
	if _, err := io.ReadFull(f, data); err != nil {
		return fmt.Errorf("adopt %s: %w", path, err)
	}
	if sha256.Sum256(data) != sum.Ref.Hash {
		return fmt.Errorf("adopt blob %s from %s: the file has another hash: %w", sum.Ref.Hash, path, ErrInvalid)
	}
	if err := s.small.put(ctx, []Item{{Ref: sum.Ref, Meta: meta, Data: data}}); err != nil {
		return err
	}
	if durable {
		if err := s.small.sync(ctx); err != nil {
			return err
		}
	}
	return os.Remove(path)
}

func (s *store) Sync(ctx context.Context) error {
	ctx, err := s.enter(ctx, false)
	if err != nil {
		return err
	}
	defer s.leave(ctx)
	if s.opt.ReadOnly {
		return nil
	}
	err = s.small.sync(ctx)
	if s.large != s.small {
		err = errors.Join(err, s.large.sync(ctx))
	}
	return err
}

func (s *store) Delete(ctx context.Context, h Hash) error {
	ctx, err := s.enter(ctx, true)
	if err != nil {
		return err
	}
	defer s.leave(ctx)
	if err := s.large.remove(ctx, h); err != nil {
		return err
	}
	if s.large == s.small {
		return nil
	}
	return s.small.remove(ctx, h)
}

func (s *store) DeleteBatch(ctx context.Context, hashes []Hash) error {
	if len(hashes) > MaxDelete {
		return fmt.Errorf("delete %d blobs at once, more than %d: %w", len(hashes), MaxDelete, ErrInvalid)
	}
	ctx, err := s.enter(ctx, true)
	if err != nil {
		return err
	}
	defer s.leave(ctx)
	if len(hashes) == 0 {
		return nil
	}
	hashes = sortHashes(slices.Clone(hashes))
	if err := s.large.removeBatch(ctx, hashes); err != nil {
		return err
	}
	if s.large == s.small {
		return nil
	}
	return s.small.removeBatch(ctx, hashes)
}

func (s *store) List(ctx context.Context, after Hash, fn func(Hash) error) error {
	for first := int(after[0]); first < 256; first++ {
		names, err := s.namesFrom(ctx, byte(first), after)
		if err != nil {
			return err
		}
		for _, h := range names {
			if err := fn(h); err != nil {
				return err
			}
		}
	}
	return nil
}

// namesFrom is one step of List. It holds nothing while List calls back.
func (s *store) namesFrom(ctx context.Context, first byte, after Hash) ([]Hash, error) {
	ctx, err := s.enter(ctx, false)
	if err != nil {
		return nil, err
	}
	defer s.leave(ctx)
	names, err := s.small.names(ctx, first, after)
	if err != nil || s.small == s.large {
		return names, err
	}
	more, err := s.large.names(ctx, first, after)
	if err != nil {
		return nil, err
	}
	names = append(names, more...)
	slices.SortFunc(names, func(a, b Hash) int { return bytes.Compare(a[:], b[:]) })
	return slices.Compact(names), nil
}

func (s *store) Stats(ctx context.Context) (Stats, error) {
	ctx, err := s.enter(ctx, false)
	if err != nil {
		return Stats{}, err
	}
	defer s.leave(ctx)
	st, err := s.small.stats(ctx)
	if err != nil || s.small == s.large {
		return st, err
	}
	more, err := s.large.stats(ctx)
	return Stats{st.Blobs + more.Blobs, st.PlainBytes + more.PlainBytes, st.StoredBytes + more.StoredBytes}, err
}

func (s *store) Close() error {
	s.closeMu.Lock()
	defer s.closeMu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	err := s.large.close()
	if s.small != s.large {
		err = errors.Join(err, s.small.close())
	}
	s.codec.close()
	return err
}

// storePath is a path in the store, for messages.
func (o *Options) storePath(elem ...string) string {
	return filepath.Join(append([]string{o.Dir}, elem...)...)
}
