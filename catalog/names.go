package catalog

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	typeMask = unix.S_IFMT
	permMask = 0o7777
)

func unixTime(t Timestamp) time.Time { return time.Unix(0, t).UTC() }

// Get returns the newest row of an inode, also of one that was removed (Nlink 0). ErrStale when the number was never used.
func (c *Catalog) Get(ctx context.Context, ino Ino) (row Inode, err error) {
	err = c.steady(func() (bool, error) {
		c.mu.RLock()
		n, gen := c.inodes.get(ino), c.gen
		if n != nil {
			row = n.val.row
		}
		c.mu.RUnlock()
		if n != nil {
			return true, nil
		}
		if ino == 0 || ino >= maxIno {
			return true, ErrStale
		}
		var ok bool
		row, ok, err = loadInode(ctx, c.db, ino, Head)
		if err != nil {
			return true, c.readFailed("read an inode", err)
		}
		c.opt.reached(stageRead)
		c.mu.Lock()
		defer c.mu.Unlock()
		if n := c.inodes.get(ino); n != nil {
			row = n.val.row
			return true, nil
		}
		if gen != c.gen {
			return false, nil
		}
		if !ok {
			return true, ErrStale
		}
		c.inodes.add(ino, inodeVal{row: row})
		return true, nil
	})
	if err != nil {
		return Inode{}, err
	}
	return row, nil
}

// Lookup returns the inode that a name leads to. "." and ".." are understood. ErrNotExist, ErrNotDir, ErrNameTooLong, or
// ErrStale when parent was never used.
func (c *Catalog) Lookup(ctx context.Context, parent Ino, name string) (Inode, error) {
	c.mu.RLock()
	if n := c.names.get(nameKey{parent, name}); n != nil {
		if n.val.ino == 0 {
			if p := c.inodes.get(parent); p != nil && isDir(p.val.row.Mode) {
				c.mu.RUnlock()
				return Inode{}, ErrNotExist
			}
		} else if i := c.inodes.get(n.val.ino); i != nil {
			row := i.val.row
			c.mu.RUnlock()
			return row, nil
		}
	} else if !c.closed && c.absent(parent, name) && checkName(name) == nil {
		c.mu.RUnlock()
		return Inode{}, ErrNotExist
	}
	c.mu.RUnlock()
	return c.lookupSlow(ctx, parent, name)
}

func (c *Catalog) lookupSlow(ctx context.Context, parent Ino, name string) (Inode, error) {
	dir, err := c.Get(ctx, parent)
	if err != nil {
		return Inode{}, err
	}
	if !isDir(dir.Mode) {
		return Inode{}, ErrNotDir
	}
	switch name {
	case ".":
		return dir, nil
	case "..":
		return c.Get(ctx, dir.Parent)
	}
	if err := checkName(name); err != nil {
		return Inode{}, err
	}
	var row Inode
	err = c.steady(func() (done bool, err error) {
		row, done, err = c.lookupOnce(ctx, parent, name)
		return done, err
	})
	return row, err
}

// lookupOnce is false when the name or the inode changed while they were read one after the other.
func (c *Catalog) lookupOnce(ctx context.Context, parent Ino, name string) (row Inode, done bool, err error) {
	key := nameKey{parent, name}
	c.mu.RLock()
	n, gen := c.names.get(key), c.gen
	var v nameVal
	if n != nil {
		v = n.val
	}
	c.mu.RUnlock()
	if n == nil {
		if v, err = loadName(ctx, c.db, parent, name, Head); err != nil {
			return Inode{}, true, c.readFailed("read a name", err)
		}
	}
	if v.ino != 0 {
		if row, err = c.Get(ctx, v.ino); err != nil {
			return Inode{}, true, c.orphan(parent, name, v.ino, err)
		}
	}
	c.opt.reached(stageRead)
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.names.get(key)
	if gen != c.gen || now != nil && now.val != v {
		return Inode{}, false, ctx.Err()
	}
	if now == nil {
		c.names.add(key, v)
	}
	if v.ino == 0 {
		return Inode{}, true, ErrNotExist
	}
	if i := c.inodes.get(v.ino); i != nil {
		row = i.val.row
		if row.Parent == parent {
			i.val.name = name
		}
	}
	return row, true, nil
}

// orphan explains that a name leads to an inode that is not there.
func (c *Catalog) orphan(parent Ino, name string, ino Ino, err error) error {
	if !errors.Is(err, ErrStale) {
		return err
	}
	return fmt.Errorf("%w: %q in directory %d leads to inode %d, which has no row; check the store", ErrDamaged, name, parent, ino)
}

