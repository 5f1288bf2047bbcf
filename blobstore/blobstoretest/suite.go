package blobstoretest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"holdfast/blobstore"
)

// Hook tells Run more about the store under test.
type Hook func(*suite)

// Reopen lets Run close the store and open it again: fn is given the closed store's successor to return.
func Reopen(fn func(t *testing.T, closed blobstore.Store) blobstore.Store) Hook {
	return func(s *suite) { s.reopen = fn }
}

// Ops sets the number of random operations; default 300.
func Ops(n int) Hook { return func(s *suite) { s.ops = n } }

type suite struct {
	open   func(t *testing.T) blobstore.Store
	reopen func(t *testing.T, closed blobstore.Store) blobstore.Store
	ops    int
}

// Run checks that a store keeps the contract. open returns an empty store; Run closes it.
func Run(t *testing.T, open func(t *testing.T) blobstore.Store, hooks ...Hook) {
	s := &suite{open: open, ops: 300}
	for _, h := range hooks {
		h(s)
	}
	for _, c := range []struct {
		name string
		run  func(*testing.T, blobstore.Store)
	}{
		{"Empty", s.empty}, {"Small", s.small}, {"Large", s.large}, {"Sidecar", s.sidecar}, {"Again", s.again}, {"Invalid", s.invalid},
		{"WrongRef", s.wrongRef}, {"Delete", s.delete}, {"DeleteBatch", s.deleteBatch}, {"DeleteBeside", s.deleteBeside}, {"List", s.list}, {"Concurrent", s.concurrent}, {"Canceled", s.canceled},
		{"Closed", s.closed}, {"Random", s.random}, {"Guarded", s.guarded}, {"GuardedBeside", s.guardedBeside},
	} {
		t.Run(c.name, func(t *testing.T) {
			st := s.open(t)
			t.Cleanup(func() { st.Close() })
			c.run(t, st)
		})
	}
}

func (*suite) empty(t *testing.T, s blobstore.Store) {
	ctx := t.Context()
	for _, size := range []int{0, 1, 100_000, 1 << 20} {
		ref := Sum(Data(1, size, false)).Ref
		if _, err := s.ReadAt(ctx, ref, make([]byte, 10), 0); !errors.Is(err, blobstore.ErrNotFound) {
			t.Errorf("ReadAt of %d bytes: %v", size, err)
		}
		if err := s.Verify(ctx, ref); !errors.Is(err, blobstore.ErrNotFound) {
			t.Errorf("Verify: %v", err)
		}
		if _, err := s.Sidecar(ctx, ref.Hash); !errors.Is(err, blobstore.ErrNotFound) {
			t.Errorf("Sidecar: %v", err)
		}
		if err := s.Delete(ctx, ref.Hash); err != nil {
			t.Errorf("Delete: %v", err)
		}
	}
	if st, err := s.Stats(ctx); err != nil || st != (blobstore.Stats{}) {
		t.Errorf("Stats: %+v, %v", st, err)
	}
	if err := s.List(ctx, blobstore.Hash{}, func(h blobstore.Hash) error { return fmt.Errorf("listed %s", h) }); err != nil {
		t.Error(err)
	}
	if err := errors.Join(s.PutBatch(ctx, nil), s.Sync(ctx)); err != nil {
		t.Error(err)
	}
}

func (*suite) small(t *testing.T, s blobstore.Store) {
	var items []blobstore.Item
	for i, size := range []int{0, 1, 511, 512, 513, 1023, 4096, 4097, 20_000, blobstore.MaxSmall - 1, blobstore.MaxSmall} {
		items = append(items, ItemOf(Data(uint64(i), size, false)), ItemOf(Data(uint64(i), size, true)))
	}
	items = append(items, items[3]) // twice in one batch
	if err := s.PutBatch(t.Context(), items); err != nil {
		t.Fatal(err)
	}
	for _, it := range items {
		Check(t, s, it.Ref, it.Data)
		readPieces(t, s, it.Ref, it.Data)
	}
}

// readPieces reads ranges that begin and end everywhere around the blocks' edges, and past the end.
func readPieces(t *testing.T, s blobstore.Store, ref blobstore.Ref, data []byte) {
	t.Helper()
	edges := []int{0, 1, len(data) / 2, len(data) - 1, len(data), blobstore.BlockSize - 1, blobstore.BlockSize, blobstore.BlockSize + 1, 2 * blobstore.BlockSize, 7*blobstore.BlockSize + 5}
	for _, off := range edges {
		for _, n := range []int{1, 4096, blobstore.BlockSize, blobstore.BlockSize + 1, 5*blobstore.BlockSize + 1, len(data)} {
			if off < 0 || off > len(data)+1 || n == 0 {
				continue
			}
			p := make([]byte, n)
			want := data[min(off, len(data)):min(off+n, len(data))]
			got, err := s.ReadAt(context.Background(), ref, p, int64(off))
			if err != nil || !bytes.Equal(p[:got], want) {
				t.Fatalf("%d bytes at %d of %d: got %d, want %d, equal %v, error %v", n, off, len(data), got, len(want), bytes.Equal(p[:got], want), err)
			}
		}
	}
	if _, err := s.ReadAt(context.Background(), ref, make([]byte, 1), -1); !errors.Is(err, blobstore.ErrInvalid) {
		t.Fatalf("negative offset: %v", err)
	}
}

