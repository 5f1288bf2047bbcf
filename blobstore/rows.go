package blobstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"holdfast/internal/sqldb"
)

// rowsSchema: a blob is a row of blob, its sidecar the columns of that row. Bodies are appended in the order of arrival and the hash
// leads to them through an index of its own, so that a batch changes few pages. A blob of more than BlockSize bytes has its block
// hashes in large and its content in rows of block, numbered from large.first on; they are written before, and removed after,
// the row in blob that makes them visible, and a row of incomplete names them in between.
const rowsSchema = `
CREATE TABLE blob (
	id INTEGER PRIMARY KEY,
	hash BLOB NOT NULL UNIQUE,
	size INTEGER NOT NULL,     -- plain bytes
	stored INTEGER NOT NULL,   -- encoded bytes
	zstd INTEGER NOT NULL,     -- 1: body is a zstd frame
	level INTEGER NOT NULL,    -- 0 basic, 1 advanced, 2 critical
	version INTEGER NOT NULL,
	time INTEGER NOT NULL,     -- nanoseconds since 1970 UTC
	backups INTEGER NOT NULL,
	last_backup INTEGER,
	sum INTEGER NOT NULL,      -- check of the columns but body: see columns.sum
	body BLOB                  -- NULL: in block
) STRICT;
CREATE TABLE large (id INTEGER PRIMARY KEY, first INTEGER NOT NULL, hashes BLOB NOT NULL) STRICT;
CREATE TABLE block (id INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT;
CREATE TABLE incomplete (first INTEGER PRIMARY KEY, count INTEGER NOT NULL) STRICT;
CREATE TABLE total (id INTEGER PRIMARY KEY CHECK (id = 1), blobs INTEGER NOT NULL, plain INTEGER NOT NULL, stored INTEGER NOT NULL) STRICT;
INSERT INTO total VALUES (1, 0, 0, 0);`

const (
	rowsFile    = "blobs.db"
	rowsVersion = 1
	// txnBlocks bounds a transaction: 32 blocks are 4 MiB.
	txnBlocks = 32
)

// rows is the place where blobs are rows of blobs.db.
type rows struct {
	opt     Options
	codec   *codec
	db      *sqldb.DB
	page    int   // of a new database, in bytes
	rebuilt error // why Open made the database anew
	blocks  *lru[blockKey, []byte]
	layouts *lru[Hash, *layout]
	repair  chan struct{} // as files.rebuild
	turns   chan struct{} // as files.turns
	gen     atomic.Uint64 // as in stripe
	// hasParity: there is a table of parities. The first parity makes it.
	hasParity atomic.Bool
	removedMu sync.Mutex                  // held during the sync of a removeBatch, so that a later one does not return before it
	unsynced  atomic.Bool                 // a removeBatch may not be durable yet
	syncDB    func(context.Context) error // of db; tests watch it
	nextMu    sync.Mutex
	next      int64 // number of the next row of block
}

// columns are the columns of blob that make up a sidecar.
type columns struct {
	id         int64
	size       int64
	stored     int64
	zstd       int64
	level      int64
	version    int64
	time       int64
	backups    int64
	lastBackup int64 // 0: none
	check      int64
}

// sum is what column sum should hold: the first 8 bytes of the SHA-256 of the hash and the other columns, little-endian.
func (c *columns) sum(h Hash) int64 {
	var b [32 + 8*8]byte
	p := append(b[:0], h[:]...)
	for _, v := range [...]int64{c.size, c.stored, c.zstd, c.level, c.version, c.time, c.backups, c.lastBackup} {
		p = binary.LittleEndian.AppendUint64(p, uint64(v))
	}
	d := sha256.Sum256(p)
	return int64(binary.LittleEndian.Uint64(d[:]))
}

