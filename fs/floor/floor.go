// Package floor is a filesystem that does nothing but what the kernel cannot do without: names in Go maps, contents in byte slices, one
// mutex. It is mounted under exactly the same terms as a store, so what it costs is what FUSE costs: the floor below which
// no store can get.
package floor

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"holdfast/catalog"
	"holdfast/fs/internal/kernel"
)

const (
	offDot    = 1
	offDotDot = 2
)

// Server is a mounted floor.
type Server struct {
	*floor
	kernel *kernel.Server
}

// Mount mounts an empty floor on dir. On return requests are served.
func Mount(dir string, debug bool, log *slog.Logger) (*Server, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	f := newFloor()
	k, err := kernel.Mount(f, dir, kernel.Options{Source: "floor", Debug: debug, Log: log})
	if err != nil {
		return nil, err
	}
	return &Server{floor: f, kernel: k}, nil
}

// Unmount takes the mount down; lazily even when it is in use.
func (s *Server) Unmount(lazy bool) error { return s.kernel.Unmount(lazy) }

// Wait returns when the mount is gone.
func (s *Server) Wait() { s.kernel.Wait() }

// Requests is the number of requests answered so far.
func (s *Server) Requests() map[string]uint64 {
	return map[string]uint64{"ALL": s.requests.Load()}
}

type node struct {
	row     catalog.Inode
	data    []byte
	entries map[string]int // of a directory: places in order
	order   []entry        // removed ones have no node
}

type entry struct {
	name string
	node *node
}

type floor struct {
	gofuse.RawFileSystem
	requests atomic.Uint64

	mu    sync.Mutex
	nodes map[uint64]*node
	next  uint64
}

func newFloor() *floor {
	f := &floor{RawFileSystem: gofuse.NewDefaultRawFileSystem(), nodes: make(map[uint64]*node), next: gofuse.FUSE_ROOT_ID}
	root := f.make(unix.S_IFDIR|0o755, uint32(unix.Getuid()), uint32(unix.Getgid()))
	root.row.Parent, root.row.Nlink = catalog.Root, 2
	return f
}

func now() int64 { return time.Now().UnixNano() }

// enter counts a request and takes the lock.
func (f *floor) enter() func() {
	f.requests.Add(1)
	f.mu.Lock()
	return f.mu.Unlock
}

func (f *floor) make(mode, uid, gid uint32) *node {
	t := now()
	n := &node{row: catalog.Inode{Ino: catalog.Ino(f.next), Mode: mode, UID: uid, GID: gid, Nlink: 1, Atime: t, Mtime: t, Ctime: t, Btime: t}}
	if mode&unix.S_IFMT == unix.S_IFDIR {
		n.entries = make(map[string]int)
		n.row.Nlink = 2
	}
	f.nodes[f.next] = n
	f.next++
	return n
}

func answer(out *gofuse.EntryOut, n *node) gofuse.Status {
	kernel.Entry(out, &n.row, uint64(n.row.Ino), kernel.Valid)
	return gofuse.OK
}

func attributes(out *gofuse.AttrOut, n *node) gofuse.Status {
	out.AttrValid = kernel.Valid
	kernel.Attr(&out.Attr, &n.row, uint64(n.row.Ino))
	return gofuse.OK
}

// find returns what a name leads to, or nil.
func (d *node) find(name string) *node {
	if i, ok := d.entries[name]; ok {
		return d.order[i].node
	}
	return nil
}

func (d *node) add(name string, n *node) {
	d.entries[name] = len(d.order)
	d.order = append(d.order, entry{name, n})
	n.row.Parent = d.row.Ino
	d.row.Mtime = now()
	d.row.Ctime = d.row.Mtime
	if n.entries != nil {
		d.row.Nlink++
	}
}

// take removes a name and returns what it led to.
func (d *node) take(name string) *node {
	i := d.entries[name]
	n := d.order[i].node
	delete(d.entries, name)
	d.order[i] = entry{}
	for len(d.order) > 0 && d.order[len(d.order)-1].node == nil {
		d.order = d.order[:len(d.order)-1]
	}
	d.row.Mtime = now()
	d.row.Ctime = d.row.Mtime
	if n.entries != nil {
		d.row.Nlink--
	}
	return n
}

