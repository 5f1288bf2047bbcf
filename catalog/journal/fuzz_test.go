package journal

import (
	"bytes"
	"errors"
	"testing"
)

// Arbitrary bytes in place of the last segment: no panic, no hang, no record that was not appended, and a log that goes on.
func FuzzOpen(f *testing.F) {
	files := build(f, 12, headerSize+500, true)
	var names []string
	segs, _, err := listSegments(load(files), "store/journal")
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range segs {
		names = append(names, s.Name)
	}
	last := files[names[len(names)-1]]
	f.Add(last, uint8(12))
	f.Add(last[:len(last)-5], uint8(0))
	f.Add(last[:headerSize], uint8(7))
	f.Add([]byte{}, uint8(0))
	f.Add(files[names[0]], uint8(0))
	f.Add(append(bytes.Clone(last), bytes.Repeat(last[hdrMarker:hdrMarker+8], 2000)...), uint8(3))
	f.Add(append(bytes.Clone(last), last[headerSize:]...), uint8(12))
	f.Add(make([]byte, headerSize+500), uint8(1))
	f.Fuzz(func(t *testing.T, data []byte, applied uint8) {
		m := load(files)
		m.names["store/journal/"+names[len(names)-1]].data = data
		rep, err := Verify(t.Context(), "store/journal", VerifyOptions{StoreID: testStore, AppliedSeq: uint64(applied), FS: m})
		if errors.Is(err, ErrVersion) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(rep.Damage) > 2*maxGaps {
			t.Fatalf("%d damaged places listed", len(rep.Damage))
		}
		l, err := Open(t.Context(), Options{Dir: "store/journal", StoreID: testStore, AppliedSeq: uint64(applied), FS: m})
		if errors.Is(err, ErrForeign) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		before, _ := l.Last()
		if before < uint64(applied) {
			t.Fatalf("goes on after record %d, %d was applied", before, applied)
		}
		if _, _, err := l.Append(0, []byte("new")); err != nil {
			t.Fatal(err)
		}
		next, seen := uint64(1), false
		for {
			err := l.Replay(t.Context(), next, func(e Entry) error {
				if e.Seq < next {
					t.Fatalf("record %d again", e.Seq)
				}
				next = e.Seq + 1
				seen = e.Seq == before+1 && string(e.Head) == "new"
				return nil
			})
			var d *DamageError
			if !errors.As(err, &d) {
				break
			}
			next = d.Last + 1
		}
		if !seen {
			t.Fatal("the record appended last is not replayed")
		}
	})
}

func FuzzParseHeader(f *testing.F) {
	h := header{store: testStore, first: 5, chain: genesis(testStore), marker: newMarker()}
	f.Add(h.encode())
	f.Add([]byte(segmentMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, why, err := parseHeader(b); why == "" && err == nil && !bytes.Equal(got.encode(), b[:headerSize]) {
			// Reserved bytes are covered by the checksum only.
			if !bytes.Equal(got.encode()[:hdrMarker+8], b[:hdrMarker+8]) {
				t.Fatalf("%+v does not encode to what it was read from", got)
			}
		}
	})
}

func FuzzSegmentName(f *testing.F) {
	for _, s := range []string{"0000000000000001.seg", "00000000000000ff.seg", "ffffffffffffffff.seg", "+000000000000001.seg", "0000000000000001.SEG", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, ok := parseSegmentName(s); ok && segmentName(n) != s {
			t.Fatalf("%q is read as %d", s, n)
		}
	})
}

// Whatever a segment holds, Heal does not panic or hang, changes nothing but to what was written, and what it calls healed is.
func FuzzHeal(f *testing.F) {
	files := build(f, 12, headerSize+500, true)
	var names []string
	segs, _, err := listSegments(load(files), "store/journal")
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range segs {
		names = append(names, s.Name)
	}
	for _, at := range []uint16{0, 40, 80, 4000, headerSize, headerSize + 20, headerSize + 60, headerSize + 90, headerSize + 300} {
		f.Add(uint8(1), at, []byte{1})
		f.Add(uint8(0), at, []byte{0x80, 0, 0, 3})
		f.Add(uint8(2), at, bytes.Repeat([]byte{0xff}, 200))
	}
	f.Fuzz(func(t *testing.T, which uint8, at uint16, xor []byte) {
		m := load(files)
		l, err := Open(t.Context(), Options{Dir: "store/journal", StoreID: testStore, FS: m})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		name := names[int(which)%len(names)]
		node := m.names["store/journal/"+name]
		good := bytes.Clone(node.data)
		changed := false
		for i, x := range xor {
			if p := int(at) + i; p < len(node.data) {
				node.data[p] ^= x
				changed = changed || x != 0
			}
		}
		bad := bytes.Clone(node.data)
		rep, err := l.Heal(t.Context(), func(uint64, []byte) ([]byte, error) { return nil, errors.New("nobody has it") })
		if errors.Is(err, ErrVersion) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if changed == (len(rep.Healed)+len(rep.Left) == 0) {
			t.Fatalf("changed: %v, report %+v", changed, rep)
		}
		for i, b := range node.data {
			if b != good[i] && b != bad[i] {
				t.Fatalf("byte %d was made up", i)
			}
		}
		if len(rep.Left) == 0 && !bytes.Equal(node.data, good) {
			t.Fatal("called healed, and is not")
		}
	})
}
