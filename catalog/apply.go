package catalog

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/blobstore"
	"holdfast/internal/sqldb"
)

const (
	// applyDelay is how long a record waits for company before it is applied, unless kickRecords or kickBytes are waiting.
	applyDelay  = 200 * time.Millisecond
	kickRecords = 4096
	kickBytes   = 4 << 20
	// maxBatch and maxBatchBytes bound one transaction.
	maxBatch      = 8192
	maxBatchBytes = 16 << 20
	// maxItems and maxItemBytes bound one PutBatch.
	maxItems     = 512
	maxItemBytes = 4 << 20
	// settleStep is the number of records that one turn under mu lets go of.
	settleStep = 512
	// blobSyncEvery is how long small blobs may be in the blobstore without being durable there. Until then a start replays them.
	blobSyncEvery = 2 * time.Second
	// retryMin and retryMax bound the wait after a failure.
	retryMin = 50 * time.Millisecond
	retryMax = 5 * time.Second
)

// stage is a step at which tests interfere.
type stage int

const (
	stageDurable    stage = iota // before the journal is synced
	stageBodies                  // before small blobs go to the blobstore
	stageRows                    // before the transaction
	stageSettle                  // after the transaction
	stageBlobSeq                 // before the blobstore is synced
	stagePrune                   // before a record of retention
	stageDelete                  // before blobs are deleted
	stageCheckpoint              // before a checkpoint gets its name
	stageCompact                 // before a segment is rewritten
	stageRead                    // a reader's: between its look at catalog.db and the look at what changed meanwhile
)

// applier brings catalog.db and the blobstore up to the journal, in the background.
type applier struct {
	wake   chan struct{} // there is something to apply
	urgent chan struct{} // there is much, or somebody waits
	stop   context.CancelFunc
	done   chan struct{}
	err    atomic.Pointer[error] // why the last pass failed; nil when it did not
	// syncErr is why the last sync of the blobstore for blobs_seq failed; nil when it did not.
	syncErr atomic.Pointer[error]

	mu         sync.Mutex // held by the one pass in progress; guards what follows
	w          rowWriter
	meta       meta       // as in catalog.db
	blobsDirty bool       // small blobs were stored since the last sync of the blobstore
	owed       []*pending // applied records whose bodies may be missing from the blobstore; the bodies are in memory
}

func newApplier(m meta) applier {
	return applier{wake: make(chan struct{}, 1), urgent: make(chan struct{}, 1), done: make(chan struct{}), w: newRowWriter(), meta: m}
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// notify tells the applier of a record: the first in the queue, or one of many.
func (a *applier) notify(first, full bool) {
	if first {
		signal(a.wake)
	}
	if full {
		signal(a.urgent)
	}
}

// lastError is why catalog.db lags behind; nil when it does not.
func (a *applier) lastError() error {
	if p := a.err.Load(); p != nil {
		return *p
	}
	return nil
}

func (a *applier) lastSyncError() error {
	if p := a.syncErr.Load(); p != nil {
		return *p
	}
	return nil
}

// admit lets a mutation pass when there is room for it in memory, and waits for room otherwise. When the applier cannot make
// room, the reason is the error.
func (c *Catalog) admit(ctx context.Context) error {
	if c.opt.ReadOnly {
		return ErrReadOnly
	}
	for {
		c.mu.RLock()
		full, closed := c.pendingBytes > c.opt.PendingBytes, c.closed
		c.mu.RUnlock()
		switch {
		case closed:
			return ErrClosed
		case !full:
			return nil
		}
		if err := c.app.lastError(); err != nil {
			return failed("the catalog cannot take more changes", err)
		}
		c.mu.Lock()
		if c.room == nil {
			c.room = make(chan struct{})
		}
		room := c.room
		c.mu.Unlock()
		signal(c.app.urgent)
		if c.app.lastError() != nil {
			continue // it failed before it could see that somebody waits
		}
		select {
		case <-room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// wakeWaiters makes everybody who waits for room look again.
func (c *Catalog) wakeWaiters() {
	c.mu.Lock()
	if c.room != nil {
		close(c.room)
		c.room = nil
	}
	c.mu.Unlock()
}

// applyNice is the niceness of the applier's thread: programs that wait for an answer come first, and the applier takes what they leave. When
// it falls behind, admit makes them wait.
const applyNice = 10

// applyLoop runs until ctx ends.
func (c *Catalog) applyLoop(ctx context.Context) {
	defer close(c.app.done)
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, and its niceness with it
	if err := unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), applyNice); err != nil {
		c.log.Warn("the applier runs at the priority of requests", "err", err)
	}
	blobTick := time.NewTicker(blobSyncEvery)
	defer blobTick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-blobTick.C:
			err := c.syncBodies(ctx)
			switch {
			case err == nil:
				c.app.syncErr.Store(nil)
			case ctx.Err() == nil:
				c.app.syncErr.Store(&err)
				c.log.Error("small blobs cannot be made durable in the blobstore; the journal keeps them", "err", err)
			}
			continue
		case <-c.app.wake:
		}
		select {
		case <-ctx.Done():
			return
		case <-c.app.urgent:
		case <-time.After(applyDelay):
		}
		if !c.applyWaiting(ctx) {
			return
		}
	}
}

