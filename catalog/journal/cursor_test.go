package journal

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// TestCursor reads beside appending, rewriting and damage, and sees each record that Replay sees, once.
func TestCursor(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "journal")
	l := mustOpen(t, Options{Dir: dir, SegmentBytes: headerSize + 1500})
	rng := rand.New(rand.NewPCG(3, 4))
	c := l.Cursor(0)
	n, next := uint64(0), uint64(1)
	stop := errors.New("stop")
	for round := range 40 {
		more := uint64(rng.IntN(20))
		mustAppend(t, l, n+1, n+more)
		n += more
		if round%9 == 8 {
			if _, err := rewriteAll(t, l); err != nil {
				t.Fatal(err)
			}
		}
		breakAt := next + uint64(rng.IntN(30)) // the reader breaks off there: it is shown that record again
		for range 2 {
			err := c.Read(t.Context(), func(e Entry) error {
				if e.Seq != next || c.Next() != next {
					t.Fatalf("record %d, want %d", e.Seq, next)
				}
				if !e.HeadDropped && !bytes.Equal(e.Head, recordN(e.Seq).head) {
					t.Fatalf("record %d holds %q", e.Seq, e.Head)
				}
				if e.Seq == breakAt {
					breakAt = 0
					return stop
				}
				next++
				return nil
			})
			if err != nil && !errors.Is(err, stop) {
				t.Fatal(err)
			}
		}
		if next != n+1 {
			t.Fatalf("read up to %d of %d", next-1, n)
		}
	}
	// Damage in what it has not read yet.
	old := l.Cursor(1)
	path := filepath.Join(dir, l.Segments()[0].Name)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[headerSize+frameSize-1] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	var d *DamageError
	if err := old.Read(t.Context(), func(Entry) error { return nil }); !errors.As(err, &d) || d.First != 1 {
		t.Fatalf("damage is not told: %v", err)
	}
	old.SkipTo(d.Last + 1)
	if err := old.Read(t.Context(), func(Entry) error { return nil }); err != nil || old.Next() != n+1 {
		t.Errorf("behind the damage: record %d, %v", old.Next(), err)
	}
}

// TestLink: the chain hash of each record follows from what Link returns.
func TestLink(t *testing.T) {
	l := mustOpen(t, Options{Dir: filepath.Join(t.TempDir(), "journal"), SegmentBytes: headerSize + 1500})
	mustAppend(t, l, 1, 60)
	check := func(dropped bool) {
		t.Helper()
		prev := Genesis(testStore)
		for n := uint64(1); n <= 60; n++ {
			k, err := l.Link(t.Context(), n)
			if err != nil {
				t.Fatal(err)
			}
			if !k.HeadDropped {
				seq, at, headLen, bodyLen := FrameOf(k.Frame)
				if k.Prev != prev || ChainOf(k.Prev, k.Frame, k.Head) != k.Chain || seq != n || at != int64(n)*1000 || headLen != int64(len(k.Head)) ||
					bodyLen != int64(len(recordN(n).body)) || !bytes.Equal(k.Head, recordN(n).head) {
					t.Fatalf("record %d: %+v", n, k)
				}
			} else if !dropped || k.Head != nil {
				t.Fatalf("record %d: %+v", n, k)
			}
			prev = k.Chain
		}
	}
	check(false)
	if _, err := rewriteAll(t, l); err != nil {
		t.Fatal(err)
	}
	check(true)
	for _, n := range []uint64{0, 61} {
		if _, err := l.Link(t.Context(), n); err == nil {
			t.Errorf("there is no record %d", n)
		}
	}
}

// TestWalk sees what Verify counts.
func TestWalk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "journal")
	l := mustOpen(t, Options{Dir: dir, SegmentBytes: headerSize + 1500})
	mustAppend(t, l, 1, 50)
	path := filepath.Join(dir, l.Segments()[1].Name)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[headerSize+frameSize] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	want := verify(t, dir, OS(), 0)
	seen := uint64(0)
	rep, err := Walk(t.Context(), dir, VerifyOptions{StoreID: testStore}, func(e Entry) error {
		if seen++; !bytes.Equal(e.Head, recordN(e.Seq).head) {
			t.Errorf("record %d holds %q", e.Seq, e.Head)
		}
		return nil
	})
	if err != nil || seen != want.Entries || rep.Entries != want.Entries || rep.Chain != want.Chain || len(rep.Damage) != 1 {
		t.Errorf("%d records seen, %+v, want %+v (%v)", seen, rep, want, err)
	}
	stop := errors.New("stop")
	if _, err := Walk(t.Context(), dir, VerifyOptions{StoreID: testStore}, func(Entry) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("the caller's error: %v", err)
	}
}
