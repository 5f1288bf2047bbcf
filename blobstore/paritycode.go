package blobstore

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/klauspost/reedsolomon"
	"github.com/zeebo/blake3"
)

// parityMemory bounds the buffers of one stripe while it is encoded or decoded.
const parityMemory = 52 << 20

// sparseFile is a file that is written in no order and read again.
type sparseFile interface {
	io.WriterAt
	atReader
}

// slab lends the code one piece of memory for its work, again and again. It is not for concurrent use.
type slab struct{ mem []byte }

// Get implements reedsolomon.WorkAllocator.
func (s *slab) Get(n, size int) [][]byte {
	if cap(s.mem) < n*size {
		s.mem = make([]byte, n*size)
	}
	return sectors(make([][]byte, n), s.mem[:n*size], size)
}

// Put implements reedsolomon.WorkAllocator.
func (s *slab) Put([][]byte) {}

// sectors cuts mem into pieces, as many as dst has room for.
func sectors(dst [][]byte, mem []byte, size int) [][]byte {
	for i := range dst {
		dst[i] = mem[i*size : (i+1)*size : (i+1)*size]
	}
	return dst
}

func (p *plan) code() (reedsolomon.Encoder, error) {
	return reedsolomon.New(p.data, p.parity, reedsolomon.WithLeopardGF16(true), reedsolomon.WithWorkAllocator(new(slab)))
}

// column is how many bytes of each sector are decoded at a time. (Encoding takes whole sectors: 45 MiB at most.)
func (p *plan) column() int {
	work := 1
	for work < p.parity {
		work *= 2
	}
	total := work + p.data
	for work < total {
		work *= 2
	}
	if (p.data+p.parity+work)*p.sector <= parityMemory {
		return p.sector
	}
	return 512
}

// stripeDigests tells whether content read by stripes is what was read from the beginning to the end, and verified, before.
type stripeDigests struct {
	plan
	chunk int
	state [][32]byte
	next  int64
	buf   []byte // the state goes in front of each chunk
}

func newStripeDigests(p plan) *stripeDigests {
	d := &stripeDigests{plan: p, chunk: parityUnit, state: make([][32]byte, p.stripes)}
	if p.stripes == 1 {
		d.chunk = BlockSize // no other stripe takes turns
	}
	d.buf = make([]byte, 32, 32+d.chunk)
	return d
}

// add takes the next bytes of the content.
func (d *stripeDigests) add(p []byte) {
	for len(p) > 0 {
		n := min(len(p), 32+d.chunk-len(d.buf))
		d.buf = append(d.buf, p[:n]...)
		p, d.next = p[n:], d.next+int64(n)
		if len(d.buf) == 32+d.chunk || d.next == d.length {
			d.end((d.next - 1) / int64(d.chunk) % d.stripes)
		}
	}
}

func (d *stripeDigests) end(stripe int64) {
	copy(d.buf, d.state[stripe][:])
	d.state[stripe] = blake3.Sum256(d.buf)
	d.buf = d.buf[:32]
}

// stripe is what the state should be for the units of one stripe, as they lie in mem.
func (d *stripeDigests) matches(stripe int64, mem []byte) bool {
	one := &stripeDigests{plan: d.plan, chunk: d.chunk, state: make([][32]byte, 1), buf: d.buf[:32]}
	one.stripes = 1
	if d.stripes > 1 {
		one.length = 0 // chunks end by their size, or here
		for row := range d.rows {
			one.add(mem[row*parityUnit:][:d.have(d.unitAt(stripe, row), parityUnit)])
			if len(one.buf) > 32 {
				one.end(0)
			}
		}
	} else {
		one.add(mem[:d.length])
	}
	return one.state[0] == d.state[stripe]
}

// tee passes what is read from the beginning to the end, once each byte, to digests.
type tee struct {
	r atReader
	d *stripeDigests
}

