package catalog

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/zeebo/blake3"

	"holdfast/internal/durable"
	"holdfast/internal/sqldb"
)

// When catalog.db is closed cleanly, catalog.db.sums says what every piece of it hashes to, so that the next start finds whatever happened to it in the
// meantime: also what the sums of single rows cannot tell, such as rows that are gone. Whoever opens it for writing removes the file.
const (
	sumsName   = dbName + ".sums"
	sumsMagic  = "HFDBSUM\n"
	sumsPiece  = 64 << 10
	sumsHeader = 48 // magic, size of a piece, zeros, size of catalog.db, store id, zeros
	sumsHash   = 32
)

// errNoSums: there is no usable catalog.db.sums, so nothing is known of catalog.db.
var errNoSums = errors.New("catalog.db was not closed cleanly")

// fileSums is the content of catalog.db.sums for a catalog.db.
func fileSums(ctx context.Context, path string, store [16]byte) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out := make([]byte, sumsHeader)
	copy(out, sumsMagic)
	binary.LittleEndian.PutUint32(out[8:], sumsPiece)
	copy(out[24:], store[:])
	piece := make([]byte, sumsPiece)
	size := int64(0)
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n, err := io.ReadFull(f, piece)
		if n > 0 {
			sum := blake3.Sum256(piece[:n])
			out = append(out, sum[:]...)
			size += int64(n)
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	binary.LittleEndian.PutUint64(out[16:], uint64(size))
	sum := blake3.Sum256(out)
	return append(out, sum[:]...), nil
}

// writeSums writes catalog.db.sums. The database is closed, and durable.
func (c *Catalog) writeSums(ctx context.Context) error {
	path := filepath.Join(c.opt.Dir, dbName)
	if fi, err := os.Lstat(path + "-wal"); err == nil && fi.Size() > 0 {
		return nil // somebody reads the database, and a part of it is still in the log
	}
	sums, err := fileSums(ctx, path, c.opt.StoreID)
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(c.opt.Dir, sumsName), sums, 0o600)
}

// checkSums compares catalog.db with catalog.db.sums. ErrCorrupt when it is not what was closed, errNoSums when there is nothing to compare with.
func (c *Catalog) checkSums(ctx context.Context) error {
	path := filepath.Join(c.opt.Dir, dbName)
	want, err := readSums(filepath.Join(c.opt.Dir, sumsName), c.opt.StoreID)
	if err != nil {
		return err
	}
	if fi, err := os.Lstat(path); err != nil || !fi.Mode().IsRegular() {
		return errNoSums // who opens it says what is wrong
	}
	if fi, err := os.Lstat(path + "-wal"); err == nil && fi.Size() > 0 {
		return fmt.Errorf("catalog.db was closed cleanly and has a write-ahead log all the same: %w", sqldb.ErrCorrupt)
	}
	have, err := fileSums(ctx, path, c.opt.StoreID)
	if err != nil {
		return err
	}
	if bytes.Equal(have, want) {
		return nil
	}
	a, b := have[sumsHeader:len(have)-sumsHash], want[sumsHeader:len(want)-sumsHash]
	first := 0
	for first+sumsHash <= min(len(a), len(b)) && bytes.Equal(a[first:first+sumsHash], b[first:first+sumsHash]) {
		first += sumsHash
	}
	return fmt.Errorf("catalog.db has changed since it was closed, first in the %d bytes from %d on: %w", sumsPiece, first/sumsHash*sumsPiece, sqldb.ErrCorrupt)
}

// readSums reads catalog.db.sums; errNoSums when it is not there, not intact or of another store.
func readSums(path string, store [16]byte) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errNoSums
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() || fi.Size() > maxSums {
		return nil, errNoSums
	}
	b := make([]byte, fi.Size())
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, err
	}
	return b, parseSums(b, store)
}

// maxSums is the size of the sums of a catalog.db of 2 TiB.
const maxSums = 1 << 30

// parseSums is errNoSums for what is no intact catalog.db.sums of the store.
func parseSums(b []byte, store [16]byte) error {
	if len(b) < sumsHeader+sumsHash || (len(b)-sumsHeader)%sumsHash != 0 || string(b[:8]) != sumsMagic ||
		binary.LittleEndian.Uint32(b[8:]) != sumsPiece || [16]byte(b[24:40]) != store {
		return errNoSums
	}
	body := b[:len(b)-sumsHash]
	if sum := blake3.Sum256(body); !bytes.Equal(sum[:], b[len(body):]) {
		return errNoSums
	}
	pieces := uint64(len(body)-sumsHeader) / sumsHash
	if size := binary.LittleEndian.Uint64(b[16:]); size > pieces*sumsPiece || pieces > 0 && size <= (pieces-1)*sumsPiece {
		return errNoSums
	}
	return nil
}

// removeSums removes catalog.db.sums, durably: catalog.db is about to change.
func (c *Catalog) removeSums() error {
	err := durable.RemoveSync(filepath.Join(c.opt.Dir, sumsName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
