package fs_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"holdfast/internal/fusetest"
)

func itoa(n int) string { return strconv.Itoa(n) }

func testKillPriv(t *testing.T, p place) {
	if !isRoot() {
		return
	}
	const setID = unix.S_ISUID | unix.S_ISGID
	prepare := func(name string, mode uint32) string {
		path := p.path(name)
		write(t, path, "content")
		check(t, unix.Chown(path, 1001, 1001))
		check(t, unix.Chmod(path, mode))
		return path
	}
	asOwner := func(fn func()) { fusetest.As(t, 1001, 1001, nil, fn) }
	rw := func(path string, flags int, fn func(fd int)) {
		fd, err := unix.Open(path, flags, 0)
		if err != nil {
			t.Error(err)
			return
		}
		defer unix.Close(fd)
		fn(fd)
	}
	for _, c := range []struct {
		name string
		do   func(path string)
	}{
		{"write", func(path string) { rw(path, unix.O_WRONLY, func(fd int) { unix.Write(fd, []byte("X")) }) }},
		{"direct write", func(path string) {
			rw(path, unix.O_WRONLY|unix.O_DIRECT, func(fd int) { unix.Pwrite(fd, aligned(4096), 0) })
		}},
		{"append", func(path string) { rw(path, unix.O_WRONLY|unix.O_APPEND, func(fd int) { unix.Write(fd, []byte("X")) }) }},
		{"truncate", func(path string) { unix.Truncate(path, 3) }},
		{"ftruncate", func(path string) { rw(path, unix.O_WRONLY, func(fd int) { unix.Ftruncate(fd, 3) }) }},
		{"O_TRUNC", func(path string) { rw(path, unix.O_WRONLY|unix.O_TRUNC, func(int) {}) }},
	} {
		path := prepare(c.name, 0o6755)
		asOwner(func() { c.do(path) })
		if mode := lstat(t, path).Mode; mode&setID != 0 {
			t.Errorf("%s left mode %o", c.name, mode)
		}
		// Without execute permission for the group, set-gid means mandatory locking and stays.
		path = prepare(c.name+" keeps", 0o2745)
		asOwner(func() { c.do(path) })
		if mode := lstat(t, path).Mode; mode&unix.S_ISGID == 0 {
			t.Errorf("%s took set-gid from mode 2745: %o", c.name, mode)
		}
		// Root may write without consequences.
		path = prepare(c.name+" by root", 0o6755)
		c.do(path)
		if mode := lstat(t, path).Mode; mode&setID != setID {
			t.Errorf("%s by root left mode %o", c.name, mode)
		}
	}
	path := prepare("chown", 0o6755)
	check(t, unix.Chown(path, 1002, 1002))
	if mode := lstat(t, path).Mode; mode&setID != 0 {
		t.Errorf("chown left mode %o", mode)
	}
	// A directory keeps its bits.
	check(t, os.Mkdir(p.path("dir"), 0o755))
	check(t, unix.Chmod(p.path("dir"), 0o2775))
	check(t, unix.Chown(p.path("dir"), 1002, 1002))
	if mode := lstat(t, p.path("dir")).Mode; mode&unix.S_ISGID == 0 {
		t.Errorf("chown of a directory left mode %o", mode)
	}
	// File capabilities go as well.
	path = prepare("capability", 0o755)
	capability := []byte{0, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	capability[0], capability[3] = 1, 2
	check(t, unix.Setxattr(path, "security.capability", capability, 0))
	asOwner(func() { rw(path, unix.O_WRONLY, func(fd int) { unix.Write(fd, []byte("X")) }) })
	if n, err := unix.Getxattr(path, "security.capability", nil); err != unix.ENODATA {
		t.Errorf("a write left a file capability of %d bytes (%v)", n, err)
	}
}

// aligned is a buffer for O_DIRECT.
func aligned(n int) []byte {
	b := make([]byte, n+4096)
	skip := 4096 - int(uintptr(unsafe.Pointer(&b[0]))%4096)
	return b[skip : skip+n]
}

func testTmpfile(t *testing.T, p place) {
	fd, err := unix.Open(p.dir, unix.O_TMPFILE|unix.O_RDWR, 0o640)
	check(t, err)
	f := os.NewFile(uintptr(fd), "tmpfile")
	defer f.Close()
	if _, err := f.WriteString("nameless"); err != nil {
		t.Fatal(err)
	}
	if st := fstat(t, f); st.Nlink != 0 || st.Size != 8 {
		t.Errorf("a file without a name has %d links and %d bytes", st.Nlink, st.Size)
	}
	check(t, unix.Linkat(unix.AT_FDCWD, "/proc/self/fd/"+itoa(fd), unix.AT_FDCWD, p.path("named"), unix.AT_SYMLINK_FOLLOW))
	if st := fstat(t, f); st.Nlink != 1 {
		t.Errorf("after linkat it has %d links", st.Nlink)
	}
	check(t, f.Close())
	wantContent(t, p.path("named"), "nameless")
	if st := lstat(t, p.path("named")); st.Mode&0o777 != 0o640 {
		t.Errorf("it has mode %o", st.Mode)
	}
	// One that never gets a name leaves nothing behind.
	fd, err = unix.Open(p.dir, unix.O_TMPFILE|unix.O_WRONLY|unix.O_EXCL, 0o600)
	check(t, err)
	unix.Write(fd, []byte("gone"))
	wantErrno(t, "linkat of an exclusive temporary file",
		unix.Linkat(unix.AT_FDCWD, "/proc/self/fd/"+itoa(fd), unix.AT_FDCWD, p.path("x"), unix.AT_SYMLINK_FOLLOW), unix.ENOENT)
	check(t, unix.Close(fd))
	if entries, _ := os.ReadDir(p.dir); len(entries) != 1 {
		t.Errorf("the directory has %d entries, want 1", len(entries))
	}
}

func testUnlinkedOpen(t *testing.T, p place) {
	f := open(t, p.path("f"), os.O_CREATE|os.O_RDWR)
	_, err := f.WriteString("before")
	check(t, err)
	check(t, os.Remove(p.path("f")))
	_, err = f.WriteString(" and after")
	check(t, err)
	check(t, f.Sync())
	buf := make([]byte, 100)
	n, err := f.ReadAt(buf, 0)
	if string(buf[:n]) != "before and after" {
		t.Errorf("read %q (%v)", buf[:n], err)
	}
	check(t, f.Truncate(3))
	check(t, f.Chmod(0o600))
	if st := fstat(t, f); st.Nlink != 0 || st.Size != 3 || st.Mode&0o777 != 0o600 {
		t.Errorf("fstat: %d links, %d bytes, mode %o", st.Nlink, st.Size, st.Mode)
	}
	// A file of the same name is another file.
	write(t, p.path("f"), "new")
	if a, b := fstat(t, f).Ino, lstat(t, p.path("f")).Ino; a == b {
		t.Errorf("the new file has the inode number of the old one, %d", a)
	}
	check(t, f.Close())
	wantContent(t, p.path("f"), "new")
}

func testAppend(t *testing.T, p place) {
	const writers, lines = 6, 60
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			script := `i=0; while [ $i -lt ` + itoa(lines) + ` ]; do echo "writer ` + itoa(w) + ` line $i end" >>"$1"; i=$((i+1)); done`
			if out, err := exec.Command("sh", "-c", script, "sh", p.path("log")).CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	wg.Wait()
	got, err := os.ReadFile(p.path("log"))
	check(t, err)
	next := make(map[string]int)
	for line := range strings.Lines(string(got)) {
		f := strings.Fields(line)
		if len(f) != 5 || f[0] != "writer" || f[4] != "end" {
			t.Fatalf("torn line %q", line)
		}
		if f[3] != itoa(next[f[1]]) {
			t.Errorf("writer %s: line %s, want %d", f[1], f[3], next[f[1]])
		}
		next[f[1]]++
	}
	for w := range writers {
		if next[itoa(w)] != lines {
			t.Errorf("%d lines of writer %d, want %d", next[itoa(w)], w, lines)
		}
	}
}

func testMmap(t *testing.T, p place) {
	f := open(t, p.path("f"), os.O_CREATE|os.O_RDWR)
	check(t, f.Truncate(3*4096))
	m, err := unix.Mmap(int(f.Fd()), 0, 3*4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	check(t, err)
	copy(m[4090:], "across the pages")
	buf := make([]byte, 16)
	_, err = f.ReadAt(buf, 4090)
	if string(buf) != "across the pages" {
		t.Errorf("read %q of what was mapped (%v)", buf, err)
	}
	_, err = f.WriteAt([]byte("from write"), 100)
	check(t, err)
	if string(m[100:110]) != "from write" {
		t.Errorf("the mapping shows %q", m[100:110])
	}
	check(t, unix.Msync(m, unix.MS_SYNC))
	// Written after the descriptor is closed, which is no close of the file while it is mapped.
	check(t, f.Close())
	copy(m[8192:], "after close")
	check(t, unix.Munmap(m))
	want := make([]byte, 3*4096)
	copy(want[4090:], "across the pages")
	copy(want[100:], "from write")
	copy(want[8192:], "after close")
	// Not from the cache.
	got := make([]byte, len(want))
	d := open(t, p.path("f"), os.O_RDONLY|unix.O_DIRECT)
	direct := aligned(len(want))
	_, err = io.ReadFull(d, direct)
	check(t, err)
	copy(got, direct)
	if !bytes.Equal(got, want) {
		t.Error("what was written through a mapping did not arrive")
	}
}

func testFallocate(t *testing.T, p place) {
	f := open(t, p.path("f"), os.O_CREATE|os.O_RDWR)
	fd := int(f.Fd())
	content := pattern(40000)
	_, err := f.Write(content)
	check(t, err)
	want := append([]byte(nil), content...)
	verify := func(what string) {
		t.Helper()
		check(t, f.Sync())
		if st := fstat(t, f); st.Size != int64(len(want)) {
			t.Errorf("%s: size %d, want %d", what, st.Size, len(want))
		}
		got, err := os.ReadFile(p.path("f"))
		check(t, err)
		if !bytes.Equal(got, want) {
			t.Errorf("%s: wrong content", what)
		}
	}
	check(t, unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 5000, 9000))
	clear(want[5000:14000])
	verify("punch hole")
	check(t, unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 39000, 9000))
	clear(want[39000:])
	verify("punch hole over the end")
	check(t, unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE, 20000, 100))
	clear(want[20000:20100])
	verify("zero range")
	check(t, unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, 38000, 9000))
	clear(want[38000:])
	verify("zero range that keeps the size")
	check(t, unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE, 39000, 5000))
	want = append(want[:39000], make([]byte, 5000)...)
	verify("zero range that grows")
	check(t, unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, 50000, 5000))
	verify("allocate that keeps the size")
	check(t, unix.Fallocate(fd, 0, 50000, 5000))
	want = append(want, make([]byte, 55000-len(want))...)
	verify("allocate")
	wantErrno(t, "collapse range", unix.Fallocate(fd, unix.FALLOC_FL_COLLAPSE_RANGE, 0, 4096), unix.EOPNOTSUPP)
	wantErrno(t, "insert range", unix.Fallocate(fd, unix.FALLOC_FL_INSERT_RANGE, 0, 4096), unix.EOPNOTSUPP)
	r := open(t, p.path("f"), os.O_RDONLY)
	wantErrno(t, "allocate through a read-only descriptor", unix.Fallocate(int(r.Fd()), 0, 0, 1), unix.EBADF)
	wantErrno(t, "allocate more than there is", unix.Fallocate(fd, 0, 0, 1<<62), unix.ENOSPC)
}

