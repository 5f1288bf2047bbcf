package fs_test

import (
	"os"
	"testing"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// list reads directory entries from the position of fd on.
func list(t *testing.T, fd int, bufSize int, stop func(gofuse.DirEntry) bool) {
	t.Helper()
	buf := make([]byte, bufSize)
	for {
		n, err := unix.Getdents(fd, buf)
		check(t, err)
		if n == 0 {
			return
		}
		for b := buf[:n]; len(b) > 0; {
			var e gofuse.DirEntry
			b = b[e.Parse(b):]
			if stop(e) {
				return
			}
		}
	}
}

func testDirPositions(t *testing.T, p place) {
	const n = 500
	for i := range n {
		check(t, os.WriteFile(p.path("file"+itoa(i)), nil, 0o644))
	}
	d := open(t, p.dir, os.O_RDONLY)
	fd := int(d.Fd())
	var all []gofuse.DirEntry
	list(t, fd, 4096, func(e gofuse.DirEntry) bool {
		all = append(all, e)
		return false
	})
	if len(all) != n+2 || all[0].Name != "." || all[1].Name != ".." {
		t.Fatalf("%d entries, beginning with %q and %q", len(all), all[0].Name, all[1].Name)
	}
	if got, want := all[0].Ino, lstat(t, p.dir).Ino; got != want {
		t.Errorf("\".\" is inode %d, want %d", got, want)
	}
	if got, want := all[1].Ino, lstat(t, p.path("..")).Ino; got != want {
		t.Errorf("\"..\" is inode %d, want %d", got, want)
	}
	seen := make(map[string]bool)
	for i, e := range all {
		if seen[e.Name] {
			t.Errorf("%q comes twice", e.Name)
		}
		seen[e.Name] = true
		if i > 0 && e.Off <= all[i-1].Off {
			t.Errorf("offset %d of %q is not behind %d", e.Off, e.Name, all[i-1].Off)
		}
		if i > 1 {
			if st := lstat(t, p.path(e.Name)); st.Ino != e.Ino {
				t.Errorf("%q is listed as inode %d and has %d", e.Name, e.Ino, st.Ino)
			}
		}
	}
	// Every position can be gone back to, in the same stream and in another.
	for _, stream := range []int{fd, int(open(t, p.dir, os.O_RDONLY).Fd())} {
		for i := len(all) - 1; i > 0; i -= 7 {
			_, err := unix.Seek(stream, int64(all[i-1].Off), unix.SEEK_SET)
			check(t, err)
			list(t, stream, 4096, func(e gofuse.DirEntry) bool {
				if e.Name != all[i].Name {
					t.Errorf("at the position before %q comes %q", all[i].Name, e.Name)
				}
				return true
			})
		}
		_, err := unix.Seek(stream, 0, unix.SEEK_SET)
		check(t, err)
		count := 0
		list(t, stream, 32768, func(gofuse.DirEntry) bool { count++; return false })
		if count != n+2 {
			t.Errorf("after rewinding %d entries, want %d", count, n+2)
		}
	}
}

// testDirChanging: while a directory is read, what stays in it is listed once, and what comes and goes never disturbs that.
func testDirChanging(t *testing.T, p place) {
	const n = 400
	for i := range n {
		check(t, os.WriteFile(p.path("stays"+itoa(i)), nil, 0o644))
		check(t, os.WriteFile(p.path("goes"+itoa(i)), nil, 0o644))
	}
	d := open(t, p.dir, os.O_RDONLY)
	seen := make(map[string]int)
	steps := 0
	list(t, int(d.Fd()), 1024, func(e gofuse.DirEntry) bool {
		seen[e.Name]++
		if steps < n {
			check(t, os.Remove(p.path("goes"+itoa(steps))))
			check(t, os.WriteFile(p.path("comes"+itoa(steps)), nil, 0o644))
			steps++
		}
		return false
	})
	for i := range n {
		if got := seen["stays"+itoa(i)]; got != 1 {
			t.Errorf("stays%d was listed %d times", i, got)
		}
	}
	for name, times := range seen {
		if times > 1 {
			t.Errorf("%q was listed %d times", name, times)
		}
	}
	// A new reading sees the directory as it is.
	entries, err := os.ReadDir(p.dir)
	check(t, err)
	if len(entries) != 2*n {
		t.Errorf("%d entries afterwards, want %d", len(entries), 2*n)
	}
	// rm -r reads and removes at once.
	check(t, os.RemoveAll(p.dir))
	if _, err := os.Lstat(p.dir); !os.IsNotExist(err) {
		t.Errorf("after removal: %v", err)
	}
}

func testDirTypes(t *testing.T, p place) {
	check(t, os.WriteFile(p.path("file"), nil, 0o644))
	check(t, os.Mkdir(p.path("dir"), 0o755))
	check(t, os.Symlink("x", p.path("link")))
	check(t, unix.Mkfifo(p.path("fifo"), 0o644))
	want := map[string]uint32{"file": unix.S_IFREG, "dir": unix.S_IFDIR, "link": unix.S_IFLNK, "fifo": unix.S_IFIFO, ".": unix.S_IFDIR, "..": unix.S_IFDIR}
	for range 2 { // from the daemon, and from the kernel's cache
		d := open(t, p.dir, os.O_RDONLY)
		count := 0
		list(t, int(d.Fd()), 4096, func(e gofuse.DirEntry) bool {
			if e.Mode != want[e.Name] {
				t.Errorf("%q has type %o, want %o", e.Name, e.Mode, want[e.Name])
			}
			count++
			return false
		})
		if count != len(want) {
			t.Errorf("%d entries, want %d", count, len(want))
		}
	}
}
