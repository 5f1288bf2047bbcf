package volume

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"
	"golang.org/x/sys/unix"

	"holdfast/blobstore"
	"holdfast/catalog"
)

// A reader of stores that is written after docs/format.md alone: it shares no code with the program but the types that hold rows. What it
// reads of a golden store must be what the program reads, so the page is right and says enough.
type bareStore struct {
	dir      string
	settings Settings
	records  []catalog.Record
	bodies   map[blobstore.Hash][]byte
	blobs    bareBlobs
}

// TestGoldenByFormatAlone reads the golden stores by what docs/format.md says, and compares with the manifests.
func TestGoldenByFormatAlone(t *testing.T) {
	for _, storage := range storages() {
		t.Run(storage, func(t *testing.T) {
			text, err := os.ReadFile(goldenFile(1, storage, ".txt"))
			if err != nil {
				t.Fatal(err)
			}
			want := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
			compareBare(t, unpackGolden(t, 1, storage), want)
		})
	}
}

// TestNewStoreByFormatAlone: what the program writes today is what docs/format.md says.
func TestNewStoreByFormatAlone(t *testing.T) {
	for _, storage := range storages() {
		t.Run(storage, func(t *testing.T) {
			t.Parallel()
			dir := newStore(t, storage)
			newRecipe(t, dir).cook(false)
			compareBare(t, dir, describeDir(t, dir, true))
		})
	}
}

func compareBare(t *testing.T, dir string, want []string) {
	t.Helper()
	s, err := openBare(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := s.describe()
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"store", "record", "version", "tree", "xattr", "at", "blob"} {
		compareLines(t, kind, kinds(lines, kind), kinds(want, kind))
	}
}

func openBare(ctx context.Context, dir string) (*bareStore, error) {
	s := &bareStore{dir: dir, bodies: make(map[blobstore.Hash][]byte)}
	text, err := os.ReadFile(filepath.Join(dir, "holdfast.toml"))
	if err != nil {
		return nil, err
	}
	if err := toml.Unmarshal(text, &s.settings); err != nil {
		return nil, err
	}
	if s.settings.Format != 1 {
		return nil, fmt.Errorf("format %d", s.settings.Format)
	}
	if err := s.readJournal(); err != nil {
		return nil, err
	}
	s.blobs, err = readBareBlobs(ctx, dir, s.settings.Storage)
	return s, err
}

func (s *bareStore) readJournal() error {
	id, err := hex.DecodeString(s.settings.StoreID)
	if err != nil {
		return err
	}
	names, err := filepath.Glob(filepath.Join(s.dir, "journal", "*.seg"))
	if err != nil {
		return err
	}
	chain := sha256.Sum256(append([]byte("holdfast journal\x00"), id...))
	next := uint64(1)
	for _, name := range names { // sorted, and so are their numbers
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		switch {
		case len(b) < 4096 || string(b[:8]) != "HFJRNL\r\n" || u32(b, 8) != 1 || u32(b, 12) != 4096:
			return fmt.Errorf("%s: not a segment", name)
		case !bytes.Equal(b[16:32], id) || u64(b, 32) != next || filepath.Base(name) != fmt.Sprintf("%016x.seg", next):
			return fmt.Errorf("%s: of another store, or not the next one", name)
		case [32]byte(b[40:72]) != chain || u32(b, 4092) != checksum(b[:4092]) || len(bytes.Trim(b[80:4092], "\x00")) > 0 || b[72]&0x80 == 0:
			return fmt.Errorf("%s: a header that does not fit", name)
		}
		marker := b[72:80]
		for at := 4096; at < len(b) && len(bytes.TrimLeft(b[at:], "\x00")) > 0; next++ {
			f := b[at:]
			if len(f) < 84 || !bytes.Equal(f[:8], marker) || u64(f, 8) != next || u64(f, 24) >= next || u32(f, 40) != 0 || u32(f, 80) != checksum(f[:80]) {
				return fmt.Errorf("%s: no record at %d", name, at)
			}
			head, end := 84+int(u32(f, 32)), 84+int(u32(f, 32)+u32(f, 36))
			if end > len(f) || u32(f, 44) != checksum(f[84:end]) {
				return fmt.Errorf("%s: record %d is damaged", name, next)
			}
			chain = sha256.Sum256(slices.Concat(chain[:], f[8:40], f[84:head]))
			if chain != [32]byte(f[48:80]) {
				return fmt.Errorf("%s: record %d does not continue the chain", name, next)
			}
			r, err := s.parseRecord(f[84:head], f[head:end])
			if err != nil {
				return fmt.Errorf("%s: record %d: %w", name, next, err)
			}
			r.Seq, r.Time = catalog.Seq(next), time.Unix(0, int64(u64(f, 16)))
			for i := range r.Versions {
				r.Versions[i].Seq = r.Seq
			}
			s.records = append(s.records, r)
			at += end
		}
	}
	return nil
}

