package integrity_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"holdfast/integrity"
	"holdfast/internal/volume"
)

func benchStore(b *testing.B, level string, files, size int, o integrity.Options) (*volume.Volume, *integrity.Engine) {
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
	o.Volume = vol
	eng, err := integrity.New(ctx, o)
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
			_, eng := benchStore(b, "tasks", 1, size, integrity.Options{})
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
		_, eng := benchStore(b, "status", files, size, integrity.Options{})
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

// BenchmarkBesideScrub writes small files and reads them, one round alone and one beside a scrub that makes a slice each second instead of every five minutes, in turn; a round is one
// iteration. The figure is the median of how much slower the second of each pair is.
func BenchmarkBesideScrub(b *testing.B) {
	const round = 2 * time.Second
	vol, eng := benchStore(b, "status", 512, 1<<20, integrity.Options{Slice: time.Second})
	scrub := eng.Scrubber()
	if err := scrub.Pause(b.Context()); err != nil {
		b.Fatal(err)
	}
	eng.Start()
	body, n := noise(1, 1<<10), 0
	load := func() float64 {
		began, ops := time.Now(), 0
		for time.Since(began) < round {
			p := fmt.Sprintf("/logs/%d", n%4096)
			n++
			if _, err := vol.WritePath(b.Context(), actor(), 0, p, 0o644, bytes.NewReader(body)); err != nil {
				b.Fatal(err)
			}
			if err := vol.ReadPath(b.Context(), p, volume.Moment{}, io.Discard); err != nil {
				b.Fatal(err)
			}
			ops++
		}
		return float64(ops) / time.Since(began).Seconds()
	}
	load()
	var slower, alone []float64
	for b.Loop() {
		a := load()
		if err := scrub.Resume(b.Context()); err != nil {
			b.Fatal(err)
		}
		beside := load()
		if err := scrub.Pause(b.Context()); err != nil {
			b.Fatal(err)
		}
		slower, alone = append(slower, 100*(a-beside)/a), append(alone, a)
	}
	slices.Sort(slower)
	slices.Sort(alone)
	st, err := scrub.Status(b.Context())
	if err != nil || st.Bytes == 0 && st.Cycle < 2 {
		b.Fatal("the scrub did nothing", st, err)
	}
	b.ReportMetric(alone[len(alone)/2], "files/s")
	b.ReportMetric(slower[len(slower)/2], "%slower")
	b.ReportMetric(slower[len(slower)/4], "%slower-p25")
	b.ReportMetric(slower[len(slower)*3/4], "%slower-p75")
	b.ReportMetric(float64(st.Bytes)/(1<<20), "MiB-scrubbed")
}
