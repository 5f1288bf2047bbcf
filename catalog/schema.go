package catalog

import (
	"context"
	"fmt"
	"math"

	"holdfast/internal/sqldb"
)

const (
	// dbFormat is the user_version of catalog.db. An older one is upgraded in place; a newer one is set aside and rebuilt from the journal.
	dbFormat      = 3
	formatHistory = 2 // added what schema2 makes
)

// schema is described in docs/format.md, chapter "catalog.db". Rows are never changed but for to_seq, which is set once, when a
// newer record ends what the row says. Each ends in its row_sum: see rowsum.go.
const schema = `
CREATE TABLE meta (key TEXT PRIMARY KEY, value NOT NULL, row_sum INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE inodes (
	ino INTEGER NOT NULL, from_seq INTEGER NOT NULL, parent INTEGER NOT NULL, mode INTEGER NOT NULL, uid INTEGER NOT NULL,
	gid INTEGER NOT NULL, rdev INTEGER NOT NULL, nlink INTEGER NOT NULL, size INTEGER NOT NULL, atime INTEGER NOT NULL,
	mtime INTEGER NOT NULL, ctime INTEGER NOT NULL, btime INTEGER NOT NULL, ver INTEGER NOT NULL, base INTEGER NOT NULL,
	target BLOB NOT NULL, row_sum INTEGER NOT NULL, PRIMARY KEY (ino, from_seq)) WITHOUT ROWID;
CREATE INDEX inodes_seq ON inodes (from_seq);
CREATE TABLE dentries (
	parent INTEGER NOT NULL, name BLOB NOT NULL, from_seq INTEGER NOT NULL, to_seq INTEGER, ino INTEGER NOT NULL,
	type INTEGER NOT NULL, cookie INTEGER NOT NULL, row_sum INTEGER NOT NULL, PRIMARY KEY (parent, name, from_seq)) WITHOUT ROWID;
CREATE UNIQUE INDEX dentries_live ON dentries (parent, cookie) WHERE to_seq IS NULL;
CREATE INDEX dentries_past ON dentries (parent, cookie) WHERE to_seq IS NOT NULL;
CREATE INDEX dentries_ino ON dentries (ino) WHERE to_seq IS NULL;
CREATE INDEX dentries_ended ON dentries (parent, to_seq) WHERE to_seq IS NOT NULL;
CREATE TABLE xattrs (
	ino INTEGER NOT NULL, name BLOB NOT NULL, from_seq INTEGER NOT NULL, to_seq INTEGER, value BLOB NOT NULL,
	row_sum INTEGER NOT NULL, PRIMARY KEY (ino, name, from_seq)) WITHOUT ROWID;
CREATE TABLE extents (
	ino INTEGER NOT NULL, from_seq INTEGER NOT NULL, off INTEGER NOT NULL, len INTEGER NOT NULL, to_seq INTEGER,
	blob BLOB NOT NULL, blob_size INTEGER NOT NULL, root BLOB NOT NULL, blob_off INTEGER NOT NULL,
	row_sum INTEGER NOT NULL, PRIMARY KEY (ino, from_seq, off)) WITHOUT ROWID;
CREATE UNIQUE INDEX extents_live ON extents (ino, off) WHERE to_seq IS NULL;
CREATE INDEX extents_blob ON extents (substr(blob, 1, 8));
CREATE TABLE versions (
	ino INTEGER NOT NULL, num INTEGER NOT NULL, seq INTEGER NOT NULL, time INTEGER NOT NULL, size INTEGER NOT NULL,
	sum BLOB NOT NULL, prev BLOB NOT NULL, digest BLOB NOT NULL, actor INTEGER NOT NULL, pid INTEGER NOT NULL,
	row_sum INTEGER NOT NULL, PRIMARY KEY (ino, num)) WITHOUT ROWID;
CREATE TABLE actors (id INTEGER PRIMARY KEY, agent BLOB NOT NULL, program BLOB NOT NULL, uid INTEGER NOT NULL,
	row_sum INTEGER NOT NULL, UNIQUE (agent, program, uid));
CREATE TABLE blobs (
	hash BLOB PRIMARY KEY, size INTEGER NOT NULL, root BLOB NOT NULL, level TEXT NOT NULL, seq INTEGER NOT NULL,
	segment INTEGER NOT NULL, offset INTEGER NOT NULL, row_sum INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE times (chunk INTEGER PRIMARY KEY, first_time INTEGER NOT NULL, deltas BLOB NOT NULL, row_sum INTEGER NOT NULL);
CREATE INDEX times_first ON times (first_time);
CREATE TABLE snapshots (name BLOB PRIMARY KEY, seq INTEGER NOT NULL, time INTEGER NOT NULL, flags INTEGER NOT NULL,
	row_sum INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE conflicts (
	seq INTEGER NOT NULL, ino INTEGER NOT NULL, path BLOB NOT NULL, lost INTEGER NOT NULL, won INTEGER NOT NULL, side INTEGER NOT NULL,
	time INTEGER NOT NULL, lost_by INTEGER NOT NULL, lost_pid INTEGER NOT NULL, won_by INTEGER NOT NULL, won_pid INTEGER NOT NULL,
	row_sum INTEGER NOT NULL, PRIMARY KEY (seq, ino)) WITHOUT ROWID;
CREATE TABLE gaps (ino INTEGER NOT NULL, after INTEGER NOT NULL, before INTEGER NOT NULL, row_sum INTEGER NOT NULL, PRIMARY KEY (ino, after)) WITHOUT ROWID;
CREATE TABLE kept (policy BLOB NOT NULL, seq INTEGER NOT NULL, row_sum INTEGER NOT NULL, PRIMARY KEY (policy, seq)) WITHOUT ROWID;
CREATE TABLE loose (hash BLOB PRIMARY KEY, forgotten INTEGER NOT NULL, row_sum INTEGER NOT NULL) WITHOUT ROWID;
`

