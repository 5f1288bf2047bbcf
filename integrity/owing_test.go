package integrity_test

import (
	"context"
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"holdfast/blobstore"
	"holdfast/integrity"
	"holdfast/internal/volume"
)

func (w *world) parity(ref blobstore.Ref) bool {
	w.t.Helper()
	_, ok, err := w.vol.Blobs().(blobstore.Guarded).Parity(context.Background(), ref.Hash)
	if err != nil {
		w.t.Fatal(err)
	}
	return ok
}

// TestParityIsOwedOverRestarts closes files of the level advanced and ends the engine before it has made their parity, once without any background work, as a command does, and once as
// a process that is killed: the next engine makes it at once, and not when the scrub comes by.
func TestParityIsOwedOverRestarts(t *testing.T) {
	for _, killed := range []bool{false, true} {
		w := newWorld(t, volume.StorageHybrid)
		if killed {
			w.eng.Start()
			w.vol.SetGuard(nil) // nothing is queued: the copy below is what a process leaves that is killed before it does its work
		}
		var refs []blobstore.Ref
		for i := range 3 {
			refs = append(refs, w.put("/logs/f"+string(rune('a'+i)), noise(uint64(i+1), 100<<10)))
		}
		if killed {
			if err := os.CopyFS(w.dir+".killed", os.DirFS(w.dir)); err != nil {
				t.Fatal(err)
			}
		}
		w.close()
		if killed {
			w.dir += ".killed"
		}
		w.open()
		for _, ref := range refs {
			if w.parity(ref) {
				t.Fatal("the parity is there already: this test shows nothing")
			}
		}
		last := w.eng.LastEvent()
		w.eng.Start()
		w.await(last, integrity.EventScrub)
		for _, ref := range refs {
			if !w.parity(ref) {
				t.Errorf("killed %v: no parity of %s", killed, ref.Hash)
			}
		}
	}
}

// TestCloseDrains closes the engine right after a file was: its parity is made before.
func TestCloseDrains(t *testing.T) {
	w := newWorld(t, volume.StorageHybrid)
	w.opt.Drain = time.Minute
	w.reopen(func() {})
	w.eng.Start()
	ref := w.put("/logs/f", noise(1, 100<<10))
	w.reopen(func() {})
	if !w.parity(ref) {
		t.Error("the engine was closed without making the parity that it owed")
	}
}

// TestBackupThatComes heals from a backup that was not there when the engine was made, without a restart.
func TestBackupThatComes(t *testing.T) {
	w := newWorld(t, volume.StorageHybrid)
	body, other := noise(1, 300<<10), noise(2, 300<<10)
	ref, read := w.put("/logs/f", body), w.put("/logs/read", other)
	var list []integrity.Source
	w.opt.Sources = func() []integrity.Source { return list }
	w.reopen(func() {
		w.alter(w.dir, true, ref, damages()[4].fn)
		w.alter(w.dir, true, read, damages()[4].fn)
	})
	for _, p := range []string{"/logs/f", "/logs/read"} {
		if _, err := w.read(p); !errors.Is(err, integrity.ErrNotHealed) {
			t.Fatal(err)
		}
	}
	list = []integrity.Source{&backup{name: "new", have: map[blobstore.Hash][]byte{ref.Hash: body, read.Hash: other}}}
	last := w.eng.LastEvent()
	w.eng.Start() // which looks for sources, as the scrub does now and then
	healed := make(map[string]bool)
	for range 2 { // told when it is off the list
		e := w.await(last, integrity.EventHealed)
		last, healed[e.DataID] = e.Seq, true
	}
	if !healed[ref.Hash.String()] || !healed[read.Hash.String()] {
		t.Error(healed)
	}
	w.want("/logs/f", body)
	w.want("/logs/read", other)
	if list := w.damaged(); len(list) > 0 {
		t.Error(list)
	}
}

// silent is a Source that never answers, until it is held no longer.
type silent struct {
	held  chan struct{}
	asked chan struct{}
}

func (s *silent) Name() string { return "silent" }

func (s *silent) Fetch(_ context.Context, _ blobstore.Ref, w io.Writer) error {
	s.asked <- struct{}{}
	<-s.held
	_, err := w.Write([]byte("too late"))
	return err
}

// TestSilentBackup heals from a backup though the one before it in the list never answers; it is not asked again meanwhile.
func TestSilentBackup(t *testing.T) {
	w := newWorld(t, volume.StorageHybrid)
	bodies := map[string][]byte{"/logs/a": noise(1, 300<<10), "/logs/b": noise(2, 300<<10)}
	good := &backup{name: "good", have: map[blobstore.Hash][]byte{}}
	s := &silent{held: make(chan struct{}), asked: make(chan struct{}, 10)}
	w.opt.Sources = func() []integrity.Source { return []integrity.Source{s, good} }
	w.opt.Patience = time.Second
	var refs []blobstore.Ref
	for p, body := range bodies {
		ref := w.put(p, body)
		good.have[ref.Hash] = body
		refs = append(refs, ref)
	}
	w.reopen(func() {
		for _, ref := range refs {
			w.alter(w.dir, true, ref, damages()[4].fn)
		}
	})
	for p, body := range bodies {
		w.want(p, body)
	}
	tries := 0
	for _, a := range w.attempts() {
		if a.Source == "silent" && !a.Successful {
			tries++
		}
	}
	if n := len(s.asked); n != 1 || tries != 2 {
		t.Errorf("the one that is silent was asked %d times, and %d attempts are recorded", n, tries)
	}
	w.close() // does not wait for it
	close(s.held)
}
