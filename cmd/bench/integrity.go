package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/catalog"
	"holdfast/integrity"
	"holdfast/internal/volume"
)

// The rows of integrity, which only Holdfast has: checks and scrub by the program's own packages, while nothing is mounted.
const (
	rowCheck1K      = "integrity-check-1k"
	rowCheck64K     = "integrity-check-64k"
	rowCheck1M      = "integrity-check-1m"
	rowScrub        = "integrity-scrub"
	rowScrubSHA     = "integrity-scrub-sha256"
	rowWriteBasic   = "integrity-write-basic"
	rowWriteParity  = "integrity-write-advanced"
	rowWriteSecond  = "integrity-write-critical"
	rowLoadAlone    = "integrity-load"
	rowLoadScrub    = "integrity-load-scrub"
	unitChecks      = "checks/s"
	checksOfEach    = 101
	scrubFile       = 4 << 20
	scrubFiles      = 32 // of scrubFile, and as many of 1 KiB
	writtenAtLevels = 64 << 20
)

func integrityWorkloads() []workload {
	return []workload{
		{[]rowDef{
			{rowCheck1K, "all five checks of one file of 1 KiB; of the median", unitChecks},
			{rowCheck64K, "the same of 64 KiB", unitChecks},
			{rowCheck1M, "the same of 1 MiB", unitChecks},
			{rowScrub, "check of a whole store of 128 MiB, without pauses", unitMiB},
			{rowScrubSHA, "plain SHA-256 of the files of the same store, read from the disk, too", unitMiB},
			{rowWriteBasic, "write 64 MiB, level basic", unitMiB},
			{rowWriteParity, "the same at level advanced, until the parity is made", unitMiB},
			{rowWriteSecond, "the same at level critical, until parity and second copy are made", unitMiB},
		}, onHoldfast(runChecks)},
		{[]rowDef{
			{rowLoadAlone, "create, write 1 KiB, close", unitOps},
			{rowLoadScrub, "the same while the scrub works", unitOps},
		}, onHoldfast(runLoadScrub)},
	}
}

func runChecks(ctx context.Context, t *turn, s *served) (map[string]float64, error) {
	v := map[string]float64{}
	err := s.filled(ctx, func(vol *volume.Volume) (err error) {
		e, err := integrity.New(ctx, integrity.Options{Volume: vol})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, e.Close()) }()
		for i, c := range []struct {
			row  string
			size int
		}{{rowCheck1K, 1 << 10}, {rowCheck64K, 64 << 10}, {rowCheck1M, 1 << 20}} {
			if v[c.row], err = checkRate(ctx, vol, e, fmt.Sprintf("/check-%d", i), randomBytes(t.seed+uint64(i), c.size)); err != nil {
				return err
			}
		}
		for i := range 2 * scrubFiles {
			size := scrubFile
			if i%2 == 1 {
				size = smallSize
			}
			if err := putPath(ctx, vol, fmt.Sprintf("/scrub-%d", i), randomBytes(t.seed+uint64(100+i), size)); err != nil {
				return err
			}
		}
		if v[rowScrub], v[rowScrubSHA], err = scrubRates(ctx, vol, e); err != nil {
			return err
		}
		return writeAtLevels(ctx, t, vol, e, v)
	})
	return v, err
}

func putPath(ctx context.Context, vol *volume.Volume, p string, body []byte) error {
	_, err := vol.WritePath(ctx, pastActor(), 0, p, 0o644, bytes.NewReader(body))
	return err
}

// checked makes a check that must find nothing.
func checked(sum integrity.Summary, err error) error {
	if err == nil && sum.Failed > 0 {
		err = fmt.Errorf("the check of a new store finds damage: %+v", sum)
	}
	return err
}

func noResult(integrity.Result) error { return nil }

