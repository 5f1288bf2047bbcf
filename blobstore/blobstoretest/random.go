package blobstoretest

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"holdfast/blobstore"
)

// SeedVariable repeats a random test: its value is the seed that the failed run printed.
const SeedVariable = "HOLDFAST_TEST_SEED"

// Seed is the seed of a random test. It is logged.
func Seed(t testing.TB) uint64 {
	seed := rand.Uint64()
	if v := os.Getenv(SeedVariable); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("repeat with %s=%d", SeedVariable, seed)
	return seed
}

// random does random operations on the store and on a map, and compares.
func (su *suite) random(t *testing.T, s blobstore.Store) {
	r := rand.New(rand.NewPCG(Seed(t), 0))
	model := make(map[blobstore.Ref][]byte)
	var known []blobstore.Ref
	pick := func() (blobstore.Ref, []byte) {
		ref := known[r.IntN(len(known))]
		return ref, model[ref]
	}
	known = append(known, Sum(nil).Ref)
	data := func(max int) []byte { return Data(r.Uint64N(40), r.IntN(max+1), r.IntN(2) == 0) }
	buf := make([]byte, 1<<20)
	for op := range su.ops {
		switch k := r.IntN(100); {
		case k < 25:
			var items []blobstore.Item
			for range 1 + r.IntN(6) {
				it := ItemOf(data([]int{50, 2000, blobstore.MaxSmall}[r.IntN(3)]))
				items, known = append(items, it), append(known, it.Ref)
				model[it.Ref] = it.Data
			}
			if err := s.PutBatch(t.Context(), items); err != nil {
				t.Fatalf("operation %d: %v", op, err)
			}
		case k < 40:
			d := data([]int{100, 200_000, 600_000}[r.IntN(3)])
			ref := Adopt(t, s, d, r.IntN(8) == 0)
			known, model[ref] = append(known, ref), d
		case k < 75:
			ref, want := pick()
			off := r.Int64N(ref.Size + 2)
			n, err := s.ReadAt(t.Context(), ref, buf[:1+r.IntN(len(buf)-1)], off)
			if want == nil && errors.Is(err, blobstore.ErrNotFound) || off >= ref.Size && n == 0 {
				break
			}
			if err != nil || !bytes.HasPrefix(want[off:], buf[:n]) {
				t.Fatalf("operation %d: blob of %d bytes from %d: %d bytes, %v", op, ref.Size, off, n, err)
			}
		case k < 87:
			ref, _ := pick()
			if err := s.Delete(t.Context(), ref.Hash); err != nil {
				t.Fatalf("operation %d: %v", op, err)
			}
			delete(model, ref)
		case k < 94:
			ref, want := pick()
			if err := s.Verify(t.Context(), ref); (err == nil) != (want != nil) || err != nil && !errors.Is(err, blobstore.ErrNotFound) {
				t.Fatalf("operation %d: blob of %d bytes, stored: %v, verifies: %v", op, ref.Size, want != nil, err)
			}
		case k < 97 || su.reopen == nil:
			if err := s.Sync(t.Context()); err != nil {
				t.Fatalf("operation %d: %v", op, err)
			}
			su.compare(t, s, model)
		default:
			if err := s.Close(); err != nil {
				t.Fatalf("operation %d: %v", op, err)
			}
			s = su.reopen(t, s)
			t.Cleanup(func() { s.Close() })
		}
	}
	su.compare(t, s, model)
	for ref, want := range model {
		Check(t, s, ref, want)
	}
}

func (*suite) compare(t *testing.T, s blobstore.Store, model map[blobstore.Ref][]byte) {
	t.Helper()
	var want blobstore.Stats
	names := make(map[blobstore.Hash]bool)
	for ref, data := range model {
		want.Blobs++
		want.PlainBytes += int64(len(data))
		names[ref.Hash] = true
	}
	st, err := s.Stats(t.Context())
	if err != nil || st.Blobs != want.Blobs || st.PlainBytes != want.PlainBytes || st.StoredBytes > want.PlainBytes {
		t.Fatalf("stats are %+v, %v, and should be %+v", st, err, want)
	}
	if err := s.List(t.Context(), blobstore.Hash{}, func(h blobstore.Hash) error {
		if !names[h] {
			t.Errorf("listed and not stored: %s", h)
		}
		delete(names, h)
		return nil
	}); err != nil || len(names) > 0 {
		t.Fatalf("%d blobs are not listed; %v", len(names), err)
	}
}
