package audit

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"holdfast/blobstore/blobstoretest"
	"holdfast/catalog"
)

// TestForgedHistoryIsFound: whoever can write every file of the store but does not have the key changes history and makes everything fit again.
func TestForgedHistoryIsFound(t *testing.T) {
	s := newStore(t)
	s.fill(60)
	kept := s.head()
	s.fill(10)
	s.close()
	s.mustBeSound(kept)

	find := func(segs []rawSegment, seq uint64) (*rawSegment, int) {
		for i := range segs {
			for j := range segs[i].recs {
				if segs[i].recs[j].seq() == seq {
					return &segs[i], j
				}
			}
		}
		t.Fatalf("no record %d", seq)
		return nil, 0
	}
	const victim = 20
	for name, c := range map[string]struct {
		edit  func(segs []rawSegment)
		first catalog.Seq // the record that is to be named
	}{
		"nothing, to see that forging works": {func([]rawSegment) {}, 0},
		"another agent": {func(segs []rawSegment) {
			s, j := find(segs, victim)
			s.recs[j].head = bytes.Replace(s.recs[j].head, []byte("agent-"), []byte("nobody"), 1)
		}, victim},
		"another time": {func(segs []rawSegment) {
			s, j := find(segs, victim)
			s.recs[j].setTime(int64(binary.LittleEndian.Uint64(s.recs[j].frame[16:])) + 1)
		}, victim},
		"one record less, the others numbered anew": {func(segs []rawSegment) {
			s, j := find(segs, victim)
			s.recs = slices.Delete(s.recs, j, j+1)
			n := uint64(victim)
			for i := range segs {
				first := n
				for j := range segs[i].recs {
					r := &segs[i].recs[j]
					if r.seq() < victim {
						first = min(first, r.seq())
						continue
					}
					binary.LittleEndian.PutUint64(r.frame[8:], n)
					synced := min(binary.LittleEndian.Uint64(r.frame[24:]), n-1)
					binary.LittleEndian.PutUint64(r.frame[24:], synced)
					n++
				}
				if first != binary.LittleEndian.Uint64(segs[i].header[32:]) && first >= victim {
					os.Remove(segs[i].path)
					binary.LittleEndian.PutUint64(segs[i].header[32:], first)
					segs[i].path = filepath.Join(filepath.Dir(segs[i].path), hex16(first)+".seg")
				}
			}
		}, victim},
		"two records in the other order": {func(segs []rawSegment) {
			s, j := find(segs, victim)
			a, b := &s.recs[j], &s.recs[j+1]
			a.head, b.head, a.body, b.body = b.head, a.head, b.body, a.body
			la, lb := bytes.Clone(a.frame[32:40]), bytes.Clone(b.frame[32:40])
			copy(a.frame[32:40], lb)
			copy(b.frame[32:40], la)
		}, victim},
	} {
		for _, tree := range []string{"with the tree file", "with the tree file gone", "with a tree file that fits"} {
			t.Run(name+" "+tree, func(t *testing.T) {
				dir := blobstoretest.TempDir(t)
				copyDir(t, s.dir, dir)
				segs := dissect(t, dir)
				c.edit(segs)
				forge(t, s.id, segs)
				path := filepath.Join(dir, DirName, treeName)
				switch tree {
				case "with the tree file gone":
					os.Remove(path)
				case "with a tree file that fits":
					forgeTree(t, dir)
				}
				r := verifyDir(t, dir, s.keys(), nil)
				if c.first == 0 {
					if tree != "with the tree file gone" && !r.OK || tree == "with the tree file gone" && len(r.Problems) != 1 {
						t.Fatalf("%+v", r.Problems)
					}
					return
				}
				p := problem(t, r, KindAltered)
				exact := tree == "with the tree file"
				if p.Record > c.first || p.Last < c.first || exact && (p.Record != c.first || p.Last != c.first) || p.Time == nil || !strings.HasPrefix(p.File, "journal/") {
					t.Errorf("record %d was changed, and reported is %+v", c.first, p)
				}
				// The heads are gone, too: only the one that was kept elsewhere is left.
				os.Remove(filepath.Join(dir, DirName, headsName))
				os.Remove(path)
				if r := verifyDir(t, dir, s.keys(), nil); !r.OK {
					t.Errorf("without tree heads there is nothing to compare with, but: %+v", r.Problems)
				}
				r = verifyDir(t, dir, s.keys(), kept)
				if problem(t, r, KindRollback); r.Extends {
					t.Error("a forged log extends the tree head that was kept elsewhere")
				}
			})
		}
	}
}

