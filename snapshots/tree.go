package snapshots

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/catalog"
	"holdfast/internal/volume"
)

// Store is what the views read. *volume.Volume is one.
type Store interface {
	Journal
	Registry
	GetAt(ctx context.Context, ino catalog.Ino, at catalog.Seq) (catalog.Inode, error)
	LookupAt(ctx context.Context, parent catalog.Ino, name string, at catalog.Seq) (catalog.Inode, error)
	ReadDirAt(ctx context.Context, dir catalog.Ino, after uint64, max int, at catalog.Seq) ([]catalog.DirEntry, error)
	GetXattrAt(ctx context.Context, ino catalog.Ino, name string, at catalog.Seq) ([]byte, error)
	ListXattrAt(ctx context.Context, ino catalog.Ino, at catalog.Seq) ([]string, error)
	// Under returns where name led in the directories that above led to, while above led there.
	Under(ctx context.Context, above []catalog.NameSpan, name string) ([]catalog.NameSpan, error)
	DirNames(ctx context.Context, dir catalog.Ino, after uint64, max int) ([]catalog.PastName, error)
	VersionRange(ctx context.Context, ino catalog.Ino, from, to uint64) ([]catalog.Version, error)
	OpenPast(ctx context.Context, ino catalog.Ino, at catalog.Seq) (*volume.PastHandle, error)
}

// Keeper is a Store that thins its past out. What it says of a moment is asked before anything of the moment is shown.
type Keeper interface {
	// Exact is nil when the state of the directory dir after the record at is still what it was; catalog.ErrNotExist when retention has taken some of
	// it away, with a text that says so and names the nearest moments that are kept.
	Exact(ctx context.Context, dir catalog.Ino, at catalog.Seq) error
}

const (
	// maxViews bounds the moments that have numbers at the same time. A number is used again after as many others at the earliest.
	maxViews = 1 << 13
	// maxNodes bounds the paths and files below `versions` and `deleted` that have numbers at the same time.
	maxNodes = 1 << 15

	// What the kernel may rely on, in seconds.
	validForever  = 365 * 24 * 3600
	validFixed    = 60 // which moment a fixed text means; retention may take it away
	validRelative = 1
)

// Options say what a Tree shows.
type Options struct {
	Store Store
	Log   *slog.Logger     // why a moment was refused; default: discards
	Now   func() time.Time // default time.Now

	maxViews, maxNodes int // tests
}

// Tree is the directory `.snapshots` of every directory of a store: a tree of names that cannot be written. The number of the `.snapshots` of
// the store's directory D is D. Other numbers hold as long as they are in use: one that was not used for long is catalog.ErrStale, and has to be
// looked up again. Methods may be called concurrently; there is nothing to close.
type Tree struct {
	store Store
	log   *slog.Logger
	now   func() time.Time
	views *views
	nodes *nodes

	mu       sync.Mutex
	resolved map[string]resolution // relative texts; guarded by mu
	second   int64                 // in which refused moments were logged, and how many; guarded by mu
	refused  int
}

// New returns the `.snapshots` of a store.
func New(opt Options) *Tree {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.Now == nil {
		opt.Now = time.Now
	}
	if opt.maxViews == 0 {
		opt.maxViews = maxViews
	}
	if opt.maxNodes == 0 {
		opt.maxNodes = maxNodes
	}
	return &Tree{
		store: opt.Store, log: opt.Log, now: opt.Now, views: newViews(opt.maxViews), nodes: newNodes(opt.maxNodes),
		resolved: make(map[string]resolution),
	}
}

// A number of the tree has 56 bits. Bit 55 is set for those of the table of nodes. Others consist of the number of a view, in bits 40 to 54, and the
// number of an inode of the store. The first views are not of a moment.
const (
	inoBits   = 40
	inoMask   = 1<<inoBits - 1
	nodeBit   = 1 << 55
	numberEnd = 1 << 56

	homeView   = 0 // `.snapshots` of the directory
	readmeView = 1 // README, of every directory
	firstView  = 16
	lastView   = 1<<15 - 1
)

