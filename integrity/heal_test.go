package integrity_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"holdfast/blobstore"
	"holdfast/catalog"
	"holdfast/integrity"
	"holdfast/internal/volume"
)

// TestEachDamageAtEachLevel damages the stored bytes of contents of every size in every way, at every level and in every storage. What is read is always right or an error, and what the
// level promises is healed.
func TestEachDamageAtEachLevel(t *testing.T) {
	for _, storage := range storages() {
		for _, d := range damages() {
			t.Run(storage+"/"+d.name, func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, storage)
				type file struct {
					path  string
					body  []byte
					ref   blobstore.Ref
					heals bool
				}
				var files []file
				for level, dir := range map[string]string{catalog.LevelBasic: "/status", catalog.LevelAdvanced: "/messages", catalog.LevelCritical: "/tasks"} {
					for i, size := range []int{700, 30 << 10, 64<<10 + 1, 700 << 10} {
						body := noise(uint64(len(files)), size)
						if i%2 == 1 {
							body = text(len(files), size)
						}
						f := file{path: fmt.Sprintf("%s/%d", dir, i), body: body}
						f.ref = w.put(f.path, body)
						// What is small is in the journal as well.
						f.heals = size <= blobstore.MaxSmall || level == catalog.LevelCritical || level == catalog.LevelAdvanced && d.small
						files = append(files, f)
					}
				}
				w.uphold()
				w.reopen(func() {
					for _, f := range files {
						w.alter(w.dir, w.isFile(f.ref), f.ref, d.fn)
					}
				})
				for _, f := range files {
					got, err := w.read(f.path)
					switch {
					case err == nil && !bytes.Equal(got, f.body):
						t.Errorf("%s: wrong bytes were read", f.path)
					case f.heals && err != nil:
						t.Errorf("%s: not healed: %v", f.path, err)
					case err != nil && !errors.Is(err, integrity.ErrNotHealed):
						t.Errorf("%s: %v", f.path, err)
					}
				}
				w.reopen(func() {}) // healed for good, not only for that read
				for _, f := range files {
					if err := w.vol.Blobs().Verify(t.Context(), f.ref); f.heals && err != nil {
						t.Errorf("%s: the store has it damaged still: %v", f.path, err)
					}
				}
			})
		}
	}
}

// TestManyReadersOneHeal reads a damaged file from many sides at once: all get the right bytes, and it is healed once.
func TestManyReadersOneHeal(t *testing.T) {
	w := newWorld(t, volume.StorageHybrid)
	body := noise(1, 500<<10)
	ref := w.put("/tasks/f", body)
	w.reopen(func() { w.alter(w.dir, true, ref, damages()[1].fn) })
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() { w.want("/tasks/f", body) })
	}
	wg.Wait()
	list := w.attempts()
	if len(list) != 1 || !list[0].Successful || list[0].Source != "second copy" || list[0].Path != "/tasks/f" || list[0].Bytes != ref.Size {
		t.Errorf("attempts: %+v", list)
	}
	found := 0
	err := w.eng.Failures(t.Context(), 0, func(_ int64, r integrity.Result) error {
		if found++; r.Passed || !r.RecoveryAttempted || !r.RecoverySuccessful || r.DataID != ref.Hash.String() || r.Type != integrity.Checksum {
			t.Errorf("%+v", r)
		}
		return nil
	})
	if err != nil || found != 1 {
		t.Errorf("%d failures, %v", found, err)
	}
	kept, err := filepath.Glob(filepath.Join(w.dir, "quarantine", ref.Hash.String()+".*"))
	if err != nil || len(kept) != 1 {
		t.Errorf("the damaged bytes: %q %v", kept, err)
	}
	if len(w.damaged()) != 0 {
		t.Error("what was healed waits for a person")
	}
}

