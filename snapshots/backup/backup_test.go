package backup

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/blobstore"
	"holdfast/blobstore/blobstoretest"
	"holdfast/catalog"
	"holdfast/internal/volume"
)

// fixture is a store, open for writing.
type fixture struct {
	t   *testing.T
	dir string
	id  string
	vol *volume.Volume
	who catalog.Actor
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{t: t, dir: filepath.Join(blobstoretest.TempDir(t), "store"), who: catalog.Actor{Agent: "agent-1", Program: "test"}}
	s, err := volume.Init(t.Context(), f.dir, volume.InitOptions{UID: uint32(os.Getuid()), GID: uint32(os.Getgid())})
	if err != nil {
		t.Fatal(err)
	}
	f.id = s.StoreID
	if f.vol, err = volume.Open(t.Context(), volume.Options{Dir: f.dir}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.vol.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return f
}

func (f *fixture) write(p string, content []byte) {
	f.t.Helper()
	if _, err := f.vol.WritePath(f.t.Context(), f.who, 0, p, 0o640, bytes.NewReader(content)); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) ino(p string) catalog.Inode {
	f.t.Helper()
	row, err := f.vol.Resolve(f.t.Context(), p)
	if err != nil {
		f.t.Fatal(err)
	}
	return row
}

func (f *fixture) make(p string, n catalog.NewInode) catalog.Inode {
	f.t.Helper()
	row, err := f.vol.Create(f.t.Context(), f.who, f.ino(path.Dir(p)).Ino, path.Base(p), n)
	if err != nil {
		f.t.Fatal(err)
	}
	return row
}

func (f *fixture) place(dir string) *Place {
	f.t.Helper()
	p, err := Open(f.t.Context(), Options{Dir: dir, StoreID: f.id})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { p.Close() })
	return p
}

