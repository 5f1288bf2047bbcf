package volume

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"path"
	"slices"

	"holdfast/catalog"
)

// ErrConflict: in a strict directory, somebody else has changed the same bytes of the file since it was opened. The content that was to be saved
// is kept beside it, as Conflicts says. It is a catalog.ErrStale.
var ErrConflict = fmt.Errorf("somebody else has changed the file since it was opened: %w", catalog.ErrStale)

const (
	maxRanges   = 64       // ranges kept of one commit; more become one
	maxRecent   = 256      // commits kept of a file that several have open for writing
	trimCompare = 1 << 20  // bytes of a change that are compared with what they replace
	trimStep    = 32 << 10 // bytes compared at once
)

// writers is what a file knows of the handles that have it open for writing. Guarded by file.mu.
//
// Two writers lose an update when one commits a change of bytes that the other has changed since the first opened the file. So a handle
// remembers which version it builds on, and, as long as several handles are open, the file remembers which bytes each commit changed.
// What one writer only adds behind what the others have written is in nobody's way.
type writers struct {
	open   int
	ver    uint64  // the newest version, once a handle has committed one
	last   *Handle // who made the newest change
	cached bool    // changes came out of the kernel's page cache, which does not say by whose handle
	recent []change
}

// change is what one commit changed.
type change struct {
	ver    uint64
	by     *Handle
	who    catalog.Actor
	ranges []run // in order, apart from each other
}

