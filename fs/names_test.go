package fs_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/internal/fusetest"
)

func testAnyBytes(t *testing.T, p place) {
	want := map[string]bool{strings.Repeat("n", 255): true, strings.Repeat("é", 127): true, " ": true, "...": true, "-rf": true}
	for b := 1; b < 256; b++ {
		if b != '/' && b != '.' {
			want["x"+string([]byte{byte(b)})] = true
		}
	}
	for name := range want {
		write(t, p.path(name), name)
	}
	entries, err := os.ReadDir(p.dir)
	check(t, err)
	for _, e := range entries {
		if !want[e.Name()] {
			t.Errorf("unexpected name %q", e.Name())
		}
		wantContent(t, p.path(e.Name()), e.Name())
		delete(want, e.Name())
	}
	for name := range want {
		t.Errorf("name %q is missing", name)
	}
}

func testPathErrors(t *testing.T, p place) {
	write(t, p.path("file"), "x")
	check(t, os.Mkdir(p.path("dir"), 0o755))
	write(t, p.path("dir", "inner"), "x")
	check(t, os.Symlink("loop", p.path("loop")))
	long := strings.Repeat("n", 256)
	for _, c := range []struct {
		what string
		err  error
		want syscall.Errno
	}{
		{"create with a long name", unix.Mknod(p.path(long), unix.S_IFREG|0o644, 0), unix.ENAMETOOLONG},
		{"stat of a long name", unix.Stat(p.path(long), new(unix.Stat_t)), unix.ENAMETOOLONG},
		{"rename to a long name", unix.Rename(p.path("file"), p.path(long)), unix.ENAMETOOLONG},
		{"stat through a loop", unix.Stat(p.path("loop", "x"), new(unix.Stat_t)), unix.ELOOP},
		{"stat below a file", unix.Stat(p.path("file", "x"), new(unix.Stat_t)), unix.ENOTDIR},
		{"stat of nothing", unix.Stat(p.path("nothing"), new(unix.Stat_t)), unix.ENOENT},
		{"mkdir of a name that is taken", unix.Mkdir(p.path("file"), 0o755), unix.EEXIST},
		{"mkdir below nothing", unix.Mkdir(p.path("nothing", "x"), 0o755), unix.ENOENT},
		{"rmdir of a file", unix.Rmdir(p.path("file")), unix.ENOTDIR},
		{"rmdir of a full directory", unix.Rmdir(p.path("dir")), unix.ENOTEMPTY},
		{"unlink of a directory", unix.Unlink(p.path("dir")), unix.EISDIR},
		{"unlink of nothing", unix.Unlink(p.path("nothing")), unix.ENOENT},
		{"rename of nothing", unix.Rename(p.path("nothing"), p.path("x")), unix.ENOENT},
		{"rename of a file over a directory", unix.Rename(p.path("file"), p.path("dir")), unix.EISDIR},
		{"rename of a directory over a file", unix.Rename(p.path("dir"), p.path("file")), unix.ENOTDIR},
		{"rename of a directory into itself", unix.Rename(p.path("dir"), p.path("dir", "x")), unix.EINVAL},
		{"link of a directory", unix.Link(p.path("dir"), p.path("x")), unix.EPERM},
		{"link to a name that is taken", unix.Link(p.path("file"), p.path("dir")), unix.EEXIST},
		{"link to another filesystem", unix.Link(p.path("file"), filepath.Join(t.TempDir(), "x")), unix.EXDEV},
		{"symlink to a name that is taken", unix.Symlink("x", p.path("file")), unix.EEXIST},
		{"readlink of a file", readlink(p.path("file")), unix.EINVAL},
	} {
		wantErrno(t, c.what, c.err, c.want)
	}
	_, err := os.OpenFile(p.path("dir"), os.O_RDWR, 0)
	wantErrno(t, "opening a directory to write", err, unix.EISDIR)
	_, err = os.OpenFile(p.path("file"), os.O_RDONLY|unix.O_DIRECTORY, 0)
	wantErrno(t, "opening a file as a directory", err, unix.ENOTDIR)
	wantContent(t, p.path("file"), "x")
	wantContent(t, p.path("dir", "inner"), "x")
}

func readlink(path string) error {
	_, err := unix.Readlink(path, make([]byte, 10))
	return err
}

