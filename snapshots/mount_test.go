package snapshots_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/fusetest"
)

func TestMain(m *testing.M) { os.Exit(fusetest.Main(m)) }

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, data string) {
	t.Helper()
	check(t, os.WriteFile(path, []byte(data), 0o644))
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	check(t, err)
	return string(data)
}

// now is the name of the present moment in .snapshots: behind everything that was done before the call, before everything that is done after it.
func now() string { return "@" + time.Now().UTC().Format(time.RFC3339Nano) }

// run runs a program and returns what it wrote.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	c := exec.Command(name, args...)
	c.Env = append(os.Environ(), "LC_ALL=C")
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", c, err, out)
	}
	return string(out)
}

// grow makes a tree with all that a tree can have, of a few hundred files.
func grow(t *testing.T, dir string) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(1, 2))
	check(t, os.MkdirAll(filepath.Join(dir, "deep/er/and/deeper"), 0o750))
	for i := range 200 {
		sub := filepath.Join(dir, fmt.Sprint("d", i%7))
		check(t, os.MkdirAll(sub, 0o755))
		data := bytes.Repeat([]byte(fmt.Sprintf("line %d of a file\n", i)), rnd.IntN(400))
		check(t, os.WriteFile(filepath.Join(sub, fmt.Sprint("file", i)), data, os.FileMode(0o600|rnd.IntN(0o100))))
	}
	write(t, filepath.Join(dir, "deep/er/and/deeper/needle"), "a needle in it\n")
	check(t, os.WriteFile(filepath.Join(dir, "large"), bytes.Repeat([]byte("0123456789abcdef"), 40_000), 0o640))
	check(t, os.Symlink("deep/er", filepath.Join(dir, "link")))
	check(t, os.Symlink("/nowhere/at/all", filepath.Join(dir, "dangling")))
	check(t, os.Link(filepath.Join(dir, "large"), filepath.Join(dir, "deep/same")))
	check(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o620))
	check(t, unix.Setxattr(filepath.Join(dir, "large"), "user.note", []byte("worth keeping\x00\xff"), 0))
	check(t, unix.Setxattr(filepath.Join(dir, "deep"), "user.dir", []byte("d"), 0))
	check(t, os.Chtimes(filepath.Join(dir, "large"), time.Unix(1, 5), time.Unix(1_600_000_000, 123_456_789)))
	f, err := os.Create(filepath.Join(dir, "sparse"))
	check(t, err)
	_, err = f.WriteAt([]byte("end"), 3<<20)
	check(t, err)
	check(t, f.Close())
}

// ruin changes the tree that grow has made in every way.
func ruin(t *testing.T, dir string) {
	t.Helper()
	check(t, os.RemoveAll(filepath.Join(dir, "d0")))
	check(t, os.RemoveAll(filepath.Join(dir, "deep/er")))
	check(t, os.Rename(filepath.Join(dir, "d1"), filepath.Join(dir, "d2/moved")))
	check(t, os.Rename(filepath.Join(dir, "d3"), filepath.Join(dir, "d4x")))
	for i := range 200 {
		if p := filepath.Join(dir, fmt.Sprint("d", i%7), fmt.Sprint("file", i)); i%7 > 3 {
			write(t, p, "overwritten\n")
			check(t, os.Chmod(p, 0o777))
		}
	}
	f, err := os.OpenFile(filepath.Join(dir, "large"), os.O_RDWR, 0)
	check(t, err)
	_, err = f.WriteAt([]byte("changed in place"), 300_000)
	check(t, err)
	check(t, f.Truncate(500_000))
	check(t, f.Close())
	check(t, unix.Removexattr(filepath.Join(dir, "large"), "user.note"))
	check(t, os.Remove(filepath.Join(dir, "link")))
	write(t, filepath.Join(dir, "link"), "no link any more")
	check(t, os.Remove(filepath.Join(dir, "fifo")))
	check(t, os.Chtimes(dir, time.Unix(5, 5), time.Unix(5, 5)))
}

