package catalog

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"holdfast/blobstore"
	"holdfast/internal/sqldb"
)

const (
	// looseStep is the number of blobs that are looked at while no change of the catalog can happen.
	looseStep = 256
	// forgetStep is the number of blobs of which the records become durable together.
	forgetStep = 8 * looseStep
	// sweepStep is the number of blobs that are compared with the catalog in one step.
	sweepStep = 1024
)

// blobs deletes the blobs that nothing names any more. A blob goes in two steps: a record says that it is forgotten, and then it is deleted. In
// between, and before, it may be named again: a pinned blob is never deleted, and one that is being deleted cannot be pinned.
func (p *pruner) blobs(ctx context.Context) error {
	for after := (blobstore.Hash{}); ; {
		list, err := loadLoose(ctx, p.db, after, false, forgetStep)
		if err != nil {
			return p.c.readFailed("read which blobs may be named by nothing", err)
		}
		if len(list) == 0 {
			break
		}
		after = list[len(list)-1]
		if err := p.forget(ctx, list); err != nil {
			return err
		}
		if err := p.pause(ctx); err != nil {
			return err
		}
	}
	if p.o.DryRun {
		return nil
	}
	if err := p.c.deleteForgotten(ctx, p.pause); err != nil {
		return err
	}
	if !p.o.Sweep {
		return nil
	}
	p.o.Sweep = false
	if err := p.sweep(ctx); err != nil {
		return err
	}
	return p.blobs(ctx)
}

// loadLoose reads up to limit loose blobs with names behind after.
func loadLoose(ctx context.Context, db *sqldb.DB, after blobstore.Hash, forgotten bool, limit int64) (list []blobstore.Hash, err error) {
	state := int64(0)
	if forgotten {
		state = 1
	}
	err = db.Read(ctx, func(c *sqldb.Conn) error {
		st := c.Prep("SELECT "+looseColumns+", row_sum FROM loose WHERE hash > ? AND forgotten = ? ORDER BY hash LIMIT ? + 0").BindBytes(1, after[:]).BindInt64(2, state).BindInt64(3, limit)
		var r rowRead
		for {
			ok, err := st.Step()
			if err != nil || !ok {
				return err
			}
			if err := r.read(st, 0, tableLoose); err != nil {
				return err
			}
			if len(r.bytes(0)) != len(after) {
				return fmt.Errorf("catalog.db: the name of a blob has %d bytes: %w", len(r.bytes(0)), sqldb.ErrCorrupt)
			}
			list = append(list, blobstore.Hash(r.bytes(0)))
		}
	})
	return list, err
}

// forget records those of the blobs that nothing names, and takes those that something names off the list of loose ones. The records become durable together.
func (p *pruner) forget(ctx context.Context, list []blobstore.Hash) error {
	var named, leaving []blobstore.Hash
	var err error
	for part := range slices.Chunk(list, looseStep) {
		var use []blobstore.Hash
		if use, err = p.forgetSome(ctx, part, &leaving); err != nil {
			break
		}
		named = append(named, use...)
	}
	if p.o.DryRun {
		p.c.pins.left(leaving)
		return err
	}
	// Until catalog.db has the records its rows of the blobs cannot be relied on, whatever ends this run; if they never get there, nobody relies on them until the next start.
	if flushed := p.c.Flush(context.WithoutCancel(ctx)); flushed != nil {
		return errors.Join(err, flushed)
	}
	p.c.pins.left(leaving)
	if err != nil {
		return err
	}
	return p.c.notLoose(ctx, named)
}

// forgetSome is forget of up to looseStep blobs, in one record. It returns those that something names, and adds to leaving those that nobody may rely on until catalog.db has the record.
func (p *pruner) forgetSome(ctx context.Context, list []blobstore.Hash, leaving *[]blobstore.Hash) (named []blobstore.Hash, err error) {
	var x Pruned
	choose := func() error {
		bytes := int64(0)
		busy := p.c.inFlight(list)
		err := p.db.Read(ctx, func(c *sqldb.Conn) error {
			for _, h := range list {
				used, size, err := blobUse(c, h)
				switch {
				case err != nil:
					return err
				case used:
					named = append(named, h)
				case busy[h] || !p.c.pins.leave(h):
				default:
					*leaving = append(*leaving, h)
					x.Forgotten, bytes = append(x.Forgotten, h), bytes+max(size, 0)
				}
			}
			return nil
		})
		if err == nil {
			p.rep.Blobs, p.rep.BlobBytes = p.rep.Blobs+int64(len(x.Forgotten)), p.rep.BlobBytes+bytes
		}
		return err
	}
	if p.o.DryRun {
		return named, choose()
	}
	err = p.c.mutate(ctx, p.actor(), OpPrune, func(t *txn) error {
		if err := choose(); err != nil || len(x.Forgotten) == 0 {
			return err
		}
		t.p.rec.Pruned = &x
		return nil
	})
	if err == nil {
		p.c.pruneDebt += int64(len(x.Forgotten))
	}
	return named, err
}

