package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// limitOptions say how far limits goes.
type limitOptions struct {
	dir      string
	holdfast string // the program
	files    int
	stream   int64
	lists    []int // directory sizes
	log      *slog.Logger
}

const (
	mountGoal     = 2 * time.Second
	walkRSSGoal   = 300 << 10 // KiB
	streamRSSGoal = 200 << 10 // KiB
)

// runLimits measures what Holdfast must bear, and prints a table of it.
func runLimits(ctx context.Context, out io.Writer, o limitOptions) (err error) {
	base, err := scratch(o.dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(base)) }()
	t := &table{left: 2, head: []string{"limit", "result", "is", "should be"}}
	for _, step := range []func(context.Context, limitOptions, string, *table) error{limitFiles, limitLists, limitStream} {
		if err := step(ctx, o, base, t); err != nil {
			return err
		}
	}
	return t.text(out)
}

func mark(ok bool) string {
	if ok {
		return "pass"
	}
	return "short"
}

// withHoldfast runs use on a mount of a new store.
func withHoldfast(ctx context.Context, o limitOptions, base string, use func(t *turn, s *served) error) (err error) {
	s := newHoldfast(filepath.Join(base, nameHoldfast), o.holdfast, o.log)
	defer func() { err = errors.Join(err, s.Stop()) }()
	if err := s.Start(ctx); err != nil {
		return err
	}
	return use(&turn{target: s, seed: 1, scale: fullScale(), log: o.log, root: os.Geteuid() == 0, sync: syncToDisk, look: quietEvery}, s)
}

// limitFiles makes many small files through the mount, by one worker, mounts the store anew and lets find walk it with a stat of each.
func limitFiles(ctx context.Context, o limitOptions, base string, tab *table) error {
	if err := checkFree(base, int64(o.files)*8<<10); err != nil {
		return err
	}
	return withHoldfast(ctx, o, base, func(t *turn, s *served) error {
		o.log.Info("making files through the mount", "files", o.files)
		m, err := t.runIn(ctx, workloadDir, job{Op: "create-tree", Files: o.files, Size: 64})
		if err != nil {
			return err
		}
		o.log.Info("files made", "per second", int(m.opsRate()))
		if err := t.settle(ctx); err != nil {
			return err
		}
		if err := s.unmount(); err != nil {
			return err
		}
		start := time.Now()
		if err := s.mount(ctx); err != nil {
			return err
		}
		took := time.Since(start)
		tab.add(fmt.Sprintf("mount a store of %d files", o.files), mark(took < mountGoal), took.Round(time.Millisecond).String(), "< "+mountGoal.String())
		start = time.Now()
		peak, err := watchRSS(ctx, s.PID(), func(ctx context.Context) error { return find(ctx, filepath.Join(s.mnt, workloadDir), o.files) })
		if err != nil {
			return err
		}
		tab.add(fmt.Sprintf("resident memory while find walks and stats them (%s)", time.Since(start).Round(time.Millisecond)),
			mark(peak < walkRSSGoal), mib(peak), "< "+mib(walkRSSGoal))
		return nil
	})
}

// find counts regular files with find(1), which stats each to print its size.
func find(ctx context.Context, dir string, want int) error {
	cmd := exec.CommandContext(ctx, "find", dir, "-type", "f", "-printf", "%s\n")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("walk %s: %w", dir, err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("walk %s: %w", dir, err)
	}
	n := 0
	for s := bufio.NewScanner(out); s.Scan(); {
		n++
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("walk %s: %w: %s", dir, err, stderr.String())
	}
	if n != want {
		return fmt.Errorf("find saw %d files of %d in %s", n, want, dir)
	}
	return nil
}

