package audit

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"holdfast/catalog"
	"holdfast/catalog/journal"
)

// finish turns what was seen into problems.
func (v *verifier) finish(jr journal.Report) {
	r := &v.rep
	r.Segments, r.Bytes, r.Records, r.Last = jr.Segments, jr.Bytes, jr.Entries, catalog.Seq(jr.Last)
	if jr.Tail != nil {
		r.Torn = jr.Tail.Error()
	}
	for _, d := range jr.Damage {
		v.damage(d)
	}
	if v.dropped > v.horizon {
		v.add(Problem{Kind: KindDropped, File: v.droppedP.file, Offset: v.droppedP.off, Record: v.dropped, Last: v.dropped,
			Details: fmt.Sprintf("what record %d said was taken away, and no record of retention says that it may be", v.dropped)})
	}
	v.missed()
	v.short()
	switch {
	case v.badNode != nil:
		v.add(Problem{Kind: KindTree, File: DirName + "/" + treeName, Record: v.badNode.seq, Last: v.badNode.seq,
			Details: fmt.Sprintf("it holds a wrong hash at record %d", v.badNode.seq)})
	case v.differ != nil && len(v.bad) == 0:
		v.add(Problem{Kind: KindTree, File: DirName + "/" + treeName, Record: v.differ.seq, Last: v.differ.seq,
			Details: fmt.Sprintf("it does not hold the hash of record %d", v.differ.seq)})
	}
	slices.SortStableFunc(r.Problems, func(a, b Problem) int { return cmp.Compare(a.Record, b.Record) })
	r.OK = len(r.Problems) == 0
}

// damage tells of a damaged or missing stretch of the journal.
func (v *verifier) damage(d *journal.DamageError) {
	if d.Kind == journal.Missing && catalog.Seq(d.First) > v.prev.seq && len(v.targets) > 0 {
		return // short tells it better
	}
	p := Problem{Kind: KindDamaged, File: "journal/" + d.Segment, Offset: d.Offset, Details: d.Error()}
	if d.Kind == journal.Missing {
		p.Kind = KindMissing
	}
	if d.Segment == "" {
		p.File = "journal"
	}
	if d.Last >= d.First {
		p.Record, p.Last = catalog.Seq(d.First), catalog.Seq(d.Last)
		at, ok := v.gaps[p.Record]
		if !ok && p.Record > v.prev.seq {
			at = v.prev.time
		}
		if p.Time = nanos(at); p.Time != nil {
			p.Details += fmt.Sprintf("; the record before it is of %s", p.Time.Format(time.RFC3339Nano))
		}
	}
	v.add(p)
}

// missed tells of the tree heads that the log does not lead to.
func (v *verifier) missed() {
	for len(v.targets) > 0 && catalog.Seq(v.targets[0].Size) <= v.rep.Last {
		v.miss(v.targets[0])
		v.targets = v.targets[1:]
	}
	if len(v.bad) == 0 {
		return
	}
	p := Problem{Kind: KindAltered, File: v.badAt.file, Offset: v.badAt.off, Record: v.badAt.seq, Last: v.badLast, Time: nanos(v.badAt.time)}
	what := fmt.Sprintf("one of the records %d to %d is not what was signed", p.Record, p.Last)
	if p.Record == p.Last {
		what = fmt.Sprintf("record %d is not the one that was signed", p.Record)
	}
	p.Details = fmt.Sprintf("%s: %d tree heads, the first of %s over %d records, do not hold", what, len(v.bad), v.bad[0].Time.Format(time.RFC3339), v.bad[0].Size)
	v.add(p)
	for _, t := range v.bad {
		if t.since {
			v.add(Problem{Kind: KindRollback, File: "journal", Record: p.Record, Last: p.Last, Time: &t.Time,
				Details: fmt.Sprintf("the log does not extend the tree head of %s over %d records that was kept elsewhere", t.Time.Format(time.RFC3339), t.Size)})
		}
	}
}

// short tells of tree heads that cover more records than there are.
func (v *verifier) short() {
	if len(v.targets) == 0 {
		return
	}
	last, n := v.targets[len(v.targets)-1], len(v.targets)
	v.add(Problem{Kind: KindMissing, File: cmp.Or(v.prev.file, "journal"), Offset: v.prev.off, Record: v.rep.Last + 1, Last: catalog.Seq(last.Size), Time: &last.Time,
		Details: fmt.Sprintf("the journal ends with record %d, and %d signed tree heads, the newest of %s, cover more: records %d to %d are missing",
			v.rep.Last, n, last.Time.Format(time.RFC3339), v.rep.Last+1, last.Size)})
	for _, t := range v.targets {
		if t.since {
			v.add(Problem{Kind: KindRollback, File: "journal", Record: v.rep.Last + 1, Last: catalog.Seq(t.Size), Time: &t.Time,
				Details: fmt.Sprintf("the store is older than the tree head of %s over %d records that was kept elsewhere", t.Time.Format(time.RFC3339), t.Size)})
		}
	}
}
