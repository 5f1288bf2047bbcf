package catalog

import (
	"bytes"
	"context"
	"slices"

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

// Blobs returns up to max of the blobs that records name, in order of their names, behind after.
func (c *Catalog) Blobs(ctx context.Context, after blobstore.Hash, max int) (list []NamedBlob, err error) {
	fresh := c.freshBlobs(after)
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
	if err != nil || len(fresh) == 0 {
		return list, c.readFailed("list the blobs", err)
	}
	order := func(a, b NamedBlob) int { return bytes.Compare(a.Ref.Hash[:], b.Ref.Hash[:]) }
	list = append(list, fresh...)
	slices.SortStableFunc(list, order)
	list = slices.CompactFunc(list, func(a, b NamedBlob) bool { return a.Ref.Hash == b.Ref.Hash })
	return list[:min(len(list), max)], nil
}

// freshBlobs lists the blobs behind after of records that are not in catalog.db yet.
func (c *Catalog) freshBlobs(after blobstore.Hash) (list []NamedBlob) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, q := range c.queue {
		for i := range q.rec.Blobs {
			if b := &q.rec.Blobs[i]; bytes.Compare(b.Ref.Hash[:], after[:]) > 0 {
				list = append(list, NamedBlob{Ref: b.Ref, Level: b.Level, Seq: q.rec.Seq})
			}
		}
	}
	return list
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
			u, err := r.user(st)
			if err != nil {
				return err
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

func (r *extentRow) user(st *sqldb.Stmt) (BlobUser, error) {
	r.Extent = Extent{}
	if err := r.scan(st); err != nil {
		return BlobUser{}, err
	}
	u := BlobUser{Ino: Ino(r.row.int(0)), From: r.from, To: Head, Extent: r.Extent}
	if !r.row.isNull(4) {
		u.To = Seq(r.row.int(4))
	}
	return u, nil
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

// VersionedInodes returns up to max of the inodes behind after that have a version, in order.
func (c *Catalog) VersionedInodes(ctx context.Context, after Ino, max int) (list []Ino, err error) {
	var fresh []Ino
	c.mu.RLock()
	for _, q := range c.queue {
		for i := range q.rec.Versions {
			if ino := q.rec.Versions[i].Ino; ino > after {
				fresh = append(fresh, ino)
			}
		}
	}
	c.mu.RUnlock()
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
	if err != nil || len(fresh) == 0 {
		return list, c.readFailed("list the inodes", err)
	}
	list = append(list, fresh...)
	slices.Sort(list)
	list = slices.Compact(list)
	return list[:min(len(list), max)], nil
}

// InodeBlobs returns up to max of the ranges of a file, now and as far as history is kept, in the order of the records that wrote them and of their offsets,
// behind the range after (the zero BlobUser: from the first). To of ranges that records end which are not in catalog.db yet may be Head.
func (c *Catalog) InodeBlobs(ctx context.Context, ino Ino, after BlobUser, max int) (list []BlobUser, err error) {
	fresh := c.freshRanges(ino, after)
	err = c.db.Read(ctx, func(conn *sqldb.Conn) error {
		st := conn.Prep("SELECT "+extentColumns+" FROM extents WHERE ino = ? AND (from_seq, off) > (?, ?) ORDER BY from_seq, off LIMIT ? + 0").
			BindInt64(1, int64(ino)).BindInt64(2, int64(after.From)).BindInt64(3, after.Extent.Off).BindInt64(4, int64(max))
		var r extentRow
		for {
			ok, err := st.Step()
			if err != nil || !ok {
				return err
			}
			u, err := r.user(st)
			if err != nil {
				return err
			}
			list = append(list, u)
		}
	})
	if err != nil {
		return nil, c.readFailed("read the content of a file", err)
	}
	for i := range fresh { // they come behind all that is in catalog.db
		if n := len(list); n < max && (n == 0 || list[n-1].less(&fresh[i])) {
			list = append(list, fresh[i])
		}
	}
	return list, nil
}

func (u *BlobUser) less(v *BlobUser) bool {
	return u.From < v.From || u.From == v.From && u.Extent.Off < v.Extent.Off
}

func (c *Catalog) freshRanges(ino Ino, after BlobUser) (list []BlobUser) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, q := range c.queue {
		for i := range q.rec.Splices {
			if s := &q.rec.Splices[i]; s.Ino == ino {
				for _, e := range s.Extents {
					if u := (BlobUser{Ino: ino, From: q.rec.Seq, To: Head, Extent: e}); after.less(&u) {
						list = append(list, u)
					}
				}
			}
		}
	}
	return list
}
