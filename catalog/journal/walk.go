package journal

import (
	"context"
	"fmt"
)

// Walk is Verify that also shows each intact record, in order, to fn, whose error ends it and is returned. A log that is being written to may be walked: what
// was appended meanwhile may be missed. What fn was shown of records behind Report.Last lies behind an unfinished write and is no part of the
// log. The entry's slices are valid only during fn.
func Walk(ctx context.Context, dir string, o VerifyOptions, fn func(Entry) error) (Report, error) {
	if o.FS == nil {
		o.FS = OS()
	}
	segs, _, err := listSegments(o.FS, dir)
	if err != nil {
		return Report{}, err
	}
	r := &reader{fs: o.FS, dir: dir, store: o.StoreID, segs: segs, limit: -1, seq: 1, chain: genesis(o.StoreID), linked: true, seen: fn}
	defer r.close()
	s, err := survey(ctx, r, o.AppliedSeq)
	if err != nil {
		return Report{}, fmt.Errorf("walk the journal: %w", err)
	}
	s.Segments, s.Bytes = len(segs), r.bytes
	return s.Report, nil
}
