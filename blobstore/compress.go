package blobstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"
)

const (
	// inlineCompress is the largest blob that Adopt compresses itself; the worker does larger ones later.
	inlineCompress = 8 << 20
	// maxQueue bounds what waits for the worker. What does not fit stays raw, which is just as right.
	maxQueue = 4096
	// sampleSize is the size of each of the pieces that decide whether a blob is worth compressing.
	sampleSize = 32 << 10
)

// atReader is content that is read by offset: less than len(p) bytes only at its end.
type atReader interface {
	ReadAt(p []byte, off int64) (int, error)
}

// ReadAt makes an openFile an atReader.
func (f *openFile) ReadAt(p []byte, off int64) (int, error) { return f.readAt(p, off) }

// compressible guesses, from pieces at the start, in the middle and at the end, whether content shrinks. When it cannot be read, it does not.
func (s *files) compressible(r atReader, size int64) bool {
	if size < minCompressFile {
		return false
	}
	buf, out := s.codec.buf(), s.codec.buf()
	defer s.codec.free(buf)
	defer s.codec.free(out)
	offsets := []int64{0, size / 2, size - sampleSize}
	if size <= 3*sampleSize {
		offsets = []int64{0}
	}
	plain, stored := 0, 0
	for _, off := range offsets {
		n := int(min(sampleSize, size-off))
		if len(offsets) == 1 {
			n = int(size)
		}
		if got, err := r.ReadAt(buf[:n], off); got != n || err != nil && err != io.EOF {
			return false
		}
		frame, _ := s.codec.encode(out[:0], buf[:n])
		plain, stored = plain+n, stored+min(n, len(frame))
	}
	return worthwhile(stored, plain)
}

// encodeBlob writes the content in r as frames to w and returns their lengths: nil without an error when the blob is better kept
// raw. Each block is checked before it is encoded, and its frame is decoded again before it may replace anything.
func (s *files) encodeBlob(ctx context.Context, ref Ref, hashes []byte, r atReader, w io.Writer) ([]uint32, error) {
	plain, frame, again := s.codec.buf(), s.codec.buf(), s.codec.buf()
	defer s.codec.free(plain)
	defer s.codec.free(frame)
	defer s.codec.free(again)
	n := blockCount(ref.Size)
	frames := make([]uint32, 0, n)
	var total int64
	name := NewHasher()
	for b := range n {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		block := plain[:blockLen(ref.Size, b)]
		if got, err := r.ReadAt(block, b*BlockSize); got != len(block) {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, fmt.Errorf("read blob %s to compress it: %w", ref.Hash, err)
		}
		if hashes == nil {
			name.Write(block)
		} else if blake3.Sum256(block) != [32]byte(hashes[32*b:32*b+32]) {
			return nil, &DamageError{ref.Hash, fmt.Sprintf("block %d", b), "it does not have its hash"}
		}
		out, ok := s.codec.encode(frame[:0], block)
		if !ok {
			if out = block; hasMagic(block) {
				return nil, nil // it could be taken for a frame
			}
		} else if err := s.codec.decode(again[:len(block)], out); err != nil || string(again[:len(block)]) != string(block) {
			return nil, nil // the encoder failed: raw is safe
		}
		if _, err := w.Write(out); err != nil {
			return nil, err
		}
		frames = append(frames, uint32(len(out)))
		total += int64(len(out))
	}
	if hashes == nil && name.Sum().Ref.Hash != ref.Hash {
		return nil, &DamageError{ref.Hash, "content", "it does not have its hash"}
	}
	if total > ref.Size-ref.Size/8 {
		return nil, nil
	}
	return frames, nil
}

// compressor is the worker that compresses large adopted blobs, one at a time.
type compressor struct {
	mu    sync.Mutex
	queue []Hash
	list  *compressList // of what waits, over restarts
	busy  bool
	idle  *sync.Cond // signalled when the queue is empty and busy false
	wake  chan struct{}
	stop  context.CancelFunc
	done  chan struct{}
}

