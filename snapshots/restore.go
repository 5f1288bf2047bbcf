package snapshots

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"holdfast/catalog"
	"holdfast/internal/volume"
)

// Restore says what is to become again what it was.
type Restore struct {
	Path   string      // cleaned and absolute
	At     catalog.Seq // the moment: after this record
	To     string      // a directory that gets a copy, under the name that Path ends in; "": Path itself becomes what it was
	DryRun bool        // change nothing
}

// restoreTries is how often a restore is planned beside the work of others, before it is planned while they wait.
const restoreTries = 3

// errMoved: what the plan was made from has changed.
var errMoved = errors.New("what is to be restored is being changed")

// Run restores, in one record, which can be undone itself. What was not there at the moment goes, but for what came from elsewhere in the store:
// that is left and reported. Contents are not copied: the restored files name the blobs that the old ones did. They keep their mode, owner, times,
// extended attributes and hard links. On error nothing is changed. catalog.ErrNotExist when Path was not there at the moment, or the directory that
// it lies in is not there now; catalog.ErrExist when To has such a name already; catalog.ErrTooBig when more has changed than one record can hold.
func (r Restore) Run(ctx context.Context, vol *volume.Volume, who catalog.Actor) (Result, error) {
	r.Path = path.Clean("/" + r.Path)
	if r.To != "" {
		return r.copy(ctx, vol, who)
	}
	if err := saveOpen(ctx, vol, r.DryRun); err != nil {
		return Result{}, err
	}
	for try := 0; ; try++ {
		res, err := r.inPlace(ctx, vol, who, try < restoreTries)
		if !errors.Is(err, errMoved) {
			return res, err
		}
	}
}

// inPlace makes the plan, beside the work of others if it may, and carries it out unless they have changed what it was made from (errMoved).
func (r Restore) inPlace(ctx context.Context, vol *volume.Volume, who catalog.Actor, beside bool) (Result, error) {
	var w *comparer
	if beside {
		newest, err := vol.Newest(ctx)
		if err != nil {
			return Result{}, err
		}
		if w, err = r.compare(ctx, vol); err != nil {
			return Result{}, err
		}
		w.seenUpTo = newest
	}
	seq, err := vol.Transact(ctx, who, catalog.OpRestore, r.Path, func(tx *catalog.Tx, touched *volume.Touched) (err error) {
		if w == nil {
			w, err = r.compare(ctx, vol)
		} else {
			err = w.unmoved(ctx)
		}
		if err != nil {
			return err
		}
		if len(w.p.names)+len(w.p.inodes) == 0 {
			return errDryRun
		}
		if err := carryOut(ctx, vol, tx, touched, w.p); err != nil {
			return fmt.Errorf("restore %s: %w; nothing was changed", r.Path, err)
		}
		return endDry(r.DryRun)
	})
	if w == nil {
		return Result{}, err
	}
	return result(seq, w.p, err)
}

// comparer compares what is below a path with what was, and plans how to get back.
type comparer struct {
	ctx      context.Context
	vol      *volume.Volume
	at       catalog.Seq
	top      catalog.Ino // where the path leads now; 0: nowhere
	topThen  catalog.Ino // and where it led
	p        *plan
	seen     map[catalog.Ino]struct{} // all that was compared
	renew    map[catalog.Ino]bool     // of inodes that were compared: whether their content differs
	inside   map[catalog.Ino]bool     // of directories: whether they lie below top now
	was      map[catalog.Ino]bool     // whether they lay below topThen
	seenUpTo catalog.Seq
}

func (r Restore) compare(ctx context.Context, vol *volume.Volume) (*comparer, error) {
	then, err := vol.ResolveAt(ctx, r.Path, r.At)
	if err != nil {
		return nil, fmt.Errorf("%s at @v%d: %w", r.Path, r.At, err)
	}
	w := &comparer{ctx: ctx, vol: vol, at: r.At, topThen: then.Ino, p: newPlan(), seen: make(map[catalog.Ino]struct{}),
		inside: make(map[catalog.Ino]bool), renew: make(map[catalog.Ino]bool), was: make(map[catalog.Ino]bool)}
	w.p.prune = true
	dir, name := splitPath(r.Path)
	if name == "" {
		w.top = catalog.Root
		if err := w.inode(then, "", 0); err != nil {
			return nil, err
		}
		return w, w.leaveForeign()
	}
	parent, err := vol.Resolve(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("%w: %s is not there now; restore a directory above it, or give --to DIR", err, dir)
	}
	if !isDir(parent.Mode) {
		return nil, fmt.Errorf("%s: %w now; restore a directory above it, or give --to DIR", dir, catalog.ErrNotDir)
	}
	now, err := vol.Lookup(ctx, parent.Ino, name)
	if err != nil && !errors.Is(err, catalog.ErrNotExist) {
		return nil, err
	}
	if err != nil {
		now = catalog.Inode{}
	}
	w.top = now.Ino
	w.seen[parent.Ino] = struct{}{}
	if err := w.name(place{parent.Ino, name}, r.Path, then, now, 0); err != nil {
		return nil, err
	}
	return w, w.leaveForeign()
}

