package fs_test

import (
	"context"
	"testing"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"holdfast/catalog"
	"holdfast/fs"
	"holdfast/internal/fusetest"
	"holdfast/internal/volume"
)

// hot is a filesystem that is not mounted, with one open file in it.
type hot struct {
	f    *fs.FileSystem
	node uint64
	fh   uint64
	data []byte
}

func newHot(tb testing.TB) *hot {
	tb.Helper()
	tree := fusetest.NewMemory(0, 0)
	ctx := context.Background()
	row, h, err := tree.CreateFile(ctx, catalog.Actor{}, catalog.Root, "f", catalog.NewInode{Mode: unix.S_IFREG | 0o644}, volume.OpenFlags{Write: true})
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := h.WriteAt(ctx, make([]byte, 4096), 0, volume.WriteFlags{}); err != nil {
		tb.Fatal(err)
	}
	f, err := fs.New(ctx, tree, nil, nil)
	if err != nil {
		tb.Fatal(err)
	}
	var out gofuse.OpenOut
	if st := f.Open(nil, &gofuse.OpenIn{InHeader: gofuse.InHeader{NodeId: uint64(row.Ino)}, Flags: unix.O_RDWR}, &out); st != gofuse.OK {
		tb.Fatal(st)
	}
	return &hot{f: f, node: uint64(row.Ino), fh: out.Fh, data: make([]byte, 4096)}
}

// operations are those whose speed decides.
func (h *hot) operations() map[string]func() gofuse.Status {
	root, node := gofuse.InHeader{NodeId: gofuse.FUSE_ROOT_ID}, gofuse.InHeader{NodeId: h.node}
	getattr := &gofuse.GetAttrIn{InHeader: node}
	read := &gofuse.ReadIn{InHeader: node, Fh: h.fh, Size: 4096}
	write := &gofuse.WriteIn{InHeader: node, Fh: h.fh, Size: 4096, WriteFlags: gofuse.WRITE_CACHE}
	flush := &gofuse.FlushIn{InHeader: node, Fh: h.fh}
	entry, attr, data := new(gofuse.EntryOut), new(gofuse.AttrOut), [][]byte{h.data}
	return map[string]func() gofuse.Status{
		"lookup":                   func() gofuse.Status { return h.f.Lookup(nil, &root, "f", entry) },
		"lookup of a missing name": func() gofuse.Status { return h.f.Lookup(nil, &root, "missing", entry) },
		"getattr":                  func() gofuse.Status { return h.f.GetAttr(nil, getattr, attr) },
		"read": func() gofuse.Status {
			r, st := h.f.Read(nil, read, h.data)
			r.Bytes(nil)
			r.Done()
			return st
		},
		"write": func() gofuse.Status { _, st := h.f.Writev(nil, write, data); return st },
		"flush": func() gofuse.Status { return h.f.Flush(nil, flush) },
	}
}

func TestHotPathsDoNotAllocate(t *testing.T) {
	for name, do := range newHot(t).operations() {
		if n := testing.AllocsPerRun(500, func() {
			if st := do(); st != gofuse.OK {
				t.Fatalf("%s: %v", name, st)
			}
		}); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}

func BenchmarkRequests(b *testing.B) {
	for name, do := range newHot(b).operations() {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				do()
			}
		})
	}
}

// TestVirtualNamesAreTaken: also when the kernel does not know that, and asks.
func TestVirtualNamesAreTaken(t *testing.T) {
	ctx := context.Background()
	f, err := fs.New(ctx, fusetest.NewMemory(0, 0), []fs.Virtual{{Name: ".v", Tree: fusetest.NewMemory(0, 0)}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	root := gofuse.InHeader{NodeId: gofuse.FUSE_ROOT_ID}
	out := new(gofuse.EntryOut)
	if st := f.Mkdir(nil, &gofuse.MkdirIn{InHeader: root}, "d", out); st != gofuse.OK {
		t.Fatal(st)
	}
	exist := gofuse.Status(unix.EEXIST)
	for what, c := range map[string]struct{ got, want gofuse.Status }{
		"mkdir":   {f.Mkdir(nil, &gofuse.MkdirIn{InHeader: root}, ".v", out), exist},
		"mknod":   {f.Mknod(nil, &gofuse.MknodIn{InHeader: root, Mode: unix.S_IFREG}, ".v", out), exist},
		"symlink": {f.Symlink(nil, &root, "x", ".v", out), exist},
		"link":    {f.Link(nil, &gofuse.LinkIn{InHeader: root, Oldnodeid: 2}, ".v", out), exist},
		"create":  {f.Create(nil, &gofuse.CreateIn{InHeader: root}, ".v", new(gofuse.CreateOut)), exist},
		"unlink":  {f.Unlink(nil, &root, ".v"), gofuse.EISDIR},
		"rmdir":   {f.Rmdir(nil, &root, ".v"), gofuse.EBUSY},
		"rename":  {f.Rename(nil, &gofuse.RenameIn{InHeader: root, Newdir: 1}, "d", ".v"), gofuse.EBUSY},
		// A node of a tree that does not exist, as a damaged file handle may name it.
		"lookup": {f.Lookup(nil, &gofuse.InHeader{NodeId: 1<<62 | 5<<56 | 1}, ".", out), gofuse.Status(unix.ESTALE)},
		"node 0": {f.Lookup(nil, &gofuse.InHeader{}, ".", out), gofuse.Status(unix.ESTALE)},
		"read":   {readOf(f, 1<<33), gofuse.EBADF},
	} {
		if c.got != c.want {
			t.Errorf("%s: %v, want %v", what, c.got, c.want)
		}
	}
}

func readOf(f *fs.FileSystem, fh uint64) gofuse.Status {
	_, st := f.Read(nil, &gofuse.ReadIn{Fh: fh}, nil)
	return st
}
