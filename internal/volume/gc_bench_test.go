package volume_test

import (
	"context"
	"flag"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/catalog"
	"holdfast/internal/volume"
)

var gcVersions = flag.Int("bench-versions", 20_000, "number of versions of one file in BenchmarkGC")

// BenchmarkGC takes all but the newest of -bench-versions versions of a small file away, without pauses: rows, records, contents. TMPDIR says on which disk.
func BenchmarkGC(b *testing.B) {
	for _, storage := range []string{volume.StorageFile, volume.StorageDatabase, volume.StorageHybrid} {
		b.Run(storage, func(b *testing.B) {
			var took time.Duration
			for b.Loop() {
				took += gcOnce(b, storage, *gcVersions)
			}
			b.ReportMetric(float64(*gcVersions)*float64(b.N)/took.Seconds(), "versions/s")
			b.ReportMetric(0, "ns/op") // most of it is the making of the versions
		})
	}
}

func gcOnce(b *testing.B, storage string, n int) time.Duration {
	b.Helper()
	ctx := context.Background()
	fail := func(err error) {
		if err != nil {
			b.Helper()
			b.Fatal(err)
		}
	}
	dir := filepath.Join(b.TempDir(), "store")
	_, err := volume.Init(ctx, dir, volume.InitOptions{Storage: storage})
	fail(err)
	v, err := volume.Open(ctx, volume.Options{Dir: dir})
	fail(err)
	defer v.Close(ctx)
	who := catalog.Actor{Agent: "bench", Program: "go"}
	_, h, err := v.CreateFile(ctx, who, catalog.Root, "beat", catalog.NewInode{Mode: unix.S_IFREG | 0o644}, volume.OpenFlags{Read: true, Write: true})
	fail(err)
	for i := range n {
		_, err := h.WriteAt(ctx, fmt.Appendf(nil, `{"alive": %09d, "agent": "agent-1"}`, i), 0, volume.WriteFlags{})
		fail(err)
		fail(h.Flush(ctx))
	}
	h.Close(ctx)
	fail(v.Catalog().Flush(ctx))
	p := catalog.DefaultPolicy()
	p.KeepAll, p.Hourly, p.Daily, p.Weekly = 0, 0, 0, 0
	began := time.Now()
	rep, err := v.Catalog().Prune(ctx, catalog.PruneOptions{Policies: []catalog.Policy{p}})
	fail(err)
	took := time.Since(began)
	if rep.Blobs != int64(n-1) {
		b.Fatalf("%+v", rep)
	}
	return took
}
