package blobstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sort"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/sqldb"
)

// paritySchema came later than the other tables, which older programs go on using without it. A parity is what a file of it would hold, cut in
// pieces of BlockSize; the piece 0 is written last and removed first: without it there is none.
const paritySchema = `
CREATE TABLE IF NOT EXISTS parity (id INTEGER PRIMARY KEY, hash BLOB NOT NULL, n INTEGER NOT NULL, body BLOB NOT NULL, UNIQUE (hash, n)) STRICT;`

// prepareParity finds out whether there is a table for parities.
func (s *rows) prepareParity(ctx context.Context) error {
	return s.db.Read(ctx, func(c *sqldb.Conn) error {
		there, err := c.Prep("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'parity'").Step()
		s.hasParity.Store(there)
		return err
	})
}

// makeParityTable makes the table, unless it is there.
func (s *rows) makeParityTable(ctx context.Context) error {
	if s.hasParity.Load() {
		return nil
	}
	if err := s.db.Write(ctx, func(c *sqldb.Conn) error { return c.Script(paritySchema) }); err != nil {
		return err
	}
	s.hasParity.Store(true)
	return nil
}

// storedBlocks reads the blocks of a blob, as they are stored, one behind the other: what is missing or has another length is zero up to
// its length, which frames tells. Its errors are those of ctx and of the system.
type storedBlocks struct {
	ctx    context.Context
	s      *rows
	h      Hash
	first  int64 // the first row of block; 0: the body is in the row of blob
	starts []int64
	buf    []byte
	have   int64 // the block in buf; -1: none
}

func (s *rows) storedBlocks(ctx context.Context, h Hash, first int64, frames []uint32) *storedBlocks {
	r := &storedBlocks{ctx: ctx, s: s, h: h, first: first, starts: make([]int64, len(frames)+1), have: -1}
	for i, n := range frames {
		r.starts[i+1] = r.starts[i] + int64(n)
	}
	return r
}

// rawFrames are the lengths of blocks that are stored plain.
func rawFrames(size int64) []uint32 {
	frames := make([]uint32, blockCount(size))
	for b := range frames {
		frames[b] = uint32(blockLen(size, int64(b)))
	}
	return frames
}

func (r *storedBlocks) length() int64 { return r.starts[len(r.starts)-1] }

func (r *storedBlocks) ReadAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) && off+int64(done) < r.length() {
		at := off + int64(done)
		b := sort.Search(len(r.starts), func(i int) bool { return r.starts[i] > at }) - 1 // the last that begins there: those before it are empty
		if r.have != int64(b) {
			if err := r.load(int64(b)); err != nil {
				return done, err
			}
		}
		done += copy(p[done:], r.buf[at-r.starts[b]:])
	}
	return done, nil
}

func (r *storedBlocks) load(b int64) error {
	n := int(r.starts[b+1] - r.starts[b])
	r.have, r.buf = -1, slices.Grow(r.buf[:0], n)[:n]
	clear(r.buf)
	body, err := r.s.storedBlock(r.ctx, r.h, r.first, b, r.buf)
	if err != nil && !unreadable(err) {
		return err
	}
	clear(r.buf[body:])
	r.have = b
	return nil
}

// storedBlock copies as much of a stored block to dst as fits, and returns how much that is.
func (s *rows) storedBlock(ctx context.Context, h Hash, first, b int64, dst []byte) (n int, err error) {
	err = s.db.Read(ctx, func(c *sqldb.Conn) error {
		st := c.Prep("SELECT body FROM block WHERE id = ?").BindInt64(1, first+b)
		if first == 0 {
			st = c.Prep("SELECT body FROM blob WHERE hash = ?").BindBytes(1, h[:])
		}
		ok, err := st.Step()
		if err != nil {
			return blobErr(h, err)
		}
		if !ok {
			return &DamageError{h, fmt.Sprintf("block %d", b), "it is missing in blobs.db"}
		}
		n = st.CopyBytes(0, dst[:min(len(dst), st.Len(0))])
		return nil
	})
	return n, err
}

