package main

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// Row names. Each row is a rate, so more is better in all of them.
const (
	rowCreate1       = "create-1"
	rowCreate4       = "create-4"
	rowCreateFsync   = "create-fsync"
	rowSustained     = "create-sustained"
	rowSettled       = "create-settled"
	rowStat          = "stat-warm"
	rowRead          = "read-warm"
	rowListWarm      = "list-warm"
	rowListCold      = "list-cold"
	rowOverwrite     = "overwrite"
	rowReplace       = "replace"
	rowMove          = "move"
	rowUnlink        = "unlink"
	rowAppend        = "append-reopen"
	rowAppendOpen    = "append-open"
	rowWrite4K       = "write-4k"
	rowWrite4KClose  = "write-4k-close"
	rowLargeWrite    = "large-write"
	rowLargeFirst    = "large-read-first"
	rowLargeAgain    = "large-read-again"
	rowLargeCold     = "large-read-cold"
	rowTextWrite     = "text-write"
	rowTextFirst     = "text-read-first"
	rowTextAgain     = "text-read-again"
	unitOps          = "op/s"
	unitMiB          = "MiB/s"
	smallSize        = 1 << 10
	logSize          = 4 << 20
	listEntries      = 2000
	parallelWorkers  = 4
	workloadDir      = "w"
	defaultRounds    = 3
	seedStride       = 1 << 20
	fullLargeSize    = 1 << 30
	fullWrite4KSize  = 256 << 20
	quickLargeSize   = 128 << 20
	quickWrite4KSize = 64 << 20
)

// rowDef describes a row.
type rowDef struct {
	Name string
	What string
	Unit string
}

// scale says how much is done in a turn.
type scale struct {
	hashed    int // bytes, for the speed of SHA-256
	warmUp    int // operations of each kind before anything is timed
	small     int // files of 1 KiB
	stats     int
	reads     int
	lists     int // listings of 2,000 entries, warm
	coldLists int
	fsyncs    int
	appends   int
	lines     int // appended to a log that stays open
	sustained int // files
	large     int64
	file4K    int64
	writes4K  int
	max       time.Duration // for one timed part of small operations
	past      pastScale
}

func fullScale() scale {
	return scale{hashed: 256 << 20, warmUp: 200, small: 5000, stats: 250_000, reads: 50_000, lists: 60, coldLists: 5, fsyncs: 1000, appends: 5000, lines: 400_000,
		sustained: 50_000, large: fullLargeSize, file4K: fullWrite4KSize, writes4K: 20_000, max: 4 * time.Second,
		past: pastScale{few: 10_000, many: 1_000_000, versions: 1_000_000, snapshots: 500, moments: 1000}}
}

// quickScale shows that everything works; its figures are rough.
func quickScale() scale {
	return scale{hashed: 256 << 20, warmUp: 200, small: 1000, stats: 25_000, reads: 5000, lists: 10, coldLists: 2, fsyncs: 100, appends: 1000, lines: 40_000,
		sustained: 5000, large: quickLargeSize, file4K: quickWrite4KSize, writes4K: 4000, max: 2 * time.Second,
		past: pastScale{few: 1000, many: 20_000, versions: 20_000, snapshots: 100, moments: 200}}
}

// workload is measured in one go; it gives the value of one row or more.
type workload struct {
	rows []rowDef
	run  func(ctx context.Context, t *turn) (map[string]float64, error)
}

func workloads() []workload {
	return slices.Concat(smallWorkloads(), largeWorkloads(), historyWorkloads(), integrityWorkloads())
}

// single is a workload of one job whose rate of operations is its only row.
func single(row, what string, mk func(s scale) job) workload {
	return workload{[]rowDef{{row, what, unitOps}}, func(ctx context.Context, t *turn) (map[string]float64, error) {
		m, err := t.runIn(ctx, workloadDir, mk(t.scale))
		return map[string]float64{row: m.opsRate()}, err
	}}
}

// runIn runs a job in a new directory.
func (t *turn) runIn(ctx context.Context, name string, j job) (measured, error) {
	dir, err := t.mkdir(name)
	if err != nil {
		return measured{}, err
	}
	j.Dir, j.Seed = dir, t.seed
	return t.run(ctx, j)
}

