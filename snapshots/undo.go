package snapshots

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/catalog"
	"holdfast/internal/volume"
)

// errDryRun ends a transaction whose effect was only to be told.
var errDryRun = errors.New("dry run")

// Undo says what is to be undone.
type Undo struct {
	Agent  string    // whose changes; "": everybody's
	Since  time.Time // those after it
	Path   string    // cleaned and absolute: at or below it, then or now
	Force  bool      // also what others have built on
	DryRun bool      // change nothing
}

// Result is what a restore or an undo has done.
type Result struct {
	Seq   catalog.Seq // the record that did it; 0 when nothing was to be done, or in a dry run
	Steps []Step
}

// Run undoes the changes: the names, contents and attributes that they changed become what they were, in one record, which can be undone itself. A change that
// another agent has built on since is left, and reported; what that agent built on top of an earlier change stays, and only what came behind it is
// undone. On error nothing is changed. catalog.ErrNotExist when there never was such a path; catalog.ErrTooBig when there are more changes than one record can hold.
func (u Undo) Run(ctx context.Context, vol *volume.Volume, who catalog.Actor) (Result, error) {
	seq, err := vol.SeqAt(ctx, u.Since)
	if err != nil {
		return Result{}, err
	}
	if err := saveOpen(ctx, vol, u.DryRun); err != nil {
		return Result{}, err
	}
	c := newCollector(vol, seq+1, func(a *catalog.Actor) bool { return u.Agent == "" || a.Agent == u.Agent })
	if err := c.follow(ctx); err != nil {
		return Result{}, err
	}
	u.Path = path.Clean("/" + u.Path)
	var p *plan
	done, err := vol.Transact(ctx, who, catalog.OpUndo, u.Path, func(tx *catalog.Tx, touched *volume.Touched) error {
		if err := c.follow(ctx); err != nil { // what was written since; nothing more comes now
			return err
		}
		d := &decider{ctx: ctx, vol: vol, tx: tx, u: &u, c: c, p: newPlan(), named: make(map[catalog.Ino]place), paths: make(map[catalog.Ino]string), kept: make(map[catalog.Ino]bool)}
		if err := d.decide(); err != nil {
			return err
		}
		p = d.p
		if len(p.names)+len(p.inodes)+len(p.times) == 0 {
			return errDryRun
		}
		if err := carryOut(ctx, vol, tx, touched, p); err != nil {
			return fmt.Errorf("undo: %w; nothing was changed", err)
		}
		return endDry(u.DryRun)
	})
	res, err := result(done, p, err)
	if err == nil && len(res.Steps) == 0 {
		err = everThere(ctx, vol, u.Path)
	}
	return res, err
}

// everThere is catalog.ErrNotExist when p neither is a path nor ever was one.
func everThere(ctx context.Context, vol *volume.Volume, p string) error {
	if p == "/" {
		return nil
	}
	_, err := vol.PathHistory(ctx, p)
	return err
}

func endDry(dry bool) error {
	if dry {
		return errDryRun
	}
	return nil
}

func result(seq catalog.Seq, p *plan, err error) (Result, error) {
	if errors.Is(err, errDryRun) {
		seq, err = 0, nil
	}
	if err != nil {
		return Result{}, err
	}
	return Result{Seq: seq, Steps: p.steps()}, nil
}

func saveOpen(ctx context.Context, vol *volume.Volume, dry bool) error {
	if dry {
		return nil
	}
	return vol.SaveOpen(ctx)
}

// thinnedReason is why a change is left that nobody can take back.
const thinnedReason = "retention has thinned away what it was"

// decider turns trails into a plan.
type decider struct {
	ctx   context.Context
	vol   *volume.Volume
	tx    *catalog.Tx
	u     *Undo
	c     *collector
	p     *plan
	named map[catalog.Ino]place  // where an inode was, of those that come back
	paths map[catalog.Ino]string // of directories
	kept  map[catalog.Ino]bool   // directories in which a change was left
}

func (d *decider) decide() error {
	d.p.links, d.p.prune = true, d.u.Force
	if err := d.decideNames(); err != nil {
		return err
	}
	if err := d.settle(); err != nil {
		return err
	}
	if err := d.decideInodes(); err != nil {
		return err
	}
	return d.p.full()
}

func (d *decider) leave(p, agent, format string, args ...any) {
	d.p.left = append(d.p.left, Step{Action: StepLeft, Path: p, Agent: agent, Reason: fmt.Sprintf(format, args...)})
}

// lookupAt is where a name led after a record; 0: nowhere.
func (d *decider) lookupAt(k place, at catalog.Seq) (catalog.Ino, error) {
	row, err := d.vol.LookupAt(d.ctx, k.dir, k.name, at)
	if !errors.Is(err, catalog.ErrThinned) && (errors.Is(err, catalog.ErrNotExist) || errors.Is(err, catalog.ErrStale)) {
		return 0, nil
	}
	return row.Ino, err
}

