package catalog

import (
	"context"
	"fmt"
)

// maxDepth bounds a walk to the root, which a damaged catalog could make endless.
const maxDepth = 1 << 16

// rename is one Rename in progress.
type rename struct {
	oldParent, newParent Ino
	oldName, newName     string
	oldDir, newDir       Inode
	source, target       nameVal
	moved, replaced      Inode
}

func newRename(oldParent Ino, oldName string, newParent Ino, newName string, flags uint) (*rename, error) {
	for _, name := range []string{oldName, newName} {
		if err := checkName(name); err != nil {
			return nil, err
		}
	}
	if flags&^(RenameNoReplace|RenameExchange) != 0 || flags == RenameNoReplace|RenameExchange {
		return nil, fmt.Errorf("%w: rename flags %#x", ErrInvalid, flags)
	}
	return &rename{oldParent: oldParent, newParent: newParent, oldName: oldName, newName: newName}, nil
}

// Rename moves a name, over what newName leads to (RenameNoReplace: ErrExist then), or exchanges both (RenameExchange). It returns the
// replaced inode as it is afterwards, or nil. Two names of one inode: nothing happens. A name keeps its place in the order
// of ReadDir when it is replaced. ErrNotExist, ErrNotDir, ErrIsDir, ErrNotEmpty, and ErrInvalid for a directory into itself.
func (c *Catalog) Rename(ctx context.Context, who Actor, oldParent Ino, oldName string, newParent Ino, newName string, flags uint) (*Inode, error) {
	r, err := newRename(oldParent, oldName, newParent, newName, flags)
	if err != nil {
		return nil, err
	}
	var replaced *Inode
	err = c.mutate(ctx, who, OpRename, func(t *txn) (err error) {
		replaced, err = t.rename(ctx, r, flags)
		return err
	})
	return replaced, err
}

func (t *txn) rename(ctx context.Context, r *rename, flags uint) (replaced *Inode, err error) {
	if err := r.read(ctx, t); err != nil {
		return nil, err
	}
	switch {
	case flags == RenameNoReplace && r.target.ino != 0:
		return nil, ErrExist
	case flags == RenameExchange && r.target.ino == 0:
		return nil, ErrNotExist
	case r.source.ino == r.target.ino:
		return nil, nil
	}
	if err := r.checkLoops(ctx, t, flags == RenameExchange); err != nil {
		return nil, err
	}
	if flags == RenameExchange {
		return nil, r.exchange(ctx, t)
	}
	if r.target.ino != 0 {
		if err := r.checkReplace(ctx, t); err != nil {
			return nil, err
		}
		replaced = &r.replaced
	}
	return replaced, r.move(ctx, t)
}

func (r *rename) read(ctx context.Context, t *txn) (err error) {
	if r.oldDir, err = t.directory(ctx, r.oldParent); err != nil {
		return err
	}
	if r.newDir, err = t.directory(ctx, r.newParent); err != nil {
		return err
	}
	if r.source, err = t.entry(ctx, r.oldParent, r.oldName); err != nil {
		return err
	}
	if r.source.ino == 0 {
		return ErrNotExist
	}
	if r.moved, err = t.inode(ctx, r.source.ino); err != nil {
		return t.c.orphan(r.oldParent, r.oldName, r.source.ino, err)
	}
	if r.target, err = t.entry(ctx, r.newParent, r.newName); err != nil || r.target.ino == 0 {
		return err
	}
	if r.replaced, err = t.inode(ctx, r.target.ino); err != nil {
		return t.c.orphan(r.newParent, r.newName, r.target.ino, err)
	}
	return nil
}

// checkLoops refuses to put a directory below itself.
func (r *rename) checkLoops(ctx context.Context, t *txn, exchange bool) error {
	if r.oldParent == r.newParent {
		return nil
	}
	if isDir(r.moved.Mode) {
		if err := t.checkNotBelow(ctx, r.newDir, r.moved.Ino); err != nil {
			return err
		}
	}
	if exchange && isDir(r.replaced.Mode) {
		return t.checkNotBelow(ctx, r.oldDir, r.replaced.Ino)
	}
	return nil
}

// checkNotBelow is an error when dir is, or is below, the directory top.
func (t *txn) checkNotBelow(ctx context.Context, dir Inode, top Ino) (err error) {
	for range maxDepth {
		switch {
		case dir.Ino == top:
			return fmt.Errorf("%w: a directory cannot be moved into itself", ErrInvalid)
		case dir.Ino == Root:
			return nil
		}
		if dir, err = t.inode(ctx, dir.Parent); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: directory %d is not connected to the root", ErrDamaged, dir.Ino)
}

func (r *rename) checkReplace(ctx context.Context, t *txn) error {
	switch {
	case isDir(r.moved.Mode) && !isDir(r.replaced.Mode):
		return ErrNotDir
	case !isDir(r.moved.Mode) && isDir(r.replaced.Mode):
		return ErrIsDir
	case isDir(r.replaced.Mode):
		return t.checkEmpty(ctx, r.replaced.Ino)
	}
	return nil
}

func (r *rename) move(ctx context.Context, t *txn) error {
	cookie := r.target.cookie
	if r.target.ino == 0 {
		var err error
		if cookie, err = t.newCookie(); err != nil {
			return err
		}
	}
	t.about(ctx, r.newParent, r.newName)
	oldLinks, newLinks := 0, 0
	if isDir(r.moved.Mode) {
		oldLinks, newLinks = -1, +1
		t.c.forgetPaths()
	}
	if r.target.ino != 0 {
		if isDir(r.replaced.Mode) {
			newLinks--
		}
		r.replaced = t.lostName(r.replaced)
		t.set(r.replaced)
	}
	r.moved.Parent, r.moved.Ctime = r.newParent, t.now
	t.set(r.moved)
	r.setDirs(t, oldLinks, newLinks)
	if err := t.unbind(r.oldParent, r.oldName, r.source); err != nil {
		return err
	}
	return t.bind(r.newParent, r.newName, &r.moved, cookie)
}

func (r *rename) exchange(ctx context.Context, t *txn) error {
	t.about(ctx, r.newParent, r.newName)
	oldLinks, newLinks := 0, 0
	if isDir(r.moved.Mode) {
		oldLinks, newLinks = oldLinks-1, newLinks+1
	}
	if isDir(r.replaced.Mode) {
		oldLinks, newLinks = oldLinks+1, newLinks-1
	}
	t.c.forgetPaths()
	r.moved.Parent, r.moved.Ctime = r.newParent, t.now
	r.replaced.Parent, r.replaced.Ctime = r.oldParent, t.now
	t.set(r.moved)
	t.set(r.replaced)
	r.setDirs(t, oldLinks, newLinks)
	if err := t.bind(r.newParent, r.newName, &r.moved, r.target.cookie); err != nil {
		return err
	}
	return t.bind(r.oldParent, r.oldName, &r.replaced, r.source.cookie)
}

// setDirs writes the rows of the directories, which may be one and the same.
func (r *rename) setDirs(t *txn, oldLinks, newLinks int) {
	if r.oldParent == r.newParent {
		r.oldDir.Nlink += uint32(oldLinks + newLinks)
		t.set(t.touch(r.oldDir))
		return
	}
	r.oldDir.Nlink += uint32(oldLinks)
	r.newDir.Nlink += uint32(newLinks)
	t.set(t.touch(r.oldDir))
	t.set(t.touch(r.newDir))
}
