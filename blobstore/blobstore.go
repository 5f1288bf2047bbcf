// Package blobstore keeps blobs: immutable byte strings named by the SHA-256 of their plain content, each with a sidecar
// that describes it. Nothing leaves a Store unverified: every byte that ReadAt returns belongs to a block whose hash was
// checked in that call (or whose verified copy is still in memory).
//
// Three implementations share one contract and one conformance suite (blobstoretest): file (every blob a file beside its
// JSON sidecar), database (everything in blobs.db) and hybrid (small blobs in blobs.db, large ones as files).
package blobstore

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"
)

const (
	// BlockSize is the unit in which a large blob is hashed, compressed and verified, in bytes of plain content.
	BlockSize = 128 << 10
	// MaxSmall is the largest blob that is handed over in memory, by PutBatch; larger ones are adopted from a staged file.
	MaxSmall = 64 << 10
	// MaxDelete bounds one DeleteBatch: others wait for it no longer than for a large write.
	MaxDelete = 512
)

var (
	// ErrNotFound: the store holds no blob of that name.
	ErrNotFound = errors.New("blob not found")
	// ErrDamaged: the blob or its sidecar is there, and is not what its name, size or root says. Wrapped in a *DamageError.
	ErrDamaged = errors.New("blob damaged")
	// ErrInvalid: the caller passed something that no store could hold, such as content that has another hash.
	ErrInvalid = errors.New("invalid argument")
	// ErrReadOnly: the store was opened read-only.
	ErrReadOnly = errors.New("blob store is open read-only")
	// ErrClosed: the store was closed.
	ErrClosed = errors.New("blob store is closed")
)

// DamageError says what is damaged; errors.Is(err, ErrDamaged) holds.
type DamageError struct {
	Hash   Hash
	Part   string // "block 3", "sidecar", "size", ...
	Detail string
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("blob %s: %s damaged: %s", e.Hash, e.Part, e.Detail)
}
func (e *DamageError) Unwrap() error { return ErrDamaged }

// Hash is the SHA-256 of a blob's plain content: its name.
type Hash [32]byte

func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// ParseHash reads the 64 lower-case hexadecimal digits that String writes; anything else is an error.
func ParseHash(s string) (Hash, error) {
	var h Hash
	if len(s) != 64 {
		return h, fmt.Errorf("a blob name has 64 hexadecimal digits, %q has %d", s, len(s))
	}
	if _, err := hex.Decode(h[:], []byte(s)); err != nil || h.String() != s {
		return Hash{}, fmt.Errorf("not a blob name: %q", s)
	}
	return h, nil
}

// Root is the BLAKE3-256 of the concatenated block hashes of a blob larger than BlockSize; zero for smaller blobs, which
// are verified whole against their name.
type Root [32]byte

// Ref names a blob and says what is known of it independently of the store. It comes from the catalog or the journal.
type Ref struct {
	Hash Hash
	Size int64 // bytes of plain content
	Root Root
}

// Meta is what the writer knows of a blob beyond its bytes; it goes into the sidecar.
type Meta struct {
	Level   string // "basic", "advanced" or "critical": the highest level that a file holding the blob has
	Version int64  // journal number of the first record that named the blob
	Time    time.Time
}

// Item is one small blob for PutBatch. Data has at most MaxSmall bytes and hashes to Ref.Hash (checked).
type Item struct {
	Ref  Ref
	Meta Meta
	Data []byte
}

// Sidecar is the metadata of a blob, as JSON beside its file or as a row beside its bytes.
type Sidecar struct {
	DataID         string     `json:"data_id"`   // the blob's name
	Timestamp      time.Time  `json:"timestamp"` // when it was first stored
	Checksum       string     `json:"checksum"`  // "sha256:<hex>" of the plain content
	Size           int64      `json:"size"`      // plain bytes
	Version        int64      `json:"version"`
	IntegrityLevel string     `json:"integrity_level"`
	BackupCount    int        `json:"backup_count"`
	LastBackup     *time.Time `json:"last_backup"`

	Encoding   string   `json:"encoding"`         // "raw" or "zstd" (one frame for each block)
	StoredSize int64    `json:"stored_size"`      // bytes that the encoded content takes
	BlockSize  int      `json:"block_size"`       // BlockSize when the blob is larger than that, else 0
	Blocks     []byte   `json:"blocks,omitempty"` // the block hashes, 32 bytes each
	Frames     []uint32 `json:"frames,omitempty"` // zstd: encoded length of each block; a block that did not shrink is raw, with its plain length
	Sum        string   `json:"sum"`              // SHA-256 (hex) of this sidecar's JSON with sum empty: tells rot in the sidecar from rot in the blob
}

// Stats counts what a store holds.
type Stats struct {
	Blobs       int64 `json:"blobs"`
	PlainBytes  int64 `json:"plain_bytes"`  // before compression
	StoredBytes int64 `json:"stored_bytes"` // after compression, without sidecars
}

// Getter reads verified content.
type Getter interface {
	// ReadAt fills p from plain offset off and returns the bytes read: less than len(p) only at the blob's end. ErrNotFound or
	// ErrDamaged otherwise; p's content is then undefined. A sidecar that is missing or damaged is rebuilt when the content still hashes to its name.
	ReadAt(ctx context.Context, ref Ref, p []byte, off int64) (int, error)
}

// Store is a place for blobs. All methods may be called concurrently.
type Store interface {
	Getter
	Guarded
	// PutBatch stores small blobs. A blob that is already there is verified first, and rewritten from Data when it is damaged.
	// What PutBatch has stored survives a killed process on return, and a power cut after the next Sync.
	PutBatch(ctx context.Context, items []Item) error
	// Adopt takes over the file at path (same filesystem, raw plain content, already hashed by a Hasher into sum) as a blob: by
	// renaming it where blobs are files. On return path is gone and ReadAt works. An intact blob of that name is kept and path
	// removed; a damaged one is replaced. With durable set, content, sidecar and directory entries are on stable storage on return;
	// otherwise after the next Sync. On error path may or may not still exist.
	Adopt(ctx context.Context, sum Summed, meta Meta, path string, durable bool) error
	// Sync makes everything stored so far durable.
	Sync(ctx context.Context) error
	// Sidecar returns the blob's sidecar, validated but for the content itself.
	Sidecar(ctx context.Context, h Hash) (Sidecar, error)
	// Verify reads the whole blob and checks every hash, the name included. nil means intact.
	Verify(ctx context.Context, ref Ref) error
	// Delete removes a blob, its sidecar and its parity; a missing one is no error.
	Delete(ctx context.Context, h Hash) error
	// DeleteBatch deletes up to MaxDelete blobs, in far less time than one by one: rows in one transaction, directories synced once; those whose names have the same first byte together are best.
	// Names may be repeated. On return all of them are gone for good, power cuts included. After an error, or when the process is killed meanwhile, each is gone, or there as before, or,
	// as a file, there without its parity or sidecar, which is made anew; the same call deletes what is left.
	DeleteBatch(ctx context.Context, hashes []Hash) error
	// List calls fn for each blob with a name greater than after, in order of name, until fn returns an error, which List returns.
	List(ctx context.Context, after Hash, fn func(Hash) error) error
	Stats(ctx context.Context) (Stats, error)
	// Close waits for background work and releases the store. It does not Sync.
	Close() error
}
