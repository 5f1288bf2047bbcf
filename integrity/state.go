package integrity

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"holdfast/internal/durable"
	"holdfast/internal/sqldb"
)

const (
	stateFile    = "integrity.db"
	stateVersion = 1
	// keepRows is how many failures and attempts are remembered; older ones are dropped.
	keepRows  = 100_000
	statePage = 500
	// timeLayout is how names of files in the quarantine end.
	timeLayout = "20060102T150405.000000000Z"
)

const stateSchema = `
CREATE TABLE meta (key TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
CREATE TABLE failures (
	id INTEGER PRIMARY KEY AUTOINCREMENT, time INTEGER NOT NULL, check_id TEXT NOT NULL, data_id TEXT NOT NULL, path BLOB NOT NULL, type TEXT NOT NULL,
	details TEXT NOT NULL, attempted INTEGER NOT NULL, successful INTEGER NOT NULL);
CREATE TABLE attempts (
	id INTEGER PRIMARY KEY AUTOINCREMENT, time INTEGER NOT NULL, data_id TEXT NOT NULL, path BLOB NOT NULL, strategy TEXT NOT NULL, source TEXT NOT NULL,
	successful INTEGER NOT NULL, details TEXT NOT NULL, bytes INTEGER NOT NULL, took INTEGER NOT NULL);
CREATE INDEX attempts_data ON attempts (data_id);
CREATE TABLE damaged (
	data_id TEXT PRIMARY KEY, size INTEGER NOT NULL, root BLOB NOT NULL, since INTEGER NOT NULL, details TEXT NOT NULL, quarantine TEXT NOT NULL) WITHOUT ROWID;
`

// state is what the engine remembers over restarts. Nothing of a store depends on it.
type state struct {
	db      *sqldb.DB
	scratch string // removed by close
}

// openState opens STORE/integrity.db. One that cannot be read goes to the quarantine, and a new one is made. In a store that is open read-only what is found is
// remembered in a temporary place, for as long as the engine lives.
func openState(ctx context.Context, dir string, readOnly bool, now time.Time) (s *state, aside error, err error) {
	if readOnly {
		scratch, err := os.MkdirTemp("", "holdfast-check-*")
		if err != nil {
			return nil, nil, err
		}
		db, err := openStateDB(ctx, scratch)
		if err != nil {
			return nil, nil, errors.Join(err, os.RemoveAll(scratch))
		}
		return &state{db: db, scratch: scratch}, nil, nil
	}
	db, err := openStateDB(ctx, dir)
	if errors.Is(err, sqldb.ErrCorrupt) || errors.Is(err, sqldb.ErrVersion) {
		aside = err
		if err := setAside(dir, now); err != nil {
			return nil, aside, err
		}
		db, err = openStateDB(ctx, dir)
	}
	if err != nil {
		return nil, aside, fmt.Errorf("%s: %w", stateFile, err)
	}
	return &state{db: db}, aside, nil
}

