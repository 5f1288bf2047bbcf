package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"

	"golang.org/x/sys/unix"

	"holdfast/blobstore"
	"holdfast/catalog"
)

// Guard looks after the blobs of a volume. Its methods may be called concurrently, and while files are locked: they call no method of a Handle.
type Guard interface {
	// Heal mends a blob that a read found damaged or missing, for the reason cause, so that the next read of it succeeds.
	Heal(ctx context.Context, ref blobstore.Ref, cause error) error
	// Stored says that a commit of a file of that level, which is above basic, names the blobs. It returns at once.
	Stored(level string, refs []blobstore.Ref)
	// Mended says what a blob store, with second that of the second copies, met and mended on its way, as of blobstore.Options.Mended. ctx is that of the call.
	Mended(ctx context.Context, m blobstore.Mending, second bool)
	// SecondCopy says that the place of the second copies fails, or, with nil, that it works again. It returns at once.
	SecondCopy(err error)
	// CatalogDamaged says that catalog.db was found damaged. It returns at once, and calls nothing of the catalog.
	CatalogDamaged(err error)
}

// guardian holds the Guard; an atomic.Pointer cannot hold an interface.
type guardian struct{ Guard }

// maxEarly bounds what is remembered of what was mended before there was a Guard.
const maxEarly = 4096

// early is what was mended before there was a Guard: while the volume was opened, the newest contents are handed to the blob store once more.
type early struct {
	mu     sync.Mutex
	list   []earlyMending
	missed int
	over   bool
}

type earlyMending struct {
	m      blobstore.Mending
	second bool
}

// take returns the list, which is not added to any more.
func (e *early) take() (list []earlyMending, missed int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	list, missed = e.list, e.missed
	e.list, e.missed, e.over = nil, 0, true
	return list, missed
}

// add reports whether it remembers m.
func (e *early) add(m blobstore.Mending, second bool) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.over:
		return false
	case len(e.list) >= maxEarly:
		e.missed++
	default:
		e.list = append(e.list, earlyMending{m, second})
	}
	return true
}

// SetGuard names who looks after the blobs. nil: nobody, and damage is an error. The first one is told, before SetGuard returns, of what was mended since Open began.
func (v *Volume) SetGuard(g Guard) {
	if g == nil {
		v.guard.Store(nil)
		return
	}
	v.guard.Store(&guardian{g})
	list, missed := v.early.take()
	for i := range list {
		g.Mended(context.Background(), list[i].m, list[i].second)
	}
	if missed > 0 {
		v.log.Warn("more was mended at the start than is recorded", "blobs", missed)
	}
}

// mended passes on what a blob store says.
func (v *Volume) mended(ctx context.Context, m blobstore.Mending, second bool) {
	for range 2 {
		if g := v.guard.Load(); g != nil {
			g.Mended(ctx, m, second)
			return
		}
		if v.early.add(m, second) {
			return
		}
	} // it came just between the two, or is gone: the log has it
}

// Catalog is the volume's catalog, for who checks and mends it. It is closed with the volume.
func (v *Volume) Catalog() *catalog.Catalog { return v.cat }

// Blobs is the volume's blob store, for who checks and mends it. It is closed with the volume.
func (v *Volume) Blobs() blobstore.Store { return v.blobs }

// Second is the place of the second copies. It is closed with the volume.
func (v *Volume) Second() *Second { return v.second }

// Logger is the volume's log.
func (v *Volume) Logger() *slog.Logger { return v.log }

// Activity counts the reads and commits so far, so that background work can see whether somebody is waiting.
func (v *Volume) Activity() uint64 { return v.activity.Load() }

func (v *Volume) catalogDamaged(err error) {
	if g := v.guard.Load(); g != nil {
		g.CatalogDamaged(err)
	}
}

func isDamage(err error) bool {
	return errors.Is(err, blobstore.ErrDamaged) || errors.Is(err, blobstore.ErrNotFound)
}

// readBlob fills p from the blob's offset off on. A blob that is damaged is healed first. One that cannot be, because the disk is full, or the volume
// read-only, is read from wherever else it is.
func (v *Volume) readBlob(ctx context.Context, ref blobstore.Ref, p []byte, off int64) error {
	v.activity.Add(1)
	if off < 0 || off > ref.Size || int64(len(p)) > ref.Size-off {
		return &blobstore.DamageError{Hash: ref.Hash, Part: "extent", Detail: "reaches over the end of the blob"}
	}
	err := v.ReadStored(ctx, ref, p, off)
	if err == nil || !isDamage(err) && !errors.Is(err, unix.EIO) { // a bad place on a disk reads as EIO, not as other bytes
		return err
	}
	if g := v.guard.Load(); g != nil {
		if healed := g.Heal(ctx, ref, err); healed == nil {
			if err = v.ReadStored(ctx, ref, p, off); err == nil {
				return nil
			}
		} else {
			err = fmt.Errorf("%w; %w", err, healed)
		}
	}
	if ctx.Err() == nil && v.readCopy(ctx, ref, p, off) == nil {
		return nil
	}
	return err
}

// ReadStored fills p with verified bytes from the blob's offset off on, as the blob store or the journal's newest records have them; nothing is healed.
// Errors as of blobstore.Getter.
func (v *Volume) ReadStored(ctx context.Context, ref blobstore.Ref, p []byte, off int64) error {
	// A body that is still on its way into the blobstore is read from memory. It may arrive between the two questions.
	for try := 0; ; try++ {
		if body, ok := v.cat.PendingBody(ref.Hash); ok && off >= 0 && off <= int64(len(body)) && len(p) <= len(body)-int(off) {
			copy(p, body[off:])
			return nil
		}
		n, err := v.blobs.ReadAt(ctx, ref, p, off)
		if errors.Is(err, blobstore.ErrNotFound) && try == 0 {
			continue
		}
		if err == nil && n < len(p) {
			err = &blobstore.DamageError{Hash: ref.Hash, Part: "size", Detail: "the blob is shorter than the catalog says"}
		}
		return err
	}
}

// readCopy is ReadStored from the second copy or the journal.
func (v *Volume) readCopy(ctx context.Context, ref blobstore.Ref, p []byte, off int64) error {
	err := v.second.ReadAt(ctx, ref, p, off)
	if err == nil || ref.Size > blobstore.MaxSmall {
		return err
	}
	body, err := v.cat.JournalBody(ctx, ref.Hash)
	if err != nil {
		return err
	}
	if int64(len(body)) != ref.Size {
		return &blobstore.DamageError{Hash: ref.Hash, Part: "size", Detail: "the journal has it with another size"}
	}
	copy(p, body[off:])
	return nil
}

// readerOf reads a blob from its start by calls of read; n bytes at a time at most.
type blobReader struct {
	ctx  context.Context
	ref  blobstore.Ref
	off  int64
	read func(ctx context.Context, ref blobstore.Ref, p []byte, off int64) error
}

func (r *blobReader) Read(p []byte) (int, error) {
	if r.off >= r.ref.Size {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), r.ref.Size-r.off)]
	if err := r.read(r.ctx, r.ref, p, r.off); err != nil {
		return 0, err
	}
	r.off += int64(len(p))
	return len(p), nil
}