func rename2(from, to string, flags uint) error {
	return unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, flags)
}

func testRenameFlags(t *testing.T, p place) {
	write(t, p.path("a"), "a")
	write(t, p.path("b"), "b")
	check(t, os.MkdirAll(p.path("d", "e"), 0o755))
	wantErrno(t, "NOREPLACE over a file", rename2(p.path("a"), p.path("b"), unix.RENAME_NOREPLACE), unix.EEXIST)
	check(t, rename2(p.path("a"), p.path("c"), unix.RENAME_NOREPLACE))
	wantContent(t, p.path("c"), "a")
	check(t, rename2(p.path("c"), p.path("b"), unix.RENAME_EXCHANGE))
	wantContent(t, p.path("c"), "b")
	wantContent(t, p.path("b"), "a")
	wantErrno(t, "EXCHANGE with nothing", rename2(p.path("b"), p.path("nothing"), unix.RENAME_EXCHANGE), unix.ENOENT)
	// A file and a directory, in different directories: the link counts of the parents follow.
	before, inner := lstat(t, p.dir).Nlink, lstat(t, p.path("d")).Nlink
	check(t, rename2(p.path("b"), p.path("d", "e"), unix.RENAME_EXCHANGE))
	wantContent(t, p.path("d", "e"), "a")
	if st := lstat(t, p.path("b")); st.Mode&unix.S_IFMT != unix.S_IFDIR {
		t.Errorf("after EXCHANGE the directory has mode %o", st.Mode)
	}
	if got := lstat(t, p.dir).Nlink; got != before+1 {
		t.Errorf("link count of the directory that got a directory: %d, want %d", got, before+1)
	}
	if got := lstat(t, p.path("d")).Nlink; got != inner-1 {
		t.Errorf("link count of the directory that gave a directory: %d, want %d", got, inner-1)
	}
	wantErrno(t, "EXCHANGE with an own child", rename2(p.path("d"), p.path("d", "e"), unix.RENAME_EXCHANGE), unix.EINVAL)
	wantErrno(t, "WHITEOUT", rename2(p.path("c"), p.path("w"), unix.RENAME_WHITEOUT), unix.EINVAL)
	wantErrno(t, "both flags", rename2(p.path("c"), p.path("w"), unix.RENAME_EXCHANGE|unix.RENAME_NOREPLACE), unix.EINVAL)
	// Two names of one inode: nothing happens.
	check(t, os.Link(p.path("c"), p.path("c2")))
	check(t, unix.Rename(p.path("c"), p.path("c2")))
	wantContent(t, p.path("c"), "b")
	wantContent(t, p.path("c2"), "b")
}

func testRenameDirs(t *testing.T, p place) {
	check(t, os.MkdirAll(p.path("a", "b", "c"), 0o755))
	check(t, os.Mkdir(p.path("z"), 0o755))
	write(t, p.path("a", "b", "c", "f"), "deep")
	a, z, b := lstat(t, p.path("a")).Nlink, lstat(t, p.path("z")).Nlink, lstat(t, p.path("a", "b"))
	check(t, os.Rename(p.path("a", "b"), p.path("z", "b")))
	if got := lstat(t, p.path("a")).Nlink; got != a-1 {
		t.Errorf("link count of the old parent: %d, want %d", got, a-1)
	}
	if got := lstat(t, p.path("z")).Nlink; got != z+1 {
		t.Errorf("link count of the new parent: %d, want %d", got, z+1)
	}
	if got := lstat(t, p.path("z", "b")); got.Ino != b.Ino {
		t.Errorf("inode number changed from %d to %d", b.Ino, got.Ino)
	}
	wantContent(t, p.path("z", "b", "c", "f"), "deep")
	if got, want := lstat(t, p.path("z", "b", "..")).Ino, lstat(t, p.path("z")).Ino; got != want {
		t.Errorf("\"..\" of the moved directory is inode %d, want %d", got, want)
	}
	// Over an empty directory, and over a full one.
	check(t, os.Mkdir(p.path("empty"), 0o755))
	check(t, unix.Rename(p.path("z"), p.path("empty")))
	check(t, os.Mkdir(p.path("z"), 0o755))
	wantErrno(t, "rename over a full directory", unix.Rename(p.path("z"), p.path("empty")), unix.ENOTEMPTY)
}

