package fusetest

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/catalog"
	"holdfast/fs"
	"holdfast/internal/volume"
)

// Memory is a fs.Tree in maps, for tests that want a tree of which nothing is left on disk, or one that misbehaves.
type Memory struct {
	mu     sync.Mutex
	nodes  map[catalog.Ino]*memNode
	next   catalog.Ino
	cookie uint64
	// Fault, when set, is asked before each operation, by its name, and fails it with what it returns.
	Fault func(op string) error
	// Uncached makes opens drop the kernel's cache of the file.
	Uncached bool
}

type memNode struct {
	row     catalog.Inode
	data    []byte
	xattrs  map[string][]byte
	entries map[string]memEntry
}

type memEntry struct {
	ino    catalog.Ino
	cookie uint64
}

// NewMemory makes a tree with an empty root, owned by uid and gid.
func NewMemory(uid, gid uint32) *Memory {
	m := &Memory{nodes: make(map[catalog.Ino]*memNode), next: catalog.Root, cookie: 2}
	root := m.make(catalog.NewInode{Mode: unix.S_IFDIR | 0o755, UID: uid, GID: gid})
	root.row.Parent, root.row.Nlink = catalog.Root, 2
	return m
}

func now() catalog.Timestamp { return time.Now().UnixNano() }

func (m *Memory) make(n catalog.NewInode) *memNode {
	if n.Mode&unix.S_IFMT == 0 {
		n.Mode |= unix.S_IFREG
	}
	t := now()
	node := &memNode{row: catalog.Inode{
		Ino: m.next, Mode: n.Mode, UID: n.UID, GID: n.GID, Rdev: n.Rdev, Size: int64(len(n.Target)), Target: n.Target,
		Atime: t, Mtime: t, Ctime: t, Btime: t,
	}}
	if n.Mode&unix.S_IFMT == unix.S_IFDIR {
		node.entries = make(map[string]memEntry)
	}
	m.nodes[m.next] = node
	m.next++
	return node
}

func (m *Memory) fault(op string) error {
	if m.Fault == nil {
		return nil
	}
	return m.Fault(op)
}

func (m *Memory) get(ino catalog.Ino) (*memNode, error) {
	n := m.nodes[ino]
	if n == nil {
		return nil, catalog.ErrStale
	}
	return n, nil
}

func (m *Memory) dir(ino catalog.Ino) (*memNode, error) {
	n, err := m.get(ino)
	if err == nil && n.entries == nil {
		err = catalog.ErrNotDir
	}
	return n, err
}

// find returns a directory and what the name in it leads to (nil: nothing).
func (m *Memory) find(parent catalog.Ino, name string) (*memNode, *memNode, error) {
	d, err := m.dir(parent)
	if err != nil {
		return nil, nil, err
	}
	if len(name) > catalog.MaxName {
		return nil, nil, catalog.ErrNameTooLong
	}
	return d, m.nodes[d.entries[name].ino], nil
}

func touch(n *memNode) { n.row.Mtime = now(); n.row.Ctime = n.row.Mtime }

func (m *Memory) Lookup(_ context.Context, parent catalog.Ino, name string) (catalog.Inode, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.fault("lookup"); err != nil {
		return catalog.Inode{}, err
	}
	if name == "." {
		n, err := m.get(parent)
		if err != nil {
			return catalog.Inode{}, err
		}
		return n.row, nil
	}
	d, n, err := m.find(parent, name)
	if err != nil {
		return catalog.Inode{}, err
	}
	if name == ".." {
		n = m.nodes[d.row.Parent]
	}
	if n == nil {
		return catalog.Inode{}, catalog.ErrNotExist
	}
	return n.row, nil
}

func (m *Memory) Get(_ context.Context, ino catalog.Ino) (catalog.Inode, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.fault("get"); err != nil {
		return catalog.Inode{}, err
	}
	n, err := m.get(ino)
	if err != nil {
		return catalog.Inode{}, err
	}
	return n.row, nil
}

func (m *Memory) enter(d *memNode, name string, n *memNode) {
	m.cookie++
	d.entries[name] = memEntry{ino: n.row.Ino, cookie: m.cookie}
	n.row.Parent = d.row.Ino
	touch(d)
}

