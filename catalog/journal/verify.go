package journal

import (
	"context"
	"fmt"
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
	Chain    [32]byte       // of Last; the beginning of the chain when there is none
	Damage   []*DamageError // in order; a torn tail is in Tail instead
	Tail     *DamageError   // an unfinished write at the end, which the next Open cuts off; nil when the log ends cleanly
}

// OK says that the log is intact and ends cleanly.
func (r Report) OK() bool { return len(r.Damage) == 0 && r.Tail == nil }

// Verify reads a whole log that nobody has open for writing, changes nothing, and reports every damaged or missing range in one
// pass. Records that were cut from the end leave no trace in the log itself: give AppliedSeq to have them missed. The error says
// only that the check itself could not be made.
func Verify(ctx context.Context, dir string, o VerifyOptions) (Report, error) {
	if o.FS == nil {
		o.FS = OS()
	}
	segs, _, err := listSegments(o.FS, dir)
	if err != nil {
		return Report{}, err
	}
	r := &reader{fs: o.FS, dir: dir, store: o.StoreID, segs: segs, limit: -1, seq: 1, chain: genesis(o.StoreID), linked: true}
	defer r.close()
	s, err := survey(ctx, r, o.AppliedSeq)
	if err != nil {
		return Report{}, fmt.Errorf("verify the journal: %w", err)
	}
	s.Segments, s.Bytes = len(segs), r.bytes
	return s.Report, nil
}

// surveyed is a Report, and where and how the log goes on.
type surveyed struct {
	Report
	end   state
	bound uint64 // the newest record known to have been durable
}

// survey reads everything in r and tells damage from a torn tail. What is not readable in the last segment is torn when no record
// from there on can have been durable: the bound is what any intact record says was durable when it was written, what the
// caller knows, and everything before the last segment, which is synced before the next begins.
func survey(ctx context.Context, r *reader, applied uint64) (s surveyed, err error) {
	type found struct {
		d      *DamageError
		before state
		upTo   Report
	}
	var last SegmentInfo
	if len(r.segs) > 0 {
		last = r.segs[len(r.segs)-1]
	}
	var damage []found
	s.Chain = r.chain
	for {
		if err := ctx.Err(); err != nil {
			return s, err
		}
		before := r.state()
		e, d, err := r.next()
		if err != nil {
			return s, err
		}
		if d != nil {
			damage = append(damage, found{d, before, s.Report})
			continue
		}
		if e.Seq == 0 {
			break
		}
		if s.First == 0 {
			s.First = e.Seq
		}
		s.Entries, s.Last, s.Chain = s.Entries+1, e.Seq, e.Chain
	}
	s.end = r.state()
	if r.openEnd {
		s.end = damage[len(damage)-1].before
	}
	s.bound = max(applied, r.synced)
	if last.First > 0 {
		s.bound = max(s.bound, last.First-1)
	}
	var list []*DamageError
	for _, f := range damage {
		if f.d.Segment == last.Name && f.d.Offset >= headerSize && f.d.First > s.bound {
			s.Report, s.end = f.upTo, f.before
			s.Tail = &DamageError{Kind: Torn, Segment: last.Name, Offset: f.d.Offset, End: r.w.src.size, First: f.d.First, Last: f.d.First - 1, Why: f.d.Why}
			s.Damage = list
			return s, nil
		}
		list = append(list, f.d)
	}
	s.Damage = list
	s.loseEnd(r.openEnd, last)
	return s, nil
}

// loseEnd accounts for records that were durable and are not in the log's end.
func (s *surveyed) loseEnd(openEnd bool, last SegmentInfo) {
	if s.bound < s.end.next {
		return
	}
	if openEnd {
		s.Damage[len(s.Damage)-1].Last = s.bound
		return
	}
	s.Damage = append(s.Damage, &DamageError{Kind: Missing, Segment: last.Name, Offset: s.end.off, End: s.end.off, First: s.end.next, Last: s.bound,
		Why: "the log ends before records that are known to have been written"})
}