// notLoose takes blobs off the list of those that may be named by nothing.
func (c *Catalog) notLoose(ctx context.Context, list []blobstore.Hash) error {
	if len(list) == 0 {
		return nil
	}
	return failed("write catalog.db", c.db.Write(ctx, func(conn *sqldb.Conn) error {
		for i := range list {
			if err := conn.Prep("DELETE FROM loose WHERE hash = ? AND forgotten = 0").BindBytes(1, list[i][:]).Exec(); err != nil {
				return err
			}
		}
		return nil
	}))
}

// blobUse says whether a range of a file names a blob, and how large it is; -1 when no record has named it, or it is forgotten.
func blobUse(c *sqldb.Conn, h blobstore.Hash) (used bool, size int64, err error) {
	st := c.Prep("SELECT 1 FROM extents WHERE substr(blob, 1, 8) = ? AND blob = ? LIMIT 1").BindBytes(1, h[:8]).BindBytes(2, h[:])
	if used, err = st.Step(); err != nil {
		return false, 0, err
	}
	if err := st.Done(); err != nil {
		return false, 0, err
	}
	b, ok, err := readBlob(c, h)
	if err != nil || !ok {
		return used, -1, err
	}
	return used, b.ref.Size, nil
}

// inFlight says which of the blobs are named by records that are not in catalog.db yet.
func (c *Catalog) inFlight(list []blobstore.Hash) map[blobstore.Hash]bool {
	busy := make(map[blobstore.Hash]bool, len(list))
	c.mu.RLock()
	defer c.mu.RUnlock()
	waiting := make(map[blobstore.Hash]struct{})
	for _, q := range c.queue {
		for i := range q.rec.Splices {
			for j := range q.rec.Splices[i].Extents {
				waiting[q.rec.Splices[i].Extents[j].Blob.Hash] = struct{}{}
			}
		}
	}
	for _, h := range list {
		_, named := waiting[h]
		_, fresh := c.newBlobs[h]
		if named || fresh {
			busy[h] = true
		}
	}
	return busy
}

