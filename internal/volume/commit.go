package volume

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"time"

	"holdfast/blobstore"
	"holdfast/catalog"
)

// commitKind says why a commit is made.
type commitKind int

const (
	commitFlush commitKind = iota // a close; durable for critical files
	commitClose                   // the last use of a handle; durable for critical files
	commitSync                    // the caller syncs the catalog afterwards
	commitIdle                    // the file stays open
)

const (
	// wholeBelow: a file no larger is stored whole at each commit, larger ones by what changed (up to blobstore.MaxSmall whole, too,
	// when half of it changed).
	wholeBelow = 4 << 10
	// dedupAbove: the content of a larger small blob is looked up before it is written to the journal once more.
	dedupAbove = 4 << 10
)

// commit is commitBy on nobody's behalf.
func (f *file) commit(ctx context.Context, kind commitKind) error { return f.commitBy(ctx, kind, nil) }

// commitBy turns what changed into a version. Without changes it does nothing. On error everything stays staged, unless it is an ErrConflict.
// h is the handle that is closed or synced.
func (f *file) commitBy(ctx context.Context, kind commitKind, h *Handle) error {
	if f.changedSince.Load() == 0 && !f.owes(h, kind) {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.changedSince.Load() == 0 {
		return f.payUp(ctx, kind, h)
	}
	if kind == commitFlush && f.emptied {
		return nil
	}
	return f.commitLocked(ctx, kind, h)
}

// commitLocked is commit of a file that has changed, for a caller that holds mu.
func (f *file) commitLocked(ctx context.Context, kind commitKind, h *Handle) error {
	f.v.activity.Add(1)
	row, err := f.v.cat.Get(ctx, f.ino)
	if err != nil {
		return err
	}
	if row.Nlink == 0 {
		if kind == commitClose {
			return f.keepReplaced(ctx, row)
		}
		return nil // without a name there is nothing to make a version of; the handles go on with what is staged
	}
	level, err := f.v.cat.Level(ctx, f.ino)
	if err != nil {
		return err
	}
	c, err := f.contest(ctx, kind, h, row)
	if err != nil || c.waits {
		return err
	}
	durable := kind == commitSync || (kind != commitIdle && level == catalog.LevelCritical)
	cm, pinned, err := f.plan(ctx, level, durable)
	defer func() { f.v.cat.Unpin(pinned...) }()
	if err != nil {
		return err
	}
	if c.fails {
		err := f.commitAside(ctx, cm, c, row)
		if errors.Is(err, ErrConflict) {
			f.v.beginCopies(ctx, commitIdle, level, &cm)()
		}
		return err
	}
	cm.Conflict = c.record
	copied := f.v.beginCopies(ctx, kind, level, &cm)
	if row, err = f.v.cat.Commit(ctx, c.who, cm); err != nil {
		copied()
		return err
	}
	f.settle(kind, c, row.Ver)
	f.committed(cm.Splice)
	if durable && kind != commitSync {
		err = f.v.cat.Sync(ctx)
	}
	copied()
	return err
}

// beginCopies begins to write the second copies that the level of a file asks for, and returns a function that the caller calls once after the commit: it waits
// for them, and hands the blobs to the guard. When the place of the copies fails the commit stands, and the store is degraded.
func (v *Volume) beginCopies(ctx context.Context, kind commitKind, level string, cm *catalog.Commit) (end func()) {
	if level == catalog.LevelBasic {
		return func() {}
	}
	refs := refsOf(cm)
	wait := func() error { return nil }
	now := level == catalog.LevelCritical && kind != commitIdle && len(refs) > 0
	if now {
		wait = v.copies(ctx, refs, cm.Blobs)
	}
	return func() {
		err := wait()
		g := v.guard.Load()
		if err != nil {
			v.log.Error("a second copy cannot be written; what was closed is in the store, and is copied later", "dir", v.second.Dir(), "error", err)
		}
		if g == nil {
			return
		}
		if now {
			g.SecondCopy(err)
		}
		g.Stored(level, refs)
	}
}

// committed makes the staged content the committed one.
func (f *file) committed(sp catalog.Splice) {
	if f.loaded {
		f.base.apply(sp)
	}
	if sp.Cut == catalog.NoCut {
		f.v.merges.note(f.ino, len(sp.Extents))
	}
	f.drop()
}

// plan stores the content that changed and says what the catalog has to record. pinned are the blobs that it relies on, to be unpinned
// after the catalog's Commit.
func (f *file) plan(ctx context.Context, level string, durable bool) (cm catalog.Commit, pinned []blobstore.Hash, err error) {
	size := f.size.Load()
	cm = catalog.Commit{Ino: f.ino, Size: size, Op: catalog.OpWrite, NewVersion: true}
	cm.Splice = catalog.Splice{Ino: f.ino, Cut: catalog.NoCut}
	cm.Splice.Cut = f.limit
	if size == 0 {
		cm.Splice.Cut = 0
		cm.Sum = sha256.Sum256(nil)
		return cm, nil, nil
	}
	runs, total, covered := f.runs(size)
	switch {
	case size <= blobstore.MaxSmall && (size <= wholeBelow || total*2 >= size):
		pinned, err = f.planWhole(ctx, &cm, level)
		return cm, pinned, err
	case total == 0:
	case total <= blobstore.MaxSmall:
		if pinned, err = f.planSmall(ctx, &cm, runs, total, level); err != nil {
			return cm, pinned, err
		}
	default:
		if pinned, err = f.planLarge(ctx, &cm, runs, total, level, durable); err != nil {
			return cm, pinned, err
		}
		cm.UnsyncedBlobs = !durable
	}
	f.dirty.walk(0, size, func(s span) bool {
		switch s.src {
		case isZero:
			cm.Splice.Holes = append(cm.Splice.Holes, catalog.Hole{Off: s.off, Len: s.n})
		case inBlob:
			cm.Splice.Extents = append(cm.Splice.Extents, s.extent())
		}
		return true
	})
	slices.SortFunc(cm.Splice.Extents, func(a, b catalog.Extent) int { return cmp.Compare(a.Off, b.Off) })
	if covered {
		cm.Splice.Cut, cm.Splice.Holes = 0, nil
		if e := cm.Splice.Extents; len(e) == 1 && e[0].Off == 0 && e[0].BlobOff == 0 && e[0].Len == size && e[0].Blob.Size == size {
			cm.Sum = e[0].Blob.Hash
		}
	}
	return cm, pinned, nil
}

// run is a gapless range of newly written bytes.
type run struct{ off, n int64 }

// runs lists the newly written ranges below size, in order, and their total. covered tells that the changes leave nothing of the old content.
func (f *file) runs(size int64) (runs []run, total int64, covered bool) {
	next := int64(0)
	covered = true
	f.dirty.walk(0, size, func(s span) bool {
		covered = covered && s.off == next
		next = s.end()
		if s.src != inMemory && s.src != inStage {
			return true
		}
		total += s.n
		if n := len(runs); n > 0 && runs[n-1].off+runs[n-1].n == s.off {
			runs[n-1].n += s.n
		} else {
			runs = append(runs, run{s.off, s.n})
		}
		return true
	})
	covered = covered && next == size
	return runs, total, covered || f.limit == 0
}

// planWhole stores all of a small file as one blob.
func (f *file) planWhole(ctx context.Context, cm *catalog.Commit, level string) ([]blobstore.Hash, error) {
	if !f.loaded {
		if err := f.load(ctx); err != nil {
			return nil, err
		}
	}
	body := make([]byte, cm.Size)
	if _, err := f.read(ctx, body, 0); err != nil {
		return nil, err
	}
	ref, pinned, err := f.v.addSmall(ctx, cm, body, level)
	if err != nil {
		return nil, err
	}
	cm.Splice.Cut = 0
	cm.Splice.Extents = []catalog.Extent{{Len: cm.Size, Blob: ref}}
	cm.Sum = ref.Hash
	return pinned, nil
}

// planSmall stores the changed ranges, one behind the other, as one small blob.
func (f *file) planSmall(ctx context.Context, cm *catalog.Commit, runs []run, total int64, level string) ([]blobstore.Hash, error) {
	body := make([]byte, 0, total)
	for _, r := range runs {
		var err error
		f.dirty.walk(r.off, r.off+r.n, func(s span) bool {
			at := len(body)
			body = body[:at+int(s.n)]
			err = f.v.readSpan(ctx, f.stage, s, body[at:])
			return err == nil
		})
		if err != nil {
			return nil, err
		}
	}
	ref, pinned, err := f.v.addSmall(ctx, cm, body, level)
	if err != nil {
		return nil, err
	}
	addRuns(cm, runs, ref)
	return pinned, nil
}

func addRuns(cm *catalog.Commit, runs []run, ref blobstore.Ref) {
	pos := int64(0)
	for _, r := range runs {
		cm.Splice.Extents = append(cm.Splice.Extents, catalog.Extent{Off: r.off, Len: r.n, Blob: ref, BlobOff: pos})
		pos += r.n
	}
}

// addSmall names body and adds it to the commit, unless the store has an intact copy already. That one is pinned: the caller unpins it.
func (v *Volume) addSmall(ctx context.Context, cm *catalog.Commit, body []byte, level string) (blobstore.Ref, []blobstore.Hash, error) {
	ref := blobstore.Ref{Hash: sha256.Sum256(body), Size: int64(len(body))}
	if len(body) > dedupAbove {
		if err := v.cat.Pin(ctx, ref.Hash); err != nil {
			return ref, nil, err
		}
		known, ok, err := v.cat.HasBlob(ctx, ref.Hash)
		if err == nil && ok && known == ref {
			if v.intact(ctx, ref, body, level) {
				return ref, []blobstore.Hash{ref.Hash}, nil
			}
			// The old copy is damaged: the new one goes into the record, and heals it from there.
		}
		v.cat.Unpin(ref.Hash)
		if err != nil {
			return ref, nil, err
		}
	}
	cm.Blobs = append(cm.Blobs, catalog.NewBlob{Ref: ref, Level: level, Body: body})
	return ref, nil, nil
}

// intact reports whether the store's copy of a blob is what it should be, after it was replaced by body if it was not.
func (v *Volume) intact(ctx context.Context, ref blobstore.Ref, body []byte, level string) bool {
	if _, ok := v.cat.PendingBody(ref.Hash); ok {
		return true
	}
	cause := v.blobs.Verify(ctx, ref)
	if !isDamage(cause) {
		return cause == nil
	}
	if _, ok := v.cat.PendingBody(ref.Hash); ok { // it arrived, or was not there yet
		return true
	}
	err := v.blobs.PutBatch(ctx, []blobstore.Item{{Ref: ref, Meta: blobstore.Meta{Level: level, Time: time.Now()}, Data: body}})
	if errors.Is(cause, blobstore.ErrNotFound) {
		v.brought(ctx, ref, cause, err)
	}
	return err == nil
}

// brought says that a write brought the content of a blob that was missing, which the blob store cannot know.
func (v *Volume) brought(ctx context.Context, ref blobstore.Ref, cause, err error) {
	v.mended(ctx, blobstore.Mending{Hash: ref.Hash, Part: blobstore.PartMissing, Cause: cause, Source: blobstore.SourceWriter, Bytes: ref.Size, Err: err}, false)
}

// planLarge hands the changed ranges, one behind the other, to the blobstore as one blob: the staging file itself where it holds
// just them, else a copy.
func (f *file) planLarge(ctx context.Context, cm *catalog.Commit, runs []run, total int64, level string, durable bool) ([]blobstore.Hash, error) {
	stage := f.stage
	if stage == nil || stage.adopted || len(runs) != 1 || !f.stageHolds(runs[0]) {
		copied, err := f.gather(ctx, runs)
		if err != nil {
			return nil, err
		}
		defer copied.discard()
		stage = copied
	}
	sum, err := stage.sum(ctx, total)
	if err != nil {
		return nil, err
	}
	if err := f.v.cat.Pin(ctx, sum.Ref.Hash); err != nil {
		return nil, err
	}
	pinned := []blobstore.Hash{sum.Ref.Hash}
	meta := blobstore.Meta{Level: level, Time: time.Now()}
	path := stage.path()
	stage.adopted = true
	missing := f.v.missing(ctx, sum.Ref)
	err = f.v.blobs.Adopt(ctx, sum, meta, path, durable)
	if missing != nil {
		f.v.brought(ctx, sum.Ref, missing, err)
	}
	if err != nil {
		// The open descriptor still has the bytes; a path that is left would only be in the way.
		os.Remove(path)
		return pinned, err
	}
	cm.Blobs = append(cm.Blobs, catalog.NewBlob{Ref: sum.Ref, Level: level})
	addRuns(cm, runs, sum.Ref)
	return pinned, nil
}

// missing says that a blob that is about to be adopted once more is not in the store, although a record names it; nil when it is, or is new. What is damaged of it Adopt finds.
func (v *Volume) missing(ctx context.Context, ref blobstore.Ref) error {
	if _, ok, err := v.cat.HasBlob(ctx, ref.Hash); err != nil || !ok {
		return nil
	}
	r, _, err := v.blobs.Raw(ctx, ref.Hash)
	if err == nil {
		err = r.Close()
	}
	if errors.Is(err, blobstore.ErrNotFound) {
		return err
	}
	return nil
}

// stageHolds reports whether the staging file, from its start, is r and nothing else.
func (f *file) stageHolds(r run) bool {
	holds := r.off == f.stage.base
	f.dirty.walk(r.off, r.off+r.n, func(s span) bool {
		holds = holds && s.src == inStage && s.pos == s.off-f.stage.base
		return holds
	})
	return holds
}

// gather copies runs, one behind the other, to a new staging file.
func (f *file) gather(ctx context.Context, runs []run) (*staging, error) {
	out, err := newStaging(filepath.Join(f.v.dir, stagingDir), uint64(f.ino), 0, &f.v.buffers)
	if err != nil {
		return nil, err
	}
	buf := f.v.buffers.Get().(*[]byte)
	defer f.v.buffers.Put(buf)
	pos := int64(0)
	for _, r := range runs {
		f.dirty.walk(r.off, r.off+r.n, func(s span) bool {
			for done := int64(0); done < s.n && err == nil; {
				part := s.part(s.off+done, min(s.end(), s.off+done+copyBuffer))
				p := (*buf)[:part.n]
				if err = ctx.Err(); err == nil {
					err = f.v.readSpan(ctx, f.stage, part, p)
				}
				if err == nil {
					err = out.write(p, pos)
				}
				done += part.n
				pos += part.n
			}
			return err == nil
		})
		if err != nil {
			out.discard()
			return nil, err
		}
	}
	return out, nil
}
