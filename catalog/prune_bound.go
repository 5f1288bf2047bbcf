package catalog

import (
	"context"
	"maps"
	"slices"
	"strings"

	"holdfast/internal/sqldb"
)

// sizeBuckets is how finely Prune looks for the moment up to which history has to go so that the rest fits into MaxBytes.
const sizeBuckets = 4096

// bound takes away what is too much by number of versions or by size, oldest first, and leaves what pinned snapshots, and those made by
// hand, hold.
func (p *pruner) bound(ctx context.Context, snapshots []Snapshot) error {
	var byHand []Seq
	for _, s := range snapshots {
		if s.Pinned || !s.Auto {
			byHand = append(byHand, s.Seq)
		}
	}
	if err := p.boundVersions(ctx, byHand); err != nil {
		return err
	}
	for i := range p.o.Policies {
		if p.o.Policies[i].MaxBytes > 0 {
			if err := p.boundBytes(ctx, i, byHand); err != nil {
				return err
			}
		}
	}
	return nil
}

// boundVersions looks at the files that have changed since the last time.
func (p *pruner) boundVersions(ctx context.Context, byHand []Seq) error {
	limits := make(map[string]int)
	for i := range p.o.Policies {
		if n := p.o.Policies[i].MaxVersions; n > 0 {
			limits[p.o.Policies[i].Path] = n
		}
	}
	if len(limits) == 0 {
		return nil
	}
	if !maps.Equal(limits, p.c.pruneLimits) {
		p.cursor = 0
	}
	p.c.mu.RLock()
	end := min(p.c.applied, p.asOf)
	p.c.mu.RUnlock()
	for cursor := p.cursor; cursor < end; {
		inos, next, err := p.changedIn(ctx, cursor, end)
		if err != nil {
			return err
		}
		for _, ino := range slices.Clone(inos) {
			i := p.policyOf(ctx, ino)
			if n := p.o.Policies[i].MaxVersions; n > 0 {
				if err := p.boundFile(ctx, i, ino, n, byHand); err != nil {
					return err
				}
			}
		}
		cursor = next
		if err := p.pause(ctx); err != nil {
			return err
		}
	}
	if !p.o.DryRun {
		p.c.pruneCursor, p.c.pruneLimits = end, limits
	}
	return nil
}

// boundFile leaves the newest max versions of a file.
func (p *pruner) boundFile(ctx context.Context, i int, ino Ino, max int, byHand []Seq) error {
	var oldest Seq // of the versions that stay
	more := false
	err := p.db.Read(ctx, func(c *sqldb.Conn) error {
		st := c.Prep("SELECT "+versionsColumns+", row_sum FROM versions WHERE ino = ? ORDER BY num DESC LIMIT 2 OFFSET ?").BindInt64(1, int64(ino)).BindInt64(2, int64(max-1))
		ok, err := st.Step()
		if err != nil || !ok {
			return err
		}
		var r rowRead
		if err := r.read(st, 0, tableVersions); err != nil {
			return err
		}
		oldest = Seq(r.int(2))
		more, err = st.Step()
		return err
	})
	if err != nil || !more {
		return err
	}
	after := Seq(0)
	for _, before := range p.c.withHeld(byHand, min(oldest, p.asOf)) {
		n, err := p.dropGap(ctx, i, Drop{Ino: ino, After: after, Before: before})
		if err != nil {
			return err
		}
		p.rep.Policies[i].ByCount += n
		after = before
	}
	return nil
}