// decideNames makes a binding of each name that does not lead where it did.
func (d *decider) decideNames() error {
	var cand []*binding
	lost := make(map[catalog.Ino]int)
	for k, t := range d.c.names {
		if t.first == 0 {
			continue
		}
		at := t.before(d.u.Force)
		want, err := d.lookupAt(k, at)
		if errors.Is(err, catalog.ErrThinned) {
			lost[k.dir]++
			continue
		}
		if err != nil {
			return err
		}
		row, err := d.tx.Lookup(d.ctx, k.dir, k.name)
		if err != nil && !errors.Is(err, catalog.ErrNotExist) {
			return err
		}
		now := row.Ino
		if err != nil {
			now = 0
		}
		if want == now {
			continue
		}
		b := &binding{place: k, now: now, want: want, at: at}
		cand = append(cand, b)
		if want != 0 {
			d.named[want] = k
		}
	}
	for _, b := range cand {
		dir, err := d.pathOf(b.dir, 0)
		if err != nil {
			return err
		}
		b.path = path.Join(dir, b.name)
	}
	if err := d.reportLost(lost); err != nil {
		return err
	}
	slices.SortFunc(cand, func(a, b *binding) int { return compare(a.path, b.path) })
	var elsewhere []*binding
	wanted := make(map[catalog.Ino]bool)
	for _, b := range cand {
		if !within(b.path, d.u.Path) {
			elsewhere = append(elsewhere, b)
			continue
		}
		wanted[b.want] = true
		dir := b.dir
		if err := d.decideName(b); err != nil {
			return err
		}
		d.kept[dir] = d.kept[dir] || d.p.names[place{dir, b.name}] != b
	}
	for _, b := range elsewhere { // what was moved out of the path leaves the place that it has now
		if b.now != 0 && wanted[b.now] {
			if err := d.decideName(b); err != nil {
				return err
			}
		}
	}
	return nil
}

// reportLost leaves the names, so many in each directory, of which nobody knows any more where they led.
func (d *decider) reportLost(lost map[catalog.Ino]int) error {
	for _, dir := range slices.Sorted(maps.Keys(lost)) {
		p, err := d.pathOf(dir, 0)
		if err != nil {
			return err
		}
		d.kept[dir] = true
		if within(p, d.u.Path) {
			d.leave(p, "", "%s: where %d names in it led", thinnedReason, lost[dir])
		}
	}
	return nil
}

// decideName takes a binding into the plan, or reports it.
func (d *decider) decideName(b *binding) error {
	t := d.c.names[b.place]
	if !d.u.Force && t.run == 0 {
		d.leave(b.path, t.other, "%s has changed it since", t.other)
		return nil
	}
	if it := d.c.inodes[b.now]; !d.u.Force && b.now != 0 && it != nil && it.built > t.run {
		d.leave(b.path, it.other, "%s has changed it since", it.other)
		return nil
	}
	if s := d.c.shared[b.now]; !d.u.Force && b.now != 0 && s.seq > t.run {
		d.leave(b.path, s.agent, "%s has changed what is in it since", s.agent)
		return nil
	}
	home, err := d.home(b.dir, 0)
	if err != nil {
		return err
	}
	if home != b.dir {
		b.dir = home
		switch _, err := d.tx.Lookup(d.ctx, home, b.name); {
		case err == nil:
			d.leave(b.path, "", "its directory was made anew, and so was the file")
			return nil
		case !errors.Is(err, catalog.ErrNotExist):
			return err
		}
	}
	if d.p.names[b.place] == nil {
		d.p.names[b.place] = b
	}
	return d.p.full()
}

// home is the directory that something from dir goes back to: where somebody has made the directory anew, that one.
func (d *decider) home(dir catalog.Ino, depth int) (catalog.Ino, error) {
	if depth > maxWalkDepth {
		return 0, errTooDeep
	}
	row, err := d.tx.Get(d.ctx, dir)
	k, known := d.named[dir]
	if err != nil || row.Nlink > 0 || !known {
		return dir, err
	}
	above, err := d.home(k.dir, depth+1)
	if err != nil {
		return 0, err
	}
	if b := d.p.names[place{above, k.name}]; b != nil && b.want == dir {
		return dir, nil
	}
	now, err := d.tx.Lookup(d.ctx, above, k.name)
	if errors.Is(err, catalog.ErrNotExist) || err == nil && !isDir(now.Mode) {
		return dir, nil
	}
	return now.Ino, err
}

