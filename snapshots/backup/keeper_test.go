package backup

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/patience"
	"holdfast/internal/volume"
)

// TestBackupFromTheFuture: a place has a backup that was made while the clock was ten years ahead. That puts off none that follow.
func TestBackupFromTheFuture(t *testing.T) {
	f := newFixture(t)
	f.write("/tasks/plan.md", []byte("the plan"))
	dir := filepath.Join(t.TempDir(), "place")
	now := time.Now()
	ahead := now.Add(10 * 365 * 24 * time.Hour)
	p := f.place(dir)
	if _, err := p.Create(t.Context(), f.vol, CreateOptions{Now: ahead}); err != nil {
		t.Fatal(err)
	}
	all, err := p.List()
	if err != nil || len(all) != 1 {
		t.Fatal(all, err)
	}
	if err := errors.Join(os.Chtimes(p.manifestPath(all[0].Name), ahead, ahead), p.Close()); err != nil {
		t.Fatal(err)
	}
	places := []volume.Backup{{Path: dir, Every: volume.Span(24 * time.Hour), Keep: 7}}
	k := NewKeeper(KeeperOptions{Store: f.vol, StoreID: f.id, Made: ahead, Places: func() []volume.Backup { return places }, Now: func() time.Time { return now }})
	now = now.Add(time.Hour)
	if due := k.States()[0].Due; due.After(now) {
		t.Fatalf("the next backup is due at %v: the clock was wrong once", due)
	}
	now = time.Now()
	if _, err := k.Create(t.Context(), dir, false, nil); err != nil {
		t.Fatal(err)
	}
	due := *k.States()[0].Due
	if now = time.Now(); due.Before(now.Add(23*time.Hour)) || due.After(now.Add(25*time.Hour)) {
		t.Errorf("a backup was made now, and the next is due at %v", due)
	}
}

// TestPlaceThatIsSilent: one place of two does not answer. What is asked of the keeper is answered, and the other place gets its backups.
func TestPlaceThatIsSilent(t *testing.T) {
	f := newFixture(t)
	f.write("/tasks/plan.md", []byte("the plan"))
	base := t.TempDir()
	silent, good := filepath.Join(base, "silent"), filepath.Join(base, "good")
	if err := f.place(silent).Close(); err != nil {
		t.Fatal(err)
	}
	// Whoever opens a pipe waits for the other end: that is how a server looks that is gone.
	pipes := []string{filepath.Join(silent, placeFile)}
	for _, name := range pipes {
		if err := errors.Join(os.RemoveAll(name), unix.Mkfifo(name, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	places := []volume.Backup{{Path: silent, Every: volume.Span(time.Hour), Keep: 7}, {Path: good, Every: volume.Span(time.Hour), Keep: 7}}
	made := make(chan struct{}, 1)
	k := NewKeeper(KeeperOptions{Store: f.vol, StoreID: f.id, Places: func() []volume.Backup { return places }, Done: func() { made <- struct{}{} }})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		k.Run(ctx)
	}()
	<-made
	if s := k.States(); s[1].Backups == 0 {
		t.Errorf("%+v", s[1])
	}
	done, stop := context.WithCancel(t.Context())
	stop()
	if _, err := k.Create(done, silent, false, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("who waits for a place that is silent, and goes: %v", err)
	}
	cancel()
	for _, name := range pipes {
		answer(t, name)
	}
	<-ended
}

// look makes what is due, and waits for it.
func look(ctx context.Context, k *Keeper) {
	k.look(ctx)
	k.work.Wait()
}

// answer gives whoever waits for the other end of a pipe nothing to read.
func answer(t *testing.T, name string) {
	t.Helper()
	w, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestListOfSilentPlace asks for the state of a place whose list does not come: it is said, and not waited for twice.
func TestListOfSilentPlace(t *testing.T) {
	dir := t.TempDir()
	places := []volume.Backup{{Path: dir, Every: volume.Span(time.Hour), Keep: 7}}
	k := NewKeeper(KeeperOptions{Places: func() []volume.Backup { return places }})
	held := make(chan struct{})
	_, err := patience.Call(t.Context(), &k.accessTo(dir).calls, time.Millisecond, 0, func(*patience.Pulse) (int, error) { <-held; return 0, io.EOF })
	if !errors.Is(err, patience.ErrSilent) {
		t.Fatal(err)
	}
	if s := k.States(); len(s) != 1 || s[0].LastError == "" || s[0].Backups != 0 {
		t.Errorf("%+v", s)
	}
	close(held)
}

// TestRotateCountsIntactBackups: of five backups the three newest are damaged. Keeping three keeps all that can be read.
func TestRotateCountsIntactBackups(t *testing.T) {
	f := newFixture(t)
	p := f.place(filepath.Join(t.TempDir(), "place"))
	for i := range 5 {
		f.write("/tasks/plan.md", []byte{byte('a' + i)})
		create(t, f, p, CreateOptions{})
	}
	all, err := p.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range all[2:] {
		damage(t, p.manifestPath(b.Name), -40)
	}
	if res, err := p.Rotate(t.Context(), 3); err != nil || len(res.Backups) > 0 {
		t.Errorf("%+v, %v", res, err)
	}
	if _, err := p.Extract(t.Context(), all[0].Name, "/", filepath.Join(t.TempDir(), "out"), nil); err != nil {
		t.Errorf("the oldest of two backups that were left intact: %v", err)
	}
}
