package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
)

func noPause(ctx context.Context) error { return ctx.Err() }

// keptOf is what the test leaves of record n.
func keptOf(n uint64) Keep { return Keep(n % 3) }

// rewriteAll rewrites every finished segment and returns the new places.
func rewriteAll(t testing.TB, l *Log) (map[uint64]Pos, error) {
	t.Helper()
	places := make(map[uint64]Pos)
	segs := l.Segments()
	for _, s := range segs[:len(segs)-1] {
		_, err := l.Rewrite(t.Context(), s.First, 1, func(e Entry) (Keep, error) { return keptOf(e.Seq), nil },
			func(seq uint64, pos Pos) { places[seq] = pos }, noPause)
		if err != nil {
			return places, err
		}
	}
	return places, nil
}

// checkRewritten replays a log of n records that were rewritten up to the record before last.
func checkRewritten(t testing.TB, l *Log, n, last uint64) {
	t.Helper()
	seen := uint64(0)
	err := l.Replay(t.Context(), 1, func(e Entry) error {
		seen++
		want, k := recordN(e.Seq), keptOf(e.Seq)
		if e.Seq >= last {
			k = KeepAll
		}
		if e.Seq != seen || e.Time != int64(e.Seq)*1000 || e.BodyLen != int64(len(want.body)) {
			return fmt.Errorf("record %d: %+v", seen, e)
		}
		switch k {
		case KeepAll:
			if !bytes.Equal(e.Head, want.head) || !bytes.Equal(e.Body, want.body) || e.BodyDropped || e.HeadDropped {
				return fmt.Errorf("record %d, all kept: %+v", seen, e)
			}
		case KeepHead:
			if !bytes.Equal(e.Head, want.head) || len(e.Body) > 0 || e.HeadDropped || e.BodyDropped != (len(want.body) > 0) {
				return fmt.Errorf("record %d, head kept: %+v", seen, e)
			}
		case KeepNone:
			if e.Head != nil || e.Body != nil || !e.HeadDropped || !e.BodyDropped {
				return fmt.Errorf("record %d, nothing kept: %+v", seen, e)
			}
		}
		return nil
	})
	if err != nil || seen != n {
		t.Fatal(seen, err)
	}
}

