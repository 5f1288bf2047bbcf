package blobstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"holdfast/internal/durable"
)

const (
	blobsDir    = "blobs"
	tmpDir      = ".tmp" // in blobs/: files that have no name yet; emptied by openFiles
	extZstd     = ".zst"
	extSidecar  = ".json"
	maxOpen     = 64       // descriptors kept open
	layoutBytes = 32 << 20 // parsed sidecars kept in memory
)

// files is the place where a blob is a file beside its sidecar: blobs/ab/<sha256> (raw) or <sha256>.zst, and <sha256>.json. A third file, <sha256>.par,
// may hold the parity of the content as it is stored; one that belongs to other stored bytes says so itself, and is of no use.
//
// Order of a change: content, then the sidecar that describes it, then the removal of what both replace; each by one rename
// or unlink. Raw content is looked for before compressed content. So a reader finds, at every moment and after every crash,
// content that is whole, and a sidecar that is either right or rebuilt from it.
//
// Directories are opened once, not following symbolic links, and every file is reached from there: nothing outside is touched.
type files struct {
	opt     Options
	teller  *teller
	codec   *codec
	blocks  *lru[blockKey, []byte]
	layouts *lru[Hash, *layout]
	open    *lru[fileKey, *openFile]
	root    int // descriptor of blobs/
	tmp     int // descriptor of blobs/.tmp
	stripes [256]stripe
	tmpNum  atomic.Uint64
	rebuild chan struct{} // holds a token while a sidecar is rebuilt, which reads the whole blob: one at a time
	turns   chan struct{} // holds a token while a parity is made or used
	dirty   dirtySet
	removed removedSet
	worker  compressor
	// fsync and syncfs are the system calls; tests watch them.
	fsync, syncfs func(fd int) error
}

// stripe is one directory, blobs/ab: the unit of locking.
type stripe struct {
	mu sync.Mutex // held by every change to the directory
	// gen grows before any change that takes away or replaces content, so that readers do not cache what was.
	gen atomic.Uint64

	counted bool  // stats is right (else it is counted when asked for); under mu
	stats   Stats // under mu

	dirMu   sync.Mutex
	dir     int // descriptor of the directory, when opened
	opened  bool
	retired []int // descriptors of removed directories, which readers may still use
}

type fileKey struct {
	hash Hash
	enc  string
}

// fileName is the name of the content of h in its directory.
func fileName(h Hash, enc string) string {
	if enc == encZstd {
		return h.String() + extZstd
	}
	return h.String()
}

func fanOut(first byte) string { return fmt.Sprintf("%02x", first) }

// path is where the content of h is, for messages.
func (s *files) path(h Hash, enc string) string {
	return s.opt.storePath(blobsDir, fanOut(h[0]), fileName(h, enc))
}

func openFiles(opt Options, c *codec, blocks *lru[blockKey, []byte], tell *teller) (*files, error) {
	s := &files{
		opt: opt, teller: tell, codec: c, blocks: blocks, root: -1, tmp: -1, rebuild: make(chan struct{}, 1), turns: make(chan struct{}, 1),
		layouts: newLRU[Hash, *layout](layoutBytes), open: newLRU[fileKey, *openFile](maxOpen), fsync: unix.Fsync, syncfs: unix.Syncfs,
	}
	s.open.onGet = func(f *openFile) { f.refs.Add(1) }
	s.open.onDrop = (*openFile).release
	s.dirty.files = make(map[Hash]struct{})
	dir := opt.storePath(blobsDir)
	if !opt.ReadOnly {
		if err := durable.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	var err error
	if s.root, err = openDir(unix.AT_FDCWD, dir); err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	if !opt.ReadOnly {
		if err := s.prepare(); err != nil {
			s.close()
			return nil, err
		}
	}
	s.worker.start(s)
	return s, nil
}

// prepare makes the directories and removes what a crash left in blobs/.tmp.
func (s *files) prepare() error {
	made := false
	mkdir := func(name string) error {
		switch err := unix.Mkdirat(s.root, name, 0o700); err {
		case nil:
			made = true
		case unix.EEXIST:
		default:
			return &fs.PathError{Op: "mkdir", Path: s.opt.storePath(blobsDir, name), Err: err}
		}
		return nil
	}
	for i := range 256 {
		if err := mkdir(fanOut(byte(i))); err != nil {
			return err
		}
	}
	if err := mkdir(tmpDir); err != nil {
		return err
	}
	if made {
		if err := s.fsync(s.root); err != nil {
			return &fs.PathError{Op: "sync", Path: s.opt.storePath(blobsDir), Err: err}
		}
	}
	var err error
	if s.tmp, err = openDir(s.root, tmpDir); err != nil {
		return &fs.PathError{Op: "open", Path: s.opt.storePath(blobsDir, tmpDir), Err: err}
	}
	left, err := listDir(s.root, tmpDir)
	if err != nil {
		return &fs.PathError{Op: "read", Path: s.opt.storePath(blobsDir, tmpDir), Err: err}
	}
	for _, name := range left {
		if err := unix.Unlinkat(s.tmp, name, 0); err != nil {
			s.opt.Log.Warn("cannot remove a leftover; remove it by hand", "path", s.opt.storePath(blobsDir, tmpDir, name), "err", err)
		}
	}
	return nil
}

func openDir(at int, name string) (int, error) {
	return retryEINTR(func() (int, error) {
		return unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
}

func listDir(at int, name string) ([]string, error) {
	fd, err := openDir(at, name)
	if err != nil {
		return nil, err
	}
	d := os.NewFile(uintptr(fd), name)
	defer d.Close()
	return d.Readdirnames(-1)
}

func retryEINTR(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if err != unix.EINTR {
			return n, err
		}
	}
}

// dir returns the descriptor of the directory of blobs whose name begins with the byte first.
func (s *files) dir(first byte) (int, error) {
	st := &s.stripes[first]
	st.dirMu.Lock()
	defer st.dirMu.Unlock()
	if st.opened {
		return st.dir, nil
	}
	fd, err := openDir(s.root, fanOut(first))
	if err != nil {
		return -1, err
	}
	st.dir, st.opened = fd, true
	return fd, nil
}

// dirForChange is dir for a caller that is about to add names: it makes the directory anew when somebody removed it.
func (s *files) dirForChange(first byte) (int, error) {
	fd, err := s.dir(first)
	if err == nil {
		var fi unix.Stat_t
		if err = unix.Fstat(fd, &fi); err == nil && fi.Nlink > 0 {
			return fd, nil
		}
		st := &s.stripes[first]
		st.dirMu.Lock()
		st.retired, st.opened = append(st.retired, fd), false
		st.dirMu.Unlock()
		err = unix.ENOENT
	}
	if err == unix.ENOENT {
		s.opt.Log.Warn("a directory of blobs was removed, and is made anew; what was in it is damage where it is met", "path", s.opt.storePath(blobsDir, fanOut(first)))
		if err = unix.Mkdirat(s.root, fanOut(first), 0o700); err == nil || err == unix.EEXIST {
			if err = s.fsync(s.root); err == nil {
				fd, err = s.dir(first)
			}
		}
	}
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: s.opt.storePath(blobsDir, fanOut(first)), Err: err}
	}
	return fd, nil
}

