package drill

import (
	"bytes"
	"crypto/sha256"
	"testing"

	"github.com/klauspost/compress/zstd"

	"holdfast/blobstore"
)

// TestSame takes stored bytes for what they are: plain, or frames and plain blocks one behind the other.
func TestSame(t *testing.T) {
	r := random(1, 2)
	enc, err := zstd.NewWriter(nil, zstd.WithSingleSegment(true), zstd.WithEncoderCRC(false))
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close()
	plain := append(prose(r, blockSize), noise(r, blockSize)...)
	plain = append(plain, prose(r, 900)...)
	b := &blob{ref: blobstore.Ref{Hash: sha256.Sum256(plain), Size: int64(len(plain))}}
	stored := enc.EncodeAll(plain[:blockSize], nil)
	stored = append(stored, plain[blockSize:2*blockSize]...)
	stored = enc.EncodeAll(plain[2*blockSize:], stored)
	for name, p := range map[string][]byte{"plain": plain, "stored": stored} {
		if !same(p, b) {
			t.Errorf("%s is not the content", name)
		}
		if same(p[:len(p)-1], b) || same(append(bytes.Clone(p), 0), b) || same(nil, b) {
			t.Errorf("%s of another length is", name)
		}
		q := bytes.Clone(p)
		q[blockSize/2] ^= 1
		if name == "plain" && same(q, b) {
			t.Errorf("%s with another bit is", name)
		}
	}
	stored[4] ^= 1 << 4 // the unused bit of the frame's header
	if !same(stored, b) {
		t.Error("a bit without a meaning is damage")
	}
}
