package catalog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/blobstore"
	"holdfast/blobstore/blobstoretest"
)

// world drives a catalog and a model alike.
type world struct {
	t     *testing.T
	rnd   *rand.Rand
	opt   Options
	blobs *memBlobs
	clk   clock
	c     *Catalog
	m     *model
	pool  []blobstore.Ref // blobs that were named
	tmps  []Ino
	log   []string

	compacted CompactReport
}

func newWorld(t *testing.T, seed uint64, change func(*Options)) *world {
	w := &world{t: t, rnd: rand.New(rand.NewPCG(seed, 1)), blobs: newMemBlobs()}
	w.opt = testOptions(t, blobstoretest.TempDir(t), w.blobs)
	w.opt.Now = w.clk.read
	w.opt.SegmentBytes = 64 << 10
	if change != nil {
		change(&w.opt)
	}
	w.c = openCatalog(t, w.opt)
	w.m = newModel(w.clk.tick())
	if err := w.c.Init(context.Background(), testActor(), NewInode{Mode: 0o755}); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) fatal(format string, args ...any) {
	w.t.Helper()
	for _, l := range w.log[max(0, len(w.log)-12):] {
		w.t.Log(l)
	}
	w.t.Fatalf(format, args...)
}

func (w *world) name() string { return "n" + strconv.Itoa(w.rnd.IntN(8)) }

// ino picks an inode of the model, now and then one that never was.
func (w *world) ino(dirs bool) Ino {
	if w.rnd.IntN(50) == 0 {
		return 5000
	}
	var list []Ino
	for ino, n := range w.m.live {
		if dirs == (n.names != nil) {
			list = append(list, ino)
		}
	}
	if len(list) == 0 {
		return Root
	}
	slices.Sort(list)
	if dirs && w.rnd.IntN(2) == 0 {
		return list[w.rnd.IntN(min(3, len(list)))] // early ones are met more often
	}
	return list[w.rnd.IntN(len(list))]
}

func (w *world) newInode() NewInode {
	n := NewInode{Mode: unix.S_IFREG | 0o644, UID: uint32(w.rnd.IntN(3)), GID: uint32(w.rnd.IntN(3))}
	switch w.rnd.IntN(8) {
	case 0, 1:
		n.Mode = unix.S_IFDIR | 0o755 | uint32(w.rnd.IntN(2))*unix.S_ISGID
	case 2:
		n.Mode, n.Target = unix.S_IFLNK|0o777, "to/"+w.name()
	case 3:
		n.Mode, n.Rdev = unix.S_IFCHR|0o600, uint32(w.rnd.IntN(1000))
	}
	return n
}

func (w *world) splice(ino Ino) Commit {
	size := int64(0)
	if n := w.m.live[ino]; n != nil {
		size = n.row.Size
	}
	cm := Commit{Ino: ino, Splice: Splice{Cut: NoCut}, Size: size, NewVersion: w.rnd.IntN(4) > 0}
	if w.rnd.IntN(4) == 0 {
		cm.Splice.Cut = w.rnd.Int64N(size + 10)
	}
	if w.rnd.IntN(4) == 0 {
		cm.Size = w.rnd.Int64N(2000)
	}
	for range w.rnd.IntN(3) {
		cm.Splice.Holes = append(cm.Splice.Holes, Hole{Off: w.rnd.Int64N(1500), Len: 1 + w.rnd.Int64N(300)})
	}
	off := w.rnd.Int64N(size + 20)
	if w.rnd.IntN(3) == 0 {
		off, cm.Splice.Cut = 0, 0
	}
	for range w.rnd.IntN(4) {
		var e Extent
		if len(w.pool) > 0 && w.rnd.IntN(3) == 0 {
			e.Blob = w.pool[w.rnd.IntN(len(w.pool))]
			if _, ok, err := w.c.HasBlob(context.Background(), e.Blob.Hash); err != nil || !ok { // retention has deleted it
				cm.Blobs = append(cm.Blobs, bodyBlob(w.m.blobs[e.Blob.Hash]))
			}
		} else {
			body := make([]byte, 1+w.rnd.IntN(400))
			for i := range body {
				body[i] = byte(1 + w.rnd.IntN(255))
			}
			b := bodyBlob(body)
			cm.Blobs = append(cm.Blobs, b)
			e.Blob = b.Ref
			if w.rnd.IntN(4) == 0 { // as a large one: adopted before the commit
				w.blobs.put(body)
				w.m.blobs[b.Ref.Hash] = body
				cm.Blobs[len(cm.Blobs)-1].Body = nil
				cm.UnsyncedBlobs = true
			}
			w.pool = append(w.pool, b.Ref)
		}
		e.BlobOff = w.rnd.Int64N(e.Blob.Size)
		e.Len = 1 + w.rnd.Int64N(e.Blob.Size-e.BlobOff)
		e.Off = off
		off += e.Len + w.rnd.Int64N(2)*w.rnd.Int64N(50)
		cm.Splice.Extents = append(cm.Splice.Extents, e)
	}
	if n := len(cm.Splice.Extents); n > 0 {
		cm.Size = max(cm.Size, cm.Splice.Extents[n-1].Off+cm.Splice.Extents[n-1].Len)
	}
	if w.rnd.IntN(2) == 0 {
		cm.Change.Mtime = ptr(w.m.now)
	}
	return cm
}