// openFile is an open content file. It is closed when the last holder releases it.
type openFile struct {
	fd    int
	size  int64
	mtime unix.Timespec
	refs  atomic.Int32
}

func (f *openFile) release() {
	if f.refs.Add(-1) == 0 {
		unix.Close(f.fd)
	}
}

// readAt reads len(p) bytes, or fewer at the file's end.
func (f *openFile) readAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := retryEINTR(func() (int, error) { return unix.Pread(f.fd, p[done:], off+int64(done)) })
		if err != nil {
			return done, err
		}
		if n == 0 {
			break
		}
		done += n
	}
	return done, nil
}

// openName opens a regular file of blob h, never through a symbolic link. What is not a regular file is damage.
func (s *files) openName(h Hash, name string) (*openFile, error) {
	dir, err := s.dir(h[0])
	if err == unix.ENOTDIR || err == unix.ELOOP {
		return nil, &DamageError{h, "directory", s.opt.storePath(blobsDir, fanOut(h[0])) + " is not a directory"}
	}
	fd := -1
	if err == nil {
		fd, err = retryEINTR(func() (int, error) {
			return unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		})
	}
	path := func() string { return s.opt.storePath(blobsDir, fanOut(h[0]), name) }
	switch err {
	case nil:
	case unix.ENOENT:
		return nil, fmt.Errorf("blob %s: %w", h, ErrNotFound)
	case unix.ELOOP, unix.ENXIO, unix.ENODEV:
		return nil, &DamageError{h, "file", path() + " is not a regular file"}
	default:
		return nil, &fs.PathError{Op: "open", Path: path(), Err: err}
	}
	var fi unix.Stat_t
	if err := unix.Fstat(fd, &fi); err != nil {
		unix.Close(fd)
		return nil, &fs.PathError{Op: "stat", Path: path(), Err: err}
	}
	if fi.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		return nil, &DamageError{h, "file", path() + " is not a regular file"}
	}
	f := &openFile{fd: fd, size: fi.Size, mtime: fi.Mtim}
	f.refs.Store(1)
	return f, nil
}

// openContent opens the content of h; the caller releases it.
func (s *files) openContent(h Hash, enc string) (*openFile, error) {
	return s.openName(h, fileName(h, enc))
}

// openCached is openContent through the cache of open files.
func (s *files) openCached(h Hash, enc string) (*openFile, error) {
	k := fileKey{h, enc}
	if f, ok := s.open.get(k); ok {
		return f, nil
	}
	current := s.current(h)
	f, err := s.openContent(h, enc)
	if err != nil {
		return nil, err
	}
	f.refs.Add(1)
	if !s.open.put(k, f, 1, current) {
		f.refs.Add(-1)
	}
	return f, nil
}

// current returns a check whether the blob's content may have been taken away or replaced since.
func (s *files) current(h Hash) func() bool {
	gen := s.stripes[h[0]].gen.Load()
	return func() bool { return s.stripes[h[0]].gen.Load() == gen }
}

