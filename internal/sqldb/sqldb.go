// Package sqldb opens an SQLite database the way Holdfast uses one: WAL, one writer, a few readers, prepared statements kept
// per connection, and errors that say what happened. It is the only importer of the SQL driver.
//
//	db, err := sqldb.Open(ctx, sqldb.Options{Path: p, Schema: ddl, Version: 1})
//	defer db.Close()
//	err = db.Write(ctx, func(c *sqldb.Conn) error {        // BEGIN IMMEDIATE ... COMMIT, or ROLLBACK when fn returns an error
//		return c.Prep("INSERT INTO t (k, v) VALUES (?, ?)").BindInt64(1, k).BindBytes(2, v).Exec()
//	})
//	err = db.Read(ctx, func(c *sqldb.Conn) error {         // any number at once, up to Options.Readers; never blocks on the writer
//		st := c.Prep("SELECT v FROM t WHERE k = ?").BindInt64(1, k)
//		for {
//			ok, err := st.Step()
//			if err != nil || !ok { return err }
//			v = st.AppendBytes(v[:0], 0)                   // columns count from 0, parameters from 1
//		}
//	})
//
// Rules:
//   - Write is one transaction, Snapshot a read transaction (all its statements see the same state), Read none (each
//     statement sees what was committed when it was first stepped; cheapest for single look-ups).
//   - A Conn and its Stmts are valid only inside fn. Do not call Write inside Write, nor hold a Read while waiting for another Read.
//   - Prep returns one Stmt per SQL text and connection: preparing the same text again ends the earlier iteration.
//     Every Prep starts with all parameters NULL. Errors of Prep and Bind come out of Step, Exec or Done.
//   - Cancelling ctx stops the wait for a connection, and a Read or Snapshot between two rows; a Write that has begun runs to its end.
//   - What Write committed survives a killed process at once, and a power cut after Sync, Checkpoint or Close.
//   - Nobody else in this process may open and close the database file: closing any descriptor of it drops SQLite's locks.
package sqldb

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"zombiezen.com/go/sqlite"

	"holdfast/internal/durable"
)

// Options says how to open a database.
type Options struct {
	Path     string // of the database file; "-wal" and "-shm" are kept beside it
	ReadOnly bool   // the file must exist; nothing is written but the shared "-shm" index of the log
	// Schema is run, in one transaction, on a database that is new (user_version 0); afterwards user_version is Version, which
	// must be at least 1. A database with another version is refused with ErrVersion.
	Schema  string
	Version int
	// Upgrades are scripts that bring an older database forward when it is opened for writing, all in one transaction: the last from Version-1 to
	// Version, the one before it from Version-2, and so on. Read-only, a database that they could upgrade is opened as it is.
	Upgrades []string
	// Upgrade, when set, runs behind the scripts of Upgrades in their transaction, for what SQL cannot say; have is the version that the database had.
	Upgrade func(c *Conn, have int) error
	// OlderViews is run on each connection of a database that is open read-only and of an older version: temporary views, of the names of tables, that
	// give them the shape of today.
	OlderViews string
	// Shrinkable lays a new database out so that Shrink can give free pages back.
	Shrinkable bool
	// PageSize of a new database, in bytes; default 4096.
	PageSize int
	// CacheBytes is the page cache of the writer, ReadCacheBytes that of each reader; defaults 8 MiB and 2 MiB.
	CacheBytes     int64
	ReadCacheBytes int64
	// Readers is the number of read connections (opened when first needed); default 4.
	Readers int
	// BusyTimeout is how long to wait for a lock that another process holds; default 5 s.
	BusyTimeout time.Duration
	// AutoCheckpoint is the size of the log, in pages, from which a commit also checkpoints; 0 means 4000, negative means never
	// (then call Checkpoint).
	AutoCheckpoint int
}

func (o *Options) setDefaults() {
	def := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	def(&o.PageSize, 4096)
	def(&o.Readers, 4)
	def(&o.AutoCheckpoint, 4000)
	if o.CacheBytes == 0 {
		o.CacheBytes = 8 << 20
	}
	if o.ReadCacheBytes == 0 {
		o.ReadCacheBytes = 2 << 20
	}
	if o.BusyTimeout == 0 {
		o.BusyTimeout = 5 * time.Second
	}
}