func (w *world) step() {
	ctx, who := context.Background(), testActor()
	w.m.now = w.clk.tick()
	var got, want error
	var did string
	switch p := w.rnd.IntN(100); {
	case p < 22:
		dir, name := w.ino(true), w.name()
		n := w.newInode()
		did = fmt.Sprintf("create %d/%s mode %o", dir, name, n.Mode)
		var row Inode
		var ino Ino
		row, got = w.c.Create(ctx, who, dir, name, n)
		ino, want = w.m.create(dir, name, n)
		if want == nil && got == nil && row != w.m.live[ino].row {
			w.fatal("%s: got %+v, want %+v", did, row, w.m.live[ino].row)
		}
	case p < 25:
		dir := w.ino(true)
		did = fmt.Sprintf("tmpfile in %d", dir)
		row, err := w.c.CreateTmpfile(ctx, who, dir, NewInode{Mode: unix.S_IFREG | 0o600})
		ino, werr := w.m.tmpfile(dir, NewInode{Mode: unix.S_IFREG | 0o600})
		if got, want = err, werr; got == nil && want == nil {
			if row.Ino != ino {
				w.fatal("%s: got inode %d, want %d", did, row.Ino, ino)
			}
			w.tmps = append(w.tmps, ino)
		}
	case p < 31:
		ino, dir, name := w.ino(w.rnd.IntN(10) == 0), w.ino(true), w.name()
		if len(w.tmps) > 0 && w.rnd.IntN(2) == 0 {
			ino = w.tmps[len(w.tmps)-1]
		}
		did = fmt.Sprintf("link %d to %d/%s", ino, dir, name)
		_, got = w.c.Link(ctx, who, ino, dir, name)
		want = w.m.link(ino, dir, name)
	case p < 39:
		dir, name := w.ino(true), w.name()
		did = fmt.Sprintf("unlink %d/%s", dir, name)
		_, got = w.c.Unlink(ctx, who, dir, name)
		want = w.m.remove(dir, name, false)
	case p < 42:
		dir, name := w.ino(true), w.name()
		did = fmt.Sprintf("rmdir %d/%s", dir, name)
		got = w.c.Rmdir(ctx, who, dir, name)
		want = w.m.remove(dir, name, true)
	case p < 54:
		a, x, b, y := w.ino(true), w.name(), w.ino(true), w.name()
		flags := []uint{0, 0, RenameNoReplace, RenameExchange}[w.rnd.IntN(4)]
		did = fmt.Sprintf("rename %d/%s to %d/%s flags %d", a, x, b, y, flags)
		_, got = w.c.Rename(ctx, who, a, x, b, y, flags)
		want = w.m.rename(a, x, b, y, flags)
	case p < 60:
		ino := w.ino(w.rnd.IntN(3) == 0)
		ch := Change{Mode: ptr(uint32(w.rnd.IntN(0o10000))), UID: ptr(uint32(w.rnd.IntN(9))), Atime: ptr(w.m.now - 5)}
		did = fmt.Sprintf("setattr %d", ino)
		_, got = w.c.SetAttr(ctx, who, ino, ch)
		want = w.m.setattr(ino, ch, false)
	case p < 65:
		ino := w.ino(w.rnd.IntN(3) == 0)
		ch := Change{Mtime: ptr(w.m.now - 9), Ctime: ptr(w.m.now)}
		did = fmt.Sprintf("deferred setattr %d", ino)
		got = w.c.SetAttrDeferred(ctx, ino, ch)
		want = w.m.setattr(ino, ch, true)
	case p < 72:
		ino, name := w.ino(w.rnd.IntN(3) == 0), "user."+w.name()
		flags := uint(w.rnd.IntN(3))
		value := w.name()
		did = fmt.Sprintf("setxattr %d %s flags %d", ino, name, flags)
		got = w.c.SetXattr(ctx, who, ino, name, []byte(value), flags)
		want = w.m.setxattr(ino, name, &value, flags)
	case p < 75:
		ino, name := w.ino(w.rnd.IntN(3) == 0), "user."+w.name()
		did = fmt.Sprintf("removexattr %d %s", ino, name)
		got = w.c.RemoveXattr(ctx, who, ino, name)
		want = w.m.setxattr(ino, name, nil, 0)
	case p < 95:
		did, got, want = w.stepCommit()
	case p < 96:
		did = "sync"
		got = w.c.Sync(ctx)
		w.m.sync()
	default:
		did = "flush"
		got = w.c.Flush(ctx)
	}
	w.log = append(w.log, did)
	if !errors.Is(got, want) && got != want {
		w.fatal("%s: got %v, want %v", did, got, want)
	}
	w.m.end()
	if seq := w.seq(); int(seq) != len(w.m.past)-1 {
		w.fatal("%s: the catalog is at record %d, the model at %d", did, seq, len(w.m.past)-1)
	}
}

