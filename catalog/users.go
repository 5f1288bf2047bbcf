package catalog

import (
	"context"

	"holdfast/blobstore"
	"holdfast/internal/sqldb"
)

// NamedBlob is a blob that a record has named.
type NamedBlob struct {
	Ref   blobstore.Ref
	Level string // of the record that named it first
	Seq   Seq    // of that record
}

// BlobUser is a range of a file that a blob is, or was, the content of: from the record From on to before the record To (Head: it still is).
type BlobUser struct {
	Ino      Ino
	From, To Seq
	Extent   Extent
}

// Blobs returns up to max of the blobs that catalog.db names, in order of their names, behind after.
func (c *Catalog) Blobs(ctx context.Context, after blobstore.Hash, max int) (list []NamedBlob, err error) {
	err = c.db.Read(ctx, func(conn *sqldb.Conn) error {
		st := conn.Prep("SELECT "+blobsColumns+", row_sum FROM blobs WHERE hash > ? ORDER BY hash LIMIT ? + 0").BindBytes(1, after[:]).BindInt64(2, int64(max))
		var r rowRead
		for {
			ok, err := st.Step()
			if err != nil || !ok {
				return err
			}
			b, err := scanBlob(st, &r)
			if err != nil {
				return err
			}
			list = append(list, NamedBlob{Ref: b.ref, Level: b.level, Seq: b.seq})
		}
	})
	return list, c.readFailed("list the blobs", err)
}

// BlobUsers returns up to max of the ranges of files that name a blob, or named it as far as history is kept. What records say that are not in
// catalog.db yet comes last; To of ranges that they end is Head.
func (c *Catalog) BlobUsers(ctx context.Context, h blobstore.Hash, max int) (list []BlobUser, err error) {
	fresh := c.freshUsers(h)
	err = c.db.Read(ctx, func(conn *sqldb.Conn) error {
		st := conn.Prep("SELECT "+extentColumns+" FROM extents WHERE substr(blob, 1, 8) = ? AND blob = ? LIMIT ? + 0").
			BindBytes(1, h[:8]).BindBytes(2, h[:]).BindInt64(3, int64(max))
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
			u := BlobUser{Ino: Ino(r.row.int(0)), From: r.from, To: Head, Extent: r.Extent}
			if !r.row.isNull(4) {
				u.To = Seq(r.row.int(4))
			}
			list = append(list, u)
		}
	})
	if err != nil {
		return nil, c.readFailed("look for files that name a blob", err)
	}
	seen := make(map[userKey]bool, len(list))
	for i := range list {
		seen[list[i].key()] = true
	}
	for _, u := range fresh {
		if len(list) < max && !seen[u.key()] {
			list = append(list, u)
		}
	}
	return list, nil
}

// userKey tells two ranges of files apart.
type userKey struct {
	Ino  Ino
	From Seq
	Off  int64
}

func (u *BlobUser) key() userKey { return userKey{u.Ino, u.From, u.Extent.Off} }

func (c *Catalog) freshUsers(h blobstore.Hash) (list []BlobUser) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, q := range c.queue {
		for i := range q.rec.Splices {
			s := &q.rec.Splices[i]
			for _, e := range s.Extents {
				if e.Blob.Hash == h {
					list = append(list, BlobUser{Ino: s.Ino, From: q.rec.Seq, To: Head, Extent: e})
				}
			}
		}
	}
	return list
}

// VersionedInodes returns up to max of the inodes behind after of which catalog.db has a version, in order.
func (c *Catalog) VersionedInodes(ctx context.Context, after Ino, max int) (list []Ino, err error) {
	err = c.db.Read(ctx, func(conn *sqldb.Conn) error {
		for len(list) < max {
			st := conn.Prep("SELECT ino FROM versions WHERE ino > ? ORDER BY ino LIMIT 1").BindInt64(1, int64(after))
			ok, err := st.Step()
			if err != nil || !ok {
				return err
			}
			after = Ino(st.Int64(0))
			if err := st.Done(); err != nil {
				return err
			}
			list = append(list, after)
		}
		return nil
	})
	return list, c.readFailed("list the inodes", err)
}
