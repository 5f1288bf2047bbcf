package volume

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"holdfast/catalog"
)

// Allocate is fallocate(2) with mode 0, FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE or FALLOC_FL_ZERO_RANGE; others are EOPNOTSUPP. It sets the size
// or empties a range; room is looked for and not reserved, since what is written later shares it with every other file.
func (h *Handle) Allocate(ctx context.Context, mode uint32, off, n int64) error {
	if !h.flags.Write {
		return unix.EBADF
	}
	if off < 0 || n <= 0 {
		return catalog.ErrInvalid
	}
	if off > catalog.MaxSize-n {
		return unix.EFBIG
	}
	keep := mode&unix.FALLOC_FL_KEEP_SIZE != 0
	f := h.f
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.learnSize(ctx); err != nil {
		return err
	}
	size := f.size.Load()
	switch mode &^ unix.FALLOC_FL_KEEP_SIZE {
	case 0:
		st, err := f.v.StatFS(ctx)
		if err != nil {
			return err
		}
		if uint64(n) > st.Bavail*uint64(st.Bsize) {
			return fmt.Errorf("allocate %d bytes: %w", n, catalog.ErrNoSpace)
		}
		if keep || off+n <= size {
			return nil
		}
		f.size.Store(off + n)
	case unix.FALLOC_FL_PUNCH_HOLE:
		if !keep {
			return unix.EOPNOTSUPP
		}
		f.zero(off, min(off+n, size))
	case unix.FALLOC_FL_ZERO_RANGE:
		if !keep && off+n > size {
			size = off + n
			f.size.Store(size)
		}
		f.zero(off, min(off+n, size))
	default:
		return unix.EOPNOTSUPP
	}
	f.changed(h)
	return f.v.stamp(ctx, h.who, f.ino, false)
}

// zero makes [from, to) read as zeros.
func (f *file) zero(from, to int64) {
	if from < to {
		f.dirty.put(span{off: from, n: to - from, src: isZero})
	}
}

// Seek is lseek(2) with SEEK_DATA or SEEK_HOLE: the next data or hole at or behind off. ENXIO when off is at or behind the end, or nothing but holes
// follow. The end of the file is a hole.
func (h *Handle) Seek(ctx context.Context, off int64, whence int) (int64, error) {
	f := h.f
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.load(ctx); err != nil {
		return 0, err
	}
	size := f.size.Load()
	if off < 0 || off >= size {
		return 0, unix.ENXIO
	}
	switch whence {
	case unix.SEEK_DATA:
		at := size
		f.segments(off, size, func(s span) bool {
			if s.src == isZero {
				return true
			}
			at = s.off
			return false
		})
		if at == size {
			return 0, unix.ENXIO
		}
		return at, nil
	case unix.SEEK_HOLE:
		at := size
		f.segments(off, size, func(s span) bool {
			if s.src == isZero {
				at = s.off
				return false
			}
			return true
		})
		return at, nil
	}
	return 0, catalog.ErrInvalid
}

// segments calls fn for all of [from, to) in order, as it reads now: changes over committed content, isZero where there is neither.
// mu is held and the content loaded.
func (f *file) segments(from, to int64, fn func(span) bool) {
	next := from
	more := true
	hole := func(until int64) {
		if more && next < until {
			more = fn(span{off: next, n: until - next, src: isZero})
			next = until
		}
	}
	committed := func(until int64) {
		f.base.walk(next, min(until, f.limit), func(s span) bool {
			hole(s.off)
			if more {
				more = fn(s)
				next = s.end()
			}
			return more
		})
		hole(until)
	}
	f.dirty.walk(from, to, func(s span) bool {
		committed(s.off)
		if more {
			more = fn(s)
			next = s.end()
		}
		return more
	})
	committed(to)
}

// CopyRange copies n bytes as copy_file_range(2) does and returns how many: less than n only at the end of src. Committed content is not
// read: the copy names the same blobs. The ranges must not overlap when src and dst are one file.
func CopyRange(ctx context.Context, src *Handle, srcOff int64, dst *Handle, dstOff, n int64) (int64, error) {
	if !dst.flags.Write {
		return 0, unix.EBADF
	}
	if srcOff < 0 || dstOff < 0 || n < 0 {
		return 0, catalog.ErrInvalid
	}
	if dstOff > catalog.MaxSize-n {
		return 0, unix.EFBIG
	}
	a, b := src.f, dst.f
	if a == b {
		if srcOff < dstOff+n && dstOff < srcOff+n {
			return 0, catalog.ErrInvalid
		}
		a.mu.Lock()
		defer a.mu.Unlock()
	} else {
		first, second := a, b
		if first.ino > second.ino {
			first, second = second, first
		}
		first.mu.Lock()
		defer first.mu.Unlock()
		second.mu.Lock()
		defer second.mu.Unlock()
	}
	if err := a.load(ctx); err != nil {
		return 0, err
	}
	if err := b.learnSize(ctx); err != nil {
		return 0, err
	}
	n = min(n, a.size.Load()-srcOff)
	if n <= 0 {
		return 0, nil
	}
	return b.copyFrom(ctx, dst, a, srcOff, dstOff, n)
}

// copyFrom stages [srcOff, srcOff+n) of src at dstOff. Both files are locked. It may copy less than n when it returns no error.
func (f *file) copyFrom(ctx context.Context, h *Handle, src *file, srcOff, dstOff, n int64) (int64, error) {
	var parts []span
	src.segments(srcOff, srcOff+n, func(s span) bool {
		parts = append(parts, s)
		return true
	})
	buf := f.v.buffers.Get().(*[]byte)
	defer f.v.buffers.Put(buf)
	for _, s := range parts {
		to := dstOff + s.off - srcOff
		if s.src == isZero || s.src == inBlob {
			s.off = to
			if s.src == inBlob {
				if err := f.pin(ctx, s.blob.Hash); err != nil {
					return 0, err
				}
			}
			f.dirty.put(s)
			if end := s.end(); end > f.size.Load() {
				f.size.Store(end)
			}
			f.changed(h)
			continue
		}
		for done := int64(0); done < s.n; {
			// By its place in the file: where it is staged may change with each write, when src and f are one.
			p := (*buf)[:min(copyBuffer, s.n-done)]
			if _, err := src.read(ctx, p, s.off+done); err != nil {
				return 0, err
			}
			if err := f.write(ctx, h, p, to+done); err != nil {
				return 0, err
			}
			done += int64(len(p))
		}
	}
	return n, f.v.stamp(ctx, h.who, f.ino, false)
}