func testHardLinks(t *testing.T, p place) {
	write(t, p.path("a"), "x")
	first := lstat(t, p.path("a"))
	tick(t)
	check(t, os.Link(p.path("a"), p.path("b")))
	check(t, os.Link(p.path("a"), p.path("c")))
	for _, name := range []string{"a", "b", "c"} {
		st := lstat(t, p.path(name))
		if st.Nlink != 3 || st.Ino != first.Ino {
			t.Errorf("%s: inode %d with %d links, want %d with 3", name, st.Ino, st.Nlink, first.Ino)
		}
		if nanos(st.Ctim) <= nanos(first.Ctim) {
			t.Errorf("%s: link did not change ctime: %v, before %v", name, st.Ctim, first.Ctim)
		}
		if st.Mtim != first.Mtim {
			t.Errorf("%s: link changed mtime", name)
		}
	}
	linked := lstat(t, p.path("b"))
	tick(t)
	check(t, os.Remove(p.path("a")))
	st := lstat(t, p.path("b"))
	if st.Nlink != 2 || nanos(st.Ctim) <= nanos(linked.Ctim) {
		t.Errorf("after unlink of another name: %d links, ctime %v (before: %v)", st.Nlink, st.Ctim, linked.Ctim)
	}
	// Another file takes the place of one of the names.
	write(t, p.path("new"), "new")
	tick(t)
	check(t, os.Rename(p.path("new"), p.path("c")))
	after := lstat(t, p.path("b"))
	if after.Nlink != 1 || nanos(after.Ctim) <= nanos(st.Ctim) {
		t.Errorf("after another name was replaced: %d links, ctime %v (before: %v)", after.Nlink, after.Ctim, st.Ctim)
	}
	wantContent(t, p.path("b"), "x")
	wantContent(t, p.path("c"), "new")
	// What is written through one name is read through the other.
	check(t, os.Link(p.path("b"), p.path("d")))
	write(t, p.path("d"), "longer than before")
	wantContent(t, p.path("b"), "longer than before")
}

func testReplacedOpen(t *testing.T, p place) {
	write(t, p.path("old"), "old content")
	f := open(t, p.path("old"), os.O_RDWR)
	before := fstat(t, f)
	write(t, p.path("new"), "new content")
	tick(t)
	check(t, os.Rename(p.path("new"), p.path("old")))
	st := fstat(t, f)
	if st.Nlink != 0 || st.Ino != before.Ino || nanos(st.Ctim) <= nanos(before.Ctim) {
		t.Errorf("the replaced file: inode %d, %d links, ctime %v; it was inode %d, ctime %v", st.Ino, st.Nlink, st.Ctim, before.Ino, before.Ctim)
	}
	buf := make([]byte, 100)
	n, err := f.ReadAt(buf, 0)
	if string(buf[:n]) != "old content" {
		t.Errorf("the replaced file reads %q (%v)", buf[:n], err)
	}
	if _, err := f.WriteAt([]byte("OLD"), 0); err != nil {
		t.Errorf("writing to the replaced file: %v", err)
	}
	check(t, f.Sync())
	wantContent(t, p.path("old"), "new content")
}

func testParentTimes(t *testing.T, p place) {
	write(t, p.path("moved"), "x")
	check(t, os.Mkdir(p.path("other"), 0o755))
	for _, c := range []struct {
		what string
		do   func() error
	}{
		{"create", func() error { return os.WriteFile(p.path("f"), nil, 0o644) }},
		{"mkdir", func() error { return os.Mkdir(p.path("d"), 0o755) }},
		{"symlink", func() error { return os.Symlink("f", p.path("s")) }},
		{"link", func() error { return os.Link(p.path("f"), p.path("l")) }},
		{"mknod", func() error { return unix.Mkfifo(p.path("p"), 0o644) }},
		{"rename within", func() error { return os.Rename(p.path("f"), p.path("g")) }},
		{"rename away", func() error { return os.Rename(p.path("moved"), p.path("other", "moved")) }},
		{"rename into", func() error { return os.Rename(p.path("other", "moved"), p.path("back")) }},
		{"unlink", func() error { return os.Remove(p.path("g")) }},
		{"rmdir", func() error { return os.Remove(p.path("d")) }},
	} {
		before := lstat(t, p.dir)
		tick(t)
		check(t, c.do())
		after := lstat(t, p.dir)
		if nanos(after.Mtim) <= nanos(before.Mtim) || nanos(after.Ctim) <= nanos(before.Ctim) {
			t.Errorf("%s: mtime %v then %v, ctime %v then %v of the directory", c.what, before.Mtim, after.Mtim, before.Ctim, after.Ctim)
		}
	}
	before := lstat(t, p.dir)
	check(t, os.Chmod(p.path("back"), 0o600))
	if after := lstat(t, p.dir); after.Mtim != before.Mtim {
		t.Error("chmod of a file changed its directory's mtime")
	}
}

