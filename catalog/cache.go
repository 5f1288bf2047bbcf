package catalog

import "sync/atomic"

// cache keeps values of the newest state in memory. A value that catalog.db does not have yet (dirty), or that is held, stays;
// the others are evicted by the CLOCK algorithm when together they cost more than limit. get may run beside other gets; every other
// method needs the exclusive lock of the owner.
type cache[K comparable, V any] struct {
	m     map[K]*node[K, V]
	limit int64
	cost  func(V) int64 // nil: every value costs 1
	total int64         // cost of the ring
	hand  *node[K, V]   // in the ring of clean values
}

type node[K comparable, V any] struct {
	key        K
	val        V
	seq        Seq  // newest record that changed it and is not applied; 0 means clean
	held       bool // stays although no record says what it holds
	paid       int64
	used       atomic.Bool
	prev, next *node[K, V] // the ring; nil while dirty or held
}

func newCache[K comparable, V any](limit int, cost func(V) int64) cache[K, V] {
	return cache[K, V]{m: make(map[K]*node[K, V]), limit: int64(limit), cost: cost}
}

// get returns the node of k, or nil.
func (c *cache[K, V]) get(k K) *node[K, V] {
	n := c.m[k]
	if n != nil && !n.used.Load() {
		n.used.Store(true)
	}
	return n
}

// add keeps a value that catalog.db holds too. A value that is there already is newer, and stays.
func (c *cache[K, V]) add(k K, v V) *node[K, V] {
	if n := c.m[k]; n != nil {
		return n
	}
	n := &node[K, V]{key: k, val: v}
	c.m[k] = n
	c.link(n)
	c.evict(n)
	return n
}

// dirty returns the node of k, made when missing, to be changed by the record seq.
func (c *cache[K, V]) dirty(k K, seq Seq) *node[K, V] {
	n := c.m[k]
	if n == nil {
		n = &node[K, V]{key: k}
		c.m[k] = n
	} else {
		c.unlink(n)
	}
	n.seq = seq
	return n
}

// hold makes the value of k stay until release.
func (c *cache[K, V]) hold(k K) *node[K, V] {
	n := c.m[k]
	if n == nil {
		n = &node[K, V]{key: k}
		c.m[k] = n
	} else {
		c.unlink(n)
	}
	n.held = true
	return n
}

// settle says that catalog.db has every record up to applied.
func (c *cache[K, V]) settle(k K, applied Seq) {
	n := c.m[k]
	if n == nil || n.seq == 0 || n.seq > applied {
		return
	}
	n.seq = 0
	if !n.held {
		c.link(n)
		c.evict(nil)
	}
}

// drop removes a value that nothing holds and catalog.db has.
func (c *cache[K, V]) drop(k K) {
	if n := c.m[k]; n != nil && n.seq == 0 && !n.held {
		c.remove(k)
	}
}

func (c *cache[K, V]) remove(k K) {
	if n := c.m[k]; n != nil {
		c.unlink(n)
		delete(c.m, k)
	}
}

func (c *cache[K, V]) link(n *node[K, V]) {
	n.paid = 1
	if c.cost != nil {
		n.paid = c.cost(n.val)
	}
	c.total += n.paid
	if c.hand == nil {
		n.prev, n.next = n, n
		c.hand = n
		return
	}
	// Behind the hand: it is looked at last.
	n.prev, n.next = c.hand.prev, c.hand
	n.prev.next, n.next.prev = n, n
}

func (c *cache[K, V]) unlink(n *node[K, V]) {
	if n.next == nil {
		return
	}
	c.total -= n.paid
	if n.next == n {
		c.hand = nil
	} else {
		n.prev.next, n.next.prev = n.next, n.prev
		if c.hand == n {
			c.hand = n.next
		}
	}
	n.prev, n.next = nil, nil
}

// evict makes room; keep is not evicted.
func (c *cache[K, V]) evict(keep *node[K, V]) {
	for c.total > c.limit && c.hand != nil {
		n := c.hand
		if n == keep {
			if n.next == n {
				return
			}
			c.hand = n.next
			continue
		}
		if n.used.Swap(false) {
			c.hand = n.next
			continue
		}
		c.unlink(n)
		delete(c.m, n.key)
	}
}

// dropClean removes every value that nothing holds and catalog.db has.
func (c *cache[K, V]) dropClean() {
	for c.hand != nil {
		n := c.hand
		c.unlink(n)
		delete(c.m, n.key)
	}
}
