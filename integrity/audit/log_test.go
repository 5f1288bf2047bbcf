package audit

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"holdfast/catalog"
)

// TestFrontier compares the tree with that of tlog, hash by hash.
func TestFrontier(t *testing.T) {
	var f frontier
	var stored []tlog.Hash
	read := tlog.HashReaderFunc(func(at []int64) ([]tlog.Hash, error) {
		var out []tlog.Hash
		for _, i := range at {
			out = append(out, stored[i])
		}
		return out, nil
	})
	for n := range int64(300) {
		leaf := tlog.RecordHash([]byte{byte(n), byte(n >> 8)})
		want, err := tlog.StoredHashesForRecordHash(n, leaf, read)
		if err != nil {
			t.Fatal(err)
		}
		if got := f.add(leaf, nil); !slices.Equal(got, want) {
			t.Fatalf("leaf %d stores %v, want %v", n, got, want)
		}
		stored = append(stored, want...)
		root, err := tlog.TreeHash(n+1, read)
		if err != nil || f.root() != root {
			t.Fatalf("the root of %d leaves is %v, want %v (%v)", n+1, f.root(), root, err)
		}
	}
}

// TestProofs proves every record and every pair of tree heads, and no proof holds for anything else.
func TestProofs(t *testing.T) {
	s := newStore(t)
	defer s.close()
	var heads [][]byte
	for i := range 25 {
		s.write("prover", fmt.Sprintf("f%d", i%4), fmt.Sprintf("content %d", i))
		heads = append(heads, s.head())
	}
	last, _ := s.cat.JournalView().End()
	keys := s.keys()
	stranger := otherKey(t, s.id)
	for seq := catalog.Seq(1); seq <= last; seq++ {
		p, err := s.log.Prove(t.Context(), seq)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseProof(p.Text())
		if err != nil {
			t.Fatalf("%v\n%s", err, p.Text())
		}
		got, err := again.Check(keys)
		if err != nil {
			t.Fatal(err)
		}
		if got.Head.Size != int64(last) || len(got.Entries) != 1 || got.Entries[0].Seq != seq {
			t.Fatalf("record %d: %+v", seq, got)
		}
		if _, err := again.Check(stranger); !errors.Is(err, ErrTampered) {
			t.Errorf("a proof holds with another key: %v", err)
		}
		for _, spoil := range []func(p *Proof){
			func(p *Proof) { p.Seq++ }, func(p *Proof) { p.Head = append(bytes.Clone(p.Head), 0) }, func(p *Proof) { p.Prev[3] ^= 1 },
			func(p *Proof) { p.Frame[9] ^= 1 }, func(p *Proof) { p.Hashes = slices.Clone(p.Hashes); p.Hashes[0][0] ^= 1 },
			func(p *Proof) { p.Hashes = p.Hashes[1:] }, func(p *Proof) { p.Signed = heads[3] },
			func(p *Proof) { p.Signed = bytes.Replace(p.Signed, []byte("\ntime 2"), []byte("\ntime 3"), 1) },
		} {
			bad := p
			spoil(&bad)
			if _, err := bad.Check(keys); err == nil {
				t.Fatalf("a spoilt proof of record %d holds:\n%s", seq, bad.Text())
			}
		}
	}
	for _, h := range heads {
		x, err := s.log.ProveExtends(t.Context(), h)
		if err != nil {
			t.Fatal(err)
		}
		if x, err = ParseExtension(x.Text()); err != nil {
			t.Fatal(err)
		}
		if before, after, err := x.Check(keys); err != nil || before.Size > after.Size || after.Size != int64(last) {
			t.Fatalf("%v %v %v", before, after, err)
		}
		if len(x.Hashes) > 0 {
			x.Hashes[0][1] ^= 1
			if _, _, err := x.Check(keys); !errors.Is(err, ErrTampered) {
				t.Errorf("a spoilt extension holds: %v", err)
			}
		}
	}
	if _, err := s.log.Prove(t.Context(), last+1); !errors.Is(err, catalog.ErrNotExist) {
		t.Errorf("a record that is not there: %v", err)
	}
}