func (w *world) seq() Seq {
	s, err := w.c.Stats(context.Background())
	if err != nil {
		w.t.Fatal(err)
	}
	return s.Seq
}

// stepCommit changes the content of a file.
func (w *world) stepCommit() (did string, got, want error) {
	known := len(w.pool)
	cm := w.splice(w.ino(w.rnd.IntN(20) == 0))
	did = fmt.Sprintf("commit to %d size %d %+v", cm.Ino, cm.Size, cm.Splice)
	_, got = w.c.Commit(context.Background(), testActor(), cm)
	if want = w.m.commit(&cm); want != nil {
		w.pool = w.pool[:known]
	}
	return did, got, want
}

// reopen closes or kills the catalog and opens it again.
func (w *world) reopen(clean bool) {
	if clean {
		w.log = append(w.log, "close")
		w.m.now = w.clk.tick()
		if err := w.c.Close(context.Background()); err != nil {
			w.fatal("close: %v", err)
		}
		w.m.sync()
	} else {
		w.log = append(w.log, "kill")
		kill(w.c)
	}
	w.m.forget()
	w.tmps = nil
	w.c = openCatalog(w.t, w.opt)
}

// content reads a file through its extents.
func (w *world) content(size int64, list []Extent) []byte {
	buf := make([]byte, size)
	end := int64(0)
	for _, e := range list {
		if e.Off < end || e.Off+e.Len > size {
			w.fatal("extents overlap or go too far: %+v in a file of %d", list, size)
		}
		end = e.Off + e.Len
		b, ok := w.m.blobs[e.Blob.Hash]
		if !ok {
			w.fatal("an extent names the unknown blob %s", e.Blob.Hash)
		}
		if _, pending := w.c.PendingBody(e.Blob.Hash); !pending && !w.blobs.has(e.Blob.Hash) {
			w.fatal("blob %s is neither pending nor stored", e.Blob.Hash)
		}
		copy(buf[e.Off:end], b[e.BlobOff:])
	}
	return buf
}

// check compares everything at one moment with the model; Head means the live functions.
func (w *world) check(at Seq) {
	for _, ino := range w.m.inos() {
		w.checkInode(at, ino)
	}
}

