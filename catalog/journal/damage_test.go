package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func mkfifo(name string) error { return unix.Mkfifo(name, 0o600) }

func resealHeader(b []byte) {
	binary.LittleEndian.PutUint32(b[hdrCRC:], crc32.Checksum(b[:hdrCRC], castagnoli()))
}

// load returns a memFS that holds a copy of files, all durable.
func load(files map[string][]byte) *memFS {
	m := newMemFS()
	m.dirs["store/journal"] = true
	for name, data := range files {
		n := &memNode{data: bytes.Clone(data), kept: bytes.Clone(data)}
		m.names["store/journal/"+name], m.durable["store/journal/"+name] = n, n
	}
	return m
}

// build returns the segment files of a log of n records; each carries what was synced before it when sync is set.
func build(t testing.TB, n uint64, segmentBytes int64, sync bool) map[string][]byte {
	t.Helper()
	m := newMemFS()
	l := mustOpen(t, Options{Dir: "store/journal", FS: m, SegmentBytes: segmentBytes, marker: func() marker {
		return marker{0x80, 1, 2, 3, 4, byte(n), byte(segmentBytes), byte(len(m.names))}
	}})
	for i := uint64(1); i <= n; i++ {
		mustAppend(t, l, i, i)
		if sync {
			mustSync(t, l)
		}
	}
	files := map[string][]byte{}
	for name, node := range m.names {
		files[filepath.Base(name)] = bytes.Clone(node.data)
	}
	return files
}

func quarantined(m *memFS) (names []string) {
	for name := range m.names {
		if strings.HasPrefix(name, "store/quarantine/") {
			names = append(names, name)
		}
	}
	return names
}

// A power cut can leave any part of the last record, with or without zeros behind it. The log is then what it was before it, the
// remains are kept, and it goes on.
func TestTornAtEveryByte(t *testing.T) {
	const n = 6
	whole := build(t, n, 1<<20, false)[segmentName(1)]
	start := int64(len(whole)) - int64(frameSize+len(recordN(n).head)+len(recordN(n).body))
	for cut := start; cut < int64(len(whole)); cut++ {
		for _, zeros := range []int{0, 10000} {
			m := load(map[string][]byte{segmentName(1): append(bytes.Clone(whole[:cut]), make([]byte, zeros)...)})
			if rep := verify(t, "store/journal", m, 0); len(rep.Damage) > 0 || rep.Last != n-1 || (rep.Tail == nil) != (cut == start) {
				t.Fatalf("cut at %d: verify says %+v", cut, rep)
			}
			l := mustOpen(t, Options{Dir: "store/journal", FS: m})
			seqs, damage := replayAll(t, l)
			wantSeqs(t, seqs, 1, n-1)
			if len(damage)+len(l.Damaged()) > 0 || (l.Torn() == nil) != (cut == start) || len(quarantined(m)) != min(1, int(cut-start)) {
				t.Fatalf("cut at %d: damage %v %v, torn %v, kept %v", cut, damage, l.Damaged(), l.Torn(), quarantined(m))
			}
			if q := quarantined(m); len(q) > 0 {
				if kept, want := m.names[q[0]].data, bytes.TrimRight(whole[start:cut], "\x00"); !bytes.Equal(kept, want) {
					t.Fatalf("cut at %d: kept %x, want %x", cut, kept, want)
				}
			}
			mustAppend(t, l, n, n+3)
			mustSync(t, l)
			if rep := verify(t, "store/journal", m, n+3); !rep.OK() || rep.Last != n+3 {
				t.Fatalf("cut at %d: verify after going on: %+v", cut, rep)
			}
		}
	}
}