// unmoved is errMoved when a record since the plan was made touches what it was made from.
func (w *comparer) unmoved(ctx context.Context) error {
	return w.vol.Records(ctx, w.seenUpTo+1, func(r catalog.Record) error {
		for i := range r.Inodes {
			if _, ok := w.seen[r.Inodes[i].Ino]; ok && r.Op != catalog.OpMerge {
				return errMoved
			}
		}
		return nil
	})
}

// name compares where a name led with where it leads; the zero Inode: nowhere.
func (w *comparer) name(k place, p string, then, now catalog.Inode, depth int) error {
	if depth > maxWalkDepth {
		return errTooDeep
	}
	if then.Ino != now.Ino {
		w.bind(&binding{place: k, now: now.Ino, want: then.Ino, at: w.at, path: p})
		if err := w.p.full(); err != nil {
			return err
		}
	}
	if then.Ino != 0 {
		if err := w.inode(then, p, depth); err != nil {
			return err
		}
		if then.Ino == now.Ino && w.renew[now.Ino] {
			w.bind(&binding{place: k, now: now.Ino, want: now.Ino, at: w.at, path: p})
		}
	}
	if now.Ino != 0 && now.Ino != then.Ino && isDir(now.Mode) {
		return w.directory(now.Ino, p, depth+1)
	}
	return nil
}

// bind takes a binding into the plan. The directory keeps the times that it had.
func (w *comparer) bind(b *binding) {
	w.p.names[b.place] = b
	if w.was[b.dir] {
		w.p.times[b.dir] = w.at
	}
}

// inode compares what an inode was with what it is.
func (w *comparer) inode(then catalog.Inode, p string, depth int) error {
	w.seen[then.Ino] = struct{}{}
	if _, done := w.renew[then.Ino]; !done {
		w.renew[then.Ino] = false
		now, err := w.vol.Get(w.ctx, then.Ino)
		if err != nil {
			return err
		}
		fields, err := differences(w.ctx, w.vol, then, w.at, now, catalog.Head)
		if err != nil {
			return err
		}
		switch {
		case len(fields) > 0:
			w.renew[then.Ino] = slices.Contains(fields, FieldContent)
			w.p.inodes[then.Ino], w.p.paths[then.Ino] = w.at, path.Clean("/"+p)
		case isDir(then.Mode) && then.Mtime != now.Mtime:
			w.p.times[then.Ino] = w.at
		}
	}
	if !isDir(then.Mode) {
		return nil
	}
	return w.directory(then.Ino, p, depth+1)
}

// directory compares the names in a directory, which was or is below the path, or both.
func (w *comparer) directory(dir catalog.Ino, p string, depth int) error {
	if _, done := w.was[dir]; done {
		return nil
	}
	row, err := w.vol.Get(w.ctx, dir)
	if err != nil {
		return err
	}
	was, err := w.below(dir, w.at, w.topThen, w.was)
	if err != nil {
		return err
	}
	w.seen[dir] = struct{}{}
	is := false // it is below the path now
	if row.Nlink > 0 && w.top != 0 {
		if is, err = w.below(dir, catalog.Head, w.top, w.inside); err != nil {
			return err
		}
	}
	names := make(map[string]catalog.Inode)
	if is {
		if err := walkDir(w.ctx, w.vol, dir, catalog.Head, func(e catalog.DirEntry) error {
			names[e.Name] = e.Inode
			return nil
		}); err != nil {
			return err
		}
	}
	if was {
		if err := walkDir(w.ctx, w.vol, dir, w.at, func(e catalog.DirEntry) error {
			now := names[e.Name]
			delete(names, e.Name)
			return w.name(place{dir, e.Name}, p+"/"+e.Name, e.Inode, now, depth)
		}); err != nil {
			return err
		}
	}
	for name, now := range names {
		if err := w.name(place{dir, name}, p+"/"+name, catalog.Inode{}, now, depth); err != nil {
			return err
		}
	}
	return nil
}

// below says whether a directory lies at or below top after the record at, and remembers it in known.
func (w *comparer) below(dir catalog.Ino, at catalog.Seq, top catalog.Ino, known map[catalog.Ino]bool) (bool, error) {
	if yes, ok := known[dir]; ok {
		return yes, nil
	}
	var path []catalog.Ino
	found := false
	for at2 := dir; ; {
		if len(path) > maxWalkDepth {
			return false, errTooDeep
		}
		if yes, ok := known[at2]; ok {
			found = yes
			break
		}
		path = append(path, at2)
		if at2 == top {
			found = true
			break
		}
		if at2 == catalog.Root {
			break
		}
		row, err := w.rowAt(at2, at)
		if errors.Is(err, catalog.ErrStale) || err == nil && row.Nlink == 0 {
			break
		}
		if err != nil {
			return false, err
		}
		at2 = row.Parent
	}
	known[dir] = found
	return found, nil
}

