package catalog

import (
	"bytes"
	"crypto/sha256"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"holdfast/blobstore"
)

// model is a file system as simple as can be, against which the catalog is compared. It says which rows each operation writes, so
// that it also knows every past moment.
type model struct {
	used   Ino            // behind every number that a record ever had: none is used again, when retention has taken all of an inode neither
	live   map[Ino]*mnode // as seen now
	saved  map[Ino]*mnode // as the records say: without deferred times and unwritten files
	past   []map[Ino]*mnode
	times  []Timestamp
	blobs  map[blobstore.Hash][]byte
	next   Ino
	now    Timestamp
	record bool
}

// mnode is not changed once it is in a map.
type mnode struct {
	row     Inode
	names   map[string]Ino // directories
	xattrs  map[string]string
	content []byte
}

func newModel(now Timestamp) *model {
	m := &model{live: make(map[Ino]*mnode), saved: make(map[Ino]*mnode), blobs: make(map[blobstore.Hash][]byte), next: Root + 1, now: now}
	m.past, m.times = []map[Ino]*mnode{{}}, []Timestamp{0}
	m.set(&mnode{names: map[string]Ino{}, row: Inode{Ino: Root, Parent: Root, Mode: unix.S_IFDIR | 0o755, Nlink: 2, Atime: now, Mtime: now, Ctime: now, Btime: now}})
	m.end()
	return m
}

func (n *mnode) clone() *mnode {
	return &mnode{row: n.row, names: maps.Clone(n.names), xattrs: maps.Clone(n.xattrs), content: bytes.Clone(n.content)}
}

// set puts a node in force, in a record.
func (m *model) set(n *mnode) {
	m.live[n.row.Ino], m.saved[n.row.Ino] = n, n
	m.record = true
}

// end ends an operation: it was one record, or none.
func (m *model) end() {
	if m.record {
		m.past = append(m.past, maps.Clone(m.saved))
		m.times = append(m.times, m.now)
		for ino := range m.saved {
			m.used = max(m.used, ino+1)
		}
	}
	m.record = false
}

// unuse forgets the numbers of records that a power cut took: past is what is left.
func (m *model) unuse() {
	m.used = 0
	for _, moment := range m.past {
		for ino := range moment {
			m.used = max(m.used, ino+1)
		}
	}
}

func (m *model) get(ino Ino) *mnode { return m.live[ino].clone() }

// forget is a killed process.
func (m *model) forget() {
	m.live = maps.Clone(m.saved)
	m.next = m.used
}

// sync writes what is deferred, deferredStep inodes to a record.
func (m *model) sync() {
	n := 0
	for _, ino := range slices.Sorted(maps.Keys(m.live)) {
		if saved := m.saved[ino]; saved != nil && saved != m.live[ino] {
			m.set(m.live[ino])
			if n++; n%deferredStep == 0 {
				m.end()
			}
		}
	}
	m.end()
}

func (m *model) dir(ino Ino) (*mnode, error) {
	n := m.live[ino]
	switch {
	case n == nil:
		return nil, ErrStale
	case n.names == nil:
		return nil, ErrNotDir
	case n.row.Nlink == 0:
		return nil, ErrNotExist
	}
	return n.clone(), nil
}

func (m *model) touch(n *mnode) { n.row.Mtime, n.row.Ctime = m.now, m.now }

func (m *model) fresh(dir *mnode, in NewInode) *mnode {
	n := &mnode{row: Inode{Ino: m.next, Parent: dir.row.Ino, Mode: in.Mode, UID: in.UID, GID: in.GID, Rdev: in.Rdev, Nlink: 1,
		Atime: m.now, Mtime: m.now, Ctime: m.now, Btime: m.now, Target: in.Target, Size: int64(len(in.Target))}}
	m.next++
	if dir.row.Mode&unix.S_ISGID != 0 {
		n.row.GID = dir.row.GID
	}
	if isDir(in.Mode) {
		n.names = map[string]Ino{}
		n.row.Nlink = 2
		n.row.Mode |= dir.row.Mode & unix.S_ISGID
	}
	return n
}

func (m *model) create(parent Ino, name string, in NewInode) (Ino, error) {
	dir, err := m.dir(parent)
	if err != nil {
		return 0, err
	}
	if dir.names[name] != 0 {
		return 0, ErrExist
	}
	n := m.fresh(dir, in)
	dir.names[name] = n.row.Ino
	if n.names != nil {
		dir.row.Nlink++
	}
	m.touch(dir)
	m.set(dir)
	m.set(n)
	return n.row.Ino, nil
}

func (m *model) tmpfile(parent Ino, in NewInode) (Ino, error) {
	dir, err := m.dir(parent)
	if err != nil {
		return 0, err
	}
	n := m.fresh(dir, in)
	n.row.Nlink = 0
	m.live[n.row.Ino] = n
	return n.row.Ino, nil
}

func (m *model) link(ino, parent Ino, name string) error {
	dir, err := m.dir(parent)
	if err != nil {
		return err
	}
	if m.live[ino] == nil {
		return ErrStale
	}
	n := m.get(ino)
	switch {
	case n.names != nil:
		return ErrPerm
	case dir.names[name] != 0:
		return ErrExist
	}
	n.row.Nlink++
	n.row.Parent, n.row.Ctime = parent, m.now
	dir.names[name] = ino
	m.touch(dir)
	m.set(dir)
	m.set(n)
	return nil
}