// TestTwoDamagesAtOnce damages the store's copy and the second one.
func TestTwoDamagesAtOnce(t *testing.T) {
	for _, storage := range storages() {
		t.Run(storage, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, storage)
			bodies := map[string][]byte{"/tasks/a": noise(1, 300<<10), "/tasks/b": noise(2, 900), "/tasks/c": noise(3, 400<<10)}
			refs := make(map[string]blobstore.Ref)
			for p, body := range bodies {
				refs[p] = w.put(p, body)
			}
			w.uphold()
			second := filepath.Join(w.dir, "second")
			w.reopen(func() {
				for p, ref := range refs {
					w.alter(second, ref.Size > blobstore.MaxSmall, ref, damages()[3].fn)
					d := damages()[1].fn // the parity heals it
					if p == "/tasks/c" {
						d = damages()[3].fn
					}
					w.alter(w.dir, w.isFile(ref), ref, d)
				}
			})
			w.want("/tasks/a", bodies["/tasks/a"])
			w.want("/tasks/b", bodies["/tasks/b"])
			if _, err := w.read("/tasks/c"); !errors.Is(err, integrity.ErrNotHealed) {
				t.Errorf("both copies are gone: %v", err)
			}
			// The scrub makes the second copies of what could be healed anew.
			if _, err := w.eng.CheckStore(t.Context(), integrity.CheckOptions{Repair: true}, func(integrity.Result) error { return nil }); err != nil {
				t.Fatal(err)
			}
			for _, p := range []string{"/tasks/a", "/tasks/b"} {
				if err := w.vol.Second().Verify(t.Context(), refs[p]); err != nil {
					t.Errorf("%s: second copy: %v", p, err)
				}
			}
		})
	}
}

// TestByHand completes a recovery with the file that somebody has kept.
func TestByHand(t *testing.T) {
	for _, storage := range storages() {
		t.Run(storage, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, storage)
			body := noise(1, 300<<10)
			ref := w.put("/config/../logs/f", body)
			w.put("/messages/other", noise(2, 100))
			w.uphold()
			w.reopen(func() { w.alter(w.dir, w.isFile(ref), ref, damages()[4].fn) })
			if _, err := w.read("/logs/f"); !errors.Is(err, integrity.ErrNotHealed) {
				t.Fatal(err)
			}
			list := w.damaged()
			if len(list) != 1 || list[0].DataID != ref.Hash.String() || len(list[0].Paths) != 1 || list[0].Paths[0] != "/logs/f" || list[0].Size != ref.Size {
				t.Fatalf("%+v", list)
			}
			page := integrity.ManualPage(&list[0])
			for _, part := range []string{"What is broken", "/logs/f", "What was tried", "cp GOOD-FILE .integrity/manual/" + ref.Hash.String()} {
				if !strings.Contains(page, part) {
					t.Errorf("the page lacks %q:\n%s", part, page)
				}
			}
			st, err := w.eng.Status(t.Context())
			if err != nil || st.Healthy || st.Damaged != 1 || !strings.HasPrefix(st.Summary, "not healthy") {
				t.Errorf("%+v %v", st, err)
			}
			w.reopen(func() {}) // it is remembered
			id := ref.Hash.String()
			for what, wrong := range map[string][]byte{"other": noise(9, 300<<10), "short": body[:len(body)-1], "long": append(bytes.Clone(body), 0), "none": nil} {
				if err := w.eng.Complete(t.Context(), id, bytes.NewReader(wrong)); !errors.Is(err, integrity.ErrWrongContent) {
					t.Errorf("%s content: %v", what, err)
				}
			}
			if err := w.eng.Complete(t.Context(), strings.Repeat("0", 64), bytes.NewReader(body)); !errors.Is(err, catalog.ErrNotExist) {
				t.Errorf("nothing of that name waits: %v", err)
			}
			if err := w.eng.Complete(t.Context(), id, bytes.NewReader(body)); err != nil {
				t.Fatal(err)
			}
			w.want("/logs/f", body)
			if len(w.damaged()) != 0 {
				t.Error("it still waits")
			}
		})
	}
}

// backup is a Source in memory.
type backup struct {
	name string
	have map[blobstore.Hash][]byte
}

func (b *backup) Name() string { return b.name }

func (b *backup) Fetch(_ context.Context, ref blobstore.Ref, w io.Writer) error {
	p, ok := b.have[ref.Hash]
	if !ok {
		return blobstore.ErrNotFound
	}
	_, err := w.Write(p)
	return err
}

