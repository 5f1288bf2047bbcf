package volume

import (
	"math"

	"github.com/tidwall/btree"

	"holdfast/blobstore"
	"holdfast/catalog"
)

// source says where the bytes of a span are.
type source uint8

const (
	inMemory source = iota // span.mem
	inStage                // the file's staging file, at span.pos
	isZero                 // nowhere: they read as zero
	inBlob                 // span.blob, at span.pos
)

// span is a range [off, off+n) of a file whose bytes are in one place.
type span struct {
	off, n int64
	src    source
	pos    int64
	mem    []byte // len(mem) == n
	blob   *blobstore.Ref
}

func (s span) end() int64 { return s.off + s.n }

// part returns the part of s that lies in [from, to), which must overlap it.
func (s span) part(from, to int64) span {
	from, to = max(from, s.off), min(to, s.end())
	skip := from - s.off
	out := s
	out.off, out.n = from, to-from
	switch s.src {
	case inMemory:
		// The capacity ends where the part ends: growing one part must not write into its neighbour.
		out.mem = s.mem[skip : skip+out.n : skip+out.n]
	case inStage, inBlob:
		out.pos = s.pos + skip
	}
	return out
}

// continues reports whether next goes on where s ends, in the file and in its place.
func (s span) continues(next span) bool {
	if s.end() != next.off || s.src != next.src {
		return false
	}
	switch s.src {
	case isZero:
		return true
	case inStage:
		return s.pos+s.n == next.pos
	case inBlob:
		return s.blob.Hash == next.blob.Hash && s.pos+s.n == next.pos
	}
	return false
}

// spanMap is an ordered set of spans that do not overlap. The zero value is not usable; see newSpanMap. Not for concurrent use.
type spanMap struct {
	tree *btree.BTreeG[span]
}

func newSpanMap() spanMap {
	return spanMap{btree.NewBTreeGOptions(func(a, b span) bool { return a.off < b.off }, btree.Options{NoLocks: true, Degree: 32})}
}

func (m spanMap) len() int { return m.tree.Len() }

func (m spanMap) clear() { m.tree.Clear() }

// before returns the span with the greatest start at or below off.
func (m spanMap) before(off int64) (span, bool) {
	var found span
	ok := false
	m.tree.Descend(span{off: off}, func(s span) bool {
		found, ok = s, true
		return false
	})
	return found, ok
}

// walk calls fn for each part of [from, to) that a span covers, in order, until fn returns false. fn must not change the map.
func (m spanMap) walk(from, to int64, fn func(span) bool) {
	if from >= to {
		return
	}
	start := from
	if s, ok := m.before(from); ok && s.end() > from {
		start = s.off
	}
	m.tree.Ascend(span{off: start}, func(s span) bool {
		if s.off >= to {
			return false
		}
		return fn(s.part(from, to))
	})
}

// remove takes [from, to) out of the map, cutting spans that reach over an end.
func (m spanMap) remove(from, to int64) {
	if from >= to {
		return
	}
	if s, ok := m.before(from); ok && s.off < from && s.end() > from {
		m.tree.Set(s.part(s.off, from))
		if s.end() > to {
			m.tree.Set(s.part(to, s.end()))
			return
		}
	}
	for {
		var s span
		found := false
		m.tree.Ascend(span{off: from}, func(next span) bool {
			s, found = next, next.off < to
			return false
		})
		if !found {
			return
		}
		m.tree.Delete(s)
		if s.end() > to {
			m.tree.Set(s.part(to, s.end()))
			return
		}
	}
}

// put makes s what its range holds, joining it to the span before where it continues that.
func (m spanMap) put(s span) {
	if s.n == 0 {
		return
	}
	m.remove(s.off, s.end())
	if prev, ok := m.before(s.off); ok && prev.continues(s) {
		prev.n += s.n
		m.tree.Set(prev)
		return
	}
	m.tree.Set(s)
}

// truncate drops everything at or above size.
func (m spanMap) truncate(size int64) { m.remove(size, math.MaxInt64) }

// apply changes m, the committed content of a file, as the catalog does when it commits sp.
func (m spanMap) apply(sp catalog.Splice) {
	if sp.Cut != math.MaxInt64 {
		m.truncate(sp.Cut)
	}
	for _, h := range sp.Holes {
		m.remove(h.Off, h.Off+h.Len)
	}
	for _, e := range sp.Extents {
		m.put(extentSpan(e))
	}
}

func extentSpan(e catalog.Extent) span {
	ref := e.Blob
	return span{off: e.Off, n: e.Len, src: inBlob, pos: e.BlobOff, blob: &ref}
}

func (s span) extent() catalog.Extent {
	return catalog.Extent{Off: s.off, Len: s.n, Blob: *s.blob, BlobOff: s.pos}
}
