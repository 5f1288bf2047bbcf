package volume

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/blobstore"
)

// badSector is a blob store on a disk that cannot read one blob, until it is written anew.
type badSector struct {
	blobstore.Store
	bad blobstore.Hash
}

func (b *badSector) ReadAt(ctx context.Context, ref blobstore.Ref, p []byte, off int64) (int, error) {
	if ref.Hash == b.bad {
		return 0, &fs.PathError{Op: "read", Path: "blobs", Err: unix.EIO}
	}
	return b.Store.ReadAt(ctx, ref, p, off)
}

// mender is a Guard that writes the blob anew.
type mender struct {
	Guard
	mu     sync.Mutex
	healed []blobstore.Ref
	store  *badSector
}

func (m *mender) Heal(_ context.Context, ref blobstore.Ref, _ error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.healed = append(m.healed, ref)
	if m.store.bad = (blobstore.Hash{}); len(m.healed) > 1 {
		return errors.New("once is enough")
	}
	return nil
}

func (*mender) Stored(string, []blobstore.Ref) {}
func (*mender) SecondCopy(error)               {}

// TestBadSectorHeals: a disk gives an error for what it cannot read, and not other bytes. That is damage, too, and heals in the same read; without a guard it is read from the second copy.
func TestBadSectorHeals(t *testing.T) {
	for _, guarded := range []bool{true, false} {
		v := openStore(t, newStore(t, StorageHybrid))
		body := prose(1, 300<<10)
		bad := &badSector{Store: v.blobs}
		bad.bad = putFile(t, v, "/tasks/f", body).Hash
		v.blobs = bad
		m := &mender{store: bad}
		if guarded {
			v.SetGuard(m)
		}
		var out bytes.Buffer
		if err := v.ReadPath(t.Context(), "/tasks/f", Moment{}, &out); err != nil || !bytes.Equal(out.Bytes(), body) {
			t.Errorf("guarded %v: %d bytes, %v", guarded, out.Len(), err)
		}
		if guarded && len(m.healed) != 1 {
			t.Errorf("healed %d times", len(m.healed))
		}
		v.SetGuard(nil)
		closeStore(t, v)
	}
}

// rotsAtOnce is a blob store on a disk that damages each large blob as soon as it is stored, until it is healed.
type rotsAtOnce struct {
	blobstore.Store
	mu    sync.Mutex
	sound bool
}

func (r *rotsAtOnce) ReadAt(ctx context.Context, ref blobstore.Ref, p []byte, off int64) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if ref.Size > blobstore.MaxSmall && !r.sound {
		return 0, &blobstore.DamageError{Hash: ref.Hash, Part: "content", Detail: "it rotted at once"}
	}
	return r.Store.ReadAt(ctx, ref, p, off)
}

// nurse is a Guard that heals, or does not, and remembers what it was told of the second copies.
type nurse struct {
	Guard
	store  *rotsAtOnce
	heals  bool
	mu     sync.Mutex
	second []error
}

func (n *nurse) Heal(_ context.Context, _ blobstore.Ref, cause error) error {
	if !n.heals {
		return cause
	}
	n.store.mu.Lock()
	defer n.store.mu.Unlock()
	n.store.sound = true
	return nil
}

func (*nurse) Stored(string, []blobstore.Ref) {}

func (n *nurse) SecondCopy(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.second = append(n.second, err)
}

// TestDamagedBeforeItIsCopied damages a critical content after it was stored, and before its second copy was made. It is healed and copied, or the close fails: it must not say that all is well
// when nothing intact is left; and the place of the second copies, which works, is not blamed.
func TestDamagedBeforeItIsCopied(t *testing.T) {
	for _, heals := range []bool{true, false} {
		v := openStore(t, newStore(t, StorageHybrid))
		sound := v.blobs
		store := &rotsAtOnce{Store: sound}
		v.blobs = store
		n := &nurse{store: store, heals: heals}
		v.SetGuard(n)
		body := prose(1, 300<<10)
		row, err := v.WritePath(t.Context(), actor(), 0, "/tasks/f", 0o600, bytes.NewReader(body))
		if heals != (err == nil) || !heals && !errors.Is(err, blobstore.ErrDamaged) {
			t.Errorf("heals %v: the close says %v", heals, err)
		}
		if heals {
			if err := v.Second().Verify(t.Context(), soleBlob(t, v, row.Ino)); err != nil {
				t.Errorf("there is no second copy: %v", err)
			}
		}
		for _, err := range n.second {
			if err != nil {
				t.Errorf("the place of the second copies is blamed: %v", err)
			}
		}
		v.SetGuard(nil)
		v.blobs = sound
		closeStore(t, v)
	}
}