func (t tee) ReadAt(p []byte, off int64) (int, error) {
	n, err := t.r.ReadAt(p, off)
	if skip := t.d.next - off; skip >= 0 && skip < int64(n) {
		t.d.add(p[skip:n])
	}
	return n, err
}

// buildParity writes the parity of content, whose digests were taken when it was verified, to out.
func buildParity(ctx context.Context, info parityInfo, frames []uint32, content atReader, digests *stripeDigests, out io.WriterAt) error {
	p := digests.plan
	code, err := p.code()
	if err != nil {
		return fmt.Errorf("parity of blob %s: %w", info.ref.Hash, err)
	}
	tables := blake3.New()
	if info.enc != encRaw {
		b := make([]byte, 0, 4*len(frames))
		for _, n := range frames {
			b = binary.LittleEndian.AppendUint32(b, n)
		}
		tables.Write(b)
		for _, at := range [...]int64{info.framesAt(), info.frames2At(&p)} {
			if _, err := out.WriteAt(b, at); err != nil {
				return err
			}
		}
	}
	mem := make([]byte, (p.data+p.parity)*p.sector)
	shards := make([][]byte, p.data+p.parity)
	sums := make([]byte, 0, len(shards)*sumLen)
	for k := range p.stripes {
		if err := readStripe(ctx, &p, k, content, mem); err != nil {
			return fmt.Errorf("parity of blob %s: %w", info.ref.Hash, err)
		}
		if !digests.matches(k, mem) {
			return &DamageError{info.ref.Hash, "content", "it was read twice, and was not the same"}
		}
		if err := code.Encode(sectors(shards, mem, p.sector)); err != nil {
			return fmt.Errorf("parity of blob %s: %w", info.ref.Hash, err)
		}
		sums = sums[:0]
		for _, b := range shards {
			d := sha256.Sum256(b)
			sums = append(sums, d[:sumLen]...)
		}
		tables.Write(sums)
		for _, at := range [...]int64{info.sumsAt(), info.sums2At(&p)} {
			if _, err := out.WriteAt(sums, at+k*int64(len(sums))); err != nil {
				return err
			}
		}
		if err := writeParitySectors(&p, k, info.sectorsAt(&p), mem[p.data*p.sector:], out); err != nil {
			return err
		}
	}
	tables.Sum(info.tables[:0])
	head := info.marshal()
	if _, err := out.WriteAt(head, info.total(&p)-parityHead); err != nil {
		return err
	}
	_, err = out.WriteAt(head, 0)
	return err
}

// readStripe fills mem with the data sectors of a stripe. Behind the end they are zero.
func readStripe(ctx context.Context, p *plan, k int64, content atReader, mem []byte) error {
	clear(mem[:p.data*p.sector])
	step := int64(1) // units read at once: with one stripe they are one behind the other
	if p.stripes == 1 {
		step = 64
	}
	for row := int64(0); row < p.rows; row += step {
		if err := ctx.Err(); err != nil {
			return err
		}
		off := p.unitAt(k, row)
		n := p.have(off, int(step*parityUnit))
		got, err := content.ReadAt(mem[row*parityUnit:][:n], off)
		if err == nil && got < n {
			err = io.ErrUnexpectedEOF
		}
		if err != nil && got < n {
			return err
		}
	}
	return nil
}

func writeParitySectors(p *plan, k, at int64, mem []byte, out io.WriterAt) error {
	if p.stripes == 1 {
		_, err := out.WriteAt(mem, at)
		return err
	}
	for i := range p.parity {
		if _, err := out.WriteAt(mem[i*p.sector:(i+1)*p.sector], at+(int64(i)*p.stripes+k)*int64(p.sector)); err != nil {
			return err
		}
	}
	return nil
}

