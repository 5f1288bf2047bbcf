package integrity

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"holdfast/blobstore"
)

var (
	// ErrNotHealed: damage was found and nothing that the store and its sources have could mend it. The text names the next step.
	ErrNotHealed = errors.New("damaged, and not healed")
	// ErrBusy: a scrub is running already.
	ErrBusy = errors.New("a scrub is running already")
	// ErrWrongContent: what was given to complete a recovery is not the content that was lost.
	ErrWrongContent = errors.New("this is not the content that is missing")
	// ErrStrategy: no such strategy, or not one for this.
	ErrStrategy = errors.New("not a recovery strategy for this")
)

// CheckType is one of the five checks.
type CheckType string

const (
	// Checksum: blobs, blocks, shards of parity, sidecars, rows of the catalog and journal records are what their hashes say.
	Checksum CheckType = "CHECKSUM"
	// HashChain: each version names the digest of the one before.
	HashChain CheckType = "HASH_CHAIN"
	// Timestamp: times in a chain never go back, and none lies in the future.
	Timestamp CheckType = "TIMESTAMP"
	// SizeVerification: extents, blobs, sidecars and the catalog agree about sizes, within their bounds.
	SizeVerification CheckType = "SIZE_VERIFICATION"
	// VersionControl: version numbers have no gap and no repeat, and the newest is the one that the file says it has.
	VersionControl CheckType = "VERSION_CONTROL"
)

// CheckTypes are all checks, in the order in which they are made.
func CheckTypes() []CheckType {
	return []CheckType{Checksum, HashChain, Timestamp, SizeVerification, VersionControl}
}

// Result is what one check found.
type Result struct {
	CheckID            string    `json:"check_id"` // unique in the store
	DataID             string    `json:"data_id"`  // SHA-256 of the blob in 64 digits, or of what is no blob its kind and number: "inode 12", "catalog", "journal"
	Path               string    `json:"path"`     // "" when no name leads to it
	Type               CheckType `json:"check_type"`
	Timestamp          time.Time `json:"timestamp"`
	Passed             bool      `json:"passed"` // as found, before any recovery
	Details            string    `json:"details"`
	RecoveryAttempted  bool      `json:"recovery_attempted"`
	RecoverySuccessful bool      `json:"recovery_successful"`
}

// Healthy reports whether all is well now: it passed, or what it found was healed.
func (r *Result) Healthy() bool { return r.Passed || r.RecoverySuccessful }

// Strategy is a way to recover from damage.
type Strategy string

const (
	// ChecksumMatch takes any intact copy that has the right hash.
	ChecksumMatch Strategy = "CHECKSUM_MATCH"
	// BackupRestore fetches the blob from a backup.
	BackupRestore Strategy = "BACKUP_RESTORE"
	// VersionRollback makes the last intact version of a file its newest one.
	VersionRollback Strategy = "VERSION_ROLLBACK"
	// TimestampRollback takes a whole directory back to its last intact moment.
	TimestampRollback Strategy = "TIMESTAMP_ROLLBACK"
	// ManualRecovery keeps the damaged bytes and waits for a person.
	ManualRecovery Strategy = "MANUAL_RECOVERY"
)

// Strategies are all of them, in the order in which they are tried.
func Strategies() []Strategy {
	return []Strategy{ChecksumMatch, BackupRestore, VersionRollback, TimestampRollback, ManualRecovery}
}

// ParseStrategy reads the name of a strategy, in either case and with - for _; "" is none: all in their order. ErrStrategy.
func ParseStrategy(s string) (Strategy, error) {
	name := Strategy(strings.ReplaceAll(strings.ToUpper(s), "-", "_"))
	if name == "" {
		return "", nil
	}
	for _, known := range Strategies() {
		if name == known {
			return known, nil
		}
	}
	return "", fmt.Errorf("%w: %q; the strategies are %v", ErrStrategy, s, Strategies())
}

// Attempt is one try to recover something.
type Attempt struct {
	Time       time.Time     `json:"time"`
	DataID     string        `json:"data_id"`
	Path       string        `json:"path"`
	Strategy   Strategy      `json:"strategy"`
	Source     string        `json:"source"` // where the bytes were to come from: "second copy", "journal", "parity", the name of a backup, "version 3"
	Successful bool          `json:"successful"`
	Details    string        `json:"details"`
	Bytes      int64         `json:"bytes"`   // written
	Took       time.Duration `json:"took_ns"` // in nanoseconds
}

// Source is another place that may have a blob: a backup.
type Source interface {
	// Name says which place it is, for people.
	Name() string
	// Fetch writes the blob's content to w. What it writes is verified by the caller. blobstore.ErrNotFound when the place does not have it.
	Fetch(ctx context.Context, ref blobstore.Ref, w io.Writer) error
}

// Damaged is a blob, or another thing, that could not be healed and waits for a person.
type Damaged struct {
	DataID     string    `json:"data_id"`
	Size       int64     `json:"size"`
	Since      time.Time `json:"since"`
	Details    string    `json:"details"`
	Paths      []string  `json:"paths"`      // that have it now; at most 100
	Quarantine string    `json:"quarantine"` // path below the store's directory of the damaged bytes; "" when there are none
	Tried      []Attempt `json:"tried"`      // the newest, at most 20
}

