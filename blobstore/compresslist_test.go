package blobstore

import (
	"crypto/sha256"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func hashOf(i int) Hash { return sha256.Sum256([]byte{byte(i), byte(i >> 8)}) }

func newCompressList(t *testing.T) (*compressList, string) {
	t.Helper()
	dir := t.TempDir()
	fd, err := openDir(unix.AT_FDCWD, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return &compressList{root: fd, log: slog.New(slog.DiscardHandler)}, filepath.Join(dir, compressName)
}

func TestCompressList(t *testing.T) {
	l, name := newCompressList(t)
	if list := l.read(); len(list) != 0 {
		t.Error(list)
	}
	var queue []Hash
	for i := range 3 {
		queue = append(queue, hashOf(i))
		l.add(hashOf(i), queue)
	}
	if list := l.read(); !slices.Equal(list, queue) {
		t.Errorf("%v", list)
	}
	if _, err := os.Lstat(name); !os.IsNotExist(err) {
		t.Errorf("what was read stays: %v", err)
	}
	// It does not grow for ever.
	for i := range 3 * maxQueue {
		l.add(hashOf(i), queue)
	}
	if fi, err := os.Stat(name); err != nil || fi.Size() > int64(2*maxQueue*compressLine) {
		t.Error(fi.Size(), err)
	}
	l.clear()
	// Anything may be in its place.
	line := hashOf(7).String() + "\n"
	for _, text := range []string{"", "x", strings.Repeat("z", 10_000), strings.Repeat(line, 10_000), line + line[:30], strings.Repeat("\n", 500)} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if list := l.read(); len(list) > 1 {
			t.Errorf("%d blobs from %d bytes", len(list), len(text))
		}
	}
	for _, make := range []func() error{
		func() error { return os.Mkdir(name, 0o700) },
		func() error { return unix.Mkfifo(name, 0o600) },
		func() error { return os.Symlink("/dev/zero", name) },
	} {
		if err := make(); err != nil {
			t.Fatal(err)
		}
		if list := l.read(); len(list) != 0 {
			t.Error(list)
		}
		l.add(hashOf(1), queue)
		if err := os.RemoveAll(name); err != nil {
			t.Fatal(err)
		}
	}
}
