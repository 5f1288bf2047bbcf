package backup

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"holdfast/blobstore"
	"holdfast/catalog"
)

const (
	format = 1
	// maxLine bounds a line of a manifest, maxExtents the extents in one: those of a file that has more go on in the next line.
	maxLine    = 8 << 20
	maxExtents = 8 << 10
	maxPath    = 1 << 16
	// maxFile bounds the extents of one file, which are in memory together.
	maxFile = 1 << 21
)

// ErrDamaged: a manifest, or a blob that it names, is not what was written.
var ErrDamaged = errors.New("backup damaged")

// Header is the first line of a manifest.
type Header struct {
	Format  int         `json:"format"`
	StoreID string      `json:"store_id"`
	Name    string      `json:"name"`
	Time    time.Time   `json:"time"`  // of the moment
	Seq     catalog.Seq `json:"seq"`   // the state after this record of the store's journal
	Level   string      `json:"level"` // files of this level or a higher one are in it
}

// Entry is a name, and what it leads to. Directories come before what is in them.
type Entry struct {
	Path    Text     `json:"path"` // from the root of the mount, beginning with "/"
	Link    Text     `json:"link,omitempty"`
	Mode    uint32   `json:"mode"` // st_mode
	UID     uint32   `json:"uid"`
	GID     uint32   `json:"gid"`
	Rdev    uint32   `json:"rdev,omitempty"`
	Size    int64    `json:"size"`
	Atime   int64    `json:"atime"` // nanoseconds since 1970 UTC
	Mtime   int64    `json:"mtime"`
	Btime   int64    `json:"btime"`
	Target  Text     `json:"target,omitempty"`
	Xattrs  []Xattr  `json:"xattrs,omitempty"`
	Extents []Extent `json:"extents,omitempty"`
	// More: this line has further extents of the path before it, and nothing else.
	More bool `json:"more,omitempty"`
}

// Xattr is an extended attribute.
type Xattr struct {
	Name  Text   `json:"name"`
	Value []byte `json:"value"`
}

// Extent says where bytes [Off, Off+Len) of a file are.
type Extent struct {
	Off     int64  `json:"off"`
	Len     int64  `json:"len"`
	Blob    string `json:"blob"` // SHA-256, 64 hexadecimal digits
	Size    int64  `json:"size"` // of the blob
	Root    string `json:"root,omitempty"`
	BlobOff int64  `json:"blob_off,omitempty"`
}

// Ref is the blob that the extent names.
func (x Extent) Ref() (ref blobstore.Ref, err error) {
	if ref.Hash, err = blobstore.ParseHash(x.Blob); err != nil {
		return ref, err
	}
	if x.Root != "" {
		root, err := blobstore.ParseHash(x.Root)
		if err != nil {
			return ref, err
		}
		ref.Root = blobstore.Root(root)
	}
	ref.Size = x.Size
	return ref, nil
}

func newExtent(x catalog.Extent) Extent {
	out := Extent{Off: x.Off, Len: x.Len, Blob: x.Blob.Hash.String(), Size: x.Blob.Size, BlobOff: x.BlobOff}
	if x.Blob.Root != (blobstore.Root{}) {
		out.Root = hex.EncodeToString(x.Blob.Root[:])
	}
	return out
}

// Text is a string of any bytes. In JSON it is a string, or when it is not UTF-8 an array with one string: its base64.
type Text string

// MarshalJSON implements json.Marshaler.
func (t Text) MarshalJSON() ([]byte, error) {
	if utf8.ValidString(string(t)) {
		return json.Marshal(string(t))
	}
	return json.Marshal([][]byte{[]byte(t)})
}

// UnmarshalJSON implements json.Unmarshaler.
func (t *Text) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '[' {
		var raw [][]byte
		if err := json.Unmarshal(b, &raw); err != nil {
			return err
		}
		if len(raw) != 1 {
			return fmt.Errorf("a text of %d parts", len(raw))
		}
		*t = Text(raw[0])
		return nil
	}
	return json.Unmarshal(b, (*string)(t))
}