// Every flipped bit is found by Verify; no reader ever returns a record that was not appended; and what was durable is not cut off.
func TestBitFlipAtEveryByte(t *testing.T) {
	const n = 9
	files := build(t, n, headerSize+500, true)
	if len(files) < 2 {
		t.Fatal("one segment only")
	}
	for name, data := range files {
		for i := range data {
			if i > hdrMarker+8 && i < hdrCRC && i%61 > 0 {
				continue // the padding of the header, which nothing but its checksum looks at, is sampled
			}
			m := load(files)
			m.names["store/journal/"+name].data[i] ^= 1 << (i % 8)
			before := bytes.Clone(m.names["store/journal/"+name].data)
			rep, err := Verify(t.Context(), "store/journal", VerifyOptions{StoreID: testStore, AppliedSeq: n, FS: m})
			if err != nil || rep.OK() || len(rep.Damage) == 0 {
				t.Fatalf("%s byte %d: verify says %+v, %v", name, i, rep, err)
			}
			for _, d := range rep.Damage {
				if d.Segment != name && d.Kind != Missing {
					t.Fatalf("%s byte %d: damage elsewhere: %v", name, i, d)
				}
			}
			l := mustOpen(t, Options{Dir: "store/journal", FS: m, AppliedSeq: n})
			seqs, _ := replayAll(t, l)
			if lost := n - len(seqs); lost > 1 {
				t.Fatalf("%s byte %d: %d records lost: %v", name, i, lost, rep.Damage)
			}
			if last, _ := l.Last(); last != n {
				t.Fatalf("%s byte %d: goes on after %d", name, i, last)
			}
			kept := m.names["store/journal/"+name]
			if kept == nil {
				kept = m.names[quarantined(m)[0]]
			}
			if !bytes.Equal(kept.data, before) {
				t.Fatalf("%s byte %d: durable bytes were cut off or changed", name, i)
			}
			mustAppend(t, l, n+1, n+2)
			more, _ := replayAll(t, l)
			wantSeqs(t, more[len(more)-2:], n+1, n+2)
		}
	}
}

// The last record is torn or rotten by what is known of it alone.
func TestBoundDecidesBetweenTornAndRot(t *testing.T) {
	files := build(t, 5, 1<<20, false)
	data := files[segmentName(1)]
	data[len(data)-1] ^= 1 // record 5's body
	for applied := range uint64(8) {
		m := load(files)
		l := mustOpen(t, Options{Dir: "store/journal", FS: m, AppliedSeq: applied})
		last, _ := l.Last()
		if torn := applied < 5; torn {
			if l.Torn() == nil || len(l.Damaged()) > 0 || last != 4 {
				t.Fatalf("applied %d: torn %v, damaged %v, last %d", applied, l.Torn(), l.Damaged(), last)
			}
		} else if l.Torn() != nil || len(l.Damaged()) == 0 || last != applied {
			t.Fatalf("applied %d: torn %v, damaged %v, last %d", applied, l.Torn(), l.Damaged(), last)
		}
		mustAppend(t, l, last+1, last+2)
		seqs, _ := replayAll(t, l)
		wantSeqs(t, seqs[:4], 1, 4)
		wantSeqs(t, seqs[4:], last+1, last+2)
	}
}

// A hole in unsynced records takes everything behind it along: the log is a prefix. A synced one is damage, and what follows stays.
func TestHoleInTheMiddle(t *testing.T) {
	for _, synced := range []bool{false, true} {
		files := build(t, 9, 1<<20, synced)
		data := files[segmentName(1)]
		m := load(files)
		l := mustOpen(t, Options{Dir: "store/journal", FS: m})
		var at [11]int64
		if err := l.Replay(t.Context(), 1, func(e Entry) error { at[e.Seq] = e.Pos.Offset; return nil }); err != nil {
			t.Fatal(err)
		}
		l.Close()
		clear(data[at[4]:at[6]])
		l = mustOpen(t, Options{Dir: "store/journal", FS: load(files)})
		seqs, damage := replayAll(t, l)
		wantSeqs(t, seqs[:3], 1, 3)
		if !synced {
			if len(seqs) != 3 || len(damage) > 0 || l.Torn() == nil {
				t.Fatal(seqs, damage, l.Torn())
			}
			continue
		}
		wantSeqs(t, seqs[3:], 6, 9)
		if len(damage) != 1 || damage[0].First != 4 || damage[0].Last != 5 || damage[0].Offset != at[4] || damage[0].End != at[6] || l.Torn() != nil {
			t.Fatal(damage, l.Torn())
		}
	}
}

