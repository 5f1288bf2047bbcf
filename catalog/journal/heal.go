package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// HealReport says what Heal found.
type HealReport struct {
	Healed []*DamageError // that are as they were written again
	Left   []*DamageError // that are not
}

// Heal looks at the whole log for damage and makes good what can be proved to be what was written, byte for byte: headers, which follow from what is around
// them; single flipped bits, by their checksums; and bodies, of records whose head the chain proves, with body, which is given the number and head
// of a record and returns the body, or an error. What was damaged is copied to "../quarantine" before it is written over, in place. A process that is
// killed meanwhile leaves damage. Appending goes on; Rewrite must not be called meanwhile. Errors are those of the filesystem.
func (l *Log) Heal(ctx context.Context, body func(seq uint64, head []byte) ([]byte, error)) (rep HealReport, err error) {
	l.mu.Lock()
	err = l.writable()
	segs, limit, last := slices.Clone(l.segs), l.off, l.last
	l.mu.Unlock()
	if err != nil {
		return rep, err
	}
	h := &healer{l: l, body: body, rep: &rep, next: 1, chain: genesis(l.store), linked: true}
	for i, s := range segs {
		size := s.Bytes
		if i == len(segs)-1 {
			size = limit
		}
		if err := h.segment(ctx, s, size); err != nil {
			return rep, fmt.Errorf("heal journal segment %s: %w", s.Name, err)
		}
	}
	if h.next <= last {
		h.left(DamageError{Kind: Missing, First: h.next, Last: last, Why: "the log ends before its newest record"})
	}
	return rep, nil
}

// healer is one Heal in progress.
type healer struct {
	l    *Log
	body func(uint64, []byte) ([]byte, error)
	rep  *HealReport

	next   uint64 // the number of the next record, and the chain before it
	chain  chain
	linked bool

	seg  SegmentInfo
	file File
	open []*DamageError // Left whose end the next segment tells
}

func (h *healer) left(d DamageError) {
	d.Segment = h.seg.Name
	h.rep.Left = append(h.rep.Left, &d)
}

func (h *healer) segment(ctx context.Context, s SegmentInfo, size int64) error {
	f, err := h.l.fs.OpenFile(filepath.Join(h.l.dir, s.Name), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // what comes next tells what is missing
	}
	if err != nil {
		return err
	}
	defer f.Close()
	for _, d := range h.open {
		d.Last = max(d.Last, s.First-1)
	}
	if len(h.open) > 0 {
		h.next, h.linked, h.open = max(h.next, s.First), false, nil
	}
	h.seg = s
	if s.First > h.next {
		h.left(DamageError{Kind: Missing, First: h.next, Last: s.First - 1, Why: "the segment before it is missing or ends too early"})
		h.next, h.linked = s.First, false
	}
	have, err := f.Size()
	if err != nil {
		return err
	}
	h.file, size = f, min(size, have)
	w := &walker{src: &source{r: f, size: size}, name: s.Name, first: s.First, crc: h.l.crc, off: headerSize, seq: h.next, chain: h.chain, linked: h.linked}
	if err := h.header(w); err != nil {
		return err
	}
	tried := int64(-1)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		before := *w
		e, g, err := w.next()
		switch {
		case err != nil:
			return err
		case g == nil && e.Seq == 0:
			h.next, h.chain, h.linked = w.seq, w.chain, w.linked
			return nil
		case g == nil:
			continue
		}
		if g.off != tried && !before.forked {
			tried = g.off
			fixed, err := h.record(&before, g)
			if err != nil {
				return err
			}
			if fixed {
				d := before.damage(*g)
				d.Last = d.First
				h.rep.Healed = append(h.rep.Healed, d)
				*w = before
				w.src = &source{r: f, size: size}
				continue
			}
		}
		h.left(*w.damage(*g))
		if g.open {
			h.open = append(h.open, h.rep.Left[len(h.rep.Left)-1])
		}
	}
}

// header checks the header of the segment that w is to read, and makes it anew when it is damaged.
func (h *healer) header(w *walker) error {
	block := make([]byte, headerSize)
	if w.src.size < headerSize {
		h.left(DamageError{Kind: Rot, End: w.src.size, First: h.next, Last: h.next - 1, Why: "the header is cut short"})
		w.off = w.src.size
		return nil
	}
	if _, err := h.file.ReadAt(block, 0); err != nil {
		return err
	}
	hdr, why, err := parseHeader(block)
	switch {
	case err != nil:
		return err
	case why == "" && hdr.store == h.l.store && hdr.first == h.seg.First:
		w.marker = hdr.marker
		if !w.linked {
			w.chain, w.linked = hdr.chain, true
		}
		return nil
	case why == "":
		why = "the header is that of another segment"
	}
	d := DamageError{Kind: Rot, Segment: h.seg.Name, End: headerSize, First: h.next, Last: h.next - 1, Why: why}
	w.marker = marker(block[hdrMarker : hdrMarker+len(marker{})])
	if w.src.size >= headerSize+frameSize {
		b, err := w.src.bytes(headerSize, frameSize)
		if err != nil {
			return err
		}
		m := marker(b[:len(marker{})])
		if f, bad := parseFrame(b, m, w.crc); bad == "" {
			w.marker = m
			if h.linked && h.next == h.seg.First && f.seq == h.next {
				ok, err := h.follows(w, f)
				if err != nil {
					return err
				}
				if ok {
					good := header{store: h.l.store, first: h.seg.First, chain: h.chain, marker: m}
					h.rep.Healed = append(h.rep.Healed, &d)
					return h.write(0, good.encode())
				}
			}
		}
	}
	h.left(d)
	return nil
}

