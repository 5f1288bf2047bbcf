package journal

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// Keep says what Rewrite leaves of a record.
type Keep int

const (
	KeepAll  Keep = iota
	KeepHead      // the body goes
	KeepNone      // head and body go: number, time and chain hash stay
)

// Rewritten is what Rewrite did to a segment.
type Rewritten struct {
	Before, After int64 // bytes of the segment
	Heads, Bodies int   // that were dropped
}

const (
	// rewriteBuffer is how much of a new segment is written at once.
	rewriteBuffer = 1 << 20
	// rewriteStep is the number of records between two calls of pause.
	rewriteStep = 512
)

// Rewrite replaces a segment other than the last by one without what keep says is of no use any more, unless that saves less than minSave bytes. The chain
// stays provable from record to record, but over those whose head goes, which only state their hash. keep is called with each record in order
// (its slices are valid only in the call), moved then with the new place of each that keeps its head. A reader in the middle of the segment goes on with the
// old one. pause is called now and then; its error ends Rewrite. A damaged segment is left as it is: a *DamageError. On any error the segment is as
// before, unless the error is that of the last sync: then it may be the one or the other after a power cut, both of which are right.
func (l *Log) Rewrite(ctx context.Context, first uint64, minSave int64, keep func(Entry) (Keep, error), moved func(seq uint64, pos Pos),
	pause func(context.Context) error) (Rewritten, error) {
	l.mu.Lock()
	err := l.writable()
	i := slices.IndexFunc(l.segs, func(s SegmentInfo) bool { return s.First == first })
	last := i == len(l.segs)-1
	l.mu.Unlock()
	switch {
	case err != nil:
		return Rewritten{}, err
	case i < 0 || last:
		return Rewritten{}, fmt.Errorf("rewrite journal segment %s: there is none that is finished", segmentName(first))
	}
	w := &rewriter{l: l, name: segmentName(first), first: first, pause: pause}
	res, err := w.run(ctx, minSave, keep, moved)
	if err != nil {
		return Rewritten{}, fmt.Errorf("rewrite journal segment %s: %w", w.name, err)
	}
	return res, nil
}

// rewriter is one Rewrite in progress.
type rewriter struct {
	l     *Log
	name  string
	first uint64
	pause func(context.Context) error

	plan  []Keep // of each record, in order
	out   File
	buf   []byte
	off   int64 // in the new file, where buf begins
	steps int
}

func (w *rewriter) run(ctx context.Context, minSave int64, keep func(Entry) (Keep, error), moved func(uint64, Pos)) (res Rewritten, err error) {
	var after int64 = headerSize
	err = w.each(ctx, func(e Entry, raw []byte) error {
		k, err := keep(e)
		if err != nil {
			return err
		}
		switch {
		case e.HeadDropped:
			k = KeepNone
		case e.BodyDropped && k == KeepAll, k == KeepHead && e.BodyLen == 0:
			k = KeepHead
		}
		size := int64(len(raw))
		switch {
		case k == KeepNone && !e.HeadDropped:
			res.Heads++
			size = frameSize
		case k == KeepHead && !e.BodyDropped:
			res.Bodies++
			size -= e.BodyLen
		}
		after += size
		w.plan = append(w.plan, k)
		return nil
	})
	if err != nil {
		return res, err
	}
	res.Before, res.After = w.size(), after
	if res.Before-res.After < max(minSave, 1) {
		res.After, res.Heads, res.Bodies = res.Before, 0, 0
		return res, nil
	}
	return res, w.replace(ctx, moved)
}

func (w *rewriter) size() int64 {
	w.l.mu.Lock()
	defer w.l.mu.Unlock()
	for _, s := range w.l.segs {
		if s.First == w.first {
			return s.Bytes
		}
	}
	return 0
}

