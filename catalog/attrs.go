package catalog

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// apply sets what ch names in row.
func (ch *Change) apply(row *Inode) {
	if ch.Mode != nil {
		row.Mode = row.Mode&typeMask | *ch.Mode&permMask
	}
	if ch.UID != nil {
		row.UID = *ch.UID
	}
	if ch.GID != nil {
		row.GID = *ch.GID
	}
	for _, t := range []struct{ to, from *Timestamp }{{&row.Atime, ch.Atime}, {&row.Mtime, ch.Mtime}, {&row.Ctime, ch.Ctime}} {
		if t.from != nil {
			*t.to = *t.from
		}
	}
}

// SetAttr sets attributes and returns the row as it is afterwards. ErrStale.
func (c *Catalog) SetAttr(ctx context.Context, who Actor, ino Ino, ch Change) (Inode, error) {
	var row Inode
	err := c.mutate(ctx, who, OpSetattr, func(t *txn) (err error) {
		row, err = t.setAttr(ctx, ino, ch)
		return err
	})
	if err != nil {
		return Inode{}, err
	}
	return row, nil
}

func (t *txn) setAttr(ctx context.Context, ino Ino, ch Change) (Inode, error) {
	row, err := t.inode(ctx, ino)
	if err != nil {
		return row, err
	}
	row.Ctime = t.now
	ch.apply(&row)
	t.aboutInode(ctx, &row)
	t.set(row)
	return row, nil
}

// pathOfInode is pathOf for an inode that has no name of its own in the operation.
func (c *Catalog) pathOfInode(ctx context.Context, row *Inode) string {
	if row.Ino == Root {
		return "/"
	}
	if row.Nlink == 0 {
		return ""
	}
	parent, name, err := c.nameOf(ctx, row)
	if err != nil {
		return ""
	}
	return c.pathOf(ctx, parent, name)
}

// SetAttrDeferred sets times (Atime, Mtime, Ctime; the rest of ch is ErrInvalid) in memory only. The next record with the
// inode's row carries them, and Sync and Close write what is left; a killed process loses them.
func (c *Catalog) SetAttrDeferred(ctx context.Context, ino Ino, ch Change) error {
	if ch.Mode != nil || ch.UID != nil || ch.GID != nil {
		return fmt.Errorf("%w: only times can be deferred", ErrInvalid)
	}
	if err := c.admit(ctx); err != nil {
		return err
	}
	c.order.Lock()
	defer c.order.Unlock()
	row, err := c.current(ctx, ino)
	if err != nil {
		return err
	}
	ch.apply(&row)
	c.mu.Lock()
	closed := c.closed
	if !closed {
		c.inodes.hold(ino).val.row = row
		c.deferred[ino] = struct{}{}
	}
	many := len(c.deferred) > maxDeferred
	c.mu.Unlock()
	if closed {
		return ErrClosed
	}
	if many {
		return c.writeDeferred(ctx)
	}
	return nil
}

// deferredStep is how many inodes' times go into one record.
const deferredStep = 256

