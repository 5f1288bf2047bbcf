package catalog

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"strconv"
	"strings"

	"holdfast/internal/sqldb"
)

// Every row of catalog.db ends in a sum over its other columns, so that a row that rotted or was edited is an error where it is read, and never an answer.

// table is one of the tables of catalog.db.
type table int

const (
	tableMeta table = iota
	tableInodes
	tableDentries
	tableXattrs
	tableExtents
	tableVersions
	tableActors
	tableBlobs
	tableTimes
	tableSnapshots
	tableConflicts
	tableGaps
	tableKept
	tableLoose
	tableCount
)

// Kinds of columns.
const (
	kindInt   = 'i'
	kindEnd   = 'e' // to_seq: an integer, or NULL while the row holds
	kindBytes = 'b'
	kindText  = 't'
	kindValue = 'v' // an integer, or BLOB
)

// The columns of each table in their order, but for sum. They are the order in which a row is summed, so they never change under one format.
const (
	metaColumns     = "key, value"
	inodesColumns   = "ino, from_seq, parent, mode, uid, gid, rdev, nlink, size, atime, mtime, ctime, btime, ver, base, target"
	dentriesColumns = "parent, name, from_seq, to_seq, ino, type, cookie"
	xattrsColumns   = "ino, name, from_seq, to_seq, value"
	extentsColumns  = "ino, from_seq, off, len, to_seq, blob, blob_size, root, blob_off"
	versionsColumns = "ino, num, seq, time, size, sum, prev, digest, actor, pid"
	actorsColumns   = "id, agent, program, uid"
	blobsColumns    = "hash, size, root, level, seq, segment, offset"
	timesColumns    = "chunk, first_time, deltas"
	snapsColumns    = "name, seq, time, flags"
	conflictColumns = "seq, ino, path, lost, won, side, time, lost_by, lost_pid, won_by, won_pid"
	gapsColumns     = "ino, after, before"
	keptColumns     = "policy, seq"
	looseColumns    = "hash, forgotten"

	// rowColumns is the greatest number of columns, rowRoom what a usual row takes as it is summed, maxCell the largest BLOB or TEXT.
	rowColumns = 16
	rowRoom    = 384
	maxCell    = 1 << 20
)

// info tells a table's name, its columns, the kind of each, and how many of them are the primary key.
func (t table) info() (name, columns, kinds string, key int) {
	switch t {
	case tableMeta:
		return "meta", metaColumns, "tv", 1
	case tableInodes:
		return "inodes", inodesColumns, "iiiiiiiiiiiiiiib", 2
	case tableDentries:
		return "dentries", dentriesColumns, "ibieiii", 3
	case tableXattrs:
		return "xattrs", xattrsColumns, "ibieb", 3
	case tableExtents:
		return "extents", extentsColumns, "iiiiebibi", 3
	case tableVersions:
		return "versions", versionsColumns, "iiiiibbbii", 2
	case tableActors:
		return "actors", actorsColumns, "ibbi", 1
	case tableBlobs:
		return "blobs", blobsColumns, "bibtiii", 1
	case tableTimes:
		return "times", timesColumns, "iib", 1
	case tableSnapshots:
		return "snapshots", snapsColumns, "biii", 1
	case tableConflicts:
		return "conflicts", conflictColumns, "iibiiiiiiii", 2
	case tableGaps:
		return "gaps", gapsColumns, "iii", 2
	case tableKept:
		return "kept", keptColumns, "bi", 2
	}
	return "loose", looseColumns, "bi", 1
}

func (t table) String() string {
	name, _, _, _ := t.info()
	return name
}

// insert is the statement that adds a row, or replaces it.
func (t table) insert(verb string) string {
	name, columns, kinds, _ := t.info()
	return verb + " INTO " + name + " (" + columns + ", row_sum) VALUES (" + strings.Repeat("?, ", len(kinds)) + "?)"
}

// rowSum takes the columns of a row one after the other.
type rowSum struct {
	n    int
	big  []byte // all of it, once room is too small
	room [rowRoom]byte
}

