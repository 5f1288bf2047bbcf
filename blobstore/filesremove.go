package blobstore

import (
	"context"
	"io/fs"
	"sync"

	"golang.org/x/sys/unix"
)

func (s *files) remove(ctx context.Context, h Hash) error {
	st := &s.stripes[h[0]]
	st.mu.Lock()
	defer st.mu.Unlock()
	dir, err := s.dir(h[0])
	if err != nil {
		if err == unix.ENOENT {
			return nil
		}
		return &fs.PathError{Op: "open", Path: s.opt.storePath(blobsDir, fanOut(h[0])), Err: err}
	}
	_, err = s.removeFiles(dir, h, nil)
	s.dirty.addDir(h[0]) // also when a removeBatch that failed has removed it
	return err
}

// removeFiles removes all files of a blob, and says whether there were any. have are the names in the directory; nil: they are not known. The stripe is locked.
func (s *files) removeFiles(dir int, h Hash, have map[string]struct{}) (there bool, err error) {
	st := &s.stripes[h[0]]
	if st.counted {
		st.count(s.measure(dir, h), -1)
	}
	s.forget(h, true)
	base := h.String()
	// The parity goes first: without content nobody would look for it.
	for _, name := range [...]string{base + extParity, base, base + extZstd, base + extSidecar} {
		if _, ok := have[name]; !ok && have != nil {
			continue
		}
		err := unix.Unlinkat(dir, name, 0)
		switch {
		case err == nil:
			there = true
			continue
		case err == unix.ENOENT:
			continue
		case err == unix.EISDIR:
			there, err = true, s.removeName(dir, h, name)
		default:
			err = &fs.PathError{Op: "remove", Path: s.opt.storePath(blobsDir, fanOut(h[0]), name), Err: err}
		}
		if err != nil {
			st.counted = false
			return there, err
		}
	}
	s.forget(h, true)
	return there, nil
}

// removeBatch is remove of many, directory by directory; each is synced once, or all of the filesystem when they are many.
func (s *files) removeBatch(ctx context.Context, hashes []Hash) error {
	for len(hashes) > 0 {
		n := 1
		for n < len(hashes) && hashes[n][0] == hashes[0][0] {
			n++
		}
		if err := s.removeIn(ctx, hashes[:n]); err != nil {
			return err
		}
		hashes = hashes[n:]
	}
	return s.removed.sync(s)
}

// listFrom is the number of blobs of one directory from which on it is cheaper to list what is in it than to try each name: in the mode hybrid most blobs have no files.
const listFrom = 16

// removeIn removes blobs of one directory.
func (s *files) removeIn(ctx context.Context, hashes []Hash) error {
	first := hashes[0][0]
	st := &s.stripes[first]
	st.mu.Lock()
	defer st.mu.Unlock()
	dir, err := s.dir(first)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return &fs.PathError{Op: "open", Path: s.opt.storePath(blobsDir, fanOut(first)), Err: err}
	}
	var have map[string]struct{}
	if len(hashes) >= listFrom {
		names, err := listDir(dir, ".")
		if err != nil {
			return &fs.PathError{Op: "list", Path: s.opt.storePath(blobsDir, fanOut(first)), Err: err}
		}
		have = make(map[string]struct{}, len(names))
		for _, name := range names {
			have[name] = struct{}{}
		}
	}
	for _, h := range hashes {
		if err := ctx.Err(); err != nil {
			return err
		}
		there, err := s.removeFiles(dir, h, have)
		if there {
			s.removed.add(first)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// removedSet is the directories from which a removeBatch has removed files, until they are synced.
type removedSet struct {
	syncMu sync.Mutex // held during a sync, so that a later one does not return before it

	mu   sync.Mutex
	dirs [256]bool
}

func (r *removedSet) add(first byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dirs[first] = true
}

// sync makes removals durable. What fails is tried again by the next one.
func (r *removedSet) sync(s *files) error {
	r.syncMu.Lock()
	defer r.syncMu.Unlock()
	r.mu.Lock()
	removed := r.dirs
	r.dirs = [256]bool{}
	r.mu.Unlock()
	n := 0
	for _, dirty := range removed {
		if dirty {
			n++
		}
	}
	err := s.syncAll(nil, removed, n > maxDirty)
	if err != nil {
		r.mu.Lock()
		for i, dirty := range removed {
			r.dirs[i] = r.dirs[i] || dirty
		}
		r.mu.Unlock()
	}
	return err
}
