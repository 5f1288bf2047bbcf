package catalog

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"holdfast/blobstore"
	"holdfast/catalog/journal"
)

var (
	recordSeed   = flag.Uint64("record-seed", 0, "seed of the random record tests; 0 draws one")
	recordGolden = flag.Bool("record-golden", false, "write testdata/record.golden anew: only for a new format version")
)

func recordRand(t testing.TB) *rand.Rand {
	seed := *recordSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d (repeat with -record-seed)", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

func recordBlob(content string) NewBlob {
	return NewBlob{Ref: blobstore.Ref{Hash: sha256.Sum256([]byte(content)), Size: int64(len(content))}, Level: "basic", Body: []byte(content)}
}

// typicalRecord is what creating a file and writing 1 KiB into it leaves.
func typicalRecord() Record {
	body := recordBlob(strings.Repeat("0123456789abcdef", 64))
	now := int64(1_700_000_000_123_456_789)
	who := Actor{Agent: "planner-7", Program: "python3", UID: 1000, PID: 4242}
	r := Record{Seq: 77, Time: time.Unix(0, now).UTC(), Op: OpWrite, Actor: who, Path: "/messages/inbox/0001.json",
		Inodes: []Inode{
			{Ino: 12, Parent: 3, Mode: 0o100644, UID: 1000, GID: 1000, Nlink: 1, Size: 1024, Atime: now, Mtime: now, Ctime: now, Btime: now, Ver: 1, Base: 77},
			{Ino: 3, Parent: 1, Mode: 0o040755, UID: 1000, GID: 1000, Nlink: 2, Atime: now, Mtime: now, Ctime: now, Btime: now},
		},
		Dentries: []Dentry{{Parent: 3, Name: "0001.json", Ino: 12, Type: 0o100000, Cookie: 99}},
		Splices:  []Splice{{Ino: 12, Extents: []Extent{{Off: 0, Len: 1024, Blob: body.Ref}}}},
		Versions: []Version{{Ino: 12, Num: 1, Time: now, Size: 1024, Sum: body.Ref.Hash, Actor: who}},
		Blobs:    []NewBlob{body},
	}
	r.Versions[0].Digest = VersionDigest(r.Versions[0], r.Splices[0])
	return r
}

// everyField has something unusual in each field.
func everyField() Record {
	r := typicalRecord()
	r.Time = time.Unix(0, -5).UTC()
	r.Path = "/na\xffme\x00"
	r.Inodes[0].Target, r.Inodes[0].Rdev = "to/\xfe", math.MaxUint32
	r.Inodes[1].Size, r.Inodes[1].Atime, r.Inodes[1].Base = MaxSize, math.MinInt64, Head
	r.Dentries = append(r.Dentries, Dentry{Parent: 1, Name: "\xc3\x28 \n", Cookie: math.MaxInt64})
	r.Xattrs = []Xattr{{Ino: 12, Name: "user.a", Value: []byte{0, 255}}, {Ino: 12, Name: "user.\xff", Value: []byte{}}, {Ino: 12, Name: "user.gone"}}
	large := blobstore.Ref{Hash: blobstore.Hash{1}, Size: 1 << 40, Root: blobstore.Root{2}}
	r.Splices = append(r.Splices, Splice{Ino: 13, Cut: math.MaxInt64, Holes: []Hole{{Off: 10, Len: math.MaxInt64 - 10}},
		Extents: []Extent{{Off: 5, Len: 5, Blob: large, BlobOff: 1<<40 - 5}, {Off: 1 << 33, Len: 1 << 20, Blob: large}}})
	r.Versions[0].Prev = blobstore.Hash{3}
	r.Blobs = append(r.Blobs, NewBlob{Ref: large, Level: "critical"}, recordBlob(""), recordBlob("x"))
	return r
}

func entryOf(t testing.TB, e *Encoder, r *Record) journal.Entry {
	t.Helper()
	head, bodies, err := e.Encode(r)
	if err != nil {
		t.Fatal(err)
	}
	body := bytes.Join(bodies, nil)
	return journal.Entry{Seq: uint64(r.Seq), Time: r.Time.UnixNano(), Head: bytes.Clone(head), Body: body, BodyLen: int64(len(body))}
}

func TestRecordRoundTrip(t *testing.T) {
	var e Encoder
	for _, r := range []Record{typicalRecord(), everyField(), {Seq: 1, Time: time.Unix(0, 0).UTC(), Op: OpInit}} {
		entry := entryOf(t, &e, &r)
		got, err := DecodeRecord(entry)
		if err != nil || !reflect.DeepEqual(got, r) {
			t.Fatalf("%v\n got %+v\nwant %+v", err, got, r)
		}
		// Nothing of the entry is kept.
		clear(entry.Head)
		clear(entry.Body)
		if !reflect.DeepEqual(got, r) {
			t.Fatal("the record shares memory with the entry")
		}
	}
}

func TestRecordDroppedBodies(t *testing.T) {
	r := everyField()
	entry := entryOf(t, new(Encoder), &r)
	entry.Body, entry.BodyDropped = nil, true
	got, err := DecodeRecord(entry)
	if err != nil {
		t.Fatal(err)
	}
	for i := range r.Blobs {
		r.Blobs[i].Body = nil
	}
	if !reflect.DeepEqual(got, r) {
		t.Fatalf("got %+v", got)
	}
}

func TestRecordLongPath(t *testing.T) {
	r := typicalRecord()
	r.Path = strings.Repeat("/directory", 1000) + "/name"
	got, err := DecodeRecord(entryOf(t, new(Encoder), &r))
	if err != nil || len(got.Path) != MaxPath || !strings.HasPrefix(got.Path, "...") || !strings.HasSuffix(got.Path, "/directory/name") {
		t.Fatal(len(got.Path), err)
	}
}

// The bytes of a record are what journals on disk hold: they change only together with the format version.
func TestRecordGolden(t *testing.T) {
	name := filepath.Join("testdata", "record.golden")
	var out strings.Builder
	for _, r := range []Record{typicalRecord(), everyField()} {
		entry := entryOf(t, new(Encoder), &r)
		sum := sha256.Sum256(entry.Body)
		out.WriteString("head " + hex.EncodeToString(entry.Head) + "\nbody " + hex.EncodeToString(sum[:]) + "\n")
		for i := range r.Versions {
			out.WriteString("digest " + VersionDigest(r.Versions[i], r.Splices[i]).String() + "\n")
		}
	}
	if *recordGolden {
		if err := os.WriteFile(name, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil || out.String() != string(want) {
		t.Fatalf("the encoding of records has changed (%v):\n%s", err, out.String())
	}
}

func randomRecord(rng *rand.Rand) Record {
	num := func() int64 { return int64(rng.Uint64() >> (1 + rng.IntN(63))) }
	name := func(max int) string {
		b := make([]byte, 1+rng.IntN(max))
		for i := range b {
			for b[i] == 0 || b[i] == '/' || b[i] == '.' {
				b[i] = byte(rng.Uint32())
			}
		}
		return string(b)
	}
	hash := func() (h [32]byte) {
		h[rng.IntN(32)] = byte(1 + rng.IntN(255))
		return h
	}
	who := Actor{Agent: name(40), Program: name(40), UID: rng.Uint32(), PID: rng.Uint32()}
	r := Record{Seq: Seq(num()), Time: time.Unix(0, num()-num()).UTC(), Op: Op(name(32)), Actor: who, Path: name(300)}
	for range rng.IntN(4) {
		r.Inodes = append(r.Inodes, Inode{Ino: Ino(1 + num()/2), Parent: Ino(num()), Mode: rng.Uint32(), UID: rng.Uint32(), GID: rng.Uint32(),
			Rdev: rng.Uint32(), Nlink: rng.Uint32(), Size: num() / 2, Atime: num() - num(), Mtime: num(), Ctime: -num(), Btime: num(), Ver: uint64(num()),
			Base: Seq(num()), Target: name(50)})
	}
	for range rng.IntN(4) {
		r.Dentries = append(r.Dentries, Dentry{Parent: Ino(1 + num()/2), Name: name(MaxName), Ino: Ino(num()), Type: rng.Uint32(), Cookie: uint64(num())})
	}
	for range rng.IntN(3) {
		x := Xattr{Ino: Ino(1 + num()/2), Name: name(MaxName)}
		if rng.IntN(3) > 0 {
			x.Value = []byte(name(500))
		}
		r.Xattrs = append(r.Xattrs, x)
	}
	for range rng.IntN(3) {
		s := Splice{Ino: Ino(1 + num()/2), Cut: num()}
		for range rng.IntN(3) {
			s.Holes = append(s.Holes, Hole{Off: num() / 2, Len: 1 + num()/2})
		}
		end := int64(0)
		for range rng.IntN(5) {
			x := Extent{Off: end + int64(rng.IntN(1<<20)), Len: 1 + int64(rng.IntN(1<<20)), BlobOff: int64(rng.IntN(1 << 30))}
			x.Blob = blobstore.Ref{Hash: hash(), Size: x.BlobOff + x.Len + int64(rng.IntN(99))}
			if rng.IntN(2) == 0 {
				x.Blob.Root = hash()
			}
			end = x.Off + x.Len
			s.Extents = append(s.Extents, x)
		}
		r.Splices = append(r.Splices, s)
	}
	for range rng.IntN(3) {
		r.Versions = append(r.Versions, Version{Ino: Ino(1 + num()/2), Num: 1 + uint64(num()/2), Time: num(), Size: num() / 2, Sum: hash(), Prev: hash(), Digest: hash(), Actor: who})
	}
	for range rng.IntN(3) {
		b := recordBlob(name(1000))
		if rng.IntN(3) == 0 {
			b.Body = nil
		}
		r.Blobs = append(r.Blobs, b)
	}
	return r
}

// Random records come back as they were, and are the bytes that a CBOR library in core deterministic mode writes.
func TestRecordRandomAgainstLibrary(t *testing.T) {
	rng := recordRand(t)
	mode := coreDeterministic(t)
	var e Encoder
	check := func(r Record) {
		entry := entryOf(t, &e, &r)
		got, err := DecodeRecord(entry)
		if err != nil || !reflect.DeepEqual(got, r) {
			t.Fatalf("%v\n got %+v\nwant %+v", err, got, r)
		}
		want, err := mode.Marshal(asCBOR(&r))
		if err != nil || entry.Head[0] != recordFormat || !bytes.Equal(entry.Head[1:], want) {
			t.Fatalf("%v\n got %x\nwant %x", err, entry.Head[1:], want)
		}
	}
	check(everyField())
	for range 2000 {
		check(randomRecord(rng))
	}
}

// Every rule about a field is checked when a record is written and when one is read.
func TestRecordRules(t *testing.T) {
	long := strings.Repeat("n", 256)
	for what, breakIt := range map[string]func(r *Record){
		"no op":                  func(r *Record) { r.Op = "" },
		"long op":                func(r *Record) { r.Op = Op(strings.Repeat("o", 33)) },
		"long agent":             func(r *Record) { r.Actor.Agent = strings.Repeat("a", MaxActor+1) },
		"long program":           func(r *Record) { r.Versions[0].Actor.Program = strings.Repeat("a", MaxActor+1) },
		"inode 0":                func(r *Record) { r.Inodes[0].Ino = 0 },
		"inode of 64 bits":       func(r *Record) { r.Inodes[0].Ino = 1 << 63 },
		"parent of 64 bits":      func(r *Record) { r.Inodes[0].Parent = 1 << 63 },
		"base of 64 bits":        func(r *Record) { r.Inodes[0].Base = 1 << 63 },
		"negative size":          func(r *Record) { r.Inodes[0].Size = -1 },
		"huge size":              func(r *Record) { r.Inodes[0].Size = MaxSize + 1 },
		"long target":            func(r *Record) { r.Inodes[0].Target = strings.Repeat("t", MaxSymlink+1) },
		"target with NUL":        func(r *Record) { r.Inodes[0].Target = "a\x00" },
		"no name":                func(r *Record) { r.Dentries[0].Name = "" },
		"name .":                 func(r *Record) { r.Dentries[0].Name = "." },
		"name ..":                func(r *Record) { r.Dentries[0].Name = ".." },
		"name with slash":        func(r *Record) { r.Dentries[0].Name = "a/b" },
		"name with NUL":          func(r *Record) { r.Dentries[0].Name = "a\x00" },
		"long name":              func(r *Record) { r.Dentries[0].Name = long },
		"name in no directory":   func(r *Record) { r.Dentries[0].Parent = 0 },
		"cookie of 64 bits":      func(r *Record) { r.Dentries[0].Cookie = 1 << 63 },
		"no attribute name":      func(r *Record) { r.Xattrs[0].Name = "" },
		"long attribute name":    func(r *Record) { r.Xattrs[0].Name = long },
		"long attribute":         func(r *Record) { r.Xattrs[0].Value = make([]byte, MaxXattr+1) },
		"attribute of inode 0":   func(r *Record) { r.Xattrs[0].Ino = 0 },
		"splice of inode 0":      func(r *Record) { r.Splices[0].Ino = 0 },
		"negative cut":           func(r *Record) { r.Splices[0].Cut = -1 },
		"empty hole":             func(r *Record) { r.Splices[1].Holes[0].Len = 0 },
		"hole before 0":          func(r *Record) { r.Splices[1].Holes[0].Off = -1 },
		"hole without end":       func(r *Record) { r.Splices[1].Holes[0] = Hole{Off: 11, Len: math.MaxInt64 - 10} },
		"empty extent":           func(r *Record) { r.Splices[1].Extents[0].Len = 0 },
		"negative extent":        func(r *Record) { r.Splices[1].Extents[0].Off = -1 },
		"extent behind the blob": func(r *Record) { r.Splices[1].Extents[0].BlobOff++ },
		"extent before the blob": func(r *Record) { r.Splices[1].Extents[0].BlobOff = -1 },
		"extents overlap":        func(r *Record) { r.Splices[1].Extents[1].Off = 9 },
		"extent without end":     func(r *Record) { r.Splices[1].Extents[1].Off = MaxSize },
		"blob of negative size":  func(r *Record) { r.Splices[1].Extents[0].Blob.Size = -1 },
		"version 0":              func(r *Record) { r.Versions[0].Num = 0 },
		"version of inode 0":     func(r *Record) { r.Versions[0].Ino = 0 },
		"version's size":         func(r *Record) { r.Versions[0].Size = -1 },
		"body of another size":   func(r *Record) { r.Blobs[0].Ref.Size++ },
		"large body":             func(r *Record) { r.Blobs[0] = recordBlob(strings.Repeat("x", blobstore.MaxSmall+1)) },
		"long level":             func(r *Record) { r.Blobs[0].Level = strings.Repeat("l", 33) },
		"new blob's size":        func(r *Record) { r.Blobs[1].Ref.Size = -1 },
	} {
		r := everyField()
		breakIt(&r)
		if _, _, err := new(Encoder).Encode(&r); !errors.Is(err, ErrBadRecord) {
			t.Errorf("%s: Encode says %v", what, err)
		}
		head, err := coreDeterministic(t).Marshal(asCBOR(&r))
		if err != nil {
			t.Fatal(err)
		}
		entry := journal.Entry{Seq: 1, Head: append([]byte{recordFormat}, head...)}
		for _, b := range r.Blobs {
			entry.Body = append(entry.Body, b.Body...)
		}
		if _, err := DecodeRecord(entry); !errors.Is(err, ErrBadRecord) {
			t.Errorf("%s: DecodeRecord says %v", what, err)
		}
	}
}

// Only the one encoding is read, and only with the right bodies.
func TestRecordRefusesOtherEncodings(t *testing.T) {
	r := everyField()
	good := entryOf(t, new(Encoder), &r)
	for what, breakIt := range map[string]func(e *journal.Entry){
		"no head":          func(e *journal.Entry) { e.Head = nil },
		"another format":   func(e *journal.Entry) { e.Head[0]++ },
		"trailing byte":    func(e *journal.Entry) { e.Head = append(e.Head, 0) },
		"trailing body":    func(e *journal.Entry) { e.Body = append(e.Body, 0) },
		"short body":       func(e *journal.Entry) { e.Body = e.Body[:len(e.Body)-1] },
		"another body":     func(e *journal.Entry) { e.Body[5]++ },
		"indefinite array": func(e *journal.Entry) { e.Head[1] = cborArray | 31 },
		"too many fields":  func(e *journal.Entry) { e.Head[1]++ },
		"op as text":       func(e *journal.Entry) { e.Head[2] = 3<<5 | e.Head[2]&31 },
		"tag":              func(e *journal.Entry) { e.Head = append([]byte{recordFormat, 0xc0}, e.Head[1:]...) },
		"length not minimal": func(e *journal.Entry) {
			e.Head = append([]byte{recordFormat, cborArray | 24, lenRecord}, e.Head[2:]...)
		},
		"float": func(e *journal.Entry) {
			e.Head = append([]byte{recordFormat, cborArray | lenRecord, 0xf9}, e.Head[2:]...)
		},
		"long path": func(e *journal.Entry) {
			r := everyField()
			r.Path = strings.Repeat("p", MaxPath+1)
			head, err := coreDeterministic(t).Marshal(asCBOR(&r))
			if err != nil {
				t.Fatal(err)
			}
			e.Head = append([]byte{recordFormat}, head...)
		},
	} {
		e := good
		e.Head, e.Body = bytes.Clone(good.Head), bytes.Clone(good.Body)
		breakIt(&e)
		if _, err := DecodeRecord(e); !errors.Is(err, ErrBadRecord) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for n := range good.Head {
		e := good
		e.Head = good.Head[:n]
		if _, err := DecodeRecord(e); !errors.Is(err, ErrBadRecord) {
			t.Errorf("head cut at %d: %v", n, err)
		}
	}
}

// Written out by hand: a number too large for its field, and a hash of zeros where an absent one is the empty string.
func TestRecordByHand(t *testing.T) {
	start := "01 89 4178 84 40 40 "
	blob := " 81 83 83 5820" + strings.Repeat("ab", 32) + " 00 "
	for text, valid := range map[string]bool{
		start + "1affffffff 00 40 80 80 80 80 80 80":                                            true,
		start + "1b0000000100000000 00 40 80 80 80 80 80 80":                                    false,
		start + "00 00 40 80 80 80 80 80" + blob + "40 40 20":                                   true,
		start + "00 00 40 80 80 80 80 80" + blob + "5820" + strings.Repeat("01", 32) + " 40 20": true,
		start + "00 00 40 80 80 80 80 80" + blob + "5820" + strings.Repeat("00", 32) + " 40 20": false,
		start + "00 00 40 80 80 80 80 80" + blob + "4101 40 20":                                 false,
	} {
		head, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := DecodeRecord(journal.Entry{Seq: 1, Head: head}); (err == nil) != valid || err != nil && !errors.Is(err, ErrBadRecord) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// A few bytes cannot ask for much memory.
func TestRecordAllocationIsBounded(t *testing.T) {
	head := []byte{recordFormat, cborArray | lenRecord, cborBytes | 1, 'x', cborArray | lenActor, cborBytes, cborBytes, 0, 0, cborBytes}
	head = append(head, cborArray|26, 0, 3, 0xff, 0xff) // 262143 inodes
	e := journal.Entry{Seq: 1, Head: append(head, make([]byte, 1000)...)}
	perRun := testing.Benchmark(func(b *testing.B) {
		for b.Loop() {
			if _, err := DecodeRecord(e); !errors.Is(err, ErrBadRecord) {
				b.Fatal(err)
			}
		}
	}).AllocedBytesPerOp()
	if perRun > 100_000 {
		t.Fatalf("%d bytes were allocated for %d", perRun, len(e.Head))
	}
}

func TestVersionDigestCoversEverything(t *testing.T) {
	r := everyField()
	v, s := r.Versions[0], r.Splices[1]
	base := VersionDigest(v, s)
	v.Digest, v.Seq = blobstore.Hash{9}, 5
	if VersionDigest(v, s) != base {
		t.Fatal("the digest covers itself or the record's number")
	}
	for what, change := range map[string]func(v *Version, s *Splice){
		"ino": func(v *Version, s *Splice) { v.Ino++ }, "num": func(v *Version, s *Splice) { v.Num++ },
		"time": func(v *Version, s *Splice) { v.Time++ }, "size": func(v *Version, s *Splice) { v.Size++ },
		"sum": func(v *Version, s *Splice) { v.Sum[0]++ }, "prev": func(v *Version, s *Splice) { v.Prev[0]++ },
		"agent": func(v *Version, s *Splice) { v.Actor.Agent += "x" }, "program": func(v *Version, s *Splice) { v.Actor.Program += "x" },
		"uid": func(v *Version, s *Splice) { v.Actor.UID++ }, "pid": func(v *Version, s *Splice) { v.Actor.PID++ },
		"cut": func(v *Version, s *Splice) { s.Cut-- }, "hole": func(v *Version, s *Splice) { s.Holes = nil },
		"extent": func(v *Version, s *Splice) { s.Extents = s.Extents[1:] },
	} {
		v, s := v, s
		change(&v, &s)
		if VersionDigest(v, s) == base {
			t.Errorf("the digest does not cover: %s", what)
		}
	}
}

func FuzzDecodeRecord(f *testing.F) {
	rng := recordRand(f)
	for _, r := range append(recordsOfFormat2(), typicalRecord(), everyField(), Record{Op: OpInit}, randomRecord(rng), randomRecord(rng)) {
		e := entryOf(f, new(Encoder), &r)
		f.Add(e.Head, e.Body, false)
		f.Add(e.Head, []byte{}, true)
	}
	f.Fuzz(func(t *testing.T, head, body []byte, dropped bool) {
		entry := journal.Entry{Seq: 1, Time: 5, Head: head, Body: body, BodyDropped: dropped}
		r, err := DecodeRecord(entry)
		if err != nil {
			if !errors.Is(err, ErrBadRecord) {
				t.Fatal(err)
			}
			return
		}
		again := entryOf(t, new(Encoder), &r)
		if !dropped && (!bytes.Equal(again.Head, head) || !bytes.Equal(again.Body, body)) {
			t.Fatalf("read from\n%x, written as\n%x", head, again.Head)
		}
	})
}

func BenchmarkEncodeRecord(b *testing.B) {
	r := typicalRecord()
	var e Encoder
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := e.Encode(&r); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecodeRecord(b *testing.B) {
	r := typicalRecord()
	entry := entryOf(b, new(Encoder), &r)
	b.Run("whole", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := DecodeRecord(entry); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("library", func(b *testing.B) { // decoding alone, no check of any field
		b.ReportAllocs()
		for b.Loop() {
			var c cborRecord
			if err := cbor.Unmarshal(entry.Head[1:], &c); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkEncodeRecordLibrary(b *testing.B) {
	r := typicalRecord()
	c, mode := asCBOR(&r), coreDeterministic(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := mode.Marshal(c); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVersionDigest(b *testing.B) {
	r := typicalRecord()
	b.ReportAllocs()
	for b.Loop() {
		if VersionDigest(r.Versions[0], r.Splices[0]) == (blobstore.Hash{}) {
			b.Fatal("zero")
		}
	}
}