// drop takes one link away, and the node with the last.
func (f *floor) drop(n *node) {
	if n.row.Nlink--; n.row.Nlink == 0 || n.entries != nil {
		n.row.Nlink = 0
	}
}

func (f *floor) String() string { return "floor" }

func (f *floor) Lookup(_ <-chan struct{}, in *gofuse.InHeader, name string, out *gofuse.EntryOut) gofuse.Status {
	defer f.enter()()
	d := f.nodes[in.NodeId]
	switch {
	case d == nil:
		return gofuse.Status(unix.ESTALE)
	case name == ".":
		return answer(out, d)
	case name == "..":
		return answer(out, f.nodes[uint64(d.row.Parent)])
	}
	n := d.find(name)
	if n == nil {
		kernel.NoEntry(out, kernel.Valid)
		return gofuse.OK
	}
	return answer(out, n)
}

func (f *floor) GetAttr(_ <-chan struct{}, in *gofuse.GetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	defer f.enter()()
	n := f.nodes[in.NodeId]
	if n == nil {
		return gofuse.Status(unix.ESTALE)
	}
	return attributes(out, n)
}

func (f *floor) Statx(_ <-chan struct{}, in *gofuse.StatxIn, out *gofuse.StatxOut) gofuse.Status {
	defer f.enter()()
	n := f.nodes[in.NodeId]
	if n == nil {
		return gofuse.Status(unix.ESTALE)
	}
	kernel.Statx(out, &n.row, in.NodeId, kernel.Valid)
	return gofuse.OK
}

func (f *floor) SetAttr(_ <-chan struct{}, in *gofuse.SetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	defer f.enter()()
	n := f.nodes[in.NodeId]
	if n == nil {
		return gofuse.Status(unix.ESTALE)
	}
	if mode, ok := in.GetMode(); ok {
		n.row.Mode = n.row.Mode&unix.S_IFMT | mode
	}
	if uid, ok := in.GetUID(); ok {
		n.row.UID = uid
	}
	if gid, ok := in.GetGID(); ok {
		n.row.GID = gid
	}
	if size, ok := in.GetSize(); ok {
		if size > 1<<32 {
			return gofuse.Status(unix.EFBIG)
		}
		n.resize(int64(size))
	}
	n.row.Ctime = now()
	if t, ok := in.GetATime(); ok {
		n.row.Atime = t.UnixNano()
	}
	if t, ok := in.GetMTime(); ok {
		n.row.Mtime = t.UnixNano()
	}
	if t, ok := in.GetCTime(); ok {
		n.row.Ctime = t.UnixNano()
	}
	return attributes(out, n)
}

func (n *node) resize(size int64) {
	if size <= int64(len(n.data)) {
		clear(n.data[size:])
		n.data = n.data[:size]
	} else if size <= int64(cap(n.data)) {
		n.data = n.data[:size]
	} else {
		n.data = append(n.data, make([]byte, size-int64(len(n.data)))...)
	}
	n.row.Size = size
}

func (f *floor) put(in *gofuse.InHeader, name string, mode uint32, out *gofuse.EntryOut) (*node, gofuse.Status) {
	d := f.nodes[in.NodeId]
	switch {
	case d == nil:
		return nil, gofuse.Status(unix.ESTALE)
	case d.find(name) != nil:
		return nil, gofuse.Status(unix.EEXIST)
	}
	n := f.make(mode, in.Uid, in.Gid)
	d.add(name, n)
	return n, answer(out, n)
}

func (f *floor) Mknod(_ <-chan struct{}, in *gofuse.MknodIn, name string, out *gofuse.EntryOut) gofuse.Status {
	defer f.enter()()
	n, st := f.put(&in.InHeader, name, in.Mode, out)
	if st == gofuse.OK {
		n.row.Rdev, out.Rdev = in.Rdev, in.Rdev
	}
	return st
}

