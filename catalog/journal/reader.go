package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// listSegments returns the segments in dir by number, and the names of unfinished ones. Other names are not the log's.
func listSegments(fsys FS, dir string) (segs []SegmentInfo, unfinished []string, err error) {
	names, err := fsys.ReadDir(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("list the journal's segments: %w", err)
	}
	for _, name := range names {
		if first, ok := parseSegmentName(name); ok {
			segs = append(segs, SegmentInfo{First: first, Name: name})
		} else if len(name) == 16+len(tempSuffix) && name[16:] == tempSuffix {
			unfinished = append(unfinished, name)
		}
	}
	slices.SortFunc(segs, func(a, b SegmentInfo) int {
		if a.First < b.First {
			return -1
		}
		return 1
	})
	return segs, unfinished, nil
}

// openSegment opens a segment for reading and returns its size.
func openSegment(fsys FS, dir, name string) (File, int64, error) {
	f, err := fsys.OpenFile(filepath.Join(dir, name), os.O_RDONLY, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("open journal segment: %w", err)
	}
	size, err := f.Size()
	if err != nil {
		f.Close()
		return nil, 0, fmt.Errorf("journal segment %s: %w", name, err)
	}
	return f, size, nil
}

// reader reads segments in order, as one chain.
type reader struct {
	fs    FS
	dir   string
	store [16]byte
	segs  []SegmentInfo // still to be opened
	limit int64         // where the last segment ends for this reader; negative: where its file does

	seq    uint64 // the next record's number
	chain  chain
	linked bool // chain is known
	synced uint64

	file    File
	w       *walker
	waiting []*DamageError // found when the segment was opened
	bytes   int64          // of the segments opened so far

	seen func(Entry) error // is shown each record; nil: nobody

	foreign   bool // the segment being read is another store's
	headerBad bool // or its header is damaged
	openEnd   bool // the last damage reached the end of the last segment: how many records it takes is unknown
}

// state is how far a reader came.
type state struct {
	next   uint64
	chain  chain
	linked bool
	off    int64 // in the segment being read
}

func (r *reader) state() state {
	if r.w == nil {
		return state{next: r.seq, chain: r.chain, linked: r.linked}
	}
	return state{r.w.seq, r.w.chain, r.w.linked, r.w.off}
}

// next returns the next record or the next damage; neither at the end.
func (r *reader) next() (Entry, *DamageError, error) {
	for {
		if len(r.waiting) > 0 {
			d := r.waiting[0]
			r.waiting = r.waiting[1:]
			return Entry{}, d, nil
		}
		if r.w == nil {
			if len(r.segs) == 0 {
				return Entry{}, nil, nil
			}
			if err := r.open(); err != nil {
				return Entry{}, nil, err
			}
			continue
		}
		e, g, err := r.w.next()
		switch {
		case err != nil:
			return e, nil, fmt.Errorf("read journal segment %s: %w", r.w.name, err)
		case g != nil:
			return Entry{}, r.gap(g), nil
		case e.Seq != 0:
			r.synced = max(r.synced, r.w.synced)
			if r.seen != nil {
				err = r.seen(e)
			}
			return e, nil, err
		}
		if len(r.segs) == 0 {
			return Entry{}, nil, nil
		}
		r.leave()
	}
}

// gap turns a gap into a DamageError. The segment behind it tells how far an open one reaches.
func (r *reader) gap(g *gap) *DamageError {
	d := r.w.damage(*g)
	if !g.open {
		return d
	}
	if len(r.segs) == 0 {
		r.openEnd = true
		return d
	}
	if next := r.segs[0].First; next > g.first {
		d.Last = next - 1
		r.w.seq, r.w.linked = next, false
	}
	return d
}

// leave ends the reading of a segment.
func (r *reader) leave() {
	s := r.state()
	r.seq, r.chain, r.linked = s.next, s.chain, s.linked
	r.close()
}

func (r *reader) close() {
	if r.file != nil {
		r.file.Close()
	}
	r.file, r.w = nil, nil
}

// open begins the next segment and checks that it continues what was read before.
func (r *reader) open() error {
	seg := r.segs[0]
	f, size, err := openSegment(r.fs, r.dir, seg.Name)
	if errors.Is(err, fs.ErrNotExist) { // it was there: what comes next tells what is missing
		r.segs = r.segs[1:]
		return nil
	}
	if err != nil {
		return err
	}
	r.segs, r.file = r.segs[1:], f
	r.bytes += size
	if len(r.segs) == 0 && r.limit >= 0 {
		size = min(size, r.limit)
	}
	src := &source{r: f, size: size}
	block, err := src.bytes(0, int(min(headerSize, size)))
	if err != nil {
		return fmt.Errorf("read journal segment %s: %w", seg.Name, err)
	}
	h, why, err := parseHeader(block)
	if err != nil {
		return fmt.Errorf("journal segment %s: %w", seg.Name, err)
	}
	r.foreign = why == "" && h.store != r.store
	if why == "" && h.first != seg.First {
		why = fmt.Sprintf("the header is that of the segment that begins with record %d", h.first)
	}
	r.headerBad = why != ""

	switch {
	case seg.First > r.seq:
		r.report(DamageError{Kind: Missing, First: r.seq, Last: seg.First - 1, Why: "the segment before it is missing or ends too early"}, seg)
		r.seq, r.linked = seg.First, false
	case seg.First < r.seq:
		r.report(DamageError{Kind: Rot, First: r.seq, Last: r.seq - 1, Why: fmt.Sprintf(
			"it begins with record %d, and the segments before it go to record %d", seg.First, r.seq-1)}, seg)
	}
	r.w = &walker{src: src, name: seg.Name, first: seg.First, crc: castagnoli(), off: headerSize, seq: r.seq}
	if r.foreign {
		d := r.gap(&gap{end: size, first: r.seq, last: r.seq - 1, why: ErrForeign.Error(), open: true})
		r.w.off = size
		r.report(*d, seg)
		return nil
	}
	r.begin(h, why, seg)
	return nil
}

func (r *reader) report(d DamageError, seg SegmentInfo) {
	d.Segment = seg.Name
	r.waiting = append(r.waiting, &d)
}

// begin sets the walker on the first record; why tells that the header is damaged.
func (r *reader) begin(h header, why string, seg SegmentInfo) {
	w := r.w
	w.marker = h.marker
	headerEnd := min(headerSize, w.src.size)
	if why != "" {
		r.report(DamageError{Kind: Rot, End: headerEnd, First: r.seq, Last: r.seq - 1, Why: why}, seg)
		w.chain, w.linked = r.chain, r.linked
		// The marker may be the part of the header that is damaged; the first frame begins with it too.
		if w.src.size < headerSize+frameSize {
			return
		}
		if b, err := w.src.some(headerSize, frameSize); err == nil {
			if _, bad := parseFrame(b, marker(b[:8]), w.crc); bad == "" {
				w.marker = marker(b[:8])
			}
		}
		return
	}
	w.chain, w.linked = h.chain, true
	if r.linked && seg.First == r.seq && h.chain != r.chain {
		r.report(DamageError{Kind: Rot, End: headerEnd, First: r.seq, Last: r.seq - 1, Why: "it does not continue the chain of the segment before it"}, seg)
		w.alt, w.forked = r.chain, true
	}
}
