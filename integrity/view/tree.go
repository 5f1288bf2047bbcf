// Package view is the directory .integrity: the state of the data as files that agents and people read with cat, jq and tail -f, and two that they
// write to: scrub, and those in manual. Nothing of it is stored: each file is made when it is read.
package view

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/catalog"
	"holdfast/integrity"
	"holdfast/integrity/audit"
)

// Engine is what the files are made from. *integrity.Engine is one.
type Engine interface {
	Status(ctx context.Context) (integrity.Status, error)
	Check(ctx context.Context, path string, o integrity.CheckOptions, fn func(integrity.Result) error) (integrity.Summary, error)
	Failures(ctx context.Context, after int64, fn func(id int64, r integrity.Result) error) error
	Recoveries(ctx context.Context, after int64, fn func(id int64, a integrity.Attempt) error) error
	Events(ctx context.Context, after uint64, max int) ([]integrity.Event, error)
	LastEvent() uint64
	Damaged(ctx context.Context, fn func(integrity.Damaged) error) error
	DamagedItem(ctx context.Context, dataID string) (integrity.Damaged, error)
	Complete(ctx context.Context, dataID string, r io.Reader) error
}

// Scrub is what the file scrub reads and does. *integrity.Scrubber is one.
type Scrub interface {
	Start(ctx context.Context) error
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	Stop(ctx context.Context) error
	Status(ctx context.Context) (integrity.ScrubStatus, error)
}

// Audit is the audit log. *audit.Log is one.
type Audit interface {
	Head(ctx context.Context) ([]byte, error)
	Prove(ctx context.Context, seq catalog.Seq) (audit.Proof, error)
	Entries(ctx context.Context, q audit.Query, fn func(*audit.Entry) error) error
}

// Store is the store's own tree. *volume.Volume is one.
type Store interface {
	Newest(ctx context.Context) (catalog.Seq, error)
	Lookup(ctx context.Context, parent catalog.Ino, name string) (catalog.Inode, error)
	Get(ctx context.Context, ino catalog.Ino) (catalog.Inode, error)
	ReadDir(ctx context.Context, dir catalog.Ino, after uint64, max int) ([]catalog.DirEntry, error)
	Path(ctx context.Context, ino catalog.Ino) (string, error)
	VersionRange(ctx context.Context, ino catalog.Ino, from, to uint64) ([]catalog.Version, error)
}

// Options say what a Tree shows.
type Options struct {
	Engine Engine
	Scrub  Scrub
	Audit  Audit
	Store  Store
	Now    func() time.Time // default time.Now
}

// Tree is the directory .integrity. Methods may be called concurrently; there is nothing to close. Errors are those of catalog, and of what it shows.
type Tree struct {
	o     Options
	began time.Time

	mu    sync.Mutex
	texts map[catalog.Ino]text // guarded by mu; at most maxTexts
}

// text is a file that was made, for as long as it counts as fresh.
type text struct {
	b   []byte
	at  time.Time
	ver uint64 // of the file that it is about
}

const (
	// fresh is how long a small file is shown as it was made, so that its size and its content agree for who asks for both; freshChecks is that of a check.
	fresh       = time.Second
	freshChecks = 10 * time.Second
	maxTexts    = 64
	maxText     = 4 << 20
	firstCookie = 16
)

// New returns the directory.
func New(o Options) *Tree {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Tree{o: o, began: o.Now(), texts: make(map[catalog.Ino]text)}
}

// A number consists of a kind, in bits 52 to 55, what it is within the kind, and a tag that changes with the size: under the writeback cache the kernel keeps
// the first size that it is told of a node, so a file of another size has to be another node. Get takes a number with any tag.
const (
	kindBits = 52
	kindMask = 1<<kindBits - 1
	thisBits = 40
	thisMask = 1<<thisBits - 1
	tagMask  = 1<<(kindBits-thisBits) - 1

	kindFixed   = 0 // the files and directories that are always there, in bits 48 to 51; the tag has the bits below
	kindCheck   = 1 // of an inode of the store, in the lower 40 bits
	kindProof   = 2 // of an inode of the store
	kindFailure = 3 // a number of a failure
	kindManual  = 4 // 40 bits of a hash of the name of what waits for a person

	fixedBits = 48
	fixedMask = 1<<fixedBits - 1
)

