package catalog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"holdfast/blobstore/blobstoretest"
	"holdfast/internal/sqldb"
)

// Whatever happens to any page of a catalog.db that was closed is found at the next start, which answers as before.
func TestDamagedPages(t *testing.T) {
	st := newIntegrityStore(t, 31, 40)
	ctx := context.Background()
	good, err := os.ReadFile(filepath.Join(st.opt.Dir, dbName))
	if err != nil {
		t.Fatal(err)
	}
	const page = 4096
	rnd := rand.New(rand.NewPCG(31, 2))
	ways := map[string]func(b []byte, at int) []byte{
		"zero": func(b []byte, at int) []byte { clear(b[at : at+page]); return b },
		"flip": func(b []byte, at int) []byte { b[at+rnd.IntN(page)] ^= 1 << rnd.IntN(8); return b },
		"swap": func(b []byte, at int) []byte { copy(b[at:], good[(at+page)%len(good):][:page]); return b },
		"cut":  func(b []byte, at int) []byte { return b[:at] },
		"half": func(b []byte, at int) []byte { return b[:at+page/2] },
		"more": func(b []byte, at int) []byte { return append(b, b[at:at+page]...) },
	}
	ro := st.copyTo(t, false)
	ro.ReadOnly = true
	n := 0
	for at := 0; at < len(good); at += page {
		for way, damage := range ways {
			bad := damage(bytes.Clone(good), at)
			if bytes.Equal(bad, good) {
				continue
			}
			if err := os.WriteFile(filepath.Join(ro.Dir, dbName), bad, 0o600); err != nil {
				t.Fatal(err)
			}
			if c, err := Open(ctx, ro); !errors.Is(err, ErrDamaged) {
				if err == nil {
					c.Close(ctx)
				}
				t.Fatalf("%s page %d: a read-only start gives %v", way, at/page, err)
			}
			if n++; n%17 != 0 {
				continue
			}
			o := st.copyTo(t, false)
			if err := os.WriteFile(filepath.Join(o.Dir, dbName), bad, 0o600); err != nil {
				t.Fatal(err)
			}
			st.wantRight(t, fmt.Sprint(way, " page ", at/page), o)
		}
	}
	if n < 100 {
		t.Fatalf("%d damages", n)
	}
}

// wantRight opens a store and wants the right answers, and the right rows at the end.
func (st *integrityStore) wantRight(t *testing.T, what string, o Options) {
	t.Helper()
	c, err := Open(context.Background(), o)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if wrong, damaged := st.wrong(st.answers(c)); len(wrong) > 0 || damaged > 0 {
		t.Errorf("%s: %d answers are damaged, wrong:\n%s", what, damaged, strings.Join(wrong, "\n"))
	}
	if err := c.Close(context.Background()); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if rows := dump(t, o.Dir); rows != st.rows {
		t.Errorf("%s: %s", what, firstDifference(st.rows, rows))
	}
}

// The same, at random places of a larger one.
func TestDamagedBytes(t *testing.T) {
	ctx := context.Background()
	var o Options
	c := newCatalog(t, func(opt *Options) { o = *opt })
	for i := range 3000 {
		createFile(t, c, Root, fmt.Sprint("a file with a name that takes some room ", i))
	}
	if err := c.Close(ctx); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(filepath.Join(o.Dir, dbName))
	if err != nil {
		t.Fatal(err)
	}
	o.ReadOnly = true
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 1))
	for range 150 {
		bad := bytes.Clone(good)
		at := rnd.IntN(len(bad))
		for i := range min(1+rnd.IntN(64), len(bad)-at) {
			bad[at+i] ^= byte(1 + rnd.IntN(255))
		}
		if err := os.WriteFile(filepath.Join(o.Dir, dbName), bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if c, err := Open(ctx, o); !errors.Is(err, ErrDamaged) {
			if err == nil {
				c.Close(ctx)
			}
			t.Fatalf("seed %d: byte %d of %d: %v", seed, at, len(good), err)
		}
	}
}

