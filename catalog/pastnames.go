package catalog

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"slices"

	"holdfast/internal/sqldb"
)

// PastName is a name that a directory has or had, and where one of its spans led.
type PastName struct {
	Name   string
	Cookie uint64 // pass it to DirNames to go on behind this name
	NameSpan
}

// DirNames returns up to max of the names that a directory ever had, each of them once, with the oldest span of the name or with its newest, in
// the order of the position that it had then; after is the position to go on behind (0: from the start). A name that is taken anew
// during a walk with newest may come twice. No names are left when none are returned. An inode that never was a directory has none.
func (c *Catalog) DirNames(ctx context.Context, dir Ino, after uint64, max int, newest bool) ([]PastName, error) {
	max = min(max, maxReadDir)
	if max <= 0 || after > math.MaxInt64 {
		return nil, nil
	}
	p := c.moment(Head)
	pending, err := c.pendingNames(ctx, dir, p, newest)
	if err != nil {
		return nil, err
	}
	byCookie := make(map[uint64]PastName)
	for _, n := range pending {
		if n.Cookie > after {
			byCookie[n.Cookie] = n
		}
	}
	var out []PastName
	for len(out) < max {
		rows, err := loadDirNames(ctx, c.db, dir, after, max-len(out), p.base, newest)
		if err != nil {
			return nil, c.readFailed("read the names of a directory", err)
		}
		done := len(rows) < max-len(out)
		for _, r := range rows {
			after = r.Cookie
			if _, ok := pending[r.Name]; !ok {
				out = append(out, r)
			}
		}
		if done {
			break
		}
	}
	// What lies behind the last row waits for the next call, unless there are no more rows.
	last := uint64(math.MaxInt64)
	if len(out) >= max {
		last = out[len(out)-1].Cookie
	}
	for _, cookie := range slices.Sorted(maps.Keys(byCookie)) {
		if cookie < last {
			out = append(out, byCookie[cookie])
		}
	}
	slices.SortFunc(out, byPosition)
	return out[:min(len(out), max)], nil
}

func byPosition(a, b PastName) int { return cmp.Compare(a.Cookie, b.Cookie) }

// pendingNames returns the names of dir whose wanted span the records of p decide.
func (c *Catalog) pendingNames(ctx context.Context, dir Ino, p past, newest bool) (map[string]PastName, error) {
	names := make(map[string]PastName)
	for _, q := range p.recs {
		for _, d := range q.rec.Dentries {
			if d.Parent != dir {
				continue
			}
			n, seen := names[d.Name]
			switch {
			case d.Ino == 0:
				if !seen {
					n = PastName{Name: d.Name} // its span is in catalog.db
				}
				if n.To == 0 || n.To == Head {
					n.To = q.rec.Seq
				}
			case !newest && seen && n.Ino != 0:
				if n.To == Head {
					n.To = q.rec.Seq
				}
			default:
				n = PastName{Name: d.Name, Cookie: d.Cookie, NameSpan: NameSpan{d.Ino, d.Type, q.rec.Seq, Head}}
			}
			names[d.Name] = n
		}
	}
	for name, n := range names {
		if newest && n.Ino != 0 {
			continue
		}
		row, ok, err := loadSpan(ctx, c.db, dir, name, p.base, newest)
		if err != nil {
			return nil, c.readFailed("read the names of a directory", err)
		}
		if !ok {
			if n.Ino == 0 {
				return nil, fmt.Errorf("%w: the name %q in directory %d ends and never began", ErrDamaged, name, dir)
			}
			continue
		}
		if row.To == Head {
			row.To = firstEnd(p.recs, dir, name)
		}
		names[name] = row
	}
	return names, nil
}

// firstEnd returns the first of the records that changes where a name leads.
func firstEnd(recs []*pending, dir Ino, name string) Seq {
	for _, q := range recs {
		for _, d := range q.rec.Dentries {
			if d.Parent == dir && d.Name == name {
				return q.rec.Seq
			}
		}
	}
	return Head
}

const spanColumns = "d.name, d.cookie, d.ino, d.type, d.from_seq, d.to_seq"

