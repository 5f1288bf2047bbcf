package journal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
)

// Headers checks the headers of all segments as they lie on disk, which Replay passes over where they cost no record. What it finds loses nothing: Last is
// First-1, and First the segment's first record. Errors are those of the filesystem and of ctx.
func (l *Log) Headers(ctx context.Context) (list []*DamageError, err error) {
	l.mu.Lock()
	closed, segs := l.closed, slices.Clone(l.segs)
	l.mu.Unlock()
	if closed {
		return nil, ErrClosed
	}
	for _, s := range segs {
		if err := ctx.Err(); err != nil {
			return list, err
		}
		why, err := l.headerOf(s)
		if err != nil {
			return list, fmt.Errorf("read journal segment %s: %w", s.Name, err)
		}
		if why != "" {
			list = append(list, &DamageError{Kind: Rot, Segment: s.Name, End: headerSize, First: s.First, Last: s.First - 1, Why: why})
		}
	}
	return list, nil
}

// headerOf says what is wrong with the header of a segment; "" when nothing is. That a segment is gone is for Replay to say.
func (l *Log) headerOf(s SegmentInfo) (string, error) {
	f, size, err := openSegment(l.fs, l.dir, s.Name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	block, err := (&source{r: f, size: size}).bytes(0, int(min(headerSize, size)))
	if err != nil {
		return "", err
	}
	h, why, err := parseHeader(block)
	switch {
	case err != nil:
		return err.Error(), nil
	case why == "" && h.store != l.store:
		return ErrForeign.Error(), nil
	case why == "" && h.first != s.First:
		return fmt.Sprintf("the header is that of the segment that begins with record %d", h.first), nil
	}
	return why, nil
}
