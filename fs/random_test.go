package fs_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/fusetest"
)

// twin does the same thing to a directory of the mount and to one of the disk, which is the model.
type twin struct {
	t    *testing.T
	rng  *rand.Rand
	dirs [2]string // the mount's, the model's
	open map[string][2]*os.File
	log  []string
}

// TestRandomOperations: whatever is done to a mount has the outcome that it has on the disk's own filesystem. HOLDFAST_SEED repeats a
// run.
func TestRandomOperations(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("HOLDFAST_SEED"); s != "" {
		var err error
		seed, err = strconv.ParseUint(s, 10, 64)
		check(t, err)
	}
	t.Logf("HOLDFAST_SEED=%d", seed)
	m := fusetest.New(t, fusetest.Options{})
	w := &twin{t: t, rng: rand.New(rand.NewPCG(seed, 1)), open: make(map[string][2]*os.File)}
	w.dirs = [2]string{filepath.Join(m.Dir, "work"), t.TempDir()}
	check(t, os.Mkdir(w.dirs[0], 0o755))
	check(t, os.Chmod(w.dirs[1], 0o755))
	for round := range 4 {
		for range 400 {
			if w.step(); t.Failed() {
				for _, line := range w.log[max(0, len(w.log)-25):] {
					t.Log(line)
				}
				return
			}
		}
		if round == 1 {
			w.closeAll()
			m.Remount()
		}
		w.compare()
	}
	w.closeAll()
}

func (w *twin) name() string {
	parts := []string{"a", "b", "c", "d"}
	p := parts[w.rng.IntN(len(parts))]
	for w.rng.IntN(3) == 0 {
		p = filepath.Join(p, parts[w.rng.IntN(len(parts))])
	}
	return p
}

// both does fn in both directories and wants the same errno.
func (w *twin) both(what string, fn func(dir string) error) {
	w.t.Helper()
	var errnos [2]syscall.Errno
	for i, dir := range w.dirs {
		if err := fn(dir); err != nil && !errors.As(err, &errnos[i]) {
			w.t.Fatalf("%s: %v", what, err)
		}
	}
	w.log = append(w.log, fmt.Sprintf("%s: %v", what, errnos[1]))
	if errnos[0] != errnos[1] {
		w.t.Errorf("%s: %v on the mount, %v on the disk", what, errnos[0], errnos[1])
	}
}

func (w *twin) bytes() []byte {
	n := w.rng.IntN(300)
	if w.rng.IntN(8) == 0 {
		n = w.rng.IntN(300_000)
	}
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(w.rng.Uint32())
	}
	return b
}

func (w *twin) offset() int64 {
	if w.rng.IntN(4) == 0 {
		return w.rng.Int64N(400_000)
	}
	return w.rng.Int64N(600)
}

func (w *twin) step() {
	a, b := w.name(), w.name()
	switch w.rng.IntN(20) {
	case 0, 1, 2:
		data, flags := w.bytes(), []int{os.O_TRUNC, os.O_APPEND, 0, os.O_EXCL}[w.rng.IntN(4)]
		w.both(fmt.Sprintf("write %d bytes to %s, flags %#x", len(data), a, flags), func(dir string) error {
			f, err := os.OpenFile(filepath.Join(dir, a), os.O_CREATE|os.O_WRONLY|flags, 0o640)
			if err != nil {
				return err
			}
			_, err = f.Write(data)
			return errors.Join(err, f.Close())
		})
	case 3:
		w.both("mkdir "+a, func(dir string) error { return unix.Mkdir(filepath.Join(dir, a), 0o750) })
	case 4:
		w.both("rmdir "+a, func(dir string) error { return unix.Rmdir(filepath.Join(dir, a)) })
	case 5, 6:
		w.both("unlink "+a, func(dir string) error { return unix.Unlink(filepath.Join(dir, a)) })
	case 7, 8, 9:
		flags := []uint{0, 0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE}[w.rng.IntN(4)]
		w.both(fmt.Sprintf("rename %s to %s, flags %d", a, b, flags), func(dir string) error {
			return rename2(filepath.Join(dir, a), filepath.Join(dir, b), flags)
		})
	case 10:
		w.both("link "+a+" as "+b, func(dir string) error { return unix.Link(filepath.Join(dir, a), filepath.Join(dir, b)) })
	case 11:
		w.both("symlink "+a+" to "+b, func(dir string) error { return unix.Symlink(b, filepath.Join(dir, a)) })
	case 12:
		size := w.offset()
		w.both(fmt.Sprintf("truncate %s to %d", a, size), func(dir string) error { return unix.Truncate(filepath.Join(dir, a), size) })
	case 13:
		mode := w.rng.Uint32N(0o1000) | 0o700
		w.both(fmt.Sprintf("chmod %s %o", a, mode), func(dir string) error { return unix.Chmod(filepath.Join(dir, a), mode) })
	case 14, 15:
		w.openOne(a)
	case 16, 17, 18:
		w.useOne()
	default:
		w.compareFile(a)
	}
}

