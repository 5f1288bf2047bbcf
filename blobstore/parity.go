package blobstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"
)

const (
	// maxBlob bounds the size of a blob with which anything is computed.
	maxBlob = 1 << 50

	parityMagic   = "HFPRTY\r\n"
	parityVersion = 1
	// parityHead is the size of the header, of which one copy is at either end.
	parityHead = 168
	// parityUnit is what is spread over stripes: a page.
	parityUnit = 4096
	// maxSectors bounds the data sectors of a stripe, so that it has at most 4096 parity sectors: Leopard takes powers of two best.
	maxSectors = 32752
	sumLen     = 8 // bytes of a sector's SHA-256 that are kept
)

// plan is how stored bytes are cut: into stripes of sectors. It follows from the number of bytes alone. Sector i of stripe k is in unit
// i/perUnit*stripes + k of the content; sectors behind the end are zero. Parity sector i of stripe k is number i*stripes + k.
//
// With one stripe, up to 32 MiB, any parity sectors' number of damaged sectors heals. Above, pages are dealt to the stripes in turn, so that
// damage in one piece hits them alike, and damage at random places nearly so.
type plan struct {
	length  int64 // stored bytes
	sector  int   // bytes
	perUnit int   // sectors of a unit
	units   int64
	stripes int64
	rows    int64 // units of a stripe
	data    int   // sectors of a stripe
	parity  int   // parity sectors of a stripe
}

func planFor(stored int64) plan {
	p := plan{length: stored, sector: 512, units: (stored + parityUnit - 1) / parityUnit}
	if p.units*8 > maxSectors {
		p.sector = 1024
	}
	p.perUnit = parityUnit / p.sector
	p.stripes = (p.units*int64(p.perUnit) + maxSectors - 1) / maxSectors
	p.rows = (p.units + p.stripes - 1) / p.stripes
	p.data = int(p.rows) * p.perUnit
	p.parity = (p.data+7)/8 + 2
	return p
}

// unitAt is the offset of a unit of a stripe in the content.
func (p *plan) unitAt(stripe, row int64) int64 { return (row*p.stripes + stripe) * parityUnit }

// sectorAt is the offset of a data sector in the content; it may lie behind the end.
func (p *plan) sectorAt(stripe int64, i int) int64 {
	return p.unitAt(stripe, int64(i/p.perUnit)) + int64(i%p.perUnit*p.sector)
}

// have is how many of n bytes from off on are before the end.
func (p *plan) have(off int64, n int) int { return int(max(0, min(int64(n), p.length-off))) }

func (p *plan) tableLen() int64  { return p.stripes * int64(p.data+p.parity) * sumLen }
func (p *plan) parityLen() int64 { return p.stripes * int64(p.parity) * int64(p.sector) }

// parityInfo is the header of a parity: of which stored bytes it is.
type parityInfo struct {
	ref    Ref
	enc    string
	stored int64
	tables [32]byte // BLAKE3 of frames and sums
}

// frameCount is how many lengths of frames the parity holds: rows need them to know where a block begins that is not there.
func (h *parityInfo) frameCount() int64 {
	if h.enc == encRaw {
		return 0
	}
	return blockCount(h.ref.Size)
}

// The parts of a parity, in order: header, frames, sums, parity sectors, sums, frames, header.
func (h *parityInfo) framesAt() int64 { return parityHead }
func (h *parityInfo) sumsAt() int64   { return parityHead + 4*h.frameCount() }
func (h *parityInfo) sectorsAt(p *plan) int64 {
	return h.sumsAt() + p.tableLen()
}
func (h *parityInfo) sums2At(p *plan) int64   { return h.sectorsAt(p) + p.parityLen() }
func (h *parityInfo) frames2At(p *plan) int64 { return h.sums2At(p) + p.tableLen() }
func (h *parityInfo) total(p *plan) int64     { return h.frames2At(p) + 4*h.frameCount() + parityHead }

