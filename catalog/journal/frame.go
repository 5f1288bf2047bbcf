package journal

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"
)

// Layout of the segment header, which has a block of its own so that writing records never rewrites the block it lies in.
const (
	headerSize    = 4096
	segmentMagic  = "HFJRNL\r\n"
	formatVersion = 1

	hdrVersion = 8
	hdrSize    = 12
	hdrStore   = 16
	hdrFirst   = 32
	hdrChain   = 40
	hdrMarker  = 72
	hdrCRC     = headerSize - 4
)

// Layout of a record's frame. The chain covers [frmSeq, frmFlags): what stays when a body is dropped.
const (
	frameSize = 84

	frmSeq     = 8
	frmTime    = 16
	frmSynced  = 24
	frmHeadLen = 32
	frmBodyLen = 36
	frmFlags   = 40
	frmDataCRC = 44
	frmChain   = 48
	frmCRC     = 80

	flagBodyDropped = 1
	flagHeadDropped = 2 // with flagBodyDropped only: nothing follows the frame
)

const (
	segmentSuffix = ".seg"
	tempSuffix    = ".seg.tmp"
	// maxSeq keeps arithmetic on numbers from disk away from overflow.
	maxSeq = 1 << 62
)

type (
	marker [8]byte
	chain  = [sha256.Size]byte
)

// newMarker draws the bytes with which every frame of a segment begins. They are secret to whoever cannot read the store: no
// content that is stored in a body can pass for a frame when damage is skipped.
func newMarker() marker {
	var m marker
	rand.Read(m[:]) // never fails: see crypto/rand
	m[0] |= 0x80    // never like the zeros behind the end
	return m
}

// genesis is the hash that the first record of a store continues.
func genesis(store [16]byte) chain {
	return sha256.Sum256(append([]byte("holdfast journal\x00"), store[:]...))
}

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

func segmentName(first uint64) string { return fmt.Sprintf("%016x%s", first, segmentSuffix) }

func parseSegmentName(name string) (first uint64, ok bool) {
	digits, found := strings.CutSuffix(name, segmentSuffix)
	if !found || len(digits) != 16 {
		return 0, false
	}
	first, err := strconv.ParseUint(digits, 16, 64)
	return first, err == nil && first > 0 && first <= maxSeq && segmentName(first) == name
}

// header is a segment's first block.
type header struct {
	store  [16]byte
	first  uint64
	chain  chain // of the record before first
	marker marker
}

func (h *header) encode() []byte {
	b := make([]byte, headerSize)
	copy(b, segmentMagic)
	binary.LittleEndian.PutUint32(b[hdrVersion:], formatVersion)
	binary.LittleEndian.PutUint32(b[hdrSize:], headerSize)
	copy(b[hdrStore:], h.store[:])
	binary.LittleEndian.PutUint64(b[hdrFirst:], h.first)
	copy(b[hdrChain:], h.chain[:])
	copy(b[hdrMarker:], h.marker[:])
	binary.LittleEndian.PutUint32(b[hdrCRC:], crc32.Checksum(b[:hdrCRC], castagnoli()))
	return b
}

// parseHeader reads a header block. why is not empty when it is damaged; h then holds only a guess at the marker. err is
// ErrVersion for an intact header of another format.
func parseHeader(b []byte) (h header, why string, err error) {
	if len(b) < headerSize {
		return h, fmt.Sprintf("the header is cut short: %d of %d bytes", len(b), headerSize), nil
	}
	copy(h.marker[:], b[hdrMarker:])
	if string(b[:len(segmentMagic)]) != segmentMagic {
		return h, "the header does not begin as one", nil
	}
	if got, want := crc32.Checksum(b[:hdrCRC], castagnoli()), binary.LittleEndian.Uint32(b[hdrCRC:]); got != want {
		return h, fmt.Sprintf("the header's checksum is %08x, it should be %08x", got, want), nil
	}
	if v := binary.LittleEndian.Uint32(b[hdrVersion:]); v != formatVersion {
		return h, "", fmt.Errorf("%w: version %d, this program knows %d", ErrVersion, v, formatVersion)
	}
	copy(h.store[:], b[hdrStore:])
	h.first = binary.LittleEndian.Uint64(b[hdrFirst:])
	copy(h.chain[:], b[hdrChain:])
	if binary.LittleEndian.Uint32(b[hdrSize:]) != headerSize || h.first == 0 || h.first > maxSeq {
		return h, "the header's fields are out of range", nil
	}
	return h, "", nil
}

