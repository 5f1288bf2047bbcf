package volume

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/blobstore"
	"holdfast/internal/patience"
)

// hanging is a place of second copies that blocks, as a network filesystem does whose server is gone, for as long as it is held.
type hanging struct {
	blobstore.Store
	x    *Second
	mu   sync.Mutex
	held chan struct{} // nil: it answers
}

func (h *hanging) hold() (release func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	held := make(chan struct{})
	h.held, h.x.patience = held, 20*time.Millisecond
	return sync.OnceFunc(func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.held, h.x.patience = nil, patience.Default
		close(held)
	})
}

func (h *hanging) wait() {
	h.mu.Lock()
	held := h.held
	h.mu.Unlock()
	if held != nil {
		<-held
	}
}

func (h *hanging) PutBatch(ctx context.Context, items []blobstore.Item) error {
	h.wait()
	return h.Store.PutBatch(ctx, items)
}

func (h *hanging) Adopt(ctx context.Context, sum blobstore.Summed, meta blobstore.Meta, path string, durable bool) error {
	h.wait()
	return h.Store.Adopt(ctx, sum, meta, path, durable)
}

func (h *hanging) ReadAt(ctx context.Context, ref blobstore.Ref, p []byte, off int64) (int, error) {
	h.wait()
	return h.Store.ReadAt(ctx, ref, p, off)
}

func (h *hanging) Sidecar(ctx context.Context, hash blobstore.Hash) (blobstore.Sidecar, error) {
	h.wait()
	return h.Store.Sidecar(ctx, hash)
}

func (h *hanging) Delete(ctx context.Context, hash blobstore.Hash) error {
	h.wait()
	return h.Store.Delete(ctx, hash)
}

// hangingStore opens a store whose place of second copies can be held.
func hangingStore(t *testing.T) (*Volume, *hanging) {
	t.Helper()
	v := openStore(t, newStore(t, StorageHybrid))
	putFile(t, v, "/tasks/first", prose(1, 100))
	h := &hanging{Store: v.second.store, x: v.second}
	v.second.store = h
	return v, h
}

// answers waits until the place has given back what it held, and lets it be tried again.
func (x *Second) answers(t *testing.T) {
	t.Helper()
	for {
		x.stateMu.Lock()
		x.retry = time.Time{}
		x.stateMu.Unlock()
		if x.calls.Stuck() == 0 {
			return
		}
		select {
		case <-t.Context().Done():
			t.Fatal("the place never answers")
		case <-time.After(time.Millisecond):
		}
	}
}

// TestHangingSecondPlace closes critical files while the place of the second copies does not answer: the closes end, the store is degraded, nobody asks the place
// again before it has answered, and then all is as it was.
func TestHangingSecondPlace(t *testing.T) {
	for _, size := range []int{300, 200 << 10} {
		v, h := hangingStore(t)
		ctx := t.Context()
		known := putFile(t, v, "/tasks/known", prose(2, size))
		release := h.hold()
		defer release()
		ref := putFile(t, v, "/tasks/a", prose(3, size)) // hangs for ever when it waits for the copy
		if err := v.Second().Err(); !errors.Is(err, ErrSecond) || !strings.Contains(err.Error(), "no answer") {
			t.Errorf("%d bytes: the place hangs: %v", size, err)
		}
		putFile(t, v, "/tasks/b", prose(4, size))
		var p [10]byte
		if err := v.Second().ReadAt(ctx, known, p[:], 0); !errors.Is(err, ErrSecond) {
			t.Errorf("%d bytes: a read of a place that hangs: %v", size, err)
		}
		if _, err := v.Second().Has(ctx, known); !errors.Is(err, ErrSecond) {
			t.Errorf("%d bytes: a question to a place that hangs: %v", size, err)
		}
		if n := v.second.calls.Stuck(); n != 1 {
			t.Errorf("%d bytes: %d operations hang, and one was to find out", size, n)
		}
		release()
		v.second.answers(t)
		if err := v.CopySecond(ctx, ref); err != nil {
			t.Errorf("%d bytes: the place answers again: %v", size, err)
		}
		if err := v.Second().Err(); err != nil {
			t.Errorf("%d bytes: the place answers again, and is said to fail: %v", size, err)
		}
		closeStore(t, v)
	}
}

// TestHangingReadLeavesTheBuffer reads from a place that answers when nobody waits any more: what the caller does with its buffer since is its own.
func TestHangingReadLeavesTheBuffer(t *testing.T) {
	v, h := hangingStore(t)
	ref := putFile(t, v, "/tasks/f", prose(5, 500))
	release := h.hold()
	p := make([]byte, 500)
	if err := v.Second().ReadAt(t.Context(), ref, p, 0); !errors.Is(err, ErrSecond) {
		t.Error(err)
	}
	release()
	v.second.answers(t)
	for _, b := range p {
		if b != 0 {
			t.Fatal("the buffer was written to after the read had failed")
		}
	}
	closeStore(t, v)
}

// TestHangingRemoval removes a copy in a place that hangs while a file with the same content is closed: the close ends, and no copy is believed to be there that goes.
func TestHangingRemoval(t *testing.T) {
	v, h := hangingStore(t)
	ref := putFile(t, v, "/tasks/f", prose(6, 500))
	release := h.hold()
	if gone, err := v.Second().Remove(t.Context(), ref.Hash, func() (bool, error) { return true, nil }); gone || !errors.Is(err, ErrSecond) {
		t.Error(gone, err)
	}
	putFile(t, v, "/tasks/again", prose(6, 500))
	release()
	v.second.answers(t)
	if err := v.CopySecond(t.Context(), ref); err != nil {
		t.Error(err)
	}
	if err := v.Second().Verify(t.Context(), ref); err != nil {
		t.Error(err)
	}
	closeStore(t, v)
}

// TestHangingPlaceIsNotWaitedForAtTheEnd opens a place that does not even open, and closes the store.
func TestHangingPlaceIsNotWaitedForAtTheEnd(t *testing.T) {
	v := openStore(t, newStore(t, StorageHybrid))
	v.second.patience = 20 * time.Millisecond // nothing of it ever answers
	mark := filepath.Join(v.second.dir, copyOf)
	if err := makeSecond(v.second.dir, v.second.id); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(mark), unix.Mkfifo(mark, 0o600)); err != nil {
		t.Fatal(err)
	}
	putFile(t, v, "/tasks/f", prose(7, 500))
	if err := v.Second().Err(); !errors.Is(err, ErrSecond) {
		t.Errorf("the place does not open: %v", err)
	}
	closeStore(t, v)
	w, err := os.OpenFile(mark, os.O_WRONLY, 0) // lets the one that hangs go
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	v.second.answers(t)
}
