package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/blobstore"
	"holdfast/catalog"
	"holdfast/internal/durable"
)

// Store is what is backed up. *volume.Volume is one.
type Store interface {
	Newest(ctx context.Context) (catalog.Seq, error)
	SaveOpen(ctx context.Context) error
	Hold(at catalog.Seq)
	Release(at catalog.Seq)
	GetAt(ctx context.Context, ino catalog.Ino, at catalog.Seq) (catalog.Inode, error)
	ReadDirAt(ctx context.Context, dir catalog.Ino, after uint64, max int, at catalog.Seq) ([]catalog.DirEntry, error)
	GetXattrAt(ctx context.Context, ino catalog.Ino, name string, at catalog.Seq) ([]byte, error)
	ListXattrAt(ctx context.Context, ino catalog.Ino, at catalog.Seq) ([]string, error)
	Extents(ctx context.Context, ino catalog.Ino, at catalog.Seq) ([]catalog.Extent, error)
	ReadBlob(ctx context.Context, ref blobstore.Ref, p []byte, off int64) error
}

const (
	namesPage = 512
	maxDepth  = 1 << 14
	// batchItems and batchBytes bound the small blobs that are stored at once.
	batchItems = 256
	batchBytes = 4 << 20
	copyBytes  = 1 << 20
)

// CreateOptions say what to back up, and how hard.
type CreateOptions struct {
	Level string // files of this level or a higher one; "": all
	// Recheck: what is there from earlier backups is read, and copied again when it is damaged.
	Recheck bool
	Now     time.Time // default time.Now()
	// Pause is called between steps: it may wait, and its error ends the backup. default: none
	Pause func(context.Context) error
	// Copied is called with the blobs that were copied so far, and their bytes. default: nobody is told
	Copied func(blobs, bytes int64)
}

// Created says what a backup holds and what it cost.
type Created struct {
	Name    string      `json:"name"`
	Place   string      `json:"place"`
	Seq     catalog.Seq `json:"seq"`
	Entries int64       `json:"entries"`
	Files   int64       `json:"files"`
	Bytes   int64       `json:"bytes"` // of its files
	// Copied are the blobs that were not there from earlier backups.
	Copied      int64 `json:"copied"`
	CopiedBytes int64 `json:"copied_bytes"`
	// Blobs are all that were copied, for who keeps account of it; at most so many as fit the memory that the set of all names takes anyway.
	Blobs []blobstore.Hash `json:"-"`
}

// Create makes a backup of the state of now. What open files have staged is saved first. On return it is on stable storage; on error no backup was made, and
// what was copied for it is of use to the next one, or goes at the next Rotate. Only one Create or Rotate at a time. Damage in the store
// is an error: a backup without some of the content would not be one.
func (p *Place) Create(ctx context.Context, store Store, o CreateOptions) (Created, error) {
	if p.lock == nil {
		return Created{}, blobstore.ErrReadOnly
	}
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	if o.Pause == nil {
		o.Pause = func(ctx context.Context) error { return ctx.Err() }
	}
	if err := store.SaveOpen(ctx); err != nil {
		return Created{}, err
	}
	at, err := store.Newest(ctx)
	if err != nil {
		return Created{}, err
	}
	store.Hold(at)
	defer store.Release(at)
	w := &creator{p: p, store: store, o: o, at: at, have: make(map[blobstore.Hash]bool), linked: make(map[catalog.Ino]string)}
	return w.run(ctx)
}

// creator makes one backup.
type creator struct {
	p      *Place
	store  Store
	o      CreateOptions
	at     catalog.Seq
	have   map[blobstore.Hash]bool // blobs of the place: whether they were verified or written now
	linked map[catalog.Ino]string  // of files with several names: the first one
	items  []blobstore.Item        // small blobs that wait to be stored
	bytes  int
	out    *manifestWriter
	res    Created
}