func smallWorkloads() []workload {
	return []workload{
		single(rowCreate1, "create, write 1 KiB, close; 1 worker", func(s scale) job {
			return job{Op: "create", Files: s.small, Size: smallSize, Max: s.max}
		}),
		{[]rowDef{{rowCreate4, "create, write 1 KiB, close; 4 workers, a directory each", unitOps}}, runCreate4},
		single(rowCreateFsync, "create, write 1 KiB, fsync, close", func(s scale) job {
			return job{Op: "create", Files: s.fsyncs, Size: smallSize, Sync: true, Max: s.max}
		}),
		{[]rowDef{
			{rowSustained, "create, write 1 KiB, close; 50,000 files in 50 directories", unitOps},
			{rowSettled, "the same, until sync has returned and the server rests", unitOps},
		}, runSustained},
		single(rowStat, "stat of 1 KiB files, warm", func(s scale) job {
			return job{Op: "stat", Files: s.small, Size: smallSize, Ops: s.stats, Max: s.max}
		}),
		single(rowRead, "open, read 1 KiB, close; warm", func(s scale) job {
			return job{Op: "read", Files: s.small, Size: smallSize, Ops: s.reads, Max: s.max}
		}),
		{[]rowDef{{rowListWarm, "list with stat, 2,000 entries, warm (entries)", unitOps}}, runListWarm},
		{[]rowDef{{rowListCold, "list with stat, 2,000 entries, kernel's entries dropped", unitOps}}, runListCold},
		single(rowOverwrite, "open with O_TRUNC, write 1 KiB, close", func(s scale) job {
			return job{Op: "overwrite", Files: s.small, Size: smallSize, Max: s.max}
		}),
		single(rowReplace, "temporary file of 1 KiB, rename over the old one", func(s scale) job {
			return job{Op: "replace", Files: s.small, Size: smallSize, Max: s.max}
		}),
		single(rowMove, "rename into another directory", func(s scale) job {
			return job{Op: "move", Files: s.small, Size: smallSize, Max: s.max}
		}),
		single(rowUnlink, "unlink", func(s scale) job {
			return job{Op: "unlink", Files: s.small, Size: smallSize, Max: s.max}
		}),
		single(rowAppend, "append 200 B to a log of 4 MiB, opened for each", func(s scale) job {
			return job{Op: "append", Size: logSize, Ops: s.appends, Max: s.max}
		}),
		single(rowAppendOpen, "append 200 B to a log of 4 MiB, kept open", func(s scale) job {
			return job{Op: "append-open", Size: logSize, Ops: s.lines, Max: s.max}
		}),
	}
}

func runCreate4(ctx context.Context, t *turn) (map[string]float64, error) {
	jobs := make([]job, parallelWorkers)
	for i := range jobs {
		dir, err := t.mkdir(fmt.Sprintf("agent%d", i))
		if err != nil {
			return nil, err
		}
		jobs[i] = job{Op: "create", Dir: dir, Files: t.scale.small / 2, Size: smallSize, Max: t.scale.max, Seed: t.seed + uint64(i)<<32}
	}
	m, err := t.run(ctx, jobs...)
	return map[string]float64{rowCreate4: m.opsRate()}, err
}

// runSustained fills 50 directories one after the other, in one go.
func runSustained(ctx context.Context, t *turn) (map[string]float64, error) {
	dir, err := t.mkdir(workloadDir)
	if err != nil {
		return nil, err
	}
	m, err := t.run(ctx, job{Op: "create-tree", Dir: dir, Files: t.scale.sustained, Size: smallSize, Seed: t.seed})
	if err != nil {
		return nil, err
	}
	rest, err := t.settledAt(ctx)
	if err != nil {
		return nil, err
	}
	settled := m
	settled.EndNS = max(rest, m.EndNS)
	return map[string]float64{rowSustained: m.opsRate(), rowSettled: settled.opsRate()}, nil
}

func (t *turn) listed(ctx context.Context) (job, error) {
	_, err := t.runIn(ctx, workloadDir, job{Op: "create", Files: listEntries, Size: 16})
	return job{Op: "list", Dir: t.target.Dir() + "/" + workloadDir, Files: listEntries, Max: t.scale.max}, err
}