func number(view uint64, ino catalog.Ino) (catalog.Ino, error) {
	if ino > inoMask {
		return 0, fmt.Errorf("%w: inode %d cannot be shown in .snapshots", catalog.ErrTooBig, ino)
	}
	return catalog.Ino(view<<inoBits) | ino, nil
}

// object is what a number stands for.
type object interface {
	get(ctx context.Context) (catalog.Inode, error)
	// lookup is not asked for ".".
	lookup(ctx context.Context, name string) (catalog.Inode, error)
	readDir(ctx context.Context, after uint64, max int) ([]catalog.DirEntry, error)
	getXattr(ctx context.Context, name string) ([]byte, error)
	listXattr(ctx context.Context) ([]string, error)
	open(ctx context.Context) (*File, error)
	// entryValid is for how long the name in this directory may be relied on, attrValid for how long the attributes, in seconds. found: the name
	// leads somewhere.
	entryValid(name string, found bool) uint64
	attrValid() uint64
}

// plain is what objects have in common that have no attributes, no entries or no content.
type plain struct{}

func (plain) lookup(context.Context, string) (catalog.Inode, error) {
	return catalog.Inode{}, catalog.ErrNotDir
}
func (plain) readDir(context.Context, uint64, int) ([]catalog.DirEntry, error) {
	return nil, catalog.ErrNotDir
}
func (plain) getXattr(context.Context, string) ([]byte, error) { return nil, catalog.ErrNoXattr }
func (plain) listXattr(context.Context) ([]string, error)      { return nil, nil }
func (plain) open(context.Context) (*File, error)              { return nil, catalog.ErrIsDir }
func (plain) entryValid(string, bool) uint64                   { return 0 }
func (plain) attrValid() uint64                                { return 0 }

// object finds what a number stands for. ErrStale when it stands for nothing any more.
func (t *Tree) object(n catalog.Ino) (object, error) {
	if n == 0 || n >= numberEnd {
		return nil, catalog.ErrStale
	}
	if n&nodeBit != 0 {
		node := t.nodes.get(n)
		switch {
		case node == nil:
			return nil, catalog.ErrStale
		case node.file != 0:
			return keptFile{t: t, n: node}, nil
		case node.deleted:
			return deletedDir{t: t, n: node}, nil
		}
		return versionsDir{t: t, n: node}, nil
	}
	id, ino := uint64(n>>inoBits), n&inoMask
	switch id {
	case homeView:
		return home{t: t, dir: ino}, nil
	case readmeView:
		return readme{}, nil
	}
	v := t.views.get(id)
	if v == nil {
		return nil, catalog.ErrStale
	}
	return pastNode{t: t, v: v, ino: ino}, nil
}

// Lookup finds a name, "." and ".." included. ErrNotExist; ErrInvalid for a moment that cannot be read.
func (t *Tree) Lookup(ctx context.Context, parent catalog.Ino, name string) (catalog.Inode, error) {
	o, err := t.object(parent)
	if err != nil {
		return catalog.Inode{}, err
	}
	if name == "." {
		return o.get(ctx)
	}
	return o.lookup(ctx, name)
}

// Get returns the attributes of a number.
func (t *Tree) Get(ctx context.Context, ino catalog.Ino) (catalog.Inode, error) {
	o, err := t.object(ino)
	if err != nil {
		return catalog.Inode{}, err
	}
	return o.get(ctx)
}

// ReadDir returns up to max entries behind the cookie after, as catalog.ReadDir does.
func (t *Tree) ReadDir(ctx context.Context, dir catalog.Ino, after uint64, max int) ([]catalog.DirEntry, error) {
	o, err := t.object(dir)
	if err != nil || max <= 0 {
		return nil, err
	}
	return o.readDir(ctx, after, max)
}

