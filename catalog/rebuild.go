package catalog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"holdfast/catalog/journal"
	"holdfast/internal/durable"
	"holdfast/internal/sqldb"
)

// scratch is a catalog.db that is made from checkpoint and journal, beside the one in use.
type scratch struct {
	c    *Catalog
	dir  string
	db   *sqldb.DB
	w    rowWriter
	meta meta
	bad  []error // checkpoints that are damaged
	lost []error // what of the journal, behind the checkpoint, could not be read: the scratch lacks what it said
}

func (c *Catalog) newScratch(ctx context.Context) (s *scratch, err error) {
	s = &scratch{c: c, w: newRowWriter()}
	if s.dir, err = os.MkdirTemp(c.opt.Dir, dryRunPrefix+"*"); err != nil {
		return nil, failed("make a directory", err)
	}
	defer func() {
		if err != nil {
			s.discard()
			s = nil
		}
	}()
	path := filepath.Join(s.dir, dbName)
	list, err := checkpoints(c.opt.Dir)
	if err != nil {
		return s, failed("list the checkpoints", err)
	}
	for _, cp := range list {
		err := c.copyCheckpoint(ctx, cp, path)
		if err == nil {
			break
		}
		if !errors.Is(err, ErrDamaged) {
			return s, err
		}
		s.bad = append(s.bad, fmt.Errorf("checkpoint %s: %w", cp.name, err))
	}
	s.db, err = sqldb.Open(ctx, sqldb.Options{Path: path, Schema: schema, Version: dbFormat, Shrinkable: true, CacheBytes: 16 << 20,
		Upgrades: []string{schema2, ""}, Upgrade: upgradeRows, Readers: 1})
	if err != nil {
		return s, failed("make a new catalog.db", err)
	}
	s.meta, err = loadMeta(ctx, s.db, c.opt.StoreID)
	return s, failed("read a checkpoint", err)
}

// discard removes the scratch.
func (s *scratch) discard() {
	if s.db != nil {
		s.db.Close()
		s.db = nil
	}
	os.RemoveAll(s.dir)
}

// errEnough ends a replay at its bound.
var errEnough = errors.New("enough")

// advance applies up to max records, none behind upTo. It returns whether the scratch is at upTo.
func (s *scratch) advance(ctx context.Context, upTo Seq, max int) (done bool, err error) {
	var batch []*pending
	var size int64
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		err := writeRows(ctx, s.db, &s.w, &s.meta, batch)
		batch, size = nil, 0
		return failed("write a new catalog.db", err)
	}
	if s.meta.applied >= upTo {
		return true, nil
	}
	n := 0
	err = s.c.readRecords(ctx, s.meta.applied+1, s.meta.applied, func(p *pending) error {
		if p.rec.Seq > upTo || n == max {
			return errEnough
		}
		n++
		batch = append(batch, p)
		if size += p.bytes; len(batch) < maxBatch && size < maxBatchBytes {
			return nil
		}
		return flush()
	}, func(err error) {
		var damage *journal.DamageError
		if errors.As(err, &damage) && Seq(damage.First) > upTo {
			return // behind what is asked for
		}
		s.lost = append(s.lost, err)
	})
	enough := errors.Is(err, errEnough)
	if err != nil && !enough {
		return false, err
	}
	if err := flush(); err != nil {
		return false, err
	}
	return !enough || n < max, nil
}

