package journal

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
)

// Open opens or begins the log in o.Dir. It reads the last segment only, finds the chain's end, cuts off a torn tail (a copy
// goes to "../quarantine"), and makes durable what it found. A last segment in which nothing is readable is moved to quarantine,
// and the one before it becomes the last. Damage at or below the durable bound does not fail Open and is not cut: see Damaged;
// records go on behind the bound, in a new segment where the old one cannot be continued.
// Errors: ErrForeign, ErrVersion, and those of the filesystem.
func Open(ctx context.Context, o Options) (*Log, error) {
	if o.FS == nil {
		o.FS = OS()
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.marker == nil {
		o.marker = newMarker
	}
	if o.SegmentBytes == 0 {
		o.SegmentBytes = DefaultSegmentBytes
	}
	if o.SegmentBytes < 0 || o.AppliedSeq > maxSeq {
		return nil, errors.New("open the journal: SegmentBytes or AppliedSeq is out of range")
	}
	l := &Log{fs: o.FS, dir: o.Dir, store: o.StoreID, segmentBytes: o.SegmentBytes, readOnly: o.ReadOnly, log: o.Log, newMarker: o.marker,
		crc: castagnoli(), digest: sha256.New(), chain: genesis(o.StoreID)}
	if err := l.open(ctx, o.AppliedSeq); err != nil {
		l.release(l.cur)
		return nil, fmt.Errorf("open the journal in %s: %w", o.Dir, err)
	}
	return l, nil
}

func (l *Log) open(ctx context.Context, applied uint64) error {
	if !l.readOnly {
		if err := l.rename(); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	segs, unfinished, err := listSegments(l.fs, l.dir)
	if errors.Is(err, fs.ErrNotExist) && !l.readOnly {
		err = mkdir(l.fs, l.dir)
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return err
	}
	for _, name := range unfinished {
		if l.readOnly {
			break
		}
		if err := l.fs.Remove(filepath.Join(l.dir, name)); err != nil {
			return fmt.Errorf("remove an unfinished segment: %w", err)
		}
	}
	if err := l.sizes(segs); err != nil {
		return err
	}
	l.segs = segs
	end := surveyed{end: state{next: 1, chain: l.chain, linked: true}, bound: applied}
	fresh := true // the next record needs a new segment
	var m marker
	for len(l.segs) > 0 {
		r := &reader{fs: l.fs, dir: l.dir, store: l.store, segs: l.segs[len(l.segs)-1:], limit: -1, seq: l.segs[len(l.segs)-1].First}
		end, err = survey(ctx, r, applied)
		if err != nil {
			r.close()
			return err
		}
		fresh, m = r.headerBad, r.w.marker
		r.close()
		if r.foreign {
			return fmt.Errorf("%w: %s; move it away", ErrForeign, l.segs[len(l.segs)-1].Name)
		}
		l.damaged = append(end.Damage, l.damaged...)
		if end.end.linked {
			break
		}
		if err := l.discard(); err != nil {
			return err
		}
		end = surveyed{end: state{next: 1, chain: l.chain, linked: true}, bound: applied}
		fresh = true
	}
	if len(l.segs) > 0 && l.segs[0].First > 1 {
		l.damaged = append([]*DamageError{{Kind: Missing, Segment: l.segs[0].Name, First: 1, Last: l.segs[0].First - 1,
			Why: "the segments before it are missing"}}, l.damaged...)
	}
	if len(l.segs) == 0 && applied > 0 {
		l.damaged = append(l.damaged, &DamageError{Kind: Missing, Segment: segmentName(1), First: 1, Last: applied, Why: "there are no segments"})
	}
	for _, d := range l.damaged {
		l.log.Error("journal damaged", "err", d)
	}
	l.last, l.chain, l.off, l.torn = end.end.next-1, end.end.chain, end.end.off, end.Tail
	l.synced.Store(min(end.bound, l.last))
	if l.readOnly {
		return nil
	}
	return l.goOn(ctx, end.bound, m, fresh)
}

func (l *Log) sizes(segs []SegmentInfo) error {
	for i := range segs {
		f, size, err := openSegment(l.fs, l.dir, segs[i].Name)
		if err != nil {
			return err
		}
		f.Close()
		segs[i].Bytes = size
	}
	return nil
}

// mkdir makes a directory and the entry that leads to it durable.
func mkdir(fsys FS, dir string) error {
	if err := fsys.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make a directory: %w", err)
	}
	return fsys.SyncDir(filepath.Dir(dir))
}