func create(t *testing.T, f *fixture, p *Place, o CreateOptions) Created {
	t.Helper()
	res, err := p.Create(t.Context(), f.vol, o)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func noise(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

func seeded(t *testing.T) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed: %d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// populate makes every kind of file.
func populate(t *testing.T, f *fixture, rng *rand.Rand) {
	f.write("/tasks/plan.md", []byte("the plan\n"))
	f.write("/logs/large.log", bytes.Repeat(noise(rng, 1<<16), 20))
	f.write("/logs/noise", noise(rng, 300<<10))
	f.write("/status/empty", nil)
	f.write("/status/not utf-8 \xff\xfe", []byte("bytes"))
	dir := f.make("/tasks/deep", catalog.NewInode{Mode: unix.S_IFDIR | 0o2750, UID: 12, GID: 34})
	f.write("/tasks/deep/inner", []byte("inner"))
	f.make("/tasks/link", catalog.NewInode{Mode: unix.S_IFLNK | 0o777, Target: "../../outside"})
	f.make("/tasks/pipe", catalog.NewInode{Mode: unix.S_IFIFO | 0o600})
	plan := f.ino("/tasks/plan.md")
	if _, err := f.vol.Link(t.Context(), f.who, plan.Ino, dir.Ino, "again"); err != nil {
		t.Fatal(err)
	}
	if err := f.vol.SetXattr(t.Context(), f.who, plan.Ino, "user.note", []byte{0, 1, 2}, 0); err != nil {
		t.Fatal(err)
	}
	// A file with a hole and several extents.
	h, err := f.vol.OpenFile(t.Context(), f.who, f.ino("/status/empty").Ino, volume.OpenFlags{Read: true, Write: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{0, 1 << 20, 3<<20 + 17} {
		if _, err := h.WriteAt(t.Context(), noise(rng, 100<<10), off, volume.WriteFlags{}); err != nil {
			t.Fatal(err)
		}
		if err := h.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	h.Close(t.Context())
}

// equal compares an extracted tree with the store as it is.
func equal(t *testing.T, f *fixture, p, dir string) {
	t.Helper()
	row := f.ino(p)
	_, err := os.Lstat(dir)
	if err != nil {
		t.Error(err)
		return
	}
	var have unix.Stat_t
	if err := unix.Lstat(dir, &have); err != nil {
		t.Fatal(err)
	}
	if have.Mode != row.Mode || have.Uid != row.UID || have.Gid != row.GID {
		t.Errorf("%s: mode %o owner %d:%d, want %o %d:%d", p, have.Mode, have.Uid, have.Gid, row.Mode, row.UID, row.GID)
	}
	if have.Mtim.Nano() != row.Mtime {
		t.Errorf("%s: mtime %d, want %d", p, have.Mtim.Nano(), row.Mtime)
	}
	switch row.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		var want bytes.Buffer
		if err := f.vol.ReadPath(t.Context(), p, volume.Moment{}, &want); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(dir)
		if err != nil || !bytes.Equal(got, want.Bytes()) {
			t.Errorf("%s: %d bytes, want %d (%v)", p, len(got), want.Len(), err)
		}
		if uint32(have.Nlink) != row.Nlink {
			t.Errorf("%s: %d names, want %d", p, have.Nlink, row.Nlink)
		}
	case unix.S_IFLNK:
		if got, err := os.Readlink(dir); err != nil || got != row.Target {
			t.Errorf("%s leads to %q, want %q (%v)", p, got, row.Target, err)
		}
	case unix.S_IFDIR:
		list, err := f.vol.ReadDir(t.Context(), row.Ino, 0, 1000)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, e := range list {
			names = append(names, e.Name)
			equal(t, f, path.Join(p, e.Name), filepath.Join(dir, e.Name))
		}
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != len(names) {
			t.Errorf("%s has %d names, want %v (%v)", p, len(entries), names, err)
		}
	}
}

func TestBackUpAndExtract(t *testing.T) {
	rng := seeded(t)
	f := newFixture(t)
	populate(t, f, rng)
	p := f.place(filepath.Join(blobstoretest.TempDir(t), "place"))
	first := create(t, f, p, CreateOptions{})
	if first.Files == 0 || first.Copied == 0 {
		t.Errorf("%+v", first)
	}
	out := filepath.Join(blobstoretest.TempDir(t), "out")
	res, err := p.Extract(t.Context(), "", "/", out, nil)
	if err != nil || len(res.Without) > 0 {
		t.Fatalf("%+v: %v", res, err)
	}
	equal(t, f, "/", out)
	if v, err := unix.Lgetxattr(filepath.Join(out, "tasks/plan.md"), "user.note", make([]byte, 10)); err != nil || v != 3 {
		t.Errorf("user.note has %d bytes: %v", v, err)
	}
	// A part of the tree, with a link whose first name lies elsewhere.
	part := filepath.Join(blobstoretest.TempDir(t), "part")
	if _, err := p.Extract(t.Context(), first.Name, "/tasks/deep", part, nil); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(part, "deep/again")); err != nil || string(got) != "the plan\n" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := p.Extract(t.Context(), "", "/nowhere", filepath.Join(blobstoretest.TempDir(t), "x"), nil); !errors.Is(err, ErrNotExist) {
		t.Errorf("a path that is not there: %v", err)
	}
	if _, err := p.Extract(t.Context(), "", "/", out, nil); err == nil {
		t.Error("it extracts over other files")
	}
}

func TestSecondBackupCopiesWhatIsNew(t *testing.T) {
	f := newFixture(t)
	populate(t, f, seeded(t))
	p := f.place(filepath.Join(blobstoretest.TempDir(t), "place"))
	create(t, f, p, CreateOptions{})
	if again := create(t, f, p, CreateOptions{}); again.Copied != 0 {
		t.Errorf("nothing has changed, and %d blobs were copied", again.Copied)
	}
	f.write("/tasks/new", []byte("new"))
	f.write("/tasks/new too", []byte("new"))
	if again := create(t, f, p, CreateOptions{}); again.Copied != 1 || again.CopiedBytes != 3 {
		t.Errorf("%+v", again)
	}
	all, err := p.List()
	if err != nil || len(all) != 3 || !slices.IsSortedFunc(all, func(a, b Info) int { return a.Time.Compare(b.Time) }) {
		t.Fatalf("%+v, %v", all, err)
	}
}

func TestRotate(t *testing.T) {
	f := newFixture(t)
	p := f.place(filepath.Join(blobstoretest.TempDir(t), "place"))
	refs := make([]blobstore.Hash, 5)
	for i := range refs {
		content := []byte(fmt.Sprint("generation ", i))
		refs[i] = sha256.Sum256(content)
		f.write("/tasks/plan.md", content)
		f.write("/tasks/same", []byte("the same in all"))
		create(t, f, p, CreateOptions{})
	}
	res, err := p.Rotate(t.Context(), 2)
	if err != nil || len(res.Backups) != 3 || res.Blobs != 3 {
		t.Fatalf("%+v, %v", res, err)
	}
	for i, h := range refs {
		err := p.blobs.Verify(t.Context(), blobstore.Ref{Hash: h, Size: 12})
		if (i < 3) != errors.Is(err, blobstore.ErrNotFound) {
			t.Errorf("generation %d: %v", i, err)
		}
	}
	if v, err := p.Verify(t.Context(), func(what string, err error) error { return fmt.Errorf("%s: %w", what, err) }); err != nil || v.Backups != 2 || v.Blobs != 3 {
		t.Errorf("%+v, %v", v, err)
	}
	// A manifest that cannot be read keeps every blob.
	all, err := p.List()
	if err != nil {
		t.Fatal(err)
	}
	damage(t, p.manifestPath(all[1].Name), -40)
	if _, err := p.Remove(t.Context(), all[0].Name); !errors.Is(err, ErrDamaged) {
		t.Errorf("removing beside a damaged manifest: %v", err)
	}
	if err := p.blobs.Verify(t.Context(), blobstore.Ref{Hash: refs[3], Size: 12}); err != nil {
		t.Errorf("a blob went: %v", err)
	}
}

// damage flips a bit of a file: at off, or from its end.
func damage(t *testing.T, name string, off int) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if off < 0 {
		off = max(0, len(b)+off)
	}
	b[off] ^= 0x10
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestEveryDamageOfAManifestIsFound(t *testing.T) {
	f := newFixture(t)
	f.write("/tasks/plan.md", []byte("the plan"))
	f.write("/status/not utf-8 \xff\xfe", []byte("bytes"))
	p := f.place(filepath.Join(blobstoretest.TempDir(t), "place"))
	name := p.manifestPath(create(t, f, p, CreateOptions{}).Name)
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	found := func() bool {
		n := 0
		res, err := p.Verify(t.Context(), func(string, error) error { n++; return nil })
		return err == nil && n > 0 && res.Damaged > 0
	}
	if found() {
		t.Fatal("it is damaged from the start")
	}
	for i := range whole {
		b := bytes.Clone(whole)
		b[i] ^= 1 << (i % 8)
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if !found() {
			// A bit that says nothing leaves every line as it was.
			n := 0
			if _, err := p.each(t.Context(), strings.TrimSuffix(filepath.Base(name), suffix), func(Entry) error { n++; return nil }); err != nil || n == 0 {
				t.Fatalf("bit %d of byte %d: not found, and not read (%v)", i%8, i, err)
			}
		}
		if i%16 == 0 {
			if err := os.WriteFile(name, whole[:i], 0o600); err != nil {
				t.Fatal(err)
			}
			if !found() {
				t.Fatalf("cut to %d bytes: not found", i)
			}
		}
	}
}

func TestDamagedBlobIsNeverServed(t *testing.T) {
	f := newFixture(t)
	rng := seeded(t)
	content := noise(rng, 400<<10)
	f.write("/tasks/data", content)
	dir := filepath.Join(blobstoretest.TempDir(t), "place")
	p := f.place(dir)
	create(t, f, p, CreateOptions{})
	sum := sha256.Sum256(content)
	extents, err := f.vol.Extents(t.Context(), f.ino("/tasks/data").Ino, catalog.Head)
	if err != nil || len(extents) != 1 {
		t.Fatal(extents, err)
	}
	ref := extents[0].Blob
	src := NewSource(dir, f.id, nil)
	var got bytes.Buffer
	if err := src.Fetch(t.Context(), ref, &got); err != nil || sha256.Sum256(got.Bytes()) != sum {
		t.Fatalf("%d bytes, %v", got.Len(), err)
	}
	hex := ref.Hash.String()
	damage(t, filepath.Join(dir, "blobs", hex[:2], hex), 300<<10)
	got.Reset()
	if err := src.Fetch(t.Context(), ref, &got); !errors.Is(err, blobstore.ErrDamaged) {
		t.Errorf("fetching a damaged blob: %v", err)
	}
	if !bytes.HasPrefix(content, got.Bytes()) {
		t.Error("wrong bytes were served")
	}
	var what []string
	if res, err := p.Verify(t.Context(), func(s string, err error) error { what = append(what, s); return nil }); err != nil || res.Damaged != 1 ||
		!strings.Contains(what[0], "/tasks/data") {
		t.Errorf("%+v, %v, %v", res, what, err)
	}
	if again := create(t, f, p, CreateOptions{}); again.Copied != 0 {
		t.Errorf("%+v", again)
	}
	if again := create(t, f, p, CreateOptions{Recheck: true}); again.Copied != 1 {
		t.Errorf("%+v", again)
	}
	if got.Reset(); src.Fetch(t.Context(), ref, &got) != nil || !bytes.Equal(got.Bytes(), content) {
		t.Error("it was not copied again")
	}
	if err := src.Fetch(t.Context(), blobstore.Ref{Hash: sha256.Sum256([]byte("x")), Size: 1}, &got); !errors.Is(err, blobstore.ErrNotFound) {
		t.Errorf("a blob that is not there: %v", err)
	}
	if err := NewSource(filepath.Join(dir, "nowhere"), f.id, nil).Fetch(t.Context(), ref, &got); !errors.Is(err, blobstore.ErrNotFound) {
		t.Errorf("a place that is not there: %v", err)
	}
}

func TestLevelsChooseWhatIsBackedUp(t *testing.T) {
	f := newFixture(t)
	for _, dir := range []string{"tasks", "messages", "status"} {
		f.write("/"+dir+"/file", []byte(dir))
	}
	if err := f.vol.SetXattr(t.Context(), f.who, f.ino("/status/file").Ino, catalog.LevelXattr, []byte(catalog.LevelCritical), 0); err != nil {
		t.Fatal(err)
	}
	for level, want := range map[string][]string{
		"":                    {"messages", "status", "tasks"},
		catalog.LevelAdvanced: {"messages", "status", "tasks"},
		catalog.LevelCritical: {"status", "tasks"},
	} {
		p := f.place(filepath.Join(blobstoretest.TempDir(t), "place"))
		res := create(t, f, p, CreateOptions{Level: level})
		var got []string
		if _, err := p.each(t.Context(), res.Name, func(e Entry) error {
			if e.Mode&unix.S_IFMT == unix.S_IFREG {
				got = append(got, strings.Split(string(e.Path), "/")[1])
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("level %q: %v, want %v", level, got, want)
		}
	}
}

// TestBackupIsOfOneMoment: two files always agree while a writer changes both, so they agree in a backup.
func TestBackupIsOfOneMoment(t *testing.T) {
	f := newFixture(t)
	f.make("/status/pair", catalog.NewInode{Mode: unix.S_IFDIR | 0o755})
	p := f.place(filepath.Join(blobstoretest.TempDir(t), "place"))
	stop, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		for n := 0; ; n++ {
			for _, name := range []string{"a", "b"} {
				if _, err := f.vol.WritePath(t.Context(), f.who, 0, "/status/pair/"+name, 0o644, strings.NewReader(fmt.Sprint(n))); err != nil {
					ended <- err
					return
				}
			}
			select {
			case <-stop:
				ended <- nil
				return
			default:
			}
		}
	}()
	for range 20 {
		res := create(t, f, p, CreateOptions{})
		out := filepath.Join(blobstoretest.TempDir(t), "out")
		if _, err := p.Extract(t.Context(), res.Name, "/status", out, nil); err != nil {
			t.Fatal(err)
		}
		var n [2]int
		for i, name := range []string{"a", "b"} {
			b, err := os.ReadFile(filepath.Join(out, "status/pair", name))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if _, serr := fmt.Sscan(string(b), &n[i]); err != nil || serr != nil {
				t.Fatal(err, serr)
			}
		}
		if n[0] != n[1] && n[0] != n[1]+1 {
			t.Errorf("a is of round %d, b of round %d", n[0], n[1])
		}
	}
	close(stop)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestInterrupted ends a backup at each of its steps: there is then no backup, and the next one is whole.
func TestInterrupted(t *testing.T) {
	f := newFixture(t)
	populate(t, f, seeded(t))
	stopped := errors.New("stopped")
	dir := filepath.Join(blobstoretest.TempDir(t), "place")
	for at := 0; ; at++ {
		p, err := Open(t.Context(), Options{Dir: dir, StoreID: f.id})
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		_, err = p.Create(t.Context(), f.vol, CreateOptions{Pause: func(context.Context) error {
			if n++; n > at {
				return stopped
			}
			return nil
		}})
		all, lerr := p.List()
		if err == nil {
			if at < 10 || len(all) != 1 {
				t.Errorf("it ended after %d steps with %d backups", at, len(all))
			}
			out := filepath.Join(blobstoretest.TempDir(t), "out")
			if _, err := p.Extract(t.Context(), "", "/", out, nil); err != nil {
				t.Fatal(err)
			}
			equal(t, f, "/", out)
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
			return
		}
		if !errors.Is(err, stopped) || lerr != nil || len(all) != 0 {
			t.Fatalf("step %d: %v; %d backups, %v", at, err, len(all), lerr)
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWrongPlaces(t *testing.T) {
	f := newFixture(t)
	dir := filepath.Join(blobstoretest.TempDir(t), "place")
	p := f.place(dir)
	if _, err := Open(t.Context(), Options{Dir: dir, StoreID: f.id}); !errors.Is(err, ErrBusy) {
		t.Errorf("a place that is in use: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	other := strings.Repeat("0", 32)
	for _, ro := range []bool{false, true} {
		if _, err := Open(t.Context(), Options{Dir: dir, StoreID: other, ReadOnly: ro}); !errors.Is(err, ErrOther) {
			t.Errorf("a place of another store: %v", err)
		}
	}
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Options{Dir: full, StoreID: f.id}); err == nil {
		t.Error("it takes a directory with other files")
	}
	if _, err := Open(t.Context(), Options{Dir: filepath.Join(full, "none"), ReadOnly: true}); !errors.Is(err, ErrNotExist) {
		t.Errorf("a place that is not there: %v", err)
	}
	for _, text := range []string{"", "{}", `{"format":9,"store_id":"` + other + `"}`, strings.Repeat("[", 1<<17)} {
		if err := os.WriteFile(filepath.Join(dir, placeFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(t.Context(), Options{Dir: dir, StoreID: f.id}); err == nil {
			t.Errorf("%.20q is taken for settings", text)
		}
	}
}
