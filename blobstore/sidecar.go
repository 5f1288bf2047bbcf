package blobstore

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"
)

const (
	encRaw  = "raw"
	encZstd = "zstd"
)

// blockCount is the number of blocks in which size bytes are stored; a blob of at most BlockSize bytes is one block.
func blockCount(size int64) int64 { return max(1, (size+BlockSize-1)/BlockSize) }

// blockLen is the plain length of block b of a blob of size bytes.
func blockLen(size, b int64) int { return int(min(BlockSize, size-b*BlockSize)) }

// levelRank orders the levels; -1 is not a level. The empty level counts as basic.
func levelRank(level string) int {
	switch level {
	case "", "basic":
		return 0
	case "advanced":
		return 1
	case "critical":
		return 2
	}
	return -1
}

func levelName(rank int) string { return [...]string{"basic", "advanced", "critical"}[rank] }

// newSidecar describes a blob stored raw; encoding fields are changed by encoded.
func newSidecar(sum Summed, meta Meta) Sidecar {
	s := Sidecar{
		DataID: sum.Ref.Hash.String(), Timestamp: stamp(meta.Time), Checksum: "sha256:" + sum.Ref.Hash.String(),
		Size: sum.Ref.Size, Version: meta.Version, IntegrityLevel: levelName(max(0, levelRank(meta.Level))),
		Encoding: encRaw, StoredSize: sum.Ref.Size,
	}
	if sum.Ref.Size > BlockSize {
		s.BlockSize, s.Blocks = BlockSize, sum.Blocks
	}
	return s
}

// encoded returns s for content that is stored as these frames.
func (s Sidecar) encoded(frames []uint32) Sidecar {
	s.Encoding, s.Frames, s.StoredSize = encZstd, frames, 0
	for _, n := range frames {
		s.StoredSize += int64(n)
	}
	return s
}

// stamp keeps times inside what both forms of a sidecar, JSON and nanoseconds, can hold. An unset time is now.
func stamp(t time.Time) time.Time {
	if y := t.Year(); y < 1700 || y > 2200 {
		t = time.Now()
	}
	return t.UTC().Round(0)
}

// maxSidecar bounds the JSON of a sidecar of a blob of so many blocks: 43 bytes of base64 and at most 7 of frame length each.
func maxSidecar(blocks int64) int64 { return 2048 + blocks*52 }

const sumTail = `"sum":"`

// marshal writes the sidecar as one line of JSON, sum being its last member: the SHA-256 of that line (without its newline) before sum was filled in.
func (s Sidecar) marshal() ([]byte, error) {
	s.Sum = ""
	b, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("write sidecar of %s: %w", s.DataID, err)
	}
	sum := sha256.Sum256(b)
	out := make([]byte, 0, len(b)+65)
	out = append(out, b[:len(b)-2]...)
	out = hex.AppendEncode(out, sum[:])
	return append(out, "\"}\n"...), nil
}

// parseSidecar reads what marshal wrote and validates every field for the blob h. The caller bounds the size of b.
func parseSidecar(b []byte, h Hash) (Sidecar, error) {
	var s Sidecar
	b = bytes.TrimSuffix(b, []byte("\n"))
	tail := len(b) - 2 - 64
	if tail < len(sumTail) || string(b[tail-len(sumTail):tail]) != sumTail || string(b[len(b)-2:]) != `"}` {
		return s, fmt.Errorf("it does not end with its sum")
	}
	d := sha256.New()
	d.Write(b[:tail])
	d.Write([]byte(`"}`))
	if hex.EncodeToString(d.Sum(nil)) != string(b[tail:tail+64]) {
		return s, fmt.Errorf("its sum does not match")
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("it is not the JSON of a sidecar: %w", err)
	}
	return s, s.validate(h)
}

// validate checks every field against the others and the blob's name, so that nothing computed from them can go out of range.
func (s *Sidecar) validate(h Hash) error {
	n := blockCount(s.Size)
	large := s.Size > BlockSize
	switch {
	case s.DataID != h.String() || s.Checksum != "sha256:"+s.DataID:
		return fmt.Errorf("it describes the blob %.80q", s.DataID)
	case s.Size < 0 || s.Size > 1<<62 || s.StoredSize < 0 || s.Version < 0 || s.BackupCount < 0:
		return fmt.Errorf("a number is out of range")
	case levelRank(s.IntegrityLevel) < 0 || s.IntegrityLevel == "":
		return fmt.Errorf("%.80q is not an integrity level", s.IntegrityLevel)
	case large && (s.BlockSize != BlockSize || int64(len(s.Blocks)) != 32*n):
		return fmt.Errorf("%d bytes need %d block hashes of %d-byte blocks; it has %d bytes of them", s.Size, n, BlockSize, len(s.Blocks))
	case !large && (s.BlockSize != 0 || len(s.Blocks) != 0):
		return fmt.Errorf("a blob of %d bytes has no block hashes", s.Size)
	}
	switch s.Encoding {
	case encRaw:
		if s.StoredSize != s.Size || len(s.Frames) != 0 {
			return fmt.Errorf("raw content of %d bytes cannot take %d", s.Size, s.StoredSize)
		}
		return nil
	case encZstd:
		if int64(len(s.Frames)) != n {
			return fmt.Errorf("%d blocks cannot have %d frames", n, len(s.Frames))
		}
		var total int64
		for b, f := range s.Frames {
			if f == 0 || int64(f) > int64(blockLen(s.Size, int64(b))) {
				return fmt.Errorf("frame %d cannot have %d bytes", b, f)
			}
			total += int64(f)
		}
		if total != s.StoredSize {
			return fmt.Errorf("its frames have %d bytes together, not %d", total, s.StoredSize)
		}
		return nil
	}
	return fmt.Errorf("%.80q is not an encoding", s.Encoding)
}

// layout is what reading a large blob needs of its sidecar. It does not change once made.
type layout struct {
	size   int64
	hashes []byte  // 32 bytes for each block
	starts []int64 // zstd: where each block is stored, and the end; nil when raw
	first  int64   // in rows: the number of the row of block 0
	root   Root
	whole  bool // the content was hashed as a whole and has its name, so the hashes need no root to vouch for them
}

func newLayout(s *Sidecar) *layout {
	l := &layout{size: s.Size, hashes: s.Blocks}
	if s.Size > BlockSize {
		l.root = RootOf(s.Blocks)
	}
	if s.Encoding == encZstd {
		l.starts = make([]int64, len(s.Frames)+1)
		for i, n := range s.Frames {
			l.starts[i+1] = l.starts[i] + int64(n)
		}
	}
	return l
}

// vouched reports whether the hashes of l may be relied on for ref.
func (l *layout) vouched(ref Ref) bool {
	if l.size != ref.Size {
		return false
	}
	if ref.Root == (Root{}) {
		return l.whole
	}
	return l.root == ref.Root
}

// stored returns where block b is stored and how many bytes it takes there.
func (l *layout) stored(b int64) (off int64, n int) {
	if l.starts == nil {
		return b * BlockSize, blockLen(l.size, b)
	}
	return l.starts[b], int(l.starts[b+1] - l.starts[b])
}

// storedSize is the size of the content's file.
func (l *layout) storedSize() int64 {
	if l.starts == nil {
		return l.size
	}
	return l.starts[len(l.starts)-1]
}

func (l *layout) hash(b int64) []byte { return l.hashes[32*b : 32*b+32] }

// cost is roughly the memory that l takes, in bytes.
func (l *layout) cost() int64 { return int64(len(l.hashes)+8*len(l.starts)) + 160 }
