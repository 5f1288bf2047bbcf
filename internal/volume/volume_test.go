package volume

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/blobstore"
	"holdfast/blobstore/blobstoretest"
	"holdfast/catalog"
)

func storages() []string { return []string{StorageFile, StorageDatabase, StorageHybrid} }

func newStore(t *testing.T, storage string) string {
	t.Helper()
	dir := filepath.Join(blobstoretest.TempDir(t), "store")
	if _, err := Init(context.Background(), dir, InitOptions{Storage: storage}); err != nil {
		t.Fatal(err)
	}
	return dir
}

func openStore(t *testing.T, dir string) *Volume {
	t.Helper()
	v, err := Open(context.Background(), Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func closeStore(t *testing.T, v *Volume) {
	t.Helper()
	if err := v.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func actor() catalog.Actor { return catalog.Actor{Agent: "test", Program: "go", PID: 1} }

// TestFileModel drives one file with random operations beside a byte slice, in all storage modes, closing, reopening, remounting and merging on the way.
func TestFileModel(t *testing.T) {
	for _, storage := range storages() {
		t.Run(storage, func(t *testing.T) {
			r := seeded(t)
			dir := newStore(t, storage)
			v := openStore(t, dir)
			ctx := context.Background()
			flags := OpenFlags{Read: true, Write: true}
			row, h, err := v.CreateFile(ctx, actor(), catalog.Root, "f", catalog.NewInode{Mode: unix.S_IFREG | 0o644}, flags)
			if err != nil {
				t.Fatal(err)
			}
			var model []byte
			var versions []content
			changed := false
			for step := range 1500 {
				limit := 3 << 20
				if r.IntN(3) > 0 {
					limit = 90 << 10
				}
				off := r.IntN(limit)
				switch op := r.IntN(20); {
				case op < 8:
					n := 1 + r.IntN(300)
					if r.IntN(10) == 0 {
						n = 1 + r.IntN(1500<<10)
					}
					if r.IntN(3) == 0 {
						off = len(model)
					}
					p := fillBytes(r, n)
					if _, err := h.WriteAt(ctx, p, int64(off), WriteFlags{}); err != nil {
						t.Fatal(err)
					}
					if need := off + n; need > len(model) {
						model = append(model, make([]byte, need-len(model))...)
					}
					copy(model[off:], p)
					changed = true
				case op == 8:
					if err := h.Truncate(ctx, int64(off)); err != nil {
						t.Fatal(err)
					}
					changed = changed || off != len(model)
					if off <= len(model) {
						model = model[:off:off]
					} else {
						model = append(model, make([]byte, off-len(model))...)
					}
				case op == 9:
					n := 1 + r.IntN(200<<10)
					if err := h.Allocate(ctx, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(off), int64(n)); err != nil {
						t.Fatal(err)
					}
					changed = true
					if off < len(model) {
						clear(model[off:min(len(model), off+n)])
					}
				case op == 10:
					if len(model) < 2 {
						continue
					}
					n := 1 + r.IntN(len(model)/2)
					from := r.IntN(len(model) - n)
					to := from + n + r.IntN(1000)
					if r.IntN(2) == 0 && from >= n {
						to = r.IntN(from - n + 1)
					}
					got, err := CopyRange(ctx, h, int64(from), h, int64(to), int64(n))
					if err != nil || got != int64(n) {
						t.Fatalf("copied %d of %d: %v", got, n, err)
					}
					if need := to + n; need > len(model) {
						model = append(model, make([]byte, need-len(model))...)
					}
					copy(model[to:to+n], bytes.Clone(model[from:from+n]))
					changed = true
				case op < 14:
					if err := h.Flush(ctx); err != nil {
						t.Fatal(err)
					}
					if changed {
						versions = append(versions, contentOf(model))
					}
					changed = false
				case op == 14:
					h.Close(ctx)
					if changed {
						versions = append(versions, contentOf(model))
					}
					changed = false
					if r.IntN(4) == 0 {
						closeStore(t, v)
						v = openStore(t, dir)
					}
					if h, err = v.OpenFile(ctx, actor(), row.Ino, flags); err != nil {
						t.Fatal(err)
					}
				case op == 15:
					if err := v.mergeExtents(ctx, row.Ino); err != nil {
						t.Fatal(err)
					}
				default:
					p := make([]byte, 1+r.IntN(100<<10))
					n, err := h.ReadAt(ctx, p, int64(off))
					if err != nil {
						t.Fatal(err)
					}
					want := model[min(off, len(model)):min(len(model), off+len(p))]
					if !bytes.Equal(p[:n], want) {
						t.Fatalf("step %d: read %d at %d differs from the model (%d bytes)", step, n, off, len(model))
					}
				}
				if got, err := v.Get(ctx, row.Ino); err != nil || got.Size != int64(len(model)) {
					t.Fatalf("step %d: size %d, want %d: %v", step, got.Size, len(model), err)
				}
			}
			h.Close(ctx)
			if changed {
				versions = append(versions, contentOf(model))
			}
			checkVersions(t, v, "f", versions)
			closeStore(t, v)
			v = openStore(t, dir)
			checkVersions(t, v, "f", versions)
			closeStore(t, v)
		})
	}
}

// content is what a version must read as.
type content struct {
	size int
	sum  [sha256.Size]byte
}

func contentOf(b []byte) content { return content{len(b), sha256.Sum256(b)} }

func checkVersions(t *testing.T, v *Volume, name string, versions []content) {
	t.Helper()
	ctx := context.Background()
	n := 0
	err := v.Log(ctx, name, func(e LogEntry) error {
		if n >= len(versions) {
			return fmt.Errorf("there are more than %d versions", len(versions))
		}
		want := versions[n]
		n++
		if e.Number != n || e.Size != int64(want.size) || e.SHA256 != hex.EncodeToString(want.sum[:]) || e.Agent != "test" {
			return fmt.Errorf("version %d: %+v, want size %d sum %x", n, e, want.size, want.sum)
		}
		return nil
	})
	if err != nil || n != len(versions) {
		t.Fatalf("%d of %d versions: %v", n, len(versions), err)
	}
	for _, i := range []int{1, len(versions)/2 + 1, len(versions)} {
		var out bytes.Buffer
		if err := v.ReadPath(ctx, name, Moment{Number: i}, &out); err != nil || contentOf(out.Bytes()) != versions[i-1] {
			t.Fatalf("version %d differs: %v", i, err)
		}
	}
}

// TestAppendStoresWhatChanged appends to a large file and looks at what the store grows by.
func TestAppendStoresWhatChanged(t *testing.T) {
	dir := newStore(t, StorageHybrid)
	v := openStore(t, dir)
	defer closeStore(t, v)
	ctx := context.Background()
	big := fillBytes(seeded(t), 8<<20)
	row, err := v.WritePath(ctx, actor(), 0, "logs/big", 0o644, bytes.NewReader(big))
	if err != nil {
		t.Fatal(err)
	}
	if err := v.cat.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	before, err := v.Stats(ctx)
	if err != nil {
		t.Fatal(err)
	}
	const rounds = 40
	for i := range rounds {
		h, err := v.OpenFile(ctx, actor(), row.Ino, OpenFlags{Write: true})
		if err != nil {
			t.Fatal(err)
		}
		line := []byte(strings.Repeat(string(rune('a'+i%26)), 200))
		if _, err := h.WriteAt(ctx, line, int64(len(big)), WriteFlags{}); err != nil {
			t.Fatal(err)
		}
		big = append(big, line...)
		h.Close(ctx)
	}
	if err := v.cat.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	after, err := v.Stats(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if grown := after.JournalBytes - before.JournalBytes; grown > rounds*2000 {
		t.Errorf("%d appends of 200 bytes made the journal grow by %d bytes", rounds, grown)
	}
	if grown := after.Blobs.PlainBytes - before.Blobs.PlainBytes; grown > rounds*200 {
		t.Errorf("%d appends of 200 bytes made the blobs grow by %d bytes", rounds, grown)
	}
	var out bytes.Buffer
	if err := v.ReadPath(ctx, "logs/big", Moment{}, &out); err != nil || !bytes.Equal(out.Bytes(), big) {
		t.Fatalf("content differs: %v", err)
	}
}

// TestSameContentOnce stores one content under many names.
func TestSameContentOnce(t *testing.T) {
	for _, storage := range storages() {
		v := openStore(t, newStore(t, storage))
		ctx := context.Background()
		for _, n := range []int{700, 60 << 10, 3 << 20} {
			content := fillBytes(rand.New(rand.NewPCG(uint64(n), 2)), n)
			var before, after Stats
			var err error
			for i := range 20 {
				if _, err := v.WritePath(ctx, actor(), 0, fmt.Sprintf("messages/%d-%d", n, i), 0o644, bytes.NewReader(content)); err != nil {
					t.Fatal(err)
				}
				if i == 0 {
					if err := v.cat.Flush(ctx); err != nil {
						t.Fatal(err)
					}
					if before, err = v.Stats(ctx); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := v.cat.Flush(ctx); err != nil {
				t.Fatal(err)
			}
			if after, err = v.Stats(ctx); err != nil {
				t.Fatal(err)
			}
			if after.Blobs != before.Blobs {
				t.Errorf("%s, %d bytes: 19 more copies took %+v to %+v", storage, n, before.Blobs, after.Blobs)
			}
			if grown := after.JournalBytes - before.JournalBytes; n > dedupAbove && grown > int64(n) {
				t.Errorf("%s, %d bytes: 19 more copies made the journal grow by %d", storage, n, grown)
			}
		}
		closeStore(t, v)
	}
}

// TestUnlinkedWhileOpen goes on with a file that has lost its name.
func TestUnlinkedWhileOpen(t *testing.T) {
	v := openStore(t, newStore(t, StorageHybrid))
	defer closeStore(t, v)
	ctx := context.Background()
	_, h, err := v.CreateFile(ctx, actor(), catalog.Root, "gone", catalog.NewInode{Mode: unix.S_IFREG | 0o600}, OpenFlags{Read: true, Write: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Unlink(ctx, actor(), catalog.Root, "gone"); err != nil {
		t.Fatal(err)
	}
	data := fillBytes(seeded(t), 2<<20)
	if _, err := h.WriteAt(ctx, data, 5, WriteFlags{}); err != nil {
		t.Fatal(err)
	}
	if err := h.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if row, err := v.Get(ctx, h.Ino()); err != nil || row.Nlink != 0 || row.Size != int64(len(data)+5) {
		t.Fatalf("%+v %v", row, err)
	}
	got := make([]byte, len(data)+10)
	if n, err := h.ReadAt(ctx, got, 0); err != nil || !bytes.Equal(got[5:n], data) {
		t.Fatalf("%d bytes, %v", n, err)
	}
	h.Close(ctx)
	if left, err := os.ReadDir(filepath.Join(v.Dir(), stagingDir)); err != nil || len(left) != 0 {
		t.Fatalf("staging holds %v, %v", left, err)
	}
	v.mu.RLock()
	defer v.mu.RUnlock()
	if len(v.files) != 0 {
		t.Fatalf("%d files stay open", len(v.files))
	}
}

// TestTmpfileLinked gives a nameless file its name after it was written.
func TestTmpfileLinked(t *testing.T) {
	dir := newStore(t, StorageHybrid)
	v := openStore(t, dir)
	ctx := context.Background()
	row, h, err := v.Tmpfile(ctx, actor(), catalog.Root, catalog.NewInode{Mode: unix.S_IFREG | 0o600}, OpenFlags{Read: true, Write: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.WriteAt(ctx, []byte("hello"), 0, WriteFlags{}); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Link(ctx, actor(), row.Ino, catalog.Root, "named"); err != nil {
		t.Fatal(err)
	}
	if err := h.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	h.Close(ctx)
	closeStore(t, v)
	v = openStore(t, dir)
	defer closeStore(t, v)
	var out bytes.Buffer
	if err := v.ReadPath(ctx, "named", Moment{}, &out); err != nil || out.String() != "hello" {
		t.Fatalf("%q %v", out.String(), err)
	}
}

// TestReplaceKeepsHistory writes a path by temporary file and rename, as careful programs do, and removes it in between.
func TestReplaceKeepsHistory(t *testing.T) {
	v := openStore(t, newStore(t, StorageHybrid))
	defer closeStore(t, v)
	ctx := context.Background()
	for i := 1; i <= 3; i++ {
		if _, err := v.WritePath(ctx, actor(), 0, "tasks/plan", 0o644, strings.NewReader(fmt.Sprint("plan ", i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.RemovePath(ctx, actor(), "tasks/plan", false); err != nil {
		t.Fatal(err)
	}
	removed := time.Now()
	if _, err := v.WritePath(ctx, actor(), 0, "tasks/plan", 0o644, strings.NewReader("plan 4")); err != nil {
		t.Fatal(err)
	}
	var numbers []int
	if err := v.Log(ctx, "tasks/plan", func(e LogEntry) error {
		numbers = append(numbers, e.Number)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(numbers) != "[1 2 3 0 4]" {
		t.Fatalf("log has %v", numbers)
	}
	for i := 1; i <= 4; i++ {
		var out bytes.Buffer
		if err := v.ReadPath(ctx, "/tasks/plan", Moment{Number: i}, &out); err != nil || out.String() != fmt.Sprint("plan ", i) {
			t.Fatalf("version %d: %q, %v", i, out.String(), err)
		}
	}
	if err := v.ReadPath(ctx, "tasks/plan", Moment{Time: removed}, io.Discard); !errors.Is(err, catalog.ErrNotExist) {
		t.Fatalf("at a moment when it was removed: %v", err)
	}
	if err := v.ReadPath(ctx, "tasks/plan", Moment{Number: 9}, io.Discard); !errors.Is(err, catalog.ErrNotExist) {
		t.Fatalf("version 9: %v", err)
	}
}

// TestLock opens a store twice.
func TestLock(t *testing.T) {
	dir := newStore(t, StorageHybrid)
	v := openStore(t, dir)
	var locked *LockedError
	if _, err := Open(context.Background(), Options{Dir: dir}); !errors.As(err, &locked) || locked.PID != os.Getpid() {
		t.Fatalf("second open: %v", err)
	}
	if _, err := Open(context.Background(), Options{Dir: dir, ReadOnly: true}); !errors.Is(err, ErrLocked) {
		t.Fatalf("reader beside a writer: %v", err)
	}
	closeStore(t, v)
	a, err := Open(context.Background(), Options{Dir: dir, ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	b, err := Open(context.Background(), Options{Dir: dir, ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.OpenFile(context.Background(), actor(), catalog.Root, OpenFlags{Write: true}); !errors.Is(err, catalog.ErrReadOnly) {
		t.Fatal(err)
	}
	closeStore(t, a)
	closeStore(t, b)
	if _, err := Open(context.Background(), Options{Dir: t.TempDir()}); !errors.Is(err, ErrNoStore) {
		t.Fatal(err)
	}
	if _, err := Init(context.Background(), dir, InitOptions{}); !errors.Is(err, catalog.ErrExist) {
		t.Fatal(err)
	}
}

// TestConcurrentFiles writes, reads and closes many files from many goroutines, two of them to a file.
func TestConcurrentFiles(t *testing.T) {
	v := openStore(t, newStore(t, StorageHybrid))
	defer closeStore(t, v)
	ctx := context.Background()
	var group sync.WaitGroup
	for g := range 8 {
		group.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 3))
			for i := range 40 {
				name := fmt.Sprintf("w%d-%d", g, i)
				row, h, err := v.CreateFile(ctx, actor(), catalog.Root, name, catalog.NewInode{Mode: unix.S_IFREG | 0o644}, OpenFlags{Read: true, Write: true})
				if err != nil {
					t.Error(err)
					return
				}
				other, err := v.OpenFile(ctx, actor(), row.Ino, OpenFlags{Read: true, Write: true})
				if err != nil {
					t.Error(err)
					return
				}
				a, b := fillBytes(r, 1+r.IntN(3000)), fillBytes(r, 1+r.IntN(3000))
				var both sync.WaitGroup
				both.Go(func() { h.WriteAt(ctx, a, 0, WriteFlags{}); h.Flush(ctx); h.Close(ctx) })
				both.Go(func() { other.WriteAt(ctx, b, 5000, WriteFlags{}); other.Flush(ctx); other.Close(ctx) })
				both.Wait()
				var out bytes.Buffer
				if err := v.ReadPath(ctx, name, Moment{}, &out); err != nil {
					t.Error(err)
					return
				}
				if !bytes.Equal(out.Bytes()[:len(a)], a) || !bytes.Equal(out.Bytes()[5000:], b) {
					t.Errorf("%s differs", name)
				}
			}
		})
	}
	group.Wait()
}

// TestCopyWithinStagedFile: a copy to before what is staged moves the staged bytes while they are copied.
func TestCopyWithinStagedFile(t *testing.T) {
	v := openStore(t, newStore(t, StorageHybrid))
	defer closeStore(t, v)
	ctx := context.Background()
	_, h, err := v.CreateFile(ctx, actor(), catalog.Root, "f", catalog.NewInode{Mode: unix.S_IFREG | 0o644}, OpenFlags{Read: true, Write: true})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close(ctx)
	data := fillBytes(seeded(t), 4*maxFileMemory)
	if _, err := h.WriteAt(ctx, data, 8<<20, WriteFlags{}); err != nil {
		t.Fatal(err)
	}
	if n, err := CopyRange(ctx, h, 8<<20, h, 1<<20, int64(len(data))); err != nil || n != int64(len(data)) {
		t.Fatal(n, err)
	}
	for _, off := range []int64{1 << 20, 8 << 20} {
		got := make([]byte, len(data))
		if n, err := h.ReadAt(ctx, got, off); err != nil || n != len(data) || !bytes.Equal(got, data) {
			t.Fatalf("the bytes at %d differ (%d read, %v)", off, n, err)
		}
	}
}

// TestFailedCommitKeepsAdoptedBlob: when the journal refuses the record that would have named an adopted blob, later writes must not reach that blob's file.
func TestFailedCommitKeepsAdoptedBlob(t *testing.T) {
	v := openStore(t, newStore(t, StorageFile))
	defer closeStore(t, v)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	_, h, err := v.CreateFile(ctx, actor(), catalog.Root, "f", catalog.NewInode{Mode: unix.S_IFREG | 0o644}, OpenFlags{Read: true, Write: true})
	if err != nil {
		t.Fatal(err)
	}
	data := fillBytes(seeded(t), 3<<20)
	if _, err := h.WriteAt(ctx, data, 0, WriteFlags{}); err != nil {
		t.Fatal(err)
	}
	f := h.f
	f.mu.Lock()
	cm, _, err := f.plan(ctx, catalog.LevelBasic, false) // adopts; the record is never written, as after a full disk
	f.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.WriteAt(ctx, []byte("later"), 100, WriteFlags{}); err != nil {
		t.Fatal(err)
	}
	if err := v.blobs.Verify(ctx, cm.Blobs[0].Ref); err != nil {
		t.Fatalf("a write reached a stored blob: %v", err)
	}
	copy(data[100:], "later")
	if err := h.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	h.Close(ctx)
	var out bytes.Buffer
	if err := v.ReadPath(ctx, "f", Moment{}, &out); err != nil || !bytes.Equal(out.Bytes(), data) {
		t.Fatalf("content differs: %v", err)
	}
}

// TestDamagedBlobIsNeverServed flips a byte below the store.
func TestDamagedBlobIsNeverServed(t *testing.T) {
	dir := newStore(t, StorageFile)
	v := openStore(t, dir)
	ctx := context.Background()
	data := fillBytes(seeded(t), 2<<20)
	if _, err := v.WritePath(ctx, actor(), 0, "f", 0o644, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	closeStore(t, v)
	sum := sha256.Sum256(data)
	name := hex.EncodeToString(sum[:])
	path := filepath.Join(dir, "blobs", name[:2], name)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	raw[1<<20] ^= 1
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	v = openStore(t, dir)
	defer closeStore(t, v)
	if err := v.ReadPath(ctx, "f", Moment{}, io.Discard); !errors.Is(err, blobstore.ErrDamaged) {
		t.Fatalf("a damaged blob reads as %v", err)
	}
}

// TestShellRedirection opens, truncates, closes a duplicate, writes and closes, as `echo >file` does: that is one version. A file that is only emptied gets one, too.
func TestShellRedirection(t *testing.T) {
	v := openStore(t, newStore(t, StorageHybrid))
	defer closeStore(t, v)
	ctx := context.Background()
	row, err := v.WritePath(ctx, actor(), 0, "f", 0o644, strings.NewReader("one"))
	if err != nil {
		t.Fatal(err)
	}
	for _, content := range []string{"two", ""} {
		h, err := v.OpenFile(ctx, actor(), row.Ino, OpenFlags{Write: true, Truncate: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := h.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		if got, err := v.Get(ctx, row.Ino); err != nil || got.Size != 0 {
			t.Fatalf("%+v %v", got, err)
		}
		if content != "" {
			if _, err := h.WriteAt(ctx, []byte(content), 0, WriteFlags{}); err != nil {
				t.Fatal(err)
			}
			if err := h.Flush(ctx); err != nil {
				t.Fatal(err)
			}
		}
		h.Close(ctx)
	}
	checkVersions(t, v, "f", []content{contentOf([]byte("one")), contentOf([]byte("two")), contentOf(nil)})
}
