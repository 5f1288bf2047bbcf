package volume

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/blobstore"
)

// TestSettingsAreReadAgain edits holdfast.toml while the store is open.
func TestSettingsAreReadAgain(t *testing.T) {
	v := openStore(t, newStore(t, StorageHybrid))
	defer closeStore(t, v)
	name := filepath.Join(v.Dir(), settingsFile)
	before, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	edit := func(more string) {
		t.Helper()
		if err := os.WriteFile(name, append(bytes.Clone(before), more...), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	edit("\n[[backup]]\npath = '/elsewhere'\nevery = '1h'\n\n[[recovery]]\npath = '/config'\nrollback = 'automatic'\n")
	if list := v.Backups(); len(list) != 2 || list[1].Path != "/elsewhere" || v.Settings().RollbackOf("/config/x") != RollbackAutomatic {
		t.Errorf("what was added does not count: %+v", list)
	}
	edit("\n[[backup]]\npath = ''\n")
	if list := v.Backups(); len(list) != 2 {
		t.Errorf("settings that are wrong count: %+v", list)
	}
	edit("")
	if list := v.Backups(); len(list) != 1 || v.Settings().RollbackOf("/config/x") != RollbackAsk {
		t.Errorf("what was taken away counts still: %+v", list)
	}
}

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
