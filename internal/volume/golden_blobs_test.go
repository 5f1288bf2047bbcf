package volume

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"

	"holdfast/blobstore"
	"holdfast/catalog"
	"holdfast/internal/sqldb"
)

// What the reader after docs/format.md knows of blobs, and of writing CBOR.

const bareBlock = 131072

type bareBlob struct {
	plain   []byte
	root    [32]byte
	sidecar blobstore.Sidecar // what the store says of it
}

type bareBlobs map[blobstore.Hash]*bareBlob

// add checks a blob against its name, its block hashes and its sidecar.
func (all bareBlobs) add(plain []byte, sc blobstore.Sidecar, hashes []byte) error {
	h := blobstore.Hash(sha256.Sum256(plain))
	var want []byte
	for at := 0; len(plain) > bareBlock && at < len(plain); at += bareBlock {
		sum := blake3.Sum256(plain[at:min(len(plain), at+bareBlock)])
		want = append(want, sum[:]...)
	}
	b := &bareBlob{plain: plain, sidecar: sc}
	if len(want) > 0 {
		b.root = blake3.Sum256(want)
	}
	if h.String() != sc.DataID || sc.Size != int64(len(plain)) || !bytes.Equal(hashes, want) || all[h] != nil {
		return fmt.Errorf("blob %s: its content has the hash %s and %d bytes, or other blocks", sc.DataID, h, len(plain))
	}
	all[h] = b
	return nil
}

