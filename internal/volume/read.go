package volume

import (
	"context"
	"fmt"
	"io"

	"holdfast/catalog"
)

// ReadAt fills p with the file's bytes from off on and returns their number: less than len(p) only at the end of the file.
// Every byte was verified. ErrDamaged (of blobstore) when the store has rotted there.
func (h *Handle) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return h.f.readAt(ctx, p, off)
}

func (f *file) readAt(ctx context.Context, p []byte, off int64) (int, error) {
	f.mu.RLock()
	if !f.loaded || !f.known.Load() {
		f.mu.RUnlock()
		f.mu.Lock()
		err := f.load(ctx)
		f.mu.Unlock()
		if err != nil {
			return 0, err
		}
		f.mu.RLock()
	}
	defer f.mu.RUnlock()
	return f.read(ctx, p, off)
}

// read is readAt with mu held and the content loaded.
func (f *file) read(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, catalog.ErrInvalid
	}
	size := f.size.Load()
	if off >= size {
		return 0, nil
	}
	p = p[:min(int64(len(p)), size-off)]
	end := off + int64(len(p))
	var err error
	next := off
	fill := func(to int64) bool {
		err = f.readBase(ctx, p[next-off:to-off], next)
		next = to
		return err == nil
	}
	f.dirty.walk(off, end, func(s span) bool {
		if s.off > next && !fill(s.off) {
			return false
		}
		err = f.v.readSpan(ctx, f.stage, s, p[s.off-off:s.end()-off])
		next = s.end()
		return err == nil
	})
	if err == nil && next < end {
		fill(end)
	}
	if err != nil {
		return 0, fmt.Errorf("inode %d at %d: %w", f.ino, off, err)
	}
	return len(p), nil
}

// readBase reads committed content, zero where there is none.
func (f *file) readBase(ctx context.Context, p []byte, off int64) error {
	end := min(off+int64(len(p)), f.limit)
	return f.v.readSpans(ctx, f.base, p, off, end)
}

// readSpans fills p from off on with what m holds below end, and zeros.
func (v *Volume) readSpans(ctx context.Context, m spanMap, p []byte, off, end int64) error {
	var err error
	next := off
	m.walk(off, end, func(s span) bool {
		clear(p[next-off : s.off-off])
		err = v.readSpan(ctx, nil, s, p[s.off-off:s.end()-off])
		next = s.end()
		return err == nil
	})
	if err == nil {
		clear(p[next-off:])
	}
	return err
}

func (v *Volume) readSpan(ctx context.Context, stage *staging, s span, p []byte) error {
	switch s.src {
	case inMemory:
		copy(p, s.mem)
	case isZero:
		clear(p)
	case inStage:
		if _, err := stage.file.ReadAt(p, s.pos); err != nil {
			return fmt.Errorf("staging file: %w", err)
		}
	case inBlob:
		return v.readBlob(ctx, *s.blob, p, s.pos)
	}
	return nil
}

// copyOut writes the content that m describes, size bytes, to w.
func (v *Volume) copyOut(ctx context.Context, m spanMap, from, size int64, w io.Writer) error {
	buf := v.buffers.Get().(*[]byte)
	defer v.buffers.Put(buf)
	for off := from; off < size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		part := (*buf)[:min(copyBuffer, size-off)]
		if err := v.readSpans(ctx, m, part, off, off+int64(len(part))); err != nil {
			return err
		}
		if _, err := w.Write(part); err != nil {
			return err
		}
		off += int64(len(part))
	}
	return nil
}
