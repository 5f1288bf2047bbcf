package catalog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"holdfast/blobstore"
	"holdfast/catalog/journal"
	"holdfast/internal/sqldb"
)

const (
	// timesChunk is the number of records whose times share one row of the table times.
	timesChunk = 256
	// maxActors bounds the writers whose row numbers are kept in memory.
	maxActors = 4096
)

// rowWriter brings catalog.db forward, record by record: the one function behind normal operation, replay and rebuild. Used
// by one goroutine at a time.
type rowWriter struct {
	actors map[actorKey]int64
	times  timesRow
}

// timesRow is the row of the table times to which the newest record belongs.
type timesRow struct {
	known  bool
	dirty  bool // flush has to write it
	chunk  int64
	count  int // of records in it
	first  Timestamp
	last   Timestamp
	deltas []byte
}

type actorKey struct {
	agent, program string
	uid            uint32
}

func newRowWriter() rowWriter { return rowWriter{actors: make(map[actorKey]int64)} }

// reset forgets what was learned in a transaction that was not committed.
func (w *rowWriter) reset() {
	clear(w.actors)
	w.times = timesRow{}
}

// write adds the rows of one record. The records come in order, each once; flush ends the transaction.
func (w *rowWriter) write(c *sqldb.Conn, r *Record, pos journal.Pos) error {
	for i := range r.Inodes {
		if err := insertInode(c, &r.Inodes[i], r.Seq); err != nil {
			return err
		}
	}
	for i := range r.Dentries {
		if err := writeDentry(c, &r.Dentries[i], r.Seq); err != nil {
			return err
		}
	}
	for i := range r.Xattrs {
		if err := writeXattr(c, &r.Xattrs[i], r.Seq); err != nil {
			return err
		}
	}
	for i := range r.Splices {
		if err := writeSplice(c, &r.Splices[i], r.Seq); err != nil {
			return err
		}
	}
	for i := range r.Versions {
		if err := w.insertVersion(c, &r.Versions[i], r.Seq); err != nil {
			return err
		}
	}
	for i := range r.Snapshots {
		if err := writeSnapshot(c, &r.Snapshots[i]); err != nil {
			return err
		}
	}
	for i := range r.Conflicts {
		if err := w.insertConflict(c, &r.Conflicts[i], r.Seq); err != nil {
			return err
		}
	}
	if r.Pruned != nil {
		if err := w.prune(c, r.Pruned); err != nil {
			return err
		}
	}
	for i := range r.Blobs {
		if err := insertBlob(c, &r.Blobs[i], r.Seq, pos); err != nil {
			return err
		}
	}
	return w.addTime(c, r.Seq, r.Time.UnixNano())
}

func insertInode(c *sqldb.Conn, n *Inode, seq Seq) error {
	var p rowPut
	return p.begin(c.Prep("INSERT INTO inodes ("+inodesColumns+", row_sum) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"), tableInodes).
		int(int64(n.Ino)).int(int64(seq)).int(int64(n.Parent)).int(int64(n.Mode)).int(int64(n.UID)).int(int64(n.GID)).int(int64(n.Rdev)).
		int(int64(n.Nlink)).int(n.Size).int(n.Atime).int(n.Mtime).int(n.Ctime).int(n.Btime).int(int64(n.Ver)).int(int64(n.Base)).name(n.Target).exec()
}

func writeDentry(c *sqldb.Conn, d *Dentry, seq Seq) error {
	name := []byte(d.Name)
	st := c.Prep("SELECT "+dentriesColumns+", row_sum FROM dentries WHERE parent = ? AND name = ? ORDER BY from_seq DESC LIMIT 1").
		BindInt64(1, int64(d.Parent)).BindBytes(2, name)
	if err := endNewest(c, st, tableDentries, "UPDATE dentries SET to_seq = ?, row_sum = ? WHERE parent = ? AND name = ? AND from_seq = ?", seq); err != nil {
		return err
	}
	if d.Ino == 0 {
		return nil
	}
	var p rowPut
	return p.begin(c.Prep("INSERT INTO dentries ("+dentriesColumns+", row_sum) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"), tableDentries).
		int(int64(d.Parent)).bytes(name).int(int64(seq)).null().int(int64(d.Ino)).int(int64(d.Type)).int(int64(d.Cookie)).exec()
}

