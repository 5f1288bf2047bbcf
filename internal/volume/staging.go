package volume

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"holdfast/blobstore"
)

const (
	copyBuffer = 1 << 20 // bytes moved at once between staging files, blobs and the hasher
	maxAhead   = 256     // ranges kept beyond the gapless front of a staging file before it is called random
)

// staging is a file below STORE/staging that holds what was written to one open file and is not committed yet: byte off of the
// file is at position off-base. While it is written from its start without gaps, a goroutine hashes it in the background, so that
// the commit has nothing left to hash. Its owner serialises write, rebase and discard; sum may run beside nothing else.
type staging struct {
	file    *os.File
	base    int64
	buffers *sync.Pool // of *[]byte, copyBuffer long
	adopted bool       // the path is no longer ours

	mu     sync.Mutex
	wake   *sync.Cond
	front  int64           // positions [0, front) were each written once
	ahead  map[int64]int64 // start to end of what was written beyond front
	random bool            // something was written twice, or too scattered: the running hash is of no use
	hashed int64
	hasher *blobstore.Hasher
	stop   bool
	err    error
	done   chan struct{}
}

// newStaging makes an empty staging file in dir. discard must be called.
func newStaging(dir string, ino uint64, base int64, buffers *sync.Pool) (*staging, error) {
	f, err := os.CreateTemp(dir, fmt.Sprintf("%d-*", ino))
	if err != nil {
		return nil, err
	}
	s := &staging{
		file: f, base: base, buffers: buffers,
		ahead: make(map[int64]int64), hasher: blobstore.NewHasher(), done: make(chan struct{}),
	}
	s.wake = sync.NewCond(&s.mu)
	go s.hash()
	return s, nil
}

func (s *staging) path() string { return s.file.Name() }

// write stores p for file offset off, which is not below base. A short write is an error.
func (s *staging) write(p []byte, off int64) error {
	pos := off - s.base
	if _, err := s.file.WriteAt(p, pos); err != nil {
		return err
	}
	s.mu.Lock()
	s.note(pos, pos+int64(len(p)))
	if s.random || s.front-s.hashed >= copyBuffer {
		s.wake.Signal()
	}
	s.mu.Unlock()
	return nil
}

// note records that [from, to) was written.
func (s *staging) note(from, to int64) {
	if s.random {
		return
	}
	if from < s.front {
		s.random = true
		return
	}
	if from > s.front {
		for start, end := range s.ahead {
			if from < end && start < to {
				s.random = true
				return
			}
		}
		s.ahead[from] = to
		s.random = len(s.ahead) > maxAhead
		return
	}
	s.front = to
	for {
		end, ok := s.ahead[s.front]
		if !ok {
			break
		}
		delete(s.ahead, s.front)
		s.front = end
	}
	for start := range s.ahead {
		if start < s.front {
			s.random = true
		}
	}
}

// hash follows the front until it is told to stop or the file turns out to be random.
func (s *staging) hash() {
	defer close(s.done)
	buf := s.buffers.Get().(*[]byte)
	defer s.buffers.Put(buf)
	for {
		s.mu.Lock()
		for !s.stop && !s.random && s.front-s.hashed < copyBuffer {
			s.wake.Wait()
		}
		if s.random || (s.stop && s.front == s.hashed) {
			s.mu.Unlock()
			return
		}
		from, n := s.hashed, min(s.front-s.hashed, copyBuffer)
		s.mu.Unlock()
		got, err := s.file.ReadAt((*buf)[:n], from)
		s.mu.Lock()
		if int64(got) != n {
			s.err, s.random = err, true
			s.mu.Unlock()
			return
		}
		s.hashed += n
		s.mu.Unlock()
		s.hasher.Write((*buf)[:n])
	}
}

// sum names the first n positions, all of which were written, after cutting the file to that length. Nothing may be written afterwards.
func (s *staging) sum(ctx context.Context, n int64) (blobstore.Summed, error) {
	s.halt()
	if err := s.file.Truncate(n); err != nil {
		return blobstore.Summed{}, err
	}
	if !s.random && s.hashed == n {
		s.random = true // the hasher is used up
		return s.hasher.Sum(), nil
	}
	s.random = true
	h := blobstore.NewHasher()
	buf := s.buffers.Get().(*[]byte)
	defer s.buffers.Put(buf)
	for h.Size() < n {
		if err := ctx.Err(); err != nil {
			return blobstore.Summed{}, err
		}
		part := (*buf)[:min(copyBuffer, n-h.Size())]
		if _, err := s.file.ReadAt(part, h.Size()); err != nil {
			return blobstore.Summed{}, fmt.Errorf("staging file %s: %w", filepath.Base(s.path()), err)
		}
		h.Write(part)
	}
	return h.Sum(), nil
}

func (s *staging) halt() {
	s.mu.Lock()
	s.stop = true
	s.wake.Signal()
	s.mu.Unlock()
	<-s.done
}

// discard stops the hashing, closes the file and removes it unless a blobstore has adopted it.
func (s *staging) discard() {
	s.halt()
	if !s.adopted {
		os.Remove(s.path())
	}
	s.file.Close()
}
