package catalog

import (
	"context"
	"slices"
	"testing"
	"time"

	"holdfast/internal/sqldb"
)

// tableRows counts what each table holds.
func tableRows(t *testing.T, c *Catalog) map[string]int64 {
	t.Helper()
	rows := make(map[string]int64)
	if err := c.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	err := c.db.Read(context.Background(), func(conn *sqldb.Conn) error {
		for _, table := range []string{"inodes", "dentries", "xattrs", "extents", "versions", "actors", "blobs", "gaps", "kept", "conflicts"} {
			st := conn.Prep("SELECT count(*) FROM " + table)
			if _, err := st.Step(); err != nil {
				return err
			}
			rows[table] = st.Int64(0)
			if err := st.Done(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

// TestHeartbeatCosts: a small file that is rewritten all the time costs the same for each time, however many versions it has, in rows, in bytes of the journal and
// in what a reader gets; and once it is thinned, what the policy keeps and no more. (That each query finds its rows by key is TestQueryPlans.)
func TestHeartbeatCosts(t *testing.T) {
	ctx := context.Background()
	c, clk := newClockCatalog(t, time.Second)
	young, old := createFile(t, c, Root, "young"), createFile(t, c, Root, "old")
	const many, few = 4000, 50
	beat(t, c, clk, old.Ino, many)
	type cost struct {
		rows    map[string]int64
		journal int64
	}
	measure := func(ino Ino) (took cost) {
		before, bytes := tableRows(t, c), must[Stats](t)(c.Stats(ctx)).JournalBytes
		beat(t, c, clk, ino, few)
		took.rows, took.journal = tableRows(t, c), must[Stats](t)(c.Stats(ctx)).JournalBytes-bytes
		for table, n := range before {
			took.rows[table] -= n
		}
		return took
	}
	first := measure(young.Ino)
	young2, old2 := measure(young.Ino), measure(old.Ino)
	for table, n := range young2.rows {
		if n != old2.rows[table] || n > few {
			t.Errorf("%d more rewrites add %d rows to %s for a file with few versions, %d for one with many", few, n, table, old2.rows[table])
		}
	}
	// Numbers of records and versions take a few bytes more as they grow.
	if old2.journal > young2.journal+few*8 || first.rows["versions"] != few {
		t.Errorf("%d rewrites take %d bytes of the journal for a file with few versions, %d for one with many", few, young2.journal, old2.journal)
	}
	for _, ino := range []Ino{young.Ino, old.Ino} {
		if list := must[[]Extent](t)(c.Extents(ctx, ino, Head)); len(list) != 1 {
			t.Errorf("to read inode %d takes %d extents", ino, len(list))
		}
	}
	// The clock ticks a second for each; kept are the last half minute, and before that the hours.
	end := clk.read()
	p := Policy{Path: "/", Dir: Root, KeepAll: 30 * time.Second, Hourly: 100 * time.Hour}
	if _, err := c.Prune(ctx, PruneOptions{Policies: []Policy{p}, Now: end, Slice: 100}); err != nil {
		t.Fatal(err)
	}
	left := versionNumbers(t, c, old.Ino)
	hours := int(end.Sub(time.Unix(0, old.Ctime))/time.Hour) + 1
	if len(left) < few/2 || len(left) > few+hours || !slices.IsSorted(left) || left[len(left)-1] != many+few {
		t.Errorf("%d versions are left, of %d in %d hours: %v", len(left), many+few, hours, left)
	}
	rows := tableRows(t, c)
	for table, n := range rows {
		if n > 4*(few+int64(hours)) {
			t.Errorf("%s has %d rows after thinning", table, n)
		}
	}
}
