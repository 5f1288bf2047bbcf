//go:build system

package acceptance

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// gitEnv keeps the user's and the machine's git settings out.
func gitEnv(home string) []string {
	return []string{
		"HOME=" + home, "GIT_CONFIG_NOSYSTEM=1", "GIT_AUTHOR_NAME=Test", "GIT_AUTHOR_EMAIL=test@example.org",
		"GIT_COMMITTER_NAME=Test", "GIT_COMMITTER_EMAIL=test@example.org", "GIT_CONFIG_COUNT=3",
		"GIT_CONFIG_KEY_0=gc.auto", "GIT_CONFIG_VALUE_0=0", "GIT_CONFIG_KEY_1=core.fsync", "GIT_CONFIG_VALUE_1=all",
		"GIT_CONFIG_KEY_2=init.defaultBranch", "GIT_CONFIG_VALUE_2=main",
	}
}

// TestGit works in a repository as people do, over several mounts.
func TestGit(t *testing.T) {
	p := newPlace(t, placeOptions{})
	repo := filepath.Join(p.dir, "repo")
	must(t, os.Mkdir(repo, 0o755))
	git := func(args ...string) string {
		t.Helper()
		return command{dir: repo, env: gitEnv(t.TempDir())}.run(t, "git", args...)
	}
	write := func(name, content string) {
		t.Helper()
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(repo, name)), 0o755))
		must(t, os.WriteFile(filepath.Join(repo, name), []byte(content), 0o644))
	}
	clean := func() {
		t.Helper()
		if s := git("status", "--porcelain"); s != "" {
			t.Fatalf("git status is not clean:\n%s", s)
		}
	}
	git("init", "-q")
	rnd := newRand(t)
	for i := range 300 {
		write(fmt.Sprintf("src/pkg%d/file%d.txt", i%20, i), strings.Repeat(fmt.Sprintf("line %d\n", i), 1+rnd.IntN(300)))
	}
	write("data.bin", string(randomBytes(rnd, 2<<20)))
	must(t, os.Symlink("src/pkg1/file1.txt", filepath.Join(repo, "link")))
	git("add", "-A")
	git("commit", "-q", "-m", "first")
	clean()
	for i := range 20 {
		git("checkout", "-q", "-b", fmt.Sprint("topic", i), "main")
		write(fmt.Sprintf("src/pkg%d/topic.txt", i), fmt.Sprintf("topic %d\n", i))
		git("add", "-A")
		git("commit", "-q", "-m", fmt.Sprint("topic ", i))
	}
	git("checkout", "-q", "main")
	for i := range 20 {
		git("merge", "-q", "--no-ff", "-m", fmt.Sprint("merge ", i), fmt.Sprint("topic", i))
	}
	p.checkReopened()
	clean()
	git("fsck", "--full", "--strict")
	git("gc", "-q", "--aggressive", "--prune=now")
	git("fsck", "--full", "--strict")
	git("clone", "-q", "--no-local", repo, filepath.Join(p.dir, "clone"))
	git("worktree", "add", "-q", filepath.Join(p.dir, "tree"), "topic3")
	git("stash", "list")
	p.checkReopened()
	clean()
	git("fsck", "--full", "--strict")
	git("-C", filepath.Join(p.dir, "clone"), "fsck", "--full", "--strict")
	if n := strings.TrimSpace(git("rev-list", "--count", "main")); n != "41" {
		t.Errorf("main has %s commits, want 41", n)
	}
}

