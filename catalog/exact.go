package catalog

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"holdfast/internal/sqldb"
)

// ErrThinned: retention has thinned the moment away. It is an ErrNotExist.
var ErrThinned = fmt.Errorf("thinned away by retention: %w", ErrNotExist)

// Exact is ErrThinned when retention has thinned away what an inode was after the record at: between two kept moments it may have been anything. The
// functions that read the past say so themselves; what they return is what was, or an error.
func (c *Catalog) Exact(ctx context.Context, ino Ino, at Seq) error {
	after, before, err := c.gapAt(ctx, ino, at)
	if err != nil || before == 0 {
		return err
	}
	if after == 0 {
		return fmt.Errorf("inode %d after record %d: %w; the oldest moment that is kept of it is @v%d", ino, at, ErrThinned, before)
	}
	return fmt.Errorf("inode %d after record %d: %w; the nearest moments that are kept of it are @v%d and @v%d", ino, at, ErrThinned, after, before)
}

// ExactFrom returns the first moment at or after at of which retention has kept what the inode was. What a version is made of can be read there, as
// long as the version is listed.
func (c *Catalog) ExactFrom(ctx context.Context, ino Ino, at Seq) (Seq, error) {
	for {
		_, before, err := c.gapAt(ctx, ino, at)
		if err != nil || before == 0 {
			return at, err
		}
		at = before // a gap may begin before the end of another
	}
}

// gapAt returns the kept moments around at between which the inode was thinned; before is 0 when it was not.
func (c *Catalog) gapAt(ctx context.Context, ino Ino, at Seq) (after, before Seq, err error) {
	c.mu.RLock()
	thinned := c.thinned
	c.mu.RUnlock()
	if at >= thinned {
		return 0, 0, nil
	}
	err = c.db.Read(ctx, func(conn *sqldb.Conn) error {
		after, before, err = loadGap(conn, ino, at)
		return err
	})
	return after, before, c.readFailed("read what retention has thinned", err)
}

func loadGap(c *sqldb.Conn, ino Ino, at Seq) (after, before Seq, err error) {
	st := c.Prep("SELECT "+gapsColumns+", row_sum FROM gaps WHERE ino = ? AND after < ? ORDER BY after DESC LIMIT 1").BindInt64(1, int64(ino)).BindInt64(2, int64(at))
	ok, err := st.Step()
	if err != nil || !ok {
		return 0, 0, err
	}
	var r rowRead
	if err := r.read(st, 0, tableGaps); err != nil {
		return 0, 0, err
	}
	if after, before = Seq(r.int(1)), Seq(r.int(2)); at >= before {
		after, before = 0, 0
	}
	return after, before, st.Done()
}

// markThinned is Exact for the inodes of entries.
func (c *Catalog) markThinned(ctx context.Context, entries []DirEntry, at Seq) error {
	c.mu.RLock()
	thinned := c.thinned
	c.mu.RUnlock()
	if at >= thinned || len(entries) == 0 {
		return nil
	}
	return c.readFailed("read what retention has thinned", c.db.Read(ctx, func(conn *sqldb.Conn) error {
		for i := range entries {
			e := &entries[i]
			_, before, err := loadGap(conn, e.Inode.Ino, at)
			if err != nil {
				return err
			}
			if before > 0 || e.Thinned {
				e.Inode, e.Thinned = Inode{Ino: e.Inode.Ino, Mode: e.Inode.Mode & typeMask}, true
			}
		}
		return nil
	}))
}

// orphanAt is orphan for the past: a directory that was thinned meanwhile may have had other names.
func (c *Catalog) orphanAt(ctx context.Context, parent Ino, name string, ino Ino, err error, p past) error {
	if !errors.Is(err, ErrStale) {
		return err
	}
	if err := c.Exact(ctx, parent, p.at); err != nil {
		return err
	}
	return c.orphan(parent, name, ino, err)
}

// Horizon returns the record from which on every moment of the store is kept, as far as directories have no policy of their own: 0 before
// anything was thinned.
func (c *Catalog) Horizon(ctx context.Context) (Seq, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	if k := c.kept["/"]; len(k) > 0 {
		return k[len(k)-1], nil
	}
	return 0, nil
}

// KeptMoments returns the moments before the horizon that are kept of what is under the policy of that path, in order, and at the end the horizon, from which on
// every moment is. None before anything was thinned under it.
func (c *Catalog) KeptMoments(ctx context.Context, policy string) ([]Seq, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	return slices.Clone(c.kept[policy]), nil
}

// ExactMoment is ErrThinned when what is under the policy of that path, as it was after the record at, is not kept as a whole: it lies below the policy's
// horizon and is no snapshot that the policy keeps. What did not change around it may still be read.
func (c *Catalog) ExactMoment(ctx context.Context, policy string, at Seq) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c.mu.RLock()
	kept := c.kept[policy]
	i, found := slices.BinarySearch(kept, at)
	c.mu.RUnlock()
	switch {
	case found || i == len(kept):
		return nil
	case i == 0:
		return fmt.Errorf("record %d: %w; the oldest moment that is kept is @v%d", at, ErrThinned, kept[0])
	}
	return fmt.Errorf("record %d: %w; the nearest moments that are kept are @v%d and @v%d", at, ErrThinned, kept[i-1], kept[i])
}

// rememberKept brings the moments in memory up to which history is thinned forward by one record.
func (s *state) rememberKept(p *Pruned) {
	for _, k := range p.Kept {
		list := s.kept[k.Policy]
		i, found := slices.BinarySearch(list, k.Seq)
		switch {
		case found && k.Removed:
			list = slices.Delete(slices.Clone(list), i, i+1)
		case !found && !k.Removed:
			list = slices.Insert(slices.Clone(list), i, k.Seq)
		}
		s.kept[k.Policy] = list
	}
}

// maxKept bounds the moments of all policies, which are kept in memory.
const maxKept = 1 << 20

func loadKept(ctx context.Context, db *sqldb.DB) (map[string][]Seq, error) {
	all, n := make(map[string][]Seq), 0
	err := db.Read(ctx, func(c *sqldb.Conn) error {
		st := c.Prep("SELECT " + keptColumns + ", row_sum FROM kept ORDER BY policy, seq")
		var r rowRead
		for {
			ok, err := st.Step()
			if err != nil || !ok {
				return err
			}
			if err := r.read(st, 0, tableKept); err != nil {
				return err
			}
			if n++; n > maxKept || len(r.bytes(0)) > MaxPath {
				return fmt.Errorf("catalog.db: the kept moments are impossible: %w", sqldb.ErrCorrupt)
			}
			policy := string(r.bytes(0))
			all[policy] = append(all[policy], Seq(r.int(1)))
		}
	})
	return all, err
}
