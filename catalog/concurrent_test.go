package catalog

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/internal/sqldb"
)

// While a directory changes, walks of it meet every entry that stays exactly once, in order, with an inode.
func TestReadDirWhileChanging(t *testing.T) {
	for _, cache := range []int{minCacheEntries, defaultCacheEntries} {
		c := newCatalog(t, func(o *Options) { o.CacheEntries = cache })
		ctx, who := context.Background(), testActor()
		const stay = 30
		for i := range stay {
			createFile(t, c, Root, fmt.Sprintf("stay%d", i))
			createFile(t, c, Root, fmt.Sprintf("go%d", i))
		}
		var wg sync.WaitGroup
		done := make(chan struct{})
		wg.Go(func() { // what comes, goes, moves and is replaced, and is applied now and then
			defer close(done)
			rnd := rand.New(rand.NewPCG(1, 2))
			for range 400 {
				name := fmt.Sprintf("go%d", rnd.IntN(stay))
				switch rnd.IntN(5) {
				case 0:
					c.Create(ctx, who, Root, name, NewInode{Mode: unix.S_IFREG | 0o600})
				case 1:
					c.Unlink(ctx, who, Root, name)
				case 2:
					c.Rename(ctx, who, Root, name, Root, fmt.Sprintf("go%d", rnd.IntN(stay)), 0)
				case 3:
					c.Create(ctx, who, Root, "tmp", NewInode{Mode: unix.S_IFREG | 0o600})
					c.Rename(ctx, who, Root, "tmp", Root, fmt.Sprintf("stay%d", rnd.IntN(stay)), 0)
				case 4:
					if err := c.Flush(ctx); err != nil {
						t.Error(err)
					}
				}
			}
		})
		for walk, last := 0, false; !last; walk++ {
			select {
			case <-done:
				last = true
			default:
			}
			seen := make(map[string]int)
			for _, e := range listAll(t, 1+walk%13, func(after uint64, max int) ([]DirEntry, error) { return c.ReadDir(ctx, Root, after, max) }) {
				seen[e.Name]++
				if e.Inode.Ino == 0 || e.Inode.Mode&typeMask != unix.S_IFREG {
					t.Fatalf("%q comes with %+v", e.Name, e.Inode)
				}
			}
			for i := range stay {
				if n := seen[fmt.Sprintf("stay%d", i)]; n != 1 {
					t.Fatalf("walk %d met stay%d %d times", walk, i, n)
				}
			}
		}
		wg.Wait()
	}
}

// Readers see every change that was acknowledged before they ask, whatever the applier and the caches do meanwhile.
func TestReadYourWrites(t *testing.T) {
	c := newCatalog(t, func(o *Options) { o.CacheEntries = minCacheEntries })
	ctx, who := context.Background(), testActor()
	stop := make(chan struct{})
	var background, workers sync.WaitGroup
	background.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := c.Flush(ctx); err != nil {
				t.Error(err)
			}
		}
	})
	for g := range 4 {
		workers.Go(func() {
			dir := createDir(t, c, Root, fmt.Sprintf("dir%d", g))
			var files []Inode
			for i := range 60 {
				f, err := c.Create(ctx, who, dir.Ino, strconv.Itoa(i), NewInode{Mode: unix.S_IFREG | 0o600})
				if err != nil {
					t.Error(err)
					return
				}
				files = append(files, f)
				k := (i * 7) % len(files)
				row, err := c.Commit(ctx, who, whole(files[k].Ino, []byte(fmt.Sprint(g, i))))
				if err != nil {
					t.Error(err)
					return
				}
				files[k] = row
				if err := c.SetXattr(ctx, who, files[k].Ino, "user.i", []byte(strconv.Itoa(i)), 0); err != nil {
					t.Error(err)
				}
				files[k], err = c.Get(ctx, files[k].Ino)
				if err != nil {
					t.Error(err)
				}
				for n, want := range files {
					if n%5 != i%5 {
						continue
					}
					got, err := c.Lookup(ctx, dir.Ino, strconv.Itoa(n))
					if err != nil || got != want {
						t.Errorf("lookup gives %+v %v, want %+v", got, err, want)
						return
					}
				}
				v, err := c.GetXattr(ctx, files[k].Ino, "user.i")
				ext, xerr := c.Extents(ctx, files[k].Ino, Head)
				if err != nil || string(v) != strconv.Itoa(i) || xerr != nil || len(ext) != 1 || ext[0].Len != files[k].Size {
					t.Errorf("attribute %q %v, extents %+v %v", v, err, ext, xerr)
					return
				}
			}
		})
	}
	workers.Wait()
	close(stop)
	background.Wait()
}

