package blobstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func sampleSidecars(t testing.TB) []Sidecar {
	t.Helper()
	var all []Sidecar
	for _, size := range []int{0, 3000, 3*BlockSize + 5} {
		h := NewHasher()
		h.Write(bytes.Repeat([]byte("seed "), size/5+1)[:size])
		sc := newSidecar(h.Sum(), Meta{Level: "advanced", Version: 3, Time: time.Unix(1, 2)})
		all = append(all, sc)
		if size > 0 {
			frames := make([]uint32, blockCount(int64(size)))
			for i := range frames {
				frames[i] = uint32(min(100+i, blockLen(int64(size), int64(i))))
			}
			all = append(all, sc.encoded(frames))
		}
	}
	return all
}

// Whatever a sidecar says, it is refused or everything computed from it stays in range; and it is written as it was read.
func FuzzSidecar(f *testing.F) {
	for _, sc := range sampleSidecars(f) {
		line, err := sc.marshal()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(bytes.TrimSuffix(line, []byte("\n")))
	}
	f.Add([]byte(`{"data_id":"` + Hash{}.String() + `","checksum":"sha256:` + Hash{}.String() + `","size":4611686018427387904,"encoding":"raw","sum":"` + Hash{}.String() + `"}`))
	f.Add([]byte(`{"sum":""}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		// Give it a right sum and a right name, so that what lies behind those checks is tested.
		if n := len(line) - 66; n > 0 && string(line[n+64:]) == `"}` {
			d := sha256.New()
			d.Write(line[:n])
			d.Write([]byte(`"}`))
			hex.Encode(line[n:], d.Sum(nil))
		}
		var h Hash
		if i := bytes.Index(line, []byte(`"data_id":"`)); i >= 0 && len(line) > i+75 {
			h, _ = ParseHash(string(line[i+11 : i+75]))
		}
		sc, err := parseSidecar(line, h)
		if err != nil {
			return
		}
		lay := newLayout(&sc)
		var at int64
		for b := range blockCount(sc.Size) {
			if sc.Size <= BlockSize || b > 1000 {
				break
			}
			off, n := lay.stored(b)
			if off != at || n < 1 || n > BlockSize || len(lay.hash(b)) != 32 {
				t.Fatalf("block %d is stored at %d, %d bytes", b, off, n)
			}
			at += int64(n)
		}
		if lay.storedSize() != sc.StoredSize && sc.Size > BlockSize {
			t.Fatalf("%d bytes stored, not %d", lay.storedSize(), sc.StoredSize)
		}
		again, err := sc.marshal()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseSidecar(again, h); err != nil {
			t.Fatalf("it was read, written, and is then refused: %v\n%s", err, again)
		}
	})
}

// A sidecar with a right sum whose fields do not fit each other, or the blob, is refused.
func TestSidecarRefused(t *testing.T) {
	for name, spoil := range map[string]func(*Sidecar){
		"name":              func(sc *Sidecar) { sc.DataID = Hash{9}.String() },
		"checksum":          func(sc *Sidecar) { sc.Checksum = "md5:" + sc.DataID },
		"negative size":     func(sc *Sidecar) { sc.Size = -1 },
		"size":              func(sc *Sidecar) { sc.Size += BlockSize },
		"huge size":         func(sc *Sidecar) { sc.Size, sc.StoredSize = 1<<63-1, 1<<63-1 },
		"stored size":       func(sc *Sidecar) { sc.StoredSize++ },
		"version":           func(sc *Sidecar) { sc.Version = -1 },
		"backups":           func(sc *Sidecar) { sc.BackupCount = -1 },
		"level":             func(sc *Sidecar) { sc.IntegrityLevel = "" },
		"encoding":          func(sc *Sidecar) { sc.Encoding = "lz4" },
		"block size":        func(sc *Sidecar) { sc.BlockSize = BlockSize / 2 },
		"too few hashes":    func(sc *Sidecar) { sc.Blocks = sc.Blocks[:max(0, len(sc.Blocks)-1)]; sc.BlockSize++ },
		"too many hashes":   func(sc *Sidecar) { sc.Blocks = append(bytes.Clone(sc.Blocks), make([]byte, 32)...) },
		"too many frames":   func(sc *Sidecar) { sc.Frames = append(sc.Frames[:len(sc.Frames):len(sc.Frames)], 0) },
		"frame of a block+": func(sc *Sidecar) { sc.Frames = []uint32{BlockSize + 1}; sc.StoredSize = BlockSize + 1 },
	} {
		for i, sc := range sampleSidecars(t) {
			h, err := ParseHash(sc.DataID)
			if err != nil {
				t.Fatal(err)
			}
			line, err := sc.marshal()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := parseSidecar(line, h); err != nil {
				t.Fatalf("sidecar %d as it is: %v", i, err)
			}
			spoil(&sc)
			if line, err = sc.marshal(); err != nil {
				t.Fatal(err)
			}
			if _, err := parseSidecar(line, h); err == nil {
				t.Errorf("%s, sidecar %d: accepted: %s", name, i, line)
			}
			line[len(line)/2] ^= 1
			if _, err := parseSidecar(line, h); err == nil {
				t.Errorf("sidecar %d with a flipped bit: accepted", i)
			}
		}
	}
}

