package integrity

import (
	"bytes"
	"context"
	"crypto/sha256"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"holdfast/blobstore"
)

// TestUnflip finds every bit of small contents, plain and compressed, and nothing where two are flipped.
func TestUnflip(t *testing.T) {
	enc, err := zstd.NewWriter(nil, zstd.WithSingleSegment(true), zstd.WithEncoderCRC(false))
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close()
	ctx := context.Background()
	for _, n := range []int{1, 63, 64, 65, 300} {
		plain := bytes.Repeat([]byte("status: working on it. "), n/20+1)[:n]
		ref := blobstore.Ref{Hash: sha256.Sum256(plain), Size: int64(n)}
		for kind, stored := range map[string][]byte{"plain": plain, "compressed": enc.EncodeAll(plain, nil)} {
			step := 1
			if kind == "compressed" {
				step = 7
			}
			for bit := 0; bit < 8*len(stored); bit += step {
				p := bytes.Clone(stored)
				p[bit/8] ^= 1 << (bit % 8)
				if got := unflip(ctx, p, ref); !bytes.Equal(got, plain) {
					t.Fatalf("%s, %d bytes, bit %d: %q", kind, n, bit, got)
				}
				q := bytes.Clone(p)
				q[len(q)/2] ^= 0x81
				if n > 1 && unflip(ctx, q, ref) != nil && !bytes.Equal(unflip(ctx, q, ref), plain) {
					t.Fatal("wrong content")
				}
			}
		}
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if unflip(ended, make([]byte, 64<<10), blobstore.Ref{Size: 64 << 10}) != nil {
		t.Error("found something where there is nothing")
	}
}

func FuzzUnflip(f *testing.F) {
	f.Add([]byte("x"), uint16(3))
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x20, 0x01, 0x09, 0, 0, 0x61}, uint16(40))
	f.Fuzz(func(t *testing.T, p []byte, size uint16) {
		if len(p) > 200 {
			return
		}
		want := blobstore.Hash(sha256.Sum256([]byte("never")))
		if got := unflip(context.Background(), p, blobstore.Ref{Hash: want, Size: int64(size)}); got != nil && sha256.Sum256(got) != want {
			t.Error("wrong content")
		}
	})
}

// TestRing compares the ring with a list of all events.
func TestRing(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	ring := newRing(time.Now())
	first := ring.first
	total := uint64(0)
	for range 2000 {
		for range r.IntN(20) {
			ring.add(Event{Text: "x"})
			total++
		}
		after := first + r.Uint64N(total+10) - 1
		list, _, _ := ring.after(after, 1+r.IntN(50))
		next := after + 1
		for i, e := range list {
			switch {
			case e.Kind == EventGap && i == 0 && e.Seq == after+e.Missed:
			case e.Seq != next:
				t.Fatalf("behind %d: event %d is %d", after, i, e.Seq)
			}
			next = e.Seq + 1
		}
		if len(list) == 0 && after+1 < first+total {
			t.Fatalf("behind %d there are none, the newest is %d", after, first+total-1)
		}
	}
}