// marshal writes the header.
func (h *parityInfo) marshal() []byte {
	b := make([]byte, 0, parityHead)
	b = append(b, parityMagic...)
	b = binary.LittleEndian.AppendUint32(b, parityVersion)
	p := planFor(h.stored)
	b = binary.LittleEndian.AppendUint32(b, uint32(p.sector))
	b = append(b, h.ref.Hash[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(h.ref.Size))
	b = append(b, h.ref.Root[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(h.stored))
	enc := uint32(0)
	if h.enc == encZstd {
		enc = 1
	}
	b = binary.LittleEndian.AppendUint64(b, uint64(enc))
	b = append(b, h.tables[:]...)
	sum := blake3.Sum256(b)
	return append(b, sum[:]...)
}

// parseParityInfo reads what marshal wrote, and refuses all that is not a parity of the blob h.
func parseParityInfo(b []byte, h Hash) (parityInfo, error) {
	var info parityInfo
	if len(b) != parityHead || string(b[:8]) != parityMagic {
		return info, errors.New("it does not begin as a parity does")
	}
	if sum := blake3.Sum256(b[:parityHead-32]); string(sum[:]) != string(b[parityHead-32:]) {
		return info, errors.New("its header does not have its sum")
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != parityVersion {
		return info, fmt.Errorf("it has format version %d", v)
	}
	copy(info.ref.Hash[:], b[16:48])
	size, stored := binary.LittleEndian.Uint64(b[48:]), binary.LittleEndian.Uint64(b[88:])
	copy(info.ref.Root[:], b[56:88])
	copy(info.tables[:], b[104:136])
	switch enc := binary.LittleEndian.Uint64(b[96:]); enc {
	case 0:
		info.enc = encRaw
	case 1:
		info.enc = encZstd
	default:
		return info, fmt.Errorf("%d is not an encoding", enc)
	}
	if info.ref.Hash != h {
		return info, fmt.Errorf("it is that of the blob %s", info.ref.Hash)
	}
	if size <= MaxSmall || size > maxBlob || stored == 0 || stored > size || info.enc == encRaw && stored != size {
		return info, fmt.Errorf("it is for %d bytes stored as %d", size, stored)
	}
	info.ref.Size, info.stored = int64(size), int64(stored)
	if p := planFor(info.stored); binary.LittleEndian.Uint32(b[12:]) != uint32(p.sector) {
		return info, errors.New("it has another size of sectors")
	}
	return info, nil
}

// parityReader is a parity that can be used: a header of it is intact.
type parityReader struct {
	parityInfo
	plan
	r       atReader // lossy: what cannot be read is zero
	size    int64    // bytes that it has
	partial bool     // a header is damaged, or the size is not right
}

// openParity looks for an intact header at either end of a parity of that many bytes.
func openParity(ctx context.Context, r atReader, size int64, h Hash) (*parityReader, error) {
	pr := &parityReader{r: lossy{ctx, r}, size: size}
	var buf [parityHead]byte
	why := error(nil)
	for i, at := range [...]int64{0, size - parityHead} {
		if at < 0 {
			break
		}
		clear(buf[:])
		if _, err := pr.r.ReadAt(buf[:], at); err != nil {
			return nil, err
		}
		info, err := parseParityInfo(buf[:], h)
		if err != nil {
			pr.partial = true
			if why == nil {
				why = err
			}
			continue
		}
		if i == 1 && pr.partial || i == 0 {
			pr.parityInfo = info
		}
	}
	if pr.stored == 0 {
		if why == nil {
			why = errors.New("it is empty")
		}
		return nil, &DamageError{h, "parity", why.Error()}
	}
	pr.plan = planFor(pr.stored)
	if pr.size != pr.total(&pr.plan) {
		pr.partial = true
	}
	return pr, nil
}

// fits reports whether pr is the parity of content of ref that is stored so.
func (pr *parityReader) fits(ref Ref, enc string, stored int64) bool {
	return pr.ref.Size == ref.Size && (ref.Root == (Root{}) || pr.ref.Root == ref.Root) && pr.enc == enc && pr.stored == stored
}

// tablesIntact says which of the two copies of frames and sums have their hash.
func (pr *parityReader) tablesIntact(ctx context.Context) (intact [2]bool, err error) {
	buf := make([]byte, 64<<10)
	for i, parts := range [2][2]int64{{pr.framesAt(), pr.sumsAt()}, {pr.frames2At(&pr.plan), pr.sums2At(&pr.plan)}} {
		d := blake3.New()
		for j, n := range [...]int64{4 * pr.frameCount(), pr.tableLen()} {
			for at := parts[j]; n > 0; {
				if err := ctx.Err(); err != nil {
					return intact, err
				}
				b := buf[:min(n, int64(len(buf)))]
				if _, err := pr.r.ReadAt(b, at); err != nil {
					return intact, err
				}
				d.Write(b)
				at, n = at+int64(len(b)), n-int64(len(b))
			}
		}
		intact[i] = [32]byte(d.Sum(nil)) == pr.tables
	}
	return intact, nil
}

// stripeSums returns both copies of the sums of a stripe: of its data sectors, then of its parity sectors.
func (pr *parityReader) stripeSums(stripe int64) (sums [2][]byte, err error) {
	n := int64(pr.data+pr.parity) * sumLen
	for i, at := range [...]int64{pr.sumsAt(), pr.sums2At(&pr.plan)} {
		sums[i] = make([]byte, n)
		if _, err := pr.r.ReadAt(sums[i], at+stripe*n); err != nil {
			return sums, err
		}
	}
	return sums, nil
}

// sectorOK reports whether a sector has one of the two sums that are kept of it.
func sectorOK(sums *[2][]byte, i int, sector []byte) bool {
	d := sha256.Sum256(sector)
	at := i * sumLen
	return bytes.Equal(d[:sumLen], sums[0][at:at+sumLen]) || bytes.Equal(d[:sumLen], sums[1][at:at+sumLen])
}

// parityAt is where a parity sector is.
func (pr *parityReader) parityAt(stripe int64, i int) int64 {
	return pr.sectorsAt(&pr.plan) + (int64(i)*pr.stripes+stripe)*int64(pr.sector)
}

// frames returns the lengths of the frames: from a copy that makes sense, nil when none does.
func (pr *parityReader) frames() ([]uint32, error) {
	n := pr.frameCount()
	for _, at := range [...]int64{pr.framesAt(), pr.frames2At(&pr.plan)} {
		if at+4*n > pr.size {
			continue // the size of a parity bounds what is read of it
		}
		b := make([]byte, 4*n)
		if _, err := pr.r.ReadAt(b, at); err != nil {
			return nil, err
		}
		frames, total := make([]uint32, n), int64(0)
		good := true
		for i := range frames {
			frames[i] = binary.LittleEndian.Uint32(b[4*i:])
			good = good && frames[i] > 0 && int64(frames[i]) <= int64(blockLen(pr.ref.Size, int64(i)))
			total += int64(frames[i])
		}
		if good && total == pr.stored {
			return frames, nil
		}
	}
	return nil, nil
}

// inspect returns what is damaged of a parity, each run of damaged sectors once.
func (pr *parityReader) inspect(ctx context.Context) (found []Finding, err error) {
	if pr.partial {
		found = append(found, Finding{Part: PartParity, Detail: fmt.Sprintf("a header is damaged, or it has %d bytes and should have %d", pr.size, pr.total(&pr.plan))})
	}
	intact, err := pr.tablesIntact(ctx)
	if err != nil {
		return nil, err
	}
	for i, at := range [...]int64{pr.framesAt(), pr.sums2At(&pr.plan)} {
		if !intact[i] {
			found = append(found, Finding{Part: PartParity, Off: at, Len: pr.tableLen() + 4*pr.frameCount(), Detail: "a copy of its sums does not have its hash"})
		}
	}
	sector := make([]byte, pr.sector)
	for k := range pr.stripes {
		sums, err := pr.stripeSums(k)
		if err != nil {
			return nil, err
		}
		for i := range pr.parity {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			at := pr.parityAt(k, i)
			if _, err := pr.r.ReadAt(sector, at); err != nil {
				return nil, err
			}
			if sectorOK(&sums, pr.data+i, sector) {
				continue
			}
			if n := len(found) - 1; n >= 0 && found[n].Off+found[n].Len == at && found[n].Detail == badSector {
				found[n].Len += int64(pr.sector)
				continue
			}
			found = append(found, Finding{Part: PartParity, Off: at, Len: int64(pr.sector), Detail: badSector})
		}
	}
	return found, nil
}

const badSector = "sectors do not have their hashes"

// lossy reads what can be read: the rest, a bad place on the disk or bytes behind the end, is zero. Its errors are those of ctx.
type lossy struct {
	ctx context.Context
	r   atReader
}

func (l lossy) ReadAt(p []byte, off int64) (int, error) {
	if err := l.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := l.r.ReadAt(p, off)
	if err == nil || err == io.EOF || n == len(p) {
		clear(p[n:])
		return len(p), nil
	}
	if !errors.Is(err, unix.EIO) && !errors.Is(err, ErrDamaged) {
		return n, err
	}
	const piece = 512
	if len(p) <= piece {
		clear(p)
		return len(p), nil
	}
	for at := 0; at < len(p); at += piece {
		if _, err := l.ReadAt(p[at:min(len(p), at+piece)], off+int64(at)); err != nil {
			return at, err
		}
	}
	return len(p), nil
}
