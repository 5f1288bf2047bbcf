package catalog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"holdfast/internal/sqldb"
)

// Policy says how much history is kept of what is below a directory, as far as no directory in between has a policy of its own.
type Policy struct {
	Path string // of the directory: "/" for the policy that holds where no other does
	Dir  Ino

	KeepAll time.Duration // every moment of so long
	// Then the last of each hour, day and week with an automatic snapshot, until they are so old.
	Hourly, Daily, Weekly time.Duration

	MaxVersions int   // of one file, the newest ones; 0: no bound
	MaxBytes    int64 // of content that only the past has, over all of the policy's files; 0: no bound
}

// DefaultPolicy keeps everything for 24 hours, then the last of each hour for 7 days, of each day for 30 days, of each week for a year.
func DefaultPolicy() Policy {
	const day = 24 * time.Hour
	return Policy{Path: "/", Dir: Root, KeepAll: day, Hourly: 7 * day, Daily: 30 * day, Weekly: 365 * day}
}

// keeps returns the snapshots of list, oldest first, that p keeps at the time now: those that are pinned or were made by hand, and automatic ones
// by their age.
func (p *Policy) keeps(list []Snapshot, now time.Time) []Snapshot {
	var out []Snapshot
	for i, s := range list {
		if s.Pinned || !s.Auto || p.keepsAuto(list[i+1:], unixTime(s.Time), now) {
			out = append(out, s)
		}
	}
	return out
}

// keepsAuto is keeps for the automatic snapshot of the time t; later are the snapshots after it.
func (p *Policy) keepsAuto(later []Snapshot, t, now time.Time) bool {
	age := now.Sub(t)
	if age <= p.KeepAll {
		return true
	}
	last := func(bucket func(time.Time) int64) bool {
		for _, s := range later {
			if s.Auto && unixTime(s.Time).After(t) {
				return bucket(unixTime(s.Time)) != bucket(t)
			}
		}
		return true
	}
	switch {
	case age <= p.Hourly:
		return last(hourOf)
	case age <= p.Daily:
		return last(dayOf)
	case age <= p.Weekly:
		return last(weekOf)
	}
	return false
}

// The hour, day and week that a snapshot ends: one of midnight sharp belongs to the day before it. Weeks begin on Monday.
func hourOf(t time.Time) int64 { return (t.Unix() - 1) / 3600 }
func dayOf(t time.Time) int64  { return (t.Unix() - 1) / 86400 }
func weekOf(t time.Time) int64 { return (dayOf(t) + 3) / 7 } // 1970 began on a Thursday

// check says whether the policies can be used: the first is that of the root, and none names a directory twice.
func checkPolicies(list []Policy) error {
	if len(list) == 0 || list[0].Dir != Root {
		return fmt.Errorf("%w: the first policy must be that of the root", ErrInvalid)
	}
	paths, dirs := make(map[string]bool), make(map[Ino]bool)
	for _, p := range list {
		switch {
		case paths[p.Path] || dirs[p.Dir]:
			return fmt.Errorf("%w: two policies for %s", ErrInvalid, p.Path)
		case p.Path == "" || len(p.Path) > MaxPath || p.Dir == 0:
			return fmt.Errorf("%w: a policy for %q", ErrInvalid, p.Path)
		case min(p.KeepAll, p.Hourly, p.Daily, p.Weekly) < 0 || p.MaxVersions < 0 || p.MaxBytes < 0:
			return fmt.Errorf("%w: the policy of %s has a negative bound", ErrInvalid, p.Path)
		}
		paths[p.Path], dirs[p.Dir] = true, true
	}
	return nil
}

