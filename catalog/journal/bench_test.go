package journal

import (
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
)

func BenchmarkAppend(b *testing.B) {
	for _, c := range []struct{ head, body int }{{256, 0}, {256, 1024}, {256, 64 << 10}} {
		b.Run(fmt.Sprintf("head=%d/body=%d", c.head, c.body), func(b *testing.B) {
			l := mustOpen(b, Options{Dir: filepath.Join(b.TempDir(), "journal")})
			head, body := make([]byte, c.head), make([]byte, c.body)
			b.SetBytes(int64(c.head + c.body))
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := l.Append(1, head, body); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkAppendSync(b *testing.B) {
	for _, workers := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("goroutines=%d", workers), func(b *testing.B) {
			l := mustOpen(b, Options{Dir: filepath.Join(b.TempDir(), "journal")})
			head, body := make([]byte, 256), make([]byte, 1024)
			var left atomic.Int64
			left.Store(int64(b.N))
			var wg sync.WaitGroup
			for range workers {
				wg.Go(func() {
					for left.Add(-1) >= 0 {
						if _, _, err := l.Append(1, head, body); err != nil {
							b.Error(err)
						}
						if err := l.Sync(b.Context()); err != nil {
							b.Error(err)
						}
					}
				})
			}
			wg.Wait()
		})
	}
}

func BenchmarkVerify(b *testing.B) {
	dir := filepath.Join(b.TempDir(), "journal")
	l := mustOpen(b, Options{Dir: dir})
	for range 30000 {
		if _, _, err := l.Append(1, make([]byte, 256), make([]byte, 1024)); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(l.Bytes())
	for b.Loop() {
		if rep := verify(b, dir, nil, 0); !rep.OK() {
			b.Fatal(rep)
		}
	}
}
