package catalog

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"holdfast/catalog/journal"
)

// maxIno keeps inode numbers, cookies and journal numbers inside what SQLite's integers hold.
const maxIno = 1 << 62

// txn is one mutation: it reads the newest state and gathers the rows of one record. It runs under Catalog.order, so that
// nothing changes what it has read; it does not hold mu while it reads catalog.db.
type txn struct {
	c   *Catalog
	p   *pending
	seq Seq       // of the record, when there will be one
	now Timestamp // of everything that it does
	new Ino       // the next free number, and cookie, of this record
	ck  uint64
	// many is set when the record is made of more than one change, each of which sees those before it.
	many *changes
}

// mutate runs fn as one mutation: when fn returns nil the rows it gathered are one record, in the journal and in effect, or
// nothing has changed and the error says why. No rows, no record.
func (c *Catalog) mutate(ctx context.Context, who Actor, op Op, fn func(t *txn) error) error {
	if err := c.admit(ctx); err != nil {
		return err
	}
	c.order.Lock()
	defer c.order.Unlock()
	return c.mutateLocked(who, op, fn)
}

// mutateLocked is mutate for a caller that holds order.
func (c *Catalog) mutateLocked(who Actor, op Op, fn func(t *txn) error) error {
	p := new(pending)
	p.rec.Op, p.rec.Actor = op, cleanActor(who)
	p.rec.Inodes, p.rec.Dentries = p.inodes[:0], p.dentries[:0]
	t := &c.tx
	*t = txn{c: c, p: p}
	c.mu.RLock()
	closed := c.closed
	t.seq, t.new, t.ck = c.last+1, c.nextIno, c.nextCookie
	last := c.lastTime
	c.mu.RUnlock()
	if closed {
		return ErrClosed
	}
	now := c.opt.Now()
	t.now = now.UnixNano()
	if t.now < last { // time in the journal never goes back
		t.now = last
	}
	if err := fn(t); err != nil {
		return err
	}
	if p.rec.empty() {
		return nil
	}
	return t.commit()
}

