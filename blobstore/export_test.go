package blobstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Syncs is what a store has synced, in order, as paths below its directory (or as they are, outside of it).
type Syncs struct {
	mu    sync.Mutex
	paths []string
	Fail  error // when set, syncing does nothing and fails so
}

// WatchSyncs watches the files of a store.
func WatchSyncs(s Store) *Syncs {
	files := s.(*store).large.(*files)
	w := new(Syncs)
	watch := func(do func(int) error, what string) func(int) error {
		return func(fd int) error {
			path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
			w.mu.Lock()
			defer w.mu.Unlock()
			w.paths = append(w.paths, what+strings.TrimPrefix(path, files.opt.Dir+"/"))
			if err != nil || w.Fail != nil {
				return errors.Join(err, w.Fail)
			}
			return do(fd)
		}
	}
	files.fsync, files.syncfs = watch(unix.Fsync, ""), watch(unix.Syncfs, "filesystem of ")
	return w
}

// WatchRowSyncs watches the database of a store.
func WatchRowSyncs(s Store) *Syncs {
	rows := s.(*store).small.(*rows)
	w, do := new(Syncs), rows.syncDB
	rows.syncDB = func(ctx context.Context) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.paths = append(w.paths, rowsFile)
		if w.Fail != nil {
			return w.Fail
		}
		return do(ctx)
	}
	return w
}

// Take returns the paths so far and forgets them.
func (w *Syncs) Take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	paths := w.paths
	w.paths = nil
	return paths
}

// WaitCompressed returns when the worker has nothing left to do.
func WaitCompressed(s Store) { s.(*store).large.(*files).worker.wait() }

// SidecarLine is the line that a sidecar is stored as.
func SidecarLine(sc Sidecar) ([]byte, error) { return sc.marshal() }

// RowSum is what column sum of a row with these columns should hold.
func RowSum(h Hash, size, stored, zstd, level, version, time, backups, lastBackup int64) int64 {
	k := columns{0, size, stored, zstd, level, version, time, backups, lastBackup, 0}
	return k.sum(h)
}

// CompressNow does what the worker does with a blob on its queue.
func CompressNow(s Store, h Hash) error {
	return s.(*store).large.(*files).compressQueued(context.Background(), h)
}

// ParitySectors says where in a parity, which is intact, its sectors are.
func ParitySectors(par []byte) (from, to int64, err error) {
	info, err := parseParityInfo(par[:parityHead], Hash(par[16:48]))
	p := planFor(info.stored)
	return info.sectorsAt(&p), info.sums2At(&p), err
}
