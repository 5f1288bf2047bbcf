package catalog

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"holdfast/blobstore"
	"holdfast/catalog/journal"
)

// ErrBadRecord: bytes that are no valid record, or a record that breaks the rules of its fields.
var ErrBadRecord = errors.New("not a valid record")

// The format of a record's head is described in docs/format.md, chapter "Records": a version byte, then one CBOR array in the core
// deterministic encoding of RFC 8949. The part of CBOR that it takes (integers, byte strings, arrays of known length, null) is
// written and read here rather than by a library: it is on the path of every close, and what is read must have one encoding only.
const (
	recordFormat = 1
	// moreFormat is the format of records that have one of the fields behind Blobs; no other record may use it.
	moreFormat = 2

	// MaxActor is the longest Agent and the longest Program of an Actor, in bytes.
	MaxActor = 4096
	// MaxPath is the longest Path that a record keeps, in bytes; of a longer one it keeps "..." and the end.
	MaxPath = 4096
	// MaxRows is the largest number of rows of one kind in a record.
	MaxRows = 1 << 18

	maxOp    = 32
	maxLevel = 32
	noBody   = -1
)

// The major types of CBOR in use, and null.
const (
	cborUint  = 0 << 5
	cborNeg   = 1 << 5
	cborBytes = 2 << 5
	cborArray = 4 << 5
	cborNull  = 0xf6
)

// Lengths of the arrays.
const (
	lenRecord  = 9
	lenInode   = 15
	lenDentry  = 5
	lenXattr   = 3
	lenExtent  = 4
	lenSplice  = 4
	lenHole    = 2
	lenActor   = 4
	lenVersion = 8
	lenRef     = 3
	lenBlob    = 3
	lenDigest  = 9
)

// Encoder turns records into the heads and bodies of journal entries. It owns the buffers that it returns. The zero value is
// ready; not for concurrent use.
type Encoder struct {
	head   []byte
	bodies [][]byte
}

// Encode returns the head of r and its bodies, in order, for journal.Append: valid until the next Encode; bodies are r's own
// slices. Seq is not encoded, and Time is the entry's. ErrBadRecord when r breaks a rule that DecodeRecord checks, but that bodies
// are not hashed again; journal.ErrTooLarge when the head exceeds journal.MaxHead.
func (e *Encoder) Encode(r *Record) (head []byte, bodies [][]byte, err error) {
	if err := r.validate(); err != nil {
		return nil, nil, err
	}
	clear(e.bodies)
	e.bodies = e.bodies[:0]
	path := r.Path
	if len(path) > MaxPath {
		path = "..." + path[len(path)-MaxPath+len("..."):]
	}
	more := r.hasMore()
	b := append(e.head[:0], recordFormat)
	if more {
		b[0] = moreFormat
		b = putHead(b, cborArray, lenMore)
	} else {
		b = putHead(b, cborArray, lenRecord)
	}
	b = putString(b, string(r.Op))
	b = putActor(b, &r.Actor)
	b = putString(b, path)
	b = putHead(b, cborArray, uint64(len(r.Inodes)))
	for i := range r.Inodes {
		b = putInode(b, &r.Inodes[i])
	}
	b = putHead(b, cborArray, uint64(len(r.Dentries)))
	for i := range r.Dentries {
		d := &r.Dentries[i]
		b = putHead(b, cborArray, lenDentry)
		b = putUint(b, uint64(d.Parent))
		b = putString(b, d.Name)
		b = putUint(b, uint64(d.Ino))
		b = putUint(b, uint64(d.Type))
		b = putUint(b, d.Cookie)
	}
	b = putHead(b, cborArray, uint64(len(r.Xattrs)))
	for i := range r.Xattrs {
		x := &r.Xattrs[i]
		b = putHead(b, cborArray, lenXattr)
		b = putUint(b, uint64(x.Ino))
		b = putString(b, x.Name)
		if x.Value == nil {
			b = append(b, cborNull)
		} else {
			b = putBytes(b, x.Value)
		}
	}
	b = putHead(b, cborArray, uint64(len(r.Splices)))
	for i := range r.Splices {
		b = putSplice(b, &r.Splices[i])
	}
	b = putHead(b, cborArray, uint64(len(r.Versions)))
	for i := range r.Versions {
		v := &r.Versions[i]
		b = putHead(b, cborArray, lenVersion)
		b = putVersion(b, v)
		b = putBytes(b, v.Digest[:])
		b = putActor(b, &v.Actor)
	}
	b = putHead(b, cborArray, uint64(len(r.Blobs)))
	for i := range r.Blobs {
		n := &r.Blobs[i]
		b = putHead(b, cborArray, lenBlob)
		b = putRef(b, &n.Ref)
		b = putString(b, n.Level)
		if n.Body == nil {
			b = putInt(b, noBody)
			continue
		}
		b = putInt(b, int64(len(n.Body)))
		e.bodies = append(e.bodies, n.Body)
	}
	if more {
		b = putMore(b, r)
	}
	e.head = b
	if len(b) > journal.MaxHead {
		e.head = nil
		return nil, nil, fmt.Errorf("%w: a record's head has %d bytes, the bound is %d", journal.ErrTooLarge, len(b), journal.MaxHead)
	}
	return e.head, e.bodies, nil
}

