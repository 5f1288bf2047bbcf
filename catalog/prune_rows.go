package catalog

import (
	"errors"

	"holdfast/blobstore"
	"holdfast/internal/sqldb"
)

// prune takes the rows away that a record of retention names. It depends on nothing but catalog.db as the records before left it, so that a
// rebuild takes away the same.
func (w *rowWriter) prune(c *sqldb.Conn, p *Pruned) error {
	for i := range p.Drops {
		if err := dropRows(c, &p.Drops[i]); err != nil {
			return err
		}
	}
	for i := range p.Forgotten {
		h := p.Forgotten[i][:]
		err := errors.Join(c.Prep("DELETE FROM blobs WHERE hash = ?").BindBytes(1, h).Exec(),
			putLoose(c, h, 1))
		if err != nil {
			return err
		}
	}
	for i := range p.Kept {
		k := &p.Kept[i]
		var err error
		if k.Removed {
			err = c.Prep("DELETE FROM kept WHERE policy = ? AND seq = ?").BindBytes(1, []byte(k.Policy)).BindInt64(2, int64(k.Seq)).Exec()
		} else {
			var put rowPut
			err = put.begin(c.Prep("INSERT OR REPLACE INTO kept ("+keptColumns+", row_sum) VALUES (?, ?, ?)"), tableKept).name(k.Policy).int(int64(k.Seq)).exec()
		}
		if err != nil {
			return err
		}
	}
	if p.Conflicts > 0 {
		return c.Prep("DELETE FROM conflicts WHERE seq <= ?").BindInt64(1, int64(p.Conflicts)).Exec()
	}
	return nil
}

// whole says that a drop takes all of an inode away.
func (d *Drop) whole() bool { return d.After == 0 && d.Before == Head }

// dropRows takes away the rows that begin behind d.After and end at d.Before or sooner, and remembers the gap.
func dropRows(c *sqldb.Conn, d *Drop) error {
	if d.whole() {
		return dropInode(c, d.Ino)
	}
	ino, after, before := int64(d.Ino), int64(d.After), int64(d.Before)
	// What ends at floor or sooner was taken away before.
	floor, err := noteGap(c, d)
	if err != nil {
		return err
	}
	if err := loosen(c, `SELECT DISTINCT blob FROM extents WHERE ino = ?1 AND from_seq > ?2 AND from_seq < ?3 AND to_seq <= ?3`, ino, after, before); err != nil {
		return err
	}
	for _, query := range []string{
		"DELETE FROM extents WHERE ino = ?1 AND from_seq > ?2 AND from_seq < ?3 AND to_seq <= ?3",
		"DELETE FROM xattrs WHERE ino = ?1 AND from_seq > ?2 AND to_seq <= ?3",
		`DELETE FROM inodes WHERE ino = ?1 AND from_seq > ?2 AND from_seq < (
			SELECT max(from_seq) FROM inodes WHERE ino = ?1 AND from_seq > ?2 AND from_seq <= ?3)`,
	} {
		if err := c.Prep(query).BindInt64(1, ino).BindInt64(2, after).BindInt64(3, before).Exec(); err != nil {
			return err
		}
	}
	err = c.Prep("DELETE FROM dentries WHERE parent = ? AND to_seq > ? AND to_seq <= ? AND from_seq > ?").
		BindInt64(1, ino).BindInt64(2, int64(max(floor, d.After))).BindInt64(3, before).BindInt64(4, after).Exec()
	if err != nil {
		return err
	}
	first, end, err := versionsIn(c, d)
	if err != nil || first >= end {
		return err
	}
	return c.Prep("DELETE FROM versions WHERE ino = ? AND num >= ? AND num < ?").
		BindInt64(1, ino).BindInt64(2, int64(first)).BindInt64(3, int64(end)).Exec()
}

