package journal

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
)

// keepBuffer is the largest write buffer that is kept from one Append to the next.
const keepBuffer = 1 << 20

// Log is an open journal. All methods may be called concurrently; only one process may have it open for writing (the store's lock).
type Log struct {
	fs           FS
	dir          string
	store        [16]byte
	segmentBytes int64
	readOnly     bool
	log          *slog.Logger
	newMarker    func() marker
	crc          *crc32.Table
	damaged      []*DamageError // set by Open only, like torn
	torn         *DamageError

	synced atomic.Uint64
	poison atomic.Pointer[error]

	mu     sync.Mutex // guards what follows; held over the write, so that records lie in the order of their numbers
	closed bool
	segs   []SegmentInfo
	cur    *segment // nil when read-only and there is none, and when closed
	off    int64    // end of the newest record in cur
	last   uint64
	chain  chain
	buf    []byte
	digest hash.Hash

	roundMu sync.Mutex
	round   chan struct{} // closed when the fdatasync that is under way ends; nil when none is
}

// segment is the file that records are appended to. Its last user closes it.
type segment struct {
	file   File
	marker marker
	users  int // guarded by Log.mu

	// The kernel tells of a failed write-back once for each open file. Whoever comes second must not take silence for success.
	mu      sync.Mutex
	failure error
}

func (s *segment) datasync() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failure == nil {
		s.failure = s.file.Datasync()
	}
	return s.failure
}

// Append writes one record, with one write call, and returns its number and place. The body is the concatenation of bodies.
// Order of records is order of return values; on error nothing was appended and no number is used up. It survives a killed
// process on return, and a power cut after the next Sync. The slices are not kept. Errors: ErrTooLarge, ErrPoisoned, ErrReadOnly,
// ErrClosed, and those of the filesystem, after which a later Append may succeed.
func (l *Log) Append(time int64, head []byte, bodies ...[]byte) (seq uint64, pos Pos, err error) {
	body := 0
	for _, b := range bodies {
		if body += len(b); body > MaxBody {
			return 0, Pos{}, fmt.Errorf("%w: the body has more than %d bytes", ErrTooLarge, MaxBody)
		}
	}
	if len(head) > MaxHead {
		return 0, Pos{}, fmt.Errorf("%w: the head has %d bytes, the bound is %d", ErrTooLarge, len(head), MaxHead)
	}
	size := int64(frameSize + len(head) + body)

	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.writable(); err != nil {
		return 0, Pos{}, err
	}
	if l.off+size > l.segmentBytes && l.off > headerSize {
		if err := l.rotate(); err != nil {
			return 0, Pos{}, err
		}
	}
	l.fill(time, head, bodies, body)
	next := l.seal()
	pos = Pos{l.segs[len(l.segs)-1].First, l.off}
	if _, err := l.cur.file.WriteAt(l.buf, l.off); err != nil {
		return 0, Pos{}, l.takeBack(err)
	}
	l.last++
	l.chain = next
	l.off += size
	l.segs[len(l.segs)-1].Bytes = l.off
	if cap(l.buf) > keepBuffer {
		l.buf = nil
	}
	return l.last, pos, nil
}

// fill lays the next record out in l.buf, unsealed.
func (l *Log) fill(time int64, head []byte, bodies [][]byte, body int) {
	var room [frameSize]byte
	l.buf = append(append(l.buf[:0], room[:]...), head...)
	for _, b := range bodies {
		l.buf = append(l.buf, b...)
	}
	f := frame{seq: l.last + 1, time: time, synced: min(l.synced.Load(), l.last), headLen: uint32(len(head)), bodyLen: uint32(body),
		dataCRC: crc32.Checksum(l.buf[frameSize:], l.crc)}
	f.put(l.buf, l.cur.marker)
}

// seal completes the frame in l.buf and returns its chain hash. It is link without an allocation.
func (l *Log) seal() (next chain) {
	headEnd := frameSize + int(binary.LittleEndian.Uint32(l.buf[frmHeadLen:]))
	l.digest.Reset()
	l.digest.Write(l.chain[:])
	l.digest.Write(l.buf[frmSeq:frmFlags])
	l.digest.Write(l.buf[frameSize:headEnd])
	l.digest.Sum(l.buf[frmChain:frmChain])
	next = chain(l.buf[frmChain:frmCRC])
	seal(l.buf, l.crc)
	return next
}

// takeBack cuts off what a failed write may have left. If that fails too, what the file holds is unknown.
func (l *Log) takeBack(cause error) error {
	l.buf = nil
	err := fmt.Errorf("append to journal segment %s: %w", l.segs[len(l.segs)-1].Name, cause)
	if cut := l.cur.file.Truncate(l.off); cut != nil {
		return l.fail(errors.Join(err, fmt.Errorf("cut the unfinished record off: %w", cut)))
	}
	return err
}

// fail poisons the log and returns the error of every later write.
func (l *Log) fail(cause error) error {
	err := fmt.Errorf("%w (%w); check the disk and mount the store again", ErrPoisoned, cause)
	if l.poison.CompareAndSwap(nil, &err) {
		l.log.Error("journal stops writing", "dir", l.dir, "err", cause)
	}
	return *l.poison.Load()
}

