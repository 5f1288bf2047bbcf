package catalog

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"

	"holdfast/internal/sqldb"
)

// ReadDir returns up to max entries of a directory behind the position after (0: from the start), in order of position,
// without "." and "..". An entry that is there during the whole of a walk is returned exactly once, however the directory
// changes in between; no entries are left when none are returned. At most 4096 are returned at once.
func (c *Catalog) ReadDir(ctx context.Context, dir Ino, after uint64, max int) ([]DirEntry, error) {
	row, err := c.Get(ctx, dir)
	if err != nil {
		return nil, err
	}
	if !isDir(row.Mode) {
		return nil, ErrNotDir
	}
	max = min(max, maxReadDir)
	if max <= 0 || after > math.MaxInt64 {
		return nil, nil
	}
	var list []DirEntry
	err = c.steady(func() (done bool, err error) {
		list, done, err = c.readDirOnce(ctx, dir, after, max)
		return done, err
	})
	return list, err
}

// readDirOnce is false when the applier moved rows to catalog.db while it read there: rows may then be older than the call.
func (c *Catalog) readDirOnce(ctx context.Context, dir Ino, after uint64, max int) ([]DirEntry, bool, error) {
	// What is not applied yet comes first: what the applier moves to catalog.db from now on is in both, and taken from here.
	c.mu.RLock()
	gen := c.gen
	changes := c.changesOf(dir, after, max)
	c.mu.RUnlock()

	rows, err := mergeChanges(changes, max, func(after uint64, n int) ([]dirRow, error) {
		return loadDir(ctx, c.db, dir, after, n)
	}, after)
	if err != nil {
		return nil, false, c.readFailed("read a directory", err)
	}
	c.opt.reached(stageRead)
	c.mu.RLock()
	ok := gen == c.gen
	if ok {
		for i := range rows {
			if n := c.inodes.m[rows[i].Inode.Ino]; n != nil {
				rows[i].Inode, rows[i].noInode = n.val.row, false
			}
		}
	}
	c.mu.RUnlock()
	if !ok {
		return nil, false, ctx.Err()
	}
	list := make([]DirEntry, len(rows))
	for i := range rows {
		if rows[i].noInode { // a new name of an inode that is not in memory
			row, err := c.Get(ctx, rows[i].Inode.Ino)
			if err != nil {
				return nil, false, c.orphan(dir, rows[i].Name, rows[i].Inode.Ino, err)
			}
			rows[i].Inode = row
		}
		list[i] = rows[i].DirEntry
	}
	return list, true, nil
}

// changesOf returns the changes in dir behind the position after, in order, as far as max entries of the result can need them.
func (c *Catalog) changesOf(dir Ino, after uint64, max int) []dirChangeAt {
	m := c.dirs[dir]
	if m == nil {
		return nil
	}
	var out []dirChangeAt
	live := 0
	m.Ascend(after+1, func(cookie uint64, ch dirChange) bool {
		out = append(out, dirChangeAt{cookie, ch})
		if ch.ino != 0 {
			live++
		}
		return live < max
	})
	return out
}

type dirChangeAt struct {
	cookie uint64
	dirChange
}

// mergeChanges returns up to max entries behind after: those that load returns, with changes, which win, on top. The changes
// must reach to the end or hold max live entries.
func mergeChanges(changes []dirChangeAt, max int, load func(after uint64, n int) ([]dirRow, error), after uint64) ([]dirRow, error) {
	var out []dirRow
	next := func() { // moves the first change to the result
		ch := changes[0]
		changes = changes[1:]
		if ch.ino != 0 {
			r := dirRow{DirEntry: DirEntry{Name: ch.name, Cookie: ch.cookie}, noInode: true, typ: ch.typ}
			r.Inode.Ino = ch.ino
			out = append(out, r)
		}
	}
	for done := false; !done && len(out) < max; {
		n := max - len(out)
		rows, err := load(after, n)
		if err != nil {
			return nil, err
		}
		done = len(rows) < n
		for _, r := range rows {
			after = r.Cookie
			for len(changes) > 0 && changes[0].cookie < r.Cookie && len(out) < max {
				next()
			}
			if len(out) == max {
				return out, nil
			}
			if len(changes) > 0 && changes[0].cookie == r.Cookie {
				next()
				continue
			}
			out = append(out, r)
		}
	}
	for len(changes) > 0 && len(out) < max {
		next()
	}
	return out, nil
}

