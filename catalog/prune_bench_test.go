package catalog

import (
	"context"
	"flag"
	"fmt"
	"testing"
	"time"
)

var benchFiles = flag.Int("bench-files", 10_000, "number of files, or of versions of one file, in the benchmarks of the past")

func fill(b *testing.B, c *Catalog, files int) {
	b.Helper()
	ctx := context.Background()
	dir := Root
	for i := range files {
		if i%10_000 == 0 {
			dir = createDir(b, c, Root, fmt.Sprint("d", i)).Ino
		}
		createFile(b, c, dir, fmt.Sprint("file-", i))
	}
	if err := c.Flush(ctx); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkSnapshot makes snapshots of a store of -bench-files files.
func BenchmarkSnapshot(b *testing.B) {
	ctx := context.Background()
	c := newCatalog(b, nil)
	fill(b, c, *benchFiles)
	n := 0
	for b.Loop() {
		if n++; n >= MaxSnapshots {
			break
		}
		if _, err := c.CreateSnapshot(ctx, testActor(), fmt.Sprint("s", n), false); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkHeartbeat writes and looks at a file that has -bench-files versions beside one that has few, and then (-benchtime 1x) thins it.
func BenchmarkHeartbeat(b *testing.B) {
	ctx := context.Background()
	clk := &clock{now: time.Now().UnixNano(), step: int64(time.Millisecond)}
	c := newCatalog(b, func(o *Options) { o.Now = clk.read })
	commit := func(ino Ino) {
		if _, err := c.Commit(ctx, testActor(), whole(ino, fmt.Appendf(nil, `{"alive": %d}`, clk.tick()))); err != nil {
			b.Fatal(err)
		}
	}
	young, old := createFile(b, c, Root, "young"), createFile(b, c, Root, "old")
	for range *benchFiles {
		commit(old.Ino)
	}
	for name, ino := range map[string]Ino{"young": young.Ino, "old": old.Ino} {
		if err := c.Flush(ctx); err != nil {
			b.Fatal(err)
		}
		b.Run("commit "+name, func(b *testing.B) {
			for range 2000 {
				commit(ino)
			}
			for b.Loop() {
				commit(ino)
			}
		})
		if err := c.Flush(ctx); err != nil {
			b.Fatal(err)
		}
		b.Run("read "+name, func(b *testing.B) {
			for b.Loop() {
				if _, err := loadExtents(ctx, c.db, ino); err != nil { // as if it was read for the first time
					b.Fatal(err)
				}
			}
		})
		b.Run("past "+name, func(b *testing.B) {
			at := must[Stats](b)(c.Stats(ctx)).Seq - 1
			for b.Loop() {
				if _, err := c.Extents(ctx, ino, at); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	clk.now += int64(48 * time.Hour)
	b.Run("prune", func(b *testing.B) {
		if b.N > 1 {
			return // with -benchtime 1x only: afterwards there is nothing left to thin
		}
		before := must[Stats](b)(c.Stats(ctx))
		start := time.Now()
		rep, err := c.Prune(ctx, PruneOptions{Policies: []Policy{DefaultPolicy()}})
		if err != nil {
			b.Fatal(err)
		}
		pruned := time.Since(start).Seconds()
		crep, err := c.Compact(ctx, true, nil)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(rep.Versions())/pruned, "versions/s")
		b.ReportMetric(float64(rep.Versions()), "versions")
		b.ReportMetric(time.Since(start).Seconds()-pruned, "s-compaction")
		b.ReportMetric(float64(before.JournalBytes)/(1<<20), "MiB-before")
		b.ReportMetric(float64(before.JournalBytes-crep.JournalBytes)/(1<<20), "MiB-after")
	})
}
