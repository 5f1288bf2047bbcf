package blobstoretest

import (
	"errors"
	"os"
	"testing"

	"holdfast/blobstore"
)

// RunFaults makes each call of a fixed scenario fail once, in each way, and checks that nothing stored earlier is lost and that
// repeating the call succeeds. open returns an empty store; RunFaults closes it.
func RunFaults(t *testing.T, open func(t *testing.T) blobstore.Store) {
	under := open(t)
	t.Cleanup(func() { under.Close() })
	counter := FailNth(under, 0, None)
	scenario(t, counter)
	clean(t, under)
	if counter.Calls() < 10 {
		t.Fatalf("the scenario makes only %d calls", counter.Calls())
	}
	for how, name := range map[Fault]string{Before: "before", After: "after", Partial: "partial"} {
		t.Run(name, func(t *testing.T) {
			for nth := 1; nth <= counter.Calls(); nth++ {
				scenario(t, FailNth(under, nth, how))
				clean(t, under)
				if t.Failed() {
					t.Fatalf("call %d failed %s", nth, name)
				}
			}
		})
	}
}

// clean empties a store.
func clean(t *testing.T, s blobstore.Store) {
	t.Helper()
	if err := s.List(t.Context(), blobstore.Hash{}, func(h blobstore.Hash) error { return s.Delete(t.Context(), h) }); err != nil {
		t.Fatal(err)
	}
}

// scenario stores blobs and repeats what fails with an injected fault, as a careful caller does.
func scenario(t *testing.T, s blobstore.Store) {
	t.Helper()
	stored := make(map[blobstore.Ref][]byte)
	again := func(do func() error) {
		t.Helper()
		err := do()
		if errors.Is(err, ErrInjected) {
			for ref, data := range stored {
				Check(t, s, ref, data)
			}
			err = do()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var items []blobstore.Item
	for i := range 6 { // batches are cut in half
		items = append(items, ItemOf(Data(uint64(i), 300*i, true)))
	}
	again(func() error { return s.PutBatch(t.Context(), items) })
	for _, it := range items {
		stored[it.Ref] = it.Data
	}
	for i, size := range []int{30_000, 100_000, 300_000} {
		data := Data(uint64(10+i), size, i%2 == 0)
		sum, path := Sum(data), Stage(t, data)
		again(func() error {
			if _, err := os.Lstat(path); err != nil && s.Verify(t.Context(), sum.Ref) == nil {
				return nil // it was adopted although an error was returned
			}
			return s.Adopt(t.Context(), sum, SomeMeta(), path, i%2 == 0)
		})
		stored[sum.Ref] = data
	}
	again(func() error { return s.Sync(t.Context()) })
	for ref, data := range stored {
		again(func() error {
			got, err := ReadAll(s, ref, 70_000)
			if err == nil && string(got) != string(data) {
				err = errors.New("wrong bytes")
			}
			return err
		})
	}
	for i := range 4 {
		delete(stored, items[i].Ref)
	}
	again(func() error { return s.Delete(t.Context(), items[0].Ref.Hash) })
	again(func() error {
		return s.DeleteBatch(t.Context(), []blobstore.Hash{items[1].Ref.Hash, items[2].Ref.Hash, items[0].Ref.Hash, items[3].Ref.Hash})
	})
	again(func() error {
		n := 0
		err := s.List(t.Context(), blobstore.Hash{}, func(blobstore.Hash) error { n++; return nil })
		if err == nil && n != len(stored) {
			err = errors.New("not all blobs are listed")
		}
		return err
	})
	again(func() error {
		st, err := s.Stats(t.Context())
		if err == nil && st.Blobs != int64(len(stored)) {
			err = errors.New("not all blobs are counted")
		}
		return err
	})
	for _, it := range items[4:] {
		ref := it.Ref
		again(func() error { return s.Verify(t.Context(), ref) })
		again(func() error { _, err := s.Sidecar(t.Context(), ref.Hash); return err })
	}
}
