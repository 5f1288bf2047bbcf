package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/catalog"
	"holdfast/internal/control"
	"holdfast/internal/volume"
	"holdfast/snapshots"
)

// The rows of the past. Only Holdfast has them: its store is filled by the program's own packages, since a million files through a mount take minutes.
const (
	rowSnapshotFew  = "history-snapshot-few"
	rowSnapshotMany = "history-snapshot-many"
	rowMomentCold   = "history-moment-cold"
	rowMomentWarm   = "history-moment-warm"
	rowLog          = "history-log"
	rowLoad         = "history-load"
	rowLoadGC       = "history-load-gc"
	rowGC           = "history-gc"
	rowRestoreCP    = "history-restore-cp"
	rowRestore      = "history-restore"
	unitMoments     = "moments/s"
	unitVersions    = "versions/s"
)

// pastScale says how large the history is that is measured.
type pastScale struct {
	few, many int // files in the store
	versions  int // of one file
	snapshots int // made at each size
	moments   int // looked up
}

func historyWorkloads() []workload {
	return []workload{
		{[]rowDef{
			{rowSnapshotFew, "make a snapshot of a store of 10,000 files", unitOps},
			{rowSnapshotMany, "the same of 1,000,000 files", unitOps},
			{rowMomentCold, "stat a file of 1,000,000 in .snapshots/@v..., each another moment, after a restart", unitMoments},
			{rowMomentWarm, "the same moments again", unitMoments},
		}, onHoldfast(runPastFiles)},
		{[]rowDef{
			{rowLog, "log of a file with 1,000,000 versions", unitVersions},
			{rowLoad, "create, write 1 KiB, close beside them", unitOps},
			{rowLoadGC, "the same while gc thins them", unitOps},
			{rowGC, "that gc, until it has compacted the journal", unitVersions},
		}, onHoldfast(runPastVersions)},
		{[]rowDef{
			{rowRestoreCP, "cp of 1 GiB out of .snapshots, in the mount", unitMiB},
			{rowRestore, "restore of 1 GiB", unitMiB},
		}, onHoldfast(runPastRestore)},
	}
}

// onHoldfast leaves the rows empty for the other targets.
func onHoldfast(run func(ctx context.Context, t *turn, s *served) (map[string]float64, error)) func(context.Context, *turn) (map[string]float64, error) {
	return func(ctx context.Context, t *turn) (map[string]float64, error) {
		s, ok := t.target.(*served)
		if !ok || s.name != nameHoldfast {
			return nil, nil
		}
		return run(ctx, t, s)
	}
}

// store is where Holdfast, as newHoldfast makes it, has its store.
func (s *served) store() string { return filepath.Join(s.base, "store") }

// filled unmounts, lets fill change the store, and mounts it again.
func (s *served) filled(ctx context.Context, fill func(v *volume.Volume) error) (err error) {
	if err := s.unmount(); err != nil {
		return err
	}
	v, err := volume.Open(ctx, volume.Options{Dir: s.store()})
	if err != nil {
		return fmt.Errorf("fill the store: %w", err)
	}
	if err := errors.Join(fill(v), v.Close(ctx)); err != nil {
		return fmt.Errorf("fill the store: %w", err)
	}
	return s.mount(ctx)
}

// asked runs use with a connection to the daemon.
func (s *served) asked(ctx context.Context, use func(c *control.Client) error) error {
	c, err := control.Connect(ctx, s.store())
	if err != nil {
		return err
	}
	return errors.Join(use(c), c.Close())
}

func pastActor() catalog.Actor { return catalog.Actor{Agent: "bench", Program: "bench"} }

func pastCaller() control.Caller { return control.Caller{Agent: "bench", Program: "bench"} }

// fillFiles makes empty files from the number from to the number to, treeWidth in a directory.
func fillFiles(ctx context.Context, v *volume.Volume, from, to int) error {
	var dir catalog.Ino
	for i := from; i < to; i++ {
		if i%treeWidth == 0 || dir == 0 {
			row, err := v.Create(ctx, pastActor(), catalog.Root, fmt.Sprintf("d%04d", i/treeWidth), catalog.NewInode{Mode: unix.S_IFDIR | 0o755})
			if err != nil {
				return err
			}
			dir = row.Ino
		}
		if _, err := v.Create(ctx, pastActor(), dir, fmt.Sprintf("f%06d", i), catalog.NewInode{Mode: unix.S_IFREG | 0o644}); err != nil {
			return err
		}
	}
	return nil
}

