package catalog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"holdfast/blobstore"
	"holdfast/catalog/journal"
	"holdfast/internal/sqldb"
)

const (
	// LevelXattr names the extended attribute that holds the integrity level of a file or of all that is below a directory.
	LevelXattr = "user.holdfast.level"

	LevelBasic    = "basic"
	LevelAdvanced = "advanced"
	LevelCritical = "critical"
)

// Flags of Rename and SetXattr, with the values that Linux gives them.
const (
	RenameNoReplace uint = 1 // RENAME_NOREPLACE
	RenameExchange  uint = 2 // RENAME_EXCHANGE
	XattrCreate     uint = 1 // XATTR_CREATE
	XattrReplace    uint = 2 // XATTR_REPLACE
)

// NoCut is the Cut of a Splice that cuts nothing off.
const NoCut = 1<<63 - 1

const (
	defaultPendingBytes = 64 << 20
	defaultCacheEntries = 50_000
	minCacheEntries     = 8
	// maxDeferred bounds the inodes whose times are only in memory: more are written out at once.
	maxDeferred = 4096
	// maxReadDir bounds what one ReadDir returns.
	maxReadDir = 4096
)

// Options says how to open a catalog.
type Options struct {
	Dir     string // the store's directory: holds catalog.db, journal/ and quarantine/
	StoreID [16]byte
	// Blobs is where the bodies of small blobs end up; the caller closes it, after the catalog.
	Blobs blobstore.Store
	// ReadOnly changes nothing on disk: what catalog.db lacks is replayed into memory.
	ReadOnly bool
	Now      func() time.Time // default time.Now
	Log      *slog.Logger     // default: discard
	// PendingBytes is how much may wait for the applier in memory before mutations wait for it (default 64 MiB).
	PendingBytes int64
	// CacheEntries is the number of clean inodes, and of clean names, kept in memory (default 50,000 each).
	CacheEntries int
	// SegmentBytes is the size of a journal segment (default: the journal's).
	SegmentBytes int64
	// OnDamage is called, once until Rebuild has made it good, when catalog.db is found damaged. It is called with locks held: it must not block, nor call the
	// catalog.
	OnDamage func(error)
	// JournalFS stands between the journal and the operating system, for tests (default: the operating system).
	JournalFS journal.FS

	fault func(stage) error // tests: called at each stage
}

func (o *Options) setDefaults() {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.PendingBytes <= 0 {
		o.PendingBytes = defaultPendingBytes
	}
	if o.CacheEntries <= 0 {
		o.CacheEntries = defaultCacheEntries
	}
	o.CacheEntries = max(o.CacheEntries, minCacheEntries)
}

// NewInode is what Create is told of the inode to be made.
type NewInode struct {
	Mode   uint32 // S_IFMT type (none means a regular file) and permissions
	UID    uint32
	GID    uint32
	Rdev   uint32 // devices
	Target string // symbolic links
}

// Change names the attributes to be set; nil ones stay as they are. Mode sets permission bits only, the type stays.
type Change struct {
	Mode  *uint32
	UID   *uint32
	GID   *uint32
	Atime *Timestamp
	Mtime *Timestamp
	Ctime *Timestamp // SetAttr: nil means now
}

// Commit is a change of a file's content.
type Commit struct {
	Ino  Ino
	Size int64 // of the file afterwards
	// Splice is the change; its Ino need not be set. When the file shrinks, what lies behind Size is cut in any case.
	Splice Splice
	// Blobs are the blobs of the splice that the store did not have yet. A Body must hash to its name.
	Blobs []NewBlob
	// UnsyncedBlobs says that a blob without Body was adopted and is not durable yet: the blobstore is synced before the journal.
	UnsyncedBlobs bool
	// Change is written in the same record. Nothing is implied: times that it does not name stay as they are (or as
	// SetAttrDeferred left them).
	Change     Change
	Sum        blobstore.Hash // SHA-256 of the whole content, where known
	Op         Op             // default OpWrite
	NewVersion bool           // number the state as a version
	// Conflict, with NewVersion, is recorded beside the version: of it only Lost and LostBy need be set.
	Conflict *Conflict
}

