package blobstore

import (
	"crypto/sha256"
	"hash"

	"github.com/zeebo/blake3"
)

// Summed is what a Hasher learned of a blob.
type Summed struct {
	Ref    Ref
	Blocks []byte // the BLAKE3 of each block, 32 bytes each; nil when the blob is no larger than BlockSize
}

// Hasher names a blob while it streams by: the SHA-256 of the whole and the BLAKE3 of each block. Not for concurrent use.
type Hasher struct {
	name   hash.Hash
	block  *blake3.Hasher
	blocks []byte
	size   int64
}

// NewHasher returns a Hasher that has seen nothing.
func NewHasher() *Hasher {
	return &Hasher{name: sha256.New(), block: blake3.New()}
}

// hashApart is the number of bytes from which one Write computes the two kinds of hashes side by side.
const hashApart = 2 * BlockSize

// Write never fails. It may use a second core while it runs.
func (h *Hasher) Write(p []byte) (int, error) {
	if len(p) < hashApart {
		h.name.Write(p)
		h.writeBlocks(p)
		return len(p), nil
	}
	named := make(chan struct{})
	go func() {
		defer close(named)
		h.name.Write(p)
	}()
	h.writeBlocks(p)
	<-named
	return len(p), nil
}

func (h *Hasher) writeBlocks(p []byte) {
	for len(p) > 0 {
		room := BlockSize - int(h.size%BlockSize)
		part := p[:min(room, len(p))]
		h.block.Write(part)
		h.size += int64(len(part))
		if len(part) == room {
			h.endBlock()
		}
		p = p[len(part):]
	}
}

func (h *Hasher) endBlock() {
	h.blocks = h.block.Sum(h.blocks)
	h.block.Reset()
}

// Size is the number of bytes seen.
func (h *Hasher) Size() int64 { return h.size }

// Sum returns the result for the bytes seen so far. It ends the last block: nothing may be written after it.
func (h *Hasher) Sum() Summed {
	var s Summed
	h.name.Sum(s.Ref.Hash[:0])
	s.Ref.Size = h.size
	if h.size > BlockSize {
		if h.size%BlockSize != 0 {
			h.endBlock()
		}
		s.Blocks = h.blocks
		s.Ref.Root = RootOf(s.Blocks)
	}
	return s
}

// RootOf binds a list of block hashes: its BLAKE3-256.
func RootOf(blocks []byte) Root { return Root(blake3.Sum256(blocks)) }