// versionsIn returns the numbers [first, end) of the versions that a drop takes away: those made behind After, but for the newest one that was made by
// Before.
func versionsIn(c *sqldb.Conn, d *Drop) (first, end uint64, err error) {
	st := c.Prep("SELECT "+versionsColumns+", row_sum FROM versions WHERE ino = ? ORDER BY num").BindInt64(1, int64(d.Ino))
	var r rowRead
	for {
		ok, err := st.Step()
		if err != nil || !ok {
			return first, end, err
		}
		if err := r.read(st, 0, tableVersions); err != nil {
			return first, end, err
		}
		num, seq := uint64(r.int(1)), Seq(r.int(2))
		switch {
		case seq <= d.After:
		case seq > d.Before:
			return first, end, st.Done()
		case first == 0:
			first, end = num, num
		default:
			end = num
		}
	}
}

// noteGap remembers that the inode was thinned between d's moments. It returns how far the gap that begins with d.After reached before; 0 when
// there was none. No gap of an inode lies inside of another, so that the one with the greatest beginning below a moment is the one that reaches furthest.
func noteGap(c *sqldb.Conn, d *Drop) (floor Seq, err error) {
	ino, after, before := int64(d.Ino), int64(d.After), int64(d.Before)
	st := c.Prep("SELECT "+gapsColumns+", row_sum FROM gaps WHERE ino = ? AND after <= ? ORDER BY after DESC LIMIT 1").BindInt64(1, ino).BindInt64(2, after)
	ok, err := st.Step()
	if err != nil {
		return 0, err
	}
	if ok {
		var r rowRead
		if err := r.read(st, 0, tableGaps); err != nil {
			return 0, err
		}
		a, b := r.int(1), r.int(2)
		if err := st.Done(); err != nil {
			return 0, err
		}
		if a == after {
			floor = Seq(b)
		}
		if b >= before {
			return floor, nil
		}
	}
	err = c.Prep("DELETE FROM gaps WHERE ino = ? AND after >= ? AND before <= ?").BindInt64(1, ino).BindInt64(2, after).BindInt64(3, before).Exec()
	if err != nil {
		return 0, err
	}
	var p rowPut
	return floor, p.begin(c.Prep("INSERT INTO gaps ("+gapsColumns+", row_sum) VALUES (?, ?, ?, ?)"), tableGaps).int(ino).int(after).int(before).exec()
}

// dropInode takes all rows of an inode away.
func dropInode(c *sqldb.Conn, ino Ino) error {
	if err := loosen(c, "SELECT DISTINCT blob FROM extents WHERE ino = ?1", int64(ino)); err != nil {
		return err
	}
	for _, query := range []string{
		"DELETE FROM extents WHERE ino = ?", "DELETE FROM xattrs WHERE ino = ?", "DELETE FROM inodes WHERE ino = ?",
		"DELETE FROM dentries WHERE parent = ?", "DELETE FROM versions WHERE ino = ?", "DELETE FROM gaps WHERE ino = ?",
	} {
		if err := c.Prep(query).BindInt64(1, int64(ino)).Exec(); err != nil {
			return err
		}
	}
	return nil
}

// loosen notes the blobs that query selects: once its extents are gone a blob may be named by nobody.
func loosen(c *sqldb.Conn, query string, args ...int64) error {
	st := c.Prep(query)
	for i, a := range args {
		st.BindInt64(i+1, a)
	}
	var hashes []blobstore.Hash
	for {
		ok, err := st.Step()
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		var h blobstore.Hash
		if err := st.WantBytes(0, h[:]); err != nil {
			return err
		}
		hashes = append(hashes, h)
	}
	for i := range hashes {
		if err := putLoose(c, hashes[i][:], 0); err != nil {
			return err
		}
	}
	return nil
}

func putLoose(c *sqldb.Conn, hash []byte, forgotten int64) error {
	var p rowPut
	return p.begin(c.Prep("INSERT OR REPLACE INTO loose ("+looseColumns+", row_sum) VALUES (?, ?, ?)"), tableLoose).bytes(hash).int(forgotten).exec()
}
