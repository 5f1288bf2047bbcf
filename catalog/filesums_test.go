package catalog

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// No bytes but those that were written pass for the sums of a file.
func FuzzSums(f *testing.F) {
	dir := f.TempDir()
	for i, n := range []int{0, 1, sumsPiece, sumsPiece + 1, 3*sumsPiece - 5} {
		path := filepath.Join(dir, string(rune('a'+i)))
		if err := os.WriteFile(path, bytes.Repeat([]byte{7}, n), 0o600); err != nil {
			f.Fatal(err)
		}
		sums, err := fileSums(f.Context(), path, [16]byte{1})
		if err != nil {
			f.Fatal(err)
		}
		if err := parseSums(sums, [16]byte{1}); err != nil {
			f.Fatal(err)
		}
		f.Add(sums, uint16(n), byte(1))
		f.Add(sums, uint16(0), byte(0))
	}
	f.Fuzz(func(t *testing.T, b []byte, at uint16, x byte) {
		ok := parseSums(b, [16]byte{1}) == nil
		if ok && (len(b) < sumsHeader+sumsHash || parseSums(b, [16]byte{2}) == nil) {
			t.Fatal("it passes for another store's, or is too short")
		}
		if ok && x != 0 {
			b = bytes.Clone(b)
			b[int(at)%len(b)] ^= x
			if parseSums(b, [16]byte{1}) == nil {
				t.Fatal("a changed byte passes")
			}
		}
	})
}
