package blobstore_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"holdfast/blobstore"
	"holdfast/blobstore/blobstoretest"
	"holdfast/internal/sqldb"
)

type blob struct {
	ref  blobstore.Ref
	data []byte
}

// sampleBlobs are of every kind that is stored in a way of its own.
func sampleBlobs(t *testing.T, s blobstore.Store) (all []blob) {
	for i, size := range []int{200, 3000, 50_000, 100_000, 400_000} {
		for _, compressible := range []bool{false, true} {
			data := blobstoretest.Data(uint64(i), size, compressible)
			all = append(all, blob{blobstoretest.Put(t, s, data), data})
		}
	}
	return all
}

// checkDamaged reads a blob in whole and in pieces: right bytes, ErrDamaged or ErrNotFound; never others. It says whether it is whole.
func checkDamaged(t *testing.T, what string, s blobstore.Store, b blob) (intact bool) {
	t.Helper()
	intact = true
	for _, piece := range []int{len(b.data) + 1, 100_000, 4096} {
		for off := 0; off < len(b.data); off += piece {
			p := make([]byte, piece)
			n, err := s.ReadAt(t.Context(), b.ref, p, int64(off))
			switch {
			case err == nil && bytes.Equal(p[:n], b.data[off:min(off+piece, len(b.data))]):
			case err == nil:
				t.Fatalf("%s: wrong bytes at %d of %d", what, off, len(b.data))
			case errors.Is(err, blobstore.ErrDamaged) || errors.Is(err, blobstore.ErrNotFound):
				intact = false
			default:
				t.Fatalf("%s: %v", what, err)
			}
		}
	}
	err := s.Verify(t.Context(), b.ref)
	if err != nil && !errors.Is(err, blobstore.ErrDamaged) && !errors.Is(err, blobstore.ErrNotFound) {
		t.Fatalf("%s: verify: %v", what, err)
	}
	if (err == nil) != intact {
		t.Fatalf("%s: reads as intact: %v, verifies: %v", what, intact, err)
	}
	sc, err := s.Sidecar(t.Context(), b.ref.Hash)
	if intact && (err != nil || sc.Size != b.ref.Size || !bytes.Equal(sc.Blocks, blobstoretest.Sum(b.data).Blocks)) {
		t.Fatalf("%s: intact, and its sidecar is %+v, %v", what, sc, err)
	}
	return intact
}

// heal stores the blob again, as a writer with the same content does.
func heal(t *testing.T, s blobstore.Store, b blob) {
	t.Helper()
	blobstoretest.Put(t, s, b.data)
	blobstoretest.Check(t, s, b.ref, b.data)
}

func blobFiles(t *testing.T, dir string) (paths []string) {
	t.Helper()
	if err := filepath.WalkDir(filepath.Join(dir, "blobs"), func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			paths = append(paths, p)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return paths
}

// damages are ways to spoil a file. mends says that the blob must still read: only its sidecar is concerned.
func damages(t *testing.T, other []byte) map[string]func(p string, content []byte) error {
	write := func(change func([]byte) []byte) func(string, []byte) error {
		return func(p string, b []byte) error { return os.WriteFile(p, change(bytes.Clone(b)), 0o600) }
	}
	flip := func(at func(n int) int) func(string, []byte) error {
		return write(func(b []byte) []byte { b[at(len(b))] ^= 4; return b })
	}
	return map[string]func(string, []byte) error{
		"flip first":  flip(func(int) int { return 0 }),
		"flip middle": flip(func(n int) int { return n / 2 }),
		"flip last":   flip(func(n int) int { return n - 2 }),
		"empty":       write(func([]byte) []byte { return nil }),
		"half":        write(func(b []byte) []byte { return b[:len(b)/2] }),
		"short":       write(func(b []byte) []byte { return b[:len(b)-1] }),
		"long":        write(func(b []byte) []byte { return append(b, 'x') }),
		"zeros":       write(func(b []byte) []byte { return make([]byte, len(b)) }),
		"other":       write(func([]byte) []byte { return other }),
		"gone":        func(p string, _ []byte) error { return os.Remove(p) },
		"directory": func(p string, _ []byte) error {
			return errors.Join(os.Remove(p), os.Mkdir(p, 0o700), os.WriteFile(filepath.Join(p, "x"), nil, 0o600))
		},
		"fifo": func(p string, _ []byte) error { return errors.Join(os.Remove(p), unix.Mkfifo(p, 0o600)) },
		"link": func(p string, b []byte) error {
			target := filepath.Join(blobstoretest.TempDir(t), "outside")
			return errors.Join(os.Remove(p), os.WriteFile(target, b, 0o600), os.Symlink(target, p))
		},
	}
}

func TestDamagedFiles(t *testing.T) {
	for _, mode := range []string{blobstore.ModeFile, blobstore.ModeHybrid} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			dir := blobstoretest.TempDir(t)
			s := openDir(t, dir, mode)
			all := sampleBlobs(t, s)
			s.Close()
			paths := blobFiles(t, dir)
			other, err := os.ReadFile(paths[0])
			if err != nil {
				t.Fatal(err)
			}
			for name, damage := range damages(t, other) {
				for _, p := range paths[1:] {
					damageFile(t, dir, mode, name, p, damage, all)
				}
			}
		})
	}
}

