package integrity

import (
	"context"
	"strings"
)

// How the names begin of what is listed and is no content of the store.
const (
	inodeID  = "inode "
	secondID = "second copy of "
)

// listVersions lists a file whose versions or sizes contradict each other, or takes it off the list. Times are not damage: clocks are set.
func (e *Engine) listVersions(ctx context.Context, id string, f *versionFacts) {
	var all []string
	for _, list := range [][]string{f.chain, f.sizes, f.numbers} {
		all = append(all, list...)
	}
	if len(all) == 0 {
		e.unlist(ctx, id)
		return
	}
	e.list(ctx, &damagedRow{dataID: id, since: e.now(), details: strings.Join(all, "; ")})
}

// listOther lists what is no content and could not be healed, or takes it off the list.
func (e *Engine) listOther(ctx context.Context, id string, healthy bool, details string) {
	if healthy {
		e.unlist(ctx, id)
		return
	}
	e.list(ctx, &damagedRow{dataID: id, since: e.now(), details: details})
}

// walk is what a walk through the journal, or through catalog.db, has found damaged. The slices of the scrub make one walk together.
type walk struct {
	whole bool // it began at the first record, in this process
	bad   map[string]bool
}

func (w *walk) begin() { *w = walk{whole: true, bad: make(map[string]bool)} }

// journalEnds takes records off the list that a whole walk has found intact.
func (e *Engine) journalEnds(ctx context.Context, w *walk) {
	if !w.whole {
		return
	}
	e.mu.Lock()
	var gone []string
	for id := range e.waiting {
		if strings.HasPrefix(id, journalID+" ") && !w.bad[id] {
			gone = append(gone, id)
		}
	}
	e.mu.Unlock()
	for _, id := range gone {
		e.unlist(ctx, id)
	}
}

// listed says how many contents are listed as damaged, and what else.
func (s *Status) listed() string {
	var parts []string
	if n := s.Damaged - s.Others; n > 0 {
		parts = append(parts, plural(n, "content is damaged", "contents are damaged"))
	}
	if s.Others > 0 {
		parts = append(parts, plural(s.Others, "damage to journal, catalog, history or second copies is not healed", "damages to journal, catalog, history or second copies are not healed"))
	}
	return strings.Join(parts, ", ") + " (see .integrity/manual)"
}
