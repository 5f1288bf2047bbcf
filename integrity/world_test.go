package integrity_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/blobstore"
	"holdfast/blobstore/blobstoretest"
	"holdfast/catalog"
	"holdfast/integrity"
	"holdfast/internal/sqldb"
	"holdfast/internal/volume"
	"holdfast/snapshots"
)

func storages() []string {
	return []string{volume.StorageFile, volume.StorageDatabase, volume.StorageHybrid}
}

func actor() catalog.Actor { return catalog.Actor{Agent: "test", Program: "go", PID: 1} }

// world is a store with an engine.
type world struct {
	t       *testing.T
	dir     string
	vol     *volume.Volume
	eng     *integrity.Engine
	opt     integrity.Options
	storage string
}

func newWorld(t *testing.T, storage string) *world {
	t.Helper()
	w := &world{t: t, dir: filepath.Join(blobstoretest.TempDir(t), "store"), storage: storage}
	if _, err := volume.Init(t.Context(), w.dir, volume.InitOptions{Storage: storage}); err != nil {
		t.Fatal(err)
	}
	w.open()
	t.Cleanup(func() { w.close() })
	return w
}

func (w *world) open() {
	w.t.Helper()
	var err error
	if w.vol, err = volume.Open(context.Background(), volume.Options{Dir: w.dir}); err != nil {
		w.t.Fatal(err)
	}
	o := w.opt
	o.Volume = w.vol
	o.Restore = restorer(w.vol)
	if w.eng, err = integrity.New(context.Background(), o); err != nil {
		w.t.Fatal(err)
	}
}

func restorer(vol *volume.Volume) func(context.Context, string, catalog.Seq, bool) error {
	return func(ctx context.Context, p string, at catalog.Seq, dry bool) error {
		_, err := snapshots.Restore{Path: p, At: at, DryRun: dry}.Run(ctx, vol, catalog.Actor{Agent: "holdfast", Program: "holdfast"})
		return err
	}
}

func (w *world) close() {
	w.t.Helper()
	if w.vol == nil {
		return
	}
	if err := w.eng.Close(); err != nil {
		w.t.Error(err)
	}
	if err := w.vol.Close(context.Background()); err != nil {
		w.t.Error(err)
	}
	w.vol, w.eng = nil, nil
}

// reopen closes the store, so that nothing is in memory, lets fn scribble over it, and opens it again.
func (w *world) reopen(fn func()) {
	w.t.Helper()
	w.close()
	fn()
	w.open()
}

