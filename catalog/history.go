package catalog

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"sort"
	"time"

	"holdfast/catalog/journal"
	"holdfast/internal/sqldb"
)

// versionPage is the number of versions read at once: a caller's function never runs while a connection is in use.
const versionPage = 256

// moment returns the moment at. What catalog.db says of a moment never changes, so reads there need no lock.
func (c *Catalog) moment(at Seq) past {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.pastOf(at)
}

// GetAt returns the row that an inode had after the record at. ErrStale when it was not there yet.
func (c *Catalog) GetAt(ctx context.Context, ino Ino, at Seq) (Inode, error) {
	p := c.moment(at)
	row, err := c.pastInode(ctx, ino, p)
	return row, c.afterAll(ctx, err, ino, p)
}

// afterAll is err, or ErrThinned when it turns out that what was read of the inode may not be what it was. The question comes after the reading: rows go in
// the transaction that remembers the gap.
func (c *Catalog) afterAll(ctx context.Context, err error, ino Ino, p past) error {
	if err != nil && !errors.Is(err, ErrNotExist) && !errors.Is(err, ErrStale) {
		return err
	}
	if thinned := c.Exact(ctx, ino, p.at); thinned != nil {
		return thinned
	}
	if errors.Is(err, ErrStale) {
		return c.staleOrGone(ctx, ino, p)
	}
	return err
}

// staleOrGone is ErrStale for an inode that was not there yet, and ErrThinned for one of which retention has left nothing.
func (c *Catalog) staleOrGone(ctx context.Context, ino Ino, p past) error {
	c.mu.RLock()
	known := p.at < c.thinned && ino > 0 && ino < c.nextIno
	c.mu.RUnlock()
	if !known {
		return ErrStale
	}
	_, ok, err := loadInode(ctx, c.db, ino, Head)
	if err != nil {
		return c.readFailed("read an inode", err)
	}
	if ok {
		return ErrStale
	}
	return fmt.Errorf("inode %d after record %d: %w; nothing of it is kept", ino, p.at, ErrThinned)
}

func (c *Catalog) pastInode(ctx context.Context, ino Ino, p past) (Inode, error) {
	for i := len(p.recs) - 1; i >= 0; i-- {
		for _, row := range p.recs[i].rec.Inodes {
			if row.Ino == ino {
				return row, nil
			}
		}
	}
	if ino == 0 || ino >= maxIno {
		return Inode{}, ErrStale
	}
	row, ok, err := loadInode(ctx, c.db, ino, p.base)
	if err != nil {
		return Inode{}, c.readFailed("read an inode", err)
	}
	if !ok {
		return Inode{}, ErrStale
	}
	return row, nil
}

// LookupAt is Lookup after the record at.
func (c *Catalog) LookupAt(ctx context.Context, parent Ino, name string, at Seq) (Inode, error) {
	p := c.moment(at)
	dir, err := c.pastInode(ctx, parent, p)
	if err := c.afterAll(ctx, err, parent, p); err != nil {
		return Inode{}, err
	}
	if !isDir(dir.Mode) {
		return Inode{}, ErrNotDir
	}
	switch name {
	case ".":
		return dir, nil
	case "..":
		return c.GetAt(ctx, dir.Parent, at)
	}
	if err := checkName(name); err != nil {
		return Inode{}, err
	}
	ino, err := c.pastName(ctx, parent, name, p)
	if err == nil && ino == 0 {
		err = ErrNotExist
	}
	if err := c.afterAll(ctx, err, parent, p); err != nil {
		return Inode{}, err
	}
	row, err := c.pastInode(ctx, ino, p)
	if err := c.afterAll(ctx, err, ino, p); err != nil {
		return Inode{}, c.orphanAt(ctx, parent, name, ino, err, p)
	}
	return row, nil
}

func (c *Catalog) pastName(ctx context.Context, parent Ino, name string, p past) (Ino, error) {
	for i := len(p.recs) - 1; i >= 0; i-- {
		for _, d := range p.recs[i].rec.Dentries {
			if d.Parent == parent && d.Name == name {
				return d.Ino, nil
			}
		}
	}
	v, err := loadName(ctx, c.db, parent, name, p.base)
	if err != nil {
		return 0, c.readFailed("read a name", err)
	}
	return v.ino, nil
}