// TestFromBackups asks backups in their order, one of which lies.
func TestFromBackups(t *testing.T) {
	for _, size := range []int{300 << 10, 70 << 10} {
		w := newWorld(t, volume.StorageHybrid)
		body := noise(1, size)
		ref := w.put("/logs/f", body)
		empty := &backup{name: "empty"}
		liar := &backup{name: "liar", have: map[blobstore.Hash][]byte{ref.Hash: append(noise(2, size), noise(3, 1<<20)...)}}
		other := &backup{name: "other", have: map[blobstore.Hash][]byte{ref.Hash: noise(4, size)}}
		good := &backup{name: "good", have: map[blobstore.Hash][]byte{ref.Hash: body}}
		w.opt.Sources = func() []integrity.Source { return []integrity.Source{empty, liar, other, good} }
		w.reopen(func() { w.alter(w.dir, true, ref, damages()[4].fn) })
		w.want("/logs/f", body)
		var tried []string
		for _, a := range w.attempts() {
			if a.Strategy == integrity.BackupRestore {
				tried = append(tried, fmt.Sprint(a.Source, a.Successful))
			}
		}
		if fmt.Sprint(tried) != "[emptyfalse liarfalse otherfalse goodtrue]" {
			t.Error(tried)
		}
	}
}

// TestHealWhereNothingCanBeWritten: what the store cannot be mended with is read all the same, from where it is intact, and once it can be written it is healed.
func TestHealWhereNothingCanBeWritten(t *testing.T) {
	w := newWorld(t, volume.StorageHybrid)
	body := noise(1, 300<<10)
	ref := w.put("/tasks/f", body)
	staging := filepath.Join(w.dir, "staging")
	w.reopen(func() { w.alter(w.dir, true, ref, damages()[4].fn) })
	if err := os.Rename(staging, staging+".away"); err != nil {
		t.Fatal(err)
	}
	w.want("/tasks/f", body)
	if err := os.Rename(staging+".away", staging); err != nil {
		t.Fatal(err)
	}
	sum, err := w.eng.Check(t.Context(), "/tasks", integrity.CheckOptions{Repair: true}, func(integrity.Result) error { return nil })
	if err != nil || sum.Failed != 1 || sum.Healed != 1 {
		t.Errorf("%+v %v", sum, err)
	}
	if err := w.vol.Blobs().Verify(t.Context(), ref); err != nil {
		t.Error(err)
	}
	if len(w.damaged()) != 0 {
		t.Error("what was healed waits for a person")
	}
}

// TestDedupHeals writes a content again whose stored copy is damaged.
func TestDedupHeals(t *testing.T) {
	for _, storage := range storages() {
		t.Run(storage, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, storage)
			for i, size := range []int{100, 20 << 10, 300 << 10} {
				body := noise(uint64(i), size)
				ref := w.put("/logs/f", body)
				w.reopen(func() { w.alter(w.dir, w.isFile(ref), ref, damages()[0].fn) })
				before := len(w.attempts())
				w.put("/logs/again", body)
				if err := w.vol.Catalog().Flush(t.Context()); err != nil {
					t.Fatal(err)
				}
				if err := w.vol.Blobs().Verify(t.Context(), ref); err != nil {
					t.Errorf("%d bytes: %v", size, err)
				}
				list := w.attempts()[before:]
				if size > 4<<10 && (len(list) != 1 || !list[0].Successful || list[0].Source != "a write of the same content") {
					t.Errorf("%d bytes: attempts %+v", size, list)
				}
			}
		})
	}
}

