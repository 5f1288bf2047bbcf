package volume

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"holdfast/blobstore"
	"holdfast/catalog"
)

func putFile(t *testing.T, v *Volume, p string, body []byte) blobstore.Ref {
	t.Helper()
	row, err := v.WritePath(t.Context(), actor(), 0, p, 0o600, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return soleBlob(t, v, row.Ino)
}

func soleBlob(t *testing.T, v *Volume, ino catalog.Ino) blobstore.Ref {
	t.Helper()
	list, err := v.Extents(t.Context(), ino, catalog.Head)
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	return list[0].Blob
}

func TestCriticalFilesHaveSecondCopies(t *testing.T) {
	for _, storage := range storages() {
		t.Run(storage, func(t *testing.T) {
			v := openStore(t, newStore(t, storage))
			defer closeStore(t, v)
			ctx := t.Context()
			for _, size := range []int{1, 1000, 64 << 10, 64<<10 + 1, 128 << 10, 3<<20 + 17} {
				body := prose(size, size)
				for _, p := range []string{"/logs/basic", "/tasks/dedup"} { // the second write finds the blob there, without a copy
					ref := putFile(t, v, p, body)
					err := v.Second().Verify(ctx, ref)
					if critical := strings.HasPrefix(p, "/tasks"); critical != (err == nil) {
						t.Errorf("%d bytes in %s: second copy: %v", size, p, err)
					}
				}
			}
			ref := putFile(t, v, "/messages/src", prose(99, 200<<10))
			src, err := v.Resolve(ctx, "/messages/src")
			if err != nil {
				t.Fatal(err)
			}
			from, err := v.OpenFile(ctx, actor(), src.Ino, OpenFlags{Read: true})
			if err != nil {
				t.Fatal(err)
			}
			defer from.Close(ctx)
			dir, _ := v.Resolve(ctx, "/config")
			_, to, err := v.CreateFile(ctx, actor(), dir.Ino, "copied", catalog.NewInode{Mode: 0o600}, OpenFlags{Write: true})
			if err != nil {
				t.Fatal(err)
			}
			defer to.Close(ctx)
			if _, err := CopyRange(ctx, from, 0, to, 0, 200<<10); err != nil {
				t.Fatal(err)
			}
			if err := to.Flush(ctx); err != nil {
				t.Fatal(err)
			}
			if err := v.Second().Verify(ctx, ref); err != nil {
				t.Errorf("a copied range has no second copy: %v", err)
			}
		})
	}
}

// TestReadsFindTheSecondCopy takes everything away but the second copies: without a guard, too, a read finds them.
func TestReadsFindTheSecondCopy(t *testing.T) {
	dir := newStore(t, StorageFile)
	v := openStore(t, dir)
	defer closeStore(t, v)
	large := prose(5, 300<<10)
	ref := putFile(t, v, "/tasks/f", large)
	name := filepath.Join(dir, "blobs", ref.Hash.String()[:2], ref.Hash.String())
	for _, end := range []string{"", ".zst", ".json", ".par"} {
		if err := os.Remove(name + end); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	if err := v.ReadPath(t.Context(), "/tasks/f", Moment{}, &out); err != nil || !bytes.Equal(out.Bytes(), large) {
		t.Errorf("read of a blob that only the second copy has: %d bytes, %v", out.Len(), err)
	}
}

// TestSecondPlaceTakenAway closes files while the place of the copies is gone, replaced by that of another store, and back.
func TestSecondPlaceTakenAway(t *testing.T) {
	base := t.TempDir()
	dir, place := filepath.Join(base, "store"), filepath.Join(base, "disk", "copies")
	if _, err := Init(t.Context(), dir, InitOptions{SecondCopy: place}); err != nil {
		t.Fatal(err)
	}
	v := openStore(t, dir)
	defer closeStore(t, v)
	ctx := t.Context()
	bodies := map[string][]byte{"/tasks/a": prose(1, 100), "/tasks/b": prose(2, 200<<10)}
	for p, body := range bodies {
		if err := v.Second().Verify(ctx, putFile(t, v, p, body)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, secondDir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the store has a directory for copies all the same: %v", err)
	}
	if err := os.Rename(place, place+".away"); err != nil {
		t.Fatal(err)
	}
	gone := putFile(t, v, "/tasks/c", prose(3, 300))
	if err := v.Second().Err(); !errors.Is(err, ErrSecond) {
		t.Errorf("the place is gone: %v", err)
	}
	if _, err := os.Stat(place); !errors.Is(err, os.ErrNotExist) {
		t.Error("a place outside the store was made by itself")
	}
	forget := func() {
		v.second.stateMu.Lock()
		defer v.second.stateMu.Unlock()
		v.second.retry = v.second.retry.Add(-secondRetry)
	}
	if err := makeSecond(place, strings.Repeat("0", 32)); err != nil {
		t.Fatal(err)
	}
	forget()
	putFile(t, v, "/tasks/d", prose(4, 300))
	if err := v.Second().Err(); !errors.Is(err, ErrSecond) || !strings.Contains(err.Error(), "another store") {
		t.Errorf("the place is another store's: %v", err)
	}
	if err := os.Rename(place, place+".other"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(place+".away", place); err != nil {
		t.Fatal(err)
	}
	forget()
	if err := v.Second().Verify(ctx, putFile(t, v, "/tasks/e", prose(5, 300))); err != nil {
		t.Errorf("the place is back: %v", err)
	}
	if err := v.Second().Err(); err != nil {
		t.Errorf("the place is back, and said to fail: %v", err)
	}
	if err := v.Second().Verify(ctx, gone); !errors.Is(err, blobstore.ErrNotFound) {
		t.Errorf("what was closed while the place was gone: %v", err)
	}
	if err := v.CopySecond(ctx, gone); err != nil {
		t.Error(err)
	}
	if err := v.Second().Verify(ctx, gone); err != nil {
		t.Error(err)
	}
}

// TestSecondCopiesOfManyAtOnce writes small critical files side by side: groups are made, and each close has its copy.
func TestSecondCopiesOfManyAtOnce(t *testing.T) {
	v := openStore(t, newStore(t, StorageHybrid))
	defer closeStore(t, v)
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			body := prose(i+10, 500)
			p := "/tasks/f" + string(rune('a'+i%26)) + string(rune('a'+i/26))
			if _, err := v.WritePath(t.Context(), actor(), 0, p, 0o600, bytes.NewReader(body)); err != nil {
				t.Error(err)
				return
			}
			ref := blobstore.Ref{Hash: sha256.Sum256(body), Size: 500}
			if err := v.Second().Verify(t.Context(), ref); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestMakeSecond(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "mine"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := makeSecond(dir, "x"); !errors.Is(err, catalog.ErrNotEmpty) {
		t.Error(err)
	}
	if _, err := Init(t.Context(), filepath.Join(dir, "s"), InitOptions{SecondCopy: "relative"}); !errors.Is(err, ErrFormat) {
		t.Error(err)
	}
}

func TestRollbackPolicies(t *testing.T) {
	s := Settings{Recovery: []RollbackPolicy{{"/logs", RollbackAsk}, {"/tasks/board", RollbackAutomatic}}}
	for p, want := range map[string]string{
		"/": RollbackAsk, "/x": RollbackAsk, "/status": RollbackAutomatic, "/status/a/b": RollbackAutomatic, "/statusx/a": RollbackAsk,
		"/logs/a": RollbackAsk, "/tasks/board/x": RollbackAutomatic, "/tasks/boards": RollbackAsk,
	} {
		if got := s.RollbackOf(p); got != want {
			t.Errorf("%s: %s", p, got)
		}
	}
	v := openStore(t, newStore(t, StorageHybrid))
	defer closeStore(t, v)
	if err := v.SetRollback(t.Context(), RollbackPolicy{"/config", RollbackAutomatic}); err != nil {
		t.Fatal(err)
	}
	if err := v.SetRollback(t.Context(), RollbackPolicy{"/config", "never"}); !errors.Is(err, catalog.ErrInvalid) {
		t.Error(err)
	}
	read, err := ReadSettings(v.Dir())
	if err != nil || read.RollbackOf("/config/x") != RollbackAutomatic || v.Settings().RollbackOf("/config/x") != RollbackAutomatic {
		t.Error(read, err)
	}
}