// ReadDirAt is ReadDir after the record at.
func (c *Catalog) ReadDirAt(ctx context.Context, dir Ino, after uint64, max int, at Seq) ([]DirEntry, error) {
	p := c.moment(at)
	row, err := c.pastInode(ctx, dir, p)
	if err := c.afterAll(ctx, err, dir, p); err != nil {
		return nil, err
	}
	if !isDir(row.Mode) {
		return nil, ErrNotDir
	}
	max = min(max, maxReadDir)
	if max <= 0 || after > math.MaxInt64 {
		return nil, nil
	}
	byCookie := make(map[uint64]dirChange)
	inodes := make(map[Ino]*Inode)
	for _, q := range p.recs {
		for _, d := range q.rec.Dentries {
			if d.Parent == dir && d.Cookie > after {
				byCookie[d.Cookie] = dirChange{nameVal{d.Ino, d.Type, d.Cookie}, d.Name, q.rec.Seq}
			}
		}
		for i := range q.rec.Inodes {
			inodes[q.rec.Inodes[i].Ino] = &q.rec.Inodes[i]
		}
	}
	changes := make([]dirChangeAt, 0, len(byCookie))
	for _, cookie := range slices.Sorted(maps.Keys(byCookie)) {
		changes = append(changes, dirChangeAt{cookie, byCookie[cookie]})
	}
	rows, err := mergeChanges(changes, max, func(after uint64, n int) ([]dirRow, error) {
		return loadDirAt(ctx, c.db, dir, after, n, p.base)
	}, after)
	if err != nil {
		return nil, c.readFailed("read a directory", err)
	}
	list := make([]DirEntry, len(rows))
	for i, r := range rows {
		ino := r.Inode.Ino
		if n := inodes[ino]; n != nil {
			r.Inode = *n
		} else if r.noInode {
			r.Inode, err = c.pastInode(ctx, ino, p)
			if err = c.afterAll(ctx, err, ino, p); err != nil {
				if err = c.orphanAt(ctx, dir, r.Name, ino, err, p); !errors.Is(err, ErrThinned) {
					return nil, err
				}
				r.Thinned, r.Inode = true, Inode{Ino: ino, Mode: r.typ}
			}
		}
		list[i] = r.DirEntry
	}
	if err := c.afterAll(ctx, nil, dir, p); err != nil {
		return nil, err
	}
	return list, c.markThinned(ctx, list, p.at)
}

func (c *Catalog) pastExtents(ctx context.Context, ino Ino, p past) ([]Extent, error) {
	row, err := c.pastInode(ctx, ino, p)
	if err != nil {
		return nil, c.afterAll(ctx, err, ino, p)
	}
	var rows []Extent
	if row.Base <= p.base {
		if rows, err = loadExtentsAt(ctx, c.db, ino, row.Base, p.base); err != nil {
			return nil, c.readFailed("read the content of a file", err)
		}
	}
	m := newExtentMap(rows)
	for _, q := range p.recs {
		for i := range q.rec.Splices {
			if s := &q.rec.Splices[i]; s.Ino == ino {
				m.splice(s)
			}
		}
	}
	return m.list(), c.afterAll(ctx, nil, ino, p)
}

func (c *Catalog) pastXattrs(ctx context.Context, ino Ino, at Seq) (map[string][]byte, error) {
	p := c.moment(at)
	if _, err := c.pastInode(ctx, ino, p); err != nil {
		return nil, c.afterAll(ctx, err, ino, p)
	}
	set, err := loadXattrs(ctx, c.db, ino, p.base)
	if err != nil {
		return nil, c.readFailed("read attributes", err)
	}
	for _, q := range p.recs {
		for _, x := range q.rec.Xattrs {
			switch {
			case x.Ino != ino:
			case x.Value == nil:
				delete(set, x.Name)
			default:
				set[x.Name] = x.Value
			}
		}
	}
	return set, c.afterAll(ctx, nil, ino, p)
}

// GetXattrAt is GetXattr after the record at.
func (c *Catalog) GetXattrAt(ctx context.Context, ino Ino, name string, at Seq) ([]byte, error) {
	set, err := c.pastXattrs(ctx, ino, at)
	if err != nil {
		return nil, err
	}
	v, ok := set[name]
	if !ok {
		return nil, ErrNoXattr
	}
	return v, nil
}

// ListXattrAt is ListXattr after the record at.
func (c *Catalog) ListXattrAt(ctx context.Context, ino Ino, at Seq) ([]string, error) {
	set, err := c.pastXattrs(ctx, ino, at)
	return slices.Sorted(maps.Keys(set)), err
}

