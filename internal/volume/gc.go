package volume

import (
	"context"
	"errors"
	"time"

	"holdfast/catalog"
)

const (
	// houseEvery is how often the store looks for automatic snapshots that are due, pruneEvery how many of those times pass between two thinnings.
	houseEvery = time.Minute
	pruneEvery = 10
	// longestPause bounds how long the background work waits between two of its steps.
	longestPause = 200 * time.Millisecond
)

// Prune takes away what the retention policies no longer keep, deletes the blobs that nothing names any more, and compacts the journal and the catalog;
// with dryRun it says what it would take: see catalog.Prune and catalog.Compact. Files that are open keep all that they need. The background work does
// the same from time to time.
func (v *Volume) Prune(ctx context.Context, dryRun bool) (catalog.PruneReport, error) {
	rep, err := v.pruneAt(ctx, catalog.PruneOptions{DryRun: dryRun, Sweep: true, Pause: pacer(4)})
	if err == nil && !dryRun {
		rep.Compacted, err = v.cat.Compact(ctx, true, pacer(4))
	}
	return rep, err
}

func (v *Volume) pruneAt(ctx context.Context, o catalog.PruneOptions) (catalog.PruneReport, error) {
	if v.readOnly && !o.DryRun {
		return catalog.PruneReport{}, catalog.ErrReadOnly
	}
	var err error
	if o.Policies, err = v.Policies(ctx); err != nil {
		return catalog.PruneReport{}, err
	}
	o.InUse = v.isOpen
	return v.cat.Prune(ctx, o)
}

// pacer returns a function that waits a share of the time that has passed since it returned last: 1 for as long, 4 for a quarter.
func pacer(share int) func(context.Context) error {
	last := time.Now()
	return func(ctx context.Context) error {
		wait := time.NewTimer(min(time.Since(last)/time.Duration(share), longestPause))
		defer wait.Stop()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-wait.C:
		}
		last = time.Now()
		return nil
	}
}

// housekeep makes automatic snapshots and thins the history, until ctx ends.
func (v *Volume) housekeep(ctx context.Context) {
	tick := time.NewTicker(houseEvery)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			if err := v.house(ctx, now, n%pruneEvery == 0, n == 0); err != nil && ctx.Err() == nil {
				v.log.Error("cannot thin the history; nothing of it is lost, and it is tried again", "error", err)
			}
		}
	}
}

// house is one turn of housekeep.
func (v *Volume) house(ctx context.Context, now time.Time, prune, sweep bool) error {
	made, err := v.cat.AutoSnapshots(ctx, now)
	if len(made) > 0 {
		v.log.Debug("automatic snapshots", "made", len(made), "newest", made[len(made)-1].Name)
	}
	if err != nil || !prune {
		return err
	}
	rep, err := v.pruneAt(ctx, catalog.PruneOptions{Now: now, Sweep: sweep, Pause: pacer(1)})
	if err == nil && rep.Versions()+rep.Blobs+rep.Orphans > 0 {
		v.log.Info("history thinned", "versions", rep.Versions(), "blobs", rep.Blobs, "bytes", rep.BlobBytes, "snapshots", len(rep.Snapshots))
	}
	if err == nil {
		_, err = v.cat.Compact(ctx, false, pacer(1))
	}
	return err
}

// Exact is nil when the state of ino after the record at, and, of a directory, the moment as a whole, is what it was; catalog.ErrThinned when retention
// has taken some of it away, with a text that names the nearest moments that are kept.
func (v *Volume) Exact(ctx context.Context, ino catalog.Ino, at catalog.Seq) error {
	policies, err := v.Policies(ctx)
	if err != nil {
		return err
	}
	under, err := v.policyOf(ctx, policies, ino)
	if err != nil {
		return err
	}
	if err := v.cat.ExactMoment(ctx, under.Path, at); err != nil {
		return err
	}
	return v.cat.Exact(ctx, ino, at)
}

// policyOf returns the one of policies under which ino is.
func (v *Volume) policyOf(ctx context.Context, policies []catalog.Policy, ino catalog.Ino) (catalog.Policy, error) {
	for depth := 0; len(policies) > 1 && depth < 1<<16; depth++ {
		for _, p := range policies {
			if p.Dir == ino {
				return p, nil
			}
		}
		row, err := v.cat.Get(ctx, ino)
		if errors.Is(err, catalog.ErrStale) {
			break
		}
		if err != nil {
			return catalog.Policy{}, err
		}
		if row.Parent == ino {
			break
		}
		ino = row.Parent
	}
	return policies[0], nil
}

// ExactFrom is catalog.ExactFrom.
func (v *Volume) ExactFrom(ctx context.Context, ino catalog.Ino, at catalog.Seq) (catalog.Seq, error) {
	return v.cat.ExactFrom(ctx, ino, at)
}

// Horizon is catalog.Horizon.
func (v *Volume) Horizon(ctx context.Context) (catalog.Seq, error) { return v.cat.Horizon(ctx) }
