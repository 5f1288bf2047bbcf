package catalog

import (
	"context"
	"maps"
	"slices"

	"holdfast/internal/sqldb"
)

// weight is what a drop takes away.
type weight struct {
	removed, versions, names, bytes int64
	sizes                           int64 // of the versions
}

func (w *weight) add(x weight) {
	w.removed, w.versions, w.names, w.bytes = w.removed+x.removed, w.versions+x.versions, w.names+x.names, w.bytes+x.bytes
	w.sizes = satAdd(w.sizes, x.sizes)
}

// drop takes away what the drops of files under the policy i say, as far as there is anything; of a file that has no name left at any kept moment, all.
// It returns the number of versions that went.
func (p *pruner) drop(ctx context.Context, i int, drops []Drop) (int64, error) {
	drops, err := p.refine(ctx, drops)
	if err != nil || len(drops) == 0 {
		return 0, err
	}
	x := &Pruned{Drops: drops}
	sum, err := p.weigh(ctx, drops)
	if err != nil {
		return 0, err
	}
	x.Versions, x.Bytes = sum.versions, sum.sizes
	if err := p.apply(ctx, x); err != nil {
		return 0, err
	}
	if len(x.Drops) < len(drops) { // some did not stand any more: of the others the versions were counted again
		sum = weight{versions: x.Versions}
	}
	rep := &p.rep.Policies[i]
	rep.Removed, rep.Versions, rep.Names, rep.Bytes = rep.Removed+sum.removed, rep.Versions+sum.versions, rep.Names+sum.names, rep.Bytes+sum.bytes
	return sum.versions, nil
}