// parityRows reads a parity out of its rows. What is missing is zero.
type parityRows struct {
	ctx  context.Context
	s    *rows
	h    Hash
	buf  [BlockSize]byte
	have int64
}

func (r *parityRows) ReadAt(p []byte, off int64) (int, error) {
	for done := 0; done < len(p); {
		n := (off + int64(done)) / BlockSize
		if r.have != n {
			r.have = -1
			clear(r.buf[:])
			err := r.s.db.Read(r.ctx, func(c *sqldb.Conn) error {
				st := c.Prep("SELECT body FROM parity WHERE hash = ? AND n = ?").BindBytes(1, r.h[:]).BindInt64(2, n)
				ok, err := st.Step()
				if err != nil || !ok {
					return blobErr(r.h, err)
				}
				st.CopyBytes(0, r.buf[:min(BlockSize, st.Len(0))])
				return nil
			})
			if err != nil && !unreadable(err) {
				return done, err
			}
			r.have = n
		}
		done += copy(p[done:], r.buf[(off+int64(done))%BlockSize:])
	}
	return len(p), nil
}

// openParity opens the parity of h. ErrNotFound, *DamageError.
func (s *rows) openParity(ctx context.Context, h Hash) (*parityReader, error) {
	if !s.hasParity.Load() {
		return nil, notFound(h)
	}
	var count, size int64
	err := s.db.Read(ctx, func(c *sqldb.Conn) error {
		st := c.Prep("SELECT count(*), ifnull(sum(length(body)), 0), ifnull(min(n), 1) FROM parity WHERE hash = ?").BindBytes(1, h[:])
		if _, err := st.Step(); err != nil {
			return blobErr(h, err)
		}
		count, size = st.Int64(0), st.Int64(1)
		if st.Int64(2) != 0 {
			count = 0
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if count == 0 {
		return nil, notFound(h)
	}
	return openParity(ctx, &parityRows{ctx: ctx, s: s, h: h, have: -1}, size, h)
}

func (s *rows) parity(ctx context.Context, h Hash) (int64, bool, error) {
	r, err := s.loadLarge(ctx, h, -1)
	if err != nil {
		return 0, false, err
	}
	pr, err := s.openParity(ctx, h)
	if err != nil {
		if lookElsewhere(err) {
			err = nil
		}
		return 0, false, err
	}
	if r.cols.check == r.cols.sum(h) && pr.enc != r.cols.encoding() {
		return 0, false, nil
	}
	return pr.size, true, nil
}

func (k *columns) encoding() string {
	if k.zstd == 0 {
		return encRaw
	}
	return encZstd
}

// dropParity removes the parity of h, in bounded transactions.
func (s *rows) dropParity(ctx context.Context, h Hash) error {
	if !s.hasParity.Load() {
		return nil
	}
	var there bool
	err := s.db.Read(ctx, func(c *sqldb.Conn) (err error) {
		there, err = c.Prep("SELECT 1 FROM parity WHERE hash = ? LIMIT 1").BindBytes(1, h[:]).Step()
		return err
	})
	for err == nil && there {
		err = s.db.Write(ctx, func(c *sqldb.Conn) error {
			err := c.Prep("DELETE FROM parity WHERE id IN (SELECT id FROM parity WHERE hash = ? ORDER BY n LIMIT ?)").
				BindBytes(1, h[:]).BindInt64(2, txnBlocks).Exec()
			there = c.Changes() > 0
			return err
		})
	}
	return rowErr(err)
}

// dropStaleParity removes a parity that is not that of the blob as it is stored now.
func (s *rows) dropStaleParity(ctx context.Context, h Hash, k *columns) error {
	if k.size <= MaxSmall {
		return nil
	}
	pr, why := s.openParity(ctx, h)
	if errors.Is(why, ErrNotFound) || why == nil && pr.fits(Ref{Hash: h, Size: k.size}, k.encoding(), k.stored) {
		return nil
	}
	err := s.dropParity(ctx, h)
	parityGone(ctx, h, why, err)
	return err
}

// scratch is a file without a name, in the store where the filesystem can do that.
func (s *rows) scratch() (*os.File, error) {
	fd, err := retryEINTR(func() (int, error) {
		return unix.Open(s.opt.Dir, unix.O_RDWR|unix.O_TMPFILE|unix.O_CLOEXEC, 0o600)
	})
	if err == nil {
		return os.NewFile(uintptr(fd), "scratch"), nil
	}
	f, err := os.CreateTemp("", "holdfast-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// rowsContent is what there is of a blob in rows.
type rowsContent struct {
	largeRow
	why error // the row of blob, or that of large, is missing or does not have its sum
}

// locate looks for the rows of a blob. Its error is ErrNotFound, or one of the system.
func (s *rows) locate(ctx context.Context, ref Ref) (l rowsContent, err error) {
	h := ref.Hash
	if l.largeRow, err = s.loadLarge(ctx, h, ref.Size); err != nil {
		return l, err
	}
	k := &l.cols
	large := ref.Size > BlockSize
	switch {
	case k.flaw(h) != nil:
		l.why = k.flaw(h)
	case k.size != ref.Size || !large && l.first != 0:
		l.why = &DamageError{h, "sidecar", fmt.Sprintf("its row in blobs.db says %d bytes, not %d", k.size, ref.Size)}
	case large && (l.first <= 0 || l.first > 1<<60 || l.hashes == nil || ref.Root != (Root{}) && RootOf(l.hashes) != ref.Root):
		l.why = &DamageError{h, "sidecar", "its row in blobs.db does not say where its blocks are, or which hashes they have"}
	}
	if !large {
		l.first = 0
	} else if l.first < 0 || l.first > 1<<60 {
		l.first = 0
	}
	return l, nil
}

// lengths returns how many bytes the blocks of a blob take, each no more than it may; a missing one has none.
func (s *rows) lengths(ctx context.Context, ref Ref, l *rowsContent) ([]uint32, error) {
	frames := make([]uint32, blockCount(ref.Size))
	if ref.Size > BlockSize && l.first == 0 {
		return frames, nil
	}
	err := s.db.Read(ctx, func(c *sqldb.Conn) error {
		if ref.Size <= BlockSize {
			st := c.Prep("SELECT ifnull(length(body), 0) FROM blob WHERE hash = ?").BindBytes(1, ref.Hash[:])
			ok, err := st.Step()
			if err == nil && ok {
				frames[0] = uint32(max(0, min(st.Int64(0), BlockSize)))
			}
			return blobErr(ref.Hash, err)
		}
		st := c.Prep("SELECT id, length(body) FROM block WHERE id >= ? AND id < ? ORDER BY id").BindInt64(1, l.first).BindInt64(2, l.first+int64(len(frames)))
		for {
			ok, err := st.Step()
			if err != nil || !ok {
				return blobErr(ref.Hash, err)
			}
			b := st.Int64(0) - l.first
			frames[b] = uint32(max(0, min(st.Int64(1), int64(blockLen(ref.Size, b)))))
		}
	})
	if unreadable(err) {
		err = nil
	}
	return frames, err
}

// sumBlocks hashes content that is stored in frames of those lengths, which are checked, as a Hasher does.
func (c *codec) sumBlocks(ctx context.Context, ref Ref, r atReader, frames []uint32) (Summed, error) {
	hasher := NewHasher()
	buf, spare := c.buf(), c.buf()
	defer c.free(buf)
	defer c.free(spare)
	var at int64
	for b, n := range frames {
		if err := ctx.Err(); err != nil {
			return Summed{}, err
		}
		plain, err := c.plainBlock(ref, r, int64(b), at, int(n), buf, spare)
		if err != nil {
			return Summed{}, err
		}
		hasher.Write(plain)
		at += int64(n)
	}
	sum := hasher.Sum()
	if sum.Ref.Hash != ref.Hash {
		return sum, &DamageError{ref.Hash, "content", "it does not have its hash"}
	}
	if ref.Root != (Root{}) && sum.Ref.Root != ref.Root {
		return sum, &DamageError{ref.Hash, "root", "the content has its hash, but its blocks do not have the root that the blob should have"}
	}
	return sum, nil
}

// plainBlock reads block b, n bytes at at, and decodes it when it is shorter than it should be.
func (c *codec) plainBlock(ref Ref, r atReader, b, at int64, n int, buf, spare *[BlockSize]byte) ([]byte, error) {
	got, err := r.ReadAt(buf[:n], at)
	if err != nil && err != io.EOF {
		return nil, err
	}
	want := blockLen(ref.Size, b)
	if got != n || n == 0 && want > 0 {
		return nil, &DamageError{ref.Hash, fmt.Sprintf("block %d", b), "it is not whole"}
	}
	if n == want {
		return buf[:n], nil
	}
	if err := c.decode(spare[:want], buf[:n]); err != nil {
		return nil, &DamageError{ref.Hash, fmt.Sprintf("block %d", b), err.Error()}
	}
	return spare[:want], nil
}

func (s *rows) inspect(ctx context.Context, ref Ref) ([]Finding, error) {
	for attempt := 0; ; attempt++ {
		current := s.current()
		found, err := s.inspectOnce(ctx, ref)
		if current() || attempt == 5 || err == nil && len(found) == 0 || err != nil && !errors.Is(err, ErrNotFound) {
			return found, err
		}
	}
}

func (s *rows) inspectOnce(ctx context.Context, ref Ref) (found []Finding, err error) {
	pr, parErr := s.openParity(ctx, ref.Hash)
	if parErr != nil && !unreadable(parErr) {
		return nil, parErr
	}
	l, err := s.locate(ctx, ref)
	enc := l.cols.encoding()
	switch {
	case errors.Is(err, ErrNotFound) && parErr == nil:
		found = append(found, Finding{Part: PartMissing, Detail: err.Error()})
		enc = pr.enc
	case errors.Is(err, ErrDamaged):
		found = append(found, Finding{Part: PartMissing, Detail: err.Error()})
	case err != nil:
		return nil, err
	default:
		frames, err := s.lengths(ctx, ref, &l)
		if err != nil {
			return nil, err
		}
		if found, err = s.inspectBlocks(ctx, ref, &l, frames); err != nil {
			return nil, err
		}
		if l.why != nil {
			found = append(found, Finding{Part: PartRow, Detail: l.why.Error()})
			enc = encodingOf(ref.Size, frames)
		}
	}
	expect := int64(-1)
	if len(found) == 0 {
		expect = l.cols.stored
	}
	more, err := inspectParity(ctx, pr, parErr, ref, enc, expect)
	return append(found, more...), err
}

// encodingOf is zstd when a block is shorter than it is plain.
func encodingOf(size int64, frames []uint32) string {
	for b, n := range frames {
		if int(n) < blockLen(size, int64(b)) {
			return encZstd
		}
	}
	return encRaw
}

// inspectBlocks checks the content block by block, and all of it against its name.
func (s *rows) inspectBlocks(ctx context.Context, ref Ref, l *rowsContent, frames []uint32) (found []Finding, err error) {
	r := s.storedBlocks(ctx, ref.Hash, l.first, frames)
	vouched := l.hashes != nil && ref.Size > BlockSize && ref.Root != (Root{}) && RootOf(l.hashes) == ref.Root
	hasher := NewHasher()
	buf, spare := s.codec.buf(), s.codec.buf()
	defer s.codec.free(buf)
	defer s.codec.free(spare)
	var total int64
	for b, n := range frames {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		total += int64(n)
		plain, err := s.codec.plainBlock(ref, r, int64(b), r.starts[b], int(n), buf, spare)
		if err == nil && vouched && blockSum(plain) != [32]byte(l.hashes[32*b:32*b+32]) {
			err = &DamageError{ref.Hash, fmt.Sprintf("block %d", b), "it does not have its hash"}
		}
		if err != nil && !unreadable(err) {
			return nil, err
		}
		if err != nil {
			found = append(found, Finding{Part: PartBlock, Index: b, Off: r.starts[b], Len: int64(n), Detail: err.Error()})
		} else if len(found) == 0 {
			hasher.Write(plain)
		}
	}
	if len(found) > 0 {
		return found, nil
	}
	sum := hasher.Sum()
	if sum.Ref.Hash != ref.Hash {
		return []Finding{{Part: PartContent, Len: total, Detail: "it does not have its hash"}}, nil
	}
	if l.why == nil && (total != l.cols.stored || encodingOf(ref.Size, frames) != l.cols.encoding() || !bytes.Equal(l.hashes, sum.Blocks)) {
		l.why = notDescribed(ref.Hash)
	}
	return nil, nil
}

// amend changes the sidecar columns of a row.
func (s *rows) amend(ctx context.Context, h Hash, change func(*Sidecar)) error {
	if _, err := s.sidecar(ctx, h); err != nil { // makes the columns anew when they are damaged
		return err
	}
	var there bool
	err := s.db.Write(ctx, func(c *sqldb.Conn) error {
		st := c.Prep("SELECT "+columnList+" FROM blob WHERE hash = ?").BindBytes(1, h[:])
		ok, err := st.Step()
		if there = ok; err != nil || !ok {
			return err
		}
		var k columns
		k.scan(st)
		if err := st.Done(); err != nil {
			return err
		}
		if err := k.flaw(h); err != nil {
			return err
		}
		sc := Sidecar{IntegrityLevel: levelName(int(k.level))}
		k.setBackups(&sc)
		change(&sc)
		k.level, k.backups, k.lastBackup = int64(levelRank(sc.IntegrityLevel)), int64(sc.BackupCount), 0
		if sc.LastBackup != nil {
			k.lastBackup = sc.LastBackup.UnixNano()
		}
		return s.update(c, h, k.id, &k)
	})
	if err == nil && !there {
		err = notFound(h)
	}
	return blobErr(h, err)
}

// setBackups gives sc the backups of k.
func (k *columns) setBackups(sc *Sidecar) {
	if sc.BackupCount, sc.LastBackup = int(k.backups), nil; k.lastBackup != 0 {
		t := time.Unix(0, k.lastBackup).UTC()
		sc.LastBackup = &t
	}
}

// rawBlocks reads the stored blocks of a blob from the beginning, as they are.
type rawBlocks struct{ *io.SectionReader }

func (rawBlocks) Close() error { return nil }

func (s *rows) raw(ctx context.Context, h Hash) (io.ReadCloser, int64, error) {
	r, err := s.loadLarge(ctx, h, -1)
	if err != nil {
		return nil, 0, err
	}
	size := r.cols.size
	if r.first == 0 || size <= BlockSize {
		size, r.first = BlockSize, 0
	}
	if size > maxBlob || r.first < 0 || r.first > 1<<60 {
		return nil, 0, &DamageError{h, "sidecar", fmt.Sprintf("its row in blobs.db says %d bytes", size)}
	}
	l := rowsContent{largeRow: r}
	frames, err := s.lengths(ctx, Ref{Hash: h, Size: size}, &l)
	if err != nil {
		return nil, 0, err
	}
	stored := s.storedBlocks(context.WithoutCancel(ctx), h, r.first, frames)
	return rawBlocks{io.NewSectionReader(eofReader{stored}, 0, stored.length())}, stored.length(), nil
}