// Rebuild makes catalog.db anew from checkpoint and journal, and puts it in the place of the old one, which goes to quarantine. Reads and mutations go on
// meanwhile, but for the moment of the exchange; what they find damaged is ErrDamaged until then. ErrDamaged, and nothing is changed, when the journal lacks
// records that are needed: HealJournal comes first. ErrReadOnly.
func (c *Catalog) Rebuild(ctx context.Context) (err error) {
	if c.opt.ReadOnly {
		return ErrReadOnly
	}
	select {
	case c.pruneTurn <- struct{}{}:
		defer func() { <-c.pruneTurn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	s, err := c.newScratch(ctx)
	if err != nil {
		return fmt.Errorf("rebuild catalog.db: %w", err)
	}
	defer s.discard()
	if err := c.rebuildWith(ctx, s); err != nil {
		return fmt.Errorf("rebuild catalog.db: %w", err)
	}
	c.log.Info("catalog.db was rebuilt from the journal", "dir", c.opt.Dir, "applied", s.meta.applied)
	return nil
}

func (c *Catalog) rebuildWith(ctx context.Context, s *scratch) error {
	// Most of the work is done beside the applier.
	c.mu.RLock()
	applied := c.applied
	c.mu.RUnlock()
	for done := false; !done; {
		var err error
		if done, err = s.advance(ctx, applied, maxBatch); err != nil {
			return err
		}
	}
	c.app.mu.Lock()
	defer c.app.mu.Unlock()
	for done := false; !done; {
		var err error
		if done, err = s.advance(ctx, c.app.meta.applied, maxBatch); err != nil {
			return err
		}
	}
	if len(s.lost) > 0 {
		return fmt.Errorf("%w: the journal lacks what is needed: %w", ErrDamaged, errors.Join(append(s.bad, s.lost...)...))
	}
	s.meta.applied, s.meta.blobsSeq = c.app.meta.applied, c.app.meta.blobsSeq
	if err := s.db.Write(ctx, s.meta.save); err != nil {
		return failed("write a new catalog.db", err)
	}
	err := s.db.Checkpoint(ctx, true)
	err = errors.Join(err, s.db.Close())
	s.db = nil
	if err != nil {
		return failed("write a new catalog.db", err)
	}
	if err := durable.SyncFile(filepath.Join(s.dir, dbName)); err != nil {
		return failed("write a new catalog.db", err)
	}
	c.order.Lock()
	defer c.order.Unlock()
	err = c.db.Replace(ctx, func() error {
		if err := setAside(c.opt.Dir); err != nil {
			return err
		}
		return durable.Rename(filepath.Join(s.dir, dbName), filepath.Join(c.opt.Dir, dbName))
	})
	if err != nil {
		return failed("exchange catalog.db", err)
	}
	c.app.meta = s.meta
	c.app.w.reset()
	if err := c.refresh(ctx); err != nil {
		return err
	}
	if err := durable.RemoveSync(filepath.Join(c.opt.Dir, rebuildName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	c.corrupt.Store(false)
	signal(c.app.wake)
	signal(c.app.urgent)
	return nil
}

// refresh forgets what memory has from the old catalog.db, and brings what it always has up to the new one. The caller holds app.mu and order.
func (c *Catalog) refresh(ctx context.Context) error {
	snapshots, err := loadSnapshots(ctx, c.db)
	if err != nil {
		return failed("read the snapshots", err)
	}
	kept, err := loadKept(ctx, c.db)
	if err != nil {
		return failed("read the kept moments", err)
	}
	c.forgetPaths()
	c.mu.RLock()
	attributes := make(map[Ino]*xattrSet)
	queue := c.queue
	for ino, n := range c.xattrs.m {
		if n.seq != 0 {
			attributes[ino] = nil
		}
	}
	c.mu.RUnlock()
	for ino := range attributes {
		m, err := loadXattrs(ctx, c.db, ino, Head)
		if err != nil {
			return failed("read attributes", err)
		}
		attributes[ino] = newXattrSet(m)
	}
	for _, q := range queue {
		for i := range q.rec.Xattrs {
			x := &q.rec.Xattrs[i]
			if set := attributes[x.Ino]; set != nil {
				attributes[x.Ino] = set.with(x)
			}
		}
	}
	c.settling.Lock()
	defer c.settling.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inodes.dropClean()
	c.names.dropClean()
	c.xattrs.dropClean()
	c.content.dropClean()
	for ino, set := range attributes {
		c.xattrs.m[ino].val = set
	}
	for _, n := range c.content.m {
		n.val.live = nil
	}
	c.filters = newFilters()
	c.snapshots, c.kept = snapshots, kept
	m := c.app.meta
	for _, q := range queue {
		c.rememberSnapshots(&q.rec)
		if q.rec.Pruned != nil {
			c.rememberKept(q.rec.Pruned)
		}
		m.advance(&q.rec)
	}
	m.applied = c.app.meta.applied
	m.nextIno, m.nextCookie = max(m.nextIno, c.nextIno), max(m.nextCookie, c.nextCookie)
	c.meta = m
	c.gen++
	return nil
}