func hex16(n uint64) string {
	const digits = "0123456789abcdef"
	b := make([]byte, 16)
	for i := range b {
		b[15-i] = digits[n>>(4*i)&15]
	}
	return string(b)
}

// forgeTree makes the tree file fit the segments.
func forgeTree(t *testing.T, dir string) {
	t.Helper()
	path := filepath.Join(dir, DirName, treeName)
	os.Remove(path)
	tree, err := openTree(path, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range dissect(t, dir) {
		for _, r := range s.recs {
			if err := tree.add(leafOf([32]byte(r.frame[48:80]))); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(tree.flush(), tree.close()); err != nil {
		t.Fatal(err)
	}
}

// TestAttackerWithTheKey signs a forged history with a copy of the key: only a tree head that was kept elsewhere tells.
func TestAttackerWithTheKey(t *testing.T) {
	s := newStore(t)
	s.fill(30)
	kept := s.head()
	s.fill(10)
	s.close()
	segs := dissect(t, s.dir)
	segs[0].recs[9].setTime(1)
	forge(t, s.id, segs)
	for _, name := range []string{headsName, treeName} {
		if err := os.Remove(filepath.Join(s.dir, DirName, name)); err != nil {
			t.Fatal(err)
		}
	}
	// The catalog only reads the end of the journal; the daemon signs what it finds.
	s.open()
	s.head()
	s.close()
	r := s.verify(kept)
	if p := problem(t, r, KindRollback); p.Last < 10 || r.Extends {
		t.Errorf("%+v", p)
	}
	if _, _, err := (Extension{Old: kept, New: kept}).Check(s.keys()); err != nil {
		t.Errorf("a tree head extends itself, but: %v", err)
	}
	s.open()
	defer s.close()
	if _, err := s.log.ProveExtends(t.Context(), kept); !errors.Is(err, ErrTampered) {
		t.Errorf("the store proves that it extends what it does not: %v", err)
	}
}

// TestOpenSeesForgery: a daemon that opens a log whose journal was changed or cut does not go on as if nothing had happened.
func TestOpenSeesForgery(t *testing.T) {
	s := newStore(t)
	s.fill(30)
	kept := s.head()
	s.close()
	for name, edit := range map[string]func([]rawSegment){
		"a changed record": func(segs []rawSegment) {
			segs[0].recs[9].head = bytes.Replace(segs[0].recs[9].head, []byte("agent-"), []byte("nobody"), 1)
		},
		"records less": func(segs []rawSegment) { last := &segs[len(segs)-1]; last.recs = last.recs[:len(last.recs)-1] },
	} {
		t.Run(name, func(t *testing.T) {
			c := *s
			c.t, c.dir = t, blobstoretest.TempDir(t)
			copyDir(t, s.dir, c.dir)
			segs := dissect(t, c.dir)
			edit(segs)
			forge(t, s.id, segs)
			// With catalog.db the journal itself would know that something is missing.
			old, err := filepath.Glob(filepath.Join(c.dir, "catalog.db*"))
			if err != nil || len(old) == 0 {
				t.Fatalf("%q, %v", old, err)
			}
			for _, p := range old {
				os.Remove(p)
			}
			c.open()
			c.write("daemon", "goes-on", "x")
			c.head()
			if p := c.log.Problems(); len(p) != 1 || !strings.Contains(p[0], "changed or rolled back") {
				t.Errorf("problems: %q", p)
			}
			if _, err := c.log.ProveExtends(t.Context(), kept); !errors.Is(err, ErrTampered) {
				t.Errorf("it proves that nothing was changed: %v", err)
			}
			c.close()
			if r := c.verify(nil); r.OK {
				t.Error("what it signed since hides the change")
			}
		})
	}
}

// TestReplacedKey: heads of a key that was lost stay good, but it may sign none after its successor; and an unknown key none at all.
func TestReplacedKey(t *testing.T) {
	s := newStore(t)
	s.fill(10)
	s.close()
	key := filepath.Join(s.dir, DirName, keyName)
	stolen, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	first := s.keys()
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	s.open()
	if len(s.log.Problems()) != 1 {
		t.Errorf("a lost key is no problem: %q", s.log.Problems())
	}
	s.fill(10)
	s.close()
	s.mustBeSound(nil)
	if len(s.keys()) != 2 {
		t.Fatalf("%d public keys", len(s.keys()))
	}
	// Whoever only trusts the first key sees that another one has signed.
	r := verifyDir(t, s.dir, first, nil)
	if p := problem(t, r, KindCheckpoint); !strings.Contains(p.Details, "another key") || r.Signed == 0 {
		t.Errorf("%+v", p)
	}

	signer, err := note.NewSigner(strings.TrimSpace(string(stolen)))
	if err != nil {
		t.Fatal(err)
	}
	heads := filepath.Join(s.dir, DirName, headsName)
	b, err := os.ReadFile(heads)
	if err != nil {
		t.Fatal(err)
	}
	pieces := splitHeads(b, Origin(s.id))
	h, _, err := OpenHead(pieces[len(pieces)-1].data, s.keys())
	if err != nil {
		t.Fatal(err)
	}
	forged, err := signHead(h, signer)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(heads, append(b, forged...), 0o600); err != nil {
		t.Fatal(err)
	}
	if p := problem(t, s.verify(nil), KindCheckpoint); !strings.Contains(p.Details, "replaced") {
		t.Errorf("%+v", p)
	}
}

// TestRollback: an older copy of the whole store is put in its place.
func TestRollback(t *testing.T) {
	s := newStore(t)
	s.fill(20)
	s.close()
	old := blobstoretest.TempDir(t)
	copyDir(t, s.dir, old)
	s.open()
	s.fill(20)
	kept := s.head()
	s.close()
	if r := s.mustBeSound(kept); !r.Extends {
		t.Error("the tree head of the store itself does not hold")
	}
	if r := verifyDir(t, old, s.keys(), nil); !r.OK {
		t.Errorf("an old copy is sound by itself, but: %+v", r.Problems)
	}
	r := verifyDir(t, old, s.keys(), kept)
	if p := problem(t, r, KindRollback); p.Record != r.Last+1 || p.Time == nil || !strings.Contains(p.Details, "older") {
		t.Errorf("%+v", p)
	}
	// It goes on from there: the numbers are used again.
	s.dir = old
	s.open()
	s.fill(40)
	if _, err := s.log.ProveExtends(t.Context(), kept); !errors.Is(err, ErrTampered) {
		t.Errorf("a store that was rolled back proves that it was not: %v", err)
	}
	s.close()
	if p := problem(t, s.verify(kept), KindRollback); p.Record == 0 {
		t.Errorf("%+v", p)
	}
	// Only the journal is older: the tree heads of the store itself tell.
	young := blobstoretest.TempDir(t)
	copyDir(t, s.dir, young)
	segs := dissect(t, young)
	segs[len(segs)-1].recs = segs[len(segs)-1].recs[:1]
	forge(t, s.id, segs)
	r = verifyDir(t, young, s.keys(), nil)
	if p := problem(t, r, KindMissing); p.Record != r.Last+1 || !strings.Contains(p.Details, "ends with record") {
		t.Errorf("%+v", p)
	}
}

// TestDamageIsNamed: what somebody does to the segments without making them fit is named by record, time and file.
func TestDamageIsNamed(t *testing.T) {
	s := newStore(t)
	s.fill(60)
	s.close()
	segs := dissect(t, s.dir)
	if len(segs) < 3 {
		t.Fatalf("%d segments are too few for this test", len(segs))
	}
	at := 4096 // of the third record of the second segment
	for _, r := range segs[1].recs[:2] {
		at += 84 + len(r.head) + len(r.body)
	}
	victim := segs[1].recs[2].seq()
	for name, c := range map[string]struct {
		edit func(path string, b []byte)
		kind string
		last uint64
	}{
		"a bit in the head": {func(p string, b []byte) { b[at+84+3] ^= 4; write(t, p, b) }, KindDamaged, victim},
		"a bit in the body, with its checksum": {func(p string, b []byte) {
			segs := dissect(t, filepath.Dir(filepath.Dir(p)))
			segs[1].recs[2].body[0] ^= 1
			forge(t, s.id, segs)
		}, KindDamaged, victim},
		"a frame of zeros":   {func(p string, b []byte) { clear(b[at : at+84]); write(t, p, b) }, KindDamaged, victim},
		"a segment is gone":  {func(p string, _ []byte) { os.Remove(p) }, KindMissing, segs[2].recs[0].seq() - 1},
		"the end is cut off": {func(p string, b []byte) { write(t, p, b[:at]) }, KindMissing, segs[2].recs[0].seq() - 1},
	} {
		t.Run(name, func(t *testing.T) {
			dir := blobstoretest.TempDir(t)
			copyDir(t, s.dir, dir)
			path := filepath.Join(dir, "journal", filepath.Base(segs[1].path))
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			c.edit(path, b)
			r := verifyDir(t, dir, s.keys(), nil)
			p := problem(t, r, c.kind)
			first := victim
			if name == "a segment is gone" {
				first = segs[1].recs[0].seq()
			}
			if uint64(p.Record) != first || uint64(p.Last) != c.last || p.Time == nil || !strings.HasPrefix(p.File, "journal/") {
				t.Errorf("records %d to %d: reported %+v", first, c.last, p)
			}
			// The tree file has the hashes of what is lost: the signatures still hold for all the rest.
			for _, p := range r.Problems {
				if p.Kind == KindAltered {
					t.Errorf("the intact records are under suspicion, too: %+v", p)
				}
			}
			if int(r.Signed) != 65 && r.Heads == 0 {
				t.Errorf("no tree head holds: %+v", r)
			}
		})
	}
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestContentTakenAway: a record is made to look as if retention had taken away what it said.
func TestContentTakenAway(t *testing.T) {
	s := newStore(t)
	s.fill(30)
	s.close()
	segs := dissect(t, s.dir)
	r := &segs[0].recs[11]
	binary.LittleEndian.PutUint32(r.frame[40:], 3)
	r.head, r.body = nil, nil
	forge(t, s.id, segs)
	p := problem(t, s.verify(nil), KindDropped)
	if p.Record != 12 || !strings.HasPrefix(p.File, "journal/") {
		t.Errorf("%+v", p)
	}
}

// TestTreeFileAndHeadsAreChecked: damage to the evidence itself is found, and the next daemon makes the tree anew.
func TestTreeFileAndHeadsAreChecked(t *testing.T) {
	s := newStore(t)
	s.fill(40)
	s.close()
	tree := filepath.Join(s.dir, DirName, treeName)
	intact, err := os.ReadFile(tree)
	if err != nil {
		t.Fatal(err)
	}
	for at := 5; at < len(intact); at += 97 {
		b := bytes.Clone(intact)
		b[at] ^= 0x10
		write(t, tree, b)
		problem(t, s.verify(nil), KindTree)
	}
	write(t, tree, intact[:len(intact)/2])
	problem(t, s.verify(nil), KindTree)
	write(t, tree, intact)
	s.mustBeSound(nil)

	heads := filepath.Join(s.dir, DirName, headsName)
	b, err := os.ReadFile(heads)
	if err != nil {
		t.Fatal(err)
	}
	for at := 0; at < len(b); at += 41 {
		c := bytes.Clone(b)
		c[at] ^= 1
		write(t, heads, c)
		if r := s.verify(nil); r.OK && at < bytes.LastIndex(b, []byte(Origin(s.id)+"\n")) {
			t.Errorf("a changed byte at %d of the tree heads is not found", at)
		}
	}
}
