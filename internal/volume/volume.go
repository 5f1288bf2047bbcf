// Package volume is an opened store: its lock and settings, its names, and the content of the files that are open in it. What is
// written to a file is staged, in memory or in a staging file, and becomes a version when the file is closed or fsynced.
//
// Lock order: file.mu (of two files the lower inode first), then the catalog's own, then Volume.mu, under which nothing else is called.
package volume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/blobstore"
	"holdfast/catalog"
)

const (
	stagingDir = "staging"
	lockFile   = "lock"

	// autoCommit is how long the changes of a file that stays open may wait for a close or fsync, and longAutoCommit how long when it is being
	// written all the time: a stream is not cut into pieces that nobody asked for.
	autoCommit     = 5 * time.Second
	longAutoCommit = 30 * time.Second
	quiet          = time.Second
)

// LockedError says who has the store open; errors.Is(err, ErrLocked) holds.
type LockedError struct {
	Dir string
	PID int // 0 when unknown
}

func (e *LockedError) Error() string {
	return fmt.Sprintf("%s: %v (process %d); unmount it first", e.Dir, ErrLocked, e.PID)
}
func (e *LockedError) Unwrap() error { return ErrLocked }

// Invalidator is told of changes that did not come through the mount, so that the kernel's caches can follow.
type Invalidator interface {
	InvalidateInode(ino catalog.Ino)
	InvalidateEntry(parent catalog.Ino, name string)
}

// Options say which store to open and how.
type Options struct {
	Dir      string
	ReadOnly bool
	Log      *slog.Logger // default: discards
}

// Volume is an opened store. All methods may be called concurrently; Close once, after the last of them.
type Volume struct {
	dir      string
	readOnly bool
	log      *slog.Logger
	lock     *os.File
	cat      *catalog.Catalog
	blobs    blobstore.Store
	second   *Second
	guard    atomic.Pointer[guardian]
	early    early
	activity atomic.Uint64 // see Activity

	settingsMu   sync.Mutex
	settings     Settings
	settingsFile fileState // of holdfast.toml, when it was read last

	mu          sync.RWMutex
	files       map[catalog.Ino]*file
	replaced    map[catalog.Ino]replacement // of files that are open
	invalidator Invalidator

	staged  atomic.Int64 // bytes staged in memory, over all files
	buffers sync.Pool    // of *[]byte, copyBuffer long
	merges  merger

	stop    context.CancelFunc
	workers sync.WaitGroup
}

// Open opens the store in opt.Dir. Errors: ErrNoStore, ErrLocked, ErrFormat, and those of the catalog and the blobstore. The caller closes it.
func Open(ctx context.Context, opt Options) (*Volume, error) {
	s, err := ReadSettings(opt.Dir)
	if err != nil {
		return nil, err
	}
	return open(ctx, opt, s)
}

func open(ctx context.Context, opt Options, s Settings) (_ *Volume, err error) {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	dir, err := filepath.Abs(opt.Dir)
	if err != nil {
		return nil, err
	}
	v := &Volume{
		dir: dir, settings: s, readOnly: opt.ReadOnly, log: opt.Log,
		files: make(map[catalog.Ino]*file), replaced: make(map[catalog.Ino]replacement),
		buffers: sync.Pool{New: func() any { b := make([]byte, copyBuffer); return &b }},
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, v.release(ctx))
		}
	}()
	if v.lock, err = takeLock(dir, opt.ReadOnly); err != nil {
		return nil, err
	}
	if !opt.ReadOnly {
		if err := emptyDir(filepath.Join(dir, stagingDir)); err != nil {
			return nil, err
		}
	}
	v.blobs, err = blobstore.Open(ctx, blobstore.Options{Dir: dir, Mode: s.Storage, ReadOnly: opt.ReadOnly, Log: opt.Log,
		Mended: func(ctx context.Context, m blobstore.Mending) { v.mended(ctx, m, false) }})
	if err != nil {
		return nil, err
	}
	id, err := s.id()
	if err != nil {
		return nil, err
	}
	v.second = newSecond(dir, s, opt.ReadOnly, opt.Log)
	v.second.mended = func(ctx context.Context, m blobstore.Mending) { v.mended(ctx, m, true) }
	v.cat, err = catalog.Open(ctx, catalog.Options{Dir: dir, StoreID: id, Blobs: v.blobs, ReadOnly: opt.ReadOnly, Log: opt.Log, OnDamage: v.catalogDamaged})
	if err != nil {
		return nil, err
	}
	if !opt.ReadOnly {
		if err := takeReserve(dir); err != nil {
			return nil, err
		}
	}
	v.merges.init()
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	v.stop = stop
	if !opt.ReadOnly {
		v.workers.Go(func() { v.commitOld(work) })
		v.workers.Go(func() { v.mergeLoop(work) })
		v.workers.Go(func() { v.housekeep(work) })
	}
	return v, nil
}

// takeLock locks the store for as long as the returned file stays open; the lock dies with the process.
func takeLock(dir string, shared bool) (*os.File, error) {
	flags, how := os.O_RDWR|os.O_CREATE, unix.LOCK_EX
	if shared {
		flags, how = os.O_RDONLY|os.O_CREATE, unix.LOCK_SH
	}
	f, err := os.OpenFile(filepath.Join(dir, lockFile), flags, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); err != nil {
		defer f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, &LockedError{Dir: dir, PID: LockHolder(dir)}
		}
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	if !shared {
		err := releaseReserve(dir)
		if err == nil {
			err = f.Truncate(0)
		}
		if err == nil {
			_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
		}
		if err != nil {
			f.Close()
			return nil, err
		}
	}
	return f, nil
}

