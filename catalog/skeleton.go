package catalog

import (
	"context"
	"errors"
	"time"

	"holdfast/blobstore"
)

type stage int
type txn struct{}
type state struct{}
type applier struct{}

// Open opens the catalog.
func Open(ctx context.Context, o Options) (*Catalog, error) { return nil, errors.ErrUnsupported }

// Init makes the root directory of a new store.
func (c *Catalog) Init(ctx context.Context, who Actor, n NewInode) error { return errors.ErrUnsupported }

// Close applies everything and closes.
func (c *Catalog) Close(ctx context.Context) error { return errors.ErrUnsupported }

func (c *Catalog) Lookup(ctx context.Context, parent Ino, name string) (Inode, error) {
	return Inode{}, errors.ErrUnsupported
}
func (c *Catalog) Get(ctx context.Context, ino Ino) (Inode, error) {
	return Inode{}, errors.ErrUnsupported
}
func (c *Catalog) Create(ctx context.Context, who Actor, parent Ino, name string, n NewInode) (Inode, error) {
	return Inode{}, errors.ErrUnsupported
}
func (c *Catalog) CreateTmpfile(ctx context.Context, who Actor, parent Ino, n NewInode) (Inode, error) {
	return Inode{}, errors.ErrUnsupported
}

// ForgetTmpfile drops an O_TMPFILE inode that was closed and never linked or committed; anything else is left alone.
func (c *Catalog) ForgetTmpfile(ino Ino) {}
func (c *Catalog) Link(ctx context.Context, who Actor, ino Ino, parent Ino, name string) (Inode, error) {
	return Inode{}, errors.ErrUnsupported
}
func (c *Catalog) Unlink(ctx context.Context, who Actor, parent Ino, name string) (Inode, error) {
	return Inode{}, errors.ErrUnsupported
}
func (c *Catalog) Rmdir(ctx context.Context, who Actor, parent Ino, name string) error {
	return errors.ErrUnsupported
}
func (c *Catalog) Rename(ctx context.Context, who Actor, oldParent Ino, oldName string, newParent Ino, newName string, flags uint) (*Inode, error) {
	return nil, errors.ErrUnsupported
}
func (c *Catalog) ReadDir(ctx context.Context, dir Ino, after uint64, max int) ([]DirEntry, error) {
	return nil, errors.ErrUnsupported
}
func (c *Catalog) SetAttr(ctx context.Context, who Actor, ino Ino, ch Change) (Inode, error) {
	return Inode{}, errors.ErrUnsupported
}

// SetAttrDeferred sets times (Atime, Mtime, Ctime of ch) in memory.
func (c *Catalog) SetAttrDeferred(ctx context.Context, ino Ino, ch Change) error {
	return errors.ErrUnsupported
}
func (c *Catalog) GetXattr(ctx context.Context, ino Ino, name string) ([]byte, error) {
	return nil, errors.ErrUnsupported
}
func (c *Catalog) ListXattr(ctx context.Context, ino Ino) ([]string, error) {
	return nil, errors.ErrUnsupported
}
func (c *Catalog) SetXattr(ctx context.Context, who Actor, ino Ino, name string, value []byte, flags uint) error {
	return errors.ErrUnsupported
}
func (c *Catalog) RemoveXattr(ctx context.Context, who Actor, ino Ino, name string) error {
	return errors.ErrUnsupported
}
func (c *Catalog) Level(ctx context.Context, ino Ino) (string, error) {
	return "", errors.ErrUnsupported
}
func (c *Catalog) Path(ctx context.Context, ino Ino) (string, error) {
	return "", errors.ErrUnsupported
}

// Extents lists the content, ordered, not overlapping.
func (c *Catalog) Extents(ctx context.Context, ino Ino, at Seq) ([]Extent, error) {
	return nil, errors.ErrUnsupported
}

// Commit writes one journal record.
func (c *Catalog) Commit(ctx context.Context, who Actor, cm Commit) (Inode, error) {
	return Inode{}, errors.ErrUnsupported
}
func (c *Catalog) HasBlob(ctx context.Context, h blobstore.Hash) (blobstore.Ref, bool, error) {
	return blobstore.Ref{}, false, errors.ErrUnsupported
}
func (c *Catalog) PendingBody(h blobstore.Hash) ([]byte, bool) { return nil, false }

// JournalBody reads the body of a small blob back from the journal; ErrNotExist when no record carries it.
func (c *Catalog) JournalBody(ctx context.Context, h blobstore.Hash) ([]byte, error) {
	return nil, errors.ErrUnsupported
}
func (c *Catalog) Sync(ctx context.Context) error { return errors.ErrUnsupported }

// Flush applies everything so far to catalog.db.
func (c *Catalog) Flush(ctx context.Context) error { return errors.ErrUnsupported }
func (c *Catalog) Versions(ctx context.Context, ino Ino, newestFirst bool, fn func(Version) error) error {
	return errors.ErrUnsupported
}

// Version returns one version by its number.
func (c *Catalog) Version(ctx context.Context, ino Ino, num uint64) (Version, error) {
	return Version{}, errors.ErrUnsupported
}
func (c *Catalog) NameHistory(ctx context.Context, parent Ino, name string) ([]NameSpan, error) {
	return nil, errors.ErrUnsupported
}

// SeqAt is the last record with a time at or before t; 0 when there is none.
func (c *Catalog) SeqAt(ctx context.Context, t time.Time) (Seq, error) {
	return 0, errors.ErrUnsupported
}

// TimeOf is the time of a record.
func (c *Catalog) TimeOf(ctx context.Context, s Seq) (time.Time, error) {
	return time.Time{}, errors.ErrUnsupported
}
func (c *Catalog) LookupAt(ctx context.Context, parent Ino, name string, at Seq) (Inode, error) {
	return Inode{}, errors.ErrUnsupported
}
func (c *Catalog) GetAt(ctx context.Context, ino Ino, at Seq) (Inode, error) {
	return Inode{}, errors.ErrUnsupported
}
func (c *Catalog) ReadDirAt(ctx context.Context, dir Ino, after uint64, max int, at Seq) ([]DirEntry, error) {
	return nil, errors.ErrUnsupported
}
func (c *Catalog) GetXattrAt(ctx context.Context, ino Ino, name string, at Seq) ([]byte, error) {
	return nil, errors.ErrUnsupported
}
func (c *Catalog) ListXattrAt(ctx context.Context, ino Ino, at Seq) ([]string, error) {
	return nil, errors.ErrUnsupported
}

// Records calls fn with each record from number from on.
func (c *Catalog) Records(ctx context.Context, from Seq, fn func(Record) error) error {
	return errors.ErrUnsupported
}
func (c *Catalog) Stats(ctx context.Context) (Stats, error) { return Stats{}, errors.ErrUnsupported }