// refine leaves out the drops that take nothing away, and makes those of inodes that have neither a name now nor had one at a kept moment drops of the
// whole inode.
func (p *pruner) refine(ctx context.Context, drops []Drop) ([]Drop, error) {
	out := make([]Drop, 0, len(drops))
	gone := make(map[int]bool) // places in out of inodes that may go as a whole
	err := p.db.Read(ctx, func(c *sqldb.Conn) error {
		for _, d := range drops {
			all, some, err := lives(c, &d)
			if err != nil {
				return err
			}
			if all || some {
				gone[len(out)] = all
				out = append(out, d)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	kept := out[:0]
	for i, d := range out {
		if gone[i] {
			_, named := p.sides[d.Ino]
			if !named && p.c.dead(ctx, d.Ino, p.o.InUse) {
				d.After, d.Before = 0, Head
			} else if !p.o.DryRun {
				p.c.retryLater(d.Ino)
			}
		}
		kept = append(kept, d)
	}
	return kept, nil
}

// lives says of the inode of d whether all of its life lies inside of d, and whether d takes some of it away.
func lives(c *sqldb.Conn, d *Drop) (all, some bool, err error) {
	st := c.Prep("SELECT "+inodesColumns+", row_sum FROM inodes WHERE ino = ? ORDER BY from_seq DESC LIMIT 1").BindInt64(1, int64(d.Ino))
	ok, err := st.Step()
	if err != nil || !ok {
		return false, false, err
	}
	var r rowRead
	if err := r.read(st, 0, tableInodes); err != nil {
		return false, false, err
	}
	newest, nlink := Seq(r.int(1)), r.int(7)
	if err := st.Done(); err != nil {
		return false, false, err
	}
	if nlink == 0 && newest <= d.Before {
		st := c.Prep("SELECT min(from_seq) FROM inodes WHERE ino = ?").BindInt64(1, int64(d.Ino))
		if _, err := st.Step(); err != nil {
			return false, false, err
		}
		all = Seq(st.Int64(0)) > d.After
		if err := st.Done(); err != nil {
			return false, false, err
		}
	}
	st = c.Prep("SELECT count(*) FROM (SELECT 1 FROM inodes WHERE ino = ? AND from_seq > ? AND from_seq <= ? LIMIT 2)").
		BindInt64(1, int64(d.Ino)).BindInt64(2, int64(d.After)).BindInt64(3, int64(d.Before))
	if _, err := st.Step(); err != nil {
		return false, false, err
	}
	some = st.Int64(0) > 1
	return all, some, st.Done()
}

// dead says that an inode has no name, is not open, and holds nothing that is not written.
func (c *Catalog) dead(ctx context.Context, ino Ino, inUse func(Ino) bool) bool {
	row, err := c.Get(ctx, ino)
	if err != nil || row.Nlink > 0 || ino == Root || inUse != nil && inUse(ino) {
		return false
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	_, deferred := c.deferred[ino]
	_, unwritten := c.unwritten[ino]
	return !deferred && !unwritten
}

// maxRetry bounds the inodes that the next Prune looks at again.
const maxRetry = 1 << 16

// retryLater notes an inode of which something could not go now. The caller has the turn of Prune.
func (c *Catalog) retryLater(ino Ino) {
	if c.retry == nil {
		c.retry = make(map[Ino]struct{})
	}
	if len(c.retry) < maxRetry {
		c.retry[ino] = struct{}{}
	}
}

// sweepDead notes the inodes without a name that earlier runs had to leave, before a restart for one.
func (p *pruner) sweepDead(ctx context.Context) error {
	for after := int64(0); after >= 0; {
		next := int64(-1)
		err := p.db.Read(ctx, func(c *sqldb.Conn) error {
			st := c.Prep("SELECT ino, nlink FROM inodes WHERE ino > ? ORDER BY ino").BindInt64(1, after)
			for n := 0; ; n++ {
				ok, err := st.Step()
				if err != nil || !ok {
					return err
				}
				ino := st.Int64(0)
				if n > 4*p.o.Slice && ino != after { // the next step looks at the rest of this one again
					next = ino - 1
					return st.Done()
				}
				if st.Int64(1) == 0 {
					p.c.retryLater(Ino(ino))
				}
				after = ino
			}
		})
		if err != nil {
			return err
		}
		after = next
		if err := p.pause(ctx); err != nil {
			return err
		}
	}
	return nil
}

// tryAgain takes away what earlier runs had to leave: of inodes that were open, or that somebody read the past of.
func (p *pruner) tryAgain(ctx context.Context) error {
	inos := slices.Sorted(maps.Keys(p.c.retry))
	if !p.o.DryRun {
		p.c.retry = nil
	}
	for _, ino := range inos {
		i := p.policyOf(ctx, ino)
		var drops []Drop
		after := Seq(0)
		for _, before := range p.kept[p.o.Policies[i].Path] {
			drops = append(drops, Drop{Ino: ino, After: after, Before: before})
			after = before
		}
		for _, d := range drops {
			if _, err := p.dropGap(ctx, i, d); err != nil {
				return err
			}
		}
	}
	return nil
}

// dropGap takes away what d says, step by step. It returns the number of versions that went.
func (p *pruner) dropGap(ctx context.Context, i int, d Drop) (versions int64, err error) {
	for cursor := d.After; cursor < d.Before; {
		end := d.Before
		err := p.db.Read(ctx, func(c *sqldb.Conn) error {
			st := c.Prep("SELECT from_seq FROM inodes WHERE ino = ? AND from_seq > ? AND from_seq < ? ORDER BY from_seq LIMIT 1 OFFSET ?").
				BindInt64(1, int64(d.Ino)).BindInt64(2, int64(cursor)).BindInt64(3, int64(d.Before)).BindInt64(4, int64(p.o.Slice))
			ok, err := st.Step()
			if err == nil && ok {
				end = Seq(st.Int64(0))
			}
			return err
		})
		if err != nil {
			return versions, err
		}
		n, err := p.drop(ctx, i, []Drop{{Ino: d.Ino, After: d.After, Before: end}})
		if err != nil {
			return versions, err
		}
		versions += n
		cursor = end
		if err := p.pause(ctx); err != nil {
			return versions, err
		}
	}
	return versions, nil
}

// weigh counts what the drops take away.
func (p *pruner) weigh(ctx context.Context, drops []Drop) (sum weight, err error) {
	err = p.db.Read(ctx, func(c *sqldb.Conn) error {
		for i := range drops {
			w, err := weigh(c, &drops[i])
			if err != nil {
				return err
			}
			sum.add(w)
		}
		return nil
	})
	return sum, err
}

func weigh(c *sqldb.Conn, d *Drop) (w weight, err error) {
	one := func(query string, args ...int64) (int64, error) {
		st := c.Prep(query)
		for i, a := range args {
			st.BindInt64(i+1, a)
		}
		if _, err := st.Step(); err != nil {
			return 0, err
		}
		n := st.Int64(0)
		return n, st.Done()
	}
	ino, after, before := int64(d.Ino), int64(d.After), int64(d.Before)
	if d.whole() {
		w.removed = 1
		if w.versions, err = one("SELECT count(*) FROM versions WHERE ino = ?", ino); err != nil {
			return w, err
		}
		if w.sizes, err = one("SELECT min(total(size), 4e18) FROM versions WHERE ino = ?", ino); err != nil {
			return w, err
		}
		if w.names, err = one("SELECT count(*) FROM dentries WHERE parent = ?", ino); err != nil {
			return w, err
		}
		w.bytes, err = one("SELECT sum(len) FROM extents WHERE ino = ?", ino)
		return w, err
	}
	first, end, err := versionsIn(c, d)
	if err != nil {
		return w, err
	}
	if first < end {
		if w.versions, err = one("SELECT count(*) FROM versions WHERE ino = ? AND num >= ? AND num < ?", ino, int64(first), int64(end)); err != nil {
			return w, err
		}
		if w.sizes, err = one("SELECT min(total(size), 4e18) FROM versions WHERE ino = ? AND num >= ? AND num < ?", ino, int64(first), int64(end)); err != nil {
			return w, err
		}
	}
	floor, err := one("SELECT before FROM gaps WHERE ino = ? AND after = ?", ino, after)
	if err != nil {
		return w, err
	}
	w.names, err = one("SELECT count(*) FROM dentries WHERE parent = ? AND to_seq > ? AND to_seq <= ? AND from_seq > ?", ino, max(floor, after), before, after)
	if err != nil {
		return w, err
	}
	w.bytes, err = one("SELECT sum(len) FROM extents WHERE ino = ?1 AND from_seq > ?2 AND from_seq < ?3 AND to_seq <= ?3", ino, after, before)
	return w, err
}

// stillStand takes out of x what has changed since it was planned: moments that somebody holds by now, inodes that came back to life. The caller holds
// order, so that nothing changes any more.
func (p *pruner) stillStand(ctx context.Context, x *Pruned) error {
	held := p.c.pins.held()
	n := len(x.Drops)
	x.Drops = slices.DeleteFunc(slices.Clone(x.Drops), func(d Drop) bool {
		var gone bool
		if d.whole() {
			gone = !p.c.dead(ctx, d.Ino, p.o.InUse) || p.wasNamed(ctx, d.Ino, held)
		} else {
			gone = slices.ContainsFunc(held, func(s Seq) bool { return s > d.After && s < d.Before })
		}
		if gone {
			p.c.retryLater(d.Ino)
		}
		return gone
	})
	if len(x.Drops) == n {
		return nil
	}
	w, err := p.weigh(ctx, x.Drops)
	x.Versions, x.Bytes = w.versions, w.sizes
	return err
}

// wasNamed says whether an inode had a name at one of the moments.
func (p *pruner) wasNamed(ctx context.Context, ino Ino, moments []Seq) bool {
	for _, s := range moments {
		row, err := p.c.GetAt(ctx, ino, s)
		if err == nil && row.Nlink > 0 {
			return true
		}
	}
	return false
}

// dropConflicts takes away the conflicts from before the root's horizon, and what was kept aside for them.
func (p *pruner) dropConflicts(ctx context.Context) error {
	kept := p.kept[p.o.Policies[0].Path]
	if len(kept) == 0 {
		return nil
	}
	x := &Pruned{Conflicts: kept[len(kept)-1]}
	old := int64(0)
	err := p.db.Read(ctx, func(c *sqldb.Conn) error {
		st := c.Prep("SELECT count(*) FROM conflicts WHERE seq <= ?").BindInt64(1, int64(x.Conflicts))
		if _, err := st.Step(); err != nil {
			return err
		}
		old = st.Int64(0)
		return st.Done()
	})
	if err != nil || old == 0 {
		return err
	}
	sides, err := loadSides(ctx, p.db, x.Conflicts)
	if err != nil {
		return err
	}
	for _, ino := range slices.Sorted(maps.Keys(sides)) {
		if p.c.dead(ctx, ino, p.o.InUse) {
			x.Drops = append(x.Drops, Drop{Ino: ino, Before: Head})
		} else if !p.o.DryRun {
			p.c.retryLater(ino)
		}
	}
	w, err := p.weigh(ctx, x.Drops)
	if err != nil {
		return err
	}
	x.Versions, x.Bytes = w.versions, w.sizes
	if err := p.apply(ctx, x); err != nil {
		return err
	}
	rep := &p.rep.Policies[0]
	rep.Removed, rep.Versions, rep.Bytes = rep.Removed+w.removed, rep.Versions+w.versions, rep.Bytes+w.bytes
	return nil
}

// loadSides reads which inodes conflicts of the records up to upTo name as what was kept aside.
func loadSides(ctx context.Context, db *sqldb.DB, upTo Seq) (map[Ino]struct{}, error) {
	sides := make(map[Ino]struct{})
	err := db.Read(ctx, func(c *sqldb.Conn) error {
		st := c.Prep("SELECT side FROM conflicts WHERE side > 0 AND seq <= ?").BindInt64(1, int64(upTo))
		for {
			ok, err := st.Step()
			if err != nil || !ok {
				return err
			}
			sides[Ino(st.Int64(0))] = struct{}{}
		}
	})
	return sides, err
}
