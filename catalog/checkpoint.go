package catalog

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"holdfast/internal/durable"
	"holdfast/internal/sqldb"
)

// A checkpoint is a copy of catalog.db. Records that it has applied are not needed to rebuild catalog.db any more, so that compaction may drop what
// they said. Its name tells which they are, and the SHA-256 of its content.
const (
	checkpointDir = "checkpoint"
	dryRunPrefix  = "dry-run-"
)

type checkpoint struct {
	name    string
	applied Seq
	sum     [sha256.Size]byte
}

func checkpointName(applied Seq, sum [sha256.Size]byte) string {
	return fmt.Sprintf("%016x-%x.db", uint64(applied), sum)
}

func parseCheckpointName(name string) (c checkpoint, ok bool) {
	base, ok := strings.CutSuffix(name, ".db")
	if !ok || len(base) != 16+1+2*sha256.Size || base[16] != '-' {
		return c, false
	}
	n, err := strconv.ParseUint(base[:16], 16, 62)
	if err != nil {
		return c, false
	}
	if _, err := hex.Decode(c.sum[:], []byte(base[17:])); err != nil {
		return c, false
	}
	c.name, c.applied = name, Seq(n)
	return c, checkpointName(c.applied, c.sum) == name
}

// checkpoints lists the checkpoints of a store, newest first.
func checkpoints(dir string) ([]checkpoint, error) {
	names, err := os.ReadDir(filepath.Join(dir, checkpointDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []checkpoint
	for _, e := range names {
		if c, ok := parseCheckpointName(e.Name()); ok && e.Type().IsRegular() {
			list = append(list, c)
		}
	}
	slices.SortFunc(list, func(a, b checkpoint) int {
		return cmp.Or(cmp.Compare(b.applied, a.applied), strings.Compare(a.name, b.name))
	})
	return list, nil
}

// makeCheckpoint copies catalog.db and removes older copies. It returns the newest record that the copy has applied.
func (c *Catalog) makeCheckpoint(ctx context.Context) (applied Seq, err error) {
	dir := filepath.Join(c.opt.Dir, checkpointDir)
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return 0, failed("make a checkpoint", err)
	}
	temp, err := os.MkdirTemp(c.opt.Dir, dryRunPrefix+"*")
	if err != nil {
		return 0, failed("make a checkpoint", err)
	}
	defer os.RemoveAll(temp)
	path := filepath.Join(temp, dbName)
	if err := c.db.CopyTo(ctx, path); err != nil {
		return 0, failed("make a checkpoint: copy catalog.db", err)
	}
	db, err := sqldb.Open(ctx, sqldb.Options{Path: path, ReadOnly: true, Version: dbFormat})
	if err != nil {
		return 0, failed("make a checkpoint: read the copy", err)
	}
	m, err := loadMeta(ctx, db, c.opt.StoreID)
	if err = errors.Join(err, db.Close()); err != nil {
		return 0, failed("make a checkpoint: read the copy", err)
	}
	sum, err := syncAndSum(ctx, path)
	if err != nil {
		return 0, failed("make a checkpoint", err)
	}
	if err := c.opt.check(stageCheckpoint); err != nil {
		return 0, err
	}
	name := checkpointName(m.applied, sum)
	if err := durable.Rename(path, filepath.Join(dir, name)); err != nil {
		return 0, failed("make a checkpoint", err)
	}
	list, err := checkpoints(c.opt.Dir)
	if err != nil {
		return 0, failed("make a checkpoint", err)
	}
	for _, old := range list {
		if old.name != name {
			if err := durable.RemoveSync(filepath.Join(dir, old.name)); err != nil {
				return 0, failed("remove an old checkpoint", err)
			}
		}
	}
	return m.applied, nil
}

// syncAndSum makes a file durable and returns the SHA-256 of its content.
func syncAndSum(ctx context.Context, path string) (sum [sha256.Size]byte, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return sum, err
	}
	h := sha256.New()
	if err := copyAll(ctx, h, f); err != nil {
		return sum, err
	}
	h.Sum(sum[:0])
	return sum, nil
}

// copyAll is io.Copy that ends with ctx.
func copyAll(ctx context.Context, w io.Writer, r io.Reader) error {
	buf := make([]byte, 1<<20)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := r.Read(buf)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// restoreCheckpoint puts the newest intact checkpoint in the place of a catalog.db that is gone; false when there is none. A damaged one goes
// to quarantine.
func (c *Catalog) restoreCheckpoint(ctx context.Context) (bool, error) {
	list, err := checkpoints(c.opt.Dir)
	if err != nil {
		return false, err
	}
	for _, cp := range list {
		from := filepath.Join(c.opt.Dir, checkpointDir, cp.name)
		err := c.copyCheckpoint(ctx, cp, filepath.Join(c.opt.Dir, dbName))
		if err == nil {
			c.log.Info("catalog.db is rebuilt from its checkpoint and the journal", "checkpoint", cp.name)
			return true, nil
		}
		if !errors.Is(err, ErrDamaged) {
			return false, fmt.Errorf("restore catalog.db from its checkpoint: %w", err)
		}
		c.log.Error("a checkpoint is damaged; it is moved to quarantine", "checkpoint", cp.name, "err", err)
		c.noteDamage(fmt.Errorf("checkpoint %s: %w", cp.name, err))
		to := filepath.Join(c.opt.Dir, "quarantine")
		if err := errors.Join(durable.MkdirAll(to, 0o700), durable.Rename(from, filepath.Join(to, cp.name))); err != nil {
			return false, fmt.Errorf("move a damaged checkpoint to quarantine: %w", err)
		}
	}
	return false, nil
}

// copyCheckpoint copies a checkpoint to the place of a database. ErrDamaged when it is not what its name says.
func (c *Catalog) copyCheckpoint(ctx context.Context, cp checkpoint, to string) (err error) {
	src, err := os.Open(filepath.Join(c.opt.Dir, checkpointDir, cp.name))
	if err != nil {
		return err
	}
	defer src.Close()
	temp := to + ".tmp"
	dst, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(temp)
		}
	}()
	h := sha256.New()
	err = copyAll(ctx, io.MultiWriter(dst, h), src)
	if err == nil {
		err = dst.Sync()
	}
	if err = errors.Join(err, dst.Close()); err != nil {
		return failed("copy a checkpoint", err)
	}
	if [sha256.Size]byte(h.Sum(nil)) != cp.sum {
		return fmt.Errorf("%w: it does not have the SHA-256 that its name states", ErrDamaged)
	}
	return durable.Rename(temp, to)
}

// removeScratch removes what a killed process left of copies of catalog.db.
func (c *Catalog) removeScratch() error {
	entries, err := os.ReadDir(c.opt.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), dryRunPrefix) && e.IsDir() {
			if err := os.RemoveAll(filepath.Join(c.opt.Dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}
