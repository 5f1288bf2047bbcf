package backup

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"holdfast/catalog"
	"holdfast/internal/volume"
)

// manifestOf compresses lines and adds a last one that fits them.
func manifestOf(t testing.TB, lines ...any) []byte {
	t.Helper()
	var plain bytes.Buffer
	entries := int64(0)
	for _, l := range lines {
		b, err := json.Marshal(l)
		if err != nil {
			t.Fatal(err)
		}
		plain.Write(append(b, '\n'))
		if e, ok := l.(Entry); ok && !e.More {
			entries++
		}
	}
	sum := sha256.Sum256(plain.Bytes())
	b, err := json.Marshal(trailer{End: true, Entries: entries, SHA256: hex.EncodeToString(sum[:])})
	if err != nil {
		t.Fatal(err)
	}
	plain.Write(append(b, '\n'))
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	return z.EncodeAll(plain.Bytes(), nil)
}

func readAll(r io.Reader) (n int, err error) {
	m, err := newManifestReader(r)
	if err != nil {
		return 0, err
	}
	defer m.close()
	for ; ; n++ {
		if _, err := m.Next(); errors.Is(err, io.EOF) {
			return n, nil
		} else if err != nil {
			return n, err
		}
	}
}

// TestNothingIsWrittenElsewhere: a manifest cannot make Extract leave its directory.
func TestNothingIsWrittenElsewhere(t *testing.T) {
	f := newFixture(t)
	name := time.Now().UTC().Format(nameLayout)
	head := Header{Format: format, StoreID: f.id, Name: name, Time: time.Now().UTC()}
	dir := func(p string) Entry { return Entry{Path: Text(p), Mode: unix.S_IFDIR | 0o755} }
	for what, entries := range map[string][]any{
		"a path with ..":        {dir("/"), dir("/../evil")},
		"a path with a middle":  {dir("/"), dir("/a/../../evil")},
		"a relative path":       {dir("/"), dir("evil")},
		"a link to ..":          {dir("/"), Entry{Path: "/x", Link: "/../evil", Mode: unix.S_IFREG | 0o600}},
		"through a link":        {dir("/"), Entry{Path: "/out", Target: "..", Mode: unix.S_IFLNK | 0o777}, dir("/out/evil")},
		"through an absolute":   {dir("/"), Entry{Path: "/out", Target: Text(t.TempDir()), Mode: unix.S_IFLNK | 0o777}, dir("/out/evil")},
		"a file through a link": {dir("/"), Entry{Path: "/out", Target: "..", Mode: unix.S_IFLNK | 0o777}, Entry{Path: "/out/evil", Mode: unix.S_IFREG | 0o644}},
		"a pipe through a link": {dir("/"), Entry{Path: "/out", Target: "..", Mode: unix.S_IFLNK | 0o777}, Entry{Path: "/out/evil", Mode: unix.S_IFIFO | 0o644}},
	} {
		t.Run(what, func(t *testing.T) {
			top := t.TempDir()
			p := f.place(filepath.Join(top, "place"))
			if err := os.WriteFile(p.manifestPath(name), manifestOf(t, append([]any{head}, entries...)...), 0o600); err != nil {
				t.Fatal(err)
			}
			into := filepath.Join(top, "into")
			res, err := p.Extract(t.Context(), name, "/", into, nil)
			if err == nil && len(res.Without) == 0 {
				t.Error("it went well")
			}
			for _, bad := range []string{filepath.Join(top, "evil"), filepath.Join(filepath.Dir(top), "evil")} {
				if _, err := os.Lstat(bad); err == nil {
					t.Errorf("%s was made", bad)
				}
			}
		})
	}
}

func TestManyExtentsGoOnInTheNextLine(t *testing.T) {
	var buf bytes.Buffer
	w, err := newManifestWriter(&buf, Header{Format: format})
	if err != nil {
		t.Fatal(err)
	}
	extents := make([]catalog.Extent, 2*maxExtents+5)
	for i := range extents {
		extents[i] = catalog.Extent{Off: int64(i) * 10, Len: 10}
		extents[i].Blob.Size = 10
	}
	for _, e := range []Entry{{Path: "/a", Mode: unix.S_IFREG}, {Path: "/b", Mode: unix.S_IFREG}} {
		if err := w.add(e, extents); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.end(); err != nil {
		t.Fatal(err)
	}
	m, err := newManifestReader(&buf)
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	for _, want := range []Text{"/a", "/b"} {
		e, err := m.Next()
		if err != nil || e.Path != want || len(e.Extents) != len(extents) || e.Extents[len(extents)-1].Off != extents[len(extents)-1].Off {
			t.Fatalf("%s with %d extents, %v", e.Path, len(e.Extents), err)
		}
	}
	if _, err := m.Next(); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}

func FuzzManifest(f *testing.F) {
	f.Add(manifestOf(f, Header{Format: format}, Entry{Path: "/", Mode: unix.S_IFDIR}))
	f.Add(manifestOf(f, Header{Format: format}, Entry{Path: "/\xff", Mode: unix.S_IFREG, Size: 3,
		Extents: []Extent{{Len: 3, Blob: strings.Repeat("0", 64), Size: 3}}}, Entry{Path: "/\xff", More: true}))
	f.Add([]byte("\x28\xb5\x2f\xfd"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := readAll(bytes.NewReader(b)); err == nil {
			return
		}
		// The same bytes as lines.
		z, err := zstd.NewWriter(nil)
		if err != nil {
			t.Fatal(err)
		}
		defer z.Close()
		_, _ = readAll(bytes.NewReader(z.EncodeAll(b, nil)))
	})
}

func TestKeeperMakesWhatIsDue(t *testing.T) {
	f := newFixture(t)
	f.write("/tasks/plan", []byte("1"))
	now := time.Now()
	good, bad := filepath.Join(t.TempDir(), "good"), filepath.Join(t.TempDir(), "file", "below")
	if err := os.WriteFile(filepath.Dir(bad), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	places := []volume.Backup{{Path: good, Every: volume.Span(time.Hour), Keep: 2}, {Path: bad, Every: volume.Span(time.Hour), Keep: 2}}
	k := NewKeeper(KeeperOptions{Store: f.vol, StoreID: f.id, Made: now, Places: func() []volume.Backup { return places }, Now: func() time.Time { return now }})
	count := func() int {
		all, err := list(good)
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	for _, step := range []struct {
		after time.Duration
		want  int
	}{{0, 0}, {time.Minute, 0}, {firstAfter, 1}, {time.Minute, 1}, {time.Hour, 2}, {30 * time.Minute, 2}, {time.Hour, 2}} {
		now = now.Add(step.after)
		before := now
		look(t.Context(), k)
		if got := count(); got != step.want {
			t.Errorf("at %s there are %d backups, want %d", before, got, step.want)
		}
	}
	states := k.States()
	if len(states) != 2 || states[0].LastError != "" || states[0].Backups != 2 || states[0].Newest == nil || states[1].LastError == "" || states[1].Newest != nil {
		t.Errorf("%+v", states)
	}
	// What failed is not tried at each look, and then it is.
	if err := os.Remove(filepath.Dir(bad)); err != nil {
		t.Fatal(err)
	}
	if look(t.Context(), k); k.States()[1].Backups != 0 {
		t.Error("it tried again at once")
	}
	now = now.Add(retryAfter)
	if look(t.Context(), k); k.States()[1].Backups != 1 || k.States()[1].LastError != "" {
		t.Errorf("%+v", k.States()[1])
	}
}
