package fs_test

import (
	"bytes"
	"errors"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/fusetest"
)

func testTimes(t *testing.T, p place) {
	write(t, p.path("f"), "x")
	check(t, os.Mkdir(p.path("d"), 0o755))
	check(t, os.Symlink("f", p.path("l")))
	stamps := []int64{
		0, 1, -1, 999_999_999, 1_000_000_000, 123_456_789_987_654_321,
		time.Date(1901, 12, 14, 0, 0, 0, 7, time.UTC).UnixNano(),
		time.Date(1969, 12, 31, 23, 59, 59, 999_999_999, time.UTC).UnixNano(),
		time.Date(2038, 1, 20, 0, 0, 0, 1, time.UTC).UnixNano(),
		time.Date(2106, 2, 8, 0, 0, 0, 123_456_789, time.UTC).UnixNano(),
		time.Date(2262, 1, 1, 0, 0, 0, 5, time.UTC).UnixNano(),
		math.MaxInt64, math.MinInt64,
	}
	for _, name := range []string{"f", "d", "l"} {
		for i, mtime := range stamps {
			atime := stamps[(i+3)%len(stamps)]
			ts := []unix.Timespec{timespec(atime), timespec(mtime)}
			check(t, unix.UtimesNanoAt(unix.AT_FDCWD, p.path(name), ts, unix.AT_SYMLINK_NOFOLLOW))
			st := lstat(t, p.path(name))
			if st.Atim != ts[0] || st.Mtim != ts[1] {
				t.Errorf("%s: set atime %v mtime %v, got %v %v", name, ts[0], ts[1], st.Atim, st.Mtim)
			}
		}
	}
	// One of the two, and now.
	fixed := []unix.Timespec{timespec(11), timespec(22)}
	check(t, unix.UtimesNanoAt(unix.AT_FDCWD, p.path("f"), fixed, 0))
	check(t, unix.UtimesNanoAt(unix.AT_FDCWD, p.path("f"), []unix.Timespec{{Nsec: unix.UTIME_OMIT}, timespec(33)}, 0))
	if st := lstat(t, p.path("f")); nanos(st.Atim) != 11 || nanos(st.Mtim) != 33 {
		t.Errorf("mtime alone: atime %v mtime %v", st.Atim, st.Mtim)
	}
	check(t, unix.UtimesNanoAt(unix.AT_FDCWD, p.path("f"), []unix.Timespec{timespec(44), {Nsec: unix.UTIME_OMIT}}, 0))
	if st := lstat(t, p.path("f")); nanos(st.Atim) != 44 || nanos(st.Mtim) != 33 {
		t.Errorf("atime alone: atime %v mtime %v", st.Atim, st.Mtim)
	}
	before := time.Now().Add(-time.Second).UnixNano()
	check(t, unix.UtimesNanoAt(unix.AT_FDCWD, p.path("f"), []unix.Timespec{{Nsec: unix.UTIME_NOW}, {Nsec: unix.UTIME_NOW}}, 0))
	if st := lstat(t, p.path("f")); nanos(st.Atim) < before || nanos(st.Mtim) < before {
		t.Errorf("now: atime %v mtime %v", st.Atim, st.Mtim)
	}
	// A write changes mtime and ctime; chmod ctime alone. Opened and closed without a write nothing changes.
	check(t, unix.UtimesNanoAt(unix.AT_FDCWD, p.path("f"), fixed, 0))
	a := lstat(t, p.path("f"))
	check(t, open(t, p.path("f"), os.O_RDWR).Close())
	if b := lstat(t, p.path("f")); b.Mtim != a.Mtim || b.Ctim != a.Ctim {
		t.Errorf("opening changed times: %v %v to %v %v", a.Mtim, a.Ctim, b.Mtim, b.Ctim)
	}
	f := open(t, p.path("f"), os.O_WRONLY)
	tick(t)
	_, err := f.WriteString("y")
	check(t, err)
	check(t, f.Close())
	b := lstat(t, p.path("f"))
	if nanos(b.Mtim) < before || nanos(b.Ctim) <= nanos(a.Ctim) {
		t.Errorf("a write left mtime %v ctime %v", b.Mtim, b.Ctim)
	}
	tick(t)
	check(t, os.Chmod(p.path("f"), 0o600))
	c := lstat(t, p.path("f"))
	if c.Mtim != b.Mtim || nanos(c.Ctim) <= nanos(b.Ctim) {
		t.Errorf("chmod: mtime %v ctime %v, before %v %v", c.Mtim, c.Ctim, b.Mtim, b.Ctim)
	}
	// A time that was set while the file is open for writing outlives the close (tar, cp -p and rsync do that).
	f = open(t, p.path("f"), os.O_WRONLY)
	_, err = f.WriteString("z")
	check(t, err)
	check(t, unix.Futimes(int(f.Fd()), []unix.Timeval{{Sec: 5}, {Sec: 6}}))
	check(t, f.Close())
	if st := lstat(t, p.path("f")); st.Mtim.Sec != 6 || st.Atim.Sec != 5 {
		t.Errorf("times set before the close: atime %v mtime %v", st.Atim, st.Mtim)
	}
}