func otherKey(t *testing.T, id [16]byte) []note.Verifier {
	t.Helper()
	_, pub, err := note.GenerateKey(rand.NewChaCha8([32]byte{1}), Origin(id))
	if err != nil {
		t.Fatal(err)
	}
	keys, err := ParseKeys(pub)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// TestProofSaysWhoWroteWhat: what is proved is what was done.
func TestProofSaysWhoWroteWhat(t *testing.T) {
	s := newStore(t)
	defer s.close()
	row := s.write("writer", "report.txt", "the content")
	v, err := s.cat.Version(t.Context(), row.Ino, 1)
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.log.Prove(t.Context(), v.Seq)
	if err != nil {
		t.Fatal(err)
	}
	got, err := p.Check(s.keys())
	if err != nil {
		t.Fatal(err)
	}
	e := got.Entries[0]
	if e.Agent != "writer" || e.Program != "sh" || e.UID != 1000 || e.PID != 7 || e.Path != "/report.txt" || e.Inode != row.Ino || e.Version != 1 || e.Size != 11 ||
		e.SHA256 != v.Sum.String() || e.Digest != v.Digest.String() || e.Operation != catalog.OpWrite || e.Time.UnixNano() != v.Time {
		t.Errorf("%+v", e)
	}
}

// TestCutAnywhere: the process is killed while it writes the tree or the tree heads. Whatever is left of the files, the next one goes on, and what was
// signed before still holds.
func TestCutAnywhere(t *testing.T) {
	s := newStore(t)
	s.fill(30)
	kept := s.head()
	s.close()
	for _, name := range []string{treeName, headsName} {
		path := filepath.Join(s.dir, DirName, name)
		intact, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		step := max(len(intact)/12, 1)
		for cut := 0; cut < len(intact); cut += step {
			for _, tail := range [][]byte{nil, make([]byte, 50), []byte("holdfast/\n\n\n")} {
				write(t, path, append(bytes.Clone(intact[:cut]), tail...))
				s.open()
				x, err := s.log.ProveExtends(t.Context(), kept)
				if err == nil {
					_, _, err = x.Check(s.keys())
				}
				if err != nil {
					t.Fatalf("%s cut at %d of %d: %v", name, cut, len(intact), err)
				}
				if bad := s.log.Problems(); len(bad) > 0 && (name == treeName || tail == nil) {
					t.Fatalf("%s cut at %d: %q", name, cut, bad)
				}
				s.close()
				if r := s.verify(kept); !r.Extends || !r.OK && (name == treeName || tail == nil) {
					t.Fatalf("%s cut at %d: %+v", name, cut, r)
				}
			}
		}
		write(t, path, intact)
	}
	s.mustBeSound(kept)
}

// TestLostTreeIsMadeAnew: the tree follows from the journal.
func TestLostTreeIsMadeAnew(t *testing.T) {
	s := newStore(t)
	s.fill(40)
	s.close()
	path := filepath.Join(s.dir, DirName, treeName)
	intact, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 12 {
		b := bytes.Clone(intact)
		switch rng.IntN(3) {
		case 0:
			os.Remove(path)
		case 1:
			b[rng.IntN(len(b))] ^= 1 << rng.IntN(8)
			write(t, path, b)
		case 2:
			clear(b[rng.IntN(len(b)):])
			write(t, path, b)
		}
		s.open()
		for range 4 {
			last, _ := s.cat.JournalView().End()
			if _, err := s.log.Prove(t.Context(), 1+catalog.Seq(rng.Int64N(int64(last)))); err != nil {
				t.Fatal(err)
			}
		}
		s.close()
		got, err := os.ReadFile(path)
		if err != nil || len(got) < len(intact) {
			t.Fatalf("the tree has %d bytes, %v", len(got), err)
		}
	}
	os.Remove(path)
	s.open()
	s.close()
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, intact) {
		t.Errorf("the tree that was made anew is another one (%v)", err)
	}
	s.mustBeSound(nil)
	if _, err := os.Stat(filepath.Join(s.dir, DirName, oldName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the tree that was set aside stays: %v", err)
	}
}

// TestLostRecords: records that cannot be read any more do not stop the log, before they are in the tree or after.
func TestLostRecords(t *testing.T) {
	for _, when := range []string{"signed before", "lost before they were signed", "signed before, with the tree lost too"} {
		t.Run(when, func(t *testing.T) {
			s := newStore(t)
			if when != "lost before they were signed" {
				s.fill(40)
			} else {
				for i := range 40 {
					s.write("a", "f", fmt.Sprintf("content %d, %s", i, strings.Repeat("y", i)))
				}
				if err := s.log.j.Sync(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if err := errors.Join(s.cat.Close(t.Context()), s.blobs.Close()); err != nil {
				t.Fatal(err)
			}
			segs := dissect(t, s.dir)
			at := 4096 + 84
			for _, r := range segs[0].recs[:6] {
				at += 84 + len(r.head) + len(r.body)
			}
			b, err := os.ReadFile(segs[0].path)
			if err != nil {
				t.Fatal(err)
			}
			b[at] ^= 0xff
			write(t, segs[0].path, b)
			if when == "signed before, with the tree lost too" {
				os.Remove(filepath.Join(s.dir, DirName, treeName))
			}
			s.open()
			s.write("b", "g", "and on")
			s.head()
			last, _ := s.cat.JournalView().End()
			if _, err := s.log.Prove(t.Context(), last); err != nil {
				t.Error(err)
			}
			if _, err := s.log.Prove(t.Context(), 7); !errors.Is(err, catalog.ErrDamaged) {
				t.Errorf("a lost record is proved: %v", err)
			}
			s.close()
			r := s.verify(nil)
			if p := problem(t, r, KindDamaged); p.Record != 7 || p.Last != 7 {
				t.Errorf("%+v", p)
			}
			for _, p := range r.Problems {
				if p.Kind == KindAltered && when != "signed before, with the tree lost too" {
					t.Errorf("%+v", p)
				}
			}
			if r.Signed != last {
				t.Errorf("signed up to %d, want %d", r.Signed, last)
			}
			if when != "lost before they were signed" {
				return
			}
			// The record is mended: it stays a lost one in the tree, and all the rest holds.
			b, err = os.ReadFile(segs[0].path)
			if err != nil {
				t.Fatal(err)
			}
			b[at] ^= 0xff
			write(t, segs[0].path, b)
			s.mustBeSound(nil)
			s.open()
			defer s.close()
			if _, err := s.log.Prove(t.Context(), 7); !errors.Is(err, ErrNotSigned) {
				t.Errorf("a record that was lost when it was signed: %v", err)
			}
			before := s.head()
			s.log.mu.Lock()
			err = s.log.setAside()
			s.log.follow = s.log.j.Follow(1)
			s.log.mu.Unlock()
			if err != nil {
				t.Fatal(err)
			}
			if after := s.head(); !bytes.Equal(after, before) || len(s.log.Problems()) > 0 {
				t.Errorf("after the tree was made anew the head is\n%s, before it was\n%s; %q", after, before, s.log.Problems())
			}
		})
	}
}

// TestCompactionKeepsProofs: what retention takes away leaves every hash where it was.
func TestCompactionKeepsProofs(t *testing.T) {
	s := newStore(t)
	s.fill(120)
	kept := s.head()
	ctx := t.Context()
	last, _ := s.cat.JournalView().End()
	before, err := s.log.Prove(ctx, last)
	if err != nil {
		t.Fatal(err)
	}
	s.clock.t = s.clock.t.Add(400 * 24 * time.Hour)
	s.write("late", "file-0", "the newest")
	if _, err := s.cat.Prune(ctx, catalog.PruneOptions{Now: s.clock.t, Policies: []catalog.Policy{{Path: "/", Dir: catalog.Root, KeepAll: time.Hour}}}); err != nil {
		t.Fatal(err)
	}
	rep, err := s.cat.Compact(ctx, true, nil)
	if err != nil {
		t.Fatal(err)
	}
	if rep.Heads == 0 || rep.Segments == 0 {
		t.Fatalf("compaction did nothing: %+v", rep)
	}
	x, err := s.log.ProveExtends(ctx, kept)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := x.Check(s.keys()); err != nil {
		t.Fatal(err)
	}
	proved, thinned := 0, 0
	for seq := catalog.Seq(1); seq <= last; seq++ {
		switch _, err := s.log.Prove(ctx, seq); {
		case err == nil:
			proved++
		case errors.Is(err, catalog.ErrThinned):
			thinned++
		default:
			t.Fatal(err)
		}
	}
	if thinned != rep.Heads || proved == 0 {
		t.Errorf("%d records are proved and %d thinned away, compaction took %d", proved, thinned, rep.Heads)
	}
	if _, err := before.Check(s.keys()); err != nil {
		t.Errorf("a proof of before: %v", err)
	}
	s.close()
	if r := s.mustBeSound(kept); r.Dropped != uint64(rep.Heads) || !r.Extends {
		t.Errorf("%+v", r)
	}
	// The tree follows from what is left.
	os.Remove(filepath.Join(s.dir, DirName, treeName))
	s.open()
	s.head()
	if p := s.log.Problems(); len(p) > 0 {
		t.Error(p)
	}
	s.close()
	s.mustBeSound(kept)
}

// TestHeadsAreThinned: the file of tree heads has a bound, and covers the past from the first head on.
func TestHeadsAreThinned(t *testing.T) {
	s := newStore(t)
	defer s.close()
	s.fill(1)
	var all [][]byte
	first := s.log.heads.newest
	for range 100 {
		s.write("a", "f", "x")
		all = append(all, s.head())
	}
	if err := s.log.heads.thin(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(s.log.heads.path)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(splitHeads(b, Origin(s.id))); n < 70 || n > 80 || n != s.log.heads.count {
		t.Errorf("%d heads are left, %d counted", n, s.log.heads.count)
	}
	if !bytes.HasPrefix(b, first) || !bytes.HasSuffix(b, all[len(all)-1]) {
		t.Error("the first or the last head is gone")
	}
	s.write("a", "f", "y")
	s.head()
	s.mustBeSound(all[10])
}

// TestReadOnly: nothing is written, what is signed can be proved.
func TestReadOnly(t *testing.T) {
	s := newStore(t)
	s.fill(10)
	s.close()
	s.open()
	defer s.close()
	newest := s.head()
	s.write("late", "unsigned", "x")
	last, _ := s.cat.JournalView().End()
	ro, err := Open(t.Context(), Options{Dir: filepath.Join(s.dir, DirName), Journal: s.cat.JournalView(), ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer ro.Close(context.Background())
	if h, err := ro.Head(t.Context()); err != nil || !bytes.Equal(h, newest) {
		t.Errorf("%s, %v", h, err)
	}
	if _, err := ro.Prove(t.Context(), 5); err != nil {
		t.Error(err)
	}
	if _, err := ro.Prove(t.Context(), last); !errors.Is(err, ErrNotSigned) {
		t.Errorf("a record that is not signed yet: %v", err)
	}
	empty := filepath.Join(t.TempDir(), "none")
	ro2, err := Open(t.Context(), Options{Dir: empty, Journal: s.cat.JournalView(), ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ro2.Head(t.Context()); !errors.Is(err, ErrNotSigned) {
		t.Error(err)
	}
	if err := ro2.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(empty); !errors.Is(err, os.ErrNotExist) {
		t.Error("a read-only log has made a directory")
	}
}

// TestDamagedKey: nobody replaces a key that is there.
func TestDamagedKey(t *testing.T) {
	s := newStore(t)
	s.fill(3)
	s.close()
	key := filepath.Join(s.dir, DirName, keyName)
	intact, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(key); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the key is readable by others: %v, %v", fi.Mode(), err)
	}
	s.open()
	defer s.close()
	for i := range intact[:len(intact)-1] {
		b := bytes.Clone(intact)
		b[i] ^= 1
		write(t, key, b)
		l, err := Open(t.Context(), Options{Dir: filepath.Join(s.dir, DirName), Journal: s.cat.JournalView()})
		if err == nil {
			t.Errorf("a key with byte %d changed is taken", i)
			l.Close(context.Background())
		} else if !errors.Is(err, ErrMalformed) {
			t.Errorf("byte %d: %v", i, err)
		}
	}
	write(t, key, intact)
}

// TestEntries compares the trail with what was done, by every filter.
func TestEntries(t *testing.T) {
	s := newStore(t)
	defer s.close()
	s.fill(30)
	middle := s.clock.t
	s.fill(5)
	row := s.write("zed", "dir-like", "z")
	if _, err := s.cat.Unlink(t.Context(), catalog.Actor{Agent: "zed"}, catalog.Root, "dir-like"); err != nil {
		t.Fatal(err)
	}
	get := func(q Query) (list []Entry) {
		t.Helper()
		err := s.log.Entries(t.Context(), q, func(e *Entry) error {
			list = append(list, *e)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	all := get(Query{})
	last, _ := s.cat.JournalView().End()
	if len(all) != int(last) {
		t.Fatalf("%d entries of %d records", len(all), last)
	}
	if e := all[len(all)-1]; e.Operation != catalog.OpUnlink || e.Inode != row.Ino || e.Path != "/dir-like" || e.Agent != "zed" {
		t.Errorf("%+v", e)
	}
	for name, c := range map[string]struct {
		q    Query
		want func(Entry) bool
	}{
		"agent":     {Query{Agent: "agent-1"}, func(e Entry) bool { return e.Agent == "agent-1" }},
		"operation": {Query{Operation: catalog.OpCreate}, func(e Entry) bool { return e.Operation == catalog.OpCreate }},
		"path":      {Query{Path: "/file-2"}, func(e Entry) bool { return e.Path == "/file-2" }},
		"root":      {Query{Path: "/"}, func(Entry) bool { return true }},
		"no prefix": {Query{Path: "/file"}, func(Entry) bool { return false }},
		"since":     {Query{Since: middle}, func(e Entry) bool { return e.Time.After(middle) }},
		"until":     {Query{Until: middle}, func(e Entry) bool { return !e.Time.After(middle) }},
		"newest":    {Query{Newest: 7}, func(e Entry) bool { return e.Seq > last-7 }},
		"from":      {Query{From: 11, Agent: "zed"}, func(e Entry) bool { return e.Seq >= 11 && e.Agent == "zed" }},
	} {
		var want []Entry
		for _, e := range all {
			if c.want(e) {
				want = append(want, e)
			}
		}
		if got := get(c.q); !slices.Equal(got, want) {
			t.Errorf("%s: %d entries, want %d", name, len(got), len(want))
		}
	}
}

// TestFollow: whoever follows sees each record once, in order, whatever the segments do, and ends when the log does.
func TestFollow(t *testing.T) {
	s := newStore(t)
	seen := make(chan catalog.Seq, 1000)
	idle := make(chan struct{}, 1000)
	done := make(chan error, 1)
	ctx := t.Context()
	go func() {
		done <- s.log.Entries(ctx, Query{Follow: true}, func(e *Entry) error {
			if e == nil {
				idle <- struct{}{}
			} else {
				seen <- e.Seq
			}
			return nil
		})
	}()
	next := catalog.Seq(1)
	for range 6 {
		<-idle
		s.fill(20)
		last, _ := s.cat.JournalView().End()
		for ; next <= last; next++ {
			if got := <-seen; got != next {
				t.Fatalf("record %d, want %d", got, next)
			}
		}
	}
	s.close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestRun signs at once, and again when the journal has grown; never twice the same.
func TestRun(t *testing.T) {
	s := newStore(t)
	s.fill(3)
	if err := s.cat.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.log.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	var err error
	s.log, err = Open(t.Context(), Options{Dir: filepath.Join(s.dir, DirName), Journal: s.cat.JournalView(), Now: time.Now, Interval: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.log.Run(ctx)
	}()
	count := func() int {
		s.log.mu.Lock()
		defer s.log.mu.Unlock()
		return s.log.heads.count
	}
	before := count()
	for range 5 {
		s.write("a", "f", "x")
		if err := s.cat.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		for count() == before {
			if t.Context().Err() != nil {
				t.Fatal("nothing is signed")
			}
		}
		before = count()
	}
	cancel()
	<-ended
	s.close()
	if r := s.mustBeSound(nil); r.Heads > before+1 {
		t.Errorf("%d heads, counted %d", r.Heads, before)
	}
}

// update rewrites the golden files.
var update = flag.Bool("update", false, "write the golden files anew")

// TestGolden: a proof, an extension and a tree head in their text forms, as other programs read them, are good for ever.
func TestGolden(t *testing.T) {
	dir := "testdata"
	if *update {
		makeGolden(t, dir)
	}
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	keys, err := ParseKeys(string(read("key.pub")))
	if err != nil {
		t.Fatal(err)
	}
	h, _, err := OpenHead(read("checkpoint"), keys)
	if err != nil {
		t.Fatal(err)
	}
	p, err := ParseProof(read("proof"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := p.Check(keys)
	if err != nil {
		t.Fatal(err)
	}
	e := got.Entries[0]
	if got.Head != h || e.Path != "/golden.txt" || e.Agent != "golden" || e.SHA256 != "2e4f783b443fdfab492691bbe74030e320846dedf142310853894541d57a2f10" {
		t.Errorf("%+v in %+v", e, got.Head)
	}
	x, err := ParseExtension(read("extension"))
	if err != nil {
		t.Fatal(err)
	}
	before, after, err := x.Check(keys)
	if err != nil || after != h || before.Size >= after.Size {
		t.Errorf("%+v %+v %v", before, after, err)
	}
}

func makeGolden(t *testing.T, dir string) {
	t.Helper()
	s := newStore(t)
	defer s.close()
	s.fill(9)
	old := s.head()
	row := s.write("golden", "golden.txt", "golden content")
	s.fill(5)
	v, err := s.cat.Version(t.Context(), row.Ino, 1)
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.log.Prove(t.Context(), v.Seq)
	if err != nil {
		t.Fatal(err)
	}
	x, err := s.log.ProveExtends(t.Context(), old)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"key.pub": []byte(s.log.PublicKey() + "\n"), "checkpoint": p.Signed, "proof": p.Text(), "extension": x.Text()} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
