package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/blobstore"
	"holdfast/catalog"
	"holdfast/internal/durable"
	"holdfast/internal/patience"
)

// ErrSecond: the place of the second copies cannot be used. What is closed is safe in the store all the same.
var ErrSecond = errors.New("the place of the second copies cannot be used")

const (
	secondDir = "second"
	// copyOf is the file in the place of the second copies that holds the id of the store whose copies they are.
	copyOf = "copy-of"
	// secondRetry is how long the place is left alone after it failed.
	secondRetry = 2 * time.Second
	// A group of small copies is written and synced together.
	groupItems = 256
	groupBytes = 8 << 20
)

// Second is the place of the second copies: what files of the level critical hold is there once more. It is a blob store of the mode hybrid in a
// directory of its own, below the store or, better, on another disk, which is opened when it is first needed. When it fails the store is degraded: closes still succeed, and what
// is missing is made up for later.
type Second struct {
	dir, id  string
	inside   bool // below the store: made when it is not there
	readOnly bool
	log      *slog.Logger
	mended   func(context.Context, blobstore.Mending) // as blobstore.Options.Mended

	mu     sync.RWMutex // held for reading while store is in use
	store  blobstore.Store
	closed bool
	dev    uint64 // of the directory that was opened
	ino    uint64

	patience time.Duration // how long an operation may give no sign of life
	calls    patience.Place

	stateMu  sync.Mutex
	failed   error // why it cannot be used; nil: as far as known, it can
	retry    time.Time
	busy     map[blobstore.Hash]int           // copies that a commit in progress relies on
	removing map[blobstore.Hash]chan struct{} // copies that are being removed; closed when they are
	queue    []*groupItem
	leading  bool // somebody is writing groups
}

type groupItem struct {
	item blobstore.Item
	err  error
	done chan struct{}
}

func newSecond(dir string, s Settings, readOnly bool, log *slog.Logger) *Second {
	x := &Second{dir: s.SecondCopy, id: s.StoreID, readOnly: readOnly, log: log, patience: patience.Default,
		busy: make(map[blobstore.Hash]int), removing: make(map[blobstore.Hash]chan struct{})}
	if x.dir == "" {
		x.dir, x.inside = filepath.Join(dir, secondDir), true
	}
	return x
}

// makeSecond makes dir the place of the second copies of the store id. It must be missing or empty, or be that place already.
func makeSecond(dir, id string) error {
	switch have, err := os.ReadFile(filepath.Join(dir, copyOf)); {
	case err == nil && string(have) == id+"\n":
		return nil
	case err == nil:
		return fmt.Errorf("%s: %w: it holds the copies of another store", dir, catalog.ErrExist)
	case !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTDIR):
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if e.Name() != "lost+found" {
			return fmt.Errorf("%s: %w: choose a new directory for the second copies", dir, catalog.ErrNotEmpty)
		}
	}
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, copyOf), []byte(id+"\n"), 0o600)
}

// Dir is where the copies are.
func (x *Second) Dir() string { return x.dir }

// Err says why the place cannot be used; nil when, as far as known, it can. It wraps ErrSecond.
func (x *Second) Err() error {
	x.stateMu.Lock()
	defer x.stateMu.Unlock()
	return x.failed
}