func testSymlinks(t *testing.T, p place) {
	for name, target := range map[string]string{
		"short": "x", "dangling": "/no/such/place", "long": strings.Repeat("y", 4095), "bytes": "\xff\xfe\x01",
	} {
		check(t, os.Symlink(target, p.path(name)))
		for range 2 { // the second time from the kernel's cache
			got, err := os.Readlink(p.path(name))
			if err != nil || got != target {
				t.Errorf("%s leads to %.20q (%v), want %.20q", name, got, err, target)
			}
		}
		st := lstat(t, p.path(name))
		if st.Mode != unix.S_IFLNK|0o777 || st.Size != int64(len(target)) {
			t.Errorf("%s has mode %o and size %d", name, st.Mode, st.Size)
		}
	}
	wantErrno(t, "symlink to 4096 bytes", unix.Symlink(strings.Repeat("y", 4096), p.path("toolong")), unix.ENAMETOOLONG)
	// The name can lead elsewhere later.
	check(t, os.Remove(p.path("short")))
	check(t, os.Symlink("elsewhere", p.path("short")))
	if got, _ := os.Readlink(p.path("short")); got != "elsewhere" {
		t.Errorf("the new link leads to %q", got)
	}
	if isRoot() {
		check(t, os.Lchown(p.path("short"), 12, 34))
		if st := lstat(t, p.path("short")); st.Uid != 12 || st.Gid != 34 {
			t.Errorf("owner of the link is %d:%d", st.Uid, st.Gid)
		}
	}
}

func testSpecialFiles(t *testing.T, p place) {
	check(t, unix.Mkfifo(p.path("fifo"), 0o640))
	done := make(chan error, 1)
	go func() {
		w, err := os.OpenFile(p.path("fifo"), os.O_WRONLY, 0)
		if err == nil {
			_, err = w.Write([]byte("through the pipe"))
			w.Close()
		}
		done <- err
	}()
	wantContent(t, p.path("fifo"), "through the pipe")
	check(t, <-done)

	// Socket addresses are short: use the directory as working directory.
	fd, err := unix.Open(p.dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	check(t, err)
	defer unix.Close(fd)
	short := filepath.Join("/proc/self/fd", itoa(fd), "sock")
	l, err := net.Listen("unix", short)
	check(t, err)
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			c.Write([]byte("hello"))
			c.Close()
		}
	}()
	c, err := net.Dial("unix", short)
	check(t, err)
	buf := make([]byte, 10)
	if n, err := c.Read(buf); string(buf[:n]) != "hello" {
		t.Errorf("the socket says %q (%v)", buf[:n], err)
	}
	c.Close()
	if st := lstat(t, p.path("sock")); st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		t.Errorf("the socket has mode %o", st.Mode)
	}
	if !isRoot() {
		return
	}
	for _, d := range []struct {
		name string
		mode uint32
		dev  uint64
	}{
		{"null", unix.S_IFCHR | 0o644, unix.Mkdev(1, 3)},
		{"block", unix.S_IFBLK | 0o600, unix.Mkdev(259, 7)},
		{"large", unix.S_IFCHR | 0o600, unix.Mkdev(511, 300)},
	} {
		check(t, unix.Mknod(p.path(d.name), d.mode, int(d.dev)))
		if st := lstat(t, p.path(d.name)); st.Mode != d.mode || st.Rdev != d.dev {
			t.Errorf("%s: mode %o device %#x, want %o and %#x", d.name, st.Mode, st.Rdev, d.mode, d.dev)
		}
	}
	// Devices are kept, and do not work on a mount with nodev.
	if _, err := os.Open(p.path("null")); !errors.Is(err, unix.EACCES) {
		t.Errorf("opening a device on a nodev mount: %v, want %v", err, unix.EACCES)
	}
}