func TestMissingSegments(t *testing.T) {
	files := build(t, 40, headerSize+700, true)
	m := load(files)
	segs, _, err := listSegments(m, "store/journal")
	if err != nil || len(segs) < 4 {
		t.Fatal(segs, err)
	}
	for i, seg := range segs {
		m := load(files)
		delete(m.names, "store/journal/"+seg.Name)
		after := uint64(40)
		if i+1 < len(segs) {
			after = segs[i+1].First - 1
		}
		rep := verify(t, "store/journal", m, 40)
		if len(rep.Damage) != 1 || rep.Damage[0].Kind != Missing || rep.Damage[0].First != seg.First || rep.Damage[0].Last != after || rep.Entries != 40-(after+1-seg.First) {
			t.Fatalf("without %s: %+v %v", seg.Name, rep, rep.Damage)
		}
		l := mustOpen(t, Options{Dir: "store/journal", FS: m, AppliedSeq: 40})
		seqs, damage := replayAll(t, l)
		if len(damage) != 1 || damage[0].First != seg.First || damage[0].Last != after || uint64(len(seqs)) != rep.Entries {
			t.Fatalf("without %s: replay finds %v", seg.Name, damage)
		}
		mustAppend(t, l, 41, 42)
	}
	// The end is lost, and nothing has been written since.
	m = load(files)
	mustOpen(t, Options{Dir: "store/journal", FS: m, AppliedSeq: 60}).Close()
	if rep := verify(t, "store/journal", m, 0); len(rep.Damage) != 1 || rep.Damage[0].Kind != Missing || rep.Damage[0].First != 41 || rep.Damage[0].Last != 60 {
		t.Fatal(rep.Damage)
	}
	// Nothing left at all.
	m = load(nil)
	l := mustOpen(t, Options{Dir: "store/journal", FS: m, AppliedSeq: 40})
	mustAppend(t, l, 41, 42)
	seqs, damage := replayAll(t, l)
	wantSeqs(t, seqs, 41, 42)
	if len(damage) != 1 || damage[0].Last != 40 || len(l.Damaged()) != 1 {
		t.Fatal(damage, l.Damaged())
	}
}

func TestForgedHistory(t *testing.T) {
	crc := castagnoli()
	files := build(t, 30, headerSize+900, true)
	m := load(files)
	l := mustOpen(t, Options{Dir: "store/journal", FS: m})
	var at [31]Pos
	if err := l.Replay(t.Context(), 1, func(e Entry) error { at[e.Seq] = e.Pos; return nil }); err != nil {
		t.Fatal(err)
	}
	// An edited head with all checksums made right breaks the chain there.
	forged := load(files)
	data := forged.names["store/journal/"+segmentName(at[3].Segment)].data
	b := data[at[3].Offset:at[4].Offset]
	b[frameSize] ^= 1
	binary.LittleEndian.PutUint32(b[frmDataCRC:], crc32.Checksum(b[frameSize:], crc))
	seal(b, crc)
	if rep := verify(t, "store/journal", forged, 30); len(rep.Damage) != 1 || rep.Damage[0].First != 3 || rep.Damage[0].Last != 3 {
		t.Fatal(rep.Damage)
	}
	// A segment moved to another number, and two that changed places.
	segs := l.Segments()
	swapped := load(files)
	a, c := "store/journal/"+segs[0].Name, "store/journal/"+segs[1].Name
	swapped.names[a], swapped.names[c] = swapped.names[c], swapped.names[a]
	if rep := verify(t, "store/journal", swapped, 30); len(rep.Damage) == 0 {
		t.Fatal("exchanged segments were not noticed")
	}
	// A segment rewritten as a whole, with a chain of its own, does not continue the one before it.
	other := newMemFS()
	ol := mustOpen(t, Options{Dir: "store/journal", FS: other, SegmentBytes: headerSize + 900})
	for n := uint64(1); n <= 30; n++ {
		r := recordN(n)
		r.head[0] ^= 1
		if _, _, err := ol.Append(int64(n)*1000, r.head, r.body); err != nil {
			t.Fatal(err)
		}
	}
	mixed := load(files)
	mixed.names[c] = other.names[c]
	if rep := verify(t, "store/journal", mixed, 30); len(rep.Damage) < 2 {
		t.Fatalf("a replaced segment was not noticed at both ends: %v", rep.Damage)
	}
}