// reach opens the place unless it is open, and sees that what is open is still what the path leads to: a disk may have been taken away.
func (x *Second) reach(ctx context.Context) error {
	var st unix.Stat_t
	err := unix.Stat(filepath.Join(x.dir, copyOf), &st)
	if err == nil {
		err = unix.Stat(x.dir, &st)
	}
	x.mu.RLock()
	same := err == nil && x.store != nil && x.dev == st.Dev && x.ino == st.Ino
	x.mu.RUnlock()
	if same {
		return nil
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed {
		return fmt.Errorf("%s: %w: it is closed", x.dir, ErrSecond)
	}
	if x.store != nil && err == nil && x.dev == st.Dev && x.ino == st.Ino {
		return nil
	}
	if x.store != nil {
		if err := x.store.Close(); err != nil {
			x.log.Warn("the place of the second copies was taken away", "dir", x.dir, "error", err)
		}
		x.store = nil
	}
	switch {
	case errors.Is(err, os.ErrNotExist) && x.inside && !x.readOnly:
		if err := makeSecond(x.dir, x.id); err != nil {
			return err
		}
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%s: %w: it is not there, or has no file %s; is its disk mounted?", x.dir, ErrSecond, copyOf)
	case err != nil:
		return err
	}
	have, err := os.ReadFile(filepath.Join(x.dir, copyOf))
	if err != nil {
		return err
	}
	if string(have) != x.id+"\n" {
		return fmt.Errorf("%s: %w: it holds the copies of another store", x.dir, ErrSecond)
	}
	if err := unix.Stat(x.dir, &st); err != nil {
		return err
	}
	if !x.readOnly {
		if err := emptyDir(filepath.Join(x.dir, stagingDir)); err != nil {
			return err
		}
	}
	store, err := blobstore.Open(ctx, blobstore.Options{Dir: x.dir, Mode: blobstore.ModeHybrid, ReadOnly: x.readOnly, CacheBytes: 1 << 20, Log: x.log, Mended: x.mended})
	if err != nil {
		return err
	}
	x.store, x.dev, x.ino = store, st.Dev, st.Ino
	return nil
}

// close closes the place. One that does not answer is left as it is, after a while: what it lacks is made up for later.
func (x *Second) close() error {
	patient := x.patience
	if x.calls.Stuck() > 0 {
		patient = min(patient, time.Second)
	}
	_, err := patience.Call(context.Background(), &x.calls, patient, 0, func(*patience.Pulse) (struct{}, error) {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.closed = true
		if x.store == nil {
			return struct{}{}, nil
		}
		err := x.store.Close()
		x.store = nil
		return struct{}{}, err
	})
	if errors.Is(err, patience.ErrSilent) {
		x.log.Warn("the place of the second copies does not answer, and was not closed; what it lacks is copied when it is back", "dir", x.dir)
		return nil
	}
	return err
}

// exists says whether there is a place to read from, so that a read does not make one.
func (x *Second) exists() bool {
	_, err := os.Stat(filepath.Join(x.dir, copyOf))
	return err == nil
}

// ReadAt fills p with verified bytes of the copy. ErrNotFound and ErrDamaged of blobstore, ErrSecond.
func (x *Second) ReadAt(ctx context.Context, ref blobstore.Ref, p []byte, off int64) error {
	got, err := ask(ctx, x, reading, 0, func(s blobstore.Store, _ *patience.Pulse) ([]byte, error) {
		buf := make([]byte, len(p)) // p is the caller's again when nobody waits for this any more
		n, err := s.ReadAt(ctx, ref, buf, off)
		if err == nil && n < len(p) {
			err = &blobstore.DamageError{Hash: ref.Hash, Part: "size", Detail: "the second copy is shorter than the catalog says"}
		}
		return buf, err
	})
	if err != nil {
		return err
	}
	copy(p, got)
	return nil
}

// Has says whether there is a copy, without reading its content.
func (x *Second) Has(ctx context.Context, ref blobstore.Ref) (bool, error) {
	ok, err := ask(ctx, x, reading, 0, func(s blobstore.Store, _ *patience.Pulse) (bool, error) {
		if err := x.removed(ctx, ref.Hash); err != nil {
			return false, err
		}
		sc, err := s.Sidecar(ctx, ref.Hash)
		return err == nil && sc.Size == ref.Size, err
	})
	if isDamage(err) {
		return false, nil
	}
	return ok && err == nil, err
}

// Verify reads the whole copy and checks it. ErrNotFound and ErrDamaged of blobstore, ErrSecond.
func (x *Second) Verify(ctx context.Context, ref blobstore.Ref) error {
	_, err := ask(ctx, x, reading, ref.Size, func(s blobstore.Store, _ *patience.Pulse) (struct{}, error) { return struct{}{}, s.Verify(ctx, ref) })
	return err
}

// Put makes the copy, or mends it, from the content that r yields, and reads it back. It is on stable storage on return.
// blobstore.ErrInvalid when r yields something else.
func (x *Second) Put(ctx context.Context, ref blobstore.Ref, r io.Reader) error {
	meta := blobstore.Meta{Level: catalog.LevelCritical, Time: time.Now()}
	if ref.Size <= blobstore.MaxSmall {
		body, err := io.ReadAll(io.LimitReader(r, ref.Size+1))
		if err != nil {
			return err
		}
		return x.putSmall(ctx, blobstore.Item{Ref: ref, Meta: meta, Data: body})
	}
	_, err := ask(ctx, x, writing, 0, func(s blobstore.Store, p *patience.Pulse) (struct{}, error) {
		return struct{}{}, x.putLarge(ctx, s, ref, meta, r, p)
	})
	return err
}

func (x *Second) putLarge(ctx context.Context, s blobstore.Store, ref blobstore.Ref, meta blobstore.Meta, r io.Reader, p *patience.Pulse) error {
	if err := x.removed(ctx, ref.Hash); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Join(x.dir, stagingDir), "copy-*")
	if err != nil {
		return err
	}
	defer f.Close()
	defer os.Remove(f.Name()) // gone when it was adopted
	// Read and written, never cloned: a clone of the extents of a file would share the bytes on the disk with it.
	h := blobstore.NewHasher()
	if _, err := io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(f, h)}, struct{ io.Reader }{io.LimitReader(p.Reader(r), ref.Size+1)}, make([]byte, copyBuffer)); err != nil {
		return err
	}
	sum := h.Sum()
	if sum.Ref != ref {
		return &blobstore.DamageError{Hash: ref.Hash, Part: "source", Detail: "what was to be copied is something else"}
	}
	p.Beat(ref.Size)
	if err := s.Adopt(ctx, sum, meta, f.Name(), true); err != nil {
		return err
	}
	p.Beat(ref.Size)
	return x.readBack(ctx, s, ref)
}