// snapshotRate makes n snapshots.
func (t *turn) snapshotRate(ctx context.Context, s *served, n int, prefix string) (rate float64, err error) {
	if err := t.settle(ctx); err != nil {
		return 0, err
	}
	err = s.asked(ctx, func(c *control.Client) error {
		start := now()
		for i := range n {
			change := control.SnapshotChange{Action: control.SnapshotCreate, Name: fmt.Sprint(prefix, i)}
			if _, err := c.ChangeSnapshot(ctx, pastCaller(), change); err != nil {
				return err
			}
		}
		rate = float64(n) / seconds(now()-start)
		return nil
	})
	return rate, err
}

func runPastFiles(ctx context.Context, t *turn, s *served) (map[string]float64, error) {
	p, v := t.scale.past, map[string]float64{}
	var err error
	for _, step := range []struct {
		row      string
		from, to int
	}{{rowSnapshotFew, 0, p.few}, {rowSnapshotMany, p.few, p.many}} {
		if err := s.filled(ctx, func(v *volume.Volume) error { return fillFiles(ctx, v, step.from, step.to) }); err != nil {
			return nil, err
		}
		if v[step.row], err = t.snapshotRate(ctx, s, p.snapshots, step.row); err != nil {
			return nil, err
		}
	}
	if _, err := s.Restart(ctx); err != nil {
		return nil, err
	}
	if err := t.settle(ctx); err != nil {
		return nil, err
	}
	newest := uint64(0)
	if err := s.asked(ctx, func(c *control.Client) error {
		st, err := c.Status(ctx)
		newest = st.JournalSeq
		return err
	}); err != nil {
		return nil, err
	}
	// Moments all over the history; the file is one of the first, so it was there in all of them.
	step := newest / 2 / uint64(p.moments)
	paths := make([]string, p.moments)
	for i := range paths {
		paths[i] = filepath.Join(s.mnt, ".snapshots", fmt.Sprint("@v", newest-uint64(i)*step), "d0000", fmt.Sprintf("f%06d", i%min(p.few, treeWidth)))
	}
	for _, row := range []string{rowMomentCold, rowMomentWarm} {
		if v[row], err = statRate(paths); err != nil {
			return nil, err
		}
	}
	return v, nil
}

// statRate stats each of the paths once.
func statRate(paths []string) (float64, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var st unix.Stat_t
	start := now()
	for _, p := range paths {
		if err := unix.Lstat(p, &st); err != nil {
			return 0, fmt.Errorf("stat %s: %w", p, err)
		}
	}
	return float64(len(paths)) / seconds(now()-start), nil
}

const beatName = "beat.json"

// fillVersions rewrites one small file n times.
func fillVersions(ctx context.Context, v *volume.Volume, n int) error {
	who := pastActor()
	_, h, err := v.CreateFile(ctx, who, catalog.Root, beatName, catalog.NewInode{Mode: unix.S_IFREG | 0o644}, volume.OpenFlags{Read: true, Write: true})
	if err != nil {
		return err
	}
	defer h.Close(ctx)
	for i := range n {
		if _, err := h.WriteAt(ctx, fmt.Appendf(nil, `{"alive": %09d, "agent": "agent-1"}`, i), 0, volume.WriteFlags{}); err != nil {
			return err
		}
		if err := h.Flush(ctx); err != nil {
			return err
		}
	}
	return nil
}

func runPastVersions(ctx context.Context, t *turn, s *served) (map[string]float64, error) {
	p, v := t.scale.past, map[string]float64{}
	if err := s.filled(ctx, func(v *volume.Volume) error { return fillVersions(ctx, v, p.versions) }); err != nil {
		return nil, err
	}
	if err := t.settle(ctx); err != nil {
		return nil, err
	}
	peak, err := watchRSS(ctx, s.PID(), func(ctx context.Context) (err error) {
		v[rowLog], err = logRate(ctx, s, p.versions)
		return err
	})
	if err != nil {
		return nil, err
	}
	t.log.Info("log of one file", "versions", p.versions, "largest resident memory of the daemon", mib(peak))
	load := job{Op: "create", Files: 8 * t.scale.small, Size: smallSize, Max: t.scale.max}
	alone, err := t.runIn(ctx, "alone", load)
	if err != nil {
		return nil, err
	}
	v[rowLoad] = alone.opsRate()
	if err := keepLittle(ctx, s); err != nil {
		return nil, err
	}
	dir, err := t.mkdir("beside")
	if err != nil {
		return nil, err
	}
	load.Dir, load.Seed = dir, t.seed+1
	type outcome struct {
		rate float64
		err  error
	}
	thinned := make(chan outcome, 1)
	beside, err := runJobs(ctx, []job{load}, hooks{
		prepared: func() error { return t.settle(ctx) },
		warmed: func() error {
			go func() {
				rate, err := t.thin(ctx, s, p.versions)
				thinned <- outcome{rate, err}
			}()
			return nil
		},
	})
	if err != nil {
		return nil, err
	}
	gc := <-thinned
	v[rowLoadGC], v[rowGC] = beside.opsRate(), gc.rate
	return v, gc.err
}

