package integrity_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/integrity"
	"holdfast/internal/sqldb"
	"holdfast/internal/volume"
)

// forged is a row of catalog.db that somebody edits who knows how its sum is made.
type forged struct {
	table, columns, kinds string // i: an integer, b: a BLOB
	where                 string
	edit                  func(ints map[string]int64, blobs map[string][]byte)
}

func versionRow(where string, edit func(map[string]int64, map[string][]byte)) forged {
	return forged{"versions", "ino, num, seq, time, size, sum, prev, digest, actor, pid", "iiiiibbbii", where, edit}
}

// forge edits the row, and makes its sum anew.
func (w *world) forge(f forged) {
	w.t.Helper()
	if err := os.Remove(filepath.Join(w.dir, "catalog.db.sums")); err != nil && !errors.Is(err, os.ErrNotExist) {
		w.t.Fatal(err)
	}
	names := strings.Split(f.columns, ", ")
	w.sql(filepath.Join(w.dir, "catalog.db"), func(c *sqldb.Conn) error {
		st := c.Prep("SELECT " + f.columns + " FROM " + f.table + " WHERE " + f.where)
		if ok, err := st.Step(); err != nil || !ok {
			return errors.Join(err, fmt.Errorf("no row of %s with %s", f.table, f.where))
		}
		ints, blobs := make(map[string]int64), make(map[string][]byte)
		for i, name := range names {
			if f.kinds[i] == 'i' {
				ints[name] = st.Int64(i)
			} else {
				blobs[name] = st.AppendBytes(nil, i)
			}
		}
		if err := st.Done(); err != nil {
			return err
		}
		f.edit(ints, blobs)
		text := []byte(f.table)
		up := c.Prep("UPDATE " + f.table + " SET (" + f.columns + ", row_sum) = (" + strings.Repeat("?, ", len(names)) + "?) WHERE " + f.where)
		for i, name := range names {
			if f.kinds[i] == 'i' {
				text = binary.LittleEndian.AppendUint64(text, uint64(ints[name]))
				up.BindInt64(i+1, ints[name])
			} else {
				text = append(binary.LittleEndian.AppendUint64(text, uint64(len(blobs[name]))), blobs[name]...)
				up.BindBytes(i+1, blobs[name])
			}
		}
		sum := sha256.Sum256(text)
		return up.BindInt64(len(names)+1, int64(binary.LittleEndian.Uint64(sum[:]))).Exec()
	})
}

// TestEachCheckRefuses gives every check of versions something that it must not pass: rows of catalog.db that are wrong and have their sums. What is no damage of a clock is listed, so
// that nobody is told that all is well, until it is put right.
func TestEachCheckRefuses(t *testing.T) {
	inode := "ino, from_seq, parent, mode, uid, gid, rdev, nlink, size, atime, mtime, ctime, btime, ver, base, target"
	for _, c := range []struct {
		want  integrity.CheckType
		row   string // statement instead of a forged row
		forge forged
	}{
		{integrity.HashChain, "", versionRow("ino = %d AND num = 3", func(_ map[string]int64, b map[string][]byte) { b["prev"][5] ^= 1 })},
		{integrity.Timestamp, "", versionRow("ino = %d AND num = 2", func(i map[string]int64, _ map[string][]byte) { i["time"] -= int64(time.Hour) })},
		{integrity.VersionControl, "DELETE FROM versions WHERE ino = %d AND num = 2", forged{}},
		{integrity.VersionControl, "DELETE FROM versions WHERE ino = %d AND num = 3", forged{}},
		{integrity.SizeVerification, "", forged{"inodes", inode, "iiiiiiiiiiiiiiib", "ino = %[1]d AND from_seq = (SELECT max(from_seq) FROM inodes WHERE ino = %[1]d)", func(i map[string]int64, _ map[string][]byte) { i["size"]-- }}},
	} {
		w := newWorld(t, volume.StorageHybrid)
		w.opt.CompareAtStart = -1
		ino := w.appended("/config/f", 3)
		w.reopen(func() {
			if c.row != "" {
				w.editCatalog(fmt.Sprintf(c.row, ino))
				return
			}
			c.forge.where = fmt.Sprintf(c.forge.where, ino)
			w.forge(c.forge)
		})
		var found []integrity.CheckType
		sum, err := w.eng.Check(t.Context(), "/config/f", integrity.CheckOptions{}, func(r integrity.Result) error {
			if r.Path != "/config/f" || r.Passed {
				t.Errorf("%+v", r)
			}
			found = append(found, r.Type)
			return nil
		})
		if err != nil || sum.Healthy() || !slices.Contains(found, c.want) {
			t.Errorf("%s: found %v, %+v, %v", c.want, found, sum, err)
		}
		st, err := w.eng.Status(t.Context())
		if clock := c.want == integrity.Timestamp; err != nil || st.Healthy != clock || !clock && !strings.Contains(st.Summary, "history") {
			t.Errorf("%s: %+v, %v", c.want, st, err)
		}
		for _, d := range w.damaged() {
			if page := integrity.ManualPage(&d); !strings.Contains(page, "history of a file") || !strings.Contains(page, d.Details) {
				t.Error(page)
			}
			if err := w.eng.Complete(t.Context(), d.DataID, strings.NewReader("x")); err == nil {
				t.Error("a history is completed with a content")
			}
		}
		repaired, err := w.eng.CheckStore(t.Context(), integrity.CheckOptions{Repair: true}, func(integrity.Result) error { return nil })
		if err != nil || !repaired.Healthy() {
			t.Errorf("%s: %+v, %v", c.want, repaired, err)
		}
		if st, err := w.eng.Status(t.Context()); err != nil || !st.Healthy || len(w.damaged()) > 0 {
			t.Errorf("%s: it was put right, and the store is %q, %v", c.want, st.Summary, err)
		}
	}
}