// The fixed ones. The root has the number of the store's root.
const (
	nodeRoot       = uint64(catalog.Root)
	nodeReadme     = 2
	nodeStatus     = 3
	nodeSummary    = 4
	nodeChecks     = 5
	nodeFailures   = 6
	nodeRecoveries = 7
	nodeAudit      = 8
	nodeEvents     = 9
	nodeCheckpoint = 10
	nodeProof      = 11
	nodeManual     = 12
	nodeScrub      = 13
)

// fixed is one of the files and directories that are always there.
type fixed struct {
	name string
	node uint64
	mode uint32
}

func fixedNodes() []fixed {
	const file, dir = unix.S_IFREG | 0o444, unix.S_IFDIR | 0o555
	return []fixed{
		{"README", nodeReadme, file}, {"status.json", nodeStatus, file}, {"summary", nodeSummary, file}, {"checks", nodeChecks, dir}, {"failures", nodeFailures, dir},
		{"recoveries.jsonl", nodeRecoveries, file}, {"audit.jsonl", nodeAudit, file}, {"events", nodeEvents, file}, {"checkpoint", nodeCheckpoint, file},
		{"proof", nodeProof, dir}, {"manual", nodeManual, dir}, {"scrub", nodeScrub, unix.S_IFREG | 0o644},
	}
}

func number(kind int, n uint64) catalog.Ino { return sized(kind, n, 0) }

// sized is the number of a file of that size.
func sized(kind int, n uint64, size int64) catalog.Ino {
	if kind != kindFixed {
		return catalog.Ino(uint64(kind)<<kindBits | (uint64(size)&tagMask)<<thisBits | n&thisMask)
	}
	if n == nodeRoot {
		return catalog.Root
	}
	return catalog.Ino(n<<fixedBits | uint64(size)&fixedMask)
}

// split takes a number apart, without its tag.
func split(ino catalog.Ino) (kind int, n uint64) {
	switch kind = int(ino >> kindBits); {
	case kind != kindFixed:
		return kind, uint64(ino) & thisMask
	case ino == catalog.Root:
		return kind, nodeRoot
	}
	return kind, uint64(ino) >> fixedBits
}

// Grows reports whether the file grows while it is open, so that the kernel has to be told of its size: see fs.Grower.
func (t *Tree) Grows(ino catalog.Ino) bool {
	kind, n := split(ino)
	return kind == kindFixed && (n == nodeAudit || n == nodeRecoveries)
}

// row makes the attributes of a node.
func (t *Tree) row(ino catalog.Ino, mode uint32, size int64, at time.Time) catalog.Inode {
	nlink := uint32(1)
	if mode&unix.S_IFMT == unix.S_IFDIR {
		nlink = 2
	}
	ns := at.UnixNano()
	return catalog.Inode{Ino: ino, Parent: catalog.Root, Mode: mode, UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), Nlink: nlink, Size: size,
		Atime: ns, Mtime: ns, Ctime: ns, Btime: t.began.UnixNano()}
}

// Lookup understands "..".
func (t *Tree) Lookup(ctx context.Context, parent catalog.Ino, name string) (catalog.Inode, error) {
	kind, n := split(parent)
	switch {
	case kind == kindCheck || kind == kindProof:
		return t.lookupMirror(ctx, kind, catalog.Ino(n), name)
	case kind != kindFixed:
		return catalog.Inode{}, catalog.ErrNotDir
	case name == "..":
		return t.Get(ctx, catalog.Root)
	}
	switch n {
	case nodeRoot:
		for _, f := range fixedNodes() {
			if f.name == name {
				return t.get(ctx, number(kindFixed, f.node))
			}
		}
	case nodeChecks:
		return t.lookupMirror(ctx, kindCheck, catalog.Root, name)
	case nodeProof:
		return t.lookupMirror(ctx, kindProof, catalog.Root, name)
	case nodeFailures:
		digits, ok := strings.CutSuffix(name, ".json")
		id, err := strconv.ParseInt(digits, 10, thisBits)
		if ok && err == nil && failureName(id) == name {
			return t.get(ctx, number(kindFailure, uint64(id)))
		}
	case nodeManual:
		d, err := t.o.Engine.DamagedItem(ctx, name)
		if err != nil {
			return catalog.Inode{}, err
		}
		return t.manualRow(&d), nil
	default:
		return catalog.Inode{}, catalog.ErrNotDir
	}
	return catalog.Inode{}, catalog.ErrNotExist
}