func checkRate(ctx context.Context, vol *volume.Volume, e *integrity.Engine, p string, body []byte) (float64, error) {
	if err := putPath(ctx, vol, p, body); err != nil {
		return 0, err
	}
	if err := vol.Catalog().Flush(ctx); err != nil {
		return 0, err
	}
	var took []time.Duration
	for range checksOfEach {
		start := time.Now()
		if err := checked(e.Check(ctx, p, integrity.CheckOptions{}, noResult)); err != nil {
			return 0, err
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	return 1 / took[len(took)/2].Seconds(), nil
}

// scrubRates checks the whole store, and then reads all of it and hashes that.
func scrubRates(ctx context.Context, vol *volume.Volume, e *integrity.Engine) (scrub, plain float64, err error) {
	if err := vol.Catalog().Flush(ctx); err != nil {
		return 0, 0, err
	}
	start := time.Now()
	sum, err := e.CheckStore(ctx, integrity.CheckOptions{}, noResult)
	if err := checked(sum, err); err != nil {
		return 0, 0, err
	}
	scrub = float64(sum.Bytes) / (1 << 20) / time.Since(start).Seconds()
	plain, err = hashFiles(filepath.Join(vol.Dir(), "blobs"))
	return scrub, plain, err
}

// hashFiles reads all files below a folder from the disk, as the scrub does, and hashes them; MiB a second.
func hashFiles(dir string) (float64, error) {
	total, start := int64(0), time.Now()
	buf := make([]byte, 1<<20)
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			return err
		}
		n, err := io.CopyBuffer(struct{ io.Writer }{sha256.New()}, struct{ io.Reader }{f}, buf)
		total += n
		return err
	})
	return float64(total) / (1 << 20) / time.Since(start).Seconds(), err
}

// writeAtLevels writes the same amount at each level, until all that the level promises is there.
func writeAtLevels(ctx context.Context, t *turn, vol *volume.Volume, e *integrity.Engine, v map[string]float64) error {
	for i, l := range []struct{ row, level string }{{rowWriteBasic, catalog.LevelBasic}, {rowWriteParity, catalog.LevelAdvanced}, {rowWriteSecond, catalog.LevelCritical}} {
		dir := "/level-" + l.level
		row, err := vol.Create(ctx, pastActor(), catalog.Root, dir[1:], catalog.NewInode{Mode: unix.S_IFDIR | 0o755})
		if err != nil {
			return err
		}
		if err := vol.SetXattr(ctx, pastActor(), row.Ino, catalog.LevelXattr, []byte(l.level), 0); err != nil {
			return err
		}
		body := randomBytes(t.seed+uint64(900+i), writtenAtLevels)
		start := time.Now()
		if err := putPath(ctx, vol, dir+"/f", body); err != nil {
			return err
		}
		file, err := vol.Resolve(ctx, dir+"/f")
		if err != nil {
			return err
		}
		list, err := vol.Extents(ctx, file.Ino, catalog.Head)
		if err != nil || len(list) != 1 {
			return errors.Join(err, fmt.Errorf("%d extents", len(list)))
		}
		parity := int64(0)
		if l.level != catalog.LevelBasic {
			if _, err := vol.Blobs().Protect(ctx, list[0].Blob); err != nil {
				return err
			}
			if parity, _, err = vol.Blobs().Parity(ctx, list[0].Blob.Hash); err != nil {
				return err
			}
		}
		v[l.row] = float64(len(body)) / (1 << 20) / time.Since(start).Seconds()
		copied := 0.0
		if l.level == catalog.LevelCritical {
			ok, err := vol.Second().Has(ctx, list[0].Blob)
			if err != nil || !ok {
				return errors.Join(errors.New("there is no second copy"), err)
			}
			copied = 1
		}
		t.log.Info("cost in bytes", "level", l.level, "parity", fmt.Sprintf("%.1f %%", 100*float64(parity)/float64(len(body))), "second copy", fmt.Sprintf("%.0f %%", 100*copied))
	}
	return nil
}

// runLoadScrub measures the load alone and beside a scrub that has been asked for, which pauses less than the one that works by itself.
func runLoadScrub(ctx context.Context, t *turn, s *served) (map[string]float64, error) {
	v := map[string]float64{}
	err := s.filled(ctx, func(vol *volume.Volume) error {
		for i := range scrubFiles {
			if err := putPath(ctx, vol, fmt.Sprintf("/scrub-%d", i), randomBytes(t.seed+uint64(i), 4*scrubFile)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	load := job{Op: "create", Files: 4 * t.scale.small, Size: smallSize, Max: t.scale.max}
	alone, err := t.runIn(ctx, "alone", load)
	if err != nil {
		return nil, err
	}
	v[rowLoadAlone] = alone.opsRate()
	dir, err := t.mkdir("beside")
	if err != nil {
		return nil, err
	}
	load.Dir, load.Seed = dir, t.seed+1
	beside, err := runJobs(ctx, []job{load}, hooks{
		prepared: func() error { return t.settle(ctx) },
		warmed: func() error {
			if out, err := exec.CommandContext(ctx, s.argv[0], "scrub", "start", "--store", s.store()).CombinedOutput(); err != nil {
				return fmt.Errorf("scrub start: %w: %s", err, out)
			}
			return nil
		},
	})
	if err != nil {
		return nil, err
	}
	v[rowLoadScrub] = beside.opsRate()
	return v, nil
}