// pathOf is the path that a directory has, or had before it was removed.
func (d *decider) pathOf(dir catalog.Ino, depth int) (string, error) {
	if depth > maxWalkDepth {
		return "", errTooDeep
	}
	if p, ok := d.paths[dir]; ok {
		return p, nil
	}
	p := "/"
	if dir != catalog.Root {
		k, moved := d.named[dir]
		if moved {
			above, err := d.pathOf(k.dir, depth+1)
			if err != nil {
				return "", err
			}
			p = path.Join(above, k.name)
		} else {
			var err error
			p, err = d.vol.Path(d.ctx, dir)
			if errors.Is(err, catalog.ErrNotExist) || errors.Is(err, catalog.ErrStale) {
				p, err = d.formerPath(dir)
			}
			if err != nil {
				return "", err
			}
		}
	}
	d.paths[dir] = p
	return p, nil
}

// formerPath is the path that a directory, which is gone and stays so, had before the changes.
func (d *decider) formerPath(dir catalog.Ino) (string, error) {
	at := d.c.start - 1
	row, err := d.vol.GetAt(d.ctx, dir, at)
	if err == nil && row.Nlink > 0 {
		var p string
		if p, err = (&differ{ctx: d.ctx, vol: d.vol}).pathAt(row, at); err == nil {
			return p, nil
		}
	}
	if err != nil && !errors.Is(err, catalog.ErrStale) && !errors.Is(err, catalog.ErrThinned) {
		return "", err
	}
	return fmt.Sprintf("/(removed directory %d)", dir), nil // it is younger, or nobody knows any more
}

// settle takes bindings back that cannot be, or would take away what others made, until no more have to be.
func (d *decider) settle() error {
	for {
		wanted := make(map[catalog.Ino]bool)
		leaving := make(map[catalog.Ino]int) // names that lose an inode
		for _, b := range d.p.names {
			wanted[b.want] = true
			if b.now != 0 {
				leaving[b.now]++
			}
		}
		again := false
		for _, b := range d.p.sorted() {
			reason, agent, err := d.objection(b, wanted, leaving)
			if err != nil {
				return err
			}
			if reason != "" {
				again = true
				d.kept[b.dir] = true
				delete(d.p.names, b.place)
				d.leave(b.path, agent, "%s", reason)
			}
		}
		if !again {
			return nil
		}
	}
}

// objection says why a binding cannot be.
func (d *decider) objection(b *binding, wanted map[catalog.Ino]bool, leaving map[catalog.Ino]int) (reason, agent string, err error) {
	if b.want != 0 {
		if reason, err = d.cannotCome(b, wanted, leaving); reason != "" || err != nil {
			return reason, d.builder(b.want), err
		}
	}
	if b.now != 0 && !wanted[b.now] {
		return d.cannotGo(b, leaving)
	}
	return "", "", nil
}

func (d *decider) builder(ino catalog.Ino) string {
	if t := d.c.inodes[ino]; t != nil {
		return t.other
	}
	return ""
}

func (d *decider) cannotCome(b *binding, wanted map[catalog.Ino]bool, leaving map[catalog.Ino]int) (string, error) {
	dir, err := d.tx.Get(d.ctx, b.dir)
	if err != nil {
		return "", err
	}
	if !wanted[b.dir] && (dir.Nlink == 0 || leaving[b.dir] > 0) {
		return "its directory is not there any more, and does not come back", nil
	}
	row, err := d.tx.Get(d.ctx, b.want)
	if err != nil || row.Nlink == 0 || leaving[b.want] > 0 {
		return "", err
	}
	then, err := d.vol.GetAt(d.ctx, b.want, b.at)
	if errors.Is(err, catalog.ErrThinned) {
		return thinnedReason, nil
	}
	if err != nil {
		return "", err
	}
	if isDir(row.Mode) || then.Nlink <= row.Nlink && !d.u.Force {
		p, err := d.vol.Path(d.ctx, b.want)
		return "it was moved on, and is " + p + " now", err
	}
	return "", nil
}

