package volume

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/blobstore"
	"holdfast/catalog"
)

// A recipe makes a store with every kind of record and every form of content, and keeps a model of what it wrote: for each inode the
// bytes, and the hash of each version.
type recipe struct {
	t    *testing.T
	ctx  context.Context
	dir  string
	v    *Volume
	who  catalog.Actor
	data map[catalog.Ino][]byte
	sums map[catalog.Ino][]blobstore.Hash
}

// noise is bytes that no compressor shrinks, the same ones for ever, and a prefix of any longer noise.
func noise(n int) []byte {
	var b []byte
	for i := uint64(0); len(b) < n; i++ {
		sum := sha256.Sum256(binary.LittleEndian.AppendUint64([]byte("golden"), i))
		b = append(b, sum[:]...)
	}
	return b[:n]
}

// prose is text of n bytes that shrinks to little.
func prose(seed, n int) []byte {
	words := strings.Fields("the agent claims a task reads its plan writes the answer and closes every file it kept")
	var page []byte
	for i := range 40 {
		page = append(append(page, words[(i*i+seed*i+i/7)%len(words)]...), ' ')
	}
	var b []byte
	for i := 0; len(b) < n; i++ {
		b = append(fmt.Appendf(b, "%d.%d ", seed, i), page...)
	}
	return b[:n]
}

func newRecipe(t *testing.T, dir string) *recipe {
	r := &recipe{t: t, ctx: t.Context(), dir: dir, data: make(map[catalog.Ino][]byte), sums: make(map[catalog.Ino][]blobstore.Hash)}
	r.actor(0)
	return r
}

// actor chooses who does what follows.
func (r *recipe) actor(n int) {
	r.who = []catalog.Actor{
		{Agent: "planner", Program: "python3", UID: 1000, PID: 4001},
		{Agent: "coder-7", Program: "bash", UID: 1001, PID: 4002},
		{Program: "cp", PID: 4003},
		{Agent: "\xffagent\n\u540d", Program: "a program \"with\" quotes", UID: 1<<32 - 2, PID: 1<<31 - 1},
	}[n]
}

func (r *recipe) ok(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *recipe) at(p string) (parent catalog.Ino, name string) {
	r.t.Helper()
	row, name, err := r.v.resolveParent(r.ctx, p)
	r.ok(err)
	return row.Ino, name
}

func (r *recipe) ino(p string) catalog.Ino {
	r.t.Helper()
	row, err := r.v.Resolve(r.ctx, p)
	r.ok(err)
	return row.Ino
}

func (r *recipe) make(p string, n catalog.NewInode) catalog.Ino {
	r.t.Helper()
	parent, name := r.at(p)
	n.UID, n.GID = r.who.UID, 100
	row, err := r.v.Create(r.ctx, r.who, parent, name, n)
	r.ok(err)
	return row.Ino
}

func (r *recipe) mkdir(p string) {
	r.t.Helper()
	r.make(p, catalog.NewInode{Mode: unix.S_IFDIR | 0o755})
}

// editing is one file that the recipe has open.
type editing struct {
	r *recipe
	h *Handle
}

func (r *recipe) create(p string, mode uint32) *editing {
	r.t.Helper()
	parent, name := r.at(p)
	n := catalog.NewInode{Mode: unix.S_IFREG | mode, UID: r.who.UID, GID: 100}
	_, h, err := r.v.CreateFile(r.ctx, r.who, parent, name, n, OpenFlags{Read: true, Write: true})
	r.ok(err)
	return &editing{r, h}
}

func (r *recipe) open(p string) *editing {
	r.t.Helper()
	h, err := r.v.OpenFile(r.ctx, r.who, r.ino(p), OpenFlags{Read: true, Write: true})
	r.ok(err)
	return &editing{r, h}
}

func (e *editing) grow(size int64) {
	if b := e.r.data[e.h.Ino()]; int64(len(b)) < size {
		e.r.data[e.h.Ino()] = append(b, make([]byte, size-int64(len(b)))...)
	}
}

func (e *editing) write(off int64, p []byte) *editing {
	e.r.t.Helper()
	_, err := e.h.WriteAt(e.r.ctx, p, off, WriteFlags{})
	e.r.ok(err)
	e.grow(off + int64(len(p)))
	copy(e.r.data[e.h.Ino()][off:], p)
	return e
}