func (w *world) checkInode(at Seq, ino Ino) {
	want := w.m.live
	if at != Head {
		want = w.m.past[at]
	}
	n := want[ino]
	get, lookup, list, xattrs, xattr := w.at(at)
	row, err := get(ino)
	if n == nil {
		if !errors.Is(err, ErrStale) {
			w.fatal("at %d: inode %d should not be there: %+v %v", at, ino, row, err)
		}
		return
	}
	row.Base = 0
	if err != nil || row != n.row {
		w.fatal("at %d: inode %d:\ngot  %+v %v\nwant %+v", at, ino, row, err, n.row)
	}
	names, err := xattrs(ino)
	if err != nil || len(names) != len(n.xattrs) {
		w.fatal("at %d: attributes of %d: %v %v, want %v", at, ino, names, err, n.xattrs)
	}
	for k, v := range n.xattrs {
		if got, err := xattr(ino, k); err != nil || string(got) != v {
			w.fatal("at %d: attribute %s of %d: %q %v, want %q", at, k, ino, got, err, v)
		}
	}
	if n.names != nil {
		w.checkDir(at, n, lookup, list)
		return
	}
	ext, err := w.c.Extents(context.Background(), ino, at)
	if err != nil {
		w.fatal("at %d: extents of %d: %v", at, ino, err)
	}
	if row.Mode&typeMask == unix.S_IFREG && !bytes.Equal(w.content(row.Size, ext), n.content) {
		w.fatal("at %d: content of %d differs (%d bytes): %+v", at, ino, row.Size, ext)
	}
}

func (w *world) checkDir(at Seq, n *mnode, lookup func(Ino, string) (Inode, error), list func(Ino, uint64, int) ([]DirEntry, error)) {
	entries := listAll(w.t, 1+w.rnd.IntN(5), func(after uint64, max int) ([]DirEntry, error) { return list(n.row.Ino, after, max) })
	if len(entries) != len(n.names) {
		w.fatal("at %d: directory %d has %d entries, want %v", at, n.row.Ino, len(entries), n.names)
	}
	for _, e := range entries {
		got, err := lookup(n.row.Ino, e.Name)
		if err != nil || n.names[e.Name] != e.Inode.Ino || got != e.Inode {
			w.fatal("at %d: %d/%s is %+v in the list, %+v %v alone, want inode %d", at, n.row.Ino, e.Name, e.Inode, got, err, n.names[e.Name])
		}
	}
	for i := range 8 {
		name := "n" + strconv.Itoa(i)
		if _, err := lookup(n.row.Ino, name); (err == nil) != (n.names[name] != 0) {
			w.fatal("at %d: %d/%s: %v, want inode %d", at, n.row.Ino, name, err, n.names[name])
		}
	}
}

// at returns the functions that read a moment.
func (w *world) at(s Seq) (get func(Ino) (Inode, error), lookup func(Ino, string) (Inode, error), list func(Ino, uint64, int) ([]DirEntry, error),
	xattrs func(Ino) ([]string, error), xattr func(Ino, string) ([]byte, error)) {
	ctx, c := context.Background(), w.c
	if s == Head {
		return func(i Ino) (Inode, error) { return c.Get(ctx, i) },
			func(i Ino, n string) (Inode, error) { return c.Lookup(ctx, i, n) },
			func(i Ino, a uint64, m int) ([]DirEntry, error) { return c.ReadDir(ctx, i, a, m) },
			func(i Ino) ([]string, error) { return c.ListXattr(ctx, i) },
			func(i Ino, n string) ([]byte, error) { return c.GetXattr(ctx, i, n) }
	}
	return func(i Ino) (Inode, error) { return c.GetAt(ctx, i, s) },
		func(i Ino, n string) (Inode, error) { return c.LookupAt(ctx, i, n, s) },
		func(i Ino, a uint64, m int) ([]DirEntry, error) { return c.ReadDirAt(ctx, i, a, m, s) },
		func(i Ino) ([]string, error) { return c.ListXattrAt(ctx, i, s) },
		func(i Ino, n string) ([]byte, error) { return c.GetXattrAt(ctx, i, n, s) }
}

// inos lists every number that was ever used.
func (m *model) inos() []Ino {
	var list []Ino
	for ino := Root; ino < m.next; ino++ {
		list = append(list, ino)
	}
	return list
}

