package acceptance

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// damagedStore is an unmounted store whose large files are known.
type damagedStore struct {
	*mount
	files map[string][]byte // path below the mount to content
	blobs map[string]string // path below the mount to the blob's file
}

// newDamagedStore writes six files: half of them in tasks, which is critical, half of them in plain, which is basic.
func newDamagedStore(t *testing.T) *damagedStore {
	t.Helper()
	rnd := newRand(t)
	s := &damagedStore{mount: newMount(t, placeOptions{storage: "hybrid"}), files: map[string][]byte{}, blobs: map[string]string{}}
	s.start()
	must(t, os.Mkdir(filepath.Join(s.dir, "plain"), 0o755))
	for i := range 6 {
		name := fmt.Sprintf("%s/large-%d", []string{"tasks", "plain"}[i%2], i)
		data := randomBytes(rnd, 200<<10+rnd.IntN(600<<10))
		must(t, os.WriteFile(filepath.Join(s.dir, name), data, 0o644))
		sum := sha256.Sum256(data)
		digits := hex.EncodeToString(sum[:])
		s.files[name], s.blobs[name] = data, filepath.Join(s.store, "blobs", digits[:2], digits)
	}
	s.stop()
	for name, blob := range s.blobs {
		st, err := os.Stat(blob)
		if err != nil || st.Size() != int64(len(s.files[name])) {
			t.Fatalf("%s is not stored as %s: %v", name, blob, err)
		}
	}
	return s
}

// flip changes one bit in the middle of a file.
func flip(t *testing.T, path string, off int64) {
	t.Helper()
	must(t, os.Chmod(path, 0o600))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	b := make([]byte, 1)
	_, err = f.ReadAt(b, off)
	must(t, err)
	b[0] ^= 0x10
	_, err = f.WriteAt(b, off)
	must(t, err)
}

// checkVictim reads all files: each must have its bytes, but for a victim that has no other copy, which must give EIO. There is a record of the damage in the log, and of its
// healing in .integrity.
func (s *damagedStore) checkVictim(victim string, heals bool) {
	s.t.Helper()
	for name, want := range s.files {
		got, err := os.ReadFile(filepath.Join(s.dir, name))
		switch {
		case name == victim && !heals:
			if !errors.Is(err, unix.EIO) {
				s.t.Errorf("reading the damaged %s gave %d bytes and %v, want an I/O error", name, len(got), err)
			}
		case err != nil:
			s.t.Errorf("reading %s: %v", name, err)
		case !bytes.Equal(got, want):
			s.t.Errorf("%s came back changed", name)
		}
	}
	blob := filepath.Base(s.blobs[victim])
	if log := s.log(); !bytes.Contains(log, []byte(blob)) {
		s.t.Errorf("the damage of blob %s left no record in the daemon's log:\n%s", blob, log)
	}
	record, err := os.ReadFile(filepath.Join(s.dir, ".integrity", "recoveries.jsonl"))
	if err != nil || !bytes.Contains(record, []byte(blob)) {
		s.t.Errorf("the attempt to heal blob %s left no record in .integrity: %v\n%s", blob, err, record)
	}
}

// TestDamageIsNeverRead flips a bit of a large blob, cuts it short, or removes it, while the store is not mounted.
func TestDamageIsNeverRead(t *testing.T) {
	for _, c := range []struct {
		name   string
		damage func(t *testing.T, blob string)
	}{
		{"flipped bit", func(t *testing.T, blob string) { flip(t, blob, 150<<10) }},
		{"cut short", func(t *testing.T, blob string) { must(t, os.Chmod(blob, 0o600)); must(t, os.Truncate(blob, 140<<10)) }},
		{"longer", func(t *testing.T, blob string) {
			must(t, os.Chmod(blob, 0o600))
			f, err := os.OpenFile(blob, os.O_WRONLY|os.O_APPEND, 0)
			must(t, err)
			_, err = f.Write(make([]byte, 4096))
			must(t, errors.Join(err, f.Close()))
		}},
		{"removed", func(t *testing.T, blob string) { must(t, os.Remove(blob)) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newDamagedStore(t)
			victims := []string{"tasks/large-2", "plain/large-3"}
			for _, victim := range victims {
				c.damage(t, s.blobs[victim])
				s.start()
				if c.name == "longer" {
					s.checkNotWrong(victim)
				} else {
					s.checkVictim(victim, victim == victims[0])
				}
				// The store goes on working, and the file can be replaced.
				must(t, os.WriteFile(filepath.Join(s.dir, victim), s.files[victim], 0o644))
				s.stop()
				s.start()
				got, err := os.ReadFile(filepath.Join(s.dir, victim))
				if err != nil || !bytes.Equal(got, s.files[victim]) {
					t.Errorf("after writing the damaged file again: %d bytes, %v", len(got), err)
				}
				s.stop()
			}
		})
	}
}

// checkNotWrong accepts an error or the right bytes, nothing else.
func (s *damagedStore) checkNotWrong(victim string) {
	s.t.Helper()
	got, err := os.ReadFile(filepath.Join(s.dir, victim))
	if err == nil && !bytes.Equal(got, s.files[victim]) {
		s.t.Errorf("%s came back changed: %d bytes, want %d", victim, len(got), len(s.files[victim]))
	} else if err != nil && !errors.Is(err, unix.EIO) {
		s.t.Errorf("%s: %v, want its bytes or an I/O error", victim, err)
	}
}

// TestDamagedSidecarDoesNotHurt damages and removes sidecars: the content is sound, and must still be read.
func TestDamagedSidecarDoesNotHurt(t *testing.T) {
	s := newDamagedStore(t)
	flip(t, s.blobs["plain/large-1"]+".json", 40)
	must(t, os.Remove(s.blobs["tasks/large-2"]+".json"))
	must(t, os.WriteFile(s.blobs["plain/large-3"]+".json", nil, 0o600))
	s.start()
	for name, want := range s.files {
		got, err := os.ReadFile(filepath.Join(s.dir, name))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v; want its %d bytes", name, len(got), err, len(want))
		}
	}
}