// A torn tail is cut off even where writing goes on in a new segment: a record in it must not come back under a number used again.
func TestTornBehindDamagedHeader(t *testing.T) {
	files := build(t, 6, 1<<20, false)
	l := mustOpen(t, Options{Dir: "store/journal", FS: load(files), ReadOnly: true})
	var at [7]int64
	if err := l.Replay(t.Context(), 1, func(e Entry) error { at[e.Seq] = e.Pos.Offset; return nil }); err != nil {
		t.Fatal(err)
	}
	files[segmentName(1)][hdrChain] ^= 1
	files[segmentName(1)][at[4]] ^= 1
	m := load(files)
	l = mustOpen(t, Options{Dir: "store/journal", FS: m})
	if last, _ := l.Last(); last != 3 || l.Torn() == nil || len(l.Damaged()) != 1 || len(quarantined(m)) != 1 {
		t.Fatal(last, l.Torn(), l.Damaged())
	}
	for n := uint64(4); n <= 6; n++ {
		if _, _, err := l.Append(int64(n), []byte("another")); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Replay(t.Context(), 4, func(e Entry) error {
		if string(e.Head) != "another" {
			t.Errorf("record %d is one that was cut off", e.Seq)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if rep := verify(t, "store/journal", m, 6); rep.Entries != 6 || len(rep.Damage) != 1 || rep.Damage[0].Offset != 0 {
		t.Fatal(rep.Damage)
	}
}

// A dropped body leaves a record whose chain still holds.
func TestDroppedBody(t *testing.T) {
	crc := castagnoli()
	files := build(t, 6, 1<<20, true)
	l := mustOpen(t, Options{Dir: "store/journal", FS: load(files)})
	var at [7]Pos
	if err := l.Replay(t.Context(), 1, func(e Entry) error { at[e.Seq] = e.Pos; return nil }); err != nil {
		t.Fatal(err)
	}
	data := files[segmentName(1)]
	head := recordN(4).head
	short := bytes.Clone(data[at[4].Offset : at[4].Offset+frameSize+int64(len(head))])
	binary.LittleEndian.PutUint32(short[frmFlags:], flagBodyDropped)
	binary.LittleEndian.PutUint32(short[frmDataCRC:], crc32.Checksum(head, crc))
	seal(short, crc)
	files[segmentName(1)] = bytes.Join([][]byte{data[:at[4].Offset], short, data[at[5].Offset:]}, nil)
	m := load(files)
	if rep := verify(t, "store/journal", m, 6); !rep.OK() || rep.Entries != 6 {
		t.Fatal(rep)
	}
	l = mustOpen(t, Options{Dir: "store/journal", FS: m})
	e, err := l.ReadAt(at[4], 4)
	if err != nil || !e.BodyDropped || e.Body != nil || e.BodyLen != int64(len(recordN(4).body)) || !bytes.Equal(e.Head, head) {
		t.Fatal(e, err)
	}
}

// Content that looks like frames does not pass for records when the frame around it is damaged.
func TestFramesInsideBodies(t *testing.T) {
	m := newMemFS()
	l := mustOpen(t, Options{Dir: "store/journal", FS: m})
	mustAppend(t, l, 1, 5)
	copied := bytes.Clone(m.names["store/journal/"+segmentName(1)].data)
	foreign := build(t, 20, 1<<20, true)[segmentName(1)]
	_, pos, err := l.Append(6000, recordN(6).head, copied, foreign)
	if err != nil {
		t.Fatal(err)
	}
	mustSync(t, l)
	mustAppend(t, l, 7, 9)
	mustSync(t, l)
	l.Close()
	m.names["store/journal/"+segmentName(1)].data[pos.Offset+20] ^= 1
	l = mustOpen(t, Options{Dir: "store/journal", FS: m})
	seqs, damage := replayAll(t, l)
	wantSeqs(t, seqs[5:], 7, 9)
	if len(seqs) != 8 || len(damage) != 1 || damage[0].First != 6 || damage[0].Last != 6 {
		t.Fatal(seqs, damage)
	}
}

// A stray file, an unfinished segment and an unreadable last segment do not keep the log from opening.
func TestStrangersInTheDirectory(t *testing.T) {
	files := build(t, 5, 1<<20, true)
	m := load(files)
	for name, data := range map[string][]byte{
		"0000000000000006.seg.tmp": []byte("unfinished"), "README": []byte("x"), "0000000000000000.seg": nil, "000000000000000G.seg": nil,
		"0000000000000006.seg": bytes.Repeat([]byte("not a segment "), 1000),
	} {
		m.names["store/journal/"+name] = &memNode{data: data}
	}
	l := mustOpen(t, Options{Dir: "store/journal", FS: m})
	mustAppend(t, l, 6, 8)
	seqs, _ := replayAll(t, l)
	wantSeqs(t, seqs, 1, 8)
	if len(l.Damaged()) != 1 || len(quarantined(m)) != 1 || m.names["store/journal/0000000000000006.seg.tmp"] != nil || m.names["store/journal/README"] == nil {
		t.Fatal(l.Damaged(), quarantined(m))
	}
}

func TestErrorTexts(t *testing.T) {
	d := &DamageError{Kind: Rot, Segment: segmentName(17), Offset: 5000, First: 20, Last: 22, Why: "because"}
	if got := d.Error(); !strings.Contains(got, "0000000000000011.seg") || !strings.Contains(got, "records 20 to 22") || !errors.Is(d, ErrDamaged) {
		t.Fatal(got)
	}
	if _, err := os.Stat(segmentName(1)); err == nil {
		t.Fatal("a test wrote into the package")
	}
}

// A record that somebody has changed, checksums included, does not continue the chain. Heal leaves it, and says so.
func TestHealKnowsTheChain(t *testing.T) {
	files := build(t, 8, 1<<20, true)
	m := load(files)
	l := mustOpen(t, Options{Dir: "store/journal", FS: m})
	node := m.names["store/journal/"+segmentName(1)]
	off := int64(headerSize)
	for range 3 {
		f, why := parseFrame(node.data[off:], marker(node.data[off:off+8]), castagnoli())
		if why != "" {
			t.Fatal(why)
		}
		off += f.size()
	}
	b := node.data[off:]
	f, _ := parseFrame(b, marker(b[:8]), castagnoli())
	b[frameSize]++
	putDropped(b, f.flags, crc32.Checksum(b[frameSize:f.size()], castagnoli()))
	seal(b, castagnoli())
	forged := bytes.Clone(node.data)
	rep, err := l.Heal(t.Context(), func(uint64, []byte) ([]byte, error) { return nil, errors.New("nobody has it") })
	if err != nil || len(rep.Healed) > 0 || len(rep.Left) == 0 || rep.Left[0].First != 4 {
		t.Fatalf("%+v %v", rep, err)
	}
	if !bytes.Equal(node.data, forged) {
		t.Fatal("it was changed")
	}
}