// recoverContent writes the stored bytes to out: what has its sum from content, the rest computed. It returns how many bytes those are.
// ErrDamaged when too much is damaged. What it wrote is still to be verified.
func (pr *parityReader) recoverContent(ctx context.Context, content atReader, out sparseFile) (computed int64, err error) {
	content = lossy{ctx, content}
	code, err := pr.code()
	if err != nil {
		return 0, fmt.Errorf("parity of blob %s: %w", pr.ref.Hash, err)
	}
	var mem []byte
	for k := range pr.stripes {
		sums, err := pr.stripeSums(k)
		if err != nil {
			return 0, err
		}
		lost := make([]bool, pr.data+pr.parity)
		bad, err := pr.copyIntact(ctx, k, &sums, content, out, lost)
		if err != nil {
			return 0, err
		}
		if bad == 0 {
			continue
		}
		sector := make([]byte, pr.sector)
		good := 0
		for i := range pr.parity {
			if _, err := pr.r.ReadAt(sector, pr.parityAt(k, i)); err != nil {
				return 0, err
			}
			if sectorOK(&sums, pr.data+i, sector) {
				good++
			} else {
				lost[pr.data+i] = true
			}
		}
		if good < bad {
			return 0, &DamageError{pr.ref.Hash, "content", fmt.Sprintf(
				"%d sectors of %d bytes of %d are damaged, and %d intact ones of its parity cannot make up for that", bad, pr.sector, pr.data, good)}
		}
		if mem == nil {
			mem = make([]byte, (pr.data+pr.parity)*pr.column())
		}
		if err := pr.decodeStripe(ctx, k, code, lost, mem, out); err != nil {
			return 0, err
		}
		computed += int64(bad) * int64(pr.sector)
	}
	return computed, nil
}

// copyIntact copies the data sectors of a stripe that have their sums, and marks and counts the others.
func (pr *parityReader) copyIntact(ctx context.Context, k int64, sums *[2][]byte, content atReader, out io.WriterAt, lost []bool) (bad int, err error) {
	step := int64(1)
	if pr.stripes == 1 {
		step = 32
	}
	buf := make([]byte, step*parityUnit)
	for row := int64(0); row < pr.rows; row += step {
		off := pr.unitAt(k, row)
		n := pr.have(off, len(buf))
		clear(buf)
		if _, err := content.ReadAt(buf[:n], off); err != nil {
			return 0, err
		}
		for at := 0; at < n; at += pr.sector {
			if i := int(row)*pr.perUnit + at/pr.sector; !sectorOK(sums, i, buf[at:at+pr.sector]) {
				lost[i] = true
				bad++
			}
		}
		if n > 0 {
			if _, err := out.WriteAt(buf[:n], off); err != nil {
				return 0, err
			}
		}
	}
	return bad, ctx.Err()
}

// decodeStripe computes the lost data sectors of a stripe and writes them to out, which has the others. mem has room for a column of every sector.
func (pr *parityReader) decodeStripe(ctx context.Context, k int64, code reedsolomon.Encoder, lost []bool, mem []byte, out sparseFile) error {
	width := pr.column()
	total := pr.data + pr.parity
	shards := make([][]byte, total)
	for c := 0; c < pr.sector; c += width {
		clear(mem)
		sectors(shards, mem, width)
		for i := range shards {
			if i%1024 == 0 && ctx.Err() != nil {
				return ctx.Err()
			}
			if lost[i] {
				shards[i] = shards[i][:0]
				continue
			}
			var err error
			if i < pr.data {
				off := pr.sectorAt(k, i) + int64(c)
				if n := pr.have(off, width); n > 0 {
					_, err = (lossy{ctx, out}).ReadAt(shards[i][:n], off)
				}
			} else {
				_, err = pr.r.ReadAt(shards[i], pr.parityAt(k, i-pr.data)+int64(c))
			}
			if err != nil {
				return err
			}
		}
		if err := code.ReconstructData(shards); err != nil {
			return &DamageError{pr.ref.Hash, "parity", err.Error()}
		}
		for i := range pr.data {
			off := pr.sectorAt(k, i) + int64(c)
			if n := pr.have(off, width); lost[i] && n > 0 {
				if _, err := out.WriteAt(shards[i][:n], off); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