func (e *editing) truncate(size int64) *editing {
	e.r.t.Helper()
	e.r.ok(e.h.Truncate(e.r.ctx, size))
	e.grow(size)
	e.r.data[e.h.Ino()] = slices.Clone(e.r.data[e.h.Ino()][:size])
	return e
}

func (e *editing) punch(off, n int64) *editing {
	e.r.t.Helper()
	e.r.ok(e.h.Allocate(e.r.ctx, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n))
	clear(e.r.data[e.h.Ino()][off : off+n])
	return e
}

func (e *editing) allocate(size int64) *editing {
	e.r.t.Helper()
	e.r.ok(e.h.Allocate(e.r.ctx, 0, 0, size))
	e.grow(size)
	return e
}

func (e *editing) copyFrom(src string, srcOff, off, n int64) *editing {
	e.r.t.Helper()
	from := e.r.open(src)
	got, err := CopyRange(e.r.ctx, from.h, srcOff, e.h, off, n)
	e.r.ok(err)
	if got != n {
		e.r.t.Fatalf("copied %d bytes of %d", got, n)
	}
	e.grow(off + n)
	copy(e.r.data[e.h.Ino()][off:], e.r.data[from.h.Ino()][srcOff:srcOff+n])
	from.h.Close(e.r.ctx)
	return e
}

// close makes a version of what was changed.
func (e *editing) close() {
	e.r.t.Helper()
	e.r.ok(e.h.Flush(e.r.ctx))
	e.h.Close(e.r.ctx)
	ino := e.h.Ino()
	e.r.sums[ino] = append(e.r.sums[ino], sha256.Sum256(e.r.data[ino]))
}

// put is `holdfast put`: a new inode in the place of the old one.
func (r *recipe) put(p string, data []byte) {
	r.t.Helper()
	row, err := r.v.WritePath(r.ctx, r.who, 100, p, 0o640, bytes.NewReader(data))
	r.ok(err)
	r.data[row.Ino], r.sums[row.Ino] = data, []blobstore.Hash{sha256.Sum256(data)}
}

func (r *recipe) rename(from, to string, flags uint) {
	r.t.Helper()
	oldParent, oldName := r.at(from)
	newParent, newName := r.at(to)
	_, err := r.v.Rename(r.ctx, r.who, oldParent, oldName, newParent, newName, flags)
	r.ok(err)
}

func (r *recipe) link(from, to string) {
	r.t.Helper()
	parent, name := r.at(to)
	_, err := r.v.Link(r.ctx, r.who, r.ino(from), parent, name)
	r.ok(err)
}

func (r *recipe) remove(p string) {
	r.t.Helper()
	r.ok(r.v.RemovePath(r.ctx, r.who, p, true))
}

func (r *recipe) xattr(p, name string, value []byte) {
	r.t.Helper()
	r.ok(r.v.SetXattr(r.ctx, r.who, r.ino(p), name, value, 0))
}

func (r *recipe) append(p string, data []byte) {
	r.t.Helper()
	r.open(p).write(int64(len(r.data[r.ino(p)])), data).close()
}

func (r *recipe) merge(p string) {
	r.t.Helper()
	r.ok(r.v.mergeExtents(r.ctx, r.ino(p)))
}

func (r *recipe) start() {
	r.t.Helper()
	var err error
	r.v, err = Open(r.ctx, Options{Dir: r.dir})
	r.ok(err)
}

func (r *recipe) stop() {
	r.t.Helper()
	r.ok(r.v.Close(r.ctx))
	r.v = nil
}

// cook does the whole recipe on a new store. It leaves a closed store; with lag set, one whose catalog.db is older than its journal, as
// after a kill.
func (r *recipe) cook(lag bool) {
	r.t.Helper()
	r.start()
	r.smallFiles()
	r.largeFiles()
	r.extents()
	r.holes()
	r.names()
	r.stop()
	r.smallSegments()
	old, err := os.ReadFile(filepath.Join(r.dir, "catalog.db"))
	r.ok(err)
	r.start()
	r.moves()
	r.attributes()
	r.history()
	r.ok(r.v.Sync(r.ctx))
	r.check()
	r.stop()
	if lag {
		r.ok(os.WriteFile(filepath.Join(r.dir, "catalog.db"), old, 0o600))
		r.ok(os.Remove(filepath.Join(r.dir, "catalog.db.sums")))
	}
}