// readBack verifies a copy that was just written. Damage is of the place, not of what was copied.
func (x *Second) readBack(ctx context.Context, s blobstore.Store, ref blobstore.Ref) error {
	err := s.Verify(ctx, ref)
	if isDamage(err) {
		err = fmt.Errorf("%s: %w: %w", x.dir, ErrSecond, err)
	}
	return err
}

// putSmall writes a small copy, together with those of others.
func (x *Second) putSmall(ctx context.Context, item blobstore.Item) error {
	g := &groupItem{item: item, done: make(chan struct{})}
	x.stateMu.Lock()
	x.queue = append(x.queue, g)
	lead := !x.leading
	x.leading = true
	x.stateMu.Unlock()
	if lead {
		x.lead(context.WithoutCancel(ctx))
	}
	<-g.done
	return g.err
}

// lead writes groups until nobody waits.
func (x *Second) lead(ctx context.Context) {
	for {
		x.stateMu.Lock()
		n, bytes := 0, 0
		for n < len(x.queue) && n < groupItems && (n == 0 || bytes < groupBytes) {
			bytes += len(x.queue[n].item.Data)
			n++
		}
		if n == 0 {
			x.leading, x.queue = false, nil
			x.stateMu.Unlock()
			return
		}
		group := x.queue[:n:n]
		x.queue = x.queue[n:]
		x.stateMu.Unlock()
		items := make([]blobstore.Item, n)
		for i, g := range group {
			items[i] = g.item
		}
		outcome, err := ask(ctx, x, writing, int64(bytes), func(s blobstore.Store, _ *patience.Pulse) ([]error, error) { return x.putGroup(ctx, s, items) })
		for i, g := range group {
			if g.err = err; err == nil {
				g.err = outcome[i]
			}
			close(g.done)
		}
	}
}

// putGroup writes a group and reads it back; it returns what came of each.
func (x *Second) putGroup(ctx context.Context, s blobstore.Store, items []blobstore.Item) ([]error, error) {
	for i := range items {
		if err := x.removed(ctx, items[i].Ref.Hash); err != nil {
			return nil, err
		}
	}
	if err := s.PutBatch(ctx, items); err != nil {
		return nil, err
	}
	if err := s.Sync(ctx); err != nil {
		return nil, err
	}
	outcome := make([]error, len(items))
	for i := range items {
		outcome[i] = x.readBack(ctx, s, items[i].Ref)
	}
	return outcome, nil
}

// Remove takes a copy away, unless unused, asked while no commit can rely on it, says that something names the blob. It reports whether it is gone.
func (x *Second) Remove(ctx context.Context, h blobstore.Hash, unused func() (bool, error)) (gone bool, err error) {
	return ask(ctx, x, writing, 0, func(s blobstore.Store, _ *patience.Pulse) (bool, error) {
		done, err := x.beginRemove(h, unused)
		if done == nil || err != nil {
			return false, err
		}
		defer done()
		err = s.Delete(ctx, h)
		return err == nil, err
	})
}

// beginRemove says that a copy is being removed, until done is called; nil when it is in use. Commits that begin meanwhile wait for that, in removed.
func (x *Second) beginRemove(h blobstore.Hash, unused func() (bool, error)) (done func(), err error) {
	x.stateMu.Lock()
	defer x.stateMu.Unlock()
	if x.busy[h] > 0 || x.removing[h] != nil {
		return nil, nil
	}
	if ok, err := unused(); err != nil || !ok {
		return nil, err
	}
	ended := make(chan struct{})
	x.removing[h] = ended
	return func() {
		x.stateMu.Lock()
		defer x.stateMu.Unlock()
		delete(x.removing, h)
		close(ended)
	}, nil
}