// newInode lays out a new inode in dir, and checks what was asked for.
func (t *txn) newInode(dir *Inode, n NewInode) (Inode, error) {
	if n.Mode&typeMask == 0 {
		n.Mode |= unix.S_IFREG
	}
	if n.Mode&^uint32(typeMask|permMask) != 0 {
		return Inode{}, fmt.Errorf("%w: mode %#o", ErrInvalid, n.Mode)
	}
	row := Inode{Parent: dir.Ino, Mode: n.Mode, UID: n.UID, GID: n.GID, Nlink: 1, Atime: t.now, Mtime: t.now, Ctime: t.now, Btime: t.now}
	switch n.Mode & typeMask {
	case unix.S_IFREG, unix.S_IFIFO, unix.S_IFSOCK:
	case unix.S_IFDIR:
		row.Nlink = 2
	case unix.S_IFCHR, unix.S_IFBLK:
		row.Rdev = n.Rdev
	case unix.S_IFLNK:
		if n.Target == "" || strings.IndexByte(n.Target, 0) >= 0 {
			return Inode{}, fmt.Errorf("%w: %q cannot be the target of a symbolic link", ErrInvalid, n.Target)
		}
		if len(n.Target) > MaxSymlink {
			return Inode{}, fmt.Errorf("%w: the target of a symbolic link has %d bytes, the bound is %d", ErrNameTooLong, len(n.Target), MaxSymlink)
		}
		row.Target, row.Size = n.Target, int64(len(n.Target))
	default:
		return Inode{}, fmt.Errorf("%w: mode %#o names no file type", ErrInvalid, n.Mode)
	}
	if row.Mode&typeMask != unix.S_IFLNK && n.Target != "" {
		return Inode{}, fmt.Errorf("%w: only a symbolic link has a target", ErrInvalid)
	}
	if dir.Mode&unix.S_ISGID != 0 {
		row.GID = dir.GID
		if isDir(row.Mode) {
			row.Mode |= unix.S_ISGID
		}
	}
	ino, err := t.newIno()
	row.Ino = ino
	return row, err
}

func createOp(mode uint32) Op {
	switch mode & typeMask {
	case unix.S_IFDIR:
		return OpMkdir
	case unix.S_IFLNK:
		return OpSymlink
	case unix.S_IFREG, 0:
		return OpCreate
	}
	return OpMknod
}

// Init makes the root directory of a new store; ErrExist when there is one.
func (c *Catalog) Init(ctx context.Context, who Actor, n NewInode) error {
	return c.mutate(ctx, who, OpInit, func(t *txn) error {
		if _, err := t.inode(ctx, Root); !errors.Is(err, ErrStale) {
			if err == nil {
				err = fmt.Errorf("%w: the store has a root directory", ErrExist)
			}
			return err
		}
		t.p.rec.Path = "/"
		t.set(Inode{Ino: Root, Parent: Root, Mode: unix.S_IFDIR | n.Mode&permMask, UID: n.UID, GID: n.GID, Nlink: 2,
			Atime: t.now, Mtime: t.now, Ctime: t.now, Btime: t.now})
		return nil
	})
}

// Create makes an inode of the type in n.Mode, with one name. In a set-gid directory it takes over the group, a directory the
// bit too. ErrExist, ErrNotDir, ErrNotExist (parent was removed), ErrNameTooLong, ErrInvalid.
func (c *Catalog) Create(ctx context.Context, who Actor, parent Ino, name string, n NewInode) (Inode, error) {
	if err := checkName(name); err != nil {
		return Inode{}, err
	}
	var row Inode
	err := c.mutate(ctx, who, createOp(n.Mode), func(t *txn) (err error) {
		row, err = t.create(ctx, parent, name, n)
		return err
	})
	if err != nil {
		return Inode{}, err
	}
	return row, nil
}

func (t *txn) create(ctx context.Context, parent Ino, name string, n NewInode) (Inode, error) {
	dir, err := t.freeName(ctx, parent, name)
	if err != nil {
		return Inode{}, err
	}
	row, err := t.newInode(&dir, n)
	if err != nil {
		return Inode{}, err
	}
	cookie, err := t.newCookie()
	if err != nil {
		return Inode{}, err
	}
	dir = t.touch(dir)
	if isDir(row.Mode) {
		dir.Nlink++
	}
	t.about(ctx, parent, name)
	t.set(row)
	t.set(dir)
	return row, t.bind(parent, name, &row, cookie)
}

// freeName returns the row of a directory in which a name can be made; ErrExist when it is taken.
func (t *txn) freeName(ctx context.Context, parent Ino, name string) (Inode, error) {
	dir, err := t.directory(ctx, parent)
	if err != nil {
		return dir, err
	}
	have, err := t.entry(ctx, parent, name)
	if err == nil && have.ino != 0 {
		err = ErrExist
	}
	return dir, err
}