// checkEmpty is ErrNotEmpty when a directory has entries. The caller holds order.
func (c *Catalog) checkEmpty(ctx context.Context, dir Ino) error {
	gone := make(map[uint64]bool)
	live := false
	c.mu.RLock()
	if m := c.dirs[dir]; m != nil {
		m.Scan(func(cookie uint64, ch dirChange) bool {
			live = live || ch.ino != 0
			gone[cookie] = true
			return !live
		})
	}
	c.mu.RUnlock()
	if live {
		return ErrNotEmpty
	}
	err := c.db.Read(ctx, func(conn *sqldb.Conn) error {
		st := conn.Prep("SELECT cookie FROM dentries WHERE parent = ? AND to_seq IS NULL ORDER BY cookie").BindInt64(1, int64(dir))
		for {
			ok, err := st.Step()
			if err != nil || !ok {
				return err
			}
			if !gone[uint64(st.Int64(0))] {
				return ErrNotEmpty
			}
		}
	})
	if errors.Is(err, ErrNotEmpty) {
		return ErrNotEmpty
	}
	return c.readFailed("read a directory", err)
}

const (
	// maxPaths bounds the directories whose path is kept in memory.
	maxPaths = 4096
	// maxPathText is the longest path that a record states.
	maxPathText = 4096
)

// pathOf is the path of a name in a directory, for a record; "" when there is none. The caller holds order.
func (c *Catalog) pathOf(ctx context.Context, parent Ino, name string) string {
	dir, ok := c.paths[parent]
	if !ok {
		var err error
		if dir, err = c.Path(ctx, parent); err != nil {
			return ""
		}
		if len(c.paths) >= maxPaths {
			clear(c.paths)
		}
		c.paths[parent] = dir
	}
	return clipPath(strings.TrimSuffix(dir, "/") + "/" + name)
}

// clipPath keeps the end of a path that is longer than a record may state.
func clipPath(p string) string {
	if len(p) > maxPathText {
		return "..." + p[len(p)-maxPathText+3:]
	}
	return p
}

// forgetPaths is called when a directory moves or goes. The caller holds order.
func (c *Catalog) forgetPaths() { clear(c.paths) }

// Path returns one path of an inode from the root. ErrNotExist when it has no name (any more), ErrStale as Get.
func (c *Catalog) Path(ctx context.Context, ino Ino) (string, error) {
	var parts []string
	for range maxDepth {
		if ino == Root {
			break
		}
		row, err := c.Get(ctx, ino)
		if err != nil {
			return "", err
		}
		if row.Nlink == 0 {
			return "", fmt.Errorf("inode %d: %w: it has no name", ino, ErrNotExist)
		}
		parent, name, err := c.nameOf(ctx, &row)
		if err != nil {
			return "", err
		}
		parts = append(parts, name)
		ino = parent
	}
	if ino != Root {
		return "", fmt.Errorf("%w: inode %d is not connected to the root", ErrDamaged, ino)
	}
	var b strings.Builder
	for i := len(parts) - 1; i >= 0; i-- {
		b.WriteByte('/')
		b.WriteString(parts[i])
	}
	if b.Len() == 0 {
		return "/", nil
	}
	return b.String(), nil
}

// nameOf finds a name of an inode that has one: the one remembered, else any that is in force.
func (c *Catalog) nameOf(ctx context.Context, row *Inode) (Ino, string, error) {
	c.mu.RLock()
	if n := c.inodes.get(row.Ino); n != nil && n.val.name != "" {
		defer c.mu.RUnlock()
		return n.val.row.Parent, n.val.name, nil
	}
	queue := c.queue
	c.mu.RUnlock()
	candidates, err := loadNames(ctx, c.db, row.Ino)
	if err != nil {
		return 0, "", c.readFailed("read names", err)
	}
	for i := len(queue) - 1; i >= 0; i-- {
		for _, d := range queue[i].rec.Dentries {
			if d.Ino == row.Ino {
				candidates = append(candidates, nameKey{d.Parent, d.Name})
			}
		}
	}
	for _, k := range candidates {
		got, err := c.Lookup(ctx, k.parent, k.name)
		switch {
		case err == nil && got.Ino == row.Ino:
			c.mu.Lock()
			if n := c.inodes.get(row.Ino); n != nil && n.val.row.Parent == k.parent {
				if now := c.names.get(k); now != nil && now.val.ino == row.Ino {
					n.val.name = k.name
				}
			}
			c.mu.Unlock()
			return k.parent, k.name, nil
		case err != nil && !errors.Is(err, ErrNotExist):
			return 0, "", err
		}
	}
	return 0, "", fmt.Errorf("inode %d: %w: it has no name", row.Ino, ErrNotExist)
}

// loadNames reads the names that lead to ino in catalog.db.
func loadNames(ctx context.Context, db *sqldb.DB, ino Ino) (list []nameKey, err error) {
	err = db.Read(ctx, func(c *sqldb.Conn) error {
		st := c.Prep("SELECT "+dentriesColumns+", row_sum FROM dentries WHERE ino = ? AND to_seq IS NULL").BindInt64(1, int64(ino))
		var r rowRead
		for len(list) < MaxLinks {
			ok, err := st.Step()
			if err != nil || !ok {
				return err
			}
			if err := r.read(st, 0, tableDentries); err != nil {
				return err
			}
			list = append(list, nameKey{Ino(r.int(0)), string(r.bytes(1))})
		}
		return nil
	})
	return list, err
}