func (f *floor) Mkdir(_ <-chan struct{}, in *gofuse.MkdirIn, name string, out *gofuse.EntryOut) gofuse.Status {
	defer f.enter()()
	_, st := f.put(&in.InHeader, name, unix.S_IFDIR|in.Mode&07777, out)
	return st
}

func (f *floor) Symlink(_ <-chan struct{}, in *gofuse.InHeader, target, name string, out *gofuse.EntryOut) gofuse.Status {
	defer f.enter()()
	n, st := f.put(in, name, unix.S_IFLNK|0o777, out)
	if st == gofuse.OK {
		n.row.Target, n.row.Size, out.Size = target, int64(len(target)), uint64(len(target))
	}
	return st
}

func (f *floor) Readlink(_ <-chan struct{}, in *gofuse.InHeader) ([]byte, gofuse.Status) {
	defer f.enter()()
	n := f.nodes[in.NodeId]
	if n == nil {
		return nil, gofuse.Status(unix.ESTALE)
	}
	return []byte(n.row.Target), gofuse.OK
}

func (f *floor) Link(_ <-chan struct{}, in *gofuse.LinkIn, name string, out *gofuse.EntryOut) gofuse.Status {
	defer f.enter()()
	d, n := f.nodes[in.NodeId], f.nodes[in.Oldnodeid]
	switch {
	case d == nil || n == nil:
		return gofuse.Status(unix.ESTALE)
	case d.find(name) != nil:
		return gofuse.Status(unix.EEXIST)
	}
	d.add(name, n)
	n.row.Nlink++
	n.row.Ctime = now()
	return answer(out, n)
}

func (f *floor) Unlink(_ <-chan struct{}, in *gofuse.InHeader, name string) gofuse.Status {
	defer f.enter()()
	d := f.nodes[in.NodeId]
	if d == nil || d.find(name) == nil {
		return gofuse.ENOENT
	}
	f.drop(d.take(name))
	return gofuse.OK
}

func (f *floor) Rmdir(_ <-chan struct{}, in *gofuse.InHeader, name string) gofuse.Status {
	defer f.enter()()
	d := f.nodes[in.NodeId]
	if d == nil || d.find(name) == nil {
		return gofuse.ENOENT
	}
	if len(d.find(name).entries) > 0 {
		return gofuse.Status(unix.ENOTEMPTY)
	}
	f.drop(d.take(name))
	return gofuse.OK
}

func (f *floor) Rename(_ <-chan struct{}, in *gofuse.RenameIn, oldName, newName string) gofuse.Status {
	defer f.enter()()
	from, to := f.nodes[in.NodeId], f.nodes[in.Newdir]
	if in.Flags != 0 {
		return gofuse.EINVAL
	}
	if from == nil || to == nil || from.find(oldName) == nil {
		return gofuse.ENOENT
	}
	if old := to.find(newName); old != nil {
		if len(old.entries) > 0 {
			return gofuse.Status(unix.ENOTEMPTY)
		}
		f.drop(to.take(newName))
	}
	n := from.take(oldName)
	to.add(newName, n)
	n.row.Ctime = now()
	return gofuse.OK
}

func (f *floor) Create(_ <-chan struct{}, in *gofuse.CreateIn, name string, out *gofuse.CreateOut) gofuse.Status {
	defer f.enter()()
	out.OpenFlags = gofuse.FOPEN_KEEP_CACHE
	_, st := f.put(&in.InHeader, name, unix.S_IFREG|in.Mode&07777, &out.EntryOut)
	return st
}

func (f *floor) Open(_ <-chan struct{}, in *gofuse.OpenIn, out *gofuse.OpenOut) gofuse.Status {
	defer f.enter()()
	n := f.nodes[in.NodeId]
	if n == nil {
		return gofuse.Status(unix.ESTALE)
	}
	if in.Flags&unix.O_TRUNC != 0 {
		n.resize(0)
	}
	out.OpenFlags = gofuse.FOPEN_KEEP_CACHE
	return gofuse.OK
}