// LockHolder is the process that the lock file names, or 0. It says nothing about whether that process still lives.
func LockHolder(dir string) int {
	text, err := os.ReadFile(filepath.Join(dir, lockFile))
	if err != nil || len(text) > 32 {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid < 0 {
		return 0
	}
	return pid
}

// emptyDir removes what an earlier process left in dir: files that were being written when it ended and were never closed.
func emptyDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return os.Mkdir(dir, 0o700)
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// Close commits what open files have staged, brings the catalog up to date, makes everything durable and gives up the lock.
func (v *Volume) Close(ctx context.Context) error {
	if v.stop != nil {
		v.stop()
		v.workers.Wait()
	}
	var errs []error
	v.mu.Lock()
	open := make([]*file, 0, len(v.files))
	for _, f := range v.files {
		open = append(open, f)
	}
	v.mu.Unlock()
	for _, f := range open {
		if err := f.commit(ctx, commitClose); err != nil {
			errs = append(errs, fmt.Errorf("inode %d: changes not saved: %w", f.ino, err))
		}
		f.mu.Lock()
		f.drop()
		f.mu.Unlock()
	}
	return errors.Join(append(errs, v.release(ctx))...)
}

func (v *Volume) release(ctx context.Context) error {
	var errs []error
	if v.cat != nil {
		errs = append(errs, v.cat.Close(ctx))
	}
	if v.blobs != nil {
		errs = append(errs, v.blobs.Close())
	}
	if v.second != nil {
		errs = append(errs, v.second.close())
	}
	if v.lock != nil {
		if !v.readOnly && v.settings.StoreID != "" {
			errs = append(errs, takeReserve(v.dir))
		}
		errs = append(errs, v.lock.Close())
	}
	return errors.Join(errs...)
}

// Dir is the store's directory, absolute.
func (v *Volume) Dir() string { return v.dir }

// Settings are those of holdfast.toml. What somebody has changed there since it was opened counts, if it concerns retention, backups or recovery.
func (v *Volume) Settings() Settings {
	v.settingsMu.Lock()
	defer v.settingsMu.Unlock()
	v.rereadSettings()
	s := v.settings
	s.Retention = slices.Clone(s.Retention)
	s.Backups = slices.Clone(s.Backups)
	s.Recovery = slices.Clone(s.Recovery)
	return s
}

// ReadOnly reports whether the store was opened for reading only.
func (v *Volume) ReadOnly() bool { return v.readOnly }

// SetInvalidator names who is told of changes that do not come through the mount. nil: nobody.
func (v *Volume) SetInvalidator(i Invalidator) {
	v.mu.Lock()
	v.invalidator = i
	v.mu.Unlock()
}

func (v *Volume) invalidateEntry(parent catalog.Ino, name string) {
	v.mu.RLock()
	i := v.invalidator
	v.mu.RUnlock()
	if i != nil {
		i.InvalidateEntry(parent, name)
		i.InvalidateInode(parent)
	}
}

// Sync makes everything that was closed before the call durable.
func (v *Volume) Sync(ctx context.Context) error {
	if v.readOnly {
		return nil
	}
	return v.cat.Sync(ctx)
}

// StatFS is the room on the store's device, in blocks of Bsize bytes.
type StatFS struct {
	Blocks, Bfree, Bavail, Files, Ffree uint64
	Bsize                               uint32
}

// StatFS asks the filesystem below.
func (v *Volume) StatFS(ctx context.Context) (StatFS, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(v.dir, &st); err != nil {
		return StatFS{}, fmt.Errorf("statfs %s: %w", v.dir, err)
	}
	// Inodes cost rows, not inodes of the disk below: what limits them is room.
	free := st.Bfree * uint64(st.Bsize) / 512
	used, err := v.cat.Stats(ctx)
	if err != nil {
		return StatFS{}, err
	}
	files := free + uint64(used.Files+used.Dirs)
	return StatFS{Blocks: st.Blocks, Bfree: st.Bfree, Bavail: st.Bavail, Files: files, Ffree: free, Bsize: uint32(st.Bsize)}, nil
}

// commitOld commits the changes of files that stay open, so that a log that is never closed is not lost with the process.
func (v *Volume) commitOld(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			for _, f := range v.waiting(now) {
				if err := f.commit(ctx, commitIdle); err != nil && ctx.Err() == nil {
					v.log.Error("cannot save the changes of an open file; trying again", "inode", f.ino, "error", err)
				}
				v.forget(f)
			}
			// Times that wait for a record are written, and everything so far is made durable: a power cut takes a second at most.
			if err := v.cat.Sync(ctx); err != nil && ctx.Err() == nil {
				v.log.Error("cannot make the store durable; trying again", "error", err)
			}
		}
	}
}

// waiting lists the files whose changes have waited long enough.
func (v *Volume) waiting(now time.Time) []*file {
	v.mu.RLock()
	defer v.mu.RUnlock()
	var old []*file
	for _, f := range v.files {
		since := f.changedSince.Load()
		if since == 0 {
			continue
		}
		age, calm := now.Sub(time.Unix(0, since)), now.Sub(time.Unix(0, f.changedLast.Load()))
		if age > longAutoCommit || age > autoCommit && calm > quiet {
			old = append(old, f)
		}
	}
	return old
}