func runListWarm(ctx context.Context, t *turn) (map[string]float64, error) {
	j, err := t.listed(ctx)
	if err != nil {
		return nil, err
	}
	j.Ops, j.Warm = t.scale.lists, true
	m, err := t.run(ctx, j)
	return map[string]float64{rowListWarm: m.opsRate()}, err
}

func runListCold(ctx context.Context, t *turn) (map[string]float64, error) {
	if !t.root {
		return nil, nil
	}
	j, err := t.listed(ctx)
	if err != nil {
		return nil, err
	}
	j.Ops = 1
	var ops int
	var ns int64
	for range t.scale.coldLists {
		m, err := t.runCold(ctx, 2, j)
		if err != nil {
			return nil, err
		}
		ops += m.Ops
		ns += m.EndNS - m.StartNS
	}
	return map[string]float64{rowListCold: float64(ops) / seconds(ns)}, nil
}

func largeWorkloads() []workload {
	return []workload{
		{[]rowDef{
			{rowWrite4K, "write 4 KiB at random in 256 MiB, kept open: the calls", unitOps},
			{rowWrite4KClose, "the same, until close has returned", unitOps},
		}, runWrite4K},
		{[]rowDef{
			{rowLargeWrite, "write 1 GiB (random bytes) by 1 MiB, until close has returned", unitMiB},
			{rowLargeFirst, "read it for the first time after a restart", unitMiB},
			{rowLargeAgain, "read it again", unitMiB},
			{rowLargeCold, "read it after a restart, with nothing cached of the disk", unitMiB},
		}, func(ctx context.Context, t *turn) (map[string]float64, error) {
			return runLarge(ctx, t, false, rowLargeWrite, rowLargeFirst, rowLargeAgain, rowLargeCold)
		}},
		{[]rowDef{
			{rowTextWrite, "write 1 GiB (log lines) by 1 MiB, until close has returned", unitMiB},
			{rowTextFirst, "read it for the first time after a restart", unitMiB},
			{rowTextAgain, "read it again", unitMiB},
		}, func(ctx context.Context, t *turn) (map[string]float64, error) {
			return runLarge(ctx, t, true, rowTextWrite, rowTextFirst, rowTextAgain, "")
		}},
	}
}

func runWrite4K(ctx context.Context, t *turn) (map[string]float64, error) {
	m, err := t.runIn(ctx, workloadDir, job{Op: "write-4k", Size: t.scale.file4K, Ops: t.scale.writes4K, Max: t.scale.max})
	return map[string]float64{rowWrite4K: m.opsRate(), rowWrite4KClose: m.closeRate()}, err
}

// runLarge writes one large file and reads it in two or three ways. A target that cannot be restarted (the disk, the floor, which forgets)
// has its pages dropped instead, which needs root; without it those rows stay empty for it.
func runLarge(ctx context.Context, t *turn, text bool, write, first, again, cold string) (map[string]float64, error) {
	v := map[string]float64{}
	j := job{Op: "write-large", Size: t.scale.large, Text: text}
	m, err := t.runIn(ctx, workloadDir, j)
	if err != nil {
		return nil, err
	}
	v[write] = m.byteRate()

	j.Op, j.Dir, j.Seed = "read-large", t.target.Dir()+"/"+workloadDir, t.seed
	read := func(row string, drop bool) error {
		var m measured
		var err error
		if drop {
			m, err = t.runCold(ctx, 3, j)
		} else {
			m, err = t.run(ctx, j)
		}
		v[row] = m.byteRate()
		return err
	}
	if err := t.settle(ctx); err != nil {
		return nil, err
	}
	restarted, err := t.target.Restart(ctx)
	if err != nil {
		return nil, err
	}
	if restarted || t.root {
		if err := read(first, !restarted); err != nil {
			return nil, err
		}
	}
	if err := read(again, false); err != nil {
		return nil, err
	}
	if cold == "" || !t.root {
		return v, nil
	}
	if _, err := t.target.Restart(ctx); err != nil {
		return nil, err
	}
	return v, read(cold, true)
}
