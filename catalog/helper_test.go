package catalog

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/blobstore"
	"holdfast/blobstore/blobstoretest"
	"holdfast/internal/sqldb"
)

// memBlobs is a blobstore in memory that knows what a power cut would take.
type memBlobs struct {
	blobstore.Guarded // of no use to a catalog

	mu       sync.Mutex
	data     map[blobstore.Hash][]byte
	synced   map[blobstore.Hash]bool
	syncs    int
	putErr   error
	deleting func(i int, list []blobstore.Hash) error // see DeleteBatch
}

func newMemBlobs() *memBlobs {
	return &memBlobs{data: make(map[blobstore.Hash][]byte), synced: make(map[blobstore.Hash]bool)}
}

func (m *memBlobs) put(b []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.data[sha256.Sum256(b)] = bytes.Clone(b)
}

// powerCut loses what was not synced.
func (m *memBlobs) powerCut() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for h := range m.data {
		if !m.synced[h] {
			delete(m.data, h)
		}
	}
}

func (m *memBlobs) has(h blobstore.Hash) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := m.data[h]
	return ok
}

func (m *memBlobs) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.putErr = err
}

func (m *memBlobs) ReadAt(_ context.Context, ref blobstore.Ref, p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.data[ref.Hash]
	if !ok {
		return 0, blobstore.ErrNotFound
	}
	return copy(p, b[min(off, int64(len(b))):]), nil
}

func (m *memBlobs) PutBatch(_ context.Context, items []blobstore.Item) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.putErr != nil {
		return m.putErr
	}
	for _, it := range items {
		if sha256.Sum256(it.Data) != it.Ref.Hash || it.Ref.Size != int64(len(it.Data)) {
			return fmt.Errorf("body does not match its name %s", it.Ref.Hash)
		}
		m.data[it.Ref.Hash] = bytes.Clone(it.Data)
	}
	return nil
}

func (m *memBlobs) Adopt(context.Context, blobstore.Summed, blobstore.Meta, string, bool) error {
	return errors.ErrUnsupported
}

func (m *memBlobs) Sync(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.syncs++
	for h := range m.data {
		m.synced[h] = true
	}
	return nil
}

func (m *memBlobs) Sidecar(_ context.Context, h blobstore.Hash) (blobstore.Sidecar, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.data[h]
	if !ok {
		return blobstore.Sidecar{}, blobstore.ErrNotFound
	}
	return blobstore.Sidecar{DataID: h.String(), Size: int64(len(b))}, nil
}

func (m *memBlobs) Verify(context.Context, blobstore.Ref) error { return nil }

func (m *memBlobs) Delete(_ context.Context, h blobstore.Hash) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.data, h)
	delete(m.synced, h)
	return nil
}

// DeleteBatch asks m.deleting before each blob, and ends with its error.
func (m *memBlobs) DeleteBatch(ctx context.Context, list []blobstore.Hash) error {
	if len(list) > blobstore.MaxDelete {
		return blobstore.ErrInvalid
	}
	for i, h := range list {
		if m.deleting != nil {
			if err := m.deleting(i, list); err != nil {
				return err
			}
		}
		if err := m.Delete(ctx, h); err != nil {
			return err
		}
	}
	return nil
}

func (m *memBlobs) List(_ context.Context, after blobstore.Hash, fn func(blobstore.Hash) error) error {
	for _, h := range m.names() {
		if bytes.Compare(h[:], after[:]) > 0 {
			if err := fn(h); err != nil {
				return err
			}
		}
	}
	return nil
}

func (m *memBlobs) names() (list []blobstore.Hash) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for h := range m.data {
		list = append(list, h)
	}
	slices.SortFunc(list, func(a, b blobstore.Hash) int { return bytes.Compare(a[:], b[:]) })
	return list
}

func (m *memBlobs) Stats(context.Context) (blobstore.Stats, error) { return blobstore.Stats{}, nil }
func (m *memBlobs) Close() error                                   { return nil }

// clock is a time that tests set.
type clock struct {
	mu   sync.Mutex
	now  int64
	step int64 // of a tick; 0: 1000
}

func (c *clock) read() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Unix(0, c.now)
}

func (c *clock) tick() Timestamp {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now += max(c.step, 1000)
	return c.now
}

func testActor() Actor { return Actor{Agent: "tester", Program: "go", UID: 1000, PID: 7} }

func testOptions(t testing.TB, dir string, blobs blobstore.Store) Options {
	return Options{Dir: dir, StoreID: [16]byte{1, 2, 3}, Blobs: blobs, Log: slog.New(slog.NewTextHandler(testLog{t}, nil))}
}

type testLog struct{ t testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	if testing.Verbose() {
		os.Stderr.Write(p)
	}
	return len(p), nil
}

// newCatalog opens a new store with a root directory; it is closed at the end of the test.
func newCatalog(t testing.TB, change func(*Options)) *Catalog {
	t.Helper()
	o := testOptions(t, blobstoretest.TempDir(t), newMemBlobs())
	if change != nil {
		change(&o)
	}
	c := openCatalog(t, o)
	if err := c.Init(context.Background(), testActor(), NewInode{Mode: 0o755}); err != nil {
		t.Fatal(err)
	}
	return c
}

func openCatalog(t testing.TB, o Options) *Catalog {
	t.Helper()
	c, err := Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(context.Background()); err != nil && !errors.Is(err, ErrClosed) {
			t.Error("close:", err)
		}
	})
	return c
}

