package blobstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A file of up to a page takes a page, compressed or not.
const minCompressFile = 4097

// tmpFile is a file in blobs/.tmp on its way to a name.
type tmpFile struct {
	s    *files
	name string
	fd   int
}

func (s *files) newTmp() (*tmpFile, error) {
	t := &tmpFile{s: s, name: strconv.FormatUint(s.tmpNum.Add(1), 36)}
	fd, err := retryEINTR(func() (int, error) {
		return unix.Openat(s.tmp, t.name, unix.O_RDWR|unix.O_CREAT|unix.O_TRUNC|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	})
	if err != nil {
		return nil, &fs.PathError{Op: "create", Path: s.opt.storePath(blobsDir, tmpDir, t.name), Err: err}
	}
	t.fd = fd
	return t, nil
}

// Write appends all of p.
func (t *tmpFile) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n, err := retryEINTR(func() (int, error) { return unix.Write(t.fd, p[done:]) })
		if err != nil {
			return done, &fs.PathError{Op: "write", Path: t.s.opt.storePath(blobsDir, tmpDir, t.name), Err: err}
		}
		done += n
	}
	return done, nil
}

func (t *tmpFile) sync() error {
	if err := t.s.fsync(t.fd); err != nil {
		return &syncError{t.s.opt.storePath(blobsDir, tmpDir, t.name), err}
	}
	return nil
}

// drop closes t and removes it, unless commit has moved it.
func (t *tmpFile) drop() {
	unix.Close(t.fd)
	if t.name != "" {
		if err := unix.Unlinkat(t.s.tmp, t.name, 0); err != nil {
			t.s.opt.Log.Warn("a leftover stays until the store is opened again", "path", t.s.opt.storePath(blobsDir, tmpDir, t.name), "err", err)
		}
	}
}

// commit gives t its name in dir, replacing what is there.
func (t *tmpFile) commit(dir int, h Hash, name string) error {
	if err := t.s.rename(t.s.tmp, t.name, dir, h, name); err != nil {
		return err
	}
	t.name = ""
	return nil
}

// rename replaces name in the directory of h. A directory that is in the way is moved aside: it may be somebody's.
func (s *files) rename(oldDir int, oldName string, dir int, h Hash, name string) error {
	err := unix.Renameat(oldDir, oldName, dir, name)
	if err == unix.EISDIR {
		aside := name + ".moved-" + strconv.FormatInt(time.Now().UnixNano(), 36)
		if err = unix.Renameat(dir, name, dir, aside); err == nil {
			s.opt.Log.Warn("a directory was in the place of a blob and is moved aside", "path", s.opt.storePath(blobsDir, fanOut(h[0]), aside))
			err = unix.Renameat(oldDir, oldName, dir, name)
		}
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: oldName, New: s.opt.storePath(blobsDir, fanOut(h[0]), name), Err: err}
	}
	return nil
}

// writeSidecar replaces the sidecar of h. With durable set its content, not its name, is on stable storage on return.
func (s *files) writeSidecar(dir int, h Hash, sc Sidecar, durable bool) error {
	b, err := sc.marshal()
	if err != nil {
		return err
	}
	t, err := s.newTmp()
	if err != nil {
		return err
	}
	defer t.drop()
	if _, err := t.Write(b); err != nil {
		return err
	}
	if durable {
		if err := t.sync(); err != nil {
			return err
		}
	}
	return t.commit(dir, h, h.String()+extSidecar)
}

func (s *files) unlink(dir int, h Hash, name string) error {
	if err := unix.Unlinkat(dir, name, 0); err != nil && err != unix.ENOENT {
		return &fs.PathError{Op: "remove", Path: s.opt.storePath(blobsDir, fanOut(h[0]), name), Err: err}
	}
	return nil
}

func (s *files) syncDir(dir int, first byte) error {
	if err := s.fsync(dir); err != nil {
		return &syncError{s.opt.storePath(blobsDir, fanOut(first)), err}
	}
	return nil
}