func testSetgidDir(t *testing.T, p place) {
	if !isRoot() {
		return
	}
	check(t, os.Mkdir(p.path("shared"), 0o777))
	check(t, unix.Chown(p.path("shared"), 0, 4321))
	check(t, unix.Chmod(p.path("shared"), 0o2777))
	fusetest.As(t, 1234, 1234, nil, func() {
		for name, do := range map[string]func(string) error{
			"file": func(s string) error { return os.WriteFile(s, nil, 0o644) },
			"dir":  func(s string) error { return os.Mkdir(s, 0o755) },
			"link": func(s string) error { return os.Symlink("x", s) },
			"fifo": func(s string) error { return unix.Mkfifo(s, 0o644) },
		} {
			path := p.path("shared", name)
			if err := do(path); err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			st := lstat(t, path)
			if st.Uid != 1234 || st.Gid != 4321 {
				t.Errorf("%s belongs to %d:%d, want 1234:4321", name, st.Uid, st.Gid)
			}
			if isDir := name == "dir"; (st.Mode&unix.S_ISGID != 0) != isDir {
				t.Errorf("%s has mode %o", name, st.Mode)
			}
		}
		fd, err := unix.Open(p.path("shared"), unix.O_TMPFILE|unix.O_RDWR, 0o600)
		if err != nil {
			t.Errorf("O_TMPFILE: %v", err)
			return
		}
		defer unix.Close(fd)
		var st unix.Stat_t
		if unix.Fstat(fd, &st); st.Gid != 4321 {
			t.Errorf("a file without a name has group %d, want 4321", st.Gid)
		}
	})
}

func testSticky(t *testing.T, p place) {
	if !isRoot() {
		return
	}
	check(t, os.Mkdir(p.path("tmp"), 0o777))
	check(t, unix.Chmod(p.path("tmp"), 0o1777))
	fusetest.As(t, 1001, 1001, nil, func() {
		if err := os.WriteFile(p.path("tmp", "mine"), []byte("x"), 0o666); err != nil {
			t.Error(err)
		}
	})
	fusetest.As(t, 1002, 1002, nil, func() {
		wantErrno(t, "unlink in a sticky directory", unix.Unlink(p.path("tmp", "mine")), unix.EPERM)
		wantErrno(t, "rename in a sticky directory", unix.Rename(p.path("tmp", "mine"), p.path("tmp", "x")), unix.EPERM)
		if err := os.WriteFile(p.path("tmp", "theirs"), nil, 0o644); err != nil {
			t.Error(err)
		}
	})
	fusetest.As(t, 1001, 1001, nil, func() {
		if err := unix.Unlink(p.path("tmp", "mine")); err != nil {
			t.Errorf("unlink of an own file: %v", err)
		}
	})
}

func testPermissions(t *testing.T, p place) {
	if !isRoot() {
		return
	}
	write(t, p.path("private"), "x")
	check(t, unix.Chmod(p.path("private"), 0o600))
	check(t, os.Mkdir(p.path("closed"), 0o700))
	write(t, p.path("closed", "f"), "x")
	write(t, p.path("group"), "x")
	check(t, unix.Chown(p.path("group"), 0, 777))
	check(t, unix.Chmod(p.path("group"), 0o640))
	fusetest.As(t, 1001, 1001, nil, func() {
		for _, name := range []string{"private", "closed/f", "group"} {
			_, err := os.ReadFile(p.path(name))
			wantErrno(t, "reading "+name, err, unix.EACCES)
		}
		wantErrno(t, "chmod of another's file", unix.Chmod(p.path("private"), 0o666), unix.EPERM)
		wantErrno(t, "chown of another's file", unix.Chown(p.path("private"), 1001, 1001), unix.EPERM)
		wantErrno(t, "creation in a closed directory", os.WriteFile(p.path("closed", "new"), nil, 0o644), unix.EACCES)
		wantErrno(t, "access", unix.Access(p.path("closed", "f"), unix.R_OK), unix.EACCES)
	})
	fusetest.As(t, 1001, 1001, []int{777}, func() {
		if _, err := os.ReadFile(p.path("group")); err != nil {
			t.Errorf("reading as a member of the group: %v", err)
		}
	})
	// What root grants counts at once.
	check(t, unix.Chmod(p.path("private"), 0o604))
	fusetest.As(t, 1001, 1001, nil, func() {
		if _, err := os.ReadFile(p.path("private")); err != nil {
			t.Errorf("reading after chmod: %v", err)
		}
	})
}

