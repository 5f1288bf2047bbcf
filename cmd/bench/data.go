package main

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
)

const (
	pageSize  = 4 << 10
	chunkSize = 1 << 20  // of a large write or read
	cycleSize = 64 << 20 // after so many bytes a stream repeats, but for its stamps
)

// randomBytes makes n bytes that do not compress, the same for the same seed.
func randomBytes(seed uint64, n int) []byte {
	b := make([]byte, (n+7)&^7)
	r := rand.NewPCG(seed, 0x9e3779b97f4a7c15)
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], r.Uint64())
	}
	return b[:n]
}

// textBytes makes n bytes of log lines, which compress about four to one, the same for the same seed.
func textBytes(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	words := []string{"fetched", "stored", "agent", "task", "message", "retry", "planner", "result", "status", "review", "queue", "done"}
	b := make([]byte, 0, n+256)
	for len(b) < n {
		b = fmt.Appendf(b, `{"time":"2025-01-%02dT%02d:%02d:%02dZ","level":"info","agent":"agent-%02d","msg":"%s %s %s","id":"%08x","ms":%d}`+"\n",
			1+r.IntN(28), r.IntN(24), r.IntN(60), r.IntN(60), r.IntN(40), words[r.IntN(12)], words[r.IntN(12)], words[r.IntN(12)], r.Uint32(), r.IntN(5000))
	}
	return b[:n]
}

// stream is the content of a large file: a cycle of 64 MiB over and over, with a stamp of the seed and the position at the start of each
// page, so that no two blocks of it, or of two files, are equal. It can be of any length and takes little memory.
type stream struct {
	seed  uint64
	cycle []byte
}

func newStream(seed uint64, text bool, size int64) *stream {
	n := int(min(size, cycleSize))
	if text {
		return &stream{seed, textBytes(seed, n)}
	}
	return &stream{seed, randomBytes(seed, n)}
}

// stamp is what stands at the start of the page at off. The mix is that of splitmix64.
func (s *stream) stamp(off int64) uint64 {
	z := s.seed + uint64(off/pageSize)*0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// chunk returns the n bytes at off; it is valid until the next call. off is a multiple of chunkSize and n at most that.
func (s *stream) chunk(off int64, n int) []byte {
	at := int(off % int64(len(s.cycle)))
	n = min(n, len(s.cycle)-at)
	b := s.cycle[at : at+n]
	for i := 0; i+8 <= n; i += pageSize {
		binary.LittleEndian.PutUint64(b[i:], s.stamp(off+int64(i)))
	}
	return b
}

// check says whether b can be what stands at off: it compares the stamps, which costs next to nothing while b is in the processor's cache.
func (s *stream) check(b []byte, off int64) error {
	first := (off + pageSize - 1) / pageSize * pageSize
	for at := first; at+8 <= off+int64(len(b)); at += pageSize {
		if got, want := binary.LittleEndian.Uint64(b[at-off:]), s.stamp(at); got != want {
			return fmt.Errorf("wrong content at byte %d: %016x instead of %016x", at, got, want)
		}
	}
	return nil
}
