package volume

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"holdfast/catalog"
)

// Golden stores are stores of each format that was ever written, in each storage mode, packed, with a manifest of all that they hold. They
// must read the same for ever. `go test ./internal/volume -run TestGolden -update` makes those of the format that this program writes.
func TestMain(m *testing.M) {
	flag.Bool("update", false, "make the golden stores of this program's format; existing ones are never replaced")
	m.Run()
}

func updating() bool { return flag.Lookup("update").Value.String() == "true" }

func goldenFile(format int, storage, ext string) string {
	return filepath.Join("testdata", "golden", fmt.Sprint(format), storage+ext)
}

// TestGolden opens each golden store read-only, for writing, and after its catalog.db is gone, and compares everything with the manifest.
func TestGolden(t *testing.T) {
	if updating() {
		for _, storage := range storages() {
			makeGolden(t, storage)
		}
	}
	for format := 1; format <= Format; format++ {
		for _, storage := range storages() {
			t.Run(fmt.Sprintf("%d-%s", format, storage), func(t *testing.T) {
				t.Parallel()
				text, err := os.ReadFile(goldenFile(format, storage, ".txt"))
				if err != nil {
					t.Fatal(err)
				}
				want := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
				dir := unpackGolden(t, format, storage)
				before := snapshot(t, dir)
				compareLines(t, "read-only", describeDir(t, dir, true), want)
				compareLines(t, "files after that", withoutShared(snapshot(t, dir)), withoutShared(before))
				compareLines(t, "for writing", describeDir(t, dir, false), want)

				removeAll(t, filepath.Join(dir, "catalog.db*"))
				closeStore(t, openStore(t, dir))
				compareLines(t, "rebuilt from the journal", describeDir(t, dir, true), want)

				// Small blobs come back from the journal, too.
				removeAll(t, filepath.Join(dir, "catalog.db*"))
				if storage == StorageHybrid {
					removeAll(t, filepath.Join(dir, "blobs.db*"))
				} else if storage == StorageFile {
					removeSmall(t, dir)
				} else {
					return
				}
				closeStore(t, openStore(t, dir)) // which says that it is gone
				got := describeDir(t, dir, false)
				except := []string{"store", "counts", "tree", "xattr", "log", "version", "at", "record"} // how the blobs are packed may change
				compareLines(t, "rebuilt with the small blobs", kinds(got, except...), kinds(want, except...))
			})
		}
	}
}

// removeSmall removes every file of blobs that the journal can bring back: of those of up to 64 KiB.
func removeSmall(t *testing.T, dir string) {
	t.Helper()
	gone := 0
	err := filepath.WalkDir(filepath.Join(dir, "blobs"), func(p string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(p) != ".json" {
			return err
		}
		text, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		var sidecar struct{ Size int64 }
		if err := json.Unmarshal(text, &sidecar); err != nil {
			return err
		}
		if sidecar.Size <= 64<<10 {
			gone++
			removeAll(t, strings.TrimSuffix(p, ".json")+"*")
		}
		return nil
	})
	if err != nil || gone < 10 {
		t.Fatalf("removed %d small blobs: %v", gone, err)
	}
}

func removeAll(t *testing.T, pattern string) {
	t.Helper()
	names, err := filepath.Glob(pattern)
	if err != nil || len(names) == 0 {
		t.Fatalf("%s: %v %v", pattern, names, err)
	}
	for _, name := range names {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
}

func describeDir(t *testing.T, dir string, readOnly bool) []string {
	t.Helper()
	v, err := Open(t.Context(), Options{Dir: dir, ReadOnly: readOnly})
	if err != nil {
		t.Fatal(err)
	}
	lines, err := describeStore(t.Context(), v)
	if err := errors.Join(err, v.Close(context.WithoutCancel(t.Context()))); err != nil {
		t.Fatal(err)
	}
	return lines
}

func compareLines(t *testing.T, what string, got, want []string) {
	t.Helper()
	bad := 0
	for i := range max(len(got), len(want)) {
		g, w := "(nothing)", "(nothing)"
		if i < len(got) {
			g = got[i]
		}
		if i < len(want) {
			w = want[i]
		}
		if g == w {
			continue
		}
		if bad++; bad > 5 {
			t.Errorf("%s: there are more differences; %d lines, want %d", what, len(got), len(want))
			return
		}
		t.Errorf("%s, line %d:\n got %s\nwant %s", what, i+1, g, w)
	}
}

// makeGolden makes a golden store and its manifest.
func makeGolden(t *testing.T, storage string) {
	t.Helper()
	dir := newStore(t, storage)
	newRecipe(t, dir).cook(storage == StorageHybrid)
	if t.Failed() {
		t.Fatal("the store is not what the recipe says; no golden is made of it")
	}
	var packed bytes.Buffer
	if err := pack(&packed, dir); err != nil {
		t.Fatal(err)
	}
	text := strings.Join(describeDir(t, dir, true), "\n") + "\n"
	for ext, data := range map[string][]byte{".tar.zst": packed.Bytes(), ".txt": []byte(text)} {
		if err := writeGolden(goldenFile(Format, storage, ext), data); err != nil {
			t.Fatal(err)
		}
	}
}

// writeGolden never replaces a file: what a released program wrote stays what later ones must read.
func writeGolden(name string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w: the goldens of a released format never change; raise Format for a new format, and remove the file only if no program of "+
			"format %d was ever released", err, Format)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

func TestGoldenIsNeverReplaced(t *testing.T) {
	name := filepath.Join(t.TempDir(), "golden", "x")
	if err := writeGolden(name, []byte("first")); err != nil {
		t.Fatal(err)
	}
	if err := writeGolden(name, []byte("second")); !errors.Is(err, fs.ErrExist) {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(name); err != nil || string(got) != "first" {
		t.Fatalf("%q %v", got, err)
	}
}

// pack writes the directories and regular files below dir, without owners and times.
func pack(w io.Writer, dir string) error {
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	tw := tar.NewWriter(z)
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		name, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return tw.WriteHeader(&tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: 0o700})
		}
		data, err := os.ReadFile(p)
		if err == nil {
			err = tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o600, Size: int64(len(data))})
		}
		if err == nil {
			_, err = tw.Write(data)
		}
		return err
	})
	return errors.Join(err, tw.Close(), z.Close())
}

