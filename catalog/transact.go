package catalog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"holdfast/blobstore"
)

// Tx is one record in the making: many changes that take effect together. Each sees what those before it left. It is used by one goroutine, and
// only inside the function given to Transact.
type Tx struct{ t *txn }

// changes is what a Tx has changed so far, beyond the rows that its record has already.
type changes struct {
	firstNew  Ino         // numbers from here on are the Tx's own inodes
	rows      map[Ino]int // places in Record.Inodes
	names     map[nameKey]*nameChange
	dirs      map[Ino][]string  // names that were changed, in the order of their first change
	order     []nameKey         // the same over all directories
	xattrs    map[Ino]*xattrSet // of inodes whose attributes were changed, as they are now
	xattrRows map[xattrKey]int  // places in Record.Xattrs
	committed map[Ino]struct{}  // inodes whose content was changed
	pinned    []blobstore.Hash  // until the record is written
	err       error             // why the record cannot be written any more
}

type xattrKey struct {
	ino  Ino
	name string
}

// nameChange is where a name led before the Tx, and where it leads now.
type nameChange struct{ was, now nameVal }

// Transact makes one record of all the changes that fn makes by its Tx: either all of them take effect, at once and in one record of the journal, or, when
// fn or anything else fails, none does. It survives a killed process on return and a power cut after Sync. fn may read the catalog, which
// then shows the state before the record, and must not change it in another way; no other change happens while it runs. No changes, no record:
// the number returned is that of the newest record then. op names the record in the audit trail, and is none of the catalog's own;
// path is its principal object. ErrTooBig when the changes do not fit into one record: make them in parts.
func (c *Catalog) Transact(ctx context.Context, who Actor, op Op, path string, fn func(*Tx) error) (Seq, error) {
	switch op {
	case OpInit, OpCreate, OpMkdir, OpMknod, OpSymlink, OpLink, OpUnlink, OpRmdir, OpRename, OpSetattr, OpSetxattr, OpWrite, OpMerge, OpSnapshot,
		OpConflict, OpPrune, "":
		return 0, fmt.Errorf("%w: %q is not an operation of many changes", ErrInvalid, op)
	}
	if err := c.admit(ctx); err != nil {
		return 0, err
	}
	c.blobGate.RLock() // a Commit among the changes may name blobs that are not durable
	defer c.blobGate.RUnlock()
	c.order.Lock()
	defer c.order.Unlock()
	var many *changes
	defer func() {
		if many != nil {
			c.Unpin(many.pinned...)
		}
	}()
	err := c.mutateLocked(who, op, func(t *txn) error {
		many = &changes{firstNew: t.new, rows: make(map[Ino]int), names: make(map[nameKey]*nameChange), dirs: make(map[Ino][]string),
			xattrs: make(map[Ino]*xattrSet), xattrRows: make(map[xattrKey]int), committed: make(map[Ino]struct{})}
		t.many = many
		t.p.rec.Path = clipPath(path)
		if err := fn(&Tx{t}); err != nil {
			return err
		}
		return t.finish(ctx)
	})
	if err != nil {
		return 0, err
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.last, nil
}

// finish turns the names into rows and counts what came and went.
func (t *txn) finish(ctx context.Context) error {
	if err := errors.Join(t.many.err, t.fits()); err != nil {
		return err
	}
	r := &t.p.rec
	for _, k := range t.many.order {
		switch ch := t.many.names[k]; {
		case ch.was == ch.now:
		case ch.now.ino == 0:
			r.Dentries = append(r.Dentries, Dentry{Parent: k.parent, Name: k.name, Type: ch.was.typ, Cookie: ch.was.cookie})
		default:
			r.Dentries = append(r.Dentries, Dentry{Parent: k.parent, Name: k.name, Ino: ch.now.ino, Type: ch.now.typ, Cookie: ch.now.cookie})
		}
	}
	for i := range r.Inodes {
		row := &r.Inodes[i]
		was := false
		if row.Ino < t.many.firstNew {
			old, err := t.c.current(ctx, row.Ino)
			if err != nil {
				return err
			}
			was = old.Nlink > 0
		}
		n := &r.Delta.Files
		if isDir(row.Mode) {
			n = &r.Delta.Dirs
			t.c.forgetPaths()
		}
		switch {
		case was && row.Nlink == 0:
			*n--
		case !was && row.Nlink > 0:
			*n++
		}
	}
	return nil
}

// fits says whether one record can still hold the changes.
func (t *txn) fits() error {
	r := &t.p.rec
	if max(len(r.Inodes), len(t.many.order), len(r.Xattrs), len(r.Splices), len(r.Blobs)) > MaxRows {
		return fmt.Errorf("%w: more than %d changes of a kind in one transaction; make them in parts, directory by directory", ErrTooBig, MaxRows)
	}
	return nil
}

func (m *changes) entry(ctx context.Context, t *txn, k nameKey) (nameVal, error) {
	if ch := m.names[k]; ch != nil {
		return ch.now, nil
	}
	var was nameVal
	if k.parent < m.firstNew {
		var err error
		if was, err = t.c.currentName(ctx, k.parent, k.name); err != nil {
			return was, err
		}
	}
	return was, nil
}

// bind sets where a name leads. A name that was there before the Tx keeps its place in the order of the directory.
func (m *changes) bind(t *txn, k nameKey, now nameVal) error {
	ch := m.names[k]
	if ch == nil {
		was, err := m.entry(context.Background(), t, k)
		if err != nil {
			m.err = err
			return err
		}
		ch = &nameChange{was: was}
		m.names[k] = ch
		m.order = append(m.order, k)
		m.dirs[k.parent] = append(m.dirs[k.parent], k.name)
	}
	if now.ino != 0 && ch.was.ino != 0 {
		now.cookie = ch.was.cookie
	}
	ch.now = now
	return nil
}

func (m *changes) putXattr(t *txn, set *xattrSet, x Xattr) {
	m.xattrs[x.Ino] = set.with(&x)
	k := xattrKey{x.Ino, x.Name}
	if i, ok := m.xattrRows[k]; ok {
		t.p.rec.Xattrs[i] = x
		return
	}
	m.xattrRows[k] = len(t.p.rec.Xattrs)
	t.p.rec.Xattrs = append(t.p.rec.Xattrs, x)
}

// readDir is Catalog.ReadDir of the state that the changes leave.
func (m *changes) readDir(ctx context.Context, t *txn, dir Ino, after uint64, max int) ([]DirEntry, error) {
	var list []dirChangeAt
	for _, name := range m.dirs[dir] {
		ch := m.names[nameKey{dir, name}]
		cookie := ch.now.cookie
		if ch.was.ino != 0 {
			cookie = ch.was.cookie
		}
		if cookie > after && (ch.was.ino != 0 || ch.now.ino != 0) {
			list = append(list, dirChangeAt{cookie, dirChange{nameVal: ch.now, name: name}})
		}
	}
	slices.SortFunc(list, func(a, b dirChangeAt) int { return cmp.Compare(a.cookie, b.cookie) })
	rows, err := mergeChanges(list, min(max, maxReadDir), func(after uint64, n int) (rows []dirRow, err error) {
		if dir >= m.firstNew {
			return nil, nil
		}
		entries, err := t.c.ReadDir(ctx, dir, after, n)
		for _, e := range entries {
			rows = append(rows, dirRow{DirEntry: e})
		}
		return rows, err
	}, after)
	if err != nil {
		return nil, err
	}
	out := make([]DirEntry, len(rows))
	for i := range rows {
		out[i] = rows[i].DirEntry
		if out[i].Inode, err = t.inode(ctx, out[i].Inode.Ino); err != nil {
			return nil, t.c.orphan(dir, out[i].Name, rows[i].Inode.Ino, err)
		}
	}
	return out, nil
}

// Now is the time of the record, which all that it changes gets.
func (tx *Tx) Now() Timestamp { return tx.t.now }

// Seq is the number that the record gets.
func (tx *Tx) Seq() Seq { return tx.t.seq }

// Get returns the row of an inode; ErrStale.
func (tx *Tx) Get(ctx context.Context, ino Ino) (Inode, error) { return tx.t.inode(ctx, ino) }

// Lookup returns the inode that a name leads to: see Catalog.Lookup.
func (tx *Tx) Lookup(ctx context.Context, parent Ino, name string) (Inode, error) {
	dir, err := tx.t.inode(ctx, parent)
	switch {
	case err != nil:
		return Inode{}, err
	case !isDir(dir.Mode):
		return Inode{}, ErrNotDir
	case name == ".":
		return dir, nil
	case name == "..":
		return tx.t.inode(ctx, dir.Parent)
	}
	if err := checkName(name); err != nil {
		return Inode{}, err
	}
	v, err := tx.t.entry(ctx, parent, name)
	if err == nil && v.ino == 0 {
		err = ErrNotExist
	}
	if err != nil {
		return Inode{}, err
	}
	row, err := tx.t.inode(ctx, v.ino)
	if err != nil {
		return Inode{}, tx.t.c.orphan(parent, name, v.ino, err)
	}
	return row, nil
}

// ReadDir is Catalog.ReadDir.
func (tx *Tx) ReadDir(ctx context.Context, dir Ino, after uint64, max int) ([]DirEntry, error) {
	row, err := tx.t.inode(ctx, dir)
	if err == nil && !isDir(row.Mode) {
		err = ErrNotDir
	}
	if err != nil {
		return nil, err
	}
	return tx.t.many.readDir(ctx, tx.t, dir, after, max)
}

// Xattrs returns the extended attributes of an inode, which the caller may not change.
func (tx *Tx) Xattrs(ctx context.Context, ino Ino) (map[string][]byte, error) {
	if _, err := tx.t.inode(ctx, ino); err != nil {
		return nil, err
	}
	set, err := tx.t.xattrs(ctx, ino)
	if err != nil {
		return nil, err
	}
	return set.all(), nil
}

// Create makes an inode with one name: see Catalog.Create.
func (tx *Tx) Create(ctx context.Context, parent Ino, name string, n NewInode) (Inode, error) {
	if err := checkName(name); err != nil {
		return Inode{}, err
	}
	row, err := tx.t.create(ctx, parent, name, n)
	return row, errors.Join(err, tx.t.fits())
}

// Link gives an inode one more name: see Catalog.Link.
func (tx *Tx) Link(ctx context.Context, ino, parent Ino, name string) (Inode, error) {
	if err := checkName(name); err != nil {
		return Inode{}, err
	}
	row, err := tx.t.link(ctx, ino, parent, name)
	return row, errors.Join(err, tx.t.fits())
}

// Revive gives an inode that lost its last name a name again, a directory too, which is empty then. ErrExist when the inode has a name or the
// name is taken, and as Catalog.Link.
func (tx *Tx) Revive(ctx context.Context, ino, parent Ino, name string) (Inode, error) {
	t := tx.t
	if err := checkName(name); err != nil {
		return Inode{}, err
	}
	row, err := t.inode(ctx, ino)
	switch {
	case err != nil:
		return Inode{}, err
	case row.Nlink > 0:
		return Inode{}, fmt.Errorf("inode %d: %w: it has a name", ino, ErrExist)
	case !isDir(row.Mode):
		return tx.Link(ctx, ino, parent, name)
	}
	dir, err := t.freeName(ctx, parent, name)
	if err != nil {
		return Inode{}, err
	}
	if err := t.checkNotBelow(ctx, dir, ino); err != nil {
		return Inode{}, err
	}
	cookie, err := t.newCookie()
	if err != nil {
		return Inode{}, err
	}
	row.Nlink, row.Parent, row.Ctime = 2, parent, t.now
	dir = t.touch(dir)
	dir.Nlink++
	t.set(row)
	t.set(dir)
	err = t.bind(parent, name, &row, cookie)
	return row, errors.Join(err, t.fits())
}

// Unlink removes a name of anything but a directory: see Catalog.Unlink.
func (tx *Tx) Unlink(ctx context.Context, parent Ino, name string) (Inode, error) {
	if err := checkName(name); err != nil {
		return Inode{}, err
	}
	row, err := tx.t.removeName(ctx, parent, name, OpUnlink)
	return row, errors.Join(err, tx.t.fits())
}

// Rmdir removes an empty directory: see Catalog.Rmdir.
func (tx *Tx) Rmdir(ctx context.Context, parent Ino, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	_, err := tx.t.removeName(ctx, parent, name, OpRmdir)
	return errors.Join(err, tx.t.fits())
}

// Rename moves a name: see Catalog.Rename.
func (tx *Tx) Rename(ctx context.Context, oldParent Ino, oldName string, newParent Ino, newName string, flags uint) (*Inode, error) {
	r, err := newRename(oldParent, oldName, newParent, newName, flags)
	if err != nil {
		return nil, err
	}
	replaced, err := tx.t.rename(ctx, r, flags)
	return replaced, errors.Join(err, tx.t.fits())
}

// SetAttr sets attributes: see Catalog.SetAttr. All three times can be set, so that a restored file is as it was.
func (tx *Tx) SetAttr(ctx context.Context, ino Ino, ch Change) (Inode, error) {
	row, err := tx.t.setAttr(ctx, ino, ch)
	return row, errors.Join(err, tx.t.fits())
}

// SetXattr sets an extended attribute: see Catalog.SetXattr.
func (tx *Tx) SetXattr(ctx context.Context, ino Ino, name string, value []byte, flags uint) error {
	if err := checkXattr(name, value, flags); err != nil {
		return err
	}
	return errors.Join(tx.t.setXattr(ctx, ino, name, value, flags), tx.t.fits())
}

// RemoveXattr removes an extended attribute; ErrNoXattr.
func (tx *Tx) RemoveXattr(ctx context.Context, ino Ino, name string) error {
	return errors.Join(tx.t.removeXattr(ctx, ino, name), tx.t.fits())
}

// Commit changes the content of a regular file: see Catalog.Commit; once for each file in a transaction, else ErrInvalid. A splice may
// name blobs that any file of the store has or had, which then need not be among cm.Blobs: see Hold.
func (tx *Tx) Commit(ctx context.Context, cm Commit) (Inode, error) {
	if cm.Size < 0 || cm.Size > MaxSize {
		return Inode{}, fmt.Errorf("%w: a file cannot have %d bytes", ErrTooBig, cm.Size)
	}
	if _, twice := tx.t.many.committed[cm.Ino]; twice {
		return Inode{}, fmt.Errorf("%w: the content of inode %d was changed in this transaction already", ErrInvalid, cm.Ino)
	}
	if err := tx.t.c.pinNew(ctx, &cm); err != nil {
		return Inode{}, err
	}
	for i := range cm.Blobs {
		tx.t.many.pinned = append(tx.t.many.pinned, cm.Blobs[i].Ref.Hash)
	}
	row, err := tx.t.commitContent(ctx, &cm)
	if err != nil {
		return Inode{}, err
	}
	tx.t.many.committed[cm.Ino] = struct{}{}
	return row, tx.t.fits()
}

// CreateFile makes a regular file with the content that the extents of another file, now or at an earlier moment, describe: it shares the blobs.
// It has one version.
func (tx *Tx) CreateFile(ctx context.Context, parent Ino, name string, n NewInode, size int64, content []Extent) (Inode, error) {
	n.Mode = n.Mode&permMask | unix.S_IFREG
	row, err := tx.Create(ctx, parent, name, n)
	if err != nil {
		return row, err
	}
	cm := Commit{Ino: row.Ino, Size: size, Splice: Splice{Cut: 0, Extents: content}, NewVersion: true}
	if len(content) == 1 && content[0].Off == 0 && content[0].BlobOff == 0 && content[0].Len == size && content[0].Blob.Size == size {
		cm.Sum = content[0].Blob.Hash
	}
	return tx.Commit(ctx, cm)
}
