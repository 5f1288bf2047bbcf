package blobstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"holdfast/blobstore"
	"holdfast/blobstore/blobstoretest"
)

func textLog(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

const afterwards = 9 << 20 // more than Adopt compresses itself

// exists says which of the files of a blob are there.
func exists(dir string, h blobstore.Hash) (found string) {
	for _, ext := range []string{"", ".zst", ".json"} {
		if _, err := os.Lstat(filepath.Join(dir, "blobs", h.String()[:2], h.String()+ext)); err == nil {
			found += "[" + ext + "]"
		}
	}
	return found
}

func TestCompressedAfterwards(t *testing.T) {
	dir := blobstoretest.TempDir(t)
	s := openDir(t, dir, blobstore.ModeHybrid)
	defer s.Close()
	data := blobstoretest.Data(1, afterwards, true)
	if st, err := s.Stats(t.Context()); err != nil || st.Blobs != 0 {
		t.Fatal(st, err)
	}
	ref := blobstoretest.Adopt(t, s, data, false)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for g := range 2 { // readers see no difference
		wg.Go(func() {
			p := make([]byte, 300_000)
			for off := int64(g) * 1000; ; off = (off + 100_003) % ref.Size {
				select {
				case <-stop:
					return
				default:
				}
				n, err := s.ReadAt(context.Background(), ref, p, off)
				if err != nil || !bytes.Equal(p[:n], data[off:off+int64(n)]) {
					t.Errorf("%d bytes at %d: %v", n, off, err)
					return
				}
			}
		})
	}
	blobstore.WaitCompressed(s)
	close(stop)
	wg.Wait()
	if found := exists(dir, ref.Hash); found != "[.zst][.json]" {
		t.Errorf("files: %s", found)
	}
	sc, err := s.Sidecar(t.Context(), ref.Hash)
	if err != nil || sc.Encoding != "zstd" || sc.Version != blobstoretest.SomeMeta().Version || sc.StoredSize > ref.Size/2 {
		t.Errorf("%s, %d bytes stored, %v", sc.Encoding, sc.StoredSize, err)
	}
	if st, err := s.Stats(t.Context()); err != nil || st != (blobstore.Stats{Blobs: 1, PlainBytes: ref.Size, StoredBytes: sc.StoredSize}) {
		t.Errorf("%+v, %v", st, err)
	}
	blobstoretest.Check(t, s, ref, data)
	blobstoretest.Adopt(t, s, data, true)
	if found := exists(dir, ref.Hash); found != "[.zst][.json]" {
		t.Errorf("adopted again, files: %s", found)
	}
}

func TestIncompressibleStaysRaw(t *testing.T) {
	dir := blobstoretest.TempDir(t)
	s := openDir(t, dir, blobstore.ModeFile)
	defer s.Close()
	ref := blobstoretest.Adopt(t, s, blobstoretest.Data(1, afterwards, false), false)
	// Only its beginning, middle and end shrink: found out while it is compressed.
	odd := blobstoretest.Data(2, 3<<20, false)
	for _, at := range []int{0, len(odd) / 2, len(odd) - 32<<10} {
		copy(odd[at:at+32<<10], blobstoretest.Data(3, 32<<10, true))
	}
	ref2 := blobstoretest.Adopt(t, s, odd, true)
	blobstore.WaitCompressed(s)
	for _, h := range []blobstore.Hash{ref.Hash, ref2.Hash} {
		if found := exists(dir, h); found != "[][.json]" {
			t.Errorf("files: %s", found)
		}
	}
	blobstoretest.Check(t, s, ref2, odd)
}

// Close does not wait for a long compression, and what it interrupts is whole.
func TestCloseInterruptsCompression(t *testing.T) {
	dir := blobstoretest.TempDir(t)
	for i := range 4 {
		s := openDir(t, dir, blobstore.ModeFile)
		data := blobstoretest.Data(uint64(i), afterwards, true)
		ref := blobstoretest.Adopt(t, s, data, false)
		if i%2 == 1 {
			if err := s.Delete(t.Context(), ref.Hash); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if left, err := os.ReadDir(filepath.Join(dir, "blobs", ".tmp")); err != nil || len(left) > 0 {
			t.Fatalf("left behind: %v, %v", left, err)
		}
		s = openDir(t, dir, blobstore.ModeFile)
		if i%2 == 0 {
			blobstoretest.Check(t, s, ref, data)
		} else if found := exists(dir, ref.Hash); found != "" {
			t.Errorf("a deleted blob came back: %s", found)
		}
		s.Close()
	}
}

// A crash can leave a blob in both encodings; either may rot.
func TestBothEncodings(t *testing.T) {
	for _, rot := range []string{"", ".zst"} {
		t.Run("rot"+rot, func(t *testing.T) {
			dir := blobstoretest.TempDir(t)
			s := openDir(t, dir, blobstore.ModeFile)
			data := blobstoretest.Data(1, 1<<20, true)
			ref := blobstoretest.Adopt(t, s, data, false)
			s.Close()
			if found := exists(dir, ref.Hash); found != "[.zst][.json]" {
				t.Fatalf("files: %s", found)
			}
			name := filepath.Join(dir, "blobs", ref.Hash.String()[:2], ref.Hash.String())
			if err := os.WriteFile(name, data, 0o600); err != nil {
				t.Fatal(err)
			}
			f, err := os.OpenFile(name+rot, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt([]byte("rotten"), 150_000); err != nil {
				t.Fatal(err)
			}
			f.Close()
			s = openDir(t, dir, blobstore.ModeFile)
			got, err := blobstoretest.ReadAll(s, ref, 1<<20)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			blobstoretest.Check(t, s, ref, data)
			if err := s.Delete(t.Context(), ref.Hash); err != nil {
				t.Fatal(err)
			}
			if found := exists(dir, ref.Hash); found != "" {
				t.Errorf("deleted, files: %s", found)
			}
			s.Close()
		})
	}
}

func TestReadOnly(t *testing.T) {
	for _, mode := range modes() {
		dir := blobstoretest.TempDir(t)
		if _, err := blobstore.Open(t.Context(), blobstore.Options{Dir: dir, Mode: mode, ReadOnly: true}); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: nothing there: %v", mode, err)
		}
		s := openDir(t, dir, mode)
		all := sampleBlobs(t, s)
		s.Close()
		s, err := blobstore.Open(t.Context(), blobstore.Options{Dir: dir, Mode: mode, ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range all {
			blobstoretest.Check(t, s, b.ref, b.data)
		}
		staged := blobstoretest.Stage(t, all[0].data)
		for i, err := range []error{
			s.PutBatch(t.Context(), []blobstore.Item{blobstoretest.ItemOf(nil)}), s.Delete(t.Context(), all[0].ref.Hash),
			s.Adopt(t.Context(), blobstoretest.Sum(all[0].data), blobstoretest.SomeMeta(), staged, false)} {
			if !errors.Is(err, blobstore.ErrReadOnly) {
				t.Errorf("%s: change %d: %v", mode, i, err)
			}
		}
		if err := s.Sync(t.Context()); err != nil {
			t.Error(err)
		}
		s.Close()
	}
	if _, err := blobstore.Open(t.Context(), blobstore.Options{Dir: blobstoretest.TempDir(t), Mode: "tape"}); err == nil {
		t.Error("an unknown mode was accepted")
	}
}

// Many blobs are synced by one call for the whole filesystem; a directory that somebody removed is made again.
func TestManyAndRemovedDirectories(t *testing.T) {
	dir := blobstoretest.TempDir(t)
	s := openDir(t, dir, blobstore.ModeFile)
	defer s.Close()
	var items []blobstore.Item
	for i := range 100 {
		items = append(items, blobstoretest.ItemOf([]byte(fmt.Sprint(i))))
	}
	if err := errors.Join(s.PutBatch(t.Context(), items), s.Sync(t.Context())); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "blobs", items[0].Ref.Hash.String()[:2])); err != nil {
		t.Fatal(err)
	}
	if _, err := s.ReadAt(t.Context(), items[0].Ref, make([]byte, 1), 0); !errors.Is(err, blobstore.ErrNotFound) {
		t.Errorf("got %v", err)
	}
	if err := errors.Join(s.PutBatch(t.Context(), items), s.Sync(t.Context())); err != nil {
		t.Fatal(err)
	}
	for _, it := range items {
		blobstoretest.Check(t, s, it.Ref, it.Data)
	}
}

// TestCompressedAfterARestart closes the store while blobs wait to be compressed, which the next start takes up.
func TestCompressedAfterARestart(t *testing.T) {
	dir := blobstoretest.TempDir(t)
	s := openDir(t, dir, blobstore.ModeHybrid)
	var refs []blobstore.Ref
	for i := range 3 {
		refs = append(refs, blobstoretest.Adopt(t, s, blobstoretest.Data(uint64(i), afterwards, true), false))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openDir(t, dir, blobstore.ModeHybrid)
	defer s.Close()
	blobstore.WaitCompressed(s)
	for i, ref := range refs {
		if found := exists(dir, ref.Hash); found != "[.zst][.json]" {
			t.Errorf("blob %d: files: %s", i, found)
		}
	}
	if found, err := filepath.Glob(filepath.Join(dir, "blobs", ".compress*")); err != nil || len(found) > 0 {
		t.Errorf("%v %v: nothing waits any more", found, err)
	}
}