// lookupMirror is Lookup below checks and proof, which have the names that the store has.
func (t *Tree) lookupMirror(ctx context.Context, kind int, dir catalog.Ino, name string) (catalog.Inode, error) {
	if name == ".." {
		row, err := t.o.Store.Get(ctx, dir)
		if err != nil {
			return catalog.Inode{}, err
		}
		if dir == catalog.Root {
			return t.Get(ctx, catalog.Root)
		}
		return t.Get(ctx, t.mirror(kind, row.Parent))
	}
	row, err := t.o.Store.Lookup(ctx, dir, name)
	if err != nil {
		return catalog.Inode{}, err
	}
	out, ok := t.mirrorRow(kind, &row)
	if !ok {
		return catalog.Inode{}, catalog.ErrNotExist
	}
	return out, nil
}

// mirror is the number below checks or proof of a directory of the store.
func (t *Tree) mirror(kind int, ino catalog.Ino) catalog.Ino {
	switch {
	case ino != catalog.Root:
		return number(kind, uint64(ino))
	case kind == kindCheck:
		return number(kindFixed, nodeChecks)
	}
	return number(kindFixed, nodeProof)
}

// mirrorRow is what a file or directory of the store is below checks and proof: as readable as that one. Others are not there.
func (t *Tree) mirrorRow(kind int, row *catalog.Inode) (catalog.Inode, bool) {
	typ := row.Mode & unix.S_IFMT
	if typ != unix.S_IFREG && typ != unix.S_IFDIR || uint64(row.Ino) > thisMask {
		return catalog.Inode{}, false
	}
	out := *row
	out.Ino, out.Parent = t.mirror(kind, row.Ino), t.mirror(kind, row.Parent)
	if typ == unix.S_IFREG {
		out.Mode, out.Nlink, out.Size = typ|row.Mode&0o444, 1, int64(len(t.known(out.Ino, freshChecks)))
		out.Ino = sized(kind, uint64(row.Ino), out.Size)
	} else {
		out.Mode, out.Size = typ|row.Mode&0o555, 0
	}
	return out, true
}

// Get returns the attributes of a node. catalog.ErrStale when it is not there any more.
func (t *Tree) Get(ctx context.Context, ino catalog.Ino) (catalog.Inode, error) {
	row, err := t.get(ctx, ino)
	row.Ino = ino // whatever its tag is
	return row, err
}

// get is Get, with the tag of the present size.
func (t *Tree) get(ctx context.Context, ino catalog.Ino) (catalog.Inode, error) {
	kind, n := split(ino)
	switch kind {
	case kindFixed:
		for _, f := range append(fixedNodes(), fixed{"", nodeRoot, unix.S_IFDIR | 0o555}) {
			if f.node == n {
				return t.fixedRow(ctx, f)
			}
		}
	case kindCheck, kindProof:
		row, err := t.o.Store.Get(ctx, catalog.Ino(n))
		if err != nil {
			return catalog.Inode{}, err
		}
		if out, ok := t.mirrorRow(kind, &row); ok {
			return out, nil
		}
	case kindFailure:
		b, at, err := t.failure(ctx, int64(n))
		if err != nil {
			return catalog.Inode{}, err
		}
		return t.row(ino, unix.S_IFREG|0o444, int64(len(b)), at), nil
	case kindManual:
		d, err := t.manual(ctx, n)
		if err != nil {
			return catalog.Inode{}, err
		}
		return t.manualRow(&d), nil
	}
	return catalog.Inode{}, catalog.ErrStale
}

func (t *Tree) fixedRow(ctx context.Context, f fixed) (catalog.Inode, error) {
	ino := number(kindFixed, f.node)
	if f.mode&unix.S_IFMT == unix.S_IFDIR {
		return t.row(ino, f.mode, 0, t.began), nil
	}
	var size int64
	var err error
	switch f.node {
	case nodeEvents: // a stream
	case nodeAudit:
		size, err = t.auditSize(ctx)
	case nodeRecoveries:
		size, err = t.recoveriesSize(ctx)
	default:
		var b []byte
		b, err = t.text(ctx, ino)
		size = int64(len(b))
	}
	return t.row(sized(kindFixed, f.node, size), f.mode, size, t.o.Now()), err
}