// checkMeta compares paths, versions, counts and moments.
func (w *world) checkMeta() {
	ctx := context.Background()
	files, dirs := int64(0), int64(0)
	for ino, n := range w.m.live {
		switch {
		case n.row.Nlink == 0:
		case n.names != nil:
			dirs++
		default:
			files++
		}
		if n.row.Nlink > 0 {
			w.checkPath(ino)
		}
		for _, newest := range []bool{false, true} {
			w.checkVersions(ino, n, newest)
		}
	}
	s, err := w.c.Stats(ctx)
	if err != nil || s.Files != files || s.Dirs != dirs {
		w.fatal("stats say %d files and %d directories (%v), want %d and %d", s.Files, s.Dirs, err, files, dirs)
	}
	for seq, at := range w.m.times {
		got, err := w.c.SeqAt(ctx, unixTime(at))
		last := seq
		for last+1 < len(w.m.times) && w.m.times[last+1] == at {
			last++
		}
		if err != nil || int(got) != last {
			w.fatal("the last record at %d is %d (%v), want %d", at, got, err, last)
		}
		if got, err := w.c.SeqAt(ctx, unixTime(at-1)); err != nil || int(got) >= seq && seq > 0 {
			w.fatal("the last record before record %d is %d (%v)", seq, got, err)
		}
		if when, err := w.c.TimeOf(ctx, Seq(seq)); seq > 0 && (err != nil || when.UnixNano() != at) {
			w.fatal("record %d is of %v (%v), want %d", seq, when, err, at)
		}
	}
}

func (w *world) checkPath(ino Ino) {
	ctx := context.Background()
	path, err := w.c.Path(ctx, ino)
	if err != nil {
		w.fatal("path of %d: %v", ino, err)
	}
	at := Root
	for _, part := range bytes.Split([]byte(path), []byte("/")) {
		if len(part) > 0 {
			at = w.m.live[at].names[string(part)]
		}
	}
	if at != ino {
		w.fatal("the path of %d is %s, which leads to %d", ino, path, at)
	}
}

func (w *world) checkVersions(ino Ino, n *mnode, newestFirst bool) {
	var list []Version
	err := w.c.Versions(context.Background(), ino, newestFirst, func(v Version) error {
		list = append(list, v)
		return nil
	})
	if newestFirst {
		slices.Reverse(list)
	}
	if err != nil || uint64(len(list)) != n.row.Ver {
		w.fatal("inode %d has %d versions (%v), want %d", ino, len(list), err, n.row.Ver)
	}
	prev := blobstore.Hash{}
	for i, v := range list {
		was := w.m.past[v.Seq][ino]
		if v.Num != uint64(i+1) || v.Prev != prev || v.Ino != ino || was == nil || v.Size != was.row.Size || was.row.Ver != v.Num || v.Actor != testActor() {
			w.fatal("version %d of inode %d: %+v", i+1, ino, v)
		}
		prev = v.Digest
	}
}

func runWorld(t *testing.T, seed uint64, steps int, change func(*Options)) {
	t.Logf("seed %d", seed)
	w := newWorld(t, seed, change)
	for i := range steps {
		w.step()
		if i%97 == 96 {
			w.check(Head)
		}
		if i%61 == 60 {
			w.check(Seq(w.rnd.IntN(len(w.m.past))))
		}
		if i%83 == 82 {
			w.checkMeta()
			w.reopen(w.rnd.IntN(2) == 0)
			w.check(Head)
		}
	}
	w.check(Head)
	w.checkMeta()
	for s := range w.m.past {
		if s%16 == 0 {
			w.check(Seq(s))
			continue
		}
		// Between these, what one of the records around changed: the rest is as it was.
		for _, ino := range w.m.inos() {
			if w.m.past[s][ino] != w.m.past[s-1][ino] || s+1 < len(w.m.past) && w.m.past[s][ino] != w.m.past[s+1][ino] {
				w.checkInode(Seq(s), ino)
			}
		}
	}
	w.checkRebuild()
}

// checkRebuild removes catalog.db and compares the one that Open rebuilds, row by row.
func (w *world) checkRebuild() {
	w.reopen(true)
	if err := w.c.Close(context.Background()); err != nil {
		w.fatal("close: %v", err)
	}
	before := dump(w.t, w.opt.Dir)
	if err := setAside(w.opt.Dir); err != nil {
		w.t.Fatal(err)
	}
	w.c = openCatalog(w.t, w.opt)
	w.check(Head)
	if err := w.c.Close(context.Background()); err != nil {
		w.fatal("close: %v", err)
	}
	if after := dump(w.t, w.opt.Dir); after != before {
		w.fatal("the rebuilt catalog differs: %s", firstDifference(before, after))
	}
}

func TestRandom(t *testing.T) {
	for _, seed := range []uint64{1, rand.Uint64() % 1e9} {
		t.Run("usual", func(t *testing.T) { runWorld(t, seed, 250, nil) })
		t.Run("tiny caches", func(t *testing.T) {
			runWorld(t, seed+1, 250, func(o *Options) { o.CacheEntries = minCacheEntries })
		})
	}
}
