package snapshots

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"holdfast/catalog"
	"holdfast/internal/volume"
)

// The actions of a Step.
const (
	StepRestored = "restored" // what was gone, or replaced, is back
	StepChanged  = "changed"  // content, attributes or both are what they were
	StepRemoved  = "removed"  // what was not there then
	StepLeft     = "left"     // nothing was done, for Reason
)

// Step is one thing that a restore or an undo did, or left as it is.
type Step struct {
	Action string `json:"action"`
	Path   string `json:"path"`
	Reason string `json:"reason,omitempty"` // of StepLeft
	Agent  string `json:"agent,omitempty"`  // who has built on it, of StepLeft
}

// place is a name in a directory.
type place struct {
	dir  catalog.Ino
	name string
}

// binding says where a name leads now, and where it is to lead.
type binding struct {
	place
	now, want catalog.Ino // 0: nowhere
	at        catalog.Seq // want is to be what it was after this record
	path      string
}

// plan is a state that is to be reached, in terms of what differs from the present.
type plan struct {
	names  map[place]*binding
	inodes map[catalog.Ino]catalog.Seq // an inode is to be what it was after the record: content, attributes
	times  map[catalog.Ino]catalog.Seq // directories that get their times back
	paths  map[catalog.Ino]string      // of inodes, for the report
	// noTimes: directories that do not get their times back with their other attributes, since others have changed names in them.
	noTimes map[catalog.Ino]bool
	// prune: what is in a directory that goes, goes with it.
	prune bool
	// links: an inode's other names follow when its content goes into a new inode.
	links bool
	left  []Step
}

func newPlan() *plan {
	return &plan{names: make(map[place]*binding), inodes: make(map[catalog.Ino]catalog.Seq), times: make(map[catalog.Ino]catalog.Seq),
		paths: make(map[catalog.Ino]string), noTimes: make(map[catalog.Ino]bool)}
}

// full is catalog.ErrTooBig when no record can hold what the plan says; it also bounds the memory that a plan takes.
func (p *plan) full() error {
	if len(p.names)+len(p.inodes) > catalog.MaxRows/2 {
		return fmt.Errorf("%w: more than %d names and files differ, which is more than one step can change; take sub-directories one by one",
			catalog.ErrTooBig, catalog.MaxRows/2)
	}
	return nil
}

// sorted returns the bindings in an order that does not depend on chance.
func (p *plan) sorted() []*binding {
	return slices.SortedFunc(maps.Values(p.names), func(a, b *binding) int {
		if a.path != b.path {
			return compare(a.path, b.path)
		}
		if a.dir != b.dir {
			return compare(a.dir, b.dir)
		}
		return compare(a.name, b.name)
	})
}

func compare[T string | catalog.Ino](a, b T) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// steps says what the plan does.
func (p *plan) steps() []Step {
	var list []Step
	told := make(map[string]bool)
	add := func(action, path string) {
		if !told[path] {
			told[path] = true
			list = append(list, Step{Action: action, Path: path})
		}
	}
	for _, b := range p.sorted() {
		switch {
		case b.want == 0:
			add(StepRemoved, b.path)
		case b.want == b.now:
			add(StepChanged, b.path)
		default:
			add(StepRestored, b.path)
		}
	}
	for _, ino := range slices.Sorted(maps.Keys(p.inodes)) {
		add(StepChanged, p.paths[ino])
	}
	slices.SortFunc(list, func(a, b Step) int { return compare(a.Path, b.Path) })
	for _, s := range p.left {
		if !told[s.Path] {
			told[s.Path] = true
			list = append(list, s)
		}
	}
	return list
}

// rewrite carries a plan out, in one transaction.
type rewrite struct {
	ctx     context.Context
	vol     *volume.Volume
	tx      *catalog.Tx
	touched *volume.Touched
	p       *plan

	parked map[catalog.Ino][]place     // names put aside, by what they lead to
	aside  map[place]bool              // all of them
	fresh  map[catalog.Ino]catalog.Ino // inodes that others take the place of
	renew  map[catalog.Ino]bool        // these need a new inode, for their content
	wants  map[catalog.Ino]*binding    // of directories: the binding that wants it
	placed map[*binding]bool
	home   map[catalog.Ino]bool // inodes that have been put in one of their places
}

