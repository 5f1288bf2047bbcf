package catalog

import (
	"context"
	"fmt"
	"math"

	"golang.org/x/sys/unix"

	"holdfast/internal/sqldb"
)

// The functions of this file read rows of catalog.db, and check what they read: the file may have rotted.

const inodeColumns = `i.ino, i.from_seq, i.parent, i.mode, i.uid, i.gid, i.rdev, i.nlink, i.size, i.atime, i.mtime, i.ctime, i.btime, i.ver, i.base, i.target,
	i.row_sum`

// scanInode reads inodeColumns, which begin at column at.
func scanInode(st *sqldb.Stmt, at int) (Inode, error) {
	var r rowRead
	if err := r.read(st, at, tableInodes); err != nil {
		return Inode{}, err
	}
	n := Inode{
		Ino: Ino(r.int(0)), Parent: Ino(r.int(2)), Mode: uint32(r.int(3)), UID: uint32(r.int(4)), GID: uint32(r.int(5)), Rdev: uint32(r.int(6)),
		Nlink: uint32(r.int(7)), Size: r.int(8), Atime: r.int(9), Mtime: r.int(10), Ctime: r.int(11), Btime: r.int(12), Ver: uint64(r.int(13)), Base: Seq(r.int(14)),
	}
	target := r.bytes(15)
	if len(target) > MaxSymlink {
		return n, fmt.Errorf("catalog.db: inode %d has an impossible target: %w", n.Ino, sqldb.ErrCorrupt)
	}
	n.Target = string(target)
	if n.Ino == 0 || n.Parent == 0 || n.Size < 0 || n.Mode&unix.S_IFMT == 0 {
		return n, fmt.Errorf("catalog.db: the row of inode %d is impossible: %w", n.Ino, sqldb.ErrCorrupt)
	}
	return n, nil
}

// loadInode reads the row of ino that held after the record at; false when there was none.
func loadInode(ctx context.Context, db *sqldb.DB, ino Ino, at Seq) (n Inode, ok bool, err error) {
	err = db.Read(ctx, func(c *sqldb.Conn) error {
		st := c.Prep("SELECT "+inodeColumns+" FROM inodes i WHERE i.ino = ? AND i.from_seq <= ? ORDER BY i.from_seq DESC LIMIT 1").
			BindInt64(1, int64(ino)).BindInt64(2, int64(at))
		if ok, err = st.Step(); err != nil || !ok {
			return err
		}
		n, err = scanInode(st, 0)
		return err
	})
	return n, ok, err
}

// loadName reads where a name led after the record at; the zero nameVal when nowhere.
func loadName(ctx context.Context, db *sqldb.DB, parent Ino, name string, at Seq) (v nameVal, err error) {
	err = db.Read(ctx, func(c *sqldb.Conn) error {
		st := c.Prep("SELECT "+dentriesColumns+", row_sum FROM dentries WHERE parent = ? AND name = ? AND from_seq <= ? ORDER BY from_seq DESC LIMIT 1").
			BindInt64(1, int64(parent)).BindBytes(2, []byte(name)).BindInt64(3, int64(at))
		ok, err := st.Step()
		if err != nil || !ok {
			return err
		}
		var r rowRead
		if err := r.read(st, 0, tableDentries); err != nil {
			return err
		}
		if r.isNull(3) || Seq(r.int(3)) > at {
			v = nameVal{ino: Ino(r.int(4)), typ: uint32(r.int(5)), cookie: uint64(r.int(6))}
		}
		return nil
	})
	return v, err
}

// loadXattrs reads the attributes of ino that held after the record at.
func loadXattrs(ctx context.Context, db *sqldb.DB, ino Ino, at Seq) (map[string][]byte, error) {
	set := make(map[string][]byte)
	err := db.Read(ctx, func(c *sqldb.Conn) error {
		st := c.Prep("SELECT "+xattrsColumns+", row_sum FROM xattrs WHERE ino = ? AND from_seq <= ? AND (to_seq IS NULL OR to_seq > ?)").
			BindInt64(1, int64(ino)).BindInt64(2, int64(at)).BindInt64(3, int64(at))
		var r rowRead
		for {
			ok, err := st.Step()
			if err != nil || !ok {
				return err
			}
			if err := r.read(st, 0, tableXattrs); err != nil {
				return err
			}
			name, value := r.bytes(1), r.bytes(4)
			if len(name) > MaxName || len(value) > MaxXattr || len(set) >= MaxXattrs {
				return fmt.Errorf("catalog.db: an attribute of inode %d is impossible: %w", ino, sqldb.ErrCorrupt)
			}
			set[string(name)] = append(make([]byte, 0, len(value)), value...)
		}
	})
	return set, err
}

const extentColumns = extentsColumns + ", row_sum"

// loadExtents reads the newest content of ino.
func loadExtents(ctx context.Context, db *sqldb.DB, ino Ino) ([]Extent, error) {
	return scanExtents(ctx, db, "SELECT "+extentColumns+" FROM extents WHERE ino = ? AND to_seq IS NULL ORDER BY off", int64(ino))
}