// NameSpan says that a name led to an inode from the record From on, to before the record To (Head: it still does).
type NameSpan struct {
	Ino  Ino
	Type uint32
	From Seq
	To   Seq
}

// Stats describes the catalog.
type Stats struct {
	Files         int64     `json:"files"` // everything with a name that is no directory
	Dirs          int64     `json:"directories"`
	Versions      int64     `json:"versions"`
	VersionBytes  int64     `json:"version_bytes"`  // the sizes of all versions together: what they would take stored one by one
	OldestVersion time.Time `json:"oldest_version"` // zero when there is none
	JournalBytes  int64     `json:"journal_bytes"`
	Seq           Seq       `json:"seq"`     // the newest record
	Synced        Seq       `json:"synced"`  // the newest record known to be on stable storage
	Applied       Seq       `json:"applied"` // the newest record in catalog.db
	PendingBytes  int64     `json:"pending_bytes"`
	Pending       int       `json:"pending"`    // records that wait for the applier
	LastError     error     `json:"-"`          // why catalog.db or the blobstore lags behind at the moment; nil when neither does
	Damage        []error   `json:"-"`          // what Open found damaged and worked around
	NextIno       Ino       `json:"next_inode"` // the number that the next inode gets
	// KnownIntact says that Open found catalog.db byte for byte as it was closed. Otherwise (after a crash) single rows are checked as they are read, and
	// only Compare finds what is missing.
	KnownIntact bool `json:"known_intact"`
	Snapshots   int  `json:"snapshots"`
	Horizon     Seq  `json:"horizon"` // every moment since is kept: see Catalog.Horizon
	// HistoryBytes is the content, in bytes of ranges of files, that only the past had when the history was thinned last; -1 before that.
	HistoryBytes int64 `json:"history_bytes"`
}

// Catalog is an open catalog. All methods may be called concurrently. One process at a time may have a store's catalog open
// for writing; its caller sees to that.
//
// Locks, in the order in which they are taken: app.mu, blobGate, order, syncMu, settling, mu. A mutation holds order from its first look at the
// state until the state in memory is changed, so records have the order of their numbers; mu guards the state in memory and
// is never held over a system call.
type Catalog struct {
	opt   Options
	log   *slog.Logger
	j     *journal.Log
	db    *sqldb.DB
	blobs blobstore.Store

	order      sync.Mutex // held by the one mutation in progress; guards what follows
	enc        Encoder
	tx         txn
	paths      map[Ino]string // of directories
	segmentEnd int64          // where the newest record ends in its journal segment, or a little behind

	blobGate sync.RWMutex // see makeDurable

	settling sync.RWMutex // see steady

	mu sync.RWMutex
	state

	syncMu sync.Mutex // held by the one blob sync in progress
	// blobsSynced is the newest record whose blobs without body are known to be durable.
	blobsSynced atomic.Uint64

	app  applier
	pins pins

	pruneTurn   chan struct{} // holds a token while a Prune or Compact is in progress, which comes before all locks; guards what follows
	pruneDebt   int64         // of rows that went since the last compaction
	pruneCursor Seq           // up to here files were looked at for too many versions
	pruneLimits map[string]int
	retry       map[Ino]struct{} // inodes of which something could not go
	cmp         *comparison      // nil when none is in progress

	historyBytes atomic.Int64

	damage  []error // set by Open only
	intact  bool    // catalog.db was closed cleanly and has not changed until Open
	corrupt atomic.Bool
}

// failed says what went wrong and keeps err for errors.Is; ENOSPC becomes ErrNoSpace, a damaged database ErrDamaged.
func failed(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%s: %w: free some space and try again (%w)", what, ErrNoSpace, err)
	case errors.Is(err, sqldb.ErrCorrupt), errors.Is(err, journal.ErrDamaged):
		return fmt.Errorf("%s: %w: %w", what, ErrDamaged, err)
	case errors.Is(err, sqldb.ErrClosed), errors.Is(err, journal.ErrClosed):
		return fmt.Errorf("%s: %w", what, ErrClosed)
	}
	return fmt.Errorf("%s: %w", what, err)
}
