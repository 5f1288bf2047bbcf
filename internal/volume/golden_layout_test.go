package volume

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/catalog"
)

// documented lists every path pattern of a store that docs/format.md describes, and whether this test makes a file of it: the others belong to
// a moment of a crash, or to parts above this package.
func documented() map[string]bool {
	return map[string]bool{
		"holdfast.toml": true, "lock": true, "control.sock": false, "reserve": true, "holdfast.log": false, "holdfast.log.1": false,
		"journal": true, "journal/<first>.seg": true, "journal/<first>.seg.tmp": false, "journal/<first>.seg.misnamed": false,
		"<db>": true, "<db>-wal": true, "<db>-shm": true, "catalog.db.sums": true, ".catalog.db.sums.tmp-<random>": false, "catalog.rebuild": false,
		"blobs": true, "blobs/<ab>": true, "blobs/<ab>/<sha256>": true, "blobs/<ab>/<sha256>.zst": true, "blobs/<ab>/<sha256>.json": true,
		"blobs/<ab>/<sha256>.par": false, "blobs/<ab>/<sha256>.par.moved-<number>": false,
		"blobs/<ab>/<sha256>.moved-<number>": true, "blobs/<ab>/<sha256>.zst.moved-<number>": false, "blobs/<ab>/<sha256>.json.moved-<number>": false,
		"blobs/.compress": false, "blobs/.tmp": true, "blobs/.tmp/<number>": false, "staging": true, "staging/<ino>-<random>": true,
		"second": true, "second/copy-of": true, "second/staging": true, "second/staging/copy-<random>": false,
		"second/blobs.db": true, "second/blobs.db-wal": true, "second/blobs.db-shm": true,
		"second/blobs": true, "second/blobs/<ab>": true, "second/blobs/<ab>/<sha256>": false, "second/blobs/<ab>/<sha256>.zst": false,
		"second/blobs/<ab>/<sha256>.json": true, "second/blobs/.compress": false, "second/blobs/.tmp": true, "second/blobs/.tmp/<number>": false,
		"integrity.db": false, "integrity.db-wal": false, "integrity.db-shm": false, "quarantine/<sha256>.<time>": false,
		"blobs.db.new": false, "blobs.db.new-wal": false, "blobs.db.new-shm": false, "quarantine/blobs.db.<time>": false, "quarantine/blobs.db.<time>-wal": false,
		"second/blobs.db.new": false, "second/blobs.db.new-wal": false, "second/blobs.db.new-shm": false, "second/quarantine": false,
		"second/quarantine/blobs.db.<time>": false, "second/quarantine/blobs.db.<time>-wal": false,
		"quarantine/integrity.db.<time>": false, "quarantine/integrity.db.<time>-wal": false, "quarantine/integrity.db.<time>-shm": false,
		"quarantine": true, "quarantine/<first>.seg.torn-<time>": true, "quarantine/<first>.seg.dropped-<time>": false, "quarantine/<first>.seg.damaged-<time>": false,
		"quarantine/<first>.seg.unreadable-<time>": true, "quarantine/catalog.db.<time>": true,
		"quarantine/catalog.db.<time>-wal": false, "quarantine/catalog.db.<time>-shm": false,
		"backup": false, "audit": false, "audit/key": false, "audit/key.pub": false, "audit/tree": false, "audit/tree.old": false, "audit/checkpoints": false,
		"audit/.key.tmp-<random>": false, "audit/.key.pub.tmp-<random>": false, "audit/.checkpoints.tmp-<random>": false,
		".holdfast.toml.tmp-<random>": false, ".catalog.rebuild.tmp-<random>": false, "quarantine/.<first>.seg.dropped-<time>.tmp-<random>": false,
	}
}

// patternOf turns a pattern of the documentation into an expression.
func patternOf(pattern string) *regexp.Regexp {
	text := regexp.QuoteMeta(pattern)
	for word, expr := range map[string]string{
		"<first>": "[0-9a-f]{16}", "<sha256>": "[0-9a-f]{64}", "<ab>": "[0-9a-f]{2}", "<time>": `\d{8}T\d{6}\.\d{9}Z`, "<ino>": `\d+`, "<random>": `\d+`,
		"<number>": "[0-9a-z]+", "<db>": `(catalog|blobs)\.db`,
	} {
		text = strings.ReplaceAll(text, word, expr)
	}
	return regexp.MustCompile("^" + text + "$")
}

