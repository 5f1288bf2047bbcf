package integrity

import (
	"context"
	"fmt"
	"runtime"
	"slices"

	"holdfast/blobstore"
	"holdfast/catalog"
)

func lockThread() { runtime.LockOSThread() }

// user is a file that a blob is, or was, content of.
type user struct {
	ino  catalog.Ino
	path string // "" when it has none now
	now  bool   // its newest version has it
}

// users lists the files that name a blob, those whose newest version does first.
func (e *Engine) users(ctx context.Context, h blobstore.Hash) ([]user, error) {
	list, err := e.cat.BlobUsers(ctx, h, 16*maxPaths)
	if err != nil {
		return nil, err
	}
	at := make(map[catalog.Ino]int)
	var out []user
	for _, u := range list {
		i, ok := at[u.Ino]
		if !ok {
			if len(out) == maxPaths {
				continue
			}
			i = len(out)
			at[u.Ino] = i
			out = append(out, user{ino: u.Ino})
		}
		out[i].now = out[i].now || u.To == catalog.Head
	}
	for i := range out {
		row, err := e.cat.Get(ctx, out[i].ino)
		if err != nil || row.Nlink == 0 {
			out[i].now = false
			continue
		}
		if p, err := e.cat.Path(ctx, out[i].ino); err == nil {
			out[i].path = p
		}
	}
	slices.SortStableFunc(out, func(a, b user) int {
		switch {
		case a.now == b.now:
			return 0
		case a.now:
			return -1
		}
		return 1
	})
	return out, nil
}

// paths names the files that name a blob, for people.
func (e *Engine) paths(ctx context.Context, h blobstore.Hash) []string {
	list, err := e.users(ctx, h)
	if err != nil {
		e.log.Warn("cannot tell which files have a blob", "blob", h, "error", err)
		return nil
	}
	var out []string
	for _, u := range list {
		switch {
		case u.path != "" && u.now:
			out = append(out, u.path)
		case u.path != "":
			out = append(out, u.path+" (an earlier version)")
		default:
			out = append(out, fmt.Sprintf("(a removed file, inode %d)", u.ino))
		}
	}
	return out
}

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

// levelOf is the highest level of the files that name a blob now.
func (e *Engine) levelOf(ctx context.Context, h blobstore.Hash) (string, error) {
	list, err := e.cat.BlobUsers(ctx, h, 16*maxPaths)
	if err != nil {
		return "", err
	}
	best := catalog.LevelBasic
	seen := make(map[catalog.Ino]bool)
	for _, u := range list {
		if seen[u.Ino] || best == catalog.LevelCritical {
			continue
		}
		seen[u.Ino] = true
		level, err := e.cat.Level(ctx, u.Ino)
		if err != nil {
			continue // a file that is gone has the level that its blobs have
		}
		if rank(level) > rank(best) {
			best = level
		}
	}
	return best, nil
}
