package volume

import (
	"context"
	"path/filepath"

	"golang.org/x/sys/unix"

	"holdfast/catalog"
)

const (
	// maxFileMemory is how much of one file is staged in memory before it moves to a staging file.
	maxFileMemory = 1 << 20
	// maxMemory is how much all files may stage in memory before those with more than smallMemory move to staging files.
	maxMemory   = 64 << 20
	smallMemory = 64 << 10
)

// WriteFlags say where a write comes from.
type WriteFlags struct {
	Cached   bool // the kernel's page cache: the kernel looks after the times itself
	KillPriv bool
}

// WriteAt stages p at off and returns len(p), or an error and nothing staged. The version is made by Flush or Fsync.
func (h *Handle) WriteAt(ctx context.Context, p []byte, off int64, flags WriteFlags) (int, error) {
	if !h.flags.Write {
		return 0, unix.EBADF
	}
	f := h.f
	f.mu.Lock()
	err := f.write(ctx, h, p, off)
	f.writers.cached = f.writers.cached || flags.Cached
	f.mu.Unlock()
	if err == nil && (!flags.Cached || flags.KillPriv) {
		err = f.v.stamp(ctx, h.who, f.ino, flags.KillPriv)
	}
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// write stages p at off. mu is held for writing.
func (f *file) write(ctx context.Context, h *Handle, p []byte, off int64) error {
	if off < 0 {
		return catalog.ErrInvalid
	}
	if off > catalog.MaxSize-int64(len(p)) {
		return unix.EFBIG
	}
	if len(p) == 0 {
		return nil
	}
	if err := f.learnSize(ctx); err != nil {
		return err
	}
	n := int64(len(p))
	if f.stage == nil && f.mustSpill(n) {
		if err := f.spill(off); err != nil {
			return err
		}
	}
	if f.stage != nil {
		// What a blobstore has adopted must not be written to: the commit that should have named it has failed.
		if off < f.stage.base || f.stage.adopted {
			if err := f.restage(min(off, f.stage.base)); err != nil {
				return err
			}
		}
		if err := f.stage.write(p, off); err != nil {
			return err
		}
		f.dirty.put(span{off: off, n: n, src: inStage, pos: off - f.stage.base})
	} else {
		f.remember(p, off)
	}
	if end := off + n; end > f.size.Load() {
		f.size.Store(end)
	}
	f.changed(h)
	return nil
}

// remember stages p in memory, growing the span before it where p goes on behind it.
func (f *file) remember(p []byte, off int64) {
	n := int64(len(p))
	f.memory += n
	f.v.staged.Add(n)
	f.dirty.remove(off, off+n)
	if prev, ok := f.dirty.before(off); ok && prev.src == inMemory && prev.end() == off {
		prev.mem = append(prev.mem, p...)
		prev.n += n
		f.dirty.tree.Set(prev)
		return
	}
	f.dirty.put(span{off: off, n: n, src: inMemory, mem: append([]byte(nil), p...)})
}

func (f *file) mustSpill(more int64) bool {
	if f.memory+more > maxFileMemory {
		return true
	}
	return f.memory+more > smallMemory && f.v.staged.Load()+more > maxMemory
}

// spill moves what is staged in memory to a staging file, which can hold off as well.
func (f *file) spill(off int64) error {
	base := off
	f.dirty.tree.Scan(func(s span) bool {
		if s.src == inMemory {
			base = min(base, s.off)
			return false
		}
		return true
	})
	return f.restage(base)
}

// restage makes a staging file with the given base and moves everything there that is staged elsewhere. On error nothing has changed.
func (f *file) restage(base int64) error {
	stage, err := newStaging(filepath.Join(f.v.dir, stagingDir), uint64(f.ino), base, &f.v.buffers)
	if err != nil {
		return err
	}
	buf := f.v.buffers.Get().(*[]byte)
	defer f.v.buffers.Put(buf)
	var moved []span
	f.dirty.tree.Scan(func(s span) bool {
		switch s.src {
		case inMemory:
			err = stage.write(s.mem, s.off)
		case inStage:
			for done := int64(0); done < s.n && err == nil; {
				part := (*buf)[:min(copyBuffer, s.n-done)]
				if _, err = f.stage.file.ReadAt(part, s.pos+done); err == nil {
					err = stage.write(part, s.off+done)
				}
				done += int64(len(part))
			}
		default:
			return true
		}
		moved = append(moved, span{off: s.off, n: s.n, src: inStage, pos: s.off - base})
		return err == nil
	})
	if err != nil {
		stage.discard()
		return err
	}
	for _, s := range moved {
		f.dirty.put(s)
	}
	if f.stage != nil {
		f.stage.discard()
	}
	f.stage = stage
	f.v.staged.Add(-f.memory)
	f.memory = 0
	return nil
}