func (m *Memory) create(parent catalog.Ino, name string, n catalog.NewInode) (*memNode, error) {
	d, old, err := m.find(parent, name)
	if err != nil {
		return nil, err
	}
	if d.row.Nlink == 0 {
		return nil, catalog.ErrNotExist
	}
	if old != nil {
		return nil, catalog.ErrExist
	}
	if d.row.Mode&unix.S_ISGID != 0 {
		n.GID = d.row.GID
		if n.Mode&unix.S_IFMT == unix.S_IFDIR {
			n.Mode |= unix.S_ISGID
		}
	}
	node := m.make(n)
	node.row.Nlink = 1
	if node.entries != nil {
		node.row.Nlink = 2
		d.row.Nlink++
	}
	m.enter(d, name, node)
	return node, nil
}

func (m *Memory) Create(_ context.Context, _ catalog.Actor, parent catalog.Ino, name string, n catalog.NewInode) (catalog.Inode, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.fault("create"); err != nil {
		return catalog.Inode{}, err
	}
	node, err := m.create(parent, name, n)
	if err != nil {
		return catalog.Inode{}, err
	}
	return node.row, nil
}

func (m *Memory) Link(_ context.Context, _ catalog.Actor, ino, parent catalog.Ino, name string) (catalog.Inode, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, old, err := m.find(parent, name)
	if err != nil {
		return catalog.Inode{}, err
	}
	n, err := m.get(ino)
	switch {
	case err != nil:
		return catalog.Inode{}, err
	case n.entries != nil:
		return catalog.Inode{}, catalog.ErrPerm
	case old != nil:
		return catalog.Inode{}, catalog.ErrExist
	case n.row.Nlink >= catalog.MaxLinks:
		return catalog.Inode{}, catalog.ErrTooManyLink
	}
	n.row.Nlink++
	n.row.Ctime = now()
	m.enter(d, name, n)
	return n.row, nil
}

func (m *Memory) drop(d *memNode, name string, n *memNode) {
	delete(d.entries, name)
	touch(d)
	n.row.Ctime = now()
	if n.entries != nil {
		n.row.Nlink = 0
		d.row.Nlink--
		return
	}
	n.row.Nlink--
}

func (m *Memory) Unlink(_ context.Context, _ catalog.Actor, parent catalog.Ino, name string) (catalog.Inode, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.fault("unlink"); err != nil {
		return catalog.Inode{}, err
	}
	d, n, err := m.find(parent, name)
	switch {
	case err != nil:
		return catalog.Inode{}, err
	case n == nil:
		return catalog.Inode{}, catalog.ErrNotExist
	case n.entries != nil:
		return catalog.Inode{}, catalog.ErrIsDir
	}
	m.drop(d, name, n)
	return n.row, nil
}

func (m *Memory) Rmdir(_ context.Context, _ catalog.Actor, parent catalog.Ino, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, n, err := m.find(parent, name)
	switch {
	case err != nil:
		return err
	case n == nil:
		return catalog.ErrNotExist
	case n.entries == nil:
		return catalog.ErrNotDir
	case len(n.entries) > 0:
		return catalog.ErrNotEmpty
	}
	m.drop(d, name, n)
	return nil
}

func (m *Memory) Rename(_ context.Context, _ catalog.Actor, oldParent catalog.Ino, oldName string, newParent catalog.Ino, newName string, flags uint) (*catalog.Inode, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	from, n, err := m.find(oldParent, oldName)
	if err != nil {
		return nil, err
	}
	to, other, err := m.find(newParent, newName)
	switch {
	case err != nil:
		return nil, err
	case n == nil, flags&catalog.RenameExchange != 0 && other == nil:
		return nil, catalog.ErrNotExist
	case flags&catalog.RenameNoReplace != 0 && other != nil:
		return nil, catalog.ErrExist
	case n == other:
		return nil, nil
	}
	for up := to; ; up = m.nodes[up.row.Parent] {
		if up == n {
			return nil, catalog.ErrInvalid
		}
		if up.row.Ino == catalog.Root {
			break
		}
	}
	if flags&catalog.RenameExchange != 0 {
		m.shift(from, to, n)
		m.shift(to, from, other)
		m.enter(to, newName, n)
		m.enter(from, oldName, other)
		n.row.Ctime, other.row.Ctime = now(), now()
		return nil, nil
	}
	if other != nil {
		switch {
		case n.entries == nil && other.entries != nil:
			return nil, catalog.ErrIsDir
		case n.entries != nil && other.entries == nil:
			return nil, catalog.ErrNotDir
		case len(other.entries) > 0:
			return nil, catalog.ErrNotEmpty
		}
		m.drop(to, newName, other)
	}
	delete(from.entries, oldName)
	touch(from)
	m.shift(from, to, n)
	m.enter(to, newName, n)
	n.row.Ctime = now()
	if other != nil {
		return &other.row, nil
	}
	return nil, nil
}