// flaw says why the columns cannot be relied on; nil when they can.
func (c *columns) flaw(h Hash) error {
	if c.check != c.sum(h) || c.level < 0 || c.level > 2 || c.zstd < 0 || c.zstd > 1 {
		return &DamageError{h, "sidecar", "its row in blobs.db does not have its sum"}
	}
	return nil
}

func newColumns(ref Ref, meta Meta) columns {
	return columns{size: ref.Size, stored: ref.Size, level: int64(levelRank(meta.Level)), version: meta.Version, time: stamp(meta.Time).UnixNano()}
}

func openRows(ctx context.Context, opt Options, c *codec, blocks *lru[blockKey, []byte]) (*rows, error) {
	page := 4096
	if opt.Mode == ModeDatabase {
		page = 16384 // large bodies span fewer pages
	}
	s := &rows{opt: opt, codec: c, page: page, blocks: blocks, layouts: newLRU[Hash, *layout](layoutBytes), repair: make(chan struct{}, 1), turns: make(chan struct{}, 1)}
	if !opt.ReadOnly {
		if err := removeDB(opt.storePath(freshFile)); err != nil {
			return nil, err
		}
	}
	err := s.open(ctx)
	if errors.Is(err, sqldb.ErrCorrupt) && !opt.ReadOnly {
		s.rebuilt = err
		if err = remakeRows(ctx, opt, page, err); err == nil {
			err = s.open(ctx)
		}
	}
	if err != nil {
		return nil, rowErr(err)
	}
	return s, nil
}

func (s *rows) open(ctx context.Context) (err error) {
	s.db, err = sqldb.Open(ctx, sqldb.Options{Path: s.opt.storePath(rowsFile), ReadOnly: s.opt.ReadOnly, Schema: rowsSchema, Version: rowsVersion, PageSize: s.page})
	if err != nil {
		return err
	}
	s.syncDB = s.db.Sync
	if err := s.prepare(ctx); err != nil {
		return errors.Join(err, s.db.Close())
	}
	return nil
}

