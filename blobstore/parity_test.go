package blobstore_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"holdfast/blobstore"
	"holdfast/blobstore/blobstoretest"
	"holdfast/internal/sqldb"
)

// stored lets a test reach the stored bytes of a blob, and its parity, where they lie.
type stored interface {
	read(t *testing.T) []byte
	write(t *testing.T, b []byte) // may have another length
	readParity(t *testing.T) []byte
	writeParity(t *testing.T, b []byte)
}

// storedFiles are content and parity as files.
type storedFiles struct{ content, par string }

func filesOf(t *testing.T, dir string, h blobstore.Hash) storedFiles {
	t.Helper()
	base := filepath.Join(dir, "blobs", h.String()[:2], h.String())
	f := storedFiles{base, base + ".par"}
	if _, err := os.Stat(base + ".zst"); err == nil {
		f.content = base + ".zst"
	}
	return f
}

func get(t *testing.T, p string) []byte {
	t.Helper()
	b, err := os.ReadFile(p)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func put(t *testing.T, p string, b []byte) {
	t.Helper()
	if err := os.WriteFile(p, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (f storedFiles) read(t *testing.T) []byte           { return get(t, f.content) }
func (f storedFiles) write(t *testing.T, b []byte)       { put(t, f.content, b) }
func (f storedFiles) readParity(t *testing.T) []byte     { return get(t, f.par) }
func (f storedFiles) writeParity(t *testing.T, b []byte) { put(t, f.par, b) }

// storedRows are content and parity as rows. Bytes that are cut off are rows that are gone.
type storedRows struct {
	dir string
	h   blobstore.Hash
	// of each block
	lens []int
}

func rowsOf(t *testing.T, dir string, h blobstore.Hash) *storedRows {
	t.Helper()
	r := &storedRows{dir: dir, h: h}
	r.each(t, r.blocks(), func(b []byte) { r.lens = append(r.lens, len(b)) })
	return r
}

func (r *storedRows) blocks() string {
	x := hex.EncodeToString(r.h[:])
	return fmt.Sprintf(`SELECT body FROM blob WHERE hash = x'%s' AND body IS NOT NULL UNION ALL SELECT body FROM (SELECT body FROM block
		WHERE id >= (SELECT first FROM large WHERE id = (SELECT id FROM blob WHERE hash = x'%s')) ORDER BY id)`, x, x)
}

func (r *storedRows) parities() string {
	return fmt.Sprintf("SELECT body FROM parity WHERE hash = x'%x' ORDER BY n", r.h[:])
}

func (r *storedRows) open(t *testing.T) *sqldb.DB {
	t.Helper()
	db, err := sqldb.Open(t.Context(), sqldb.Options{Path: filepath.Join(r.dir, "blobs.db"), Version: 1})
	if err != nil {
		t.Fatal(err)
	}
	return db
}

func (r *storedRows) each(t *testing.T, query string, fn func([]byte)) {
	t.Helper()
	db := r.open(t)
	defer db.Close()
	if err := db.Read(t.Context(), func(c *sqldb.Conn) error {
		st := c.Prep(query)
		for {
			ok, err := st.Step()
			if err != nil || !ok {
				return err
			}
			fn(st.AppendBytes(nil, 0))
		}
	}); err != nil {
		t.Fatal(err)
	}
}

func (r *storedRows) all(t *testing.T, query string) (all []byte) {
	r.each(t, query, func(b []byte) { all = append(all, b...) })
	return all
}

func (r *storedRows) read(t *testing.T) []byte       { return r.all(t, r.blocks()) }
func (r *storedRows) readParity(t *testing.T) []byte { return r.all(t, r.parities()) }

func (r *storedRows) exec(t *testing.T, fn func(c *sqldb.Conn) error) {
	t.Helper()
	db := r.open(t)
	defer db.Close()
	if err := db.Write(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

func (r *storedRows) write(t *testing.T, b []byte) {
	t.Helper()
	r.exec(t, func(c *sqldb.Conn) error {
		st := c.Prep("SELECT l.first FROM large l JOIN blob b ON l.id = b.id WHERE b.hash = ?").BindBytes(1, r.h[:])
		ok, err := st.Step()
		if err != nil {
			return err
		}
		if !ok {
			return c.Prep("UPDATE blob SET body = ? WHERE hash = ?").BindBytes(1, b).BindBytes(2, r.h[:]).Exec()
		}
		first := st.Int64(0)
		if err := st.Done(); err != nil {
			return err
		}
		for i, n := range r.lens {
			n = min(n, len(b))
			if n == 0 {
				if err := c.Prep("DELETE FROM block WHERE id = ?").BindInt64(1, first+int64(i)).Exec(); err != nil {
					return err
				}
				continue
			}
			if err := c.Prep("INSERT OR REPLACE INTO block (id, body) VALUES (?, ?)").BindInt64(1, first+int64(i)).BindBytes(2, b[:n]).Exec(); err != nil {
				return err
			}
			b = b[n:]
		}
		return nil
	})
}

func (r *storedRows) writeParity(t *testing.T, b []byte) {
	t.Helper()
	r.exec(t, func(c *sqldb.Conn) error {
		for n := int64(0); ; n++ {
			piece := b[:min(len(b), blobstore.BlockSize)]
			b = b[len(piece):]
			query := "UPDATE parity SET body = ? WHERE hash = ? AND n = ?"
			if len(piece) == 0 {
				return c.Prep("DELETE FROM parity WHERE hash = ? AND n >= ? AND n > 0").BindBytes(1, r.h[:]).BindInt64(2, n).Exec()
			}
			if err := c.Prep(query).BindBytes(1, piece).BindBytes(2, r.h[:]).BindInt64(3, n).Exec(); err != nil {
				return err
			}
		}
	})
}

// openStored opens what the blob is stored as. The store is closed.
func openStored(t *testing.T, dir, mode string, h blobstore.Hash) stored {
	if mode == blobstore.ModeDatabase {
		return rowsOf(t, dir, h)
	}
	return filesOf(t, dir, h)
}

// harm is a way to damage up to a share of sectors of a content, or of the sectors of its parity.
type harm struct {
	name  string
	apply func(r *rand.Rand, b []byte, share float64) []byte
}

// spoil changes some or all bytes of a range, each piece of 512 at least in one.
func spoil(r *rand.Rand, b []byte) {
	for len(b) > 0 {
		piece := b[:min(512, len(b))]
		b = b[len(piece):]
		switch r.IntN(3) {
		case 0:
			piece[r.IntN(len(piece))] ^= 1 << r.IntN(8)
		case 1:
			for i := range piece {
				piece[i] ^= byte(1 + r.IntN(255))
			}
		default:
			if bytes.Count(piece, []byte{0}) == len(piece) {
				piece[0] = 1
			} else {
				clear(piece)
			}
		}
	}
}

func harms() []harm {
	run := func(at func(r *rand.Rand, n, size int) int) func(*rand.Rand, []byte, float64) []byte {
		return func(r *rand.Rand, b []byte, share float64) []byte {
			n := int(float64(len(b)) * share)
			spoil(r, b[at(r, n, len(b)):][:n])
			return b
		}
	}
	scattered := func(unit int) func(*rand.Rand, []byte, float64) []byte {
		return func(r *rand.Rand, b []byte, share float64) []byte {
			units := (len(b) + unit - 1) / unit
			for _, u := range r.Perm(units)[:int(float64(units)*share)] {
				spoil(r, b[u*unit:min(len(b), (u+1)*unit)])
			}
			return b
		}
	}
	return []harm{
		{"one piece", run(func(r *rand.Rand, n, size int) int { return r.IntN(size - n + 1) })},
		{"the beginning", run(func(*rand.Rand, int, int) int { return 0 })},
		{"the end", run(func(_ *rand.Rand, n, size int) int { return size - n })},
		{"both ends", func(r *rand.Rand, b []byte, share float64) []byte {
			n := int(float64(len(b)) * share / 2)
			spoil(r, b[:n])
			spoil(r, b[len(b)-n:])
			return b
		}},
		{"cut off", func(_ *rand.Rand, b []byte, share float64) []byte { return b[:len(b)-int(float64(len(b))*share)] }},
		{"cut off to a block", func(_ *rand.Rand, b []byte, share float64) []byte {
			n := (len(b) - int(float64(len(b))*share) + blobstore.BlockSize - 1) / blobstore.BlockSize * blobstore.BlockSize
			return b[:min(n, len(b))]
		}},
		{"pages", scattered(4096)},
		{"sectors", scattered(1024)},
	}
}

// sizes of blobs; the largest ones have several stripes.
func paritySizes(r *rand.Rand) []int {
	sizes := []int{blobstore.MaxSmall + 1, blobstore.BlockSize, blobstore.BlockSize + 1, 300_000 + r.IntN(200_000), 1<<20 + r.IntN(1<<20)}
	return append(sizes, 17<<20)
}

// Any tenth of the sectors of a blob heals, whatever the size, the encoding and the storage; with it so many of its parity's as are not needed.
func TestAnyTenthHeals(t *testing.T) {
	for _, mode := range modes() {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(blobstoretest.Seed(t), 1))
			for _, size := range paritySizes(r) {
				for _, compressible := range []bool{false, true} {
					if size > 1<<20 && (mode == blobstore.ModeHybrid || mode == blobstore.ModeDatabase && compressible) {
						continue // as in file mode; as smaller ones
					}
					ways := harms()
					if raceBuild {
						r.Shuffle(len(ways), func(i, j int) { ways[i], ways[j] = ways[j], ways[i] })
						ways = ways[:3]
					}
					if size > 10<<20 { // all of them would take long
						r.Shuffle(len(ways), func(i, j int) { ways[i], ways[j] = ways[j], ways[i] })
						ways = ways[:1]
					}
					healAll(t, r, mode, size, compressible, ways)
				}
			}
		})
	}
}

func healAll(t *testing.T, r *rand.Rand, mode string, size int, compressible bool, ways []harm) {
	t.Helper()
	dir := blobstoretest.TempDir(t)
	s := openDir(t, dir, mode)
	data := blobstoretest.Data(r.Uint64(), size, compressible)
	ref := blobstoretest.Put(t, s, data)
	if mode != blobstore.ModeDatabase {
		blobstore.WaitCompressed(s)
	}
	if made, err := s.Protect(t.Context(), ref); err != nil || !made {
		t.Fatalf("protected: %v, %v", made, err)
	}
	s.Close()
	kinds := []string{"and parity sectors", "", "and the front of the parity", "and the rear of the parity"}
	for i, way := range ways {
		withs := kinds
		if size > 1<<19 || mode != blobstore.ModeFile || raceBuild { // all of them would take long
			withs = kinds[i%len(kinds):][:1]
		}
		for _, with := range withs {
			what := fmt.Sprintf("%s, %d bytes, compressible %v: %s %s", mode, size, compressible, way.name, with)
			at := openStored(t, dir, mode, ref.Hash)
			good, par := at.read(t), at.readParity(t)
			bad := way.apply(r, bytes.Clone(good), 0.1)
			at.write(t, bad)
			if with != "" {
				at.writeParity(t, harmParity(t, r, with, par, way))
			}
			s := openDir(t, dir, mode)
			checkHeals(t, what, s, ref, data, !bytes.Equal(bad, good))
			s.Close()
			if at := openStored(t, dir, mode, ref.Hash); !bytes.Equal(at.read(t), good) || !bytes.Equal(at.readParity(t), par) {
				t.Fatalf("%s: the stored bytes, or the parity, are others than before", what)
			}
		}
	}
}

// harmParity damages what of a parity is not needed when a tenth of the content is damaged.
func harmParity(t *testing.T, r *rand.Rand, with string, par []byte, way harm) []byte {
	t.Helper()
	from, to, err := blobstore.ParitySectors(par)
	if err != nil {
		t.Fatal(err)
	}
	bad := bytes.Clone(par)
	switch with {
	case "and parity sectors":
		if to-from < 20*512 {
			break // the content takes nearly all of so few
		}
		copy(bad[from:to], append(way.apply(r, bytes.Clone(par[from:to]), 0.04), make([]byte, to-from)...))
	case "and the front of the parity":
		spoil(r, bad[:from])
	default:
		bad = bad[:to]
	}
	return bad
}

// checkHeals repairs a blob, and looks at every call before and after.
func checkHeals(t *testing.T, what string, s blobstore.Store, ref blobstore.Ref, data []byte, content bool) {
	t.Helper()
	found, err := s.Inspect(t.Context(), ref)
	damaged := slices.ContainsFunc(found, func(f blobstore.Finding) bool {
		return f.Part == blobstore.PartBlock || f.Part == blobstore.PartContent || f.Part == blobstore.PartMissing
	})
	if err != nil || damaged != content {
		t.Fatalf("%s: found %+v, %v", what, found, err)
	}
	if err := s.Verify(t.Context(), ref); content != errors.Is(err, blobstore.ErrDamaged) {
		t.Fatalf("%s: verify: %v", what, err)
	}
	done, err := s.Repair(t.Context(), ref)
	if err != nil || done.Content != content || content && done.Bytes == 0 {
		t.Fatalf("%s: repaired %+v, %v", what, done, err)
	}
	if found, err := s.Inspect(t.Context(), ref); err != nil || len(found) > 0 {
		t.Fatalf("%s: after the repair: %+v, %v", what, found, err)
	}
	if _, ok, err := s.Parity(t.Context(), ref.Hash); err != nil || !ok {
		t.Fatalf("%s: after the repair there is no parity: %v", what, err)
	}
	blobstoretest.Check(t, s, ref, data)
	if done, err := s.Repair(t.Context(), ref); err != nil || done.Any() {
		t.Fatalf("%s: repaired twice: %+v, %v", what, done, err)
	}
}

// Blobs of several stripes: 64 MiB, or under the race detector less.
func TestAnyTenthOfManyStripesHeals(t *testing.T) {
	r := rand.New(rand.NewPCG(blobstoretest.Seed(t), 2))
	size := 64 << 20
	if raceBuild {
		size = 34 << 20
	}
	healAll(t, r, blobstore.ModeFile, size, false, []harm{harms()[[]int{0, 4, 6}[r.IntN(3)]]})
}

// Damage beyond what the parity can heal is reported, and nothing is changed.
func TestBeyondParity(t *testing.T) {
	for _, mode := range []string{blobstore.ModeFile, blobstore.ModeDatabase} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(blobstoretest.Seed(t), 3))
			for _, size := range []int{100_000, 900_000} {
				dir := blobstoretest.TempDir(t)
				s := openDir(t, dir, mode)
				ref := blobstoretest.Put(t, s, blobstoretest.Data(r.Uint64(), size, false))
				if _, err := s.Protect(t.Context(), ref); err != nil {
					t.Fatal(err)
				}
				s.Close()
				at := openStored(t, dir, mode, ref.Hash)
				good, goodParity := at.read(t), at.readParity(t)
				for _, way := range harms() {
					for i, share := range [][2]float64{{0.3, 0}, {0.11, 0.9}, {1, 1}} {
						at.write(t, way.apply(r, bytes.Clone(good), share[0]))
						at.writeParity(t, way.apply(r, bytes.Clone(goodParity), share[1]))
						content, par := at.read(t), at.readParity(t)
						if bytes.Equal(content, good) {
							continue
						}
						s := openDir(t, dir, mode)
						if done, err := s.Repair(t.Context(), ref); !errors.Is(err, blobstore.ErrDamaged) || done.Any() {
							t.Fatalf("%d bytes, %s, %d: %+v, %v", size, way.name, i, done, err)
						}
						if err := s.Verify(t.Context(), ref); !errors.Is(err, blobstore.ErrDamaged) {
							t.Fatal(err)
						}
						s.Close()
						if !bytes.Equal(at.read(t), content) || !bytes.Equal(at.readParity(t), par) {
							t.Fatalf("%d bytes, %s, %d: a repair that failed changed something", size, way.name, i)
						}
						at.write(t, good)
						at.writeParity(t, goodParity)
					}
				}
			}
		})
	}
}