// DB is an open database. Its methods may be called concurrently.
type DB struct {
	opt       Options
	immutable bool
	version   int64      // set by Open only, like older
	older     bool       // each connection gets Options.OlderViews
	writer    chan *Conn // holds the writer while nobody uses it; a nil one is opened when taken
	readers   chan *Conn
	done      chan struct{} // closed by Close
	closing   atomic.Bool

	fdatasync func(fd int) error // the system call; tests watch it

	syncMu  sync.Mutex
	walSeen uint64 // inode of the log whose name is known to be durable
}

// Open opens the database, creating it (durably) when it is not there and ReadOnly is not set.
// Errors wrap ErrCorrupt, ErrVersion, ErrIO, ErrFull or fs.ErrNotExist where one applies.
func Open(ctx context.Context, opt Options) (*DB, error) {
	opt.setDefaults()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	fi, err := os.Lstat(opt.Path)
	isNew := errors.Is(err, fs.ErrNotExist)
	switch {
	case err == nil && !fi.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file: %w", opt.Path, ErrCorrupt)
	case isNew && opt.ReadOnly:
		return nil, err
	case err != nil && !isNew:
		return nil, err
	}
	db := &DB{opt: opt, writer: make(chan *Conn, 1), readers: make(chan *Conn, opt.Readers), done: make(chan struct{}),
		fdatasync: unix.Fdatasync}
	for range opt.Readers {
		db.readers <- nil
	}
	if opt.ReadOnly {
		err = db.openReadOnly(ctx)
	} else {
		db.writer <- nil
		err = db.prepareSchema(ctx)
		if err == nil && isNew {
			err = db.Sync(ctx)
		}
	}
	if err != nil {
		db.Close()
		return nil, err
	}
	return db, nil
}

func (db *DB) prepareSchema(ctx context.Context) error {
	have, err := db.userVersion(ctx, db.Read)
	if err != nil {
		return err
	}
	if have == 0 && db.opt.Version > 0 {
		db.version = int64(db.opt.Version)
		return db.Write(ctx, func(c *Conn) error {
			if err := c.Script(db.opt.Schema); err != nil {
				return err
			}
			return c.Script(fmt.Sprintf("PRAGMA user_version = %d", db.opt.Version))
		})
	}
	if old := db.upgrades(have); len(old) > 0 {
		db.version = int64(db.opt.Version)
		return db.Write(ctx, func(c *Conn) error {
			for _, script := range old {
				if err := c.Script(script); err != nil {
					return err
				}
			}
			if db.opt.Upgrade != nil {
				if err := db.opt.Upgrade(c, int(have)); err != nil {
					return err
				}
			}
			return c.Script(fmt.Sprintf("PRAGMA user_version = %d", db.opt.Version))
		})
	}
	return db.checkVersion(have)
}

// upgrades are the scripts that a database of version have needs; none when it needs none or cannot be upgraded.
func (db *DB) upgrades(have int64) []string {
	first := int64(db.opt.Version - len(db.opt.Upgrades))
	if have < max(first, 1) || have >= int64(db.opt.Version) {
		return nil
	}
	return db.opt.Upgrades[have-first:]
}

// Version is the user_version of the database as it is open: Options.Version, or an older one that could be upgraded when it is open read-only.
func (db *DB) Version() int { return int(db.version) }

func (db *DB) checkVersion(have int64) error {
	db.version = have
	if db.opt.ReadOnly && len(db.upgrades(have)) > 0 {
		db.older = db.opt.OlderViews != ""
		return db.closeIdle() // they are opened anew, with the views
	}
	if have != int64(db.opt.Version) {
		return fmt.Errorf("%s has format version %d and this program reads version %d: %w", db.opt.Path, have, db.opt.Version, ErrVersion)
	}
	return nil
}

// closeIdle closes the read connections, of which none is in use.
func (db *DB) closeIdle() (err error) {
	for range cap(db.readers) {
		if c := <-db.readers; c != nil {
			err = errors.Join(err, c.c.Close())
		}
		db.readers <- nil
	}
	return err
}