// dropCaches evicts everything that may be evicted.
func dropCaches(c *Catalog) {
	c.mu.Lock()
	defer c.mu.Unlock()
	drop(&c.inodes)
	drop(&c.names)
	drop(&c.xattrs)
	drop(&c.content)
}

func drop[K comparable, V any](c *cache[K, V]) {
	limit := c.limit
	c.limit = 0
	c.evict(nil)
	c.limit = limit
}

// racer is a change and the question that it changes the answer of.
type racer struct {
	change func(c *Catalog, dir, ino Ino) error
	read   func(c *Catalog, dir, ino Ino) string
}

func racers() map[string]racer {
	ctx, who := context.Background(), testActor()
	chmod := func(c *Catalog, dir, ino Ino) error {
		_, err := c.SetAttr(ctx, who, ino, Change{Mode: ptr(uint32(0o444))})
		return err
	}
	return map[string]racer{
		"Get": {chmod, func(c *Catalog, dir, ino Ino) string {
			row, err := c.Get(ctx, ino)
			return fmt.Sprintf("%o %v", row.Mode, err)
		}},
		"Lookup": {func(c *Catalog, dir, ino Ino) error {
			_, err := c.Rename(ctx, who, dir, "b", dir, "a", 0)
			return err
		}, func(c *Catalog, dir, ino Ino) string {
			row, err := c.Lookup(ctx, dir, "a")
			return fmt.Sprint(row.Ino, err)
		}},
		"Lookup of nothing": {func(c *Catalog, dir, ino Ino) error {
			_, err := c.Link(ctx, who, ino, dir, "new")
			return err
		}, func(c *Catalog, dir, ino Ino) string {
			row, err := c.Lookup(ctx, dir, "new")
			return fmt.Sprint(row.Ino, err)
		}},
		"ReadDir": {chmod, func(c *Catalog, dir, ino Ino) string {
			list, err := c.ReadDir(ctx, dir, 0, 10)
			return fmt.Sprintf("%v %v", list, err)
		}},
		"ListXattr": {func(c *Catalog, dir, ino Ino) error {
			return c.SetXattr(ctx, who, ino, "user.new", []byte("x"), 0)
		}, func(c *Catalog, dir, ino Ino) string {
			list, err := c.ListXattr(ctx, ino)
			return fmt.Sprint(list, err)
		}},
		"Extents": {func(c *Catalog, dir, ino Ino) error {
			_, err := c.Commit(ctx, who, whole(ino, []byte("new content")))
			return err
		}, func(c *Catalog, dir, ino Ino) string {
			list, err := c.Extents(ctx, ino, Head)
			return fmt.Sprint(list, err)
		}},
	}
}