// A frame decodes to exactly the asked number of bytes, in place, or not at all; nothing beyond is touched.
func FuzzFrame(f *testing.F) {
	c, err := newCodec()
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(c.close)
	for _, plain := range [][]byte{bytes.Repeat([]byte("abc"), 1000), make([]byte, BlockSize), []byte("x")} {
		frame, _ := c.encode(nil, plain)
		f.Add(frame, uint32(len(plain)))
		f.Add(append(frame, frame...), uint32(2*len(plain)))
		f.Add(frame, uint32(len(plain)+1))
		f.Add(frame, uint32(len(plain)-1))
	}
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0xff, 0xff, 0xff}, uint32(9))
	f.Fuzz(func(t *testing.T, frame []byte, size uint32) {
		size %= BlockSize + 1
		buf := make([]byte, size+64)
		for i := range buf[size:] {
			buf[int(size)+i] = 0x5a
		}
		err := c.decode(buf[:size], frame)
		if !bytes.Equal(buf[size:], bytes.Repeat([]byte{0x5a}, 64)) {
			t.Fatalf("bytes behind the block were written; error %v", err)
		}
		if err == nil {
			if out, err := c.dec.DecodeAll(frame, make([]byte, 0, BlockSize)); err != nil || !bytes.Equal(out, buf[:size]) {
				t.Fatalf("a frame of %d plain bytes filled %d; error %v", len(out), size, err)
			}
		}
		if n, err := frameLen(frame); err == nil && (n < 5 || n > len(frame)) {
			t.Fatalf("a frame of %d bytes in %d", n, len(frame))
		}
		if out, err := c.decodeUpTo(buf[:0:size], frame); err == nil && len(out) > int(size) {
			t.Fatalf("%d bytes decoded, at most %d wanted", len(out), size)
		}
	})
}

// Whatever is in a compressed file, a scan ends with its blocks or an error of the store.
func FuzzScan(f *testing.F) {
	c, err := newCodec()
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(c.close)
	a, _ := c.encode(nil, bytes.Repeat([]byte("a"), BlockSize))
	b, _ := c.encode(nil, []byte("the last block"))
	f.Add(append(bytes.Clone(a), b...))
	f.Add(append(append(bytes.Clone(a), make([]byte, BlockSize)...), b...))
	f.Add(append(bytes.Clone(b), a...))
	f.Add(a[:len(a)/2])
	path := filepath.Join(f.TempDir(), "blob")
	s := &files{codec: c}
	f.Fuzz(func(t *testing.T, content []byte) {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		file := &openFile{fd: fd, size: int64(len(content))}
		file.refs.Store(1)
		defer file.release()
		for _, enc := range encodings() {
			_, _, err := s.scan(context.Background(), Ref{Size: -1}, file, enc, nil)
			if !errors.Is(err, ErrDamaged) { // nothing hashes to zero
				t.Fatalf("%s: %v", enc, err)
			}
		}
	})
}

func FuzzParseHash(f *testing.F) {
	f.Add(Hash{1, 2}.String())
	f.Add("XY")
	f.Add("AB" + Hash{}.String()[2:])
	f.Fuzz(func(t *testing.T, s string) {
		if h, err := ParseHash(s); err == nil && h.String() != s {
			t.Fatalf("%q is read as %s", s, h)
		}
	})
}

func TestEncodedBlobDescribesItself(t *testing.T) {
	c, err := newCodec()
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	frame, ok := c.encode(nil, bytes.Repeat([]byte("frame "), 9000))
	if n, err := frameLen(append(bytes.Clone(frame), "rest"...)); !ok || err != nil || n != len(frame) {
		t.Errorf("a frame of %d bytes is found to have %d, %v", len(frame), n, err)
	}
	// A block that does not shrink and looks like a frame keeps the blob raw.
	noise := make([]byte, 2*BlockSize)
	for i := range noise[:BlockSize] {
		d := sha256.Sum256([]byte{byte(i), byte(i >> 8), byte(i >> 16)})
		noise[i] = d[0]
	}
	h := NewHasher()
	h.Write(noise)
	sum := h.Sum()
	s := &files{codec: c}
	var out bytes.Buffer
	frames, err := s.encodeBlob(context.Background(), sum.Ref, sum.Blocks, bytes.NewReader(noise), &out)
	if err != nil || len(frames) != 2 || frames[0] != BlockSize || !worthwhile(out.Len(), len(noise)) {
		t.Fatalf("%v, %v", frames, err)
	}
	copy(noise, frame[:4])
	h = NewHasher()
	h.Write(noise)
	sum = h.Sum()
	if frames, err := s.encodeBlob(context.Background(), sum.Ref, sum.Blocks, bytes.NewReader(noise), &out); err != nil || frames != nil {
		t.Fatalf("%v, %v", frames, err)
	}
}

func TestLRU(t *testing.T) {
	c := newLRU[int, string](10)
	var dropped []string
	c.onDrop = func(v string) { dropped = append(dropped, v) }
	yes := func() bool { return true }
	c.put(1, "a", 4, yes)
	c.put(2, "b", 4, yes)
	c.get(1)
	c.put(3, "c", 4, yes)
	if _, ok := c.get(2); ok {
		t.Error("the oldest was kept")
	}
	if _, ok := c.get(1); !ok {
		t.Error("one just used was dropped")
	}
	c.put(4, "huge", 100, yes)
	if _, ok := c.get(4); !ok || len(c.entries) != 1 || c.used != 100 {
		t.Errorf("%d entries that cost %d", len(c.entries), c.used)
	}
	if c.put(5, "late", 1, func() bool { return false }) {
		t.Error("an outdated value was taken")
	}
	c.put(4, "new", 1, yes)
	c.remove(4)
	c.remove(4)
	c.put(6, "f", 1, yes)
	c.clear()
	if c.used != 0 || len(c.entries) != 0 || len(dropped) != 6 {
		t.Errorf("used %d, %d entries, dropped %q", c.used, len(c.entries), dropped)
	}
}