// boundBytes thins the oldest history under a policy until what only the past has fits into its MaxBytes. Bytes are those of ranges of files, as often
// as files have them: blobs that are shared count each time.
func (p *pruner) boundBytes(ctx context.Context, i int, byHand []Seq) error {
	p.c.mu.RLock()
	end := min(p.c.applied, p.asOf)
	p.c.mu.RUnlock()
	width := end/sizeBuckets + 1
	var buckets [sizeBuckets + 1]int64
	total := int64(0)
	for after := int64(0); after >= 0; {
		rows, next, err := p.pastExtents(ctx, after)
		if err != nil {
			return err
		}
		for _, r := range rows {
			if p.policyOf(ctx, r.ino) == i {
				buckets[min(r.to/width, sizeBuckets)] += r.len
				total += r.len
			}
		}
		after = next
		if err := p.pause(ctx); err != nil {
			return err
		}
	}
	max := p.o.Policies[i].MaxBytes
	if total <= max {
		return nil
	}
	cut := Seq(0)
	for b := 0; total > max && b <= sizeBuckets; b++ {
		total -= buckets[b]
		cut = min(Seq(b+1)*width, end)
	}
	before := p.rep.Policies[i].Versions
	err := p.thin(ctx, i, p.c.withHeld(byHand, cut))
	p.rep.Policies[i].BySize += p.rep.Policies[i].Versions - before
	return err
}

// HistoryBytes is Stats.HistoryBytes; it is measured now, by reading all extents, when no Prune has done that yet.
func (c *Catalog) HistoryBytes(ctx context.Context) (int64, error) {
	if n := c.historyBytes.Load(); n >= 0 {
		return n, nil
	}
	p := &pruner{c: c, o: PruneOptions{Slice: pruneSlice}, db: c.db, rep: &PruneReport{}}
	if err := p.measure(ctx); err != nil {
		return 0, c.readFailed("measure the history", err)
	}
	return c.historyBytes.Load(), nil
}

// measure adds up what only the past has.
func (p *pruner) measure(ctx context.Context) error {
	total := int64(0)
	for after := int64(0); after >= 0; {
		rows, next, err := p.pastExtents(ctx, after)
		if err != nil {
			return err
		}
		for _, r := range rows {
			total += r.len
		}
		after = next
		if err := p.pause(ctx); err != nil {
			return err
		}
	}
	p.c.historyBytes.Store(total)
	return nil
}

// pastExtent is a range that a file has no more.
type pastExtent struct {
	ino Ino
	to  Seq
	len int64
}

// pastExtents returns ranges that files of numbers above after have no more, and the number to go on behind; -1 at the end.
func (p *pruner) pastExtents(ctx context.Context, after int64) (rows []pastExtent, next int64, err error) {
	next = -1
	err = p.db.Read(ctx, func(c *sqldb.Conn) error {
		st := c.Prep("SELECT ino, to_seq, len FROM extents WHERE ino > ? ORDER BY ino").BindInt64(1, after)
		last := int64(0)
		for n := 0; ; n++ {
			ok, err := st.Step()
			if err != nil || !ok {
				return err
			}
			ino := st.Int64(0)
			if n > 4*p.o.Slice && ino != last { // whole inodes only
				next = last
				return st.Done()
			}
			last = ino
			if !st.IsNull(1) {
				rows = append(rows, pastExtent{Ino(ino), Seq(st.Int64(1)), st.Int64(2)})
			}
		}
	})
	return rows, next, err
}

// forgetPolicies forgets how far history was thinned under policies that are no more. Their files are under the policy above from now on, which may
// keep less.
func (p *pruner) forgetPolicies(ctx context.Context) error {
	var gone []Kept
	p.anew = make(map[int]bool)
	for _, path := range slices.Sorted(maps.Keys(p.kept)) {
		if slices.ContainsFunc(p.o.Policies, func(x Policy) bool { return x.Path == path }) {
			continue
		}
		for _, s := range p.kept[path] {
			gone = append(gone, Kept{Policy: path, Seq: s, Removed: true})
		}
		delete(p.kept, path)
		above := 0
		for i := range p.o.Policies {
			if x := p.o.Policies[i].Path; strings.HasPrefix(path, x+"/") && len(x) > len(p.o.Policies[above].Path) {
				above = i
			}
		}
		p.anew[above] = true
	}
	if len(gone) == 0 {
		return nil
	}
	return p.apply(ctx, &Pruned{Kept: gone})
}