func testOpenMissing(t *testing.T, p place) {
	for range 2 { // the second time the kernel knows
		_, err := os.Open(p.path("f"))
		wantErrno(t, "open", err, unix.ENOENT)
	}
	write(t, p.path("f"), "now")
	wantContent(t, p.path("f"), "now")
	check(t, os.Remove(p.path("f")))
	_, err := os.Open(p.path("f"))
	wantErrno(t, "open after unlink", err, unix.ENOENT)
}

func testExclusive(t *testing.T, p place) {
	const tries = 20
	for i := range tries {
		path := p.path(itoa(i))
		var (
			wg  sync.WaitGroup
			mu  sync.Mutex
			won int
		)
		for range 4 {
			wg.Go(func() {
				f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					won++
					f.Close()
				case !errors.Is(err, unix.EEXIST):
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if won != 1 {
			t.Errorf("%d of 4 created the file exclusively", won)
		}
	}
}

func testRemovedDir(t *testing.T, p place) {
	check(t, os.Mkdir(p.path("d"), 0o755))
	d := open(t, p.path("d"), os.O_RDONLY)
	check(t, os.Remove(p.path("d")))
	if st := fstat(t, d); st.Nlink != 0 {
		t.Errorf("a removed directory has %d links", st.Nlink)
	}
	fd, err := unix.Openat(int(d.Fd()), "f", unix.O_CREAT|unix.O_WRONLY, 0o644)
	if err == nil {
		unix.Close(fd)
	}
	wantErrno(t, "creation in a removed directory", err, unix.ENOENT)
	if names, _ := d.Readdirnames(-1); len(names) > 0 {
		t.Errorf("a removed directory lists %q", names)
	}
}

func testModes(t *testing.T, p place) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	for _, mode := range []uint32{0, 0o777, 0o644, 0o1755, 0o2755, 0o4755, 0o7777, 0o111} {
		file, dir := p.path("f"+itoa(int(mode))), p.path("d"+itoa(int(mode)))
		fd, err := unix.Open(file, unix.O_CREAT|unix.O_WRONLY, mode)
		check(t, err)
		unix.Close(fd)
		if got := lstat(t, file).Mode; got != unix.S_IFREG|mode {
			t.Errorf("open with mode %o made %o", mode, got)
		}
		check(t, unix.Mkdir(dir, mode))
		// mkdir(2) ignores the set-id bits.
		if got := lstat(t, dir).Mode; got != unix.S_IFDIR|mode&0o1777 {
			t.Errorf("mkdir with mode %o made %o", mode, got)
		}
		check(t, unix.Chmod(dir, mode))
		if got := lstat(t, dir).Mode; got != unix.S_IFDIR|mode {
			t.Errorf("chmod %o made %o", mode, got)
		}
		check(t, unix.Chmod(dir, 0o755))
	}
	syscall.Umask(0o027)
	fd, err := unix.Open(p.path("masked"), unix.O_CREAT|unix.O_WRONLY, 0o777)
	check(t, err)
	unix.Close(fd)
	if got := lstat(t, p.path("masked")).Mode & 0o7777; got != 0o750 {
		t.Errorf("under umask 027 open made %o", got)
	}
}

func testConcurrentRename(t *testing.T, p place) {
	write(t, p.path("f"), "0")
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				// The name always leads to a whole file.
				b, err := os.ReadFile(p.path("f"))
				if err != nil || len(b) == 0 {
					t.Errorf("in the middle of renames: %q %v", b, err)
					return
				}
			}
		})
	}
	for i := range 200 {
		write(t, p.path("tmp"), "content "+itoa(i))
		check(t, os.Rename(p.path("tmp"), p.path("f")))
	}
	close(stop)
	wg.Wait()
	wantContent(t, p.path("f"), "content 199")
}
