package catalog

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"holdfast/blobstore"
	"holdfast/catalog/journal"
	"holdfast/internal/sqldb"
)

// Commit changes the content of a regular file, in one record: splice, inode, and version when cm asks for one. It returns the
// row as it is afterwards. It survives a killed process on return and a power cut after Sync. Large blobs are in the blobstore
// before the call. ErrStale, ErrIsDir, ErrInvalid; ErrNoSpace when neither the journal nor memory takes it.
func (c *Catalog) Commit(ctx context.Context, who Actor, cm Commit) (Inode, error) {
	if cm.Op == "" {
		cm.Op = OpWrite
	}
	if cm.Size < 0 || cm.Size > MaxSize {
		return Inode{}, fmt.Errorf("%w: a file cannot have %d bytes", ErrTooBig, cm.Size)
	}
	if err := c.admit(ctx); err != nil {
		return Inode{}, err
	}
	if err := c.pinNew(ctx, &cm); err != nil {
		return Inode{}, err
	}
	defer c.unpinNew(&cm)
	if cm.UnsyncedBlobs {
		c.blobGate.RLock() // held across the append: see makeDurable
		defer c.blobGate.RUnlock()
	}
	c.order.Lock()
	defer c.order.Unlock()
	var row Inode
	err := c.mutateLocked(who, cm.Op, func(t *txn) (err error) {
		row, err = t.commitContent(ctx, &cm)
		return err
	})
	if err != nil {
		return Inode{}, err
	}
	return row, nil
}

func (t *txn) commitContent(ctx context.Context, cm *Commit) (Inode, error) {
	row, err := t.inode(ctx, cm.Ino)
	if err != nil {
		return row, err
	}
	switch row.Mode & typeMask {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		return row, ErrIsDir
	default:
		return row, fmt.Errorf("%w: inode %d is no regular file", ErrInvalid, cm.Ino)
	}
	if row, err = t.content(ctx, row, cm); err != nil {
		return row, err
	}
	t.p.unsynced = t.p.unsynced || cm.UnsyncedBlobs
	t.aboutInode(ctx, &row)
	if cm.Conflict != nil && cm.NewVersion {
		x := *cm.Conflict
		x.Won, x.WonBy = row.Ver, t.p.rec.Actor
		t.addConflict(x, cm.Ino)
	}
	t.set(row)
	return row, nil
}

// content gathers the rows of a Commit but for the inode's, which it returns.
func (t *txn) content(ctx context.Context, row Inode, cm *Commit) (Inode, error) {
	r := &t.p.rec
	s := cm.Splice
	s.Ino = cm.Ino
	if cm.Size < row.Size {
		s.Cut = min(s.Cut, cm.Size)
	}
	if n := len(s.Extents); n > 0 {
		if last := s.Extents[n-1]; last.Off > cm.Size-last.Len {
			return row, fmt.Errorf("%w: an extent ends behind the file's end at %d", ErrInvalid, cm.Size)
		}
	}
	if s.Cut == 0 {
		row.Base = t.seq
	}
	if s.Cut != NoCut || len(s.Holes)+len(s.Extents) > 0 {
		r.Splices = append(r.Splices, s)
	}
	if len(r.Blobs) == 0 {
		r.Blobs = cm.Blobs
	} else {
		r.Blobs = append(slices.Clip(r.Blobs), cm.Blobs...)
	}
	row.Size = cm.Size
	cm.Change.apply(&row)
	if !cm.NewVersion {
		return row, nil
	}
	prev, err := t.c.digestOf(ctx, &row)
	if err != nil {
		return row, err
	}
	row.Ver++
	v := Version{Ino: cm.Ino, Num: row.Ver, Time: t.now, Size: cm.Size, Sum: cm.Sum, Prev: prev, Actor: r.Actor}
	v.Digest = VersionDigest(v, s)
	r.Versions = append(r.Versions, v)
	return row, nil
}

// digestOf returns the digest of an inode's newest version; zero when it has none. The caller holds order.
func (c *Catalog) digestOf(ctx context.Context, row *Inode) (blobstore.Hash, error) {
	if row.Ver == 0 {
		return blobstore.Hash{}, nil
	}
	c.mu.RLock()
	n := c.inodes.get(row.Ino)
	var h blobstore.Hash
	if n != nil {
		h = n.val.digest
	}
	c.mu.RUnlock()
	if !zeroHash(h) {
		return h, nil
	}
	v, err := c.Version(ctx, row.Ino, row.Ver)
	if errors.Is(err, ErrNotExist) {
		err = fmt.Errorf("%w: version %d of inode %d is missing; check the store", ErrDamaged, row.Ver, row.Ino)
	}
	return v.Digest, err
}

