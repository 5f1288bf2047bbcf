package fs

import (
	"sync"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"holdfast/catalog"
)

const (
	callerShards = 16
	// maxCallers bounds the threads that are remembered, in each shard; more of them than that start afresh. Each holds a descriptor.
	maxCallers = 64
	// callerAge is how long what is known of a process is believed: process numbers are used again, and a process can become another
	// program.
	callerAge = time.Second
)

// callers says who the process behind a request is: its agent, program, user and number.
//
// Looking into a process can wait for its address space, which is locked while it runs exec or unmaps memory, and closing files and
// writing mappings back are part of those. So FLUSH, WRITE, RELEASE, FSYNC and the SETATTR that tells times must never ask for
// more than known.
type callers struct {
	proc   *procReader
	shards [callerShards]struct {
		mu   sync.Mutex
		seen map[uint32]caller // by thread
	}
}

type caller struct {
	actor catalog.Actor
	comm  string // of the thread: changes with exec
	until time.Time
	// name is /proc/TID/comm, kept open: reading it again is a tenth of opening it, and it never tells of another thread that got the
	// number. -1: none. Used and closed under the shard's lock.
	name int
}

func newCallers(proc string) *callers {
	c := &callers{proc: newProcReader(proc)}
	for i := range c.shards {
		c.shards[i].seen = make(map[uint32]caller)
	}
	return c
}

// known returns what is remembered of the caller, or only its user and number. It looks into nothing.
func (c *callers) known(who gofuse.Caller) catalog.Actor {
	if e, ok := c.remembered(who, time.Now()); ok {
		return e.actor
	}
	return catalog.Actor{UID: who.Uid, PID: who.Pid}
}

// actor returns who the caller is.
func (c *callers) actor(who gofuse.Caller) catalog.Actor {
	now := time.Now()
	if e, ok := c.remembered(who, now); ok {
		return e.actor
	}
	return c.look(who, now)
}

// writer is actor for the opening of a file to be written, whose versions will carry the answer: a program that was replaced
// since is noticed.
func (c *callers) writer(who gofuse.Caller) catalog.Actor {
	now := time.Now()
	s := &c.shards[who.Pid%callerShards]
	s.mu.Lock()
	e, ok := s.seen[who.Pid]
	ok = ok && now.Before(e.until) && e.actor.UID == who.Uid && c.proc.still(e)
	s.mu.Unlock()
	if ok {
		return e.actor
	}
	return c.look(who, now)
}

func (c *callers) remembered(who gofuse.Caller, now time.Time) (caller, bool) {
	s := &c.shards[who.Pid%callerShards]
	s.mu.Lock()
	e, ok := s.seen[who.Pid]
	s.mu.Unlock()
	return e, ok && now.Before(e.until) && e.actor.UID == who.Uid
}

// look asks /proc. Who cannot be looked at, because it is gone or lives in another namespace, is known by its user only.
func (c *callers) look(who gofuse.Caller, now time.Time) catalog.Actor {
	if who.Pid == 0 {
		return catalog.Actor{UID: who.Uid, Agent: c.proc.user(who.Uid)}
	}
	e := c.proc.describe(who.Pid, who.Uid)
	e.until = now.Add(callerAge)
	s := &c.shards[who.Pid%callerShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.seen) >= maxCallers {
		for _, old := range s.seen {
			old.forget()
		}
		clear(s.seen)
	}
	s.seen[who.Pid].forget()
	s.seen[who.Pid] = e
	return e.actor
}

// forget closes what e holds open.
func (e caller) forget() {
	if e.until.IsZero() || e.name < 0 {
		return // never remembered
	}
	unix.Close(e.name)
}

// close lets go of everybody.
func (c *callers) close() {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		for _, e := range s.seen {
			e.forget()
		}
		clear(s.seen)
		s.mu.Unlock()
	}
}
