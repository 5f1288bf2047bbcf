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