func (s *files) put(ctx context.Context, items []Item) error {
	for i := range items {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.putOne(ctx, &items[i]); err != nil {
			return err
		}
	}
	return nil
}

func (s *files) putOne(ctx context.Context, it *Item) error {
	h := it.Ref.Hash
	st := &s.stripes[h[0]]
	st.mu.Lock()
	defer st.mu.Unlock()
	dir, err := s.dirForChange(h[0])
	if err != nil {
		return err
	}
	sum := Summed{Ref: Ref{Hash: h, Size: it.Ref.Size}}
	have, err := s.existing(ctx, sum)
	if err == nil {
		return s.keep(ctx, dir, sum, it.Meta, have, false)
	}
	damage, err := s.replacing(h, err)
	if err != nil {
		return err
	}
	err = s.storeItem(ctx, dir, it, damage)
	replaced(ctx, it.Ref, damage, err)
	return err
}

// storeItem stores an item in the place of what is damaged, if anything is. The stripe is locked.
func (s *files) storeItem(ctx context.Context, dir int, it *Item, damage error) error {
	h := it.Ref.Hash
	t, err := s.newTmp()
	if err != nil {
		return err
	}
	defer t.drop()
	sc := newSidecar(Summed{Ref: Ref{Hash: h, Size: it.Ref.Size}}, it.Meta)
	body := it.Data
	if len(body) >= minCompressFile {
		if frame, ok := s.codec.encode(nil, body); ok {
			body, sc = frame, sc.encoded([]uint32{uint32(len(frame))})
		}
	}
	if _, err := t.Write(body); err != nil {
		return err
	}
	return s.install(ctx, dir, h, sc, damage, false, func() error { return t.commit(dir, h, fileName(h, sc.Encoding)) })
}

// intact is content that was found to be so.
type intact struct {
	enc    string
	frames []uint32
	worse  error // what is wrong with content in the other encoding, when that was looked at
}

// existing looks for intact content of that blob: ErrNotFound or a *DamageError when there is none. The stripe is locked.
func (s *files) existing(ctx context.Context, sum Summed) (have intact, err error) {
	err = fmt.Errorf("blob %s: %w", sum.Ref.Hash, ErrNotFound)
	for _, enc := range encodings() {
		f, e := s.openContent(sum.Ref.Hash, enc)
		if e == nil {
			_, have.frames, e = s.scan(ctx, sum.Ref, f, enc, sum.Blocks)
			f.release()
			if e == nil {
				have.enc = enc
				return have, nil
			}
		}
		switch {
		case errors.Is(e, ErrNotFound):
		case errors.Is(e, ErrDamaged):
			err, have.worse = e, e
		default:
			return intact{}, e
		}
	}
	return intact{}, err
}

// replacing sorts out why existing found nothing: damage is logged and returned to be replaced, another error is passed on.
func (s *files) replacing(h Hash, err error) (damage, other error) {
	if errors.Is(err, ErrDamaged) {
		s.opt.Log.Warn("a stored blob is damaged and is replaced by intact content", "blob", h.String(), "err", err)
		return err, nil
	}
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	return nil, err
}

// keep leaves intact content alone and mends or raises its sidecar where needed.
func (s *files) keep(ctx context.Context, dir int, sum Summed, meta Meta, have intact, durable bool) error {
	h := sum.Ref.Hash
	sc, why := s.loadSidecar(h, blockCount(sum.Ref.Size))
	if why == nil && !(sc.Encoding == have.enc && sc.Size == sum.Ref.Size && bytes.Equal(sc.Blocks, sum.Blocks)) {
		why = &DamageError{h, "sidecar", "it does not describe the content"}
	}
	s.dirty.add(h) // it may be there since before the last Sync, or not
	if why == nil && have.worse == nil {
		if levelRank(sc.IntegrityLevel) >= levelRank(meta.Level) {
			return nil
		}
		sc.IntegrityLevel = levelName(levelRank(meta.Level))
		return s.writeSidecar(dir, h, sc, durable)
	}
	if why == nil {
		sc.IntegrityLevel = levelName(max(levelRank(sc.IntegrityLevel), levelRank(meta.Level)))
	} else {
		sc = newSidecar(sum, meta)
		if have.enc == encZstd {
			sc = sc.encoded(have.frames)
		}
	}
	s.forget(h, true)
	m := Mending{Hash: h, Part: PartSidecar, Cause: why, Source: fromContent}
	m.Err = s.writeSidecar(dir, h, sc, durable)
	if have.worse != nil {
		m.Part, m.Cause, m.Source = PartContent, have.worse, fromOther
		s.stripes[h[0]].counted = false
		if m.Err == nil {
			m.Err = s.removeName(dir, h, fileName(h, otherEncoding(have.enc)))
		}
	}
	mended(ctx, m)
	return m.Err
}

