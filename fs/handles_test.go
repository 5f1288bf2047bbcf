package fs

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

func TestHandles(t *testing.T) {
	var h handles
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	live := make(map[uint64]*file)
	var gone []uint64
	for range 20_000 {
		switch {
		case len(live) == 0 || rng.IntN(100) < 52:
			f := new(file)
			fh := h.add(f)
			if live[fh] != nil {
				t.Fatalf("number %#x is given twice", fh)
			}
			live[fh] = f
		default:
			for fh, f := range live {
				if h.remove(fh) != f {
					t.Fatalf("number %#x leads to another file", fh)
				}
				delete(live, fh)
				gone = append(gone, fh)
				break
			}
		}
		if len(gone) > 0 {
			if fh := gone[rng.IntN(len(gone))]; h.get(fh) != nil || h.remove(fh) != nil {
				t.Fatalf("number %#x was removed and is still known", fh)
			}
		}
	}
	for fh, f := range live {
		if h.get(fh) != f {
			t.Fatalf("number %#x is lost", fh)
		}
	}
	for _, fh := range []uint64{0, 1 << 40, ^uint64(0), 1<<32 | 1<<31} {
		if h.get(fh) != nil && live[fh] == nil {
			t.Errorf("number %#x was never given", fh)
		}
	}
	if got := h.drain(); len(got) != len(live) {
		t.Errorf("%d files were left, want %d", len(got), len(live))
	}
}

func TestHandlesConcurrently(t *testing.T) {
	var h handles
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 3000 {
				f := new(file)
				fh := h.add(f)
				if h.get(fh) != f || h.remove(fh) != f || h.get(fh) != nil {
					t.Error("a number led to the wrong file")
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestLimiter(t *testing.T) {
	var l limiter
	now := time.Unix(1000, 0)
	passed := 0
	for range 100 {
		if ok, _ := l.allow(now); ok {
			passed++
		}
	}
	if passed != maxFaultsPerSecond {
		t.Errorf("%d of 100 passed in one second", passed)
	}
	if ok, skipped := l.allow(now.Add(time.Second)); !ok || skipped != 100-passed {
		t.Errorf("in the next second: %v, %d skipped", ok, skipped)
	}
}

func TestWriters(t *testing.T) {
	var w writers
	w.add(7, 1)
	w.add(7, 1)
	w.add(7+writerShards, 1)
	w.add(7, -1)
	if !w.any(7) || w.any(8) {
		t.Error("wrong count")
	}
	w.add(7, -1)
	if w.any(7) || !w.any(7+writerShards) {
		t.Error("wrong count after the last")
	}
}
