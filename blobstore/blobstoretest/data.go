// Package blobstoretest tests implementations of blobstore.Store: one conformance suite (Run), a suite of failures (RunFaults),
// an in-memory store (Mem) and a store that fails on purpose (Faulty).
package blobstoretest

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/blobstore"
)

// Data returns n bytes that depend on seed only. Compressible ones shrink to less than half.
func Data(seed uint64, n int, compressible bool) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := 0; i < n; {
		if compressible {
			line := "0000: the agent wrote a line of its log\n"
			for k, v := 0, r.Uint32(); k < 4 && i+k < n; k++ {
				b[i+k] = "0123456789abcdef"[v>>(4*k)&15]
			}
			if i += 4; i < n {
				i += copy(b[i:], line[4:])
			}
			continue
		}
		var v [8]byte
		binary.LittleEndian.PutUint64(v[:], r.Uint64())
		i += copy(b[i:], v[:])
	}
	return b
}

// Sum hashes data as a writer would.
func Sum(data []byte) blobstore.Summed {
	h := blobstore.NewHasher()
	h.Write(data)
	return h.Sum()
}

// ItemOf makes data an item for PutBatch.
func ItemOf(data []byte) blobstore.Item {
	return blobstore.Item{Ref: Sum(data).Ref, Meta: SomeMeta(), Data: data}
}

// SomeMeta is a valid Meta.
func SomeMeta() blobstore.Meta {
	return blobstore.Meta{Level: "basic", Version: 7, Time: time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC)}
}

// TempDir is t.TempDir on a filesystem in memory, where there is one with room, so that syncing costs no time: in HOLDFAST_TEST_MEMORY, or /dev/shm.
func TempDir(t testing.TB) string {
	t.Helper()
	shm := os.Getenv("HOLDFAST_TEST_MEMORY")
	if shm == "" {
		shm = "/dev/shm"
	}
	var fs unix.Statfs_t
	if unix.Statfs(shm, &fs) != nil || fs.Type != unix.TMPFS_MAGIC || fs.Bavail*uint64(fs.Bsize) < 1<<30 {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp(shm, "holdfast-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// Stage writes data to a file to be adopted by a store in a TempDir.
func Stage(t testing.TB, data []byte) string {
	t.Helper()
	p := filepath.Join(TempDir(t), "staged")
	if err := os.WriteFile(p, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

// Adopt stages data and has s adopt it.
func Adopt(t testing.TB, s blobstore.Store, data []byte, durable bool) blobstore.Ref {
	t.Helper()
	sum, p := Sum(data), Stage(t, data)
	if err := s.Adopt(context.Background(), sum, SomeMeta(), p, durable); err != nil {
		t.Fatalf("adopt %d bytes: %v", len(data), err)
	}
	if _, err := os.Lstat(p); !os.IsNotExist(err) {
		t.Fatalf("the staged file is still there after Adopt: %v", err)
	}
	return sum.Ref
}

// Put stores data: small by PutBatch, large by Adopt.
func Put(t testing.TB, s blobstore.Store, data []byte) blobstore.Ref {
	t.Helper()
	if len(data) > blobstore.MaxSmall {
		return Adopt(t, s, data, false)
	}
	it := ItemOf(data)
	if err := s.PutBatch(context.Background(), []blobstore.Item{it}); err != nil {
		t.Fatalf("put %d bytes: %v", len(data), err)
	}
	return it.Ref
}

// ReadAll reads a blob in pieces of the given size.
func ReadAll(s blobstore.Getter, ref blobstore.Ref, piece int) ([]byte, error) {
	var out []byte
	p := make([]byte, piece)
	for {
		n, err := s.ReadAt(context.Background(), ref, p, int64(len(out)))
		if err != nil {
			return out, err
		}
		out = append(out, p[:n]...)
		if n < piece {
			return out, nil
		}
	}
}

// Check fails the test unless the blob reads as data and verifies.
func Check(t testing.TB, s blobstore.Store, ref blobstore.Ref, data []byte) {
	t.Helper()
	got, err := ReadAll(s, ref, len(data)+1)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("blob %s of %d bytes reads as %d bytes, equal: %v, error: %v", ref.Hash, len(data), len(got), bytes.Equal(got, data), err)
	}
	if err := s.Verify(context.Background(), ref); err != nil {
		t.Fatalf("blob %s of %d bytes does not verify: %v", ref.Hash, len(data), err)
	}
}
