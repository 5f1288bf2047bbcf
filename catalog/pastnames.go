package catalog

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"

	"holdfast/internal/sqldb"
)

// PastName is a name that a directory has or had, with the first of its spans.
type PastName struct {
	Name   string
	Cookie uint64 // pass it to DirNames to go on behind this name
	NameSpan
}

// DirNames returns up to max of the names that a directory ever had, each of them once, with the oldest of its spans and in the order of the position
// that it had in it; after is the position to go on behind (0: from the start). No names are left when none are returned. An inode that never was a
// directory has none.
func (c *Catalog) DirNames(ctx context.Context, dir Ino, after uint64, max int) ([]PastName, error) {
	max = min(max, maxReadDir)
	if max <= 0 || after > math.MaxInt64 {
		return nil, nil
	}
	p := c.moment(Head)
	out, err := loadDirNames(ctx, c.db, dir, after, max, p)
	if err != nil {
		return nil, c.readFailed("read the names of a directory", err)
	}
	fresh, err := c.freshNames(ctx, dir, p)
	if err != nil {
		return nil, err
	}
	// What lies behind a full page waits for the next call.
	full := len(out) == max
	for _, n := range fresh {
		if n.Cookie > after && (!full || n.Cookie < out[len(out)-1].Cookie) {
			out = append(out, n)
		}
	}
	slices.SortFunc(out, byPosition)
	return out[:min(len(out), max)], nil
}

func byPosition(a, b PastName) int { return cmp.Compare(a.Cookie, b.Cookie) }

// freshNames returns the names that dir got for the first time in the records of p.
func (c *Catalog) freshNames(ctx context.Context, dir Ino, p past) ([]PastName, error) {
	var list []PastName
	index := make(map[string]int)
	for _, q := range p.recs {
		for _, d := range q.rec.Dentries {
			if d.Parent != dir {
				continue
			}
			i, seen := index[d.Name]
			switch {
			case seen:
				list[i].To = min(list[i].To, q.rec.Seq)
			case d.Ino != 0:
				index[d.Name] = len(list)
				list = append(list, PastName{Name: d.Name, Cookie: d.Cookie, NameSpan: NameSpan{d.Ino, d.Type, q.rec.Seq, Head}})
			}
		}
	}
	var err error
	list = slices.DeleteFunc(list, func(n PastName) bool {
		known := false
		if err == nil {
			known, err = nameKnown(ctx, c.db, dir, n.Name, p.base)
		}
		return known
	})
	return list, c.readFailed("read the names of a directory", err)
}

// nameKnown reports whether dir ever had the name, up to the record base.
func nameKnown(ctx context.Context, db *sqldb.DB, dir Ino, name string, base Seq) (known bool, err error) {
	err = db.Read(ctx, func(c *sqldb.Conn) error {
		known, err = c.Prep("SELECT 1 FROM dentries WHERE parent = ? AND name = ? AND from_seq <= ? LIMIT 1").
			BindInt64(1, int64(dir)).BindBytes(2, []byte(name)).BindInt64(3, int64(base)).Step()
		return err
	})
	return known, err
}

func scanSpan(st *sqldb.Stmt, base Seq) (PastName, error) {
	var r rowRead
	if err := r.read(st, 0, tableDentries); err != nil {
		return PastName{}, err
	}
	name := r.bytes(1)
	if len(name) == 0 || len(name) > MaxName {
		return PastName{}, fmt.Errorf("catalog.db: a name has %d bytes: %w", len(name), sqldb.ErrCorrupt)
	}
	return PastName{Name: string(name), Cookie: uint64(r.int(6)), NameSpan: r.span(base)}, nil
}

// loadDirNames reads up to max names of dir behind the cookie after, as of the moment p, by cookie.
func loadDirNames(ctx context.Context, db *sqldb.DB, dir Ino, after uint64, max int, p past) ([]PastName, error) {
	ends := firstEnds(p.recs, dir)
	read := func(what string) (list []PastName, err error) {
		err = db.Read(ctx, func(c *sqldb.Conn) error {
			st := c.Prep("SELECT "+dentryColumns+` FROM dentries d WHERE d.parent = ? AND d.cookie > ? AND d.to_seq IS `+what+` AND d.from_seq <= ?
				AND NOT EXISTS (SELECT 1 FROM dentries e WHERE e.parent = d.parent AND e.name = d.name AND e.from_seq < d.from_seq)
				ORDER BY d.cookie LIMIT ? + 0`).
				BindInt64(1, int64(dir)).BindInt64(2, int64(after)).BindInt64(3, int64(p.base)).BindInt64(4, int64(max))
			for {
				ok, err := st.Step()
				if err != nil || !ok {
					return err
				}
				n, err := scanSpan(st, p.base)
				if err != nil {
					return err
				}
				if end, ok := ends[n.Name]; ok && n.To == Head {
					n.To = end
				}
				list = append(list, n)
			}
		})
		return list, err
	}
	live, err := read("NULL")
	if err != nil {
		return nil, err
	}
	// A span that ends in the meantime is in both lists.
	ended, err := read("NOT NULL")
	if err != nil {
		return nil, err
	}
	out := append(live, ended...)
	slices.SortStableFunc(out, byPosition)
	out = slices.CompactFunc(out, func(a, b PastName) bool { return a.Cookie == b.Cookie })
	return out[:min(len(out), max)], nil
}

// firstEnds returns, of each name of dir that the records change, the first that does.
func firstEnds(recs []*pending, dir Ino) map[string]Seq {
	ends := make(map[string]Seq)
	for _, q := range recs {
		for _, d := range q.rec.Dentries {
			if _, seen := ends[d.Name]; d.Parent == dir && !seen {
				ends[d.Name] = q.rec.Seq
			}
		}
	}
	return ends
}

// VersionRange returns the versions of an inode with numbers from on and below to, in order, at most 256 of them.
func (c *Catalog) VersionRange(ctx context.Context, ino Ino, from, to uint64) ([]Version, error) {
	from, to = max(from, 1), min(to, maxIno)
	if from >= to {
		return nil, nil
	}
	p := c.moment(Head)
	list, err := c.loadVersions(ctx, "v.ino = ? AND v.num < ? AND v.num > ? ORDER BY v.num LIMIT ? + 0", ino, to, from-1)
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