// CreateTmpfile makes an inode without a name, in memory only: the first Commit, SetAttr, SetXattr or Link writes it. The
// caller tells of its last close by ForgetTmpfile.
func (c *Catalog) CreateTmpfile(ctx context.Context, who Actor, parent Ino, n NewInode) (Inode, error) {
	if t := n.Mode & typeMask; t != 0 && t != unix.S_IFREG {
		return Inode{}, fmt.Errorf("%w: only a regular file can be made without a name", ErrInvalid)
	}
	var row Inode
	err := c.mutate(ctx, who, OpCreate, func(t *txn) error {
		dir, err := t.directory(ctx, parent)
		if err != nil {
			return err
		}
		if row, err = t.newInode(&dir, n); err != nil {
			return err
		}
		row.Nlink = 0
		c.mu.Lock()
		c.nextIno = row.Ino + 1
		c.inodes.hold(row.Ino).val = inodeVal{row: row}
		c.xattrs.add(row.Ino, c.noXattrs)
		c.unwritten[row.Ino] = struct{}{}
		c.mu.Unlock()
		return nil
	})
	if err != nil {
		return Inode{}, err
	}
	return row, nil
}

// ForgetTmpfile lets go of an inode made by CreateTmpfile that was never written; any other inode is left alone.
func (c *Catalog) ForgetTmpfile(ino Ino) {
	c.order.Lock()
	defer c.order.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.unwritten[ino]; ok {
		delete(c.unwritten, ino)
		delete(c.deferred, ino)
		c.inodes.remove(ino)
		c.xattrs.remove(ino)
	}
}

// Link gives an inode one more name. ErrPerm for a directory, ErrNotExist for an inode whose last name was removed,
// ErrTooManyLink, and as Create.
func (c *Catalog) Link(ctx context.Context, who Actor, ino Ino, parent Ino, name string) (Inode, error) {
	if err := checkName(name); err != nil {
		return Inode{}, err
	}
	var row Inode
	err := c.mutate(ctx, who, OpLink, func(t *txn) (err error) {
		row, err = t.link(ctx, ino, parent, name)
		return err
	})
	if err != nil {
		return Inode{}, err
	}
	return row, nil
}

func (t *txn) link(ctx context.Context, ino, parent Ino, name string) (Inode, error) {
	if _, err := t.directory(ctx, parent); err != nil {
		return Inode{}, err
	}
	row, err := t.inode(ctx, ino)
	switch {
	case err != nil:
		return Inode{}, err
	case isDir(row.Mode):
		return Inode{}, ErrPerm
	case row.Nlink >= MaxLinks:
		return Inode{}, ErrTooManyLink
	}
	dir, err := t.freeName(ctx, parent, name)
	if err != nil {
		return Inode{}, err
	}
	cookie, err := t.newCookie()
	if err != nil {
		return Inode{}, err
	}
	row.Nlink++
	row.Parent, row.Ctime = parent, t.now
	t.about(ctx, parent, name)
	t.set(row)
	t.set(t.touch(dir))
	return row, t.bind(parent, name, &row, cookie)
}

// Unlink removes a name of anything but a directory and returns the inode as it is afterwards. ErrNotExist, ErrIsDir, ErrNotDir.
func (c *Catalog) Unlink(ctx context.Context, who Actor, parent Ino, name string) (Inode, error) {
	return c.removeName(ctx, who, parent, name, OpUnlink)
}

// Rmdir removes an empty directory. ErrNotExist, ErrNotDir, ErrNotEmpty.
func (c *Catalog) Rmdir(ctx context.Context, who Actor, parent Ino, name string) error {
	_, err := c.removeName(ctx, who, parent, name, OpRmdir)
	return err
}

func (c *Catalog) removeName(ctx context.Context, who Actor, parent Ino, name string, op Op) (Inode, error) {
	if err := checkName(name); err != nil {
		return Inode{}, err
	}
	var row Inode
	err := c.mutate(ctx, who, op, func(t *txn) (err error) {
		row, err = t.removeName(ctx, parent, name, op)
		return err
	})
	if err != nil {
		return Inode{}, err
	}
	return row, nil
}

func (t *txn) removeName(ctx context.Context, parent Ino, name string, op Op) (Inode, error) {
	dir, err := t.directory(ctx, parent)
	if err != nil {
		return Inode{}, err
	}
	v, err := t.entry(ctx, parent, name)
	if err != nil {
		return Inode{}, err
	}
	if v.ino == 0 {
		return Inode{}, ErrNotExist
	}
	row, err := t.inode(ctx, v.ino)
	if err != nil {
		return Inode{}, t.c.orphan(parent, name, v.ino, err)
	}
	switch {
	case op == OpUnlink && isDir(row.Mode):
		return Inode{}, ErrIsDir
	case op == OpRmdir && !isDir(row.Mode):
		return Inode{}, ErrNotDir
	case op == OpRmdir:
		if err := t.checkEmpty(ctx, row.Ino); err != nil {
			return Inode{}, err
		}
		dir.Nlink--
	}
	t.about(ctx, parent, name)
	row = t.lostName(row)
	t.set(row)
	t.set(t.touch(dir))
	return row, t.unbind(parent, name, v)
}

// lostName is the row of an inode after one of its names went; a directory has but one.
func (t *txn) lostName(row Inode) Inode {
	if isDir(row.Mode) || row.Nlink == 0 {
		row.Nlink = 0
		t.c.forgetPaths()
	} else {
		row.Nlink--
	}
	row.Ctime = t.now
	return row
}
