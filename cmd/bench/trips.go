package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Trip is the second table's row: how many FUSE requests an operation takes.
type Trip struct {
	Name   string                `json:"name"`
	What   string                `json:"what"`
	Counts map[string]TripCounts `json:"counts"` // by target
}

// TripCounts are the requests that a target received for a number of operations.
type TripCounts struct {
	Ops      int               `json:"ops"`
	Requests map[string]uint64 `json:"requests"` // by opcode, without FUSE_
}

// tripDef is an operation whose requests are counted. fewest and fewestWriteback are the requests that the kernel's protocol needs for
// one of them at least, without and with WRITEBACK_CACHE; docs/benchmarks.md says why.
type tripDef struct {
	name            string
	what            string
	fewest          string
	fewestWriteback string
	run             func(ctx context.Context, t *turn, h hooks) (ops int, err error)
}

const (
	tripOps   = 500
	tripLists = 10
)

func tripDefs() []tripDef {
	one := func(j job) func(context.Context, *turn, hooks) (int, error) {
		return func(ctx context.Context, t *turn, h hooks) (int, error) {
			dir, err := t.mkdir(workloadDir)
			if err != nil {
				return 0, err
			}
			j.Dir, j.Seed = dir, t.seed
			m, err := runJobs(ctx, []job{j}, h)
			return m.Ops, err
		}
	}
	small := func(op string) func(context.Context, *turn, hooks) (int, error) {
		return one(job{Op: op, Files: tripOps, Size: smallSize, Ops: tripOps})
	}
	list := func(ctx context.Context, t *turn, h hooks) (int, error) {
		j, err := t.listed(ctx)
		if err != nil {
			return 0, err
		}
		j.Ops, j.Warm, j.Max = tripLists, true, 0
		_, err = runJobs(ctx, []job{j}, h)
		return tripLists, err
	}
	return []tripDef{
		{"create", "create, write 1 KiB, close", "LOOKUP CREATE WRITE FLUSH RELEASE", "LOOKUP CREATE WRITE FLUSH RELEASE", small("create")},
		{"overwrite", "open with O_TRUNC, write 1 KiB, close", "OPEN WRITE FLUSH RELEASE", "OPEN WRITE SETATTR FLUSH RELEASE", small("overwrite")},
		{"replace", "create a temporary file, rename it over the old one", "LOOKUP CREATE WRITE FLUSH RELEASE LOOKUP RENAME",
			"LOOKUP CREATE WRITE FLUSH RELEASE LOOKUP RENAME SETATTR SETATTR", small("replace")},
		{"read", "open, read 1 KiB, close; warm", "OPEN RELEASE", "OPEN FLUSH RELEASE", small("read")},
		{"stat", "stat, warm", "", "", small("stat")},
		{"append-reopen", "open, append 200 B, close", "OPEN WRITE FLUSH RELEASE", "OPEN WRITE FLUSH RELEASE",
			one(job{Op: "append", Size: logSize, Ops: tripOps})},
		{"append-open", "append 200 B to an open log", "WRITE", "", one(job{Op: "append-open", Size: logSize, Ops: tripOps})},
		{"move", "rename into another directory", "LOOKUP RENAME", "LOOKUP RENAME SETATTR", small("move")},
		{"unlink", "unlink", "UNLINK", "UNLINK SETATTR", small("unlink")},
		{"list", "list 2,000 entries with stat, warm", "", "", list},
	}
}

// countTrips counts the requests of one operation on one target. ok is false when the target does not count.
func countTrips(ctx context.Context, d tripDef, t *turn) (c TripCounts, ok bool, err error) {
	var before map[string]uint64
	h := hooks{
		prepared: func() error { return t.settle(ctx) },
		warmed: func() (err error) {
			before, err = t.target.Counters(ctx)
			return err
		},
	}
	ops, err := d.run(ctx, t, h)
	if errors.Is(err, errNoCounters) {
		return c, false, nil
	}
	if err != nil {
		return c, false, err
	}
	// RELEASE and the writing of pages come after the operation that causes them.
	if err := t.settle(ctx); err != nil {
		return c, false, err
	}
	after, err := t.target.Counters(ctx)
	if err != nil {
		return c, false, err
	}
	requests := difference(before, after)
	delete(requests, "FSYNCDIR") // settle sends them, no operation does
	return TripCounts{Ops: ops, Requests: requests}, true, nil
}

// difference is what was counted between two looks.
func difference(before, after map[string]uint64) map[string]uint64 {
	d := map[string]uint64{}
	for op, n := range after {
		if m := before[op]; n > m {
			d[op] = n - m
		}
	}
	return d
}

// unanswered are requests without a reply: the kernel sends them when it likes and nobody waits.
func unanswered(op string) bool {
	return op == "FORGET" || op == "BATCH_FORGET" || op == "INTERRUPT"
}

// perOp is the number of answered requests for one operation.
func (c TripCounts) perOp() float64 {
	var n uint64
	for op, k := range c.Requests {
		if !unanswered(op) {
			n += k
		}
	}
	return float64(n) / float64(c.Ops)
}

// detail lists the requests of one operation, most frequent first; one that comes in less than one of a hundred operations is left out.
func (c TripCounts) detail() string {
	ops := slices.SortedFunc(maps.Keys(c.Requests), func(a, b string) int {
		if c.Requests[a] != c.Requests[b] {
			return int(min(max(int64(c.Requests[b])-int64(c.Requests[a]), -1), 1))
		}
		return strings.Compare(a, b)
	})
	var parts []string
	for _, op := range ops {
		n := float64(c.Requests[op]) / float64(c.Ops)
		switch {
		case unanswered(op) || n < 0.01:
		case n > 0.995 && n < 1.005:
			parts = append(parts, op)
		default:
			parts = append(parts, fmt.Sprintf("%s %.2f", op, n))
		}
	}
	return strings.Join(parts, ", ")
}

// tripTable is the second table.
func tripTable(r *Result) *table {
	t := &table{left: 1, head: []string{"operation", nameHoldfast, nameFloor, "fewest", "fewest with writeback cache"}}
	t.left = len(t.head)
	count := func(tr Trip, target string) string {
		c, ok := tr.Counts[target]
		if !ok {
			return none
		}
		return strings.TrimSuffix(fmt.Sprintf("%.2f (%s)", c.perOp(), c.detail()), " ()")
	}
	fewest := func(requests string) string {
		f := strings.Fields(requests)
		return strings.TrimSuffix(fmt.Sprintf("%d (%s)", len(f), strings.Join(f, ", ")), " ()")
	}
	for _, d := range tripDefs() {
		i := slices.IndexFunc(r.Trips, func(x Trip) bool { return x.Name == d.name })
		if i < 0 {
			continue
		}
		t.add(d.what, count(r.Trips[i], nameHoldfast), count(r.Trips[i], nameFloor), fewest(d.fewest), fewest(d.fewestWriteback))
	}
	return t
}