// ReadDir returns up to max entries behind the cookie after.
func (t *Tree) ReadDir(ctx context.Context, dir catalog.Ino, after uint64, max int) ([]catalog.DirEntry, error) {
	kind, n := split(dir)
	switch {
	case kind == kindCheck || kind == kindProof:
		return t.readMirror(ctx, kind, catalog.Ino(n), after, max)
	case kind != kindFixed:
		return nil, catalog.ErrNotDir
	}
	switch n {
	case nodeRoot:
		var list []catalog.DirEntry
		for i, f := range fixedNodes() {
			cookie := uint64(firstCookie + i)
			if cookie <= after || len(list) >= max {
				continue
			}
			row, err := t.fixedRow(ctx, f)
			if err != nil {
				row = t.row(number(kindFixed, f.node), f.mode, 0, t.began) // opening it says what is wrong
			}
			list = append(list, catalog.DirEntry{Name: f.name, Cookie: cookie, Inode: row})
		}
		return list, nil
	case nodeChecks:
		return t.readMirror(ctx, kindCheck, catalog.Root, after, max)
	case nodeProof:
		return t.readMirror(ctx, kindProof, catalog.Root, after, max)
	case nodeFailures:
		return t.readFailures(ctx, after, max)
	case nodeManual:
		return t.readManual(ctx, after, max)
	}
	return nil, catalog.ErrNotDir
}

func (t *Tree) readMirror(ctx context.Context, kind int, dir catalog.Ino, after uint64, max int) ([]catalog.DirEntry, error) {
	for {
		list, err := t.o.Store.ReadDir(ctx, dir, after, max)
		if err != nil || len(list) == 0 {
			return nil, err
		}
		out := list[:0]
		for i := range list {
			after = list[i].Cookie
			if row, ok := t.mirrorRow(kind, &list[i].Inode); ok {
				e := list[i]
				e.Inode = row
				out = append(out, e)
			}
		}
		if len(out) > 0 { // an empty answer would be the end
			return out, nil
		}
	}
}

var errEnough = errors.New("enough")

func failureName(id int64) string { return fmt.Sprintf("%09d.json", id) }

func (t *Tree) readFailures(ctx context.Context, after uint64, max int) ([]catalog.DirEntry, error) {
	var list []catalog.DirEntry
	from := int64(0)
	if after > firstCookie {
		from = int64(after - firstCookie)
	}
	err := t.o.Engine.Failures(ctx, from, func(id int64, r integrity.Result) error {
		b, err := jsonLine(r)
		if err != nil {
			return err
		}
		row := t.row(number(kindFailure, uint64(id)), unix.S_IFREG|0o444, int64(len(b)), r.Timestamp)
		list = append(list, catalog.DirEntry{Name: failureName(id), Cookie: firstCookie + uint64(id), Inode: row})
		if len(list) >= max {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return list, err
}

// failure is one line about one damage.
func (t *Tree) failure(ctx context.Context, id int64) (b []byte, at time.Time, err error) {
	err = t.o.Engine.Failures(ctx, id-1, func(found int64, r integrity.Result) error {
		if found == id {
			if b, err = jsonLine(r); err != nil {
				return err
			}
			at = r.Timestamp
		}
		return errEnough
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	if err == nil && b == nil {
		err = catalog.ErrNotExist
	}
	return b, at, err
}

// manualNumber is the number of what waits for a person.
func manualNumber(dataID string) uint64 {
	n := uint64(14695981039346656037) // FNV-1a
	for i := range len(dataID) {
		n = (n ^ uint64(dataID[i])) * 1099511628211
	}
	return n & thisMask
}

func (t *Tree) manualRow(d *integrity.Damaged) catalog.Inode {
	size := int64(len(integrity.ManualPage(d)))
	return t.row(sized(kindManual, manualNumber(d.DataID), size), unix.S_IFREG|0o644, size, d.Since)
}

func (t *Tree) manual(ctx context.Context, n uint64) (found integrity.Damaged, err error) {
	err = t.o.Engine.Damaged(ctx, func(d integrity.Damaged) error {
		if manualNumber(d.DataID) == n {
			found = d
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		return found, nil
	}
	if err == nil {
		err = catalog.ErrNotExist
	}
	return found, err
}

// readManual lists what waits, in order of its names; a cookie is a place in that order.
func (t *Tree) readManual(ctx context.Context, after uint64, max int) ([]catalog.DirEntry, error) {
	var list []catalog.DirEntry
	cookie := uint64(firstCookie)
	err := t.o.Engine.Damaged(ctx, func(d integrity.Damaged) error {
		if cookie++; cookie <= after || strings.Contains(d.DataID, "/") {
			return nil
		}
		list = append(list, catalog.DirEntry{Name: d.DataID, Cookie: cookie, Inode: t.manualRow(&d)})
		if len(list) >= max {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return list, err
}

// pathOf is where the store's inode is now.
func (t *Tree) pathOf(ctx context.Context, ino catalog.Ino) (string, error) {
	p, err := t.o.Store.Path(ctx, ino)
	if err != nil {
		return "", err
	}
	return path.Clean("/" + p), nil
}
