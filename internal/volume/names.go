package volume

import (
	"context"

	"golang.org/x/sys/unix"

	"holdfast/catalog"
)

// live puts the size of an open file that has changed into its row.
func (v *Volume) live(row catalog.Inode) catalog.Inode {
	if row.Mode&unix.S_IFMT != unix.S_IFREG {
		return row
	}
	v.mu.RLock()
	f := v.files[row.Ino]
	v.mu.RUnlock()
	if f != nil && f.known.Load() && f.changedSince.Load() != 0 {
		row.Size = f.size.Load()
	}
	return row
}

// Lookup is catalog.Lookup with the live size of an open file.
func (v *Volume) Lookup(ctx context.Context, parent catalog.Ino, name string) (catalog.Inode, error) {
	row, err := v.cat.Lookup(ctx, parent, name)
	return v.live(row), err
}

// Get is catalog.Get with the live size of an open file.
func (v *Volume) Get(ctx context.Context, ino catalog.Ino) (catalog.Inode, error) {
	row, err := v.cat.Get(ctx, ino)
	return v.live(row), err
}

// ReadDir is catalog.ReadDir with the live sizes of open files.
func (v *Volume) ReadDir(ctx context.Context, dir catalog.Ino, after uint64, max int) ([]catalog.DirEntry, error) {
	entries, err := v.cat.ReadDir(ctx, dir, after, max)
	for i := range entries {
		entries[i].Inode = v.live(entries[i].Inode)
	}
	return entries, err
}

// Create makes an inode of the type in n.Mode under a new name.
func (v *Volume) Create(ctx context.Context, who catalog.Actor, parent catalog.Ino, name string, n catalog.NewInode) (catalog.Inode, error) {
	return v.cat.Create(ctx, who, parent, name, n)
}

// CreateFile makes a regular file and opens it. ErrExist when the name is taken.
func (v *Volume) CreateFile(ctx context.Context, who catalog.Actor, parent catalog.Ino, name string, n catalog.NewInode, flags OpenFlags) (catalog.Inode, *Handle, error) {
	row, err := v.cat.Create(ctx, who, parent, name, n)
	if err != nil {
		return row, nil, err
	}
	return row, v.newHandle(who, row.Ino, flags), nil
}

// Tmpfile makes a regular file without a name and opens it; Link gives it one.
func (v *Volume) Tmpfile(ctx context.Context, who catalog.Actor, parent catalog.Ino, n catalog.NewInode, flags OpenFlags) (catalog.Inode, *Handle, error) {
	row, err := v.cat.CreateTmpfile(ctx, who, parent, n)
	if err != nil {
		return row, nil, err
	}
	return row, v.newHandle(who, row.Ino, flags), nil
}

// Link gives an inode one more name.
func (v *Volume) Link(ctx context.Context, who catalog.Actor, ino catalog.Ino, parent catalog.Ino, name string) (catalog.Inode, error) {
	row, err := v.cat.Link(ctx, who, ino, parent, name)
	return v.live(row), err
}

// Unlink takes a name from an inode that is not a directory, and returns the inode as it is then.
func (v *Volume) Unlink(ctx context.Context, who catalog.Actor, parent catalog.Ino, name string) (catalog.Inode, error) {
	row, err := v.cat.Unlink(ctx, who, parent, name)
	return v.live(row), err
}

// Rmdir removes an empty directory.
func (v *Volume) Rmdir(ctx context.Context, who catalog.Actor, parent catalog.Ino, name string) error {
	return v.cat.Rmdir(ctx, who, parent, name)
}

// Rename moves a name; flags are catalog.RenameNoReplace and catalog.RenameExchange. It returns the inode that lost its name by it, if any.
func (v *Volume) Rename(ctx context.Context, who catalog.Actor, oldParent catalog.Ino, oldName string, newParent catalog.Ino, newName string, flags uint) (*catalog.Inode, error) {
	return v.cat.Rename(ctx, who, oldParent, oldName, newParent, newName, flags)
}

// GetXattr returns a value that the caller must not change; ErrNoXattr when there is none of that name.
func (v *Volume) GetXattr(ctx context.Context, ino catalog.Ino, name string) ([]byte, error) {
	return v.cat.GetXattr(ctx, ino, name)
}

// ListXattr returns the names of an inode's extended attributes, sorted.
func (v *Volume) ListXattr(ctx context.Context, ino catalog.Ino) ([]string, error) {
	return v.cat.ListXattr(ctx, ino)
}

