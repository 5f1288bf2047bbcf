// Package audit proves what the journal says. The chain hashes of the journal's records are the leaves of a Merkle tree as in RFC 6962 (golang.org/x/mod/sumdb/tlog);
// every few minutes its root is signed (golang.org/x/mod/sumdb/note). Whoever keeps one signed tree head can find out later, with the public key alone, whether
// anything that was recorded up to then was changed, left out or rolled back; and a proof of a few hundred bytes shows that one version is in the log.
//
// The tree is fed in the background, from records that are on stable storage: nothing waits for it.
package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"holdfast/catalog"
	"holdfast/catalog/journal"
	"holdfast/internal/durable"
)

// DirName is the name of the audit directory in a store.
const DirName = "audit"

const (
	keyName   = "key"
	pubName   = "key.pub"
	treeName  = "tree"
	oldName   = "tree.old"
	headsName = "checkpoints"

	defaultInterval = 5 * time.Minute
	maxProblems     = 16
	// maxLost is the largest number of records in a row that may be lost without the tree ending there.
	maxLost = 1 << 26
)

var (
	// ErrTampered: the journal, or a proof, is not what was signed.
	ErrTampered = errors.New("not what was signed")
	// ErrMalformed: a key, a tree head or a proof cannot be read as one.
	ErrMalformed = errors.New("malformed evidence")
	// ErrNotSigned: there is no signed tree head, or none that covers the record.
	ErrNotSigned = errors.New("not signed yet")
	// ErrClosed: the log was closed.
	ErrClosed = errors.New("audit log is closed")
)

// Journal is what is audited; catalog.JournalView is one.
type Journal interface {
	StoreID() [16]byte
	// End returns the newest record, and the newest on stable storage.
	End() (last, synced catalog.Seq)
	// Sync makes every record durable that was written before the call.
	Sync(ctx context.Context) error
	SeqAt(ctx context.Context, t time.Time) (catalog.Seq, error)
	Follow(from catalog.Seq) *catalog.Follower
	Link(ctx context.Context, seq catalog.Seq) (journal.Link, error)
}

// Options say how to open the audit log of a store.
type Options struct {
	Dir      string // the audit directory of the store; made when missing
	Journal  Journal
	ReadOnly bool             // nothing is written, and nothing signed
	Interval time.Duration    // between the tree heads of Run (default 5 minutes)
	Now      func() time.Time // default time.Now
	Log      *slog.Logger     // default: discards
}

// Log is the audit log of an open store. All methods may be called concurrently. The caller closes it before the journal.
type Log struct {
	opt  Options
	j    Journal
	log  *slog.Logger
	keys keyring

	closing chan struct{} // closed when followers are to end
	once    sync.Once

	mu     sync.Mutex // guards what follows
	closed bool
	loaded bool
	tree   *treeFile // nil when read-only and there is none
	old    *treeFile // a tree that was set aside, while its successor is made
	heads  *headFile
	follow *catalog.Follower

	problemsMu sync.Mutex
	problems   []string
}

