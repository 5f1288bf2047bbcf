package blobstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"holdfast/blobstore"
	"holdfast/blobstore/blobstoretest"
)

// told is what a store has said that it mended.
type told struct {
	mu   sync.Mutex
	list []blobstore.Mending
}

func (x *told) take() []blobstore.Mending {
	x.mu.Lock()
	defer x.mu.Unlock()
	list := x.list
	x.list = nil
	return list
}

func openTold(t testing.TB, dir, mode string, readOnly bool) (blobstore.Store, *told) {
	t.Helper()
	x := new(told)
	s, err := blobstore.Open(t.Context(), blobstore.Options{Dir: dir, Mode: mode, ReadOnly: readOnly, Mended: func(_ context.Context, m blobstore.Mending) {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.list = append(x.list, m)
	}})
	if err != nil {
		t.Fatal(err)
	}
	return s, x
}

// mendingOp is a call that may mend a blob without being asked to.
type mendingOp struct {
	name string
	run  func(s blobstore.Store, b blob) error
}

func mendingOps(t *testing.T) []mendingOp {
	ctx := context.Background()
	ops := []mendingOp{
		{"read", func(s blobstore.Store, b blob) error { _, err := blobstoretest.ReadAll(s, b.ref, 50_000); return err }},
		{"read unrooted", func(s blobstore.Store, b blob) error {
			_, err := blobstoretest.ReadAll(s, blobstore.Ref{Hash: b.ref.Hash, Size: b.ref.Size}, len(b.data)+1)
			return err
		}},
		{"sidecar", func(s blobstore.Store, b blob) error { _, err := s.Sidecar(ctx, b.ref.Hash); return err }},
		{"verify", func(s blobstore.Store, b blob) error { return s.Verify(ctx, b.ref) }},
		{"protect", func(s blobstore.Store, b blob) error { _, err := s.Protect(ctx, b.ref); return err }},
		{"level", func(s blobstore.Store, b blob) error { return s.SetLevel(ctx, b.ref.Hash, "advanced") }},
		{"write", func(s blobstore.Store, b blob) error {
			if len(b.data) <= blobstore.MaxSmall {
				return s.PutBatch(ctx, []blobstore.Item{blobstoretest.ItemOf(b.data)})
			}
			return s.Adopt(ctx, blobstoretest.Sum(b.data), blobstoretest.SomeMeta(), blobstoretest.Stage(t, b.data), false)
		}},
	}
	return ops
}

// checkTold makes one call on a damaged blob: what it mends it says, once, and nothing else. It returns how much it mended.
func checkTold(t *testing.T, what, dir, mode string, op mendingOp, b blob) (mended int) {
	t.Helper()
	s, x := openTold(t, dir, mode, false)
	defer s.Close()
	before, errBefore := s.Inspect(t.Context(), b.ref)
	if said := x.take(); len(said) > 0 {
		t.Fatalf("%s: an inspection says that it mended %+v", what, said)
	}
	err := op.run(s, b)
	if err != nil && !errors.Is(err, blobstore.ErrDamaged) && !errors.Is(err, blobstore.ErrNotFound) {
		t.Fatalf("%s: %v", what, err)
	}
	said := x.take()
	after, errAfter := s.Inspect(t.Context(), b.ref)
	for _, m := range said {
		if m.Hash != b.ref.Hash || m.Cause == nil || m.Part == "" || m.Source == "" || m.Err != nil {
			t.Errorf("%s: %+v", what, m)
		}
	}
	missing := errors.Is(errBefore, blobstore.ErrNotFound) || len(before) > 0 && before[0].Part == blobstore.PartMissing // a writer cannot know that it was there
	left := make(map[blobstore.Part]int)
	for _, f := range after {
		left[f.Part]++
	}
	gone := 0
	for _, f := range before {
		if left[f.Part] == 0 && errAfter == nil {
			gone++
		}
	}
	switch {
	case gone > 0 && len(said) == 0 && !missing:
		t.Errorf("%s: mended without a word: %+v", what, before)
	case len(before) == 0 && errBefore == nil && len(said) > 0 && !strings.Contains(what, "leftover") && !strings.Contains(what, "id = id + 1000"):
		t.Errorf("%s: nothing was damaged, and it says %+v", what, said)
	}
	if err := op.run(s, b); err == nil {
		if again := x.take(); len(again) > 0 && !missing {
			t.Errorf("%s: once more it says %+v", what, again)
		}
	}
	return len(said)
}