func testCopyRange(t *testing.T, p place) {
	content := pattern(300_000)
	write(t, p.path("src"), string(content))
	src := open(t, p.path("src"), os.O_RDWR)
	dst := open(t, p.path("dst"), os.O_CREATE|os.O_RDWR)
	copyAll := func(from, to, n int64) {
		t.Helper()
		for n > 0 {
			done, err := unix.CopyFileRange(int(src.Fd()), &from, int(dst.Fd()), &to, int(n), 0)
			check(t, err)
			if done == 0 {
				t.Fatalf("copied nothing with %d to go", n)
			}
			n -= int64(done)
		}
	}
	copyAll(0, 0, int64(len(content)))
	wantContent(t, p.path("dst"), string(content))
	// A part, to an odd place, from a source that has changed and is not closed.
	_, err := src.WriteAt([]byte("CHANGED"), 1000)
	check(t, err)
	copyAll(990, 7, 100)
	want := append([]byte(nil), content...)
	changed := append([]byte(nil), content...)
	copy(changed[1000:], "CHANGED")
	copy(want[7:], changed[990:1090])
	check(t, dst.Close())
	wantContent(t, p.path("dst"), string(want))
	// The source is another file's own business.
	_, err = src.WriteAt([]byte("AGAIN"), 1000)
	check(t, err)
	wantContent(t, p.path("dst"), string(want))
	// Nothing behind the end.
	dst = open(t, p.path("dst"), os.O_RDWR)
	var from, to int64 = 1 << 30, 0
	if n, err := unix.CopyFileRange(int(src.Fd()), &from, int(dst.Fd()), &to, 10, 0); n != 0 || err != nil {
		t.Errorf("copy from behind the end: %d %v", n, err)
	}
	out, err := exec.Command("cp", p.path("src"), p.path("copied")).CombinedOutput()
	if err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	got, err := os.ReadFile(p.path("src"))
	check(t, err)
	wantContent(t, p.path("copied"), string(got))
}

