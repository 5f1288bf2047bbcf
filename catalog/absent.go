package catalog

import (
	"context"
	"hash/maphash"

	"holdfast/internal/sqldb"
)

const (
	// filterNames bounds the names that all filters together hold.
	filterNames = 1 << 19
	// learnAfter is how many questions for names that are not there make a directory worth a filter of its own, and learnNames the
	// largest directory that is.
	learnAfter = 8
	learnNames = 1 << 14
)

// filters know of some directories every name that they may have, so that a name that is not there costs no question to catalog.db: each file
// that is made was looked up first. A filter may hold names that are gone; it never lacks one that is there. Guarded by Catalog.mu.
type filters struct {
	seed  maphash.Seed
	dirs  map[Ino]*nameFilter
	total int // names in all filters
}

// nameFilter is the filter of one directory, or the count that may lead to one.
type nameFilter struct {
	names  map[uint64]struct{} // by hash; nil: only counted so far
	misses int
}

func newFilters() filters {
	return filters{seed: maphash.MakeSeed(), dirs: make(map[Ino]*nameFilter)}
}

// absent reports whether name is certainly not in dir.
func (f *filters) absent(dir Ino, name string) bool {
	d := f.dirs[dir]
	if d == nil || d.names == nil {
		return false
	}
	_, maybe := d.names[maphash.String(f.seed, name)]
	return !maybe
}

// made starts the filter of a new directory, which is empty.
func (f *filters) made(dir Ino) {
	if f.dirs[dir] == nil {
		f.dirs[dir] = &nameFilter{names: make(map[uint64]struct{})}
	}
}

// gone drops the filter of a directory.
func (f *filters) gone(dir Ino) {
	if d := f.dirs[dir]; d != nil {
		f.total -= len(d.names)
		delete(f.dirs, dir)
	}
}

// added notes a name. When there are too many, all filters start anew.
func (f *filters) added(dir Ino, name string) {
	d := f.dirs[dir]
	if d == nil || d.names == nil {
		return
	}
	before := len(d.names)
	d.names[maphash.String(f.seed, name)] = struct{}{}
	f.total += len(d.names) - before
	if f.total > filterNames || len(f.dirs) > filterNames/8 {
		clear(f.dirs)
		f.total = 0
	}
}

// missed counts a question that catalog.db had to answer with no, and reports whether dir is worth a filter now.
func (f *filters) missed(dir Ino) bool {
	d := f.dirs[dir]
	if d == nil {
		if len(f.dirs) > filterNames/8 {
			clear(f.dirs)
			f.total = 0
		}
		d = new(nameFilter)
		f.dirs[dir] = d
	}
	d.misses++
	return d.names == nil && d.misses == learnAfter
}

// learn makes the filter of a directory that is older than this process. The caller holds order, so no name is added meanwhile; those
// that the applier moves to catalog.db are taken from memory first.
func (c *Catalog) learn(ctx context.Context, dir Ino) error {
	names := make(map[uint64]struct{})
	c.mu.RLock()
	if m := c.dirs[dir]; m != nil {
		m.Scan(func(_ uint64, ch dirChange) bool {
			names[maphash.String(c.filters.seed, ch.name)] = struct{}{}
			return len(names) <= learnNames
		})
	}
	c.mu.RUnlock()
	err := c.db.Read(ctx, func(conn *sqldb.Conn) error {
		st := conn.Prep("SELECT name FROM dentries WHERE parent = ? AND to_seq IS NULL").BindInt64(1, int64(dir))
		var name []byte
		for {
			if len(names) > learnNames {
				return st.Done()
			}
			ok, err := st.Step()
			if err != nil || !ok {
				return err
			}
			name = st.AppendBytes(name[:0], 0)
			names[maphash.Bytes(c.filters.seed, name)] = struct{}{}
		}
	})
	if err != nil {
		return c.readFailed("read a directory", err)
	}
	if len(names) > learnNames {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if d := c.filters.dirs[dir]; d != nil && d.names == nil {
		d.names = names
		c.filters.total += len(names)
	}
	return nil
}