// put writes a file and returns its blob.
func (w *world) put(p string, body []byte) blobstore.Ref {
	w.t.Helper()
	row, err := w.vol.WritePath(context.Background(), actor(), 0, p, 0o644, bytes.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	list, err := w.vol.Extents(context.Background(), row.Ino, catalog.Head)
	if err != nil || len(list) != 1 {
		w.t.Fatal(list, err)
	}
	return list[0].Blob
}

func (w *world) read(p string) ([]byte, error) {
	var b bytes.Buffer
	err := w.vol.ReadPath(context.Background(), p, volume.Moment{}, &b)
	return b.Bytes(), err
}

// want reads a file and compares it.
func (w *world) want(p string, body []byte) {
	w.t.Helper()
	got, err := w.read(p)
	if err != nil || !bytes.Equal(got, body) {
		w.t.Errorf("%s: %d bytes of %d, same %v: %v", p, len(got), len(body), bytes.Equal(got, body), err)
	}
}

// uphold makes parity and second copies, as the scrub does.
func (w *world) uphold() {
	w.t.Helper()
	sum, err := w.eng.CheckStore(context.Background(), integrity.CheckOptions{Repair: true}, func(r integrity.Result) error {
		w.t.Errorf("%+v", r)
		return nil
	})
	if err != nil || !sum.Healthy() {
		w.t.Fatal(sum, err)
	}
}

func (w *world) attempts() (list []integrity.Attempt) {
	w.t.Helper()
	err := w.eng.Recoveries(context.Background(), 0, func(_ int64, a integrity.Attempt) error {
		list = append(list, a)
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return list
}

func (w *world) damaged() (list []integrity.Damaged) {
	w.t.Helper()
	err := w.eng.Damaged(context.Background(), func(d integrity.Damaged) error {
		list = append(list, d)
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return list
}

// await reads events until one is of the kind.
func (w *world) await(after uint64, kind integrity.EventKind) integrity.Event {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		list, err := w.eng.Events(ctx, after, 100)
		if err != nil {
			w.t.Fatalf("waiting for an event of the kind %s: %v", kind, err)
		}
		for _, e := range list {
			if after = e.Seq; e.Kind == kind {
				return e
			}
		}
	}
}

func noise(seed uint64, n int) []byte {
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	p := make([]byte, n)
	_, _ = r.Read(p)
	return p
}

func text(seed, n int) []byte {
	return bytes.Repeat([]byte("agent "+string(rune('a'+seed%26))+" wrote this line and closed the file\n"), n/40+1)[:n]
}

// isFile says whether a blob of that size is a file in the storage.
func (w *world) isFile(ref blobstore.Ref) bool {
	return w.storage == volume.StorageFile || w.storage == volume.StorageHybrid && ref.Size > blobstore.MaxSmall
}

// content is the file with the content of a blob.
func contentFile(t *testing.T, dir string, ref blobstore.Ref) string {
	t.Helper()
	name := filepath.Join(dir, "blobs", ref.Hash.String()[:2], ref.Hash.String())
	for _, end := range []string{"", ".zst"} {
		if _, err := os.Stat(name + end); err == nil {
			return name + end
		}
	}
	t.Fatalf("%s is not a file in %s", ref.Hash, dir)
	return ""
}

// alter changes the stored bytes of a blob, in the store or in the place of the second copies, while neither is open. nil: they are deleted.
func (w *world) alter(dir string, asFile bool, ref blobstore.Ref, fn func([]byte) []byte) {
	w.t.Helper()
	if asFile {
		name := contentFile(w.t, dir, ref)
		p, err := os.ReadFile(name)
		if err != nil {
			w.t.Fatal(err)
		}
		if p = fn(p); p == nil {
			for _, end := range []string{"", ".zst", ".json", ".par"} {
				if err := os.Remove(strings.TrimSuffix(name, ".zst") + end); err != nil && !errors.Is(err, os.ErrNotExist) {
					w.t.Fatal(err)
				}
			}
			return
		}
		if err := os.WriteFile(name, p, 0o600); err != nil {
			w.t.Fatal(err)
		}
		return
	}
	w.sql(filepath.Join(dir, "blobs.db"), func(c *sqldb.Conn) error {
		var id, first int64
		var body []byte
		st := c.Prep("SELECT b.id, b.body, l.first FROM blob b LEFT JOIN large l ON l.id = b.id WHERE b.hash = ?").BindBytes(1, ref.Hash[:])
		ok, err := st.Step()
		if err != nil || !ok {
			return errors.Join(err, errors.New("no such row"))
		}
		large := !st.IsNull(2)
		id, body, first = st.Int64(0), st.AppendBytes(nil, 1), st.Int64(2)
		if err := st.Done(); err != nil {
			return err
		}
		if large {
			st := c.Prep("SELECT body FROM block WHERE id = ?").BindInt64(1, first)
			if ok, err := st.Step(); err != nil || !ok {
				return errors.Join(err, errors.New("no such block"))
			}
			body = st.AppendBytes(nil, 0)
			if err := st.Done(); err != nil {
				return err
			}
		}
		body = fn(body)
		switch {
		case body == nil:
			return c.Prep("DELETE FROM blob WHERE id = ?").BindInt64(1, id).Exec()
		case large:
			return c.Prep("UPDATE block SET body = ? WHERE id = ?").BindBytes(1, body).BindInt64(2, first).Exec()
		}
		return c.Prep("UPDATE blob SET body = ? WHERE id = ?").BindBytes(1, body).BindInt64(2, id).Exec()
	})
}

func (w *world) sql(path string, fn func(*sqldb.Conn) error) {
	w.t.Helper()
	var db *sqldb.DB
	err := sqldb.ErrVersion
	for v := 1; errors.Is(err, sqldb.ErrVersion) && v < 10; v++ {
		db, err = sqldb.Open(context.Background(), sqldb.Options{Path: path, Version: v})
	}
	if err != nil {
		w.t.Fatal(err)
	}
	if err := errors.Join(db.Write(context.Background(), fn), db.Close()); err != nil {
		w.t.Fatal(err)
	}
}

// damage is one way to damage stored bytes.
type damage struct {
	name  string
	small bool // a tenth at most
	fn    func([]byte) []byte
}

func damages() []damage {
	return []damage{
		{"flipped bit", true, func(p []byte) []byte { p[len(p)/3] ^= 4; return p }},
		{"zeroed page", true, func(p []byte) []byte { clear(p[len(p)/2 : min(len(p)/2+4096, len(p)/2+len(p)/20+1)]); return p }},
		{"truncated", false, func(p []byte) []byte { return p[:len(p)/2] }},
		{"swapped", false, func(p []byte) []byte { slices.Reverse(p); return p }},
		{"deleted", false, func([]byte) []byte { return nil }},
	}
}

// appended makes a file of n versions, and returns its inode.
func (w *world) appended(p string, n int) catalog.Ino {
	w.t.Helper()
	ctx := context.Background()
	w.put(p, noise(1, 100))
	row, err := w.vol.Resolve(ctx, p)
	if err != nil {
		w.t.Fatal(err)
	}
	for i := 1; i < n; i++ {
		h, err := w.vol.OpenFile(ctx, actor(), row.Ino, volume.OpenFlags{Write: true})
		if err != nil {
			w.t.Fatal(err)
		}
		_, err = h.WriteAt(ctx, noise(uint64(i), 100), int64(100*i), volume.WriteFlags{})
		if err := errors.Join(err, h.Flush(ctx)); err != nil {
			w.t.Fatal(err)
		}
		h.Close(ctx)
	}
	return row.Ino
}