func writeXattr(c *sqldb.Conn, x *Xattr, seq Seq) error {
	name := []byte(x.Name)
	st := c.Prep("SELECT "+xattrsColumns+", row_sum FROM xattrs WHERE ino = ? AND name = ? ORDER BY from_seq DESC LIMIT 1").
		BindInt64(1, int64(x.Ino)).BindBytes(2, name)
	if err := endNewest(c, st, tableXattrs, "UPDATE xattrs SET to_seq = ?, row_sum = ? WHERE ino = ? AND name = ? AND from_seq = ?", seq); err != nil {
		return err
	}
	if x.Value == nil {
		return nil
	}
	var p rowPut
	return p.begin(c.Prep("INSERT INTO xattrs ("+xattrsColumns+", row_sum) VALUES (?, ?, ?, ?, ?, ?)"), tableXattrs).
		int(int64(x.Ino)).bytes(name).int(int64(seq)).null().bytes(x.Value).exec()
}

// endNewest ends the row that st selects, if it still holds, with the record seq. Both tables have two columns that say what it is, then from_seq and to_seq.
func endNewest(c *sqldb.Conn, st *sqldb.Stmt, t table, update string, seq Seq) error {
	ok, err := st.Step()
	if err != nil || !ok {
		return err
	}
	var r rowRead
	if err := r.read(st, 0, t); err != nil {
		return err
	}
	if err := st.Done(); err != nil || !r.isNull(3) {
		return err
	}
	return c.Prep(update).BindInt64(1, int64(seq)).BindInt64(2, r.ended(3, seq)).
		BindInt64(3, r.int(0)).BindBytes(4, r.bytes(1)).BindInt64(5, r.int(2)).Exec()
}

func writeSplice(c *sqldb.Conn, s *Splice, seq Seq) error {
	if s.Cut != NoCut {
		if err := clearRange(c, s.Ino, s.Cut, math.MaxInt64, seq); err != nil {
			return err
		}
	}
	for _, h := range s.Holes {
		if err := clearRange(c, s.Ino, h.Off, h.Off+h.Len, seq); err != nil {
			return err
		}
	}
	for i := range s.Extents {
		e := &s.Extents[i]
		if s.Cut == NoCut || e.Off < s.Cut {
			if err := clearRange(c, s.Ino, e.Off, e.Off+e.Len, seq); err != nil {
				return err
			}
		}
		if err := insertExtent(c, s.Ino, e, seq); err != nil {
			return err
		}
	}
	return nil
}

