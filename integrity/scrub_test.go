package integrity_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"holdfast/blobstore"
	"holdfast/integrity"
	"holdfast/internal/volume"
)

// TestScrubFindsAll damages contents and second copies; one cycle finds and heals them, nobody reading.
func TestScrubFindsAll(t *testing.T) {
	for _, storage := range storages() {
		t.Run(storage, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, storage)
			var refs []blobstore.Ref
			for i, size := range []int{100, 3000, 40 << 10, 100 << 10, 300 << 10} {
				refs = append(refs, w.put("/tasks/"+string(rune('a'+i)), noise(uint64(i), size)))
			}
			w.uphold()
			second := filepath.Join(w.dir, "second")
			w.reopen(func() {
				for i, ref := range refs {
					if i%2 == 0 {
						w.alter(w.dir, w.isFile(ref), ref, damages()[i].fn)
					} else {
						w.alter(second, ref.Size > blobstore.MaxSmall, ref, damages()[i-1].fn)
					}
				}
			})
			s := w.eng.Scrubber()
			if err := s.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := s.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			for _, ref := range refs {
				if err := errors.Join(w.vol.Blobs().Verify(t.Context(), ref), w.vol.Second().Verify(t.Context(), ref)); err != nil {
					t.Error(err)
				}
			}
			found, healed := 0, 0
			err := w.eng.Failures(t.Context(), 0, func(_ int64, r integrity.Result) error {
				found++
				if r.RecoverySuccessful {
					healed++
				}
				return nil
			})
			if err != nil || found != len(refs) || healed != found {
				t.Errorf("%d found, %d healed, %v", found, healed, err)
			}
			st, err := s.Status(t.Context())
			if err != nil || st.LastCycle.IsZero() || st.Cycle < 2 || st.OldestCheck.IsZero() {
				t.Errorf("%+v %v", st, err)
			}
		})
	}
}

