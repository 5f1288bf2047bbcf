package catalog

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"holdfast/internal/sqldb"
)

// Finding is one place where catalog.db does not say what the journal says, or one of the journal that is damaged.
type Finding struct {
	Table  string `json:"table"` // of catalog.db; "journal", "checkpoint" or "index"
	Key    string `json:"key"`   // primary key of the row
	Ino    Ino    `json:"inode"` // 0: of no single one
	Detail string `json:"detail"`
}

func (f *Finding) String() string {
	if f.Key == "" {
		return fmt.Sprintf("%s: %s", f.Table, f.Detail)
	}
	return fmt.Sprintf("%s, row %s: %s", f.Table, f.Key, f.Detail)
}

// comparison is a Compare in progress. Guarded by Catalog.pruneTurn.
type comparison struct {
	s     *scratch
	next  Seq       // what Compare has returned
	table table     // that is being compared
	after []keyPart // the key of the last row that was compared; nil: none of the table yet
	told  bool      // of what the scratch lacks
}

// Compare checks that catalog.db says exactly what the journal says, row by row: it makes another one from checkpoint and journal and compares the two. It
// does about count records or rows of that and returns the number with which to call it again; 0 when everything is compared. from is 0 to begin, else what the
// last call returned (any other number begins anew, as does a restart). fn is called with what is found, without any lock; its error ends the call. What does
// not agree also counts as damage: see Damaged. When the journal itself lacks records, that is a finding, and rows are only held against their own sums.
// What is compared was in catalog.db at the time of one of the calls. ErrReadOnly.
func (c *Catalog) Compare(ctx context.Context, from Seq, count int, fn func(Finding) error) (next Seq, err error) {
	if c.opt.ReadOnly {
		return 0, ErrReadOnly
	}
	select {
	case c.pruneTurn <- struct{}{}:
		defer func() { <-c.pruneTurn }()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	if c.cmp == nil || from != c.cmp.next {
		c.endComparison()
		s, err := c.newScratch(ctx)
		if err != nil {
			return 0, fmt.Errorf("compare catalog.db with the journal: %w", err)
		}
		c.cmp = &comparison{s: s}
	}
	m := c.cmp
	var list []Finding
	done, err := c.compareSlice(ctx, m, min(max(count, 1), maxCompare), func(f Finding) { list = append(list, f) })
	if err != nil {
		c.endComparison()
		return 0, fmt.Errorf("compare catalog.db with the journal: %w", err)
	}
	for i := range list {
		if t := list[i].Table; t != "journal" && t != "checkpoint" {
			c.noteCorrupt(fmt.Errorf("catalog.db: %s: %w", list[i].String(), sqldb.ErrCorrupt))
		}
		if err := fn(list[i]); err != nil {
			c.endComparison()
			return 0, err
		}
	}
	if done {
		c.endComparison()
		return 0, nil
	}
	m.next++
	return m.next, nil
}

// maxCompare bounds one slice.
const maxCompare = 1 << 20

// endComparison forgets a comparison. The caller holds pruneTurn.
func (c *Catalog) endComparison() {
	if c.cmp != nil {
		c.cmp.s.discard()
		c.cmp = nil
	}
}

// dropComparison is endComparison at the end, for who does not want to wait: a restart removes what is left.
func (c *Catalog) dropComparison() {
	select {
	case c.pruneTurn <- struct{}{}:
		c.endComparison()
		<-c.pruneTurn
	default:
	}
}

func (c *Catalog) compareSlice(ctx context.Context, m *comparison, max int, found func(Finding)) (done bool, err error) {
	c.mu.RLock()
	applied := c.applied
	c.mu.RUnlock()
	if m.s.meta.applied < applied {
		here, err := m.s.advance(ctx, applied, max)
		if err != nil || !here {
			return false, err
		}
	}
	// The two are at the same record while the applier waits; from then on a read transaction holds that state.
	c.app.mu.Lock()
	locked := true
	unlock := func() {
		if locked {
			locked = false
			c.app.mu.Unlock()
		}
	}
	defer unlock()
	for here := false; !here; {
		if here, err = m.s.advance(ctx, c.app.meta.applied, maxBatch); err != nil {
			return false, err
		}
	}
	if !m.told {
		m.told = true
		for _, err := range m.s.bad {
			found(Finding{Table: "checkpoint", Detail: err.Error()})
		}
		for _, err := range m.s.lost {
			found(Finding{Table: "journal", Detail: err.Error()})
		}
	}
	m.s.meta.applied = c.app.meta.applied
	if err := m.s.db.Write(ctx, m.s.meta.save); err != nil {
		return false, failed("write a new catalog.db", err)
	}
	err = c.db.Snapshot(ctx, func(conn *sqldb.Conn) error {
		if _, err := conn.Prep("SELECT 1 FROM meta").Step(); err != nil && !errors.Is(err, sqldb.ErrCorrupt) {
			return err
		}
		unlock()
		return m.s.db.Read(ctx, func(other *sqldb.Conn) error {
			for n := 0; n < max && m.table < tableCount; {
				did, err := m.compareTable(conn, other, max-n, found)
				if err != nil {
					return err
				}
				n += did
			}
			return nil
		})
	})
	if errors.Is(err, sqldb.ErrCorrupt) {
		found(Finding{Table: m.table.String(), Detail: err.Error()})
		m.table, m.after, err = m.table+1, nil, nil
	}
	done = m.table >= tableCount
	if err == nil && done {
		// All rows are right; what leads to them may not be.
		if err = c.db.QuickCheck(ctx); err == nil {
			err = c.compareSchema(ctx, m.s.db)
		}
		if errors.Is(err, sqldb.ErrCorrupt) {
			found(Finding{Table: "index", Detail: err.Error()})
			err = nil
		}
	}
	return done, err
}

// compareSchema compares the names of tables, indexes and their columns. ErrCorrupt when they differ. Their texts differ in a database that was upgraded.
func (c *Catalog) compareSchema(ctx context.Context, other *sqldb.DB) error {
	read := func(db *sqldb.DB) (text string, err error) {
		err = db.Read(ctx, func(conn *sqldb.Conn) error {
			st := conn.Prep(`SELECT group_concat(line, char(10)) FROM (
				SELECT s.type || ' ' || s.name || ' ' || s.tbl_name || ' ' || ifnull(x.name, '') || ' ' || x.pk AS line FROM sqlite_schema s JOIN pragma_table_info(s.name) x WHERE s.type = 'table'
				UNION ALL SELECT s.type || ' ' || s.name || ' ' || s.tbl_name || ' ' || ifnull(x.name, '') || ' ' || x.seqno FROM sqlite_schema s JOIN pragma_index_info(s.name) x WHERE s.type = 'index'
				ORDER BY line)`)
			_, err := st.Step()
			text = st.Text(0)
			return err
		})
		return text, err
	}
	have, err := read(c.db)
	if err != nil {
		return err
	}
	want, err := read(other)
	if err == nil && have != want {
		err = fmt.Errorf("its tables are not what they should be: %w", sqldb.ErrCorrupt)
	}
	return err
}

// compareTable compares up to max rows of the present table and goes on to the next one at its end. It returns how many rows it has looked at.
func (m *comparison) compareTable(live, other *sqldb.Conn, max int, found func(Finding)) (n int, err error) {
	t := m.table
	a, b := &scan{t: t, live: true, found: found}, &scan{t: t}
	if err := a.begin(live, m.after); err != nil {
		return 0, err
	}
	if err := b.begin(other, m.after); err != nil {
		return 0, err
	}
	exact := len(m.s.lost) == 0 && t != tableLoose
	for ; n < max; n++ {
		if !a.ok && !b.ok {
			err := checkIndexes(live, t, found)
			m.table, m.after = t+1, nil
			return n + 1, err
		}
		var order int
		switch {
		case !b.ok:
			order = -1
		case !a.ok:
			order = 1
		default:
			order = a.r.compareKey(&b.r, t)
		}
		switch {
		case order < 0:
			if exact {
				found(a.finding("no record says so"))
			}
		case order > 0:
			if exact {
				found(b.finding("it is missing"))
			}
		case exact && !a.bad && !a.r.agrees(&b.r, t):
			found(a.finding("it is not what the journal says"))
		}
		if order <= 0 {
			m.after = a.r.keyOf(m.after, t)
			if err := a.next(); err != nil {
				return n, err
			}
		}
		if order >= 0 {
			if order > 0 {
				m.after = b.r.keyOf(m.after, t)
			}
			if err := b.next(); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

// checkIndexes lets SQLite compare a table with its indexes.
func checkIndexes(c *sqldb.Conn, t table, found func(Finding)) error {
	st := c.Prep("PRAGMA integrity_check(" + t.String() + ")")
	for n := 0; ; n++ {
		ok, err := st.Step()
		if err != nil || !ok {
			return err
		}
		if text := st.Text(0); text != "ok" && n < maxIndexFindings {
			found(Finding{Table: "index", Key: t.String(), Detail: text})
		}
	}
}

const maxIndexFindings = 20

// scan reads a table in the order of its key.
type scan struct {
	t     table
	live  bool
	found func(Finding)
	st    *sqldb.Stmt
	r     rowRead
	ok    bool
	bad   bool // the row does not have its sum, which was told
}

// begin reads the first row behind the key after.
func (s *scan) begin(c *sqldb.Conn, after []keyPart) error {
	name, columns, kinds, key := s.t.info()
	cols := strings.Split(columns, ", ")[:key]
	order := strings.Join(cols, ", ")
	if after == nil {
		s.st = c.Prep("SELECT " + columns + ", row_sum FROM " + name + " ORDER BY " + order)
		return s.next()
	}
	query := "SELECT " + columns + ", row_sum FROM " + name + " WHERE (" + order + ") > (" + strings.TrimSuffix(strings.Repeat("?, ", key), ", ") + ") ORDER BY " + order
	s.st = c.Prep(query)
	for i := range after {
		switch kinds[i] {
		case kindText:
			s.st.BindText(i+1, string(after[i].text))
		case kindBytes:
			s.st.BindBytes(i+1, after[i].text)
		default:
			s.st.BindInt64(i+1, after[i].v)
		}
	}
	return s.next()
}

func (s *scan) next() (err error) {
	s.bad = false
	if s.ok, err = s.st.Step(); err != nil || !s.ok {
		return err
	}
	err = s.r.read(s.st, 0, s.t)
	if err != nil && s.live && errors.Is(err, sqldb.ErrCorrupt) {
		s.bad = true
		s.found(s.finding("it does not have its checksum"))
		return nil
	}
	return err
}

func (s *scan) finding(detail string) Finding {
	f := Finding{Table: s.t.String(), Key: s.r.key(s.t), Detail: detail}
	switch s.t {
	case tableInodes, tableXattrs, tableExtents, tableVersions, tableGaps, tableDentries:
		f.Ino = Ino(s.r.int(0)) // of dentries, the directory
	case tableConflicts:
		f.Ino = Ino(s.r.int(1))
	}
	return f
}

// agrees says that two rows of the same key are the same, but for what does not follow from the journal.
func (r *rowRead) agrees(o *rowRead, t table) bool {
	switch {
	case t == tableMeta && string(r.bytes(0)) == "blobs_seq":
		return true
	case t == tableBlobs: // compaction moves bodies
		return bytes.Equal(r.bytes(0), o.bytes(0)) && r.int(1) == o.int(1) && bytes.Equal(r.bytes(2), o.bytes(2)) && bytes.Equal(r.bytes(3), o.bytes(3)) &&
			r.int(4) == o.int(4) && (r.int(6) < 0) == (o.int(6) < 0)
	}
	return bytes.Equal(r.s.all(), o.s.all())
}

// compareKey orders rows as their table does.
func (r *rowRead) compareKey(o *rowRead, t table) int {
	_, _, kinds, key := t.info()
	for i := range key {
		var c int
		if k := kinds[i]; k == kindBytes || k == kindText {
			c = bytes.Compare(r.bytes(i), o.bytes(i))
		} else {
			c = cmp.Compare(r.int(i), o.int(i))
		}
		if c != 0 {
			return c
		}
	}
	return 0
}