// AutoSnapshots makes the automatic snapshots that are due at the time now: one for each full hour in which something changed, named by the
// end of that hour (RFC 3339, UTC). It returns those that it made. Where there were many such hours since the last one, it makes at most 1000.
func (c *Catalog) AutoSnapshots(ctx context.Context, now time.Time) (made []Snapshot, err error) {
	due, err := c.dueSnapshots(ctx, now)
	if err != nil {
		return nil, err
	}
	for _, s := range due {
		s, err := c.createSnapshot(ctx, Actor{Agent: "holdfast", Program: "holdfast"}, s)
		switch {
		case err == nil:
			made = append(made, s)
		case !errors.Is(err, ErrExist): // somebody may have taken the name meanwhile
			return made, err
		}
	}
	return made, nil
}

// maxDue bounds the snapshots that one call of AutoSnapshots makes.
const maxDue = 1000

// dueSnapshots returns the snapshots that AutoSnapshots makes. Hours that retention has been through are over.
func (c *Catalog) dueSnapshots(ctx context.Context, now time.Time) (due []Snapshot, err error) {
	end := now.UTC().Truncate(time.Hour) // of the last full hour
	newest, err := c.SeqAt(ctx, end)
	if err != nil {
		return nil, err
	}
	done, err := c.Horizon(ctx)
	if err != nil {
		return nil, err
	}
	list, err := c.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	names := make(map[string]bool, len(list))
	for _, s := range list {
		names[s.Name] = true
		if s.Auto {
			done = max(done, s.Seq)
		}
	}
	for len(due) < maxDue && done < newest {
		at, err := c.nextChange(ctx, done+1, newest)
		if err != nil || at.IsZero() {
			return due, err
		}
		hour := at.UTC().Truncate(time.Hour).Add(time.Hour)
		if hour.After(end) {
			break
		}
		s := Snapshot{Name: hour.Format(time.RFC3339), Auto: true, Time: hour.UnixNano()}
		if s.Seq, err = c.SeqAt(ctx, hour); err != nil {
			return due, err
		}
		if !names[s.Name] {
			due = append(due, s)
		}
		done = s.Seq
	}
	return due, nil
}

// nextChange returns the time of the first record from from to upTo that changes what programs see; the zero time when there is none.
func (c *Catalog) nextChange(ctx context.Context, from, upTo Seq) (time.Time, error) {
	p := c.moment(Head)
	first := Head
	err := c.db.Read(ctx, func(conn *sqldb.Conn) error { // every such record writes the row of an inode
		st := conn.Prep("SELECT from_seq FROM inodes WHERE from_seq >= ? ORDER BY from_seq LIMIT 1").BindInt64(1, int64(from))
		ok, err := st.Step()
		if err == nil && ok {
			first = Seq(st.Int64(0))
		}
		return err
	})
	if err != nil {
		return time.Time{}, c.readFailed("look for the next change", err)
	}
	for _, q := range p.recs {
		if q.rec.Seq >= from && len(q.rec.Inodes) > 0 {
			first = min(first, q.rec.Seq)
			break
		}
	}
	if first > upTo {
		return time.Time{}, nil
	}
	return c.TimeOf(ctx, first)
}

// momentsOf returns the kept moments of a policy below its horizon, in order, and the horizon itself at the end: from there on every moment is kept.
// The horizon is not behind asOf.
func (c *Catalog) momentsOf(ctx context.Context, p *Policy, list []Snapshot, now time.Time, asOf Seq) ([]Seq, error) {
	horizon, err := c.SeqAt(ctx, now.Add(-p.KeepAll))
	if err != nil {
		return nil, err
	}
	var all []Seq
	for _, s := range p.keeps(list, now) {
		all = append(all, s.Seq)
	}
	return c.withHeld(all, min(horizon, asOf)), nil
}

// withHeld returns the moments of all that lie below horizon, those that somebody holds, and horizon, in order.
func (c *Catalog) withHeld(all []Seq, horizon Seq) []Seq {
	all = append(slices.Clone(all), c.pins.held()...)
	all = slices.DeleteFunc(all, func(s Seq) bool { return s >= horizon || s == 0 })
	if horizon > 0 {
		all = append(all, horizon)
	}
	slices.SortFunc(all, func(a, b Seq) int { return cmp.Compare(a, b) })
	return slices.Compact(all)
}