// carryOut makes the present what p says. Names whose inodes must change places are put aside first, so that no order of renames has to be found.
func carryOut(ctx context.Context, vol *volume.Volume, tx *catalog.Tx, touched *volume.Touched, p *plan) error {
	w := &rewrite{ctx: ctx, vol: vol, tx: tx, touched: touched, p: p, parked: make(map[catalog.Ino][]place), aside: make(map[place]bool),
		fresh: make(map[catalog.Ino]catalog.Ino), renew: make(map[catalog.Ino]bool), wants: make(map[catalog.Ino]*binding),
		placed: make(map[*binding]bool), home: make(map[catalog.Ino]bool)}
	if err := w.findRenewed(); err != nil {
		return err
	}
	all := p.sorted()
	for _, b := range all {
		if b.want != 0 {
			w.wants[b.want] = b
		}
	}
	still, err := w.renewedOnly(all)
	if err != nil {
		return err
	}
	for _, b := range all {
		if err := w.putAside(b); err != nil {
			return fmt.Errorf("%s: %w", b.path, err)
		}
	}
	for _, b := range all {
		if err := w.put(b); err != nil {
			return fmt.Errorf("%s: %w", b.path, err)
		}
	}
	if err := w.dropAside(); err != nil {
		return err
	}
	if err := w.attributes(); err != nil {
		return err
	}
	for _, dir := range still {
		if _, err := tx.SetAttr(ctx, dir.Ino, catalog.Change{Atime: &dir.Atime, Mtime: &dir.Mtime}); err != nil {
			return err
		}
	}
	return nil
}

// renewedOnly returns the directories in which names lead to new inodes for the sake of contents only: in place of a write, which would not have
// changed the directory's times.
func (w *rewrite) renewedOnly(all []*binding) ([]catalog.Inode, error) {
	other := make(map[catalog.Ino]bool)
	for _, b := range all {
		if b.now != b.want {
			other[b.dir] = true
		}
	}
	var list []catalog.Inode
	for _, b := range all {
		_, timed := w.p.times[b.dir]
		_, set := w.p.inodes[b.dir]
		if other[b.dir] || timed || set {
			continue
		}
		other[b.dir] = true
		row, err := w.tx.Get(w.ctx, b.dir)
		if err != nil {
			return nil, err
		}
		list = append(list, row)
	}
	return list, nil
}

// findRenewed finds the files that get a new inode: the kernel owns the size of a file that it has cached, so content is never changed below it.
func (w *rewrite) findRenewed() error {
	var linked []catalog.Ino
	several := make(map[catalog.Ino]bool) // of those that are timed
	for _, ino := range slices.Sorted(maps.Keys(w.p.inodes)) {
		now, err := w.tx.Get(w.ctx, ino)
		if err != nil {
			return err
		}
		if now.Mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		then, err := w.vol.GetAt(w.ctx, ino, w.p.inodes[ino])
		if err != nil {
			return err
		}
		same := then.Size == now.Size
		if same && then.Ver != now.Ver {
			if same, err = sameContent(w.ctx, w.vol, then, w.p.inodes[ino], now, catalog.Head); err != nil {
				return err
			}
		}
		if same {
			if then.Mtime != now.Mtime && now.Nlink > 1 {
				several[ino] = true
			} else if then.Mtime != now.Mtime && now.Nlink == 1 {
				err = w.timed(ino)
			}
			if err != nil {
				return err
			}
			continue
		}
		w.renew[ino] = true
		if !w.p.links || now.Nlink == 0 {
			continue
		}
		if now.Nlink > 1 {
			linked = append(linked, ino)
			continue
		}
		p, err := w.vol.Path(w.ctx, ino)
		if err != nil {
			return err
		}
		if err := w.follow(p, ino); err != nil {
			return err
		}
	}
	if len(linked)+len(several) == 0 {
		return nil
	}
	return w.followLinks(linked, several)
}

// timed has the kernel asked to forget the name of a file that gets another mtime: it owns the times, too, of a file that it has cached, and
// drops the file with its last name.
func (w *rewrite) timed(ino catalog.Ino) error {
	p, err := w.vol.Path(w.ctx, ino)
	if err != nil {
		return err
	}
	dir, name := splitPath(p)
	parent, err := w.vol.Resolve(w.ctx, dir)
	if err != nil {
		return err
	}
	w.changedName(place{parent.Ino, name})
	return nil
}

// follow adds the name p of ino to the plan, unless the plan has it.
func (w *rewrite) follow(p string, ino catalog.Ino) error {
	dir, name := splitPath(p)
	parent, err := w.vol.Resolve(w.ctx, dir)
	if err != nil {
		return err
	}
	w.followName(place{parent.Ino, name}, p, ino)
	return nil
}

func (w *rewrite) followName(k place, p string, ino catalog.Ino) {
	if w.p.names[k] == nil {
		w.p.names[k] = &binding{place: k, now: ino, want: ino, at: w.p.inodes[ino], path: p}
	}
}

