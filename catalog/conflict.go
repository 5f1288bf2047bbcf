package catalog

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"holdfast/internal/sqldb"
)

// StrictXattr names the extended attribute that makes a file, or all that is below a directory, strict: the close that would bury another
// writer's change fails.
const StrictXattr = "user.holdfast.strict"

// Conflict is one row: two writers changed the same version of a file, and the later close buried what the earlier one wrote. Both survive.
type Conflict struct {
	_    struct{} `cbor:",toarray"`
	Ino  Ino
	Path string // of the file then
	Lost uint64 // number of the version that was buried
	Won  uint64 // number of the version that came later, and holds; 0: see CommitReplaced
	// Side is set in a strict directory: the later close failed, and what it wanted to save is the content of this inode, which has no name.
	// Lost is then a version of Side, and Won the version of Ino that holds. It is also set when Won is 0.
	Side   Ino
	Time   Timestamp
	LostBy Actor
	WonBy  Actor
	Seq    Seq `cbor:"-"` // the record that holds it; filled when read
}

func (x *Conflict) flaw() string {
	switch {
	case !x.Ino.known() || x.Side >= maxIno || x.Lost > maxIno || x.Won > maxIno:
		return "a number is out of range"
	case len(x.Path) > MaxPath:
		return fmt.Sprintf("its path has %d bytes", len(x.Path))
	}
	for _, a := range []*Actor{&x.LostBy, &x.WonBy} {
		if len(a.Agent) > MaxActor || len(a.Program) > MaxActor {
			return fmt.Sprintf("the name of an agent or a program has more than %d bytes", MaxActor)
		}
	}
	return ""
}

// addConflict adds what the caller of a mutation knows of a conflict about ino to the record.
func (t *txn) addConflict(x Conflict, ino Ino) {
	x.Ino, x.Path, x.Time = ino, t.p.rec.Path, t.now
	x.LostBy, x.WonBy = cleanActor(x.LostBy), cleanActor(x.WonBy)
	t.p.rec.Conflicts = append(t.p.rec.Conflicts, x)
}

// AddConflict records a conflict between two versions that exist, when it is noticed after the later one was written. Lost, Won and both writers are
// set. ErrStale.
func (c *Catalog) AddConflict(ctx context.Context, who Actor, x Conflict) error {
	return c.mutate(ctx, who, OpConflict, func(t *txn) error {
		row, err := t.inode(ctx, x.Ino)
		if err != nil {
			return err
		}
		t.aboutInode(ctx, &row)
		t.addConflict(x, x.Ino)
		return nil
	})
}

// CommitAside keeps the content that cm describes beside the file cm.Ino, which stays as it is: as the first version of a new inode without a name, with
// the mode, owner and attributes' directory of the file. cm is a change of all of the content. The conflict's LostBy and Won name the two
// writers' side of it; its Side is filled. It returns the conflict as recorded.
func (c *Catalog) CommitAside(ctx context.Context, who Actor, cm Commit, x Conflict) (Conflict, error) {
	return c.commitAside(ctx, who, cm, x, false)
}

// CommitReplaced is CommitAside for what was written to a file that a restore or an undo has put cm.Ino in the place of. The conflict's WonBy is who did that, its Won
// is 0.
func (c *Catalog) CommitReplaced(ctx context.Context, who Actor, cm Commit, x Conflict) (Conflict, error) {
	return c.commitAside(ctx, who, cm, x, true)
}

func (c *Catalog) commitAside(ctx context.Context, who Actor, cm Commit, x Conflict, replaced bool) (Conflict, error) {
	if err := c.admit(ctx); err != nil {
		return x, err
	}
	if err := c.pinNew(ctx, &cm); err != nil {
		return x, err
	}
	defer c.unpinNew(&cm)
	if cm.UnsyncedBlobs {
		c.blobGate.RLock() // held across the append: see makeDurable
		defer c.blobGate.RUnlock()
	}
	c.order.Lock()
	defer c.order.Unlock()
	ino := cm.Ino
	err := c.mutateLocked(who, OpConflict, func(t *txn) error {
		file, err := t.inode(ctx, ino)
		if err != nil {
			return err
		}
		if file.Mode&typeMask != unix.S_IFREG {
			return fmt.Errorf("%w: inode %d is no regular file", ErrInvalid, ino)
		}
		side := Inode{Parent: file.Parent, Mode: file.Mode, UID: file.UID, GID: file.GID, Atime: t.now, Mtime: t.now, Ctime: t.now, Btime: t.now}
		if side.Ino, err = t.newIno(); err != nil {
			return err
		}
		cm.Ino, cm.NewVersion, cm.Splice.Cut = side.Ino, true, 0
		if side, err = t.content(ctx, side, &cm); err != nil {
			return err
		}
		t.p.unsynced = cm.UnsyncedBlobs
		t.aboutInode(ctx, &file)
		x.Side, x.Lost, x.Won, x.LostBy = side.Ino, side.Ver, file.Ver, t.p.rec.Actor
		if replaced {
			x.Won = 0
		}
		t.addConflict(x, ino)
		t.set(side)
		x = t.p.rec.Conflicts[0]
		return nil
	})
	return x, err
}

