package catalog

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"holdfast/internal/sqldb"
)

const (
	// pruneSlice is the number of inode rows that one step of Prune looks at, when PruneOptions does not say.
	pruneSlice = 2000
	// maxPruneCache bounds the directories of which Prune remembers the policy.
	maxPruneCache = 1 << 16
)

// PruneOptions says what Prune may take away, and how.
type PruneOptions struct {
	// Policies begin with that of the root; others hold for what is below their directories.
	Policies []Policy
	Now      time.Time // default: the catalog's
	// DryRun changes nothing: a copy of catalog.db is pruned and thrown away. It takes room for the copy.
	DryRun bool
	// Slice is the number of rows looked at in one step. Between steps, in which the catalog is as quick as ever, Pause is called; its error ends Prune.
	Slice int
	Pause func(context.Context) error
	// InUse says of an inode without a name that somebody has it open.
	InUse func(Ino) bool
	// Sweep also looks for what a killed process left: inodes that nobody has open any more, and, but for a dry run, blobs that no record ever named.
	Sweep bool
}

// PruneReport says what Prune took away, or would take away, and why.
type PruneReport struct {
	DryRun    bool           `json:"dry_run"`
	Policies  []PolicyReport `json:"policies"`
	Snapshots []string       `json:"snapshots_removed"` // automatic ones that no policy keeps any more
	Blobs     int64          `json:"blobs"`             // that nothing names any more
	BlobBytes int64          `json:"blob_bytes"`        // of plain content, in those
	Orphans   int64          `json:"orphans"`           // blobs that no record ever named
	Steps     int            `json:"steps"`
	Compacted CompactReport  `json:"compacted"` // filled by whoever also calls Compact
}

// PolicyReport is what one policy is the reason for.
type PolicyReport struct {
	Path     string    `json:"path"`
	Horizon  time.Time `json:"horizon"` // every moment since is kept
	Moments  int       `json:"moments"` // kept before it
	Removed  int64     `json:"removed"` // inodes without a name, gone for good
	Versions int64     `json:"versions"`
	Names    int64     `json:"names"` // that directories had
	Bytes    int64     `json:"bytes"` // of files' content that only thinned moments had
	ByCount  int64     `json:"versions_by_count"`
	BySize   int64     `json:"versions_by_size"`
}

// Versions is the sum over all policies.
func (r *PruneReport) Versions() (n int64) {
	for _, p := range r.Policies {
		n += p.Versions
	}
	return n
}

// pruner is one Prune in progress.
type pruner struct {
	c      *Catalog
	o      PruneOptions
	db     *sqldb.DB // catalog.db, or its copy
	w      rowWriter // of the copy
	rep    *PruneReport
	byDir  map[Ino]int      // policies of directories
	kept   map[string][]Seq // as in the database that is pruned
	sides  map[Ino]struct{} // inodes that conflicts name
	anew   map[int]bool     // policies whose history is to be looked at from the beginning
	cursor Seq              // files that changed since are looked at for too many versions
	// asOf is a record up to which nothing is thinned but what lies between moments that were known when Prune began: a snapshot that is made
	// meanwhile is of a later one.
	asOf Seq
}

// Prune makes the automatic snapshots that are due (see AutoSnapshots), and takes away what no policy keeps: versions, names and inodes between
// kept moments, automatic snapshots, and then the blobs that nothing names any more. What holds now, or at a moment that is kept or held, stays as it is. One Prune runs at a time. A killed one is simply made again. What a
// report says of a dry run is what a run at the same moment does.
func (c *Catalog) Prune(ctx context.Context, o PruneOptions) (rep PruneReport, err error) {
	if err := checkPolicies(o.Policies); err != nil {
		return rep, err
	}
	if c.opt.ReadOnly {
		return rep, ErrReadOnly
	}
	if o.Slice <= 0 {
		o.Slice = pruneSlice
	}
	if o.Now.IsZero() {
		o.Now = c.opt.Now()
	}
	rep.DryRun = o.DryRun
	select {
	case c.pruneTurn <- struct{}{}:
		defer func() { <-c.pruneTurn }()
	case <-ctx.Done():
		return rep, ctx.Err()
	}
	if c.Damaged() {
		return rep, errPruneDamaged()
	}
	p := &pruner{c: c, o: o, db: c.db, rep: &rep, byDir: make(map[Ino]int), cursor: c.pruneCursor}
	if err := c.Flush(ctx); err != nil {
		return rep, err
	}
	if o.DryRun {
		close, err := p.onCopy(ctx)
		if err != nil {
			return rep, fmt.Errorf("make a copy of catalog.db to try on: %w", err)
		}
		defer close()
	}
	if err := p.run(ctx); err != nil {
		return rep, fmt.Errorf("thin the history: %w", err)
	}
	return rep, nil
}