func (c *compressor) start(s *files) {
	c.idle = sync.NewCond(&c.mu)
	c.wake, c.done = make(chan struct{}, 1), make(chan struct{})
	ctx, stop := context.WithCancel(context.Background())
	c.stop = stop
	if !s.opt.ReadOnly {
		c.list = &compressList{root: s.root, log: s.opt.Log}
		for _, h := range c.list.read() {
			c.add(h)
		}
	}
	go func() {
		defer close(c.done)
		for {
			select {
			case <-ctx.Done():
				return
			case <-c.wake:
			}
			for ctx.Err() == nil { // else the list keeps what was interrupted
				h, ok := c.next()
				if !ok {
					break
				}
				call := s.teller.begin(ctx)
				if err := s.compressQueued(call, h); err != nil && ctx.Err() == nil && !errors.Is(err, ErrNotFound) {
					s.opt.Log.Warn("a blob stays uncompressed", "blob", h.String(), "err", err)
				}
				s.teller.end(call)
			}
		}
	}()
}

// next takes a blob off the queue, or says that there is none.
func (c *compressor) next() (h Hash, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.busy = len(c.queue) > 0; !c.busy {
		c.list.clear()
		c.idle.Broadcast()
		return h, false
	}
	h, c.queue = c.queue[0], c.queue[1:]
	return h, true
}

func (c *compressor) add(h Hash) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queue) < maxQueue {
		c.queue = append(c.queue, h)
		c.list.add(h, c.queue)
	}
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// wait returns when everything queued so far is done.
func (c *compressor) wait() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.queue) > 0 || c.busy {
		c.idle.Wait()
	}
}

// shutdown stops the worker after at most one more block. What it was doing leaves nothing but a file in blobs/.tmp, which it removes.
func (c *compressor) shutdown() {
	if c.stop == nil {
		return
	}
	c.stop()
	<-c.done
}

// compressQueued compresses h. A parity that it had, which was that of the raw content, is made anew.
func (s *files) compressQueued(ctx context.Context, h Hash) error {
	pr, f, err := s.openParity(ctx, h)
	if err == nil {
		f.release()
	}
	if err2 := s.compressStored(ctx, h); err2 != nil || err != nil {
		return err2
	}
	_, err = s.protect(ctx, pr.ref)
	return err
}

// compressStored replaces the raw content of h by compressed content. Everything new is durable before the raw file goes.
func (s *files) compressStored(ctx context.Context, h Hash) error {
	st := &s.stripes[h[0]]
	f, err := s.openContent(h, encRaw)
	if err != nil {
		return err
	}
	defer f.release()
	sc, err := s.sidecar(ctx, h) // made anew when it is damaged
	if err != nil {
		return err
	}
	if sc.Encoding != encRaw || sc.Size != f.size {
		return &DamageError{h, "sidecar", "it does not describe the raw content"}
	}
	t, err := s.newTmp()
	if err != nil {
		return err
	}
	defer t.drop()
	frames, err := s.encodeBlob(ctx, Ref{Hash: h, Size: sc.Size}, sc.Blocks, f, t)
	if err != nil || frames == nil {
		if errors.Is(err, ErrDamaged) {
			mended(ctx, Mending{Hash: h, Part: PartContent, Cause: err, Err: errNotMended})
		}
		return err
	}
	if err := t.sync(); err != nil {
		return err
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	dir, err := s.dirForChange(h[0])
	if err != nil {
		return err
	}
	if !sameFile(f.fd, dir, fileName(h, encRaw)) || ctx.Err() != nil {
		return nil // replaced or deleted in the meantime, or being closed
	}
	// The sidecar is read again because its level may have been raised.
	if sc, err = s.loadSidecar(h, blockCount(f.size)); err != nil || sc.Encoding != encRaw || sc.Size != f.size {
		return err
	}
	if err := t.commit(dir, h, fileName(h, encZstd)); err != nil {
		return err
	}
	sc = sc.encoded(frames)
	if err := s.writeSidecar(dir, h, sc, true); err != nil {
		return err
	}
	if err := s.syncDir(dir, h[0]); err != nil {
		return err
	}
	s.forget(h, true)
	if err := s.dropStaleParity(ctx, dir, h, &sc); err != nil {
		return err
	}
	if err := s.unlink(dir, h, fileName(h, encRaw)); err != nil {
		return err
	}
	s.forget(h, true)
	if st.counted {
		st.count(Stats{StoredBytes: f.size - sc.StoredSize}, -1)
	}
	return nil
}

// sameFile reports whether name in dir leads to the file that is open as fd.
func sameFile(fd, dir int, name string) bool {
	var a, b unix.Stat_t
	return unix.Fstat(fd, &a) == nil && unix.Fstatat(dir, name, &b, unix.AT_SYMLINK_NOFOLLOW) == nil && a.Ino == b.Ino && a.Dev == b.Dev
}