// writeDeferred writes the times that no record holds yet, many inodes to a record: after a rename or an unlink the kernel tells of the
// times of each inode once more. The caller holds order.
func (c *Catalog) writeDeferred(ctx context.Context) error {
	c.mu.RLock()
	inos := slices.Sorted(maps.Keys(c.deferred))
	inos = slices.DeleteFunc(inos, func(ino Ino) bool {
		_, tmp := c.unwritten[ino]
		return tmp
	})
	c.mu.RUnlock()
	for some := range slices.Chunk(inos, deferredStep) {
		err := c.mutateLocked(Actor{Program: "holdfast"}, OpSetattr, func(t *txn) error {
			for _, ino := range some {
				row, err := t.c.current(ctx, ino)
				if err != nil {
					return err
				}
				if t.p.rec.Path == "" {
					t.p.rec.Path = c.pathOfInode(ctx, &row)
				}
				t.p.rec.Inodes = append(t.p.rec.Inodes, row)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// xattrsOf returns the newest attributes of an inode.
func (c *Catalog) xattrsOf(ctx context.Context, ino Ino) (set *xattrSet, err error) {
	err = c.steady(func() (bool, error) {
		c.mu.RLock()
		n, gen := c.xattrs.get(ino), c.gen
		if n != nil {
			set = n.val
		}
		c.mu.RUnlock()
		if n != nil {
			return true, nil
		}
		if _, err := c.Get(ctx, ino); err != nil {
			return true, err
		}
		m, err := loadXattrs(ctx, c.db, ino, Head)
		if err != nil {
			return true, c.readFailed("read attributes", err)
		}
		c.opt.reached(stageRead)
		c.mu.Lock()
		defer c.mu.Unlock()
		if n := c.xattrs.get(ino); n != nil {
			set = n.val
			return true, nil
		}
		if gen != c.gen {
			return false, nil
		}
		set = c.noXattrs
		if len(m) > 0 {
			set = newXattrSet(m)
		}
		c.xattrs.add(ino, set)
		return true, nil
	})
	return set, err
}

// GetXattr returns the value of an extended attribute; ErrNoXattr when there is none. The caller may not change it.
func (c *Catalog) GetXattr(ctx context.Context, ino Ino, name string) ([]byte, error) {
	set, err := c.xattrsOf(ctx, ino)
	if err != nil {
		return nil, err
	}
	v, ok := set.get(name)
	if !ok {
		return nil, ErrNoXattr
	}
	return v, nil
}

// ListXattr returns the names of the extended attributes, sorted.
func (c *Catalog) ListXattr(ctx context.Context, ino Ino) ([]string, error) {
	set, err := c.xattrsOf(ctx, ino)
	if err != nil {
		return nil, err
	}
	return set.m.Keys(), nil
}

// SetXattr sets an extended attribute. Flags: XattrCreate (ErrExist when it is there), XattrReplace (ErrNoXattr when it is not).
// ErrTooBig for a value over MaxXattr or attributes over MaxXattrs together, ErrInvalid for a level that is none.
func (c *Catalog) SetXattr(ctx context.Context, who Actor, ino Ino, name string, value []byte, flags uint) error {
	if err := checkXattr(name, value, flags); err != nil {
		return err
	}
	return c.mutate(ctx, who, OpSetxattr, func(t *txn) error { return t.setXattr(ctx, ino, name, value, flags) })
}

func checkXattr(name string, value []byte, flags uint) error {
	switch {
	case len(name) > MaxName:
		return ErrNameTooLong
	case name == "" || strings.IndexByte(name, 0) >= 0:
		return fmt.Errorf("%w: %q cannot be the name of an attribute", ErrInvalid, name)
	case len(value) > MaxXattr:
		return fmt.Errorf("%w: attribute %s has %d bytes, the bound is %d", ErrTooBig, name, len(value), MaxXattr)
	case flags > XattrReplace:
		return fmt.Errorf("%w: attribute flags %#x", ErrInvalid, flags)
	case name == LevelXattr && !validLevel(string(value)):
		return fmt.Errorf("%w: %s must be %s, %s or %s, not %q", ErrInvalid, name, LevelBasic, LevelAdvanced, LevelCritical, value)
	case name == StrictXattr && string(value) != "0" && string(value) != "1":
		return fmt.Errorf("%w: %s must be 1 or 0, not %q", ErrInvalid, name, value)
	}
	return nil
}

func (t *txn) setXattr(ctx context.Context, ino Ino, name string, value []byte, flags uint) error {
	value = append(make([]byte, 0, len(value)), value...)
	return t.changeXattr(ctx, ino, func(set *xattrSet) (Xattr, error) {
		old, ok := set.get(name)
		switch {
		case ok && flags == XattrCreate:
			return Xattr{}, ErrExist
		case !ok && flags == XattrReplace:
			return Xattr{}, ErrNoXattr
		}
		total := set.bytes + len(name) + len(value)
		if ok {
			total -= len(name) + len(old)
		}
		if total > MaxXattrs {
			return Xattr{}, fmt.Errorf("%w: the attributes of one file may take %d bytes together", ErrTooBig, MaxXattrs)
		}
		return Xattr{Ino: ino, Name: name, Value: value}, nil
	})
}

// RemoveXattr removes an extended attribute; ErrNoXattr when there is none.
func (c *Catalog) RemoveXattr(ctx context.Context, who Actor, ino Ino, name string) error {
	return c.mutate(ctx, who, OpSetxattr, func(t *txn) error { return t.removeXattr(ctx, ino, name) })
}

func (t *txn) removeXattr(ctx context.Context, ino Ino, name string) error {
	return t.changeXattr(ctx, ino, func(set *xattrSet) (Xattr, error) {
		if _, ok := set.get(name); !ok {
			return Xattr{}, ErrNoXattr
		}
		return Xattr{Ino: ino, Name: name}, nil
	})
}

func (t *txn) changeXattr(ctx context.Context, ino Ino, fn func(*xattrSet) (Xattr, error)) error {
	row, err := t.inode(ctx, ino)
	if err != nil {
		return err
	}
	set, err := t.xattrs(ctx, ino)
	if err != nil {
		return err
	}
	x, err := fn(set)
	if err != nil {
		return err
	}
	row.Ctime = t.now
	t.aboutInode(ctx, &row)
	t.putXattr(set, x)
	t.set(row)
	return nil
}

func validLevel(s string) bool { return s == LevelBasic || s == LevelAdvanced || s == LevelCritical }

// Level returns the integrity level that holds for an inode: its own, else that of the nearest directory above that has one,
// else LevelBasic.
func (c *Catalog) Level(ctx context.Context, ino Ino) (string, error) {
	if level, ok := c.levelCached(ino); ok {
		return level, nil
	}
	for range maxDepth {
		set, err := c.xattrsOf(ctx, ino)
		if err != nil {
			return "", err
		}
		if v, _ := set.get(LevelXattr); validLevel(string(v)) {
			return string(v), nil
		}
		if ino == Root {
			return LevelBasic, nil
		}
		row, err := c.Get(ctx, ino)
		if err != nil {
			return "", err
		}
		ino = row.Parent
	}
	return "", fmt.Errorf("%w: inode %d is not connected to the root", ErrDamaged, ino)
}

// levelCached is Level as far as memory knows.
func (c *Catalog) levelCached(ino Ino) (string, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for range maxDepth {
		set, row := c.xattrs.get(ino), c.inodes.get(ino)
		if set == nil || row == nil {
			return "", false
		}
		if v, _ := set.val.get(LevelXattr); validLevel(string(v)) {
			return string(v), true
		}
		if ino == Root {
			return LevelBasic, true
		}
		ino = row.val.row.Parent
	}
	return "", false
}
