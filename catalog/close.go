package catalog

import (
	"context"
	"errors"

	"holdfast/internal/sqldb"
)

// Close writes deferred times, applies everything, makes it durable and releases the catalog. When applying fails the error
// says why; the journal has everything then, and the next Open goes on from there. A second Close returns nil.
func (c *Catalog) Close(ctx context.Context) error {
	var errs []error
	c.order.Lock()
	c.mu.RLock()
	closed := c.closed
	c.mu.RUnlock()
	if !closed && !c.opt.ReadOnly {
		errs = append(errs, c.writeDeferred(ctx))
	}
	c.mu.Lock()
	again := c.released
	c.closed, c.released = true, true
	c.mu.Unlock()
	c.order.Unlock()
	if again {
		return nil
	}
	c.wakeWaiters()
	clean := false
	if !c.opt.ReadOnly {
		c.app.stop()
		<-c.app.done
		c.dropComparison()
		err := c.Flush(ctx)
		if err == nil {
			err = c.makeDurable(ctx)
		}
		if err == nil {
			err = c.syncBodies(ctx)
		}
		if err == nil {
			err = c.db.Checkpoint(ctx, true)
			if clean = err == nil; errors.Is(err, sqldb.ErrBusy) {
				err = nil // a reader is left; the next Open finds the rows in the log
			}
		}
		errs = append(errs, err)
	}
	errs = append(errs, failed("close catalog.db", c.db.Close()), failed("close the journal", c.j.Close()))
	err := errors.Join(errs...)
	if clean && err == nil && !c.corrupt.Load() {
		if err := c.writeSums(ctx); err != nil {
			c.log.Warn("the next start will not know whether catalog.db is intact", "err", err)
		}
	}
	return err
}

// Stats describes the catalog as it is now.
func (c *Catalog) Stats(ctx context.Context) (Stats, error) {
	if err := ctx.Err(); err != nil {
		return Stats{}, err
	}
	s := Stats{JournalBytes: c.j.Bytes(), Synced: Seq(c.j.Synced()), LastError: errors.Join(c.app.lastError(), c.app.lastSyncError()), Damage: c.damage}
	c.mu.RLock()
	defer c.mu.RUnlock()
	s.Files, s.Dirs, s.Versions, s.VersionBytes = c.files, c.counts.dirs, c.versions, c.versionBytes
	if c.oldest != 0 {
		s.OldestVersion = unixTime(c.oldest)
	}
	s.Seq, s.Applied, s.NextIno = c.last, c.applied, c.nextIno
	s.PendingBytes, s.Pending = c.pendingBytes, len(c.queue)
	s.KnownIntact = c.intact
	s.Snapshots, s.HistoryBytes = len(c.snapshots), c.historyBytes.Load()
	if k := c.kept["/"]; len(k) > 0 {
		s.Horizon = k[len(k)-1]
	}
	return s, nil
}
