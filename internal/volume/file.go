package volume

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/blobstore"
	"holdfast/catalog"
)

// file is an inode that is open, once however many handles it has.
type file struct {
	v   *Volume
	ino catalog.Ino

	refs int // handles and users of the moment; guarded by Volume.mu

	// size is the live size once known is set; both change under mu, and are read without it.
	size  atomic.Int64
	known atomic.Bool
	// changedSince is when the oldest change that is not committed was made, in Unix nanoseconds; 0 when there is none.
	changedSince atomic.Int64
	changedLast  atomic.Int64 // when the newest of them was made
	keptLast     int64        // the changedLast that keepReplaced has kept; guarded by mu

	mu     sync.RWMutex
	loaded bool    // base holds the committed content
	base   spanMap // committed content; what lies at or above limit is cut off
	limit  int64
	dirty  spanMap // changes, over base
	stage  *staging
	memory int64 // bytes that dirty holds in memory
	// emptied: an open with Truncate is all that has changed. The shell opens a file so, duplicates the descriptor and closes the first
	// before the program writes: that close is not the one that makes a version.
	emptied bool
	who     catalog.Actor
	writers writers
	pins    []blobstore.Hash // blobs that dirty names
}

// acquire returns the file of ino, which stays until the same number of calls of release.
func (v *Volume) acquire(ino catalog.Ino) *file {
	v.mu.Lock()
	defer v.mu.Unlock()
	f := v.files[ino]
	if f == nil {
		f = &file{v: v, ino: ino, base: newSpanMap(), dirty: newSpanMap(), limit: catalog.NoCut}
		v.files[ino] = f
	}
	f.refs++
	return f
}

func (v *Volume) releaseFile(f *file) {
	v.mu.Lock()
	f.refs--
	v.mu.Unlock()
	v.forget(f)
}

// forget drops f when nobody uses it and nothing of it waits to be committed, or when it has no name left to commit it under.
func (v *Volume) forget(f *file) {
	removed := false
	if f.changedSince.Load() != 0 {
		row, err := v.cat.Get(context.Background(), f.ino)
		removed = err == nil && row.Nlink == 0
	}
	v.mu.Lock()
	gone := f.refs == 0 && v.files[f.ino] == f && (removed || f.changedSince.Load() == 0)
	if gone {
		delete(v.files, f.ino)
		delete(v.replaced, f.ino)
	}
	v.mu.Unlock()
	if gone {
		f.mu.Lock()
		f.drop()
		f.mu.Unlock()
		v.cat.ForgetTmpfile(f.ino)
	}
}

// drop gives up what is staged. mu is held.
func (f *file) drop() {
	if f.stage != nil {
		f.stage.discard()
		f.stage = nil
	}
	f.dirty.clear()
	f.v.staged.Add(-f.memory)
	f.v.cat.Unpin(f.pins...)
	f.memory, f.limit, f.emptied, f.pins = 0, catalog.NoCut, false, nil
	f.changedSince.Store(0)
}

// learnSize makes size known. mu is held.
func (f *file) learnSize(ctx context.Context) error {
	if f.known.Load() {
		return nil
	}
	row, err := f.v.cat.Get(ctx, f.ino)
	if err != nil {
		return err
	}
	f.size.Store(row.Size)
	f.known.Store(true)
	return nil
}

// load reads the map of the committed content. mu is held for writing.
func (f *file) load(ctx context.Context) error {
	if err := f.learnSize(ctx); err != nil {
		return err
	}
	if f.loaded {
		return nil
	}
	if f.limit == 0 {
		f.loaded = true // all of it is cut off, and stays so until the commit
		return nil
	}
	extents, err := f.v.cat.Extents(ctx, f.ino, catalog.Head)
	if err != nil {
		return err
	}
	f.base.clear()
	for _, e := range extents {
		f.base.put(extentSpan(e))
	}
	f.loaded = true
	return nil
}

// changed notes that something is to be committed. mu is held for writing.
func (f *file) changed(h *Handle) {
	f.who, f.emptied, f.writers.last = h.who, false, h
	now := time.Now().UnixNano()
	f.changedLast.Store(now)
	f.changedSince.CompareAndSwap(0, now)
}

// OpenFlags say what a handle is for.
type OpenFlags struct {
	Read, Write bool
	Truncate    bool
	KillPriv    bool // clear set-uid and set-gid with the truncation
	// Cached: the kernel looks after the times itself, and tells them before the file is closed. It tells nothing when the time of its clock tick
	// is the one that the file has; a time of our own would be another one, and only be seen after a remount.
	Cached bool
}

// Handle is an open file. Its methods may be called concurrently; Close once, after the last of them.
type Handle struct {
	f     *file
	who   catalog.Actor
	flags OpenFlags

	base   uint64            // the version that its changes build on; guarded by f.mu
	buried *catalog.Conflict // what its commits buried since, and its close is to record; guarded by f.mu
}

// OpenFile opens a regular file. ErrStale when the inode never was, ErrInvalid when it is something else, ErrReadOnly for
// writing in a store that is open read-only.
func (v *Volume) OpenFile(ctx context.Context, who catalog.Actor, ino catalog.Ino, flags OpenFlags) (*Handle, error) {
	if flags.Write && v.readOnly {
		return nil, catalog.ErrReadOnly
	}
	row, err := v.cat.Get(ctx, ino)
	if err != nil {
		return nil, err
	}
	if row.Mode&unix.S_IFMT != unix.S_IFREG {
		if row.Mode&unix.S_IFMT == unix.S_IFDIR {
			return nil, catalog.ErrIsDir
		}
		return nil, catalog.ErrInvalid
	}
	h := &Handle{f: v.acquire(ino), who: who, flags: flags}
	h.f.enter(h, row.Ver)
	if flags.Truncate {
		err := h.empty(ctx)
		switch {
		case err != nil:
		case !flags.Cached:
			err = v.stamp(ctx, who, ino, flags.KillPriv)
		case flags.KillPriv:
			err = v.killPriv(ctx, who, ino)
		}
		if err != nil {
			h.f.leave(h)
			v.releaseFile(h.f)
			return nil, err
		}
	}
	return h, nil
}

