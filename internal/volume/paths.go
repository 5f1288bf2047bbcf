package volume

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"holdfast/catalog"
)

// Resolve finds the inode that a slash-separated path from the root leads to. ".." does not leave the root, and symbolic links are not followed.
func (v *Volume) Resolve(ctx context.Context, p string) (catalog.Inode, error) {
	row, err := v.Get(ctx, catalog.Root)
	for name := range strings.SplitSeq(strings.Trim(path.Clean("/"+p), "/"), "/") {
		if err != nil || name == "" {
			break
		}
		row, err = v.Lookup(ctx, row.Ino, name)
	}
	if err != nil {
		return row, fmt.Errorf("%s: %w", p, err)
	}
	return row, nil
}

// resolveParent finds the directory of p and the name in it.
func (v *Volume) resolveParent(ctx context.Context, p string) (catalog.Inode, string, error) {
	dir, name := path.Split(path.Clean("/" + p))
	if name == "" {
		return catalog.Inode{}, "", fmt.Errorf("%s: %w: it names the root", p, catalog.ErrInvalid)
	}
	row, err := v.Resolve(ctx, dir)
	if err == nil && row.Mode&unix.S_IFMT != unix.S_IFDIR {
		err = fmt.Errorf("%s: %w", dir, catalog.ErrNotDir)
	}
	return row, name, err
}

// WritePath puts what r yields in the place of p, atomically: until WritePath returns without an error p is what it was. The new
// file has the mode and owner of the old one, or mode and who's. Its content is on stable storage on return.
func (v *Volume) WritePath(ctx context.Context, who catalog.Actor, gid uint32, p string, mode uint32, r io.Reader) (catalog.Inode, error) {
	parent, name, err := v.resolveParent(ctx, p)
	if err != nil {
		return catalog.Inode{}, err
	}
	n := catalog.NewInode{Mode: unix.S_IFREG | mode&0o7777, UID: who.UID, GID: gid}
	old, err := v.Lookup(ctx, parent.Ino, name)
	switch {
	case err == nil && old.Mode&unix.S_IFMT == unix.S_IFDIR:
		return catalog.Inode{}, fmt.Errorf("%s: %w", p, catalog.ErrIsDir)
	case err == nil && old.Mode&unix.S_IFMT == unix.S_IFREG:
		n.Mode, n.UID, n.GID = old.Mode, old.UID, old.GID
	case err != nil && !errors.Is(err, catalog.ErrNotExist):
		return catalog.Inode{}, fmt.Errorf("%s: %w", p, err)
	}
	suffix := make([]byte, 8)
	if _, err := rand.Read(suffix); err != nil {
		return catalog.Inode{}, err
	}
	temp := ".holdfast-put-" + hex.EncodeToString(suffix)
	row, h, err := v.Tmpfile(ctx, who, parent.Ino, n, OpenFlags{Write: true})
	if err != nil {
		return row, fmt.Errorf("%s: %w", p, err)
	}
	// It has no name while it is filled: a process that is killed then leaves nothing behind.
	named := false
	if err = v.fill(ctx, h, r); err == nil {
		_, err = v.Link(ctx, who, row.Ino, parent.Ino, temp)
		named = err == nil
	}
	if err == nil {
		err = h.Fsync(ctx, false)
	}
	h.Close(ctx)
	if err == nil {
		_, err = v.Rename(ctx, who, parent.Ino, temp, parent.Ino, name, 0)
	}
	if err != nil {
		if named {
			if _, undo := v.Unlink(context.WithoutCancel(ctx), who, parent.Ino, temp); undo != nil {
				v.log.Warn("cannot remove a temporary file", "name", temp, "error", undo)
			}
		}
		return row, fmt.Errorf("%s: %w", p, err)
	}
	v.invalidateEntry(parent.Ino, name)
	if err := v.Sync(ctx); err != nil {
		return row, fmt.Errorf("%s: %w", p, err)
	}
	return v.Get(ctx, row.Ino)
}

// fill stages all that r yields, and makes an empty file a version, too.
func (v *Volume) fill(ctx context.Context, h *Handle, r io.Reader) error {
	buf := v.buffers.Get().(*[]byte)
	defer v.buffers.Put(buf)
	for off := int64(0); ; {
		n, err := r.Read(*buf)
		if n > 0 {
			if _, err := h.WriteAt(ctx, (*buf)[:n], off, WriteFlags{}); err != nil {
				return err
			}
			off += int64(n)
		}
		if err == io.EOF { // not errors.Is: a wrapped EOF is a content that broke off
			h.f.mu.Lock()
			h.f.changed(h)
			h.f.mu.Unlock()
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// RemovePath takes the name p away, and with recursive everything below it. Its versions stay in the history.
func (v *Volume) RemovePath(ctx context.Context, who catalog.Actor, p string, recursive bool) error {
	parent, name, err := v.resolveParent(ctx, p)
	if err != nil {
		return err
	}
	row, err := v.Lookup(ctx, parent.Ino, name)
	if err == nil {
		err = v.removeEntry(ctx, who, parent.Ino, name, row, recursive)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	return v.Sync(ctx)
}

func (v *Volume) removeEntry(ctx context.Context, who catalog.Actor, parent catalog.Ino, name string, row catalog.Inode, recursive bool) error {
	var err error
	if row.Mode&unix.S_IFMT != unix.S_IFDIR {
		_, err = v.Unlink(ctx, who, parent, name)
	} else {
		for recursive {
			entries, err := v.ReadDir(ctx, row.Ino, 0, 1024)
			if err != nil {
				return err
			}
			if len(entries) == 0 {
				break
			}
			for _, e := range entries {
				if err := ctx.Err(); err != nil {
					return err
				}
				if err := v.removeEntry(ctx, who, row.Ino, e.Name, e.Inode, true); err != nil {
					return fmt.Errorf("%s: %w", e.Name, err)
				}
			}
		}
		err = v.Rmdir(ctx, who, parent, name)
	}
	if err == nil {
		v.invalidateEntry(parent, name)
	}
	return err
}
