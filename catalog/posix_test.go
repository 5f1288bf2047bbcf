package catalog

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/blobstore/blobstoretest"
)

func TestNamesThatCannotBe(t *testing.T) {
	c := newCatalog(t, nil)
	ctx, who := context.Background(), testActor()
	createFile(t, c, Root, "there")
	for name, want := range map[string]error{
		"": ErrInvalid, ".": ErrInvalid, "..": ErrInvalid, "a/b": ErrInvalid, "a\x00b": ErrInvalid, strings.Repeat("x", 256): ErrNameTooLong,
	} {
		_, err := c.Create(ctx, who, Root, name, NewInode{Mode: unix.S_IFREG})
		wantErr(t, err, want)
		_, err = c.Link(ctx, who, Root, Root, name)
		wantErr(t, err, want)
		_, err = c.Unlink(ctx, who, Root, name)
		wantErr(t, err, want)
		wantErr(t, c.Rmdir(ctx, who, Root, name), want)
		_, err = c.Rename(ctx, who, Root, "there", Root, name, 0)
		wantErr(t, err, want)
		_, err = c.Rename(ctx, who, Root, name, Root, "x", 0)
		wantErr(t, err, want)
		if name != "." && name != ".." {
			_, err = c.Lookup(ctx, Root, name)
			wantErr(t, err, want)
		}
	}
	for _, name := range []string{strings.Repeat("x", 255), "\xff\xfe", "new\nline", " ", "..."} {
		f := createFile(t, c, Root, name)
		if got, err := c.Lookup(ctx, Root, name); err != nil || got != f {
			t.Fatalf("%q: %+v %v", name, got, err)
		}
	}
}

func TestDots(t *testing.T) {
	c := newCatalog(t, nil)
	ctx := context.Background()
	a := createDir(t, c, Root, "a")
	b := createDir(t, c, a.Ino, "b")
	for _, at := range []Seq{Head, 3} {
		look := func(dir Ino, name string) Ino {
			if at == Head {
				return must[Inode](t)(c.Lookup(ctx, dir, name)).Ino
			}
			return must[Inode](t)(c.LookupAt(ctx, dir, name, at)).Ino
		}
		if look(b.Ino, ".") != b.Ino || look(b.Ino, "..") != a.Ino || look(Root, "..") != Root {
			t.Fatal("dots lead elsewhere")
		}
	}
}

func TestNewInodes(t *testing.T) {
	c := newCatalog(t, nil)
	ctx, who := context.Background(), testActor()
	bad := []NewInode{
		{Mode: 0o170000}, {Mode: unix.S_IFREG | 1<<20}, {Mode: unix.S_IFLNK | 0o777}, {Mode: unix.S_IFLNK | 0o777, Target: "a\x00"},
		{Mode: unix.S_IFREG, Target: "x"},
	}
	for _, n := range bad {
		_, err := c.Create(ctx, who, Root, "x", n)
		wantErr(t, err, ErrInvalid)
	}
	_, err := c.Create(ctx, who, Root, "x", NewInode{Mode: unix.S_IFLNK | 0o777, Target: strings.Repeat("x", MaxSymlink+1)})
	wantErr(t, err, ErrNameTooLong)
	_, err = c.CreateTmpfile(ctx, who, Root, NewInode{Mode: unix.S_IFDIR | 0o755})
	wantErr(t, err, ErrInvalid)
	if f := must[Inode](t)(c.Create(ctx, who, Root, "plain", NewInode{Mode: 0o4755})); f.Mode != unix.S_IFREG|0o4755 {
		t.Fatalf("mode %o", f.Mode)
	}
	l := must[Inode](t)(c.Create(ctx, who, Root, "link", NewInode{Mode: unix.S_IFLNK | 0o777, Target: strings.Repeat("x", MaxSymlink)}))
	if l.Size != MaxSymlink {
		t.Fatalf("a link's size is %d", l.Size)
	}
}

