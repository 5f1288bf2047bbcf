package snapshots

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/blobstore/blobstoretest"
	"holdfast/catalog"
	"holdfast/internal/volume"
)

// thing is an inode of the model.
type thing struct {
	row     catalog.Inode // with the numbers and times of the store, everything else as the model says
	data    []byte
	xattrs  map[string]string
	entries map[string]*thing // of a directory
}

func (x *thing) isDir() bool  { return isDir(x.row.Mode) }
func (x *thing) isFile() bool { return isFile(x.row.Mode) }

// clone copies a tree; what has several names stays one thing.
func clone(x *thing, seen map[*thing]*thing) *thing {
	if y := seen[x]; y != nil {
		return y
	}
	y := &thing{row: x.row, data: x.data, xattrs: maps.Clone(x.xattrs)}
	seen[x] = y
	if x.entries != nil {
		y.entries = make(map[string]*thing, len(x.entries))
		for name, e := range x.entries {
			y.entries[name] = clone(e, seen)
		}
	}
	return y
}

// each calls fn for everything below x, by path.
func each(x *thing, p string, fn func(p string, x *thing)) {
	fn(p, x)
	for name, e := range x.entries {
		each(e, strings.TrimSuffix(p, "/")+"/"+name, fn)
	}
}

// kept is the model of a moment.
type kept struct {
	seq  catalog.Seq
	at   time.Time
	root *thing
}

// twin drives a store and its model alike.
type twin struct {
	t     *testing.T
	ctx   context.Context
	rnd   *rand.Rand
	vol   *volume.Volume
	tree  *Tree
	root  *thing
	kept  []kept
	saved map[string]map[string]bool // the hashes of what was ever saved under a path
	gone  map[slot]string            // what was deleted from a directory last: the hash of a file, "" of anything else
	dirs  map[string]map[catalog.Ino]bool
}

// slot is a name in a directory.
type slot struct {
	dir  catalog.Ino
	name string
}

