package journal

import (
	"errors"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
)

const sector = 512

var errCut = errors.New("the power is cut")

// memFS is a filesystem in memory that forgets: crash leaves of what was not synced any mixture of old and new sectors, any of the
// sizes that a file had, and any beginning of the changes to directories.
type memFS struct {
	mu      sync.Mutex
	names   map[string]*memNode // as programs see them
	durable map[string]*memNode
	dirs    map[string]bool
	pending []dirOp
	calls   int
	// fault is asked before each call that changes or syncs something; an error makes the call fail. A failed write has written the first half.
	fault func(call int, op, name string) error
}

type dirOp struct {
	dir   string
	apply func(map[string]*memNode)
}

type memNode struct {
	data     []byte
	kept     []byte           // what is durable
	versions map[int][][]byte // of each sector written since
	sizes    []int            // since
}

func newMemFS() *memFS {
	return &memFS{names: map[string]*memNode{}, durable: map[string]*memNode{}, dirs: map[string]bool{"store": true}}
}

func (m *memFS) check(op, name string) error {
	m.calls++
	if m.fault != nil {
		if err := m.fault(m.calls, op, name); err != nil {
			return &fs.PathError{Op: op, Path: name, Err: err}
		}
	}
	return nil
}

func (m *memFS) change(dir string, apply func(map[string]*memNode)) {
	apply(m.names)
	m.pending = append(m.pending, dirOp{dir, apply})
}

func (m *memFS) OpenFile(name string, flag int, _ os.FileMode) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.names[name]
	if n == nil {
		if flag&os.O_CREATE == 0 {
			return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		}
		if err := m.check("create", name); err != nil {
			return nil, err
		}
		n = &memNode{}
		m.change(filepath.Dir(name), func(names map[string]*memNode) { names[name] = n })
	} else if flag&os.O_EXCL != 0 {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrExist}
	}
	return &memFile{m, n, name}, nil
}

func (m *memFS) ReadDir(dir string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.dirs[dir] {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: fs.ErrNotExist}
	}
	var names []string
	for name := range m.names {
		if filepath.Dir(name) == dir {
			names = append(names, filepath.Base(name))
		}
	}
	return names, nil
}

// Mkdir is durable at once: no file in a directory could be, if it were not.
func (m *memFS) Mkdir(dir string, _ os.FileMode) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dirs[dir] {
		return fs.ErrExist
	}
	if err := m.check("mkdir", dir); err != nil {
		return err
	}
	m.dirs[dir] = true
	return nil
}

func (m *memFS) Rename(from, to string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.names[from] == nil {
		return fs.ErrNotExist
	}
	if err := m.check("rename", to); err != nil {
		return err
	}
	m.change(filepath.Dir(to), func(names map[string]*memNode) {
		if names[from] != nil {
			names[to] = names[from]
			delete(names, from)
		}
	})
	return nil
}

func (m *memFS) Remove(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.names[name] == nil {
		return fs.ErrNotExist
	}
	if err := m.check("remove", name); err != nil {
		return err
	}
	m.change(filepath.Dir(name), func(names map[string]*memNode) { delete(names, name) })
	return nil
}

func (m *memFS) SyncDir(dir string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.check("syncdir", dir); err != nil {
		return err
	}
	var rest []dirOp
	for _, op := range m.pending {
		if op.dir == dir {
			op.apply(m.durable)
		} else {
			rest = append(rest, op)
		}
	}
	m.pending = rest
	return nil
}

// crash returns what a power cut leaves.
func (m *memFS) crash(rng *rand.Rand) *memFS {
	m.mu.Lock()
	defer m.mu.Unlock()
	after := newMemFS()
	after.dirs = maps.Clone(m.dirs)
	names := maps.Clone(m.durable)
	for _, op := range m.pending[:rng.IntN(len(m.pending)+1)] {
		op.apply(names)
	}
	for name, n := range names {
		data := n.crash(rng)
		node := &memNode{data: data, kept: append([]byte(nil), data...)}
		after.names[name], after.durable[name] = node, node
	}
	return after
}

func (n *memNode) crash(rng *rand.Rand) []byte {
	size := len(n.kept)
	if i := rng.IntN(len(n.sizes) + 1); i > 0 {
		size = n.sizes[i-1]
	}
	data := make([]byte, size)
	copy(data, n.kept)
	// Mostly all or nothing of a write arrives; sometimes each sector for itself.
	keep := rng.Float64()
	for s, versions := range n.versions {
		if rng.Float64() < keep && s*sector < size {
			v := versions[len(versions)-1]
			if rng.IntN(4) == 0 {
				v = versions[rng.IntN(len(versions))]
			}
			copy(data[s*sector:], v)
		}
	}
	return data
}

func (n *memNode) changed(from, to int) {
	if n.versions == nil {
		n.versions = map[int][][]byte{}
	}
	for s := from / sector; s*sector < to; s++ {
		b := make([]byte, sector)
		if s*sector < len(n.data) {
			copy(b, n.data[s*sector:])
		}
		n.versions[s] = append(n.versions[s], b)
	}
	n.sizes = append(n.sizes, len(n.data))
}

type memFile struct {
	fs   *memFS
	n    *memNode
	name string
}

func (f *memFile) Close() error { return nil }

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if off >= int64(len(f.n.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.n.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	err := f.fs.check("write", f.name)
	if err != nil {
		p = p[:len(p)/2]
	}
	end := int(off) + len(p)
	if end > len(f.n.data) {
		f.n.data = append(f.n.data, make([]byte, end-len(f.n.data))...)
	}
	copy(f.n.data[off:], p)
	f.n.changed(int(off), end)
	return len(p), err
}

func (f *memFile) Size() (int64, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	return int64(len(f.n.data)), nil
}

func (f *memFile) Truncate(size int64) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.fs.check("truncate", f.name); err != nil {
		return err
	}
	old := len(f.n.data)
	if int(size) > old {
		return errors.New("the log never makes a file longer this way")
	}
	f.n.data = f.n.data[:size:size]
	f.n.changed(int(size), old)
	return nil
}

func (f *memFile) Datasync() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	versions := f.n.versions
	f.n.versions, f.n.sizes = nil, nil
	if err := f.fs.check("fdatasync", f.name); err != nil {
		return err // as in the kernel, what could not be written counts as clean from now on, and is not on the disk
	}
	kept := make([]byte, len(f.n.data))
	copy(kept, f.n.kept)
	for s, v := range versions {
		if s*sector < len(kept) {
			copy(kept[s*sector:], v[len(v)-1])
		}
	}
	f.n.kept = kept
	return nil
}
