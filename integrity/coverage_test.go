package integrity

import (
	"testing"
	"time"
)

// TestCoverageIsNotClaimedForCyclesThatWereBrokenOff: a cycle that is begun anew in its middle has not checked everything, and neither has one that had to skip something.
func TestCoverageIsNotClaimedForCyclesThatWereBrokenOff(t *testing.T) {
	day := func(n int) time.Time { return time.Date(2026, 1, n, 0, 0, 0, 0, time.UTC) }
	var r scrubRecord
	r.begin(day(1), false)
	if !r.Before.IsZero() {
		t.Error("the first cycle claims that another was before it")
	}
	r.begin(day(8), true)
	if !r.Before.Equal(day(1)) {
		t.Errorf("checked after %v", r.Before)
	}
	r.begin(day(12), false) // somebody asks for a cycle
	r.begin(day(13), false) // and for another
	if !r.Before.Equal(day(1)) || r.Cycle != 4 {
		t.Errorf("what the cycles that were broken off did not reach was checked after %v, and not after %v", day(1), r.Before)
	}
	if r.begin(day(14), true); !r.Before.Equal(day(13)) {
		t.Errorf("checked after %v", r.Before)
	}
}
