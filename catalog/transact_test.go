package catalog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

var errAbort = errors.New("changed my mind")

// txOp makes one random change by tx and in the model, and compares the outcome.
func (w *world) txOp(tx *Tx, committed map[Ino]bool) {
	ctx := context.Background()
	var got, want error
	var did string
	switch p := w.rnd.IntN(100); {
	case p < 25:
		dir, name := w.ino(true), w.name()
		n := w.newInode()
		did = fmt.Sprintf("create %d/%s mode %o", dir, name, n.Mode)
		_, got = tx.Create(ctx, dir, name, n)
		_, want = w.m.create(dir, name, n)
	case p < 35:
		ino, dir, name := w.ino(w.rnd.IntN(10) == 0), w.ino(true), w.name()
		did = fmt.Sprintf("link %d to %d/%s", ino, dir, name)
		_, got = tx.Link(ctx, ino, dir, name)
		want = w.m.link(ino, dir, name)
	case p < 50:
		dir, name, rmdir := w.ino(true), w.name(), w.rnd.IntN(3) == 0
		did = fmt.Sprintf("remove %d/%s, a directory: %v", dir, name, rmdir)
		if rmdir {
			got = tx.Rmdir(ctx, dir, name)
		} else {
			_, got = tx.Unlink(ctx, dir, name)
		}
		want = w.m.remove(dir, name, rmdir)
	case p < 70:
		a, x, b, y := w.ino(true), w.name(), w.ino(true), w.name()
		flags := []uint{0, 0, RenameNoReplace, RenameExchange}[w.rnd.IntN(4)]
		did = fmt.Sprintf("rename %d/%s to %d/%s flags %d", a, x, b, y, flags)
		_, got = tx.Rename(ctx, a, x, b, y, flags)
		want = w.m.rename(a, x, b, y, flags)
	case p < 76:
		ino := w.ino(w.rnd.IntN(3) == 0)
		ch := Change{Mode: ptr(uint32(w.rnd.IntN(0o10000))), UID: ptr(uint32(w.rnd.IntN(9))), Atime: ptr(w.m.now - 5), Ctime: ptr(w.m.now - 1)}
		did = fmt.Sprintf("setattr %d", ino)
		_, got = tx.SetAttr(ctx, ino, ch)
		want = w.m.setattr(ino, ch, false)
	case p < 84:
		ino, name, value, flags := w.ino(w.rnd.IntN(3) == 0), "user."+w.name(), w.name(), uint(w.rnd.IntN(3))
		did = fmt.Sprintf("setxattr %d %s flags %d", ino, name, flags)
		got = tx.SetXattr(ctx, ino, name, []byte(value), flags)
		want = w.m.setxattr(ino, name, &value, flags)
	case p < 88:
		ino, name := w.ino(w.rnd.IntN(3) == 0), "user."+w.name()
		did = fmt.Sprintf("removexattr %d %s", ino, name)
		got = tx.RemoveXattr(ctx, ino, name)
		want = w.m.setxattr(ino, name, nil, 0)
	default:
		known := len(w.pool)
		cm := w.splice(w.ino(w.rnd.IntN(20) == 0))
		did = fmt.Sprintf("commit to %d size %d %+v", cm.Ino, cm.Size, cm.Splice)
		_, got = tx.Commit(ctx, cm)
		if committed[cm.Ino] {
			want = ErrInvalid
		} else if want = w.m.commit(&cm); want == nil {
			committed[cm.Ino] = true
		}
		if want != nil {
			w.pool = w.pool[:known]
		}
	}
	w.log = append(w.log, "in a transaction: "+did)
	if !errors.Is(got, want) && got != want {
		w.fatal("%s: got %v, want %v", did, got, want)
	}
}

// txCheck compares what the transaction sees of an inode with the model.
func (w *world) txCheck(tx *Tx) {
	ctx := context.Background()
	ino := w.ino(w.rnd.IntN(2) == 0)
	n := w.m.live[ino]
	row, err := tx.Get(ctx, ino)
	if n == nil {
		if !errors.Is(err, ErrStale) {
			w.fatal("inode %d should not be there: %+v %v", ino, row, err)
		}
		return
	}
	row.Base = 0
	if err != nil || row != n.row {
		w.fatal("inode %d in a transaction:\ngot  %+v %v\nwant %+v", ino, row, err, n.row)
	}
	set, err := tx.Xattrs(ctx, ino)
	if err != nil || !maps.EqualFunc(set, n.xattrs, func(a []byte, b string) bool { return string(a) == b }) {
		w.fatal("attributes of %d in a transaction: %v %v, want %v", ino, set, err, n.xattrs)
	}
	if n.names != nil {
		w.checkDir(Head, n, func(i Ino, name string) (Inode, error) { return tx.Lookup(ctx, i, name) },
			func(i Ino, after uint64, max int) ([]DirEntry, error) { return tx.ReadDir(ctx, i, after, max) })
	}
}

// transaction makes several changes at once, or takes all of them back.
func (w *world) transaction() {
	w.m.now = w.clk.tick()
	live, saved, next, pool := maps.Clone(w.m.live), maps.Clone(w.m.saved), w.m.next, len(w.pool)
	abort := w.rnd.IntN(4) == 0
	committed := make(map[Ino]bool)
	var seq Seq
	_, err := w.c.Transact(context.Background(), testActor(), OpRestore, "/some/where", func(tx *Tx) error {
		seq = tx.Seq()
		for range 1 + w.rnd.IntN(25) {
			w.txOp(tx, committed)
			if w.rnd.IntN(3) == 0 {
				w.txCheck(tx)
			}
		}
		if abort {
			return errAbort
		}
		return nil
	})
	if abort {
		if !errors.Is(err, errAbort) {
			w.fatal("an aborted transaction: %v", err)
		}
		w.m.live, w.m.saved, w.m.next, w.m.record = live, saved, next, false
		w.pool = w.pool[:pool]
		return
	}
	if err != nil {
		w.fatal("transaction: %v", err)
	}
	w.m.end()
	if got := w.seq(); int(got) != len(w.m.past)-1 || got > seq {
		w.fatal("after a transaction the catalog is at record %d, the model at %d; it said %d", got, len(w.m.past)-1, seq)
	}
}