// clearRange ends the extents that hold any of the bytes [from, to) and keeps what they hold of other bytes.
func clearRange(c *sqldb.Conn, ino Ino, from, to int64, seq Seq) error {
	const cols = "SELECT " + extentsColumns + ", row_sum FROM extents WHERE ino = ? AND to_seq IS NULL"
	var rows []extentRow
	read := func(st *sqldb.Stmt, all bool) error {
		for {
			ok, err := st.Step()
			if err != nil || !ok {
				return err
			}
			var r extentRow
			if err := r.scan(st); err != nil {
				return err
			}
			if r.Off+r.Len > from {
				rows = append(rows, r)
			}
			if !all {
				return st.Done()
			}
		}
	}
	if from > 0 {
		st := c.Prep(cols+" AND off < ? ORDER BY off DESC LIMIT 1").BindInt64(1, int64(ino)).BindInt64(2, from)
		if err := read(st, false); err != nil {
			return err
		}
	}
	st := c.Prep(cols+" AND off >= ? AND off < ? ORDER BY off").BindInt64(1, int64(ino)).BindInt64(2, from).BindInt64(3, to)
	if err := read(st, true); err != nil {
		return err
	}
	for i := range rows {
		r := &rows[i]
		if err := endExtent(c, ino, r, seq); err != nil {
			return err
		}
		head, tail := r.Extent.without(from, to)
		for _, piece := range []Extent{head, tail} {
			if piece.Len > 0 {
				if err := insertExtent(c, ino, &piece, seq); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

type extentRow struct {
	Extent
	from Seq
	row  rowRead
}

func (r *extentRow) scan(st *sqldb.Stmt) error {
	if err := r.row.read(st, 0, tableExtents); err != nil {
		return err
	}
	r.from, r.Off, r.Len = Seq(r.row.int(1)), r.row.int(2), r.row.int(3)
	r.Blob.Size, r.BlobOff = r.row.int(6), r.row.int(8)
	if r.Off < 0 || r.Len <= 0 || r.Off > MaxSize-r.Len || r.BlobOff < 0 || r.BlobOff > r.Blob.Size-r.Len {
		return fmt.Errorf("catalog.db: an extent has impossible bounds: %w", sqldb.ErrCorrupt)
	}
	return errors.Join(r.row.hash(5, r.Blob.Hash[:]), r.row.hash(7, r.Blob.Root[:]))
}

func isZero(b []byte) bool {
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}

// orEmpty is how a hash is kept: the zero one takes no room.
func orEmpty(b []byte) []byte {
	if isZero(b) {
		return nil
	}
	return b
}

// endExtent ends a row with the record seq; a row that this very record made never held, and goes.
func endExtent(c *sqldb.Conn, ino Ino, r *extentRow, seq Seq) error {
	if r.from == seq {
		return c.Prep("DELETE FROM extents WHERE ino = ? AND from_seq = ? AND off = ?").
			BindInt64(1, int64(ino)).BindInt64(2, int64(seq)).BindInt64(3, r.Off).Exec()
	}
	return c.Prep("UPDATE extents SET to_seq = ?, row_sum = ? WHERE ino = ? AND from_seq = ? AND off = ?").
		BindInt64(1, int64(seq)).BindInt64(2, r.row.ended(4, seq)).BindInt64(3, int64(ino)).BindInt64(4, int64(r.from)).BindInt64(5, r.Off).Exec()
}

func insertExtent(c *sqldb.Conn, ino Ino, e *Extent, seq Seq) error {
	var p rowPut
	return p.begin(c.Prep("INSERT INTO extents ("+extentsColumns+", row_sum) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"), tableExtents).
		int(int64(ino)).int(int64(seq)).int(e.Off).int(e.Len).null().bytes(e.Blob.Hash[:]).int(e.Blob.Size).bytes(orEmpty(e.Blob.Root[:])).int(e.BlobOff).exec()
}

func (w *rowWriter) insertVersion(c *sqldb.Conn, v *Version, seq Seq) error {
	actor, err := w.actor(c, v.Actor)
	if err != nil {
		return err
	}
	var p rowPut
	return p.begin(c.Prep("INSERT INTO versions ("+versionsColumns+", row_sum) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"), tableVersions).
		int(int64(v.Ino)).int(int64(v.Num)).int(int64(seq)).int(v.Time).int(v.Size).bytes(orEmpty(v.Sum[:])).bytes(orEmpty(v.Prev[:])).
		bytes(v.Digest[:]).int(actor).int(int64(v.Actor.PID)).exec()
}

// actor returns the row of a writer, made at its first version.
func (w *rowWriter) actor(c *sqldb.Conn, a Actor) (int64, error) {
	key := actorKey{a.Agent, a.Program, a.UID}
	if id, ok := w.actors[key]; ok {
		return id, nil
	}
	id, ok, err := findActor(c, key)
	if err == nil && !ok {
		id, err = addActor(c, key)
	}
	if err != nil {
		return 0, err
	}
	if len(w.actors) >= maxActors {
		clear(w.actors)
	}
	w.actors[key] = id
	return id, nil
}

func findActor(c *sqldb.Conn, key actorKey) (id int64, ok bool, err error) {
	st := c.Prep("SELECT "+actorsColumns+", row_sum FROM actors WHERE agent = ? AND program = ? AND uid = ?").
		BindBytes(1, []byte(key.agent)).BindBytes(2, []byte(key.program)).BindInt64(3, int64(key.uid))
	if ok, err = st.Step(); err != nil || !ok {
		return 0, false, err
	}
	var r rowRead
	if err := r.read(st, 0, tableActors); err != nil {
		return 0, false, err
	}
	return r.int(0), true, st.Done()
}

// addActor gives a writer the number behind the greatest one.
func addActor(c *sqldb.Conn, key actorKey) (id int64, err error) {
	st := c.Prep("SELECT ifnull(max(id), 0) + 1 FROM actors")
	if _, err := st.Step(); err != nil {
		return 0, err
	}
	id = st.Int64(0)
	if err := st.Done(); err != nil {
		return 0, err
	}
	var p rowPut
	return id, p.begin(c.Prep("INSERT INTO actors ("+actorsColumns+", row_sum) VALUES (?, ?, ?, ?, ?)"), tableActors).
		int(id).name(key.agent).name(key.program).int(int64(key.uid)).exec()
}

// insertBlob notes where a blob came from. The first record that carries its body is the place to get it back from.
func insertBlob(c *sqldb.Conn, b *NewBlob, seq Seq, pos journal.Pos) error {
	segment, offset := int64(pos.Segment), pos.Offset
	if b.Body == nil && b.Ref.Size > 0 {
		segment, offset = 0, -1
	}
	var p rowPut
	err := p.begin(c.Prep("INSERT INTO blobs ("+blobsColumns+", row_sum) VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (hash) DO NOTHING"), tableBlobs).
		bytes(b.Ref.Hash[:]).int(b.Ref.Size).bytes(orEmpty(b.Ref.Root[:])).text(b.Level).int(int64(seq)).int(segment).int(offset).exec()
	if err != nil || c.Changes() > 0 || offset < 0 {
		return err
	}
	return moveBlob(c, b.Ref.Hash, func(r *blobRow) bool {
		if r.pos.Offset >= 0 {
			return false
		}
		r.seq, r.pos = seq, pos
		return true
	})
}

// moveBlob changes where the body of a blob is said to lie, when change, which is given the row, says so.
func moveBlob(c *sqldb.Conn, h blobstore.Hash, change func(*blobRow) bool) error {
	b, ok, err := readBlob(c, h)
	if err != nil || !ok || !change(&b) {
		return err
	}
	var p rowPut
	query := "INSERT OR REPLACE INTO blobs (" + blobsColumns + ", row_sum) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
	return p.begin(c.Prep(query), tableBlobs).bytes(h[:]).int(b.ref.Size).bytes(orEmpty(b.ref.Root[:])).text(b.level).
		int(int64(b.seq)).int(int64(b.pos.Segment)).int(b.pos.Offset).exec()
}

// addTime adds the time of one record to the row of its chunk: a varint for each record of the chunk in order, the time since
// the record before it (since first_time for the first). A record that is missing from the journal leaves the difference 0.
func (w *rowWriter) addTime(c *sqldb.Conn, seq Seq, t Timestamp) error {
	chunk, index := int64(seq-1)/timesChunk, int(seq-1)%timesChunk
	if !w.times.known || w.times.chunk != chunk {
		if err := w.flush(c); err != nil {
			return err
		}
		if err := w.loadTimes(c, chunk, t); err != nil {
			return err
		}
	}
	row := &w.times
	if row.count > index || t < row.last {
		return fmt.Errorf("catalog.db: times of records are out of order at record %d: %w", seq, sqldb.ErrCorrupt)
	}
	for ; row.count < index; row.count++ {
		row.deltas = append(row.deltas, 0)
	}
	row.deltas = binary.AppendUvarint(row.deltas, uint64(t-row.last))
	row.count, row.last, row.dirty = row.count+1, t, true
	return nil
}

// loadTimes makes the row of chunk current; a new one begins at t.
func (w *rowWriter) loadTimes(c *sqldb.Conn, chunk int64, t Timestamp) error {
	w.times = timesRow{known: true, chunk: chunk, first: t, last: t, deltas: w.times.deltas[:0]}
	row := &w.times
	var r rowRead
	st := c.Prep("SELECT "+timesColumns+", row_sum FROM times WHERE chunk = ?").BindInt64(1, chunk)
	ok, err := st.Step()
	if err != nil || !ok {
		return err
	}
	if err := r.read(st, 0, tableTimes); err != nil {
		return err
	}
	row.first = r.int(1)
	row.deltas = append(row.deltas, r.bytes(2)...)
	if err := st.Done(); err != nil {
		return err
	}
	row.count, row.last, err = decodeTimes(row.first, row.deltas)
	return err
}

// flush writes what write has kept back. It comes last in each transaction.
func (w *rowWriter) flush(c *sqldb.Conn) error {
	row := &w.times
	if !row.dirty {
		return nil
	}
	row.dirty = false
	var p rowPut
	return p.begin(c.Prep("INSERT OR REPLACE INTO times ("+timesColumns+", row_sum) VALUES (?, ?, ?, ?)"), tableTimes).
		int(row.chunk).int(row.first).bytes(row.deltas).exec()
}

// decodeTimes returns the number of records in a chunk and the time of the last.
func decodeTimes(first Timestamp, deltas []byte) (n int, last Timestamp, err error) {
	last = first
	err = eachTime(first, deltas, func(_ int, t Timestamp) bool {
		n++
		last = t
		return true
	})
	return n, last, err
}

// eachTime calls fn for each record of a chunk until it returns false.
func eachTime(first Timestamp, deltas []byte, fn func(index int, t Timestamp) bool) error {
	t := first
	for i := 0; len(deltas) > 0; i++ {
		d, n := binary.Uvarint(deltas)
		if n <= 0 || i >= timesChunk || d > uint64(math.MaxInt64-max(t, 0)) {
			return fmt.Errorf("catalog.db: a chunk of times cannot be read: %w", sqldb.ErrCorrupt)
		}
		t += int64(d)
		deltas = deltas[n:]
		if !fn(i, t) {
			return nil
		}
	}
	return nil
}

func zeroHash(h blobstore.Hash) bool { return h == blobstore.Hash{} }