// forget drops what is cached of h. With changed set, nothing that a reader is just learning of h gets cached either.
func (s *files) forget(h Hash, changed bool) {
	if changed {
		s.stripes[h[0]].gen.Add(1)
	}
	s.layouts.remove(h)
	s.open.remove(fileKey{h, encRaw})
	s.open.remove(fileKey{h, encZstd})
	s.blocks.remove(blockKey{h, 0}) // of a small blob; blocks of large ones are reached through their layout only
}

// loadSidecar reads and validates the sidecar of h, whose blob has at most that many blocks. No sidecar, or one that cannot
// be used, is an error that says so; it is the caller who finds out whether there is a blob.
func (s *files) loadSidecar(h Hash, blocks int64) (Sidecar, error) {
	f, err := s.openName(h, h.String()+extSidecar)
	if err != nil {
		return Sidecar{}, err
	}
	defer f.release()
	if f.size > maxSidecar(blocks) {
		return Sidecar{}, &DamageError{h, "sidecar", fmt.Sprintf("it has %d bytes", f.size)}
	}
	b := make([]byte, f.size)
	n, err := f.readAt(b, 0)
	if err != nil {
		return Sidecar{}, fmt.Errorf("read sidecar of blob %s: %w", h, err)
	}
	sc, err := parseSidecar(b[:n], h)
	if err != nil {
		return Sidecar{}, &DamageError{h, "sidecar", err.Error()}
	}
	return sc, nil
}

// names lists the directory. Files that are no blobs are left alone and logged.
func (s *files) names(ctx context.Context, first byte, after Hash) ([]Hash, error) {
	entries, err := listDir(s.root, fanOut(first))
	if err != nil {
		if err == unix.ENOENT {
			return nil, nil
		}
		return nil, &fs.PathError{Op: "list", Path: s.opt.storePath(blobsDir, fanOut(first)), Err: err}
	}
	hashes := make([]Hash, 0, len(entries)/2)
	for _, name := range entries {
		base := strings.TrimSuffix(name, extZstd)
		h, err := ParseHash(strings.TrimSuffix(strings.TrimSuffix(base, extSidecar), extParity))
		if err != nil || h[0] != first {
			s.opt.Log.Warn("a file that is not a blob; move it out of the store", "path", s.opt.storePath(blobsDir, fanOut(first), name))
			continue
		}
		if filepath.Ext(base) == "" && string(after[:]) < string(h[:]) {
			hashes = append(hashes, h)
		}
	}
	return sortHashes(hashes), nil
}

// measure says what h takes, zero Blobs when it is not there. The stripe is locked.
func (s *files) measure(dir int, h Hash) Stats {
	var fi unix.Stat_t
	if unix.Fstatat(dir, fileName(h, encRaw), &fi, unix.AT_SYMLINK_NOFOLLOW) == nil {
		return Stats{1, fi.Size, fi.Size}
	}
	if unix.Fstatat(dir, fileName(h, encZstd), &fi, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return Stats{}
	}
	plain := fi.Size
	if sc, err := s.loadSidecar(h, 1+fi.Size/8); err == nil {
		plain = sc.Size
	}
	return Stats{1, plain, fi.Size}
}

func (st *stripe) count(delta Stats, sign int64) {
	st.stats.Blobs += sign * delta.Blobs
	st.stats.PlainBytes += sign * delta.PlainBytes
	st.stats.StoredBytes += sign * delta.StoredBytes
}

// stats counts each directory when it is first asked for; from then on changes keep it right.
func (s *files) stats(ctx context.Context) (Stats, error) {
	var all stripe
	for i := range s.stripes {
		if err := ctx.Err(); err != nil {
			return Stats{}, err
		}
		st := &s.stripes[i]
		st.mu.Lock()
		err := s.countStripe(ctx, byte(i))
		all.count(st.stats, 1)
		st.mu.Unlock()
		if err != nil {
			return Stats{}, err
		}
	}
	return all.stats, nil
}

func (s *files) countStripe(ctx context.Context, first byte) error {
	st := &s.stripes[first]
	if st.counted {
		return nil
	}
	st.stats = Stats{}
	names, err := s.names(ctx, first, Hash{})
	if err != nil || len(names) == 0 {
		st.counted = err == nil
		return err
	}
	dir, err := s.dir(first)
	if err != nil {
		return &fs.PathError{Op: "open", Path: s.opt.storePath(blobsDir, fanOut(first)), Err: err}
	}
	for _, h := range names {
		st.count(s.measure(dir, h), 1)
	}
	st.counted = true
	return nil
}

func (s *files) close() error {
	s.worker.shutdown()
	s.open.clear()
	var errs []error
	shut := func(fd int) {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	for i := range s.stripes {
		st := &s.stripes[i]
		for _, fd := range st.retired {
			shut(fd)
		}
		if st.opened {
			shut(st.dir)
		}
	}
	shut(s.tmp)
	shut(s.root)
	return errors.Join(errs...)
}
