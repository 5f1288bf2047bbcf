// Package journal is an append-only, hash-chained log in segment files. It knows nothing of what its records mean.
//
// Records are numbered from 1 without gaps. Each carries a head, which the chain of SHA-256 hashes covers, and a body, which
// it does not: the caller puts the body's hash into the head, so that a body may be dropped later and the chain stays provable.
// The format is described in docs/format.md, chapter "Journal segments".
package journal

import (
	"errors"
	"fmt"
	"log/slog"
)

const (
	// MaxHead and MaxBody bound one record, in bytes.
	MaxHead = 16 << 20
	MaxBody = 64 << 20
	// DefaultSegmentBytes is the size at which a segment is ended when Options does not say otherwise.
	DefaultSegmentBytes = 64 << 20
)

var (
	// ErrDamaged: bytes on disk are not what was written. Wrapped in a *DamageError, which says where.
	ErrDamaged = errors.New("journal damaged")
	// ErrPoisoned: an earlier failure left it unknown what is on stable storage, so nothing more is written. Open the log anew.
	ErrPoisoned = errors.New("journal refuses to write after a failure")
	// ErrTooLarge: a head or a body exceeds its bound. Nothing was written.
	ErrTooLarge = errors.New("journal record too large")
	// ErrReadOnly: the log was opened read-only.
	ErrReadOnly = errors.New("journal is open read-only")
	// ErrClosed: the log was closed.
	ErrClosed = errors.New("journal is closed")
	// ErrForeign: a segment belongs to another store.
	ErrForeign = errors.New("journal segment of another store")
	// ErrVersion: a segment is of a format that this program does not know.
	ErrVersion = errors.New("journal format not supported")
)

// Kind says what sort of damage a DamageError describes.
type Kind string

const (
	// Rot: bytes that were durable are not what was written.
	Rot Kind = "rot"
	// Missing: records are not there at all: a lost, shortened or overwritten segment.
	Missing Kind = "missing"
	// Torn: an unfinished write at the end of the log, of records that were never reported durable.
	Torn Kind = "torn"
)

// DamageError describes one damaged range of the log; errors.Is(err, ErrDamaged) holds.
type DamageError struct {
	Kind    Kind
	Segment string // file name of the segment
	Offset  int64  // where in it the damage begins, in bytes
	End     int64  // where readable bytes go on, or the end of the file
	// First and Last are the records that cannot be read. Last is First-1 when no record is affected (a damaged segment header
	// whose records are intact). For the end of the log, Last is the newest record known to have existed.
	First, Last uint64
	Why         string
}

func (e *DamageError) Error() string {
	s := fmt.Sprintf("journal segment %s damaged at byte %d (%s): %s", e.Segment, e.Offset, e.Kind, e.Why)
	switch {
	case e.Last > e.First:
		s += fmt.Sprintf("; records %d to %d cannot be read", e.First, e.Last)
	case e.Last == e.First:
		s += fmt.Sprintf("; record %d cannot be read", e.First)
	}
	return s
}

func (e *DamageError) Unwrap() error { return ErrDamaged }

// Pos is where a record lies.
type Pos struct {
	Segment uint64 // number of the segment's first record, which names its file
	Offset  int64  // bytes from the start of that file
}

// Entry is one record.
type Entry struct {
	Seq         uint64
	Time        int64 // nanoseconds since 1970 UTC, as given to Append
	Head        []byte
	Body        []byte // nil when BodyDropped
	BodyLen     int64  // bytes of the body as appended, dropped or not
	BodyDropped bool
	HeadDropped bool     // the head, too: nothing but number, time and chain is left
	Chain       [32]byte // the hash that binds this record and all before it
	Pos         Pos
}

// Options says how to open a log.
type Options struct {
	// Dir holds the segments; it is made when missing. Tails cut off by Open are kept in "../quarantine".
	Dir string
	// StoreID is written into every segment and begins the chain; segments of another store are refused.
	StoreID [16]byte
	// SegmentBytes ends a segment once the next record would exceed it (default DefaultSegmentBytes). A larger record gets a segment of its own.
	SegmentBytes int64
	// AppliedSeq is the newest record known from elsewhere to have been durable (the catalog's newest applied one): records up to
	// it are never cut off as a torn tail, and never numbered again.
	AppliedSeq uint64
	// ReadOnly changes nothing on disk: a torn tail is skipped, not cut.
	ReadOnly bool
	Log      *slog.Logger // default: discard
	FS       FS           // default: the operating system's

	marker func() marker // default newMarker; tests want the same bytes each time
}

// SegmentInfo is one segment file.
type SegmentInfo struct {
	First uint64 // number of its first record
	Name  string // file name in Dir
	Bytes int64
}