// followLinks looks for all names of inodes that have several, and get a new inode or only another mtime: nothing else than the tree knows them.
func (w *rewrite) followLinks(linked []catalog.Ino, several map[catalog.Ino]bool) error {
	return walkNow(w.ctx, w.vol, catalog.Root, "", func(k place, p string, row catalog.Inode) error {
		if several[row.Ino] {
			w.changedName(k)
		}
		if slices.Contains(linked, row.Ino) {
			w.followName(k, p, row.Ino)
		}
		return nil
	})
}

// asidePrefix begins the names that things have while a transaction is being made; nobody ever sees them.
const asidePrefix = ".holdfast-aside-"

func (w *rewrite) stays(b *binding) bool { return b.now == b.want && !w.renew[b.now] }

func (w *rewrite) putAside(b *binding) error {
	if b.now == 0 || w.stays(b) {
		return nil
	}
	for i := len(w.aside); ; i++ {
		k := place{b.dir, asidePrefix + strconv.Itoa(i)}
		_, err := w.tx.Rename(w.ctx, b.dir, b.name, k.dir, k.name, catalog.RenameNoReplace)
		if errors.Is(err, catalog.ErrExist) {
			continue // a person has called a file so
		}
		if err != nil {
			return err
		}
		w.aside[k] = true
		w.parked[b.now] = append(w.parked[b.now], k)
		w.changedName(b.place)
		return nil
	}
}

func (w *rewrite) changedName(k place) {
	w.touched.Names = append(w.touched.Names, volume.NameKey{Parent: k.dir, Name: k.name})
}

// put makes a name lead where it should. Its directory comes first.
func (w *rewrite) put(b *binding) error {
	if w.placed[b] || b.want == 0 || w.stays(b) {
		return nil
	}
	w.placed[b] = true
	dir := b.dir
	if err := w.putAbove(b.dir); err != nil {
		return err
	}
	if new, ok := w.fresh[b.dir]; ok {
		dir = new
	}
	w.changedName(place{dir, b.name})
	ino := b.want
	if new, ok := w.fresh[ino]; ok {
		_, err := w.tx.Link(w.ctx, new, dir, b.name)
		return err
	}
	if w.renew[ino] {
		return w.create(b, dir)
	}
	if at := w.parked[ino]; len(at) > 0 {
		k := at[len(at)-1]
		w.parked[ino] = at[:len(at)-1]
		delete(w.aside, k)
		w.home[ino] = true
		_, err := w.tx.Rename(w.ctx, k.dir, k.name, dir, b.name, catalog.RenameNoReplace)
		return err
	}
	row, err := w.tx.Get(w.ctx, ino)
	if err != nil {
		return err
	}
	if row.Nlink == 0 {
		w.home[ino] = true
		if isDir(row.Mode) {
			w.touched.Revived = append(w.touched.Revived, ino)
		}
		_, err := w.tx.Revive(w.ctx, ino, dir, b.name)
		return err
	}
	then, err := w.vol.GetAt(w.ctx, ino, b.at)
	if err != nil {
		return err
	}
	if row.Mode&unix.S_IFMT != unix.S_IFDIR && (w.home[ino] || then.Nlink > row.Nlink) {
		w.home[ino] = true
		_, err := w.tx.Link(w.ctx, ino, dir, b.name)
		return err
	}
	return w.create(b, dir)
}

// putAbove puts a directory, and what lies above it, in its place: what is put into it can then not get below itself.
func (w *rewrite) putAbove(dir catalog.Ino) error {
	for range maxWalkDepth {
		if b := w.wants[dir]; b != nil && !w.placed[b] && !w.stays(b) {
			return w.put(b)
		}
		if dir == catalog.Root {
			return nil
		}
		row, err := w.tx.Get(w.ctx, dir)
		if err != nil || row.Nlink == 0 {
			return err
		}
		dir = row.Parent
	}
	return errTooDeep
}

// create makes a copy of what b.want was, under the name.
func (w *rewrite) create(b *binding, dir catalog.Ino) error {
	at, ok := w.p.inodes[b.want]
	if !ok {
		at = b.at
		w.p.inodes[b.want], w.p.paths[b.want] = at, b.path
	}
	row, err := copyInode(w.ctx, w.vol, w.tx, b.want, at, dir, b.name)
	w.fresh[b.want] = row.Ino
	if w.renew[b.want] {
		if w.touched.Replaced == nil {
			w.touched.Replaced = make(map[catalog.Ino]catalog.Ino)
		}
		w.touched.Replaced[b.want] = row.Ino
	}
	return err
}