// removed waits until a copy that is being removed is gone.
func (x *Second) removed(ctx context.Context, h blobstore.Hash) error {
	x.stateMu.Lock()
	ended := x.removing[h]
	x.stateMu.Unlock()
	if ended == nil {
		return nil
	}
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// With calls fn with the blob store that holds the copies, which fn must not keep. It takes as long as it takes, but no longer than ctx: fn may then still be at work, and
// what it writes to is not to be used.
func (x *Second) With(ctx context.Context, fn func(blobstore.Store) error) error {
	_, err := ask(ctx, x, walking, 0, func(s blobstore.Store, _ *patience.Pulse) (struct{}, error) { return struct{}{}, fn(s) })
	return err
}

// Hold keeps copies from being removed until release is called.
func (x *Second) Hold(refs []blobstore.Ref) (release func()) {
	x.stateMu.Lock()
	defer x.stateMu.Unlock()
	for i := range refs {
		x.busy[refs[i].Hash]++
	}
	return func() {
		x.stateMu.Lock()
		defer x.stateMu.Unlock()
		for i := range refs {
			if x.busy[refs[i].Hash]--; x.busy[refs[i].Hash] == 0 {
				delete(x.busy, refs[i].Hash)
			}
		}
	}
}

// copies begins to write the second copies of what a commit names, and returns a function that waits for them. The caller calls it once, after the commit.
// bodies are those of the commit.
func (v *Volume) copies(ctx context.Context, refs []blobstore.Ref, bodies []catalog.NewBlob) (wait func() error) {
	release := v.second.Hold(refs)
	fresh := make(map[blobstore.Hash][]byte, len(bodies))
	for i := range bodies {
		fresh[bodies[i].Ref.Hash] = bodies[i].Body
	}
	done := make(chan error, 1)
	go func() {
		var errs []error
		for i := range refs {
			if err := v.copyOne(ctx, refs[i], fresh); err != nil {
				errs = append(errs, err)
				break
			}
		}
		done <- errors.Join(errs...)
	}()
	return func() error {
		defer release()
		return <-done
	}
}

func (v *Volume) copyOne(ctx context.Context, ref blobstore.Ref, fresh map[blobstore.Hash][]byte) error {
	if body := fresh[ref.Hash]; body != nil {
		return v.second.putSmall(ctx, blobstore.Item{Ref: ref, Meta: blobstore.Meta{Level: catalog.LevelCritical, Time: time.Now()}, Data: body})
	}
	if _, isNew := fresh[ref.Hash]; !isNew {
		if ok, err := v.second.Has(ctx, ref); ok || err != nil {
			return err
		}
	}
	return v.CopySecond(ctx, ref)
}

// CopySecond makes the second copy of a blob, or mends it, from what the store has of it, which is verified. ErrDamaged, ErrSecond.
func (v *Volume) CopySecond(ctx context.Context, ref blobstore.Ref) error {
	read := func(ctx context.Context, ref blobstore.Ref, p []byte, off int64) error {
		err := v.ReadStored(ctx, ref, p, off)
		if errors.Is(err, unix.EIO) && !isDamage(err) { // a bad place of the store's disk, not of the second one
			err = fmt.Errorf("%w: %w", blobstore.ErrDamaged, err)
		}
		return err
	}
	return v.second.Put(ctx, ref, &blobReader{ctx: ctx, ref: ref, read: read})
}

// StoredReader returns the content of a blob, verified, from its start; Read returns the errors of ReadStored.
func (v *Volume) StoredReader(ctx context.Context, ref blobstore.Ref) io.Reader {
	return &blobReader{ctx: ctx, ref: ref, read: v.ReadStored}
}

// SecondReader returns the content of a second copy, verified, from its start.
func (v *Volume) SecondReader(ctx context.Context, ref blobstore.Ref) io.Reader {
	return &blobReader{ctx: ctx, ref: ref, read: v.second.ReadAt}
}

// refsOf lists the blobs that a commit names, each once.
func refsOf(cm *catalog.Commit) []blobstore.Ref {
	var refs []blobstore.Ref
	seen := make(map[blobstore.Hash]bool, len(cm.Splice.Extents))
	for i := range cm.Splice.Extents {
		if ref := cm.Splice.Extents[i].Blob; !seen[ref.Hash] {
			seen[ref.Hash] = true
			refs = append(refs, ref)
		}
	}
	return refs
}
