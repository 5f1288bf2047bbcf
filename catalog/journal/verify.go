package journal

import (
	"context"
	"errors"
)

// VerifyOptions says what Verify checks against.
type VerifyOptions struct {
	StoreID    [16]byte
	AppliedSeq uint64 // as in Options
	FS         FS     // default: the operating system's
}

// Report is what Verify found.
type Report struct {
	Segments int
	Entries  uint64 // intact records
	Bytes    int64  // of all segments
	First    uint64 // number of the first and the last intact record; 0 when there is none
	Last     uint64
	Chain    [32]byte       // of Last
	Damage   []*DamageError // in order; a torn tail is in Tail instead
	Tail     *DamageError   // an unfinished write at the end, which the next Open cuts off; nil when the log ends cleanly
}

// OK says that the log is intact and ends cleanly.
func (r Report) OK() bool { return len(r.Damage) == 0 && r.Tail == nil }

// Verify reads a whole log that nobody has open for writing, changes nothing, and reports every damaged or missing range in one
// pass. The error says only that the check itself could not be made.
func Verify(ctx context.Context, dir string, o VerifyOptions) (Report, error) {
	return Report{}, errors.ErrUnsupported
}
