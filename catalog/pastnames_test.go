package catalog

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"
)

// spansFromJournal reads what every name of dir led to from the journal alone, with the position of each span.
func spansFromJournal(t *testing.T, c *Catalog, dir Ino) map[string][]PastName {
	t.Helper()
	all := make(map[string][]PastName)
	err := c.Records(context.Background(), 1, func(r Record) error {
		for _, d := range r.Dentries {
			if d.Parent != dir {
				continue
			}
			list := all[d.Name]
			if n := len(list); n > 0 && list[n-1].To == Head {
				list[n-1].To = r.Seq
			}
			if d.Ino != 0 {
				list = append(list, PastName{Name: d.Name, Cookie: d.Cookie, NameSpan: NameSpan{d.Ino, d.Type, r.Seq, Head}})
			}
			all[d.Name] = list
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func checkDirNames(t *testing.T, c *Catalog, dir Ino, page int) {
	t.Helper()
	var want, got []PastName
	for _, spans := range spansFromJournal(t, c, dir) {
		want = append(want, spans[0])
	}
	slices.SortFunc(want, byPosition)
	for after := uint64(0); ; {
		part := must[[]PastName](t)(c.DirNames(context.Background(), dir, after, page))
		if len(part) == 0 {
			break
		}
		if len(part) > page {
			t.Fatalf("a page of %d has %d names", page, len(part))
		}
		got = append(got, part...)
		after = part[len(part)-1].Cookie
	}
	if !slices.Equal(got, want) {
		t.Fatalf("names of directory %d, pages of %d:\n got %v\nwant %v", dir, page, got, want)
	}
}

// TestDirNamesRandom compares DirNames and VersionRange with the journal, while the applier is at all sorts of points.
func TestDirNamesRandom(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 2))
	var gate sync.Mutex // held: the applier waits
	c := newCatalog(t, func(o *Options) {
		o.fault = func(s stage) error {
			if s == stageRead {
				return nil // a reader's, which may be the one that holds the gate
			}
			gate.Lock()
			defer gate.Unlock()
			return nil
		}
	})
	ctx := context.Background()
	dirs := []Ino{Root, createDir(t, c, Root, "sub").Ino}
	name := func() string { return fmt.Sprint("n", rnd.IntN(9)) }
	for range 12 {
		held := rnd.IntN(2) == 0
		if held {
			gate.Lock()
		}
		for range 30 {
			dir, other := dirs[rnd.IntN(2)], dirs[rnd.IntN(2)]
			var err error
			switch rnd.IntN(5) {
			case 0, 1:
				var row Inode
				if row, err = c.Create(ctx, testActor(), dir, name(), NewInode{Mode: 0o644}); err == nil {
					for range rnd.IntN(3) {
						cm := whole(row.Ino, []byte(fmt.Sprint(rnd.Uint64())))
						cm.NewVersion = true
						must[Inode](t)(c.Commit(ctx, testActor(), cm))
					}
				}
			case 2:
				_, err = c.Unlink(ctx, testActor(), dir, name())
			case 3:
				_, err = c.Rename(ctx, testActor(), dir, name(), other, name(), 0)
			case 4:
				_, err = c.Rename(ctx, testActor(), dir, name(), other, name(), RenameExchange)
			}
			if err != nil && !errors.Is(err, ErrExist) && !errors.Is(err, ErrNotExist) && !errors.Is(err, ErrNotDir) && !errors.Is(err, ErrIsDir) && !errors.Is(err, ErrInvalid) {
				t.Fatal(err)
			}
		}
		for _, dir := range dirs {
			for _, page := range []int{1, 2, 3, 100} {
				checkDirNames(t, c, dir, page)
			}
		}
		ino := Ino(rnd.IntN(40) + 1)
		var all []Version
		if err := c.Versions(ctx, ino, false, func(v Version) error { all = append(all, v); return nil }); err != nil && !errors.Is(err, ErrStale) {
			t.Fatal(err)
		}
		from := uint64(rnd.IntN(4))
		want := slices.DeleteFunc(slices.Clone(all), func(v Version) bool { return v.Num < from || v.Num >= from+2 })
		got := must[[]Version](t)(c.VersionRange(ctx, ino, from, from+2))
		if !slices.Equal(got, want) {
			t.Fatalf("versions %d and %d of inode %d: %v, want %v", from, from+1, ino, got, want)
		}
		if held {
			gate.Unlock()
		}
	}
}