func (r *recipe) smallFiles() {
	r.create("messages/hello", 0o644).write(0, []byte("hello\n")).close()
	r.actor(1)
	r.open("messages/hello").write(5, []byte(", world\n")).close()
	r.actor(2)
	r.open("messages/hello").truncate(0).write(0, []byte("bye\n")).close()
	r.actor(0)
	r.create("status/untouched", 0o600).h.Close(r.ctx) // never written: no version
	r.put("status/empty", nil)
	r.create("messages/raw", 0o644).write(0, noise(5000)).close()
	r.create("messages/text", 0o644).write(0, prose(1, 5000)).close()
	r.create("messages/text-again", 0o644).write(0, prose(1, 5000)).close() // the same blob
	r.create("messages/largest-small", 0o644).write(0, prose(2, blobstore.MaxSmall)).close()
	r.put("tasks/plan", []byte("step 1\n"))
	r.create("config/settings", 0o600).write(0, []byte("a = 1\n")).close() // critical: durable at close
	h := r.open("config/settings")
	r.ok(h.write(6, []byte("b = 2\n")).h.Fsync(r.ctx, false))
	h.close()
}

func (r *recipe) largeFiles() {
	r.actor(1)
	n := noise(32 << 10)
	tile := func(size int, at ...int) []byte { // noise where the store looks whether content shrinks
		b := make([]byte, size)
		for _, off := range at {
			copy(b[off:], n)
		}
		return b
	}
	r.create("tasks/raw-one-block", 0o644).write(0, tile(128<<10, 0, 64<<10, 96<<10)).close()
	r.create("tasks/raw-blocks", 0o644).write(0, tile(320<<10, 0, 160<<10, 288<<10)).close()
	r.create("tasks/text-one-block", 0o644).write(0, prose(3, 100_000)).close()
	r.create("tasks/mixed", 0o644).write(0, append(prose(4, 256<<10), noise(20<<10)...)).close() // the last block does not shrink
	e := r.create("logs/stream", 0o644)
	for off := 0; off < 1200<<10; off += 100 << 10 { // over 1 MiB: through a staging file
		e.write(int64(off), prose(5+off%3, 100<<10))
	}
	e.close()
}

func (r *recipe) extents() {
	r.actor(0)
	e := r.open("logs/stream")
	for i := range int64(3) { // over 64 KiB in pieces: one large blob
		e.write(1000+i*400_000, prose(10+int(i), 30<<10))
	}
	e.close()
	e = r.open("tasks/mixed")
	for i := range int64(3) { // small pieces: one small blob, several extents
		e.write(5000+i*70_000, prose(20+int(i), 100))
	}
	e.close()
	r.create("logs/agent.log", 0o644).write(0, prose(30, 12<<10)).close()
	r.create("logs/build.log", 0o644).write(0, prose(31, 24<<10)).close()
	r.actor(1)
	for i := range 17 {
		r.append("logs/agent.log", prose(40+i%3, 200))
		r.append("logs/build.log", prose(40+i%3, 5000))
	}
	r.merge("logs/agent.log") // to a small blob
	r.merge("logs/build.log") // to a large one
	r.append("logs/agent.log", []byte("after the merge\n"))
	r.create("tasks/copied", 0o644).copyFrom("tasks/mixed", 1000, 5000, 200_000).copyFrom("tasks/raw-blocks", 100, 210_000, 70_000).close()
}

func (r *recipe) holes() {
	r.create("config/sparse", 0o644).write(0, prose(50, 100)).write(500_000, prose(51, 9000)).truncate(1 << 20).close()
	r.open("config/sparse").punch(503_000, 4096).close()
	r.create("config/nothing-but-a-hole", 0o644).truncate(100_000).close()
	r.create("config/allocated", 0o644).write(0, []byte("0123456789")).close()
	r.open("config/allocated").allocate(70_000).close() // a version without a change of content
	r.create("config/cut", 0o644).write(0, prose(52, 70_000)).close()
	r.open("config/cut").truncate(66_000).close()
	r.open("config/cut").truncate(10).close()
	far := r.create("config/far", 0o644) // more than the model can hold
	_, err := far.h.WriteAt(r.ctx, []byte("far away"), 9_000_000_000_000, WriteFlags{})
	r.ok(err)
	far.h.Close(r.ctx)
}

