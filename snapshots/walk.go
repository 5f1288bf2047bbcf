package snapshots

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"holdfast/catalog"
	"holdfast/internal/volume"
)

// walkPage is the number of names of a directory that are read at once.
const walkPage = 1024

// maxWalkDepth bounds a walk down, and one up to the root, which a damaged catalog could make endless.
const maxWalkDepth = 1 << 14

var errTooDeep = fmt.Errorf("%w: directories lie more than %d deep in each other", catalog.ErrDamaged, maxWalkDepth)

func isDir(mode uint32) bool { return mode&unix.S_IFMT == unix.S_IFDIR }

// splitPath returns the directory of a cleaned absolute path, and the name in it: "" of the root.
func splitPath(p string) (dir, name string) {
	dir, name = path.Split(path.Clean("/" + p))
	return path.Clean(dir), name
}

// within says whether p is top or lies below it; both are cleaned and absolute.
func within(p, top string) bool {
	return p == top || top == "/" || strings.HasPrefix(p, top+"/")
}

// walkDir calls fn with each entry of a directory as it was after the record at (catalog.Head: as it is). A directory that was none then has none.
func walkDir(ctx context.Context, vol *volume.Volume, dir catalog.Ino, at catalog.Seq, fn func(catalog.DirEntry) error) error {
	for after := uint64(0); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		var list []catalog.DirEntry
		var err error
		if at == catalog.Head {
			list, err = vol.ReadDir(ctx, dir, after, walkPage)
		} else {
			list, err = vol.ReadDirAt(ctx, dir, after, walkPage, at)
		}
		if errors.Is(err, catalog.ErrStale) || errors.Is(err, catalog.ErrNotDir) {
			return nil
		}
		if err != nil || len(list) == 0 {
			return err
		}
		for _, e := range list {
			if err := fn(e); err != nil {
				return err
			}
		}
		after = list[len(list)-1].Cookie
	}
}

// walkNow calls fn with each name below a directory, a directory before what is in it.
func walkNow(ctx context.Context, vol *volume.Volume, dir catalog.Ino, p string, fn func(place, string, catalog.Inode) error) error {
	return walkTree(ctx, vol, dir, p, catalog.Head, 0, fn)
}

func walkTree(ctx context.Context, vol *volume.Volume, dir catalog.Ino, p string, at catalog.Seq, depth int,
	fn func(place, string, catalog.Inode) error) error {
	if depth > maxWalkDepth {
		return errTooDeep
	}
	return walkDir(ctx, vol, dir, at, func(e catalog.DirEntry) error {
		inner := p + "/" + e.Name
		if err := fn(place{dir, e.Name}, inner, e.Inode); err != nil || !isDir(e.Inode.Mode) {
			return err
		}
		return walkTree(ctx, vol, e.Inode.Ino, inner, at, depth+1, fn)
	})
}