func (su *suite) large(t *testing.T, s blobstore.Store) {
	type blob struct {
		ref  blobstore.Ref
		data []byte
	}
	var all []blob
	for i, size := range []int{0, 1, 1000, blobstore.MaxSmall, blobstore.MaxSmall + 1, blobstore.BlockSize - 1, blobstore.BlockSize, blobstore.BlockSize + 1,
		2 * blobstore.BlockSize, 9*blobstore.BlockSize + 17} {
		for _, compressible := range []bool{false, true} {
			data := Data(uint64(100+i), size, compressible)
			all = append(all, blob{Adopt(t, s, data, i%2 == 0), data})
		}
	}
	mixed := append(Data(1, 3*blobstore.BlockSize, true), Data(2, 2*blobstore.BlockSize, false)...)
	mixed = append(mixed, Data(3, 2*blobstore.BlockSize+1, true)...)
	all = append(all, blob{Adopt(t, s, mixed, true), mixed})
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	check := func() {
		for _, b := range all {
			readPieces(t, s, b.ref, b.data)
			Check(t, s, b.ref, b.data)
			b.ref.Root = blobstore.Root{} // unknown
			Check(t, s, b.ref, b.data)
		}
	}
	check()
	if su.reopen != nil {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = su.reopen(t, s)
		defer s.Close()
		check()
	}
}

func (*suite) sidecar(t *testing.T, s blobstore.Store) {
	for _, data := range [][]byte{{}, Data(1, 700, true), Data(2, 60_000, true), Data(3, 100_000, false), Data(4, 400_000, true), Data(5, 400_000, false)} {
		ref := Put(t, s, data)
		sc, err := s.Sidecar(t.Context(), ref.Hash)
		if err != nil {
			t.Fatal(err)
		}
		m := SomeMeta()
		if sc.DataID != ref.Hash.String() || sc.Checksum != "sha256:"+sc.DataID || sc.Size != ref.Size || !sc.Timestamp.Equal(m.Time) ||
			sc.Version != m.Version || sc.IntegrityLevel != m.Level || sc.BackupCount != 0 || sc.LastBackup != nil {
			t.Errorf("%+v", sc)
		}
		if !bytes.Equal(sc.Blocks, Sum(data).Blocks) || len(sc.Blocks) > 0 != (sc.BlockSize == blobstore.BlockSize) {
			t.Errorf("%d bytes: block hashes of %d bytes, block size %d", len(data), len(sc.Blocks), sc.BlockSize)
		}
		var total int64
		for _, n := range sc.Frames {
			total += int64(n)
		}
		if sc.Encoding == "raw" && (sc.StoredSize != sc.Size || sc.Frames != nil) || sc.Encoding == "zstd" && total != sc.StoredSize {
			t.Errorf("%s: %d bytes stored, frames of %d", sc.Encoding, sc.StoredSize, total)
		}
		sum := sc.Sum
		sc.Sum = ""
		line, err := json.Marshal(sc)
		if err != nil {
			t.Fatal(err)
		}
		if d := sha256.Sum256(line); hex.EncodeToString(d[:]) != sum {
			t.Error("sum is not that of the JSON with sum empty")
		}
	}
}