// install makes content and sidecar those of h: move gives the content its name. damage, when not nil, is the content that is replaced.
func (s *files) install(ctx context.Context, dir int, h Hash, sc Sidecar, damage error, durable bool, move func() error) error {
	st := &s.stripes[h[0]]
	if damage != nil {
		st.counted = false
		s.forget(h, true)
	}
	if err := move(); err != nil {
		return err
	}
	if err := s.dropStaleParity(ctx, dir, h, &sc); err != nil {
		return err
	}
	if err := s.writeSidecar(dir, h, sc, durable); err != nil {
		st.counted = false
		return err
	}
	if damage != nil {
		other := encRaw
		if sc.Encoding == encRaw {
			other = encZstd
		}
		if err := s.removeName(dir, h, fileName(h, other)); err != nil {
			return err
		}
		s.forget(h, true)
	} else if st.counted {
		st.count(Stats{1, sc.Size, sc.StoredSize}, 1)
	}
	if sc.Size > BlockSize {
		lay := newLayout(&sc)
		s.layouts.put(h, lay, lay.cost(), func() bool { return true }) // the stripe is locked
	}
	if durable {
		return s.syncDir(dir, h[0])
	}
	s.dirty.add(h)
	return nil
}

// removeName removes a name of h, whatever it leads to.
func (s *files) removeName(dir int, h Hash, name string) error {
	err := s.unlink(dir, h, name)
	if errors.Is(err, unix.EISDIR) {
		return s.rename(dir, name, dir, h, name+".moved-"+strconv.FormatInt(time.Now().UnixNano(), 36))
	}
	return err
}

func (s *files) adopt(ctx context.Context, sum Summed, meta Meta, staged *os.File, path string, durable bool) error {
	h := sum.Ref.Hash
	st := &s.stripes[h[0]]
	st.mu.Lock()
	defer st.mu.Unlock()
	dir, err := s.dirForChange(h[0])
	if err != nil {
		return err
	}
	have, err := s.existing(ctx, sum)
	if err == nil {
		if err := s.keep(ctx, dir, sum, meta, have, durable); err != nil {
			return err
		}
		if durable {
			if err := s.syncOne(h); err != nil {
				return err
			}
			if err := s.syncDir(dir, h[0]); err != nil {
				return err
			}
		}
		return os.Remove(path)
	}
	damage, err := s.replacing(h, err)
	if err != nil {
		return err
	}
	err = s.adoptNew(ctx, dir, sum, meta, staged, path, damage, durable)
	replaced(ctx, sum.Ref, damage, err)
	return err
}

// adoptNew takes over a staged file, in the place of what is damaged, if anything is. The stripe is locked.
func (s *files) adoptNew(ctx context.Context, dir int, sum Summed, meta Meta, staged *os.File, path string, damage error, durable bool) error {
	h := sum.Ref.Hash
	compress := s.compressible(staged, sum.Ref.Size)
	if compress && sum.Ref.Size <= inlineCompress {
		done, err := s.adoptEncoded(ctx, dir, sum, meta, staged, damage, durable)
		if err != nil {
			return err
		}
		if done {
			return os.Remove(path)
		}
		compress = false
	}
	if durable {
		if err := s.fsync(int(staged.Fd())); err != nil {
			return &syncError{path, err}
		}
	}
	err := s.install(ctx, dir, h, newSidecar(sum, meta), damage, durable, func() error {
		return s.rename(unix.AT_FDCWD, path, dir, h, fileName(h, encRaw))
	})
	if err == nil && compress {
		s.worker.add(h)
	}
	return err
}