// Versions calls fn for each version of an inode, in order of number, until fn returns an error, which Versions returns. fn may call
// the catalog. ErrStale when there is no such inode.
func (c *Catalog) Versions(ctx context.Context, ino Ino, newestFirst bool, fn func(Version) error) error {
	if _, err := c.Get(ctx, ino); err != nil {
		return err
	}
	var fresh []Version
	for _, q := range c.moment(Head).recs {
		for _, v := range q.rec.Versions {
			if v.Ino == ino {
				v.Seq = q.rec.Seq
				fresh = append(fresh, v)
			}
		}
	}
	limit := uint64(math.MaxInt64) // numbers below are read from catalog.db, the others are in fresh
	if len(fresh) > 0 {
		limit = fresh[0].Num
	}
	each := func(list []Version) error {
		for _, v := range list {
			if err := fn(v); err != nil {
				return err
			}
		}
		return nil
	}
	if newestFirst {
		slices.Reverse(fresh)
		if err := each(fresh); err != nil {
			return err
		}
	}
	for from := uint64(0); ; {
		var list []Version
		var err error
		if newestFirst {
			list, err = c.loadVersions(ctx, "v.ino = ? AND v.num < ? AND v.num > ? ORDER BY v.num DESC LIMIT ? + 0", ino, limit, 0)
		} else {
			list, err = c.loadVersions(ctx, "v.ino = ? AND v.num < ? AND v.num > ? ORDER BY v.num LIMIT ? + 0", ino, limit, from)
		}
		if err != nil {
			return err
		}
		if err := each(list); err != nil {
			return err
		}
		if len(list) < versionPage {
			break
		}
		if newestFirst {
			limit = list[len(list)-1].Num
		} else {
			from = list[len(list)-1].Num
		}
	}
	if newestFirst {
		return nil
	}
	return each(fresh)
}

// Version returns one version by its number; ErrNotExist when there is none.
func (c *Catalog) Version(ctx context.Context, ino Ino, num uint64) (Version, error) {
	p := c.moment(Head)
	for i := len(p.recs) - 1; i >= 0; i-- {
		for _, v := range p.recs[i].rec.Versions {
			if v.Ino == ino && v.Num == num {
				v.Seq = p.recs[i].rec.Seq
				return v, nil
			}
		}
	}
	if num == 0 || num >= maxIno {
		return Version{}, fmt.Errorf("version %d of inode %d: %w", num, ino, ErrNotExist)
	}
	list, err := c.loadVersions(ctx, "v.ino = ? AND v.num < ? AND v.num > ? LIMIT ? + 0", ino, num+1, num-1)
	if err != nil {
		return Version{}, err
	}
	if len(list) == 0 {
		return Version{}, fmt.Errorf("version %d of inode %d: %w", num, ino, ErrNotExist)
	}
	return list[0], nil
}

// loadVersions returns the first versions that fit. Here and elsewhere LIMIT is an expression: SQLite looks at a bound LIMIT while it plans, and so prepares
// the statement anew each time one is bound.
func (c *Catalog) loadVersions(ctx context.Context, where string, ino Ino, below, above uint64) (list []Version, err error) {
	err = c.db.Read(ctx, func(conn *sqldb.Conn) error {
		st := conn.Prep(`SELECT v.ino, v.num, v.seq, v.time, v.size, v.sum, v.prev, v.digest, v.actor, v.pid, v.row_sum,
			a.id, a.agent, a.program, a.uid, a.row_sum FROM versions v LEFT JOIN actors a ON a.id = v.actor WHERE `+where).
			BindInt64(1, int64(ino)).BindInt64(2, int64(below)).BindInt64(3, int64(above)).BindInt64(4, versionPage)
		var r, a rowRead
		for {
			ok, err := st.Step()
			if err != nil || !ok {
				return err
			}
			if err := errors.Join(r.read(st, 0, tableVersions), a.read(st, 11, tableActors)); err != nil {
				return err
			}
			v := Version{Ino: ino, Num: uint64(r.int(1)), Seq: Seq(r.int(2)), Time: r.int(3), Size: r.int(4), Actor: a.actor(r.int(9))}
			if err := errors.Join(r.hash(5, v.Sum[:]), r.hash(6, v.Prev[:]), r.hash(7, v.Digest[:])); err != nil {
				return err
			}
			list = append(list, v)
		}
	})
	return list, c.readFailed("read versions", err)
}