// documentedPaths reads the patterns from the table of the chapter on the store directory.
func documentedPaths(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "format.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, chapter, ok := strings.Cut(string(text), "\n## The store directory\n")
	if !ok {
		t.Fatal("docs/format.md has no chapter on the store directory")
	}
	chapter, _, _ = strings.Cut(chapter, "\n### ")
	var list []string
	for line := range strings.Lines(chapter) {
		cell, found := strings.CutPrefix(line, "| `")
		if !found {
			continue
		}
		cell, _, _ = strings.Cut("`"+cell, " |")
		for i, word := range strings.Split(cell, "`") {
			if i%2 == 1 {
				list = append(list, word)
			}
		}
	}
	slices.Sort(list)
	return list
}

// TestEveryFileIsDocumented walks stores, new, in use, old and mended, and finds every file in docs/format.md, and nothing there that this test does not know.
func TestEveryFileIsDocumented(t *testing.T) {
	table := documented()
	if docs, want := documentedPaths(t), slices.Sorted(maps.Keys(table)); !slices.Equal(docs, want) {
		t.Errorf("docs/format.md describes\n%q\nthis test knows\n%q", docs, want)
	}
	expr := make(map[string]*regexp.Regexp)
	for p := range table {
		expr[p] = patternOf(p)
	}
	seen := make(map[string]bool)
	walk := func(what, dir string) {
		t.Helper()
		err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err != nil || p == dir {
				return err
			}
			name, err := filepath.Rel(dir, p)
			if err != nil {
				return err
			}
			var found []string
			for pattern, re := range expr {
				if re.MatchString(name) {
					found = append(found, pattern)
					seen[pattern] = true
				}
			}
			if len(found) != 1 {
				t.Errorf("%s: %s is described by %q", what, name, found)
			}
			if strings.Contains(name, ".moved-") {
				return fs.SkipDir // somebody's
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, storage := range storages() {
		dir := newStore(t, storage)
		walk("new "+storage, dir)
		useStore(t, dir, func() { walk(storage+" in use", dir) })
		walk("closed "+storage, dir)
		walk("golden "+storage, unpackGolden(t, Format, storage))
	}
	dir := unpackGolden(t, Format, StorageFile)
	damageStore(t, dir)
	closeStore(t, openStore(t, dir))
	walk("mended", dir)
	for pattern, made := range table {
		if made && !seen[pattern] {
			t.Errorf("no store has a file of the pattern %s", pattern)
		}
	}
}

// useStore calls fn while files are open in the store and changed.
func useStore(t *testing.T, dir string, fn func()) {
	t.Helper()
	v := openStore(t, dir)
	defer closeStore(t, v)
	_, h, err := v.CreateFile(t.Context(), actor(), catalog.Root, "open", catalog.NewInode{Mode: unix.S_IFREG | 0o600}, OpenFlags{Write: true})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close(t.Context())
	for i := range int64(2) {
		if _, err := h.WriteAt(t.Context(), prose(1, 1<<20), i<<20, WriteFlags{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := v.WritePath(t.Context(), actor(), 0, "messages/small", 0o600, strings.NewReader("small")); err != nil {
		t.Fatal(err)
	}
	for _, content := range []string{"small", strings.Repeat("large ", 20000)} {
		if _, err := v.WritePath(t.Context(), actor(), 0, "tasks/critical", 0o600, strings.NewReader(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.cat.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	fn()
}

// damageStore leaves what the next start takes out of use: catalog.db overwritten, a last segment that is unreadable, the one before it torn, a directory in the
// place of a blob.
func damageStore(t *testing.T, dir string) {
	t.Helper()
	segments, err := filepath.Glob(filepath.Join(dir, "journal", "*.seg"))
	if err != nil || len(segments) == 0 {
		t.Fatal(segments, err)
	}
	last := segments[len(segments)-1]
	f, err := os.OpenFile(last, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("an unfinished write"); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	junk := []byte(strings.Repeat("junk ", 2000))
	for name, data := range map[string][]byte{"catalog.db": junk, "journal/0000000000100000.seg": junk} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	blockBlob(t, dir)
}

// blockBlob puts a directory in the place of a small blob that is stored plain.
func blockBlob(t *testing.T, dir string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "blobs", "*", strings.Repeat("?", 64)))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		fi, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if fi.Size() == 0 || fi.Size() > 4096 {
			continue
		}
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(name, 0o700); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatal("there is no small plain blob")
}