// adoptEncoded stores the staged content compressed; done is false when it does not shrink enough.
func (s *files) adoptEncoded(ctx context.Context, dir int, sum Summed, meta Meta, staged *os.File, damage error, durable bool) (done bool, err error) {
	t, err := s.newTmp()
	if err != nil {
		return false, err
	}
	defer t.drop()
	frames, err := s.encodeBlob(ctx, sum.Ref, sum.Blocks, staged, t)
	if err != nil || frames == nil {
		return false, err
	}
	if durable {
		if err := t.sync(); err != nil {
			return false, err
		}
	}
	h := sum.Ref.Hash
	err = s.install(ctx, dir, h, newSidecar(sum, meta).encoded(frames), damage, durable, func() error {
		return t.commit(dir, h, fileName(h, encZstd))
	})
	return err == nil, err
}

// maxDirty is the number of blobs that Sync syncs one by one; above it, it syncs the whole filesystem.
const maxDirty = 32

// dirtySet is what was stored since the last Sync.
type dirtySet struct {
	syncMu sync.Mutex // held during a Sync, so that a later one does not return before it
	failed error      // under syncMu; the kernel reports a lost write once, so no later Sync can be believed

	mu    sync.Mutex
	files map[Hash]struct{}
	dirs  [256]bool
	many  bool
}

func (d *dirtySet) add(h Hash) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dirs[h[0]] = true
	if len(d.files) >= maxDirty {
		d.many = true
		return
	}
	d.files[h] = struct{}{}
}

func (d *dirtySet) addDir(first byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dirs[first] = true
}

func (s *files) sync(ctx context.Context) error {
	d := &s.dirty
	d.syncMu.Lock()
	defer d.syncMu.Unlock()
	if d.failed != nil {
		return fmt.Errorf("an earlier sync of %s failed, so what was stored before it may be lost; reopen the store and check it: %w",
			s.opt.storePath(blobsDir), d.failed)
	}
	d.mu.Lock()
	written, dirs, many := d.files, d.dirs, d.many
	d.files, d.dirs, d.many = make(map[Hash]struct{}), [256]bool{}, false
	d.mu.Unlock()
	err := s.syncAll(written, dirs, many)
	if lost := (*syncError)(nil); errors.As(err, &lost) {
		d.failed = err
	} else if err != nil {
		d.mu.Lock()
		d.many = true // whatever was to be synced, the next Sync covers it
		d.mu.Unlock()
	}
	return err
}

// syncError is a sync that the kernel tried and failed.
type syncError struct {
	path string
	err  error
}

func (e *syncError) Error() string { return fmt.Sprintf("sync %s: %v", e.path, e.err) }
func (e *syncError) Unwrap() error { return e.err }

func (s *files) syncAll(written map[Hash]struct{}, dirs [256]bool, many bool) error {
	if many {
		if err := s.syncfs(s.root); err != nil {
			return &syncError{"the filesystem of " + s.opt.storePath(blobsDir), err}
		}
		return nil
	}
	for h := range written {
		if err := s.syncOne(h); err != nil {
			return err
		}
	}
	for i, dirty := range dirs {
		if !dirty {
			continue
		}
		dir, err := s.dir(byte(i))
		if err == nil {
			err = s.syncDir(dir, byte(i))
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}

// syncOne makes the files of h durable. A name that is gone was deleted, or replaced by something durable.
func (s *files) syncOne(h Hash) error {
	for _, name := range []string{fileName(h, encRaw), fileName(h, encZstd), h.String() + extSidecar} {
		f, err := s.openName(h, name)
		if err != nil {
			if lookElsewhere(err) {
				continue
			}
			return err
		}
		err = s.fsync(f.fd)
		f.release()
		if err != nil {
			return &syncError{s.opt.storePath(blobsDir, fanOut(h[0]), name), err}
		}
	}
	return nil
}
