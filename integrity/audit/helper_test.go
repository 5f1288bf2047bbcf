package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"holdfast/blobstore"
	"holdfast/blobstore/blobstoretest"
	"holdfast/catalog"
	"holdfast/catalog/journal"
)

// clock is a time that a test sets.
type clock struct{ t time.Time }

func (c *clock) now() time.Time {
	c.t = c.t.Add(time.Second)
	return c.t
}

// store is a store without a mount: a catalog, its blobs, and its audit log.
type store struct {
	t     *testing.T
	dir   string
	id    [16]byte
	clock *clock
	blobs blobstore.Store
	cat   *catalog.Catalog
	log   *Log
}

func newStore(t *testing.T) *store {
	t.Helper()
	s := &store{t: t, dir: blobstoretest.TempDir(t), clock: &clock{time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)}}
	copy(s.id[:], "a store's own id")
	s.open()
	if err := s.cat.Init(t.Context(), catalog.Actor{Program: "holdfast"}, catalog.NewInode{Mode: 0o755}); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *store) open() {
	s.t.Helper()
	ctx := context.Background()
	var err error
	if s.blobs, err = blobstore.Open(ctx, blobstore.Options{Dir: s.dir, Mode: "hybrid"}); err != nil {
		s.t.Fatal(err)
	}
	s.cat, err = catalog.Open(ctx, catalog.Options{Dir: s.dir, StoreID: s.id, Blobs: s.blobs, Now: s.clock.now, SegmentBytes: 12 << 10})
	if err != nil {
		s.t.Fatal(err)
	}
	s.openLog()
}

func (s *store) openLog() {
	s.t.Helper()
	var err error
	s.log, err = Open(s.t.Context(), Options{Dir: filepath.Join(s.dir, DirName), Journal: s.cat.JournalView(), Now: s.clock.now})
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *store) close() {
	s.t.Helper()
	if err := errors.Join(s.log.Close(context.Background()), s.cat.Close(context.Background()), s.blobs.Close()); err != nil {
		s.t.Fatal(err)
	}
}

// write makes a version of a file: one record for its name when it is new, and one for the version.
func (s *store) write(agent, name, content string) catalog.Inode {
	s.t.Helper()
	ctx, who := s.t.Context(), catalog.Actor{Agent: agent, Program: "sh", UID: 1000, PID: 7}
	row, err := s.cat.Lookup(ctx, catalog.Root, name)
	if errors.Is(err, catalog.ErrNotExist) {
		row, err = s.cat.Create(ctx, who, catalog.Root, name, catalog.NewInode{Mode: 0o644})
	}
	if err != nil {
		s.t.Fatal(err)
	}
	ref := blobstore.Ref{Hash: sha256.Sum256([]byte(content)), Size: int64(len(content))}
	cm := catalog.Commit{Ino: row.Ino, Size: ref.Size, NewVersion: true, Sum: ref.Hash,
		Splice: catalog.Splice{Cut: 0, Extents: []catalog.Extent{{Len: ref.Size, Blob: ref}}}}
	if _, known, err := s.cat.HasBlob(ctx, ref.Hash); err != nil {
		s.t.Fatal(err)
	} else if !known {
		cm.Blobs = []catalog.NewBlob{{Ref: ref, Level: catalog.LevelBasic, Body: []byte(content)}}
	}
	if row, err = s.cat.Commit(ctx, who, cm); err != nil {
		s.t.Fatal(err)
	}
	return row
}

// fill writes n versions over a few files, and signs now and then.
func (s *store) fill(n int) {
	s.t.Helper()
	for i := range n {
		s.write(fmt.Sprintf("agent-%d", i%3), fmt.Sprintf("file-%d", i%5), fmt.Sprintf("content %d of a file, %s", i, strings.Repeat("x", i%200)))
		if i%7 == 0 {
			s.head()
		}
	}
}

