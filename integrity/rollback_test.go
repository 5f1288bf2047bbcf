package integrity_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"holdfast/blobstore"
	"holdfast/catalog"
	"holdfast/integrity"
	"holdfast/internal/volume"
)

// TestAutomaticRollback damages the newest version of a status beyond repair: that read fails, and then the version before it is the newest.
func TestAutomaticRollback(t *testing.T) {
	for _, storage := range storages() {
		t.Run(storage, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, storage)
			old := noise(1, 200<<10)
			w.put("/status/agent", noise(0, 100<<10))
			w.put("/status/agent", old)
			ref := w.put("/status/agent", noise(2, 210<<10))
			w.reopen(func() { w.alter(w.dir, w.isFile(ref), ref, damages()[4].fn) })
			w.eng.Start()
			from := w.eng.LastEvent()
			if _, err := w.read("/status/agent"); !errors.Is(err, integrity.ErrNotHealed) {
				t.Fatal(err)
			}
			e := w.await(from, integrity.EventRollback)
			if e.Path != "/status/agent" || !strings.Contains(e.Text, "version 2") {
				t.Errorf("%+v", e)
			}
			w.want("/status/agent", old)
			n := 0
			err := w.vol.Log(t.Context(), "/status/agent", func(x volume.LogEntry) error {
				if n++; n == 3 && x.SHA256 != "" && x.SHA256 != ref.Hash.String() {
					t.Errorf("version 3: %+v", x)
				}
				return nil
			})
			if err != nil || n != 4 {
				t.Errorf("%d versions: %v", n, err)
			}
			if list := w.damaged(); len(list) != 1 || list[0].DataID != ref.Hash.String() {
				t.Errorf("the damaged version is not listed: %+v", list)
			}
			var last integrity.Attempt
			for _, a := range w.attempts() {
				last = a
			}
			if last.Strategy != integrity.VersionRollback || !last.Successful || last.Source == "" {
				t.Errorf("%+v", last)
			}
		})
	}
}

// TestRollbackAsks: elsewhere nothing is rolled back until somebody asks for it.
func TestRollbackAsks(t *testing.T) {
	w := newWorld(t, volume.StorageHybrid)
	old := noise(1, 200<<10)
	w.put("/messages/a", old)
	ref := w.put("/messages/a", noise(2, 210<<10))
	w.reopen(func() { w.alter(w.dir, true, ref, damages()[4].fn) })
	w.eng.Start()
	from := w.eng.LastEvent()
	if _, err := w.read("/messages/a"); !errors.Is(err, integrity.ErrNotHealed) {
		t.Fatal(err)
	}
	if e := w.await(from, integrity.EventManual); e.Path != "/messages/a" {
		t.Errorf("%+v", e)
	}
	if _, err := w.read("/messages/a"); !errors.Is(err, integrity.ErrNotHealed) {
		t.Fatal("a rollback that nobody asked for:", err)
	}
	rec, err := w.eng.Recover(t.Context(), "/messages/a", integrity.RecoverOptions{Strategy: integrity.VersionRollback, DryRun: true})
	if err != nil || !strings.Contains(rec.Plan, "version 1") {
		t.Errorf("%+v %v", rec, err)
	}
	if _, err := w.read("/messages/a"); err == nil {
		t.Error("a dry run has changed something")
	}
	if _, err := w.eng.Recover(t.Context(), "/messages/a", integrity.RecoverOptions{Strategy: integrity.TimestampRollback}); !errors.Is(err, integrity.ErrStrategy) {
		t.Error(err)
	}
	if _, err := w.eng.Recover(t.Context(), "/messages/a", integrity.RecoverOptions{Strategy: integrity.ChecksumMatch}); !errors.Is(err, integrity.ErrNotHealed) {
		t.Error(err)
	}
	rec, err = w.eng.Recover(t.Context(), "/messages/a", integrity.RecoverOptions{})
	if err != nil || !rec.Healthy || rec.Damaged != 1 {
		t.Errorf("%+v %v", rec, err)
	}
	w.want("/messages/a", old)
}

// TestTimestampRollback takes a directory back to before its damage, which came in two records.
func TestTimestampRollback(t *testing.T) {
	w := newWorld(t, volume.StorageHybrid)
	ctx := t.Context()
	dir, err := w.vol.Resolve(ctx, "/messages")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.vol.Create(ctx, actor(), dir.Ino, "d", catalog.NewInode{Mode: 0o40755}); err != nil {
		t.Fatal(err)
	}
	then := map[string][]byte{"/messages/d/a": noise(1, 100<<10), "/messages/d/b": noise(2, 300), "/messages/d/c": noise(3, 90<<10)}
	for p, body := range then {
		w.put(p, body)
	}
	outside := noise(8, 80<<10)
	w.put("/messages/outside", outside)
	bad := []blobstore.Ref{w.put("/messages/d/a", noise(4, 120<<10)), w.put("/messages/d/c", noise(5, 110<<10))}
	w.put("/messages/d/b", noise(6, 300))
	outside2 := noise(9, 80<<10)
	w.put("/messages/outside", outside2)
	w.reopen(func() {
		for _, ref := range bad {
			w.alter(w.dir, true, ref, damages()[4].fn)
		}
	})
	rec, err := w.eng.Recover(ctx, "/messages/d", integrity.RecoverOptions{Strategy: integrity.TimestampRollback})
	if err != nil || !rec.Healthy {
		t.Fatalf("%+v %v", rec, err)
	}
	for p, body := range then {
		w.want(p, body)
	}
	w.want("/messages/outside", outside2)
	sum, err := w.eng.Check(ctx, "/messages/d", integrity.CheckOptions{}, func(r integrity.Result) error {
		t.Errorf("%+v", r)
		return nil
	})
	if err != nil || sum.Failed != 0 || sum.Files != 3 {
		t.Errorf("%+v %v", sum, err)
	}
}