func testTruncate(t *testing.T, p place) {
	content := pattern(10_000)
	f := open(t, p.path("f"), os.O_CREATE|os.O_RDWR)
	_, err := f.Write(content)
	check(t, err)
	for _, size := range []int{9_999, 5_000, 4096, 4095, 1, 0, 7, 8192, 20_000} {
		check(t, f.Truncate(int64(size)))
		if size <= len(content) {
			content = content[:size:size]
		} else {
			content = append(content, make([]byte, size-len(content))...)
		}
		wantContent(t, p.path("f"), string(content))
	}
	check(t, f.Close())
	check(t, os.Truncate(p.path("f"), 3))
	wantContent(t, p.path("f"), string(content[:3]))
	check(t, os.Truncate(p.path("f"), 6))
	wantContent(t, p.path("f"), string(append(content[:3:3], 0, 0, 0)))
	write(t, p.path("f"), "")
	wantContent(t, p.path("f"), "")
	wantErrno(t, "truncation of a directory", unix.Truncate(p.dir, 0), unix.EISDIR)
	wantErrno(t, "truncation to a negative size", unix.Truncate(p.path("f"), -1), unix.EINVAL)
}

func testDirect(t *testing.T, p place) {
	f := open(t, p.path("f"), os.O_CREATE|os.O_RDWR|unix.O_DIRECT)
	block := aligned(8192)
	copy(block, pattern(8192))
	_, err := f.Write(block)
	check(t, err)
	if st := fstat(t, f); st.Size != 8192 {
		t.Errorf("size after a direct write: %d", st.Size)
	}
	wantContent(t, p.path("f"), string(block))
	// A direct write is seen through the cache, and a cached one directly.
	g := open(t, p.path("f"), os.O_RDWR)
	copy(block, "second direct write")
	_, err = f.WriteAt(block, 0)
	check(t, err)
	buf := make([]byte, 6)
	if _, err := g.ReadAt(buf, 0); string(buf) != "second" {
		t.Errorf("cached read after a direct write: %q (%v)", buf, err)
	}
	_, err = g.WriteAt([]byte("cached"), 4096)
	check(t, err)
	if _, err := f.ReadAt(block, 0); err != nil || string(block[4096:4102]) != "cached" {
		t.Errorf("direct read after a cached write: %q (%v)", block[4096:4102], err)
	}
}