// GetXattr returns an attribute as it was.
func (t *Tree) GetXattr(ctx context.Context, ino catalog.Ino, name string) ([]byte, error) {
	o, err := t.object(ino)
	if err != nil {
		return nil, err
	}
	return o.getXattr(ctx, name)
}

// ListXattr returns the names of the attributes as they were, sorted.
func (t *Tree) ListXattr(ctx context.Context, ino catalog.Ino) ([]string, error) {
	o, err := t.object(ino)
	if err != nil {
		return nil, err
	}
	return o.listXattr(ctx)
}

// Open opens a regular file for reading.
func (t *Tree) Open(ctx context.Context, ino catalog.Ino) (*File, error) {
	o, err := t.object(ino)
	if err != nil {
		return nil, err
	}
	f, err := o.open(ctx)
	if err != nil {
		return nil, err
	}
	f.ino = ino
	return f, nil
}

// EntryValid says for how many seconds it may be relied on that name in parent leads to child, or to nothing (child 0).
func (t *Tree) EntryValid(parent catalog.Ino, name string, child catalog.Ino) uint64 {
	o, err := t.object(parent)
	if err != nil {
		return 0
	}
	return o.entryValid(name, child != 0)
}

// AttrValid says for how many seconds the attributes of a number may be relied on.
func (t *Tree) AttrValid(ino catalog.Ino) uint64 {
	o, err := t.object(ino)
	if err != nil {
		return 0
	}
	return o.attrValid()
}

// Generation differs for two uses of one number.
func (t *Tree) Generation(ino catalog.Ino) uint64 {
	if ino&nodeBit != 0 {
		return 0
	}
	if v := t.views.peek(uint64(ino >> inoBits)); v != nil {
		return v.generation
	}
	return 0
}

// File is an open file of the tree. Its methods may be called concurrently; there is nothing to close.
type File struct {
	ino  catalog.Ino
	past *volume.PastHandle
	text string // when past is nil
}

// Ino is the number that was opened.
func (f *File) Ino() catalog.Ino { return f.ino }

// Past is the file of the store that is read; nil for a text of the tree itself.
func (f *File) Past() *volume.PastHandle { return f.past }

// ReadAt returns less than len(p) only at the end of the file.
func (f *File) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	switch {
	case f.past != nil:
		return f.past.ReadAt(ctx, p, off)
	case off < 0:
		return 0, catalog.ErrInvalid
	case off >= int64(len(f.text)):
		return 0, nil
	}
	return copy(p, f.text[off:]), nil
}

// Seek is lseek(2) with SEEK_DATA or SEEK_HOLE.
func (f *File) Seek(ctx context.Context, off int64, whence int) (int64, error) {
	if f.past != nil {
		return f.past.Seek(ctx, off, whence)
	}
	size := int64(len(f.text))
	switch {
	case off < 0 || off >= size:
		return 0, unix.ENXIO
	case whence == unix.SEEK_DATA:
		return off, nil
	case whence == unix.SEEK_HOLE:
		return size, nil
	}
	return 0, catalog.ErrInvalid
}

// exact asks a Keeper; a store that is none keeps everything.
func (t *Tree) exact(ctx context.Context, dir catalog.Ino, at catalog.Seq) error {
	k, ok := t.store.(Keeper)
	if !ok {
		return nil
	}
	return k.Exact(ctx, dir, at)
}

const maxRefusedPerSecond = 5

// refuse logs why a moment is not shown, a few times a second at most: the program itself gets no more than an errno.
func (t *Tree) refuse(dir catalog.Ino, name string, err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	now := t.now().Unix()
	t.mu.Lock()
	if now != t.second {
		t.second, t.refused = now, 0
	}
	t.refused++
	ok := t.refused <= maxRefusedPerSecond
	t.mu.Unlock()
	if ok {
		t.log.Warn("no such moment in .snapshots", "name", name, "directory", dir, "reason", err)
	}
}