// TestPrograms looks at a past moment with the programs that people use, and compares it with a copy that was made then.
func TestPrograms(t *testing.T) {
	m := fusetest.New(t, fusetest.Options{})
	work := filepath.Join(m.Dir, "tasks/work")
	check(t, os.Mkdir(work, 0o755))
	grow(t, work)
	kept := filepath.Join(t.TempDir(), "kept")
	run(t, "cp", "-a", work, kept)
	then := now()
	ruin(t, work)

	// The same moment by the root's .snapshots, the one of a directory above, and the directory's own.
	for _, past := range []string{
		filepath.Join(m.Dir, ".snapshots", then, "tasks/work"),
		filepath.Join(m.Dir, "tasks/.snapshots", then, "work"),
		filepath.Join(work, ".snapshots", then),
	} {
		run(t, "diff", "-r", "--no-dereference", "--exclude=fifo", kept, past)
		if a, b := run(t, "ls", "-AlR", "--time-style=full-iso", kept), run(t, "ls", "-AlR", "--time-style=full-iso", past); normal(a, kept) != normal(b, past) {
			t.Errorf("ls -lR differs: %s", firstDifference(normal(a, kept), normal(b, past)))
		}
		script := `cd "$1" && find . -printf '%y %m %U %G %T@ %l %p %n\n' | sort | sed 's/^d\(.*\) [0-9]*$/d\1/'`
		if a, b := run(t, "sh", "-c", script, "sh", kept), run(t, "sh", "-c", script, "sh", past); a != b {
			t.Errorf("find differs: %s", firstDifference(a, b))
		}
		script = `cd "$1" && getfattr -R -h -d -m - -e hex . 2>/dev/null | sort`
		if a, b := run(t, "sh", "-c", script, "sh", kept), run(t, "sh", "-c", script, "sh", past); a != b || !strings.Contains(b, "user.note") {
			t.Errorf("getfattr differs: %s", firstDifference(a, b))
		}
		if out := run(t, "grep", "-rl", "needle", past); out != past+"/deep/er/and/deeper/needle\n" {
			t.Errorf("grep found %q", out)
		}
		script = `cd "$1" && tar --sort=name --format=pax --xattrs --pax-option=delete=atime,delete=ctime -cf - . | sha256sum`
		if a, b := run(t, "sh", "-c", script, "sh", kept), run(t, "sh", "-c", script, "sh", past); a != b {
			t.Errorf("tar makes another archive of it: %s and %s", a, b)
		}
		// Nothing to transfer, nothing to set.
		if out := run(t, "rsync", "-aHXn", "--checksum", "--delete", "--itemize-changes", past+"/", kept+"/"); out != "" {
			t.Errorf("rsync sees differences:\n%s", out)
		}
	}

	// Back into the store, with everything.
	back := filepath.Join(m.Dir, "back")
	run(t, "cp", "-a", filepath.Join(work, ".snapshots", then), back)
	if out := run(t, "rsync", "-aHXn", "--checksum", "--delete", "--itemize-changes", kept+"/", back+"/"); out != "" {
		t.Errorf("what was copied back differs:\n%s", out)
	}
	if data := read(t, filepath.Join(work, ".snapshots/deleted/deep/er/and/deeper/needle")); data != "a needle in it\n" {
		t.Errorf("the deleted file holds %q", data)
	}
}

func normal(s, dir string) string {
	s = strings.ReplaceAll(s, dir, "DIR")
	var out []string
	for line := range strings.SplitSeq(s, "\n") {
		if fields := strings.Fields(line); len(fields) > 5 && strings.HasPrefix(line, "d") {
			line = strings.Join(append(fields[:1], append(fields[2:4], fields[5:]...)...), " ") // sizes and links of directories are a matter of the filesystem
		} else if strings.HasPrefix(line, "total") {
			continue
		}
		out = append(out, line)
	}
	return strings.Join(out, "\n")
}

func firstDifference(a, b string) string {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range max(len(x), len(y)) {
		var p, q string
		if i < len(x) {
			p = x[i]
		}
		if i < len(y) {
			q = y[i]
		}
		if p != q {
			return fmt.Sprintf("line %d: %q and %q", i+1, p, q)
		}
	}
	return "nowhere"
}

// TestCopyIsExtents copies a large file out of the past: the store grows by a few rows, and the content is not read.
func TestCopyIsExtents(t *testing.T) {
	size := int64(256 << 20)
	if raceBuild {
		size = 32 << 20
	}
	m := fusetest.New(t, fusetest.Options{})
	name := filepath.Join(m.Dir, "tasks/large")
	f, err := os.Create(name)
	check(t, err)
	block := make([]byte, 1<<20)
	rnd := rand.New(rand.NewPCG(7, 7))
	for range size / int64(len(block)) {
		for i := 0; i < len(block); i += 4096 {
			block[i] = byte(rnd.Uint32())
		}
		_, err := f.Write(block)
		check(t, err)
	}
	check(t, f.Close())
	check(t, os.Chmod(name, 0o640))
	check(t, os.Chtimes(name, time.Unix(10, 0), time.Unix(1_500_000_000, 42)))
	then := now()
	check(t, os.Truncate(name, 0))

	used, requests := diskUse(t, m.Store), m.Requests()
	start := time.Now()
	run(t, "cp", "-p", filepath.Join(m.Dir, ".snapshots", then, "tasks/large"), name+".back")
	t.Logf("cp -p of %d MiB out of the past: %v, the store grew by %d bytes", size>>20, time.Since(start), diskUse(t, m.Store)-used)
	after := m.Requests()
	if reads := after["READ"] - requests["READ"]; reads > 0 {
		t.Errorf("%d reads were made", reads)
	}
	if after["COPY_FILE_RANGE"] == requests["COPY_FILE_RANGE"] {
		t.Error("nothing was copied by extents")
	}
	if grown := diskUse(t, m.Store) - used; grown > 4<<20 {
		t.Errorf("the store grew by %d bytes", grown)
	}
	m.Remount()
	var st unix.Stat_t
	check(t, unix.Stat(name+".back", &st))
	if st.Size != size || st.Mode&0o7777 != 0o640 || st.Mtim.Sec != 1_500_000_000 || st.Mtim.Nsec != 42 {
		t.Errorf("size %d, mode %o, mtime %v", st.Size, st.Mode, st.Mtim)
	}
	run(t, "cmp", name+".back", filepath.Join(m.Dir, ".snapshots", then, "tasks/large"))
}

