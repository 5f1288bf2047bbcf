package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/blobstore"
	"holdfast/catalog"
)

func keepNothing(t *testing.T, v *Volume) {
	t.Helper()
	none := Span(0)
	all := Retention{Path: "/", KeepAll: &none, Hourly: &none, Daily: &none, Weekly: &none}
	if _, err := v.SetRetention(t.Context(), all, RetentionChange{}); err != nil {
		t.Fatal(err)
	}
}

const bodies = 60

// bodyN is one of a few contents, so that what was deleted a moment ago is soon written again.
func bodyN(n int) []byte {
	size := []int{100, 10 << 10, 200 << 10, 70 << 10}[n%4]
	return bytes.Repeat(fmt.Appendf(nil, "body %02d.", n), size/8)
}

func isBody(p []byte) bool {
	var n int
	_, err := fmt.Sscanf(string(p[:min(len(p), 8)]), "body %02d.", &n)
	return err == nil && n >= 0 && n < bodies && bytes.Equal(p, bodyN(n))
}

// TestGCBesideLoad thins everything away all the time while others write, copy, link and read: what is read is always whole, and what is held stays.
func TestGCBesideLoad(t *testing.T) {
	for _, storage := range storages() {
		t.Run(storage, func(t *testing.T) { gcBesideLoad(t, storage) })
	}
}

