package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

var testStore = [16]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}

type testRecord struct{ head, body []byte }

// recordN is the content of record n in tests that need no randomness.
func recordN(n uint64) testRecord {
	return testRecord{fmt.Appendf(nil, "head %d", n), bytes.Repeat([]byte{byte(n)}, int(n%7)*9)}
}

func mustOpen(t testing.TB, o Options) *Log {
	t.Helper()
	o.StoreID = testStore
	l, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func mustAppend(t testing.TB, l *Log, from, to uint64) {
	t.Helper()
	for n := from; n <= to; n++ {
		r := recordN(n)
		seq, _, err := l.Append(int64(n)*1000, r.head, r.body)
		if err != nil || seq != n {
			t.Fatalf("append %d: seq %d, %v", n, seq, err)
		}
	}
}

func mustSync(t testing.TB, l *Log) {
	t.Helper()
	if err := l.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// replayAll reads everything, going on behind damage, and fails when a record is not the one that was appended.
func replayAll(t testing.TB, l *Log) (seqs []uint64, damage []*DamageError) {
	t.Helper()
	from := uint64(1)
	for {
		err := l.Replay(t.Context(), from, func(e Entry) error {
			want := recordN(e.Seq)
			if e.Seq < from || !bytes.Equal(e.Head, want.head) || !bytes.Equal(e.Body, want.body) || e.Time != int64(e.Seq)*1000 {
				t.Fatalf("record %d (from %d) is not what was appended: head %q", e.Seq, from, e.Head)
			}
			seqs = append(seqs, e.Seq)
			return nil
		})
		var d *DamageError
		if err == nil {
			return seqs, damage
		}
		if !errors.As(err, &d) || !errors.Is(err, ErrDamaged) {
			t.Fatal(err)
		}
		damage = append(damage, d)
		from = d.Last + 1
	}
}

func wantSeqs(t testing.TB, got []uint64, from, to uint64) {
	t.Helper()
	if uint64(len(got)) != to+1-from {
		t.Fatalf("%d records, want %d to %d: %v", len(got), from, to, got)
	}
	for i, n := range got {
		if n != from+uint64(i) {
			t.Fatalf("record %d where %d should be", n, from+uint64(i))
		}
	}
}

func verify(t testing.TB, dir string, fsys FS, applied uint64) Report {
	t.Helper()
	rep, err := Verify(t.Context(), dir, VerifyOptions{StoreID: testStore, AppliedSeq: applied, FS: fsys})
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

func TestAppendReopenReplay(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "journal")
	var positions []Pos
	for round := range uint64(5) {
		l := mustOpen(t, Options{Dir: dir, SegmentBytes: headerSize + 1000})
		if last, _ := l.Last(); last != round*20 {
			t.Fatalf("round %d begins after record %d", round, last)
		}
		for n := round*20 + 1; n <= round*20+20; n++ {
			r := recordN(n)
			// The body in pieces is the same body.
			_, pos, err := l.Append(int64(n)*1000, r.head, r.body[:len(r.body)/2], nil, r.body[len(r.body)/2:])
			if err != nil {
				t.Fatal(err)
			}
			positions = append(positions, pos)
		}
		mustSync(t, l)
		if l.Synced() != round*20+20 {
			t.Fatalf("synced %d", l.Synced())
		}
		seqs, damage := replayAll(t, l)
		wantSeqs(t, seqs, 1, round*20+20)
		if len(damage)+len(l.Damaged()) > 0 || l.Torn() != nil {
			t.Fatal(damage, l.Damaged(), l.Torn())
		}
		for i, pos := range positions {
			e, err := l.ReadAt(pos, uint64(i+1))
			if want := recordN(uint64(i + 1)); err != nil || !bytes.Equal(e.Head, want.head) || !bytes.Equal(e.Body, want.body) || e.Pos != pos {
				t.Fatalf("ReadAt %v: %+v, %v", pos, e, err)
			}
			if _, err := l.ReadAt(pos, uint64(i+2)); !errors.Is(err, ErrDamaged) {
				t.Fatalf("ReadAt with the wrong number: %v", err)
			}
		}
		last, chain := l.Last()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		rep := verify(t, dir, nil, last)
		if !rep.OK() || rep.Entries != last || rep.Last != last || rep.Chain != chain || rep.First != 1 {
			t.Fatalf("verify: %+v", rep)
		}
	}
	if n := len(mustOpen(t, Options{Dir: dir}).Segments()); n < 5 {
		t.Fatalf("%d segments: it never rotated", n)
	}
}

func TestReplayFrom(t *testing.T) {
	l := mustOpen(t, Options{Dir: filepath.Join(t.TempDir(), "journal"), SegmentBytes: headerSize + 700})
	mustAppend(t, l, 1, 50)
	stop := errors.New("stop")
	for from := range uint64(53) {
		next := max(from, 1)
		err := l.Replay(t.Context(), from, func(e Entry) error {
			if e.Seq != next {
				t.Fatalf("record %d, want %d", e.Seq, next)
			}
			next++
			return nil
		})
		if err != nil || next != max(from, 51) {
			t.Fatalf("replay from %d ended before %d: %v", from, next, err)
		}
	}
	if err := l.Replay(t.Context(), 7, func(e Entry) error { return stop }); err != stop {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Replay(ctx, 1, func(Entry) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	// fn may append; what it appends is not replayed.
	n := 0
	if err := l.Replay(t.Context(), 41, func(e Entry) error {
		n++
		_, _, err := l.Append(1, e.Head, e.Body)
		return err
	}); err != nil || n != 10 {
		t.Fatal(n, err)
	}
}

func TestBounds(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "journal")
	l := mustOpen(t, Options{Dir: dir, SegmentBytes: headerSize + 200})
	if _, _, err := l.Append(0, make([]byte, MaxHead+1)); !errors.Is(err, ErrTooLarge) {
		t.Fatal(err)
	}
	big := make([]byte, MaxBody/2)
	if _, _, err := l.Append(0, nil, big, big, []byte{1}); !errors.Is(err, ErrTooLarge) {
		t.Fatal(err)
	}
	if seq, _, err := l.Append(-5, make([]byte, 1<<20), big[:3<<20]); err != nil || seq != 1 {
		t.Fatal(seq, err)
	}
	if seq, _, err := l.Append(0, nil); err != nil || seq != 2 {
		t.Fatal(seq, err)
	}
	sizes := []int64{}
	err := l.Replay(t.Context(), 1, func(e Entry) error {
		sizes = append(sizes, int64(len(e.Head)), e.BodyLen, e.Time)
		return nil
	})
	if want := []int64{1 << 20, 3 << 20, -5, 0, 0, 0}; err != nil || fmt.Sprint(sizes) != fmt.Sprint(want) {
		t.Fatal(sizes, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal("second Close:", err)
	}
	_, _, appendErr := l.Append(0, nil)
	_, readErr := l.ReadAt(Pos{1, headerSize}, 1)
	for _, err := range []error{appendErr, readErr, l.Sync(t.Context()), l.Replay(t.Context(), 1, nil)} {
		if !errors.Is(err, ErrClosed) {
			t.Fatal(err)
		}
	}
}

func TestReadOnly(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "journal")
	none := mustOpen(t, Options{Dir: dir, ReadOnly: true})
	if err := none.Replay(t.Context(), 1, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Fatal("a read-only open made the directory")
	}
	l := mustOpen(t, Options{Dir: dir})
	mustAppend(t, l, 1, 9)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, segmentName(1))
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, whole[:len(whole)-3], 0o600); err != nil {
		t.Fatal(err)
	}
	ro := mustOpen(t, Options{Dir: dir, ReadOnly: true})
	seqs, _ := replayAll(t, ro)
	wantSeqs(t, seqs, 1, 8)
	if _, _, err := ro.Append(0, nil); !errors.Is(err, ErrReadOnly) {
		t.Fatal(err)
	}
	if err := errors.Join(ro.Sync(t.Context()), ro.Close()); err != nil || ro.Torn() == nil {
		t.Fatal(err, ro.Torn())
	}
	if left, err := os.ReadFile(name); err != nil || !bytes.Equal(left, whole[:len(whole)-3]) {
		t.Fatal("a read-only open changed the segment")
	}
}

func TestForeignAndFuture(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "journal")
	l := mustOpen(t, Options{Dir: dir})
	mustAppend(t, l, 1, 3)
	l.Close()
	other := [16]byte{9}
	if _, err := Open(t.Context(), Options{Dir: dir, StoreID: other}); !errors.Is(err, ErrForeign) {
		t.Fatal(err)
	}
	if rep, err := Verify(t.Context(), dir, VerifyOptions{StoreID: other}); err != nil || rep.OK() || rep.Entries != 0 {
		t.Fatal(rep, err)
	}
	h := header{store: testStore, first: 1, chain: genesis(testStore), marker: newMarker()}
	b := h.encode()
	b[hdrVersion] = formatVersion + 1
	resealHeader(b)
	if err := os.WriteFile(filepath.Join(dir, segmentName(1)), b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Options{Dir: dir, StoreID: testStore}); !errors.Is(err, ErrVersion) {
		t.Fatal(err)
	}
	if _, err := Verify(t.Context(), dir, VerifyOptions{StoreID: testStore}); !errors.Is(err, ErrVersion) {
		t.Fatal(err)
	}
}

