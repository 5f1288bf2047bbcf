package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/blobstore"
	"holdfast/catalog"
	"holdfast/integrity/audit"
	"holdfast/internal/volume"
)

func TestArrange(t *testing.T) {
	app := (&env{}).app()
	for in, want := range map[string]string{
		"holdfast":                             "holdfast",
		"holdfast --help":                      "holdfast --help",
		"holdfast --version":                   "holdfast version --",
		"holdfast help":                        "holdfast --help",
		"holdfast help ls":                     "holdfast ls --help",
		"holdfast frob -x":                     "holdfast frob -x",
		"holdfast ls P -la":                    "holdfast ls -l -a -- P",
		"holdfast ls P --store S --json":       "holdfast ls --store S --json -- P",
		"holdfast ls P --store=S":              "holdfast ls --store=S -- P",
		"holdfast ls -- -la":                   "holdfast ls -- -la",
		"holdfast put - P":                     "holdfast put -- - P",
		"holdfast put --mode 600 - P --json":   "holdfast put --mode 600 --json -- - P",
		"holdfast mount S D -o a=b,c -fo d":    "holdfast mount -o a=b,c -f -o d -- S D",
		"holdfast ls P -lz":                    "holdfast ls -lz -- P",
		"holdfast ls P --store":                "holdfast ls P --store",
		"holdfast umount D -l":                 "holdfast umount -l -- D",
		"holdfast rm -r P":                     "holdfast rm -r -- P",
		"holdfast mount S D --option x=--json": "holdfast mount --option x=--json -- S D",
	} {
		if got := strings.Join(arrange(app, strings.Fields(in)), " "); got != want {
			t.Errorf("%s\nbecame %s\nwant   %s", in, got, want)
		}
	}
}

func FuzzArrange(f *testing.F) {
	f.Add("ls P -la --store S")
	f.Add("put - -- -x")
	f.Add("mount -oo -f -of x")
	f.Add("help")
	f.Fuzz(func(t *testing.T, line string) {
		app := (&env{}).app()
		args := append([]string{"holdfast"}, strings.Split(line, " ")...)
		before := slices.Clone(args)
		arrange(app, args)
		if !slices.Equal(args, before) {
			t.Errorf("the arguments were changed: %q became %q", before, args)
		}
	})
}

func TestExitCodes(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, 0}, {errors.New("x"), 1}, {usagef("ls", "x"), 2}, {volume.ErrNoStore, 10}, {&volume.LockedError{}, 11},
		{&blobstore.DamageError{}, 26}, {catalog.ErrDamaged, 26}, {audit.ErrTampered, 26}, {audit.ErrMalformed, 26}, {audit.ErrNotSigned, 1}, {blobstore.ErrNotFound, 26}, {errInterrupted, 130},
		{&daemonError{daemonStatus{Error: "x", Code: 11}}, 11}, {catalog.ErrNotExist, 1}, {context.Canceled, 1},
	} {
		if got := exitCode(c.err); got != c.want {
			t.Errorf("%v: %d, want %d", c.err, got, c.want)
		}
		if c.err != nil {
			if got := exitCode(fmt.Errorf("wrapped: %w", c.err)); got != c.want {
				t.Errorf("wrapped %v: %d, want %d", c.err, got, c.want)
			}
		}
	}
}

func TestLogFileIsBounded(t *testing.T) {
	dir := t.TempDir()
	l := newLogFile(dir)
	l.max = 1000
	line := strings.Repeat("x", 99) + "\n"
	for i := range 57 {
		if i == 33 { // as the next daemon does
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			l = newLogFile(dir)
			l.max = 1000
		}
		if n, err := l.Write([]byte(line)); n != len(line) || err != nil {
			t.Fatal(n, err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Fatalf("%v, %v", entries, err)
	}
	now, before := read(t, filepath.Join(dir, logName)), read(t, filepath.Join(dir, logName+".1"))
	if len(now) != 700 || len(before) != 1000 {
		t.Errorf("the log has %d bytes, the one before %d", len(now), len(before))
	}
	if st, err := os.Stat(filepath.Join(dir, logName)); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	big := strings.Repeat("y", 5000)
	if n, err := l.Write([]byte(big)); n != len(big) || err != nil {
		t.Errorf("a line longer than the bound: %d, %v", n, err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

func TestFormats(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1<<20 - 1: "1.0 MiB", 5 << 30: "5.0 GiB", 1<<63 - 1: "8.0 EiB",
	} {
		if got := formatBytes(n); got != want {
			t.Errorf("%d bytes: %q, want %q", n, got, want)
		}
	}
	for mode, want := range map[uint32]string{
		unix.S_IFREG | 0o644: "-rw-r--r--", unix.S_IFDIR | 0o1777: "drwxrwxrwt", unix.S_IFREG | 0o4711: "-rws--x--x", unix.S_IFREG | 0o6000: "---S--S---",
		unix.S_IFLNK | 0o777: "lrwxrwxrwx", unix.S_IFIFO: "p---------", unix.S_IFDIR | 0o1000: "d--------T", unix.S_IFSOCK: "s---------",
		unix.S_IFCHR: "c---------", unix.S_IFBLK: "b---------",
	} {
		if got := modeString(mode); got != want {
			t.Errorf("%o: %q, want %q", mode, got, want)
		}
	}
	for name, want := range map[string]string{"plain": "plain", "ünï": "ünï", "a b": "a b", "a\x1b[2J": `"a\x1b[2J"`, "a\nb": `"a\nb"`, "\xff": `"\xff"`} {
		if got := quoteAlways(name); got != want {
			t.Errorf("%q is shown as %s, want %s", name, got, want)
		}
	}
}

func TestProgress(t *testing.T) {
	var out strings.Builder
	clock := time.Unix(0, 0)
	p := &progress{w: &out, label: "f", now: func() time.Time { return clock }, start: clock}
	p.add(1 << 20)
	if out.Len() > 0 {
		t.Errorf("a short transfer shows %q", out.String())
	}
	clock = clock.Add(2 * time.Second)
	p.add(1 << 20)
	p.add(1 << 20)
	p.done()
	if got, want := out.String(), "\r\x1b[Kf: 2.0 MiB, 1.0 MiB/s\r\x1b[K"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	var none *progress
	none.add(1)
	none.done()
	if none.reader(&strings.Reader{}) == nil {
		t.Error("no progress loses the reader")
	}
}

func TestFindMount(t *testing.T) {
	base, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(base+"/mnt/sub/deep", 0o755); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{"/link": base + "/mnt", "/file": base + "/mnt/sub/f", "/mnt/out": "/etc"} {
		if err := os.Symlink(to, base+link); err != nil {
			t.Fatal(err)
		}
	}
	mounts := []mountEntry{{base + "/mnt", "outer"}, {base + "/mnt/sub", "inner"}, {base + "/mn", "decoy"}}
	for path, want := range map[string]string{
		"/mnt": "outer /", "/mnt/a": "outer /a", "/mnt/a/b/c": "outer /a/b/c", "/mnt/sub": "inner /", "/mnt/sub/deep/x": "inner /deep/x", "/mntx/a": "",
		"/link/a": "outer /a", "/link": "outer /", "/file": "inner /f", "/mnt/../mnt/a": "outer /a", "/none": "", "/mnt/out": "outer /out", "/mnt/out/passwd": "",
	} {
		got := ""
		if m, rel, ok := findMount(mounts, base+path); ok {
			got = m.Store + " " + rel
		}
		if got != want && !(path == "/file" && got == "") { // a link to a file that is not there leads nowhere
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}