func (*suite) again(t *testing.T, s blobstore.Store) {
	for _, size := range []int{0, 3000, 90_000, 300_000} {
		data := Data(uint64(size), size, true)
		ref := Put(t, s, data)
		before, err := s.Stats(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		Put(t, s, data)
		Adopt(t, s, data, true)
		if after, err := s.Stats(t.Context()); err != nil || after != before {
			t.Errorf("stored twice: %+v became %+v, %v", before, after, err)
		}
		for _, step := range [][2]string{{"critical", "critical"}, {"advanced", "critical"}} {
			m := SomeMeta()
			m.Level, m.Version = step[0], 99
			if err := s.Adopt(t.Context(), Sum(data), m, Stage(t, data), false); err != nil {
				t.Fatal(err)
			}
			sc, err := s.Sidecar(t.Context(), ref.Hash)
			if err != nil || sc.IntegrityLevel != step[1] || sc.Version != SomeMeta().Version {
				t.Errorf("level %q, version %d, %v", sc.IntegrityLevel, sc.Version, err)
			}
		}
		Check(t, s, ref, data)
	}
}

func (*suite) invalid(t *testing.T, s blobstore.Store) {
	good, bad := ItemOf(Data(1, 100, false)), ItemOf(Data(2, 100, false))
	spoil := func(change func(*blobstore.Item)) {
		t.Helper()
		it := bad
		change(&it)
		if err := s.PutBatch(t.Context(), []blobstore.Item{good, it}); !errors.Is(err, blobstore.ErrInvalid) {
			t.Errorf("PutBatch: %v", err)
		}
	}
	spoil(func(it *blobstore.Item) { it.Data = good.Data })
	spoil(func(it *blobstore.Item) { it.Ref.Size++ })
	spoil(func(it *blobstore.Item) { it.Meta.Level = "utmost" })
	spoil(func(it *blobstore.Item) { it.Meta.Version = -1 })
	spoil(func(it *blobstore.Item) { *it = ItemOf(Data(3, blobstore.MaxSmall+1, false)) })
	large := Data(4, 300_000, false)
	sum, m := Sum(large), SomeMeta()
	other := sum
	other.Blocks = bytes.Clone(sum.Blocks)
	other.Blocks[40] ^= 1
	if err := s.Adopt(t.Context(), other, m, Stage(t, large), false); !errors.Is(err, blobstore.ErrInvalid) {
		t.Errorf("block hashes that do not fit the root: %v", err)
	}
	if err := s.Adopt(t.Context(), sum, m, Stage(t, large[1:]), false); !errors.Is(err, blobstore.ErrInvalid) {
		t.Errorf("staged file too short: %v", err)
	}
	m.Level = "utmost"
	if err := s.Adopt(t.Context(), sum, m, Stage(t, large), false); !errors.Is(err, blobstore.ErrInvalid) {
		t.Errorf("level: %v", err)
	}
	if err := s.Adopt(t.Context(), sum, SomeMeta(), filepath.Join(TempDir(t), "none"), false); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no staged file: %v", err)
	}
	if st, err := s.Stats(t.Context()); err != nil || st.Blobs != 0 {
		t.Errorf("a refused call stored something: %+v, %v", st, err)
	}
}

func (*suite) wrongRef(t *testing.T, s blobstore.Store) {
	for _, size := range []int{50, 100_000, 400_000} {
		ref := Put(t, s, Data(5, size, true))
		wrong := []blobstore.Ref{ref, ref}
		wrong[0].Size++
		wrong[1].Size--
		if size > blobstore.BlockSize {
			bad := ref
			bad.Root[3] ^= 1
			wrong = append(wrong, bad)
		}
		for _, bad := range wrong {
			for range 2 {
				if _, err := s.ReadAt(t.Context(), bad, make([]byte, 10), 0); !errors.Is(err, blobstore.ErrDamaged) {
					t.Errorf("%+v instead of %+v: %v", bad, ref, err)
				}
				if err := s.Verify(t.Context(), bad); !errors.Is(err, blobstore.ErrDamaged) {
					t.Errorf("%+v instead of %+v: %v", bad, ref, err)
				}
			}
			var d *blobstore.DamageError
			if err := s.Verify(t.Context(), bad); !errors.As(err, &d) || d.Hash != ref.Hash {
				t.Errorf("damage without its blob: %v", err)
			}
		}
		Check(t, s, ref, Data(5, size, true))
	}
}

func (*suite) delete(t *testing.T, s blobstore.Store) {
	for _, size := range []int{0, 10, 60_000, 120_000, 500_000} {
		data := Data(6, size, size%20_000 == 0)
		for range 2 {
			ref := Put(t, s, data)
			Check(t, s, ref, data)
			s.ReadAt(t.Context(), ref, make([]byte, 5), 1) // now it is cached, wherever something is
			if err := s.Delete(t.Context(), ref.Hash); err != nil {
				t.Fatal(err)
			}
			for _, off := range []int64{0, ref.Size / 2} {
				if _, err := s.ReadAt(t.Context(), ref, make([]byte, 5), off); !errors.Is(err, blobstore.ErrNotFound) {
					t.Errorf("%d bytes, deleted: %v", size, err)
				}
			}
			if _, err := s.Sidecar(t.Context(), ref.Hash); !errors.Is(err, blobstore.ErrNotFound) {
				t.Errorf("sidecar of a deleted blob: %v", err)
			}
		}
	}
	if st, err := s.Stats(t.Context()); err != nil || st != (blobstore.Stats{}) {
		t.Errorf("%+v, %v", st, err)
	}
}

