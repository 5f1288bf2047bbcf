package acceptance

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// fsx does random operations on one file, and the same on a byte slice; after each one what can be seen of the file must agree.
// It has several descriptors of the file open at once, and a second file to copy ranges from and to.
type fsx struct {
	rnd      *rand.Rand
	path     string
	files    []*os.File // descriptors of the file, read and write
	model    []byte
	other    *os.File // a second file of otherLen bytes
	otherMod []byte
	history  []string
}

const (
	fsxMax     = 700 << 10 // larger than five hash blocks
	fsxHistory = 60
)

var errFsx = errors.New("the file does not agree with the model")

// TestFsx covers reads, writes, truncation, shared mappings, holes, allocation, range copies, direct reads and remounts.
func TestFsx(t *testing.T) {
	p := newPlace(t, placeOptions{})
	seeds := newRand(t)
	const files, ops = 4, 1000
	rounds := 5
	if raceBuild {
		rounds = 1
	}
	var runs [files]*fsx
	for i := range runs {
		path := filepath.Join(p.dir, fmt.Sprintf("fsx-%d", i))
		x := &fsx{rnd: rand.New(rand.NewPCG(seeds.Uint64(), uint64(i))), path: path}
		must(t, os.WriteFile(path, nil, 0o644))
		x.otherMod = randomBytes(x.rnd, 300<<10)
		must(t, os.WriteFile(path+".other", x.otherMod, 0o644))
		runs[i] = x
	}
	for round := range rounds {
		errs := make(chan error, files)
		for _, x := range runs {
			go func() { errs <- x.run(ops) }()
		}
		for range runs {
			if err := <-errs; err != nil {
				t.Errorf("round %d: %v", round, err)
			}
		}
		if t.Failed() {
			return
		}
		p.reopen()
		for _, x := range runs {
			if err := x.checkClosed(); err != nil {
				t.Fatalf("round %d, after mounting again: %v", round, err)
			}
		}
	}
}

// run opens the files, does n operations and closes them.
func (x *fsx) run(n int) (err error) {
	defer func() {
		for _, f := range append(x.files, x.other) {
			if f != nil {
				err = errors.Join(err, f.Close())
			}
		}
		x.files, x.other = nil, nil
	}()
	for range 3 {
		f, err := os.OpenFile(x.path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		x.files = append(x.files, f)
	}
	if x.other, err = os.OpenFile(x.path+".other", os.O_RDWR, 0); err != nil {
		return err
	}
	for i := range n {
		if err := x.step(i); err != nil {
			return fmt.Errorf("operation %d on %s: %w; the operations before it:\n%s", i, filepath.Base(x.path), err, strings.Join(x.history, "\n"))
		}
	}
	return nil
}

func (x *fsx) note(format string, args ...any) {
	x.history = append(x.history, fmt.Sprintf(format, args...))
	if len(x.history) > fsxHistory {
		x.history = x.history[1:]
	}
}

// span chooses a range that begins before limit and ends at or before max; it favours small ones and block boundaries.
func (x *fsx) span(limit, max int) (off, n int) {
	off = x.rnd.IntN(limit + 1)
	switch x.rnd.IntN(4) {
	case 0:
		off = off / 4096 * 4096
	case 1:
		off = off / (64 << 10) * (64 << 10)
	}
	n = 1 + x.rnd.IntN(1<<(4+x.rnd.IntN(15)))
	if x.rnd.IntN(4) == 0 {
		n = (n + 4095) / 4096 * 4096
	}
	return off, min(n, max-off)
}

func (x *fsx) file() *os.File { return x.files[x.rnd.IntN(len(x.files))] }

// step does one operation and checks the size.
func (x *fsx) step(i int) error {
	var err error
	switch k := x.rnd.IntN(100); {
	case k < 22:
		err = x.write()
	case k < 45:
		err = x.read()
	case k < 52:
		err = x.truncate()
	case k < 60:
		err = x.mapRead()
	case k < 68:
		err = x.mapWrite()
	case k < 74:
		err = x.allocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, "punch")
	case k < 78:
		err = x.allocate(unix.FALLOC_FL_ZERO_RANGE, "zero")
	case k < 80:
		err = x.allocate(unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, "zero, keep size")
	case k < 82:
		err = x.allocate(0, "allocate")
	case k < 87:
		err = x.copyRange()
	case k < 89:
		err = x.append()
	case k < 92:
		x.note("fsync")
		err = x.file().Sync()
	case k < 94:
		err = x.closeAndOpen()
	case k < 96:
		err = x.dropPages()
	case k < 98:
		err = x.readDirect()
	case k < 99:
		err = x.holes()
	default:
		err = x.readAll()
	}
	if err != nil {
		return err
	}
	st, err := x.file().Stat()
	if err == nil && st.Size() != int64(len(x.model)) {
		err = fmt.Errorf("%w: its size is %d, want %d", errFsx, st.Size(), len(x.model))
	}
	return err
}