// A write-ahead log that is torn, gone or from elsewhere costs nothing: the journal has what it said.
func TestTornWAL(t *testing.T) {
	st := newIntegrityStore(t, 41, 40)
	o := st.copyTo(t, false)
	c := openCatalog(t, o)
	for i := range 40 {
		createFile(t, c, Root, fmt.Sprint("later", i))
		if i%10 == 0 {
			if err := c.Flush(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
	}
	killed := o
	killed.Dir = blobstoretest.TempDir(t)
	c.app.mu.Lock() // nothing moves while it is copied: what a killed process leaves
	err := os.CopyFS(killed.Dir, os.DirFS(o.Dir))
	c.app.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	after := &integrityStore{opt: o, next: st.next + 40, last: st.last, names: st.names, rows: dump(t, o.Dir)}
	c = openCatalog(t, o)
	after.want = after.answers(c)
	if err := c.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	after.opt = killed
	after.opt.Dir = killed.Dir
	wal, err := os.ReadFile(filepath.Join(killed.Dir, dbName+"-wal"))
	if err != nil || len(wal) < 10_000 {
		t.Fatal("no write-ahead log to tear:", len(wal), err)
	}
	rnd := rand.New(rand.NewPCG(41, 2))
	for i := range 12 {
		bad := bytes.Clone(wal)
		switch at := rnd.IntN(len(bad)); i % 4 {
		case 0:
			bad = bad[:at]
		case 1:
			bad[at] ^= 1 << rnd.IntN(8)
		case 2:
			clear(bad[at:min(at+4096, len(bad))])
		case 3:
			bad = nil
		}
		o := after.opt
		o.Dir = blobstoretest.TempDir(t)
		if err := os.CopyFS(o.Dir, os.DirFS(after.opt.Dir)); err != nil {
			t.Fatal(err)
		}
		os.Remove(filepath.Join(o.Dir, dbName+"-shm"))
		if err := os.WriteFile(filepath.Join(o.Dir, dbName+"-wal"), bad, 0o600); err != nil {
			t.Fatal(err)
		}
		after.wantRight(t, fmt.Sprint("log ", i), o)
	}
}

// Rows that rot while many work: readers get what is right or an error, Rebuild makes it good beside them, and nothing that was written is lost.
func TestRebuildBesideWork(t *testing.T) {
	ctx, who := context.Background(), testActor()
	told := make(chan error, 100)
	c := newCatalog(t, func(o *Options) {
		o.CacheEntries = minCacheEntries
		o.OnDamage = func(err error) { told <- err }
	})
	const files = 60
	var inos [files]Ino
	for i := range files {
		inos[i] = createFile(t, c, Root, fmt.Sprint(i)).Ino
		if err := c.SetXattr(ctx, who, inos[i], "user.n", []byte(fmt.Sprint(i)), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for g := range 2 {
		wg.Go(func() {
			for i := g; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				n := i % files
				row, err := c.Lookup(ctx, Root, fmt.Sprint(n))
				if err != nil && !errors.Is(err, ErrDamaged) || err == nil && row.Ino != inos[n] {
					t.Errorf("lookup of %d: %d %v", n, row.Ino, err)
					return
				}
				v, err := c.GetXattr(ctx, inos[n], "user.n")
				gone := errors.Is(err, ErrNoXattr) // a row that is gone is nothing that a read can see
				if err != nil && !errors.Is(err, ErrDamaged) && !gone || err == nil && string(v) != fmt.Sprint(n) {
					t.Errorf("attribute of %d: %q %v", n, v, err)
					return
				}
			}
		})
	}
	made := 0
	for round := range 6 {
		for range 20 {
			_, err := c.Create(ctx, who, Root, fmt.Sprint("new", made), NewInode{})
			if err == nil {
				made++
			} else if !errors.Is(err, ErrDamaged) {
				t.Fatal(err)
			}
		}
		err := c.db.Write(ctx, func(conn *sqldb.Conn) error {
			edits := []string{"UPDATE inodes SET size = size + 1", "UPDATE dentries SET ino = ino + 1 WHERE ino > 3", "UPDATE xattrs SET value = x'00'"}
			if round%2 == 0 {
				edits = append(edits, "DELETE FROM xattrs WHERE ino % 2 = 0")
			}
			for _, sql := range edits[round%3:] {
				if err := conn.Prep(sql).Exec(); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		dropCaches(c)
		if round%2 == 0 {
			compareAll(t, c, 50)
		}
		if err := <-told; !c.Damaged() {
			t.Fatal("told of damage and not damaged:", err)
		}
		if err := c.Rebuild(ctx); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	wg.Wait()
	if t.Failed() {
		return
	}
	dropCaches(c)
	if list := listAll(t, 50, func(after uint64, max int) ([]DirEntry, error) { return c.ReadDir(ctx, Root, after, max) }); len(list) != files+made {
		t.Fatalf("%d entries, want %d", len(list), files+made)
	}
	if err := c.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if list := compareAll(t, c, 1000); len(list) > 0 {
		t.Fatal(list)
	}
}