func damageFile(t *testing.T, dir, mode, name, p string, damage func(string, []byte) error, all []blob) {
	t.Helper()
	good, err := os.ReadFile(p)
	if err != nil {
		return // a heal has chosen another encoding
	}
	if err := damage(p, good); err != nil {
		t.Fatal(err)
	}
	hash := strings.TrimSuffix(strings.TrimSuffix(filepath.Base(p), ".json"), ".zst")
	what := fmt.Sprintf("%s: %s", filepath.Base(p), name)
	for _, readOnly := range []bool{true, false} {
		s, err := blobstore.Open(t.Context(), blobstore.Options{Dir: dir, Mode: mode, ReadOnly: readOnly})
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range all {
			if b.ref.Hash.String() != hash {
				continue
			}
			intact := checkDamaged(t, what, s, b)
			if isSidecar := strings.HasSuffix(p, ".json"); intact != isSidecar {
				t.Fatalf("%s: intact: %v", what, intact)
			}
			if !readOnly {
				heal(t, s, b)
			}
		}
		s.Close()
	}
}

// Someone changes content and sidecar so that they fit each other: the root, which the catalog keeps, tells.
func TestForgedSidecar(t *testing.T) {
	dir := blobstoretest.TempDir(t)
	s := openDir(t, dir, blobstore.ModeFile)
	b := blob{data: blobstoretest.Data(1, 500_000, false)}
	b.ref = blobstoretest.Put(t, s, b.data)
	sc, err := s.Sidecar(t.Context(), b.ref.Hash)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	forged := bytes.Clone(b.data)
	forged[300_000] ^= 1
	sc.Blocks = blobstoretest.Sum(forged).Blocks
	line, err := blobstore.SidecarLine(sc)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "blobs", b.ref.Hash.String()[:2], b.ref.Hash.String())
	if err := errors.Join(os.WriteFile(name, forged, 0o600), os.WriteFile(name+".json", line, 0o600)); err != nil {
		t.Fatal(err)
	}
	s = openDir(t, dir, blobstore.ModeFile)
	defer s.Close()
	if checkDamaged(t, "forged", s, b) {
		t.Error("forged content was taken for intact")
	}
	noRoot := b
	noRoot.ref.Root = blobstore.Root{}
	if checkDamaged(t, "forged, root unknown", s, noRoot) {
		t.Error("forged content was taken for intact where the root is not known")
	}
	heal(t, s, b)
}

// A directory of blobs/ that is a symbolic link leads out of the store: it is not followed, for reading or writing.
func TestDirectoryLink(t *testing.T) {
	dir := blobstoretest.TempDir(t)
	s := openDir(t, dir, blobstore.ModeFile)
	b := blob{data: blobstoretest.Data(1, 500, false)}
	b.ref = blobstoretest.Put(t, s, b.data)
	s.Close()
	fan := filepath.Join(dir, "blobs", b.ref.Hash.String()[:2])
	outside := filepath.Join(blobstoretest.TempDir(t), "outside")
	if err := errors.Join(os.Rename(fan, outside), os.Symlink(outside, fan)); err != nil {
		t.Fatal(err)
	}
	s = openDir(t, dir, blobstore.ModeFile)
	defer s.Close()
	checkDamaged(t, "link", s, b)
	if _, err := s.ReadAt(t.Context(), b.ref, make([]byte, 1), 0); !errors.Is(err, blobstore.ErrDamaged) {
		t.Errorf("read through a link: %v", err)
	}
	if err := s.PutBatch(t.Context(), []blobstore.Item{blobstoretest.ItemOf(b.data)}); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("put through a link: %v", err)
	}
	if err := s.Delete(t.Context(), b.ref.Hash); err == nil {
		t.Error("deleted through a link")
	}
	if _, err := os.Stat(filepath.Join(outside, b.ref.Hash.String())); err != nil {
		t.Error(err)
	}
}

