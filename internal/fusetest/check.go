package fusetest

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"holdfast/catalog"
	"holdfast/internal/volume"
)

// CheckStore opens a store that nobody has open and walks all of it: every directory and every byte of every file must be readable,
// and link counts and types must agree with the names.
func CheckStore(dir string) (err error) {
	ctx := context.Background()
	v, err := volume.Open(ctx, volume.Options{Dir: dir})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.Close(ctx)) }()
	w := walker{v: v, names: make(map[catalog.Ino]uint32), rows: make(map[catalog.Ino]catalog.Inode)}
	root, err := v.Get(ctx, catalog.Root)
	if err != nil {
		return err
	}
	w.rows[root.Ino], w.names[root.Ino] = root, 1
	if err := w.dir(ctx, root, ""); err != nil {
		return err
	}
	for ino, row := range w.rows {
		want := w.names[ino]
		if row.Mode&unix.S_IFMT == unix.S_IFDIR {
			want = 2 + w.subdirs[ino]
		}
		if row.Nlink != want {
			return fmt.Errorf("inode %d: its link count is %d, the names say %d", ino, row.Nlink, want)
		}
	}
	return nil
}

type walker struct {
	v       *volume.Volume
	names   map[catalog.Ino]uint32
	subdirs map[catalog.Ino]uint32
	rows    map[catalog.Ino]catalog.Inode
}

func (w *walker) dir(ctx context.Context, dir catalog.Inode, path string) error {
	if w.subdirs == nil {
		w.subdirs = make(map[catalog.Ino]uint32)
	}
	for after := uint64(0); ; {
		entries, err := w.v.ReadDir(ctx, dir.Ino, after, 512)
		if err != nil {
			return fmt.Errorf("%s/: %w", path, err)
		}
		if len(entries) == 0 {
			return nil
		}
		for _, e := range entries {
			name := path + "/" + e.Name
			if e.Cookie <= after {
				return fmt.Errorf("%s: cookie %d is not behind %d", name, e.Cookie, after)
			}
			after = e.Cookie
			row, err := w.v.Lookup(ctx, dir.Ino, e.Name)
			if err != nil || row.Ino != e.Inode.Ino {
				return fmt.Errorf("%s: listed as inode %d, found as %d: %w", name, e.Inode.Ino, row.Ino, err)
			}
			w.names[row.Ino]++
			w.rows[row.Ino] = row
			switch row.Mode & unix.S_IFMT {
			case unix.S_IFDIR:
				w.subdirs[dir.Ino]++
				if w.names[row.Ino] > 1 || row.Parent != dir.Ino {
					return fmt.Errorf("%s: a directory with %d names, whose parent is %d", name, w.names[row.Ino], row.Parent)
				}
				if err := w.dir(ctx, row, name); err != nil {
					return err
				}
			case unix.S_IFREG:
				if err := w.file(ctx, row); err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
			}
		}
	}
}

// maxChecked is how much of a sparse file is read: tests make files of many terabytes.
const maxChecked = 256 << 20

func (w *walker) file(ctx context.Context, row catalog.Inode) error {
	h, err := w.v.OpenFile(ctx, catalog.Actor{}, row.Ino, volume.OpenFlags{Read: true})
	if err != nil {
		return err
	}
	defer h.Close(ctx)
	buf := make([]byte, 1<<20)
	for off := int64(0); off < min(row.Size, maxChecked); {
		n, err := h.ReadAt(ctx, buf, off)
		if err != nil {
			return fmt.Errorf("at offset %d: %w", off, err)
		}
		if n == 0 {
			return fmt.Errorf("ends at %d, its size is %d", off, row.Size)
		}
		off += int64(n)
	}
	return nil
}
