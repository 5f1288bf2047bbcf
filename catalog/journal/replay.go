package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
)

// Replay calls fn with the verified records from number from on, in order, up to the newest at the time of the call. It stops
// with the error of fn, or with a *DamageError at the first damage at or above from; Replay from its Last+1 goes on behind it.
// The entry's slices are valid only during fn. fn may call Append, Sync and ReadAt.
func (l *Log) Replay(ctx context.Context, from uint64, fn func(Entry) error) error {
	l.mu.Lock()
	closed, last, limit, segs := l.closed, l.last, l.off, slices.Clone(l.segs)
	l.mu.Unlock()
	if closed {
		return ErrClosed
	}
	from = max(from, 1)
	if from > last {
		return nil
	}
	r := &reader{fs: l.fs, dir: l.dir, store: l.store, limit: limit, seq: 1, chain: genesis(l.store), linked: true}
	defer r.close()
	// Begin with the segment that holds from; what its header says of the chain before it is taken as true.
	i := 0
	for i+1 < len(segs) && segs[i+1].First <= from {
		i++
	}
	if r.segs = segs[i:]; i > 0 {
		r.seq, r.linked = r.segs[0].First, false
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		e, d, err := r.next()
		switch {
		case err != nil:
			return fmt.Errorf("replay the journal: %w", err)
		case d != nil && r.openEnd:
			d.Last = max(d.Last, last)
		case d == nil && e.Seq == 0 && r.state().next <= last:
			d = &DamageError{Kind: Missing, First: r.state().next, Last: last, Why: "the log ends before its newest record"}
			if len(segs) > 0 {
				d.Segment, d.Offset, d.End = segs[len(segs)-1].Name, r.state().off, r.state().off
			}
		case d == nil && e.Seq == 0:
			return nil
		}
		switch {
		case d != nil && d.Last >= d.First && d.Last >= from:
			d.First = max(d.First, from)
			return d
		case d != nil:
			continue
		case e.Seq < from:
			continue
		}
		if err := fn(e); err != nil || e.Seq == last {
			return err
		}
	}
}

// ReadAt returns the record seq, which lies at pos, checked against its checksums (the chain needs the records before it: see
// Replay). A record that is not intact or is another one is a *DamageError. The entry's slices are the caller's.
func (l *Log) ReadAt(pos Pos, seq uint64) (Entry, error) {
	l.mu.Lock()
	closed, limit := l.closed, int64(-1)
	if n := len(l.segs); n > 0 && l.segs[n-1].First == pos.Segment {
		limit = l.off
	}
	l.mu.Unlock()
	if closed {
		return Entry{}, ErrClosed
	}
	name := segmentName(pos.Segment)
	bad := func(kind Kind, why string) (Entry, error) {
		return Entry{}, &DamageError{Kind: kind, Segment: name, Offset: pos.Offset, End: pos.Offset, First: seq, Last: seq, Why: why}
	}
	f, size, err := openSegment(l.fs, l.dir, name)
	if errors.Is(err, fs.ErrNotExist) {
		return bad(Missing, "there is no such segment")
	} else if err != nil {
		return Entry{}, err
	}
	defer f.Close()
	if limit >= 0 {
		size = min(size, limit)
	}
	if pos.Offset < headerSize || pos.Offset >= size {
		return bad(Missing, "the segment has no such place")
	}
	// The frame's number and checksums identify it; its marker matters only to a search for frames.
	w := &walker{src: &source{r: f, size: size}, name: name, first: pos.Segment, crc: castagnoli(), off: pos.Offset, seq: seq}
	b, err := w.src.bytes(pos.Offset, int(min(frameSize, size-pos.Offset)))
	if err != nil {
		return Entry{}, fmt.Errorf("read journal segment %s: %w", name, err)
	}
	copy(w.marker[:], b)
	fr, why, err := w.frameAt(pos.Offset)
	if err == nil && why == "" && fr.seq != seq {
		why = fmt.Sprintf("record %d lies there, not record %d", fr.seq, seq)
	}
	if err != nil {
		return Entry{}, fmt.Errorf("read journal segment %s: %w", name, err)
	}
	if why != "" {
		return bad(Rot, why)
	}
	e, g, err := w.record(fr)
	if err != nil {
		return Entry{}, fmt.Errorf("read journal segment %s: %w", name, err)
	}
	if g != nil {
		return Entry{}, w.damage(*g)
	}
	e.Head, e.Body = bytes.Clone(e.Head), bytes.Clone(e.Body)
	return e, nil
}