// each calls fn with each record of the segment as it is, and its bytes.
func (w *rewriter) each(ctx context.Context, fn func(e Entry, raw []byte) error) error {
	r := &reader{fs: w.l.fs, dir: w.l.dir, store: w.l.store, segs: []SegmentInfo{{First: w.first, Name: w.name}}, limit: -1, seq: w.first}
	defer r.close()
	for {
		e, d, err := r.next()
		switch {
		case err != nil:
			return err
		case d != nil:
			return d
		case e.Seq == 0:
			return ctx.Err()
		}
		raw, err := r.w.src.bytes(e.Pos.Offset, int(r.w.off-e.Pos.Offset))
		if err != nil {
			return err
		}
		if err := fn(e, raw); err != nil {
			return err
		}
		if w.steps++; w.steps%rewriteStep == 0 {
			if err := w.pause(ctx); err != nil {
				return err
			}
		}
	}
}

// replace writes the new segment and puts it in the place of the old one.
func (w *rewriter) replace(ctx context.Context, moved func(uint64, Pos)) (err error) {
	temp := filepath.Join(w.l.dir, fmt.Sprintf("%016x%s", w.first, tempSuffix))
	if err := w.l.fs.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if w.out, err = w.l.fs.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return err
	}
	var places []Pos
	err = w.copy(ctx, &places)
	if err == nil {
		err = w.out.Datasync()
	}
	if cerr := w.out.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return errors.Join(err, w.l.fs.Remove(temp))
	}
	if err := w.l.fs.Rename(temp, filepath.Join(w.l.dir, w.name)); err != nil {
		return errors.Join(err, w.l.fs.Remove(temp))
	}
	w.l.mu.Lock()
	for i := range w.l.segs {
		if w.l.segs[i].First == w.first {
			w.l.segs[i].Bytes = w.off
		}
	}
	w.l.mu.Unlock()
	for i, k := range w.plan {
		if k != KeepNone {
			moved(w.first+uint64(i), places[i])
		}
	}
	return w.l.fs.SyncDir(w.l.dir)
}

// copy writes the new segment's bytes.
func (w *rewriter) copy(ctx context.Context, places *[]Pos) error {
	old, size, err := openSegment(w.l.fs, w.l.dir, w.name)
	if err != nil {
		return err
	}
	head := make([]byte, min(headerSize, size))
	_, err = old.ReadAt(head, 0)
	if err = errors.Join(err, old.Close()); err != nil {
		return err
	}
	w.buf, w.off = append(w.buf[:0], head...), 0
	n := 0
	err = w.each(ctx, func(e Entry, raw []byte) error {
		if n >= len(w.plan) || e.Seq != w.first+uint64(n) {
			return errors.New("it changed while it was read")
		}
		*places = append(*places, Pos{w.first, w.off + int64(len(w.buf))})
		w.append(e, raw, w.plan[n])
		n++
		if len(w.buf) < rewriteBuffer {
			return nil
		}
		return w.flush()
	})
	if err == nil && n != len(w.plan) {
		err = errors.New("it changed while it was read")
	}
	if err != nil {
		return err
	}
	return w.flush()
}

func (w *rewriter) flush() error {
	if _, err := w.out.WriteAt(w.buf, w.off); err != nil {
		return err
	}
	w.off += int64(len(w.buf))
	w.buf = w.buf[:0]
	return nil
}

// append adds a record to the new segment.
func (w *rewriter) append(e Entry, raw []byte, k Keep) {
	at := len(w.buf)
	flags := uint32(0)
	switch {
	case k == KeepNone:
		w.buf = append(w.buf, raw[:frameSize]...)
		flags = flagBodyDropped | flagHeadDropped
	case k == KeepHead:
		w.buf = append(w.buf, raw[:frameSize+len(e.Head)]...)
		if e.BodyLen > 0 || e.BodyDropped {
			flags = flagBodyDropped
		}
	default:
		w.buf = append(w.buf, raw...)
	}
	b := w.buf[at:]
	putDropped(b, flags, crc32.Checksum(b[frameSize:], w.l.crc))
	seal(b, w.l.crc)
}
