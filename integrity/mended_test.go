package integrity_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/blobstore"
	"holdfast/catalog"
	"holdfast/integrity"
	"holdfast/internal/sqldb"
	"holdfast/internal/volume"
)

func (w *world) failures() (list []integrity.Result) {
	w.t.Helper()
	err := w.eng.Failures(context.Background(), 0, func(_ int64, r integrity.Result) error {
		list = append(list, r)
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return list
}

// spoilRow damages what describes a blob, and not its content.
func (w *world) spoilRow(dir string, asFile bool, ref blobstore.Ref) {
	w.t.Helper()
	if asFile {
		name := strings.TrimSuffix(contentFile(w.t, dir, ref), ".zst") + ".json"
		p, err := os.ReadFile(name)
		if err != nil {
			w.t.Fatal(err)
		}
		p[len(p)/2] ^= 1
		if err := os.WriteFile(name, p, 0o600); err != nil {
			w.t.Fatal(err)
		}
		return
	}
	w.sql(filepath.Join(dir, "blobs.db"), func(c *sqldb.Conn) error {
		query := "UPDATE blob SET level = 0, version = version + 1 WHERE hash = ?"
		if ref.Size > blobstore.BlockSize {
			query = "UPDATE large SET hashes = zeroblob(length(hashes)) WHERE id = (SELECT id FROM blob WHERE hash = ?)"
		}
		return c.Prep(query).BindBytes(1, ref.Hash[:]).Exec()
	})
}

// TestWhatReadsMendIsRecorded damages what describes contents. A read does not need it, and mends it: that is a failure, a recovery and two events all the same, of which the level of the
// content comes out as it was.
func TestWhatReadsMendIsRecorded(t *testing.T) {
	for _, storage := range storages() {
		t.Run(storage, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, storage)
			for i, size := range []int{30 << 10, 300 << 10} {
				p := []string{"/tasks/small", "/tasks/large"}[i]
				body := noise(uint64(i), size)
				ref := w.put(p, body)
				w.uphold()
				if size <= blobstore.MaxSmall && w.isFile(ref) {
					continue // a read of it does not look at the sidecar
				}
				w.reopen(func() { w.spoilRow(w.dir, w.isFile(ref), ref) })
				was, seen := len(w.failures()), w.eng.LastEvent()
				w.want(p, body)
				w.want(p, body)
				list := w.failures()[was:]
				if len(list) != 1 || list[0].DataID != ref.Hash.String() || list[0].Path != p || list[0].Passed || !list[0].RecoverySuccessful || list[0].Type != integrity.Checksum {
					t.Fatalf("%s: failures %+v", p, list)
				}
				tries := w.attempts()
				if a := tries[len(tries)-1]; a.DataID != ref.Hash.String() || !a.Successful || a.Strategy != integrity.ChecksumMatch || a.Source != "the content" || a.Path != p {
					t.Errorf("%s: %+v", p, a)
				}
				w.await(seen, integrity.EventDamage)
				w.await(seen, integrity.EventHealed)
				w.uphold()
				if sc, err := w.vol.Blobs().Sidecar(t.Context(), ref.Hash); err != nil || sc.IntegrityLevel != catalog.LevelCritical {
					t.Errorf("%s: %+v, %v", p, sc, err)
				}
			}
		})
	}
}

// TestHealsAreRecordedOnce heals content: the heal writes it through the blob store, which finds the damage a second time, and one failure and one recovery are recorded.
func TestHealsAreRecordedOnce(t *testing.T) {
	for _, storage := range storages() {
		t.Run(storage, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, storage)
			small, large := noise(1, 30<<10), noise(2, 300<<10)
			refs := []blobstore.Ref{w.put("/tasks/small", small), w.put("/tasks/large", large)}
			w.uphold()
			w.reopen(func() {
				for _, ref := range refs {
					w.alter(w.dir, w.isFile(ref), ref, damages()[3].fn)
				}
			})
			w.want("/tasks/small", small)
			w.want("/tasks/large", large)
			tries := 0
			for _, a := range w.attempts() {
				if a.Successful {
					tries++
				}
			}
			if n := len(w.failures()); n != 2 || tries != 2 {
				t.Errorf("%d failures, %d recoveries of two damages: %+v", n, tries, w.attempts())
			}
		})
	}
}

// TestSecondCopyMendedIsRecorded reads second copies of which what describes them is damaged.
func TestSecondCopyMendedIsRecorded(t *testing.T) {
	w := newWorld(t, volume.StorageHybrid)
	bodies := map[string][]byte{"/tasks/a": noise(1, 20<<10), "/tasks/b": noise(2, 300<<10)}
	refs := make(map[string]blobstore.Ref)
	for p, body := range bodies {
		refs[p] = w.put(p, body)
	}
	w.uphold()
	w.reopen(func() {
		for _, ref := range refs {
			w.spoilRow(filepath.Join(w.dir, "second"), ref.Size > blobstore.MaxSmall, ref)
		}
	})
	for p, ref := range refs {
		buf := make([]byte, ref.Size)
		if err := w.vol.Second().ReadAt(t.Context(), ref, buf, 0); err != nil || string(buf) != string(bodies[p]) {
			t.Fatal(p, err)
		}
	}
	list := w.failures()
	if len(list) != 2 {
		t.Fatalf("%+v", list)
	}
	for _, r := range list {
		if !strings.HasPrefix(r.Details, "second copy: ") || !r.RecoverySuccessful || r.Path == "" {
			t.Errorf("%+v", r)
		}
	}
}

// TestMendedAtTheStartIsRecorded leaves a store as a killed process does. The start hands the newest contents over to the blob store again, and what it finds damaged is recorded when there is
// an engine.
func TestMendedAtTheStartIsRecorded(t *testing.T) {
	for _, storage := range storages() {
		t.Run(storage, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, storage)
			body := noise(1, 30<<10)
			ref := w.put("/status/f", body)
			if err := w.vol.Catalog().Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			killed := &world{t: t, dir: filepath.Join(t.TempDir(), "killed"), storage: storage}
			if err := os.CopyFS(killed.dir, os.DirFS(w.dir)); err != nil {
				t.Fatal(err)
			}
			killed.alter(killed.dir, killed.isFile(ref), ref, damages()[0].fn)
			killed.open()
			defer killed.close()
			killed.want("/status/f", body)
			list := killed.failures()
			if len(list) != 1 || list[0].DataID != ref.Hash.String() || !list[0].RecoverySuccessful || list[0].Path != "/status/f" {
				t.Errorf("failures %+v, recoveries %+v", list, killed.attempts())
			}
			if tries := killed.attempts(); len(tries) != 1 || tries[0].Source != blobstore.SourceWriter {
				t.Errorf("recoveries %+v", tries)
			}
		})
	}
}
