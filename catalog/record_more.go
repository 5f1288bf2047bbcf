package catalog

import (
	"fmt"
	"math"

	"holdfast/blobstore"
)

// Lengths of the arrays of format 2.
const (
	lenMore     = lenRecord + 4
	lenSnapshot = 4
	lenConflict = 8
	lenPruned   = 7
	lenDrop     = 3
	lenKept     = 3
	lenDelta    = 2
)

// Flags of a snapshot, and of a kept moment.
const (
	flagPinned  = 1
	flagAuto    = 2
	flagRemoved = 4
)

// Pruned is what retention took away, and how far it has come.
type Pruned struct {
	_     struct{} `cbor:",toarray"`
	Drops []Drop
	// Forgotten are blobs that no file names any more, now or at a moment that is kept: they may be deleted.
	Forgotten []blobstore.Hash
	Kept      []Kept
	Versions  int64     // number of versions that the drops take
	Bytes     int64     // their sizes together
	Oldest    Timestamp // time of the oldest version that is left; 0 when it is not known to have changed
	Conflicts Seq       // conflicts that records up to it hold are no longer shown
}

// Drop takes away what inode Ino was between the records After and Before and neither at After nor at Before: rows that begin behind
// After and end at Before at the latest. After 0 and Before Head take away all of an inode that has no name.
type Drop struct {
	_      struct{} `cbor:",toarray"`
	Ino    Ino
	After  Seq
	Before Seq
}

// Kept is a moment up to which the history under a policy is thinned: between it and its neighbours nothing is left but what holds at
// them. Removed says that it is none any more.
type Kept struct {
	_       struct{} `cbor:",toarray"`
	Policy  string   // path of the directory that has the policy
	Seq     Seq
	Removed bool
}

func (r *Record) hasMore() bool {
	return len(r.Snapshots)+len(r.Conflicts) > 0 || r.Pruned != nil || r.Delta != Delta{}
}

func putBool(b []byte, v bool) []byte {
	if v {
		return putUint(b, 1)
	}
	return putUint(b, 0)
}

// putMore writes the fields behind the blobs.
func putMore(b []byte, r *Record) []byte {
	b = putHead(b, cborArray, uint64(len(r.Snapshots)))
	for i := range r.Snapshots {
		s := &r.Snapshots[i]
		b = putHead(b, cborArray, lenSnapshot)
		b = putString(b, s.Name)
		b = putUint(b, uint64(s.Seq))
		b = putInt(b, s.Time)
		b = putUint(b, s.flags())
	}
	b = putHead(b, cborArray, uint64(len(r.Conflicts)))
	for i := range r.Conflicts {
		x := &r.Conflicts[i]
		b = putHead(b, cborArray, lenConflict)
		b = putUint(b, uint64(x.Ino))
		b = putString(b, x.Path)
		b = putUint(b, x.Lost)
		b = putUint(b, x.Won)
		b = putUint(b, uint64(x.Side))
		b = putInt(b, x.Time)
		b = putActor(b, &x.LostBy)
		b = putActor(b, &x.WonBy)
	}
	b = putPruned(b, r.Pruned)
	if r.Delta == (Delta{}) {
		return putHead(b, cborArray, 0)
	}
	b = putHead(b, cborArray, lenDelta)
	b = putInt(b, r.Delta.Files)
	return putInt(b, r.Delta.Dirs)
}

func putPruned(b []byte, p *Pruned) []byte {
	if p == nil {
		return putHead(b, cborArray, 0)
	}
	b = putHead(b, cborArray, lenPruned)
	b = putHead(b, cborArray, uint64(len(p.Drops)))
	for i := range p.Drops {
		d := &p.Drops[i]
		b = putHead(b, cborArray, lenDrop)
		b = putUint(b, uint64(d.Ino))
		b = putUint(b, uint64(d.After))
		b = putUint(b, uint64(d.Before))
	}
	b = putHead(b, cborArray, uint64(len(p.Forgotten)))
	for i := range p.Forgotten {
		b = putBytes(b, p.Forgotten[i][:])
	}
	b = putHead(b, cborArray, uint64(len(p.Kept)))
	for i := range p.Kept {
		k := &p.Kept[i]
		b = putHead(b, cborArray, lenKept)
		b = putString(b, k.Policy)
		b = putUint(b, uint64(k.Seq))
		b = putBool(b, k.Removed)
	}
	b = putInt(b, p.Versions)
	b = putInt(b, p.Bytes)
	b = putInt(b, p.Oldest)
	return putUint(b, uint64(p.Conflicts))
}