func (s *store) head() []byte {
	s.t.Helper()
	h, err := s.log.Head(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	return h
}

func (s *store) keys() []note.Verifier {
	s.t.Helper()
	k, err := ReadKeys(filepath.Join(s.dir, DirName))
	if err != nil {
		s.t.Fatal(err)
	}
	return k
}

func (s *store) verify(since []byte) Report {
	s.t.Helper()
	return verifyDir(s.t, s.dir, s.keys(), since)
}

func verifyDir(t *testing.T, dir string, keys []note.Verifier, since []byte) Report {
	t.Helper()
	r, err := Verify(t.Context(), VerifyOptions{JournalDir: filepath.Join(dir, "journal"), AuditDir: filepath.Join(dir, DirName), Keys: keys, Since: since})
	if err != nil {
		t.Fatal(err)
	}
	if r.OK != (len(r.Problems) == 0) {
		t.Errorf("ok %v with %d problems", r.OK, len(r.Problems))
	}
	return r
}

func (s *store) mustBeSound(since []byte) Report {
	s.t.Helper()
	r := s.verify(since)
	if !r.OK {
		s.t.Fatalf("a sound store is reported: %+v", r.Problems)
	}
	return r
}

// problem is the first one of a kind; the test fails when there is none.
func problem(t *testing.T, r Report, kind string) Problem {
	t.Helper()
	for _, p := range r.Problems {
		if p.Kind == kind {
			return p
		}
	}
	t.Fatalf("no problem %q among %+v", kind, r.Problems)
	return Problem{}
}

// copyDir copies a directory tree.
func copyDir(t *testing.T, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

// raw is a record as docs/format.md describes it.
type raw struct {
	frame      []byte // 84 bytes
	head, body []byte
}

func (r *raw) seq() uint64 { return binary.LittleEndian.Uint64(r.frame[8:]) }

func (r *raw) setTime(ns int64) { binary.LittleEndian.PutUint64(r.frame[16:], uint64(ns)) }

// rawSegment is a segment file taken apart.
type rawSegment struct {
	path   string
	header []byte
	recs   []raw
}

// dissect reads all segments of a store without the journal's own code.
func dissect(t *testing.T, dir string) []rawSegment {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "journal", "*.seg"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no segments: %v", err)
	}
	slices.Sort(paths)
	var list []rawSegment
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		s := rawSegment{path: p, header: b[:4096]}
		for b = b[4096:]; len(b) >= 84 && !bytes.Equal(b[:8], make([]byte, 8)); {
			f := b[:84]
			head, body, flags := int(binary.LittleEndian.Uint32(f[32:])), int(binary.LittleEndian.Uint32(f[36:])), binary.LittleEndian.Uint32(f[40:])
			if flags&1 != 0 {
				body = 0
			}
			if flags&2 != 0 {
				head = 0
			}
			s.recs = append(s.recs, raw{bytes.Clone(f), bytes.Clone(b[84 : 84+head]), bytes.Clone(b[84+head : 84+head+body])})
			b = b[84+head+body:]
		}
		list = append(list, s)
	}
	return list
}

// forge writes segments with everything made anew that somebody without the signing key can make: lengths, checksums, the chain, the headers.
func forge(t *testing.T, id [16]byte, segs []rawSegment) {
	t.Helper()
	crc := crc32.MakeTable(crc32.Castagnoli)
	chain := journal.Genesis(id)
	for _, s := range segs {
		h := bytes.Clone(s.header)
		copy(h[40:72], chain[:])
		binary.LittleEndian.PutUint32(h[4092:], crc32.Checksum(h[:4092], crc))
		out := h
		for i := range s.recs {
			r := &s.recs[i]
			if binary.LittleEndian.Uint32(r.frame[40:])&2 == 0 {
				binary.LittleEndian.PutUint32(r.frame[32:], uint32(len(r.head)))
				sum := sha256.New()
				sum.Write(chain[:])
				sum.Write(r.frame[8:40])
				sum.Write(r.head)
				copy(chain[:], sum.Sum(nil))
				copy(r.frame[48:], chain[:])
			} else {
				copy(chain[:], r.frame[48:])
			}
			binary.LittleEndian.PutUint32(r.frame[44:], crc32.Checksum(append(bytes.Clone(r.head), r.body...), crc))
			binary.LittleEndian.PutUint32(r.frame[80:], crc32.Checksum(r.frame[:80], crc))
			out = append(append(append(out, r.frame...), r.head...), r.body...)
		}
		if err := os.WriteFile(s.path, out, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