func (db *DB) userVersion(ctx context.Context, read func(context.Context, func(*Conn) error) error) (v int64, err error) {
	err = read(ctx, func(c *Conn) error {
		st := c.Prep("PRAGMA user_version")
		if _, err := st.Step(); err != nil {
			return err
		}
		v = st.Int64(0)
		return nil
	})
	return v, err
}

// openReadOnly falls back to an immutable opening where the "-shm" file cannot be made (a read-only medium), which is right
// only when no log is waiting to be read.
func (db *DB) openReadOnly(ctx context.Context) error {
	have, err := db.userVersion(ctx, db.Read)
	if err != nil {
		if fi, werr := os.Stat(db.opt.Path + "-wal"); werr == nil && fi.Size() > 0 || errors.Is(err, ErrCorrupt) {
			return err
		}
		db.immutable = true
		if have, err = db.userVersion(ctx, db.Read); err != nil {
			return err
		}
	}
	return db.checkVersion(have)
}

// openConn opens a connection and sets its pragmas.
func (db *DB) openConn(write bool) (*Conn, error) {
	flags := sqlite.OpenReadOnly
	if !db.opt.ReadOnly {
		// Readers, too, open for writing: each connection may have to recover the log. query_only keeps them readers.
		flags = sqlite.OpenReadWrite | sqlite.OpenCreate
	}
	path, err := filepath.Abs(db.opt.Path)
	if err != nil {
		return nil, err
	}
	u := url.URL{Scheme: "file", Path: path}
	if db.immutable {
		u.RawQuery = "immutable=1"
	}
	raw, err := sqlite.OpenConn(u.String(), flags|sqlite.OpenURI)
	if err != nil {
		return nil, mapErr(db.opt.Path, err)
	}
	c := &Conn{c: raw, path: db.opt.Path, stmts: make(map[string]*Stmt)}
	raw.SetBusyTimeout(db.opt.BusyTimeout)
	cache := db.opt.ReadCacheBytes
	if write {
		cache = db.opt.CacheBytes
	}
	pragmas := fmt.Sprintf(`PRAGMA cache_size = -%d; PRAGMA mmap_size = 0; PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON;
		PRAGMA temp_store = MEMORY; `, max(cache>>10, 64))
	if !db.opt.ReadOnly {
		if db.opt.Shrinkable {
			pragmas += "PRAGMA auto_vacuum = INCREMENTAL; " // of no effect on a database that has tables
		}
		pragmas += fmt.Sprintf(`PRAGMA page_size = %d; PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = %d;
			PRAGMA journal_size_limit = %d; `, db.opt.PageSize, max(db.opt.AutoCheckpoint, 0), 64<<20)
	}
	if db.older {
		pragmas += db.opt.OlderViews
		c.older = true
	}
	if !write {
		pragmas += "PRAGMA query_only = ON;"
	}
	if err := c.Script(pragmas); err != nil {
		raw.Close()
		return nil, err
	}
	// Not raw.SetDefensive: in v1.4.2 it passes sqlite3_db_config one argument too few, and SQLite writes through what it finds in the place of the missing pointer: into the next
	// free piece of the heap that all connections share, where it has changed values that were bound, so that a row that was there was not found. All SQL is ours.
	if !db.opt.ReadOnly {
		// SQLite keeps another mode, without an error, where it cannot share memory.
		st := c.Prep("PRAGMA journal_mode")
		if _, err := st.Step(); err != nil || st.Text(0) != "wal" {
			raw.Close()
			return nil, errors.Join(fmt.Errorf("%s: %w: the directory's filesystem does not support a write-ahead log", db.opt.Path, ErrIO), err)
		}
		c.rest()
	}
	return c, nil
}

// take gets a connection out of pool, opening it when it is not open yet.
func (db *DB) take(ctx context.Context, pool chan *Conn, write bool) (*Conn, error) {
	c, err := db.takeIdle(ctx, pool)
	if err != nil {
		return nil, err
	}
	if c == nil {
		if c, err = db.openConn(write); err != nil {
			pool <- nil
			return nil, err
		}
	}
	return c, nil
}