// logRate reads the log of the file with many versions.
func logRate(ctx context.Context, s *served, want int) (rate float64, err error) {
	err = s.asked(ctx, func(c *control.Client) error {
		n, start := 0, now()
		if err := c.Log(ctx, "/"+beatName, func(control.LogEntry) error {
			n++
			return nil
		}); err != nil {
			return err
		}
		if n < want {
			return fmt.Errorf("the log has %d versions of %d", n, want)
		}
		rate = float64(n) / seconds(now()-start)
		return nil
	})
	return rate, err
}

// keepLittle sets a policy under which nothing but the present is kept.
func keepLittle(ctx context.Context, s *served) error {
	none := volume.Span(0)
	return s.asked(ctx, func(c *control.Client) error {
		_, err := c.SetPolicy(ctx, control.PolicyChange{Set: volume.Retention{Path: "/", KeepAll: &none, Hourly: &none, Daily: &none, Weekly: &none}})
		return err
	})
}

// thin is a gc of at least want versions; it returns how many a second.
func (t *turn) thin(ctx context.Context, s *served, want int) (rate float64, err error) {
	err = s.asked(ctx, func(c *control.Client) error {
		start := now()
		rep, err := c.Prune(ctx, false)
		if err != nil {
			return err
		}
		took := now() - start
		if rep.Versions() < int64(want)-1 {
			return fmt.Errorf("gc thinned %d versions of %d", rep.Versions(), want)
		}
		t.log.Info("gc beside load", "took", time.Duration(took).Round(time.Millisecond), "versions", rep.Versions(), "contents", rep.Blobs, "steps", rep.Steps,
			"journal bytes saved", rep.Compacted.JournalBytes)
		rate = float64(rep.Versions()) / seconds(took)
		return nil
	})
	return rate, err
}

// runPastRestore writes one large file and gets it back twice after it was removed.
func runPastRestore(ctx context.Context, t *turn, s *served) (map[string]float64, error) {
	j := job{Op: "write-large", Size: t.scale.large}
	if _, err := t.runIn(ctx, workloadDir, j); err != nil {
		return nil, err
	}
	v := map[string]float64{}
	name := filepath.Join(workloadDir, "large.bin")
	err := s.asked(ctx, func(c *control.Client) error {
		st, err := c.Status(ctx)
		if err != nil {
			return err
		}
		at := snapshots.Moment{Seq: catalog.Seq(st.JournalSeq)}
		file := filepath.Join(s.mnt, name)
		for _, way := range []struct {
			row string
			run func() error
		}{
			{rowRestoreCP, func() error {
				out, err := exec.CommandContext(ctx, "cp", filepath.Join(s.mnt, ".snapshots", at.String(), name), file).CombinedOutput()
				if err != nil {
					return fmt.Errorf("cp: %w: %s", err, out)
				}
				return nil
			}},
			{rowRestore, func() error {
				_, err := c.Restore(ctx, pastCaller(), control.RestoreRequest{Path: "/" + name, At: at}, func(snapshots.Step) error { return nil })
				return err
			}},
		} {
			if err := os.Remove(file); err != nil {
				return err
			}
			if err := t.settle(ctx); err != nil {
				return err
			}
			start := now()
			if err := way.run(); err != nil {
				return err
			}
			v[way.row] = float64(j.Size) / (1 << 20) / seconds(now()-start)
			check := job{Op: "read-large", Dir: filepath.Dir(file), Size: j.Size, Seed: t.seed}
			if _, err := t.run(ctx, check); err != nil {
				return fmt.Errorf("%s: %w", way.row, err)
			}
		}
		return nil
	})
	return v, err
}

// isHistory says whether a row is one of those that only Holdfast has.
func isHistory(row string) bool {
	return slices.ContainsFunc(slices.Concat(historyWorkloads(), integrityWorkloads()), func(w workload) bool {
		return slices.ContainsFunc(w.rows, func(d rowDef) bool { return d.Name == row })
	})
}