// What lies where the parity or the content should be, anything at all, is never a crash, never wrong bytes, and heals when a writer comes.
func TestDamagedParityFiles(t *testing.T) {
	dir := blobstoretest.TempDir(t)
	s := openDir(t, dir, blobstore.ModeFile)
	data := blobstoretest.Data(1, 200_000, false)
	ref := blobstoretest.Put(t, s, data)
	other := blobstoretest.Put(t, s, blobstoretest.Data(2, 200_000, false))
	for _, r := range []blobstore.Ref{ref, other} {
		if _, err := s.Protect(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	at := filesOf(t, dir, ref.Hash)
	for name, damage := range damages(t, get(t, filesOf(t, dir, other.Hash).par)) {
		good := at.readParity(t)
		if err := damage(at.par, good); err != nil {
			t.Fatal(err)
		}
		s := openDir(t, dir, blobstore.ModeFile)
		found, err := s.Inspect(t.Context(), ref)
		if err != nil || (name != "gone") != (len(found) > 0) || len(found) > 0 && found[0].Part != blobstore.PartParity {
			t.Errorf("%s: %+v, %v", name, found, err)
		}
		blobstoretest.Check(t, s, ref, data)
		done, err := s.Repair(t.Context(), ref)
		if err != nil || done.Parity != (name != "gone") {
			t.Errorf("%s: %+v, %v", name, done, err)
		}
		if _, err := s.Protect(t.Context(), ref); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if found, err := s.Inspect(t.Context(), ref); err != nil || len(found) > 0 {
			t.Errorf("%s: after protection: %+v, %v", name, found, err)
		}
		s.Close()
		if !bytes.Equal(at.readParity(t), good) {
			t.Errorf("%s: the parity made anew is another one", name)
		}
	}
}

// A content file that is no longer there, or something else, or one of its halves: what the parity cannot do is left alone.
func TestRepairOfEveryDamage(t *testing.T) {
	for _, compressible := range []bool{false, true} {
		dir := blobstoretest.TempDir(t)
		s := openDir(t, dir, blobstore.ModeHybrid)
		data := blobstoretest.Data(1, 400_000, compressible)
		ref := blobstoretest.Put(t, s, data)
		if _, err := s.Protect(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
		s.Close()
		at := filesOf(t, dir, ref.Hash)
		sidecar := strings.TrimSuffix(at.content, ".zst") + ".json"
		for name, damage := range damages(t, []byte("other")) {
			for _, p := range []string{at.content, sidecar} {
				good := get(t, p)
				if err := damage(p, good); err != nil {
					t.Fatal(err)
				}
				s := openDir(t, dir, blobstore.ModeHybrid)
				found, err := s.Inspect(t.Context(), ref)
				tolerated := p == sidecar && name == "short" // its newline
				if err != nil || tolerated != (len(found) == 0) {
					t.Errorf("%s of %s: %+v, %v", name, filepath.Ext(p), found, err)
				}
				done, err := s.Repair(t.Context(), ref)
				heals := p == sidecar || strings.HasPrefix(name, "flip") || name == "short" || name == "long"
				if heals != (err == nil) || !heals && !errors.Is(err, blobstore.ErrDamaged) && !errors.Is(err, blobstore.ErrNotFound) {
					t.Errorf("%s of %s: %+v, %v", name, filepath.Ext(p), done, err)
				}
				if heals {
					blobstoretest.Check(t, s, ref, data)
				}
				s.Close()
				if err := errors.Join(os.RemoveAll(p), os.WriteFile(p, good, 0o600)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// When a blob is compressed after it was protected, its parity is made anew; when it is replaced or deleted, the parity goes.
func TestParityFollowsContent(t *testing.T) {
	dir := blobstoretest.TempDir(t)
	s := openDir(t, dir, blobstore.ModeFile)
	defer s.Close()
	data := blobstoretest.Data(1, 3<<20, true)
	ref := blobstoretest.Sum(data).Ref
	put(t, filepath.Join(dir, "blobs", ref.Hash.String()[:2], ref.Hash.String()), data) // raw, as a large one is at first
	if _, err := s.Sidecar(t.Context(), ref.Hash); err != nil {
		t.Fatal(err)
	}
	if made, err := s.Protect(t.Context(), ref); err != nil || !made {
		t.Fatal(made, err)
	}
	at := filesOf(t, dir, ref.Hash)
	raw := at.readParity(t)
	if err := blobstore.CompressNow(s, ref.Hash); err != nil {
		t.Fatal(err)
	}
	at = filesOf(t, dir, ref.Hash)
	if !strings.HasSuffix(at.content, ".zst") {
		t.Fatal("it was not compressed")
	}
	if par := at.readParity(t); len(par) >= len(raw) {
		t.Errorf("the parity has %d bytes, as for the raw content: %d", len(par), len(raw))
	}
	if found, err := s.Inspect(t.Context(), ref); err != nil || len(found) > 0 {
		t.Fatalf("%+v, %v", found, err)
	}
	// A parity of the raw content, which a crash can leave behind, is of no use and is told as such.
	at.writeParity(t, raw)
	if found, err := s.Inspect(t.Context(), ref); err != nil || len(found) != 1 || found[0].Part != blobstore.PartParity {
		t.Fatalf("%+v, %v", found, err)
	}
	if _, ok, err := s.Parity(t.Context(), ref.Hash); err != nil || ok {
		t.Fatalf("%v, %v", ok, err)
	}
	if made, err := s.Protect(t.Context(), ref); err != nil || !made {
		t.Fatal(made, err)
	}
	if err := s.Delete(t.Context(), ref.Hash); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(at.par); !os.IsNotExist(err) {
		t.Errorf("the parity outlives its blob: %v", err)
	}
}

// A writer with the same content heals content, sidecar or row, and keeps the parity or drops it: it is never that of other bytes.
func TestWriterHealsProtected(t *testing.T) {
	for _, mode := range modes() {
		for _, size := range []int{70_000, 400_000} {
			for _, compressible := range []bool{false, true} {
				dir := blobstoretest.TempDir(t)
				s := openDir(t, dir, mode)
				data := blobstoretest.Data(3, size, compressible)
				ref := blobstoretest.Put(t, s, data)
				if _, err := s.Protect(t.Context(), ref); err != nil {
					t.Fatal(err)
				}
				s.Close()
				at := openStored(t, dir, mode, ref.Hash)
				at.write(t, bytes.Repeat([]byte("rot"), len(at.read(t))/3+1)[:len(at.read(t))])
				s = openDir(t, dir, mode)
				blobstoretest.Put(t, s, data)
				blobstoretest.Check(t, s, ref, data)
				if found, err := s.Inspect(t.Context(), ref); err != nil || len(found) > 0 {
					t.Errorf("%s, %d: %+v, %v", mode, size, found, err)
				}
				s.Close()
			}
		}
	}
}

// Raw gives the stored bytes also where they are damaged.
func TestRawIsNotVerified(t *testing.T) {
	for _, mode := range modes() {
		dir := blobstoretest.TempDir(t)
		s := openDir(t, dir, mode)
		ref := blobstoretest.Put(t, s, blobstoretest.Data(4, 300_000, true))
		s.Close()
		at := openStored(t, dir, mode, ref.Hash)
		bad := at.read(t)
		spoil(rand.New(rand.NewPCG(1, 1)), bad[:1000])
		at.write(t, bad)
		s = openDir(t, dir, mode)
		r, n, err := s.Raw(t.Context(), ref.Hash)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err := errors.Join(err, r.Close()); err != nil || n != int64(len(bad)) || !bytes.Equal(got, bad) {
			t.Errorf("%s: %d of %d bytes, %v", mode, len(got), len(bad), err)
		}
		s.Close()
	}
}