func testIoctl(t *testing.T, p place) {
	f := open(t, p.path("f"), os.O_CREATE|os.O_RDWR)
	for _, request := range []uintptr{unix.FS_IOC_GETFLAGS, 0x8004587d /* FS_IOC_GOINGDOWN */, unix.TCGETS, 0x40086602} {
		var arg [64]byte
		_, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(&arg)))
		if e != unix.ENOTTY {
			t.Errorf("ioctl %#x: %v, want %v", request, e, unix.ENOTTY)
		}
	}
}

func testLocks(t *testing.T, p place) {
	a := open(t, p.path("f"), os.O_CREATE|os.O_RDWR)
	b := open(t, p.path("f"), os.O_RDWR)
	check(t, unix.Flock(int(a.Fd()), unix.LOCK_EX))
	wantErrno(t, "flock that is taken", unix.Flock(int(b.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
	check(t, a.Close())
	check(t, unix.Flock(int(b.Fd()), unix.LOCK_EX|unix.LOCK_NB))
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: 10, Len: 5}
	check(t, unix.FcntlFlock(b.Fd(), unix.F_OFD_SETLK, &lock))
	c := open(t, p.path("f"), os.O_RDWR)
	for _, r := range []struct {
		start int64
		want  error
	}{{0, nil}, {12, unix.EAGAIN}, {15, nil}} {
		lock := unix.Flock_t{Type: unix.F_WRLCK, Start: r.start, Len: 1}
		if err := unix.FcntlFlock(c.Fd(), unix.F_OFD_SETLK, &lock); !errors.Is(err, r.want) {
			t.Errorf("lock of byte %d: %v, want %v", r.start, err, r.want)
		}
	}
	// Between processes.
	err := exec.Command("flock", "-n", p.path("f"), "true").Run()
	if exit := (*exec.ExitError)(nil); err == nil || errors.As(err, &exit) && exit.ExitCode() != 1 {
		t.Errorf("flock(1) on a locked file: %v", err)
	}
}

// testSignals: a program that gets signals all the time never sees EINTR from a regular file.
func testSignals(t *testing.T, p place) {
	stop, done := make(chan struct{}), make(chan struct{})
	tids := make(chan int, 1)
	go func() {
		defer close(done)
		tid := <-tids
		for {
			select {
			case <-stop:
				return
			default:
				unix.Tgkill(os.Getpid(), tid, unix.SIGURG)
			}
		}
	}()
	fusetest.OnThread(func() {
		tids <- unix.Gettid()
		for i := range 100 {
			path := p.path(itoa(i))
			fd, err := unix.Open(path, unix.O_CREAT|unix.O_RDWR, 0o644)
			if err != nil {
				t.Errorf("open: %v", err)
				break
			}
			if _, err := unix.Write(fd, []byte("x")); err != nil {
				t.Errorf("write: %v", err)
			}
			if i%20 == 0 {
				if err := unix.Fsync(fd); err != nil {
					t.Errorf("fsync: %v", err)
				}
			}
			if err := unix.Close(fd); err != nil {
				t.Errorf("close: %v", err)
			}
			if err := unix.Unlink(path); err != nil {
				t.Errorf("unlink: %v", err)
			}
		}
	})
	close(stop)
	<-done
}

func testExec(t *testing.T, p place) {
	write(t, p.path("script"), "#!/bin/sh\necho \"it runs $1\"\n")
	check(t, os.Chmod(p.path("script"), 0o755))
	out, err := exec.Command(p.path("script"), "well").CombinedOutput()
	if string(out) != "it runs well\n" {
		t.Errorf("a script says %q (%v)", out, err)
	}
	b, err := os.ReadFile("/bin/true")
	check(t, err)
	write(t, p.path("true"), string(b))
	check(t, os.Chmod(p.path("true"), 0o755))
	if out, err := exec.Command(p.path("true")).CombinedOutput(); err != nil {
		t.Errorf("a program: %v: %s", err, out)
	}
	check(t, os.Chmod(p.path("true"), 0o644))
	if err := exec.Command(p.path("true")).Run(); !errors.Is(err, unix.EACCES) {
		t.Errorf("a program without permission: %v", err)
	}
}

func testLarge(t *testing.T, p place) {
	content := pattern(5<<20 + 12345)
	f := open(t, p.path("f"), os.O_CREATE|os.O_RDWR)
	for off := 0; off < len(content); off += 1 << 20 {
		_, err := f.WriteAt(content[off:min(off+1<<20, len(content))], int64(off))
		check(t, err)
	}
	check(t, f.Close())
	// Twice: from the kernel's cache, and around it.
	wantContent(t, p.path("f"), string(content))
	d := open(t, p.path("f"), os.O_RDONLY|unix.O_DIRECT)
	buf := aligned(6 << 20)
	n, err := io.ReadFull(d, buf)
	if n != len(content) || !bytes.Equal(buf[:n], content) {
		t.Errorf("direct read of %d bytes (%v), want %d of the same", n, err, len(content))
	}
	// A few bytes in the middle.
	f = open(t, p.path("f"), os.O_RDWR)
	_, err = f.WriteAt([]byte("overwritten"), 3<<20)
	check(t, err)
	check(t, f.Close())
	copy(content[3<<20:], "overwritten")
	wantContent(t, p.path("f"), string(content))
	if p.m.Kind() == fusetest.Mem {
		return
	}
	// A file of many terabytes that holds little.
	f = open(t, p.path("sparse"), os.O_CREATE|os.O_RDWR)
	_, err = f.WriteAt([]byte("far out"), 1<<44)
	check(t, err)
	check(t, f.Sync())
	if st := fstat(t, f); st.Size != 1<<44+7 {
		t.Errorf("size %d", st.Size)
	}
	small := make([]byte, 9)
	if _, err := f.ReadAt(small, 1<<44-2); err != nil || string(small) != "\x00\x00far out" {
		t.Errorf("read %q (%v)", small, err)
	}
}

func testManyOpen(t *testing.T, p place) {
	const n = 700
	var all []*os.File
	for i := range n {
		f, err := os.OpenFile(p.path("f"+itoa(i%50)), os.O_CREATE|os.O_RDWR, 0o644)
		check(t, err)
		all = append(all, f)
	}
	for i, f := range all {
		_, err := f.WriteAt([]byte{byte(i), byte(i >> 8)}, int64(2*(i/50)))
		check(t, err)
	}
	for _, f := range all {
		check(t, f.Close())
	}
	for i := range 50 {
		var want []byte
		for j := i; j < n; j += 50 {
			want = append(want, byte(j), byte(j>>8))
		}
		wantContent(t, p.path("f"+itoa(i)), string(want))
	}
}

// testWriteOnly: the kernel fills partly written pages by reading through a handle that was opened for writing only.
func testWriteOnly(t *testing.T, p place) {
	write(t, p.path("f"), string(pattern(10_000)))
	want := pattern(10_000)
	// Only a direct read drops the pages without remounting.
	d := open(t, p.path("f"), os.O_RDWR|unix.O_DIRECT)
	block := aligned(4096)
	copy(block, want[4096:8192])
	_, err := d.WriteAt(block, 4096)
	check(t, err)
	f := open(t, p.path("f"), os.O_WRONLY)
	_, err = f.WriteAt([]byte("middle"), 5000)
	check(t, err)
	check(t, f.Close())
	copy(want[5000:], "middle")
	wantContent(t, p.path("f"), string(want))
	_, err = syscall.Pread(int(f.Fd()), make([]byte, 1), 0)
	wantErrno(t, "reading a closed descriptor", err, unix.EBADF)
}