// Extents returns what a file is made of after the record at (Head: now), ordered and not overlapping; bytes that no extent
// covers are zero. ErrStale when there was no such inode.
func (c *Catalog) Extents(ctx context.Context, ino Ino, at Seq) (list []Extent, err error) {
	err = c.steady(func() (done bool, err error) {
		list, done, err = c.extentsOnce(ctx, ino, at)
		return done, err
	})
	return list, err
}

func (c *Catalog) extentsOnce(ctx context.Context, ino Ino, at Seq) (list []Extent, done bool, err error) {
	c.mu.RLock()
	if at != Head { // the newest record, too: by the time its rows are read there may be newer ones
		p := c.pastOf(at)
		c.mu.RUnlock()
		list, err = c.pastExtents(ctx, ino, p)
		return list, true, err
	}
	var splices []pendingSplice
	gen := c.gen
	if n := c.content.get(ino); n != nil {
		if n.val.live != nil {
			list = n.val.live.list()
			c.mu.RUnlock()
			return list, true, nil
		}
		splices = n.val.splices
	}
	c.mu.RUnlock()
	if _, err := c.Get(ctx, ino); err != nil {
		return nil, true, err
	}
	rows, err := loadExtents(ctx, c.db, ino)
	if err != nil {
		return nil, true, c.readFailed("read the content of a file", err)
	}
	m := newExtentMap(rows)
	for _, p := range splices {
		m.splice(p.s)
	}
	c.opt.reached(stageRead)
	list, done = c.keepExtents(ino, m, len(splices), gen)
	return list, done, nil
}

// keepExtents keeps what Extents read while gen was current, brought up to date, and returns it as a list; false when rows were
// applied meanwhile.
func (c *Catalog) keepExtents(ino Ino, m *extentMap, seen int, gen uint64) ([]Extent, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if gen != c.gen {
		return nil, false
	}
	n := c.content.m[ino]
	if n != nil {
		if n.val.live != nil {
			return n.val.live.list(), true
		}
		for _, p := range n.val.splices[seen:] {
			m.splice(p.s)
		}
	}
	list := m.list()
	switch {
	case len(list) > cachedExtents/4:
	case n != nil:
		n.val.live = m
	default:
		c.content.add(ino, &contentVal{live: m})
	}
	return list, true
}

// HasBlob says whether a record has named a blob that may be named again, and with what size and root. Whoever means to do so pins it first: see Pin.
func (c *Catalog) HasBlob(ctx context.Context, h blobstore.Hash) (blobstore.Ref, bool, error) {
	c.mu.RLock()
	b, ok := c.newBlobs[h]
	c.mu.RUnlock()
	if ok {
		return b.ref, true, nil
	}
	// Asked before the row is: once a blob has left, the row is gone.
	if c.pins.isLeaving(h) {
		return blobstore.Ref{}, false, nil
	}
	row, ok, err := c.loadBlob(ctx, h)
	return row.ref, ok, err
}

type blobRow struct {
	ref blobstore.Ref
	seq Seq
	pos journal.Pos // Offset -1: no record carries its body

	level string
}

func (c *Catalog) loadBlob(ctx context.Context, h blobstore.Hash) (b blobRow, ok bool, err error) {
	err = c.db.Read(ctx, func(conn *sqldb.Conn) error {
		b, ok, err = readBlob(conn, h)
		return err
	})
	if err != nil {
		return blobRow{}, false, c.readFailed("look for a blob", err)
	}
	return b, ok, nil
}

func readBlob(c *sqldb.Conn, h blobstore.Hash) (b blobRow, ok bool, err error) {
	st := c.Prep("SELECT "+blobsColumns+", row_sum FROM blobs WHERE hash = ?").BindBytes(1, h[:])
	if ok, err = st.Step(); err != nil || !ok {
		return b, false, err
	}
	var r rowRead
	b, err = scanBlob(st, &r)
	return b, err == nil, errors.Join(err, st.Done())
}