// onCopy makes p prune a copy of catalog.db.
func (p *pruner) onCopy(ctx context.Context) (closeCopy func(), err error) {
	dir, err := os.MkdirTemp(p.c.opt.Dir, dryRunPrefix+"*")
	if err != nil {
		return nil, failed("make a directory", err)
	}
	defer func() {
		if err != nil {
			os.RemoveAll(dir)
		}
	}()
	path := filepath.Join(dir, dbName)
	if err := p.c.db.CopyTo(ctx, path); err != nil {
		return nil, failed("copy catalog.db", err)
	}
	db, err := sqldb.Open(ctx, sqldb.Options{Path: path, Schema: schema, Version: dbFormat})
	if err != nil {
		return nil, err
	}
	p.db, p.w = db, newRowWriter()
	return func() {
		db.Close()
		os.RemoveAll(dir)
	}, nil
}

func (p *pruner) run(ctx context.Context) error {
	p.c.mu.RLock()
	p.asOf = p.c.last // before the snapshots are listed
	p.c.mu.RUnlock()
	// The hours that are about to be thinned leave their last moments behind.
	snapshots, err := p.dueSnapshots(ctx)
	if err != nil {
		return err
	}
	if snapshots, err = p.tidySnapshots(ctx, snapshots); err != nil {
		return err
	}
	kept, err := loadKept(ctx, p.db)
	if err != nil {
		return err
	}
	p.kept = kept
	p.rep.Policies = make([]PolicyReport, len(p.o.Policies))
	if err := p.forgetPolicies(ctx); err != nil {
		return err
	}
	for i := range p.o.Policies {
		pol := &p.o.Policies[i]
		p.rep.Policies[i].Path = pol.Path
		moments, err := p.c.momentsOf(ctx, pol, snapshots, p.o.Now, p.asOf)
		if err != nil {
			return err
		}
		if err := p.thin(ctx, i, moments); err != nil {
			return err
		}
	}
	if p.o.Sweep {
		if err := p.sweepDead(ctx); err != nil {
			return err
		}
	}
	if err := p.tryAgain(ctx); err != nil {
		return err
	}
	if err := p.dropConflicts(ctx); err != nil {
		return err
	}
	if err := p.bound(ctx, snapshots); err != nil {
		return err
	}
	if err := p.blobs(ctx); err != nil || p.o.DryRun {
		return err
	}
	return p.measure(ctx)
}

// dueSnapshots makes the automatic snapshots that are due and returns all that there are, oldest first. In a dry run it only says which there would be.
func (p *pruner) dueSnapshots(ctx context.Context) ([]Snapshot, error) {
	var due []Snapshot
	var err error
	if p.o.DryRun {
		due, err = p.c.dueSnapshots(ctx, p.o.Now)
	} else {
		_, err = p.c.AutoSnapshots(ctx, p.o.Now)
	}
	if err != nil {
		return nil, err
	}
	list, err := p.c.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	list = append(list, due...)
	slices.SortStableFunc(list, func(a, b Snapshot) int { return cmp.Compare(a.Seq, b.Seq) })
	return list, nil
}

