package catalog

import (
	"slices"

	"github.com/tidwall/btree"
	"golang.org/x/sys/unix"

	"holdfast/blobstore"
	"holdfast/catalog/journal"
)

// state is the newest state as far as it is in memory: everything that catalog.db does not have yet, and a part of what it has.
// Guarded by Catalog.mu.
type state struct {
	inodes cache[Ino, inodeVal]
	names  cache[nameKey, nameVal] // names known to be absent included
	filters
	xattrs cache[Ino, *xattrSet]
	// noXattrs is shared by the inodes that have none.
	noXattrs *xattrSet
	content  cache[Ino, *contentVal]

	// dirs has, for each directory, the entries whose newest change is not applied, by cookie.
	dirs map[Ino]*btree.Map[uint64, dirChange]

	bodies   map[blobstore.Hash]*pendingBody
	newBlobs map[blobstore.Hash]pendingBlob

	// deferred are inodes with times that no record holds yet; unwritten are O_TMPFILE inodes that no record holds. Both are held
	// in inodes.
	deferred  map[Ino]struct{}
	unwritten map[Ino]struct{}

	snapshots map[string]Snapshot
	// kept are, by policy, the moments up to which history is thinned, in order: between two neighbours nothing is left but what holds at
	// them. The last is the horizon.
	kept map[string][]Seq

	queue        []*pending // records above meta.applied, in order; the slice is never changed in place
	pendingBytes int64

	// meta.applied is the newest record in catalog.db; everything else in meta is as of last.
	meta
	last         Seq
	lastUnsynced Seq    // newest record that named a blob which was not durable then
	gen          uint64 // counts how often meta.applied moved: values read from catalog.db outside of mu are current if it did not
	room         chan struct{}
	closed       bool // nothing may be changed any more
	released     bool // Close was called
}

type inodeVal struct {
	row    Inode
	digest blobstore.Hash // of version row.Ver; zero when not known
	name   string         // one that it has in row.Parent; "" when not known
}

type nameKey struct {
	parent Ino
	name   string
}

// nameVal is where a name leads; ino 0 says nowhere.
type nameVal struct {
	ino    Ino
	typ    uint32
	cookie uint64
}

type dirChange struct {
	nameVal // ino 0: the entry is gone
	name    string
	seq     Seq
}

// xattrSet is all attributes of an inode. It is not changed once it is in the state. The zero value has none.
type xattrSet struct {
	m     btree.Map[string, []byte]
	bytes int // of all names and values
}

func newXattrSet(m map[string][]byte) *xattrSet {
	set := new(xattrSet)
	for k, v := range m {
		set.m.Set(k, v)
		set.bytes += len(k) + len(v)
	}
	return set
}

func (x *xattrSet) get(name string) ([]byte, bool) { return x.m.Get(name) }

// with returns the set that a change leaves; both share what they have in common. The caller holds order, or is alone.
func (x *xattrSet) with(ch *Xattr) *xattrSet {
	next := &xattrSet{m: *x.m.Copy(), bytes: x.bytes}
	if old, ok := next.m.Delete(ch.Name); ok {
		next.bytes -= len(ch.Name) + len(old)
	}
	if ch.Value != nil {
		next.m.Set(ch.Name, ch.Value)
		next.bytes += len(ch.Name) + len(ch.Value)
	}
	return next
}

// all returns a copy of the set.
func (x *xattrSet) all() map[string][]byte {
	m := make(map[string][]byte, x.m.Len())
	x.m.Scan(func(k string, v []byte) bool {
		m[k] = v
		return true
	})
	return m
}

// contentVal is the content of a file: what it was made of when it was read, with later splices applied (live), or only the
// splices that are not applied to catalog.db yet.
type contentVal struct {
	live    *extentMap
	splices []pendingSplice
}

type pendingSplice struct {
	seq Seq
	s   *Splice
}

type pendingBody struct {
	data []byte
	refs int
}

type pendingBlob struct {
	ref blobstore.Ref
	seq Seq
}

// pending is a record that waits for the applier. Except for stored it does not change once it is queued.
type pending struct {
	rec      Record
	pos      journal.Pos
	bytes    int64
	unsynced bool
	stored   bool // its bodies are in the blobstore; the applier's
	// xattrs has all attributes, as they were before the record, of each inode whose attributes it changes
	xattrs map[Ino]*xattrSet

	// room for the rows of a usual record, so that it is one allocation
	inodes   [4]Inode
	dentries [2]Dentry
}

