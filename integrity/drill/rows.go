package drill

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"holdfast/internal/sqldb"
	"holdfast/internal/volume"
)

// value is a column of a row.
type value struct {
	kind string // as typeof says
	n    int64
	p    []byte // of a blob, or a text
}

func (v *value) bind(st *sqldb.Stmt, param int) {
	switch v.kind {
	case "integer":
		st.BindInt64(param, v.n)
	case "text":
		st.BindText(param, string(v.p))
	case "blob":
		st.BindBytes(param, v.p)
	default:
		st.BindNull(param)
	}
}

// tableInfo is what SQLite says of a table.
type tableInfo struct {
	name    string
	columns []string
	key     []int // columns of the primary key
	rows    int
}

func tablesOf(c *sqldb.Conn) (list []tableInfo, err error) {
	st := c.Prep("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%' ORDER BY name")
	for {
		ok, err := st.Step()
		if err != nil {
			return nil, err
		}
		if !ok {
			break
		}
		list = append(list, tableInfo{name: st.Text(0)})
	}
	for i := range list {
		t := &list[i]
		st := c.Prep("SELECT name, pk FROM pragma_table_info(?) ORDER BY cid").BindText(1, t.name)
		for {
			ok, err := st.Step()
			if err != nil {
				return nil, err
			}
			if !ok {
				break
			}
			if st.Int64(1) > 0 {
				t.key = append(t.key, len(t.columns))
			}
			t.columns = append(t.columns, st.Text(0))
		}
		st = c.Prep("SELECT count(*) FROM " + t.name)
		if _, err := st.Step(); err != nil {
			return nil, err
		}
		t.rows = int(st.Int64(0))
		if err := st.Done(); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// readRow reads the n-th row.
func (t *tableInfo) readRow(c *sqldb.Conn, n int) ([]value, error) {
	types := make([]string, len(t.columns))
	for i, col := range t.columns {
		types[i] = "typeof(" + col + ")"
	}
	st := c.Prep("SELECT "+strings.Join(t.columns, ", ")+", "+strings.Join(types, ", ")+" FROM "+t.name+" LIMIT 1 OFFSET ?").BindInt64(1, int64(n))
	ok, err := st.Step()
	if err != nil || !ok {
		return nil, errors.Join(err, errAgain)
	}
	row := make([]value, len(t.columns))
	for i := range row {
		v := &row[i]
		switch v.kind = st.Text(len(row) + i); v.kind {
		case "integer":
			v.n = st.Int64(i)
		case "text":
			v.p = []byte(st.Text(i))
		case "blob":
			v.p = st.AppendBytes(nil, i)
		}
	}
	return row, st.Done()
}

// where is the condition for a row, whose values start is bound from on.
func (t *tableInfo) where() string {
	var parts []string
	for _, k := range t.key {
		parts = append(parts, t.columns[k]+" = ?")
	}
	return " WHERE " + strings.Join(parts, " AND ")
}

func (t *tableInfo) bindKey(st *sqldb.Stmt, param int, row []value) *sqldb.Stmt {
	for i, k := range t.key {
		row[k].bind(st, param+i)
	}
	return st
}

// change makes another value of one. ErrAgain when there is none to be made.
func (d *draw) change(v value) (value, error) {
	switch v.kind {
	case "integer":
		for _, by := range []int64{1, -1, 1 << 40, 12345} {
			if d.rnd.IntN(3) == 0 || by == 12345 {
				v.n += by
				return v, nil
			}
		}
	case "text", "blob":
		if len(v.p) == 0 {
			return value{kind: v.kind, p: []byte{7}}, nil
		}
		v.p = bytes.Clone(v.p)
		if v.kind == "text" { // stays text
			v.p[d.rnd.IntN(len(v.p))] ^= 1
			return v, nil
		}
		v.p, _ = flipped(d.rnd, v.p)
	case "null":
		return value{kind: "integer", n: 1}, nil
	}
	return v, nil
}

// row edits a row of a database by plain SQL. No sum is made anew.
func (d *draw) row(name string) error {
	d.in.level = allLevels
	d.in.what = name + ": "
	catalogDB := name == "catalog.db"
	d.in.heals = catalogDB || strings.HasPrefix(name, "second")
	d.in.noState = strings.HasPrefix(name, "second")
	d.in.silent = d.in.silent || !catalogDB && d.state == stateCrashed // a start hands over the newest contents again
	return withDB(context.Background(), filepath.Join(d.dir, name), func(c *sqldb.Conn) error {
		tables, err := tablesOf(c)
		if err != nil {
			return err
		}
		tables = slices.DeleteFunc(tables, func(t tableInfo) bool {
			return t.rows == 0 || len(t.key) == 0 || !catalogDB && (t.name == "total" || t.name == "incomplete" || t.name == "parity")
		})
		if len(tables) == 0 {
			return errAgain
		}
		t := &tables[d.rnd.IntN(len(tables))]
		n := d.rnd.IntN(t.rows)
		row, err := t.readRow(c, n)
		if err != nil {
			return err
		}
		if !catalogDB {
			if err := d.whose(c, t, row); err != nil {
				return err
			}
		}
		err = d.edit(c, t, n, row, catalogDB)
		if errors.Is(err, sqldb.ErrConstraint) {
			err = errAgain
		}
		return err
	})
}

func (d *draw) edit(c *sqldb.Conn, t *tableInfo, n int, row []value, inserts bool) error {
	col := d.rnd.IntN(len(row))
	if !inserts && t.columns[col] == "body" && row[col].kind == "null" {
		return errAgain // the content is in rows of its own, and nothing reads this
	}
	if !inserts && t.name == "blob" && t.columns[col] == "id" && row[len(row)-1].kind != "null" {
		return errAgain // nothing else refers to it
	}
	how := d.rnd.IntN(6)
	if how == 1 && !inserts {
		how = 2
	}
	d.in.what += fmt.Sprintf("row %d of %s", n, t.name)
	switch how {
	case 0:
		d.in.what += " deleted"
		return t.bindKey(c.Prep("DELETE FROM "+t.name+t.where()), 1, row).Exec()
	case 1: // one that was never written
		d.in.what += " copied under another key"
		k := t.key[d.rnd.IntN(len(t.key))]
		v, err := d.change(row[k])
		if err != nil {
			return err
		}
		row[k] = v
		st := c.Prep("INSERT INTO " + t.name + " (" + strings.Join(t.columns, ", ") + ") VALUES (?" + strings.Repeat(", ?", len(row)-1) + ")")
		for i := range row {
			row[i].bind(st, i+1)
		}
		return st.Exec()
	case 2: // a value of another row
		other, err := t.readRow(c, d.rnd.IntN(t.rows))
		if err != nil {
			return err
		}
		if other[col].kind == row[col].kind && other[col].n == row[col].n && bytes.Equal(other[col].p, row[col].p) {
			return errAgain
		}
		d.in.what += ", column " + t.columns[col] + " as in another row"
		st := c.Prep("UPDATE " + t.name + " SET " + t.columns[col] + " = ?" + t.where())
		other[col].bind(st, 1)
		return t.bindKey(st, 2, row).Exec()
	}
	v, err := d.change(row[col])
	if err != nil {
		return err
	}
	d.in.what += ", column " + t.columns[col]
	st := c.Prep("UPDATE " + t.name + " SET " + t.columns[col] + " = ?" + t.where())
	v.bind(st, 1)
	return t.bindKey(st, 2, row).Exec()
}

// whose finds the blob that a row of blobs.db belongs to.
func (d *draw) whose(c *sqldb.Conn, t *tableInfo, row []value) error {
	var st *sqldb.Stmt
	switch t.name {
	case "blob":
		st = c.Prep("SELECT hash FROM blob WHERE id = ?")
	case "large":
		st = c.Prep("SELECT hash FROM blob WHERE id = ?")
	case "block":
		st = c.Prep("SELECT hash FROM blob JOIN large USING (id) WHERE first <= ? ORDER BY first DESC LIMIT 1")
	default:
		return errAgain
	}
	ok, err := st.BindInt64(1, row[0].n).Step()
	if err != nil || !ok {
		return errors.Join(err, errAgain)
	}
	hash := st.AppendBytes(nil, 0)
	if err := st.Done(); err != nil {
		return err
	}
	for _, b := range d.m.blobs {
		if bytes.Equal(b.ref.Hash[:], hash) {
			if d.hit[b.id()] {
				return errAgain
			}
			d.hit[b.id()] = true
			if !d.in.noState {
				d.in.ids, d.in.level, d.in.heals = []string{b.id()}, b.level, promise(b, 0, 0)
			}
			return nil
		}
	}
	return errAgain // one that nothing names
}

// database damages the file of a database that is not in use. Damage to bytes that nothing uses is no damage.
func (d *draw) database(name string, c contentDamage) error {
	d.in.level = allLevels
	// What is in it is elsewhere too, but for large contents in the storage database.
	d.in.heals = name != "blobs.db" || d.storage == volume.StorageHybrid
	d.in.noState = strings.HasPrefix(name, "second")
	return d.useful(name, name, c)
}

// useful damages a file of a database, if that changes anything in it. catalog.db that was closed cleanly has sums of every byte.
func (d *draw) useful(file, db string, c contentDamage) error {
	d.in.what = file + ": " + c.name
	path := filepath.Join(d.dir, file)
	p, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(p) == 0 {
		return errAgain
	}
	if err != nil {
		return err
	}
	out, _ := c.fn(d.rnd, bytes.Clone(p))
	if out != nil && bytes.Equal(out, p) {
		return errAgain
	}
	if db != "catalog.db" || d.state != stateClean {
		scratch := d.dir + "-try"
		defer os.RemoveAll(scratch)
		before, err := dump(filepath.Join(d.dir, db), scratch, "", nil)
		if err != nil {
			return fmt.Errorf("%s was damaged before: %w", db, err)
		}
		if after, err := dump(filepath.Join(d.dir, db), scratch, filepath.Base(file), out); err == nil && after == before {
			return errAgain
		}
	}
	if out == nil {
		return os.Remove(path)
	}
	for i := range out {
		if out[i] != p[i] {
			d.in.what += fmt.Sprintf(", from byte %d of %d on", i, len(p))
			break
		}
	}
	return overwrite(path, out)
}

// dump is a hash of all that is in a copy of a database, one of whose files has other bytes (nil: it is missing). An error: it is not whole.
func dump(db, scratch, file string, instead []byte) (sum [32]byte, err error) {
	if err := os.RemoveAll(scratch); err != nil {
		return sum, err
	}
	if err := os.MkdirAll(scratch, 0o700); err != nil {
		return sum, err
	}
	base := filepath.Base(db)
	for _, end := range []string{"", "-wal"} {
		switch {
		case base+end != file:
			if err := copyFile(db+end, filepath.Join(scratch, base+end)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return sum, err
			}
		case instead != nil:
			if err := os.WriteFile(filepath.Join(scratch, base+end), instead, 0o600); err != nil {
				return sum, err
			}
		}
	}
	h := sha256.New()
	err = withDB(context.Background(), filepath.Join(scratch, base), func(c *sqldb.Conn) error {
		st := c.Prep("PRAGMA integrity_check")
		if ok, err := st.Step(); err != nil || !ok || st.Text(0) != "ok" {
			return errors.Join(err, errors.New("not whole"))
		}
		if err := st.Done(); err != nil {
			return err
		}
		tables, err := tablesOf(c)
		if err != nil {
			return err
		}
		for i := range tables {
			t := &tables[i]
			fmt.Fprintln(h, t.name, t.columns, t.rows)
			for n := range t.rows {
				row, err := t.readRow(c, n)
				if err != nil {
					return err
				}
				for _, v := range row {
					fmt.Fprintln(h, v.kind, v.n, len(v.p))
					h.Write(v.p)
				}
			}
		}
		return nil
	})
	return [32]byte(h.Sum(nil)), err
}

// wal damages the log of a database.
func (d *draw) wal() error {
	d.in.level = allLevels
	names := []string{"catalog.db", "second/blobs.db"}
	if d.storage != volume.StorageFile {
		names = append(names, "blobs.db")
	}
	db := names[d.rnd.IntN(len(names))]
	d.in.heals = db != "blobs.db" || d.storage == volume.StorageHybrid
	d.in.noState = strings.HasPrefix(db, "second")
	return d.useful(db+"-wal", db, fileDamages()[d.rnd.IntN(len(fileDamages()))])
}

func (d *draw) segmentFile() (string, error) {
	list, err := filepath.Glob(filepath.Join(d.dir, "journal", "*.seg"))
	if err != nil || len(list) == 0 {
		return "", errors.Join(err, errAgain)
	}
	return list[d.rnd.IntN(len(list))], nil
}

// segment damages a segment of the journal.
func (d *draw) segment(c contentDamage) error {
	d.in.level = allLevels
	name, err := d.segmentFile()
	if err != nil {
		return err
	}
	d.in.what = "journal segment " + filepath.Base(name) + ": " + c.name
	return d.damageFile(name, c)
}

// record edits a record of the journal and makes its checksums anew, but not the chain.
func (d *draw) record() error {
	const header, frame = 4096, 84
	d.in.level = allLevels
	name, err := d.segmentFile()
	if err != nil {
		return err
	}
	p, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	var at []int
	for i := header; i+frame <= len(p); {
		n := frame + int(binary.LittleEndian.Uint32(p[i+32:])) + int(binary.LittleEndian.Uint32(p[i+36:]))
		if binary.LittleEndian.Uint64(p[i:]) == 0 || i+n > len(p) {
			break
		}
		at = append(at, i)
		i += n
	}
	if len(at) == 0 {
		return errAgain
	}
	n := d.rnd.IntN(len(at))
	f := p[at[n]:]
	head := int(binary.LittleEndian.Uint32(f[32:]))
	body := int(binary.LittleEndian.Uint32(f[36:]))
	part := "time"
	switch what := d.rnd.IntN(3); {
	case what == 0 && body > 0:
		part = "body"
		f[frame+head+d.rnd.IntN(body)] ^= 1 << d.rnd.IntN(8)
	case what < 2 && head > 0:
		part = "head"
		f[frame+d.rnd.IntN(head)] ^= 1 << d.rnd.IntN(8)
	default:
		f[16+d.rnd.IntN(5)] ^= 1 << d.rnd.IntN(8)
	}
	binary.LittleEndian.PutUint32(f[44:], castagnoli(f[frame:frame+head+body]))
	binary.LittleEndian.PutUint32(f[80:], castagnoli(f[:80]))
	d.in.what = fmt.Sprintf("record %d of journal segment %s: its %s, with new checksums", n, filepath.Base(name), part)
	return overwrite(name, p)
}

// any is any damage to a store that is closed. Of catalog and journal, each of which is made from the other, one is damaged.
func (d *draw) any() error {
	all := kinds()
	k := &all[d.rnd.IntN(len(all))]
	if k.several > 0 || k.control || !k.clean || k.modes != nil && !slices.Contains(k.modes, d.storage) {
		return errAgain
	}
	d.level = ""
	if k.levels != nil {
		d.level = k.levels[d.rnd.IntN(len(k.levels))]
	}
	group := ""
	switch {
	case strings.HasPrefix(k.name, "journal"), strings.HasPrefix(k.name, "catalog.db"):
		group = "names"
	case strings.Contains(k.name, "blobs.db:") && k.levels == nil:
		group = strings.Split(k.name, ":")[0]
	}
	if group != "" && d.hit[group] {
		return errAgain
	}
	if err := k.draw(d); err != nil {
		return fmt.Errorf("%w: %w", errAgain, err) // what it was to damage may be past use
	}
	if group != "" {
		d.hit[group] = true
	}
	d.in.heals = false // another of them may be to what it would be healed from
	d.in.silent = k.silent
	return nil
}