func (x *fsx) grow(size int) {
	if size > len(x.model) {
		x.model = append(x.model, make([]byte, size-len(x.model))...)
	}
}

func (x *fsx) write() error {
	off, n := x.span(min(len(x.model)+50<<10, fsxMax-1), fsxMax)
	x.note("write %#x + %#x", off, n)
	data := randomBytes(x.rnd, n)
	if x.rnd.IntN(8) == 0 {
		clear(data)
	}
	if _, err := x.file().WriteAt(data, int64(off)); err != nil {
		return err
	}
	x.grow(off + n)
	copy(x.model[off:], data)
	return nil
}

func (x *fsx) append() error {
	n := min(1+x.rnd.IntN(5000), fsxMax-len(x.model))
	x.note("append %#x", n)
	data := randomBytes(x.rnd, n)
	f, err := os.OpenFile(x.path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	x.model = append(x.model, data...)
	return errors.Join(err, f.Close())
}

func (x *fsx) read() error {
	off, n := x.span(len(x.model), fsxMax)
	x.note("read %#x + %#x", off, n)
	got := make([]byte, n)
	m, err := x.file().ReadAt(got, int64(off))
	if err == io.EOF {
		err = nil
	}
	if err != nil {
		return err
	}
	return x.agree(off, got[:m], x.model[off:min(off+n, len(x.model))])
}

func (x *fsx) agree(off int, got, want []byte) error {
	if bytes.Equal(got, want) {
		return nil
	}
	i := 0
	for i < min(len(got), len(want)) && got[i] == want[i] {
		i++
	}
	bad := 0
	for j := range min(len(got), len(want)) {
		if got[j] != want[j] {
			bad++
		}
	}
	return fmt.Errorf("%w: read %#x bytes at %#x, want %#x; the first wrong byte is at %#x, %d are wrong", errFsx, len(got), off, len(want), off+i, bad)
}

func (x *fsx) readAll() error {
	x.note("read all")
	got, err := os.ReadFile(x.path)
	if err != nil {
		return err
	}
	return x.agree(0, got, x.model)
}

func (x *fsx) truncate() error {
	size := x.rnd.IntN(fsxMax)
	switch x.rnd.IntN(5) {
	case 0:
		size = len(x.model) / 4096 * 4096
	case 1:
		size = max(0, len(x.model)-1)
	case 2:
		size = 0
	}
	x.note("truncate to %#x", size)
	var err error
	if x.rnd.IntN(2) == 0 {
		err = x.file().Truncate(int64(size))
	} else {
		err = os.Truncate(x.path, int64(size))
	}
	if err != nil {
		return err
	}
	x.grow(size)
	// What lies beyond the end must read as zeros when the file grows again.
	x.model = append([]byte(nil), x.model[:size]...)
	return nil
}

// mapped calls fn with a shared mapping of a random range of the file.
func (x *fsx) mapped(prot int, fn func(off int, b []byte) error) error {
	if len(x.model) == 0 {
		return nil
	}
	off, n := x.span(len(x.model)-1, len(x.model))
	page := off / 4096 * 4096
	b, err := unix.Mmap(int(x.file().Fd()), int64(page), off+n-page, prot, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	return errors.Join(fn(off, b[off-page:]), unix.Munmap(b))
}

func (x *fsx) mapRead() error {
	return x.mapped(unix.PROT_READ, func(off int, b []byte) error {
		x.note("read mapped %#x + %#x", off, len(b))
		return x.agree(off, b, x.model[off:off+len(b)])
	})
}

func (x *fsx) mapWrite() error {
	return x.mapped(unix.PROT_READ|unix.PROT_WRITE, func(off int, b []byte) error {
		x.note("write mapped %#x + %#x", off, len(b))
		data := randomBytes(x.rnd, len(b))
		copy(b, data)
		copy(x.model[off:], data)
		if x.rnd.IntN(2) == 0 {
			page := off / 4096 * 4096
			whole := b[:len(b):len(b)]
			if page == off {
				return unix.Msync(whole, unix.MS_SYNC)
			}
		}
		return nil
	})
}

func (x *fsx) allocate(mode uint32, name string) error {
	off, n := x.span(min(len(x.model)+10<<10, fsxMax-1), fsxMax)
	x.note("%s %#x + %#x", name, off, n)
	if err := unix.Fallocate(int(x.file().Fd()), mode, int64(off), int64(n)); err != nil {
		return fmt.Errorf("fallocate: %w", err)
	}
	if mode&unix.FALLOC_FL_KEEP_SIZE == 0 {
		x.grow(off + n)
	}
	if mode != 0 && off < len(x.model) {
		clear(x.model[off:min(off+n, len(x.model))])
	}
	return nil
}

// copyRange copies within the file, where the ranges must not overlap, or from or to the other one.
func (x *fsx) copyRange() error {
	src, dst := x.file(), x.file()
	srcModel := x.model
	kind := x.rnd.IntN(3)
	if kind == 1 {
		src, srcModel = x.other, x.otherMod
	}
	if len(srcModel) == 0 {
		return nil
	}
	from, n := x.span(len(srcModel)-1, len(srcModel))
	to, _ := x.span(min(len(x.model)+10<<10, fsxMax-1), fsxMax)
	if kind == 2 {
		dst = x.other
		to = x.rnd.IntN(len(x.otherMod))
		n = min(n, len(x.otherMod)-to)
	}
	n = min(n, fsxMax-to)
	if kind == 0 && from < to+n && to < from+n {
		return nil
	}
	x.note("copy range %#x + %#x to %#x, kind %d", from, n, to, kind)
	data := append([]byte(nil), srcModel[from:from+n]...)
	for done := 0; done < n; {
		a, b := int64(from+done), int64(to+done)
		m, err := unix.CopyFileRange(int(src.Fd()), &a, int(dst.Fd()), &b, n-done, 0)
		if err != nil {
			return fmt.Errorf("copy_file_range: %w", err)
		}
		if m == 0 {
			return fmt.Errorf("%w: copy_file_range copied %#x of %#x bytes", errFsx, done, n)
		}
		done += m
	}
	if kind == 2 {
		copy(x.otherMod[to:], data)
		got := make([]byte, len(x.otherMod))
		if _, err := x.other.ReadAt(got, 0); err != nil {
			return err
		}
		return x.agree(0, got, x.otherMod)
	}
	x.grow(to + n)
	copy(x.model[to:], data)
	return nil
}

func (x *fsx) closeAndOpen() error {
	x.note("close and open")
	i := x.rnd.IntN(len(x.files))
	if err := x.files[i].Close(); err != nil {
		return err
	}
	f, err := os.OpenFile(x.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	x.files[i] = f
	return nil
}

// holes walks the file with SEEK_DATA and SEEK_HOLE: what is called a hole must be zero in the model.
func (x *fsx) holes() error {
	x.note("seek data and holes")
	fd, size := int(x.file().Fd()), int64(len(x.model))
	for off := int64(0); off < size; {
		data, err := unix.Seek(fd, off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			data = size
		} else if err != nil {
			return fmt.Errorf("SEEK_DATA: %w", err)
		}
		if data < off || data > size {
			return fmt.Errorf("%w: SEEK_DATA from %#x gave %#x", errFsx, off, data)
		}
		for _, b := range x.model[off:data] {
			if b != 0 {
				return fmt.Errorf("%w: %#x to %#x is called a hole and has data", errFsx, off, data)
			}
		}
		if data == size {
			return nil
		}
		hole, err := unix.Seek(fd, data, unix.SEEK_HOLE)
		if err != nil {
			return fmt.Errorf("SEEK_HOLE: %w", err)
		}
		if hole <= data || hole > size {
			return fmt.Errorf("%w: SEEK_HOLE from data at %#x gave %#x", errFsx, data, hole)
		}
		off = hole
	}
	return nil
}

// dropPages makes later reads ask the filesystem again: pages are given up once they are written back.
func (x *fsx) dropPages() error {
	x.note("write back and drop cached pages")
	f := x.file()
	if err := unix.Fdatasync(int(f.Fd())); err != nil {
		return fmt.Errorf("fdatasync: %w", err)
	}
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}

// readDirect reads past the page cache.
func (x *fsx) readDirect() error {
	f, err := os.OpenFile(x.path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	off, n := x.span(len(x.model), fsxMax)
	off, n = off/4096*4096, (n+4095)/4096*4096
	x.note("read directly %#x + %#x", off, n)
	// A mapping begins at a page boundary, as direct reads want their memory to.
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	m, err := unix.Pread(int(f.Fd()), b, int64(off))
	if err != nil {
		err = fmt.Errorf("direct read: %w", err)
	} else {
		err = x.agree(off, b[:m], x.model[min(off, len(x.model)):min(off+n, len(x.model))])
	}
	return errors.Join(err, unix.Munmap(b))
}

// checkClosed compares both files while nobody has them open.
func (x *fsx) checkClosed() error {
	if err := x.readAll(); err != nil {
		return err
	}
	got, err := os.ReadFile(x.path + ".other")
	if err != nil {
		return err
	}
	return x.agree(0, got, x.otherMod)
}