// enter notes a handle that begins; ver is the file's version as the caller read it.
func (f *file) enter(h *Handle, ver uint64) {
	if !h.flags.Write {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.writers.open++
	f.writers.ver = max(f.writers.ver, ver)
	h.base = f.writers.ver
}

// leave notes a handle that ends.
func (f *file) leave(h *Handle) {
	if !h.flags.Write {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.writers.open--; f.writers.open == 0 {
		f.writers.recent = nil
		if f.changedSince.Load() == 0 {
			f.writers.last = nil
		}
	}
}

// contest is what a commit has to know about other writers.
type contest struct {
	by     *Handle // whose change it is; nil when that is not known
	who    catalog.Actor
	ranges []run // what it changes, when others may ask
	noted  bool  // others may ask
	// record is the conflict that the commit is to record; buried one that the close of the handle is to record.
	record, buried *catalog.Conflict
	fails          bool // strict: the content is to be kept aside
	waits          bool // strict: nobody is there to be told that it fails
}

// contest finds out whether the commit of what is staged buries another writer's change. mu is held.
func (f *file) contest(ctx context.Context, kind commitKind, h *Handle, row catalog.Inode) (contest, error) {
	w := &f.writers
	c := contest{by: w.last, who: f.who}
	if w.open < 2 && len(w.recent) == 0 {
		return c, nil
	}
	if h != nil && w.cached {
		c.by, c.who = h, h.who
	}
	c.noted = true
	var err error
	if c.ranges, err = f.changedRanges(ctx, row.Size); err != nil || c.by == nil {
		return c, err
	}
	closing := kind == commitFlush || kind == commitClose
	lost := w.buries(c.by, c.ranges)
	if lost == nil || c.ranges[0].off >= row.Size { // what is only added buries nothing, not even the shortening of what it is added to
		if closing {
			c.record = c.by.buried
		}
		return c, nil
	}
	strict, err := f.v.cat.Strict(ctx, f.ino)
	if err != nil {
		return c, err
	}
	x := c.by.buried
	if x == nil {
		x = &catalog.Conflict{Ino: f.ino, Lost: lost.ver, LostBy: lost.who}
	}
	switch {
	case strict && kind == commitIdle:
		c.waits = true
	case strict:
		c.fails, c.record = true, &catalog.Conflict{WonBy: lost.who}
	case closing:
		c.record = x
	default: // its handle goes on, and may have read what the other wrote: one conflict, at its close
		c.buried = x
	}
	return c, nil
}

// buries returns the newest commit of somebody else, since by's base, of any of the bytes in ranges.
func (w *writers) buries(by *Handle, ranges []run) *change {
	for i := len(w.recent) - 1; i >= 0; i-- {
		if e := &w.recent[i]; e.ver > by.base && e.by != by && overlap(e.ranges, ranges) {
			return e
		}
	}
	return nil
}

func overlap(a, b []run) bool {
	for len(a) > 0 && len(b) > 0 {
		switch {
		case a[0].off+a[0].n <= b[0].off:
			a = a[1:]
		case b[0].off+b[0].n <= a[0].off:
			b = b[1:]
		default:
			return true
		}
	}
	return false
}

// settle notes that the commit was made, as version ver. mu is held.
func (f *file) settle(kind commitKind, c contest, ver uint64) {
	w := &f.writers
	w.ver, w.cached = ver, false
	if !c.noted {
		if w.last != nil {
			w.last.base = ver
		}
		return
	}
	if len(w.recent) == maxRecent {
		w.recent = slices.Delete(w.recent, 0, maxRecent/2)
	}
	w.recent = append(w.recent, change{ver, c.by, c.who, c.ranges})
	switch {
	case c.by == nil:
	case kind == commitFlush || kind == commitClose:
		c.by.base, c.by.buried = ver, nil
	case c.buried != nil && c.by.buried == nil:
		x := *c.buried
		x.Won, x.WonBy = ver, c.who
		c.by.buried = &x
	}
}

// owes reports whether the close of h has a conflict to record although nothing is left to commit.
func (f *file) owes(h *Handle, kind commitKind) bool {
	if h == nil || kind != commitFlush && kind != commitClose {
		return false
	}
	f.mu.RLock()
	defer f.mu.RUnlock()
	return h.buried != nil
}

// payUp records the conflict that owes speaks of. mu is held.
func (f *file) payUp(ctx context.Context, kind commitKind, h *Handle) error {
	if h == nil || h.buried == nil || kind != commitFlush && kind != commitClose {
		return nil
	}
	if err := f.v.cat.AddConflict(ctx, h.who, *h.buried); err != nil {
		return err
	}
	h.base, h.buried = f.writers.ver, nil
	return nil
}

// changedRanges returns what is to be committed, in order; oldSize is the committed size. What is written over bytes that are the same is no change, as far as
// it is cheap to know: the kernel writes whole pages. mu is held.
func (f *file) changedRanges(ctx context.Context, oldSize int64) ([]run, error) {
	if err := f.load(ctx); err != nil {
		return nil, err
	}
	size := f.size.Load()
	var ranges []run
	add := func(from, to int64) {
		if from < to {
			ranges = append(ranges, run{from, to - from})
		}
	}
	compared := int64(0)
	var err error
	f.dirty.walk(0, math.MaxInt64, func(s span) bool {
		from, to := s.off, s.end()
		if keep := min(oldSize, f.limit); from < keep && compared < trimCompare {
			compared += min(to, keep) - from
			from, err = f.firstChange(ctx, s, keep)
		}
		add(from, to)
		return err == nil
	})
	if err != nil {
		return nil, err
	}
	if f.limit < oldSize {
		add(f.limit, math.MaxInt64)
	}
	if size > oldSize {
		add(oldSize, size)
	}
	slices.SortFunc(ranges, func(a, b run) int { return cmp.Compare(a.off, b.off) })
	return joined(ranges), nil
}

// joined joins ranges, which are in order, where they meet, and all of them when they are too many.
func joined(ranges []run) []run {
	out := ranges[:0]
	for _, r := range ranges {
		if n := len(out); n > 0 && out[n-1].off+out[n-1].n >= r.off {
			out[n-1].n = max(out[n-1].n, r.off+r.n-out[n-1].off)
			continue
		}
		out = append(out, r)
	}
	if n := len(out); n > maxRanges {
		return []run{{out[0].off, out[n-1].off + out[n-1].n - out[0].off}}
	}
	return slices.Clip(out)
}

// firstChange returns the first byte of the staged span s that differs from the committed content below keep, or where either ends.
func (f *file) firstChange(ctx context.Context, s span, keep int64) (int64, error) {
	end := min(s.end(), keep)
	old, now := make([]byte, trimStep), make([]byte, trimStep)
	for off := s.off; off < end; {
		n := min(trimStep, end-off)
		if err := f.readBase(ctx, old[:n], off); err != nil {
			return s.off, err
		}
		if err := f.v.readSpan(ctx, f.stage, s.part(off, off+n), now[:n]); err != nil {
			return s.off, err
		}
		if !bytes.Equal(old[:n], now[:n]) {
			for i := range n {
				if old[i] != now[i] {
					return off + i, nil
				}
			}
		}
		off += n
	}
	return end, nil
}

// commitAside keeps what is staged beside the file, and gives it up: the file is what the others made of it. mu is held.
func (f *file) commitAside(ctx context.Context, cm catalog.Commit, c contest, row catalog.Inode) error {
	if err := f.whole(ctx, &cm, row.Size); err != nil {
		return err
	}
	x, err := f.v.cat.CommitAside(ctx, c.who, cm, *c.record)
	if err != nil {
		return err
	}
	f.drop()
	f.size.Store(row.Size)
	f.loaded = false
	f.writers.cached = false
	c.by.base, c.by.buried = row.Ver, nil
	f.v.forgetCached(f.ino, row.Parent, path.Base(x.Path))
	return fmt.Errorf("%s: %w; what was to be saved is the content of conflict %d", x.Path, ErrConflict, x.Side)
}

// whole makes cm, which plan has made, a change of all of the content; oldSize is the committed size. mu is held.
func (f *file) whole(ctx context.Context, cm *catalog.Commit, oldSize int64) error {
	if err := f.load(ctx); err != nil {
		return err
	}
	all := spanMap{f.base.tree.Copy()}
	all.truncate(min(oldSize, f.limit))
	all.apply(cm.Splice)
	all.truncate(cm.Size)
	cm.Splice = catalog.Splice{Cut: 0}
	all.walk(0, cm.Size, func(s span) bool {
		cm.Splice.Extents = append(cm.Splice.Extents, s.extent())
		return true
	})
	return nil
}

// keepReplaced keeps, at the end of a handle, what was written to a file after a restore or an undo has put another one in its place: beside that one, as a
// conflict. It stays staged, for the other handles. mu is held.
func (f *file) keepReplaced(ctx context.Context, row catalog.Inode) error {
	by, ok := f.v.replacementOf(f.ino)
	if !ok || f.keptLast == f.changedLast.Load() {
		return nil
	}
	now, err := f.v.cat.Get(ctx, by.ino)
	if errors.Is(err, catalog.ErrStale) || err == nil && now.Nlink == 0 {
		return nil // it has gone as well
	}
	if err != nil {
		return err
	}
	level, err := f.v.cat.Level(ctx, by.ino)
	if err != nil {
		return err
	}
	durable := level == catalog.LevelCritical
	cm, pinned, err := f.plan(ctx, level, durable)
	defer func() { f.v.cat.Unpin(pinned...) }()
	if err != nil {
		return err
	}
	if err := f.whole(ctx, &cm, row.Size); err != nil {
		return err
	}
	cm.Ino = by.ino
	x, err := f.v.cat.CommitReplaced(ctx, f.who, cm, catalog.Conflict{WonBy: by.who})
	if err != nil {
		return err
	}
	f.keptLast = f.changedLast.Load()
	err = f.v.beginCopies(ctx, commitIdle, level, &cm)()
	f.v.log.Warn("a file was open when another was put in its place; what was written to it since is the content of a conflict",
		"path", x.Path, "agent", x.LostBy.Agent, "put by", x.WonBy.Agent, "inode", x.Side)
	if durable {
		err = errors.Join(err, f.v.cat.Sync(ctx))
	}
	return err
}

// forgetCached makes the kernel forget what it has cached of a file, soon: it may be waiting for the answer to a request right now.
func (v *Volume) forgetCached(ino, parent catalog.Ino, name string) {
	v.mu.RLock()
	i := v.invalidator
	v.mu.RUnlock()
	if i == nil {
		return
	}
	v.workers.Go(func() {
		i.InvalidateEntry(parent, name)
		i.InvalidateInode(ino)
	})
}

// pin keeps a blob that is about to be staged. ErrStale when retention has deleted it in the meantime. mu is held.
func (f *file) pin(ctx context.Context, h [32]byte) error {
	if err := f.v.cat.Pin(ctx, h); err != nil {
		return err
	}
	_, ok, err := f.v.cat.HasBlob(ctx, h)
	if err == nil && !ok {
		err = fmt.Errorf("%w: retention has deleted what was to be copied", catalog.ErrStale)
	}
	if err != nil {
		f.v.cat.Unpin(h)
		return err
	}
	f.pins = append(f.pins, h)
	return nil
}

// Conflicts is catalog.Conflicts.
func (v *Volume) Conflicts(ctx context.Context, after catalog.Seq, max int) ([]catalog.Conflict, error) {
	return v.cat.Conflicts(ctx, after, max)
}
