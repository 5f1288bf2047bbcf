package blobstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"time"

	"holdfast/internal/durable"
	"holdfast/internal/sqldb"
)

// Rebuilder is a Store with a database that can be made anew. Every Store of Open is one.
type Rebuilder interface {
	// Sound is nil when SQLite finds the structure of blobs.db intact, or there is none; *DamageError else. It reads all of it.
	Sound(ctx context.Context) error
	// Rebuild makes blobs.db anew, of all rows that can still be read, unless it is Sound; the old one goes to the quarantine. What was lost is then missing, and may be stored
	// again. Reads and writes of what is in it wait meanwhile. A process that is killed leaves the old one, maybe without its log, which is in the quarantine then, or the new. It says whether it did.
	Rebuild(ctx context.Context) (bool, error)
	// Rebuilt says why Open made blobs.db anew; nil when it did not.
	Rebuilt() error
}

const (
	freshFile = "blobs.db.new"
	// A batch of rows that are copied.
	salvageRows  = 256
	salvageBytes = 4 << 20
	// The search for rows ends behind so many numbers that no row has, or to which damage leads.
	missesInARow  = 2_000
	damagedInARow = 200_000
	blobTable     = "blob"
	hashColumn    = 10 // of what is copied of it
)

func (s *store) rowsPlace() *rows {
	if r, ok := s.small.(*rows); ok {
		return r
	}
	return nil
}

func (s *store) Sound(ctx context.Context) error {
	ctx, err := s.enter(ctx, false)
	if err != nil {
		return err
	}
	defer s.leave(ctx)
	r := s.rowsPlace()
	if r == nil {
		return nil
	}
	return rowErr(r.unsound(ctx))
}

// unsound is nil when the structure of the database is intact. SQLite's own check does not mind a last page that is cut, which it can neither read nor write.
func (s *rows) unsound(ctx context.Context) error {
	if err := s.db.FullCheck(ctx); err != nil {
		return err
	}
	fi, err := os.Stat(s.opt.storePath(rowsFile))
	if err != nil {
		return err
	}
	page := int64(0)
	err = s.db.Read(ctx, func(c *sqldb.Conn) error {
		st := c.Prep("PRAGMA page_size")
		_, err := st.Step()
		page = st.Int64(0)
		return err
	})
	if err == nil && page > 0 && fi.Size()%page != 0 {
		err = fmt.Errorf("%s: %w: it ends in the middle of a page", rowsFile, sqldb.ErrCorrupt)
	}
	return err
}

func (s *store) Rebuild(ctx context.Context) (bool, error) {
	ctx, err := s.enter(ctx, true)
	if err != nil {
		return false, err
	}
	defer s.leave(ctx)
	r := s.rowsPlace()
	if r == nil {
		return false, nil
	}
	done, err := turn(ctx, r.turns)
	if err != nil {
		return false, err
	}
	defer done()
	why := r.unsound(ctx)
	if !errors.Is(why, sqldb.ErrCorrupt) {
		return false, why
	}
	err = r.db.Replace(ctx, func() error { return remakeRows(ctx, r.opt, r.page, why) })
	if err == nil {
		r.gen.Add(1)
		r.layouts.clear()
		err = r.prepareParity(ctx) // not prepare: what is incomplete by now is being written, and no number is handed out twice
	}
	if err != nil {
		return false, fmt.Errorf("make blobs.db anew: %w", rowErr(err))
	}
	return true, nil
}

func (s *store) Rebuilt() error {
	if r := s.rowsPlace(); r != nil {
		return r.rebuilt
	}
	return nil
}

// remakeRows puts a new blobs.db, with the rows of the old one that can be read, in the place of the old one, which nobody has open and which goes to the quarantine.
func remakeRows(ctx context.Context, opt Options, page int, why error) (err error) {
	path, fresh := opt.storePath(rowsFile), opt.storePath(freshFile)
	opt.Log.Error("blobs.db is damaged; it is made anew from the rows that can be read", "dir", opt.Dir, "err", why)
	if err := removeDB(fresh); err != nil {
		return err
	}
	kept, err := fillFresh(ctx, opt, path, fresh, page)
	if err != nil {
		return errors.Join(err, removeDB(fresh))
	}
	if err := keepOld(opt, path); err != nil {
		return errors.Join(err, removeDB(fresh))
	}
	// The log of the old one must not meet the new one.
	for _, end := range []string{"-wal", "-shm"} {
		if err := durable.RemoveSync(path + end); err != nil {
			return err
		}
	}
	if err := durable.Rename(fresh, path); err != nil {
		return err
	}
	opt.Log.Warn("blobs.db was made anew; what it lacks is healed from elsewhere where that can be", "dir", opt.Dir, "rows", kept)
	return nil
}