func (r *recipe) names() {
	r.actor(3)
	for _, d := range []string{"tasks/deep", "tasks/deep/a", "tasks/deep/a/b", "tasks/deep/a/b/c", "messages/\xff\xfe\x01", "messages/empty dir"} {
		r.mkdir(d)
	}
	for i, name := range []string{strings.Repeat("n", catalog.MaxName), "\xff\xfe\x01", "new\nline", "tab\t\"quote\"\\", "\u540d\u524d", " ", "...", "-"} {
		r.create("tasks/deep/a/b/c/"+name, 0o644).write(0, fmt.Appendf(nil, "name %d", i)).close()
	}
	r.actor(2)
	for _, l := range [][2]string{{"current", "../tasks/plan"}, {"dangling", "/no/\xff/such"}, {"long", strings.Repeat("l/", 2047) + "x"}} {
		r.make("config/"+l[0], catalog.NewInode{Mode: unix.S_IFLNK | 0o777, Target: l[1]})
	}
	r.make("status/fifo", catalog.NewInode{Mode: unix.S_IFIFO | 0o620})
	r.make("status/socket", catalog.NewInode{Mode: unix.S_IFSOCK | 0o755})
	r.make("status/null", catalog.NewInode{Mode: unix.S_IFCHR | 0o666, Rdev: uint32(unix.Mkdev(1, 3))})
	r.make("status/disk", catalog.NewInode{Mode: unix.S_IFBLK | 0o660, Rdev: uint32(unix.Mkdev(259, 70000))})
	r.link("messages/hello", "tasks/hello-too")
	r.link("messages/hello", "tasks/hello-gone")
	r.link("status/fifo", "status/fifo-too")
	r.open("tasks/hello-too").write(4, []byte("through the other name\n")).close()
	r.remove("tasks/hello-gone")
	row, h, err := r.v.Tmpfile(r.ctx, r.who, r.ino("status"), catalog.NewInode{Mode: unix.S_IFREG | 0o600}, OpenFlags{Read: true, Write: true})
	r.ok(err)
	e := (&editing{r, h}).write(0, []byte("written before it had a name"))
	parent, name := r.at("status/named-late")
	_, err = r.v.Link(r.ctx, r.who, row.Ino, parent, name)
	r.ok(err)
	e.close()
}

// smallSegments goes on, without a volume, in journal segments that are ended after 8 KiB.
func (r *recipe) smallSegments() {
	s, err := ReadSettings(r.dir)
	r.ok(err)
	id, err := hex.DecodeString(s.StoreID)
	r.ok(err)
	blobs, err := blobstore.Open(r.ctx, blobstore.Options{Dir: r.dir, Mode: s.Storage})
	r.ok(err)
	cat, err := catalog.Open(r.ctx, catalog.Options{Dir: r.dir, StoreID: [16]byte(id), Blobs: blobs, SegmentBytes: 8 << 10})
	r.ok(err)
	for i := range 16 {
		_, err := cat.Create(r.ctx, r.who, catalog.Root, fmt.Sprintf("segment-%02d", i), catalog.NewInode{Mode: unix.S_IFDIR | 0o700})
		r.ok(err)
	}
	r.ok(errors.Join(cat.Close(r.ctx), blobs.Close()))
}

func (r *recipe) moves() {
	r.actor(0)
	r.put("tasks/plan", []byte("step 2\n")) // replaced by a rename
	r.rename("messages/raw", "messages/raw-renamed", 0)
	r.rename("messages/text-again", "status/text-moved", catalog.RenameNoReplace)
	r.rename("messages/largest-small", "tasks/text-one-block", 0)              // over a file
	r.rename("tasks/raw-one-block", "tasks/deep/a", catalog.RenameExchange)    // a file and a directory change places
	r.rename("segment-00", "segment-01/inside", 0)                             // a directory moves
	r.rename("segment-02", "segment-03", 0)                                    // over an empty directory
	r.rename("tasks/raw-one-block", "messages/moved-twice", 0)                 // the directory that was deep/a
	r.open("tasks/deep/a").write(60, []byte("written after the move")).close() // the file that was raw-one-block
}