// next returns the place of the next n bytes.
func (s *rowSum) next(n int) []byte {
	at := s.n
	s.n += n
	if s.big == nil {
		if s.n <= rowRoom {
			return s.room[at:s.n]
		}
		s.big = append(make([]byte, 0, s.n+rowRoom), s.room[:at]...)
	}
	if s.n > cap(s.big) {
		s.big = append(make([]byte, 0, 2*s.n), s.big...)
	}
	s.big = s.big[:s.n]
	return s.big[at:s.n]
}

func (s *rowSum) begin(t table) {
	name, _, _, _ := t.info()
	s.n, s.big = 0, nil
	copy(s.next(len(name)), name)
}

func (s *rowSum) addInt(v int64) { binary.LittleEndian.PutUint64(s.next(8), uint64(v)) }

// addNull adds a NULL, as an integer that no column holds.
func (s *rowSum) addNull() { s.addInt(math.MinInt64) }

// room8 adds the length of a string and returns the place of its bytes.
func (s *rowSum) addLen(n int) []byte {
	s.addInt(int64(n))
	return s.next(n)
}

func (s *rowSum) all() []byte {
	if s.big != nil {
		return s.big
	}
	return s.room[:s.n]
}

func (s *rowSum) value() int64 {
	h := sha256.Sum256(s.all())
	return int64(binary.LittleEndian.Uint64(h[:]))
}

// rowPut binds the columns of a row, in order, and their sum.
type rowPut struct {
	st *sqldb.Stmt
	n  int
	s  rowSum
}

// begin starts a row of t that query, with a parameter for each column and one for the sum, writes.
func (p *rowPut) begin(st *sqldb.Stmt, t table) *rowPut {
	p.st, p.n = st, 0
	p.s.begin(t)
	return p
}

func (p *rowPut) int(v int64) *rowPut {
	p.n++
	p.st.BindInt64(p.n, v)
	p.s.addInt(v)
	return p
}

func (p *rowPut) null() *rowPut {
	p.n++
	p.st.BindNull(p.n)
	p.s.addNull()
	return p
}

func (p *rowPut) bytes(b []byte) *rowPut {
	p.n++
	p.st.BindBytes(p.n, b)
	copy(p.s.addLen(len(b)), b)
	return p
}

func (p *rowPut) text(v string) *rowPut {
	p.n++
	p.st.BindText(p.n, v)
	copy(p.s.addLen(len(v)), v)
	return p
}

// name binds a string as a BLOB.
func (p *rowPut) name(v string) *rowPut {
	at := p.s.n + 8
	copy(p.s.addLen(len(v)), v)
	p.n++
	p.st.BindBytes(p.n, p.s.all()[at:])
	return p
}

func (p *rowPut) exec() error { return p.st.BindInt64(p.n+1, p.s.value()).Exec() }

// rowRead is a row that was read, and is what was written.
type rowRead struct {
	cols [rowColumns]cell
	s    rowSum
}

// cell is an integer (n is -1), or where a string begins in the summed bytes, and its length.
type cell struct {
	v    int64
	n    int32
	null bool
}

// read reads a row of t whose columns begin at the column at of st, with row_sum behind them. ErrCorrupt when it does not have its sum.
func (r *rowRead) read(st *sqldb.Stmt, at int, t table) error {
	if err := r.load(st, at, t); err != nil || st.Older() {
		return err // opened read-only, and from before rows had sums
	}
	_, _, kinds, _ := t.info()
	if at += len(kinds); st.IsNull(at) || st.Int64(at) != r.s.value() {
		return fmt.Errorf("catalog.db: the row of %s with the key %s does not have its checksum: %w", t, r.key(t), sqldb.ErrCorrupt)
	}
	return nil
}