func diskUse(t *testing.T, dir string) (n int64) {
	t.Helper()
	check(t, filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil && unix.Lstat(p, &st) == nil { // a file that is gone again takes no room
			n += st.Blocks * 512
		}
		return nil
	}))
	return n
}

// TestCopyWithHoles copies pieces of a past file with holes into a file that has content.
func TestCopyWithHoles(t *testing.T) {
	m := fusetest.New(t, fusetest.Options{})
	src, dst := filepath.Join(m.Dir, "src"), filepath.Join(m.Dir, "dst")
	f, err := os.Create(src)
	check(t, err)
	for i, at := range []int64{24 * 4096, 74 * 4096, 171 * 4096} {
		_, err := f.WriteAt(bytes.Repeat([]byte{byte('a' + i)}, 12*4096), at)
		check(t, err)
	}
	check(t, f.Truncate(1_000_000))
	check(t, f.Close())
	want, err := os.ReadFile(src)
	check(t, err)
	then := now()
	write(t, src, "something else")

	old := bytes.Repeat([]byte("x"), 1_200_000)
	check(t, os.WriteFile(dst, old, 0o644))
	in, err := os.Open(filepath.Join(m.Dir, ".snapshots", then, "src"))
	check(t, err)
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_RDWR, 0)
	check(t, err)
	defer out.Close()
	for _, r := range [][3]int64{{0, 0, 120_000}, {330_000, 200_001, 400_000}, {900_000, 1_150_000, 500_000}} {
		from, to := r[0], r[1]
		n, err := unix.CopyFileRange(int(in.Fd()), &from, int(out.Fd()), &to, int(r[2]), 0)
		check(t, err)
		if wanted := min(r[2], int64(len(want))-r[0]); int64(n) != wanted {
			t.Fatalf("copied %d bytes, want %d", n, wanted)
		}
		if end := int(r[1]) + n; end > len(old) {
			old = append(old, make([]byte, end-len(old))...)
		}
		copy(old[r[1]:], want[r[0]:int(r[0])+n])
	}
	check(t, in.Close())
	check(t, out.Close())
	got, err := os.ReadFile(dst)
	check(t, err)
	if !bytes.Equal(got, old) {
		t.Error("the copy differs")
	}
	m.Remount()
	if got, err = os.ReadFile(dst); err != nil || !bytes.Equal(got, old) {
		t.Errorf("the copy differs after a remount: %v", err)
	}
	// Where the data and the holes are is known of the past, too.
	in, err = os.Open(filepath.Join(m.Dir, ".snapshots", then, "src"))
	check(t, err)
	defer in.Close()
	for _, test := range []struct{ whence, off, want int64 }{
		{unix.SEEK_DATA, 0, 24 * 4096}, {unix.SEEK_HOLE, 100_000, 36 * 4096}, {unix.SEEK_DATA, 36 * 4096, 74 * 4096}, {unix.SEEK_HOLE, 0, 0},
		{unix.SEEK_HOLE, 999_999, 999_999}, {unix.SEEK_DATA, 900_000, -1}, {unix.SEEK_DATA, 1_000_000, -1},
	} {
		off, err := unix.Seek(int(in.Fd()), test.off, int(test.whence))
		if test.want < 0 && !errors.Is(err, unix.ENXIO) || test.want >= 0 && off != test.want {
			t.Errorf("seek %d from %d: %d, %v, want %d", test.whence, test.off, off, err, test.want)
		}
	}
}