// applyWaiting applies until little is left, retrying what fails; false when ctx has ended.
func (c *Catalog) applyWaiting(ctx context.Context) bool {
	retry := retryMin
	for {
		err := c.applyBatch(ctx)
		if ctx.Err() != nil {
			return false
		}
		if err != nil {
			c.log.Error("the catalog lags behind the journal, which keeps every change", "err", err, "retry_in", retry)
			select {
			case <-ctx.Done():
				return false
			case <-time.After(retry):
			}
			retry = min(2*retry, retryMax)
			continue
		}
		retry = retryMin
		c.mu.RLock()
		left, much := len(c.queue), c.pendingBytes > kickBytes || len(c.queue) > kickRecords
		c.mu.RUnlock()
		if much {
			continue
		}
		if left > 0 {
			signal(c.app.wake)
		}
		return true
	}
}

// Flush brings catalog.db and the blobstore up to every record written before the call.
func (c *Catalog) Flush(ctx context.Context) error {
	c.mu.RLock()
	target := c.last
	c.mu.RUnlock()
	for !c.opt.ReadOnly {
		c.mu.RLock()
		applied := c.applied
		c.mu.RUnlock()
		if applied >= target {
			break
		}
		if err := c.applyBatch(ctx); err != nil {
			return err
		}
	}
	return nil
}

// applyBatch applies the oldest part of the queue: journal durable, then bodies, then rows. On error nothing is lost: the queue
// stays as it is.
func (c *Catalog) applyBatch(ctx context.Context) error {
	c.app.mu.Lock()
	defer c.app.mu.Unlock()
	err := c.applyLocked(ctx)
	switch {
	case err == nil:
		c.app.err.Store(nil)
	case ctx.Err() == nil:
		c.noteCorrupt(err)
		c.app.err.Store(&err)
		c.wakeWaiters()
	}
	return err
}

func (c *Catalog) applyLocked(ctx context.Context) error {
	batch := c.takeBatch()
	if len(batch) == 0 {
		return nil
	}
	if err := c.opt.check(stageDurable); err != nil {
		return err
	}
	if err := c.makeDurable(ctx); err != nil {
		return err
	}
	if err := c.opt.check(stageBodies); err != nil {
		return err
	}
	if err := c.storeBodies(ctx, batch); err != nil {
		return err
	}
	if err := c.opt.check(stageRows); err != nil {
		return err
	}
	if err := c.writeRows(ctx, batch); err != nil {
		return err
	}
	if err := c.opt.check(stageSettle); err != nil {
		c.log.Warn("after the rows were written", "err", err) // they are: nothing can stop the rest
	}
	for len(batch) > 0 {
		n := min(settleStep, len(batch))
		c.settling.Lock()
		c.mu.Lock()
		c.settle(n)
		c.mu.Unlock()
		c.settling.Unlock()
		batch = batch[n:]
	}
	return nil
}

// check lets a test fail the step, or do something in between. The error of stageRead means nothing.
// reached tells a test that a read is between memory and catalog.db.
func (o *Options) reached(s stage) {
	if o.fault != nil {
		_ = o.fault(s)
	}
}

