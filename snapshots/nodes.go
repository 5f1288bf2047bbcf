package snapshots

import (
	"container/list"
	"sync"

	"holdfast/catalog"
)

// node is a path below a `versions` or a `deleted`, or a file there. A path cannot be told from the number of an inode: over time it led to several,
// and one inode had several paths.
type node struct {
	nodeID
	num    catalog.Ino
	parent *node // nil: `versions`, `deleted` or `conflicts` itself
	// A text of the tree itself, with its attributes; "": it is none.
	body string
	row  catalog.Inode

	// Guarded by nodes.mu.
	elem *list.Element
	kids int

	mu   sync.Mutex
	hist *history // of a path; nil: not known yet
}

type nodeKind uint8

const (
	versionsKind nodeKind = iota // `versions` and below
	deletedKind                  // `deleted` and below
	conflictsKind
)

// nodeID says what a node is of.
type nodeID struct {
	root catalog.Ino // the directory whose past is shown
	kind nodeKind
	name string
	// file as it was after the record at, when it is a file and not a path.
	file catalog.Ino
	at   catalog.Seq
}

type nodeKey struct {
	parent catalog.Ino // 0: none
	nodeID
}

func (n *node) key() nodeKey {
	k := nodeKey{nodeID: n.nodeID}
	if n.parent != nil {
		k.parent = n.parent.num
	}
	return k
}

// nodes numbers nodes. When there are too many, one that was not used for long and has none below it loses its number, which is never used again.
type nodes struct {
	mu    sync.Mutex
	max   int
	next  catalog.Ino
	byNum map[catalog.Ino]*node
	byKey map[nodeKey]*node
	lru   *list.List // of *node, the latest used first
}

func newNodes(max int) *nodes {
	return &nodes{max: max, next: nodeBit, byNum: make(map[catalog.Ino]*node), byKey: make(map[nodeKey]*node), lru: list.New()}
}

// top returns the node of the `versions`, `deleted` or `conflicts` of a directory.
func (t *nodes) top(root catalog.Ino, kind nodeKind) *node {
	return t.of(&node{nodeID: nodeID{root: root, kind: kind}})
}

// path returns the node of a path below parent.
func (t *nodes) path(parent *node, name string) *node {
	return t.file(parent, name, 0, 0)
}

// file returns the node of a file below parent.
func (t *nodes) file(parent *node, name string, ino catalog.Ino, at catalog.Seq) *node {
	return t.of(&node{parent: parent, nodeID: nodeID{root: parent.root, kind: parent.kind, name: name, file: ino, at: at}})
}

// text returns the node of a text below parent. The text of a name does not change.
func (t *nodes) text(parent *node, name, body string, row catalog.Inode) *node {
	return t.of(&node{parent: parent, nodeID: nodeID{root: parent.root, kind: parent.kind, name: name}, body: body, row: row})
}

// of returns the node that there is for what n is of, or else n.
func (t *nodes) of(n *node) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	if old := t.byKey[n.key()]; old != nil {
		t.use(old)
		return old
	}
	if n.parent != nil {
		n.parent.kids++
		t.use(n.parent)
	}
	for t.lru.Len() >= t.max && t.evict() {
	}
	t.next++
	n.num = t.next
	n.elem = t.lru.PushFront(n)
	t.byNum[n.num], t.byKey[n.key()] = n, n
	return n
}

// use keeps n from being evicted soon. The paths above cannot be as long as it is there.
func (t *nodes) use(n *node) { t.lru.MoveToFront(n.elem) }

// evict takes the number of the node that was not used for longest and has nothing below it. False when there is none.
func (t *nodes) evict() bool {
	for range t.lru.Len() {
		n := t.lru.Back().Value.(*node)
		if n.kids > 0 {
			t.lru.MoveToFront(n.elem)
			continue
		}
		t.lru.Remove(n.elem)
		delete(t.byNum, n.num)
		delete(t.byKey, n.key())
		if n.parent != nil {
			n.parent.kids--
		}
		return true
	}
	return false
}

// get returns the node of that number, or nil.
func (t *nodes) get(num catalog.Ino) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byNum[num]
	if n != nil {
		t.use(n)
	}
	return n
}