func (m *model) drop(n *mnode) {
	if n.row.Nlink--; n.names != nil {
		n.row.Nlink = 0
	}
	n.row.Ctime = m.now
	m.set(n)
}

func (m *model) remove(parent Ino, name string, rmdir bool) error {
	dir, err := m.dir(parent)
	if err != nil {
		return err
	}
	if dir.names[name] == 0 {
		return ErrNotExist
	}
	n := m.get(dir.names[name])
	switch {
	case !rmdir && n.names != nil:
		return ErrIsDir
	case rmdir && n.names == nil:
		return ErrNotDir
	case rmdir && len(n.names) > 0:
		return ErrNotEmpty
	case rmdir:
		dir.row.Nlink--
	}
	delete(dir.names, name)
	m.touch(dir)
	m.set(dir)
	m.drop(n)
	return nil
}

func (m *model) below(ino, top Ino) bool {
	for ; ino != Root; ino = m.live[ino].row.Parent {
		if ino == top {
			return true
		}
	}
	return false
}

func (m *model) rename(oldParent Ino, oldName string, newParent Ino, newName string, flags uint) error {
	from, err := m.dir(oldParent)
	if err != nil {
		return err
	}
	to, err := m.dir(newParent)
	if err != nil {
		return err
	}
	if oldParent == newParent {
		to = from
	}
	a, b := from.names[oldName], to.names[newName]
	switch {
	case a == 0:
		return ErrNotExist
	case flags == RenameNoReplace && b != 0:
		return ErrExist
	case flags == RenameExchange && b == 0:
		return ErrNotExist
	case a == b:
		return nil
	}
	x := m.get(a)
	var y *mnode
	if b != 0 {
		y = m.get(b)
	}
	if x.names != nil && m.below(newParent, a) || flags == RenameExchange && y.names != nil && m.below(oldParent, b) {
		return ErrInvalid
	}
	if y != nil && flags != RenameExchange {
		switch {
		case x.names != nil && y.names == nil:
			return ErrNotDir
		case x.names == nil && y.names != nil:
			return ErrIsDir
		case len(y.names) > 0:
			return ErrNotEmpty
		}
	}
	delete(from.names, oldName)
	to.names[newName] = a
	if x.names != nil {
		from.row.Nlink--
		to.row.Nlink++
	}
	if y != nil && y.names != nil {
		to.row.Nlink--
	}
	if flags == RenameExchange {
		from.names[oldName] = b
		if y.names != nil {
			from.row.Nlink++
		}
		y.row.Parent, y.row.Ctime = oldParent, m.now
		m.set(y)
	} else if y != nil {
		m.drop(y)
	}
	x.row.Parent, x.row.Ctime = newParent, m.now
	m.touch(from)
	m.touch(to)
	m.set(from)
	m.set(to)
	m.set(x)
	return nil
}

func (m *model) setattr(ino Ino, ch Change, deferred bool) error {
	if m.live[ino] == nil {
		return ErrStale
	}
	n := m.get(ino)
	if !deferred {
		n.row.Ctime = m.now
	}
	ch.apply(&n.row)
	if deferred {
		m.live[ino] = n
	} else {
		m.set(n)
	}
	return nil
}

func (m *model) setxattr(ino Ino, name string, value *string, flags uint) error {
	if m.live[ino] == nil {
		return ErrStale
	}
	n := m.get(ino)
	_, have := n.xattrs[name]
	switch {
	case value == nil && !have, flags == XattrReplace && !have:
		return ErrNoXattr
	case flags == XattrCreate && have:
		return ErrExist
	case value == nil:
		delete(n.xattrs, name)
	default:
		if n.xattrs == nil {
			n.xattrs = map[string]string{}
		}
		n.xattrs[name] = *value
	}
	n.row.Ctime = m.now
	m.set(n)
	return nil
}

// commit changes content as bytes.
func (m *model) commit(cm *Commit) error {
	n := m.live[cm.Ino]
	switch {
	case n == nil:
		return ErrStale
	case n.names != nil:
		return ErrIsDir
	case n.row.Mode&typeMask != unix.S_IFREG:
		return ErrInvalid
	}
	n = n.clone()
	for _, b := range cm.Blobs {
		if b.Body != nil {
			m.blobs[sha256.Sum256(b.Body)] = b.Body
		}
	}
	buf := make([]byte, max(int64(len(n.content)), cm.Size))
	copy(buf, n.content)
	zero := func(from, to int64) {
		for i := from; i < min(to, int64(len(buf))); i++ {
			buf[i] = 0
		}
	}
	zero(cm.Splice.Cut, int64(len(buf)))
	for _, h := range cm.Splice.Holes {
		zero(h.Off, h.Off+h.Len)
	}
	for _, e := range cm.Splice.Extents {
		copy(buf[e.Off:e.Off+e.Len], m.blobs[e.Blob.Hash][e.BlobOff:])
	}
	n.content = buf[:cm.Size]
	n.row.Size = cm.Size
	cm.Change.apply(&n.row)
	if cm.NewVersion {
		n.row.Ver++
	}
	m.set(n)
	return nil
}