func (w *twin) openOne(name string) {
	var files [2]*os.File
	w.both("open "+name, func(dir string) error {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR, 0)
		if dir == w.dirs[0] {
			files[0] = f
		} else {
			files[1] = f
		}
		return err
	})
	if files[0] == nil || files[1] == nil {
		return
	}
	key := fmt.Sprint("handle ", w.rng.IntN(6))
	w.closeOne(key)
	w.open[key] = files
}

func (w *twin) closeOne(key string) {
	if files, ok := w.open[key]; ok {
		check(w.t, files[0].Close())
		check(w.t, files[1].Close())
		delete(w.open, key)
	}
}

func (w *twin) closeAll() {
	for key := range w.open {
		w.closeOne(key)
	}
}

// useOne does something with a file that is open, which may have no name any more.
func (w *twin) useOne() {
	key := fmt.Sprint("handle ", w.rng.IntN(6))
	files, ok := w.open[key]
	if !ok {
		return
	}
	on := func(what string, fn func(f *os.File) error) {
		w.both(what+" through "+key, func(dir string) error {
			if dir == w.dirs[0] {
				return fn(files[0])
			}
			return fn(files[1])
		})
	}
	off, n := w.offset(), w.offset()+1
	switch w.rng.IntN(7) {
	case 0, 1:
		data := w.bytes()
		on(fmt.Sprintf("write %d bytes at %d", len(data), off), func(f *os.File) error {
			_, err := f.WriteAt(data, off)
			return err
		})
	case 2:
		on(fmt.Sprintf("truncate to %d", off), func(f *os.File) error { return f.Truncate(off) })
	case 3:
		on(fmt.Sprintf("punch %d+%d", off, n), func(f *os.File) error {
			return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
		})
	case 4:
		on("fsync", func(f *os.File) error { return f.Sync() })
	case 5:
		w.closeOne(key)
		return
	default:
	}
	var got [2][]byte
	for i, f := range files {
		got[i] = make([]byte, 500_000)
		k, _ := f.ReadAt(got[i], 0)
		got[i] = got[i][:k]
	}
	if !bytes.Equal(got[0], got[1]) {
		w.t.Errorf("%s reads %d bytes on the mount and %d on the disk, or others", key, len(got[0]), len(got[1]))
	}
}

func (w *twin) compareFile(name string) {
	var content [2][]byte
	w.both("read "+name, func(dir string) (err error) {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if dir == w.dirs[0] {
			content[0] = b
		} else {
			content[1] = b
		}
		return err
	})
	if !bytes.Equal(content[0], content[1]) {
		w.t.Errorf("%s holds %d bytes on the mount and %d on the disk, or others", name, len(content[0]), len(content[1]))
	}
}

// compare wants the two trees to be the same.
func (w *twin) compare() {
	var lists [2][]string
	for i, dir := range w.dirs {
		check(w.t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(dir, path)
			if err != nil {
				return err
			}
			var st unix.Stat_t
			if err := unix.Lstat(path, &st); err != nil {
				return err
			}
			line := fmt.Sprintf("%s mode %o links %d owner %d:%d", rel, st.Mode, st.Nlink, st.Uid, st.Gid)
			switch st.Mode & unix.S_IFMT {
			case unix.S_IFREG:
				b, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				line += fmt.Sprintf(" size %d content %x", st.Size, b[:min(len(b), 64)])
				if int64(len(b)) != st.Size {
					line += " but read " + itoa(len(b))
				}
			case unix.S_IFLNK:
				target, err := os.Readlink(path)
				if err != nil {
					return err
				}
				line += " to " + target
			}
			lists[i] = append(lists[i], line)
			return nil
		}))
		sort.Strings(lists[i])
	}
	for i := range max(len(lists[0]), len(lists[1])) {
		if i >= len(lists[0]) || i >= len(lists[1]) || lists[0][i] != lists[1][i] {
			w.t.Errorf("the trees differ:\nmount %q\ndisk  %q", lists[0], lists[1])
			return
		}
	}
	for _, name := range []string{"a", "b", "c", "d"} {
		w.compareFile(name)
	}
}