// cannotGo objects to the removal of what has another origin than the changes that are undone.
func (d *decider) cannotGo(b *binding, leaving map[catalog.Ino]int) (reason, agent string, err error) {
	row, err := d.tx.Get(d.ctx, b.now)
	if err != nil {
		return "", "", err
	}
	if !isDir(row.Mode) && uint32(leaving[b.now]) < row.Nlink {
		return "", "", nil // it keeps another name
	}
	older := true // than the changes that are undone, and than the last of them that gave it this name
	for _, at := range []catalog.Seq{d.c.start - 1, b.at} {
		then, err := d.vol.GetAt(d.ctx, b.now, at)
		if errors.Is(err, catalog.ErrThinned) {
			return thinnedReason, "", nil
		}
		if err != nil && !errors.Is(err, catalog.ErrStale) {
			return "", "", err
		}
		older = older && err == nil && then.Nlink > 0
	}
	if older {
		return "it would have no place: the one that it had is taken, or left as it is", "", nil
	}
	if !isDir(row.Mode) || d.u.Force {
		return "", "", nil
	}
	for after := uint64(0); ; {
		list, err := d.tx.ReadDir(d.ctx, b.now, after, walkPage)
		if err != nil || len(list) == 0 {
			return "", "", err
		}
		for _, e := range list {
			inner := d.p.names[place{b.now, e.Name}]
			if inner == nil || inner.want == e.Inode.Ino {
				return "what is in it stays: " + e.Name, d.builder(e.Inode.Ino), nil
			}
		}
		after = list[len(list)-1].Cookie
	}
}

// decideInodes gives contents and attributes back, and directories their times.
func (d *decider) decideInodes() error {
	coming := make(map[catalog.Ino]*binding)
	for _, b := range d.p.names {
		if b.want != 0 {
			coming[b.want] = b
		}
	}
	if err := d.decideTimes(); err != nil {
		return err
	}
	leaving := make(map[catalog.Ino]uint32)
	for _, b := range d.p.names {
		leaving[b.now]++
	}
	for _, ino := range slices.Sorted(maps.Keys(d.c.inodes)) {
		t := d.c.inodes[ino]
		if t.first == 0 {
			continue
		}
		row, err := d.tx.Get(d.ctx, ino)
		if errors.Is(err, catalog.ErrStale) {
			continue // nothing is left of it: its names were reported
		}
		if err != nil {
			return err
		}
		if coming[ino] == nil && leaving[ino] > 0 && (isDir(row.Mode) || leaving[ino] >= row.Nlink) {
			continue // it goes
		}
		if err := d.decideInode(ino, t, coming[ino]); err != nil {
			return err
		}
	}
	return nil
}

// decideTimes gives directories their times back in which nobody else changed a name, and nothing was left.
func (d *decider) decideTimes() error {
	for k, t := range d.c.names {
		if t.first == 0 || d.kept[k.dir] || d.c.shared[k.dir].seq > t.before(d.u.Force) {
			continue
		}
		if p, err := d.pathOf(k.dir, 0); err != nil {
			return err
		} else if !within(p, d.u.Path) {
			continue
		}
		at := t.before(d.u.Force)
		if old, ok := d.p.times[k.dir]; ok && old <= at {
			continue
		}
		_, err := d.vol.GetAt(d.ctx, k.dir, at)
		if err == nil {
			d.p.times[k.dir] = at
		} else if !errors.Is(err, catalog.ErrStale) && !errors.Is(err, catalog.ErrThinned) {
			return err
		}
	}
	return nil
}

func (d *decider) decideInode(ino catalog.Ino, t *trail, b *binding) error {
	row, err := d.tx.Get(d.ctx, ino)
	if err != nil {
		return err
	}
	var p string
	switch {
	case b != nil:
		p = b.path
	case row.Nlink == 0:
		return nil
	default:
		if p, err = d.vol.Path(d.ctx, ino); err != nil {
			return err
		}
	}
	if !within(p, d.u.Path) {
		return nil
	}
	at := t.before(d.u.Force)
	then, err := d.vol.GetAt(d.ctx, ino, at)
	if errors.Is(err, catalog.ErrStale) {
		return nil // its beginning is among the changes
	}
	if errors.Is(err, catalog.ErrThinned) {
		d.leave(p, "", "%s", thinnedReason)
		return nil
	}
	if err != nil {
		return err
	}
	if t.run == 0 && !d.u.Force {
		d.leave(p, t.other, "%s has changed it since", t.other)
		return nil
	}
	if then.Nlink == 0 && b == nil {
		return nil
	}
	if row.Mode&unix.S_IFMT != then.Mode&unix.S_IFMT {
		return fmt.Errorf("%s: %w: inode %d has changed its type", p, catalog.ErrDamaged, ino)
	}
	fields, err := differences(d.ctx, d.vol, then, at, row, catalog.Head)
	switch {
	case err != nil:
		return err
	case len(fields) > 0:
	case isDir(then.Mode) && d.c.shared[ino].seq <= at && !d.kept[ino]:
		if old, ok := d.p.times[ino]; !ok || at < old {
			d.p.times[ino] = at
		}
		return nil
	default:
		return nil
	}
	d.p.inodes[ino], d.p.paths[ino] = at, p
	if isDir(then.Mode) && (d.c.shared[ino].seq > at || d.kept[ino]) {
		d.p.noTimes[ino] = true
	}
	return d.p.full()
}