// loadExtentsAt reads the content that ino had after the record at; base is the Base of its row then.
func loadExtentsAt(ctx context.Context, db *sqldb.DB, ino Ino, base, at Seq) ([]Extent, error) {
	return scanExtents(ctx, db, "SELECT "+extentColumns+` FROM extents WHERE ino = ? AND from_seq BETWEEN ? AND ?
		AND (+to_seq IS NULL OR to_seq > ?) ORDER BY off`, int64(ino), int64(base), int64(at), int64(at))
}

func scanExtents(ctx context.Context, db *sqldb.DB, query string, args ...int64) (list []Extent, err error) {
	err = db.Read(ctx, func(c *sqldb.Conn) error {
		st := c.Prep(query)
		for i, a := range args {
			st.BindInt64(i+1, a)
		}
		end := int64(0)
		var r extentRow
		for {
			ok, err := st.Step()
			if err != nil || !ok {
				return err
			}
			r.Extent = Extent{}
			if err := r.scan(st); err != nil {
				return err
			}
			if r.Off < end {
				return fmt.Errorf("catalog.db: extents of inode %d overlap: %w", args[0], sqldb.ErrCorrupt)
			}
			end = r.Off + r.Len
			list = append(list, r.Extent)
		}
	})
	return list, err
}

// dirRow is a dentry with the row of its inode.
type dirRow struct {
	DirEntry
	noInode bool   // the inode's row is missing
	typ     uint32 // S_IFMT bits, by the name
}

const dentryColumns = "d.parent, d.name, d.from_seq, d.to_seq, d.ino, d.type, d.cookie, d.row_sum"

const dirJoin = "SELECT " + dentryColumns + ", " + inodeColumns + ` FROM dentries d LEFT JOIN inodes i
	ON i.ino = d.ino AND i.from_seq = (SELECT max(from_seq) FROM inodes WHERE ino = d.ino AND from_seq <= ?)
	WHERE d.parent = ? AND d.cookie > ? AND `

// loadDir reads up to max live entries of dir behind the cookie after, in order.
func loadDir(ctx context.Context, db *sqldb.DB, dir Ino, after uint64, max int) ([]dirRow, error) {
	return scanDir(ctx, db, max, dirJoin+"d.to_seq IS NULL ORDER BY d.cookie", math.MaxInt64, int64(dir), int64(after))
}

// loadDirAt reads up to max entries that dir had after the record at: those that still hold and those that ended later.
func loadDirAt(ctx context.Context, db *sqldb.DB, dir Ino, after uint64, max int, at Seq) ([]dirRow, error) {
	live, err := scanDir(ctx, db, max, dirJoin+"d.to_seq IS NULL AND d.from_seq <= ? ORDER BY d.cookie",
		int64(at), int64(dir), int64(after), int64(at))
	if err != nil {
		return nil, err
	}
	// An entry that was live above and ends in the meantime is in both lists, with the same cookie.
	past, err := scanDir(ctx, db, max, dirJoin+"d.to_seq IS NOT NULL AND d.to_seq > ? AND d.from_seq <= ? ORDER BY d.cookie",
		int64(at), int64(dir), int64(after), int64(at), int64(at))
	if err != nil {
		return nil, err
	}
	return mergeDir(live, past, max), nil
}

// mergeDir merges two lists in order of cookie; where both have a cookie, first wins.
func mergeDir(first, second []dirRow, max int) []dirRow {
	if len(second) == 0 {
		return first
	}
	out := make([]dirRow, 0, min(max, len(first)+len(second)))
	for len(out) < max && (len(first) > 0 || len(second) > 0) {
		switch {
		case len(second) == 0 || len(first) > 0 && first[0].Cookie < second[0].Cookie:
			out, first = append(out, first[0]), first[1:]
		case len(first) == 0 || second[0].Cookie < first[0].Cookie:
			out, second = append(out, second[0]), second[1:]
		default:
			out, first, second = append(out, first[0]), first[1:], second[1:]
		}
	}
	return out
}

// scanDir returns the first max rows of a query for a directory. It counts them itself: a bound LIMIT makes SQLite prepare the statement
// again at each use.
func scanDir(ctx context.Context, db *sqldb.DB, max int, query string, args ...int64) (list []dirRow, err error) {
	err = db.Read(ctx, func(c *sqldb.Conn) error {
		st := c.Prep(query)
		for i, a := range args {
			st.BindInt64(i+1, a)
		}
		var d rowRead
		for {
			if len(list) == max {
				return st.Done()
			}
			ok, err := st.Step()
			if err != nil || !ok {
				return err
			}
			if err := d.read(st, 0, tableDentries); err != nil {
				return err
			}
			name := d.bytes(1)
			if len(name) == 0 || len(name) > MaxName {
				return fmt.Errorf("catalog.db: a name in directory %d is impossible: %w", args[1], sqldb.ErrCorrupt)
			}
			r := dirRow{DirEntry: DirEntry{Name: string(name), Cookie: uint64(d.int(6))}, noInode: st.IsNull(8), typ: uint32(d.int(5))}
			if r.noInode {
				r.Inode.Ino = Ino(d.int(4))
			} else if r.Inode, err = scanInode(st, 8); err != nil {
				return err
			}
			list = append(list, r)
		}
	})
	return list, err
}