// limitLists times the listing of ever larger directories, the kernel knowing nothing of them: the time for an entry must not grow.
func limitLists(ctx context.Context, o limitOptions, base string, tab *table) error {
	return withHoldfast(ctx, o, base, func(t *turn, s *served) error {
		var first time.Duration
		for i, n := range o.lists {
			name := fmt.Sprintf("list%d", n)
			if _, err := t.runIn(ctx, name, job{Op: "create", Files: n, Size: 16}); err != nil {
				return err
			}
			if err := t.settle(ctx); err != nil {
				return err
			}
			if _, err := s.Restart(ctx); err != nil {
				return err
			}
			j := job{Op: "list", Dir: filepath.Join(s.mnt, name), Files: n, Ops: 1}
			cold, err := t.run(ctx, j)
			if err != nil {
				return err
			}
			j.Warm = true
			warm, err := t.run(ctx, j)
			if err != nil {
				return err
			}
			each := time.Duration(cold.EndNS-cold.StartNS) / time.Duration(n)
			if i == 0 {
				first = each
			}
			tab.add(fmt.Sprintf("list %d entries with stat, first after a mount", n), mark(each < 2*first || i == 0),
				fmt.Sprintf("%s, %s each; again %s", round(cold), each, round(warm)), fmt.Sprintf("< %s each", 2*first))
		}
		return nil
	})
}

func round(m measured) time.Duration {
	return time.Duration(m.EndNS - m.StartNS).Round(time.Millisecond)
}

// limitStream writes a file of 10 GiB and reads it back after a restart; both sides are hashed.
func limitStream(ctx context.Context, o limitOptions, base string, tab *table) error {
	if err := checkFree(base, 2*o.stream+2<<30); err != nil {
		return err
	}
	return withHoldfast(ctx, o, base, func(t *turn, s *served) error {
		var wrote, read measured
		peak, err := watchRSS(ctx, s.PID(), func(ctx context.Context) (err error) {
			wrote, err = t.runIn(ctx, workloadDir, job{Op: "hash-write", Size: o.stream})
			return err
		})
		if err != nil {
			return err
		}
		tab.add(fmt.Sprintf("resident memory while %d MiB are written (%.0f MiB/s)", o.stream>>20, wrote.byteRate()),
			mark(peak < streamRSSGoal), mib(peak), "< "+mib(streamRSSGoal))
		if _, err := s.Restart(ctx); err != nil {
			return err
		}
		peak, err = watchRSS(ctx, s.PID(), func(ctx context.Context) (err error) {
			read, err = t.run(ctx, job{Op: "hash-read", Dir: filepath.Join(s.mnt, workloadDir), Size: o.stream, Seed: t.seed})
			return err
		})
		if err != nil {
			return err
		}
		tab.add(fmt.Sprintf("resident memory while they are read after a restart (%.0f MiB/s)", read.byteRate()),
			mark(peak < streamRSSGoal), mib(peak), "< "+mib(streamRSSGoal))
		if wrote.Sum != read.Sum {
			return fmt.Errorf("what was read has the SHA-256 %s, what was written %s", read.Sum, wrote.Sum)
		}
		tab.add("content of what was read", mark(true), "sha256 "+read.Sum[:16]+"...", "equal")
		return nil
	})
}

func mib(kib int64) string { return fmt.Sprintf("%d MiB", kib>>10) }

// watchRSS returns the largest resident size, in KiB, that the process had while do ran: what the kernel kept as the high-water mark, and what
// was seen every 20 ms, whichever is larger. The mark is of the process's whole life, so the process should be fresh.
func watchRSS(ctx context.Context, pid int, do func(ctx context.Context) error) (int64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var peak int64
	var seen error
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			rss, hwm, err := residentKiB(pid)
			if err != nil {
				seen = err
				return
			}
			peak = max(peak, rss, hwm)
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
	err := do(ctx)
	cancel()
	wg.Wait()
	return peak, errors.Join(err, seen)
}

func residentKiB(pid int) (rss, hwm int64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, fmt.Errorf("look at the server's memory: %w", err)
	}
	return parseResident(b)
}

// parseResident reads VmRSS and VmHWM, in KiB, of /proc/PID/status.
func parseResident(status []byte) (rss, hwm int64, err error) {
	found := 0
	for line := range strings.Lines(string(status)) {
		f := strings.Fields(line)
		if len(f) != 3 || f[0] != "VmRSS:" && f[0] != "VmHWM:" {
			continue
		}
		n, e := strconv.ParseInt(f[1], 10, 64)
		if e != nil || n < 0 || f[2] != "kB" {
			return 0, 0, fmt.Errorf("look at the server's memory: %w: %q", errProcStat, line)
		}
		found++
		if f[0] == "VmRSS:" {
			rss = n
		} else {
			hwm = n
		}
	}
	if found != 2 {
		return 0, 0, fmt.Errorf("look at the server's memory: %w: no VmRSS and VmHWM", errProcStat)
	}
	return rss, hwm, nil
}