// Between a reader's look at catalog.db and its answer, the world changes: the answer is never older than the question, and what is
// kept in memory is never old.
func TestReadsRacingTheApplier(t *testing.T) {
	ctx, who := context.Background(), testActor()
	for name, r := range racers() {
		// before: the change comes before the question and is applied during it. Else it comes during it.
		for k := range 6 { // an answer may take several looks: it happens in the one after k/2 others
			before := k%2 == 0
			t.Run(fmt.Sprint(name, " ", k), func(t *testing.T) {
				var c *Catalog
				var dir, ino Ino
				var left atomic.Int64
				left.Store(-1)
				c = newCatalog(t, func(o *Options) {
					o.fault = func(at stage) error {
						if at != stageRead || left.Add(-1) != 0 {
							return nil
						}
						if !before {
							if err := r.change(c, dir, ino); err != nil {
								t.Error(err)
							}
						}
						if err := c.Flush(ctx); err != nil {
							t.Error(err)
						}
						dropCaches(c)
						return nil
					}
				})
				dir = createDir(t, c, Root, "dir").Ino
				ino = createFile(t, c, dir, "a").Ino
				createFile(t, c, dir, "b")
				must[Inode](t)(c.Commit(ctx, who, whole(ino, []byte("old"))))
				if err := c.Flush(ctx); err != nil {
					t.Fatal(err)
				}
				c.app.mu.Lock() // only the hook applies
				if before {
					if err := r.change(c, dir, ino); err != nil {
						t.Fatal(err)
					}
				}
				c.app.mu.Unlock()
				dropCaches(c)
				left.Store(int64(1 + k/2))
				first := r.read(c, dir, ino)
				left.Store(-1)
				second := r.read(c, dir, ino)
				if err := c.Flush(ctx); err != nil {
					t.Fatal(err)
				}
				dropCaches(c)
				want := r.read(c, dir, ino)
				if second != want || before && first != want {
					t.Fatalf("first %s\nthen  %s\nwant  %s", first, second, want)
				}
			})
		}
	}
}