func timespec(ns int64) unix.Timespec {
	sec, n := ns/1e9, ns%1e9
	if n < 0 {
		sec, n = sec-1, n+1e9
	}
	return unix.Timespec{Sec: sec, Nsec: n}
}

func testBirth(t *testing.T, p place) {
	start := time.Now().Add(-time.Second)
	write(t, p.path("f"), "x")
	check(t, os.Mkdir(p.path("d"), 0o755))
	for _, name := range []string{"f", "d"} {
		birth := func() time.Time {
			var st unix.Statx_t
			check(t, unix.Statx(unix.AT_FDCWD, p.path(name), unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st))
			if st.Mask&unix.STATX_BTIME == 0 {
				t.Fatalf("%s: no time of birth", name)
			}
			want := lstat(t, p.path(name))
			if st.Ino != want.Ino || st.Size != uint64(want.Size) || st.Mtime.Nsec != uint32(want.Mtim.Nsec) || uint32(st.Mode) != want.Mode {
				t.Errorf("%s: statx and stat differ", name)
			}
			return time.Unix(st.Btime.Sec, int64(st.Btime.Nsec))
		}
		first := birth()
		if first.Before(start) || first.After(time.Now().Add(time.Second)) {
			t.Errorf("%s was born at %v", name, first)
		}
		check(t, os.Chtimes(p.path(name), time.Unix(1, 0), time.Unix(2, 0)))
		check(t, os.Rename(p.path(name), p.path(name+"2")))
		check(t, os.Rename(p.path(name+"2"), p.path(name)))
		if again := birth(); !again.Equal(first) {
			t.Errorf("%s: the time of birth changed from %v to %v", name, first, again)
		}
	}
}