// copyInode makes a new inode that is what ino was after the record at, apart from attributes, and from what a directory held.
func copyInode(ctx context.Context, vol *volume.Volume, tx *catalog.Tx, ino catalog.Ino, at catalog.Seq, dir catalog.Ino, name string) (catalog.Inode, error) {
	then, err := vol.GetAt(ctx, ino, at)
	if err != nil {
		return then, err
	}
	n := catalog.NewInode{Mode: then.Mode, UID: then.UID, GID: then.GID, Rdev: then.Rdev, Target: then.Target}
	if then.Mode&unix.S_IFMT != unix.S_IFREG {
		return tx.Create(ctx, dir, name, n)
	}
	content, err := vol.Extents(ctx, ino, at)
	if err != nil {
		return then, err
	}
	return tx.CreateFile(ctx, dir, name, n, then.Size, content)
}

// dropAside removes what was put aside and has found no new place.
func (w *rewrite) dropAside() error {
	for k := range maps.Keys(w.aside) {
		row, err := w.tx.Lookup(w.ctx, k.dir, k.name)
		if errors.Is(err, catalog.ErrNotExist) {
			continue // it went with its directory
		}
		if err == nil {
			err = w.remove(k, row)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *rewrite) remove(k place, row catalog.Inode) error {
	if row.Mode&unix.S_IFMT != unix.S_IFDIR {
		_, err := w.tx.Unlink(w.ctx, k.dir, k.name)
		return err
	}
	for {
		list, err := w.tx.ReadDir(w.ctx, row.Ino, 0, 1024)
		if err != nil {
			return err
		}
		if len(list) == 0 {
			return w.tx.Rmdir(w.ctx, k.dir, k.name)
		}
		for _, e := range list {
			inner := place{row.Ino, e.Name}
			if !w.p.prune && !w.aside[inner] {
				return fmt.Errorf("%s: %w: another agent has put something into it", e.Name, catalog.ErrNotEmpty)
			}
			w.changedName(inner)
			if err := w.remove(inner, e.Inode); err != nil {
				return err
			}
		}
	}
}

// attributes sets what content does not say, directories last: their times change with the names in them.
func (w *rewrite) attributes() error {
	for _, wantDirs := range []bool{false, true} {
		for _, ino := range slices.Sorted(maps.Keys(w.p.inodes)) {
			if err := w.attributesOf(ino, w.p.inodes[ino], wantDirs); err != nil {
				return err
			}
		}
	}
	for _, ino := range slices.Sorted(maps.Keys(w.p.times)) {
		if at, done := w.p.inodes[ino]; done && at < w.p.times[ino] {
			continue
		}
		then, err := w.vol.GetAt(w.ctx, ino, w.p.times[ino])
		if err != nil {
			return err
		}
		now, err := w.tx.Get(w.ctx, ino)
		if err != nil {
			return err
		}
		if now.Nlink > 0 {
			w.touched.Inodes = append(w.touched.Inodes, ino)
			if _, err := w.tx.SetAttr(w.ctx, ino, catalog.Change{Atime: &then.Atime, Mtime: &then.Mtime}); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *rewrite) attributesOf(ino catalog.Ino, at catalog.Seq, wantDir bool) error {
	then, err := w.vol.GetAt(w.ctx, ino, at)
	if err != nil {
		return err
	}
	if (then.Mode&unix.S_IFMT == unix.S_IFDIR) != wantDir {
		return nil
	}
	to := ino
	if new, ok := w.fresh[ino]; ok {
		to = new
	} else if w.renew[ino] {
		return nil // all of its names have gone
	}
	now, err := w.tx.Get(w.ctx, to)
	if err != nil || now.Nlink == 0 {
		return err
	}
	w.touched.Inodes = append(w.touched.Inodes, to)
	if w.p.noTimes[ino] {
		then.Atime, then.Mtime = now.Atime, now.Mtime
	}
	return setAttributes(w.ctx, w.vol, w.tx, ino, then, at, to)
}

// setAttributes gives the inode to the attributes that ino had: then is its row after the record at.
func setAttributes(ctx context.Context, vol *volume.Volume, tx *catalog.Tx, ino catalog.Ino, then catalog.Inode, at catalog.Seq, to catalog.Ino) error {
	names, err := vol.ListXattrAt(ctx, ino, at)
	if err != nil {
		return err
	}
	have, err := tx.Xattrs(ctx, to)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(maps.Clone(have))) {
		if !slices.Contains(names, name) {
			if err := tx.RemoveXattr(ctx, to, name); err != nil {
				return err
			}
		}
	}
	for _, name := range names {
		value, err := vol.GetXattrAt(ctx, ino, name, at)
		if err != nil {
			return err
		}
		if old, ok := have[name]; ok && string(old) == string(value) {
			continue
		}
		if err := tx.SetXattr(ctx, to, name, value, 0); err != nil {
			return err
		}
	}
	mode := then.Mode & 0o7777
	_, err = tx.SetAttr(ctx, to, catalog.Change{Mode: &mode, UID: &then.UID, GID: &then.GID, Atime: &then.Atime, Mtime: &then.Mtime})
	return err
}