func TestRewrite(t *testing.T) {
	m := newMemFS()
	o := Options{Dir: "store/journal", FS: m, SegmentBytes: headerSize + 2500}
	l := mustOpen(t, o)
	mustAppend(t, l, 1, 100)
	_, chain := l.Last()
	segs := l.Segments()
	last := segs[len(segs)-1].First
	before := l.Bytes()
	places, err := rewriteAll(t, l)
	if err != nil {
		t.Fatal(err)
	}
	if l.Bytes() >= before {
		t.Fatalf("%d bytes, were %d", l.Bytes(), before)
	}
	checkRewritten(t, l, 100, last)
	for seq, pos := range places {
		if e, err := l.ReadAt(pos, seq); err != nil || !bytes.Equal(e.Head, recordN(seq).head) {
			t.Fatalf("record %d at %+v: %+v %v", seq, pos, e, err)
		}
	}
	mustAppend(t, l, 101, 120)
	checkRewritten(t, l, 120, last)
	if rep := verify(t, "store/journal", m, 100); !rep.OK() || rep.Entries != 120 {
		t.Fatalf("%+v", rep)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = mustOpen(t, o)
	checkRewritten(t, l, 120, last)
	if len(l.Damaged()) > 0 {
		t.Fatal(l.Damaged())
	}
	// The chain goes through what was dropped.
	if err := l.Replay(t.Context(), 100, func(e Entry) error {
		if e.Seq == 100 && e.Chain != chain {
			t.Error("the chain has changed")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	// Again: nothing is left to save. Rewriting the last segment, or none, is refused.
	if _, err := rewriteAll(t, l); err != nil {
		t.Fatal(err)
	}
	checkRewritten(t, l, 120, l.Segments()[len(l.Segments())-1].First)
	keepAll := func(Entry) (Keep, error) { return KeepAll, nil }
	for _, first := range []uint64{2, l.Segments()[len(l.Segments())-1].First} {
		if _, err := l.Rewrite(t.Context(), first, 0, keepAll, nil, noPause); err == nil {
			t.Errorf("segment %d was rewritten", first)
		}
	}
	if _, err := l.Rewrite(t.Context(), 1, 0, func(Entry) (Keep, error) { return 0, errCut }, nil, noPause); !errors.Is(err, errCut) {
		t.Error(err)
	}
}

// A power cut or an error at each call of a rewrite leaves the old segment or the new one, and a log that goes on.
func TestRewriteFails(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, errno := range []error{errCut, syscall.ENOSPC, syscall.EIO} {
		for at := 1; ; at++ {
			m := newMemFS()
			o := Options{Dir: "store/journal", FS: m, SegmentBytes: headerSize + 2500}
			l := mustOpen(t, o)
			mustAppend(t, l, 1, 60)
			mustSync(t, l)
			segs := l.Segments()
			last, cut := segs[len(segs)-1].First, m.calls+at
			m.fault = func(call int, _, _ string) error {
				if call == cut || errno == errCut && call >= cut {
					return errno
				}
				return nil
			}
			_, err := rewriteAll(t, l)
			m.fault = nil
			if err == nil && errno != errCut {
				break
			}
			if err == nil {
				break
			}
			if !errors.Is(err, errno) {
				t.Fatal(err)
			}
			if errno == errCut {
				m = m.crash(rng)
				o.FS, o.AppliedSeq = m, 60
				l = mustOpen(t, o)
			}
			seen := uint64(0)
			if err := l.Replay(t.Context(), 1, func(e Entry) error {
				seen++
				if e.Seq != seen || !e.HeadDropped && !bytes.Equal(e.Head, recordN(seen).head) || e.HeadDropped && (keptOf(seen) != KeepNone || seen >= last) {
					return fmt.Errorf("record %d: %+v", seen, e)
				}
				return nil
			}); err != nil || seen != 60 {
				t.Fatalf("%v at call %d: %d records, %v", errno, at, seen, err)
			}
			mustAppend(t, l, 61, 61)
			if rep := verify(t, "store/journal", m, 60); len(rep.Damage) > 0 || rep.Last != 61 {
				t.Fatalf("%+v", rep)
			}
		}
	}
}

// A damaged segment is not rewritten: what can be read of it may be wanted.
func TestRewriteRefusesDamage(t *testing.T) {
	files := build(t, 40, headerSize+1500, true)
	data := files[segmentName(1)]
	data[len(data)-200] ^= 1
	m := load(files)
	l := mustOpen(t, Options{Dir: "store/journal", FS: m})
	_, err := l.Rewrite(t.Context(), 1, 0, func(Entry) (Keep, error) { return KeepNone, nil }, func(uint64, Pos) {}, noPause)
	var d *DamageError
	if !errors.As(err, &d) || !bytes.Equal(m.names["store/journal/"+segmentName(1)].data, data) {
		t.Fatal(err)
	}
}

// Each bit of a stub counts: a record behind it does not follow from a hash that was changed, checksums made anew or not.
func TestForgedStub(t *testing.T) {
	m := newMemFS()
	l := mustOpen(t, Options{Dir: "store/journal", FS: m, SegmentBytes: headerSize + 2500})
	mustAppend(t, l, 1, 60)
	if _, err := rewriteAll(t, l); err != nil {
		t.Fatal(err)
	}
	node := m.names["store/journal/"+segmentName(1)]
	at := int64(-1)
	if err := l.Replay(t.Context(), 1, func(e Entry) error {
		if e.HeadDropped && at < 0 {
			at = e.Pos.Offset
		}
		return nil
	}); err != nil || at < 0 {
		t.Fatal(at, err)
	}
	good := bytes.Clone(node.data)
	for i := range int64(frameSize) {
		for _, reseal := range []bool{false, true} {
			node.data = bytes.Clone(good)
			node.data[at+i] ^= 4
			if reseal {
				seal(node.data[at:at+frameSize], castagnoli())
			}
			rep := verify(t, "store/journal", m, 60)
			chained := i >= frmChain && i < frmCRC
			unchecked := reseal && i >= frmTime && i < frmChain && !chained // what only the record's own hash covers
			if rep.OK() && !unchecked && !(reseal && i >= frmCRC) {
				t.Fatalf("a flipped bit in byte %d (resealed: %v) of a stub is not seen", i, reseal)
			}
		}
	}
}