const (
	// cachedExtents bounds the extents kept in memory of files that do not change.
	cachedExtents = 1 << 18
	// pendingOverhead is what a record takes in memory beside its head and bodies.
	pendingOverhead = 1024
)

func newState(limit int, m meta) state {
	s := state{
		inodes:  newCache[Ino, inodeVal](limit, nil),
		names:   newCache[nameKey, nameVal](limit, nil),
		filters: newFilters(),
		xattrs:  newCache[Ino](limit, func(x *xattrSet) int64 { return int64(1 + x.m.Len()) }),
		content: newCache[Ino](cachedExtents, func(v *contentVal) int64 { return int64(8 + v.live.Len()) }),
		dirs:    make(map[Ino]*btree.Map[uint64, dirChange]),
		bodies:  make(map[blobstore.Hash]*pendingBody), newBlobs: make(map[blobstore.Hash]pendingBlob),
		deferred: make(map[Ino]struct{}), unwritten: make(map[Ino]struct{}),
		noXattrs: new(xattrSet), snapshots: make(map[string]Snapshot), kept: make(map[string][]Seq), meta: m, last: m.applied,
	}
	return s
}

func isDir(mode uint32) bool { return mode&unix.S_IFMT == unix.S_IFDIR }

// remember applies a record to the state in memory and queues it for the applier.
func (s *state) remember(p *pending) {
	r := &p.rec
	for i := range r.Inodes {
		s.rememberInode(&r.Inodes[i], r)
	}
	for i := range r.Dentries {
		s.rememberDentry(&r.Dentries[i], r.Seq)
	}
	for i := range r.Xattrs {
		s.rememberXattr(&r.Xattrs[i], p)
	}
	for i := range r.Splices {
		sp := &r.Splices[i]
		n := s.content.dirty(sp.Ino, r.Seq)
		if n.val == nil {
			n.val = new(contentVal)
		}
		if n.val.live != nil {
			n.val.live.splice(sp)
		}
		n.val.splices = append(n.val.splices, pendingSplice{r.Seq, sp})
	}
	s.rememberSnapshots(r)
	if r.Pruned != nil {
		s.rememberKept(r.Pruned)
		s.forgetInodes(r.Pruned)
	}
	for i := range r.Blobs {
		b := &r.Blobs[i]
		s.newBlobs[b.Ref.Hash] = pendingBlob{b.Ref, r.Seq}
		if b.Body == nil {
			continue
		}
		if have := s.bodies[b.Ref.Hash]; have != nil {
			have.refs++
		} else {
			s.bodies[b.Ref.Hash] = &pendingBody{b.Body, 1}
		}
	}
	applied, blobsSeq := s.applied, s.blobsSeq
	s.meta.advance(r)
	s.applied, s.blobsSeq = applied, blobsSeq
	s.last = r.Seq
	if p.unsynced {
		s.lastUnsynced = r.Seq
	}
	s.queue = append(s.queue, p)
	s.pendingBytes += p.bytes
}

func (s *state) rememberInode(row *Inode, r *Record) {
	n := s.inodes.dirty(row.Ino, r.Seq)
	fresh := n.val.row.Ino == 0
	if n.val.row.Parent != row.Parent {
		n.val.name = ""
	}
	n.val.row = *row
	n.held = false
	delete(s.deferred, row.Ino)
	delete(s.unwritten, row.Ino)
	for i := range r.Versions {
		if r.Versions[i].Ino == row.Ino {
			n.val.digest = r.Versions[i].Digest
		}
	}
	if row.Nlink == 0 && isDir(row.Mode) {
		s.gone(row.Ino)
	}
	if !fresh {
		return
	}
	switch r.Op {
	case OpInit, OpCreate, OpMkdir, OpMknod, OpSymlink:
		if len(r.Dentries) == 0 || r.Dentries[0].Ino == row.Ino {
			if isDir(row.Mode) {
				s.made(row.Ino)
			}
			s.xattrs.add(row.Ino, s.noXattrs) // a new inode has none
		}
	}
}

func (s *state) rememberDentry(d *Dentry, seq Seq) {
	v := nameVal{d.Ino, d.Type, d.Cookie}
	if d.Ino == 0 {
		v = nameVal{}
	} else {
		s.added(d.Parent, d.Name)
	}
	n := s.names.dirty(nameKey{d.Parent, d.Name}, seq)
	old := n.val
	n.val = v
	if old.ino != 0 && old.ino != d.Ino {
		if o := s.inodes.m[old.ino]; o != nil && o.val.row.Parent == d.Parent && o.val.name == d.Name {
			o.val.name = ""
		}
	}
	if o := s.inodes.m[d.Ino]; d.Ino != 0 && o != nil && o.val.row.Parent == d.Parent {
		o.val.name = d.Name
	}
	changes := s.dirs[d.Parent]
	if changes == nil {
		changes = new(btree.Map[uint64, dirChange])
		s.dirs[d.Parent] = changes
	}
	changes.Set(d.Cookie, dirChange{v, d.Name, seq})
}

