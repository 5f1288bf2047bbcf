package blobstoretest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"holdfast/blobstore"
)

// guarded checks what blobstore.Guarded promises of blobs that are intact.
func (su *suite) guarded(t *testing.T, s blobstore.Store) {
	type blob struct {
		ref  blobstore.Ref
		data []byte
	}
	var all []blob
	for i, size := range []int{0, 700, blobstore.MaxSmall, blobstore.MaxSmall + 1, blobstore.BlockSize, blobstore.BlockSize + 1, 700_000} {
		for _, compressible := range []bool{false, true} {
			if size > 0 || compressible {
				data := Data(uint64(i), size, compressible)
				all = append(all, blob{Put(t, s, data), data})
			}
		}
	}
	before, err := s.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	protected := func(b blob, want bool) {
		t.Helper()
		n, ok, err := s.Parity(t.Context(), b.ref.Hash)
		if err != nil || ok != want || ok != (n > 0) {
			t.Fatalf("%d bytes: a parity of %d bytes, %v, %v", len(b.data), n, ok, err)
		}
	}
	for _, b := range all {
		large := len(b.data) > blobstore.MaxSmall
		protected(b, false)
		for i := range 2 {
			if made, err := s.Protect(t.Context(), b.ref); err != nil || made != (large && i == 0) {
				t.Fatalf("%d bytes: protected: %v, %v", len(b.data), made, err)
			}
		}
		protected(b, large)
		intact(t, s, b.ref)
		if done, err := s.Repair(t.Context(), b.ref); err != nil || done.Any() {
			t.Fatalf("repair of an intact blob: %+v, %v", done, err)
		}
		protected(b, large)
		Check(t, s, b.ref, b.data)
		checkRaw(t, s, b.ref, b.data)
	}
	if st, err := s.Stats(t.Context()); err != nil || st != before {
		t.Errorf("a parity counts: %+v became %+v, %v", before, st, err)
	}
	setSidecars(t, s, all[3].ref, all[9].ref)
	guardedErrors(t, s)
	if su.reopen != nil {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = su.reopen(t, s)
		defer s.Close()
	}
	for _, b := range all {
		protected(b, len(b.data) > blobstore.MaxSmall)
		intact(t, s, b.ref)
		if err := s.Delete(t.Context(), b.ref.Hash); err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.Parity(t.Context(), b.ref.Hash); !errors.Is(err, blobstore.ErrNotFound) {
			t.Errorf("parity of a deleted blob: %v", err)
		}
		Put(t, s, b.data)
		protected(b, false)
	}
}

func intact(t testing.TB, s blobstore.Store, ref blobstore.Ref) {
	t.Helper()
	for _, r := range []blobstore.Ref{ref, {Hash: ref.Hash, Size: ref.Size}} {
		if found, err := s.Inspect(context.Background(), r); err != nil || len(found) > 0 {
			t.Fatalf("an intact blob of %d bytes: %+v, %v", ref.Size, found, err)
		}
	}
}

// checkRaw reads the stored bytes: as many as the sidecar says, and plain where it says so.
func checkRaw(t *testing.T, s blobstore.Store, ref blobstore.Ref, data []byte) {
	t.Helper()
	r, n, err := s.Raw(t.Context(), ref.Hash)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close()); err != nil || int64(len(got)) != n {
		t.Fatalf("%d stored bytes, %d expected, %v", len(got), n, err)
	}
	sc, err := s.Sidecar(t.Context(), ref.Hash)
	if err != nil || sc.StoredSize != n || sc.Encoding == "raw" && !bytes.Equal(got, data) {
		t.Fatalf("%d stored bytes of %d; %d in the sidecar, %v", n, len(data), sc.StoredSize, err)
	}
}

func setSidecars(t *testing.T, s blobstore.Store, refs ...blobstore.Ref) {
	t.Helper()
	last := time.Date(2026, 5, 6, 7, 8, 9, 10, time.UTC)
	for _, ref := range refs {
		before, err := s.Sidecar(t.Context(), ref.Hash)
		if err != nil {
			t.Fatal(err)
		}
		for _, level := range []string{"critical", "advanced", "basic"} {
			if err := errors.Join(s.SetLevel(t.Context(), ref.Hash, level), s.SetBackup(t.Context(), ref.Hash, 3, last)); err != nil {
				t.Fatal(err)
			}
			sc, err := s.Sidecar(t.Context(), ref.Hash)
			if err != nil || sc.IntegrityLevel != level || sc.BackupCount != 3 || sc.LastBackup == nil || !sc.LastBackup.Equal(last) ||
				sc.Version != before.Version || !sc.Timestamp.Equal(before.Timestamp) || !bytes.Equal(sc.Blocks, before.Blocks) {
				t.Errorf("%+v, %v", sc, err)
			}
		}
		if err := s.SetBackup(t.Context(), ref.Hash, 0, time.Time{}); err != nil {
			t.Fatal(err)
		}
		if sc, err := s.Sidecar(t.Context(), ref.Hash); err != nil || sc.BackupCount != 0 || sc.LastBackup != nil {
			t.Errorf("%+v, %v", sc, err)
		}
		intact(t, s, ref)
	}
}