// frame is the fixed part of a record.
type frame struct {
	seq     uint64
	time    int64
	synced  uint64 // newest record known durable when this one was written
	headLen uint32
	bodyLen uint32 // as appended, dropped or not
	flags   uint32
	dataCRC uint32 // CRC32C of head and body as stored
	chain   chain
}

func (f *frame) dropped() bool { return f.flags&flagBodyDropped != 0 }

// size is the number of bytes that the record takes in its segment.
func (f *frame) size() int64 {
	switch {
	case f.headDropped():
		return frameSize
	case f.dropped():
		return frameSize + int64(f.headLen)
	}
	return frameSize + int64(f.headLen) + int64(f.bodyLen)
}

func (f *frame) headDropped() bool { return f.flags&flagHeadDropped != 0 }

// put encodes f into b[:frameSize] but for the chain hash and the frame's own checksum.
func (f *frame) put(b []byte, m marker) {
	copy(b, m[:])
	binary.LittleEndian.PutUint64(b[frmSeq:], f.seq)
	binary.LittleEndian.PutUint64(b[frmTime:], uint64(f.time))
	binary.LittleEndian.PutUint64(b[frmSynced:], f.synced)
	binary.LittleEndian.PutUint32(b[frmHeadLen:], f.headLen)
	binary.LittleEndian.PutUint32(b[frmBodyLen:], f.bodyLen)
	binary.LittleEndian.PutUint32(b[frmFlags:], f.flags)
	binary.LittleEndian.PutUint32(b[frmDataCRC:], f.dataCRC)
}

// putDropped changes what a frame says of the bytes that follow it; seal has to come afterwards.
func putDropped(b []byte, flags, dataCRC uint32) {
	binary.LittleEndian.PutUint32(b[frmFlags:], flags)
	binary.LittleEndian.PutUint32(b[frmDataCRC:], dataCRC)
}

// seal adds the frame's own checksum; the chain hash must be in place.
func seal(b []byte, t *crc32.Table) {
	binary.LittleEndian.PutUint32(b[frmCRC:], crc32.Checksum(b[:frmCRC], t))
}

// parseFrame reads b[:frameSize]. A frame whose why is not empty is unusable.
func parseFrame(b []byte, m marker, t *crc32.Table) (f frame, why string) {
	if !bytes.Equal(b[:len(m)], m[:]) {
		return f, "no record begins here"
	}
	if got, want := crc32.Checksum(b[:frmCRC], t), binary.LittleEndian.Uint32(b[frmCRC:]); got != want {
		return f, fmt.Sprintf("the frame's checksum is %08x, it should be %08x", got, want)
	}
	f = decodeFrame(b)
	if f.headLen > MaxHead || f.bodyLen > MaxBody || f.flags > flagBodyDropped|flagHeadDropped || f.flags == flagHeadDropped ||
		f.seq == 0 || f.seq > maxSeq || f.synced >= f.seq {
		return f, "the frame's fields are out of range"
	}
	return f, ""
}

// decodeFrame reads the fields of b[:frameSize].
func decodeFrame(b []byte) frame {
	f := frame{
		seq:     binary.LittleEndian.Uint64(b[frmSeq:]),
		time:    int64(binary.LittleEndian.Uint64(b[frmTime:])),
		synced:  binary.LittleEndian.Uint64(b[frmSynced:]),
		headLen: binary.LittleEndian.Uint32(b[frmHeadLen:]),
		bodyLen: binary.LittleEndian.Uint32(b[frmBodyLen:]),
		flags:   binary.LittleEndian.Uint32(b[frmFlags:]),
		dataCRC: binary.LittleEndian.Uint32(b[frmDataCRC:]),
	}
	copy(f.chain[:], b[frmChain:])
	return f
}

// link computes the chain hash of the record whose frame is b[:frameSize] and whose head follows.
func link(prev *chain, b []byte, headLen uint32) chain {
	var room [512]byte
	in := append(room[:0], prev[:]...)
	in = append(in, b[frmSeq:frmFlags]...)
	in = append(in, b[frameSize:frameSize+int(headLen)]...)
	return sha256.Sum256(in)
}