// Strict says whether the close that would bury another writer's change of the file must fail: see StrictXattr.
func (c *Catalog) Strict(ctx context.Context, ino Ino) (bool, error) {
	for range maxDepth {
		set, err := c.xattrsOf(ctx, ino)
		if err != nil {
			return false, err
		}
		if v, ok := set.get(StrictXattr); ok {
			return string(v) == "1", nil
		}
		if ino == Root {
			return false, nil
		}
		row, err := c.Get(ctx, ino)
		if err != nil {
			return false, err
		}
		ino = row.Parent
	}
	return false, fmt.Errorf("%w: inode %d is not connected to the root", ErrDamaged, ino)
}

// maxConflicts bounds what one Conflicts returns.
const maxConflicts = 4096

// Conflicts returns up to max conflicts of the records behind after, in the order of records.
func (c *Catalog) Conflicts(ctx context.Context, after Seq, max int) ([]Conflict, error) {
	max = min(max, maxConflicts)
	if max <= 0 || after >= maxIno {
		return nil, nil
	}
	p := c.moment(Head)
	list, err := loadConflicts(ctx, c.db, after, p.base, max)
	if err != nil {
		return nil, c.readFailed("read the conflicts", err)
	}
	for _, q := range p.recs {
		for _, x := range q.rec.Conflicts {
			if x.Seq = q.rec.Seq; x.Seq > after && len(list) < max {
				list = append(list, x)
			}
		}
	}
	return list, nil
}

func (w *rowWriter) insertConflict(c *sqldb.Conn, x *Conflict, seq Seq) error {
	lost, err := w.actor(c, x.LostBy)
	if err != nil {
		return err
	}
	won, err := w.actor(c, x.WonBy)
	if err != nil {
		return err
	}
	var p rowPut
	return p.begin(c.Prep("INSERT INTO conflicts ("+conflictColumns+", row_sum) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"), tableConflicts).
		int(int64(seq)).int(int64(x.Ino)).name(x.Path).int(int64(x.Lost)).int(int64(x.Won)).int(int64(x.Side)).int(x.Time).
		int(lost).int(int64(x.LostBy.PID)).int(won).int(int64(x.WonBy.PID)).exec()
}

func loadConflicts(ctx context.Context, db *sqldb.DB, after, upTo Seq, max int) (list []Conflict, err error) {
	if db.Version() < formatHistory {
		return nil, nil
	}
	err = db.Read(ctx, func(c *sqldb.Conn) error {
		st := c.Prep(`SELECT x.seq, x.ino, x.path, x.lost, x.won, x.side, x.time, x.lost_by, x.lost_pid, x.won_by, x.won_pid, x.row_sum,
			a.id, a.agent, a.program, a.uid, a.row_sum, b.id, b.agent, b.program, b.uid, b.row_sum
			FROM conflicts x LEFT JOIN actors a ON a.id = x.lost_by LEFT JOIN actors b ON b.id = x.won_by
			WHERE x.seq > ? AND x.seq <= ? ORDER BY x.seq, x.ino LIMIT ? + 0`).
			BindInt64(1, int64(after)).BindInt64(2, int64(upTo)).BindInt64(3, int64(max))
		var r, a, b rowRead
		for {
			ok, err := st.Step()
			if err != nil || !ok {
				return err
			}
			if err := errors.Join(r.read(st, 0, tableConflicts), a.read(st, 12, tableActors), b.read(st, 17, tableActors)); err != nil {
				return err
			}
			list = append(list, Conflict{Seq: Seq(r.int(0)), Ino: Ino(r.int(1)), Path: string(r.bytes(2)), Lost: uint64(r.int(3)), Won: uint64(r.int(4)),
				Side: Ino(r.int(5)), Time: r.int(6), LostBy: a.actor(r.int(8)), WonBy: b.actor(r.int(10))})
		}
	})
	return list, err
}