// Event is something that happened. Events have numbers without gaps; a reader that is too slow gets one of kind EventGap in place of those it missed.
type Event struct {
	Seq    uint64    `json:"seq"`
	Time   time.Time `json:"time"`
	Kind   EventKind `json:"kind"`
	DataID string    `json:"data_id,omitempty"`
	Path   string    `json:"path,omitempty"`
	Text   string    `json:"text"` // one line for people
	Missed uint64    `json:"missed,omitempty"`
}

// EventKind says what an Event is about.
type EventKind string

// The kinds of events.
const (
	EventDamage   EventKind = "damage"   // damage was found
	EventHealed   EventKind = "healed"   // and mended
	EventLost     EventKind = "lost"     // or not
	EventRollback EventKind = "rollback" // a file or a directory was taken back
	EventManual   EventKind = "manual"   // something waits for a person, or was completed by one
	EventScrub    EventKind = "scrub"    // a scrub began, ended, was paused or goes on
	EventDegraded EventKind = "degraded" // the place of second copies cannot be written, or is back
	EventForeign  EventKind = "foreign"  // something else has changed a file of the store
	EventGap      EventKind = "gap"      // Missed events are not kept any more
)

// CheckOptions say how to check.
type CheckOptions struct {
	Versions bool // all versions, not only the newest
	Repair   bool // heal what is damaged; otherwise nothing is changed
	Passed   bool // report what passed, too
}

// Summary is what a check found in all.
type Summary struct {
	Files   int64         `json:"files"`
	Blobs   int64         `json:"blobs"`
	Bytes   int64         `json:"bytes"` // plain bytes read and verified
	Checks  int64         `json:"checks"`
	Failed  int64         `json:"failed"`
	Healed  int64         `json:"healed"`
	Took    time.Duration `json:"took_ns"`
	Skipped int64         `json:"skipped"` // could not be read for a reason that is no damage
}

// Healthy reports whether nothing damaged was left.
func (s *Summary) Healthy() bool { return s.Failed == s.Healed }

// ScrubState says what the scrubber does.
type ScrubState string

// The states of a scrubber.
const (
	ScrubIdle    ScrubState = "idle"    // between two slices
	ScrubRunning ScrubState = "running" // on a cycle that was asked for, or a slice
	ScrubPaused  ScrubState = "paused"
	ScrubStopped ScrubState = "stopped" // until it is started again
)

// ScrubStatus is how far the scrubber is.
type ScrubStatus struct {
	State     ScrubState `json:"state"`
	Cycle     int64      `json:"cycle"`    // from 1
	Phase     string     `json:"phase"`    // "blobs", "second", "catalog", "journal", "versions"
	Position  string     `json:"position"` // in the phase
	Fraction  float64    `json:"fraction"` // of the cycle, 0 to 1, estimated
	Started   time.Time  `json:"started"`  // of the cycle
	Blobs     int64      `json:"blobs"`    // checked in this cycle
	Bytes     int64      `json:"bytes"`
	Found     int64      `json:"found"` // damages, in this cycle
	Healed    int64      `json:"healed"`
	Made      int64      `json:"made"`       // parities and second copies that were missing
	LastCycle time.Time  `json:"last_cycle"` // end of the last whole one; zero: none
	Last      CycleTotal `json:"last"`       // what that one did
	// OldestCheck bounds how long ago anything in the store was checked; zero: not everything has been yet.
	OldestCheck time.Time     `json:"oldest_check"`
	Interval    time.Duration `json:"interval_ns"` // within which all is to be checked
	Behind      bool          `json:"behind"`      // it will take longer
	BytesPerSec float64       `json:"bytes_per_second"`
}

// CycleTotal is what a whole cycle of the scrub did. The names of its JSON fields are stable.
type CycleTotal struct {
	Cycle  int64     `json:"cycle"`
	Began  time.Time `json:"began"`
	Blobs  int64     `json:"blobs"`
	Bytes  int64     `json:"bytes"`
	Found  int64     `json:"found"`
	Healed int64     `json:"healed"`
	Made   int64     `json:"made"`
}

// Status is the health of a store.
type Status struct {
	Healthy      bool        `json:"healthy"`
	Summary      string      `json:"summary"` // one line
	Time         time.Time   `json:"time"`
	Damaged      int64       `json:"damaged"`  // waits for a person, or was found by a check that was not to repair
	Others       int64       `json:"others"`   // of these, what is no content: journal, catalog, history, second copies
	Failures     int64       `json:"failures"` // ever found
	Recovered    int64       `json:"recovered"`
	Degraded     bool        `json:"degraded"`
	DegradedWhy  string      `json:"degraded_why,omitempty"`
	Second       string      `json:"second,omitempty"` // the directory of the second copies
	Missing      int64       `json:"missing_copies"`   // second copies and parities that wait to be made, as far as known
	Quarantined  int64       `json:"quarantine_bytes"` //
	CatalogError string      `json:"catalog_error,omitempty"`
	Scrub        ScrubStatus `json:"scrub"`
}

// RecoverOptions say how to recover a path.
type RecoverOptions struct {
	Strategy Strategy // "": all, in their order
	DryRun   bool     // only say what would be done
	Versions bool     // past versions, too
}

// Recovery is what Recover did, or would do.
type Recovery struct {
	Path     string    `json:"path"`
	Damaged  int64     `json:"damaged"` // blobs
	Attempts []Attempt `json:"attempts"`
	Healthy  bool      `json:"healthy"` // afterwards
	DryRun   bool      `json:"dry_run"`
	Plan     string    `json:"plan"` // in words
}
