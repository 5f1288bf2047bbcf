package sqldb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"zombiezen.com/go/sqlite"
)

const schema = `CREATE TABLE t (k INTEGER PRIMARY KEY, v BLOB, s TEXT) STRICT; CREATE INDEX t_s ON t (s);`

func openTest(t testing.TB, path string, change func(*Options)) *DB {
	t.Helper()
	o := Options{Path: path, Schema: schema, Version: 1}
	if change != nil {
		change(&o)
	}
	db, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func put(c *Conn, k int64, v []byte) error {
	return c.Prep("INSERT OR REPLACE INTO t (k, v, s) VALUES (?, ?, ?)").BindInt64(1, k).BindBytes(2, v).BindText(3, fmt.Sprint("s", k)).Exec()
}

func get(t testing.TB, db *DB, k int64) (v []byte, found bool) {
	t.Helper()
	err := db.Read(context.Background(), func(c *Conn) error {
		st := c.Prep("SELECT v FROM t WHERE k = ?").BindInt64(1, k)
		ok, err := st.Step()
		if ok {
			v, found = st.AppendBytes(nil, 0), true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return v, found
}

func count(t testing.TB, db *DB) (n int64) {
	t.Helper()
	if err := db.Read(context.Background(), func(c *Conn) error {
		st := c.Prep("SELECT count(*) FROM t")
		_, err := st.Step()
		n = st.Int64(0)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestWriteReadReopen(t *testing.T) {
	p := filepath.Join(t.TempDir(), "odd name?#%41.db")
	db := openTest(t, p, nil)
	want := bytes.Repeat([]byte("holdfast"), 9000)
	if err := db.Write(t.Context(), func(c *Conn) error {
		if err := put(c, 1, want); err != nil {
			return err
		}
		return put(c, 2, nil)
	}); err != nil {
		t.Fatal(err)
	}
	check := func(db *DB) {
		t.Helper()
		if v, ok := get(t, db, 1); !ok || !bytes.Equal(v, want) {
			t.Fatalf("row 1: %d bytes, %v", len(v), ok)
		}
		if v, ok := get(t, db, 2); !ok || len(v) != 0 {
			t.Fatalf("row 2: %d bytes, %v", len(v), ok)
		}
		if _, ok := get(t, db, 3); ok {
			t.Fatal("row 3 exists")
		}
		if err := db.QuickCheck(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	check(db)
	if err := db.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := db.Checkpoint(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := db.Write(t.Context(), func(*Conn) error { return nil }); !errors.Is(err, ErrClosed) {
		t.Fatalf("write after close: %v", err)
	}
	if _, err := os.Stat(p); err != nil {
		t.Fatal("the file is not where the path says: ", err)
	}
	check(openTest(t, p, nil))
	check(openTest(t, p, func(o *Options) { o.ReadOnly = true }))
}

func TestWriteRollsBack(t *testing.T) {
	db := openTest(t, filepath.Join(t.TempDir(), "a.db"), nil)
	boom := errors.New("boom")
	if err := db.Write(t.Context(), func(c *Conn) error { put(c, 1, []byte("x")); return boom }); err != boom {
		t.Fatalf("got %v", err)
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic was swallowed")
			}
		}()
		db.Write(t.Context(), func(c *Conn) error { put(c, 2, []byte("x")); panic("boom") })
	}()
	if err := db.Write(t.Context(), func(c *Conn) error {
		put(c, 5, nil)
		return c.Prep("INSERT INTO t (k) VALUES (5)").Exec()
	}); !errors.Is(err, ErrConstraint) {
		t.Fatalf("got %v", err)
	}
	if err := db.Write(t.Context(), func(c *Conn) error { return c.Prep("SELECT nonsense").Exec() }); err == nil || !strings.Contains(err.Error(), "a.db") {
		t.Fatalf("got %v", err)
	}
	if n := count(t, db); n != 0 {
		t.Fatalf("%d rows survived", n)
	}
	if err := db.Write(t.Context(), func(c *Conn) error { return put(c, 3, nil) }); err != nil {
		t.Fatal(err)
	}
}

func TestUnfinishedIterationHoldsNothing(t *testing.T) {
	db := openTest(t, filepath.Join(t.TempDir(), "a.db"), func(o *Options) { o.Readers = 1 })
	db.Write(t.Context(), func(c *Conn) error { put(c, 1, nil); return put(c, 2, nil) })
	db.Read(t.Context(), func(c *Conn) error {
		_, err := c.Prep("SELECT k FROM t").Step() // left on its first row
		return err
	})
	if err := db.Write(t.Context(), func(c *Conn) error {
		if _, err := c.Prep("SELECT k FROM t").Step(); err != nil {
			return err
		}
		return put(c, 3, nil)
	}); err != nil {
		t.Fatal(err)
	}
	if n := count(t, db); n != 3 {
		t.Fatalf("the reader sees %d rows, an old state", n)
	}
	if err := db.Checkpoint(t.Context(), true); err != nil {
		t.Fatal(err)
	}
}

func TestParametersStartNull(t *testing.T) {
	db := openTest(t, filepath.Join(t.TempDir(), "a.db"), nil)
	db.Write(t.Context(), func(c *Conn) error {
		const q = "INSERT INTO t (k, v) VALUES (?, ?)"
		if err := c.Prep(q).BindInt64(1, 1).BindBytes(2, []byte("old")).Exec(); err != nil {
			t.Error(err)
		}
		if err := c.Prep(q).BindInt64(1, 2).Exec(); err != nil {
			t.Error(err)
		}
		st := c.Prep("SELECT v FROM t WHERE k = 2")
		if ok, err := st.Step(); !ok || err != nil || !st.IsNull(0) {
			t.Error("an old parameter was kept")
		}
		return nil
	})
}

func TestSnapshotIsOneState(t *testing.T) {
	db := openTest(t, filepath.Join(t.TempDir(), "a.db"), nil)
	err := db.Snapshot(t.Context(), func(c *Conn) error {
		n := func() int64 {
			st := c.Prep("SELECT count(*) FROM t")
			st.Step()
			return st.Int64(0)
		}
		before := n()
		if err := db.Write(t.Context(), func(w *Conn) error { return put(w, 1, nil) }); err != nil {
			return err
		}
		if n() != before {
			return errors.New("a snapshot saw a later commit")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Read(t.Context(), func(c *Conn) error { return put(c, 9, nil) }); !errors.Is(err, ErrReadOnly) {
		t.Fatalf("a reader wrote: %v", err)
	}
}

func TestCancelStopsReadNotWrite(t *testing.T) {
	db := openTest(t, filepath.Join(t.TempDir(), "a.db"), nil)
	ctx, cancel := context.WithCancel(t.Context())
	if err := db.Write(ctx, func(c *Conn) error {
		cancel()
		for k := range int64(500) {
			if err := put(c, k, nil); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatalf("a write that had begun was torn: %v", err)
	}
	if n := count(t, db); n != 500 {
		t.Fatalf("%d rows", n)
	}
	ctx, cancel = context.WithCancel(t.Context())
	if err := db.Read(ctx, func(c *Conn) error { cancel(); return c.Prep("SELECT k FROM t").Exec() }); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	if err := db.Write(ctx, func(*Conn) error { t.Error("ran"); return nil }); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
}

func TestConcurrentReadersAndWriters(t *testing.T) {
	db := openTest(t, filepath.Join(t.TempDir(), "a.db"), func(o *Options) { o.AutoCheckpoint = 10 })
	var wg sync.WaitGroup
	for w := range int64(4) {
		wg.Go(func() {
			for i := range int64(50) {
				k := w*1000 + i
				if err := db.Write(context.Background(), func(c *Conn) error { return put(c, k, []byte(fmt.Sprint(k))) }); err != nil {
					t.Error(err)
					return
				}
				if v, ok := get(t, db, k); !ok || string(v) != fmt.Sprint(k) {
					t.Errorf("key %d reads as %q, %v, right after its commit", k, v, ok)
				}
			}
		})
	}
	wg.Wait()
	if n := count(t, db); n != 200 {
		t.Fatalf("%d rows", n)
	}
}

func TestErrors(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(t.Context(), Options{Path: filepath.Join(dir, "none.db"), ReadOnly: true, Version: 1}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	os.WriteFile(filepath.Join(dir, "text.db"), bytes.Repeat([]byte("not a database "), 1000), 0o600)
	for _, ro := range []bool{false, true} {
		if _, err := Open(t.Context(), Options{Path: filepath.Join(dir, "text.db"), ReadOnly: ro, Schema: schema, Version: 1}); !errors.Is(err, ErrCorrupt) {
			t.Errorf("not a database: %v", err)
		}
	}
	os.Symlink("text.db", filepath.Join(dir, "link.db"))
	if _, err := Open(t.Context(), Options{Path: filepath.Join(dir, "link.db"), Schema: schema, Version: 1}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("symbolic link: %v", err)
	}
	openTest(t, filepath.Join(dir, "v.db"), nil).Close()
	if _, err := Open(t.Context(), Options{Path: filepath.Join(dir, "v.db"), Schema: schema, Version: 2}); !errors.Is(err, ErrVersion) {
		t.Errorf("version: %v", err)
	}
	db := openTest(t, filepath.Join(dir, "full.db"), nil)
	err := db.Write(t.Context(), func(c *Conn) error {
		if err := c.Script("PRAGMA max_page_count = 20"); err != nil {
			return err
		}
		return put(c, 1, make([]byte, 1<<20))
	})
	if !errors.Is(err, ErrFull) || !errors.Is(err, unix.ENOSPC) {
		t.Errorf("full: %v", err)
	}
	if err := db.Write(t.Context(), func(c *Conn) error { return put(c, 1, []byte("small")) }); err != nil {
		t.Errorf("after full: %v", err)
	}
	for code, want := range map[sqlite.ResultCode]error{
		sqlite.ResultIOErrWrite: unix.EIO, sqlite.ResultIOErrFsync: ErrIO, sqlite.ResultIOErrShortRead: ErrCorrupt,
		sqlite.ResultCorruptVTab: ErrCorrupt, sqlite.ResultBusySnapshot: ErrBusy, sqlite.ResultReadOnlyDirectory: ErrReadOnly,
	} {
		if err := mapErr("x.db", fmt.Errorf("step: %w", code.ToError())); !errors.Is(err, want) || sqlite.ErrCode(err) != code {
			t.Errorf("%v became %v", code, err)
		}
	}
}

func TestSyncSyncsTheLog(t *testing.T) {
	db := openTest(t, filepath.Join(t.TempDir(), "a.db"), nil)
	if err := db.Write(t.Context(), func(c *Conn) error { return put(c, 1, nil) }); err != nil {
		t.Fatal(err)
	}
	var synced []string
	fail := error(nil)
	db.fdatasync = func(fd int) error {
		path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
		synced = append(synced, filepath.Base(path))
		return errors.Join(err, fail)
	}
	if err := db.Sync(t.Context()); err != nil || len(synced) != 1 || synced[0] != "a.db-wal" {
		t.Errorf("synced %v, %v", synced, err)
	}
	fail = unix.EIO
	if err := db.Sync(t.Context()); !errors.Is(err, unix.EIO) {
		t.Errorf("got %v", err)
	}
}

func TestReadOnlyMedium(t *testing.T) {
	dir := t.TempDir()
	p := filepath.Join(dir, "a.db")
	db := openTest(t, p, nil)
	db.Write(t.Context(), func(c *Conn) error { return put(c, 1, []byte("x")) })
	db.Close()
	db = openTest(t, p, func(o *Options) { o.ReadOnly = true })
	if err := db.Write(t.Context(), func(c *Conn) error { return nil }); !errors.Is(err, ErrReadOnly) {
		t.Fatalf("got %v", err)
	}
	if _, ok := get(t, db, 1); !ok {
		t.Fatal("row lost")
	}
}

// Whatever byte of a database is overwritten, reading it ends with rows or an error that says so, never a hang or a panic.
func TestDamageIsReported(t *testing.T) {
	p := filepath.Join(t.TempDir(), "a.db")
	db := openTest(t, p, nil)
	db.Write(t.Context(), func(c *Conn) error {
		for k := range int64(60) {
			if err := put(c, k, bytes.Repeat([]byte{byte(k)}, 300)); err != nil {
				return err
			}
		}
		return nil
	})
	db.Close()
	good, err := os.ReadFile(p)
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for page := range len(good) / 4096 {
		bad := bytes.Clone(good)
		for i := range 64 {
			bad[page*4096+i] ^= 0xa5
		}
		os.WriteFile(p, bad, 0o600)
		db, err := Open(t.Context(), Options{Path: p, Schema: schema, Version: 1})
		if err == nil {
			err = db.QuickCheck(t.Context())
			db.Read(t.Context(), func(c *Conn) error { return c.Prep("SELECT * FROM t ORDER BY s").Exec() })
			db.Close()
		}
		if errors.Is(err, ErrCorrupt) {
			seen++
		} else {
			t.Errorf("page %d overwritten: %v", page+1, err)
		}
	}
	if seen == 0 {
		t.Fatal("no damage was seen")
	}
	os.WriteFile(p, good[:len(good)-5000], 0o600)
	db, err = Open(t.Context(), Options{Path: p, Schema: schema, Version: 1})
	if err == nil {
		err = db.QuickCheck(t.Context())
		db.Close()
	}
	if !errors.Is(err, ErrCorrupt) {
		t.Errorf("truncated: %v", err)
	}
}

// A child commits rows and prints each number after its commit; it is killed at an arbitrary moment. Every printed row must be there, and whole.
func TestKilledWriter(t *testing.T) {
	const env = "SQLDB_TEST_CHILD"
	if p := os.Getenv(env); p != "" {
		db := openTest(t, p, func(o *Options) { o.AutoCheckpoint = 20 })
		for k := int64(0); ; k++ {
			if err := db.Write(context.Background(), func(c *Conn) error {
				if err := put(c, 2*k, bytes.Repeat([]byte{byte(k)}, 3000)); err != nil {
					return err
				}
				return put(c, 2*k+1, bytes.Repeat([]byte{byte(k)}, 3000))
			}); err != nil {
				t.Fatal(err)
			}
			fmt.Printf("done %d\n", k)
		}
	}
	p := filepath.Join(t.TempDir(), "a.db")
	for round := range 3 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledWriter$")
		cmd.Env = append(os.Environ(), env+"="+p)
		out, _ := cmd.StdoutPipe()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var got []byte
		buf := make([]byte, 4096)
		for bytes.Count(got, []byte("\n")) < 40+17*round {
			n, err := out.Read(buf)
			got = append(got, buf[:n]...)
			if err != nil {
				t.Fatalf("the child ended: %v\n%s", err, got)
			}
		}
		cmd.Process.Kill()
		for {
			n, err := out.Read(buf)
			got = append(got, buf[:n]...)
			if err != nil {
				break
			}
		}
		cmd.Wait()
		db := openTest(t, p, nil)
		if err := db.QuickCheck(t.Context()); err != nil {
			t.Fatal(err)
		}
		whole := got[:bytes.LastIndexByte(got, '\n')+1]
		for line := range strings.Lines(string(whole)) {
			k, err := strconv.ParseInt(strings.TrimSpace(strings.TrimPrefix(line, "done ")), 10, 64)
			if err != nil {
				continue
			}
			for _, key := range []int64{2 * k, 2*k + 1} {
				if v, ok := get(t, db, key); !ok || len(v) != 3000 || v[0] != byte(k) || v[2999] != byte(k) {
					t.Fatalf("row %d was committed and is lost or torn", key)
				}
			}
		}
		if count(t, db)%2 != 0 {
			t.Fatal("half a transaction survived")
		}
		db.Close()
	}
}

func BenchmarkPointRead(b *testing.B) {
	db := openTest(b, filepath.Join(b.TempDir(), "a.db"), nil)
	db.Write(context.Background(), func(c *Conn) error { return put(c, 1, make([]byte, 1024)) })
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		db.Read(context.Background(), func(c *Conn) error {
			st := c.Prep("SELECT v FROM t WHERE k = ?").BindInt64(1, 1)
			_, err := st.Step()
			buf = st.AppendBytes(buf[:0], 0)
			return err
		})
	}
}

func BenchmarkWriteOneRow(b *testing.B) {
	db := openTest(b, filepath.Join(b.TempDir(), "a.db"), nil)
	v := make([]byte, 100)
	b.ReportAllocs()
	k := int64(0)
	for b.Loop() {
		k++
		if err := db.Write(context.Background(), func(c *Conn) error { return put(c, k, v) }); err != nil {
			b.Fatal(err)
		}
	}
}

// What is bound is what a statement sees, whatever other connections do at the time: they share one heap. (A switch of a connection wrote through an argument that was not
// there, into whatever was allocated next.)
func TestConnectionsLeaveBoundValuesAlone(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	var opening sync.WaitGroup
	defer opening.Wait()
	defer stop()
	for i := range 2 {
		dir := t.TempDir()
		opening.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				db, err := Open(context.Background(), Options{Path: filepath.Join(dir, fmt.Sprintf("%d-%d.db", i, n%4)), Schema: "CREATE TABLE t (k)", Version: 1})
				if err != nil {
					t.Error(err)
					return
				}
				if err := db.Close(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	db, err := Open(ctx, Options{Path: filepath.Join(t.TempDir(), "a.db"), Schema: "CREATE TABLE t (k)", Version: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var got []byte
	for n := range 50_000 {
		want := fmt.Appendf(nil, "value %09d", n)
		err := db.Read(ctx, func(c *Conn) error {
			st := c.Prep("SELECT ?").BindBytes(1, want)
			if _, err := st.Step(); err != nil {
				return err
			}
			got = st.AppendBytes(got[:0], 0)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("round %d: %q was bound, and %q is what the statement sees", n, want, got)
		}
	}
}
