//go:build system

package acceptance

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// filler fills a store until its disk is full, and knows what was closed without an error.
type filler struct {
	t      *testing.T
	dir    string
	rnd    *rand.Rand
	closed map[string][]byte
	next   int
}

// fill writes files of size bytes until one fails, which must be for want of space.
func (f *filler) fill(size int) {
	f.t.Helper()
	for {
		name := fmt.Sprintf("%06d", f.next)
		f.next++
		data := randomBytes(f.rnd, size)
		err := f.write(name, data)
		if err == nil {
			f.closed[name] = data
			continue
		}
		if !errors.Is(err, unix.ENOSPC) {
			f.t.Errorf("writing %s on a full disk: %v, want that there is no space left", name, err)
		}
		return
	}
}

func (f *filler) write(name string, data []byte) error {
	file, err := os.OpenFile(filepath.Join(f.dir, name), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	return errors.Join(err, file.Close())
}

func (f *filler) check(when string) {
	f.t.Helper()
	for name, want := range f.closed {
		got, err := os.ReadFile(filepath.Join(f.dir, name))
		if err != nil || !bytes.Equal(got, want) {
			f.t.Fatalf("%s: %s was closed with %d bytes; reading gave %d and %v", when, name, len(want), len(got), err)
		}
	}
}

// TestFullDisk fills the disk below the store: programs see ENOSPC and nothing else, what was closed stays, the store can be
// mounted while the disk is full, and when there is space again it goes on.
func TestFullDisk(t *testing.T) {
	for _, storage := range []string{"file", "hybrid", "database"} {
		t.Run(storage, func(t *testing.T) {
			d := newDisk(t, 160)
			ballast := filepath.Join(d.dir, "ballast")
			must(t, os.WriteFile(ballast, make([]byte, 64<<20), 0o644))
			m := newMount(t, placeOptions{storage: storage, parent: d.dir})
			m.start()
			f := &filler{t: t, dir: filepath.Join(m.dir, "tasks"), rnd: newRand(t), closed: map[string][]byte{}}
			f.fill(300 << 10)
			f.fill(20 << 10)
			f.fill(500)
			t.Logf("%d files were closed before the disk was full", len(f.closed))
			if len(f.closed) < 10 {
				t.Errorf("the disk was full after %d files", len(f.closed))
			}
			f.check("on the full disk")
			f.removeSome()
			m.stopFull()
			m.start()
			f.check("mounted again on the full disk")

			must(t, os.Remove(ballast))
			m.stopFull()
			m.start()
			f.check("mounted again with space")
			data := randomBytes(f.rnd, 300<<10)
			must(t, f.write("afterwards", data))
			f.closed["afterwards"] = data
			f.removeSome()
			m.stop()
			m.start()
			f.check("in the end")
			m.stop()
		})
	}
}

// removeSome removes files; without space that may fail, and the file must then still be whole.
func (f *filler) removeSome() {
	f.t.Helper()
	n := 0
	for name := range f.closed {
		switch err := os.Remove(filepath.Join(f.dir, name)); {
		case err == nil:
			delete(f.closed, name)
		case !errors.Is(err, unix.ENOSPC):
			f.t.Errorf("removing %s on a full disk: %v", name, err)
		}
		if n++; n == 5 {
			return
		}
	}
}

// stopFull unmounts; a daemon that could not write all it wanted may say so when it ends, but must end.
func (m *mount) stopFull() {
	m.t.Helper()
	command{}.run(m.t, os.Getenv(binVar), "umount", m.dir)
	m.waitEnd()
	m.daemon = nil
}