func (s *state) rememberXattr(x *Xattr, p *pending) {
	set := p.xattrs[x.Ino].with(x)
	p.xattrs[x.Ino] = set
	s.xattrs.dirty(x.Ino, p.rec.Seq).val = set
}

// forgetInodes lets go of inodes that retention takes away as a whole.
func (s *state) forgetInodes(p *Pruned) {
	for i := range p.Drops {
		if d := &p.Drops[i]; d.whole() {
			s.inodes.drop(d.Ino)
			s.xattrs.drop(d.Ino)
			s.content.drop(d.Ino)
		}
	}
}

// settle lets go of what the first n records of the queue pinned: catalog.db has them now.
func (s *state) settle(n int) {
	applied := s.queue[n-1].rec.Seq
	s.applied = applied
	for _, p := range s.queue[:n] {
		r := &p.rec
		for i := range r.Inodes {
			s.inodes.settle(r.Inodes[i].Ino, applied)
		}
		for i := range r.Dentries {
			d := &r.Dentries[i]
			s.names.settle(nameKey{d.Parent, d.Name}, applied)
			if changes := s.dirs[d.Parent]; changes != nil {
				if ch, ok := changes.Get(d.Cookie); ok && ch.seq <= applied {
					changes.Delete(d.Cookie)
				}
				if changes.Len() == 0 {
					delete(s.dirs, d.Parent)
				}
			}
		}
		for i := range r.Xattrs {
			s.xattrs.settle(r.Xattrs[i].Ino, applied)
		}
		for i := range r.Splices {
			s.settleContent(r.Splices[i].Ino, applied)
		}
		for i := range r.Blobs {
			s.settleBlob(&r.Blobs[i], r.Seq)
		}
		s.pendingBytes -= p.bytes
	}
	s.queue = slices.Clone(s.queue[n:])
	s.gen++
	if s.room != nil {
		close(s.room)
		s.room = nil
	}
}

func (s *state) settleContent(ino Ino, applied Seq) {
	n := s.content.m[ino]
	if n == nil {
		return
	}
	keep := slices.IndexFunc(n.val.splices, func(p pendingSplice) bool { return p.seq > applied })
	switch {
	case keep > 0:
		n.val.splices = slices.Clone(n.val.splices[keep:]) // a reader may look at the old slice
	case keep < 0 && n.val.live == nil:
		s.content.remove(ino)
	case keep < 0:
		n.val.splices = nil
		s.content.settle(ino, applied)
	}
}

func (s *state) settleBlob(b *NewBlob, seq Seq) {
	if s.newBlobs[b.Ref.Hash].seq == seq {
		delete(s.newBlobs, b.Ref.Hash)
	}
	if have := s.bodies[b.Ref.Hash]; have != nil && b.Body != nil {
		if have.refs--; have.refs == 0 {
			delete(s.bodies, b.Ref.Hash)
		}
	}
}

// steadyTries is how often a read runs against the applier before it holds the applier up.
const steadyTries = 3

// steady runs try until it says that it is done. try reads memory and catalog.db one after the other, and is not done when the
// applier let go of rows in between (gen moved). After a few times the applier has to wait, so that no reader starves.
func (c *Catalog) steady(try func() (done bool, err error)) error {
	for i := 0; ; i++ {
		if i == steadyTries {
			c.settling.RLock()
			defer c.settling.RUnlock()
		}
		if done, err := try(); done || err != nil {
			return err
		}
	}
}

// pastOf returns the records of the queue from base+1 to at, with base the newest applied one (or at, when that is older).
func (s *state) pastOf(at Seq) past {
	at = min(at, s.last)
	p := past{at: at, base: min(at, s.applied)}
	if at > p.base {
		n, _ := slices.BinarySearchFunc(s.queue, at, func(q *pending, at Seq) int {
			if q.rec.Seq <= at {
				return -1
			}
			return 1
		})
		p.recs = s.queue[:n:n]
	}
	return p
}

// past is a moment: what catalog.db says of base, and the records after it.
type past struct {
	at, base Seq
	recs     []*pending
}