func u32(b []byte, at int) uint32 { return binary.LittleEndian.Uint32(b[at:]) }
func u64(b []byte, at int) uint64 { return binary.LittleEndian.Uint64(b[at:]) }
func checksum(b []byte) uint32    { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// item is one item of CBOR: int64, []byte, []any or nil.
func item(b []byte) (v any, rest []byte, err error) {
	if len(b) == 0 {
		return nil, nil, fmt.Errorf("an item is missing")
	}
	major, n, size := b[0]>>5, uint64(b[0]&31), 1
	if b[0] == 0xf6 {
		return nil, b[1:], nil
	}
	if n >= 24 {
		size += 1 << (n - 24)
		if n > 27 || len(b) < size {
			return nil, nil, fmt.Errorf("an item is cut short")
		}
		n = 0
		for _, c := range b[1:size] {
			n = n<<8 | uint64(c)
		}
	}
	b = b[size:]
	switch {
	case major == 0:
		return int64(n), b, nil
	case major == 1:
		return -1 - int64(n), b, nil
	case major == 2 && n <= uint64(len(b)):
		return b[:n:n], b[n:], nil
	case major == 4:
		list := make([]any, 0, min(n, 100))
		for range n {
			var v any
			if v, b, err = item(b); err != nil {
				return nil, nil, err
			}
			list = append(list, v)
		}
		return list, b, nil
	}
	return nil, nil, fmt.Errorf("an item of type %d", major)
}

// fields takes the fields of a structure, in their order. A field of another type is a panic, which fails the test.
type fields struct{ list []any }

func (f *fields) next() any {
	v := f.list[0]
	f.list = f.list[1:]
	return v
}
func (f *fields) int() int64         { return f.next().(int64) }
func (f *fields) u32() uint32        { return uint32(f.int()) }
func (f *fields) bytes() []byte      { return f.next().([]byte) }
func (f *fields) string() string     { return string(f.bytes()) }
func (f *fields) struc() *fields     { return &fields{f.next().([]any)} }
func (f *fields) hash() (h [32]byte) { copy(h[:], f.bytes()); return h }
func (f *fields) rows(fn func(*fields)) {
	for _, row := range f.next().([]any) {
		fn(&fields{row.([]any)})
	}
}

func (f *fields) actor() (a catalog.Actor) {
	g := f.struc()
	a.Agent, a.Program, a.UID, a.PID = g.string(), g.string(), g.u32(), g.u32()
	return a
}

func (f *fields) ref() (r blobstore.Ref) {
	g := f.struc()
	r.Hash, r.Size, r.Root = g.hash(), g.int(), g.hash()
	return r
}

func (s *bareStore) parseRecord(head, body []byte) (r catalog.Record, err error) {
	if len(head) == 0 || head[0] != 1 {
		return r, fmt.Errorf("not of format 1")
	}
	v, rest, err := item(head[1:])
	if err != nil || len(rest) > 0 {
		return r, fmt.Errorf("its head: %w, %d bytes behind it", err, len(rest))
	}
	f := fields{v.([]any)}
	r.Op, r.Actor, r.Path = catalog.Op(f.string()), f.actor(), f.string()
	f.rows(func(f *fields) {
		r.Inodes = append(r.Inodes, catalog.Inode{Ino: catalog.Ino(f.int()), Parent: catalog.Ino(f.int()), Mode: f.u32(), UID: f.u32(), GID: f.u32(), Rdev: f.u32(),
			Nlink: f.u32(), Size: f.int(), Atime: f.int(), Mtime: f.int(), Ctime: f.int(), Btime: f.int(), Ver: uint64(f.int()), Base: catalog.Seq(f.int()), Target: f.string()})
	})
	f.rows(func(f *fields) {
		r.Dentries = append(r.Dentries, catalog.Dentry{Parent: catalog.Ino(f.int()), Name: f.string(), Ino: catalog.Ino(f.int()), Type: f.u32(), Cookie: uint64(f.int())})
	})
	f.rows(func(f *fields) {
		x := catalog.Xattr{Ino: catalog.Ino(f.int()), Name: f.string()}
		if v, ok := f.next().([]byte); ok {
			x.Value = append([]byte{}, v...)
		}
		r.Xattrs = append(r.Xattrs, x)
	})
	f.rows(func(f *fields) {
		p := catalog.Splice{Ino: catalog.Ino(f.int()), Cut: f.int()}
		f.rows(func(f *fields) { p.Holes = append(p.Holes, catalog.Hole{Off: f.int(), Len: f.int()}) })
		f.rows(func(f *fields) {
			p.Extents = append(p.Extents, catalog.Extent{Off: f.int(), Len: f.int(), Blob: f.ref(), BlobOff: f.int()})
		})
		r.Splices = append(r.Splices, p)
	})
	f.rows(func(f *fields) {
		r.Versions = append(r.Versions, catalog.Version{Ino: catalog.Ino(f.int()), Num: uint64(f.int()), Time: f.int(), Size: f.int(), Sum: f.hash(), Prev: f.hash(),
			Digest: f.hash(), Actor: f.actor()})
	})
	f.rows(func(f *fields) {
		b := catalog.NewBlob{Ref: f.ref(), Level: f.string()}
		if n := f.int(); n >= 0 {
			b.Body, body = body[:n:n], body[n:]
			if sha256.Sum256(b.Body) != b.Ref.Hash || n != b.Ref.Size {
				err = fmt.Errorf("the body of %s is not its content", b.Ref.Hash)
			}
			s.bodies[b.Ref.Hash] = b.Body
		}
		r.Blobs = append(r.Blobs, b)
	})
	if len(body) > 0 && err == nil {
		err = fmt.Errorf("%d bytes behind its bodies", len(body))
	}
	return r, err
}

// bareState is the store after some record.
type bareState struct {
	inodes   map[catalog.Ino]catalog.Inode
	names    map[catalog.Ino]map[string]catalog.Dentry
	xattrs   map[catalog.Ino]map[string][]byte
	extents  map[catalog.Ino][]catalog.Extent
	digests  map[catalog.Ino]blobstore.Hash // of the newest version
	versions map[catalog.Ino][]string       // their lines
}

func (st *bareState) apply(r *catalog.Record) {
	for _, n := range r.Inodes {
		st.inodes[n.Ino] = n
	}
	for _, n := range r.Dentries {
		if st.names[n.Parent] == nil {
			st.names[n.Parent] = make(map[string]catalog.Dentry)
		}
		if st.names[n.Parent][n.Name] = n; n.Ino == 0 {
			delete(st.names[n.Parent], n.Name)
		}
	}
	for _, x := range r.Xattrs {
		if st.xattrs[x.Ino] == nil {
			st.xattrs[x.Ino] = make(map[string][]byte)
		}
		if st.xattrs[x.Ino][x.Name] = x.Value; x.Value == nil {
			delete(st.xattrs[x.Ino], x.Name)
		}
	}
	for _, p := range r.Splices {
		list := without(st.extents[p.Ino], p.Cut, 1<<63-1)
		for _, h := range p.Holes {
			list = without(list, h.Off, h.Off+h.Len)
		}
		for _, e := range p.Extents {
			list = append(without(list, e.Off, e.Off+e.Len), e)
		}
		slices.SortFunc(list, func(a, b catalog.Extent) int { return cmp.Compare(a.Off, b.Off) })
		st.extents[p.Ino] = list
	}
}

// without returns list but for the bytes [from, to).
func without(list []catalog.Extent, from, to int64) (out []catalog.Extent) {
	for _, e := range list {
		end := e.Off + e.Len
		if head := min(end, from) - e.Off; head > 0 {
			out = append(out, catalog.Extent{Off: e.Off, Len: head, Blob: e.Blob, BlobOff: e.BlobOff})
		}
		if skip := max(e.Off, to) - e.Off; skip < e.Len {
			out = append(out, catalog.Extent{Off: e.Off + skip, Len: e.Len - skip, Blob: e.Blob, BlobOff: e.BlobOff + skip})
		}
	}
	return out
}

// content is the hash of a file, as in the manifest, and where it has data.
func (s *bareStore) content(st *bareState, ino catalog.Ino, size int64) (sum, data string, err error) {
	h := sha256.New()
	next := int64(0)
	var ranges []run
	for _, e := range st.extents[ino] {
		if size <= maxHashed {
			h.Write(make([]byte, e.Off-next))
		}
		b, err := s.blob(e.Blob)
		if err != nil {
			return "", "", err
		}
		h.Write(b[e.BlobOff : e.BlobOff+e.Len])
		next = e.Off + e.Len
		if n := len(ranges); n > 0 && ranges[n-1].off+ranges[n-1].n == e.Off {
			ranges[n-1].n += e.Len
		} else {
			ranges = append(ranges, run{e.Off, e.Len})
		}
	}
	if size <= maxHashed {
		h.Write(make([]byte, size-next))
	}
	for _, r := range ranges {
		data += fmt.Sprintf(" %d-%d", r.off, r.off+r.n)
	}
	return fmt.Sprintf("%x", h.Sum(nil)), data, nil
}

// blob returns a blob's content: of a small one from the record, which the blob store has a copy of.
func (s *bareStore) blob(ref blobstore.Ref) ([]byte, error) {
	b := s.blobs[ref.Hash]
	if b == nil {
		return nil, fmt.Errorf("blob %s is missing", ref.Hash)
	}
	if body, ok := s.bodies[ref.Hash]; ok != (ref.Size <= 65536) || ok && !bytes.Equal(body, b.plain) {
		return nil, fmt.Errorf("blob %s of %d bytes: in a record: %v", ref.Hash, ref.Size, ok)
	}
	if ref.Root != b.root || ref.Size != int64(len(b.plain)) {
		return nil, fmt.Errorf("blob %s: its size or its root is not that of the reference", ref.Hash)
	}
	return b.plain, nil
}

func (s *bareStore) describe() ([]string, error) {
	m := &manifest{}
	m.add("store format %d storage %s id %s created %s", s.settings.Format, s.settings.Storage, s.settings.StoreID, s.settings.Created.Format(time.RFC3339))
	st := &bareState{make(map[catalog.Ino]catalog.Inode), make(map[catalog.Ino]map[string]catalog.Dentry), make(map[catalog.Ino]map[string][]byte),
		make(map[catalog.Ino][]catalog.Extent), make(map[catalog.Ino]blobstore.Hash), make(map[catalog.Ino][]string)}
	last := catalog.Seq(len(s.records))
	moments := []catalog.Seq{last / 5, last * 2 / 5, last * 3 / 5, last * 4 / 5}
	for i := range s.records {
		r := &s.records[i]
		m.record(r)
		st.apply(r)
		if err := s.checkVersions(st, r); err != nil {
			return nil, fmt.Errorf("record %d: %w", r.Seq, err)
		}
		if slices.Contains(moments, r.Seq) {
			s.walk(st, "", 1, func(p string, d catalog.Dentry) {
				n := st.inodes[d.Ino]
				m.moment(r.Seq, p, &n, len(st.extents[d.Ino]), len(st.xattrs[d.Ino]))
			})
		}
	}
	for _, ino := range slices.Sorted(maps.Keys(st.versions)) {
		m.lines = append(m.lines, st.versions[ino]...)
	}
	var failed error
	s.walk(st, "", 1, func(p string, d catalog.Dentry) {
		n := st.inodes[d.Ino]
		content := ""
		if n.Mode&unix.S_IFMT == unix.S_IFREG {
			sum, data, err := s.content(st, n.Ino, n.Size)
			if err != nil {
				failed = err
			}
			content = " sha256 " + sum + " data" + data
		}
		m.node(p, &n, d.Cookie, s.level(st, n), content)
		for _, name := range slices.Sorted(maps.Keys(st.xattrs[n.Ino])) {
			m.xattr(p, name, st.xattrs[n.Ino][name])
		}
	})
	for _, h := range slices.SortedFunc(maps.Keys(s.blobs), func(a, b blobstore.Hash) int { return bytes.Compare(a[:], b[:]) }) {
		b := s.blobs[h]
		m.blob(&b.sidecar, b.root[:])
	}
	return m.lines, failed
}

// checkVersions proves the digests of a record's versions and keeps their lines.
func (s *bareStore) checkVersions(st *bareState, r *catalog.Record) error {
	for i := range r.Versions {
		v := &r.Versions[i]
		p := catalog.Splice{Ino: v.Ino, Cut: 1<<63 - 1}
		for _, q := range r.Splices {
			if q.Ino == v.Ino {
				p = q
			}
		}
		if v.Digest != sha256.Sum256(digestItem(v, &p)) || v.Prev != st.digests[v.Ino] {
			return fmt.Errorf("version %d of inode %d does not have its digest", v.Num, v.Ino)
		}
		st.digests[v.Ino] = v.Digest
		sum := "-"
		if v.Size <= maxHashed {
			var err error
			if sum, _, err = s.content(st, v.Ino, v.Size); err != nil {
				return err
			}
			if v.Sum != (blobstore.Hash{}) && sum != v.Sum.String() {
				return fmt.Errorf("version %d of inode %d is not what its hash says", v.Num, v.Ino)
			}
		}
		m := manifest{st.versions[v.Ino]}
		m.version(v, sum)
		st.versions[v.Ino] = m.lines
	}
	return nil
}

func (s *bareStore) level(st *bareState, n catalog.Inode) string {
	for {
		if v := st.xattrs[n.Ino]["user.holdfast.level"]; v != nil {
			return string(v)
		}
		if n.Ino == 1 {
			return "basic"
		}
		n = st.inodes[n.Parent]
	}
}

// walk calls fn for the directory entries below dir, in the order of their cookies, after one for the root itself.
func (s *bareStore) walk(st *bareState, p string, dir catalog.Ino, fn func(string, catalog.Dentry)) {
	if dir == 1 {
		fn("", catalog.Dentry{Ino: 1})
	}
	entries := slices.SortedFunc(maps.Values(st.names[dir]), func(a, b catalog.Dentry) int { return cmp.Compare(a.Cookie, b.Cookie) })
	for _, d := range entries {
		fn(p+"/"+d.Name, d)
		if d.Type == unix.S_IFDIR {
			s.walk(st, p+"/"+d.Name, d.Ino, fn)
		}
	}
}