// deleteForgotten deletes the blobs that records have said to be forgotten.
func (c *Catalog) deleteForgotten(ctx context.Context, pause func(context.Context) error) error {
	for after := (blobstore.Hash{}); ; {
		list, err := loadLoose(ctx, c.db, after, true, blobstore.MaxDelete)
		if err != nil {
			return c.readFailed("read which blobs are forgotten", err)
		}
		if len(list) == 0 {
			return nil
		}
		after = list[len(list)-1]
		// The records that forget them are durable: catalog.db never runs ahead of the journal.
		_, done, err := c.deleteBlobs(ctx, list)
		if err != nil {
			return err
		}
		if err := c.buriedBlobs(ctx, done); err != nil {
			return err
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// deleteBlobs deletes those of up to blobstore.MaxDelete blobs that nobody has pinned, that no record has named which was not forgotten, and that no file names: each is looked at while
// nobody can pin it, and until they are deleted. It returns which it has deleted, and of which nothing is left to do. After an error each may be deleted, and none counts as done.
func (c *Catalog) deleteBlobs(ctx context.Context, list []blobstore.Hash) (deleted, done []blobstore.Hash, err error) {
	dying := make([]blobstore.Hash, 0, len(list))
	defer func() { c.pins.buried(dying) }()
	for _, h := range list {
		if c.pins.kill(h) {
			dying = append(dying, h)
		}
	}
	for _, h := range dying {
		_, known, err := c.HasBlob(ctx, h)
		if err != nil {
			return nil, nil, err
		}
		if !known { // else it was named again
			deleted = append(deleted, h)
		}
	}
	// Nothing can have named them: HasBlob did not know them for whoever pinned them. They are looked for all the same: a blob lost cannot be made good.
	if deleted, err = c.unused(ctx, deleted); err != nil {
		return nil, nil, err
	}
	if len(deleted) == 0 {
		return nil, dying, nil
	}
	if err := c.opt.check(stageDelete); err != nil {
		return nil, nil, err
	}
	if err := c.blobs.DeleteBatch(ctx, deleted); err != nil {
		return nil, nil, failed(fmt.Sprintf("delete %d blobs", len(deleted)), err)
	}
	return deleted, dying, nil
}

// unused returns those of the blobs that no file names.
func (c *Catalog) unused(ctx context.Context, list []blobstore.Hash) (free []blobstore.Hash, err error) {
	busy := c.inFlight(list)
	err = c.db.Read(ctx, func(conn *sqldb.Conn) error {
		for _, h := range list {
			named, _, err := blobUse(conn, h)
			if err != nil {
				return err
			}
			if named || busy[h] {
				c.log.Error("a blob that was to be deleted is still named by a file, and is kept; check the store", "blob", h)
				continue
			}
			free = append(free, h)
		}
		return nil
	})
	if err != nil {
		return nil, c.readFailed("look for files that name a blob", err)
	}
	return free, nil
}

// buriedBlobs forgets that blobs were to be deleted.
func (c *Catalog) buriedBlobs(ctx context.Context, list []blobstore.Hash) error {
	if len(list) == 0 {
		return nil
	}
	return failed("write catalog.db", c.db.Write(ctx, func(conn *sqldb.Conn) error {
		for i := range list {
			if err := conn.Prep("DELETE FROM loose WHERE hash = ? AND forgotten = 1").BindBytes(1, list[i][:]).Exec(); err != nil {
				return err
			}
		}
		return nil
	}))
}

// loosenUnused puts those of the blobs that no range of a file names on the list of loose ones: a record may name a blob and put another in its
// place at once.
func (p *pruner) loosenUnused(ctx context.Context, list []blobstore.Hash) error {
	var unused []blobstore.Hash
	err := p.db.Read(ctx, func(c *sqldb.Conn) error {
		for _, h := range list {
			used, size, err := blobUse(c, h)
			if err != nil {
				return err
			}
			if !used && size >= 0 {
				unused = append(unused, h)
			}
		}
		return nil
	})
	if err != nil || len(unused) == 0 {
		return p.c.readFailed("look for blobs that nothing names", err)
	}
	return failed("write catalog.db", p.db.Write(ctx, func(c *sqldb.Conn) error {
		for i := range unused {
			if err := putLoose(c, unused[i][:], 0); err != nil {
				return err
			}
		}
		return nil
	}))
}

// sweep deletes the blobs that no record has named: a process was killed before it could write the record.
func (p *pruner) sweep(ctx context.Context) error {
	full := errors.New("enough")
	for after := (blobstore.Hash{}); ; {
		var list []blobstore.Hash
		err := p.c.blobs.List(ctx, after, func(h blobstore.Hash) error {
			list = append(list, h)
			if len(list) == sweepStep {
				return full
			}
			return nil
		})
		if err != nil && !errors.Is(err, full) {
			return failed("list the blobs", err)
		}
		if err := p.loosenUnused(ctx, list); err != nil {
			return err
		}
		strays, err := p.strays(ctx, list)
		if err != nil {
			return err
		}
		for len(strays) > 0 {
			n := min(len(strays), blobstore.MaxDelete)
			deleted, _, err := p.c.deleteBlobs(ctx, strays[:n])
			if err != nil {
				return err
			}
			p.rep.Orphans += int64(len(deleted))
			strays = strays[n:]
		}
		if len(list) < sweepStep {
			return nil
		}
		after = list[len(list)-1]
		if err := p.pause(ctx); err != nil {
			return err
		}
	}
}

// strays returns those of the blobs that no record has named so far: most have been, and are not kept from being pinned while that is found out.
func (p *pruner) strays(ctx context.Context, list []blobstore.Hash) (strays []blobstore.Hash, err error) {
	for _, h := range list {
		_, known, err := p.c.HasBlob(ctx, h)
		if err != nil {
			return nil, err
		}
		if !known {
			strays = append(strays, h)
		}
	}
	return strays, nil
}
