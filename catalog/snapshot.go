package catalog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"holdfast/internal/sqldb"
)

// MaxSnapshots bounds the snapshots of a store: all of them are kept in memory.
const MaxSnapshots = 1 << 16

// Snapshot is one row: a moment with a name.
type Snapshot struct {
	_      struct{} `cbor:",toarray"`
	Name   string
	Seq    Seq       // the state after this record
	Time   Timestamp // of that state, as a person would say it: when the snapshot was made, or the hour that an automatic one ends
	Pinned bool      // retention never removes it; nor one that is not Auto
	Auto   bool      // made by the store itself
	// Removed is set in records only: the snapshot of that name is no more.
	Removed bool
}

func (s *Snapshot) flags() (f uint64) {
	for _, x := range []struct {
		set bool
		bit uint64
	}{{s.Pinned, flagPinned}, {s.Auto, flagAuto}, {s.Removed, flagRemoved}} {
		if x.set {
			f |= x.bit
		}
	}
	return f
}

// CheckSnapshotName is ErrInvalid when no snapshot can have the name: 1 to 255 bytes of UTF-8 without "/" and control characters, that do not begin with
// "@" or "." and are none of the names that `.snapshots` uses itself.
func CheckSnapshotName(name string) error {
	switch {
	case name == "" || len(name) > MaxName:
		return fmt.Errorf("%w: the name of a snapshot has 1 to %d bytes", ErrInvalid, MaxName)
	case !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl):
		return fmt.Errorf("%w: %q cannot be the name of a snapshot: control characters and invalid UTF-8 are not possible", ErrInvalid, name)
	case strings.Contains(name, "/") || name[0] == '@' || name[0] == '.':
		return fmt.Errorf("%w: %q cannot be the name of a snapshot: it may not contain / nor begin with @ or a dot", ErrInvalid, name)
	}
	switch name {
	case "versions", "deleted", "conflicts", "README":
		return fmt.Errorf("%w: .snapshots uses the name %s itself; choose another one", ErrInvalid, name)
	}
	return nil
}

// CreateSnapshot gives the present state a name; an empty one stands for the time now in RFC 3339 (UTC), to the second or, where that is
// taken, exactly. It takes as long in a large store as in a small one. It survives a killed process on return and a power cut after Sync.
// ErrInvalid for a name that is none, ErrExist when it is taken, ErrTooBig when there are MaxSnapshots.
func (c *Catalog) CreateSnapshot(ctx context.Context, who Actor, name string, auto bool) (Snapshot, error) {
	return c.createSnapshot(ctx, who, Snapshot{Name: name, Auto: auto})
}

// createSnapshot is CreateSnapshot of the moment s.Seq (0: now), which is not newer than the newest record.
func (c *Catalog) createSnapshot(ctx context.Context, who Actor, s Snapshot) (Snapshot, error) {
	if s.Name != "" {
		if err := CheckSnapshotName(s.Name); err != nil {
			return Snapshot{}, err
		}
	}
	if err := c.admit(ctx); err != nil {
		return Snapshot{}, err
	}
	c.order.Lock()
	defer c.order.Unlock()
	// Times that are only in memory belong to the state that the snapshot is of.
	if s.Seq == 0 {
		if err := c.writeDeferred(ctx); err != nil {
			return Snapshot{}, err
		}
	}
	err := c.mutateLocked(who, OpSnapshot, func(t *txn) error {
		if s.Time == 0 {
			s.Time = t.now
		}
		if s.Name == "" {
			s.Name = c.timeName(s.Time)
		}
		if s.Seq == 0 {
			s.Seq = t.seq - 1
		}
		c.mu.RLock()
		_, taken := c.snapshots[s.Name]
		full := len(c.snapshots) >= MaxSnapshots
		c.mu.RUnlock()
		switch {
		case taken:
			return fmt.Errorf("snapshot %s: %w; choose another name or rename the old one", s.Name, ErrExist)
		case full:
			return fmt.Errorf("%w: there are %d snapshots; remove some first", ErrTooBig, MaxSnapshots)
		}
		t.p.rec.Path = s.Name
		t.p.rec.Snapshots = []Snapshot{s}
		return nil
	})
	if err != nil {
		return Snapshot{}, err
	}
	return s, nil
}

// timeName is the name of a snapshot that is called after its time: to the second, or where another one has that name, exactly.
func (c *Catalog) timeName(at Timestamp) string {
	name := unixTime(at).Format(time.RFC3339)
	c.mu.RLock()
	defer c.mu.RUnlock()
	if _, taken := c.snapshots[name]; taken {
		return unixTime(at).Format(time.RFC3339Nano)
	}
	return name
}

// Snapshots returns all snapshots, oldest moment first.
func (c *Catalog) Snapshots(ctx context.Context) ([]Snapshot, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c.mu.RLock()
	list := make([]Snapshot, 0, len(c.snapshots))
	for _, s := range c.snapshots {
		list = append(list, s)
	}
	c.mu.RUnlock()
	slices.SortFunc(list, func(a, b Snapshot) int {
		return cmp.Or(cmp.Compare(a.Seq, b.Seq), cmp.Compare(a.Time, b.Time), strings.Compare(a.Name, b.Name))
	})
	return list, nil
}

