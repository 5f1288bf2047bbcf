package snapshots

import (
	"context"
	"errors"
	"fmt"
	"path"
	"time"

	"holdfast/catalog"
	"holdfast/internal/volume"
)

// Change is one record of the journal, as people look for it.
type Change struct {
	Seq     catalog.Seq `json:"seq"`
	Time    time.Time   `json:"time"`
	Op      catalog.Op  `json:"op"`
	Path    string      `json:"path"` // of the principal object, at the time
	Agent   string      `json:"agent"`
	Program string      `json:"program"`
	UID     uint32      `json:"uid"`
	PID     uint32      `json:"pid"`
}

// ChangeQuery says which records are meant.
type ChangeQuery struct {
	Agent string    // "": of every agent
	Since time.Time // zero: from the first record on
	Path  string    // cleaned and absolute: at or below it
}

// Changes calls fn with each record that the query means, oldest first, until fn returns an error, which Changes returns. What the store does by
// itself, such as merging extents, is not among them. catalog.ErrNotExist when there never was such a path.
func Changes(ctx context.Context, vol *volume.Volume, q ChangeQuery, fn func(Change) error) error {
	from := catalog.Seq(1)
	if !q.Since.IsZero() {
		seq, err := vol.SeqAt(ctx, q.Since)
		if err != nil {
			return err
		}
		from = seq + 1
	}
	top := path.Clean("/" + q.Path)
	found := false
	err := vol.Records(ctx, from, func(r catalog.Record) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if ofStore(r.Op, r.Actor) || q.Agent != "" && r.Actor.Agent != q.Agent || !within(path.Clean("/"+r.Path), top) {
			return nil
		}
		found = true
		return fn(Change{Seq: r.Seq, Time: r.Time.UTC(), Op: r.Op, Path: r.Path, Agent: r.Actor.Agent, Program: r.Actor.Program,
			UID: r.Actor.UID, PID: r.Actor.PID})
	})
	if err == nil && !found {
		err = everThere(ctx, vol, top)
	}
	return err
}

// ofStore says that a record was written by the store itself, and changes nothing that a program could see but times.
func ofStore(op catalog.Op, who catalog.Actor) bool {
	return op == catalog.OpMerge || op == catalog.OpPrune || who.Agent == "" && who.Program == "holdfast"
}

// trail is what happened to one name, or to one inode, since the first of the changes that are to be undone.
type trail struct {
	first catalog.Seq // the first change that is to be undone; 0: none
	run   catalog.Seq // the first of those that nobody else has built on; 0: somebody has built on the newest
	other string      // who made the newest change of somebody else, since first
	built catalog.Seq // and when
	path  string      // a path of it at the time
}

func (t *trail) mine(r *catalog.Record) {
	if t.first == 0 {
		t.first = r.Seq
	}
	if t.run == 0 {
		t.run = r.Seq
	}
	if t.path == "" {
		t.path = path.Clean("/" + r.Path)
	}
}

func (t *trail) others(r *catalog.Record) {
	t.other, t.built, t.run = agentName(r.Actor), r.Seq, 0
}

func agentName(who catalog.Actor) string {
	if who.Agent != "" {
		return who.Agent
	}
	return who.Program
}

// before is the moment whose state is to come back: before all changes, or before those that nobody has built on.
func (t *trail) before(all bool) catalog.Seq {
	if all || t.run == 0 {
		return t.first - 1
	}
	return t.run - 1
}

// foreign is a change by somebody else.
type foreign struct {
	seq   catalog.Seq
	agent string
}

// collector follows the journal and finds out what an agent has changed, and who has built on it.
type collector struct {
	vol    *volume.Volume
	match  func(*catalog.Actor) bool
	next   catalog.Seq // the first record that was not looked at
	start  catalog.Seq // and the first that was
	names  map[place]*trail
	inodes map[catalog.Ino]*trail
	shared map[catalog.Ino]foreign // directories in which somebody else changed names, and the newest time
}

func newCollector(vol *volume.Volume, from catalog.Seq, match func(*catalog.Actor) bool) *collector {
	return &collector{vol: vol, match: match, next: from, start: from, names: make(map[place]*trail),
		inodes: make(map[catalog.Ino]*trail), shared: make(map[catalog.Ino]foreign)}
}

// follow looks at the records up to the newest. It may be called again, for those written since.
func (c *collector) follow(ctx context.Context) error {
	err := c.vol.Records(ctx, c.next, func(r catalog.Record) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		c.next = r.Seq + 1
		return c.record(ctx, &r)
	})
	if errors.Is(err, catalog.ErrDamaged) {
		return fmt.Errorf("what was changed cannot be found out: %w; restore works without the journal", err)
	}
	return err
}

func (c *collector) record(ctx context.Context, r *catalog.Record) error {
	if ofStore(r.Op, r.Actor) || r.Op == catalog.OpSnapshot || r.Op == catalog.OpInit {
		return nil
	}
	mine := c.match(&r.Actor)
	for i := range r.Dentries {
		d := &r.Dentries[i]
		k := place{d.Parent, d.Name}
		t := c.names[k]
		switch {
		case mine && t == nil:
			t = new(trail)
			c.names[k] = t
			fallthrough
		case mine:
			t.mine(r)
			if d.Ino != 0 && c.inodes[d.Ino] == nil {
				c.inodes[d.Ino] = new(trail) // to see who builds on it
			}
		default:
			c.shared[d.Parent] = foreign{r.Seq, agentName(r.Actor)}
			if t != nil {
				t.others(r)
			}
		}
	}
	changed := make(map[catalog.Ino]bool)
	for i := range r.Splices {
		changed[r.Splices[i].Ino] = true
	}
	for i := range r.Xattrs {
		changed[r.Xattrs[i].Ino] = true
	}
	if len(r.Dentries) == 0 || r.Op == catalog.OpRestore || r.Op == catalog.OpUndo {
		if err := c.attributes(ctx, r, mine, changed); err != nil {
			return err
		}
	}
	for ino := range changed {
		t := c.inodes[ino]
		switch {
		case mine && t == nil:
			t = new(trail)
			c.inodes[ino] = t
			fallthrough
		case mine:
			t.mine(r)
		case t != nil:
			t.others(r)
		}
	}
	if len(c.names)+len(c.inodes) > 2*catalog.MaxRows {
		return fmt.Errorf("%w: more than %d names and files were changed in that time; choose a shorter one, or a sub-directory", catalog.ErrTooBig, catalog.MaxRows)
	}
	return nil
}

// attributes notes the inodes whose attributes a record changed. Times alone are nothing that somebody else has built on.
func (c *collector) attributes(ctx context.Context, r *catalog.Record, mine bool, changed map[catalog.Ino]bool) error {
	for i := range r.Inodes {
		row := &r.Inodes[i]
		if changed[row.Ino] || !mine && c.inodes[row.Ino] == nil {
			continue
		}
		old, err := c.vol.GetAt(ctx, row.Ino, r.Seq-1)
		if errors.Is(err, catalog.ErrStale) {
			continue // it is new
		}
		if errors.Is(err, catalog.ErrThinned) {
			changed[row.Ino] = true // nobody knows any more
			continue
		}
		if err != nil {
			return err
		}
		if old.Mode != row.Mode || old.UID != row.UID || old.GID != row.GID || old.Size != row.Size ||
			mine && r.Op != catalog.OpSetxattr && (old.Mtime != row.Mtime || old.Atime != row.Atime) {
			changed[row.Ino] = true
		}
	}
	return nil
}
