package integrity_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"path/filepath"
	"testing"

	"holdfast/integrity"
	"holdfast/internal/volume"
)

func benchStore(b *testing.B, level string, files, size int) (*volume.Volume, *integrity.Engine) {
	b.Helper()
	ctx := context.Background()
	dir := filepath.Join(b.TempDir(), "store")
	if _, err := volume.Init(ctx, dir, volume.InitOptions{}); err != nil {
		b.Fatal(err)
	}
	vol, err := volume.Open(ctx, volume.Options{Dir: dir})
	if err != nil {
		b.Fatal(err)
	}
	eng, err := integrity.New(ctx, integrity.Options{Volume: vol})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := eng.Close(); err != nil {
			b.Error(err)
		}
		if err := vol.Close(ctx); err != nil {
			b.Error(err)
		}
	})
	w := &world{vol: vol}
	for i := range files {
		if _, err := w.vol.WritePath(ctx, actor(), 0, fmt.Sprintf("/%s/%d", level, i), 0o644, bytes.NewReader(noise(uint64(i), size))); err != nil {
			b.Fatal(err)
		}
	}
	if err := vol.Catalog().Flush(ctx); err != nil {
		b.Fatal(err)
	}
	return vol, eng
}

// BenchmarkCheck makes the five checks of one file.
func BenchmarkCheck(b *testing.B) {
	for _, size := range []int{1 << 10, 32 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			_, eng := benchStore(b, "tasks", 1, size)
			for b.Loop() {
				sum, err := eng.Check(b.Context(), "/tasks/0", integrity.CheckOptions{Versions: true}, func(integrity.Result) error { return nil })
				if err != nil || sum.Failed > 0 {
					b.Fatal(sum, err)
				}
			}
		})
	}
}

// BenchmarkScrub checks a whole store, blobs of 1 MiB without a second copy or parity, and, for comparison, computes the SHA-256 of as many bytes.
func BenchmarkScrub(b *testing.B) {
	const files, size = 128, 1 << 20
	b.Run("store", func(b *testing.B) {
		_, eng := benchStore(b, "status", files, size)
		b.SetBytes(files * size)
		for b.Loop() {
			sum, err := eng.CheckStore(b.Context(), integrity.CheckOptions{Repair: true}, func(integrity.Result) error { return nil })
			if err != nil || sum.Failed > 0 || sum.Bytes != files*size {
				b.Fatal(sum, err)
			}
		}
	})
	b.Run("sha256", func(b *testing.B) {
		p := noise(1, size)
		b.SetBytes(files * size)
		for b.Loop() {
			for range files {
				sha256.Sum256(p)
			}
		}
	})
}