func (*suite) list(t *testing.T, s blobstore.Store) {
	want := make(map[blobstore.Hash]bool)
	for i := range 40 {
		want[Put(t, s, Data(uint64(i), []int{20, 70_000, 200_000}[i%3], true)).Hash] = true
	}
	var names []blobstore.Hash
	if err := s.List(t.Context(), blobstore.Hash{}, func(h blobstore.Hash) error { names = append(names, h); return nil }); err != nil {
		t.Fatal(err)
	}
	for i, h := range names {
		if !want[h] || i > 0 && bytes.Compare(names[i-1][:], h[:]) >= 0 {
			t.Fatalf("name %d, %s, is unknown or out of order", i, h)
		}
	}
	if len(names) != len(want) {
		t.Fatalf("%d names of %d", len(names), len(want))
	}
	for _, i := range []int{0, 13, len(names) - 1} {
		rest := names[i+1:]
		if err := s.List(t.Context(), names[i], func(h blobstore.Hash) error {
			if len(rest) == 0 || rest[0] != h {
				return errors.New("wrong name")
			}
			rest = rest[1:]
			return s.Delete(t.Context(), blobstore.Hash{1}) // the store is free to be used
		}); err != nil || len(rest) > 0 {
			t.Errorf("after name %d: %v, %d names left", i, err, len(rest))
		}
	}
	stop := errors.New("stop")
	if err := s.List(t.Context(), blobstore.Hash{}, func(blobstore.Hash) error { return stop }); err != stop {
		t.Errorf("got %v", err)
	}
}

// concurrent has several callers store, read and delete the same few blobs: a read gives the right bytes or ErrNotFound.
func (*suite) concurrent(t *testing.T, s blobstore.Store) {
	var data [][]byte
	for i := range 8 {
		data = append(data, Data(uint64(i), []int{0, 900, 50_000, 66_000, 140_000, 300_000, 700_000, 131_072}[i], i%3 != 0))
	}
	dir := TempDir(t)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			buf := make([]byte, 1<<20)
			for i := range 60 {
				d := data[(i*7+g*3)%len(data)]
				sum := Sum(d)
				var err error
				switch {
				case i%5 == 4:
					err = s.Delete(context.Background(), sum.Ref.Hash)
				case i%5 >= 2:
					var n int
					n, err = s.ReadAt(context.Background(), sum.Ref, buf[:len(d)+1], 0)
					if err == nil && !bytes.Equal(buf[:n], d) {
						err = fmt.Errorf("%d bytes read as %d others", len(d), n)
					}
					if errors.Is(err, blobstore.ErrNotFound) {
						err = nil
					}
				case len(d) <= blobstore.MaxSmall:
					err = s.PutBatch(context.Background(), []blobstore.Item{{Ref: sum.Ref, Meta: SomeMeta(), Data: d}})
				default:
					p := filepath.Join(dir, fmt.Sprintf("%d-%d", g, i))
					if err = os.WriteFile(p, d, 0o600); err == nil {
						err = s.Adopt(context.Background(), sum, SomeMeta(), p, i%10 == 0)
					}
				}
				if err == nil && i%20 == 19 {
					err = s.Sync(context.Background())
				}
				if err != nil {
					t.Errorf("caller %d, step %d: %v", g, i, err)
					return
				}
			}
		})
	}
	wg.Wait()
	for _, d := range data {
		Check(t, s, Put(t, s, d), d)
	}
	st, err := s.Stats(t.Context())
	if err != nil || st.Blobs != int64(len(data)) {
		t.Errorf("%+v, %v", st, err)
	}
}

func (*suite) canceled(t *testing.T, s blobstore.Store) {
	data := Data(1, 300_000, true)
	ref := Put(t, s, data)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.ReadAt(ctx, ref, make([]byte, 10), 0)
	_, err2 := s.Sidecar(ctx, ref.Hash)
	_, err3 := s.Stats(ctx)
	for i, err := range []error{err, err2, err3, s.Verify(ctx, ref), s.Delete(ctx, ref.Hash), s.Sync(ctx), s.PutBatch(ctx, []blobstore.Item{ItemOf(nil)}),
		s.Adopt(ctx, Sum(data), SomeMeta(), Stage(t, data), false), s.List(ctx, blobstore.Hash{}, func(blobstore.Hash) error { return nil })} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("call %d: %v", i, err)
		}
	}
	Check(t, s, ref, data)
}

func (*suite) closed(t *testing.T, s blobstore.Store) {
	ref := Put(t, s, Data(1, 10, false))
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	_, err := s.ReadAt(t.Context(), ref, make([]byte, 1), 0)
	for i, err := range []error{err, s.Verify(t.Context(), ref), s.Sync(t.Context()), s.PutBatch(t.Context(), []blobstore.Item{ItemOf(nil)})} {
		if !errors.Is(err, blobstore.ErrClosed) {
			t.Errorf("call %d: %v", i, err)
		}
	}
}
