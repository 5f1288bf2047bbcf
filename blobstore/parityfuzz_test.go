package blobstore

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"
)

// memFile is a file in memory.
type memFile struct{ b []byte }

func (m *memFile) WriteAt(p []byte, off int64) (int, error) {
	if need := int(off) + len(p); need > len(m.b) {
		m.b = append(m.b, make([]byte, need-len(m.b))...)
	}
	return copy(m.b[off:], p), nil
}

func (m *memFile) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(m.b)) {
		return 0, io.EOF
	}
	return copy(p, m.b[off:]), nil
}

// parityOf makes the parity of content that is stored raw.
func parityOf(t testing.TB, content []byte) (Ref, []byte) {
	t.Helper()
	h := NewHasher()
	h.Write(content)
	sum := h.Sum()
	d := newStripeDigests(planFor(int64(len(content))))
	d.add(content)
	out := new(memFile)
	if err := buildParity(context.Background(), parityInfo{ref: sum.Ref, enc: encRaw, stored: sum.Ref.Size}, nil, bytes.NewReader(content), d, out); err != nil {
		t.Fatal(err)
	}
	return sum.Ref, out.b
}

// Whatever is in the file of a parity, with headers that have their sum: it is refused, or inspecting and using it ends within its bounds.
func FuzzParity(f *testing.F) {
	content := make([]byte, MaxSmall+777)
	for i := range content {
		content[i] = byte(i * i >> 3)
	}
	ref, good := parityOf(f, content)
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add(good[:parityHead])
	f.Add(good[len(good)-parityHead:])
	f.Add([]byte(parityMagic))
	zstd := parityInfo{ref: ref, enc: encZstd, stored: 5000}
	f.Add(zstd.marshal())
	huge := parityInfo{ref: Ref{Hash: ref.Hash, Size: maxBlob}, enc: encRaw, stored: maxBlob}
	f.Add(huge.marshal())
	f.Fuzz(func(t *testing.T, b []byte) {
		b = bytes.Clone(b)
		for _, at := range []int{0, len(b) - parityHead} {
			if at >= 0 && len(b) >= parityHead { // so that what lies behind the check is tested
				sum := blake3.Sum256(b[at : at+parityHead-32])
				copy(b[at+parityHead-32:], sum[:])
			}
		}
		ctx := context.Background()
		pr, err := openParity(ctx, bytes.NewReader(b), int64(len(b)), ref.Hash)
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Fatal(err)
			}
			return
		}
		if pr.ref.Hash != ref.Hash || pr.stored < 1 || pr.stored > pr.ref.Size || pr.ref.Size > maxBlob || pr.total(&pr.plan) < 3*parityHead-parityHead {
			t.Fatalf("%+v", pr)
		}
		if frames, err := pr.frames(); err != nil || len(frames) > len(b) {
			t.Fatal(len(frames), err)
		}
		if _, err := inspectParity(ctx, pr, nil, ref, encRaw, ref.Size); err != nil {
			t.Fatal(err)
		}
		if pr.ref.Size != ref.Size {
			return // callers go no further
		}
		out := new(memFile)
		bad := bytes.Clone(content)
		bad[700] ^= 1
		if _, err := pr.recoverContent(ctx, bytes.NewReader(bad), out); err != nil && !errors.Is(err, ErrDamaged) {
			t.Fatal(err)
		}
		if int64(len(out.b)) > pr.stored {
			t.Fatalf("%d bytes of %d", len(out.b), pr.stored)
		}
	})
}

// How content is cut covers every byte once, and what a stripe needs is bounded for blobs of any size.
func TestParityPlan(t *testing.T) {
	for _, n := range []int64{1, 511, 4096, 4097, 65537, 16769024, 16769025, 33538048, 33538049, 64 << 20, 1 << 30, 1 << 40, maxBlob} {
		p := planFor(n)
		if p.data > maxSectors || p.parity > 4096 || p.parity*8 < p.data+8 && p.parity < p.data/8+2 || p.rows*p.stripes*parityUnit < n {
			t.Errorf("%d bytes: %+v", n, p)
		}
		work := 1
		for work < p.parity {
			work *= 2
		}
		if encode := (p.data + p.parity + 2*work) * p.sector; encode > parityMemory {
			t.Errorf("%d bytes: encoding takes %d bytes", n, encode)
		}
		for n := 1; ; n *= 2 {
			if n >= work+p.data {
				if decode := (p.data + p.parity + n) * p.column(); decode > parityMemory || p.sector%p.column() != 0 {
					t.Errorf("%d bytes: decoding takes %d bytes", n, decode)
				}
				break
			}
		}
		if n > 64<<20 {
			continue
		}
		seen := make(map[int64]bool)
		for k := range p.stripes {
			for i := range p.data {
				if off := p.sectorAt(k, i); off < n {
					seen[off] = true
				}
			}
		}
		if want := (n + int64(p.sector) - 1) / int64(p.sector); int64(len(seen)) != want {
			t.Errorf("%d bytes: %d sectors, %d expected", n, len(seen), want)
		}
	}
}

// Content that is not what was verified never gets a parity.
func TestParityOfContentThatChanges(t *testing.T) {
	for _, size := range []int{100_000, 34 << 20} { // one stripe, several
		content := make([]byte, size)
		d := newStripeDigests(planFor(int64(size)))
		d.add(content)
		content[size/2] = 1
		err := buildParity(context.Background(), parityInfo{ref: Ref{Size: int64(size)}, enc: encRaw, stored: int64(size)}, nil, bytes.NewReader(content), d, new(memFile))
		if !errors.Is(err, ErrDamaged) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

// Places on the disk that cannot be read count as lost, and only these.
func TestLossy(t *testing.T) {
	content := bytes.Repeat([]byte{7}, 100_000)
	p := make([]byte, 120_000)
	if n, err := (lossy{context.Background(), badPlaces{bytes.NewReader(content), 30_000, 31_000}}).ReadAt(p, 0); n != len(p) || err != nil {
		t.Fatal(n, err)
	}
	for i, b := range p {
		inBad := i >= 30_000/512*512 && i < 31_232
		if want := i < len(content) && !inBad; want != (b == 7) {
			t.Fatalf("byte %d is %d", i, b)
		}
	}
}

// badPlaces fails to read one range, as a bad disk does.
type badPlaces struct {
	atReader
	from, to int64
}

func (b badPlaces) ReadAt(p []byte, off int64) (int, error) {
	if off < b.to && off+int64(len(p)) > b.from {
		return 0, unix.EIO
	}
	return b.atReader.ReadAt(p, off)
}