func scanSpan(st *sqldb.Stmt, base Seq) (PastName, error) {
	if st.Len(0) == 0 || st.Len(0) > MaxName {
		return PastName{}, fmt.Errorf("catalog.db: a name has %d bytes: %w", st.Len(0), sqldb.ErrCorrupt)
	}
	n := PastName{Name: string(st.AppendBytes(nil, 0)), Cookie: uint64(st.Int64(1)),
		NameSpan: NameSpan{Ino(st.Int64(2)), uint32(st.Int64(3)), Seq(st.Int64(4)), Head}}
	if !st.IsNull(5) && Seq(st.Int64(5)) <= base {
		n.To = Seq(st.Int64(5))
	}
	return n, nil
}

// loadSpan reads the oldest or newest span of a name as of the record base.
func loadSpan(ctx context.Context, db *sqldb.DB, dir Ino, name string, base Seq, newest bool) (n PastName, ok bool, err error) {
	order := ""
	if newest {
		order = " DESC"
	}
	err = db.Read(ctx, func(c *sqldb.Conn) error {
		st := c.Prep("SELECT "+spanColumns+" FROM dentries d WHERE d.parent = ? AND d.name = ? AND d.from_seq <= ? ORDER BY d.from_seq"+order+" LIMIT 1").
			BindInt64(1, int64(dir)).BindBytes(2, []byte(name)).BindInt64(3, int64(base))
		if ok, err = st.Step(); err != nil || !ok {
			return err
		}
		n, err = scanSpan(st, base)
		return err
	})
	return n, ok, err
}

// loadDirNames reads up to max names of dir behind the cookie after, each with its oldest or newest span as of the record base, by cookie.
func loadDirNames(ctx context.Context, db *sqldb.DB, dir Ino, after uint64, max int, base Seq, newest bool) ([]PastName, error) {
	other := "e.from_seq < d.from_seq"
	if newest {
		other = "e.from_seq > d.from_seq AND e.from_seq <= ?4"
	}
	query := "SELECT " + spanColumns + ` FROM dentries d WHERE d.parent = ?1 AND d.cookie > ?2 AND d.to_seq IS %s NULL AND d.from_seq <= ?4
		AND NOT EXISTS (SELECT 1 FROM dentries e WHERE e.parent = d.parent AND e.name = d.name AND ` + other + `) ORDER BY d.cookie LIMIT ?3`
	read := func(what string) (list []PastName, err error) {
		err = db.Read(ctx, func(c *sqldb.Conn) error {
			st := c.Prep(fmt.Sprintf(query, what)).
				BindInt64(1, int64(dir)).BindInt64(2, int64(after)).BindInt64(3, int64(max)).BindInt64(4, int64(base))
			for {
				ok, err := st.Step()
				if err != nil || !ok {
					return err
				}
				n, err := scanSpan(st, base)
				if err != nil {
					return err
				}
				list = append(list, n)
			}
		})
		return list, err
	}
	live, err := read("")
	if err != nil {
		return nil, err
	}
	// A span that ends in the meantime is in both lists.
	ended, err := read("NOT")
	if err != nil {
		return nil, err
	}
	out := append(live, ended...)
	slices.SortStableFunc(out, byPosition)
	out = slices.CompactFunc(out, func(a, b PastName) bool { return a.Cookie == b.Cookie })
	return out[:min(len(out), max)], nil
}

// VersionRange returns the versions of an inode with numbers from on and below to, in order, at most 256 of them.
func (c *Catalog) VersionRange(ctx context.Context, ino Ino, from, to uint64) ([]Version, error) {
	from, to = max(from, 1), min(to, maxIno)
	if from >= to {
		return nil, nil
	}
	p := c.moment(Head)
	list, err := c.loadVersions(ctx, "v.ino = ? AND v.num < ? AND v.num > ? ORDER BY v.num LIMIT ?", ino, to, from-1)
	if err != nil {
		return nil, err
	}
	if len(list) > 0 {
		from = list[len(list)-1].Num + 1
	}
	for _, q := range p.recs {
		for _, v := range q.rec.Versions {
			if v.Ino == ino && v.Num >= from && v.Num < to && len(list) < versionPage {
				v.Seq = q.rec.Seq
				list = append(list, v)
			}
		}
	}
	return list, nil
}