// TestGoBuild builds and tests a module with the sources, the build cache and the results all in the mount.
func TestGoBuild(t *testing.T) {
	p := newPlace(t, placeOptions{})
	module := filepath.Join(p.dir, "module")
	files := map[string]string{
		"go.mod":         "module example.org/hello\n\ngo 1.26\n",
		"main.go":        "package main\n\nimport (\n\t\"fmt\"\n\n\t\"example.org/hello/sum\"\n)\n\nfunc main() { fmt.Println(sum.Of(1, 2, 39)) }\n",
		"sum/sum.go":     "// Package sum adds.\npackage sum\n\n// Of adds numbers.\nfunc Of(n ...int) (s int) {\n\tfor _, v := range n {\n\t\ts += v\n\t}\n\treturn s\n}\n",
		"sum/of_test.go": "package sum\n\nimport \"testing\"\n\nfunc TestOf(t *testing.T) {\n\tif Of(1, 2) != 3 {\n\t\tt.Fatal()\n\t}\n}\n",
	}
	for name, content := range files {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(module, name)), 0o755))
		must(t, os.WriteFile(filepath.Join(module, name), []byte(content), 0o644))
	}
	tmp := filepath.Join(p.dir, "tmp")
	must(t, os.Mkdir(tmp, 0o755))
	c := command{dir: module, env: []string{"GOCACHE=" + filepath.Join(p.dir, "cache"), "GOTMPDIR=" + tmp, "GOFLAGS=", "GOWORK=off", "CGO_ENABLED=0"}}
	c.run(t, "go", "build", "-o", "hello", ".")
	if out := c.run(t, "./hello"); out != "42\n" {
		t.Fatalf("the built program printed %q", out)
	}
	c.run(t, "go", "test", "-vet=off", "./...")
	p.checkReopened()
	if out := c.run(t, "./hello"); out != "42\n" {
		t.Fatalf("the built program printed %q", out)
	}
	if out := c.run(t, "go", "test", "-vet=off", "./..."); !strings.Contains(out, "(cached)") {
		t.Errorf("the build cache did not survive the remount: %s", out)
	}
}

// makeTree fills a directory outside the mount with all kinds of files that rsync and tar carry.
func makeTree(t *testing.T, dir string) {
	t.Helper()
	rnd := newRand(t)
	for i := range 200 {
		name := filepath.Join(dir, fmt.Sprintf("d%d/sub/f%d", i%7, i))
		must(t, os.MkdirAll(filepath.Dir(name), 0o755))
		must(t, os.WriteFile(name, randomBytes(rnd, rnd.IntN(30<<10)), os.FileMode(0o400+rnd.IntN(0o400))))
	}
	must(t, os.WriteFile(filepath.Join(dir, "large"), randomBytes(rnd, 3<<20), 0o644))
	must(t, os.Link(filepath.Join(dir, "large"), filepath.Join(dir, "hard")))
	must(t, os.Symlink("large", filepath.Join(dir, "soft")))
	must(t, os.Symlink("nowhere/at all", filepath.Join(dir, "dangling")))
	must(t, os.Mkdir(filepath.Join(dir, "empty"), 0o1777))
	must(t, os.WriteFile(filepath.Join(dir, "name with \"quotes\" and \xff bytes\n"), []byte("odd"), 0o644))
	sparse, err := os.Create(filepath.Join(dir, "sparse"))
	must(t, err)
	_, err = sparse.WriteAt([]byte("end"), 5<<20)
	must(t, err)
	must(t, sparse.Close())
	command{dir: dir}.run(t, "setfattr", "-n", "user.color", "-v", "green", "large")
	command{dir: dir}.run(t, "mkfifo", "pipe")
	if os.Getuid() == 0 {
		must(t, os.Lchown(filepath.Join(dir, "soft"), 1234, 5678))
		must(t, os.Chown(filepath.Join(dir, "d1"), 1234, 5678))
		must(t, os.Chmod(filepath.Join(dir, "d2"), os.ModeSetgid|0o775))
	}
	setTimes(t, dir)
}

// setTimes gives everything below dir a different time in the past, in nanoseconds: rsync compares those of directories in
// seconds only, and would leave a directory that was made in the same second as it is.
func setTimes(t *testing.T, dir string) {
	t.Helper()
	var paths []string
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		paths = append(paths, path)
		return err
	}))
	for i, path := range slices.Backward(paths) {
		ts := unix.NsecToTimespec(1_000_000_000_123_456_789 + int64(i)*1_000_000_007)
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
	}
}