func unpackGolden(t *testing.T, format int, storage string) string {
	t.Helper()
	f, err := os.Open(goldenFile(format, storage, ".tar.zst"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := zstd.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	dir := filepath.Join(t.TempDir(), "store")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for tr := tar.NewReader(z); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return dir
		}
		if err != nil {
			t.Fatal(err)
		}
		if !filepath.IsLocal(h.Name) {
			t.Fatalf("%q leads out of the archive", h.Name)
		}
		name := filepath.Join(dir, h.Name)
		if h.Typeflag == tar.TypeDir {
			err = os.Mkdir(name, 0o700)
		} else {
			var data []byte
			if data, err = io.ReadAll(tr); err == nil {
				err = os.WriteFile(name, data, 0o600)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// snapshot lists everything below dir: name, mode, size, time of change, checksum.
func snapshot(t *testing.T, dir string) (lines []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, p)
		line := fmt.Sprintf("%s %v", name, fi.Mode())
		if fi.Mode().IsRegular() && err == nil {
			var data []byte
			data, err = os.ReadFile(p)
			line += fmt.Sprintf(" %d %d %08x", fi.Size(), fi.ModTime().UnixNano(), crc32.ChecksumIEEE(data))
		}
		lines = append(lines, line)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

// withoutShared leaves out what a reader of SQLite makes and what locking makes.
func withoutShared(lines []string) (out []string) {
	for _, l := range lines {
		name, _, _ := strings.Cut(l, " ")
		if !strings.HasSuffix(name, "-shm") && !strings.HasSuffix(name, "-wal") {
			out = append(out, l)
		}
	}
	return out
}

// TestNewerFormat: a store of another format is refused in every way of opening, and not a byte of it changes.
func TestNewerFormat(t *testing.T) {
	for _, storage := range storages() {
		dir := unpackGolden(t, Format, storage)
		name := filepath.Join(dir, settingsFile)
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		line := fmt.Sprintf("format = %d\n", Format)
		if !bytes.Contains(text, []byte(line)) {
			t.Fatalf("%s does not say its format:\n%s", name, text)
		}
		for _, value := range []string{fmt.Sprintf("format = %d\nlayout = 'new'\n", Format+1), "format = 9223372036854775807\n", "format = 99999999999999999999\n",
			"format = 0\n", "format = -1\n", "format = '1'\n", "format = [1]\n", ""} {
			if err := os.WriteFile(name, bytes.Replace(text, []byte(line), []byte(value), 1), 0o600); err != nil {
				t.Fatal(err)
			}
			before := snapshot(t, dir)
			for _, readOnly := range []bool{true, false} {
				v, err := Open(t.Context(), Options{Dir: dir, ReadOnly: readOnly})
				if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), name) {
					t.Errorf("%q, read-only %v: %v", value, readOnly, err)
				}
				if err == nil {
					closeStore(t, v)
				}
			}
			if _, err := Init(t.Context(), dir, InitOptions{}); !errors.Is(err, catalog.ErrExist) {
				t.Errorf("%q: init on it: %v", value, err)
			}
			compareLines(t, value, snapshot(t, dir), before)
		}
	}
}

// TestNewerParts: a journal segment or a blobs.db of another format inside a store of this one is refused, and neither is changed.
func TestNewerParts(t *testing.T) {
	edit := func(t *testing.T, name string, change func([]byte)) {
		t.Helper()
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		change(data)
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for part, newer := range map[string]func(t *testing.T, dir string){
		"journal": func(t *testing.T, dir string) {
			names, err := filepath.Glob(filepath.Join(dir, "journal", "*.seg"))
			if err != nil || len(names) < 2 {
				t.Fatal(names, err)
			}
			edit(t, names[len(names)-1], func(b []byte) {
				binary.LittleEndian.PutUint32(b[8:], 2)
				binary.LittleEndian.PutUint32(b[4092:], crc32.Checksum(b[:4092], crc32.MakeTable(crc32.Castagnoli)))
			})
		},
		"blobs.db": func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, "blobs.db"), func(b []byte) { binary.BigEndian.PutUint32(b[60:], 2) }) // user_version
		},
	} {
		t.Run(part, func(t *testing.T) {
			dir := unpackGolden(t, Format, StorageDatabase)
			newer(t, dir)
			before := snapshot(t, filepath.Join(dir, "journal"))
			blobs, err := os.ReadFile(filepath.Join(dir, "blobs.db"))
			if err != nil {
				t.Fatal(err)
			}
			for _, readOnly := range []bool{true, false} {
				v, err := Open(t.Context(), Options{Dir: dir, ReadOnly: readOnly})
				if err == nil {
					closeStore(t, v)
					t.Fatalf("read-only %v: it was opened", readOnly)
				}
				if !strings.Contains(err.Error(), "version") {
					t.Errorf("the error does not say what is wrong: %v", err)
				}
			}
			compareLines(t, "journal", snapshot(t, filepath.Join(dir, "journal")), before)
			if after, err := os.ReadFile(filepath.Join(dir, "blobs.db")); err != nil || !bytes.Equal(after, blobs) {
				t.Errorf("blobs.db has changed: %v", err)
			}
		})
	}
}
