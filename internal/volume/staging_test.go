package volume

import (
	"bytes"
	"context"
	"crypto/sha256"
	"os"
	"sync"
	"testing"

	"holdfast/blobstore"
)

func testBuffers() *sync.Pool {
	return &sync.Pool{New: func() any { b := make([]byte, copyBuffer); return &b }}
}

// TestStagingSum writes pieces in random orders, some twice, and compares the name with that of the content.
func TestStagingSum(t *testing.T) {
	r := seeded(t)
	for round := range 30 {
		size := 1 + r.IntN(6<<20)
		content := fillBytes(r, size)
		s, err := newStaging(t.TempDir(), 1, 1000, testBuffers())
		if err != nil {
			t.Fatal(err)
		}
		type piece struct{ from, to int }
		var pieces []piece
		for from := 0; from < size; {
			to := min(size, from+1+r.IntN(700<<10))
			pieces = append(pieces, piece{from, to})
			from = to
		}
		for range r.IntN(4) { // as parallel requests of the kernel do
			if i := r.IntN(len(pieces)); i > 0 {
				pieces[i], pieces[i-1] = pieces[i-1], pieces[i]
			}
		}
		for _, p := range pieces {
			if round%3 == 0 && r.IntN(4) == 0 {
				if err := s.write(bytes.Repeat([]byte{0xEE}, p.to-p.from), int64(1000+p.from)); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.write(content[p.from:p.to], int64(1000+p.from)); err != nil {
				t.Fatal(err)
			}
		}
		sum, err := s.sum(context.Background(), int64(size))
		if err != nil {
			t.Fatal(err)
		}
		if sum.Ref.Hash != blobstore.Hash(sha256.Sum256(content)) || sum.Ref.Size != int64(size) {
			t.Fatalf("round %d: wrong name for %d bytes", round, size)
		}
		path := s.path()
		s.discard()
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Fatalf("discard left %s: %v", path, err)
		}
	}
}

// TestStagingStopsHashing discards files at any moment: no goroutine may hang.
func TestStagingStopsHashing(t *testing.T) {
	for range 50 {
		s, err := newStaging(t.TempDir(), 1, 0, testBuffers())
		if err != nil {
			t.Fatal(err)
		}
		if err := s.write(make([]byte, 3<<20), 0); err != nil {
			t.Fatal(err)
		}
		s.discard()
	}
}