func gcBesideLoad(t *testing.T, storage string) {
	dir := newStore(t, storage)
	v := openStore(t, dir)
	keepNothing(t, v)
	ctx := t.Context()
	var work, cleaner sync.WaitGroup
	var pruned atomic.Int64
	stop := make(chan struct{})
	cleaner.Go(func() {
		for round := 0; ; {
			select {
			case <-stop:
				return
			default:
			}
			rep, err := v.pruneAt(ctx, catalog.PruneOptions{Now: time.Now().Add(time.Second), Slice: 50, Sweep: true})
			if round++; err == nil && round%8 == 0 {
				_, err = v.cat.Compact(ctx, true, nil)
			}
			if err != nil {
				t.Error("gc:", err)
				return
			}
			pruned.Add(rep.Blobs)
		}
	})
	for worker := range 4 {
		r := seeded(t)
		work.Go(func() {
			for step := range 50 {
				name := fmt.Sprintf("w%d-%d", worker, r.IntN(3))
				n := r.IntN(bodies)
				if err := gcStep(ctx, v, r.IntN(6), name, n); err != nil {
					t.Errorf("worker %d step %d: %v", worker, step, err)
					return
				}
			}
		})
	}
	work.Wait()
	close(stop)
	cleaner.Wait()
	if pruned.Load() == 0 {
		t.Error("nothing was deleted meanwhile")
	}
	// At rest nothing is left but the present, and all of it can be read, after a restart too.
	for round := range 2 {
		if _, err := v.pruneAt(ctx, catalog.PruneOptions{Now: time.Now().Add(time.Hour), Sweep: true}); err != nil {
			t.Fatal(err)
		}
		named := map[blobstore.Hash]bool{}
		entries, err := v.ReadDir(ctx, catalog.Root, 0, 1000)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.Inode.Mode&unix.S_IFMT != unix.S_IFREG {
				continue
			}
			if got, err := readAll(ctx, v, e.Name); err != nil || !isBody(got) {
				t.Fatalf("round %d: %s: %d bytes, %v", round, e.Name, len(got), err)
			}
			list, err := v.Extents(ctx, e.Inode.Ino, catalog.Head)
			if err != nil {
				t.Fatal(err)
			}
			for _, x := range list {
				named[x.Blob.Hash] = true
			}
		}
		if err := v.blobs.List(ctx, blobstore.Hash{}, func(h blobstore.Hash) error {
			if !named[h] {
				t.Errorf("blob %s is left, and nothing names it", h)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		closeStore(t, v)
		v = openStore(t, dir)
	}
	closeStore(t, v)
}

func readAll(ctx context.Context, v *Volume, name string) ([]byte, error) {
	var out bytes.Buffer
	err := v.ReadPath(ctx, name, Moment{}, &out)
	return out.Bytes(), err
}

func gcStep(ctx context.Context, v *Volume, op int, name string, n int) error {
	gone := func(err error) bool { return errors.Is(err, catalog.ErrNotExist) || errors.Is(err, catalog.ErrStale) }
	switch op {
	case 0:
		if err := v.RemovePath(ctx, actor(), name, false); err != nil && !gone(err) {
			return err
		}
	case 1: // what is held stays readable
		at, err := v.Newest(ctx)
		if err != nil {
			return err
		}
		v.cat.Hold(at)
		defer v.cat.Release(at)
		row, err := v.LookupAt(ctx, catalog.Root, name, at)
		if gone(err) {
			return nil
		}
		if err != nil {
			return err
		}
		h, err := v.OpenPast(ctx, row.Ino, at)
		if err != nil {
			return fmt.Errorf("open %s of record %d: %w", name, at, err)
		}
		defer h.Close()
		p := make([]byte, row.Size)
		if _, err := h.ReadAt(ctx, p, 0); err != nil || row.Ver > 0 && !isBody(p) {
			return fmt.Errorf("%s of record %d: %d bytes, %w", name, at, len(p), err)
		}
	case 2: // a copy names the same blobs
		src, err := v.Resolve(ctx, name)
		if gone(err) {
			return nil
		}
		if err != nil {
			return err
		}
		h, err := v.OpenFile(ctx, actor(), src.Ino, OpenFlags{Read: true})
		if gone(err) {
			return nil
		}
		if err != nil {
			return err
		}
		defer h.Close(ctx)
		row, dst, err := v.Tmpfile(ctx, actor(), catalog.Root, catalog.NewInode{Mode: unix.S_IFREG | 0o644}, OpenFlags{Read: true, Write: true})
		if err != nil {
			return err
		}
		defer dst.Close(ctx)
		if _, err := CopyRange(ctx, h, 0, dst, 0, 1<<20); err != nil && !gone(err) {
			return fmt.Errorf("copy: %w", err)
		}
		p := make([]byte, 1<<20)
		got, err := dst.ReadAt(ctx, p, 0)
		if err != nil || got > 0 && !isBody(p[:got]) {
			return fmt.Errorf("copy of %s as inode %d: %d bytes, %w", name, row.Ino, got, err)
		}
	default:
		if _, err := v.WritePath(ctx, actor(), 0, name, 0o644, bytes.NewReader(bodyN(n))); err != nil {
			return err
		}
	}
	got, err := readAll(ctx, v, name)
	if gone(err) {
		return nil
	}
	if err != nil || !isBody(got) {
		return fmt.Errorf("%s: %d bytes, %w", name, len(got), err)
	}
	return nil
}

// A file that is open keeps its content although its name is gone and its history too.
func TestGCSparesOpenFiles(t *testing.T) {
	ctx := t.Context()
	v := openStore(t, newStore(t, StorageHybrid))
	defer closeStore(t, v)
	keepNothing(t, v)
	ino := shared(t, v, strings.Repeat("open ", 50_000))
	h, err := v.OpenFile(ctx, actor(), ino, OpenFlags{Read: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := v.RemovePath(ctx, actor(), "f", false); err != nil {
		t.Fatal(err)
	}
	later := catalog.PruneOptions{Now: time.Now().Add(time.Hour)}
	if _, err := v.pruneAt(ctx, later); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 5)
	if _, err := h.ReadAt(ctx, p, 100_000); err != nil || string(p) != "open " {
		t.Fatalf("%q %v", p, err)
	}
	h.Close(ctx)
	rep, err := v.pruneAt(ctx, later)
	if err != nil || rep.Blobs != 1 {
		t.Fatalf("after the last close: %+v %v", rep, err)
	}
	if _, err := v.Get(ctx, ino); !errors.Is(err, catalog.ErrStale) {
		t.Fatal(err)
	}
}

// What is staged as a copy keeps the blobs that it names.
func TestGCSparesStagedCopies(t *testing.T) {
	ctx := t.Context()
	v := openStore(t, newStore(t, StorageHybrid))
	defer closeStore(t, v)
	keepNothing(t, v)
	text := strings.Repeat("copied ", 30_000)
	ino := shared(t, v, text)
	src, err := v.OpenFile(ctx, actor(), ino, OpenFlags{Read: true})
	if err != nil {
		t.Fatal(err)
	}
	_, dst, err := v.CreateFile(ctx, actor(), catalog.Root, "copy", catalog.NewInode{Mode: unix.S_IFREG | 0o644}, OpenFlags{Read: true, Write: true})
	if err != nil {
		t.Fatal(err)
	}
	if n, err := CopyRange(ctx, src, 0, dst, 0, int64(len(text))); err != nil || n != int64(len(text)) {
		t.Fatal(n, err)
	}
	src.Close(ctx)
	if err := v.RemovePath(ctx, actor(), "f", false); err != nil {
		t.Fatal(err)
	}
	later := catalog.PruneOptions{Now: time.Now().Add(time.Hour), Sweep: true}
	if rep, err := v.pruneAt(ctx, later); err != nil || rep.Blobs != 0 {
		t.Fatalf("%+v %v", rep, err)
	}
	if err := shut(t, dst); err != nil {
		t.Fatal(err)
	}
	if _, err := v.pruneAt(ctx, later); err != nil {
		t.Fatal(err)
	}
	if got, err := readAll(ctx, v, "copy"); err != nil || string(got) != text {
		t.Fatal(len(got), err)
	}
}

// TestTimesThatAreThinned: a time between two versions of which one is gone gives neither of them.
func TestTimesThatAreThinned(t *testing.T) {
	for _, replaced := range []bool{false, true} {
		t.Run(fmt.Sprint("replaced=", replaced), func(t *testing.T) {
			ctx := t.Context()
			v := openStore(t, newStore(t, StorageHybrid))
			defer closeStore(t, v)
			keepNothing(t, v)
			var times []time.Time
			save := func(name, text string) {
				t.Helper()
				row, err := v.Resolve(ctx, name)
				if replaced || err != nil {
					if _, err := v.WritePath(ctx, actor(), 0, name, 0o644, strings.NewReader(text)); err != nil {
						t.Fatal(err)
					}
				} else {
					h := openBy(t, v, 1, row.Ino, OpenFlags{Truncate: true})
					write(t, h, 0, text)
					if err := shut(t, h); err != nil {
						t.Fatal(err)
					}
				}
				at, err := v.TimeOf(ctx, must2(v.Newest(ctx)))
				if err != nil {
					t.Fatal(err)
				}
				times = append(times, at)
			}
			save("f", "one")
			if _, err := v.CreateSnapshot(ctx, actor(), "kept"); err != nil {
				t.Fatal(err)
			}
			save("f", "two")
			save("other", "x")
			save("f", "three")
			times[3] = time.Now()
			for i, want := range []string{"one", "two", "two", "three"} {
				var out bytes.Buffer
				if err := v.ReadPath(ctx, "f", Moment{Time: times[i]}, &out); err != nil || out.String() != want {
					t.Fatalf("before: time %d gives %q, %v", i, out.String(), err)
				}
			}
			if _, err := v.pruneAt(ctx, catalog.PruneOptions{Now: time.Now().Add(time.Hour)}); err != nil {
				t.Fatal(err)
			}
			times[3] = time.Now()
			for i, want := range []string{"one", "", "", "three"} {
				var out bytes.Buffer
				err := v.ReadPath(ctx, "f", Moment{Time: times[i]}, &out)
				if out.String() != want || (err == nil) != (want != "") || err != nil && !errors.Is(err, catalog.ErrThinned) {
					t.Errorf("time %d gives %q, %v; want %q", i, out.String(), err, want)
				}
			}
		})
	}
}

func must2[T any](x T, err error) T {
	if err != nil {
		panic(err)
	}
	return x
}

func TestGCDryRunChangesNothing(t *testing.T) {
	ctx := t.Context()
	dir := newStore(t, StorageHybrid)
	v := openStore(t, dir)
	defer closeStore(t, v)
	keepNothing(t, v)
	for i := range 20 {
		shared(t, v, fmt.Sprint("version ", i))
	}
	before, err := v.Newest(ctx)
	if err != nil {
		t.Fatal(err)
	}
	dry, err := v.Prune(ctx, true)
	if err != nil {
		t.Fatal(err)
	}
	after, err := v.Newest(ctx)
	if err != nil || after != before {
		t.Fatal("a dry run wrote records:", before, after, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "dry-run") {
			t.Error("left behind:", e.Name())
		}
	}
	rep, err := v.Prune(ctx, false)
	if err != nil || rep.Versions() != dry.Versions() || rep.Blobs != dry.Blobs || rep.BlobBytes != dry.BlobBytes || rep.Policies[0].Removed != dry.Policies[0].Removed {
		t.Fatalf("the dry run says %+v, the run does %+v (%v)", dry, rep, err)
	}
	if dry.Blobs < 15 {
		t.Fatalf("%+v", dry)
	}
}

func TestSetRetention(t *testing.T) {
	ctx := t.Context()
	dir := newStore(t, StorageHybrid)
	v := openStore(t, dir)
	hour, week, ten, mega := Span(time.Hour), Span(7*24*time.Hour), 10, Bytes(1<<20)
	if _, err := v.SetRetention(ctx, Retention{Path: "/logs", KeepAll: &hour, MaxVersions: &ten, MaxBytes: &mega}, RetentionChange{}); err != nil {
		t.Fatal(err)
	}
	if err := v.RemovePath(ctx, actor(), "/status", true); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []Retention{{Path: "/none"}, {Path: "/status"}, {Path: "/logs", MaxVersions: ptr(-1)}, {Path: "/logs", KeepAll: ptr(Span(-1))}, {Path: "/logs", MaxBytes: ptr(Bytes(-5))}} {
		if _, err := v.SetRetention(ctx, bad, RetentionChange{}); err == nil {
			t.Errorf("%+v was accepted", bad)
		}
	}
	if _, err := v.cat.Create(ctx, actor(), must(v.Resolve(ctx, "/logs")).Ino, "deep", catalog.NewInode{Mode: unix.S_IFDIR | 0o755}); err != nil {
		t.Fatal(err)
	}
	if _, err := v.SetRetention(ctx, Retention{Path: "/logs/deep", Daily: &week}, RetentionChange{}); err != nil {
		t.Fatal(err)
	}
	check := func() {
		t.Helper()
		list, err := v.Policies(ctx)
		if err != nil {
			t.Fatal(err)
		}
		want := []catalog.Policy{catalog.DefaultPolicy(), catalog.DefaultPolicy(), catalog.DefaultPolicy()}
		want[1].Path, want[1].Dir, want[1].KeepAll, want[1].MaxVersions, want[1].MaxBytes = "/logs", must(v.Resolve(ctx, "/logs")).Ino, time.Hour, 10, 1<<20
		want[2] = want[1]
		want[2].Path, want[2].Dir, want[2].Daily, want[2].MaxBytes = "/logs/deep", must(v.Resolve(ctx, "/logs/deep")).Ino, 7*24*time.Hour, 0
		if !slices.Equal(list, want) {
			t.Fatalf("%+v\nwant %+v", list, want)
		}
	}
	check()
	closeStore(t, v)
	v = openStore(t, dir)
	defer closeStore(t, v)
	check()
	if _, err := v.SetRetention(ctx, Retention{Path: "/logs/deep"}, RetentionChange{Remove: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := v.SetRetention(ctx, Retention{Path: "/logs/deep"}, RetentionChange{Remove: true}); !errors.Is(err, catalog.ErrNotExist) {
		t.Fatal(err)
	}
	if list, err := v.Policies(ctx); err != nil || len(list) != 2 {
		t.Fatal(list, err)
	}
}

func ptr[T any](v T) *T { return &v }

func must(row catalog.Inode, err error) catalog.Inode {
	if err != nil {
		panic(err)
	}
	return row
}

// What a person writes into holdfast.toml is read, or refused with a word about what is wrong.
func TestRetentionOfSettings(t *testing.T) {
	dir := newStore(t, StorageHybrid)
	name := filepath.Join(dir, settingsFile)
	base, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"": "",
		"[[retention]]\npath = \"/\"\nkeep_all = \"48h\"\nhourly = \"2w\"\ndaily = \"1y\"\nmax_versions = 5\nmax_bytes = \"10GiB\"": "",
		"[[retention]]\npath = \"/logs\"\nkeep_all = \"0\"":                                                                         "",
		"[[retention]]\npath = \"logs\"":                                                                                            "path",
		"[[retention]]\npath = \"/logs/../x\"":                                                                                      "path",
		"[[retention]]\npath = \"/logs\"\n[[retention]]\npath = \"/logs\"":                                                          "two retentions",
		"[[retention]]\npath = \"/\"\nkeep_all = \"soon\"":                                                                          "length of time",
		"[[retention]]\npath = \"/\"\nkeep_all = \"-1h\"":                                                                           "length of time",
		"[[retention]]\npath = \"/\"\nkeep_all = \"200y\"":                                                                          "length of time",
		"[[retention]]\npath = \"/\"\nmax_bytes = \"lots\"":                                                                         "amount",
		"[[retention]]\npath = \"/\"\nmax_bytes = \"9999999999TiB\"":                                                                "amount",
		"[[retention]]\npath = \"/\"\nmax_versions = -3":                                                                            "max_versions",
		"retention = 7": "",
		strings.Repeat("[[retention]]\npath = \"/x\"\n", 1) + strings.Repeat("#", 10): "",
		"[[retention]]\npath = \"/" + strings.Repeat("long", 2000) + "\"":             "path",
	} {
		both := slices.Concat(base, []byte(text))
		if !strings.HasPrefix(text, "[") { // a key belongs to the table above it
			both = slices.Concat([]byte(text+"\n"), base)
		}
		if err := os.WriteFile(name, both, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := ReadSettings(dir)
		switch {
		case text == "retention = 7":
			if !errors.Is(err, ErrFormat) {
				t.Errorf("%q: %v", text, err)
			}
		case want == "" && err != nil:
			t.Errorf("%q: %v", text, err)
		case want != "" && (!errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), want)):
			t.Errorf("%q: %v, want a word about %q", text, err, want)
		}
	}
}

func FuzzSpan(f *testing.F) {
	for _, s := range []string{"24h", "7d", "1y", "2w3d4h", "0", "", "-1h", "1d-2h", "1h1d", "99999y", "1.5h", "1e9h", "0x1h", "d", "1y1y"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSpan(text)
		if err != nil {
			return
		}
		if s < 0 || s > Span(maxSpan) {
			t.Fatalf("%q is %d", text, s)
		}
		if again, err := ParseSpan(s.String()); err != nil || again != s {
			t.Fatalf("%q is %d, written %q, and that %d, %v", text, s, s, again, err)
		}
	})
}

func FuzzBytes(f *testing.F) {
	for _, s := range []string{"0", "1048576", "10GiB", "512 MiB", "1TiB", "8388608TiB", "-1", "", "GiB", "1gb", "18446744073709551615"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		b, err := ParseBytes(text)
		if err != nil {
			return
		}
		if again, err := ParseBytes(b.String()); b < 0 || err != nil || again != b {
			t.Fatalf("%q is %d, written %q, and that %d, %v", text, b, b, again, err)
		}
	})
}