// takeIdle gets a connection out of pool; nil when it is not open yet.
func (db *DB) takeIdle(ctx context.Context, pool chan *Conn) (c *Conn, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if db.closing.Load() {
		return nil, ErrClosed
	}
	select {
	case c = <-pool:
	default:
		select {
		case c = <-pool:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-db.done:
			return nil, ErrClosed
		}
	}
	return c, nil
}

// give puts a connection back; one that is stuck in a transaction is closed, so that the next taker opens a fresh one.
func (db *DB) give(pool chan *Conn, c *Conn) {
	c.rest()
	if !c.c.AutocommitEnabled() {
		c.c.Close()
		c = nil
	}
	pool <- c
}

// Write runs fn in one IMMEDIATE transaction: committed when fn returns nil, rolled back when it returns an error or panics.
// Writes run one at a time.
func (db *DB) Write(ctx context.Context, fn func(*Conn) error) error {
	if db.opt.ReadOnly {
		return fmt.Errorf("%s: %w", db.opt.Path, ErrReadOnly)
	}
	c, err := db.take(ctx, db.writer, true)
	if err != nil {
		return err
	}
	defer db.give(db.writer, c)
	return c.transaction("BEGIN IMMEDIATE", fn)
}

// Read runs fn on a read connection, outside a transaction.
func (db *DB) Read(ctx context.Context, fn func(*Conn) error) error {
	c, err := db.take(ctx, db.readers, false)
	if err != nil {
		return err
	}
	defer db.give(db.readers, c)
	c.ctx = ctx
	return fn(c)
}

// Snapshot runs fn on a read connection in one read transaction.
func (db *DB) Snapshot(ctx context.Context, fn func(*Conn) error) error {
	return db.Read(ctx, func(c *Conn) error { return c.transaction("BEGIN", fn) })
}

// Sync makes every commit so far durable, without a checkpoint.
func (db *DB) Sync(ctx context.Context) error {
	if db.opt.ReadOnly {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	db.syncMu.Lock()
	defer db.syncMu.Unlock()
	// A committed page is in the log, or was synced into the database by the checkpoint that let the log start over:
	// so syncing the log is enough. Locks are held on the database and its index only: closing the log drops none.
	f, err := os.Open(db.opt.Path + "-wal")
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return durable.SyncDir(filepath.Dir(db.opt.Path))
		}
		return err
	}
	defer f.Close()
	if err := db.fdatasync(int(f.Fd())); err != nil {
		return fmt.Errorf("sync %s: %w", f.Name(), err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("stat %s: %w", f.Name(), err)
	}
	if db.walSeen == st.Ino {
		return nil
	}
	if err := durable.SyncDir(filepath.Dir(db.opt.Path)); err != nil {
		return err
	}
	db.walSeen = st.Ino
	return nil
}

// Checkpoint copies the log into the database and syncs both. With truncate it waits for readers (up to the busy timeout,
// then ErrBusy) and leaves an empty log; otherwise it copies what it can without waiting.
func (db *DB) Checkpoint(ctx context.Context, truncate bool) error {
	if db.opt.ReadOnly {
		return fmt.Errorf("%s: %w", db.opt.Path, ErrReadOnly)
	}
	c, err := db.take(ctx, db.writer, true)
	if err != nil {
		return err
	}
	defer db.give(db.writer, c)
	query := "PRAGMA wal_checkpoint(PASSIVE)"
	if truncate {
		query = "PRAGMA wal_checkpoint(TRUNCATE)"
	}
	st := c.Prep(query)
	if _, err := st.Step(); err != nil {
		return err
	}
	if truncate && st.Int64(0) != 0 {
		return fmt.Errorf("%s: checkpoint: %w", db.opt.Path, ErrBusy)
	}
	return nil
}

