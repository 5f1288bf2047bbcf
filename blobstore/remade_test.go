package blobstore

import (
	"bytes"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/zeebo/blake3"

	"holdfast/internal/sqldb"
)

// readerAt calls then once, before it reads from the offset at on.
type readerAt struct {
	io.ReaderAt
	at   int64
	then func()
}

func (r *readerAt) ReadAt(p []byte, off int64) (int, error) {
	if off >= r.at && r.then != nil {
		r.then()
		r.then = nil
	}
	return r.ReaderAt.ReadAt(p, off)
}

// A blobs.db that is made anew while a blob is written lacks what nothing named yet. The blob is whole all the same.
func TestBlobIsWholeAlthoughRowsAreMadeAnew(t *testing.T) {
	s := openMode(t, t.TempDir(), ModeDatabase)
	defer s.Close()
	rows := s.(*store).rowsPlace()
	plain := make([]byte, (2*txnBlocks+1)*BlockSize+5)
	seed := rand.Uint64()
	t.Log("seed:", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	for i := range plain {
		plain[i] = byte(rnd.Uint32())
	}
	var sum Summed
	for at := 0; at < len(plain); at += BlockSize {
		h := blake3.Sum256(plain[at:min(at+BlockSize, len(plain))])
		sum.Blocks = append(sum.Blocks, h[:]...)
	}
	sum.Ref = Ref{Hash: sha256.Sum256(plain), Size: int64(len(plain)), Root: blake3.Sum256(sum.Blocks)}
	r := &readerAt{ReaderAt: bytes.NewReader(plain), at: txnBlocks * BlockSize, then: func() {
		err := rows.db.Write(t.Context(), func(c *sqldb.Conn) error {
			return c.Script("DELETE FROM block; DELETE FROM incomplete")
		})
		if err != nil {
			t.Error(err)
		}
	}}
	if err := rows.storeLarge(t.Context(), sum, Meta{Level: "basic", Version: 1}, r); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(plain))
	if n, err := s.ReadAt(t.Context(), sum.Ref, got, 0); n != len(got) || err != nil || !bytes.Equal(got, plain) {
		t.Fatalf("%d of %d bytes, the same: %v, %v", n, len(plain), bytes.Equal(got, plain), err)
	}
}