// load is read without a look at the sum.
func (r *rowRead) load(st *sqldb.Stmt, at int, t table) error {
	_, _, kinds, _ := t.info()
	r.s.begin(t)
	for i := range len(kinds) {
		c := &r.cols[i]
		kind := kinds[i]
		if kind == kindValue {
			if kind = kindInt; st.IsBlob(at + i) {
				kind = kindBytes
			}
		}
		switch {
		case kind == kindEnd && st.IsNull(at+i):
			*c = cell{v: int64(r.s.n), null: true}
			r.s.addNull()
		case kind == kindInt || kind == kindEnd:
			*c = cell{v: st.Int64(at + i), n: -1}
			r.s.addInt(c.v)
		default:
			n := st.Len(at + i)
			if n > maxCell {
				return fmt.Errorf("catalog.db: a row of %s has a value of %d bytes: %w", t, n, sqldb.ErrCorrupt)
			}
			*c = cell{v: int64(r.s.n + 8), n: int32(n)}
			into := r.s.addLen(n)
			if kind == kindText {
				copy(into, st.Text(at+i))
			} else if st.CopyBytes(at+i, into) != n {
				return fmt.Errorf("catalog.db: a row of %s cannot be read: %w", t, sqldb.ErrCorrupt)
			}
		}
	}
	return nil
}

// copyTo writes the row with the statement st, which has a parameter for each column and for the sum.
func (r *rowRead) copyTo(st *sqldb.Stmt, kinds string) error {
	for i := range len(kinds) {
		switch c := &r.cols[i]; {
		case c.null:
			st.BindNull(i + 1)
		case c.n < 0:
			st.BindInt64(i+1, c.v)
		case kinds[i] == kindText:
			st.BindText(i+1, string(r.bytes(i)))
		default:
			st.BindBytes(i+1, r.bytes(i))
		}
	}
	return st.BindInt64(len(kinds)+1, r.s.value()).Exec()
}

// int is an integer column; NULL is 0.
func (r *rowRead) int(col int) int64 {
	if r.cols[col].null {
		return 0
	}
	return r.cols[col].v
}

func (r *rowRead) isNull(col int) bool { return r.cols[col].null }

// bytes is a BLOB or TEXT column, valid until the next read.
func (r *rowRead) bytes(col int) []byte {
	c := &r.cols[col]
	return r.s.all()[c.v : c.v+int64(c.n) : c.v+int64(c.n)]
}

// hash copies a column of a hash: of dst's length, or empty, which leaves the zeroed dst as it is.
func (r *rowRead) hash(col int, dst []byte) error {
	b := r.bytes(col)
	if len(b) != len(dst) && len(b) != 0 {
		return fmt.Errorf("catalog.db: a hash has %d bytes: %w", len(b), sqldb.ErrCorrupt)
	}
	copy(dst, b)
	return nil
}

// ended is the sum that a row which still holds has once its to_seq, in the column col, is seq.
func (r *rowRead) ended(col int, seq Seq) int64 {
	binary.LittleEndian.PutUint64(r.s.all()[r.cols[col].v:], uint64(seq))
	return r.s.value()
}

// actor is the writer whom a row of actors names, with a process id.
func (r *rowRead) actor(pid int64) Actor {
	return Actor{Agent: string(r.bytes(1)), Program: string(r.bytes(2)), UID: uint32(r.int(3)), PID: uint32(pid)}
}

// span is what a row of dentries says, as of the record base.
func (r *rowRead) span(base Seq) NameSpan {
	s := NameSpan{Ino(r.int(4)), uint32(r.int(5)), Seq(r.int(2)), Head}
	if !r.isNull(3) && Seq(r.int(3)) <= base {
		s.To = Seq(r.int(3))
	}
	return s
}

// key is the primary key of the row, for people.
func (r *rowRead) key(t table) string {
	_, _, kinds, n := t.info()
	var parts []string
	for i := range n {
		if k := kinds[i]; k == kindBytes || k == kindText {
			parts = append(parts, strconv.Quote(string(r.bytes(i)[:min(len(r.bytes(i)), 100)])))
		} else {
			parts = append(parts, fmt.Sprint(r.int(i)))
		}
	}
	return strings.Join(parts, ", ")
}

// keyPart is a column of a primary key.
type keyPart struct {
	v    int64
	text []byte
}

// keyOf returns the primary key, in room.
func (r *rowRead) keyOf(room []keyPart, t table) []keyPart {
	_, _, kinds, n := t.info()
	if room == nil {
		room = make([]keyPart, n)
	}
	for i := range room {
		if k := kinds[i]; k == kindBytes || k == kindText {
			room[i].text = append(room[i].text[:0], r.bytes(i)...)
		} else {
			room[i].v = r.int(i)
		}
	}
	return room
}
