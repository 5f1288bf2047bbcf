package blobstore_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/blobstore"
	"holdfast/blobstore/blobstoretest"
)

// Syncing fails, or files can grow no further, while a parity is made or used: what was there is there unchanged, nothing is left behind, and
// the same call succeeds later.
func TestGuardFails(t *testing.T) {
	for _, mode := range []string{blobstore.ModeFile, blobstore.ModeDatabase} {
		t.Run(mode, func(t *testing.T) {
			dir := blobstoretest.TempDir(t)
			s := openDir(t, dir, mode)
			data := blobstoretest.Data(1, 3<<20, false)
			ref := blobstoretest.Put(t, s, data)
			fails := func(what string, do func() error) {
				t.Helper()
				if mode == blobstore.ModeFile {
					w := blobstore.WatchSyncs(s)
					w.Fail = unix.EIO
					if err := do(); !errors.Is(err, unix.EIO) {
						t.Errorf("%s, syncing fails: %v", what, err)
					}
					w.Fail = nil
				}
				var err error
				limited(t, 100_000, func() { err = do() })
				if err == nil || errors.Is(err, blobstore.ErrDamaged) || errors.Is(err, blobstore.ErrNotFound) {
					t.Errorf("%s, no file can grow: %v", what, err)
				}
				if left, err := os.ReadDir(filepath.Join(dir, "blobs", ".tmp")); mode == blobstore.ModeFile && (err != nil || len(left) > 0) {
					t.Errorf("%s: left behind: %v, %v", what, left, err)
				}
			}
			protect := func() error { _, err := s.Protect(t.Context(), ref); return err }
			fails("protect", protect)
			blobstoretest.Check(t, s, ref, data)
			if err := protect(); err != nil {
				t.Fatal(err)
			}
			s.Close()
			at := openStored(t, dir, mode, ref.Hash)
			bad := at.read(t)
			spoil(rand.New(rand.NewPCG(1, 2)), bad[1<<20:][:200_000])
			at.write(t, bad)
			par := at.readParity(t)
			s = openDir(t, dir, mode)
			fails("repair", func() error { _, err := s.Repair(t.Context(), ref); return err })
			s.Close()
			if mode == blobstore.ModeFile && (!bytes.Equal(at.read(t), bad) || !bytes.Equal(at.readParity(t), par)) {
				t.Error("a repair that failed has changed something")
			}
			s = openDir(t, dir, mode)
			defer s.Close()
			if done, err := s.Repair(t.Context(), ref); err != nil || !done.Content && mode == blobstore.ModeFile {
				t.Fatalf("%+v, %v", done, err)
			}
			blobstoretest.Check(t, s, ref, data)
			if found, err := s.Inspect(t.Context(), ref); err != nil || len(found) > 0 {
				t.Errorf("%+v, %v", found, err)
			}
		})
	}
}

