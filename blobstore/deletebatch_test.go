package blobstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/blobstore"
	"holdfast/blobstore/blobstoretest"
)

const deleterEnv = "BLOBSTORE_TEST_DELETER"

// doomed are blobs of all kinds in the order of their names: every third is to stay.
func doomed(round int) (all []blob, names []blobstore.Hash) {
	for i := range 90 {
		size := 20 + i
		if i%10 == 0 {
			size = []int{70_000, 300_000, 20_000}[i/10%3]
		}
		d := blobstoretest.Data(uint64(10_000*round+i), size, i%2 == 0)
		all = append(all, blob{blobstoretest.Sum(d).Ref, d})
	}
	slices.SortFunc(all, func(a, b blob) int { return bytes.Compare(a.ref.Hash[:], b.ref.Hash[:]) })
	for i, b := range all {
		if i%3 > 0 {
			names = append(names, b.ref.Hash)
		}
	}
	return all, names
}

func storeAll(t *testing.T, s blobstore.Store, all []blob) {
	t.Helper()
	storeFrom(t, s, all, filepath.Join(blobstoretest.TempDir(t), "staged"))
}

// storeFrom is storeAll by way of one staged file, so that a process that is killed leaves nothing elsewhere.
func storeFrom(t *testing.T, s blobstore.Store, all []blob, staged string) {
	t.Helper()
	for i, b := range all {
		if len(b.data) <= blobstore.MaxSmall {
			blobstoretest.Put(t, s, b.data)
		} else if err := errors.Join(os.WriteFile(staged, b.data, 0o600),
			s.Adopt(t.Context(), blobstoretest.Sum(b.data), blobstoretest.SomeMeta(), staged, false)); err != nil {
			t.Fatal(err)
		}
		if len(b.data) > blobstore.MaxSmall && i%2 == 0 {
			if _, err := s.Protect(t.Context(), b.ref); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// checkSome checks that what stays is intact, and that of what was to be deleted each blob is gone or intact, which it counts.
func checkSome(t *testing.T, s blobstore.Store, all []blob) (left int) {
	t.Helper()
	for i, b := range all {
		err := s.Verify(t.Context(), b.ref)
		switch {
		case i%3 == 0 || err == nil:
			blobstoretest.Check(t, s, b.ref, b.data)
			if i%3 > 0 {
				left++
			}
		case !errors.Is(err, blobstore.ErrNotFound):
			t.Fatalf("a blob of %d bytes that was to be deleted is neither there nor gone: %v", len(b.data), err)
		}
	}
	return left
}

// deleter stores blobs, says so, and deletes a part of them in one batch, round by round, until it is killed.
func deleter(t *testing.T, arg string) {
	mode, dir, _ := strings.Cut(arg, ":")
	s := openDir(t, dir, mode)
	for round := 0; ; round++ {
		all, names := doomed(round)
		storeFrom(t, s, all, filepath.Join(dir, "staged"))
		fmt.Printf("stored %d\n", round)
		if err := s.DeleteBatch(context.Background(), names); err != nil {
			t.Fatal(err)
		}
		fmt.Printf("deleted %d\n", round)
	}
}

// A process is killed while it deletes a batch: each blob of it is there, whole, or gone; nothing else is harmed or left behind; the same call deletes the rest.
func TestKilledWhileDeleting(t *testing.T) {
	if arg := os.Getenv(deleterEnv); arg != "" {
		deleter(t, arg)
	}
	for _, mode := range modes() {
		t.Run(mode, func(t *testing.T) {
			for round := range 2 {
				dir := blobstoretest.TempDir(t)
				stored, deleted := killDeleter(t, mode+":"+dir, fmt.Sprintf("stored %d\n", round%2), round*500)
				s := openDir(t, dir, mode)
				for n := range stored {
					all, names := doomed(n)
					left := checkSome(t, s, all)
					if n < deleted && left > 0 {
						t.Fatalf("%d blobs are left of a batch that was deleted", left)
					}
					if err := s.DeleteBatch(t.Context(), names); err != nil {
						t.Fatal(err)
					}
					if left := checkSome(t, s, all); left > 0 {
						t.Fatalf("%d blobs are left", left)
					}
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				checkNoOrphans(t, dir)
			}
		})
	}
}

// killDeleter starts a deleter, kills it a little after it has printed line, and returns how many batches it had stored and deleted.
func killDeleter(t *testing.T, arg, line string, spin int) (stored, deleted int) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilledWhileDeleting$")
	cmd.Env = append(os.Environ(), deleterEnv+"="+arg)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var got []byte
	buf := make([]byte, 4096)
	killed := false
	for {
		n, err := out.Read(buf)
		got = append(got, buf[:n]...)
		if !killed && bytes.Contains(got, []byte(line)) {
			for range spin { // how far the batch is by then is another each time
				if _, err := os.Stat(arg); err == nil {
					t.Fatal("unexpected")
				}
			}
			cmd.Process.Kill()
			killed = true
		}
		if err != nil {
			break
		}
	}
	cmd.Wait()
	if !killed {
		t.Fatalf("the child ended by itself: %s", got)
	}
	return bytes.Count(got, []byte("stored ")), bytes.Count(got, []byte("deleted "))
}

// A directory that cannot be used is met in the middle of a batch: what comes before it is gone, the rest is there, and the same call deletes it later.
func TestDeleteBatchFailsHalfWay(t *testing.T) {
	dir := blobstoretest.TempDir(t)
	s := openDir(t, dir, blobstore.ModeFile)
	all, names := doomed(1)
	storeAll(t, s, all)
	s.Close()
	fan := filepath.Join(dir, "blobs", names[len(names)/2].String()[:2])
	outside := filepath.Join(blobstoretest.TempDir(t), "outside")
	if err := errors.Join(os.Rename(fan, outside), os.Symlink(outside, fan)); err != nil {
		t.Fatal(err)
	}
	s = openDir(t, dir, blobstore.ModeFile)
	if err := s.DeleteBatch(t.Context(), names); !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP) {
		t.Fatalf("deleted through a link: %v", err)
	}
	s.Close()
	if err := errors.Join(os.Remove(fan), os.Rename(outside, fan)); err != nil {
		t.Fatal(err)
	}
	s = openDir(t, dir, blobstore.ModeFile)
	defer s.Close()
	if left := checkSome(t, s, all); left == 0 || left == len(names) {
		t.Errorf("%d of %d are left after a batch that ended in the middle", left, len(names))
	}
	if err := s.DeleteBatch(t.Context(), names); err != nil {
		t.Fatal(err)
	}
	if left := checkSome(t, s, all); left > 0 {
		t.Errorf("%d are left", left)
	}
}

// Files cannot grow, as on a full disk, while a batch of rows is deleted: all of it is there, and goes later. Files are deleted all the same.
func TestDeleteBatchOnFullDisk(t *testing.T) {
	for _, mode := range modes() {
		t.Run(mode, func(t *testing.T) {
			dir := blobstoretest.TempDir(t)
			s := openDir(t, dir, mode)
			all, names := doomed(1)
			storeAll(t, s, all)
			s.Close()
			s = openDir(t, dir, mode) // with an empty log
			defer s.Close()
			var err error
			limited(t, 100, func() { err = s.DeleteBatch(t.Context(), names) })
			if (err == nil) != (mode == blobstore.ModeFile) {
				t.Fatal(err)
			}
			left := checkSome(t, s, all)
			if mode == blobstore.ModeDatabase && left != len(names) || mode == blobstore.ModeFile && left > 0 {
				t.Errorf("%d of %d are left", left, len(names))
			}
			if err := s.DeleteBatch(t.Context(), names); err != nil {
				t.Fatal(err)
			}
			if left := checkSome(t, s, all); left > 0 {
				t.Errorf("%d are left", left)
			}
			if st, err := s.Stats(t.Context()); err != nil || st.Blobs != int64(len(all)-len(names)) {
				t.Errorf("%+v, %v", st, err)
			}
		})
	}
}

// A batch is durable when DeleteBatch returns: each directory from which something went is synced once, all of the filesystem when they are many. What could not be synced is synced by the
// next call, even though nothing is left for it to delete.
func TestDeleteBatchSyncs(t *testing.T) {
	dir := blobstoretest.TempDir(t)
	s := openDir(t, dir, blobstore.ModeFile)
	defer s.Close()
	all, names := doomed(1)
	storeAll(t, s, all)
	w := blobstore.WatchSyncs(s)
	dirs := make(map[string]bool)
	for _, h := range names[:20] {
		dirs["blobs/"+h.String()[:2]] = true
	}
	w.Fail = unix.EIO
	if err := s.DeleteBatch(t.Context(), names[:20]); !errors.Is(err, unix.EIO) {
		t.Errorf("syncing fails: %v", err)
	}
	w.Take()
	w.Fail = nil
	if err := s.DeleteBatch(t.Context(), names[:20]); err != nil {
		t.Fatal(err)
	}
	got := w.Take()
	if len(got) != len(dirs) {
		t.Errorf("synced %q, want %v", got, dirs)
	}
	for _, p := range got {
		if !dirs[p] {
			t.Errorf("synced %q, want %v", got, dirs)
		}
	}
	if err := s.DeleteBatch(t.Context(), names[:20]); err != nil || len(w.Take()) > 0 {
		t.Error("what is gone already is synced again", err)
	}
	if err := s.DeleteBatch(t.Context(), names); err != nil {
		t.Fatal(err)
	}
	if got := w.Take(); len(got) != 1 || got[0] != "filesystem of blobs" {
		t.Errorf("synced %q", got)
	}
}

// The same of rows: the database is synced once for a batch, and again after that has failed.
func TestDeleteBatchSyncsRows(t *testing.T) {
	for _, mode := range []string{blobstore.ModeDatabase, blobstore.ModeHybrid} {
		dir := blobstoretest.TempDir(t)
		s := openDir(t, dir, mode)
		defer s.Close()
		all, names := doomed(1)
		storeAll(t, s, all)
		w := blobstore.WatchRowSyncs(s)
		w.Fail = unix.EIO
		if err := s.DeleteBatch(t.Context(), names); !errors.Is(err, unix.EIO) {
			t.Errorf("%s: syncing fails: %v", mode, err)
		}
		w.Take()
		w.Fail = nil
		for i, want := range []int{1, 0} {
			if err := s.DeleteBatch(t.Context(), names); err != nil || len(w.Take()) != want {
				t.Errorf("%s: call %d of a batch that is gone, and was not synced: %v", mode, i, err)
			}
		}
		if left := checkSome(t, s, all); left > 0 {
			t.Errorf("%s: %d are left", mode, left)
		}
	}
}