// TestOtherVersionsHeal damages a blob whose bytes are in others: a log whose small extents were merged.
func TestOtherVersionsHeal(t *testing.T) {
	w := newWorld(t, volume.StorageFile)
	ctx := t.Context()
	dir, err := w.vol.Resolve(ctx, "/logs")
	if err != nil {
		t.Fatal(err)
	}
	row, h, err := w.vol.CreateFile(ctx, actor(), dir.Ino, "log", catalog.NewInode{Mode: 0o644}, volume.OpenFlags{Write: true})
	if err != nil {
		t.Fatal(err)
	}
	var all []byte
	for i := range 90 {
		line := noise(uint64(i), 6000)
		if _, err := h.WriteAt(ctx, line, int64(len(all)), volume.WriteFlags{}); err != nil {
			t.Fatal(err)
		}
		all = append(all, line...)
		if err := h.Flush(ctx); err != nil {
			t.Fatal(err)
		}
	}
	h.Close(ctx)
	var merged blobstore.Ref
	for merged.Size <= 2*blobstore.BlockSize { // merges are made in the background
		if ctx.Err() != nil {
			t.Fatal("the extents were never merged")
		}
		list, err := w.vol.Extents(ctx, row.Ino, catalog.Head)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range list {
			if x.Blob.Size > merged.Size {
				merged = x.Blob
			}
		}
	}
	w.reopen(func() {
		w.alter(w.dir, true, merged, func(p []byte) []byte { clear(p[:len(p)/2]); return p })
	})
	w.want("/logs/log", all)
	healed := false
	for _, a := range w.attempts() {
		healed = healed || a.Successful && a.Source == "other versions"
	}
	if !healed {
		t.Errorf("attempts: %+v", w.attempts())
	}
}

// TestHealedAndDamagedAgain damages a blob time and again below an open store: each time is healed, and recorded.
func TestHealedAndDamagedAgain(t *testing.T) {
	w := newWorld(t, volume.StorageHybrid)
	body := noise(1, 300<<10)
	ref := w.put("/tasks/f", body)
	for n, d := range damages() {
		w.alter(w.dir, true, ref, d.fn)
		sum, err := w.eng.Check(t.Context(), "/tasks/f", integrity.CheckOptions{Repair: true}, func(integrity.Result) error { return nil })
		if err != nil || sum.Failed != 1 || sum.Healed != 1 || len(w.attempts()) != n+1 {
			t.Errorf("%s: %+v, %d attempts, %v", d.name, sum, len(w.attempts()), err)
		}
		if err := w.vol.Blobs().Verify(t.Context(), ref); err != nil {
			t.Error(err)
		}
	}
}

// TestQuarantineIsBounded heals beside old damaged bytes: the oldest go.
func TestQuarantineIsBounded(t *testing.T) {
	w := newWorld(t, volume.StorageHybrid)
	body := noise(1, 300<<10)
	ref := w.put("/tasks/f", body)
	var old []string
	for i := range 3 {
		name := filepath.Join(w.dir, "quarantine", fmt.Sprintf("%064x.2020010%dT000000.000000000Z", i, i+1))
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(name, 100<<20); err != nil { // sparse
			t.Fatal(err)
		}
		old = append(old, name)
	}
	mine := filepath.Join(w.dir, "quarantine", "notes.txt")
	if err := os.WriteFile(mine, []byte("somebody's"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.reopen(func() { w.alter(w.dir, true, ref, damages()[0].fn) })
	w.want("/tasks/f", body)
	for i, name := range append(old, mine) {
		if _, err := os.Stat(name); (err == nil) != (i > 0) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestNumberOfALostRowComesAgain removes the row of a large blob from blobs.db: the next small one gets its number, and is not taken for it.
func TestNumberOfALostRowComesAgain(t *testing.T) {
	w := newWorld(t, volume.StorageDatabase)
	w.put("/logs/small", noise(1, 100))
	if err := w.vol.Catalog().Flush(t.Context()); err != nil { // the large one's is the greatest number
		t.Fatal(err)
	}
	large := w.put("/tasks/large", noise(2, 300<<10))
	w.uphold()
	w.reopen(func() { w.alter(w.dir, false, large, damages()[4].fn) })
	next := noise(3, 200)
	ref := w.put("/logs/next", next)
	if err := w.vol.Catalog().Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := w.eng.CheckStore(t.Context(), integrity.CheckOptions{Repair: true}, func(r integrity.Result) error {
		if r.DataID != large.Hash.String() || !r.RecoverySuccessful {
			t.Errorf("%+v", r)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	w.uphold()
	w.want("/logs/next", next)
	w.want("/tasks/large", noise(2, 300<<10))
	if err := w.vol.Blobs().Verify(t.Context(), ref); err != nil {
		t.Error(err)
	}
}