// shift counts the ".." of a directory that moves.
func (m *Memory) shift(from, to, n *memNode) {
	if n.entries != nil {
		from.row.Nlink--
		to.row.Nlink++
	}
}

func (m *Memory) ReadDir(_ context.Context, dir catalog.Ino, after uint64, max int) ([]catalog.DirEntry, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.fault("readdir"); err != nil {
		return nil, err
	}
	d, err := m.dir(dir)
	if err != nil {
		return nil, err
	}
	var all []catalog.DirEntry
	for name, e := range d.entries {
		if e.cookie > after {
			all = append(all, catalog.DirEntry{Name: name, Cookie: e.cookie, Inode: m.nodes[e.ino].row})
		}
	}
	slices.SortFunc(all, func(a, b catalog.DirEntry) int { return cmp.Compare(a.Cookie, b.Cookie) })
	return all[:min(len(all), max)], nil
}

func (m *Memory) GetXattr(_ context.Context, ino catalog.Ino, name string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.get(ino)
	if err != nil {
		return nil, err
	}
	v, ok := n.xattrs[name]
	if !ok {
		return nil, catalog.ErrNoXattr
	}
	return v, nil
}

func (m *Memory) ListXattr(_ context.Context, ino catalog.Ino) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.get(ino)
	if err != nil {
		return nil, err
	}
	var names []string
	for name := range n.xattrs {
		names = append(names, name)
	}
	slices.Sort(names)
	return names, nil
}

func (m *Memory) SetXattr(_ context.Context, _ catalog.Actor, ino catalog.Ino, name string, value []byte, flags uint) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.get(ino)
	if err != nil {
		return err
	}
	_, have := n.xattrs[name]
	switch {
	case have && flags&catalog.XattrCreate != 0:
		return catalog.ErrExist
	case !have && flags&catalog.XattrReplace != 0:
		return catalog.ErrNoXattr
	}
	if n.xattrs == nil {
		n.xattrs = make(map[string][]byte)
	}
	n.xattrs[name] = value
	n.row.Ctime = now()
	return nil
}

func (m *Memory) RemoveXattr(_ context.Context, _ catalog.Actor, ino catalog.Ino, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.get(ino)
	if err != nil {
		return err
	}
	if _, ok := n.xattrs[name]; !ok {
		return catalog.ErrNoXattr
	}
	delete(n.xattrs, name)
	n.row.Ctime = now()
	return nil
}

func (m *Memory) SetAttr(_ context.Context, _ catalog.Actor, ino catalog.Ino, set fs.SetAttr) (catalog.Inode, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.fault("setattr"); err != nil {
		return catalog.Inode{}, err
	}
	n, err := m.get(ino)
	if err != nil {
		return catalog.Inode{}, err
	}
	if set.Size != nil && *set.Size > memMax {
		return catalog.Inode{}, unix.EFBIG
	}
	if set.Size != nil {
		n.resize(*set.Size)
		touch(n)
	}
	if n.entries == nil && (set.UID != nil || set.GID != nil) || set.KillPriv {
		n.killPriv()
	}
	if set.Mode != nil {
		n.row.Mode = n.row.Mode&unix.S_IFMT | *set.Mode&07777
	}
	for _, p := range []struct{ to, from *uint32 }{{&n.row.UID, set.UID}, {&n.row.GID, set.GID}} {
		if p.from != nil {
			*p.to = *p.from
		}
	}
	n.row.Ctime = now()
	for _, p := range []struct{ to, from *catalog.Timestamp }{{&n.row.Atime, set.Atime}, {&n.row.Mtime, set.Mtime}, {&n.row.Ctime, set.Ctime}} {
		if p.from != nil {
			*p.to = *p.from
		}
	}
	return n.row, nil
}

func (n *memNode) resize(size int64) {
	if size <= int64(len(n.data)) {
		n.data = n.data[:size:size]
	} else {
		n.data = append(n.data, make([]byte, size-int64(len(n.data)))...)
	}
	n.row.Size = size
}

func (n *memNode) killPriv() {
	n.row.Mode &^= unix.S_ISUID
	if n.row.Mode&unix.S_IXGRP != 0 {
		n.row.Mode &^= unix.S_ISGID
	}
	delete(n.xattrs, "security.capability")
}

func (m *Memory) Sync(context.Context) error { return m.fault("sync") }

func (m *Memory) StatFS(context.Context) (volume.StatFS, error) {
	return volume.StatFS{Blocks: 1 << 20, Bfree: 1 << 19, Bavail: 1 << 19, Files: 1 << 20, Ffree: 1 << 19, Bsize: 4096}, nil
}