func TestSetGIDDirectory(t *testing.T) {
	c := newCatalog(t, nil)
	ctx, who := context.Background(), testActor()
	d := must[Inode](t)(c.Create(ctx, who, Root, "d", NewInode{Mode: unix.S_IFDIR | unix.S_ISGID | 0o775, GID: 77}))
	f := createFile(t, c, d.Ino, "f")
	sub := createDir(t, c, d.Ino, "sub")
	if f.GID != 77 || f.Mode&unix.S_ISGID != 0 || sub.GID != 77 || sub.Mode&unix.S_ISGID == 0 {
		t.Fatalf("%+v\n%+v", f, sub)
	}
}

func TestMaxLinks(t *testing.T) {
	c := newCatalog(t, nil)
	ctx, who := context.Background(), testActor()
	f := createFile(t, c, Root, "f")
	err := c.mutate(ctx, who, OpSetattr, func(tx *txn) error { // as many names would leave it
		row, err := tx.inode(ctx, f.Ino)
		row.Nlink = MaxLinks - 1
		tx.set(row)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	must[Inode](t)(c.Link(ctx, who, f.Ino, Root, "one"))
	_, err = c.Link(ctx, who, f.Ino, Root, "two")
	wantErr(t, err, ErrTooManyLink)
}

func TestRemovedDirectoryTakesNoNames(t *testing.T) {
	c := newCatalog(t, nil)
	ctx, who := context.Background(), testActor()
	d := createDir(t, c, Root, "d")
	f := createFile(t, c, Root, "f")
	if err := c.Rmdir(ctx, who, Root, "d"); err != nil {
		t.Fatal(err)
	}
	_, err := c.Create(ctx, who, d.Ino, "x", NewInode{Mode: unix.S_IFREG})
	wantErr(t, err, ErrNotExist)
	_, err = c.Link(ctx, who, f.Ino, d.Ino, "x")
	wantErr(t, err, ErrNotExist)
	_, err = c.Rename(ctx, who, Root, "f", d.Ino, "x", 0)
	wantErr(t, err, ErrNotExist)
	if list, err := c.ReadDir(ctx, d.Ino, 0, 10); err != nil || len(list) > 0 {
		t.Fatal(list, err)
	}
	if row, err := c.Get(ctx, d.Ino); err != nil || row.Nlink != 0 {
		t.Fatal(row, err)
	}
}

func TestRenameRules(t *testing.T) {
	c := newCatalog(t, nil)
	ctx, who := context.Background(), testActor()
	a := createDir(t, c, Root, "a")
	b := createDir(t, c, a.Ino, "b")
	createFile(t, c, Root, "f")
	full := createDir(t, c, Root, "full")
	createFile(t, c, full.Ino, "x")
	empty := createDir(t, c, Root, "empty")
	ren := func(op Ino, on string, np Ino, nn string, flags uint) error {
		_, err := c.Rename(ctx, who, op, on, np, nn, flags)
		return err
	}
	wantErr(t, ren(Root, "a", b.Ino, "x", 0), ErrInvalid)
	wantErr(t, ren(Root, "a", a.Ino, "x", 0), ErrInvalid)
	wantErr(t, ren(Root, "a", a.Ino, "b", RenameExchange), ErrInvalid)
	wantErr(t, ren(a.Ino, "b", Root, "a", RenameExchange), ErrInvalid)
	wantErr(t, ren(a.Ino, "b", Root, "a", 0), ErrNotEmpty)
	wantErr(t, ren(Root, "a", Root, "f", 0), ErrNotDir)
	wantErr(t, ren(Root, "f", Root, "a", 0), ErrIsDir)
	wantErr(t, ren(Root, "a", Root, "full", 0), ErrNotEmpty)
	wantErr(t, ren(Root, "f", Root, "a", RenameNoReplace), ErrExist)
	wantErr(t, ren(Root, "f", Root, "none", RenameExchange), ErrNotExist)
	wantErr(t, ren(Root, "none", Root, "f", 0), ErrNotExist)
	wantErr(t, ren(Root, "f", Root, "g", 8), ErrInvalid)
	wantErr(t, ren(Root, "f", Root, "g", RenameExchange|RenameNoReplace), ErrInvalid)
	before := must[Stats](t)(c.Stats(ctx)).Seq
	if err := ren(Root, "f", Root, "f", 0); err != nil {
		t.Fatal(err)
	}
	if got := must[Stats](t)(c.Stats(ctx)).Seq; got != before {
		t.Fatal("a rename to itself is a record")
	}
	gone, err := c.Rename(ctx, who, Root, "a", Root, "empty", 0)
	if err != nil || gone == nil || gone.Ino != empty.Ino || gone.Nlink != 0 {
		t.Fatal(gone, err)
	}
	if err := ren(Root, "f", Root, "empty", RenameExchange); err != nil {
		t.Fatal(err)
	}
	root := must[Inode](t)(c.Get(ctx, Root))
	if f := must[Inode](t)(c.Lookup(ctx, Root, "f")); f.Ino != a.Ino || root.Nlink != 4 {
		t.Fatalf("%+v\n%+v", f, root)
	}
}

// A name that is replaced keeps its place, so that a walk that is under way meets it once.
func TestReplacedNameKeepsItsPlace(t *testing.T) {
	for _, flush := range []bool{false, true} {
		c := newCatalog(t, nil)
		ctx, who := context.Background(), testActor()
		for _, n := range []string{"a", "b", "c"} {
			createFile(t, c, Root, n)
		}
		first := must[[]DirEntry](t)(c.ReadDir(ctx, Root, 0, 2))
		for i := range 5 {
			createFile(t, c, Root, "tmp")
			must[*Inode](t)(c.Rename(ctx, who, Root, "tmp", Root, []string{"a", "c"}[i%2], 0))
			if flush {
				if err := c.Flush(ctx); err != nil {
					t.Fatal(err)
				}
			}
		}
		rest := must[[]DirEntry](t)(c.ReadDir(ctx, Root, first[1].Cookie, 10))
		if len(rest) != 1 || rest[0].Name != "c" {
			t.Fatalf("flush %v: after a and b comes %+v", flush, rest)
		}
	}
}

func TestLevel(t *testing.T) {
	c := newCatalog(t, func(o *Options) { o.CacheEntries = minCacheEntries })
	ctx, who := context.Background(), testActor()
	d := createDir(t, c, Root, "d")
	sub := createDir(t, c, d.Ino, "sub")
	f := createFile(t, c, sub.Ino, "f")
	is := func(ino Ino, want string) {
		t.Helper()
		for range 2 {
			if got, err := c.Level(ctx, ino); err != nil || got != want {
				t.Fatalf("level of %d is %q %v, want %q", ino, got, err, want)
			}
			if err := c.Flush(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	is(f.Ino, LevelBasic)
	if err := c.SetXattr(ctx, who, d.Ino, LevelXattr, []byte(LevelCritical), 0); err != nil {
		t.Fatal(err)
	}
	is(f.Ino, LevelCritical)
	if err := c.SetXattr(ctx, who, f.Ino, LevelXattr, []byte(LevelAdvanced), 0); err != nil {
		t.Fatal(err)
	}
	is(f.Ino, LevelAdvanced)
	is(sub.Ino, LevelCritical)
	must[*Inode](t)(c.Rename(ctx, who, d.Ino, "sub", Root, "sub", 0))
	is(sub.Ino, LevelBasic)
	wantErr(t, c.SetXattr(ctx, who, f.Ino, LevelXattr, []byte("best"), 0), ErrInvalid)
	_, err := c.Level(ctx, 999)
	wantErr(t, err, ErrStale)
}

func TestXattrLimits(t *testing.T) {
	c := newCatalog(t, nil)
	ctx, who := context.Background(), testActor()
	f := createFile(t, c, Root, "f")
	set := func(name string, n int) error {
		return c.SetXattr(ctx, who, f.Ino, name, make([]byte, n), 0)
	}
	wantErr(t, set("user.x", MaxXattr+1), ErrTooBig)
	wantErr(t, set("", 1), ErrInvalid)
	wantErr(t, set(strings.Repeat("n", 256), 1), ErrNameTooLong)
	for i := range 3 {
		if err := set(fmt.Sprintf("user.%d", i), MaxXattr); err != nil {
			t.Fatal(err)
		}
	}
	wantErr(t, set("user.3", MaxXattr), ErrTooBig)
	if err := set("user.2", MaxXattr); err != nil {
		t.Fatal("the same again:", err)
	}
	if err := set("user.empty", 0); err != nil {
		t.Fatal(err)
	}
	if v, err := c.GetXattr(ctx, f.Ino, "user.empty"); err != nil || len(v) != 0 {
		t.Fatal(v, err)
	}
}

func TestTmpfileIsForgotten(t *testing.T) {
	c := newCatalog(t, nil)
	ctx, who := context.Background(), testActor()
	seq := must[Stats](t)(c.Stats(ctx)).Seq
	a := must[Inode](t)(c.CreateTmpfile(ctx, who, Root, NewInode{Mode: 0o600}))
	b := must[Inode](t)(c.CreateTmpfile(ctx, who, Root, NewInode{Mode: 0o600}))
	if err := c.SetAttrDeferred(ctx, b.Ino, Change{Mtime: ptr(Timestamp(5))}); err != nil {
		t.Fatal(err)
	}
	if err := c.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	if got := must[Stats](t)(c.Stats(ctx)).Seq; got != seq {
		t.Fatal("a file without a name was written")
	}
	c.ForgetTmpfile(a.Ino)
	_, err := c.Get(ctx, a.Ino)
	wantErr(t, err, ErrStale)
	must[Inode](t)(c.Commit(ctx, who, whole(b.Ino, []byte("body"))))
	c.ForgetTmpfile(b.Ino) // it was written: nothing happens
	row := must[Inode](t)(c.Link(ctx, who, b.Ino, Root, "b"))
	if row.Nlink != 1 || row.Size != 4 || row.Mtime != 5 {
		t.Fatalf("%+v", row)
	}
}

func TestReadOnly(t *testing.T) {
	o := testOptions(t, blobstoretest.TempDir(t), newMemBlobs())
	c := openCatalog(t, o)
	ctx, who := context.Background(), testActor()
	if err := c.Init(ctx, who, NewInode{Mode: 0o755}); err != nil {
		t.Fatal(err)
	}
	f := createFile(t, c, Root, "f")
	if err := c.SetXattr(ctx, who, f.Ino, "user.a", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	if err := c.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	c.app.mu.Lock() // what follows stays in the journal
	if err := c.SetXattr(ctx, who, f.Ino, "user.b", []byte("2"), 0); err != nil {
		t.Fatal(err)
	}
	f = must[Inode](t)(c.Commit(ctx, who, whole(f.Ino, []byte("tail"))))
	c.app.stop()
	c.app.mu.Unlock()
	kill(c)

	o.ReadOnly = true
	r := openCatalog(t, o)
	if got := must[Inode](t)(r.Lookup(ctx, Root, "f")); got != f {
		t.Fatalf("%+v, want %+v", got, f)
	}
	if names := must[[]string](t)(r.ListXattr(ctx, f.Ino)); len(names) != 2 {
		t.Fatal(names)
	}
	ext := must[[]Extent](t)(r.Extents(ctx, f.Ino, Head))
	if b, ok := r.PendingBody(ext[0].Blob.Hash); !ok || string(b) != "tail" {
		t.Fatalf("%q %v", b, ok)
	}
	_, err := r.Create(ctx, who, Root, "x", NewInode{Mode: unix.S_IFREG})
	wantErr(t, err, ErrReadOnly)
	wantErr(t, r.SetAttrDeferred(ctx, f.Ino, Change{}), ErrReadOnly)
	if err := r.Sync(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestClosed(t *testing.T) {
	c := newCatalog(t, nil)
	ctx, who := context.Background(), testActor()
	if err := c.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(ctx); err != nil {
		t.Fatal("a second close:", err)
	}
	_, err := c.Create(ctx, who, Root, "x", NewInode{Mode: unix.S_IFREG})
	wantErr(t, err, ErrClosed)
	_, err = c.Lookup(ctx, Root, "unknown")
	wantErr(t, err, ErrClosed)
}
