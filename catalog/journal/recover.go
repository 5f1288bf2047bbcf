package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// goOn makes the log ready for the next record: behind the last one, or in a new segment.
func (l *Log) goOn(ctx context.Context, bound uint64, m marker, fresh bool) error {
	fresh = fresh || bound > l.last
	if len(l.segs) > 0 {
		if err := l.take(ctx, bound, m, l.torn != nil || !fresh); err != nil {
			return err
		}
		l.advance(l.last)
	}
	if fresh {
		return l.begin(max(bound, l.last)+1, l.chain)
	}
	return nil
}

// take opens the last segment for writing, cuts off what lies behind its last record (cut set: it is known to be of no use), and
// makes its records durable.
func (l *Log) take(ctx context.Context, bound uint64, m marker, cut bool) error {
	seg := &l.segs[len(l.segs)-1]
	f, err := l.fs.OpenFile(filepath.Join(l.dir, seg.Name), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	l.cur = &segment{file: f, marker: m, users: 1}
	if l.torn != nil {
		l.log.Warn("journal ends in an unfinished write, which is cut off", "segment", seg.Name, "offset", l.off,
			"bytes", seg.Bytes-l.off, "why", l.torn.Why)
		switch err := l.keepTail(f, seg); {
		case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
			// Nobody was told that these bytes are safe; a full disk must not keep the store from opening.
			l.log.Warn("no room to keep a copy of the unfinished write", "segment", seg.Name, "err", err)
		case err != nil:
			return fmt.Errorf("keep a copy of the torn tail of %s: %w", seg.Name, err)
		}
	}
	if cut && seg.Bytes > l.off {
		if err := f.Truncate(l.off); err != nil {
			return fmt.Errorf("cut the torn tail off: %w", err)
		}
		seg.Bytes = l.off
	}
	if err := l.rewrite(ctx, f, seg, bound); err != nil {
		return fmt.Errorf("make the newest records of %s durable: %w", seg.Name, err)
	}
	return f.Datasync()
}

// rewrite writes the records above bound over themselves. After a failed fdatasync the kernel may hold pages for clean that never
// reached the disk; a program that opens the log anew must not be told that they are durable.
func (l *Log) rewrite(ctx context.Context, f File, seg *SegmentInfo, bound uint64) error {
	if l.last <= bound {
		return nil
	}
	r := &reader{fs: l.fs, dir: l.dir, store: l.store, segs: []SegmentInfo{*seg}, limit: l.off, seq: seg.First}
	defer r.close()
	from := l.off
	for from == l.off {
		if err := ctx.Err(); err != nil {
			return err
		}
		e, d, err := r.next()
		if err != nil {
			return err
		}
		if d == nil && e.Seq == 0 {
			break
		}
		if e.Seq > bound {
			from = e.Pos.Offset
		}
	}
	return copyRange(f, f, from, from, l.off)
}

// copyRange copies the bytes [from, end) of src to offset at of dst.
func copyRange(dst, src File, at, from, end int64) error {
	buf := make([]byte, min(keepBuffer, end-from))
	for from < end {
		b := buf[:min(int64(len(buf)), end-from)]
		if n, err := src.ReadAt(b, from); n < len(b) {
			return errors.Join(io.ErrUnexpectedEOF, err)
		}
		if _, err := dst.WriteAt(b, at); err != nil {
			return err
		}
		at, from = at+int64(len(b)), from+int64(len(b))
	}
	return nil
}

// quarantine returns a name in "../quarantine" for what is taken out of a segment, and makes that directory.
func (l *Log) quarantine(name, why string) (string, error) {
	dir := filepath.Join(filepath.Dir(filepath.Clean(l.dir)), "quarantine")
	if err := mkdir(l.fs, dir); err != nil {
		return "", err
	}
	return filepath.Join(dir, name+"."+why+"-"+time.Now().UTC().Format("20060102T150405.000000000Z")), nil
}

// keepTail copies what lies behind l.off, without the zeros at its end, to quarantine.
func (l *Log) keepTail(f File, seg *SegmentInfo) error {
	end, err := lastNonZero(f, l.off, seg.Bytes)
	if err != nil {
		return err
	}
	name, err := l.quarantine(seg.Name, "torn")
	if err != nil {
		return err
	}
	dst, err := l.fs.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = copyRange(dst, f, 0, l.off, end)
	if err == nil {
		err = dst.Datasync()
	}
	if err = errors.Join(err, dst.Close()); err != nil {
		return errors.Join(err, l.fs.Remove(name))
	}
	return l.fs.SyncDir(filepath.Dir(name))
}

// lastNonZero returns the end of [from, end) without the zeros that it ends in.
func lastNonZero(f File, from, end int64) (int64, error) {
	buf := make([]byte, readAhead)
	for end > from {
		b := buf[:min(readAhead, end-from)]
		if n, err := f.ReadAt(b, end-int64(len(b))); n < len(b) {
			return 0, errors.Join(io.ErrUnexpectedEOF, err)
		}
		if rest := len(bytes.TrimRight(b, "\x00")); rest > 0 {
			return end - int64(len(b)-rest), nil
		}
		end -= int64(len(b))
	}
	return from, nil
}

// discard takes a last segment in which nothing is readable out of the log, whole.
func (l *Log) discard() error {
	seg := l.segs[len(l.segs)-1]
	l.segs = l.segs[:len(l.segs)-1]
	if l.readOnly {
		return nil
	}
	to, err := l.quarantine(seg.Name, "unreadable")
	if err != nil {
		return err
	}
	if err := l.fs.Rename(filepath.Join(l.dir, seg.Name), to); err != nil {
		return fmt.Errorf("move an unreadable segment away: %w", err)
	}
	return errors.Join(l.fs.SyncDir(filepath.Dir(to)), l.fs.SyncDir(l.dir))
}

// create makes a segment file with its header: durable, and under its final name only when it is.
func (l *Log) create(h header) (*segment, error) {
	name := filepath.Join(l.dir, segmentName(h.first))
	temp := filepath.Join(l.dir, fmt.Sprintf("%016x%s", h.first, tempSuffix))
	if err := l.fs.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("begin a journal segment: %w", err)
	}
	f, err := l.fs.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("begin a journal segment: %w", err)
	}
	_, err = f.WriteAt(h.encode(), 0)
	if err == nil {
		err = f.Datasync()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("begin a journal segment: %w", err), f.Close(), l.fs.Remove(temp))
	}
	// From here on a failure leaves it unknown whether the new segment will be the last one after a power cut.
	err = l.fs.Rename(temp, name)
	if err == nil {
		err = l.fs.SyncDir(l.dir)
	}
	if err != nil {
		return nil, errors.Join(l.fail(err), f.Close())
	}
	return &segment{file: f, marker: h.marker, users: 1}, nil
}