// follows says whether the record at w.off, whose frame is f, continues the chain.
func (h *healer) follows(w *walker, f frame) (bool, error) {
	if f.headDropped() || f.size() > w.src.size-w.off {
		return false, nil
	}
	b, err := w.src.bytes(w.off, int(f.size()))
	if err != nil {
		return false, err
	}
	return crc32.Checksum(b[frameSize:], w.crc) == f.dataCRC && link(&h.chain, b, f.headLen) == f.chain, nil
}

// record makes the record good that w stands before and that the gap g begins with.
func (h *healer) record(w *walker, g *gap) (bool, error) {
	room := w.src.size - g.off
	if room < frameSize || !w.linked {
		return false, nil
	}
	b, err := w.src.bytes(g.off, frameSize)
	if err != nil {
		return false, err
	}
	b = bytes.Clone(b)
	f, why := parseFrame(b, w.marker, w.crc)
	if why != "" {
		if f, why = flipFrame(b, w.marker, w.crc, w.seq); why != "" {
			return false, nil
		}
	}
	if f.seq != w.seq || f.size() > room || f.headDropped() {
		return false, nil
	}
	data, err := w.src.bytes(g.off, int(f.size()))
	if err != nil {
		return false, err
	}
	data = append(b, data[frameSize:]...)
	if !h.mendData(w, data, f) {
		return false, nil
	}
	return true, h.write(g.off, data)
}

// mendData makes head and body of a record what its frame proves them to be; false when it cannot.
func (h *healer) mendData(w *walker, data []byte, f frame) bool {
	proved := func() bool {
		return crc32.Checksum(data[frameSize:], w.crc) == f.dataCRC && link(&w.chain, data, f.headLen) == f.chain
	}
	if proved() {
		return true
	}
	headEnd := frameSize + int(f.headLen)
	if link(&w.chain, data, f.headLen) == f.chain && !f.dropped() && f.bodyLen > 0 {
		// A flipped bit is made good by itself, too, but only the hashes in the head prove a body.
		body, err := h.body(f.seq, data[frameSize:headEnd])
		if err == nil && len(body) == int(f.bodyLen) {
			copy(data[headEnd:], body)
			return proved()
		}
	}
	at, bit, ok := flippedBit(data[frameSize:], f.dataCRC, w.crc)
	if !ok {
		return false
	}
	data[frameSize+at] ^= bit
	return proved()
}

// flipFrame makes the frame in b good when one of its bits is flipped.
func flipFrame(b []byte, m marker, t *crc32.Table, seq uint64) (f frame, why string) {
	for i := range frameSize * 8 {
		b[i/8] ^= 1 << (i % 8)
		if f, why = parseFrame(b, m, t); why == "" && f.seq == seq {
			return f, ""
		}
		b[i/8] ^= 1 << (i % 8)
	}
	return f, "no single bit makes it a frame"
}

// flippedBit finds the one bit of data that is flipped, if its checksum should be want. CRC is linear: the difference of the two checksums is that of a
// string with this one bit, which takes one step of the register for each byte behind it.
func flippedBit(data []byte, want uint32, t *crc32.Table) (at int, bit byte, ok bool) {
	diff := crc32.Checksum(data, t) ^ want
	var reg [8]uint32
	for i := range reg {
		reg[i] = t[1<<i]
	}
	for at = len(data) - 1; at >= 0; at-- {
		for i := range reg {
			if reg[i] == diff {
				return at, 1 << i, true
			}
			reg[i] = t[byte(reg[i])] ^ reg[i]>>8
		}
	}
	return 0, 0, false
}

// write puts good bytes into the segment; those that were there go to quarantine.
func (h *healer) write(off int64, good []byte) error {
	if err := h.keep(off, off+int64(len(good))); err != nil {
		return fmt.Errorf("keep a copy of what is damaged: %w", err)
	}
	if _, err := h.file.WriteAt(good, off); err != nil {
		return err
	}
	return h.file.Datasync()
}

func (h *healer) keep(off, end int64) error {
	name, err := h.l.quarantine(h.seg.Name, "damaged")
	if err != nil {
		return err
	}
	dst, err := h.l.fs.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = copyRange(dst, h.file, 0, off, end)
	if err == nil {
		err = dst.Datasync()
	}
	if err = errors.Join(err, dst.Close()); err != nil {
		return errors.Join(err, h.l.fs.Remove(name))
	}
	return h.l.fs.SyncDir(filepath.Dir(name))
}