// TestCheckNamesTheFile checks paths with damage in the newest and in earlier versions, without repairing anything.
func TestCheckNamesTheFile(t *testing.T) {
	for _, storage := range storages() {
		t.Run(storage, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, storage)
			first := w.put("/logs/a", noise(1, 100<<10))
			w.put("/logs/a", noise(2, 100<<10))
			w.put("/logs/fine", noise(3, 100))
			now := w.put("/logs/b", noise(4, 200))
			w.reopen(func() {
				for _, ref := range []blobstore.Ref{first, now} {
					w.alter(w.dir, w.isFile(ref), ref, damages()[0].fn)
				}
			})
			for _, o := range []integrity.CheckOptions{{}, {Versions: true}} {
				got := make(map[string]string)
				sum, err := w.eng.Check(t.Context(), "/", o, func(r integrity.Result) error {
					if r.Passed || r.RecoveryAttempted || r.CheckID == "" || r.Type != integrity.Checksum {
						t.Errorf("%+v", r)
					}
					got[r.Path] = r.DataID
					return nil
				})
				want := map[string]string{"/logs/b": now.Hash.String()}
				if o.Versions {
					want["/logs/a"] = first.Hash.String()
				}
				if err != nil || len(got) != len(want) || got["/logs/b"] != want["/logs/b"] || got["/logs/a"] != want["/logs/a"] || sum.Healthy() {
					t.Errorf("versions %v: %v %+v %v", o.Versions, got, sum, err)
				}
			}
			types := make(map[integrity.CheckType]bool)
			if _, err := w.eng.Check(t.Context(), "/logs/fine", integrity.CheckOptions{Passed: true, Versions: true}, func(r integrity.Result) error {
				types[r.Type] = r.Passed
				return nil
			}); err != nil || len(types) != 5 {
				t.Errorf("%v %v", types, err)
			}
			if _, err := w.eng.Check(t.Context(), "/logs/none", integrity.CheckOptions{}, nil); !errors.Is(err, catalog.ErrNotExist) {
				t.Error(err)
			}
			var all int
			sum, err := w.eng.CheckStore(t.Context(), integrity.CheckOptions{Repair: true}, func(r integrity.Result) error {
				all++
				if r.Path == "" || !r.RecoveryAttempted || r.RecoverySuccessful != (r.DataID == now.Hash.String()) {
					t.Errorf("%+v", r)
				}
				return nil
			})
			if err != nil || all != 2 || sum.Failed != 2 || sum.Healed != 1 {
				t.Errorf("%d results, %+v %v", all, sum, err)
			}
		})
	}
}

// TestReadOnlyStore: nothing can be healed, everything can be checked, and what is elsewhere can be read.
func TestReadOnlyStore(t *testing.T) {
	w := newWorld(t, volume.StorageHybrid)
	body := noise(1, 100<<10)
	ref := w.put("/tasks/a", body)
	small := w.put("/logs/b", noise(2, 300))
	w.close()
	w.alter(w.dir, true, ref, damages()[0].fn)
	w.alter(w.dir, false, small, damages()[4].fn)
	vol, err := volume.Open(t.Context(), volume.Options{Dir: w.dir, ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	eng, err := integrity.New(t.Context(), integrity.Options{Volume: vol})
	if err != nil {
		t.Fatal(err)
	}
	eng.Start()
	for p, body := range map[string][]byte{"/tasks/a": body, "/logs/b": noise(2, 300)} {
		var b bytes.Buffer
		if err := vol.ReadPath(t.Context(), p, volume.Moment{}, &b); err != nil || !bytes.Equal(b.Bytes(), body) {
			t.Errorf("%s: %d bytes, %v", p, b.Len(), err)
		}
	}
	sum, err := eng.CheckStore(t.Context(), integrity.CheckOptions{Repair: true}, func(integrity.Result) error { return nil })
	if err != nil || sum.Failed != 2 || sum.Healed != 0 {
		t.Errorf("%+v %v", sum, err)
	}
	if err := errors.Join(eng.Close(), vol.Close(t.Context())); err != nil {
		t.Error(err)
	}
	w.open()
}
