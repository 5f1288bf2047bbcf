package catalog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"holdfast/blobstore"
	"holdfast/catalog/journal"
	"holdfast/internal/durable"
	"holdfast/internal/sqldb"
)

const (
	dbName      = "catalog.db"
	journalName = "journal"
	// rebuildName marks a store whose catalog.db was found damaged: the next Open rebuilds it.
	rebuildName = "catalog.rebuild"
	// maxDamage bounds the damage that is kept for Stats; all of it is logged.
	maxDamage = 100
)

// Open opens the catalog in o.Dir and brings it up to the journal. A catalog.db that is missing, damaged, or of another store
// or format is moved to quarantine and rebuilt from the journal. Records that cannot be read are left out, logged and in Stats().Damage.
// ErrDamaged when that is not enough. The caller closes it, and closes o.Blobs afterwards.
func Open(ctx context.Context, o Options) (*Catalog, error) {
	o.setDefaults()
	c := &Catalog{opt: o, log: o.Log, blobs: o.Blobs, paths: make(map[Ino]string), pins: newPins(), pruneTurn: make(chan struct{}, 1)}
	c.historyBytes.Store(-1)
	c.opt.OnDamage = nil // until it is open
	if err := c.open(ctx); err != nil {
		if c.db != nil {
			c.db.Close()
		}
		if c.j != nil {
			c.j.Close()
		}
		return nil, fmt.Errorf("open the catalog in %s: %w", o.Dir, err)
	}
	if o.ReadOnly {
		return c, nil
	}
	if c.opt.OnDamage = o.OnDamage; c.corrupt.Load() && o.OnDamage != nil {
		o.OnDamage(ErrDamaged)
	}
	run, stop := context.WithCancel(context.Background())
	c.app.stop = stop
	go c.applyLoop(run)
	return c, nil
}

// open is openOnce, and once more, with a catalog.db that is rebuilt, when the first try finds it damaged.
func (c *Catalog) open(ctx context.Context) error {
	err := c.openOnce(ctx)
	if c.opt.ReadOnly || !errors.Is(err, sqldb.ErrCorrupt) {
		return err
	}
	if c.j != nil {
		err = errors.Join(err, c.j.Close())
	}
	if c.db != nil {
		err = errors.Join(err, c.db.Close())
	}
	c.db, c.j = nil, nil
	if werr := c.markDamaged(err); werr != nil {
		return errors.Join(err, werr)
	}
	c.corrupt.Store(false)
	return c.openOnce(ctx)
}

func (c *Catalog) openOnce(ctx context.Context) error {
	m, err := c.openDB(ctx)
	if err != nil {
		return err
	}
	if !c.opt.ReadOnly {
		if err := c.dropUnpromised(ctx, m); err != nil {
			return err
		}
	}
	if c.j, err = journal.Open(ctx, c.journalOptions(m)); err != nil {
		return failed("open", err)
	}
	for _, d := range c.j.Damaged() {
		c.noteDamage(d)
	}
	segments := c.j.Segments()
	if n := len(segments); n > 0 {
		c.segmentEnd = segments[n-1].Bytes
	}
	c.state = newState(c.opt.CacheEntries, m)
	c.app = newApplier(m)
	if err := c.loadPast(ctx); err != nil {
		return err
	}
	if err := c.catchUp(ctx); err != nil {
		return err
	}
	// Numbers of records that the journal lost stay used: rows of catalog.db name them.
	last, _ := c.j.Last()
	c.last = max(c.last, Seq(last))
	return nil
}

// catchUp brings catalog.db up to the journal, for whoever writes, or memory, for whoever only reads. On a full disk a writer does that, too: the journal
// has everything, the store can be read, and the applier goes on when there is space.
func (c *Catalog) catchUp(ctx context.Context) error {
	if c.opt.ReadOnly {
		return c.replayIntoMemory(ctx)
	}
	before, snapshots, kept := c.app.meta.applied, c.snapshots, c.kept
	err := c.replay(ctx)
	if err == nil {
		return c.loadPast(ctx)
	}
	if !errors.Is(err, ErrNoSpace) {
		return err
	}
	c.log.Error("no space to bring catalog.db up to the journal, which keeps every change", "dir", c.opt.Dir, "err", err)
	c.state = newState(c.opt.CacheEntries, c.app.meta)
	if c.app.meta.applied == before { // then what was read before still holds; there may be no space to read it again
		c.snapshots, c.kept = snapshots, kept
	} else if err := c.loadPast(ctx); err != nil {
		return err
	}
	return c.replayLater(ctx)
}