func (l *Log) poisoned() error {
	if p := l.poison.Load(); p != nil {
		return *p
	}
	return nil
}

// writable needs l.mu.
func (l *Log) writable() error {
	switch {
	case l.closed:
		return ErrClosed
	case l.readOnly:
		return ErrReadOnly
	case l.last >= maxSeq:
		return fmt.Errorf("journal in %s: no record numbers are left", l.dir)
	}
	return l.poisoned()
}

// rotate ends the current segment, durably, and begins the next one. It needs l.mu.
func (l *Log) rotate() error {
	if err := l.cur.datasync(); err != nil {
		return l.fail(err)
	}
	l.advance(l.last)
	return l.begin(l.last+1, l.chain)
}

// begin makes the segment whose first record is first, continuing c, current. It needs l.mu.
func (l *Log) begin(first uint64, c chain) error {
	s, err := l.create(header{store: l.store, first: first, chain: c, marker: l.newMarker()})
	if err != nil {
		return err
	}
	l.release(l.cur)
	l.cur, l.off = s, headerSize
	l.last, l.chain = first-1, c
	l.segs = append(l.segs, SegmentInfo{First: first, Name: segmentName(first), Bytes: headerSize})
	return nil
}

// release needs l.mu.
func (l *Log) release(s *segment) {
	if s == nil {
		return
	}
	if s.users--; s.users == 0 {
		s.file.Close() // nothing is lost: it was synced, or the log is poisoned
	}
}

// advance raises synced to seq.
func (l *Log) advance(seq uint64) {
	for {
		old := l.synced.Load()
		if seq <= old || l.synced.CompareAndSwap(old, seq) {
			return
		}
	}
}

// Sync makes everything appended before the call durable. Concurrent callers share one fdatasync. After a failed Sync the log is
// poisoned. When ctx ends, a caller that waits for another's fdatasync returns ctx's error; the log is not harmed.
func (l *Log) Sync(ctx context.Context) error {
	l.mu.Lock()
	target, closed := l.last, l.closed
	l.mu.Unlock()
	if closed {
		return ErrClosed
	}
	if l.readOnly {
		return nil
	}
	for {
		if err := l.poisoned(); err != nil {
			return err
		}
		if l.synced.Load() >= target {
			return nil
		}
		l.roundMu.Lock()
		if other := l.round; other != nil {
			l.roundMu.Unlock()
			select {
			case <-other:
			case <-ctx.Done():
				return ctx.Err()
			}
			continue
		}
		mine := make(chan struct{})
		l.round = mine
		l.roundMu.Unlock()
		l.syncRound()
		l.roundMu.Lock()
		l.round = nil
		l.roundMu.Unlock()
		close(mine)
	}
}

// syncRound makes durable what has been appended by now. It leaves success in l.synced and failure in l.poison.
func (l *Log) syncRound() {
	l.mu.Lock()
	s, last := l.cur, l.last
	if s == nil {
		l.mu.Unlock()
		return // closed meanwhile: Close has left its result
	}
	s.users++
	l.mu.Unlock()
	err := s.datasync()
	if errors.Is(err, errRemoved) && !l.writes(s) {
		err = nil // it was ended meanwhile, synced by that, and compacted
	}
	if err != nil {
		_ = l.fail(err) // whoever appends or syncs next is told
	} else {
		l.advance(last)
	}
	l.mu.Lock()
	l.release(s)
	l.mu.Unlock()
}

// writes reports whether records are appended to s.
func (l *Log) writes(s *segment) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cur == s
}

// Last returns the number and chain hash of the newest record. Before the first record these are 0 and the chain's beginning.
func (l *Log) Last() (seq uint64, chain [32]byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last, l.chain
}

// Synced is the newest record known to be durable.
func (l *Log) Synced() uint64 { return l.synced.Load() }

// Damaged returns the damage that Open met: in the last segment, before the first one, and between the log's end and AppliedSeq.
func (l *Log) Damaged() []*DamageError { return slices.Clone(l.damaged) }

// Torn returns the unfinished write that Open found at the end of the log and cut off; nil when there was none.
func (l *Log) Torn() *DamageError { return l.torn }

// Segments lists the segment files in order.
func (l *Log) Segments() []SegmentInfo {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.segs)
}

// Bytes is the size of all segments.
func (l *Log) Bytes() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	var n int64
	for _, s := range l.segs {
		n += s.Bytes
	}
	return n
}

// Close makes everything appended durable and releases the log. Later calls return ErrClosed; a second Close returns nil.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	s := l.cur
	l.cur = nil
	if s == nil {
		return nil
	}
	defer l.release(s)
	if l.readOnly {
		return nil
	}
	if err := l.poisoned(); err != nil {
		return err
	}
	if l.synced.Load() < l.last {
		if err := s.datasync(); err != nil {
			return l.fail(err)
		}
		l.advance(l.last)
	}
	return nil
}