// Repair syncs the content before it gets its name, and the directory afterwards.
func TestRepairSyncOrder(t *testing.T) {
	dir := blobstoretest.TempDir(t)
	s := openDir(t, dir, blobstore.ModeFile)
	defer s.Close()
	ref := blobstoretest.Put(t, s, blobstoretest.Data(1, 300_000, false))
	if _, err := s.Protect(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	at := filesOf(t, dir, ref.Hash)
	bad := at.read(t)
	bad[100_000] ^= 8
	at.write(t, bad)
	w := blobstore.WatchSyncs(s)
	if done, err := s.Repair(t.Context(), ref); err != nil || !done.Content {
		t.Fatal(done, err)
	}
	if got := w.Take(); len(got) != 2 || !strings.HasPrefix(got[0], "blobs/.tmp/") || got[1] != "blobs/"+ref.Hash.String()[:2] {
		t.Errorf("synced %q", got)
	}
}

// A store that is open read-only is inspected, and not changed; one that has no table for parities yet can be read, too.
func TestGuardReadOnly(t *testing.T) {
	for _, mode := range modes() {
		dir := blobstoretest.TempDir(t)
		s := openDir(t, dir, mode)
		ref := blobstoretest.Put(t, s, blobstoretest.Data(1, 300_000, false))
		small := blobstoretest.Put(t, s, []byte("small"))
		s.Close()
		if mode != blobstore.ModeFile {
			editRows(t, dir, "DROP TABLE IF EXISTS parity", blobstore.Hash{})
		}
		s, err := blobstore.Open(t.Context(), blobstore.Options{Dir: dir, Mode: mode, ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range []blobstore.Ref{ref, small} {
			found, err := s.Inspect(t.Context(), r)
			_, ok, err2 := s.Parity(t.Context(), r.Hash)
			if err := errors.Join(err, err2); err != nil || ok || len(found) > 0 {
				t.Errorf("%s: %+v, %v, %v", mode, found, ok, err)
			}
			_, e1 := s.Protect(t.Context(), r)
			_, e2 := s.Repair(t.Context(), r)
			for i, err := range []error{e1, e2, s.SetLevel(t.Context(), r.Hash, "critical")} {
				if !errors.Is(err, blobstore.ErrReadOnly) {
					t.Errorf("%s: call %d: %v", mode, i, err)
				}
			}
		}
		s.Close()
	}
}

// Whatever someone does to the rows of a blob that has a parity: it is found, and heals when the parity suffices; else nothing is changed.
func TestRepairOfEditedRows(t *testing.T) {
	dir := blobstoretest.TempDir(t)
	s := openDir(t, dir, blobstore.ModeDatabase)
	all := sampleBlobs(t, s)
	for _, b := range all {
		if _, err := s.Protect(t.Context(), b.ref); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	file := filepath.Join(dir, "blobs.db")
	good := get(t, file)
	healed, lost := 0, 0
	for _, edit := range edits() {
		for _, b := range all {
			if len(b.data) <= 3000 || editRows(t, dir, edit, b.ref.Hash) == 0 {
				continue
			}
			s := openDir(t, dir, blobstore.ModeDatabase)
			found, err := s.Inspect(t.Context(), b.ref)
			if err != nil && !errors.Is(err, blobstore.ErrNotFound) {
				t.Fatalf("%d bytes: %s: %v", len(b.data), edit, err)
			}
			harmless := strings.HasPrefix(edit, "INSERT INTO incomplete") || edit == "DELETE FROM total"
			if err == nil && len(found) == 0 && !harmless && !strings.Contains(edit, "id = id + 1000") && s.Verify(t.Context(), b.ref) != nil {
				t.Fatalf("%d bytes: %s: not found", len(b.data), edit)
			}
			switch _, err := s.Repair(t.Context(), b.ref); {
			case err == nil:
				healed++
				blobstoretest.Check(t, s, b.ref, b.data)
				if found, err := s.Inspect(t.Context(), b.ref); err != nil || len(found) > 0 {
					t.Fatalf("%d bytes: %s: after the repair: %+v, %v", len(b.data), edit, found, err)
				}
			case errors.Is(err, blobstore.ErrDamaged) || errors.Is(err, blobstore.ErrNotFound):
				lost++
			default:
				t.Fatalf("%d bytes: %s: %v", len(b.data), edit, err)
			}
			s.Close()
			if err := errors.Join(os.RemoveAll(file+"-wal"), os.RemoveAll(file+"-shm"), os.WriteFile(file, good, 0o600)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if healed < lost {
		t.Errorf("%d healed, %d did not", healed, lost)
	}
}

// Findings say where: the offset and length of a damaged block, and of damaged sectors of the parity.
func TestFindingsSayWhere(t *testing.T) {
	dir := blobstoretest.TempDir(t)
	s := openDir(t, dir, blobstore.ModeFile)
	defer s.Close()
	ref := blobstoretest.Put(t, s, blobstoretest.Data(1, 900_000, false))
	if _, err := s.Protect(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	at := filesOf(t, dir, ref.Hash)
	bad := at.read(t)
	bad[3*blobstore.BlockSize+7] ^= 1
	bad[5*blobstore.BlockSize+7] ^= 1
	at.write(t, bad)
	par := at.readParity(t)
	from, _, err := blobstore.ParitySectors(par)
	if err != nil {
		t.Fatal(err)
	}
	par[from+512] ^= 1
	par[from+1024] ^= 1
	at.writeParity(t, par)
	found, err := s.Inspect(t.Context(), ref)
	want := []blobstore.Finding{{Part: blobstore.PartBlock, Index: 3, Off: 3 * blobstore.BlockSize, Len: blobstore.BlockSize},
		{Part: blobstore.PartBlock, Index: 5, Off: 5 * blobstore.BlockSize, Len: blobstore.BlockSize}, {Part: blobstore.PartParity, Off: from + 512, Len: 1024}}
	for i := range found {
		found[i].Detail = ""
	}
	if err != nil || !slices.Equal(found, want) {
		t.Errorf("%+v, %v", found, err)
	}
}