// TestRsync copies a tree in, finds nothing to do the second time, and follows removals.
func TestRsync(t *testing.T) {
	p := newPlace(t, placeOptions{})
	src := t.TempDir()
	makeTree(t, src)
	rsync := func(args ...string) string {
		t.Helper()
		return command{}.run(t, "rsync", append(args, "-aHX", "--itemize-changes", src+"/", filepath.Join(p.dir, "copy")+"/")...)
	}
	rsync("--sparse")
	want := readTree(t, src)
	same := func(when string) {
		t.Helper()
		if diff := want.diff(readTree(t, filepath.Join(p.dir, "copy"))); diff != "" {
			t.Fatalf("%s the copy differs:\n%s", when, diff)
		}
	}
	same("after copying")
	if out := rsync(); out != "" {
		t.Errorf("the second rsync had something to do:\n%s", out)
	}
	p.reopen()
	same("after mounting again")
	if out := rsync("--checksum"); out != "" {
		t.Errorf("rsync --checksum found a difference after the remount:\n%s", out)
	}
	must(t, os.RemoveAll(filepath.Join(src, "d3")))
	must(t, os.WriteFile(filepath.Join(src, "d2", "new"), []byte("new"), 0o644))
	must(t, os.WriteFile(filepath.Join(src, "large"), []byte("short now"), 0o644))
	setTimes(t, src)
	rsync("--checksum", "--delete", "--inplace")
	want = readTree(t, src)
	same("after --delete")
	p.reopen()
	same("after --delete and a remount")
}

// TestTar packs and unpacks inside the mount; tar itself compares.
func TestTar(t *testing.T) {
	p := newPlace(t, placeOptions{})
	src := t.TempDir()
	makeTree(t, src)
	tar := func(args ...string) string {
		t.Helper()
		return command{dir: p.dir}.run(t, "tar", append([]string{"--xattrs", "--numeric-owner"}, args...)...)
	}
	tar("-cf", "all.tar", "-C", src, ".")
	must(t, os.Mkdir(filepath.Join(p.dir, "out"), 0o755))
	tar("-xpf", "all.tar", "-C", "out")
	tar("-df", "all.tar", "-C", "out")
	want := readTree(t, src)
	p.checkReopened()
	tar("-df", "all.tar", "-C", "out")
	if diff := want.diff(readTree(t, filepath.Join(p.dir, "out"))); diff != "" {
		t.Fatalf("the unpacked tree differs:\n%s", diff)
	}
	tar("-czf", "again.tar.gz", "-C", "out", ".")
	tar("-dzf", "again.tar.gz", "-C", src)
}

// TestSQLite has several processes write to one database, with a rollback journal and with a write-ahead log.
func TestSQLite(t *testing.T) {
	for _, mode := range []string{"delete", "truncate", "persist", "wal"} {
		t.Run(mode, func(t *testing.T) {
			p := newPlace(t, placeOptions{})
			db := filepath.Join(p.dir, "test.db")
			sql := func(text string) string {
				t.Helper()
				return strings.TrimSpace(command{stdin: text}.run(t, "sqlite3", "-batch", "-bail", "-cmd", ".timeout 60000", db))
			}
			if got := sql("pragma journal_mode=" + mode + "; create table t(writer, n, body); create index i on t(n);"); got != mode {
				t.Fatalf("the journal mode is %q", got)
			}
			const writers, rows = 4, 40
			var wg sync.WaitGroup
			for w := range writers {
				var b strings.Builder
				fmt.Fprintf(&b, "pragma synchronous=%s;\n", []string{"full", "normal"}[w%2])
				for n := range rows {
					fmt.Fprintf(&b, "begin immediate; insert into t values(%d,%d,hex(randomblob(%d))); update t set body=body||'x' where n=%d; commit;\n", w, n, 50+n*40, n/2)
				}
				wg.Go(func() { sql(b.String()) })
			}
			wg.Wait()
			check := func() {
				t.Helper()
				if got := sql("pragma integrity_check; select count(*), count(distinct writer*1000+n) from t;"); got != "ok\n160|160" {
					t.Fatalf("the database says %q", got)
				}
			}
			check()
			p.checkReopened()
			check()
			sql("delete from t where n%2; vacuum;")
			p.reopen()
			if got := sql("pragma integrity_check; select count(*) from t;"); got != "ok\n80" {
				t.Fatalf("after vacuum the database says %q", got)
			}
		})
	}
}
