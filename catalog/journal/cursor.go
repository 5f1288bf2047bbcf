package journal

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// Cursor reads a log that grows, record after record, without reading again what it has read before. It is for one goroutine, and need not be closed.
type Cursor struct {
	l    *Log
	next uint64 // the record to be read next
	// Where it begins, and the chain hash of the record before it, when that one was read.
	known bool
	seg   uint64
	off   int64
	chain chain
}

// Cursor returns a cursor whose first record is from.
func (l *Log) Cursor(from uint64) *Cursor { return &Cursor{l: l, next: max(from, 1)} }

// Next is the number of the record that Read begins with.
func (c *Cursor) Next() uint64 { return c.next }

// SkipTo makes a later record the next one: how a reader goes on behind damage.
func (c *Cursor) SkipTo(seq uint64) {
	if seq > c.next {
		c.next, c.known = seq, false
	}
}

// Read calls fn with each record that was not read yet, up to the newest at the time of the call: see Replay, whose errors are its own. A record for
// which fn returned an error counts as not read.
func (c *Cursor) Read(ctx context.Context, fn func(Entry) error) error {
	if c.known {
		if err := c.goOn(ctx, fn); !errors.Is(err, errReplay) {
			return err
		}
	}
	return c.l.Replay(ctx, c.next, func(e Entry) error {
		err := fn(e)
		if err == nil {
			c.note(e)
		}
		return err
	})
}

func (c *Cursor) note(e Entry) {
	size := frameSize + int64(len(e.Head)+len(e.Body))
	c.next, c.known, c.seg, c.off, c.chain = e.Seq+1, true, e.Pos.Segment, e.Pos.Offset+size, e.Chain
}

// errReplay: the log does not look as expected where the last record ended. Its segment was rewritten, or is damaged, which is for Replay to tell.
var errReplay = errors.New("the journal is to be searched from the start of a segment")

// goOn reads on from where the last record ended; errReplay when that is not where the next one begins.
func (c *Cursor) goOn(ctx context.Context, fn func(Entry) error) error {
	l := c.l
	l.mu.Lock()
	closed, last, limit := l.closed, l.last, l.off
	i := slices.IndexFunc(l.segs, func(s SegmentInfo) bool { return s.First == c.seg })
	var segs []SegmentInfo
	if i >= 0 {
		segs = slices.Clone(l.segs[i:])
	}
	l.mu.Unlock()
	switch {
	case closed:
		return ErrClosed
	case c.next > last:
		return nil
	case i < 0:
		return errReplay
	}
	r := &reader{fs: l.fs, dir: l.dir, store: l.store, segs: segs, limit: limit, seq: c.seg}
	defer r.close()
	if err := r.open(); err != nil {
		return fmt.Errorf("%w: %w", errReplay, err)
	}
	if len(r.waiting) > 0 || r.foreign {
		return errReplay
	}
	r.w.off, r.w.seq, r.w.chain, r.w.linked = c.off, c.next, c.chain, true
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		e, d, err := r.next()
		switch {
		case err != nil:
			return fmt.Errorf("%w: %w", errReplay, err)
		case d != nil || e.Seq == 0:
			return errReplay
		}
		if err := fn(e); err != nil {
			return err
		}
		if c.note(e); e.Seq == last {
			return nil
		}
	}
}

// Link is what the chain hash of a record is made of: Chain = SHA-256(Prev || Frame || Head).
type Link struct {
	Seq   uint64
	Prev  [32]byte // the chain hash of the record before
	Frame [32]byte // number, time, newest durable record, and lengths: bytes 8 to 39 of the record's frame
	Head  []byte
	Chain [32]byte
	// HeadDropped says that the head is not there any more: Chain is then what the frame states, and Prev, Frame and Head mean nothing.
	HeadDropped bool
}

// Link returns what a record's chain hash is made of, verified. A *DamageError when the record or the one before it cannot be read.
func (l *Log) Link(ctx context.Context, seq uint64) (Link, error) {
	if last, _ := l.Last(); seq == 0 || seq > last {
		return Link{}, fmt.Errorf("journal record %d: there is none; the newest is %d", seq, last)
	}
	k := Link{Seq: seq, Prev: genesis(l.store)}
	var pos Pos
	err := l.Replay(ctx, max(seq-1, 1), func(e Entry) error {
		if e.Seq != seq {
			k.Prev = e.Chain
			return nil
		}
		k.Head, k.Chain, k.HeadDropped, pos = slices.Clone(e.Head), e.Chain, e.HeadDropped, e.Pos
		return errFound
	})
	if !errors.Is(err, errFound) {
		if err == nil {
			err = fmt.Errorf("journal record %d cannot be found", seq)
		}
		return Link{}, err
	}
	if k.HeadDropped {
		k.Head = nil
		return k, nil
	}
	f, err := l.frameAt(pos, seq)
	if err != nil {
		return Link{}, err
	}
	k.Frame = f
	return k, nil
}

var errFound = errors.New("found")

// frameAt reads the part of a frame that the chain covers. The place may be of before a compaction: then the record is looked for.
func (l *Log) frameAt(pos Pos, seq uint64) (part [32]byte, err error) {
	name := segmentName(pos.Segment)
	f, size, err := openSegment(l.fs, l.dir, name)
	if err != nil {
		return part, err
	}
	defer f.Close()
	w := &walker{src: &source{r: f, size: size}, name: name, first: pos.Segment, crc: castagnoli(), off: pos.Offset, seq: seq}
	bad := &DamageError{Kind: Rot, Segment: name, Offset: pos.Offset, End: pos.Offset, First: seq, Last: seq, Why: "it changed while it was read"}
	if pos.Offset+frameSize > size {
		return part, bad
	}
	b, err := w.src.bytes(pos.Offset, frameSize)
	if err != nil {
		return part, fmt.Errorf("read journal segment %s: %w", name, err)
	}
	fr, why := parseFrame(b, marker(b[:8]), w.crc)
	if why != "" || fr.seq != seq {
		return part, bad
	}
	return [32]byte(b[frmSeq:frmFlags]), nil
}

// ChainOf computes a record's chain hash from what it is made of. It and FrameOf need no log.
func ChainOf(prev, frame [32]byte, head []byte) [32]byte {
	b := make([]byte, frameSize+len(head))
	copy(b[frmSeq:], frame[:])
	copy(b[frameSize:], head)
	return link(&prev, b, uint32(len(head)))
}

// FrameOf reads the number and the time of a record, and the lengths of its head and body as appended, from the part of its frame that the chain covers.
func FrameOf(frame [32]byte) (seq uint64, time, headLen, bodyLen int64) {
	b := make([]byte, frameSize)
	copy(b[frmSeq:], frame[:])
	f := decodeFrame(b)
	return f.seq, f.time, int64(f.headLen), int64(f.bodyLen)
}

// Genesis is the chain hash that the first record of a store continues.
func Genesis(store [16]byte) [32]byte { return genesis(store) }
