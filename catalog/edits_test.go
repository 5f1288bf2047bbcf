package catalog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/blobstore/blobstoretest"
	"holdfast/internal/sqldb"
)

// integrityStore is a closed store with rows in every table, and what it answers.
type integrityStore struct {
	opt   Options
	next  Ino
	last  Seq
	names []string
	want  []string // answers
	rows  string   // dump
}

func newIntegrityStore(t *testing.T, seed uint64, steps int) *integrityStore {
	t.Helper()
	ctx, who := context.Background(), testActor()
	w := newWorld(t, seed, func(o *Options) { o.SegmentBytes = 16 << 10 })
	for range steps {
		w.step()
	}
	w.clk.now += int64(48 * time.Hour)
	file := createFile(t, w.c, Root, "kept")
	for i := range 3 {
		file = must[Inode](t)(w.c.Commit(ctx, Actor{Agent: fmt.Sprint("agent", i), Program: "p"}, whole(file.Ino, []byte{byte(i), 1})))
	}
	must[Conflict](t)(w.c.CommitAside(ctx, who, whole(file.Ino, []byte("beside")), Conflict{Won: 1, WonBy: who}))
	for i := range 3 {
		must[Inode](t)(w.c.Link(ctx, who, file.Ino, Root, fmt.Sprint("link", i)))
		if err := w.c.SetXattr(ctx, who, file.Ino, fmt.Sprint("user.x", i), []byte("value"), 0); err != nil {
			t.Fatal(err)
		}
		must[Snapshot](t)(w.c.CreateSnapshot(ctx, who, fmt.Sprint("s", i), false))
	}
	w.clk.now += int64(time.Hour)
	must[PruneReport](t)(w.c.Prune(ctx, PruneOptions{Policies: []Policy{{Path: "/", Dir: Root, KeepAll: 24 * time.Hour}}}))
	createFile(t, w.c, Root, "last")
	w.t = t
	s := must[Stats](t)(w.c.Stats(ctx))
	st := &integrityStore{opt: w.opt, next: s.NextIno, last: s.Seq, names: []string{"kept", "link0", "link1", "last"}}
	for i := range 8 {
		st.names = append(st.names, "n"+strconv.Itoa(i))
	}
	if err := w.c.Close(ctx); err != nil {
		t.Fatal(err)
	}
	c := openCatalog(t, st.opt)
	st.want = st.answers(c)
	if err := c.Close(ctx); err != nil {
		t.Fatal(err)
	}
	st.rows = dump(t, st.opt.Dir)
	if bad := slices.ContainsFunc(st.want, func(s string) bool { return strings.HasSuffix(s, damagedAnswer) }); bad {
		t.Fatal("an intact store answers with damage")
	}
	return st
}

const damagedAnswer = "damaged"

// answers asks a catalog for everything that it knows.
func (st *integrityStore) answers(c *Catalog) (list []string) {
	ctx := context.Background()
	say := func(question string, answer any, err error) {
		switch {
		case errors.Is(err, ErrDamaged):
			answer = damagedAnswer
		case err != nil:
			answer = err
		}
		list = append(list, fmt.Sprintf("%s: %v", question, answer))
	}
	moments := []Seq{Head, st.last / 4, st.last / 2, st.last - 3}
	for ino := Root; ino < st.next; ino++ {
		for _, at := range moments {
			row, err := c.GetAt(ctx, ino, at)
			say(fmt.Sprint("get ", ino, "@", at), row, err)
			ext, err := c.Extents(ctx, ino, at)
			say(fmt.Sprint("extents ", ino, "@", at), ext, err)
			dir, err := c.ReadDirAt(ctx, ino, 0, 100, at)
			say(fmt.Sprint("readdir ", ino, "@", at), dir, err)
			attrs, err := c.ListXattrAt(ctx, ino, at)
			say(fmt.Sprint("xattrs ", ino, "@", at), attrs, err)
			for _, a := range attrs {
				v, err := c.GetXattrAt(ctx, ino, a, at)
				say(fmt.Sprint("xattr ", ino, a, "@", at), v, err)
			}
		}
		row, err := c.Get(ctx, ino)
		say(fmt.Sprint("get ", ino), row, err)
		dir, err := c.ReadDir(ctx, ino, 0, 100)
		say(fmt.Sprint("readdir ", ino), dir, err)
		path, err := c.Path(ctx, ino)
		say(fmt.Sprint("path ", ino), path != "", err) // any of its names will do
		var versions []string
		err = c.Versions(ctx, ino, false, func(v Version) error {
			versions = append(versions, fmt.Sprint(v))
			return nil
		})
		say(fmt.Sprint("versions ", ino), versions, err)
		if err == nil && row.Mode&typeMask != unix.S_IFDIR {
			continue
		}
		for _, name := range st.names {
			row, err := c.Lookup(ctx, ino, name)
			say(fmt.Sprint("lookup ", ino, name), row, err)
			spans, err := c.NameHistory(ctx, ino, name)
			say(fmt.Sprint("history ", ino, name), spans, err)
		}
	}
	snapshots, err := c.Snapshots(ctx)
	say("snapshots", snapshots, err)
	conflicts, err := c.Conflicts(ctx, 0, 100)
	say("conflicts", conflicts, err)
	for s := Seq(1); s <= st.last; s += 7 {
		at, err := c.TimeOf(ctx, s)
		say(fmt.Sprint("time of ", s), at, err)
	}
	blobs, err := c.Blobs(ctx, [32]byte{}, 1000)
	say("blobs", blobs, err)
	return list
}

