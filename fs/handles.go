package fs

import (
	"sync"
	"sync/atomic"

	"holdfast/catalog"
)

// file is an open file as the kernel knows it.
type file struct {
	Handle
	tree   *branch
	ino    catalog.Ino
	who    catalog.Actor // who opened it
	writes bool
	stream bool // see Direct.Stream
	fh     uint64
}

const chunkSize = 512

type slot struct {
	file atomic.Pointer[file]
	gen  uint32 // guarded by handles.mu
}

type chunk [chunkSize]slot

// handles numbers open files. get takes no lock. A number says the slot and how often that was used before, so that a stale number
// finds nothing.
type handles struct {
	chunks atomic.Pointer[[]*chunk]

	mu   sync.Mutex
	free []uint32
	used uint32 // slots that were ever used
}

func (t *handles) slot(index uint32) *slot {
	chunks := t.chunks.Load()
	if chunks == nil || int(index/chunkSize) >= len(*chunks) {
		return nil
	}
	return &(*chunks)[index/chunkSize][index%chunkSize]
}

// add numbers f, and sets f.fh.
func (t *handles) add(f *file) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	var index uint32
	if n := len(t.free); n > 0 {
		index, t.free = t.free[n-1], t.free[:n-1]
	} else {
		index = t.used
		t.used++
		if index%chunkSize == 0 {
			var chunks []*chunk
			if old := t.chunks.Load(); old != nil {
				chunks = append(chunks, *old...)
			}
			chunks = append(chunks, new(chunk))
			t.chunks.Store(&chunks)
		}
	}
	s := t.slot(index)
	s.gen++
	f.fh = uint64(s.gen)<<32 | uint64(index)
	s.file.Store(f)
	return f.fh
}

// get returns the open file of that number, or nil.
func (t *handles) get(fh uint64) *file {
	s := t.slot(uint32(fh))
	if s == nil {
		return nil
	}
	if f := s.file.Load(); f != nil && f.fh == fh {
		return f
	}
	return nil
}

// remove returns the open file of that number for the last time, or nil.
func (t *handles) remove(fh uint64) *file {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.get(fh)
	if f == nil {
		return nil
	}
	t.slot(uint32(fh)).file.Store(nil)
	t.free = append(t.free, uint32(fh))
	return f
}

// drain removes all open files and returns them.
func (t *handles) drain() []*file {
	t.mu.Lock()
	used := t.used
	t.mu.Unlock()
	var all []*file
	for i := range used {
		if f := t.slot(i).file.Load(); f != nil {
			if f = t.remove(f.fh); f != nil {
				all = append(all, f)
			}
		}
	}
	return all
}

const writerShards = 64

// writers counts, for each node, the handles that are open for writing: while there are some, the kernel may hold content that
// we have not seen.
type writers struct {
	shards [writerShards]struct {
		mu sync.Mutex
		n  map[uint64]int
	}
}

func (w *writers) add(node uint64, delta int) {
	s := &w.shards[node%writerShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n == nil {
		s.n = make(map[uint64]int)
	}
	if s.n[node] += delta; s.n[node] == 0 {
		delete(s.n, node)
	}
}

func (w *writers) any(node uint64) bool {
	s := &w.shards[node%writerShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n[node] > 0
}