// TestScrubIsHeldAndGoesOn pauses a scrub, opens the store again, resumes it, and stops it.
func TestScrubIsHeldAndGoesOn(t *testing.T) {
	w := newWorld(t, volume.StorageHybrid)
	for i := range 60 {
		w.put("/logs/"+string(rune('a'+i%26))+string(rune('a'+i/26)), noise(uint64(i), 200))
	}
	ctx := t.Context()
	if err := w.eng.Scrubber().Pause(ctx); err != nil {
		t.Fatal(err)
	}
	status := func() integrity.ScrubStatus {
		t.Helper()
		st, err := w.eng.Scrubber().Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	if st := status(); st.State != integrity.ScrubPaused {
		t.Errorf("%+v", st)
	}
	w.reopen(func() {})
	if st := status(); st.State != integrity.ScrubPaused {
		t.Errorf("after a restart: %+v", st)
	}
	s := w.eng.Scrubber()
	if err := s.Wait(ctx); err == nil {
		t.Error("waited for a scrub that is paused")
	}
	if err := s.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(ctx); err != nil && !errors.Is(err, integrity.ErrBusy) {
		t.Error(err)
	}
	if err := s.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if st := status(); st.State != integrity.ScrubStopped || st.LastCycle.IsZero() {
		t.Errorf("%+v", st)
	}
	if err := s.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	if st := status(); st.State == integrity.ScrubStopped {
		t.Errorf("%+v", st)
	}
}

// TestSlicesCoverEverything lets slices do their work with a clock of its own: whole cycles are made within the interval.
func TestSlicesCoverEverything(t *testing.T) {
	w := newWorld(t, volume.StorageFile)
	var refs []blobstore.Ref
	for i := range 12 {
		refs = append(refs, w.put("/logs/"+string(rune('a'+i)), noise(uint64(i), 5000)))
	}
	w.opt.Slice = time.Millisecond
	w.reopen(func() { w.alter(w.dir, true, refs[7], damages()[0].fn) })
	from := w.eng.LastEvent()
	w.eng.Start()
	if e := w.await(from, integrity.EventHealed); e.DataID != refs[7].Hash.String() {
		t.Errorf("%+v", e)
	}
	w.await(from, integrity.EventScrub) // a cycle has ended
}

// TestWatch changes and removes files of the store while nothing reads them.
func TestWatch(t *testing.T) {
	w := newWorld(t, volume.StorageFile)
	body := noise(1, 300<<10)
	ref := w.put("/tasks/a", body)
	gone := w.put("/tasks/b", noise(2, 900))
	w.reopen(func() {}) // nothing is left of how they were made
	w.eng.Start()
	ready := make(chan struct{})
	go func() { // until the watch is there, a change may be missed: it is made again
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for flip := byte(1); ; flip++ {
			f, err := os.OpenFile(contentFile(t, w.dir, ref), os.O_WRONLY, 0)
			if err == nil {
				_, err = f.WriteAt([]byte{body[1000] ^ flip | 1}, 1000)
				err = errors.Join(err, f.Close())
			}
			if err != nil {
				t.Error(err)
			}
			select {
			case <-ready:
				return
			case <-tick.C:
			}
		}
	}()
	e := w.await(0, integrity.EventForeign)
	close(ready)
	if e.DataID != ref.Hash.String() || e.Path != "/tasks/a" {
		t.Errorf("%+v", e)
	}
	from := w.eng.LastEvent()
	if err := os.Remove(contentFile(t, w.dir, gone)); err != nil {
		t.Fatal(err)
	}
	for {
		e := w.await(from, integrity.EventHealed)
		if from = e.Seq; e.DataID == gone.Hash.String() {
			break
		}
	}
	if err := w.vol.Blobs().Verify(t.Context(), gone); err != nil {
		t.Error(err)
	}
}

// TestDegradedAndResilvered takes the second place away: closes succeed, the store says that it is degraded, and when the place is back what is missing is copied.
func TestDegradedAndResilvered(t *testing.T) {
	base := t.TempDir()
	place := filepath.Join(base, "copies")
	w := &world{t: t, dir: filepath.Join(base, "store"), storage: volume.StorageHybrid}
	if _, err := volume.Init(t.Context(), w.dir, volume.InitOptions{SecondCopy: place}); err != nil {
		t.Fatal(err)
	}
	w.opt.Slice = 20 * time.Millisecond
	w.open()
	t.Cleanup(w.close)
	w.eng.Start()
	w.put("/tasks/before", noise(1, 1000))
	from := w.eng.LastEvent()
	if err := os.Rename(place, place+".away"); err != nil {
		t.Fatal(err)
	}
	var refs []blobstore.Ref
	for i, size := range []int{500, 90 << 10} {
		refs = append(refs, w.put("/tasks/"+string(rune('a'+i)), noise(uint64(i+2), size)))
	}
	w.await(from, integrity.EventDegraded)
	st, err := w.eng.Status(t.Context())
	if err != nil || !st.Degraded || st.Healthy || st.DegradedWhy == "" {
		t.Errorf("%+v %v", st, err)
	}
	from = w.eng.LastEvent()
	if err := os.Rename(place+".away", place); err != nil {
		t.Fatal(err)
	}
	// Nobody writes: the engine looks by itself whether the place is back.
	w.await(from, integrity.EventDegraded)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, ref := range refs {
		for {
			ok, err := w.vol.Second().Has(ctx, ref)
			if ok {
				break
			}
			if ctx.Err() != nil {
				t.Fatalf("%s was never copied: %v", ref.Hash, err)
			}
		}
	}
	if st, err := w.eng.Status(t.Context()); err != nil || st.Degraded {
		t.Errorf("%+v %v", st, err)
	}
}

// TestForgottenRecord: the engine's own database may be lost or damaged, and nothing else with it.
func TestForgottenRecord(t *testing.T) {
	w := newWorld(t, volume.StorageHybrid)
	body := noise(1, 1000)
	w.put("/tasks/a", body)
	for _, junk := range [][]byte{[]byte("junk"), make([]byte, 8192), nil} {
		w.reopen(func() {
			for _, end := range []string{"", "-wal", "-shm"} {
				name := filepath.Join(w.dir, "integrity.db"+end)
				err := os.Remove(name)
				if err != nil && !errors.Is(err, os.ErrNotExist) {
					t.Fatal(err)
				}
			}
			if junk != nil {
				if err := os.WriteFile(filepath.Join(w.dir, "integrity.db"), junk, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		})
		w.want("/tasks/a", body)
		if st, err := w.eng.Status(t.Context()); err != nil || !st.Healthy {
			t.Errorf("%+v %v", st, err)
		}
	}
}

// TestEvents has readers of every speed: none blocks the writer, and each sees all events or is told how many it missed.
func TestEvents(t *testing.T) {
	w := newWorld(t, volume.StorageHybrid)
	ctx := t.Context()
	s := w.eng.Scrubber()
	start := w.eng.LastEvent()
	var wg sync.WaitGroup
	const rounds = 4000 // two events each
	for _, page := range []int{1, 100} {
		wg.Go(func() {
			for at := start; at < start+2*rounds; {
				list, err := w.eng.Events(ctx, at, page)
				if err != nil {
					t.Error(err)
					return
				}
				for _, e := range list {
					if e.Kind == integrity.EventGap {
						if e.Seq != at+e.Missed {
							t.Errorf("behind %d: %+v", at, e)
						}
					} else if e.Seq != at+1 {
						t.Errorf("behind %d: %+v", at, e)
					}
					at = e.Seq
				}
			}
		})
	}
	for range rounds {
		if err := errors.Join(s.Pause(ctx), s.Resume(ctx)); err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()
	list, err := w.eng.Events(ctx, 1, 10)
	if err != nil || len(list) == 0 || list[0].Kind != integrity.EventGap || list[0].Missed == 0 {
		t.Errorf("%+v %v", list, err)
	}
	waiting, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := w.eng.Events(waiting, w.eng.LastEvent(), 10); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