// trailer is the last line: without it a manifest is not whole.
type trailer struct {
	End     bool   `json:"end"`
	Entries int64  `json:"entries"`
	Files   int64  `json:"files"`
	Bytes   int64  `json:"bytes"`
	SHA256  string `json:"sha256"` // of all lines before, newlines included
}

// manifestWriter writes a manifest to w. end must be called to make it whole.
type manifestWriter struct {
	z     *zstd.Encoder
	sum   hash.Hash
	total trailer
}

func newManifestWriter(w io.Writer, h Header) (*manifestWriter, error) {
	z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	m := &manifestWriter{z: z, sum: sha256.New()}
	return m, m.line(h)
}

func (m *manifestWriter) line(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	b = append(b, '\n')
	m.sum.Write(b)
	_, err = m.z.Write(b)
	return err
}

func (m *manifestWriter) add(e Entry, extents []catalog.Extent) error {
	if len(extents) > maxFile {
		return fmt.Errorf("%s: %w: it has %d extents, a backup can have %d of a file; copy it, which makes them fewer", e.Path, catalog.ErrTooBig, len(extents), maxFile)
	}
	m.total.Entries++
	if e.Mode&unix.S_IFMT == unix.S_IFREG && e.Link == "" {
		m.total.Files++
		m.total.Bytes += e.Size
	}
	for {
		n := min(len(extents), maxExtents)
		for _, x := range extents[:n] {
			e.Extents = append(e.Extents, newExtent(x))
		}
		if err := m.line(e); err != nil {
			return err
		}
		if extents = extents[n:]; len(extents) == 0 {
			return nil
		}
		e = Entry{Path: e.Path, More: true}
	}
}

func (m *manifestWriter) end() error {
	t := m.total
	t.End, t.SHA256 = true, hex.EncodeToString(m.sum.Sum(nil))
	if err := m.line(t); err != nil {
		return err
	}
	return m.z.Close()
}

// manifestReader reads a manifest, one entry after the other.
type manifestReader struct {
	Header Header
	z      *zstd.Decoder
	lines  *bufio.Reader
	sum    hash.Hash
	total  trailer
	before string
	next   *Entry // read ahead
	ended  bool
}

// newManifestReader reads the header. The caller closes it. What it finds wrong is ErrDamaged.
func newManifestReader(r io.Reader) (_ *manifestReader, err error) {
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(16<<20), zstd.WithDecoderMaxMemory(64<<20))
	if err != nil {
		return nil, err
	}
	m := &manifestReader{z: z, lines: bufio.NewReaderSize(z, 64<<10), sum: sha256.New()}
	defer func() {
		if err != nil {
			m.close()
		}
	}()
	b, err := m.read()
	if err != nil {
		return nil, err
	}
	m.sum.Write(b)
	if err := json.Unmarshal(b, &m.Header); err != nil {
		return nil, fmt.Errorf("%w: header: %v", ErrDamaged, err)
	}
	if m.Header.Format != format {
		return nil, fmt.Errorf("this backup has format %d, this program reads %d: use the program that made it", m.Header.Format, format)
	}
	return m, nil
}

func (m *manifestReader) close() { m.z.Close() }

// read returns one line with its newline.
func (m *manifestReader) read() ([]byte, error) {
	var line []byte
	for {
		part, err := m.lines.ReadSlice('\n')
		if len(line)+len(part) > maxLine {
			return nil, fmt.Errorf("%w: a line is longer than %d bytes", ErrDamaged, maxLine)
		}
		line = append(line, part...)
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
		case err != nil:
			return nil, fmt.Errorf("%w: its end is missing: %v", ErrDamaged, err)
		default:
			return line, nil
		}
	}
}