func testXattrs(t *testing.T, p place) {
	write(t, p.path("f"), "x")
	check(t, os.Mkdir(p.path("d"), 0o755))
	get := func(path, name string) (string, error) {
		buf := make([]byte, 70_000)
		n, err := unix.Getxattr(path, name, buf)
		return string(buf[:max(n, 0)]), err
	}
	for _, path := range []string{p.path("f"), p.path("d")} {
		long := "user." + strings.Repeat("n", 250)
		values := map[string]string{"user.a": "value", "user.empty": "", "user.bytes": "\x00\xff", long: "long name", "user.big": strings.Repeat("v", 60_000)}
		for name, value := range values {
			check(t, unix.Setxattr(path, name, []byte(value), 0))
		}
		for name, value := range values {
			if got, err := get(path, name); err != nil || got != value {
				t.Errorf("%.20s: %d bytes (%v), want %d", name, len(got), err, len(value))
			}
			if n, err := unix.Getxattr(path, name, nil); err != nil || n != len(value) {
				t.Errorf("size of %.20s: %d (%v)", name, n, err)
			}
		}
		if _, err := unix.Getxattr(path, "user.a", make([]byte, 2)); err != unix.ERANGE {
			t.Errorf("a short buffer: %v", err)
		}
		size, err := unix.Listxattr(path, nil)
		check(t, err)
		list := make([]byte, size)
		_, err = unix.Listxattr(path, list)
		check(t, err)
		got := bytes.Split(bytes.TrimSuffix(list, []byte{0}), []byte{0})
		if len(got) != len(values) {
			t.Errorf("listed %q", got)
		}
		for _, name := range got {
			if _, ok := values[string(name)]; !ok {
				t.Errorf("listed %q", name)
			}
		}
		if _, err := unix.Listxattr(path, make([]byte, 3)); err != unix.ERANGE {
			t.Errorf("listing into a short buffer: %v", err)
		}
		wantErrno(t, "create of what is there", unix.Setxattr(path, "user.a", nil, unix.XATTR_CREATE), unix.EEXIST)
		wantErrno(t, "replace of what is not there", unix.Setxattr(path, "user.none", nil, unix.XATTR_REPLACE), unix.ENODATA)
		wantErrno(t, "removal of what is not there", unix.Removexattr(path, "user.none"), unix.ENODATA)
		wantErrno(t, "a name of 256 bytes", unix.Setxattr(path, "user."+strings.Repeat("n", 251), nil, 0), unix.ERANGE)
		if err := unix.Setxattr(path, "user.huge", make([]byte, 65537), 0); !errors.Is(err, unix.E2BIG) {
			t.Errorf("a value of 65537 bytes: %v", err)
		}
		wantErrno(t, "an unknown namespace", unix.Setxattr(path, "other.a", nil, 0), unix.EOPNOTSUPP)
		before := lstat(t, path)
		tick(t)
		check(t, unix.Setxattr(path, "user.a", []byte("new"), unix.XATTR_REPLACE))
		if got, _ := get(path, "user.a"); got != "new" {
			t.Errorf("after replacement: %q", got)
		}
		if after := lstat(t, path); nanos(after.Ctim) <= nanos(before.Ctim) || after.Mtim != before.Mtim {
			t.Errorf("setxattr: ctime %v mtime %v, before %v %v", after.Ctim, after.Mtim, before.Ctim, before.Mtim)
		}
		check(t, unix.Removexattr(path, "user.a"))
		if _, err := get(path, "user.a"); err != unix.ENODATA {
			t.Errorf("after removal: %v", err)
		}
		if _, err := get(path, "system.posix_acl_access"); err != unix.EOPNOTSUPP {
			t.Errorf("an ACL: %v", err)
		}
	}
	if isRoot() {
		check(t, unix.Setxattr(p.path("f"), "trusted.secret", []byte("x"), 0))
		check(t, unix.Setxattr(p.path("f"), "security.note", []byte("y"), 0))
		if got, err := get(p.path("f"), "trusted.secret"); got != "x" {
			t.Errorf("trusted: %q %v", got, err)
		}
		listed := func() string {
			list := make([]byte, 70_000)
			n, err := unix.Listxattr(p.path("f"), list)
			if err != nil {
				t.Error(err)
			}
			return string(list[:max(n, 0)])
		}
		if !strings.Contains(listed(), "trusted.secret") {
			t.Error("root is not shown a trusted attribute")
		}
		fusetest.As(t, 1001, 1001, nil, func() {
			if list := listed(); strings.Contains(list, "trusted.") || !strings.Contains(list, "security.note") {
				t.Errorf("another user is shown %q", list)
			}
		})
	}
	check(t, os.Symlink("f", p.path("l")))
	wantErrno(t, "user attribute of a symbolic link", unix.Lsetxattr(p.path("l"), "user.a", nil, 0), unix.EPERM)
}

func testStatfs(t *testing.T, p place) {
	var st unix.Statfs_t
	check(t, unix.Statfs(p.dir, &st))
	if st.Namelen != 255 || st.Bsize == 0 || st.Frsize == 0 || st.Blocks == 0 || st.Bfree > st.Blocks || st.Bavail > st.Bfree || st.Files < st.Ffree {
		t.Errorf("statfs: %+v", st)
	}
	if st.Flags&unix.ST_NOSUID == 0 || st.Flags&unix.ST_NODEV == 0 {
		t.Errorf("the mount allows set-id programs or devices: flags %#x", st.Flags)
	}
}
