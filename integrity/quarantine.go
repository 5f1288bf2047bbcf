package integrity

import (
	"cmp"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"holdfast/blobstore"
	"holdfast/internal/durable"
)

const (
	quarantineDir = "quarantine"
	// maxQuarantine bounds the damaged bytes of blobs that are kept.
	maxQuarantine = 256 << 20
	// maxQuarantined bounds those of one blob.
	maxQuarantined = 64 << 20
)

// errNoRoom: what room there is is needed to heal.
var errNoRoom = errors.New("there is little room on the disk, which the heal itself needs")

// quarantine copies the stored bytes of a blob to STORE/quarantine, before they are replaced, and returns where, below the store; "" when there are none.
func (e *Engine) quarantine(ctx context.Context, h blobstore.Hash) (string, error) {
	r, n, err := e.guarded.Raw(ctx, h)
	if errors.Is(err, blobstore.ErrNotFound) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer r.Close()
	n = min(n, maxQuarantined)
	st, err := e.vol.StatFS(ctx)
	if err != nil {
		return "", err
	}
	if st.Bavail*uint64(st.Bsize) < uint64(3*n)+16<<20 {
		return "", errNoRoom
	}
	if err := e.trimQuarantine(n); err != nil {
		return "", err
	}
	name := filepath.Join(quarantineDir, h.String()+"."+e.now().UTC().Format(timeLayout))
	full := filepath.Join(e.vol.Dir(), name)
	if err := durable.MkdirAll(filepath.Dir(full), 0o700); err != nil {
		return "", err
	}
	f, err := os.OpenFile(full, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return name, nil
	}
	if err != nil {
		return "", err
	}
	_, err = io.Copy(f, io.LimitReader(r, n))
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = durable.SyncDir(filepath.Dir(full))
	}
	if err != nil {
		return "", errors.Join(err, os.Remove(full))
	}
	return name, nil
}

type quarantined struct {
	path string
	size int64
	made time.Time
}

// quarantined lists the damaged bytes of blobs, oldest first.
func (e *Engine) quarantined() (list []quarantined, total int64, err error) {
	dir := filepath.Join(e.vol.Dir(), quarantineDir)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	for _, d := range entries {
		name, at, _ := strings.Cut(d.Name(), ".")
		if _, err := blobstore.ParseHash(name); err != nil {
			continue
		}
		made, err := time.Parse(timeLayout, at)
		if err != nil {
			continue
		}
		fi, err := d.Info()
		if err != nil || !fi.Mode().IsRegular() {
			continue
		}
		list = append(list, quarantined{filepath.Join(dir, d.Name()), fi.Size(), made})
		total += fi.Size()
	}
	slices.SortFunc(list, func(a, b quarantined) int { return cmp.Or(a.made.Compare(b.made), strings.Compare(a.path, b.path)) })
	return list, total, nil
}

// trimQuarantine removes the oldest so that there is room for n more bytes.
func (e *Engine) trimQuarantine(n int64) error {
	list, total, err := e.quarantined()
	for _, q := range list {
		if err != nil || total+n <= maxQuarantine {
			break
		}
		if err = os.Remove(q.path); err == nil {
			total -= q.size
		}
	}
	return err
}
