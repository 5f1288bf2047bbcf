package blobstore

import "sync"

// lru keeps values up to a total cost and drops those that were used longest ago. The newest is kept whatever it costs.
type lru[K comparable, V any] struct {
	mu      sync.Mutex
	max     int64
	used    int64
	entries map[K]*lruEntry[K, V]
	ring    lruEntry[K, V] // ring.next is the newest, ring.prev the oldest
	onGet   func(V)        // called under the lock for each value handed out
	onDrop  func(V)        // called under the lock for each value that leaves
}

type lruEntry[K comparable, V any] struct {
	key        K
	val        V
	cost       int64
	prev, next *lruEntry[K, V]
}

func newLRU[K comparable, V any](maxCost int64) *lru[K, V] {
	c := &lru[K, V]{max: maxCost, entries: make(map[K]*lruEntry[K, V])}
	c.ring.prev, c.ring.next = &c.ring, &c.ring
	return c
}

func (c *lru[K, V]) get(k K) (v V, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[k]
	if e == nil {
		return v, false
	}
	c.unlink(e)
	c.link(e)
	if c.onGet != nil {
		c.onGet(e.val)
	}
	return e.val, true
}

// put adds or replaces k, unless current (asked under the lock, so that it is ordered against remove) says that v is out of date.
func (c *lru[K, V]) put(k K, v V, cost int64, current func() bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !current() {
		return false
	}
	if e := c.entries[k]; e != nil {
		c.drop(e)
	}
	e := &lruEntry[K, V]{key: k, val: v, cost: cost}
	c.entries[k] = e
	c.link(e)
	c.used += cost
	for c.used > c.max && c.ring.prev != e {
		c.drop(c.ring.prev)
	}
	return true
}

func (c *lru[K, V]) remove(k K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.entries[k]; e != nil {
		c.drop(e)
	}
}

func (c *lru[K, V]) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.ring.prev != &c.ring {
		c.drop(c.ring.prev)
	}
}

func (c *lru[K, V]) link(e *lruEntry[K, V]) {
	e.prev, e.next = &c.ring, c.ring.next
	e.prev.next, e.next.prev = e, e
}

func (c *lru[K, V]) unlink(e *lruEntry[K, V]) {
	e.prev.next, e.next.prev = e.next, e.prev
}

func (c *lru[K, V]) drop(e *lruEntry[K, V]) {
	c.unlink(e)
	delete(c.entries, e.key)
	c.used -= e.cost
	if c.onDrop != nil {
		c.onDrop(e.val)
	}
}