func (o *Options) check(s stage) error {
	if o.fault == nil {
		return nil
	}
	return o.fault(s)
}

func (c *Catalog) takeBatch() []*pending {
	c.mu.RLock()
	defer c.mu.RUnlock()
	n, size := 0, int64(0)
	for n < len(c.queue) && n < maxBatch && size < maxBatchBytes {
		size += c.queue[n].bytes
		n++
	}
	return c.queue[:n:n]
}

// storeBodies hands the bodies of a batch to the blobstore.
func (c *Catalog) storeBodies(ctx context.Context, batch []*pending) error {
	var items []blobstore.Item
	size, from := 0, 0
	put := func(to int) error {
		if len(items) > 0 {
			if err := c.blobs.PutBatch(ctx, items); err != nil {
				return failed("store small blobs", err)
			}
			c.app.blobsDirty = true
		}
		for _, p := range batch[from:to] {
			p.stored = true
		}
		items, size, from = items[:0], 0, to
		return nil
	}
	for i, p := range batch {
		if p.stored {
			continue
		}
		for j := range p.rec.Blobs {
			if b := &p.rec.Blobs[j]; b.Body != nil {
				meta := blobstore.Meta{Level: b.Level, Version: int64(p.rec.Seq), Time: p.rec.Time}
				items = append(items, blobstore.Item{Ref: b.Ref, Meta: meta, Data: b.Body})
				size += len(b.Body)
			}
		}
		if len(items) >= maxItems || size >= maxItemBytes {
			if err := put(i + 1); err != nil {
				return err
			}
		}
	}
	return put(len(batch))
}

// writeRows writes the rows of a batch in one transaction.
func (c *Catalog) writeRows(ctx context.Context, batch []*pending) error {
	return failed("write catalog.db", writeRows(ctx, c.db, &c.app.w, &c.app.meta, batch))
}

// writeRows brings a database whose meta is m forward by a batch of records.
func writeRows(ctx context.Context, db *sqldb.DB, w *rowWriter, m *meta, batch []*pending) error {
	next := *m
	err := db.Write(ctx, func(conn *sqldb.Conn) error {
		for _, p := range batch {
			if err := w.write(conn, &p.rec, p.pos); err != nil {
				return fmt.Errorf("apply record %d: %w", p.rec.Seq, err)
			}
			next.advance(&p.rec)
		}
		if err := w.flush(conn); err != nil {
			return err
		}
		return next.save(conn)
	})
	if err != nil {
		w.reset()
		if errors.Is(err, sqldb.ErrConstraint) {
			err = fmt.Errorf("%w: a row contradicts the journal: %w", sqldb.ErrCorrupt, err)
		}
		return err
	}
	*m = next
	return nil
}

// syncBodies makes the small blobs durable that the applier has stored, and notes how far a start need not replay them.
func (c *Catalog) syncBodies(ctx context.Context) error {
	c.app.mu.Lock()
	defer c.app.mu.Unlock()
	m := c.app.meta
	if !c.app.blobsDirty && m.blobsSeq == m.applied {
		return nil
	}
	if err := c.payOwed(ctx); err != nil {
		return err
	}
	if err := c.opt.check(stageBlobSeq); err != nil {
		return err
	}
	if c.app.blobsDirty {
		c.syncMu.Lock()
		err := c.syncBlobs(ctx)
		c.syncMu.Unlock()
		if err != nil {
			return err
		}
	}
	m.blobsSeq = m.applied
	if err := c.db.Write(ctx, m.save); err != nil {
		return failed("write catalog.db", err)
	}
	c.app.meta, c.app.blobsDirty = m, false
	return nil
}

// payOwed stores the bodies that a start on a full disk could not.
func (c *Catalog) payOwed(ctx context.Context) error {
	if len(c.app.owed) == 0 {
		return nil
	}
	if err := c.storeBodies(ctx, c.app.owed); err != nil {
		return err
	}
	c.mu.Lock()
	for _, p := range c.app.owed {
		for i := range p.rec.Blobs {
			c.settleBlob(&p.rec.Blobs[i], p.rec.Seq)
		}
	}
	c.mu.Unlock()
	c.app.owed = nil
	return nil
}