func scanBlob(st *sqldb.Stmt, r *rowRead) (b blobRow, err error) {
	if err := r.read(st, 0, tableBlobs); err != nil {
		return b, err
	}
	b = blobRow{ref: blobstore.Ref{Size: r.int(1)}, seq: Seq(r.int(4)), pos: journal.Pos{Segment: uint64(r.int(5)), Offset: r.int(6)}, level: string(r.bytes(3))}
	return b, errors.Join(r.hash(0, b.ref.Hash[:]), r.hash(2, b.ref.Root[:]))
}

// PendingBody returns the content of a small blob that is not in the blobstore yet. The caller may not change it.
func (c *Catalog) PendingBody(h blobstore.Hash) ([]byte, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if b := c.bodies[h]; b != nil {
		return b.data, true
	}
	return nil, false
}

// JournalBody reads the content of a small blob back from the record that introduced it, checked against its name: what heals
// a blob that the blobstore has lost. ErrNotExist when no record carries it.
func (c *Catalog) JournalBody(ctx context.Context, h blobstore.Hash) ([]byte, error) {
	if b, ok := c.PendingBody(h); ok {
		return b, nil
	}
	row, ok, err := c.loadBlob(ctx, h)
	if err != nil {
		return nil, err
	}
	if !ok || row.pos.Offset < 0 {
		return nil, fmt.Errorf("blob %s: %w: no journal record carries it", h, ErrNotExist)
	}
	e, err := c.entryOf(ctx, row.seq, row.pos)
	if err != nil {
		return nil, failed(fmt.Sprintf("read blob %s from the journal", h), err)
	}
	if e.HeadDropped {
		return nil, fmt.Errorf("blob %s: %w: journal record %d does not carry it any more", h, ErrNotExist, row.seq)
	}
	r, err := DecodeRecord(e)
	if err != nil {
		return nil, fmt.Errorf("read blob %s from journal record %d: %w: %w", h, row.seq, ErrDamaged, err)
	}
	for i := range r.Blobs {
		if b := &r.Blobs[i]; b.Ref.Hash == h && (b.Body != nil || b.Ref.Size == 0) {
			return b.Body, nil
		}
	}
	return nil, fmt.Errorf("blob %s: %w: journal record %d does not carry it any more", h, ErrNotExist, row.seq)
}

// Sync makes every change so far durable: deferred times, adopted blobs, journal.
func (c *Catalog) Sync(ctx context.Context) error {
	if c.opt.ReadOnly {
		return nil
	}
	c.order.Lock()
	err := c.writeDeferred(ctx)
	c.order.Unlock()
	if err != nil {
		return err
	}
	return c.makeDurable(ctx)
}

// makeDurable makes every record so far durable, after the blobs that they name. blobGate keeps records that name blobs which
// are not durable out of the journal from the look at the blobs to the end of the journal's sync: else that sync could make
// such a record durable before its blob.
func (c *Catalog) makeDurable(ctx context.Context) error {
	if err := c.syncNamedBlobs(ctx); err != nil { // most of the work, while others may still commit
		return err
	}
	c.blobGate.Lock()
	defer c.blobGate.Unlock()
	if err := c.syncNamedBlobs(ctx); err != nil {
		return err
	}
	return failed("sync the journal", c.j.Sync(ctx))
}

// syncNamedBlobs makes the blobs durable that records name and that were not durable then.
func (c *Catalog) syncNamedBlobs(ctx context.Context) error {
	c.mu.RLock()
	target := c.lastUnsynced
	c.mu.RUnlock()
	if uint64(target) <= c.blobsSynced.Load() {
		return nil
	}
	c.syncMu.Lock()
	defer c.syncMu.Unlock()
	if uint64(target) <= c.blobsSynced.Load() {
		return nil
	}
	return c.syncBlobs(ctx)
}

// syncBlobs syncs the blobstore. The caller holds syncMu.
func (c *Catalog) syncBlobs(ctx context.Context) error {
	c.mu.RLock()
	target := c.lastUnsynced
	c.mu.RUnlock()
	if err := c.blobs.Sync(ctx); err != nil {
		return failed("sync the blobs", err)
	}
	c.blobsSynced.Store(uint64(target))
	return nil
}

// beforeAppend keeps the order of makeDurable where the journal syncs on its own: at the end of a segment. The caller holds order.
func (c *Catalog) beforeAppend(bytes int64) error {
	limit := c.opt.SegmentBytes
	if limit <= 0 {
		limit = journal.DefaultSegmentBytes
	}
	if c.segmentEnd+bytes < limit {
		return nil
	}
	return c.syncNamedBlobs(context.Background())
}