// more reads what putMore writes.
func (d *decoder) more(r *Record) {
	r.Snapshots = list(d, 1+lenSnapshot, func(s *Snapshot) {
		d.fields(lenSnapshot)
		s.Name, s.Seq, s.Time = d.string(), Seq(d.uint()), d.int()
		if flags := d.uint(); flags > flagPinned|flagAuto|flagRemoved {
			d.fail("a snapshot has unknown flags")
		} else {
			s.Pinned, s.Auto, s.Removed = flags&flagPinned != 0, flags&flagAuto != 0, flags&flagRemoved != 0
		}
	})
	r.Conflicts = list(d, 1+lenConflict, func(x *Conflict) {
		d.fields(lenConflict)
		x.Ino, x.Path, x.Lost, x.Won = Ino(d.uint()), d.string(), d.uint(), d.uint()
		x.Side, x.Time = Ino(d.uint()), d.int()
		d.actor(&x.LostBy)
		d.actor(&x.WonBy)
	})
	switch d.expect(cborArray) {
	case 0:
	case lenPruned:
		r.Pruned = d.pruned()
	default:
		d.fail("what was pruned has the wrong number of items")
	}
	switch d.expect(cborArray) {
	case 0:
	case lenDelta:
		r.Delta.Files, r.Delta.Dirs = d.int(), d.int()
		if r.Delta == (Delta{}) {
			d.fail("a difference of nothing is written out")
		}
	default:
		d.fail("a difference has the wrong number of items")
	}
}

func (d *decoder) pruned() *Pruned {
	p := new(Pruned)
	p.Drops = list(d, 1+lenDrop, func(x *Drop) {
		d.fields(lenDrop)
		x.Ino, x.After, x.Before = Ino(d.uint()), Seq(d.uint()), Seq(d.uint())
	})
	p.Forgotten = list(d, len(blobstore.Hash{}), func(h *blobstore.Hash) { d.hash((*[32]byte)(h)) })
	p.Kept = list(d, 1+lenKept, func(k *Kept) {
		d.fields(lenKept)
		k.Policy, k.Seq = d.string(), Seq(d.uint())
		switch d.uint() {
		case 0:
		case 1:
			k.Removed = true
		default:
			d.fail("a flag is neither 0 nor 1")
		}
	})
	p.Versions, p.Bytes, p.Oldest, p.Conflicts = d.int(), d.int(), d.int(), Seq(d.uint())
	return p
}

// validateMore is validate for the fields of format 2.
func (r *Record) validateMore(bad func(what string, i int, why string) error) error {
	if max(len(r.Snapshots), len(r.Conflicts)) > MaxRows {
		return fmt.Errorf("%w (%s): it has more than %d rows of a kind", ErrBadRecord, r.Op, MaxRows)
	}
	for i := range r.Snapshots {
		s := &r.Snapshots[i]
		if err := CheckSnapshotName(s.Name); err != nil {
			return bad("snapshot", i, err.Error())
		}
		if s.Seq > Head {
			return bad("snapshot", i, "its moment is out of range")
		}
	}
	for i := range r.Conflicts {
		if why := r.Conflicts[i].flaw(); why != "" {
			return bad("conflict", i, why)
		}
	}
	const most = math.MaxInt64 / 4 // sums stay far from overflow
	if d := r.Delta; min(d.Files, d.Dirs) < -most || max(d.Files, d.Dirs) > most {
		return fmt.Errorf("%w (%s): its difference is out of range", ErrBadRecord, r.Op)
	}
	if r.Pruned == nil {
		return nil
	}
	p := r.Pruned
	if max(len(p.Drops), len(p.Forgotten), len(p.Kept)) > MaxRows || p.Versions < 0 || p.Versions > most || p.Bytes < 0 || p.Conflicts > Head {
		return fmt.Errorf("%w (%s): what it prunes is out of range", ErrBadRecord, r.Op)
	}
	for i := range p.Drops {
		if d := &p.Drops[i]; !d.Ino.known() || d.After >= d.Before || d.Before > Head {
			return bad("drop", i, "its numbers are out of range")
		}
	}
	for i := range p.Kept {
		if k := &p.Kept[i]; len(k.Policy) > MaxPath || k.Seq > Head {
			return bad("kept moment", i, "its policy or its moment is out of range")
		}
	}
	return nil
}