// kill ends a catalog as a killed process would: nothing that is only in memory gets anywhere.
func kill(c *Catalog) {
	c.mu.Lock()
	c.closed, c.released = true, true
	c.mu.Unlock()
	c.app.stop()
	<-c.app.done
	c.db.Close()
	c.j.Close()
}

func ptr[T any](v T) *T { return &v }

func must[T any](t testing.TB) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
}

// bodyBlob is a body as Commit takes it.
func bodyBlob(b []byte) NewBlob {
	return NewBlob{Ref: blobstore.Ref{Hash: sha256.Sum256(b), Size: int64(len(b))}, Level: LevelBasic, Body: b}
}

// whole is a Commit that makes data all of a file.
func whole(ino Ino, data []byte) Commit {
	cm := Commit{Ino: ino, Size: int64(len(data)), NewVersion: true}
	if len(data) > 0 {
		b := bodyBlob(data)
		cm.Blobs = []NewBlob{b}
		cm.Sum = b.Ref.Hash
		cm.Splice.Extents = []Extent{{Off: 0, Len: b.Ref.Size, Blob: b.Ref}}
	}
	return cm
}

func createFile(t testing.TB, c *Catalog, parent Ino, name string) Inode {
	t.Helper()
	return must[Inode](t)(c.Create(context.Background(), testActor(), parent, name, NewInode{Mode: unix.S_IFREG | 0o644, UID: 1000, GID: 1000}))
}

func createDir(t testing.TB, c *Catalog, parent Ino, name string) Inode {
	t.Helper()
	return must[Inode](t)(c.Create(context.Background(), testActor(), parent, name, NewInode{Mode: unix.S_IFDIR | 0o755, UID: 1000, GID: 1000}))
}

// listAll walks a directory in pages.
func listAll(t testing.TB, page int, read func(after uint64, max int) ([]DirEntry, error)) []DirEntry {
	t.Helper()
	var all []DirEntry
	after := uint64(0)
	for {
		list, err := read(after, page)
		if err != nil {
			t.Fatal(err)
		}
		if len(list) == 0 {
			return all
		}
		for _, e := range list {
			if e.Cookie <= after {
				t.Fatalf("entry %q has the position %d, not behind %d", e.Name, e.Cookie, after)
			}
			after = e.Cookie
		}
		all = append(all, list...)
	}
}

// dump writes every row of catalog.db but for what does not depend on the journal alone.
func dump(t testing.TB, dir string) string {
	t.Helper()
	ctx := context.Background()
	db, err := sqldb.Open(ctx, sqldb.Options{Path: filepath.Join(dir, dbName), Schema: schema, Version: dbFormat})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	tables := map[string]string{
		"meta": "key, value", "actors": "id, hex(agent), hex(program), uid", "times": "chunk, first_time, hex(deltas)",
		"inodes":   "ino, from_seq, parent, mode, uid, gid, rdev, nlink, size, atime, mtime, ctime, btime, ver, base, hex(target)",
		"dentries": "parent, hex(name), from_seq, ifnull(to_seq, 'live'), ino, type, cookie",
		"xattrs":   "ino, hex(name), from_seq, ifnull(to_seq, 'live'), hex(value)",
		"extents":  "ino, from_seq, off, len, ifnull(to_seq, 'live'), hex(blob), blob_size, hex(root), blob_off",
		"versions": "ino, num, seq, time, size, hex(sum), hex(prev), hex(digest), actor, pid",
		"blobs":    "hex(hash), size, hex(root), level, seq, segment, offset",

		"snapshots": "hex(name), seq, time, flags",
		"conflicts": "seq, ino, hex(path), lost, won, side, time, lost_by, lost_pid, won_by, won_pid",
		"gaps":      "ino, after, before", "kept": "hex(policy), seq",
	}
	if list, err := checkpoints(dir); err != nil || len(list) > 0 { // places of records in a checkpoint are from before its compaction
		tables["blobs"] = "hex(hash), size, hex(root), level, seq, segment, offset >= 0"
	}
	names := make([]string, 0, len(tables))
	for n := range tables {
		names = append(names, n)
	}
	sort.Strings(names)
	var out strings.Builder
	err = db.Read(ctx, func(c *sqldb.Conn) error {
		for _, n := range names {
			cols := strings.Split(tables[n], ", ")
			var expr []string
			for i := 0; i < len(cols); i++ {
				if strings.Contains(cols[i], ">=") {
					cols[i] = "(" + cols[i] + ")"
				}
				if strings.HasPrefix(cols[i], "ifnull(") {
					cols[i] += ", " + cols[i+1]
					cols = append(cols[:i+1], cols[i+2:]...)
				}
				expr = append(expr, cols[i])
			}
			where := ""
			if n == "meta" {
				where = " WHERE key NOT IN ('blobs_seq', 'store_id')"
			}
			st := c.Prep("SELECT " + strings.Join(expr, " || '|' || ") + " FROM " + n + where + " ORDER BY 1")
			for {
				ok, err := st.Step()
				if err != nil {
					return err
				}
				if !ok {
					break
				}
				fmt.Fprintf(&out, "%s: %s\n", n, st.Text(0))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// firstDifference shows where two dumps part.
func firstDifference(a, b string) string {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := 0; i < len(x) && i < len(y); i++ {
		if x[i] != y[i] {
			return fmt.Sprintf("line %d:\n%s\n%s", i, x[i], y[i])
		}
	}
	return fmt.Sprintf("%d and %d lines", len(x), len(y))
}
