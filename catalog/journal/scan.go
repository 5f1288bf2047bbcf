package journal

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

const (
	readAhead = 256 << 10
	// maxGaps ends the reading of one segment: behind so many damaged places the rest counts as one, so that a hostile file
	// cannot make the list of its damage grow without end.
	maxGaps = 4096
)

// source reads a file through a window of memory, up to a fixed size.
type source struct {
	r     io.ReaderAt
	size  int64
	start int64 // file offset of buf[0]
	buf   []byte
}

// bytes returns the n bytes at off, which must lie below size; valid until the next call.
func (s *source) bytes(off int64, n int) ([]byte, error) {
	if off < s.start || off+int64(n) > s.start+int64(len(s.buf)) {
		want := min(max(int64(n), readAhead), s.size-off)
		if int64(cap(s.buf)) < want {
			s.buf = make([]byte, want)
		}
		s.buf = s.buf[:want]
		got, err := s.r.ReadAt(s.buf, off)
		s.start, s.buf = off, s.buf[:got]
		if got < n {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	at := off - s.start
	return s.buf[at : at+int64(n) : at+int64(n)], nil
}

// some returns the bytes at off that are in memory, reading on when they are fewer than n; at least min(n, size-off).
func (s *source) some(off int64, n int) ([]byte, error) {
	inMemory := s.start + int64(len(s.buf)) - off
	return s.bytes(off, int(min(max(inMemory, int64(n)), s.size-off)))
}

// nonZero returns the offset of the first byte at or behind off that is not zero; size when there is none.
func (s *source) nonZero(off int64) (int64, error) {
	for off < s.size {
		b, err := s.some(off, frameSize)
		if err != nil {
			return 0, err
		}
		if i := len(b) - len(bytes.TrimLeft(b, "\x00")); i < len(b) {
			return off + int64(i), nil
		}
		off += int64(len(b))
	}
	return s.size, nil
}

// walker reads the records of one segment from front to back, steps over damage, and never returns a record that is not intact.
type walker struct {
	src    *source
	name   string
	first  uint64 // by the file's name
	marker marker
	crc    *crc32.Table

	off    int64
	seq    uint64 // the next record's number
	chain  chain  // of the record before; alt is another candidate for it, after a record whose chain did not fit
	alt    chain
	linked bool // chain is known
	forked bool // alt is set
	synced uint64
	gaps   int
}

// gap is a damaged stretch: no record is readable in [off, end). open says that none is readable behind it either.
type gap struct {
	off, end    int64
	first, last uint64
	why         string
	open        bool
}

func (w *walker) damage(g gap) *DamageError {
	kind := Rot
	if g.off == g.end {
		kind = Missing
	}
	return &DamageError{Kind: kind, Segment: w.name, Offset: g.off, End: g.end, First: g.first, Last: g.last, Why: g.why}
}

// next returns the next record or the next gap, or neither at the clean end, where w.off is the end of the last record.
// The entry's slices are valid until the next call. err is a failure to read the file.
func (w *walker) next() (e Entry, g *gap, err error) {
	if w.off >= w.src.size {
		return e, nil, nil
	}
	f, why, err := w.frameAt(w.off)
	if err != nil {
		return e, nil, err
	}
	switch {
	case why == "" && f.seq == w.seq:
		return w.record(f)
	case why == "" && w.plausible(f.seq):
		g := w.skip(w.off, f.seq, fmt.Sprintf("record %d is followed by record %d", w.seq-1, f.seq))
		return e, g, nil
	case why == "":
		why = fmt.Sprintf("record %d follows record %d", f.seq, w.seq-1)
	}
	dirt, err := w.src.nonZero(w.off)
	if err != nil || dirt == w.src.size {
		return e, nil, err
	}
	return w.resync(why)
}

// plausible says that a record of that number may come next, after a gap.
func (w *walker) plausible(seq uint64) bool {
	return seq >= w.seq && seq-w.first <= uint64(w.src.size/frameSize)
}

// frameAt reads the frame at off; why is set when there is none that fits into the file.
func (w *walker) frameAt(off int64) (f frame, why string, err error) {
	room := w.src.size - off
	if room < frameSize {
		return f, fmt.Sprintf("a frame is cut short: %d of %d bytes", room, frameSize), nil
	}
	b, err := w.src.bytes(off, frameSize)
	if err != nil {
		return f, "", err
	}
	f, why = parseFrame(b, w.marker, w.crc)
	if why == "" && f.size() > room {
		why = fmt.Sprintf("record %d is cut short: %d of %d bytes", f.seq, room, f.size())
	}
	return f, why, nil
}

// record checks content and chain of the record at w.off, whose frame is intact and has the right number, and steps over it.
func (w *walker) record(f frame) (e Entry, g *gap, err error) {
	b, err := w.src.bytes(w.off, int(f.size()))
	if err != nil {
		return e, nil, err
	}
	at, end := w.off, w.off+f.size()
	intact := crc32.Checksum(b[frameSize:], w.crc) == f.dataCRC
	want := f.chain
	fits := true
	if f.headDropped() {
		// What the record said is not there to be checked: the next one is held against the hash that this one states.
		w.off, w.seq = end, f.seq+1
		w.chain, w.linked, w.forked = f.chain, true, false
		w.synced = max(w.synced, f.synced)
		return Entry{Seq: f.seq, Time: f.time, BodyLen: int64(f.bodyLen), BodyDropped: true, HeadDropped: true, Chain: f.chain, Pos: Pos{w.first, at}}, nil, nil
	}
	if intact && w.linked {
		want = link(&w.chain, b, f.headLen)
		fits = want == f.chain || w.forked && link(&w.alt, b, f.headLen) == f.chain
	}
	w.off, w.seq = end, f.seq+1
	w.chain, w.linked = f.chain, true
	w.alt, w.forked = want, !fits
	if !intact || !fits {
		why := fmt.Sprintf("the content of record %d does not have its checksum", f.seq)
		if intact {
			why = fmt.Sprintf("record %d does not continue the chain", f.seq)
		}
		return e, w.count(gap{off: at, end: end, first: f.seq, last: f.seq, why: why}), nil
	}
	w.synced = max(w.synced, f.synced)
	e = Entry{Seq: f.seq, Time: f.time, Head: b[frameSize : frameSize+f.headLen : frameSize+f.headLen], BodyLen: int64(f.bodyLen),
		BodyDropped: f.dropped(), Chain: f.chain, Pos: Pos{w.first, at}}
	if !e.BodyDropped {
		e.Body = b[frameSize+f.headLen:]
	}
	return e, nil, nil
}

// resync looks for the next usable frame behind w.off. One with an intact frame is trusted to be one of this segment: it begins with
// the secret marker, and its number fits. So every byte is looked at once, whatever the file holds.
func (w *walker) resync(why string) (Entry, *gap, error) {
	from := w.off
	for off := w.off + 1; off+frameSize <= w.src.size; {
		b, err := w.src.some(off, frameSize)
		if err != nil {
			return Entry{}, nil, err
		}
		i := bytes.Index(b, w.marker[:])
		if i < 0 {
			off += int64(len(b) - len(w.marker) + 1)
			continue
		}
		off += int64(i)
		f, bad, err := w.frameAt(off)
		if err != nil {
			return Entry{}, nil, err
		}
		if bad == "" && w.plausible(f.seq) {
			w.off = off
			return Entry{}, w.skip(from, f.seq, why), nil
		}
		off++
	}
	w.off = w.src.size
	return Entry{}, &gap{off: from, end: w.src.size, first: w.seq, last: w.seq - 1, why: why, open: true}, nil
}

// skip makes the gap before record seq, which lies at w.off.
func (w *walker) skip(from int64, seq uint64, why string) *gap {
	g := gap{off: from, end: w.off, first: w.seq, last: seq - 1, why: why}
	if seq != w.seq {
		w.linked, w.forked = false, false
	}
	w.seq = seq
	return w.count(g)
}

func (w *walker) count(g gap) *gap {
	if w.gaps++; w.gaps >= maxGaps {
		g.end, g.open = w.src.size, true
		g.last = g.first - 1
		g.why += fmt.Sprintf("; after %d damaged places the rest of the segment was not read", maxGaps)
		w.off, w.seq = w.src.size, g.first
	}
	return &g
}