// VersionDigest is the digest of a version: the SHA-256 of its canonical encoding with Prev and its splice, without Digest and Seq.
func VersionDigest(v Version, s Splice) blobstore.Hash {
	var room [1024]byte
	b := putHead(room[:0], cborArray, lenDigest)
	b = putString(b, "holdfast version")
	b = putVersion(b, &v)
	b = putActor(b, &v.Actor)
	b = putSplice(b, &s)
	return sha256.Sum256(b)
}

func putHead(b []byte, major byte, n uint64) []byte {
	switch {
	case n < 24:
		return append(b, major|byte(n))
	case n <= math.MaxUint8:
		return append(b, major|24, byte(n))
	case n <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(b, major|25), uint16(n))
	case n <= math.MaxUint32:
		return binary.BigEndian.AppendUint32(append(b, major|26), uint32(n))
	}
	return binary.BigEndian.AppendUint64(append(b, major|27), n)
}

func putUint(b []byte, n uint64) []byte { return putHead(b, cborUint, n) }

func putInt(b []byte, n int64) []byte {
	if n < 0 {
		return putHead(b, cborNeg, uint64(-(n + 1)))
	}
	return putHead(b, cborUint, uint64(n))
}

func putBytes(b, s []byte) []byte { return append(putHead(b, cborBytes, uint64(len(s))), s...) }

func putString(b []byte, s string) []byte {
	return append(putHead(b, cborBytes, uint64(len(s))), s...)
}

// putSum writes a hash that may be unknown, and is then the empty string.
func putSum(b []byte, h *[32]byte) []byte {
	if *h == [32]byte{} {
		return putHead(b, cborBytes, 0)
	}
	return putBytes(b, h[:])
}

func putInode(b []byte, n *Inode) []byte {
	b = putHead(b, cborArray, lenInode)
	b = putUint(b, uint64(n.Ino))
	b = putUint(b, uint64(n.Parent))
	b = putUint(b, uint64(n.Mode))
	b = putUint(b, uint64(n.UID))
	b = putUint(b, uint64(n.GID))
	b = putUint(b, uint64(n.Rdev))
	b = putUint(b, uint64(n.Nlink))
	b = putInt(b, n.Size)
	b = putInt(b, n.Atime)
	b = putInt(b, n.Mtime)
	b = putInt(b, n.Ctime)
	b = putInt(b, n.Btime)
	b = putUint(b, n.Ver)
	b = putUint(b, uint64(n.Base))
	return putString(b, n.Target)
}

func putRef(b []byte, r *blobstore.Ref) []byte {
	b = putHead(b, cborArray, lenRef)
	b = putBytes(b, r.Hash[:])
	b = putInt(b, r.Size)
	return putSum(b, (*[32]byte)(&r.Root))
}

func putSplice(b []byte, s *Splice) []byte {
	b = putHead(b, cborArray, lenSplice)
	b = putUint(b, uint64(s.Ino))
	b = putInt(b, s.Cut)
	b = putHead(b, cborArray, uint64(len(s.Holes)))
	for i := range s.Holes {
		b = putHead(b, cborArray, lenHole)
		b = putInt(b, s.Holes[i].Off)
		b = putInt(b, s.Holes[i].Len)
	}
	b = putHead(b, cborArray, uint64(len(s.Extents)))
	for i := range s.Extents {
		x := &s.Extents[i]
		b = putHead(b, cborArray, lenExtent)
		b = putInt(b, x.Off)
		b = putInt(b, x.Len)
		b = putRef(b, &x.Blob)
		b = putInt(b, x.BlobOff)
	}
	return b
}

func putActor(b []byte, a *Actor) []byte {
	b = putHead(b, cborArray, lenActor)
	b = putString(b, a.Agent)
	b = putString(b, a.Program)
	b = putUint(b, uint64(a.UID))
	return putUint(b, uint64(a.PID))
}

// putVersion writes the fields of a version that its digest covers, but the actor.
func putVersion(b []byte, v *Version) []byte {
	b = putUint(b, uint64(v.Ino))
	b = putUint(b, v.Num)
	b = putInt(b, v.Time)
	b = putInt(b, v.Size)
	b = putSum(b, (*[32]byte)(&v.Sum))
	return putSum(b, (*[32]byte)(&v.Prev))
}

