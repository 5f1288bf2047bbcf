package control

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/catalog"
)

// memory is an Ops over a tree in memory: the model that Local is compared with, and a server's subject where no store is needed.
type memory struct {
	Audit
	History // the past as a whole is Local's only: its tests have stores

	mu    sync.Mutex
	nodes map[string]*memNode
	log   map[string][]memVersion
	ino   uint64

	mounted   bool
	busy      bool
	unmounted []bool // lazy, of each call
	// failGet is returned by Get after the content's first failAfter bytes; failPut by Put after as many.
	failGet, failPut error
	failAfter        int64
}

type memNode struct {
	ino  uint64
	mode uint32
	data []byte
	who  Caller
}

type memVersion struct {
	node    memNode
	time    time.Time
	removed bool
}

func newMemory() *memory {
	return &memory{nodes: map[string]*memNode{"/": {ino: 1, mode: unix.S_IFDIR | 0o755}}, log: map[string][]memVersion{}, ino: 1}
}

func (m *memory) Close() error { return nil }

func (m *memory) Status(context.Context) (Status, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	st := Status{Store: "memory", Storage: "hybrid", Mounted: m.mounted, Problems: []string{}}
	if m.mounted {
		st.Mount, st.Requests = &Mount{Dir: "/mnt", PID: os.Getpid()}, map[string]uint64{"LOOKUP": 7}
	}
	return st, nil
}

func (m *memory) find(p string) (*memNode, string, error) {
	p, err := CleanPath(p)
	if err != nil {
		return nil, p, err
	}
	for dir := path.Dir(p); dir != "/"; dir = path.Dir(dir) {
		if n := m.nodes[dir]; n != nil && n.mode&unix.S_IFMT != unix.S_IFDIR {
			return nil, p, pathError("find", p, catalog.ErrNotDir)
		}
	}
	n := m.nodes[p]
	if n == nil {
		return nil, p, pathError("find", p, catalog.ErrNotExist)
	}
	return n, p, nil
}

func (n *memNode) entry(name string) Entry {
	return entry(name, catalog.Inode{Ino: catalog.Ino(n.ino), Mode: n.mode, Nlink: 1, UID: n.who.UID, GID: n.who.GID, Size: int64(len(n.data))})
}

func (m *memory) Stat(_ context.Context, p string) (Entry, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, p, err := m.find(p)
	if err != nil {
		return Entry{}, err
	}
	return n.entry(path.Base(p)), nil
}

func (m *memory) List(_ context.Context, p string, fn func(Entry) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, p, err := m.find(p)
	if err != nil {
		return err
	}
	if n.mode&unix.S_IFMT != unix.S_IFDIR {
		return pathError("list", p, catalog.ErrNotDir)
	}
	for name, n := range m.nodes {
		if name != "/" && path.Dir(name) == p {
			if err := fn(n.entry(path.Base(name))); err != nil {
				return err
			}
		}
	}
	return nil
}

func (m *memory) Log(_ context.Context, p string, fn func(LogEntry) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	p, err := CleanPath(p)
	if err != nil {
		return err
	}
	if len(m.log[p]) == 0 {
		return pathError("log", p, catalog.ErrNotExist)
	}
	number := 0
	for _, v := range m.log[p] {
		e := LogEntry{Time: v.time, Removed: v.removed}
		if !v.removed {
			number++
			e.Number, e.Size, e.SHA256 = number, int64(len(v.node.data)), sha(v.node.data)
			e.Agent, e.Program, e.UID, e.PID, e.Ino = v.node.who.Agent, v.node.who.Program, v.node.who.UID, v.node.who.PID, v.node.ino
		}
		if err := fn(e); err != nil {
			return err
		}
	}
	return nil
}