// tidySnapshots removes the automatic snapshots that no policy keeps, and returns the others.
func (p *pruner) tidySnapshots(ctx context.Context, list []Snapshot) (left []Snapshot, err error) {
	keep := make(map[string]bool)
	for i := range p.o.Policies {
		for _, s := range p.o.Policies[i].keeps(list, p.o.Now) {
			keep[s.Name] = true
		}
	}
	var gone []Snapshot
	for _, s := range list {
		if keep[s.Name] {
			left = append(left, s)
			continue
		}
		p.rep.Snapshots = append(p.rep.Snapshots, s.Name)
		gone = append(gone, s)
	}
	if len(gone) == 0 || p.o.DryRun {
		return left, nil
	}
	err = p.c.mutate(ctx, p.actor(), OpSnapshot, func(t *txn) error {
		p.c.mu.RLock()
		defer p.c.mu.RUnlock()
		for _, s := range gone {
			if p.c.snapshots[s.Name] == s { // nobody has pinned or renamed it meanwhile
				s.Removed = true
				t.p.rec.Snapshots = append(t.p.rec.Snapshots, s)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return p.c.Snapshots(ctx)
}

func (p *pruner) actor() Actor {
	return Actor{Agent: "holdfast", Program: "holdfast", PID: uint32(os.Getpid())}
}

// thin takes away what lies between the moments, the last of which is the horizon, of the files under the policy i.
func (p *pruner) thin(ctx context.Context, i int, moments []Seq) error {
	rep := &p.rep.Policies[i]
	path := p.o.Policies[i].Path
	done, ok := p.kept[path]
	if !ok {
		done = p.keptAbove(path)
	}
	moments = still(done, moments)
	if len(moments) == 0 {
		return nil
	}
	at, err := p.c.TimeOf(ctx, moments[len(moments)-1])
	if err != nil {
		return err
	}
	rep.Horizon, rep.Moments = at, len(moments)-1
	if p.sides, err = loadSides(ctx, p.db, Head); err != nil {
		return err
	}
	after := Seq(0)
	for _, before := range moments {
		from, thin := unthinned(done, after, before)
		if p.anew[i] {
			from, thin = after, true
		}
		if thin {
			if err := p.gap(ctx, i, gapOf{after, before, from}); err != nil {
				return err
			}
		}
		after = before
	}
	return p.noteKept(ctx, path, moments)
}

// keptAbove returns up to which moments history was thinned of files that are under a policy of path from now on: the policy above had them so far.
func (p *pruner) keptAbove(path string) []Seq {
	best := ""
	for above := range p.kept {
		if len(above) > len(best) && (above == "/" || strings.HasPrefix(path, above+"/")) {
			best = above
		}
	}
	return p.kept[best]
}

// still returns those of moments, the last of which is the horizon, that are there as a whole: what was thinned between two moments does not come back
// when a policy keeps more. Nor does the horizon go back.
func still(done, moments []Seq) []Seq {
	if len(done) == 0 || len(moments) == 0 {
		return moments
	}
	last := done[len(done)-1]
	out := moments[:0:0]
	for _, s := range moments {
		if _, found := slices.BinarySearch(done, s); found || s > last {
			out = append(out, s)
		}
	}
	if moments[len(moments)-1] < last {
		out = append(out, last)
	}
	return out
}

// unthinned says whether anything may be left between two neighbouring moments, given those up to which history is thinned already, and
// behind which record to look for it.
func unthinned(done []Seq, after, before Seq) (from Seq, thin bool) {
	i, found := slices.BinarySearch(done, after)
	if found {
		i++
	}
	switch {
	case i == len(done):
		return after, true
	case done[i] >= before:
		return after, false
	}
	// Up to the next neighbour nothing is left but what held at that neighbour, too: whatever can go now has a row behind it.
	return done[i], true
}

// noteKept records up to which moments the history under the policy of path is thinned now.
func (p *pruner) noteKept(ctx context.Context, path string, moments []Seq) error {
	var changes []Kept
	for _, s := range moments {
		if _, found := slices.BinarySearch(p.kept[path], s); !found {
			changes = append(changes, Kept{Policy: path, Seq: s})
		}
	}
	for _, s := range p.kept[path] {
		if _, found := slices.BinarySearch(moments, s); !found {
			changes = append(changes, Kept{Policy: path, Seq: s, Removed: true})
		}
	}
	if len(changes) == 0 {
		return nil
	}
	p.kept[path] = moments
	oldest, err := p.oldest(ctx)
	if err != nil {
		return err
	}
	return p.apply(ctx, &Pruned{Kept: changes, Oldest: oldest})
}

// oldest returns the time of the oldest version that is left; 0 when there is none.
func (p *pruner) oldest(ctx context.Context) (at Timestamp, err error) {
	err = p.db.Read(ctx, func(c *sqldb.Conn) error {
		st := c.Prep(`SELECT v.time FROM inodes i INDEXED BY inodes_seq CROSS JOIN versions v ON v.ino = i.ino AND v.num = i.ver
			WHERE i.ver > 0 AND v.seq = i.from_seq ORDER BY i.from_seq LIMIT 1`)
		ok, err := st.Step()
		if err == nil && ok {
			at = st.Int64(0)
		}
		return err
	})
	return at, err
}

// gapOf is a stretch of history of which only what holds at its ends is kept. Rows that begin behind from are looked at.
type gapOf struct{ after, before, from Seq }

// gap thins one gap, step by step.
func (p *pruner) gap(ctx context.Context, i int, g gapOf) error {
	for cursor := g.from; cursor < g.before; {
		inos, end, err := p.changedIn(ctx, cursor, g.before)
		if err != nil {
			return err
		}
		var drops []Drop
		for _, ino := range inos {
			if p.policyOf(ctx, ino) == i {
				drops = append(drops, Drop{Ino: ino, After: g.after, Before: end})
			}
		}
		if _, err := p.drop(ctx, i, drops); err != nil {
			return err
		}
		cursor = end
		if err := p.pause(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (p *pruner) pause(ctx context.Context) error {
	p.rep.Steps++
	if p.o.Pause != nil && !p.o.DryRun {
		return p.o.Pause(ctx)
	}
	return ctx.Err()
}

// changedIn returns the inodes that have rows behind cursor and up to end, which is before or, when there are many rows, sooner.
func (p *pruner) changedIn(ctx context.Context, cursor, before Seq) (inos []Ino, end Seq, err error) {
	seen := make(map[Ino]struct{})
	read := func(from, to Seq, limit int) (n int, first, last Seq, err error) {
		clear(seen)
		inos = inos[:0]
		err = p.db.Read(ctx, func(c *sqldb.Conn) error {
			st := c.Prep("SELECT from_seq, ino FROM inodes WHERE from_seq > ? AND from_seq <= ? ORDER BY from_seq LIMIT ? + 0").
				BindInt64(1, int64(from)).BindInt64(2, int64(to)).BindInt64(3, int64(limit))
			for {
				ok, err := st.Step()
				if err != nil || !ok {
					return err
				}
				last = Seq(st.Int64(0))
				if n++; n == 1 {
					first = last
				}
				ino := Ino(st.Int64(1))
				if _, ok := seen[ino]; !ok {
					seen[ino] = struct{}{}
					inos = append(inos, ino)
				}
			}
		})
		return n, first, last, err
	}
	n, first, last, err := read(cursor, before, p.o.Slice)
	if err != nil || n < p.o.Slice {
		return inos, before, err
	}
	// The rows of the last record may go on: it is left for the next step, or taken whole when there is no other.
	if last > first {
		end = last - 1
		_, _, _, err = read(cursor, end, p.o.Slice)
	} else {
		end = last
		_, _, _, err = read(last-1, last, MaxRows+1)
	}
	return inos, end, err
}

// policyOf returns the index of the policy under which an inode is.
func (p *pruner) policyOf(ctx context.Context, ino Ino) int {
	if len(p.o.Policies) == 1 {
		return 0
	}
	if len(p.byDir) == 0 || len(p.byDir) > maxPruneCache {
		clear(p.byDir)
		for i := range p.o.Policies {
			p.byDir[p.o.Policies[i].Dir] = i
		}
	}
	var way []Ino
	found := 0
	for range maxDepth {
		if i, ok := p.byDir[ino]; ok {
			found = i
			break
		}
		row, err := p.c.Get(ctx, ino)
		if err != nil || ino == Root { // what lost its place is under the root's policy
			break
		}
		if isDir(row.Mode) {
			way = append(way, ino)
		}
		ino = row.Parent
	}
	for _, dir := range way {
		p.byDir[dir] = found
	}
	return found
}

// apply makes x a record and waits until catalog.db has it, or does to the copy what the record would do.
func (p *pruner) apply(ctx context.Context, x *Pruned) error {
	if p.o.DryRun {
		return p.db.Write(ctx, func(c *sqldb.Conn) error { return p.w.prune(c, x) })
	}
	if err := p.c.opt.check(stagePrune); err != nil {
		return err
	}
	err := p.c.mutate(ctx, p.actor(), OpPrune, func(t *txn) error {
		if err := p.stillStand(ctx, x); err != nil {
			return err
		}
		if len(x.Drops)+len(x.Forgotten)+len(x.Kept) > 0 || x.Conflicts > 0 {
			t.p.rec.Pruned = x
		}
		return nil
	})
	if err != nil {
		return err
	}
	p.c.pruneDebt += x.Versions + int64(len(x.Drops)+len(x.Forgotten))
	return p.c.Flush(ctx)
}