// loadPast reads what of the past is kept in memory.
func (c *Catalog) loadPast(ctx context.Context) (err error) {
	if c.db.Version() < formatHistory { // read-only, and older than all that
		return nil
	}
	if c.snapshots, err = loadSnapshots(ctx, c.db); err != nil {
		return c.readFailed("read the snapshots", err)
	}
	c.kept, err = loadKept(ctx, c.db)
	return c.readFailed("read the kept moments", err)
}

func (c *Catalog) journalOptions(m meta) journal.Options {
	return journal.Options{Dir: filepath.Join(c.opt.Dir, journalName), StoreID: c.opt.StoreID, SegmentBytes: c.opt.SegmentBytes,
		AppliedSeq: uint64(m.applied), ReadOnly: c.opt.ReadOnly, Log: c.log, FS: c.opt.JournalFS}
}

// openDB opens catalog.db, or a new one when it cannot be used.
func (c *Catalog) openDB(ctx context.Context) (meta, error) {
	path := filepath.Join(c.opt.Dir, dbName)
	marker := filepath.Join(c.opt.Dir, rebuildName)
	open := func() (m meta, err error) {
		if c.intact, err = c.knownIntact(ctx); err != nil {
			return m, err
		}
		o := sqldb.Options{Path: path, ReadOnly: c.opt.ReadOnly, Schema: schema, Version: dbFormat, Shrinkable: true, CacheBytes: 16 << 20,
			Upgrades: []string{schema2, ""}, Upgrade: upgradeRows, OlderViews: olderViews()}
		if c.db, err = sqldb.Open(ctx, o); err != nil {
			return m, err
		}
		if m, err = loadMeta(ctx, c.db, c.opt.StoreID); err != nil {
			c.db.Close()
			c.db = nil
		}
		return m, err
	}
	if !c.opt.ReadOnly {
		if err := c.removeScratch(); err != nil {
			return meta{}, err
		}
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			if err := c.noteMissing(); err != nil {
				return meta{}, err
			}
			if err := c.replaceDB(ctx); err != nil {
				return meta{}, err
			}
		}
	}
	_, err := os.Lstat(marker)
	switch {
	case err == nil:
		err = fmt.Errorf("%s says that it was found damaged: %w", rebuildName, sqldb.ErrCorrupt)
	case !errors.Is(err, fs.ErrNotExist):
		return meta{}, err
	default:
		var m meta
		if m, err = open(); err == nil {
			return m, nil
		}
	}
	unusable := errors.Is(err, sqldb.ErrCorrupt) || errors.Is(err, sqldb.ErrVersion)
	switch {
	case c.opt.ReadOnly && (unusable || errors.Is(err, fs.ErrNotExist)):
		return meta{}, fmt.Errorf("%w: %w: open the store for writing once, which rebuilds catalog.db from the journal", ErrDamaged, err)
	case !unusable:
		return meta{}, failed("open catalog.db", err)
	}
	c.log.Error("catalog.db cannot be used; it is moved to quarantine and rebuilt from the journal", "dir", c.opt.Dir, "err", err)
	if err := setAside(c.opt.Dir); err != nil {
		return meta{}, fmt.Errorf("move catalog.db to quarantine: %w", err)
	}
	if err := c.replaceDB(ctx); err != nil {
		return meta{}, err
	}
	if err := durable.RemoveSync(marker); err != nil {
		return meta{}, err
	}
	c.noteDamage(fmt.Errorf("catalog.db was rebuilt from the journal: %w", err))
	m, err := open()
	return m, failed("make a new catalog.db", err)
}

// knownIntact says whether catalog.db is what was closed cleanly; ErrCorrupt when it is known not to be. Whoever writes forgets its sums: they end with
// the first change.
func (c *Catalog) knownIntact(ctx context.Context) (bool, error) {
	err := c.checkSums(ctx)
	if err != nil && !errors.Is(err, errNoSums) {
		return false, err
	}
	if c.opt.ReadOnly {
		return err == nil, nil
	}
	return err == nil, c.removeSums()
}