// A segment that is a symbolic link, a directory or a FIFO is refused, not followed.
func TestSegmentIsNoRegularFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "journal")
	l := mustOpen(t, Options{Dir: dir})
	mustAppend(t, l, 1, 3)
	l.Close()
	name, away := filepath.Join(dir, segmentName(1)), filepath.Join(dir, "away")
	if err := os.Rename(name, away); err != nil {
		t.Fatal(err)
	}
	for what, place := range map[string]func() error{
		"link":      func() error { return os.Symlink(away, name) },
		"directory": func() error { return os.Mkdir(name, 0o700) },
		"fifo":      func() error { return mkfifo(name) },
	} {
		if err := place(); err != nil {
			t.Fatal(err)
		}
		if l, err := Open(t.Context(), Options{Dir: dir, StoreID: testStore}); err == nil {
			l.Close()
			t.Fatalf("a %s was opened as a segment", what)
		}
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
}

func TestConcurrentAppendSyncReplay(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "journal")
	l := mustOpen(t, Options{Dir: dir, SegmentBytes: headerSize + 8000})
	const workers, each = 8, 60
	var mu sync.Mutex
	heads := map[uint64]string{}
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			before := uint64(0)
			for i := range each {
				head := fmt.Sprintf("worker %d record %d", w, i)
				seq, pos, err := l.Append(0, []byte(head), []byte("body"))
				if err != nil || seq <= before {
					t.Errorf("%s: seq %d after %d, %v", head, seq, before, err)
					return
				}
				before = seq
				mu.Lock()
				heads[seq] = head
				mu.Unlock()
				switch i % 6 {
				case 0:
					if err := l.Sync(t.Context()); err != nil || l.Synced() < seq {
						t.Errorf("sync of %d: %v, synced %d", seq, err, l.Synced())
					}
				case 1:
					if e, err := l.ReadAt(pos, seq); err != nil || string(e.Head) != head {
						t.Errorf("ReadAt %d: %q, %v", seq, e.Head, err)
					}
				case 2:
					if err := l.Replay(t.Context(), seq, func(Entry) error { return nil }); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	if len(heads) != workers*each {
		t.Fatalf("%d numbers for %d records", len(heads), workers*each)
	}
	l.Close()
	l = mustOpen(t, Options{Dir: dir})
	n := uint64(0)
	if err := l.Replay(t.Context(), 1, func(e Entry) error {
		n++
		if heads[e.Seq] != string(e.Head) {
			return fmt.Errorf("record %d is %q, want %q", e.Seq, e.Head, heads[e.Seq])
		}
		return nil
	}); err != nil || n != workers*each {
		t.Fatal(n, err)
	}
}

// TestRemovedSegment: records in a file that somebody has removed are not durable, and nobody is told that they are.
func TestRemovedSegment(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "journal")
	l := mustOpen(t, Options{Dir: dir})
	mustAppend(t, l, 1, 3)
	mustSync(t, l)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, l, 4, 5)
	if err := l.Sync(t.Context()); !errors.Is(err, ErrPoisoned) || !errors.Is(err, errRemoved) || l.Synced() != 3 {
		t.Fatalf("Sync: %v; durable up to %d", err, l.Synced())
	}
	if _, _, err := l.Append(0, nil); !errors.Is(err, ErrPoisoned) {
		t.Fatalf("Append: %v", err)
	}
}
