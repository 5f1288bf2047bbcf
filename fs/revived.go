package fs

import (
	"sync"
	"sync/atomic"

	"holdfast/catalog"
	"holdfast/fs/internal/kernel"
)

// revived counts how often a directory of the store came back after it had been removed. The kernel marks a directory that was removed as dead, for as
// long as a program has it as its working directory, and would go on to find it dead under its number: a new generation makes it a new one.
type revived struct {
	any   atomic.Bool
	mu    sync.RWMutex
	count map[catalog.Ino]uint64 // guarded by mu
}

func (r *revived) EntryValid(catalog.Ino, string, catalog.Ino) uint64 { return kernel.Valid }
func (r *revived) AttrValid(catalog.Ino) uint64                       { return kernel.Valid }

func (r *revived) Generation(ino catalog.Ino) uint64 {
	if !r.any.Load() {
		return 0
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.count[ino]
}

// Revived tells the filesystem, before it is asked to forget the names, that a directory that had been removed has a name again.
func (f *FileSystem) Revived(ino catalog.Ino) {
	r, ok := f.trees[0].lease.(*revived)
	if !ok {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.count == nil {
		r.count = make(map[catalog.Ino]uint64)
	}
	r.count[ino]++
	r.any.Store(true)
}