// replaceDB puts the newest checkpoint in the place of a catalog.db that is gone. Without one it is made from the journal alone.
func (c *Catalog) replaceDB(ctx context.Context) error {
	if err := c.removeSums(); err != nil {
		return err
	}
	ok, err := c.restoreCheckpoint(ctx)
	if err == nil && ok {
		c.noteDamage(fmt.Errorf("%w: catalog.db was missing or unusable and is rebuilt from its checkpoint and the journal", ErrDamaged))
	}
	return err
}

// noteMissing reports a catalog.db that is gone, which that of a new store, without a journal, is not.
func (c *Catalog) noteMissing() error {
	segments, err := filepath.Glob(filepath.Join(c.opt.Dir, journalName, "*.seg"))
	if err != nil || len(segments) == 0 {
		return err
	}
	err = fmt.Errorf("%w: catalog.db is missing and is made anew from the journal", ErrDamaged)
	c.log.Error("catalog.db is missing", "dir", c.opt.Dir, "err", err)
	c.noteDamage(err)
	return nil
}

// setAside moves the files of catalog.db to quarantine.
func setAside(dir string) error {
	to := filepath.Join(dir, "quarantine")
	if err := durable.MkdirAll(to, 0o700); err != nil {
		return err
	}
	stamp := time.Now().UTC().Format("20060102T150405.000000000Z")
	for _, suffix := range []string{"-wal", "-shm", ""} {
		err := os.Rename(filepath.Join(dir, dbName+suffix), filepath.Join(to, dbName+"."+stamp+suffix))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return errors.Join(durable.SyncDir(to), durable.SyncDir(dir))
}

// noteDamage keeps what Open worked around, for Stats.
func (c *Catalog) noteDamage(err error) {
	if len(c.damage) < maxDamage {
		c.damage = append(c.damage, err)
	}
}

// readFailed is failed for a read of catalog.db. A damaged one is marked, once, so that the next Open rebuilds it.
func (c *Catalog) readFailed(what string, err error) error {
	if err == nil {
		return nil
	}
	c.noteCorrupt(err)
	return failed(what, err)
}

func (c *Catalog) noteCorrupt(err error) {
	if !errors.Is(err, sqldb.ErrCorrupt) || c.opt.ReadOnly || c.corrupt.Swap(true) {
		return
	}
	if c.opt.OnDamage != nil {
		defer c.opt.OnDamage(err)
	}
	werr := c.markDamaged(err)
	c.log.Error("catalog.db is damaged; the next start rebuilds it from the journal", "err", err, "marker_err", werr)
}

// markDamaged lets the next start rebuild catalog.db.
func (c *Catalog) markDamaged(err error) error {
	text := fmt.Sprintf("catalog.db was found damaged: %v\nThe next start moves it to quarantine and rebuilds it from the journal.\n", err)
	return durable.WriteFile(filepath.Join(c.opt.Dir, rebuildName), []byte(text), 0o600)
}

// Damaged reports whether catalog.db was found damaged and is not rebuilt yet. Reads give what is intact, or ErrDamaged.
func (c *Catalog) Damaged() bool { return c.corrupt.Load() }

// replay brings the blobstore and catalog.db up to the journal. Bodies may be asked for again from before the newest applied
// record: the blobstore was not synced since.
func (c *Catalog) replay(ctx context.Context) error {
	var batch []*pending
	var size int64
	flush := func() error {
		if err := c.storeBodies(ctx, batch); err != nil {
			return err
		}
		fresh := batch
		for len(fresh) > 0 && fresh[0].rec.Seq <= c.app.meta.applied {
			fresh = fresh[1:]
		}
		if len(fresh) > 0 {
			if err := c.writeRows(ctx, fresh); err != nil {
				return err
			}
		}
		batch, size = nil, 0
		return nil
	}
	synced := c.app.meta.blobsSeq
	err := c.eachRecord(ctx, min(c.app.meta.applied, synced)+1, func(p *pending) error {
		batch = append(batch, p)
		if size += p.bytes; len(batch) < maxBatch && size < maxBatchBytes {
			return nil
		}
		return flush()
	})
	if err == nil {
		err = flush()
	}
	if err != nil {
		return err
	}
	c.state.meta = c.app.meta
	c.last = c.applied
	if synced < c.last {
		// Blobs that a killed process adopted since may not be durable: its records do not say.
		c.lastUnsynced = c.last
	}
	return nil
}

// replayLater is replay on a full disk: what catalog.db does not have waits in memory for the applier, as it did before the
// catalog was last closed, and the bodies that may be missing from the blobstore are kept until they can be stored.
func (c *Catalog) replayLater(ctx context.Context) error {
	m := c.app.meta
	if m.blobsSeq < m.applied {
		err := c.eachRecord(ctx, m.blobsSeq+1, func(p *pending) error {
			if p.rec.Seq > m.applied {
				return errReplayed
			}
			c.owe(p)
			return nil
		})
		if err != nil && !errors.Is(err, errReplayed) {
			return err
		}
	}
	if err := c.replayIntoMemory(ctx); err != nil {
		return err
	}
	c.lastUnsynced = c.last
	signal(c.app.wake)
	return nil
}

// errReplayed ends a replay early.
var errReplayed = errors.New("replayed")

// owe keeps the bodies of an applied record in memory until syncBodies has stored them.
func (c *Catalog) owe(p *pending) {
	for i := range p.rec.Blobs {
		b := &p.rec.Blobs[i]
		if b.Body == nil {
			continue
		}
		if have := c.bodies[b.Ref.Hash]; have != nil {
			have.refs++
		} else {
			c.bodies[b.Ref.Hash] = &pendingBody{b.Body, 1}
		}
	}
	c.app.owed = append(c.app.owed, p)
}

// replayIntoMemory is replay for a catalog that changes nothing on disk.
func (c *Catalog) replayIntoMemory(ctx context.Context) error {
	return c.eachRecord(ctx, c.applied+1, func(p *pending) error {
		for i := range p.rec.Xattrs {
			ino := p.rec.Xattrs[i].Ino
			if p.xattrs[ino] != nil {
				continue
			}
			var set *xattrSet
			if n := c.xattrs.m[ino]; n != nil {
				set = n.val
			} else {
				m, err := loadXattrs(ctx, c.db, ino, Head)
				if err != nil {
					return failed("read attributes", err)
				}
				set = newXattrSet(m)
			}
			if p.xattrs == nil {
				p.xattrs = make(map[Ino]*xattrSet)
			}
			p.xattrs[ino] = set
		}
		c.remember(p)
		return nil
	})
}

// eachRecord calls fn with every record that can be read, from the number from on, and notes the others.
func (c *Catalog) eachRecord(ctx context.Context, from Seq, fn func(*pending) error) error {
	return c.readRecords(ctx, from, c.applied, fn, func(err error) {
		c.log.Error("records of the journal cannot be read and are left out", "err", err)
		c.noteDamage(err)
	})
}

// readRecords calls fn with every record that can be read, from the number from on, and lost with what is damaged. Records up to covered are known to have rows:
// of those, compaction may have left nothing.
func (c *Catalog) readRecords(ctx context.Context, from, covered Seq, fn func(*pending) error, lost func(error)) error {
	dropped := 0 // records of which compaction has left nothing, and that no row of catalog.db stands for
	defer func() {
		if dropped > 0 {
			lost(fmt.Errorf("%w: %d old records were compacted and their checkpoint is missing: what they said is lost", ErrDamaged, dropped))
		}
	}()
	for {
		err := c.j.Replay(ctx, uint64(from), func(e journal.Entry) error {
			if e.HeadDropped {
				if Seq(e.Seq) > covered {
					dropped++
				}
				return nil
			}
			r, err := DecodeRecord(e)
			if err == nil {
				err = checkNumbers(&r)
			}
			if err != nil {
				lost(fmt.Errorf("%w: journal record %d is left out: %w", ErrDamaged, e.Seq, err))
				return nil
			}
			p := &pending{rec: r, pos: e.Pos, bytes: int64(len(e.Head)+len(e.Body)) + pendingOverhead}
			return fn(p)
		})
		var damage *journal.DamageError
		if !errors.As(err, &damage) {
			return failed("replay the journal", err)
		}
		lost(damage)
		if next := Seq(damage.Last) + 1; next > from {
			from = next
			continue
		}
		return failed("replay the journal", err)
	}
}

// checkNumbers refuses records that catalog.db cannot hold.
func checkNumbers(r *Record) error {
	for i := range r.Inodes {
		if n := &r.Inodes[i]; n.Ino >= maxIno || n.Parent >= maxIno || n.Parent == 0 || n.Base > r.Seq || n.Ver >= maxIno || n.Mode&typeMask == 0 {
			return fmt.Errorf("%w: the numbers of inode %d are out of range", ErrBadRecord, n.Ino)
		}
	}
	for i := range r.Dentries {
		if d := &r.Dentries[i]; d.Parent >= maxIno || d.Ino >= maxIno || d.Cookie >= maxIno {
			return fmt.Errorf("%w: the numbers of an entry in directory %d are out of range", ErrBadRecord, d.Parent)
		}
	}
	for i := range r.Versions {
		if v := &r.Versions[i]; v.Ino >= maxIno || v.Num >= maxIno {
			return fmt.Errorf("%w: the numbers of a version of inode %d are out of range", ErrBadRecord, v.Ino)
		}
	}
	return nil
}

// dropUnpromised ends the journal before the first record that was not known to be durable when the store was last used and
// names a large blob that is not there: a power cut took the blob, so nothing from that record on was ever promised. What is
// dropped is kept in quarantine.
func (c *Catalog) dropUnpromised(ctx context.Context, m meta) error {
	o := c.journalOptions(m)
	o.ReadOnly, o.Log = true, nil // the opening that follows logs what it finds
	j, err := journal.Open(ctx, o)
	if err != nil {
		return failed("open", err)
	}
	defer j.Close()
	from := max(Seq(j.Synced()), m.applied) + 1
	named, bad := false, journal.Entry{}
	errStop := errors.New("stop")
	err = j.Replay(ctx, uint64(from), func(e journal.Entry) error {
		if e.HeadDropped {
			return nil
		}
		r, err := DecodeRecord(e)
		if err != nil {
			return nil // replay reports it
		}
		for i := range r.Blobs {
			b := &r.Blobs[i]
			if b.Body != nil || b.Ref.Size == 0 || e.BodyDropped {
				continue
			}
			named = true
			side, err := c.blobs.Sidecar(ctx, b.Ref.Hash)
			switch {
			case err == nil && side.Size == b.Ref.Size:
			case err == nil, errors.Is(err, blobstore.ErrNotFound), errors.Is(err, blobstore.ErrDamaged):
				c.log.Warn("a power cut took a blob that was never synced: the changes from there on are dropped",
					"blob", b.Ref.Hash, "record", e.Seq, "path", r.Path, "err", err)
				bad = journal.Entry{Seq: e.Seq, Pos: e.Pos}
				return errStop
			default:
				return failed("look for a blob", err)
			}
		}
		return nil
	})
	var damage *journal.DamageError
	if err != nil && !errors.Is(err, errStop) && !errors.As(err, &damage) {
		return failed("check the end of the journal", err)
	}
	if bad.Seq != 0 {
		segments := j.Segments()
		j.Close()
		return cutJournal(filepath.Join(c.opt.Dir, journalName), segments, bad.Pos)
	}
	if named {
		// journal.Open makes these records durable: their blobs come first.
		return failed("sync the blobs", c.blobs.Sync(ctx))
	}
	return nil
}

// cutJournal ends the journal before the record at pos. The segments that it changes are copied to quarantine first.
func cutJournal(dir string, segments []journal.SegmentInfo, pos journal.Pos) error {
	to := filepath.Join(filepath.Dir(dir), "quarantine")
	if err := durable.MkdirAll(to, 0o700); err != nil {
		return err
	}
	stamp := time.Now().UTC().Format("20060102T150405.000000000Z")
	for i := len(segments) - 1; i >= 0 && segments[i].First >= pos.Segment; i-- {
		name := filepath.Join(dir, segments[i].Name)
		keep := filepath.Join(to, segments[i].Name+".dropped-"+stamp)
		if segments[i].First > pos.Segment {
			if err := durable.Rename(name, keep); err != nil {
				return fmt.Errorf("drop a journal segment: %w", err)
			}
			continue
		}
		if err := cutFile(name, keep, pos.Offset); err != nil {
			return fmt.Errorf("end journal segment %s at byte %d: %w", name, pos.Offset, err)
		}
	}
	return nil
}

// cutFile cuts a file at size and keeps what was behind as the file keep.
func cutFile(name, keep string, size int64) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	tail := make([]byte, max(fi.Size()-size, 0))
	if _, err := f.ReadAt(tail, size); err != nil {
		return err
	}
	if err := durable.WriteFile(keep, tail, 0o600); err != nil {
		return err
	}
	if err := f.Truncate(size); err != nil {
		return err
	}
	return f.Sync()
}