// schema2 makes a database of format 1 one of format 2: snapshots, conflicts, and what retention needs.
const schema2 = `
CREATE TABLE snapshots (name BLOB PRIMARY KEY, seq INTEGER NOT NULL, time INTEGER NOT NULL, flags INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE conflicts (
	seq INTEGER NOT NULL, ino INTEGER NOT NULL, path BLOB NOT NULL, lost INTEGER NOT NULL, won INTEGER NOT NULL, side INTEGER NOT NULL,
	time INTEGER NOT NULL, lost_by INTEGER NOT NULL, lost_pid INTEGER NOT NULL, won_by INTEGER NOT NULL, won_pid INTEGER NOT NULL,
	PRIMARY KEY (seq, ino)) WITHOUT ROWID;
CREATE TABLE gaps (ino INTEGER NOT NULL, after INTEGER NOT NULL, before INTEGER NOT NULL, PRIMARY KEY (ino, after)) WITHOUT ROWID;
CREATE TABLE kept (policy BLOB NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (policy, seq)) WITHOUT ROWID;
CREATE TABLE loose (hash BLOB PRIMARY KEY, forgotten INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX dentries_ended ON dentries (parent, to_seq) WHERE to_seq IS NOT NULL;
CREATE INDEX inodes_seq ON inodes (from_seq);
CREATE INDEX extents_blob ON extents (substr(blob, 1, 8));
INSERT INTO meta (key, value) SELECT 'thinned', 0 FROM meta WHERE key = 'applied_seq';
`

// meta is what catalog.db says of itself.
type meta struct {
	storeID    [16]byte
	applied    Seq // every record up to it is in the database
	blobsSeq   Seq // the bodies of every record up to it are durable in the blobstore
	nextIno    Ino
	nextCookie uint64
	lastTime   Timestamp // of the record applied
	thinned    Seq       // retention has taken nothing away of moments from here on
	counts
}

// counts are kept up from record to record, because counting a million rows is slow.
type counts struct {
	files, dirs, versions int64
	versionBytes          int64     // the sizes of all versions together
	oldest                Timestamp // of the first version; 0 when there is none
}

// add brings the counts forward by one record. Which rows begin or end a life follows from what the record was for.
func (n *counts) add(r *Record) {
	n.versions += int64(len(r.Versions))
	n.files += r.Delta.Files
	n.dirs += r.Delta.Dirs
	if r.Pruned != nil {
		n.versions -= r.Pruned.Versions
		n.versionBytes -= min(r.Pruned.Bytes, n.versionBytes)
		if r.Pruned.Oldest != 0 {
			n.oldest = r.Pruned.Oldest
		}
	}
	for i := range r.Versions {
		n.versionBytes = satAdd(n.versionBytes, r.Versions[i].Size)
	}
	if len(r.Versions) > 0 && n.oldest == 0 {
		n.oldest = r.Versions[0].Time
	}
	for i := range r.Inodes {
		row := &r.Inodes[i]
		var d int64
		switch r.Op {
		case OpInit:
			d = 1
		case OpCreate, OpMkdir, OpMknod, OpSymlink, OpLink:
			// The new inode is the one whose first name this is; the other row is the directory's.
			if len(r.Dentries) > 0 && row.Ino == r.Dentries[0].Ino && (r.Op != OpLink || row.Nlink == 1) {
				d = 1
			}
		case OpUnlink, OpRmdir, OpRename:
			if row.Nlink == 0 {
				d = -1
			}
		}
		if isDir(row.Mode) {
			n.dirs += d
		} else {
			n.files += d
		}
	}
}

