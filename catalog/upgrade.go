package catalog

import (
	"fmt"
	"strings"

	"holdfast/internal/sqldb"
)

// olderViews give the tables of a database from before rows had sums the column row_sum. Tables that it does not have are not asked for.
func olderViews() string {
	var out strings.Builder
	for t := range tableCount {
		name, columns, _, _ := t.info()
		fmt.Fprintf(&out, "CREATE TEMP VIEW %s AS SELECT %s, NULL AS row_sum FROM main.%s; ", name, columns, name)
	}
	return out.String()
}

// upgradeRows makes a database of format 2 one of format 3: each row gets its sum. What the rows say is taken as it is.
func upgradeRows(c *sqldb.Conn, _ int) error {
	for _, index := range []string{"dentries_live", "dentries_past", "dentries_ino", "dentries_ended", "inodes_seq", "extents_live", "extents_blob", "times_first"} {
		if err := c.Script("DROP INDEX IF EXISTS " + index); err != nil {
			return err
		}
	}
	for t := range tableCount {
		if err := c.Script(fmt.Sprintf("ALTER TABLE %s RENAME TO old_%s", t, t)); err != nil {
			return err
		}
	}
	if err := c.Script(schema); err != nil {
		return err
	}
	for t := range tableCount {
		_, columns, kinds, _ := t.info()
		from := c.Prep(fmt.Sprintf("SELECT %s, 0 FROM old_%s", columns, t))
		to := t.insert("INSERT")
		var r rowRead
		for {
			ok, err := from.Step()
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			if err := r.load(from, 0, t); err != nil {
				return err
			}
			if err := r.copyTo(c.Prep(to), kinds); err != nil {
				return err
			}
		}
		if err := c.Script(fmt.Sprintf("DROP TABLE old_%s", t)); err != nil {
			return err
		}
	}
	return nil
}