// NameHistory returns every inode that a name has led to, oldest first. An inode that left the name and came back is there
// again. A name that never was gives an empty list.
func (c *Catalog) NameHistory(ctx context.Context, parent Ino, name string) ([]NameSpan, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	p := c.moment(Head)
	var list []NameSpan
	err := c.db.Read(ctx, func(conn *sqldb.Conn) error {
		st := conn.Prep("SELECT "+dentriesColumns+", row_sum FROM dentries WHERE parent = ? AND name = ? AND from_seq <= ? ORDER BY from_seq").
			BindInt64(1, int64(parent)).BindBytes(2, []byte(name)).BindInt64(3, int64(p.base))
		var r rowRead
		for {
			ok, err := st.Step()
			if err != nil || !ok {
				return err
			}
			if err := r.read(st, 0, tableDentries); err != nil {
				return err
			}
			list = append(list, r.span(p.base))
		}
	})
	if err != nil {
		return nil, c.readFailed("read the history of a name", err)
	}
	for _, q := range p.recs {
		for _, d := range q.rec.Dentries {
			if d.Parent != parent || d.Name != name {
				continue
			}
			if n := len(list); n > 0 && list[n-1].To == Head {
				list[n-1].To = q.rec.Seq
			}
			if d.Ino != 0 {
				list = append(list, NameSpan{d.Ino, d.Type, q.rec.Seq, Head})
			}
		}
	}
	return list, nil
}

// SeqAt returns the last record with a time at or before t; 0 when there is none.
func (c *Catalog) SeqAt(ctx context.Context, t time.Time) (Seq, error) {
	p := c.moment(Head)
	if n := sort.Search(len(p.recs), func(i int) bool { return p.recs[i].rec.Time.After(t) }); n > 0 {
		return p.recs[n-1].rec.Seq, nil
	}
	// What no Timestamp can say is before, or after, every record.
	ns := t.UnixNano()
	switch {
	case t.Before(unixTime(math.MinInt64)):
		return 0, nil
	case t.After(unixTime(math.MaxInt64)):
		ns = math.MaxInt64
	}
	var seq Seq
	err := c.db.Read(ctx, func(conn *sqldb.Conn) error {
		st := conn.Prep("SELECT "+timesColumns+", row_sum FROM times WHERE first_time <= ? ORDER BY first_time DESC, chunk DESC LIMIT 1").BindInt64(1, ns)
		ok, err := st.Step()
		if err != nil || !ok {
			return err
		}
		var r rowRead
		if err := r.read(st, 0, tableTimes); err != nil {
			return err
		}
		first := Seq(r.int(0)*timesChunk + 1)
		return eachTime(r.int(1), r.bytes(2), func(i int, at Timestamp) bool {
			if at <= ns {
				seq = first + Seq(i)
			}
			return at <= ns
		})
	})
	return seq, c.readFailed("find a moment", err)
}

// TimeOf returns the time of a record; ErrNotExist when there is no such record.
func (c *Catalog) TimeOf(ctx context.Context, s Seq) (time.Time, error) {
	p := c.moment(Head)
	if s > p.base && s <= p.at {
		for _, q := range p.recs {
			if q.rec.Seq == s {
				return q.rec.Time, nil
			}
		}
	}
	var at time.Time
	if s >= 1 && s <= p.base {
		err := c.db.Read(ctx, func(conn *sqldb.Conn) error {
			st := conn.Prep("SELECT "+timesColumns+", row_sum FROM times WHERE chunk = ?").BindInt64(1, int64(s-1)/timesChunk)
			ok, err := st.Step()
			if err != nil || !ok {
				return err
			}
			var r rowRead
			if err := r.read(st, 0, tableTimes); err != nil {
				return err
			}
			return eachTime(r.int(1), r.bytes(2), func(i int, t Timestamp) bool {
				if i == int(s-1)%timesChunk {
					at = unixTime(t)
				}
				return at.IsZero()
			})
		})
		if err != nil {
			return time.Time{}, c.readFailed("read the time of a record", err)
		}
	}
	if at.IsZero() {
		return time.Time{}, fmt.Errorf("record %d: %w", s, ErrNotExist)
	}
	return at, nil
}

// Records calls fn with each record from the number from on, up to the newest at the time of the call, until fn returns an
// error, which Records returns. fn may call the catalog. Records of which compaction has left nothing are passed over. A record that cannot be read is ErrDamaged (a *journal.DamageError says which: go on behind its Last).
func (c *Catalog) Records(ctx context.Context, from Seq, fn func(Record) error) error {
	if from > Head {
		return nil
	}
	var inner error
	err := c.j.Replay(ctx, uint64(from), func(e journal.Entry) error {
		if e.HeadDropped {
			return nil
		}
		r, err := DecodeRecord(e)
		if err != nil {
			return fmt.Errorf("journal record %d: %w: %w", e.Seq, ErrDamaged, err)
		}
		inner = fn(r)
		return inner
	})
	if inner != nil || errors.Is(err, ErrDamaged) {
		return err
	}
	return failed("read the journal", err)
}