// TestUnhealedJournalIsListed spoils a record so that nothing can prove what it said. The state of the store says so at once, over restarts, and until the bytes are back.
func TestUnhealedJournalIsListed(t *testing.T) {
	w := newWorld(t, volume.StorageHybrid)
	for i := range 20 {
		w.put(fmt.Sprintf("/logs/f%d", i), noise(uint64(i), 50))
	}
	var name string
	var before []byte
	w.reopen(func() {
		list, err := filepath.Glob(filepath.Join(w.dir, "journal", "*.seg"))
		if err != nil || len(list) == 0 {
			t.Fatal(list, err)
		}
		name = list[0]
		if before, err = os.ReadFile(name); err != nil {
			t.Fatal(err)
		}
	})
	healthy := func() bool {
		t.Helper()
		st, err := w.eng.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return st.Healthy
	}
	check := func() {
		t.Helper()
		if _, err := w.eng.CheckStore(t.Context(), integrity.CheckOptions{Repair: true}, func(integrity.Result) error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	spoilt := bytes.Clone(before)
	for i := range 40 {
		spoilt[len(spoilt)/2+i] ^= 0x5a
	}
	write := func(p []byte) { // in place, while the store is open
		t.Helper()
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteAt(p, 0)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	write(spoilt)
	check()
	if healthy() {
		t.Error("records are lost, and all is well")
	}
	list := w.damaged()
	if len(list) == 0 || !strings.HasPrefix(list[0].DataID, "journal ") || !strings.Contains(integrity.ManualPage(&list[0]), "journal") {
		t.Errorf("%+v", list)
	}
	w.reopen(func() {})
	if healthy() {
		t.Error("records are lost, and after a restart all is well")
	}
	w.reopen(func() { write(before) })
	check()
	if !healthy() || len(w.damaged()) > 0 {
		t.Errorf("the bytes are back: %+v", w.damaged())
	}
}

// TestCheckWithoutRepairIsNotForgotten: what a check has found that was not to repair is part of the state, until a read has healed it.
func TestCheckWithoutRepairIsNotForgotten(t *testing.T) {
	w := newWorld(t, volume.StorageHybrid)
	body := noise(1, 300<<10)
	ref := w.put("/tasks/f", body)
	w.reopen(func() { w.alter(w.dir, true, ref, damages()[3].fn) })
	if _, err := w.eng.Check(t.Context(), "/tasks", integrity.CheckOptions{}, func(integrity.Result) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if st, err := w.eng.Status(t.Context()); err != nil || st.Healthy || st.Damaged != 1 || st.Others != 0 {
		t.Errorf("%+v %v", st, err)
	}
	w.want("/tasks/f", body)
	if st, err := w.eng.Status(t.Context()); err != nil || !st.Healthy {
		t.Errorf("%+v %v", st, err)
	}
}
