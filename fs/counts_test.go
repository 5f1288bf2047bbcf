package fs_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/internal/fusetest"
)

func runShell(script string, args ...string) ([]byte, error) {
	return exec.Command("sh", append([]string{"-c", script, "sh"}, args...)...).CombinedOutput()
}

// spent is which requests do needs. RELEASE and FORGET come when the kernel likes and are left out.
func spent(t *testing.T, m *fusetest.Mount, do func()) map[string]uint64 {
	t.Helper()
	before := m.Requests()
	do()
	after := m.Requests()
	for name := range after {
		if after[name] -= before[name]; after[name] == 0 || name == "RELEASE" || name == "FORGET" {
			delete(after, name)
		}
	}
	return after
}

func show(counts map[string]uint64) string {
	var all []string
	for name, n := range counts {
		all = append(all, fmt.Sprintf("%s %d", name, n))
	}
	sort.Strings(all)
	return strings.Join(all, ", ")
}

// TestRoundTrips counts the requests of common workloads, which is what they cost before anything else. A number that grows is a cache
// that was lost.
func TestRoundTrips(t *testing.T) {
	m := fusetest.New(t, fusetest.Options{})
	dir := filepath.Join(m.Dir, "work")
	check(t, os.Mkdir(dir, 0o755))
	const n = 20
	path := func(i int) string { return filepath.Join(dir, "f"+itoa(i)) }
	check(t, os.WriteFile(path(0), []byte("x"), 0o644))
	each := func(fn func(i int)) func() {
		return func() {
			for i := range n {
				fn(i)
			}
		}
	}
	logFile := open(t, filepath.Join(dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY)
	for _, c := range []struct {
		what string
		do   func()
		most map[string]uint64
	}{
		{"create, write, close", each(func(i int) { write(t, path(i), "content") }),
			map[string]uint64{"LOOKUP": n, "CREATE": n, "OPEN": 1, "GETXATTR": n, "WRITE": n, "SETATTR": n, "FLUSH": n, "GETATTR": n + 1}},
		{"stat, first after a write", each(func(i int) { lstat(t, path(i)) }), map[string]uint64{"GETATTR": n + 1}},
		{"stat, warm", each(func(i int) { lstat(t, path(i)) }), nil},
		{"stat of what is not there, warm", func() {
			for range n {
				unix.Lstat(filepath.Join(dir, "missing"), new(unix.Stat_t))
			}
		}, map[string]uint64{"LOOKUP": 1, "GETATTR": 1}},
		{"read, warm", each(func(i int) { wantContent(t, path(i), "content") }), map[string]uint64{"OPEN": n, "FLUSH": n}},
		{"list, first", func() { os.ReadDir(dir) }, map[string]uint64{"OPENDIR": 1, "READDIR": 2, "READDIRPLUS": 2, "GETATTR": 1}},
		{"list, again", func() { os.ReadDir(dir) }, nil},
		{"overwrite", each(func(i int) { write(t, path(i), "other content") }),
			map[string]uint64{"OPEN": n, "GETXATTR": 2 * n, "WRITE": n, "SETATTR": n, "FLUSH": n}},
		{"append, reopened", func() {
			for range n {
				f, err := os.OpenFile(path(1), os.O_APPEND|os.O_WRONLY, 0)
				check(t, err)
				f.WriteString("line\n")
				check(t, f.Close())
			}
		}, map[string]uint64{"OPEN": n, "GETXATTR": n, "WRITE": n, "SETATTR": n, "FLUSH": n, "READ": n}},
		{"append, kept open", func() {
			for range n {
				logFile.WriteString("line\n")
			}
		}, map[string]uint64{"GETXATTR": 1}},
		{"replace", each(func(i int) {
			write(t, filepath.Join(dir, "tmp"), "new content")
			check(t, os.Rename(filepath.Join(dir, "tmp"), path(i)))
		}), map[string]uint64{"LOOKUP": 3 * n, "CREATE": n, "WRITE": n, "SETATTR": 3 * n, "FLUSH": n, "RENAME": n, "GETATTR": 3 * n, "GETXATTR": n}},
		{"unlink", each(func(i int) { check(t, os.Remove(path(i))) }), map[string]uint64{"UNLINK": n, "GETATTR": n + 1, "SETATTR": n}},
	} {
		got := spent(t, m, c.do)
		t.Logf("%-32s %s", c.what, show(got))
		for name, k := range got {
			// The kernel writes back when it likes; a cache that is lost costs n more.
			if k > c.most[name]+n/4 {
				t.Errorf("%s: %d %s, want %d at most", c.what, k, name, c.most[name])
			}
		}
	}
}
