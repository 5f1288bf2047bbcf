package catalog

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

func BenchmarkCreate(b *testing.B) {
	c := newCatalog(b, nil)
	ctx, who := context.Background(), testActor()
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if _, err := c.Create(ctx, who, Root, "file-"+strconv.Itoa(i), NewInode{Mode: unix.S_IFREG | 0o644}); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

func BenchmarkLookupHit(b *testing.B) {
	c := newCatalog(b, nil)
	ctx := context.Background()
	createFile(b, c, Root, "file")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Lookup(ctx, Root, "file"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLookupMiss(b *testing.B) {
	c := newCatalog(b, func(o *Options) { o.CacheEntries = minCacheEntries })
	ctx := context.Background()
	const files = 2000
	names := make([]string, files)
	for i := range names {
		names[i] = fmt.Sprintf("file-%d", i)
		createFile(b, c, Root, names[i])
	}
	if err := c.Flush(ctx); err != nil {
		b.Fatal(err)
	}
	i := 0
	for b.Loop() {
		if _, err := c.Lookup(ctx, Root, names[i%files]); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

func BenchmarkCommit1K(b *testing.B) {
	c := newCatalog(b, nil)
	ctx, who := context.Background(), testActor()
	f := createFile(b, c, Root, "file")
	body := make([]byte, 1024)
	b.ReportAllocs()
	i := uint64(0)
	for b.Loop() {
		binary.LittleEndian.PutUint64(body, i)
		i++
		if _, err := c.Commit(ctx, who, whole(f.Ino, append([]byte(nil), body...))); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkHash is the share of BenchmarkCommit1K that is not the catalog's: naming the body.
func BenchmarkHash1K(b *testing.B) {
	body := make([]byte, 1024)
	for b.Loop() {
		sha256.Sum256(append([]byte(nil), body...))
	}
}

func BenchmarkLevel(b *testing.B) {
	c := newCatalog(b, nil)
	ctx := context.Background()
	d := createDir(b, c, createDir(b, c, Root, "a").Ino, "b")
	f := createFile(b, c, d.Ino, "f")
	for b.Loop() {
		if _, err := c.Level(ctx, f.Ino); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReadDir lists a directory of 200,000 entries that are in catalog.db; one operation is one entry.
func BenchmarkReadDir(b *testing.B) {
	c := newCatalog(b, nil)
	ctx := context.Background()
	const files = 200_000
	for i := range files {
		createFile(b, c, Root, "file-"+strconv.Itoa(i))
	}
	if err := c.Flush(ctx); err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	after := uint64(0)
	for n := 0; n < b.N; {
		list, err := c.ReadDir(ctx, Root, after, 1000)
		if err != nil {
			b.Fatal(err)
		}
		if len(list) == 0 {
			after = 0
			continue
		}
		n += len(list)
		after = list[len(list)-1].Cookie
	}
}

// BenchmarkApply writes records (a create and a commit of 1 KiB in turn) to catalog.db; one operation is one record.
func BenchmarkApply(b *testing.B) {
	c := newCatalog(b, func(o *Options) { o.PendingBytes = 1 << 40 })
	ctx, who := context.Background(), testActor()
	c.app.mu.Lock() // the applier waits
	var ino Ino
	body := make([]byte, 1024)
	for i := range b.N {
		if i%2 == 0 {
			ino = createFile(b, c, Root, "file-"+strconv.Itoa(i)).Ino
			continue
		}
		binary.LittleEndian.PutUint64(body, uint64(i))
		if _, err := c.Commit(ctx, who, whole(ino, append([]byte(nil), body...))); err != nil {
			b.Fatal(err)
		}
	}
	b.ResetTimer()
	c.app.mu.Unlock()
	if err := c.Flush(ctx); err != nil {
		b.Fatal(err)
	}
}