// Whatever someone does to the files or rows of a blob: what a call mends on its way it tells.
func TestMendingIsTold(t *testing.T) {
	for _, mode := range modes() {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			dir := blobstoretest.TempDir(t)
			s := openDir(t, dir, mode)
			var all []blob
			for i, size := range []int{3000, 60_000, 100_000, 300_000} {
				b := blob{data: blobstoretest.Data(uint64(i), size, i%2 == 1)}
				b.ref = blobstoretest.Put(t, s, b.data)
				if _, err := s.Protect(t.Context(), b.ref); err != nil {
					t.Fatal(err)
				}
				all = append(all, b)
			}
			s.Close()
			mended := 0
			for _, op := range mendingOps(t) {
				if mode == blobstore.ModeHybrid && op.name != "read" && op.name != "write" {
					continue // both places have been tried by themselves
				}
				if mode != blobstore.ModeFile {
					mended += tellRows(t, dir, mode, op, all)
				}
				if mode != blobstore.ModeDatabase {
					mended += tellFiles(t, dir, mode, op, all)
				}
			}
			if mended < 20 {
				t.Errorf("only %d mendings", mended)
			}
		})
	}
}

func tellRows(t *testing.T, dir, mode string, op mendingOp, all []blob) (mended int) {
	file := filepath.Join(dir, "blobs.db")
	good := get(t, file)
	for _, edit := range edits() {
		if strings.HasPrefix(edit, "INSERT") || strings.HasSuffix(edit, "total") {
			continue
		}
		for _, b := range all {
			if len(b.data) == 60_000 || len(b.data) == 100_000 || editRows(t, dir, edit, b.ref.Hash) == 0 {
				continue
			}
			mended += checkTold(t, fmt.Sprintf("%s of %d bytes: %s", op.name, len(b.data), edit), dir, mode, op, b)
			if err := errors.Join(os.RemoveAll(file+"-wal"), os.RemoveAll(file+"-shm"), os.WriteFile(file, good, 0o600)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return mended
}

func tellFiles(t *testing.T, dir, mode string, op mendingOp, all []blob) (mended int) {
	for _, p := range blobFiles(t, dir) {
		name := filepath.Base(p)
		for _, b := range all {
			if !strings.HasPrefix(name, b.ref.Hash.String()) {
				continue
			}
			for kind, damage := range damages(t, []byte("something else")) {
				if kind == "directory" || kind == "flip first" || kind == "empty" || kind == "other" {
					continue
				}
				restore := keepFiles(t, filepath.Dir(p))
				if err := damage(p, get(t, p)); err != nil {
					t.Fatal(err)
				}
				mended += checkTold(t, fmt.Sprintf("%s of %d bytes: %s: %s", op.name, len(b.data), filepath.Ext(name), kind), dir, mode, op, b)
				restore()
			}
		}
	}
	return mended
}

// keepFiles returns a function that makes a directory what it is now.
func keepFiles(t *testing.T, dir string) (restore func()) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	kept := make(map[string][]byte)
	for _, e := range list {
		kept[e.Name()] = get(t, filepath.Join(dir, e.Name()))
	}
	return func() {
		t.Helper()
		now, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range now {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				t.Fatal(err)
			}
		}
		for name, p := range kept {
			if err := os.WriteFile(filepath.Join(dir, name), p, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// Content in another encoding than that which is read, left by a crash and rotten since, is told of and removed.
func TestLeftoverIsTold(t *testing.T) {
	for _, size := range []int{60_000, 300_000} {
		for _, op := range mendingOps(t) {
			if op.name == "protect" && size <= blobstore.MaxSmall {
				continue
			}
			dir := blobstoretest.TempDir(t)
			s := openDir(t, dir, blobstore.ModeFile)
			b := blob{data: blobstoretest.Data(1, size, true)}
			b.ref = blobstoretest.Put(t, s, b.data)
			s.Close()
			name := filepath.Join(dir, "blobs", b.ref.Hash.String()[:2], b.ref.Hash.String())
			bad := bytes.Clone(b.data)
			bad[100] ^= 1
			if _, err := os.Stat(name + ".zst"); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(os.WriteFile(name, bad, 0o600), os.Remove(name+".json")); err != nil {
				t.Fatal(err)
			}
			n := checkTold(t, fmt.Sprintf("leftover: %s of %d bytes", op.name, size), dir, blobstore.ModeFile, op, b)
			_, err := os.Stat(name)
			if gone := os.IsNotExist(err); gone != (n > 0) || n == 0 && op.name != "protect" {
				t.Errorf("%s of %d bytes: told %d times, the rotten file is gone: %v", op.name, size, n, gone)
			}
		}
	}
}

// In a store that is open read-only, and where nothing can be written, damage that is worked around is told of once.
func TestWorkedAroundIsToldOnce(t *testing.T) {
	for _, mode := range []string{blobstore.ModeFile, blobstore.ModeDatabase} {
		dir := blobstoretest.TempDir(t)
		s := openDir(t, dir, mode)
		b := blob{data: blobstoretest.Data(1, 300_000, false)}
		b.ref = blobstoretest.Put(t, s, b.data)
		s.Close()
		if mode == blobstore.ModeFile {
			if err := os.Remove(filepath.Join(dir, "blobs", b.ref.Hash.String()[:2], b.ref.Hash.String()+".json")); err != nil {
				t.Fatal(err)
			}
		} else if editRows(t, dir, "UPDATE large SET hashes = zeroblob(length(hashes)) WHERE id = (SELECT id FROM blob WHERE hash = ?1)", b.ref.Hash) != 1 {
			t.Fatal("nothing edited")
		}
		s, x := openTold(t, dir, mode, true)
		for range 3 {
			blobstoretest.Check(t, s, b.ref, b.data)
			if _, err := s.Sidecar(t.Context(), b.ref.Hash); err != nil && mode == blobstore.ModeFile {
				t.Error(err)
			}
		}
		if said := x.take(); len(said) != 1 || said[0].Err == nil {
			t.Errorf("%s, read-only: %+v", mode, said)
		}
		s.Close()
		s, x = openTold(t, dir, mode, false)
		limited(t, 10, func() {
			for range 3 {
				blobstoretest.Check(t, s, b.ref, b.data)
			}
		})
		if said := x.take(); len(said) != 1 || said[0].Err == nil {
			t.Errorf("%s, nothing can be written: %+v", mode, said)
		}
		blobstoretest.Check(t, s, b.ref, b.data)
		if said := x.take(); len(said) != 1 || said[0].Err != nil {
			t.Errorf("%s: %+v", mode, said)
		}
		s.Close()
	}
}

// A repair says itself what it mends.
func TestRepairIsNotTold(t *testing.T) {
	for _, mode := range modes() {
		dir := blobstoretest.TempDir(t)
		s := openDir(t, dir, mode)
		b := blob{data: blobstoretest.Data(1, 300_000, true)}
		b.ref = blobstoretest.Put(t, s, b.data)
		s.Close()
		if mode == blobstore.ModeDatabase {
			editRows(t, dir, "UPDATE blob SET sum = sum + 1 WHERE hash = ?1", b.ref.Hash)
		} else if err := os.Remove(filepath.Join(dir, "blobs", b.ref.Hash.String()[:2], b.ref.Hash.String()+".json")); err != nil {
			t.Fatal(err)
		}
		s, x := openTold(t, dir, mode, false)
		if done, err := s.Repair(t.Context(), b.ref); err != nil || !done.Sidecar {
			t.Errorf("%s: %+v, %v", mode, done, err)
		}
		if said := x.take(); len(said) > 0 {
			t.Errorf("%s: %+v", mode, said)
		}
		s.Close()
	}
}