// commit appends the record to the journal and changes the state in memory.
func (t *txn) commit() error {
	c, p := t.c, t.p
	p.rec.Seq = t.seq
	p.rec.Time = unixTime(t.now)
	head, bodies, err := c.enc.Encode(&p.rec)
	if errors.Is(err, journal.ErrTooLarge) {
		return fmt.Errorf("%w: %w; make the change in parts, directory by directory", ErrTooBig, err)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	p.bytes = int64(len(head)) + pendingOverhead
	for _, b := range bodies {
		p.bytes += int64(len(b))
	}
	if err := c.beforeAppend(p.bytes); err != nil {
		return err
	}
	seq, pos, err := c.j.Append(t.now, head, bodies...)
	if err != nil {
		if errors.Is(err, journal.ErrTooLarge) {
			return fmt.Errorf("%w: %w", ErrTooBig, err)
		}
		return failed("write the journal", err)
	}
	p.pos = pos
	c.segmentEnd = pos.Offset + p.bytes
	if Seq(seq) != t.seq {
		// Somebody else writes to this journal: rows that name t.seq would be wrong, so nothing more may be written.
		c.mu.Lock()
		c.closed = true
		c.mu.Unlock()
		return fmt.Errorf("%w: the journal numbered a record %d that should be %d: another process writes to this store; close both and check it", ErrDamaged, seq, t.seq)
	}
	c.mu.Lock()
	c.remember(p)
	first, full := len(c.queue) == 1, c.pendingBytes > kickBytes || len(c.queue) > kickRecords
	c.mu.Unlock()
	c.app.notify(first, full)
	return nil
}

// inode returns the row of ino as this mutation leaves it so far. ErrStale when the number was never used.
func (t *txn) inode(ctx context.Context, ino Ino) (Inode, error) {
	if row := t.staged(ino); row != nil {
		return *row, nil
	}
	return t.c.current(ctx, ino)
}

func (t *txn) staged(ino Ino) *Inode {
	if t.many != nil {
		if i, ok := t.many.rows[ino]; ok {
			return &t.p.rec.Inodes[i]
		}
		return nil
	}
	for i := range t.p.rec.Inodes {
		if row := &t.p.rec.Inodes[i]; row.Ino == ino {
			return row
		}
	}
	return nil
}

// directory returns the row of a directory in which names can be made and removed.
func (t *txn) directory(ctx context.Context, ino Ino) (Inode, error) {
	row, err := t.inode(ctx, ino)
	switch {
	case err != nil:
		return row, err
	case !isDir(row.Mode):
		return row, ErrNotDir
	case row.Nlink == 0:
		return row, ErrNotExist
	}
	return row, nil
}

// entry returns where a name leads; ino 0: nowhere.
func (t *txn) entry(ctx context.Context, parent Ino, name string) (nameVal, error) {
	if t.many != nil {
		return t.many.entry(ctx, t, nameKey{parent, name})
	}
	return t.c.currentName(ctx, parent, name)
}

// set makes row the newest of its inode.
func (t *txn) set(row Inode) {
	if have := t.staged(row.Ino); have != nil {
		*have = row
		return
	}
	if t.many != nil {
		t.many.rows[row.Ino] = len(t.p.rec.Inodes)
	}
	t.p.rec.Inodes = append(t.p.rec.Inodes, row)
}

// touch sets the times of a directory in which a name changed.
func (t *txn) touch(dir Inode) Inode {
	dir.Mtime, dir.Ctime = t.now, t.now
	return dir
}

// bind makes a name lead to an inode.
func (t *txn) bind(parent Ino, name string, row *Inode, cookie uint64) error {
	if t.many != nil {
		return t.many.bind(t, nameKey{parent, name}, nameVal{row.Ino, row.Mode & typeMask, cookie})
	}
	t.p.rec.Dentries = append(t.p.rec.Dentries, Dentry{Parent: parent, Name: name, Ino: row.Ino, Type: row.Mode & typeMask, Cookie: cookie})
	return nil
}

// unbind makes a name lead nowhere.
func (t *txn) unbind(parent Ino, name string, v nameVal) error {
	if t.many != nil {
		return t.many.bind(t, nameKey{parent, name}, nameVal{})
	}
	t.p.rec.Dentries = append(t.p.rec.Dentries, Dentry{Parent: parent, Name: name, Type: v.typ, Cookie: v.cookie})
	return nil
}

// about says which name the record is about.
func (t *txn) about(ctx context.Context, parent Ino, name string) {
	if t.many == nil {
		t.p.rec.Path = t.c.pathOf(ctx, parent, name)
	}
}

// aboutInode says which inode the record is about.
func (t *txn) aboutInode(ctx context.Context, row *Inode) {
	if t.many == nil {
		t.p.rec.Path = t.c.pathOfInode(ctx, row)
	}
}

// checkEmpty is ErrNotEmpty when a directory has entries.
func (t *txn) checkEmpty(ctx context.Context, dir Ino) error {
	if t.many == nil {
		return t.c.checkEmpty(ctx, dir)
	}
	list, err := t.many.readDir(ctx, t, dir, 0, 1)
	if err == nil && len(list) > 0 {
		err = ErrNotEmpty
	}
	return err
}

// xattrs returns the attributes of an inode as this mutation leaves them so far.
func (t *txn) xattrs(ctx context.Context, ino Ino) (*xattrSet, error) {
	if t.many != nil {
		if set := t.many.xattrs[ino]; set != nil {
			return set, nil
		}
		if ino >= t.many.firstNew {
			return t.c.noXattrs, nil
		}
	}
	return t.c.xattrsOf(ctx, ino)
}

// putXattr adds a change of the attributes set.
func (t *txn) putXattr(set *xattrSet, x Xattr) {
	if t.p.xattrs == nil {
		t.p.xattrs = make(map[Ino]*xattrSet)
	}
	if t.p.xattrs[x.Ino] == nil {
		t.p.xattrs[x.Ino] = set
	}
	if t.many != nil {
		t.many.putXattr(t, set, x)
		return
	}
	t.p.rec.Xattrs = []Xattr{x}
}

func (t *txn) newIno() (Ino, error) {
	if t.new >= maxIno {
		return 0, fmt.Errorf("%w: inode numbers are used up", ErrTooBig)
	}
	t.new++
	return t.new - 1, nil
}

func (t *txn) newCookie() (uint64, error) {
	if t.ck >= maxIno {
		return 0, fmt.Errorf("%w: directory positions are used up", ErrTooBig)
	}
	t.ck++
	return t.ck - 1, nil
}

// current returns the newest row of ino, for a caller that holds order.
func (c *Catalog) current(ctx context.Context, ino Ino) (Inode, error) {
	c.mu.RLock()
	n := c.inodes.get(ino)
	var row Inode
	if n != nil {
		row = n.val.row
	}
	c.mu.RUnlock()
	if n != nil {
		return row, nil
	}
	if ino == 0 || ino >= maxIno {
		return Inode{}, ErrStale
	}
	row, ok, err := loadInode(ctx, c.db, ino, Head)
	if err != nil {
		return Inode{}, c.readFailed("read an inode", err)
	}
	if !ok {
		return Inode{}, ErrStale
	}
	c.mu.Lock()
	c.inodes.add(ino, inodeVal{row: row})
	c.mu.Unlock()
	return row, nil
}

// currentName is current for names.
func (c *Catalog) currentName(ctx context.Context, parent Ino, name string) (nameVal, error) {
	key := nameKey{parent, name}
	c.mu.RLock()
	n := c.names.get(key)
	var v nameVal
	known := n != nil || c.absent(parent, name)
	if n != nil {
		v = n.val
	}
	c.mu.RUnlock()
	if known {
		return v, nil
	}
	v, err := loadName(ctx, c.db, parent, name, Head)
	if err != nil {
		return nameVal{}, c.readFailed("read a name", err)
	}
	c.mu.Lock()
	c.names.add(key, v)
	learn := v.ino == 0 && c.missed(parent)
	c.mu.Unlock()
	if learn {
		return v, c.learn(ctx, parent)
	}
	return v, nil
}

// checkName says whether name can be that of a directory entry.
func checkName(name string) error {
	switch {
	case len(name) > MaxName:
		return ErrNameTooLong
	case name == "" || name == "." || name == ".." || strings.IndexByte(name, '/') >= 0 || strings.IndexByte(name, 0) >= 0:
		return fmt.Errorf("%w: %q cannot be a name", ErrInvalid, name)
	}
	return nil
}

// cleanActor cuts what comes from outside to what a record may hold.
func cleanActor(a Actor) Actor {
	a.Agent, a.Program = a.Agent[:min(len(a.Agent), maxActorText)], a.Program[:min(len(a.Program), maxActorText)]
	return a
}

// maxActorText is how much of an agent's or a program's name is kept, in bytes.
const maxActorText = 255
