package blobstore_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/blobstore"
	"holdfast/blobstore/blobstoretest"
)

// cpuMeter adds up the processor time of this process between start and stop: on a busy machine it says more than the clock.
type cpuMeter struct{ total, from int64 }

func cpuNow() int64 {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

func (m *cpuMeter) start() { m.from = cpuNow() }
func (m *cpuMeter) stop()  { m.total += cpuNow() - m.from }

func BenchmarkPutBatch(b *testing.B) {
	for _, mode := range modes() {
		for _, kind := range []string{"text", "noise"} {
			b.Run(mode+"/1KiBx64/"+kind, func(b *testing.B) {
				s := openDir(b, blobstoretest.TempDir(b), mode)
				defer s.Close()
				base := blobstoretest.Data(1, 1024, kind == "text")
				n := uint64(0)
				var cpu cpuMeter
				for b.Loop() {
					b.StopTimer()
					items := make([]blobstore.Item, 64)
					for i := range items {
						n++
						data := append([]byte(nil), base...)
						binary.BigEndian.PutUint64(data[500:], n)
						items[i] = blobstoretest.ItemOf(data)
					}
					b.StartTimer()
					cpu.start()
					if err := s.PutBatch(context.Background(), items); err != nil {
						b.Fatal(err)
					}
					cpu.stop()
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/64, "ns/blob")
				b.ReportMetric(float64(cpu.total)/float64(b.N)/64, "cpu-ns/blob")
			})
		}
	}
}

func benchAdopt(b *testing.B, size int, compressible bool) {
	dir := blobstoretest.TempDir(b)
	s := openDir(b, dir, blobstore.ModeHybrid)
	defer s.Close()
	data := blobstoretest.Data(1, size, compressible)
	p := filepath.Join(dir, "staged")
	b.SetBytes(int64(size))
	n := uint64(0)
	var cpu cpuMeter
	for b.Loop() {
		b.StopTimer()
		n++
		binary.BigEndian.PutUint64(data[100:], n)
		sum := blobstoretest.Sum(data)
		if err := os.WriteFile(p, data, 0o600); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		cpu.start()
		if err := s.Adopt(context.Background(), sum, blobstoretest.SomeMeta(), p, false); err != nil {
			b.Fatal(err)
		}
		cpu.stop()
		b.StopTimer()
		if err := s.Delete(context.Background(), sum.Ref.Hash); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(cpu.total)/float64(b.N), "cpu-ns/op")
}

func BenchmarkAdopt(b *testing.B) {
	b.Run("1MiB/noise", func(b *testing.B) { benchAdopt(b, 1<<20, false) })
	b.Run("1MiB/text", func(b *testing.B) { benchAdopt(b, 1<<20, true) })
	b.Run("64MiB/noise", func(b *testing.B) { benchAdopt(b, 64<<20, false) })
	b.Run("64MiB/text", func(b *testing.B) { benchAdopt(b, 64<<20, true) })
}

func BenchmarkReadAt(b *testing.B) {
	for _, kind := range []string{"noise", "text"} {
		for _, mode := range []string{blobstore.ModeHybrid, blobstore.ModeDatabase} {
			s := openDir(b, blobstoretest.TempDir(b), mode)
			defer s.Close()
			const size = 16 << 20
			ref := blobstoretest.Adopt(b, s, blobstoretest.Data(1, size, kind == "text"), false)
			if mode == blobstore.ModeHybrid {
				blobstore.WaitCompressed(s)
			}
			run := func(name string, piece, step int64) {
				b.Run(mode+"/"+kind+"/"+name, func(b *testing.B) {
					p := make([]byte, piece)
					b.SetBytes(piece)
					off := int64(0)
					var cpu cpuMeter
					cpu.start()
					for b.Loop() {
						if n, err := s.ReadAt(context.Background(), ref, p, off); err != nil || n != len(p) {
							b.Fatal(n, err)
						}
						if off += step; off > size-piece {
							off = 0
						}
					}
					cpu.stop()
					b.ReportMetric(float64(cpu.total)/float64(b.N), "cpu-ns/op")
				})
			}
			run("128KiB", blobstore.BlockSize, blobstore.BlockSize)
			run("1MiB", 1<<20, 1<<20)
			run("4KiB-sequential", 4096, 4096)
			run("4KiB-cached", 4096, 0)
		}
	}
	s := openDir(b, blobstoretest.TempDir(b), blobstore.ModeHybrid)
	defer s.Close()
	ref := blobstoretest.Put(b, s, blobstoretest.Data(1, 1024, true))
	b.Run("hybrid/small", func(b *testing.B) {
		p := make([]byte, 4096)
		for b.Loop() {
			if _, err := s.ReadAt(context.Background(), ref, p, 0); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkParity makes parities, and repairs blobs of which one piece, a tenth, is lost.
func BenchmarkParity(b *testing.B) {
	for _, size := range []int{100_000, 1 << 20, 16 << 20, 256 << 20} {
		dir := blobstoretest.TempDir(b)
		s := openDir(b, dir, blobstore.ModeHybrid)
		defer s.Close()
		ref := blobstoretest.Adopt(b, s, blobstoretest.Data(1, size, false), false)
		path := filepath.Join(dir, "blobs", ref.Hash.String()[:2], ref.Hash.String())
		run := func(name string, before func() error, do func() error) {
			b.Run(fmt.Sprintf("%s/%dKiB", name, size>>10), func(b *testing.B) {
				b.SetBytes(int64(size))
				var cpu cpuMeter
				for b.Loop() {
					b.StopTimer()
					if err := before(); err != nil {
						b.Fatal(err)
					}
					b.StartTimer()
					cpu.start()
					if err := do(); err != nil {
						b.Fatal(err)
					}
					cpu.stop()
				}
				n, _, err := s.Parity(b.Context(), ref.Hash)
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(100*float64(n)/float64(size), "%parity")
				b.ReportMetric(float64(cpu.total)/float64(b.N), "cpu-ns/op")
			})
		}
		run("protect", func() error {
			err := os.Remove(path + ".par")
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}, func() error { _, err := s.Protect(b.Context(), ref); return err })
		run("inspect", func() error { return nil }, func() error { _, err := s.Inspect(b.Context(), ref); return err })
		run("repair", func() error {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt(make([]byte, size/10), int64(size/3))
			return errors.Join(err, f.Close())
		}, func() error { _, err := s.Repair(b.Context(), ref); return err })
	}
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) == nil {
		b.Logf("at most %d MiB of memory", u.Maxrss>>10)
	}
}

// BenchmarkDelete deletes blobs of 1 KiB, on the disk that TMPDIR is on, in the order of their names: one by one, and in batches as gc does.
func BenchmarkDelete(b *testing.B) {
	const blobs = 8192
	ctx := context.Background()
	deletes := []struct {
		name string
		run  func(s blobstore.Store, names []blobstore.Hash) error
	}{
		{"single", func(s blobstore.Store, names []blobstore.Hash) error {
			for _, h := range names {
				if err := s.Delete(ctx, h); err != nil {
					return err
				}
			}
			return nil
		}},
		{"batch", func(s blobstore.Store, names []blobstore.Hash) error {
			for part := range slices.Chunk(names, blobstore.MaxDelete) {
				if err := s.DeleteBatch(ctx, part); err != nil {
					return err
				}
			}
			return nil
		}},
	}
	for _, mode := range modes() {
		for _, d := range deletes {
			b.Run(mode+"/"+d.name, func(b *testing.B) {
				s := openDir(b, b.TempDir(), mode)
				defer s.Close()
				n := uint64(0)
				var cpu cpuMeter
				for b.Loop() {
					b.StopTimer()
					var names []blobstore.Hash
					for len(names) < blobs {
						var items []blobstore.Item
						for range 512 {
							n++
							items = append(items, blobstoretest.ItemOf(blobstoretest.Data(n, 1024, false)))
							names = append(names, items[len(items)-1].Ref.Hash)
						}
						if err := s.PutBatch(ctx, items); err != nil {
							b.Fatal(err)
						}
					}
					if err := s.Sync(ctx); err != nil {
						b.Fatal(err)
					}
					slices.SortFunc(names, func(x, y blobstore.Hash) int { return bytes.Compare(x[:], y[:]) })
					b.StartTimer()
					cpu.start()
					if err := d.run(s, names); err != nil {
						b.Fatal(err)
					}
					cpu.stop()
				}
				b.ReportMetric(blobs*float64(b.N)/b.Elapsed().Seconds(), "deletes/s")
				b.ReportMetric(float64(cpu.total)/float64(b.N)/blobs, "cpu-ns/delete")
			})
		}
	}
}