// Foreign files are neither listed nor counted nor removed; leftovers of a crash are removed.
func TestForeignFilesAndLeftovers(t *testing.T) {
	dir := blobstoretest.TempDir(t)
	s := openDir(t, dir, blobstore.ModeFile)
	ref := blobstoretest.Put(t, s, []byte("content"))
	s.Close()
	foreign := filepath.Join(dir, "blobs", ref.Hash.String()[:2], "notes.txt")
	misplaced := filepath.Join(dir, "blobs", "00", "ff"+ref.Hash.String()[2:])
	left := filepath.Join(dir, "blobs", ".tmp", "1")
	for _, p := range []string{foreign, misplaced, left} {
		if err := os.WriteFile(p, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var log bytes.Buffer
	s, err := blobstore.Open(t.Context(), blobstore.Options{Dir: dir, Mode: blobstore.ModeFile, Log: textLog(&log)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	n := 0
	if err := s.List(t.Context(), blobstore.Hash{}, func(blobstore.Hash) error { n++; return nil }); err != nil || n != 1 {
		t.Errorf("%d names, %v", n, err)
	}
	if st, err := s.Stats(t.Context()); err != nil || st.Blobs != 1 {
		t.Errorf("%+v, %v", st, err)
	}
	if !strings.Contains(log.String(), "notes.txt") {
		t.Errorf("the foreign file is not logged: %s", &log)
	}
	if _, err := os.Stat(foreign); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(left); !os.IsNotExist(err) {
		t.Errorf("the leftover is still there: %v", err)
	}
}

// edits are what someone with an SQL prompt can do to blobs.db, each to all rows of the blob whose hash is bound to ?1.
func edits() []string {
	const ids = "(SELECT id FROM blob WHERE hash = ?1)"
	const blocks = "(SELECT first FROM large WHERE id = " + ids + ")"
	var all []string
	for _, c := range []string{"size = size + 1", "size = -1", "size = 9223372036854775807", "size = 0", "stored = stored + 1", "stored = -5", "zstd = 1 - zstd", "zstd = 7",
		"level = 9", "version = -1", "time = -9223372036854775808", "backups = -1", "last_backup = 5", "sum = sum + 1", "body = NULL", "body = x''", "body = zeroblob(200000)",
		"body = substr(body, 2)", "body = body || x'00'", "body = zeroblob(length(body))", "body = (SELECT body FROM blob WHERE hash <> ?1 AND body IS NOT NULL LIMIT 1)",
		"hash = zeroblob(32)", "hash = x'01'", "id = id + 1000"} {
		all = append(all, "UPDATE blob SET "+c+" WHERE hash = ?1")
	}
	for _, c := range []string{"first = first + 1", "first = 0", "first = -7", "first = 9223372036854775807", "hashes = x''", "hashes = zeroblob(length(hashes))", "hashes = zeroblob(5000000)"} {
		all = append(all, "UPDATE large SET "+c+" WHERE id = "+ids)
	}
	for _, c := range []string{"body = x''", "body = zeroblob(length(body))", "body = zeroblob(1000000)", "body = substr(body, 1, length(body) - 1)",
		"body = (SELECT body FROM block WHERE id = " + blocks + " + 2)"} {
		all = append(all, "UPDATE block SET "+c+" WHERE id = "+blocks+" + 1")
	}
	all = append(all, "DELETE FROM blob WHERE hash = ?1", "DELETE FROM large WHERE id = "+ids, "DELETE FROM block WHERE id = "+blocks+" + 1",
		"INSERT INTO incomplete SELECT first, 9223372036854775807 FROM large WHERE id = "+ids, "DELETE FROM total")
	if raceBuild { // each of them runs the same code
		few := all[:0]
		for i := 0; i < len(all); i += 3 {
			few = append(few, all[i])
		}
		return few
	}
	return all
}

func TestDamagedRows(t *testing.T) {
	for _, mode := range []string{blobstore.ModeDatabase, blobstore.ModeHybrid} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			dir := blobstoretest.TempDir(t)
			s := openDir(t, dir, mode)
			all := sampleBlobs(t, s)
			s.Close()
			whole := 0
			for _, edit := range edits() {
				for _, b := range all {
					if mode == blobstore.ModeHybrid && b.ref.Size > blobstore.MaxSmall {
						continue
					}
					if editRows(t, dir, edit, b.ref.Hash) == 0 {
						continue
					}
					s := openDir(t, dir, mode)
					if checkDamaged(t, fmt.Sprintf("%d bytes: %s", len(b.data), edit), s, b) {
						whole++
					}
					heal(t, s, b)
					s.Close()
				}
			}
			if whole == 0 {
				t.Error("no blob was mended though only its columns were damaged")
			}
		})
	}
}

// editRows runs one statement on blobs.db and returns how many rows it changed.
func editRows(t *testing.T, dir, edit string, h blobstore.Hash) (n int) {
	t.Helper()
	db, err := sqldb.Open(t.Context(), sqldb.Options{Path: filepath.Join(dir, "blobs.db"), Version: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Write(t.Context(), func(c *sqldb.Conn) error {
		st := c.Prep(edit)
		if strings.Contains(edit, "?1") {
			st.BindBytes(1, h[:])
		}
		if err := st.Exec(); err != nil && !errors.Is(err, sqldb.ErrConstraint) {
			return err
		}
		n = c.Changes()
		return nil
	}); err != nil {
		t.Fatalf("%s: %v", edit, err)
	}
	return n
}

// The bytes of blobs.db are flipped anywhere: what is read is right or reported.
func TestFlippedDatabase(t *testing.T) {
	dir := blobstoretest.TempDir(t)
	s := openDir(t, dir, blobstore.ModeDatabase)
	all := sampleBlobs(t, s)
	s.Close()
	p := filepath.Join(dir, "blobs.db")
	good, err := os.ReadFile(p)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(blobstoretest.Seed(t), 0))
	damaged := 0
	for round := range 60 {
		bad := bytes.Clone(good)
		for range 1 + r.IntN(20) {
			at := r.IntN(len(bad))
			if round%2 == 0 { // headers of pages are few and matter most
				at = at/16384*16384 + r.IntN(64)
			}
			bad[at] ^= 1 << r.IntN(8)
		}
		if round%10 == 9 {
			bad = bad[:r.IntN(len(bad))]
		}
		if err := errors.Join(os.WriteFile(p, bad, 0o600), os.RemoveAll(p+"-wal"), os.RemoveAll(p+"-shm")); err != nil {
			t.Fatal(err)
		}
		s, err := blobstore.Open(t.Context(), blobstore.Options{Dir: dir, Mode: blobstore.ModeDatabase})
		if err != nil {
			if len(bad) > 0 && !errors.Is(err, blobstore.ErrDamaged) && !errors.Is(err, sqldb.ErrVersion) {
				t.Fatalf("round %d: open: %v", round, err)
			}
			damaged++
			continue
		}
		for _, b := range all {
			p := make([]byte, len(b.data)+1)
			n, err := s.ReadAt(t.Context(), b.ref, p, 0)
			if err == nil && !bytes.Equal(p[:n], b.data) {
				t.Fatalf("round %d: wrong bytes", round)
			}
			if err != nil {
				damaged++
				if !errors.Is(err, blobstore.ErrDamaged) && !errors.Is(err, blobstore.ErrNotFound) {
					t.Fatalf("round %d: %v", round, err)
				}
			}
			err = s.Verify(t.Context(), b.ref)
			if err != nil && !errors.Is(err, blobstore.ErrDamaged) && !errors.Is(err, blobstore.ErrNotFound) {
				t.Fatalf("round %d: verify: %v", round, err)
			}
		}
		s.Close()
	}
	if damaged == 0 {
		t.Error("no damage was noticed")
	}
}

// What is written of a sidecar can be checked by anyone: its sum is that of the line with sum empty, its hashes are plain BLAKE3.
func TestSidecarByHand(t *testing.T) {
	dir := blobstoretest.TempDir(t)
	s := openDir(t, dir, blobstore.ModeFile)
	defer s.Close()
	data := blobstoretest.Data(1, 300_000, false)
	ref := blobstoretest.Put(t, s, data)
	line, err := os.ReadFile(filepath.Join(dir, "blobs", ref.Hash.String()[:2], ref.Hash.String()+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var sc struct {
		Blocks []byte `json:"blocks"`
		Sum    string `json:"sum"`
	}
	if err := json.Unmarshal(line, &sc); err != nil {
		t.Fatal(err)
	}
	d := sha256.Sum256(bytes.TrimSpace(bytes.Replace(line, []byte(sc.Sum), nil, 1)))
	if hex.EncodeToString(d[:]) != sc.Sum {
		t.Error("the sum is another")
	}
	for b := 0; b*blobstore.BlockSize < len(data); b++ {
		want := blake3.Sum256(data[b*blobstore.BlockSize : min(len(data), (b+1)*blobstore.BlockSize)])
		if !bytes.Equal(sc.Blocks[32*b:32*b+32], want[:]) {
			t.Errorf("block %d has another hash", b)
		}
	}
	if root := blake3.Sum256(sc.Blocks); root != [32]byte(ref.Root) {
		t.Error("the root is another")
	}
	if _, err := s.ReadAt(context.Background(), ref, make([]byte, 1), 0); err != nil {
		t.Error(err)
	}
}