func newTwin(t *testing.T, seed uint64) *twin {
	dir := filepath.Join(blobstoretest.TempDir(t), "store")
	if _, err := volume.Init(t.Context(), dir, volume.InitOptions{}); err != nil {
		t.Fatal(err)
	}
	vol, err := volume.Open(t.Context(), volume.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := vol.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	w := &twin{
		t: t, ctx: t.Context(), rnd: rand.New(rand.NewPCG(seed, 3)), vol: vol, saved: make(map[string]map[string]bool),
		gone: make(map[slot]string), dirs: make(map[string]map[catalog.Ino]bool),
	}
	// Small tables, so that numbers are lost and found again.
	w.tree = New(Options{Store: vol, maxViews: 4, maxNodes: 30, page: 2})
	row, err := vol.Get(w.ctx, catalog.Root)
	w.ok(err)
	w.root = &thing{row: row, entries: make(map[string]*thing)}
	entries, err := vol.ReadDir(w.ctx, catalog.Root, 0, 100)
	w.ok(err)
	for _, e := range entries {
		x := &thing{row: e.Inode, entries: make(map[string]*thing), xattrs: make(map[string]string)}
		for _, name := range must2(vol.ListXattr(w.ctx, e.Inode.Ino)) {
			x.xattrs[name] = string(must2(vol.GetXattr(w.ctx, e.Inode.Ino, name)))
		}
		w.root.entries[e.Name] = x
	}
	return w
}

func must2[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func (w *twin) ok(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *twin) who() catalog.Actor {
	return catalog.Actor{Agent: fmt.Sprint("agent/", w.rnd.IntN(3)), Program: "model", PID: 9}
}

// pick returns a directory of the model and its path.
func (w *twin) pick(want func(*thing) bool) (string, *thing) {
	var paths []string
	all := make(map[string]*thing)
	each(w.root, "/", func(p string, x *thing) {
		if want(x) {
			paths = append(paths, p)
			all[p] = x
		}
	})
	if len(paths) == 0 {
		return "", nil
	}
	slices.Sort(paths)
	p := paths[w.rnd.IntN(len(paths))]
	return p, all[p]
}

func (w *twin) dir() (string, *thing) { return w.pick((*thing).isDir) }
func (w *twin) name() string {
	return []string{"a", "b.md", "c.tar.gz", "d", "e e", "ü.json", ".f", "g"}[w.rnd.IntN(8)]
}

// step does one random operation.
func (w *twin) step() {
	p, dir := w.dir()
	name := w.name()
	at := strings.TrimSuffix(p, "/") + "/" + name
	x := dir.entries[name]
	switch w.rnd.IntN(16) {
	case 0, 1, 2:
		w.create(dir, name, x)
	case 3, 4, 5:
		if _, f := w.pick((*thing).isFile); f != nil {
			w.write(f)
		}
	case 6, 7:
		if x != nil {
			w.remove(dir, name, x)
		}
	case 8, 9, 10:
		w.rename(p, dir, name, x)
	case 11:
		_, f := w.pick(func(x *thing) bool { return !x.isDir() })
		if f == nil || x != nil {
			return
		}
		_, err := w.vol.Link(w.ctx, w.who(), f.row.Ino, dir.row.Ino, name)
		w.ok(err)
		f.row.Nlink++
		dir.entries[name] = f
	case 12, 13:
		w.attributes()
	case 14:
		if x != nil && x.isDir() && len(x.entries) > 0 {
			w.ok(w.vol.RemovePath(w.ctx, w.who(), at, true))
			w.forget(dir, name, x)
		}
	case 15:
		w.extended()
	}
}

func (w *twin) create(dir *thing, name string, x *thing) {
	kinds := []uint32{unix.S_IFREG, unix.S_IFREG, unix.S_IFDIR, unix.S_IFDIR, unix.S_IFLNK, unix.S_IFIFO}
	n := catalog.NewInode{Mode: kinds[w.rnd.IntN(len(kinds))] | uint32(w.rnd.IntN(0o1000)), UID: uint32(w.rnd.IntN(3)), GID: uint32(w.rnd.IntN(3))}
	if n.Mode&unix.S_IFMT == unix.S_IFLNK {
		n.Target = fmt.Sprint("target", w.rnd.IntN(100))
	}
	row, err := w.vol.Create(w.ctx, w.who(), dir.row.Ino, name, n)
	if x != nil {
		if !errors.Is(err, catalog.ErrExist) {
			w.t.Fatalf("creating what is there: %v", err)
		}
		return
	}
	w.ok(err)
	y := &thing{row: row, xattrs: make(map[string]string)}
	y.row.Mode, y.row.UID, y.row.GID, y.row.Target, y.row.Nlink = n.Mode, n.UID, n.GID, n.Target, 1
	if dir.row.Mode&unix.S_ISGID != 0 {
		y.row.GID = dir.row.GID
		y.row.Mode = row.Mode
	}
	if y.isDir() {
		y.entries, y.row.Nlink = make(map[string]*thing), 2
		dir.row.Nlink++
	}
	dir.entries[name] = y
	if y.isFile() && w.rnd.IntN(4) > 0 {
		w.write(y)
	}
}

// write changes a file's content and closes it.
func (w *twin) write(f *thing) {
	h, err := w.vol.OpenFile(w.ctx, w.who(), f.row.Ino, volume.OpenFlags{Write: true})
	w.ok(err)
	data := slices.Clone(f.data)
	for range 1 + w.rnd.IntN(3) {
		switch w.rnd.IntN(4) {
		case 0:
			size := w.rnd.IntN(20_000)
			w.ok(h.Truncate(w.ctx, int64(size)))
			data = append(data, make([]byte, max(0, size-len(data)))...)[:size]
		case 1: // append
			part := []byte(fmt.Sprintf("line %d\n", w.rnd.Uint64()))
			_, err := h.WriteAt(w.ctx, part, int64(len(data)), volume.WriteFlags{})
			w.ok(err)
			data = append(data, part...)
		default:
			off := w.rnd.IntN(len(data) + 9_000)
			part := bytes.Repeat([]byte{byte('a' + w.rnd.IntN(26))}, 1+w.rnd.IntN(9_000))
			_, err := h.WriteAt(w.ctx, part, int64(off), volume.WriteFlags{})
			w.ok(err)
			if end := off + len(part); end > len(data) {
				data = append(data, make([]byte, end-len(data))...)
			}
			copy(data[off:], part)
		}
	}
	w.ok(h.Flush(w.ctx))
	h.Close(w.ctx)
	f.data, f.row.Size = data, int64(len(data))
	if row, err := w.vol.Get(w.ctx, f.row.Ino); err != nil || row.Ver == f.row.Ver {
		w.ok(err)
		return // nothing had changed
	}
	w.record(f)
}

// record notes that a version of f was made.
func (w *twin) record(f *thing) {
	each(w.root, "/", func(p string, x *thing) {
		if x == f {
			if w.saved[p] == nil {
				w.saved[p] = make(map[string]bool)
			}
			w.saved[p][sum(f.data)] = true
		}
	})
}

func sum(data []byte) string {
	h := sha256.Sum256(data)
	return hex.EncodeToString(h[:])
}

func (w *twin) remove(dir *thing, name string, x *thing) {
	var err error
	if x.isDir() {
		err = w.vol.Rmdir(w.ctx, w.who(), dir.row.Ino, name)
		if len(x.entries) > 0 {
			if !errors.Is(err, catalog.ErrNotEmpty) {
				w.t.Fatalf("rmdir of a full directory: %v", err)
			}
			return
		}
	} else {
		_, err = w.vol.Unlink(w.ctx, w.who(), dir.row.Ino, name)
	}
	w.ok(err)
	w.forget(dir, name, x)
}

func (w *twin) forget(dir *thing, name string, x *thing) {
	for n, e := range x.entries {
		w.forget(x, n, e)
	}
	if x.row.Nlink--; x.isDir() {
		dir.row.Nlink--
	}
	delete(dir.entries, name)
	if x.row.Nlink > 0 && !x.isDir() {
		return
	}
	w.gone[slot{dir.row.Ino, name}] = ""
	if x.isFile() {
		w.gone[slot{dir.row.Ino, name}] = sum(x.data)
	}
}

// note keeps the books that depend on what is there now.
func (w *twin) note() {
	each(w.root, "/", func(p string, x *thing) {
		if !x.isDir() {
			return
		}
		if w.dirs[p] == nil {
			w.dirs[p] = make(map[catalog.Ino]bool)
		}
		w.dirs[p][x.row.Ino] = true
		for name := range x.entries {
			delete(w.gone, slot{x.row.Ino, name})
		}
	})
}

// checkDeleted looks for everything that was deleted from a directory which is there, and which no other one had the path of.
func (w *twin) checkDeleted() (n int) {
	w.t.Helper()
	each(w.root, "/", func(p string, x *thing) {
		if !x.isDir() || len(w.dirs[p]) > 1 {
			return
		}
		for s, hash := range w.gone {
			if s.dir != x.row.Ino {
				continue
			}
			names := []string{deletedName}
			if p != "/" {
				names = append(names, strings.Split(p[1:], "/")...)
			}
			row, err := w.lookup(catalog.Root, append(names, s.name)...)
			if err != nil {
				w.t.Fatalf("deleted%s/%s: %v", p, s.name, err)
			}
			if isFile(row.Mode) != (hash != "") || hash != "" && sum(w.content(row.Ino)) != hash {
				w.t.Fatalf("deleted%s/%s is not what was deleted", p, s.name)
			}
			dir, err := w.lookup(catalog.Root, names...)
			w.ok(err)
			if _, listed := w.list(dir.Ino)[s.name]; !listed {
				w.t.Fatalf("deleted%s/%s is not listed", p, s.name)
			}
			n++
		}
	})
	return n
}

func (w *twin) rename(p string, dir *thing, name string, x *thing) {
	to, other := w.dir()
	newName := w.name()
	flags := uint(0)
	if w.rnd.IntN(4) == 0 {
		flags = catalog.RenameExchange
	}
	y := other.entries[newName]
	from := strings.TrimSuffix(p, "/") + "/" + name
	_, err := w.vol.Rename(w.ctx, w.who(), dir.row.Ino, name, other.row.Ino, newName, flags)
	if x == nil || x == y || err != nil {
		if x != nil && x != y && !errors.Is(err, catalog.ErrInvalid) && !errors.Is(err, catalog.ErrNotEmpty) && !errors.Is(err, catalog.ErrIsDir) &&
			!errors.Is(err, catalog.ErrNotDir) && !errors.Is(err, catalog.ErrNotExist) {
			w.t.Fatalf("rename %s to %s/%s: %v", from, to, newName, err)
		}
		return
	}
	if y != nil && flags == 0 {
		w.forget(other, newName, y)
	}
	delete(dir.entries, name)
	delete(w.gone, slot{dir.row.Ino, name})
	move := func(x *thing, from, to *thing) {
		if x.isDir() {
			from.row.Nlink--
			to.row.Nlink++
		}
	}
	move(x, dir, other)
	other.entries[newName] = x
	if flags != 0 {
		move(y, other, dir)
		dir.entries[name] = y
	}
}

func (w *twin) attributes() {
	_, x := w.pick(func(*thing) bool { return true })
	var set volume.SetAttr
	if w.rnd.IntN(2) == 0 {
		mode := uint32(w.rnd.IntN(0o2000))
		set.Mode = &mode
		x.row.Mode = x.row.Mode&unix.S_IFMT | mode
	}
	if w.rnd.IntN(2) == 0 {
		at := w.rnd.Int64N(2e18)
		set.Mtime = &at
	}
	if set == (volume.SetAttr{}) {
		return
	}
	_, err := w.vol.SetAttr(w.ctx, w.who(), x.row.Ino, set)
	w.ok(err)
}

func (w *twin) extended() {
	_, x := w.pick(func(*thing) bool { return true })
	name := fmt.Sprint("user.x", w.rnd.IntN(3))
	if x.xattrs == nil {
		x.xattrs = make(map[string]string)
	}
	if _, ok := x.xattrs[name]; ok && w.rnd.IntN(2) == 0 {
		w.ok(w.vol.RemoveXattr(w.ctx, w.who(), x.row.Ino, name))
		delete(x.xattrs, name)
		return
	}
	value := fmt.Sprint(w.rnd.IntN(1000))
	w.ok(w.vol.SetXattr(w.ctx, w.who(), x.row.Ino, name, []byte(value), 0))
	x.xattrs[name] = value
}

// keep notes the present as a moment.
func (w *twin) keep() {
	w.ok(w.vol.Sync(w.ctx)) // times that wait for a record get it
	seq, err := w.vol.Newest(w.ctx)
	w.ok(err)
	each(w.root, "/", func(p string, x *thing) {
		row, err := w.vol.Get(w.ctx, x.row.Ino)
		w.ok(err)
		model := x.row
		x.row = row
		// The model says what it knows.
		x.row.Mode, x.row.UID, x.row.GID, x.row.Nlink, x.row.Target = model.Mode, model.UID, model.GID, model.Nlink, model.Target
		if x.isFile() {
			x.row.Size = int64(len(x.data))
		}
	})
	w.kept = append(w.kept, kept{seq: seq, at: time.Now(), root: clone(w.root, make(map[*thing]*thing))})
}

// lookup finds a path in the tree as the kernel does: a number that was lost is looked up from the start.
func (w *twin) lookup(start catalog.Ino, names ...string) (row catalog.Inode, err error) {
	for range 3 {
		row, err = w.tree.Get(w.ctx, start)
		for _, name := range names {
			if err != nil {
				break
			}
			row, err = w.tree.Lookup(w.ctx, row.Ino, name)
		}
		if !errors.Is(err, catalog.ErrStale) {
			return row, err
		}
	}
	return row, err
}

func (w *twin) content(ino catalog.Ino) []byte {
	w.t.Helper()
	f, err := w.tree.Open(w.ctx, ino)
	w.ok(err)
	row, err := w.tree.Get(w.ctx, ino)
	w.ok(err)
	data := make([]byte, row.Size+10)
	n, err := f.ReadAt(w.ctx, data, 0)
	w.ok(err)
	return data[:n]
}

// list reads a directory of the tree in small pages.
func (w *twin) list(dir catalog.Ino) map[string]catalog.DirEntry {
	w.t.Helper()
	all := make(map[string]catalog.DirEntry)
	for after := uint64(0); ; {
		page := 1 + w.rnd.IntN(5)
		part, err := w.tree.ReadDir(w.ctx, dir, after, page)
		w.ok(err)
		if len(part) == 0 {
			return all
		}
		if len(part) > page {
			w.t.Fatalf("%d entries in a page of %d", len(part), page)
		}
		for _, e := range part {
			if e.Cookie <= after {
				w.t.Fatalf("%q has the position %d, behind %d", e.Name, e.Cookie, after)
			}
			if _, twice := all[e.Name]; twice {
				w.t.Fatalf("%q is listed twice", e.Name)
			}
			after, all[e.Name] = e.Cookie, e
		}
	}
}

// compare compares what lies under a number with the model.
func (w *twin) compare(ino catalog.Ino, want *thing, p string, numbers map[catalog.Ino]catalog.Ino) {
	w.t.Helper()
	row, err := w.tree.Get(w.ctx, ino)
	w.ok(err)
	if old, ok := numbers[want.row.Ino]; ok && old != ino {
		w.t.Fatalf("%s: inode %d has the numbers %d and %d", p, want.row.Ino, old, ino)
	}
	numbers[want.row.Ino] = ino
	expected := want.row
	expected.Ino, expected.Parent = row.Ino, row.Parent
	if row != expected {
		w.t.Fatalf("%s:\n got %+v\nwant %+v", p, row, expected)
	}
	names, err := w.tree.ListXattr(w.ctx, ino)
	w.ok(err)
	if !slices.Equal(names, slices.Sorted(maps.Keys(want.xattrs))) {
		w.t.Fatalf("%s: attributes %q, want %v", p, names, want.xattrs)
	}
	for name, value := range want.xattrs {
		if got, err := w.tree.GetXattr(w.ctx, ino, name); err != nil || string(got) != value {
			w.t.Fatalf("%s: %s is %q, %v, want %q", p, name, got, err, value)
		}
	}
	switch {
	case want.isFile():
		if got := w.content(ino); !bytes.Equal(got, want.data) {
			w.t.Fatalf("%s: %d bytes, want %d, or others", p, len(got), len(want.data))
		}
	case want.isDir():
		entries := w.list(ino)
		if got, want := slices.Sorted(maps.Keys(entries)), slices.Sorted(maps.Keys(want.entries)); !slices.Equal(got, want) {
			w.t.Fatalf("%s: entries %q, want %q", p, got, want)
		}
		for name, e := range entries {
			found, err := w.tree.Lookup(w.ctx, ino, name)
			w.ok(err)
			if found != e.Inode {
				w.t.Fatalf("%s/%s: listed as %+v, found as %+v", p, name, e.Inode, found)
			}
			w.compare(e.Inode.Ino, want.entries[name], p+"/"+name, numbers)
		}
		if _, err := w.tree.Lookup(w.ctx, ino, "never"); !errors.Is(err, catalog.ErrNotExist) {
			w.t.Fatalf("%s/never: %v", p, err)
		}
	}
}

// checkMoment compares a moment in the root's .snapshots, and in that of a directory that was there then and is there now.
func (w *twin) checkMoment(k kept) {
	w.t.Helper()
	for _, name := range []string{fmt.Sprint("@v", k.seq), "@" + k.at.UTC().Format(time.RFC3339Nano)} {
		row, err := w.lookup(catalog.Root, name)
		w.ok(err)
		w.compare(row.Ino, k.root, name, make(map[catalog.Ino]catalog.Ino))
	}
	_, now := w.dir()
	then := (*thing)(nil)
	each(k.root, "/", func(_ string, x *thing) {
		if x.row.Ino == now.row.Ino {
			then = x
		}
	})
	row, err := w.lookup(now.row.Ino, fmt.Sprint("@v", k.seq))
	if then == nil {
		if !errors.Is(err, catalog.ErrNotExist) {
			w.t.Fatalf("directory %d was not there at %d: %v", now.row.Ino, k.seq, err)
		}
		return
	}
	w.ok(err)
	w.compare(row.Ino, then, fmt.Sprint(now.row.Ino, "/.snapshots/@v", k.seq), make(map[catalog.Ino]catalog.Ino))
}

// checkVersions compares `versions` with the log and with what was saved, for every path that ever was.
func (w *twin) checkVersions() {
	w.t.Helper()
	for p, saved := range w.saved {
		names := append([]string{versionsName}, strings.Split(p[1:], "/")...)
		dir, err := w.lookup(catalog.Root, names...)
		w.ok(err)
		type key struct {
			ino catalog.Ino
			seq catalog.Seq
		}
		want, seen := make(map[string]string), make(map[key]bool)
		w.ok(w.vol.Log(w.ctx, p, func(e volume.LogEntry) error {
			if k := (key{e.Inode, e.Seq}); !e.Removed && !seen[k] {
				seen[k] = true
				ver := catalog.Version{Time: e.Time.UnixNano(), Actor: catalog.Actor{Agent: e.Agent}}
				want[versionName(uint64(e.Number), ver, path.Base(p))] = e.SHA256
			}
			return nil
		}))
		got := make(map[string]string)
		for name := range w.list(dir.Ino) {
			row, err := w.lookup(catalog.Root, append(slices.Clone(names), name)...)
			w.ok(err)
			if isFile(row.Mode) {
				got[name] = sum(w.content(row.Ino))
			}
		}
		if !maps.Equal(got, want) {
			w.t.Fatalf("versions of %s:\n got %v\nwant %v", p, got, want)
		}
		found := slices.Collect(maps.Values(got))
		for hash := range saved {
			if !slices.Contains(found, hash) {
				w.t.Fatalf("versions of %s: one that was saved is missing", p)
			}
		}
	}
}

// walk visits everything below a number and returns how many there are: it has to end.
func (w *twin) walk(names []string) (n int) {
	w.t.Helper()
	row, err := w.lookup(catalog.Root, names...)
	w.ok(err)
	if !isDir(row.Mode) {
		return 1
	}
	if len(names) > 60 {
		w.t.Fatalf("too deep: %q", names)
	}
	for name := range w.list(row.Ino) {
		n += w.walk(append(slices.Clone(names), name))
	}
	return n + 1
}

// modelSteps names the environment variable with the number of random operations of TestModel, when they are to be more, or fewer.
const modelSteps = "HOLDFAST_MODEL_STEPS"

// TestModel compares every moment that was kept, every version and what was deleted with a plain model, over random operations.
func TestModel(t *testing.T) {
	total := 1000
	if text := os.Getenv(modelSteps); text != "" {
		var err error
		if total, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	// A store has as many moments to compare as it has steps: many of them take time by the square.
	for total > 0 {
		steps := min(total, 500)
		total -= steps
		seed := uint64(time.Now().UnixNano())
		t.Run(fmt.Sprint(seed), func(t *testing.T) { testModel(t, seed, steps) })
	}
}

func testModel(t *testing.T, seed uint64, steps int) {
	w := newTwin(t, seed)
	w.keep()
	w.note()
	for i := range steps {
		w.step()
		w.note()
		if w.rnd.IntN(20) == 0 {
			w.keep()
		}
		if w.rnd.IntN(40) == 0 {
			w.checkMoment(w.kept[w.rnd.IntN(len(w.kept))])
		}
		if i%200 == 100 {
			w.checkVersions()
		}
	}
	for _, k := range w.kept {
		w.checkMoment(k)
	}
	w.checkVersions()
	t.Logf("%d moments, %d paths, %d deleted; %d places in versions, %d in deleted", len(w.kept), len(w.saved), w.checkDeleted(), w.walk([]string{versionsName}), w.walk([]string{deletedName}))
	each(w.root, "/", func(p string, x *thing) {
		if x.isDir() {
			return
		}
		row, err := w.lookup(catalog.Root, append([]string{deletedName}, strings.Split(p[1:], "/")...)...)
		if errors.Is(err, catalog.ErrNotExist) || err == nil && isDir(row.Mode) { // a deleted directory, whose name it has now
			return
		}
		t.Fatalf("deleted%s is there, and is not deleted: %v", p, err)
	})
}
