package blobstoretest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"holdfast/blobstore"
)

// deleteBatch deletes batches of blobs of every size, names that are not there and names twice among them.
func (su *suite) deleteBatch(t *testing.T, s blobstore.Store) {
	type blob struct {
		ref  blobstore.Ref
		data []byte
	}
	var keep, gone []blob
	for i := range 120 {
		size := []int{0, 1, 700, 5000, 60_000, 100_000, 300_000}[i%7]
		if i >= 42 {
			size = 10 + i
		}
		b := blob{data: Data(uint64(1000+i), size, i%2 == 0)}
		b.ref = Put(t, s, b.data)
		if size > blobstore.MaxSmall && i%3 == 0 {
			if _, err := s.Protect(t.Context(), b.ref); err != nil {
				t.Fatal(err)
			}
		}
		if i%5 == 0 && size > 0 {
			keep = append(keep, b)
		} else {
			gone = append(gone, b)
		}
	}
	var names []blobstore.Hash
	for _, b := range gone {
		names = append(names, b.ref.Hash, b.ref.Hash, blobstore.Hash{byte(len(names)), 1})
	}
	given := slices.Clone(names)
	for part := range slices.Chunk(names, 100) {
		if err := s.DeleteBatch(t.Context(), part); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(given, names) {
		t.Error("the caller's list was changed")
	}
	check := func() {
		t.Helper()
		for _, b := range keep {
			Check(t, s, b.ref, b.data)
		}
		for _, b := range gone {
			if _, err := s.ReadAt(t.Context(), b.ref, make([]byte, 1), 0); !errors.Is(err, blobstore.ErrNotFound) {
				t.Errorf("a deleted blob of %d bytes: %v", len(b.data), err)
			}
			if _, _, err := s.Parity(t.Context(), b.ref.Hash); !errors.Is(err, blobstore.ErrNotFound) {
				t.Errorf("the parity of a deleted blob of %d bytes: %v", len(b.data), err)
			}
		}
		left := make(map[blobstore.Hash]bool)
		if err := s.List(t.Context(), blobstore.Hash{}, func(h blobstore.Hash) error { left[h] = true; return nil }); err != nil {
			t.Fatal(err)
		}
		if st, err := s.Stats(t.Context()); err != nil || len(left) != len(distinct(keep, func(b blob) blobstore.Hash { return b.ref.Hash })) || st.Blobs != int64(len(left)) {
			t.Errorf("%d are listed, %d should be; %+v, %v", len(left), len(keep), st, err)
		}
	}
	check()
	if err := errors.Join(s.DeleteBatch(t.Context(), names[:300]), s.DeleteBatch(t.Context(), nil)); err != nil { // they are gone
		t.Error(err)
	}
	if err := s.DeleteBatch(t.Context(), make([]blobstore.Hash, blobstore.MaxDelete+1)); !errors.Is(err, blobstore.ErrInvalid) {
		t.Errorf("too many: %v", err)
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.DeleteBatch(canceled, []blobstore.Hash{keep[0].ref.Hash}); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
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
	for _, b := range gone[:20] { // nothing of them is in the way
		Check(t, s, Put(t, s, b.data), b.data)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteBatch(t.Context(), names[:1]); !errors.Is(err, blobstore.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

func distinct[T any](list []T, name func(T) blobstore.Hash) map[blobstore.Hash]bool {
	m := make(map[blobstore.Hash]bool)
	for _, x := range list {
		m[name(x)] = true
	}
	return m
}

// deleteBeside deletes batches while others store, read and delete the same blobs, and blobs that are not in the batch: a read gives the content or says that there is none, and what is not in a
// batch stays.
func (*suite) deleteBeside(t *testing.T, s blobstore.Store) {
	var stay, move [][]byte
	var names []blobstore.Hash
	for i := range 16 {
		size := []int{50, 5000, 90_000, 200_000}[i%4]
		stay = append(stay, Data(uint64(300+i), size, i%2 == 0))
		move = append(move, Data(uint64(400+i), size, i%2 == 0))
		names = append(names, Sum(move[i]).Ref.Hash)
		Put(t, s, stay[i])
	}
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 24 {
				d := move[(i*3+g)%len(move)]
				var err error
				switch (i + g) % 4 {
				case 0:
					err = s.DeleteBatch(context.Background(), names)
				case 1, 2:
					Put(t, s, d)
				default:
					var got []byte
					if got, err = ReadAll(s, Sum(d).Ref, 1<<20); err == nil && string(got) != string(d) {
						err = errors.New("wrong bytes")
					}
					if errors.Is(err, blobstore.ErrNotFound) || errors.Is(err, blobstore.ErrDamaged) { // deleted before, or meanwhile
						err = nil
					}
				}
				if err != nil {
					t.Errorf("caller %d, step %d: %v", g, i, err)
					return
				}
			}
		})
	}
	wg.Wait()
	for i, d := range stay {
		Check(t, s, Sum(d).Ref, d)
		Check(t, s, Put(t, s, move[i]), move[i])
	}
	if err := s.DeleteBatch(t.Context(), names); err != nil {
		t.Fatal(err)
	}
	if st, err := s.Stats(t.Context()); err != nil || st.Blobs != int64(len(stay)) {
		t.Error(fmt.Sprintf("%+v", st), err)
	}
}
