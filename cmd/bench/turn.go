package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// turn is one round of one workload on one target, which is started before and stopped after it.
type turn struct {
	target target
	scale  scale
	seed   uint64 // differs for each round and workload: no content is written twice
	log    *slog.Logger
	root   bool                   // caches can be dropped
	sync   func(dir string) error // syncToDisk
	look   time.Duration          // between two looks whether the server rests: quietEvery
}

// begin starts the target and does a few operations of each kind, so that no lazily made thing of the server is timed.
func (t *turn) begin(ctx context.Context) error {
	if err := t.target.Start(ctx); err != nil {
		return err
	}
	dir, err := t.mkdir("warm-up")
	if err != nil {
		return err
	}
	for _, op := range []string{"create", "read", "overwrite"} {
		n := t.scale.warmUp
		sub := filepath.Join(dir, op)
		if err := os.Mkdir(sub, 0o755); err != nil {
			return err
		}
		if _, err := t.run(ctx, job{Op: op, Dir: sub, Files: n, Size: smallSize, Ops: n, Seed: t.seed ^ 1<<50}); err != nil {
			return fmt.Errorf("warm up: %w", err)
		}
	}
	return t.settle(ctx)
}

// mkdir makes a directory in the target.
func (t *turn) mkdir(name string) (string, error) {
	dir := filepath.Join(t.target.Dir(), name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", fmt.Errorf("make a directory to work in: %w", err)
	}
	return dir, nil
}

// run prepares jobs, waits until what that caused in the background is done, and runs them.
func (t *turn) run(ctx context.Context, jobs ...job) (measured, error) {
	return runJobs(ctx, jobs, hooks{prepared: func() error { return t.settle(ctx) }})
}

// runCold is run with the kernel's entries and inodes dropped (level 2), or its pages too (level 3), just before the clock starts.
func (t *turn) runCold(ctx context.Context, level int, jobs ...job) (measured, error) {
	return runJobs(ctx, jobs, hooks{
		prepared: func() error { return t.settle(ctx) },
		warmed:   func() error { return dropCaches(level) },
	})
}

func dropCaches(level int) error {
	if err := os.WriteFile("/proc/sys/vm/drop_caches", strconv.AppendInt(nil, int64(level), 10), 0); err != nil {
		return fmt.Errorf("drop the kernel's caches: %w", err)
	}
	return nil
}

const (
	quietTicks = 4                     // so many looks in a row must see no processor time used
	quietEvery = 30 * time.Millisecond // between two looks, usually
	quietLimit = 2 * time.Minute
)

// settle waits until what was done is on the disk and the server rests, so that the background work of one step is not measured
// in the next: fsync(2) of the directory makes a server write out what it holds back, sync(2) the disk, and then the server's processor
// time must stand still for about 100 ms.
func (t *turn) settle(ctx context.Context) error {
	_, err := t.settledAt(ctx)
	return err
}

// settledAt is settle; it returns when (on the clock of now) the rest began.
func (t *turn) settledAt(ctx context.Context) (int64, error) {
	if err := t.sync(t.target.Dir()); err != nil {
		return 0, fmt.Errorf("settle: %w", err)
	}
	pid := t.target.PID()
	if pid == 0 {
		return now(), nil
	}
	limit := now() + int64(quietLimit)
	tick := time.NewTicker(t.look)
	defer tick.Stop()
	last, err := cpuTicks(pid)
	if err != nil {
		return 0, err
	}
	since, same := now(), 0
	for same < quietTicks {
		select {
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case <-tick.C:
		}
		used, err := cpuTicks(pid)
		if err != nil {
			return 0, err
		}
		if used != last {
			last, since, same = used, now(), 0
		} else {
			same++
		}
		if now() > limit {
			t.log.Warn("the server does not come to rest; its background work falls into what is measured next", "target", t.target.Name(), "waited", quietLimit)
			break
		}
	}
	return since, t.sync(t.target.Dir())
}

// syncToDisk brings what was done in dir, and everything else that is in memory, to the disk.
func syncToDisk(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = errors.Join(d.Sync(), d.Close())
	unix.Sync()
	return err
}

// cpuTicks is the processor time that a process has used, in clock ticks of 10 ms.
func cpuTicks(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("look at the server: %w", err)
	}
	n, err := parseCPUTicks(b)
	if err != nil {
		return 0, fmt.Errorf("look at the server: /proc/%d/stat: %w", pid, err)
	}
	return n, nil
}

var errProcStat = errors.New("not the format of proc(5)")

// parseCPUTicks adds utime and stime, fields 14 and 15; the command's name in field 2 may contain anything.
func parseCPUTicks(b []byte) (uint64, error) {
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return 0, errProcStat
	}
	f := bytes.Fields(b[i+1:])
	if len(f) < 13 {
		return 0, errProcStat
	}
	u, err1 := strconv.ParseUint(string(f[11]), 10, 64)
	s, err2 := strconv.ParseUint(string(f[12]), 10, 64)
	if err1 != nil || err2 != nil {
		return 0, errProcStat
	}
	return u + s, nil
}
