package catalog

import (
	"encoding/binary"
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
	return c.Prep(`INSERT INTO inodes (ino, from_seq, parent, mode, uid, gid, rdev, nlink, size, atime, mtime, ctime, btime, ver, base, target)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`).
		BindInt64(1, int64(n.Ino)).BindInt64(2, int64(seq)).BindInt64(3, int64(n.Parent)).BindInt64(4, int64(n.Mode)).
		BindInt64(5, int64(n.UID)).BindInt64(6, int64(n.GID)).BindInt64(7, int64(n.Rdev)).BindInt64(8, int64(n.Nlink)).
		BindInt64(9, n.Size).BindInt64(10, n.Atime).BindInt64(11, n.Mtime).BindInt64(12, n.Ctime).BindInt64(13, n.Btime).
		BindInt64(14, int64(n.Ver)).BindInt64(15, int64(n.Base)).BindBytes(16, []byte(n.Target)).Exec()
}

func writeDentry(c *sqldb.Conn, d *Dentry, seq Seq) error {
	name := []byte(d.Name)
	st := c.Prep("SELECT from_seq, to_seq FROM dentries WHERE parent = ? AND name = ? ORDER BY from_seq DESC LIMIT 1").
		BindInt64(1, int64(d.Parent)).BindBytes(2, name)
	ok, err := st.Step()
	if err != nil {
		return err
	}
	if ok && st.IsNull(1) {
		from := st.Int64(0)
		if err := st.Done(); err != nil {
			return err
		}
		err = c.Prep("UPDATE dentries SET to_seq = ? WHERE parent = ? AND name = ? AND from_seq = ?").
			BindInt64(1, int64(seq)).BindInt64(2, int64(d.Parent)).BindBytes(3, name).BindInt64(4, from).Exec()
		if err != nil {
			return err
		}
	}
	if d.Ino == 0 {
		return nil
	}
	return c.Prep("INSERT INTO dentries (parent, name, from_seq, ino, type, cookie) VALUES (?, ?, ?, ?, ?, ?)").
		BindInt64(1, int64(d.Parent)).BindBytes(2, name).BindInt64(3, int64(seq)).BindInt64(4, int64(d.Ino)).
		BindInt64(5, int64(d.Type)).BindInt64(6, int64(d.Cookie)).Exec()
}

func writeXattr(c *sqldb.Conn, x *Xattr, seq Seq) error {
	name := []byte(x.Name)
	st := c.Prep("SELECT from_seq, to_seq FROM xattrs WHERE ino = ? AND name = ? ORDER BY from_seq DESC LIMIT 1").
		BindInt64(1, int64(x.Ino)).BindBytes(2, name)
	ok, err := st.Step()
	if err != nil {
		return err
	}
	if ok && st.IsNull(1) {
		from := st.Int64(0)
		if err := st.Done(); err != nil {
			return err
		}
		err = c.Prep("UPDATE xattrs SET to_seq = ? WHERE ino = ? AND name = ? AND from_seq = ?").
			BindInt64(1, int64(seq)).BindInt64(2, int64(x.Ino)).BindBytes(3, name).BindInt64(4, from).Exec()
		if err != nil {
			return err
		}
	}
	if x.Value == nil {
		return nil
	}
	return c.Prep("INSERT INTO xattrs (ino, name, from_seq, value) VALUES (?, ?, ?, ?)").
		BindInt64(1, int64(x.Ino)).BindBytes(2, name).BindInt64(3, int64(seq)).BindBytes(4, x.Value).Exec()
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
	const cols = "SELECT off, len, blob, blob_size, root, blob_off, from_seq FROM extents WHERE ino = ? AND to_seq IS NULL"
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
}

func (r *extentRow) scan(st *sqldb.Stmt) error {
	r.Off, r.Len = st.Int64(0), st.Int64(1)
	r.Blob.Size, r.BlobOff = st.Int64(3), st.Int64(5)
	r.from = Seq(st.Int64(6))
	if r.Off < 0 || r.Len <= 0 || r.Off > MaxSize-r.Len || r.BlobOff < 0 || r.BlobOff > r.Blob.Size-r.Len {
		return fmt.Errorf("catalog.db: an extent has impossible bounds: %w", sqldb.ErrCorrupt)
	}
	if err := st.WantBytes(2, r.Blob.Hash[:]); err != nil {
		return err
	}
	return optionalBytes(st, 4, r.Blob.Root[:])
}

