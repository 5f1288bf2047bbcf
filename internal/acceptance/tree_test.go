package acceptance

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// entry is all that a program can see of a file, but for its access time, number and change time.
type entry struct {
	Mode, UID, GID uint32
	Nlink, Rdev    uint64
	Size, Mtime    int64
	Target         string
	Xattrs         string
	Sum            [32]byte
}

// tree maps the paths below a directory to what is there.
type tree map[string]entry

// readTree reads everything below root, each byte included.
func readTree(t *testing.T, root string) tree {
	t.Helper()
	res := tree{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		e, err := readEntry(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		res[rel] = e
		return err
	})
	if err != nil {
		t.Fatalf("reading the tree: %v", err)
	}
	return res
}

func readEntry(path string) (entry, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return entry{}, &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	e := entry{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Nlink: st.Nlink, Rdev: st.Rdev, Mtime: st.Mtim.Nano()}
	if e.Mode&unix.S_IFMT != unix.S_IFDIR {
		e.Size = st.Size
	}
	var err error
	switch e.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		e.Target, err = os.Readlink(path)
	case unix.S_IFREG:
		e.Sum, err = sumFile(path)
	}
	if err != nil {
		return e, err
	}
	if e.Mode&unix.S_IFMT == unix.S_IFREG || e.Mode&unix.S_IFMT == unix.S_IFDIR {
		e.Xattrs, err = readXattrs(path)
	}
	return e, err
}

func sumFile(path string) ([32]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return [32]byte{}, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.CopyBuffer(struct{ io.Writer }{h}, f, make([]byte, 256<<10)); err != nil {
		return [32]byte{}, err
	}
	return [32]byte(h.Sum(nil)), nil
}

func readXattrs(path string) (string, error) {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	if err == unix.ENOTSUP {
		return "", nil
	}
	if err != nil {
		return "", &os.PathError{Op: "listxattr", Path: path, Err: err}
	}
	names := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
	slices.Sort(names)
	var b strings.Builder
	for _, name := range names {
		if !strings.HasPrefix(name, "user.") {
			continue
		}
		val := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, val)
		if err != nil {
			return "", &os.PathError{Op: "getxattr " + name, Path: path, Err: err}
		}
		fmt.Fprintf(&b, "%s=%q ", name, val[:n])
	}
	return b.String(), nil
}

// diff names the first differences in words; "" means that the trees are the same.
func (want tree) diff(got tree) string {
	var b strings.Builder
	n := 0
	report := func(format string, args ...any) {
		if n++; n <= 20 {
			fmt.Fprintf(&b, format+"\n", args...)
		}
	}
	for _, path := range slices.Sorted(maps.Keys(want)) {
		g, ok := got[path]
		switch w := want[path]; {
		case !ok:
			report("missing: %s", path)
		case g != w:
			report("differs: %s: %s", path, w.differences(g))
		}
	}
	for _, path := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[path]; !ok {
			report("not expected: %s", path)
		}
	}
	if n > 20 {
		fmt.Fprintf(&b, "and %d more\n", n-20)
	}
	return b.String()
}

func (e entry) differences(g entry) string {
	var s []string
	add := func(name string, want, got any) {
		if want != got {
			s = append(s, fmt.Sprintf("%s is %v, want %v", name, got, want))
		}
	}
	add("mode", fmt.Sprintf("%o", e.Mode), fmt.Sprintf("%o", g.Mode))
	add("owner", fmt.Sprint(e.UID, ":", e.GID), fmt.Sprint(g.UID, ":", g.GID))
	add("links", e.Nlink, g.Nlink)
	add("device", e.Rdev, g.Rdev)
	add("size", e.Size, g.Size)
	add("mtime", e.Mtime, g.Mtime)
	add("target", e.Target, g.Target)
	add("attributes", e.Xattrs, g.Xattrs)
	if !bytes.Equal(e.Sum[:], g.Sum[:]) {
		s = append(s, "content differs")
	}
	return strings.Join(s, ", ")
}