func (w *comparer) rowAt(ino catalog.Ino, at catalog.Seq) (catalog.Inode, error) {
	if at == catalog.Head {
		return w.vol.Get(w.ctx, ino)
	}
	return w.vol.GetAt(w.ctx, ino, at)
}

// leaveForeign takes back the removal of what was in the store at the moment, but not below the path: it would be nowhere.
func (w *comparer) leaveForeign() error {
	left := make(map[catalog.Ino]bool)
	for _, b := range w.p.sorted() { // a directory before what is in it
		if _, here := w.renew[b.now]; b.want != 0 || here {
			continue
		}
		if !left[b.dir] {
			then, err := w.vol.GetAt(w.ctx, b.now, w.at)
			if errors.Is(err, catalog.ErrStale) || err == nil && then.Nlink == 0 {
				continue
			}
			if err != nil {
				return err
			}
			w.p.left = append(w.p.left, Step{Action: StepLeft, Path: b.path, Reason: "it was elsewhere at the moment, and was moved here since"})
		}
		left[b.now] = true
		delete(w.p.names, b.place)
	}
	return nil
}

// copy makes a copy of what was.
func (r Restore) copy(ctx context.Context, vol *volume.Volume, who catalog.Actor) (Result, error) {
	then, err := vol.ResolveAt(ctx, r.Path, r.At)
	if err != nil {
		return Result{}, fmt.Errorf("%s at @v%d: %w", r.Path, r.At, err)
	}
	_, name := splitPath(r.Path)
	if name == "" {
		return Result{}, fmt.Errorf("%w: the root of the store has no name that a copy could have; restore the directories in it one by one", catalog.ErrInvalid)
	}
	to := path.Join("/", r.To, name)
	p := newPlan()
	seq, err := vol.Transact(ctx, who, catalog.OpRestore, to, func(tx *catalog.Tx, touched *volume.Touched) error {
		dir, err := vol.Resolve(ctx, r.To)
		if err != nil {
			return fmt.Errorf("%w; make the directory first", err)
		}
		if !isDir(dir.Mode) {
			return fmt.Errorf("%s: %w", r.To, catalog.ErrNotDir)
		}
		if _, err := tx.Lookup(ctx, dir.Ino, name); err == nil {
			return fmt.Errorf("%s: %w; give another directory with --to", to, catalog.ErrExist)
		} else if !errors.Is(err, catalog.ErrNotExist) {
			return err
		}
		touched.Names = append(touched.Names, volume.NameKey{Parent: dir.Ino, Name: name})
		c := &copier{ctx: ctx, vol: vol, tx: tx, at: r.At, p: p, made: make(map[catalog.Ino]catalog.Ino)}
		if err := c.copy(then, place{dir.Ino, name}, to, 0); err != nil {
			return fmt.Errorf("restore %s: %w; nothing was changed", r.Path, err)
		}
		return endDry(r.DryRun)
	})
	return result(seq, p, err)
}

// copier copies a tree of the past within one transaction.
type copier struct {
	ctx  context.Context
	vol  *volume.Volume
	tx   *catalog.Tx
	at   catalog.Seq
	p    *plan
	made map[catalog.Ino]catalog.Ino // copies of what had several names
}

func (c *copier) copy(then catalog.Inode, to place, p string, depth int) error {
	if depth > maxWalkDepth {
		return errTooDeep
	}
	c.p.names[to] = &binding{place: to, want: then.Ino, path: p}
	if err := c.p.full(); err != nil {
		return err
	}
	if made, ok := c.made[then.Ino]; ok {
		_, err := c.tx.Link(c.ctx, made, to.dir, to.name)
		return err
	}
	row, err := copyInode(c.ctx, c.vol, c.tx, then.Ino, c.at, to.dir, to.name)
	if err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	if then.Nlink > 1 && then.Mode&unix.S_IFMT != unix.S_IFDIR {
		c.made[then.Ino] = row.Ino
	}
	if isDir(then.Mode) {
		if err := walkDir(c.ctx, c.vol, then.Ino, c.at, func(e catalog.DirEntry) error {
			return c.copy(e.Inode, place{row.Ino, e.Name}, p+"/"+e.Name, depth+1)
		}); err != nil {
			return err
		}
	}
	return setAttributes(c.ctx, c.vol, c.tx, then.Ino, then, c.at, row.Ino)
}