func readBareBlobs(ctx context.Context, dir, storage string) (bareBlobs, error) {
	all := make(bareBlobs)
	if storage != "database" {
		if err := all.readFiles(filepath.Join(dir, "blobs")); err != nil {
			return nil, err
		}
	}
	if storage != "file" {
		if err := all.readRows(ctx, filepath.Join(dir, "blobs.db")); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func (all bareBlobs) readFiles(dir string) error {
	return filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		base, found := strings.CutSuffix(p, ".json")
		if err != nil || !found {
			return err
		}
		line, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		var sc struct {
			DataID         string     `json:"data_id"`
			Timestamp      time.Time  `json:"timestamp"`
			Checksum       string     `json:"checksum"`
			Size           int64      `json:"size"`
			Version        int64      `json:"version"`
			IntegrityLevel string     `json:"integrity_level"`
			BackupCount    int        `json:"backup_count"`
			LastBackup     *time.Time `json:"last_backup"`
			Encoding       string     `json:"encoding"`
			StoredSize     int64      `json:"stored_size"`
			BlockSize      int        `json:"block_size"`
			Blocks         []byte     `json:"blocks"`
			Frames         []int      `json:"frames"`
			Sum            string     `json:"sum"`
		}
		strict := json.NewDecoder(bytes.NewReader(line))
		strict.DisallowUnknownFields()
		if err := strict.Decode(&sc); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		unsigned := strings.Replace(strings.TrimSuffix(string(line), "\n"), sc.Sum+`"}`, `"}`, 1)
		if sum := sha256.Sum256([]byte(unsigned)); hex.EncodeToString(sum[:]) != sc.Sum || sc.Checksum != "sha256:"+sc.DataID ||
			sc.BlockSize != bareBlock && (sc.BlockSize != 0 || sc.Size > bareBlock) || filepath.Base(filepath.Dir(p)) != sc.DataID[:2] {
			return fmt.Errorf("%s contradicts itself", p)
		}
		name := base
		if sc.Encoding == "zstd" {
			name += ".zst"
		}
		stored, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		plain, frames := stored, []int(nil)
		if sc.Encoding == "zstd" {
			if plain, frames, err = unpackBare(stored); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		if int64(len(stored)) != sc.StoredSize || fmt.Sprint(frames) != fmt.Sprint(sc.Frames) {
			return fmt.Errorf("%s is not what its sidecar says: %v", name, frames)
		}
		return all.add(plain, blobstore.Sidecar{DataID: sc.DataID, Size: sc.Size, Version: sc.Version, Timestamp: sc.Timestamp, IntegrityLevel: sc.IntegrityLevel,
			Encoding: sc.Encoding, StoredSize: sc.StoredSize, BackupCount: sc.BackupCount}, sc.Blocks)
	})
}

// unpackBare decodes a .zst as it describes itself, without the sidecar, and says what each block takes.
func unpackBare(b []byte) (plain []byte, frames []int, err error) {
	z, err := zstd.NewReader(nil)
	if err != nil {
		return nil, nil, err
	}
	defer z.Close()
	for at := 0; at < len(b); {
		n := min(bareBlock, len(b)-at)
		if bytes.HasPrefix(b[at:], []byte{0x28, 0xb5, 0x2f, 0xfd}) {
			if n, err = bareFrame(b[at:]); err != nil {
				return nil, nil, err
			}
			if plain, err = z.DecodeAll(b[at:at+n], plain); err != nil {
				return nil, nil, err
			}
		} else {
			plain = append(plain, b[at:at+n]...)
		}
		frames = append(frames, n)
		at += n
	}
	return plain, frames, nil
}

// bareFrame is the length of the zstd frame with which b begins, by RFC 8878: a header, then blocks with headers of three bytes.
func bareFrame(b []byte) (int, error) {
	var h zstd.Header
	if err := h.Decode(b); err != nil || !h.SingleSegment || !h.HasFCS || h.HasCheckSum || h.DictionaryID != 0 {
		return 0, fmt.Errorf("another kind of frame: %+v %w", h, err)
	}
	for n, last := h.HeaderSize, false; ; {
		if last {
			return n, nil
		}
		if n+3 > len(b) {
			return 0, fmt.Errorf("a frame is cut short")
		}
		head := int(b[n]) | int(b[n+1])<<8 | int(b[n+2])<<16
		last = head&1 == 1
		if n += 3; head>>1&3 == 1 { // one byte, repeated
			n++
		} else {
			n += head >> 3
		}
		if n > len(b) {
			return 0, fmt.Errorf("a frame is cut short")
		}
	}
}

func (all bareBlobs) readRows(ctx context.Context, path string) error {
	db, err := sqldb.Open(ctx, sqldb.Options{Path: path, ReadOnly: true, Version: 1})
	if err != nil {
		return err
	}
	defer db.Close()
	z, err := zstd.NewReader(nil)
	if err != nil {
		return err
	}
	defer z.Close()
	unpack := func(body []byte, framed bool, plain []byte) ([]byte, error) {
		if framed {
			return z.DecodeAll(body, plain)
		}
		return append(plain, body...), nil
	}
	var count, plainBytes, storedBytes int64
	return db.Read(ctx, func(c *sqldb.Conn) error {
		blocks := make(map[int64][]byte)
		st := c.Prep("SELECT id, body FROM block")
		for ok, err := st.Step(); ok || err != nil; ok, err = st.Step() {
			if err != nil {
				return err
			}
			blocks[st.Int64(0)] = st.AppendBytes(nil, 1)
		}
		st = c.Prep(`SELECT b.hash, b.size, b.stored, b.zstd, b.level, b.version, b.time, b.backups, b.last_backup, b.sum, b.body, l.first, l.hashes
			FROM blob b LEFT JOIN large l ON l.id = b.id`)
		for ok, err := st.Step(); ok || err != nil; ok, err = st.Step() {
			if err != nil {
				return err
			}
			in := st.AppendBytes(nil, 0)
			name := hex.EncodeToString(in)
			for col := 1; col <= 8; col++ {
				in = binary.LittleEndian.AppendUint64(in, uint64(st.Int64(col)))
			}
			if sum := sha256.Sum256(in); int64(binary.LittleEndian.Uint64(sum[:])) != st.Int64(9) {
				return fmt.Errorf("blob %s does not have its sum", name)
			}
			size, framed := st.Int64(1), st.Int64(3) == 1
			plain, hashes := []byte(nil), []byte(nil)
			if st.IsNull(10) {
				hashes = st.AppendBytes(nil, 12)
				for i := st.Int64(11); int64(len(plain)) < size; i++ {
					short := int64(len(blocks[i])) < min(bareBlock, size-int64(len(plain)))
					if short && !framed || len(blocks[i]) == 0 {
						return fmt.Errorf("blob %s: block %d is cut short", name, i)
					}
					if plain, err = unpack(blocks[i], short, plain); err != nil {
						return err
					}
					delete(blocks, i)
				}
			} else if plain, err = unpack(st.AppendBytes(nil, 10), framed, nil); err != nil {
				return err
			}
			count, plainBytes, storedBytes = count+1, plainBytes+size, storedBytes+st.Int64(2)
			sc := blobstore.Sidecar{DataID: name, Size: size, Version: st.Int64(5), Timestamp: time.Unix(0, st.Int64(6)), StoredSize: st.Int64(2),
				IntegrityLevel: []string{"basic", "advanced", "critical"}[st.Int64(4)], Encoding: []string{"raw", "zstd"}[st.Int64(3)], BackupCount: int(st.Int64(7))}
			if err := all.add(plain, sc, hashes); err != nil {
				return err
			}
		}
		st = c.Prep("SELECT blobs, plain, stored, (SELECT count(*) FROM incomplete) FROM total WHERE id = 1")
		if ok, err := st.Step(); err != nil || !ok || st.Int64(0) != count || st.Int64(1) != plainBytes || st.Int64(2) != storedBytes || st.Int64(3) != 0 || len(blocks) != 0 {
			return fmt.Errorf("the totals are not those of %d blobs, or blocks are left: %d, %w", count, len(blocks), err)
		}
		return st.Done()
	})
}

// TestGoldenCovers: the golden stores of this program's format hold every operation and every form of content.
func TestGoldenCovers(t *testing.T) {
	seen := make(map[string]bool)
	for _, storage := range storages() {
		s, err := openBare(t.Context(), unpackGolden(t, Format, storage))
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range s.records {
			seen["op "+string(r.Op)] = true
			seen["a version without a change of content"] = seen["a version without a change of content"] || len(r.Versions) > len(r.Splices)
			seen["an attribute that was removed"] = seen["an attribute that was removed"] || len(r.Xattrs) > 0 && r.Xattrs[0].Value == nil
			seen["content that was there already"] = seen["content that was there already"] || len(r.Blobs) == 0 && len(r.Splices) > 0 && len(r.Splices[0].Extents) > 0
			for _, p := range r.Splices {
				seen["holes"] = seen["holes"] || len(p.Holes) > 0
				seen["a cut in the middle"] = seen["a cut in the middle"] || p.Cut > 0 && p.Cut < 1<<63-1
				seen["no cut"] = seen["no cut"] || p.Cut == 1<<63-1
				seen["several extents"] = seen["several extents"] || len(p.Extents) > 1
				for _, e := range p.Extents {
					seen["the middle of a blob"] = seen["the middle of a blob"] || e.BlobOff > 0 && e.BlobOff+e.Len < e.Blob.Size
				}
			}
		}
		for _, b := range s.blobs {
			size := "small"
			switch n := len(b.plain); {
			case n == 0:
				size = "empty"
			case n > bareBlock:
				size = "of blocks"
			case n > 65536:
				size = "large, of one block"
			}
			seen[storage+" "+b.sidecar.Encoding+" "+size] = true
			seen[storage+" "+b.sidecar.IntegrityLevel] = true
		}
	}
	for _, want := range []string{"op init", "op create", "op mkdir", "op mknod", "op symlink", "op link", "op unlink", "op rmdir", "op rename", "op setattr",
		"op setxattr", "op write", "op merge", "a version without a change of content", "an attribute that was removed", "content that was there already",
		"holes", "a cut in the middle", "no cut", "several extents", "the middle of a blob", "file raw small", "file zstd small", "file raw large, of one block",
		"file zstd large, of one block", "file raw of blocks", "file zstd of blocks", "hybrid raw small", "hybrid zstd small", "hybrid raw of blocks",
		"hybrid zstd of blocks", "database raw small", "database zstd small", "database zstd large, of one block", "database zstd of blocks", "file basic",
		"file advanced", "file critical"} {
		if !seen[want] {
			t.Errorf("no golden store has %s", want)
		}
	}
}

// put appends one item of CBOR: an int64, a string, or an array of items.
func put(b []byte, v any) []byte {
	head := func(major byte, n uint64) []byte {
		switch {
		case n < 24:
			return append(b, major<<5|byte(n))
		case n < 1<<8:
			return append(b, major<<5|24, byte(n))
		case n < 1<<16:
			return binary.BigEndian.AppendUint16(append(b, major<<5|25), uint16(n))
		case n < 1<<32:
			return binary.BigEndian.AppendUint32(append(b, major<<5|26), uint32(n))
		}
		return binary.BigEndian.AppendUint64(append(b, major<<5|27), n)
	}
	switch v := v.(type) {
	case string:
		return append(head(2, uint64(len(v))), v...)
	case int64:
		if v < 0 {
			return head(1, uint64(-1-v))
		}
		return head(0, uint64(v))
	}
	list := v.([]any)
	b = head(4, uint64(len(list)))
	for _, e := range list {
		b = put(b, e)
	}
	return b
}

// digestItem is what the digest of a version is the hash of.
func digestItem(v *catalog.Version, p *catalog.Splice) []byte {
	optional := func(h [32]byte) string {
		if h == [32]byte{} {
			return ""
		}
		return string(h[:])
	}
	holes, extents := []any{}, []any{}
	for _, h := range p.Holes {
		holes = append(holes, []any{h.Off, h.Len})
	}
	for _, e := range p.Extents {
		extents = append(extents, []any{e.Off, e.Len, []any{string(e.Blob.Hash[:]), e.Blob.Size, optional(e.Blob.Root)}, e.BlobOff})
	}
	return put(nil, []any{"holdfast version", int64(v.Ino), int64(v.Num), v.Time, v.Size, optional(v.Sum), optional(v.Prev),
		[]any{v.Actor.Agent, v.Actor.Program, int64(v.Actor.UID), int64(v.Actor.PID)}, []any{int64(p.Ino), p.Cut, holes, extents}})
}