// DecodeRecord reads a record from its journal entry and checks every field and the name of every body. Nothing of the entry is
// kept but copies. Bodies that the journal has dropped are nil. ErrBadRecord otherwise.
func DecodeRecord(e journal.Entry) (Record, error) {
	r, err := decodeRecord(e)
	if err != nil {
		return Record{}, fmt.Errorf("journal record %d: %w", e.Seq, err)
	}
	return r, nil
}

func decodeRecord(e journal.Entry) (Record, error) {
	if len(e.Head) == 0 || e.Head[0] != recordFormat && e.Head[0] != moreFormat {
		return Record{}, fmt.Errorf("%w: the head is not of format %d or %d", ErrBadRecord, recordFormat, moreFormat)
	}
	more := e.Head[0] == moreFormat
	r := Record{Seq: Seq(e.Seq), Time: time.Unix(0, e.Time).UTC()}
	d := decoder{b: e.Head[1:], body: e.Body, dropped: e.BodyDropped}
	if more {
		d.fields(lenMore)
	} else {
		d.fields(lenRecord)
	}
	r.Op = Op(d.string())
	d.actor(&r.Actor)
	r.Path = d.string()
	r.Inodes = list(&d, 1+lenInode, d.inode)
	r.Dentries = list(&d, 1+lenDentry, d.dentry)
	r.Xattrs = list(&d, 1+lenXattr, d.xattr)
	r.Splices = list(&d, 1+lenSplice, d.splice)
	r.Versions = list(&d, 1+lenVersion, d.version)
	r.Blobs = list(&d, 1+lenBlob, d.blob)
	if more {
		d.more(&r)
	}
	switch {
	case d.err != nil:
		return Record{}, d.err
	case len(d.b) > 0:
		return Record{}, fmt.Errorf("%w: %d bytes follow its head", ErrBadRecord, len(d.b))
	case len(d.body) > 0:
		return Record{}, fmt.Errorf("%w: %d bytes follow its bodies", ErrBadRecord, len(d.body))
	case more && !r.hasMore():
		return Record{}, fmt.Errorf("%w: it has nothing of what format %d is for", ErrBadRecord, moreFormat)
	case len(r.Path) > MaxPath:
		return Record{}, fmt.Errorf("%w: its path has %d bytes", ErrBadRecord, len(r.Path))
	}
	if err := r.validate(); err != nil {
		return Record{}, err
	}
	for i := range r.Blobs {
		if n := &r.Blobs[i]; n.Body != nil && sha256.Sum256(n.Body) != n.Ref.Hash {
			return Record{}, fmt.Errorf("%w: the content of blob %s is not what its name says", ErrBadRecord, n.Ref.Hash)
		}
	}
	return r, nil
}

// decoder reads the encoding that Encode writes and no other. After the first error it returns zeros.
type decoder struct {
	b       []byte
	body    []byte
	dropped bool
	err     error
}

func (d *decoder) fail(why string) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: %s, %d bytes before its end", ErrBadRecord, why, len(d.b))
	}
	d.b = nil
}

// head reads the head of an item in its shortest form.
func (d *decoder) head() (major byte, n uint64) {
	if len(d.b) == 0 {
		d.fail("an item is missing")
		return 0, 0
	}
	major, info := d.b[0]&0xe0, d.b[0]&0x1f
	if info < 24 {
		d.b = d.b[1:]
		return major, uint64(info)
	}
	size, least := 1<<(info-24), uint64(24)
	if info > 27 || len(d.b) < 1+size {
		d.fail("an item is malformed")
		return 0, 0
	}
	switch rest := d.b[1:]; size {
	case 1:
		n = uint64(rest[0])
	case 2:
		n, least = uint64(binary.BigEndian.Uint16(rest)), math.MaxUint8+1
	case 4:
		n, least = uint64(binary.BigEndian.Uint32(rest)), math.MaxUint16+1
	default:
		n, least = binary.BigEndian.Uint64(rest), math.MaxUint32+1
	}
	if n < least {
		d.fail("a number is not in its shortest form")
		return 0, 0
	}
	d.b = d.b[1+size:]
	return major, n
}

func (d *decoder) expect(major byte) uint64 {
	got, n := d.head()
	if d.err == nil && got != major {
		d.fail(fmt.Sprintf("an item is of CBOR type %d, not %d", got>>5, major>>5))
	}
	if d.err != nil {
		return 0
	}
	return n
}

func (d *decoder) uint() uint64 { return d.expect(cborUint) }

func (d *decoder) uint32() uint32 {
	n := d.uint()
	if n > math.MaxUint32 {
		d.fail("a number is too large for its field")
		return 0
	}
	return uint32(n)
}

func (d *decoder) int() int64 {
	major, n := d.head()
	if d.err == nil && (major > cborNeg || n > math.MaxInt64) {
		d.fail("a number is out of range")
	}
	switch {
	case d.err != nil:
		return 0
	case major == cborNeg:
		return -1 - int64(n)
	}
	return int64(n)
}