func (r *recipe) attributes() {
	r.actor(1)
	mode, uid, gid := uint32(0o2751), uint32(7), uint32(8)
	set := func(p string, s SetAttr) {
		r.t.Helper()
		_, err := r.v.SetAttr(r.ctx, r.who, r.ino(p), s)
		r.ok(err)
	}
	set("messages", SetAttr{Mode: &mode})
	r.mkdir("messages/inherits")
	set("status/text-moved", SetAttr{UID: &uid, GID: &gid})
	before, after := int64(-1_234_567_890_123_456_789), int64(5_000_000_000_123_456_789)
	set("status/untouched", SetAttr{Atime: &before, Mtime: &after})
	set("status/empty", SetAttr{Atime: &after, Mtime: &before})
	set("tasks/plan", SetAttr{Mtime: &after, Ctime: &after}) // deferred: written by Sync, as times that the kernel keeps
	r.ok(r.v.Sync(r.ctx))
	size := int64(3)
	set("config/allocated", SetAttr{Size: &size})
	ino := r.ino("config/allocated")
	r.data[ino] = []byte("012")
	r.sums[ino] = append(r.sums[ino], sha256.Sum256([]byte("012")))

	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	for _, p := range []string{"messages/text", "tasks/plan"} { // one stays, one is removed later
		r.xattr(p, "user.note", []byte("first"))
		r.xattr(p, "user.note", []byte("second"))
		r.xattr(p, "user.all", all)
		r.xattr(p, "user.nothing", []byte{})
		r.xattr(p, "user.\xff\"name", []byte("v"))
		r.xattr(p, "user.gone", []byte("soon"))
		r.ok(r.v.RemoveXattr(r.ctx, r.who, r.ino(p), "user.gone"))
	}
	r.xattr("tasks", "user.large", prose(60, catalog.MaxXattr))
	r.xattr("segment-03", catalog.LevelXattr, []byte(catalog.LevelCritical))
	r.create("segment-03/critical", 0o644).write(0, []byte("hello\n")).close() // raises the level of a blob that is there
	r.xattr("config/current", "trusted.overlay", []byte("on a symbolic link"))
}

func (r *recipe) history() {
	r.actor(0)
	r.remove("tasks/plan")
	r.put("tasks/plan", []byte("step 3\n"))
	r.remove("logs/build.log")
	r.create("status/gone", 0o644).write(0, []byte("one")).close()
	r.open("status/gone").write(0, []byte("two")).close()
	r.remove("status/gone")
	r.mkdir("messages/tree")
	r.mkdir("messages/tree/below")
	r.create("messages/tree/below/file", 0o644).write(0, []byte("gone with its directory")).close()
	r.remove("messages/tree")
	e := r.create("status/removed-while-open", 0o644)
	r.remove("status/removed-while-open")
	e.write(0, []byte("never a version")).h.Close(r.ctx)
	delete(r.data, e.h.Ino())
	r.actor(1)
	r.open("logs/stream").truncate(1000).close()
	r.open("logs/stream").write(1000, prose(70, 3000)).close()
	r.remove("segment-04")
}

// check compares the store with the model.
func (r *recipe) check() {
	r.t.Helper()
	for ino, want := range r.sums {
		var got []blobstore.Hash
		sum := summer{v: r.v}
		r.ok(r.v.cat.Versions(r.ctx, ino, false, func(ver catalog.Version) error {
			h, err := sum.of(r.ctx, ver)
			got = append(got, h)
			return err
		}))
		// A machine that stops for seconds between a write and the close makes versions of its own: see autoCommit.
		if len(got) < len(want) || got[len(got)-1] != want[len(want)-1] {
			r.t.Errorf("inode %d has %d versions, %d were made: %v, %v", ino, len(got), len(want), got, want)
		}
	}
	for ino, want := range r.data {
		h, err := r.v.OpenFile(r.ctx, r.who, ino, OpenFlags{Read: true})
		r.ok(err)
		got := make([]byte, len(want)+1)
		n, err := h.ReadAt(r.ctx, got, 0)
		r.ok(err)
		if !bytes.Equal(got[:n], want) {
			r.t.Errorf("inode %d: %d bytes are not the %d that were written", ino, n, len(want))
		}
		h.Close(r.ctx)
	}
}