func removeDB(path string) error {
	var errs []error
	for _, end := range []string{"-wal", "-shm", ""} {
		if err := os.Remove(path + end); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// keepOld gives the files of a database a second name in the quarantine.
func keepOld(opt Options, path string) error {
	dir := opt.storePath("quarantine")
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	to := filepath.Join(dir, rowsFile+"."+time.Now().UTC().Format("20060102T150405.000000000Z"))
	for _, end := range []string{"", "-wal"} {
		if err := os.Link(path+end, to+end); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return durable.SyncDir(dir)
}

// fillFresh makes the new database. An old one that cannot be opened at all leaves it empty.
func fillFresh(ctx context.Context, opt Options, path, fresh string, page int) (kept int64, err error) {
	to, err := sqldb.Open(ctx, sqldb.Options{Path: fresh, Schema: rowsSchema + paritySchema, Version: rowsVersion, PageSize: page})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	from, err := sqldb.Open(ctx, sqldb.Options{Path: path, ReadOnly: true, Version: rowsVersion})
	if err != nil {
		if errors.Is(err, sqldb.ErrCorrupt) || errors.Is(err, fs.ErrNotExist) {
			opt.Log.Error("nothing of the damaged blobs.db can be read", "dir", opt.Dir, "err", err)
			err = nil
		}
		return 0, err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	for _, t := range []struct{ table, columns, marks string }{
		{blobTable, columnList + ", hash, body", "?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?"},
		{"large", "id, first, hashes", "?, ?, ?"},
		{"block", "id, body", "?, ?"},
		{"parity", "id, hash, n, body", "?, ?, ?, ?"},
	} {
		s := salvage{from: from, to: to, table: t.table, columns: t.columns,
			insert: "INSERT OR IGNORE INTO " + t.table + " (" + t.columns + ") VALUES (" + t.marks + ")"}
		if err := s.run(ctx); err != nil {
			return kept, err
		}
		kept += s.kept
	}
	return kept, to.Write(ctx, tidy)
}

// tidy removes blocks of no blob, and counts.
func tidy(c *sqldb.Conn) error {
	if err := c.Script(`DELETE FROM large WHERE id NOT IN (SELECT id FROM blob);
		INSERT OR REPLACE INTO total SELECT 1, count(*), ifnull(sum(size), 0), ifnull(sum(stored), 0) FROM blob`); err != nil {
		return err
	}
	type span struct{ from, to int64 } // of numbers of blocks that nothing has
	var gaps []span
	next := int64(math.MinInt64)
	st := c.Prep("SELECT first, first + length(hashes) / 32 FROM large ORDER BY first")
	for {
		ok, err := st.Step()
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		if first := st.Int64(0); first > next {
			gaps = append(gaps, span{next, first})
		}
		next = max(next, st.Int64(1))
	}
	for _, g := range append(gaps, span{next, math.MaxInt64}) {
		if err := c.Prep("DELETE FROM block WHERE id >= ? AND id < ?").BindInt64(1, g.from).BindInt64(2, g.to).Exec(); err != nil {
			return err
		}
	}
	return nil
}

// salvage copies what can be read of one table, which has a column id as its key.
type salvage struct {
	from, to               *sqldb.DB
	table, columns, insert string
	kept                   int64
	batch                  []salvaged
	bytes                  int
}

type salvaged []cell

// cell is a column of a row: a number, or bytes, or neither.
type cell struct {
	null bool
	blob bool
	n    int64
	p    []byte
}

// run copies from the beginning as far as it can be read, then from the end, then what lies between, row by row.
func (s *salvage) run(ctx context.Context) error {
	low, whole, err := s.scan(ctx, math.MinInt64, false)
	if err != nil || whole {
		return errors.Join(err, s.flush(ctx))
	}
	high, _, err := s.scan(ctx, math.MaxInt64, true)
	if err != nil {
		return err
	}
	if low == math.MinInt64 {
		low = 0
		if gone, err := s.rootGone(ctx); err != nil || gone {
			return errors.Join(err, s.flush(ctx))
		}
	}
	for id, none, bad := low+1, 0, 0; id < high; id++ {
		found, corrupt, err := s.one(ctx, id)
		if err != nil {
			return err
		}
		switch {
		case found:
			none, bad = 0, 0
		case corrupt:
			bad++
		default:
			none++
		}
		if high == math.MaxInt64 && (none >= missesInARow || bad >= damagedInARow) {
			break
		}
	}
	return s.flush(ctx)
}

// scan copies rows in order, from the number at on, and returns the last one that it came to, and whether that was the end.
func (s *salvage) scan(ctx context.Context, at int64, down bool) (last int64, whole bool, err error) {
	query := "SELECT " + s.columns + " FROM " + s.table + " WHERE id > ? ORDER BY id LIMIT 200"
	if down {
		query = "SELECT " + s.columns + " FROM " + s.table + " WHERE id < ? ORDER BY id DESC LIMIT 200"
	}
	for {
		n := 0
		err := s.from.Read(ctx, func(c *sqldb.Conn) error {
			st := c.Prep(query).BindInt64(1, at)
			for {
				ok, err := st.Step()
				if err != nil || !ok {
					return err
				}
				row := rowOf(st, s.width())
				if row[0].null || !down && row[0].n <= at || down && row[0].n >= at {
					return sqldb.ErrCorrupt // the tree does not end
				}
				at = row[0].n
				s.add(row)
				n++
			}
		})
		if err != nil && !errors.Is(err, sqldb.ErrCorrupt) {
			return at, false, err
		}
		if ferr := s.flushFull(ctx); ferr != nil {
			return at, false, ferr
		}
		if err != nil || n == 0 {
			return at, err == nil, nil
		}
	}
}

// rootGone says whether there is no way to any row.
func (s *salvage) rootGone(ctx context.Context) (bool, error) {
	for id := int64(1); id < 1<<40; id *= 4 {
		found, corrupt, err := s.one(ctx, id)
		if err != nil || found || !corrupt {
			return false, err
		}
	}
	return true, nil
}

// one copies a single row, if it is there, or says that what leads to it is damaged.
func (s *salvage) one(ctx context.Context, id int64) (found, corrupt bool, err error) {
	err = s.from.Read(ctx, func(c *sqldb.Conn) error {
		st := c.Prep("SELECT "+s.columns+" FROM "+s.table+" WHERE id = ?").BindInt64(1, id)
		if found, err = st.Step(); err != nil || !found {
			return err
		}
		s.add(rowOf(st, s.width()))
		return nil
	})
	if errors.Is(err, sqldb.ErrCorrupt) {
		return false, true, nil
	}
	if err != nil {
		return false, false, err
	}
	return found, false, s.flushFull(ctx)
}

func (s *salvage) width() int {
	n := 1
	for _, r := range s.columns {
		if r == ',' {
			n++
		}
	}
	return n
}

func rowOf(st *sqldb.Stmt, width int) salvaged {
	row := make(salvaged, width)
	for i := range row {
		switch c := &row[i]; {
		case st.IsNull(i):
			c.null = true
		case st.IsBlob(i):
			c.blob = true
			c.p = st.AppendBytes(nil, i)
		default:
			c.n = st.Int64(i)
		}
	}
	return row
}

func (s *salvage) add(row salvaged) {
	s.batch = append(s.batch, row)
	for i := range row {
		s.bytes += len(row[i].p)
	}
}

func (s *salvage) flushFull(ctx context.Context) error {
	if len(s.batch) < salvageRows && s.bytes < salvageBytes {
		return nil
	}
	return s.flush(ctx)
}

// flush writes the rows. One that breaks a rule of the table is none.
func (s *salvage) flush(ctx context.Context) error {
	batch := s.batch
	s.batch, s.bytes = nil, 0
	return s.to.Write(ctx, func(c *sqldb.Conn) error {
		for _, row := range batch {
			if err := s.rename(ctx, row); err != nil {
				return err
			}
			st := c.Prep(s.insert)
			for i := range row {
				switch x := &row[i]; {
				case x.blob:
					st.BindBytes(i+1, x.p)
				case !x.null:
					st.BindInt64(i+1, x.n)
				}
			}
			err := st.Exec()
			if err != nil && !errors.Is(err, sqldb.ErrConstraint) {
				return err
			}
			if err == nil {
				s.kept += int64(c.Changes())
			}
		}
		return nil
	})
}

// rename gives a blob the name that the index has for its row, when its sum is right with that, and not with the name in the row.
func (s *salvage) rename(ctx context.Context, row salvaged) error {
	if s.table != blobTable {
		return nil
	}
	name := row[hashColumn].p
	k := columns{size: row[1].n, stored: row[2].n, zstd: row[3].n, level: row[4].n, version: row[5].n, time: row[6].n, backups: row[7].n, lastBackup: row[8].n, check: row[9].n}
	if len(name) == len(Hash{}) && k.sum(Hash(name)) == k.check {
		return nil
	}
	err := s.from.Read(ctx, func(c *sqldb.Conn) error {
		st := c.Prep("SELECT hash FROM blob INDEXED BY sqlite_autoindex_blob_1 WHERE +id = ?").BindInt64(1, row[0].n)
		ok, err := st.Step()
		if err != nil || !ok {
			return err
		}
		var h Hash
		if err := st.WantBytes(0, h[:]); err == nil && k.sum(h) == k.check {
			row[hashColumn].p = h[:]
		}
		return st.Done()
	})
	if errors.Is(err, sqldb.ErrCorrupt) {
		err = nil
	}
	return err
}