// bytes returns a part of the input.
func (d *decoder) bytes() []byte {
	n := d.expect(cborBytes)
	if n > uint64(len(d.b)) {
		d.fail("a string is longer than the head")
		return nil
	}
	s := d.b[:n]
	d.b = d.b[n:]
	return s
}

func (d *decoder) string() string { return string(d.bytes()) }

func (d *decoder) hash(h *[32]byte) {
	if s := d.bytes(); len(s) == len(h) {
		copy(h[:], s)
	} else {
		d.fail("a hash does not have 32 bytes")
	}
}

// sum reads what putSum writes.
func (d *decoder) sum(h *[32]byte) {
	s := d.bytes()
	copy(h[:], s)
	if len(s) != 0 && (len(s) != len(h) || *h == [32]byte{}) {
		d.fail("a hash has neither 32 bytes nor none")
	}
}

// fields begins an array of n items.
func (d *decoder) fields(n uint64) {
	if d.expect(cborArray) != n {
		d.fail(fmt.Sprintf("an array does not have %d items", n))
	}
}

// list reads an array of rows that take at least size bytes each, so that what is allocated is a small multiple of what is there.
func list[T any](d *decoder, size int, read func(*T)) []T {
	n := d.expect(cborArray)
	if n > MaxRows || n > uint64(len(d.b)/size) {
		d.fail("an array is longer than the head")
	}
	if n == 0 || d.err != nil {
		return nil
	}
	rows := make([]T, n)
	for i := range rows {
		if read(&rows[i]); d.err != nil {
			return nil
		}
	}
	return rows
}

func (d *decoder) actor(a *Actor) {
	d.fields(lenActor)
	a.Agent, a.Program = d.string(), d.string()
	a.UID, a.PID = d.uint32(), d.uint32()
}

func (d *decoder) inode(n *Inode) {
	d.fields(lenInode)
	n.Ino, n.Parent = Ino(d.uint()), Ino(d.uint())
	n.Mode, n.UID, n.GID, n.Rdev, n.Nlink = d.uint32(), d.uint32(), d.uint32(), d.uint32(), d.uint32()
	n.Size, n.Atime, n.Mtime, n.Ctime, n.Btime = d.int(), d.int(), d.int(), d.int(), d.int()
	n.Ver, n.Base = d.uint(), Seq(d.uint())
	n.Target = d.string()
}

func (d *decoder) dentry(n *Dentry) {
	d.fields(lenDentry)
	n.Parent, n.Name, n.Ino = Ino(d.uint()), d.string(), Ino(d.uint())
	n.Type, n.Cookie = d.uint32(), d.uint()
}

func (d *decoder) xattr(x *Xattr) {
	d.fields(lenXattr)
	x.Ino, x.Name = Ino(d.uint()), d.string()
	if len(d.b) > 0 && d.b[0] == cborNull {
		d.b = d.b[1:]
		return
	}
	x.Value = append([]byte{}, d.bytes()...)
}

func (d *decoder) ref(r *blobstore.Ref) {
	d.fields(lenRef)
	d.hash((*[32]byte)(&r.Hash))
	r.Size = d.int()
	d.sum((*[32]byte)(&r.Root))
}

func (d *decoder) splice(s *Splice) {
	d.fields(lenSplice)
	s.Ino, s.Cut = Ino(d.uint()), d.int()
	s.Holes = list(d, 1+lenHole, func(h *Hole) {
		d.fields(lenHole)
		h.Off, h.Len = d.int(), d.int()
	})
	s.Extents = list(d, 1+lenExtent, func(x *Extent) {
		d.fields(lenExtent)
		x.Off, x.Len = d.int(), d.int()
		d.ref(&x.Blob)
		x.BlobOff = d.int()
	})
}

func (d *decoder) version(v *Version) {
	d.fields(lenVersion)
	v.Ino, v.Num, v.Time, v.Size = Ino(d.uint()), d.uint(), d.int(), d.int()
	d.sum((*[32]byte)(&v.Sum))
	d.sum((*[32]byte)(&v.Prev))
	d.hash((*[32]byte)(&v.Digest))
	d.actor(&v.Actor)
}

func (d *decoder) blob(n *NewBlob) {
	d.fields(lenBlob)
	d.ref(&n.Ref)
	n.Level = d.string()
	size := d.int()
	switch {
	case d.err != nil || size == noBody:
	case size != n.Ref.Size || size < 0 || size > blobstore.MaxSmall:
		d.fail("a body does not have the size of its blob")
	case d.dropped:
	case size > int64(len(d.body)):
		d.fail("a body is cut short")
	default:
		n.Body = append(make([]byte, 0, size), d.body[:size]...)
		d.body = d.body[size:]
	}
}