func (f *floor) Read(_ <-chan struct{}, in *gofuse.ReadIn, buf []byte) (gofuse.ReadResult, gofuse.Status) {
	defer f.enter()()
	n := f.nodes[in.NodeId]
	if n == nil {
		return nil, gofuse.Status(unix.ESTALE)
	}
	got := copy(buf, n.data[min(in.Offset, uint64(len(n.data))):])
	return gofuse.ReadResultData(buf[:got]), gofuse.OK
}

func (f *floor) Write(_ <-chan struct{}, in *gofuse.WriteIn, data []byte) (uint32, gofuse.Status) {
	defer f.enter()()
	n := f.nodes[in.NodeId]
	if n == nil {
		return 0, gofuse.Status(unix.ESTALE)
	}
	if end := int64(in.Offset) + int64(len(data)); end > int64(len(n.data)) {
		n.resize(end)
	}
	return uint32(copy(n.data[in.Offset:], data)), gofuse.OK
}

func (f *floor) Flush(<-chan struct{}, *gofuse.FlushIn) gofuse.Status {
	f.requests.Add(1)
	return gofuse.OK
}

func (f *floor) Release(_ <-chan struct{}, in *gofuse.ReleaseIn) {
	defer f.enter()()
	if n := f.nodes[in.NodeId]; n != nil && n.row.Nlink == 0 {
		n.data = nil
	}
}

func (f *floor) Forget(id, _ uint64) {
	defer f.enter()()
	if n := f.nodes[id]; n != nil && n.row.Nlink == 0 {
		delete(f.nodes, id)
	}
}

func (f *floor) Fsync(<-chan struct{}, *gofuse.FsyncIn) gofuse.Status {
	f.requests.Add(1)
	return gofuse.OK
}

func (f *floor) FsyncDir(<-chan struct{}, *gofuse.FsyncIn) gofuse.Status {
	f.requests.Add(1)
	return gofuse.OK
}

func (f *floor) GetXAttr(<-chan struct{}, *gofuse.InHeader, string, []byte) (uint32, gofuse.Status) {
	f.requests.Add(1)
	return 0, gofuse.ENODATA
}

func (f *floor) StatFs(_ <-chan struct{}, _ *gofuse.InHeader, out *gofuse.StatfsOut) gofuse.Status {
	f.requests.Add(1)
	*out = gofuse.StatfsOut{Blocks: 1 << 30, Bfree: 1 << 30, Bavail: 1 << 30, Files: 1 << 30, Ffree: 1 << 30, Bsize: 4096, Frsize: 4096, NameLen: 255}
	return gofuse.OK
}

func (f *floor) ReadDir(_ <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	return f.list(in, func(e gofuse.DirEntry, _ *node) bool { return out.AddDirEntry(e) })
}

func (f *floor) ReadDirPlus(_ <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	return f.list(in, func(e gofuse.DirEntry, n *node) bool {
		entry := out.AddDirLookupEntry(e)
		if entry != nil && n != nil {
			answer(entry, n)
		}
		return entry != nil
	})
}

func (f *floor) list(in *gofuse.ReadIn, add func(gofuse.DirEntry, *node) bool) gofuse.Status {
	defer f.enter()()
	d := f.nodes[in.NodeId]
	if d == nil || d.entries == nil {
		return gofuse.ENOTDIR
	}
	off := in.Offset
	if off < offDot && !add(gofuse.DirEntry{Name: ".", Ino: in.NodeId, Mode: unix.S_IFDIR, Off: offDot}, nil) {
		return gofuse.OK
	}
	if off < offDotDot && !add(gofuse.DirEntry{Name: "..", Ino: uint64(d.row.Parent), Mode: unix.S_IFDIR, Off: offDotDot}, nil) {
		return gofuse.OK
	}
	for i := max(off, offDotDot) - offDotDot; i < uint64(len(d.order)); i++ {
		e := d.order[i]
		if e.node == nil {
			continue
		}
		if !add(gofuse.DirEntry{Name: e.name, Ino: uint64(e.node.row.Ino), Mode: e.node.row.Mode, Off: i + offDotDot + 1}, e.node) {
			return gofuse.OK
		}
	}
	return gofuse.OK
}