// copyTo copies the store to a directory of its own; unclean leaves it as a crash would.
func (st *integrityStore) copyTo(t *testing.T, unclean bool) Options {
	t.Helper()
	o := st.opt
	o.Dir = blobstoretest.TempDir(t)
	if err := os.CopyFS(o.Dir, os.DirFS(st.opt.Dir)); err != nil {
		t.Fatal(err)
	}
	if unclean {
		if err := os.Remove(filepath.Join(o.Dir, sumsName)); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

// compareAll runs a Compare to its end, in slices.
func compareAll(t testing.TB, c *Catalog, slice int) (list []Finding) {
	t.Helper()
	for from := Seq(0); ; {
		next, err := c.Compare(context.Background(), from, slice, func(f Finding) error {
			list = append(list, f)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if from = next; next == 0 {
			return list
		}
	}
}

// wrong lists the answers that are neither right nor an error that says that something is damaged.
func (st *integrityStore) wrong(got []string) (wrong []string, damaged int) {
	at := make(map[string]string, len(got))
	for _, g := range got {
		k, v, _ := strings.Cut(g, ": ")
		at[k] = v
	}
	for _, w := range st.want {
		k, v, _ := strings.Cut(w, ": ")
		g, ok := at[k]
		switch {
		case !ok: // not asked, because what leads to it is damaged
		case g == damagedAnswer:
			damaged++
		case g != v:
			wrong = append(wrong, fmt.Sprintf("%s: %s, want %s", k, g, v))
		}
	}
	return wrong, damaged
}

// edit is a change of one table by somebody who speaks SQL.
type edit struct {
	what, sql string
	hides     bool // a row that is not found any more is nothing that a read can see
}

func editsOf(t table) (list []edit) {
	name, columns, kinds, key := t.info()
	cols := strings.Split(columns, ", ")
	pick := func(n int) string {
		return fmt.Sprintf("(%s) = (SELECT %s FROM %s ORDER BY abs(row_sum %% 997) LIMIT 1 OFFSET %d)", strings.Join(cols[:key], ", "), strings.Join(cols[:key], ", "), name, n)
	}
	for i, col := range cols {
		value := col + " + 1"
		switch kinds[i] {
		case kindBytes:
			value = "CAST(" + col + " || 'x' AS BLOB)"
		case kindText:
			value = col + " || 'x'"
		case kindEnd:
			value = "ifnull(" + col + ", 0) + 1"
		case kindValue:
			value = "CASE typeof(value) WHEN 'integer' THEN value + 1 ELSE zeroblob(16) END"
		}
		hides := i < key || kinds[i] == kindEnd || t == tableDentries && (col == "cookie" || col == "ino") || col == "blob" // what an index is asked for
		list = append(list, edit{fmt.Sprintf("update %s.%s", name, col), fmt.Sprintf("UPDATE OR REPLACE %s SET %s = %s WHERE %s", name, col, value, pick(i%2)), hides})
		if kinds[i] == kindEnd {
			list = append(list, edit{"revive a row of " + name, fmt.Sprintf("UPDATE OR REPLACE %s SET to_seq = NULL WHERE to_seq IS NOT NULL", name), true})
		}
	}
	list = append(list,
		edit{"delete a row of " + name, fmt.Sprintf("DELETE FROM %s WHERE %s", name, pick(0)), true},
		edit{"delete all rows of " + name, "DELETE FROM " + name, true},
		edit{"another row's sum in " + name, fmt.Sprintf("UPDATE %s SET row_sum = ifnull((SELECT row_sum FROM %s WHERE NOT (%s) LIMIT 1), row_sum + 1) WHERE %s", name, name, pick(0), pick(0)), false},
	)
	other := strings.Join(cols, ", ") // a row invented, with the sum of the one that it is a copy of
	switch {
	case kinds[0] == kindInt:
		other = strings.Replace(other, cols[0], cols[0]+" + 100000", 1)
	default:
		other = strings.Replace(other, cols[0], "CAST("+cols[0]+" || 'y' AS "+map[byte]string{kindBytes: "BLOB", kindText: "TEXT"}[kinds[0]]+")", 1)
	}
	return append(list, edit{"invent a row of " + name, fmt.Sprintf("INSERT OR REPLACE INTO %s SELECT %s, row_sum FROM %s WHERE %s", name, other, name, pick(0)), true})
}

// Whatever SQL does to catalog.db behind the catalog's back is found: by the start after a clean close, by the read of the row, or by Compare. A row that
// was changed is never an answer. Rebuild makes everything as it was.
func TestEditedRows(t *testing.T) {
	st := newIntegrityStore(t, 21, 40)
	var found atomic.Int64
	every, least := 1, int64(110)
	if raceBuild {
		every, least = 3, 36
	}
	t.Run("tables", func(t *testing.T) {
		for tab := range tableCount {
			t.Run(tab.String(), func(t *testing.T) {
				t.Parallel()
				for i, e := range editsOf(tab) {
					if i%every == 0 && st.tryEdit(t, tab, e, i/every%3 == 0) {
						found.Add(1)
					}
				}
			})
		}
	})
	if n := found.Load(); n < least {
		t.Fatalf("only %d edits changed a row", n)
	}
}

// tryEdit makes an edit in a copy of the store; false when there was nothing to edit. With whole set it goes on to the rebuilt rows.
func (st *integrityStore) tryEdit(t *testing.T, tab table, e edit, whole bool) bool {
	ctx := context.Background()
	o := st.copyTo(t, true)
	if runSQL(t, filepath.Join(o.Dir, dbName), e.sql) == 0 {
		return false
	}
	damage := 0
	o.OnDamage = func(error) { damage++ }
	c, err := Open(ctx, o)
	if err != nil {
		t.Fatalf("%s: %v", e.what, err)
	}
	rebuilt := len(must[Stats](t)(c.Stats(ctx)).Damage) > 0 // the start has seen it
	wrong, _ := st.wrong(st.answers(c))
	if len(wrong) > 0 && !e.hides {
		t.Errorf("%s: wrong answers:\n%s", e.what, strings.Join(wrong, "\n"))
	}
	list := compareAll(t, c, 1+int(st.last)%37)
	if rebuilt != (len(list) == 0) && tab != tableLoose {
		t.Errorf("%s: found %v; rebuilt at the start: %v", e.what, list, rebuilt)
	}
	if c.Damaged() != (damage == 1) || damage > 1 || rebuilt && damage > 0 {
		t.Errorf("%s: damaged: %v, told %d times", e.what, c.Damaged(), damage)
	}
	if !whole {
		kill(c)
		return true
	}
	if c.Damaged() {
		if _, err := c.Prune(ctx, PruneOptions{Policies: []Policy{DefaultPolicy()}}); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: prune on a damaged catalog: %v", e.what, err)
		}
		if err := c.Rebuild(ctx); err != nil {
			t.Fatalf("%s: rebuild: %v", e.what, err)
		}
	}
	if wrong, damaged := st.wrong(st.answers(c)); (len(wrong) > 0 || damaged > 0) && tab != tableLoose {
		t.Errorf("%s: after the rebuild %d answers are damaged, wrong:\n%s", e.what, damaged, strings.Join(wrong, "\n"))
	}
	if err := c.Close(ctx); err != nil {
		t.Fatalf("%s: %v", e.what, err)
	}
	if rows := dump(t, o.Dir); rows != st.rows {
		t.Errorf("%s: after the rebuild: %s", e.what, firstDifference(st.rows, rows))
	}
	return true
}

// runSQL changes a database and returns how many rows that changed.
func runSQL(t *testing.T, path, sql string) (changed int) {
	t.Helper()
	db, err := sqldb.Open(context.Background(), sqldb.Options{Path: path, Schema: schema, Version: dbFormat})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.Write(context.Background(), func(c *sqldb.Conn) error {
		if err := c.Prep(sql).Exec(); err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
		changed = c.Changes()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return changed
}

// forgeVersion writes the row of a version with a sum that holds.
func forgeVersion(v *Version) func(*sqldb.Conn) error {
	return func(c *sqldb.Conn) error {
		id, _, err := findActor(c, actorKey{v.Actor.Agent, v.Actor.Program, v.Actor.UID})
		if err != nil {
			return err
		}
		var p rowPut
		return p.begin(c.Prep(tableVersions.insert("INSERT OR REPLACE")), tableVersions).int(int64(v.Ino)).int(int64(v.Num)).int(int64(v.Seq)).int(v.Time).
			int(v.Size).bytes(v.Sum[:]).bytes(orEmpty(v.Prev[:])).bytes(v.Digest[:]).int(id).int(int64(v.Actor.PID)).exec()
	}
}

func deleteVersion(num string) func(*sqldb.Conn) error {
	return func(c *sqldb.Conn) error { return c.Prep("DELETE FROM versions WHERE num = " + num).Exec() }
}