func TestConcurrentCreateIsExclusive(t *testing.T) {
	c := newCatalog(t, nil)
	ctx, who := context.Background(), testActor()
	var wg sync.WaitGroup
	made := make([]int, 50)
	var mu sync.Mutex
	for range 4 {
		wg.Go(func() {
			for i := range made {
				_, err := c.Create(ctx, who, Root, strconv.Itoa(i), NewInode{Mode: unix.S_IFREG})
				switch {
				case err == nil:
					mu.Lock()
					made[i]++
					mu.Unlock()
				case !errors.Is(err, ErrExist):
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for i, n := range made {
		if n != 1 {
			t.Errorf("name %d was made %d times", i, n)
		}
	}
}

// Sync from many goroutines while large blobs are committed: what Sync covered names only durable blobs.
func TestSyncCoversBlobs(t *testing.T) {
	blobs := newMemBlobs()
	c := newCatalog(t, func(o *Options) { o.Blobs = blobs })
	ctx, who := context.Background(), testActor()
	var wg sync.WaitGroup
	for g := range 4 {
		f := createFile(t, c, Root, strconv.Itoa(g))
		wg.Go(func() {
			for i := range 25 {
				body := []byte(fmt.Sprint("large ", g, " ", i))
				blobs.put(body)
				cm := whole(f.Ino, body)
				cm.Blobs[0].Body, cm.UnsyncedBlobs = nil, true
				if _, err := c.Commit(ctx, who, cm); err != nil {
					t.Error(err)
				}
				if i%3 == g%3 {
					if err := c.Sync(ctx); err != nil {
						t.Error(err)
					}
					blobs.mu.Lock()
					if !blobs.synced[cm.Sum] {
						t.Error("Sync returned and the blob is not durable")
					}
					blobs.mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
}

// The statements that run for each entry of a directory, each name and each file use an index: their cost does not grow with the
// number of rows, and a list comes in order without sorting.
func TestQueryPlans(t *testing.T) {
	c := newCatalog(t, nil)
	plans := map[string]string{
		dirJoin + "d.to_seq IS NULL ORDER BY d.cookie":                                                                                  "dentries_live",
		dirJoin + "d.to_seq IS NULL AND d.from_seq <= ? ORDER BY d.cookie":                                                              "dentries_live",
		dirJoin + "d.to_seq IS NOT NULL AND d.to_seq > ? AND d.from_seq <= ? ORDER BY d.cookie":                                         "dentries_past",
		"SELECT ino, type, cookie, to_seq FROM dentries WHERE parent = ? AND name = ? AND from_seq <= ? ORDER BY from_seq DESC LIMIT 1": "PRIMARY KEY (parent=? AND name=? AND from_seq<?)",
		"SELECT cookie FROM dentries WHERE parent = ? AND to_seq IS NULL ORDER BY cookie":                                               "dentries_live",
		"SELECT parent, name FROM dentries WHERE ino = ? AND to_seq IS NULL":                                                            "dentries_ino",
		"SELECT " + inodeColumns + " FROM inodes i WHERE i.ino = ? AND i.from_seq <= ? ORDER BY i.from_seq DESC LIMIT 1":                "PRIMARY KEY (ino=? AND from_seq<?)",
		"SELECT " + extentColumns + " FROM extents WHERE ino = ? AND to_seq IS NULL ORDER BY off":                                       "extents_live",
		"SELECT " + extentColumns + " FROM extents WHERE ino = ? AND to_seq IS NULL AND off < ? ORDER BY off DESC LIMIT 1":              "extents_live",
		"SELECT " + extentColumns + " FROM extents WHERE ino = ? AND to_seq IS NULL AND off >= ? AND off < ? ORDER BY off":              "extents_live",
		"SELECT chunk, first_time, deltas FROM times WHERE first_time <= ? ORDER BY first_time DESC, chunk DESC LIMIT 1":                "times_first",
	}
	for query, want := range plans {
		err := c.db.Read(context.Background(), func(conn *sqldb.Conn) error {
			st := conn.Prep("EXPLAIN QUERY PLAN " + query)
			var plan []string
			for {
				ok, err := st.Step()
				if err != nil {
					return err
				}
				if !ok {
					break
				}
				plan = append(plan, st.Text(3))
			}
			all := strings.Join(plan, "; ")
			if !strings.Contains(all, want) || strings.Contains(all, "TEMP B-TREE") || strings.Contains(all, "SCAN") {
				return fmt.Errorf("%s\nhas the plan %s\nwant %s", query, all, want)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// A large directory is listed whole, in pages, from memory and from catalog.db.
func TestLargeDirectory(t *testing.T) {
	c := newCatalog(t, func(o *Options) { o.CacheEntries = 100 })
	ctx := context.Background()
	const files = 2_500
	for i := range files {
		createFile(t, c, Root, strconv.Itoa(i))
	}
	for range 2 {
		list := listAll(t, 1000, func(after uint64, max int) ([]DirEntry, error) { return c.ReadDir(ctx, Root, after, max) })
		if len(list) != files {
			t.Fatalf("%d entries", len(list))
		}
		for i, e := range list {
			if e.Name != strconv.Itoa(i) {
				t.Fatalf("entry %d is %q", i, e.Name)
			}
		}
		if err := c.Flush(ctx); err != nil {
			t.Fatal(err)
		}
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	if n := len(c.inodes.m) + len(c.names.m); n > 3*100 || len(c.dirs) > 0 || len(c.queue) > 0 {
		t.Fatalf("%d rows stay in memory, the limit is 100 of a kind; %d directories have changes", n, len(c.dirs))
	}
}

func FuzzTimes(f *testing.F) {
	f.Add(int64(0), []byte{})
	f.Add(int64(1<<62), []byte{0, 1, 2, 0xff, 0x01})
	f.Add(int64(-5), []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01})
	f.Fuzz(func(t *testing.T, first int64, deltas []byte) {
		last, n := first, 0
		err := eachTime(first, deltas, func(i int, at Timestamp) bool {
			if at < last || i != n {
				t.Fatalf("time %d of record %d comes after %d", at, i, last)
			}
			last, n = at, n+1
			return true
		})
		if count, end, err2 := decodeTimes(first, deltas); err == nil && (count != n || end != last || err2 != nil) {
			t.Fatal(count, end, err2)
		}
		if n > timesChunk {
			t.Fatal("a chunk has too many records")
		}
	})
}