// CopyTo writes a copy of the database, as it is when the copy begins, to a new file, without free pages. Writers are not held up.
func (db *DB) CopyTo(ctx context.Context, path string) error {
	if db.opt.ReadOnly || db.closing.Load() {
		return fmt.Errorf("%s: copy: %w", db.opt.Path, ErrReadOnly)
	}
	c, err := db.openConn(true) // one of its own: VACUUM INTO is not allowed to a reader, and takes long
	if err != nil {
		return err
	}
	c.c.SetInterrupt(ctx.Done())
	err = c.Prep("VACUUM INTO ?").BindText(1, path).Exec()
	c.rest()
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if cerr := c.c.Close(); err == nil && cerr != nil {
		err = mapErr(db.opt.Path, cerr)
	}
	return err
}

// Shrink gives up to pages free pages back to the filesystem and returns how many are left. It does nothing to a database that was not made with
// Options.Shrinkable.
func (db *DB) Shrink(ctx context.Context, pages int) (left int, err error) {
	if !db.opt.Shrinkable || db.opt.ReadOnly {
		return 0, nil
	}
	c, err := db.take(ctx, db.writer, true)
	if err != nil {
		return 0, err
	}
	defer db.give(db.writer, c)
	st := c.Prep("PRAGMA auto_vacuum")
	if _, err := st.Step(); err != nil || st.Int64(0) != 2 {
		return 0, err
	}
	c.rest()
	if err := c.Script(fmt.Sprintf("PRAGMA incremental_vacuum(%d)", pages)); err != nil {
		return 0, err
	}
	st = c.Prep("PRAGMA freelist_count")
	if _, err := st.Step(); err != nil {
		return 0, err
	}
	return int(st.Int64(0)), nil
}

// QuickCheck checks the structure of the database (PRAGMA quick_check). Damage is an error that wraps ErrCorrupt and says what was found first.
func (db *DB) QuickCheck(ctx context.Context) error { return db.check(ctx, "PRAGMA quick_check(1)") }

// FullCheck is QuickCheck, and holds the indexes against the tables (PRAGMA integrity_check).
func (db *DB) FullCheck(ctx context.Context) error {
	return db.check(ctx, "PRAGMA integrity_check(1)")
}

func (db *DB) check(ctx context.Context, pragma string) error {
	return db.Read(ctx, func(c *Conn) error {
		st := c.Prep(pragma)
		ok, err := st.Step()
		if err != nil {
			return err
		}
		if !ok || st.Text(0) != "ok" {
			return fmt.Errorf("%s: %w: %s", db.opt.Path, ErrCorrupt, st.Text(0))
		}
		return nil
	})
}

// Replace closes every connection, once nobody uses it, runs fn, which may put another database in the place of the file, and lets whoever waits go on
// with what is there then. It must have the same version. Write, Read and Snapshot wait meanwhile.
func (db *DB) Replace(ctx context.Context, fn func() error) error {
	if db.opt.ReadOnly {
		return fmt.Errorf("%s: %w", db.opt.Path, ErrReadOnly)
	}
	var back []chan *Conn
	defer func() {
		for _, pool := range back {
			pool <- nil
		}
	}()
	shut := func(pool chan *Conn) error {
		c, err := db.takeIdle(ctx, pool)
		if err != nil {
			return err
		}
		back = append(back, pool)
		if c == nil {
			return nil
		}
		return mapErr(db.opt.Path, c.c.Close())
	}
	for range cap(db.readers) {
		if err := shut(db.readers); err != nil {
			return err
		}
	}
	if err := shut(db.writer); err != nil {
		return err
	}
	db.syncMu.Lock()
	db.walSeen = 0
	db.syncMu.Unlock()
	return fn()
}

// Close waits until every connection is given back, checkpoints and closes them. Calls made later return ErrClosed.
func (db *DB) Close() error {
	if db.closing.Swap(true) {
		return nil
	}
	close(db.done)
	var errs []error
	shut := func(pool chan *Conn, n int) {
		for range n {
			if c := <-pool; c != nil {
				if err := c.c.Close(); err != nil {
					errs = append(errs, mapErr(db.opt.Path, err))
				}
			}
		}
	}
	shut(db.readers, cap(db.readers))
	if !db.opt.ReadOnly {
		shut(db.writer, 1)
	}
	return errors.Join(errs...)
}
