package catalog

import (
	"math"

	"github.com/tidwall/btree"
)

// without returns what is left of e before from and from to on; a piece with Len 0 is none.
func (e Extent) without(from, to int64) (head, tail Extent) {
	if e.Off < from {
		head = e
		head.Len = min(e.Len, from-e.Off)
	}
	if end := e.Off + e.Len; end > to {
		tail = e
		skip := max(to-e.Off, 0)
		tail.Off += skip
		tail.Len -= skip
		tail.BlobOff += skip
	}
	return head, tail
}

// extentMap is the content of one file in memory: extents by offset, not overlapping.
type extentMap struct {
	btree.Map[int64, Extent]
}

func newExtentMap(list []Extent) *extentMap {
	m := new(extentMap)
	for i := range list {
		m.Load(list[i].Off, list[i])
	}
	return m
}

// splice applies a change of content exactly as writeSplice does to rows.
func (m *extentMap) splice(s *Splice) {
	if s.Cut != NoCut {
		m.clear(s.Cut, math.MaxInt64)
	}
	for _, h := range s.Holes {
		m.clear(h.Off, h.Off+h.Len)
	}
	for _, e := range s.Extents {
		m.clear(e.Off, e.Off+e.Len)
		m.Set(e.Off, e)
	}
}

func (m *extentMap) clear(from, to int64) {
	var hit []Extent
	m.Descend(from, func(off int64, e Extent) bool {
		if off < from && off+e.Len > from {
			hit = append(hit, e)
		}
		return off >= from
	})
	m.Ascend(from, func(off int64, e Extent) bool {
		if off < to {
			hit = append(hit, e)
		}
		return off < to
	})
	for _, e := range hit {
		m.Delete(e.Off)
		head, tail := e.without(from, to)
		for _, piece := range []Extent{head, tail} {
			if piece.Len > 0 {
				m.Set(piece.Off, piece)
			}
		}
	}
}

func (m *extentMap) list() []Extent {
	out := make([]Extent, 0, m.Len())
	m.Scan(func(_ int64, e Extent) bool {
		out = append(out, e)
		return true
	})
	return out
}