func (w *creator) run(ctx context.Context) (Created, error) {
	err := w.p.blobs.List(ctx, blobstore.Hash{}, func(h blobstore.Hash) error {
		w.have[h] = false
		return nil
	})
	if err != nil {
		return Created{}, err
	}
	h, err := w.header()
	if err != nil {
		return Created{}, err
	}
	tmp, err := os.OpenFile(filepath.Join(w.p.dir, stagingDir, h.Name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return Created{}, err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	if w.out, err = newManifestWriter(tmp, h); err != nil {
		return Created{}, err
	}
	root, err := w.store.GetAt(ctx, catalog.Root, w.at)
	if err != nil {
		return Created{}, err
	}
	if err := w.tree(ctx, root, "/", catalog.LevelBasic, 0); err != nil {
		return Created{}, err
	}
	if err := errors.Join(w.flush(ctx), w.out.end()); err != nil {
		return Created{}, err
	}
	// The blobs are durable before the manifest that names them.
	if err := w.p.blobs.Sync(ctx); err != nil {
		return Created{}, err
	}
	if err := tmp.Close(); err != nil {
		return Created{}, err
	}
	if err := durable.Rename(tmp.Name(), w.p.manifestPath(h.Name)); err != nil {
		return Created{}, err
	}
	w.res.Name, w.res.Place, w.res.Seq = h.Name, w.p.dir, w.at
	w.res.Entries, w.res.Files, w.res.Bytes = w.out.total.Entries, w.out.total.Files, w.out.total.Bytes
	return w.res, nil
}

// header chooses a name that is later than all before.
func (w *creator) header() (Header, error) {
	all, err := w.p.List()
	if err != nil {
		return Header{}, err
	}
	now := w.o.Now.UTC().Truncate(time.Millisecond)
	if len(all) > 0 && !now.After(all[len(all)-1].Time) {
		now = all[len(all)-1].Time.Add(time.Millisecond)
	}
	return Header{Format: format, StoreID: w.p.id, Name: now.Format(nameLayout), Time: now, Seq: w.at, Level: w.o.Level}, nil
}

// rank orders the levels.
func rank(level string) int {
	switch level {
	case catalog.LevelCritical:
		return 2
	case catalog.LevelAdvanced:
		return 1
	}
	return 0
}

// tree writes what row is and all that is below it; level is what holds above.
func (w *creator) tree(ctx context.Context, row catalog.Inode, path, level string, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%s: %w: directories lie more than %d deep in each other", path, catalog.ErrDamaged, maxDepth)
	}
	if err := w.o.Pause(ctx); err != nil {
		return err
	}
	level, err := w.entry(ctx, row, path, level)
	if err != nil || row.Mode&unix.S_IFMT != unix.S_IFDIR {
		return err
	}
	for after := uint64(0); ; {
		list, err := w.store.ReadDirAt(ctx, row.Ino, after, namesPage, w.at)
		if err != nil || len(list) == 0 {
			return err
		}
		for i := range list {
			inner := path + "/" + list[i].Name
			if path == "/" {
				inner = path + list[i].Name
			}
			if err := w.tree(ctx, list[i].Inode, inner, level, depth+1); err != nil {
				return err
			}
		}
		after = list[len(list)-1].Cookie
	}
}

// entry writes one name and copies its content; it returns the level that holds there.
func (w *creator) entry(ctx context.Context, row catalog.Inode, path, level string) (string, error) {
	e := Entry{Path: Text(path), Mode: row.Mode, UID: row.UID, GID: row.GID, Rdev: row.Rdev, Size: row.Size,
		Atime: row.Atime, Mtime: row.Mtime, Btime: row.Btime, Target: Text(row.Target)}
	names, err := w.store.ListXattrAt(ctx, row.Ino, w.at)
	if err != nil {
		return level, fmt.Errorf("%s: %w", path, err)
	}
	for _, name := range names {
		value, err := w.store.GetXattrAt(ctx, row.Ino, name, w.at)
		if err != nil {
			return level, fmt.Errorf("%s: %w", path, err)
		}
		if name == catalog.LevelXattr {
			level = string(value)
		}
		e.Xattrs = append(e.Xattrs, Xattr{Name: Text(name), Value: value})
	}
	dir, file := row.Mode&unix.S_IFMT == unix.S_IFDIR, row.Mode&unix.S_IFMT == unix.S_IFREG
	if !dir && rank(level) < rank(w.o.Level) {
		return level, nil
	}
	if !dir && row.Nlink > 1 {
		if first, ok := w.linked[row.Ino]; ok {
			e.Link = Text(first)
			return level, w.out.add(e, nil)
		}
		w.linked[row.Ino] = path
	}
	var extents []catalog.Extent
	if file && row.Size > 0 {
		if extents, err = w.store.Extents(ctx, row.Ino, w.at); err != nil {
			return level, fmt.Errorf("%s: %w", path, err)
		}
		for i := range extents {
			if err := w.copy(ctx, extents[i].Blob, level); err != nil {
				return level, fmt.Errorf("%s: %w", path, err)
			}
		}
	}
	return level, w.out.add(e, extents)
}

// copy brings a blob into the place, unless it is there.
func (w *creator) copy(ctx context.Context, ref blobstore.Ref, level string) error {
	if checked, ok := w.have[ref.Hash]; ok {
		if checked || !w.o.Recheck {
			return nil
		}
		err := w.p.blobs.Verify(ctx, ref)
		if err == nil {
			w.have[ref.Hash] = true
			return w.o.Pause(ctx)
		}
		if !errors.Is(err, blobstore.ErrDamaged) && !errors.Is(err, blobstore.ErrNotFound) {
			return err
		}
	}
	meta := blobstore.Meta{Level: level, Time: w.o.Now}
	if ref.Size > blobstore.MaxSmall {
		if err := w.copyLarge(ctx, ref, meta); err != nil {
			return err
		}
	} else {
		data := make([]byte, ref.Size)
		if err := w.store.ReadBlob(ctx, ref, data, 0); err != nil {
			return err
		}
		w.items = append(w.items, blobstore.Item{Ref: ref, Meta: meta, Data: data})
		if w.bytes += len(data); len(w.items) >= batchItems || w.bytes >= batchBytes {
			if err := w.flush(ctx); err != nil {
				return err
			}
		}
	}
	w.have[ref.Hash] = true
	w.res.Copied++
	w.res.CopiedBytes += ref.Size
	w.res.Blobs = append(w.res.Blobs, ref.Hash)
	if w.o.Copied != nil {
		w.o.Copied(w.res.Copied, w.res.CopiedBytes)
	}
	return w.o.Pause(ctx)
}

func (w *creator) flush(ctx context.Context) error {
	if len(w.items) == 0 {
		return nil
	}
	err := w.p.blobs.PutBatch(ctx, w.items)
	w.items, w.bytes = w.items[:0], 0
	return err
}

func (w *creator) copyLarge(ctx context.Context, ref blobstore.Ref, meta blobstore.Meta) (err error) {
	f, err := os.OpenFile(filepath.Join(w.p.dir, stagingDir, "blob-"+strconv.FormatInt(w.res.Copied, 10)), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer func() { err = errors.Join(err, f.Close()) }()
	hasher := blobstore.NewHasher()
	out := io.MultiWriter(hasher, f)
	buf := make([]byte, copyBytes)
	for off := int64(0); off < ref.Size; off += copyBytes {
		part := buf[:min(copyBytes, ref.Size-off)]
		if err := w.store.ReadBlob(ctx, ref, part, off); err != nil {
			return err
		}
		if _, err := out.Write(part); err != nil {
			return err
		}
		if err := w.o.Pause(ctx); err != nil {
			return err
		}
	}
	sum := hasher.Sum()
	if sum.Ref.Hash != ref.Hash {
		return &blobstore.DamageError{Hash: ref.Hash, Part: "content", Detail: "what was read is not what its name says"}
	}
	return w.p.blobs.Adopt(ctx, sum, meta, f.Name(), false)
}

// Rotated says what Rotate took away.
type Rotated struct {
	Backups []string `json:"backups"`
	Blobs   int64    `json:"blobs"`
}

// Rotate removes all backups but the newest keep, at least one, and the blobs that only they had. Backups whose manifest is damaged do not count: they are no reason to remove an
// intact one. A damaged manifest among those that stay is an error, and no blob goes then. Not beside a Create.
func (p *Place) Rotate(ctx context.Context, keep int) (Rotated, error) {
	all, err := p.List()
	if err != nil {
		return Rotated{}, err
	}
	old := len(all)
	if len(all) <= max(1, keep) {
		return Rotated{}, nil
	}
	for intact := 0; old > 0 && intact < max(1, keep); old-- {
		_, err := p.each(ctx, all[old-1].Name, func(Entry) error { return nil })
		if ctx.Err() != nil {
			return Rotated{}, ctx.Err()
		}
		if err == nil {
			intact++
		}
	}
	names := make([]string, old)
	for i := range names {
		names[i] = all[i].Name
	}
	if len(names) == 0 {
		return Rotated{}, nil
	}
	return p.Remove(ctx, names...)
}

// Remove removes backups by name, and the blobs that only they had. ErrNotExist when there is no such one: nothing is removed then. See Rotate.
func (p *Place) Remove(ctx context.Context, names ...string) (Rotated, error) {
	if p.lock == nil {
		return Rotated{}, blobstore.ErrReadOnly
	}
	var res Rotated
	for _, name := range names {
		if _, err := parseName(name); err != nil {
			return res, fmt.Errorf("%w: %q; `holdfast backup list` shows those that there are", ErrNotExist, name)
		}
		if _, err := p.find(name); err != nil {
			return res, err
		}
	}
	for _, name := range names {
		if err := durable.RemoveSync(p.manifestPath(name)); err != nil {
			return res, err
		}
		res.Backups = append(res.Backups, name)
	}
	var err error
	res.Blobs, err = p.sweep(ctx)
	return res, err
}

// sweep deletes the blobs that no manifest names.
func (p *Place) sweep(ctx context.Context) (int64, error) {
	named, err := p.named(ctx)
	if err != nil {
		return 0, fmt.Errorf("%w; no blob was deleted", err)
	}
	var gone []blobstore.Hash
	err = p.blobs.List(ctx, blobstore.Hash{}, func(h blobstore.Hash) error {
		if _, ok := named[h]; !ok {
			gone = append(gone, h)
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	n := 0
	for part := range slices.Chunk(gone, blobstore.MaxDelete) {
		if err := p.blobs.DeleteBatch(ctx, part); err != nil {
			return int64(n), err
		}
		n += len(part)
	}
	return int64(n), nil
}

// named returns every blob that a manifest names.
func (p *Place) named(ctx context.Context) (map[blobstore.Hash]blobstore.Ref, error) {
	all, err := p.List()
	if err != nil {
		return nil, err
	}
	named := make(map[blobstore.Hash]blobstore.Ref)
	for _, b := range all {
		_, err := p.each(ctx, b.Name, func(e Entry) error {
			for _, x := range e.Extents {
				ref, err := x.Ref()
				if err != nil {
					return err
				}
				named[ref.Hash] = ref
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return named, nil
}

// Verified says what Verify found.
type Verified struct {
	Backups int   `json:"backups"`
	Blobs   int64 `json:"blobs"`
	Bytes   int64 `json:"bytes"`
	Damaged int64 `json:"damaged"`
}

// Verify reads all backups of the place with all their blobs, and calls fn with what is damaged: a manifest, or a blob. It goes on behind damage.
func (p *Place) Verify(ctx context.Context, fn func(what string, err error) error) (res Verified, err error) {
	all, err := p.List()
	if err != nil {
		return res, err
	}
	seen := make(map[blobstore.Hash]struct{})
	for _, b := range all {
		res.Backups++
		var stop error
		_, err := p.each(ctx, b.Name, func(e Entry) error {
			for _, x := range e.Extents {
				ref, err := x.Ref()
				if err != nil {
					return err
				}
				if _, ok := seen[ref.Hash]; ok {
					continue
				}
				seen[ref.Hash] = struct{}{}
				res.Blobs++
				res.Bytes += ref.Size
				err = p.blobs.Verify(ctx, ref)
				if err == nil {
					continue
				}
				if ctx.Err() != nil {
					return ctx.Err()
				}
				res.Damaged++
				if stop = fn("blob "+x.Blob+" of "+strconv.Quote(string(e.Path))+" in "+b.Name, err); stop != nil {
					return stop
				}
			}
			return nil
		})
		switch {
		case stop != nil:
			return res, stop
		case ctx.Err() != nil:
			return res, ctx.Err()
		case err != nil:
			res.Damaged++
			if err := fn("manifest of "+b.Name, err); err != nil {
				return res, err
			}
		}
	}
	return res, nil
}