func (m *memory) Get(_ context.Context, p string, at Selector, w io.Writer) (int64, error) {
	data, err := m.content(p, at)
	if err != nil {
		return 0, err
	}
	if m.failGet != nil {
		n, err := w.Write(data[:m.failAfter])
		if err != nil {
			return int64(n), err
		}
		return int64(n), m.failGet
	}
	return io.Copy(w, bytes.NewReader(data))
}

func (m *memory) content(p string, at Selector) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if at.IsZero() {
		n, p, err := m.find(p)
		if err != nil {
			return nil, err
		}
		if n.mode&unix.S_IFMT == unix.S_IFDIR {
			return nil, pathError("read", p, catalog.ErrIsDir)
		}
		return n.data, nil
	}
	p, err := CleanPath(p)
	if err != nil {
		return nil, err
	}
	number := 0
	var found *memVersion
	for _, v := range m.log[p] {
		if !v.removed {
			number++
		}
		if number == at.Number && !v.removed || !at.Time.IsZero() && !v.time.After(at.Time) {
			found = &v
		}
	}
	if found == nil || found.removed {
		return nil, pathError("read", p, catalog.ErrNotExist)
	}
	return found.node.data, nil
}

func (m *memory) Put(_ context.Context, who Caller, p string, mode uint32, r io.Reader) (Entry, error) {
	p, err := CleanPath(p)
	if err != nil {
		return Entry{}, err
	}
	m.mu.Lock()
	parent, _, err := m.find(path.Dir(p))
	old := m.nodes[p]
	m.mu.Unlock()
	if err != nil {
		return Entry{}, err
	}
	if parent.mode&unix.S_IFMT != unix.S_IFDIR {
		return Entry{}, pathError("put", p, catalog.ErrNotDir)
	}
	if old != nil && old.mode&unix.S_IFMT == unix.S_IFDIR {
		return Entry{}, pathError("put", p, catalog.ErrIsDir)
	}
	if m.failPut != nil {
		if _, err := io.CopyN(io.Discard, r, m.failAfter); err != nil {
			return Entry{}, err
		}
		return Entry{}, m.failPut
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return Entry{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ino++
	n := &memNode{ino: m.ino, mode: unix.S_IFREG | mode, data: data, who: who}
	if old != nil {
		n.mode = old.mode
	}
	m.nodes[p] = n
	m.log[p] = append(m.log[p], memVersion{node: *n, time: time.Now()})
	return n.entry(path.Base(p)), nil
}

func (m *memory) mkdir(p string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ino++
	m.nodes[p] = &memNode{ino: m.ino, mode: unix.S_IFDIR | 0o755}
}

func (m *memory) Remove(_ context.Context, _ Caller, p string, recursive bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, p, err := m.find(p)
	if err != nil {
		return err
	}
	if p == "/" {
		return pathError("remove", p, catalog.ErrInvalid)
	}
	var below []string
	for name := range m.nodes {
		if strings.HasPrefix(name, p+"/") {
			below = append(below, name)
		}
	}
	if len(below) > 0 && !recursive {
		return pathError("remove", p, catalog.ErrNotEmpty)
	}
	for _, name := range slices.Concat(below, []string{p}) {
		if m.nodes[name].mode&unix.S_IFMT == unix.S_IFREG {
			m.log[name] = append(m.log[name], memVersion{time: time.Now(), removed: true})
		}
		delete(m.nodes, name)
	}
	return nil
}

func (m *memory) Unmount(_ context.Context, lazy bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.mounted {
		return ErrNotMounted
	}
	m.unmounted = append(m.unmounted, lazy)
	if m.busy && !lazy {
		return fmt.Errorf("/mnt: %w", ErrBusy)
	}
	m.mounted = false
	return nil
}

// Call implements Ops with one operation.
func (m *memory) Call(ctx context.Context, who Caller, name string, args any, fn func(json.RawMessage) error) error {
	raw, err := json.Marshal(args)
	if err != nil {
		return err
	}
	l := NewLocal(nil, nil, echo{})
	return l.dispatch(ctx, who, name, raw, func(v any) error {
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		return fn(b)
	})
}
