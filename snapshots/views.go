package snapshots

import (
	"container/list"
	"sync"

	"holdfast/catalog"
)

// viewKey says what a view is of: the state of root after the record seq.
type viewKey struct {
	root catalog.Ino
	seq  catalog.Seq
}

// view is a tree of directories with numbers of its own, so that no directory is found under two paths.
type view struct {
	viewKey
	id         uint64
	generation uint64
}

// row gives a row of the store the numbers of the view.
func (v *view) row(r catalog.Inode) (catalog.Inode, error) {
	var err error
	if r.Ino == v.root {
		r.Parent = v.root // its `.snapshots`
	} else if r.Parent, err = number(v.id, r.Parent); err != nil {
		return r, err
	}
	r.Ino, err = number(v.id, r.Ino)
	return r, err
}

// views numbers views. The ones that were not used for longest lose their numbers when there are too many; a number is used again as late as
// possible, and under another generation.
type views struct {
	mu         sync.Mutex
	max        int
	byKey      map[viewKey]*list.Element
	byID       map[uint64]*list.Element
	lru        *list.List // of *view, the latest used first
	next       uint64
	generation uint64
}

func newViews(max int) *views {
	return &views{
		max: max, byKey: make(map[viewKey]*list.Element), byID: make(map[uint64]*list.Element), lru: list.New(), next: firstView,
	}
}

// of returns the view of key, new when there is none.
func (t *views) of(key viewKey) *view {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.byKey[key]; e != nil {
		t.lru.MoveToFront(e)
		return e.Value.(*view)
	}
	for t.lru.Len() >= t.max {
		old := t.lru.Remove(t.lru.Back()).(*view)
		delete(t.byKey, old.viewKey)
		delete(t.byID, old.id)
	}
	for t.byID[t.next] != nil {
		t.advance()
	}
	t.generation++
	v := &view{viewKey: key, id: t.next, generation: t.generation}
	t.advance()
	e := t.lru.PushFront(v)
	t.byKey[key], t.byID[v.id] = e, e
	return v
}

func (t *views) advance() {
	if t.next++; t.next > lastView {
		t.next = firstView
	}
}

// get returns the view of that number, or nil.
func (t *views) get(id uint64) *view {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.byID[id]
	if e == nil {
		return nil
	}
	t.lru.MoveToFront(e)
	return e.Value.(*view)
}

// peek is get without a use.
func (t *views) peek(id uint64) *view {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.byID[id]; e != nil {
		return e.Value.(*view)
	}
	return nil
}
