package volume

import (
	"bytes"
	"encoding/binary"
	"flag"
	"math/rand/v2"
	"testing"
	"time"

	"holdfast/blobstore"
	"holdfast/catalog"
)

var volumeSeed = flag.Uint64("volume-seed", 0, "seed of the random tests; 0 draws one")

// seeded returns a random source whose seed is printed, so that a failure can be repeated.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := *volumeSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d (repeat with -volume-seed)", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// fillBytes makes bytes that differ between calls.
func fillBytes(r *rand.Rand, n int) []byte {
	p := make([]byte, 0, n+7)
	for len(p) < n {
		p = binary.LittleEndian.AppendUint64(p, r.Uint64())
	}
	return p[:n:n]
}

// TestSpanMapModel compares random puts and removals with an array that says, byte by byte, where each one is.
func TestSpanMapModel(t *testing.T) {
	r := seeded(t)
	const size = 600
	type place struct {
		src source
		pos int64
		val byte
	}
	for round := range 200 {
		m := newSpanMap()
		model := make([]*place, size)
		refs := []*blobstore.Ref{{Hash: blobstore.Hash{1}, Size: 4000}, {Hash: blobstore.Hash{2}, Size: 4000}}
		for range 60 {
			off := r.Int64N(size)
			n := min(1+r.Int64N(80), size-off)
			switch kind := r.IntN(5); kind {
			case 4:
				m.remove(off, off+n)
				clear(model[off : off+n])
			default:
				s := span{off: off, n: n, src: source(kind), pos: r.Int64N(1000)}
				switch s.src {
				case inMemory:
					s.pos = 0
					s.mem = fillBytes(r, int(n))
				case inBlob:
					s.blob = refs[r.IntN(2)]
				case isZero:
					s.pos = 0
				}
				m.put(s)
				for i := range n {
					p := place{src: s.src}
					switch s.src {
					case inMemory:
						p.val = s.mem[i]
					case inStage:
						p.pos = s.pos + i
					case inBlob:
						p.pos, p.val = s.pos+i, s.blob.Hash[0]
					}
					model[off+i] = &p
				}
			}
			from := r.Int64N(size)
			to := from + r.Int64N(size-from+1)
			got := make([]*place, size)
			last := int64(-1)
			m.walk(from, to, func(s span) bool {
				if s.off < from || s.end() > to || s.n <= 0 || s.off < last {
					t.Fatalf("round %d: span [%d,%d) out of order or range [%d,%d)", round, s.off, s.end(), from, to)
				}
				last = s.end()
				for i := range s.n {
					p := place{src: s.src}
					switch s.src {
					case inMemory:
						p.val = s.mem[i]
					case inStage:
						p.pos = s.pos + i
					case inBlob:
						p.pos, p.val = s.pos+i, s.blob.Hash[0]
					}
					got[s.off+i] = &p
				}
				return true
			})
			for i := from; i < to; i++ {
				a, b := model[i], got[i]
				if (a == nil) != (b == nil) || a != nil && *a != *b {
					t.Fatalf("round %d: byte %d: want %+v, have %+v", round, i, a, b)
				}
			}
		}
	}
}

// TestSpanMapSharedMemory grows a span whose memory was cut from a larger one: the neighbour must stay as it is.
func TestSpanMapSharedMemory(t *testing.T) {
	f := &file{v: &Volume{}, base: newSpanMap(), dirty: newSpanMap()}
	f.remember(bytes.Repeat([]byte{1}, 100), 0)
	f.dirty.put(span{off: 50, n: 10, src: isZero})
	f.remember([]byte{9}, 50)
	f.dirty.walk(60, 100, func(s span) bool {
		for i, b := range s.mem {
			if b != 1 {
				t.Fatalf("byte %d is %d", s.off+int64(i), b)
			}
		}
		return true
	})
}

// TestSpanMapApply checks the order of a splice: cut, holes, extents.
func TestSpanMapApply(t *testing.T) {
	m := newSpanMap()
	ref := blobstore.Ref{Hash: blobstore.Hash{7}, Size: 100}
	m.apply(catalog.Splice{Cut: catalog.NoCut, Extents: []catalog.Extent{{Off: 0, Len: 100, Blob: ref}}})
	m.apply(catalog.Splice{Cut: 80, Holes: []catalog.Hole{{Off: 10, Len: 20}}, Extents: []catalog.Extent{{Off: 15, Len: 5, Blob: ref, BlobOff: 90}}})
	var got [][3]int64
	m.walk(0, 200, func(s span) bool {
		got = append(got, [3]int64{s.off, s.n, s.pos})
		return true
	})
	want := [][3]int64{{0, 10, 0}, {15, 5, 90}, {30, 50, 30}}
	if len(got) != len(want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("got %v, want %v", got, want)
		}
	}
}