// empty is what an open with Truncate does. What another handle has staged becomes a version first.
func (h *Handle) empty(ctx context.Context) error {
	f := h.f
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.changedSince.Load() != 0 && !f.emptied && f.writers.last != h {
		if err := f.commitLocked(ctx, commitIdle, nil); err != nil {
			return err
		}
	}
	clean := f.changedSince.Load() == 0
	err := f.truncate(ctx, h, 0)
	f.emptied = f.emptied || clean
	return err
}

// newHandle opens an inode that was made a moment ago and is empty.
func (v *Volume) newHandle(who catalog.Actor, ino catalog.Ino, flags OpenFlags) *Handle {
	f := v.acquire(ino)
	f.mu.Lock()
	if !f.known.Load() {
		f.known.Store(true)
		f.loaded = true
	}
	f.mu.Unlock()
	h := &Handle{f: f, who: who, flags: flags}
	f.enter(h, 0)
	return h
}

// Ino is the inode that the handle has open.
func (h *Handle) Ino() catalog.Ino { return h.f.ino }

// KeepCache reports whether what the kernel has cached of the file still holds. It always does: content changes through the mount,
// and commands that change it put a new inode in the place of the old one.
func (h *Handle) KeepCache() bool { return true }

// Flush ends one use of the handle, as close(2) does: what changed becomes a version. Errors of the store surface here, and what
// could not be committed stays staged. After an open with Truncate and nothing else, the version is made by Close.
func (h *Handle) Flush(ctx context.Context) error {
	if !h.flags.Write {
		return nil
	}
	return h.f.commitBy(ctx, commitFlush, h)
}

// Fsync commits what changed and makes it durable, with everything that was committed before it.
func (h *Handle) Fsync(ctx context.Context, _ bool) error {
	if h.f.v.readOnly {
		return nil
	}
	if err := h.f.commitBy(ctx, commitSync, h); err != nil {
		return err
	}
	return h.f.v.cat.Sync(ctx)
}

// Close releases the handle. What Flush did not commit, pages written through a mapping after the close for one, is committed now;
// if that fails it stays staged and is tried again in the background.
func (h *Handle) Close(ctx context.Context) {
	if h.flags.Write {
		if err := h.f.commitBy(ctx, commitClose, h); errors.Is(err, ErrConflict) {
			h.f.v.log.Warn("what was written to a file after its last close is kept beside it", "error", err)
		} else if err != nil {
			h.f.v.log.Error("cannot save a file after its last close; trying again in the background", "inode", h.f.ino, "error", err)
		}
	}
	h.f.leave(h)
	h.f.v.releaseFile(h.f)
}

// Truncate sets the size through the handle; the change is committed by its Flush.
func (h *Handle) Truncate(ctx context.Context, size int64) error {
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	return h.f.truncate(ctx, h, size)
}

// truncate sets the size. mu is held for writing.
func (f *file) truncate(ctx context.Context, h *Handle, size int64) error {
	if size < 0 {
		return catalog.ErrInvalid
	}
	if size > catalog.MaxSize {
		return unix.EFBIG
	}
	if err := f.learnSize(ctx); err != nil {
		return err
	}
	if size == f.size.Load() {
		return nil
	}
	f.dirty.truncate(size)
	if f.dirty.len() == 0 && f.memory > 0 {
		f.v.staged.Add(-f.memory)
		f.memory = 0
	}
	f.limit = min(f.limit, size)
	f.size.Store(size)
	f.changed(h)
	return nil
}

// stamp gives ino the times of a write that was made now, and takes away what a write takes away.
func (v *Volume) stamp(ctx context.Context, who catalog.Actor, ino catalog.Ino, killPriv bool) error {
	if killPriv {
		if err := v.killPriv(ctx, who, ino); err != nil {
			return err
		}
	}
	now := time.Now().UnixNano()
	return v.cat.SetAttrDeferred(ctx, ino, catalog.Change{Mtime: &now, Ctime: &now})
}

// killPriv clears set-uid, set-gid where the group may execute, and file capabilities, as a write by somebody else does.
func (v *Volume) killPriv(ctx context.Context, who catalog.Actor, ino catalog.Ino) error {
	row, err := v.cat.Get(ctx, ino)
	if err != nil {
		return err
	}
	if mode := withoutPriv(row.Mode); mode != row.Mode {
		if _, err := v.cat.SetAttr(ctx, who, ino, catalog.Change{Mode: &mode}); err != nil {
			return err
		}
	}
	return v.dropCapability(ctx, who, ino)
}

func (v *Volume) dropCapability(ctx context.Context, who catalog.Actor, ino catalog.Ino) error {
	const capability = "security.capability"
	_, err := v.cat.GetXattr(ctx, ino, capability)
	if err == nil {
		err = v.cat.RemoveXattr(ctx, who, ino, capability)
	}
	if errors.Is(err, catalog.ErrNoXattr) {
		return nil
	}
	return err
}

func withoutPriv(mode uint32) uint32 {
	mode &^= unix.S_ISUID
	if mode&unix.S_IXGRP != 0 {
		mode &^= unix.S_ISGID
	}
	return mode
}