// TestRefused: what cannot be shown, or changed, is a clear error and, for moments, a line in the log.
func TestRefused(t *testing.T) {
	m := fusetest.New(t, fusetest.Options{})
	write(t, filepath.Join(m.Dir, "tasks/f"), "one")
	past := filepath.Join(m.Dir, ".snapshots")
	for name, want := range map[string]syscall.Errno{
		"@2199-01-01T00:00:00Z": unix.ENOENT, "@v999999": unix.ENOENT, "@1d": unix.ENOENT, "@1970-01-01T00:00:00Z": unix.ENOENT, "nosuch": unix.ENOENT,
		"@": unix.EINVAL, "@yesteryear": unix.EINVAL, "@2026-99-99T00:00:00Z": unix.EINVAL, "@-1h": unix.EINVAL, "@v0": unix.EINVAL, "@10m\n": unix.EINVAL,
		"a@b": unix.ENOENT, "\x01": unix.ENOENT, ".snapshots": unix.ENOENT, "versions/never": unix.ENOENT, "versions/tasks/f/0002-x": unix.ENOENT,
		"versions/tasks/f/0001-2026-01-01T00:00:00Z-x": unix.ENOENT, "deleted/tasks/f": unix.ENOENT, "README/x": unix.ENOTDIR, "@0s/never": unix.ENOENT, "@0s/.snapshots": unix.ENOENT,
		"@0s/tasks/f/x": unix.ENOTDIR,
	} {
		if _, err := os.Lstat(filepath.Join(past, name)); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", name, err, want)
		}
	}
	// A few lines a second, and none for a name that is no moment.
	deadline := time.Now().Add(10 * time.Second)
	for !strings.Contains(m.Stderr(), "no such moment") {
		if time.Now().After(deadline) {
			t.Fatal("nothing was logged")
		}
	}
	if log := m.Stderr(); strings.Contains(log, "nosuch") {
		t.Errorf("the log says:\n%s", log)
	}
	check(t, os.Mkdir(filepath.Join(m.Dir, "young"), 0o755))
	if _, err := os.Lstat(filepath.Join(m.Dir, "young/.snapshots/@v5")); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a directory before it was made: %v", err)
	}

	file := filepath.Join(past, "@0s/tasks/f")
	for what, err := range map[string]error{
		"write":    os.WriteFile(file, nil, 0o644),
		"create":   os.WriteFile(filepath.Join(past, "x"), nil, 0o644),
		"create 2": os.WriteFile(filepath.Join(past, "@0s/x"), nil, 0o644),
		"truncate": os.Truncate(file, 0),
		"chmod":    os.Chmod(file, 0o600),
		"times":    os.Chtimes(file, time.Now(), time.Now()),
		"mkdir":    os.Mkdir(filepath.Join(past, "versions/x"), 0o755),
		"symlink":  os.Symlink("a", filepath.Join(past, "deleted/x")),
		"remove":   os.Remove(file),
		"rmdir":    unix.Rmdir(filepath.Join(past, "@0s/tasks")),
		"rename":   os.Rename(file, filepath.Join(past, "@0s/g")),
		"link":     os.Link(file, filepath.Join(past, "@0s/g")),
		"setxattr": unix.Setxattr(file, "user.x", []byte("x"), 0),
		"mknod":    unix.Mkfifo(filepath.Join(past, "@0s/fifo"), 0o600),
	} {
		if !errors.Is(err, unix.EROFS) {
			t.Errorf("%s in the past: %v", what, err)
		}
	}
	for what, test := range map[string]struct {
		err  error
		want syscall.Errno
	}{
		"mkdir":        {os.Mkdir(filepath.Join(m.Dir, "tasks/.snapshots"), 0o755), unix.EEXIST},
		"create":       {os.WriteFile(filepath.Join(m.Dir, "tasks/.snapshots"), nil, 0o644), unix.EISDIR},
		"rename onto":  {unix.Rename(filepath.Join(m.Dir, "young"), filepath.Join(m.Dir, "tasks/.snapshots")), unix.EBUSY},
		"rename":       {os.Rename(filepath.Join(m.Dir, "tasks/.snapshots"), filepath.Join(m.Dir, "x")), unix.EBUSY},
		"rmdir":        {unix.Rmdir(filepath.Join(m.Dir, "tasks/.snapshots")), unix.EBUSY},
		"link out":     {os.Link(file, filepath.Join(m.Dir, "x")), unix.EXDEV},
		"rename out":   {os.Rename(file, filepath.Join(m.Dir, "x")), unix.EXDEV},
		"unlink a dir": {unix.Unlink(filepath.Join(m.Dir, "tasks/.snapshots")), unix.EISDIR},
	} {
		if !errors.Is(test.err, test.want) {
			t.Errorf("%s: %v, want %v", what, test.err, test.want)
		}
	}
	// Nothing of it got in the way of the directory itself.
	check(t, os.Remove(filepath.Join(m.Dir, "young")))
	for _, e := range must(os.ReadDir(m.Dir))(t) {
		if e.Name() == ".snapshots" {
			t.Error(".snapshots is listed")
		}
	}
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		check(t, err)
		return v
	}
}
