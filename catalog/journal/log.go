package journal

import (
	"context"
	"errors"
)

// Log is an open journal. All methods may be called concurrently; only one process may have it open for writing (the store's lock).
type Log struct{}

// Open opens or begins the log in o.Dir. It reads the last segment only (one more when that one's header is damaged), finds the
// chain's end, cuts off a torn tail (a copy goes to "../quarantine"), and makes durable what it found. Damage below the durable
// bound does not fail Open: see Damaged. Errors: ErrForeign, ErrVersion, and those of the filesystem.
func Open(ctx context.Context, o Options) (*Log, error) { return nil, errors.ErrUnsupported }

// Append writes one record, with one write call, and returns its number and place. The body is the concatenation of bodies.
// Order of records is order of return values; on error nothing was appended and no number is used up. It survives a killed
// process on return, and a power cut after the next Sync. The slices are not kept.
func (l *Log) Append(time int64, head []byte, bodies ...[]byte) (seq uint64, pos Pos, err error) {
	return 0, Pos{}, errors.ErrUnsupported
}

// Sync makes everything appended before the call durable. Concurrent callers share one fdatasync. After a failed Sync the log is
// poisoned. When ctx ends a waiting caller returns its error; the log is not harmed.
func (l *Log) Sync(ctx context.Context) error { return errors.ErrUnsupported }

// Last returns the number and chain hash of the newest record; 0 and the chain's beginning when there is none.
func (l *Log) Last() (seq uint64, chain [32]byte) { return 0, [32]byte{} }

// Synced is the newest record known to be durable.
func (l *Log) Synced() uint64 { return 0 }

// Replay calls fn with the verified records from number from on, in order, up to the newest at the time of the call. It stops
// with the error of fn, or with a *DamageError at the first damage at or above from; Replay from its Last+1 goes on behind it.
// The entry's slices are valid only during fn. fn may call Append, Sync and ReadAt.
func (l *Log) Replay(ctx context.Context, from uint64, fn func(Entry) error) error {
	return errors.ErrUnsupported
}

// ReadAt returns the record seq, which lies at pos, checked against its checksums (the chain needs the records before it: see
// Replay). A record that is not intact or is another one is a *DamageError. The entry's slices are the caller's.
func (l *Log) ReadAt(pos Pos, seq uint64) (Entry, error) { return Entry{}, errors.ErrUnsupported }

// Damaged returns the damage that Open met: in the last segment, before the first one, and between the log's end and AppliedSeq.
func (l *Log) Damaged() []*DamageError { return nil }

// Segments lists the segment files in order.
func (l *Log) Segments() []SegmentInfo { return nil }

// Bytes is the size of all segments.
func (l *Log) Bytes() int64 { return 0 }

// Close makes everything appended durable and releases the log. Later calls return ErrClosed; a second Close returns nil.
func (l *Log) Close() error { return nil }
