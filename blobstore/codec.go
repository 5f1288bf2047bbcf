package blobstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// zstdMagic starts every zstd frame. A block that is stored raw never starts with it (see encodeBlob), so that an encoded
// blob describes itself: where a block begins, the magic says whether a frame or BlockSize raw bytes follow.
const zstdMagic = 0xFD2FB528

// minCompress is the smallest body worth an attempt.
const minCompress = 512

var errFrame = errors.New("not a whole zstd frame")

// codec compresses and decompresses single blocks. Its methods may be called concurrently.
type codec struct {
	enc  *zstd.Encoder
	dec  *zstd.Decoder
	bufs sync.Pool // of *[BlockSize]byte
}

// buf lends a buffer of BlockSize bytes; free takes it back.
func (c *codec) buf() *[BlockSize]byte {
	if b, ok := c.bufs.Get().(*[BlockSize]byte); ok {
		return b
	}
	return new([BlockSize]byte)
}

func (c *codec) free(b *[BlockSize]byte) { c.bufs.Put(b) }

func newCodec() (*codec, error) {
	// The checksum is left out because the plain block is hashed; a window of one block bounds the memory on both sides.
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(2),
		zstd.WithWindowSize(BlockSize), zstd.WithSingleSegment(true), zstd.WithEncoderCRC(false))
	if err != nil {
		return nil, fmt.Errorf("prepare zstd encoder: %w", err)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(4), zstd.WithDecoderMaxMemory(BlockSize), zstd.WithDecoderMaxWindow(BlockSize),
		zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderLowmem(true))
	if err != nil {
		enc.Close()
		return nil, fmt.Errorf("prepare zstd decoder: %w", err)
	}
	return &codec{enc: enc, dec: dec}, nil
}

func (c *codec) close() {
	c.enc.Close()
	c.dec.Close()
}

// encode appends plain, at most BlockSize bytes, to dst as one frame; ok says that it shrank by at least an eighth.
func (c *codec) encode(dst, plain []byte) (frame []byte, ok bool) {
	frame = c.enc.EncodeAll(plain, dst)
	return frame, worthwhile(len(frame)-len(dst), len(plain))
}

// worthwhile is the rule for all compression: stored must be smaller than plain by an eighth.
func worthwhile(stored, plain int) bool { return stored <= plain-plain/8 }

// decode fills dst, the plain block, from a frame, which comes from the disk: anything that does not decode to exactly
// len(dst) bytes is an error, and no more than that is ever written.
func (c *codec) decode(dst, frame []byte) error {
	if len(dst) == 0 {
		return errFrame
	}
	out, err := c.dec.DecodeAll(frame, dst[:0:len(dst)])
	if err != nil {
		return err
	}
	if len(out) != len(dst) || &out[0] != &dst[0] {
		return fmt.Errorf("decodes to %d bytes, not %d", len(out), len(dst))
	}
	return nil
}

// decodeUpTo decodes a frame of unknown plain length into dst, no further than its capacity.
func (c *codec) decodeUpTo(dst, frame []byte) ([]byte, error) {
	out, err := c.dec.DecodeAll(frame, dst[:0])
	if err != nil {
		return nil, err
	}
	if len(out) == 0 || len(out) > cap(dst) {
		return nil, errFrame
	}
	return out, nil
}

func hasMagic(b []byte) bool { return len(b) >= 4 && binary.LittleEndian.Uint32(b) == zstdMagic }

// frameLen is the length of the zstd frame at the start of b, found from its headers without decoding it.
func frameLen(b []byte) (int, error) {
	var h zstd.Header
	if !hasMagic(b) {
		return 0, errFrame
	}
	if err := h.Decode(b); err != nil || h.Skippable {
		return 0, errFrame
	}
	n := h.HeaderSize
	for {
		if n+3 > len(b) {
			return 0, errFrame
		}
		head := uint32(b[n]) | uint32(b[n+1])<<8 | uint32(b[n+2])<<16
		n += 3
		if kind := head >> 1 & 3; kind == 1 { // one byte, repeated
			n++
		} else {
			n += int(head >> 3)
		}
		if head&1 != 0 {
			break
		}
	}
	if h.HasCheckSum {
		n += 4
	}
	if n > len(b) {
		return 0, errFrame
	}
	return n, nil
}