// SetXattr sets an extended attribute; flags are catalog.XattrCreate and catalog.XattrReplace.
func (v *Volume) SetXattr(ctx context.Context, who catalog.Actor, ino catalog.Ino, name string, value []byte, flags uint) error {
	return v.cat.SetXattr(ctx, who, ino, name, value, flags)
}

// RemoveXattr removes an extended attribute; ErrNoXattr when there is none of that name.
func (v *Volume) RemoveXattr(ctx context.Context, who catalog.Actor, ino catalog.Ino, name string) error {
	return v.cat.RemoveXattr(ctx, who, ino, name)
}

// SetAttr names the attributes to be set.
type SetAttr struct {
	Mode, UID, GID      *uint32
	Size                *int64
	Atime, Mtime, Ctime *catalog.Timestamp
	Handle              *Handle // an open handle of the inode: a new size is committed by its Flush; nil: at once
	KillPriv            bool    // a new size takes set-uid and set-gid away
}

// SetAttr changes attributes and returns the inode as it is then. A new owner takes set-uid, set-gid and file capabilities from anything but a directory,
// unless the call sets the mode as well. Times alone wait for the next record of the inode where a file is open and has changed, and where the kernel
// passes on the times that it keeps.
func (v *Volume) SetAttr(ctx context.Context, who catalog.Actor, ino catalog.Ino, set SetAttr) (catalog.Inode, error) {
	ch := catalog.Change{Mode: set.Mode, UID: set.UID, GID: set.GID, Atime: set.Atime, Mtime: set.Mtime, Ctime: set.Ctime}
	if set.Size != nil {
		if err := v.resize(ctx, who, ino, set); err != nil {
			return catalog.Inode{}, err
		}
	}
	if set.UID != nil || set.GID != nil {
		if err := v.chownKills(ctx, who, ino, &ch); err != nil {
			return catalog.Inode{}, err
		}
	}
	switch {
	case ch == catalog.Change{}:
		return v.Get(ctx, ino)
	case ch.Mode == nil && ch.UID == nil && ch.GID == nil && (set.Handle != nil || v.hasChanged(ino) || kernelTimes(ch)):
		return v.deferTimes(ctx, ino, ch)
	}
	row, err := v.cat.SetAttr(ctx, who, ino, ch)
	return v.live(row), err
}

// kernelTimes reports whether ch is what the kernel sends, on its own account and some time later, of an inode whose times it keeps: both
// times that a change makes and nothing else. It follows every rename and unlink; programs that set times name the access time as well.
func kernelTimes(ch catalog.Change) bool {
	return ch.Atime == nil && ch.Mtime != nil && ch.Ctime != nil
}

// deferTimes sets times that go into the inode's next record, or into one of their own within a second.
func (v *Volume) deferTimes(ctx context.Context, ino catalog.Ino, ch catalog.Change) (catalog.Inode, error) {
	row, err := v.Get(ctx, ino)
	if err != nil {
		return row, err
	}
	if row.Nlink > 0 || v.isOpen(ino) { // nobody will ask for the times of an inode that is gone
		if err := v.cat.SetAttrDeferred(ctx, ino, ch); err != nil {
			return row, err
		}
		return v.Get(ctx, ino)
	}
	row.Mtime, row.Ctime = *ch.Mtime, *ch.Ctime
	return row, nil
}

func (v *Volume) isOpen(ino catalog.Ino) bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.files[ino] != nil
}

func (v *Volume) hasChanged(ino catalog.Ino) bool {
	v.mu.RLock()
	f := v.files[ino]
	v.mu.RUnlock()
	return f != nil && f.changedSince.Load() != 0
}

func (v *Volume) chownKills(ctx context.Context, who catalog.Actor, ino catalog.Ino, ch *catalog.Change) error {
	row, err := v.cat.Get(ctx, ino)
	if err != nil || row.Mode&unix.S_IFMT == unix.S_IFDIR {
		return err
	}
	if ch.Mode == nil {
		if mode := withoutPriv(row.Mode); mode != row.Mode {
			ch.Mode = &mode
		}
	}
	return v.dropCapability(ctx, who, ino)
}

// resize sets the size of a regular file.
func (v *Volume) resize(ctx context.Context, who catalog.Actor, ino catalog.Ino, set SetAttr) error {
	h := set.Handle
	if h == nil {
		var err error
		if h, err = v.OpenFile(ctx, who, ino, OpenFlags{Write: true}); err != nil {
			return err
		}
		defer h.Close(ctx)
	}
	if err := h.Truncate(ctx, *set.Size); err != nil {
		return err
	}
	if err := v.stamp(ctx, who, ino, set.KillPriv); err != nil {
		return err
	}
	if set.Handle == nil {
		return h.Flush(ctx)
	}
	return nil
}