func openStateDB(ctx context.Context, dir string) (*sqldb.DB, error) {
	db, err := sqldb.Open(ctx, sqldb.Options{Path: filepath.Join(dir, stateFile), Schema: stateSchema, Version: stateVersion, Readers: 2,
		CacheBytes: 1 << 20, ReadCacheBytes: 512 << 10})
	if err != nil {
		return nil, err
	}
	if err := db.QuickCheck(ctx); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// setAside moves the database to the quarantine.
func setAside(dir string, now time.Time) error {
	to := filepath.Join(dir, quarantineDir, stateFile+"."+now.UTC().Format(timeLayout))
	if err := durable.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	for _, end := range []string{"-wal", "-shm", ""} { // the database last: until it is gone, it belongs to its log
		if err := os.Rename(filepath.Join(dir, stateFile+end), to+end); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return durable.SyncDir(dir)
}

func (s *state) close() error {
	err := s.db.Close()
	if s.scratch != "" {
		err = errors.Join(err, os.RemoveAll(s.scratch))
	}
	return err
}

func (s *state) addFailure(ctx context.Context, r *Result) error {
	return s.db.Write(ctx, func(c *sqldb.Conn) error {
		err := c.Prep("INSERT INTO failures (time, check_id, data_id, path, type, details, attempted, successful) VALUES (?, ?, ?, ?, ?, ?, ?, ?)").
			BindInt64(1, r.Timestamp.UnixNano()).BindText(2, r.CheckID).BindText(3, r.DataID).BindBytes(4, []byte(r.Path)).BindText(5, string(r.Type)).
			BindText(6, r.Details).BindInt64(7, flag(r.RecoveryAttempted)).BindInt64(8, flag(r.RecoverySuccessful)).Exec()
		if err != nil {
			return err
		}
		return c.Prep("DELETE FROM failures WHERE id <= ?").BindInt64(1, c.LastInsertRowID()-keepRows).Exec()
	})
}

func (s *state) addAttempt(ctx context.Context, a *Attempt) error {
	return s.db.Write(ctx, func(c *sqldb.Conn) error {
		err := c.Prep("INSERT INTO attempts (time, data_id, path, strategy, source, successful, details, bytes, took) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)").
			BindInt64(1, a.Time.UnixNano()).BindText(2, a.DataID).BindBytes(3, []byte(a.Path)).BindText(4, string(a.Strategy)).BindText(5, a.Source).
			BindInt64(6, flag(a.Successful)).BindText(7, a.Details).BindInt64(8, a.Bytes).BindInt64(9, int64(a.Took)).Exec()
		if err != nil {
			return err
		}
		return c.Prep("DELETE FROM attempts WHERE id <= ?").BindInt64(1, c.LastInsertRowID()-keepRows).Exec()
	})
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// damagedRow is a Damaged without what is looked up when it is shown.
type damagedRow struct {
	dataID, details, quarantine string
	size                        int64
	root                        [32]byte
	since                       time.Time
}

func (s *state) setDamaged(ctx context.Context, d *damagedRow) error {
	return s.db.Write(ctx, func(c *sqldb.Conn) error {
		return c.Prep(`INSERT INTO damaged (data_id, size, root, since, details, quarantine) VALUES (?, ?, ?, ?, ?, ?)
			ON CONFLICT (data_id) DO UPDATE SET details = excluded.details,
				quarantine = CASE excluded.quarantine WHEN '' THEN quarantine ELSE excluded.quarantine END`).
			BindText(1, d.dataID).BindInt64(2, d.size).BindBytes(3, d.root[:]).BindInt64(4, d.since.UnixNano()).BindText(5, d.details).
			BindText(6, d.quarantine).Exec()
	})
}

func (s *state) clearDamaged(ctx context.Context, dataID string) error {
	return s.db.Write(ctx, func(c *sqldb.Conn) error {
		return c.Prep("DELETE FROM damaged WHERE data_id = ?").BindText(1, dataID).Exec()
	})
}

// damaged returns up to a page of what waits for a person, behind after in order of its name.
func (s *state) damaged(ctx context.Context, after string) (list []damagedRow, err error) {
	err = s.db.Read(ctx, func(c *sqldb.Conn) error {
		st := c.Prep("SELECT data_id, size, root, since, details, quarantine FROM damaged WHERE data_id > ? ORDER BY data_id LIMIT ?").BindText(1, after).BindInt64(2, statePage)
		for {
			ok, err := st.Step()
			if err != nil || !ok {
				return err
			}
			d := damagedRow{dataID: st.Text(0), size: st.Int64(1), since: time.Unix(0, st.Int64(3)).UTC(), details: st.Text(4), quarantine: st.Text(5)}
			st.CopyBytes(2, d.root[:])
			list = append(list, d)
		}
	})
	return list, err
}

func (s *state) count(ctx context.Context, query string) (n int64, err error) {
	err = s.db.Read(ctx, func(c *sqldb.Conn) error {
		st := c.Prep(query)
		if _, err := st.Step(); err != nil {
			return err
		}
		n = st.Int64(0)
		return st.Done()
	})
	return n, err
}

// meta returns a number that was kept, 0 when there is none.
func (s *state) text(ctx context.Context, key string) (v string, err error) {
	err = s.db.Read(ctx, func(c *sqldb.Conn) error {
		st := c.Prep("SELECT value FROM meta WHERE key = ?").BindText(1, key)
		ok, err := st.Step()
		if err != nil || !ok {
			return err
		}
		v = st.Text(0)
		return st.Done()
	})
	return v, err
}

func (s *state) setText(ctx context.Context, key, v string) error {
	return s.db.Write(ctx, func(c *sqldb.Conn) error {
		return c.Prep("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)").BindText(1, key).BindText(2, v).Exec()
	})
}

// Failures calls fn with each damage that was found, by number, behind after, oldest first, until fn returns an error, which Failures returns. The newest
// hundred thousand are kept.
func (e *Engine) Failures(ctx context.Context, after int64, fn func(id int64, r Result) error) error {
	for {
		type row struct {
			id int64
			r  Result
		}
		var page []row
		err := e.state.db.Read(ctx, func(c *sqldb.Conn) error {
			st := c.Prep("SELECT id, time, check_id, data_id, path, type, details, attempted, successful FROM failures WHERE id > ? ORDER BY id LIMIT ?").
				BindInt64(1, after).BindInt64(2, statePage)
			for {
				ok, err := st.Step()
				if err != nil || !ok {
					return err
				}
				page = append(page, row{st.Int64(0), Result{Timestamp: time.Unix(0, st.Int64(1)).UTC(), CheckID: st.Text(2), DataID: st.Text(3),
					Path: string(st.AppendBytes(nil, 4)), Type: CheckType(st.Text(5)), Details: st.Text(6), RecoveryAttempted: st.Int64(7) != 0,
					RecoverySuccessful: st.Int64(8) != 0}})
			}
		})
		if err != nil || len(page) == 0 {
			return err
		}
		for _, p := range page {
			if err := fn(p.id, p.r); err != nil {
				return err
			}
			after = p.id
		}
	}
}

// Recoveries calls fn with each attempt at recovery, by number, behind after, oldest first, until fn returns an error, which Recoveries returns. The newest
// hundred thousand are kept.
func (e *Engine) Recoveries(ctx context.Context, after int64, fn func(id int64, a Attempt) error) error {
	for {
		page, ids, err := e.state.attempts(ctx, "id > ?1 AND ?2 = ?2 ORDER BY id LIMIT 500", after, "")
		if err != nil || len(page) == 0 {
			return err
		}
		for i := range page {
			if err := fn(ids[i], page[i]); err != nil {
				return err
			}
			after = ids[i]
		}
	}
}

// attempts reads attempts; where is a constant text with the parameters after and dataID.
func (s *state) attempts(ctx context.Context, where string, after int64, dataID string) (list []Attempt, ids []int64, err error) {
	err = s.db.Read(ctx, func(c *sqldb.Conn) error {
		st := c.Prep("SELECT id, time, data_id, path, strategy, source, successful, details, bytes, took FROM attempts WHERE "+where).
			BindInt64(1, after).BindText(2, dataID)
		for {
			ok, err := st.Step()
			if err != nil || !ok {
				return err
			}
			ids = append(ids, st.Int64(0))
			list = append(list, Attempt{Time: time.Unix(0, st.Int64(1)).UTC(), DataID: st.Text(2), Path: string(st.AppendBytes(nil, 3)),
				Strategy: Strategy(st.Text(4)), Source: st.Text(5), Successful: st.Int64(6) != 0, Details: st.Text(7), Bytes: st.Int64(8),
				Took: time.Duration(st.Int64(9))})
		}
	})
	return list, ids, err
}