func guardedErrors(t *testing.T, s blobstore.Store) {
	t.Helper()
	for _, size := range []int{10, 90_000, 300_000} {
		ref := Sum(Data(77, size, false)).Ref
		_, e1 := s.Inspect(t.Context(), ref)
		_, e2 := s.Repair(t.Context(), ref)
		_, _, e3 := s.Parity(t.Context(), ref.Hash)
		_, _, e4 := s.Raw(t.Context(), ref.Hash)
		e5, e6 := s.SetLevel(t.Context(), ref.Hash, "critical"), s.SetBackup(t.Context(), ref.Hash, 1, time.Now())
		e7 := blobstore.ErrNotFound
		if size > blobstore.MaxSmall {
			_, e7 = s.Protect(t.Context(), ref)
		}
		for i, err := range []error{e1, e2, e3, e4, e5, e6, e7} {
			if !errors.Is(err, blobstore.ErrNotFound) {
				t.Errorf("call %d of a blob of %d bytes that is not there: %v", i, size, err)
			}
		}
	}
	ref := Put(t, s, Data(78, 300_000, true))
	bad := blobstore.Ref{Hash: ref.Hash, Size: -1}
	_, e1 := s.Inspect(t.Context(), bad)
	for i, err := range []error{e1, s.SetLevel(t.Context(), ref.Hash, "utmost"), s.SetBackup(t.Context(), ref.Hash, -1, time.Time{})} {
		if !errors.Is(err, blobstore.ErrInvalid) {
			t.Errorf("invalid call %d: %v", i, err)
		}
	}
	wrong := ref
	wrong.Root[5] ^= 1
	if found, err := s.Inspect(t.Context(), wrong); err != nil || len(found) == 0 {
		t.Errorf("a wrong root: %+v, %v", found, err)
	}
	if _, err := s.Protect(t.Context(), wrong); !errors.Is(err, blobstore.ErrDamaged) {
		t.Errorf("a wrong root: %v", err)
	}
	if _, err := s.Repair(t.Context(), wrong); !errors.Is(err, blobstore.ErrDamaged) {
		t.Errorf("a wrong root: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, e2 := s.Inspect(ctx, ref)
	_, e3 := s.Protect(ctx, ref)
	_, e4 := s.Repair(ctx, ref)
	for i, err := range []error{e2, e3, e4} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("canceled call %d: %v", i, err)
		}
	}
}

// guardedBeside has callers protect, inspect and repair blobs that others store and delete meanwhile.
func (*suite) guardedBeside(t *testing.T, s blobstore.Store) {
	var data [][]byte
	for i, size := range []int{70_000, 140_000, 500_000} {
		data = append(data, Data(uint64(200+i), size, i%2 == 0))
	}
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 24 {
				d := data[(i+g)%len(data)]
				ref := Sum(d).Ref
				var err error
				switch (i*5 + g) % 7 {
				case 0, 1:
					Adopt(t, s, d, i%2 == 0)
				case 2:
					err = s.Delete(context.Background(), ref.Hash)
				case 3, 4:
					_, err = s.Protect(context.Background(), ref)
				case 5:
					var found []blobstore.Finding
					if found, err = s.Inspect(context.Background(), ref); len(found) > 0 {
						t.Errorf("nothing is damaged, and found was %+v", found)
					}
				default:
					_, err = s.Repair(context.Background(), ref)
				}
				if err != nil && !errors.Is(err, blobstore.ErrNotFound) {
					t.Errorf("caller %d, step %d: %v", g, i, err)
					return
				}
			}
		})
	}
	wg.Wait()
	for _, d := range data {
		ref := Put(t, s, d)
		Check(t, s, ref, d)
		if _, err := s.Repair(t.Context(), ref); err != nil {
			t.Error(err)
		}
		intact(t, s, ref)
	}
}
