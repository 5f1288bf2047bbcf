package blobstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"holdfast/internal/sqldb"
)

// TestRebuild zeroes each page of a blobs.db in turn, and cuts it at each page and in the middle of it. The store opens, serves nothing wrong, and takes in again what it has lost.
func TestRebuild(t *testing.T) {
	ctx := context.Background()
	base := t.TempDir()
	s := openMode(t, base, ModeDatabase)
	r := rand.New(rand.NewPCG(1, 1))
	bodies := make(map[Hash][]byte)
	var items []Item
	for i := range 8 {
		p := make([]byte, 2000+i*3000)
		for j := range p {
			p[j] = byte(r.Uint32())
		}
		ref := refTo(p)
		bodies[ref.Hash] = p
		items = append(items, Item{Ref: ref, Data: p})
	}
	if err := errors.Join(s.PutBatch(ctx, items), s.Close()); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(filepath.Join(base, rowsFile))
	if err != nil {
		t.Fatal(err)
	}
	const page = 16384
	try := func(name string, damaged []byte, most int) {
		dir := filepath.Join(base, name)
		if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, rowsFile), damaged, 0o600)); err != nil {
			t.Fatal(err)
		}
		s := openMode(t, dir, ModeDatabase)
		defer s.Close()
		b := s.(Rebuilder)
		check := func() (lost int) {
			for i := range items {
				p := make([]byte, items[i].Ref.Size)
				switch n, err := s.ReadAt(ctx, items[i].Ref, p, 0); {
				case err == nil && (n != len(p) || !bytes.Equal(p, bodies[items[i].Ref.Hash])):
					t.Errorf("%s: wrong bytes", name)
				case err != nil && !lookElsewhere(err):
					t.Errorf("%s: %v", name, err)
				case err != nil:
					lost++
				}
			}
			return lost
		}
		before := check()
		was := b.Sound(ctx)
		anew, err := b.Rebuild(ctx)
		if err != nil || anew != (was != nil) || b.Sound(ctx) != nil {
			t.Fatalf("%s: rebuilt %v, though %v: %v, %v", name, anew, was, err, b.Sound(ctx))
		}
		if lost := check(); lost > before || lost > most {
			t.Errorf("%s: %d contents are lost, %d were before", name, lost, before)
		}
		if kept, err := filepath.Glob(filepath.Join(dir, "quarantine", "blobs.db.*")); err != nil || (b.Rebuilt() != nil || anew) != (len(kept) > 0) {
			t.Errorf("%s: in the quarantine: %v %v", name, kept, err)
		}
		if err := s.PutBatch(ctx, items); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if lost := check(); lost > 0 {
			t.Errorf("%s: %d contents were not taken in again", name, lost)
		}
		if st, err := s.Stats(ctx); err != nil || st.Blobs != int64(len(items)) {
			t.Errorf("%s: %+v %v", name, st, err)
		}
	}
	for at := 0; at < len(whole); at += page {
		p := bytes.Clone(whole)
		clear(p[at : at+page])
		most := 5 // what lies in that page, or begins in it
		if at/page < 4 {
			most = len(items) // the root of a table
		}
		try(fmt.Sprint("zeroed-", at/page), p, most)
		if at/page%2 == 0 {
			try(fmt.Sprint("cut-", at/page), whole[:at], len(items))
		} else {
			try(fmt.Sprint("cut-in-", at/page), whole[:at+1000], len(items))
		}
	}
}

// TestRebuildKeepsWhatCanBeRead cuts a tree of many pages in its middle.
func TestRebuildKeepsWhatCanBeRead(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	s := openMode(t, dir, ModeHybrid)
	var items []Item
	for i := range 1200 {
		p := fmt.Appendf(nil, "content %d", i)
		items = append(items, Item{Ref: refTo(p), Data: p})
	}
	if err := errors.Join(s.PutBatch(ctx, items), s.Close()); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, rowsFile)
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := len(p) / 2 / 4096 * 4096
	clear(p[at : at+4096])
	if err := os.WriteFile(path, p, 0o600); err != nil {
		t.Fatal(err)
	}
	s = openMode(t, dir, ModeHybrid)
	defer s.Close()
	if anew, err := s.(Rebuilder).Rebuild(ctx); err != nil || !anew {
		t.Fatal(anew, err)
	}
	lost := 0
	for i := range items {
		if s.Verify(ctx, items[i].Ref) != nil {
			lost++
		}
	}
	if lost > 60 {
		t.Errorf("a page of 4 KiB cost %d of %d contents", lost, len(items))
	}
}

// TestRebuildTakesTheNameOfTheIndex flips a bit in the name of a row, which the index still has as it was.
func TestRebuildTakesTheNameOfTheIndex(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	s := openMode(t, dir, ModeHybrid)
	body := []byte("content")
	ref := refTo(body)
	if err := errors.Join(s.PutBatch(ctx, []Item{{Ref: ref, Data: body}, {Ref: refTo([]byte("x")), Data: []byte("x")}}), s.Close()); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, rowsFile)
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(p, append(bytes.Clone(ref.Hash[:]), byte(len(body)))) // in the row its size follows
	if at < 0 {
		t.Fatal("there is no such row")
	}
	p[at] ^= 1
	if err := os.WriteFile(path, p, 0o600); err != nil {
		t.Fatal(err)
	}
	s = openMode(t, dir, ModeHybrid)
	defer s.Close()
	if err := s.(Rebuilder).Sound(ctx); !errors.Is(err, ErrDamaged) {
		t.Fatal(err)
	}
	if anew, err := s.(Rebuilder).Rebuild(ctx); err != nil || !anew {
		t.Fatal(anew, err)
	}
	if err := s.Verify(ctx, ref); err != nil {
		t.Error(err)
	}
}

// TestTidy removes blocks that no blob has.
func TestTidy(t *testing.T) {
	ctx := context.Background()
	db, err := sqldb.Open(ctx, sqldb.Options{Path: filepath.Join(t.TempDir(), "x.db"), Schema: rowsSchema, Version: rowsVersion})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var left string
	err = db.Write(ctx, func(c *sqldb.Conn) error {
		err := c.Script(`INSERT INTO blob VALUES (1, x'01', 300000, 300000, 0, 0, 0, 0, 0, NULL, 0, NULL);
			INSERT INTO large VALUES (1, 3, zeroblob(96)), (2, 9, zeroblob(32));
			INSERT INTO block VALUES (1, x'00'), (2, x'00'), (3, x'00'), (4, x'00'), (5, x'00'), (6, x'00'), (9, x'00')`)
		if err == nil {
			err = tidy(c)
		}
		if err != nil {
			return err
		}
		st := c.Prep("SELECT group_concat(id) || ' ' || (SELECT blobs || ' ' || plain FROM total) FROM block")
		_, err = st.Step()
		left = st.Text(0)
		return err
	})
	if err != nil || left != "3,4,5 1 300000" {
		t.Errorf("%q %v", left, err)
	}
}

func refTo(p []byte) Ref {
	h := NewHasher()
	h.Write(p)
	return h.Sum().Ref
}

func openMode(t *testing.T, dir, mode string) Store {
	t.Helper()
	s, err := Open(context.Background(), Options{Dir: dir, Mode: mode})
	if err != nil {
		t.Fatal(err)
	}
	return s
}