// Open opens the audit log, and makes its keys when it has none. It reads nothing of the journal yet. ErrMalformed when the key is damaged.
func Open(_ context.Context, opt Options) (_ *Log, err error) {
	if opt.Now == nil {
		opt.Now = time.Now
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.Interval <= 0 {
		opt.Interval = defaultInterval
	}
	l := &Log{opt: opt, j: opt.Journal, log: opt.Log, closing: make(chan struct{})}
	defer func() {
		if err != nil {
			err = fmt.Errorf("open the audit log in %s: %w", opt.Dir, errors.Join(err, l.release()))
		}
	}()
	if !opt.ReadOnly {
		if err := durable.MkdirAll(opt.Dir, 0o700); err != nil {
			return nil, err
		}
	}
	if l.keys, err = openKeys(opt.Dir, l.j.StoreID(), opt.ReadOnly, l.log); err != nil {
		return nil, err
	}
	if l.keys.lost {
		l.problem("the key of the audit log was lost and another one signs from now on; the public key that you keep elsewhere shows which tree heads it signed")
	}
	l.tree, err = openTree(filepath.Join(opt.Dir, treeName), opt.ReadOnly)
	if err != nil && (!opt.ReadOnly || !errors.Is(err, os.ErrNotExist)) {
		return nil, err
	}
	l.heads, err = openHeads(filepath.Join(opt.Dir, headsName), l.keys.public, opt.ReadOnly)
	return l, err
}

func (l *Log) problem(text string) {
	l.log.Error("audit", "problem", text)
	l.problemsMu.Lock()
	defer l.problemsMu.Unlock()
	if len(l.problems) < maxProblems && !slices.Contains(l.problems, text) {
		l.problems = append(l.problems, text)
	}
}

// Problems says what does not fit together, as far as is known; empty when nothing is known to be wrong. Verify finds out all of it.
func (l *Log) Problems() []string {
	l.problemsMu.Lock()
	defer l.problemsMu.Unlock()
	return slices.Clone(l.problems)
}

// PublicKey is the key with which the tree heads can be checked, as note.NewVerifier reads it; "" when read-only and nothing was ever signed.
func (l *Log) PublicKey() string { return l.keys.text }

// load finds out how far the tree in the file can be trusted: to the newest signed head, when root and journal are what was signed.
func (l *Log) load(ctx context.Context) error {
	if l.loaded {
		return nil
	}
	if l.heads.bad > 0 {
		l.problem(fmt.Sprintf("%d entries of %s are not tree heads that this store has signed; run `holdfast audit verify`", l.heads.bad, l.heads.path))
	}
	n := l.heads.last.Size
	good := n == 0
	if !good && l.tree != nil {
		var err error
		if good, err = l.tree.begin(n, l.heads.last.Root); err != nil {
			return fmt.Errorf("read the tree of the audit log: %w", err)
		}
		if good {
			good, err = l.continues(ctx, n)
		}
		if err != nil {
			return err
		}
	}
	if l.opt.ReadOnly {
		if !good && l.tree != nil {
			err := l.tree.close()
			l.tree, l.loaded = nil, true
			return err
		}
		l.loaded = true
		return nil
	}
	if !good {
		l.log.Warn("the tree of the audit log is made anew from the journal", "records", n)
		if err := l.setAside(); err != nil {
			return err
		}
		n = 0
	} else if _, err := l.tree.begin(n, l.heads.last.Root); err != nil {
		return err
	}
	l.follow = l.j.Follow(catalog.Seq(n + 1))
	l.loaded = true
	return nil
}

// continues says whether the journal's record n is the tree's last leaf. One that cannot be read does not speak against it.
func (l *Log) continues(ctx context.Context, n int64) (bool, error) {
	if last, _ := l.j.End(); last < catalog.Seq(n) {
		return false, nil
	}
	want, err := l.tree.leaf(n - 1)
	if err != nil {
		return false, err
	}
	same := false
	stop := errors.New("stop")
	err = l.j.Follow(catalog.Seq(n)).Read(ctx, func(e journal.Entry) error {
		same = e.Seq == uint64(n) && leafOf(e.Chain) == want
		return stop
	})
	var damage *journal.DamageError
	switch {
	case errors.As(err, &damage) && damage.First == uint64(n):
		return true, nil
	case err == nil, errors.Is(err, stop):
		return same || want == lostLeaf(), nil
	}
	return false, err
}

// setAside begins a new tree. The old one stays until the new one has what can be had from it: the leaves of records that cannot be read any more.
func (l *Log) setAside() error {
	path, old := filepath.Join(l.opt.Dir, treeName), filepath.Join(l.opt.Dir, oldName)
	l.dropOld()
	if err := durable.Rename(path, old); err != nil {
		return fmt.Errorf("set the tree of the audit log aside: %w", err)
	}
	tree, err := openTree(path, false)
	if err != nil {
		return err
	}
	l.old, l.tree = l.tree, tree
	return nil
}

func (l *Log) dropOld() {
	if l.old != nil {
		if err := errors.Join(l.old.close(), durable.RemoveSync(filepath.Join(l.opt.Dir, oldName))); err != nil {
			l.log.Warn("an old tree of the audit log stays", "error", err)
		}
	}
	l.old = nil
}

// update adds the records up to upTo to the tree.
func (l *Log) update(ctx context.Context, upTo int64) error {
	if err := l.load(ctx); err != nil {
		return err
	}
	stop := errors.New("stop")
	for l.tree.front.n < upTo {
		err := l.follow.Read(ctx, func(e journal.Entry) error {
			switch want := l.tree.front.n + 1; {
			case int64(e.Seq) > upTo:
				return stop
			case int64(e.Seq) < want:
				return nil // it was added before an error
			case int64(e.Seq) > want:
				return fmt.Errorf("the journal shows record %d, and %d was expected", e.Seq, want)
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			return l.tree.add(l.leafOf(e))
		})
		var damage *journal.DamageError
		switch {
		case errors.As(err, &damage):
			if err := l.addLost(ctx, min(int64(damage.Last), upTo)); err != nil {
				return err
			}
			l.follow.SkipTo(catalog.Seq(l.tree.front.n + 1))
		case errors.Is(err, stop):
		case err != nil:
			return fmt.Errorf("feed the audit log: %w", err)
		case l.tree.front.n < upTo:
			return fmt.Errorf("feed the audit log: the journal ends at record %d, and %d was expected", l.tree.front.n, upTo)
		}
	}
	return l.checkHeads()
}

// leafOf is the leaf of a record. One that was signed as lost, and was mended since, stays lost in the tree.
func (l *Log) leafOf(e journal.Entry) tlog.Hash {
	if l.old != nil {
		if h, err := l.old.leaf(l.tree.front.n); err == nil && h == lostLeaf() {
			return h
		}
	}
	return leafOf(e.Chain)
}

// addLost adds the leaves of records that cannot be read.
func (l *Log) addLost(ctx context.Context, last int64) error {
	if last-l.tree.front.n > maxLost {
		return fmt.Errorf("%w: the journal lacks the records %d to %d, too many to go on; look for a segment that is not the store's own", catalog.ErrDamaged, l.tree.front.n+1, last)
	}
	for l.tree.front.n < last {
		leaf := lostLeaf()
		if l.old != nil {
			if h, err := l.old.leaf(l.tree.front.n); err == nil {
				leaf = h
			}
		}
		if err := errors.Join(ctx.Err(), l.tree.add(leaf)); err != nil {
			return err
		}
	}
	return nil
}

// checkHeads compares every head that was ever signed with the tree, once.
func (l *Log) checkHeads() error {
	heads := l.heads.heads
	if heads == nil {
		return nil
	}
	wrong := 0
	var first TreeHead
	for _, h := range heads {
		ok := h.Size <= l.tree.front.n
		if ok {
			root, err := tlog.TreeHash(h.Size, l.tree)
			if err != nil {
				return fmt.Errorf("read the tree of the audit log: %w", err)
			}
			ok = root == h.Root
		}
		if !ok {
			if wrong++; wrong == 1 {
				first = h
			}
		}
	}
	if wrong > 0 {
		l.problem(fmt.Sprintf("%d of %d signed tree heads, the first of %s over %d records, are not what the journal says: it was changed or rolled back; run `holdfast audit verify`",
			wrong, len(heads), first.Time.UTC().Format(time.RFC3339), first.Size))
	}
	l.heads.heads = nil
	l.dropOld()
	return nil
}

// Head returns the newest signed tree head. Before, everything that was recorded is made durable, and signed when it is more than the newest head says. Read-only, it
// returns the newest there is; ErrNotSigned when there is none.
func (l *Log) Head(ctx context.Context) ([]byte, error) {
	if !l.opt.ReadOnly {
		if err := l.j.Sync(ctx); err != nil {
			return nil, err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, ErrClosed
	}
	return l.head(ctx)
}

// head signs what is on stable storage. It needs l.mu.
func (l *Log) head(ctx context.Context) ([]byte, error) {
	if l.opt.ReadOnly {
		if l.heads.newest == nil {
			return nil, fmt.Errorf("%w: the audit log has no tree head; mount the store for writing, or run `holdfast audit checkpoint`", ErrNotSigned)
		}
		return slices.Clone(l.heads.newest), l.load(ctx)
	}
	_, synced := l.j.End()
	if synced == 0 {
		return nil, fmt.Errorf("%w: nothing is recorded", ErrNotSigned)
	}
	if err := l.update(ctx, int64(synced)); err != nil {
		return nil, err
	}
	h := TreeHead{Origin: l.keys.signer.Name(), Size: l.tree.front.n, Root: l.tree.front.root(), Time: l.opt.Now().UTC()}
	if l.heads.newest != nil && h.Size == l.heads.last.Size && h.Root == l.heads.last.Root {
		return slices.Clone(l.heads.newest), nil
	}
	if err := l.tree.sync(l.opt.Dir); err != nil {
		return nil, err
	}
	msg, err := signHead(h, l.keys.signer)
	if err != nil {
		return nil, fmt.Errorf("sign a tree head: %w", err)
	}
	if err := l.heads.add(h, msg); err != nil {
		return nil, err
	}
	return slices.Clone(msg), nil
}

// Run signs a tree head now and after each interval in which the journal has grown, until ctx ends. It never makes the journal sync.
func (l *Log) Run(ctx context.Context) {
	if l.opt.ReadOnly {
		return
	}
	tick := time.NewTicker(l.opt.Interval)
	defer tick.Stop()
	for {
		l.mu.Lock()
		var err error
		if !l.closed {
			_, err = l.head(ctx)
		}
		l.mu.Unlock()
		if err != nil && ctx.Err() == nil && !errors.Is(err, ErrNotSigned) {
			l.log.Error("the audit log could not be signed; trying again later", "error", err)
		}
		select {
		case <-tick.C:
		case <-l.closing:
			return
		case <-ctx.Done():
			return
		}
	}
}

// StopFollowing ends the calls of Entries that follow the log.
func (l *Log) StopFollowing() { l.once.Do(func() { close(l.closing) }) }

// Close signs a last tree head and releases the log; a second Close does nothing. The journal must still be open. The files are closed whatever the error.
func (l *Log) Close(ctx context.Context) error {
	l.StopFollowing()
	l.mu.Lock()
	closed := l.closed
	l.mu.Unlock()
	if closed {
		return nil
	}
	var err error
	if !l.opt.ReadOnly {
		if _, err = l.Head(ctx); errors.Is(err, ErrNotSigned) {
			err = nil
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	return errors.Join(err, l.release())
}

func (l *Log) release() error {
	var errs []error
	for _, t := range []*treeFile{l.tree, l.old} {
		if t != nil {
			errs = append(errs, t.close())
		}
	}
	if l.heads != nil {
		errs = append(errs, l.heads.close())
	}
	l.tree, l.old, l.heads = nil, nil, nil
	return errors.Join(errs...)
}

var _ Journal = catalog.JournalView{}
