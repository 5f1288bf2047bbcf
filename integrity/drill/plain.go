package drill

import (
	"bytes"
	"crypto/sha256"
	"errors"

	"github.com/klauspost/compress/zstd"
)

var errNoFrame = errors.New("not a whole frame")

// same reports whether stored bytes still say what the blob holds, as docs/format.md describes them: a frame has bits that mean nothing.
func same(stored []byte, b *blob) bool {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(1<<20))
	if err != nil {
		return false
	}
	defer dec.Close()
	h := sha256.New()
	for left := b.ref.Size; left > 0; {
		n := int(min(left, blockSize))
		if !bytes.HasPrefix(stored, []byte{0x28, 0xb5, 0x2f, 0xfd}) {
			if len(stored) < n {
				return false
			}
			h.Write(stored[:n])
			stored, left = stored[n:], left-int64(n)
			continue
		}
		size, err := frameSize(stored)
		if err != nil {
			return false
		}
		plain, err := dec.DecodeAll(stored[:size], nil)
		if err != nil || len(plain) != n {
			return false
		}
		h.Write(plain)
		stored, left = stored[size:], left-int64(n)
	}
	return len(stored) == 0 && bytes.Equal(h.Sum(nil), b.ref.Hash[:])
}

// frameSize is how many bytes a frame takes: RFC 8878, 3.1.1. The store's own code is not asked: it is what is tried.
func frameSize(p []byte) (int, error) {
	var head zstd.Header
	if err := head.Decode(p); err != nil {
		return 0, err
	}
	at := head.HeaderSize
	for {
		if at+3 > len(p) {
			return 0, errNoFrame
		}
		word := int(p[at]) | int(p[at+1])<<8 | int(p[at+2])<<16
		at += 3
		if n := word >> 3; word>>1&3 == 1 { // one byte, repeated
			at++
		} else {
			at += n
		}
		if at > len(p) {
			return 0, errNoFrame
		}
		if word&1 == 1 {
			break
		}
	}
	if head.HasCheckSum {
		at += 4
	}
	if at > len(p) {
		return 0, errNoFrame
	}
	return at, nil
}