func TestTransactRandom(t *testing.T) {
	for _, seed := range []uint64{3, rand.Uint64() % 1e9} {
		t.Logf("seed %d", seed)
		w := newWorld(t, seed, nil)
		for i := range 120 {
			if w.rnd.IntN(3) == 0 {
				w.step()
			} else {
				w.transaction()
			}
			if i%40 == 39 {
				w.check(Head)
				w.checkMeta()
				w.reopen(w.rnd.IntN(2) == 0)
				w.check(Head)
			}
		}
		for s := range w.m.past {
			w.check(Seq(s))
		}
		w.checkRebuild()
	}
}

func TestTransactRefuses(t *testing.T) {
	ctx, who := context.Background(), testActor()
	c := newCatalog(t, nil)
	for _, op := range []Op{"", OpUnlink, OpPrune} {
		_, err := c.Transact(ctx, who, op, "/", func(*Tx) error { return nil })
		wantErr(t, err, ErrInvalid)
	}
	before := must[Stats](t)(c.Stats(ctx)).Seq
	seq, err := c.Transact(ctx, who, OpUndo, "/", func(*Tx) error { return nil })
	if err != nil || seq != before {
		t.Fatal("a transaction of nothing:", seq, err)
	}
	// Too much for one record: nothing happens, and the catalog goes on.
	value := bytes.Repeat([]byte("x"), MaxXattr)
	_, err = c.Transact(ctx, who, OpRestore, "/", func(tx *Tx) error {
		for i := range 300 {
			row, err := tx.Create(ctx, Root, fmt.Sprintf("f%d", i), NewInode{Mode: unix.S_IFREG})
			if err != nil {
				return err
			}
			if err := tx.SetXattr(ctx, row.Ino, "user.x", value, 0); err != nil {
				return err
			}
		}
		return nil
	})
	wantErr(t, err, ErrTooBig)
	if list := must[[]DirEntry](t)(c.ReadDir(ctx, Root, 0, 10)); len(list) != 0 {
		t.Fatal(list)
	}
	createFile(t, c, Root, "f1")
}

// A tree that is gone comes back in one record: contents by their extents, names that were removed with their inodes, links as links.
func TestTransactBringsBack(t *testing.T) {
	ctx, who := context.Background(), testActor()
	var opt Options
	c := newCatalog(t, func(o *Options) { opt = *o })
	dir := createDir(t, c, Root, "d")
	file := createFile(t, c, dir.Ino, "f")
	must[Inode](t)(c.Commit(ctx, who, whole(file.Ino, []byte("precious"))))
	must[Inode](t)(c.Link(ctx, who, file.Ino, dir.Ino, "g"))
	was := must[Stats](t)(c.Stats(ctx))
	for _, name := range []string{"f", "g"} {
		must[Inode](t)(c.Unlink(ctx, who, dir.Ino, name))
	}
	if err := c.Rmdir(ctx, who, Root, "d"); err != nil {
		t.Fatal(err)
	}
	old := must[Inode](t)(c.GetAt(ctx, file.Ino, was.Seq))
	extents := must[[]Extent](t)(c.Extents(ctx, file.Ino, was.Seq))
	journal := must[Stats](t)(c.Stats(ctx)).JournalBytes
	seq, err := c.Transact(ctx, who, OpRestore, "/d", func(tx *Tx) error {
		if _, err := tx.Revive(ctx, dir.Ino, Root, "d"); err != nil {
			return err
		}
		if _, err := tx.Revive(ctx, dir.Ino, Root, "e"); !errors.Is(err, ErrExist) {
			t.Error("a directory with two names:", err)
		}
		row, err := tx.CreateFile(ctx, dir.Ino, "f", NewInode{Mode: old.Mode, UID: old.UID, GID: old.GID}, old.Size, extents)
		if err != nil {
			return err
		}
		if _, err := tx.SetAttr(ctx, row.Ino, Change{Atime: &old.Atime, Mtime: &old.Mtime, Ctime: &old.Ctime}); err != nil {
			return err
		}
		_, err = tx.Link(ctx, row.Ino, dir.Ino, "g")
		return err
	})
	if err != nil || seq != was.Seq+4 {
		t.Fatal(seq, err)
	}
	check := func(c *Catalog) {
		t.Helper()
		f, g := must[Inode](t)(c.Lookup(ctx, dir.Ino, "f")), must[Inode](t)(c.Lookup(ctx, dir.Ino, "g"))
		if f != g || f.Nlink != 2 || f.Mtime != old.Mtime || f.Ver != 1 || f.Ino == file.Ino {
			t.Fatalf("%+v and %+v", f, g)
		}
		if got := must[[]Extent](t)(c.Extents(ctx, f.Ino, Head)); !slices.Equal(got, extents) {
			t.Fatalf("%+v", got)
		}
		if now := must[Stats](t)(c.Stats(ctx)); now.Files != was.Files || now.Dirs != was.Dirs {
			t.Fatalf("%+v, was %+v", now, was)
		}
	}
	check(c)
	if grown := must[Stats](t)(c.Stats(ctx)).JournalBytes - journal; grown > 2000 {
		t.Fatalf("the record has %d bytes", grown)
	}
	kill(c)
	check(openCatalog(t, opt))
}