// satAdd adds two counts that are not negative; what does not fit is the largest there is.
func satAdd(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

// advance brings the whole of m forward by one record.
func (m *meta) advance(r *Record) {
	m.counts.add(r)
	m.applied = r.Seq
	m.lastTime = max(m.lastTime, r.Time.UnixNano())
	for i := range r.Inodes {
		m.nextIno = max(m.nextIno, r.Inodes[i].Ino+1)
	}
	if r.Pruned != nil {
		for i := range r.Pruned.Drops {
			if d := &r.Pruned.Drops[i]; !d.whole() {
				m.thinned = max(m.thinned, d.Before)
			}
		}
	}
	for i := range r.Dentries {
		m.nextCookie = max(m.nextCookie, r.Dentries[i].Cookie+1)
	}
}

func newMeta(store [16]byte) meta {
	return meta{storeID: store, nextIno: Root + 1, nextCookie: FirstCookie}
}

// fields lists the integers of meta under the names that they have in the database.
func (m *meta) fields() map[string]int64 {
	return map[string]int64{
		"applied_seq": int64(m.applied), "blobs_seq": int64(m.blobsSeq), "next_ino": int64(m.nextIno),
		"next_cookie": int64(m.nextCookie), "last_time": m.lastTime, "files": m.files, "dirs": m.dirs,
		"versions": m.versions, "version_bytes": m.versionBytes, "oldest_version": m.oldest, "thinned": int64(m.thinned),
	}
}

// save writes m inside a transaction.
func (m *meta) save(c *sqldb.Conn) error {
	const putMeta = "INSERT OR REPLACE INTO meta (key, value, row_sum) VALUES (?, ?, ?)"
	var p rowPut
	for k, v := range m.fields() {
		if err := p.begin(c.Prep(putMeta), tableMeta).text(k).int(v).exec(); err != nil {
			return err
		}
	}
	return p.begin(c.Prep(putMeta), tableMeta).text("store_id").bytes(m.storeID[:]).exec()
}

// loadMeta reads what the database says of itself. A database without any of it is new.
func loadMeta(ctx context.Context, db *sqldb.DB, store [16]byte) (meta, error) {
	m := newMeta(store)
	err := db.Read(ctx, func(c *sqldb.Conn) error {
		ints := make(map[string]int64)
		st := c.Prep("SELECT key, value, row_sum FROM meta")
		var r rowRead
		for {
			ok, err := st.Step()
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			if err := r.read(st, 0, tableMeta); err != nil {
				return err
			}
			if key := string(r.bytes(0)); key != "store_id" {
				ints[key] = st.Int64(1)
			} else if err := st.WantBytes(1, m.storeID[:]); err != nil {
				return err
			}
		}
		if len(ints) == 0 {
			ok, err := c.Prep("SELECT 1 FROM times").Step()
			if ok {
				err = fmt.Errorf("catalog.db: meta is empty and there are records: %w", sqldb.ErrCorrupt)
			}
			return err
		}
		for key := range m.fields() {
			if key == "thinned" && db.Version() < formatHistory {
				continue
			}
			if v, ok := ints[key]; !ok || v < 0 && key != "last_time" && key != "oldest_version" {
				return fmt.Errorf("catalog.db: meta.%s is missing or negative: %w", key, sqldb.ErrCorrupt)
			}
		}
		m.applied, m.blobsSeq = Seq(ints["applied_seq"]), Seq(ints["blobs_seq"])
		m.nextIno, m.nextCookie = Ino(ints["next_ino"]), uint64(ints["next_cookie"])
		m.lastTime, m.thinned = ints["last_time"], Seq(ints["thinned"])
		m.counts = counts{files: ints["files"], dirs: ints["dirs"], versions: ints["versions"], versionBytes: ints["version_bytes"], oldest: ints["oldest_version"]}
		return nil
	})
	if err == nil && m.storeID != store {
		err = fmt.Errorf("catalog.db belongs to another store: %w", sqldb.ErrCorrupt)
	}
	if err == nil && (m.nextIno <= Root || m.nextCookie < FirstCookie || m.blobsSeq > m.applied) {
		err = fmt.Errorf("catalog.db: counters in meta contradict each other: %w", sqldb.ErrCorrupt)
	}
	return m, err
}