// Snapshot returns the snapshot of that name; ErrNotExist.
func (c *Catalog) Snapshot(ctx context.Context, name string) (Snapshot, error) {
	if err := ctx.Err(); err != nil {
		return Snapshot{}, err
	}
	c.mu.RLock()
	s, ok := c.snapshots[name]
	c.mu.RUnlock()
	if !ok {
		return Snapshot{}, noSnapshot(name)
	}
	return s, nil
}

func noSnapshot(name string) error {
	return fmt.Errorf("snapshot %q: %w: there is no snapshot of that name", name, ErrNotExist)
}

// RenameSnapshot gives a snapshot another name; one that the store made itself then counts as made by hand. ErrNotExist, ErrExist, ErrInvalid.
func (c *Catalog) RenameSnapshot(ctx context.Context, who Actor, from, to string) (Snapshot, error) {
	if err := CheckSnapshotName(to); err != nil {
		return Snapshot{}, err
	}
	return c.changeSnapshot(ctx, who, from, func(s *Snapshot) error {
		if _, taken := c.snapshots[to]; taken {
			return fmt.Errorf("snapshot %s: %w; choose another name", to, ErrExist)
		}
		s.Name, s.Auto = to, false
		return nil
	})
}

// PinSnapshot pins a snapshot, so that retention never removes it, or lets go of it. ErrNotExist.
func (c *Catalog) PinSnapshot(ctx context.Context, who Actor, name string, pin bool) (Snapshot, error) {
	return c.changeSnapshot(ctx, who, name, func(s *Snapshot) error {
		s.Pinned = pin
		return nil
	})
}

// RemoveSnapshot removes a snapshot: retention may then thin its moment away. ErrNotExist; ErrPerm when it is pinned.
func (c *Catalog) RemoveSnapshot(ctx context.Context, who Actor, name string) error {
	_, err := c.changeSnapshot(ctx, who, name, func(s *Snapshot) error {
		if s.Pinned {
			return fmt.Errorf("snapshot %s: %w: it is pinned; unpin it first", name, ErrPerm)
		}
		s.Removed = true
		return nil
	})
	return err
}

// changeSnapshot makes a snapshot what fn, which may read c.snapshots, makes of it. Nothing is recorded when that is the same.
func (c *Catalog) changeSnapshot(ctx context.Context, who Actor, name string, fn func(*Snapshot) error) (now Snapshot, err error) {
	err = c.mutate(ctx, who, OpSnapshot, func(t *txn) error {
		c.mu.RLock()
		defer c.mu.RUnlock()
		old, ok := c.snapshots[name]
		if !ok {
			return noSnapshot(name)
		}
		now = old
		if err := fn(&now); err != nil || now == old {
			return err
		}
		t.p.rec.Path = name
		if now.Name != old.Name {
			old.Removed = true
			t.p.rec.Snapshots = append(t.p.rec.Snapshots, old)
		}
		t.p.rec.Snapshots = append(t.p.rec.Snapshots, now)
		return nil
	})
	return now, err
}

// rememberSnapshots brings the snapshots in memory forward by one record.
func (s *state) rememberSnapshots(r *Record) {
	for _, x := range r.Snapshots {
		if x.Removed {
			delete(s.snapshots, x.Name)
		} else {
			s.snapshots[x.Name] = x
		}
	}
}

func writeSnapshot(c *sqldb.Conn, s *Snapshot) error {
	if s.Removed {
		return c.Prep("DELETE FROM snapshots WHERE name = ?").BindBytes(1, []byte(s.Name)).Exec()
	}
	var p rowPut
	return p.begin(c.Prep("INSERT OR REPLACE INTO snapshots ("+snapsColumns+", row_sum) VALUES (?, ?, ?, ?, ?)"), tableSnapshots).
		name(s.Name).int(int64(s.Seq)).int(s.Time).int(int64(s.flags())).exec()
}

// loadSnapshots reads the snapshots in catalog.db.
func loadSnapshots(ctx context.Context, db *sqldb.DB) (map[string]Snapshot, error) {
	all := make(map[string]Snapshot)
	err := db.Read(ctx, func(c *sqldb.Conn) error {
		st := c.Prep("SELECT " + snapsColumns + ", row_sum FROM snapshots")
		var r rowRead
		for {
			ok, err := st.Step()
			if err != nil || !ok {
				return err
			}
			if err := r.read(st, 0, tableSnapshots); err != nil {
				return err
			}
			if len(all) > MaxSnapshots {
				return fmt.Errorf("catalog.db: there are too many snapshots: %w", sqldb.ErrCorrupt)
			}
			s := Snapshot{Name: string(r.bytes(0)), Seq: Seq(r.int(1)), Time: r.int(2)}
			flags := r.int(3)
			s.Pinned, s.Auto = flags&flagPinned != 0, flags&flagAuto != 0
			if err := CheckSnapshotName(s.Name); err != nil || flags&^(flagPinned|flagAuto) != 0 || s.Seq > Head {
				return errors.Join(fmt.Errorf("catalog.db: the row of snapshot %q is impossible: %w", s.Name, sqldb.ErrCorrupt), err)
			}
			all[s.Name] = s
		}
	})
	return all, err
}
