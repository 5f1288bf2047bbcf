package audit

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sys/unix"

	"holdfast/internal/durable"
)

const (
	// treeBuffer is how many bytes of hashes are written at once.
	treeBuffer = 256 << 10
)

// lostLeaf stands in the tree for a record that could not be read when its turn came.
func lostLeaf() tlog.Hash { return tlog.RecordHash(make([]byte, tlog.HashSize)) }

// leafOf is the leaf of a record.
func leafOf(chain [32]byte) tlog.Hash { return tlog.RecordHash(chain[:]) }

// frontier is a tree as far as it is needed to add leaves and to tell its root: the roots of its complete subtrees, the largest first.
type frontier struct {
	n     int64
	peaks []tlog.Hash
}

// add adds a leaf, and appends to out what tlog stores for it: the leaf, and the root of each subtree that it completes.
func (f *frontier) add(leaf tlog.Hash, out []tlog.Hash) []tlog.Hash {
	out = append(out, leaf)
	for i := f.n; i&1 != 0; i >>= 1 {
		leaf = tlog.NodeHash(f.peaks[len(f.peaks)-1], leaf)
		f.peaks = f.peaks[:len(f.peaks)-1]
		out = append(out, leaf)
	}
	f.peaks = append(f.peaks, leaf)
	f.n++
	return out
}

// root is the hash of the tree; it has at least one leaf.
func (f *frontier) root() tlog.Hash {
	h := f.peaks[len(f.peaks)-1]
	for i := len(f.peaks) - 2; i >= 0; i-- {
		h = tlog.NodeHash(f.peaks[i], h)
	}
	return h
}

func (f *frontier) clone() *frontier { return &frontier{f.n, slices.Clone(f.peaks)} }

// hashFile reads the hashes of a tree file; it is a tlog.HashReader.
type hashFile struct{ r io.ReaderAt }

func (h hashFile) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, at := range indexes {
		if _, err := h.r.ReadAt(out[i][:], at*tlog.HashSize); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	return out, nil
}

// treeFile holds the hashes of the tree in the order of tlog.StoredHashIndex. Its content follows from the journal.
type treeFile struct {
	f     *os.File
	front frontier
	off   int64  // where buf goes
	buf   []byte // not yet written
	out   []tlog.Hash
}

// openTree opens the file, or begins it.
func openTree(path string, readOnly bool) (*treeFile, error) {
	flags := os.O_RDWR | os.O_CREATE
	if readOnly {
		flags = os.O_RDONLY
	}
	f, err := os.OpenFile(path, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%w: %s is not a regular file", ErrMalformed, path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &treeFile{f: f}, nil
}

// begin makes the first n leaves of the file the tree. false when it has not so many, or its root is another: it then has none.
func (t *treeFile) begin(n int64, root tlog.Hash) (bool, error) {
	t.front, t.off, t.buf = frontier{}, 0, t.buf[:0]
	if n == 0 {
		return true, nil
	}
	fi, err := t.f.Stat()
	if err != nil || n > maxRecords/tlog.HashSize/4 || fi.Size() < tlog.StoredHashCount(n)*tlog.HashSize {
		return false, err
	}
	var at []int64
	for level := 62; level >= 0; level-- {
		if n>>level&1 != 0 {
			at = append(at, tlog.StoredHashIndex(level, n>>level-1))
		}
	}
	peaks, err := hashFile{t.f}.ReadHashes(at)
	if err != nil {
		return false, err
	}
	f := frontier{n, peaks}
	if f.root() != root {
		return false, nil
	}
	t.front, t.off = f, tlog.StoredHashCount(n)*tlog.HashSize
	return true, nil
}

// leaf returns one of the leaves that are in the file.
func (t *treeFile) leaf(i int64) (tlog.Hash, error) {
	h, err := hashFile{t.f}.ReadHashes([]int64{tlog.StoredHashIndex(0, i)})
	if err != nil {
		return tlog.Hash{}, err
	}
	return h[0], nil
}

// add adds a leaf. When it fails, the leaf was not added.
func (t *treeFile) add(leaf tlog.Hash) error {
	if len(t.buf) >= treeBuffer {
		if err := t.flush(); err != nil {
			return err
		}
	}
	t.out = t.front.add(leaf, t.out[:0])
	for i := range t.out {
		t.buf = append(t.buf, t.out[i][:]...)
	}
	return nil
}

// flush writes what was added. When it fails, it may be called again.
func (t *treeFile) flush() error {
	if len(t.buf) == 0 {
		return nil
	}
	if _, err := t.f.WriteAt(t.buf, t.off); err != nil {
		return fmt.Errorf("write the tree of the audit log: %w", err)
	}
	t.off += int64(len(t.buf))
	t.buf = t.buf[:0]
	return nil
}

// sync makes what was added durable, and the file's name.
func (t *treeFile) sync(dir string) error {
	if err := t.flush(); err != nil {
		return err
	}
	if err := unix.Fdatasync(int(t.f.Fd())); err != nil {
		return fmt.Errorf("sync the tree of the audit log: %w", err)
	}
	return durable.SyncDir(dir)
}

// ReadHashes implements tlog.HashReader.
func (t *treeFile) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	if err := t.flush(); err != nil {
		return nil, err
	}
	return hashFile{t.f}.ReadHashes(indexes)
}

func (t *treeFile) close() error { return t.f.Close() }