// Next returns the next entry with all its extents; io.EOF behind the last one, when the whole manifest was what was written.
func (m *manifestReader) Next() (Entry, error) {
	e := m.next
	m.next = nil
	if e == nil {
		var err error
		if e, err = m.one(); err != nil {
			return Entry{}, err
		}
	}
	for {
		more, err := m.one()
		if errors.Is(err, io.EOF) {
			return *e, nil // one says so again
		}
		if err != nil {
			return Entry{}, err
		}
		if !more.More {
			m.next = more
			return *e, nil
		}
		if more.Path != e.Path || len(e.Extents)+len(more.Extents) > maxFile {
			return Entry{}, fmt.Errorf("%w: %q goes on where it should not, or has more than %d extents", ErrDamaged, more.Path, maxFile)
		}
		e.Extents = append(e.Extents, more.Extents...)
	}
}

func (m *manifestReader) one() (*Entry, error) {
	if m.ended {
		return nil, io.EOF
	}
	b, err := m.read()
	if err != nil {
		return nil, err
	}
	if strings.HasPrefix(string(b[:min(len(b), 8)]), `{"end":`) {
		return nil, m.finish(b)
	}
	m.sum.Write(b)
	e := new(Entry)
	if err := json.Unmarshal(b, e); err != nil {
		return nil, fmt.Errorf("%w: behind %q: %v", ErrDamaged, m.before, err)
	}
	if err := e.validate(); err != nil {
		return nil, fmt.Errorf("%w: %q: %w", ErrDamaged, e.Path[:min(len(e.Path), 200)], err)
	}
	m.before = string(e.Path)
	if !e.More {
		m.total.Entries++
	}
	return e, nil
}

// finish checks the last line.
func (m *manifestReader) finish(b []byte) error {
	var t trailer
	if err := json.Unmarshal(b, &t); err != nil {
		return fmt.Errorf("%w: its last line: %v", ErrDamaged, err)
	}
	if t.SHA256 != hex.EncodeToString(m.sum.Sum(nil)) || t.Entries != m.total.Entries {
		return fmt.Errorf("%w: it does not add up to what its last line says", ErrDamaged)
	}
	if _, err := m.lines.ReadByte(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: something follows its last line", ErrDamaged)
	}
	m.total, m.ended = t, true
	return io.EOF
}

// validate bounds what a manifest can say.
func (e *Entry) validate() error {
	if err := validPath(string(e.Path)); err != nil {
		return err
	}
	if e.Link != "" {
		if err := validPath(string(e.Link)); err != nil {
			return fmt.Errorf("link: %w", err)
		}
	}
	if e.Size < 0 || e.Size > catalog.MaxSize {
		return fmt.Errorf("its size is %d", e.Size)
	}
	if len(e.Target) > catalog.MaxSymlink || strings.ContainsRune(string(e.Target), 0) {
		return errors.New("the target of the link is not one")
	}
	for _, x := range e.Xattrs {
		if x.Name == "" || len(x.Name) > catalog.MaxName || len(x.Value) > catalog.MaxXattr || strings.ContainsRune(string(x.Name), 0) {
			return errors.New("an extended attribute is out of bounds")
		}
	}
	for _, x := range e.Extents {
		if _, err := x.Ref(); err != nil {
			return err
		}
		if x.Off < 0 || x.Len <= 0 || x.BlobOff < 0 || x.Size < 0 || x.Off > catalog.MaxSize-x.Len || x.BlobOff > x.Size-x.Len {
			return fmt.Errorf("the extent at %d is out of bounds", x.Off)
		}
	}
	return nil
}

func validPath(p string) error {
	if p == "/" {
		return nil
	}
	if len(p) > maxPath || !strings.HasPrefix(p, "/") {
		return errors.New("not a path from the root")
	}
	for name := range strings.SplitSeq(p[1:], "/") {
		if name == "" || name == "." || name == ".." || len(name) > catalog.MaxName || strings.ContainsRune(name, 0) {
			return errors.New("a part of the path is no name")
		}
	}
	return nil
}