// optionalBytes reads a column that is empty when it says nothing: dst, zeroed by the caller, then stays zero.
func optionalBytes(st *sqldb.Stmt, col int, dst []byte) error {
	if st.Len(col) == 0 {
		return nil
	}
	return st.WantBytes(col, dst)
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
	return c.Prep("UPDATE extents SET to_seq = ? WHERE ino = ? AND from_seq = ? AND off = ?").
		BindInt64(1, int64(seq)).BindInt64(2, int64(ino)).BindInt64(3, int64(r.from)).BindInt64(4, r.Off).Exec()
}

func insertExtent(c *sqldb.Conn, ino Ino, e *Extent, seq Seq) error {
	return c.Prep("INSERT INTO extents (ino, from_seq, off, len, blob, blob_size, root, blob_off) VALUES (?, ?, ?, ?, ?, ?, ?, ?)").
		BindInt64(1, int64(ino)).BindInt64(2, int64(seq)).BindInt64(3, e.Off).BindInt64(4, e.Len).BindBytes(5, e.Blob.Hash[:]).
		BindInt64(6, e.Blob.Size).BindBytes(7, orEmpty(e.Blob.Root[:])).BindInt64(8, e.BlobOff).Exec()
}

func (w *rowWriter) insertVersion(c *sqldb.Conn, v *Version, seq Seq) error {
	actor, err := w.actor(c, v.Actor)
	if err != nil {
		return err
	}
	return c.Prep("INSERT INTO versions (ino, num, seq, time, size, sum, prev, digest, actor, pid) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)").
		BindInt64(1, int64(v.Ino)).BindInt64(2, int64(v.Num)).BindInt64(3, int64(seq)).BindInt64(4, v.Time).BindInt64(5, v.Size).
		BindBytes(6, orEmpty(v.Sum[:])).BindBytes(7, orEmpty(v.Prev[:])).BindBytes(8, v.Digest[:]).BindInt64(9, actor).
		BindInt64(10, int64(v.Actor.PID)).Exec()
}

// actor returns the row of a writer, made at its first version.
func (w *rowWriter) actor(c *sqldb.Conn, a Actor) (int64, error) {
	key := actorKey{a.Agent, a.Program, a.UID}
	if id, ok := w.actors[key]; ok {
		return id, nil
	}
	find := func() (int64, bool, error) {
		st := c.Prep("SELECT id FROM actors WHERE agent = ? AND program = ? AND uid = ?").
			BindBytes(1, []byte(a.Agent)).BindBytes(2, []byte(a.Program)).BindInt64(3, int64(a.UID))
		ok, err := st.Step()
		if err != nil || !ok {
			return 0, false, err
		}
		id := st.Int64(0)
		return id, true, st.Done()
	}
	id, ok, err := find()
	if err == nil && !ok {
		err = c.Prep("INSERT INTO actors (agent, program, uid) VALUES (?, ?, ?)").
			BindBytes(1, []byte(a.Agent)).BindBytes(2, []byte(a.Program)).BindInt64(3, int64(a.UID)).Exec()
		id = c.LastInsertRowID()
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

// insertBlob notes where a blob came from. The first record that carries its body is the place to get it back from.
func insertBlob(c *sqldb.Conn, b *NewBlob, seq Seq, pos journal.Pos) error {
	segment, offset := int64(pos.Segment), pos.Offset
	if b.Body == nil && b.Ref.Size > 0 {
		segment, offset = 0, -1
	}
	return c.Prep(`INSERT INTO blobs (hash, size, root, level, seq, segment, offset) VALUES (?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (hash) DO UPDATE SET seq = excluded.seq, segment = excluded.segment, offset = excluded.offset
		WHERE blobs.offset < 0 AND excluded.offset >= 0`).
		BindBytes(1, b.Ref.Hash[:]).BindInt64(2, b.Ref.Size).BindBytes(3, orEmpty(b.Ref.Root[:])).BindText(4, b.Level).
		BindInt64(5, int64(seq)).BindInt64(6, segment).BindInt64(7, offset).Exec()
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
	st := c.Prep("SELECT first_time, deltas FROM times WHERE chunk = ?").BindInt64(1, chunk)
	ok, err := st.Step()
	if err != nil || !ok {
		return err
	}
	row.first = st.Int64(0)
	row.deltas = st.AppendBytes(row.deltas, 1)
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
	return c.Prep("INSERT OR REPLACE INTO times (chunk, first_time, deltas) VALUES (?, ?, ?)").
		BindInt64(1, row.chunk).BindInt64(2, row.first).BindBytes(3, row.deltas).Exec()
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