// rowErr makes damage of the database damage of the store as well.
func rowErr(err error) error {
	if errors.Is(err, sqldb.ErrCorrupt) && !errors.Is(err, ErrDamaged) {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return err
}

// blobErr is rowErr where one blob is concerned.
func blobErr(h Hash, err error) error {
	if errors.Is(err, sqldb.ErrCorrupt) {
		return &DamageError{h, "database", err.Error()}
	}
	return err
}

// prepare removes the blocks of blobs that a crash left incomplete.
func (s *rows) prepare(ctx context.Context) error {
	if err := s.prepareParity(ctx); err != nil {
		return err
	}
	if s.opt.ReadOnly {
		return nil
	}
	type span struct{ first, count int64 }
	var left []span
	err := s.db.Read(ctx, func(c *sqldb.Conn) error {
		// A blob whose last rows are lost still owns their numbers: removing it removes what has them.
		st := c.Prep(`SELECT max((SELECT ifnull(max(id), 0) FROM block), (SELECT ifnull(max(l.first + (min(b.size, ?) + 131071) / 131072), 0)
			FROM large l JOIN blob b ON b.id = l.id WHERE l.first BETWEEN 1 AND ?)) + 1`).BindInt64(1, maxBlob).BindInt64(2, 1<<60)
		if _, err := st.Step(); err != nil {
			return err
		}
		s.next = st.Int64(0)
		for st = c.Prep("SELECT first, count FROM incomplete"); ; {
			ok, err := st.Step()
			if err != nil || !ok {
				return err
			}
			left = append(left, span{st.Int64(0), st.Int64(1)})
		}
	})
	if err != nil {
		return err
	}
	for _, l := range left {
		if err := s.dropBlocks(ctx, l.first, l.count); err != nil {
			return err
		}
	}
	return nil
}

// current is what it is in files.
func (s *rows) current() func() bool {
	gen := s.gen.Load()
	return func() bool { return s.gen.Load() == gen }
}

func (s *rows) forget(h Hash) {
	s.layouts.remove(h)
	s.blocks.remove(blockKey{h, 0})
}

// encodedBody is an item on its way into a row.
type encodedBody struct {
	cols columns
	body []byte
}

func (s *rows) encodeItem(it *Item, arena []byte) (encodedBody, []byte) {
	e := encodedBody{cols: newColumns(it.Ref, it.Meta), body: it.Data}
	if e.body == nil {
		e.body = []byte{} // NULL would stand for blocks
	}
	if len(it.Data) >= minCompress {
		at := len(arena)
		out, ok := s.codec.encode(arena, it.Data)
		if ok {
			e.body = out[at:len(out):len(out)]
			e.cols.zstd, e.cols.stored = 1, int64(len(e.body))
			arena = out
		} else {
			arena = out[:at]
		}
	}
	e.cols.check = e.cols.sum(it.Ref.Hash)
	return e, arena
}

func (s *rows) put(ctx context.Context, items []Item) error {
	// What can be done before the transaction is.
	ready := make([]encodedBody, len(items))
	var arena []byte
	for i := range items {
		ready[i], arena = s.encodeItem(&items[i], arena)
	}
	replaced := false
	var found []Mending
	err := s.db.Write(ctx, func(c *sqldb.Conn) error {
		var delta Stats
		for i := range items {
			h := items[i].Ref.Hash
			added, err := s.insert(c, h, &ready[i].cols, ready[i].body)
			if err != nil {
				return err
			}
			if added {
				if _, err := dropStray(c, c.LastInsertRowID()); err != nil {
					return err
				}
				delta.Blobs++
				delta.PlainBytes += ready[i].cols.size
				delta.StoredBytes += ready[i].cols.stored
				continue
			}
			d, changed, m, err := s.putAgain(c, &items[i], &ready[i])
			if err != nil {
				return err
			}
			if m.Cause != nil {
				found = append(found, m)
			}
			delta.PlainBytes += d.PlainBytes
			delta.StoredBytes += d.StoredBytes
			replaced = replaced || changed
		}
		return addTotal(c, delta)
	})
	for i := range found {
		found[i].Err = err
		mended(ctx, found[i])
	}
	if err != nil {
		return fmt.Errorf("put %d blobs: %w", len(items), rowErr(err))
	}
	if replaced {
		s.gen.Add(1)
		for i := range items {
			s.forget(items[i].Ref.Hash)
			if err := s.dropStaleParity(ctx, items[i].Ref.Hash, &ready[i].cols); err != nil {
				return err
			}
		}
	}
	return nil
}

// insert adds a row and says whether it was not there yet. A nil body stands for blocks.
func (s *rows) insert(c *sqldb.Conn, h Hash, k *columns, body []byte) (added bool, err error) {
	st := c.Prep(`INSERT INTO blob (hash, size, stored, zstd, level, version, time, backups, last_backup, sum, body)
		VALUES (?, ?, ?, ?, ?, ?, ?, 0, NULL, ?, ?) ON CONFLICT (hash) DO NOTHING`)
	st.BindBytes(1, h[:]).BindInt64(2, k.size).BindInt64(3, k.stored).BindInt64(4, k.zstd).BindInt64(5, k.level).
		BindInt64(6, k.version).BindInt64(7, k.time).BindInt64(8, k.check)
	if body != nil {
		st.BindBytes(9, body)
	}
	if err := st.Exec(); err != nil {
		return false, err
	}
	return c.Changes() > 0, nil
}

// dropStray removes a row of large that says that a small blob has blocks: it was left by a blob whose row somebody has removed, and whose id came again.
func dropStray(c *sqldb.Conn, id int64) (there bool, err error) {
	err = c.Prep("DELETE FROM large WHERE id = ?").BindInt64(1, id).Exec()
	return err == nil && c.Changes() > 0, err
}

func addTotal(c *sqldb.Conn, d Stats) error {
	if d == (Stats{}) {
		return nil
	}
	return c.Prep("UPDATE total SET blobs = blobs + ?, plain = plain + ?, stored = stored + ?").
		BindInt64(1, d.Blobs).BindInt64(2, d.PlainBytes).BindInt64(3, d.StoredBytes).Exec()
}

const columnList = "id, size, stored, zstd, level, version, time, backups, last_backup, sum"

func (k *columns) scan(st *sqldb.Stmt) {
	for i, p := range [...]*int64{&k.id, &k.size, &k.stored, &k.zstd, &k.level, &k.version, &k.time, &k.backups, &k.lastBackup, &k.check} {
		*p = st.Int64(i)
	}
}

// putAgain handles a blob that has a row already: an intact body is kept, a damaged one replaced. found says what was damaged; its Cause is nil when nothing was.
func (s *rows) putAgain(c *sqldb.Conn, it *Item, e *encodedBody) (delta Stats, changed bool, found Mending, err error) {
	h := it.Ref.Hash
	st := c.Prep("SELECT "+columnList+", body FROM blob WHERE hash = ?").BindBytes(1, h[:])
	ok, err := st.Step()
	if err != nil || !ok {
		return delta, false, found, err
	}
	var old columns
	old.scan(st)
	why := s.compareBody(st, &old, it.Data)
	if err := st.Done(); err != nil {
		return delta, false, found, err
	}
	flaw := old.flaw(h)
	stray, err := dropStray(c, old.id)
	if err != nil {
		return delta, false, found, err
	}
	switch {
	case why != nil:
		found = Mending{Hash: h, Part: PartContent, Cause: &DamageError{h, "content", "its row in blobs.db: " + why.Error()}, Source: SourceWriter, Bytes: it.Ref.Size}
	case flaw != nil:
		found = Mending{Hash: h, Part: PartRow, Cause: flaw, Source: SourceWriter}
	case stray:
		found = Mending{Hash: h, Part: PartRow, Cause: &DamageError{h, "sidecar", "a row of large in blobs.db says that it has blocks"}, Source: SourceWriter}
	}
	if why == nil && flaw == nil && old.level >= e.cols.level {
		return delta, false, found, nil
	}
	fresh := e.cols
	if flaw == nil {
		// What is known of the blob's past stays.
		fresh.level, fresh.version, fresh.time = max(old.level, fresh.level), old.version, old.time
		fresh.backups, fresh.lastBackup = old.backups, old.lastBackup
	}
	if why != nil {
		s.opt.Log.Warn("a stored blob is damaged and is replaced by intact content", "blob", h.String(), "err", why)
	}
	if err := s.update(c, h, old.id, &fresh); err != nil {
		return delta, false, found, err
	}
	if err := c.Prep("UPDATE blob SET body = ? WHERE id = ?").BindBytes(1, e.body).BindInt64(2, old.id).Exec(); err != nil {
		return delta, false, found, err
	}
	return Stats{0, fresh.size - old.size, fresh.stored - old.stored}, true, found, nil
}

// update writes all columns but the body of a row that exists.
func (s *rows) update(c *sqldb.Conn, h Hash, id int64, k *columns) error {
	st := c.Prep(`UPDATE blob SET size = ?, stored = ?, zstd = ?, level = ?, version = ?, time = ?, backups = ?, last_backup = ?, sum = ? WHERE id = ?`)
	st.BindInt64(1, k.size).BindInt64(2, k.stored).BindInt64(3, k.zstd).BindInt64(4, k.level).BindInt64(5, k.version).
		BindInt64(6, k.time).BindInt64(7, k.backups).BindInt64(9, k.sum(h)).BindInt64(10, id)
	if k.lastBackup != 0 {
		st.BindInt64(8, k.lastBackup)
	}
	return st.Exec()
}

// compareBody says why the body in column 10 of st is not data; nil when it is.
func (s *rows) compareBody(st *sqldb.Stmt, k *columns, data []byte) error {
	if k.size != int64(len(data)) {
		return fmt.Errorf("its size is %d, not %d", k.size, len(data))
	}
	plain := make([]byte, len(data))
	if err := s.body(st, 10, k.zstd, plain); err != nil {
		return err
	}
	if !bytes.Equal(plain, data) {
		return errors.New("it does not have its hash")
	}
	return nil
}

// body fills plain from the body in a column.
func (s *rows) body(st *sqldb.Stmt, col int, zstd int64, plain []byte) error {
	n := st.Len(col)
	if st.IsNull(col) {
		return errors.New("it has no body")
	}
	if zstd == 0 {
		if n != len(plain) {
			return fmt.Errorf("its body has %d bytes, not %d", n, len(plain))
		}
		st.CopyBytes(col, plain)
		return nil
	}
	if n > BlockSize {
		return fmt.Errorf("its body has %d bytes", n)
	}
	buf := s.codec.buf()
	defer s.codec.free(buf)
	return s.codec.decode(plain, buf[:st.CopyBytes(col, buf[:n])])
}

func (s *rows) sync(ctx context.Context) error { return s.syncDB(ctx) }

func (s *rows) close() error { return s.db.Close() }

func (s *rows) stats(ctx context.Context) (st Stats, err error) {
	err = s.db.Read(ctx, func(c *sqldb.Conn) error {
		q := c.Prep("SELECT blobs, plain, stored FROM total")
		if ok, err := q.Step(); err != nil || !ok {
			return err
		}
		st = Stats{q.Int64(0), q.Int64(1), q.Int64(2)}
		return nil
	})
	return st, rowErr(err)
}

func (s *rows) names(ctx context.Context, first byte, after Hash) (names []Hash, err error) {
	from := after
	if after[0] < first {
		from = Hash{first}
	}
	err = s.db.Read(ctx, func(c *sqldb.Conn) error {
		q := "SELECT hash FROM blob WHERE hash >= ? AND hash < ? ORDER BY hash"
		if first == 255 {
			q = "SELECT hash FROM blob WHERE hash >= ? ORDER BY hash"
		}
		st := c.Prep(q).BindBytes(1, from[:])
		if first < 255 {
			st.BindBytes(2, []byte{first + 1})
		}
		for {
			ok, err := st.Step()
			if err != nil || !ok {
				return err
			}
			var h Hash
			if err := st.WantBytes(0, h[:]); err != nil {
				return err
			}
			if string(h[:]) > string(after[:]) {
				names = append(names, h)
			}
		}
	})
	return names, rowErr(err)
}

// meta is what the columns say of the blob's past, backups aside.
func (k *columns) meta() Meta {
	return Meta{Level: levelName(int(k.level)), Version: max(0, k.version), Time: time.Unix(0, k.time)}
}

// sidecarOf turns columns into a Sidecar. Columns that are out of range are damage.
func (k *columns) sidecarOf(h Hash, hashes []byte, frames []uint32) (Sidecar, error) {
	if err := k.flaw(h); err != nil {
		return Sidecar{}, err
	}
	ref := Ref{Hash: h, Size: k.size}
	sc := newSidecar(Summed{Ref: ref, Blocks: hashes}, Meta{Level: levelName(int(k.level)), Version: k.version, Time: time.Unix(0, k.time)})
	sc.BackupCount = int(k.backups)
	if k.lastBackup != 0 {
		t := time.Unix(0, k.lastBackup).UTC()
		sc.LastBackup = &t
	}
	if k.zstd == 1 && k.size <= BlockSize {
		frames = []uint32{uint32(k.stored)}
	}
	if k.zstd == 1 {
		sc = sc.encoded(frames)
	}
	if err := sc.validate(h); err != nil {
		return Sidecar{}, &DamageError{h, "sidecar", err.Error()}
	}
	line, err := sc.marshal()
	if err != nil {
		return Sidecar{}, err
	}
	sc.Sum = string(line[len(line)-67 : len(line)-3])
	return sc, nil
}
