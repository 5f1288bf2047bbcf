package snapshots

import (
	"container/list"
	"sync"
	"time"

	"holdfast/catalog"
)

// node is a path below a `versions`, or one version of such a path. A path cannot be told from the number of an inode: over time it led to several, and
// one inode had several paths.
type node struct {
	num    catalog.Ino
	parent *node // nil: `versions` itself
	root   catalog.Ino
	name   string
	ver    catalog.Version // Num 0: a path

	// Guarded by nodes.mu.
	elem *list.Element
	kids int

	mu   sync.Mutex
	hist *history // nil: not known yet
}

type nodeKey struct {
	parent catalog.Ino // 0: of root's `versions`
	root   catalog.Ino
	name   string
}

func (n *node) key() nodeKey {
	k := nodeKey{root: n.root, name: n.name}
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

// child returns the node of a name below parent, or of the `versions` of root; new when there is none.
func (t *nodes) child(parent *node, root catalog.Ino, name string, ver catalog.Version) *node {
	n := &node{parent: parent, root: root, name: name, ver: ver}
	t.mu.Lock()
	defer t.mu.Unlock()
	if old := t.byKey[n.key()]; old != nil {
		t.use(old)
		return old
	}
	if parent != nil {
		parent.kids++
		t.use(parent)
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

// history is where a path led, and when. It does not change once it is made.
type history struct {
	asOf  catalog.Seq // the newest record when it was read
	read  time.Time
	spans []catalog.NameSpan // by From; those of directories that are there now reach back to the beginning
	eras  []era              // of the regular files among them
}

// era is a span in which a path led to one regular file, and the versions that the file had in it.
type era struct {
	catalog.NameSpan
	first, last uint64 // numbers of the inode's versions; last < first when there are none
	shown       uint64 // the first that no earlier era of the same inode has shown
	before      uint64 // versions in all earlier eras
}

// count is how many versions the eras up to this one have.
func (e *era) count() uint64 { return e.before + e.last + 1 - e.first }
