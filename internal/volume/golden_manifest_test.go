package volume

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/blobstore"
	"holdfast/catalog"
)

// A manifest is everything that a store says, as lines of text; each line begins with its kind.
type manifest struct{ lines []string }

func (m *manifest) add(format string, a ...any) {
	m.lines = append(m.lines, fmt.Sprintf(format, a...))
}

// kinds returns the lines of some kinds only.
func kinds(lines []string, of ...string) (out []string) {
	for _, l := range lines {
		kind, _, _ := strings.Cut(l, " ")
		if slices.Contains(of, kind) {
			out = append(out, l)
		}
	}
	return out
}

// quote writes a string that holds any bytes as one word of ASCII; a long one by its length and hash.
func quote(s string) string {
	if len(s) > 400 {
		return fmt.Sprintf("%d bytes sha256:%x", len(s), sha256.Sum256([]byte(s)))
	}
	return strconv.QuoteToASCII(s)
}

func hexOrDash(b []byte) string {
	for _, c := range b {
		if c != 0 {
			return fmt.Sprintf("%x", b)
		}
	}
	return "-"
}

func actorWords(a catalog.Actor) string {
	return fmt.Sprintf("by %s %s uid %d pid %d", quote(a.Agent), quote(a.Program), a.UID, a.PID)
}

// node is one line of the tree, and its attributes.
func (m *manifest) node(p string, n *catalog.Inode, cookie uint64, level, content string) {
	m.add("tree %s ino %d parent %d cookie %d mode %o uid %d gid %d rdev %d nlink %d size %d version %d base %d atime %d mtime %d ctime %d btime %d target %s level %s%s",
		quote(p), n.Ino, n.Parent, cookie, n.Mode, n.UID, n.GID, n.Rdev, n.Nlink, n.Size, n.Ver, n.Base, n.Atime, n.Mtime, n.Ctime, n.Btime,
		quote(n.Target), level, content)
}

func (m *manifest) xattr(p, name string, value []byte) {
	m.add("xattr %s %s %s", quote(p), quote(name), quote(string(value)))
}

// version is one line of the versions; sum is of the content as it was read, whether the record says it or not.
func (m *manifest) version(v *catalog.Version, sum string) {
	m.add("version ino %d number %d record %d time %d size %d sum %s prev %s digest %s %s content %s",
		v.Ino, v.Num, v.Seq, v.Time, v.Size, hexOrDash(v.Sum[:]), hexOrDash(v.Prev[:]), v.Digest, actorWords(v.Actor), sum)
}

func (m *manifest) record(r *catalog.Record) {
	m.add("record %d time %d op %s %s path %s rows %d %d %d %d %d %d", r.Seq, r.Time.UnixNano(), r.Op, actorWords(r.Actor), quote(r.Path),
		len(r.Inodes), len(r.Dentries), len(r.Xattrs), len(r.Splices), len(r.Versions), len(r.Blobs))
}

func (m *manifest) blob(s *blobstore.Sidecar, root []byte) {
	m.add("blob %s size %d root %s level %s version %d time %d encoding %s stored %d backups %d", s.DataID, s.Size, hexOrDash(root), s.IntegrityLevel,
		s.Version, s.Timestamp.UnixNano(), s.Encoding, s.StoredSize, s.BackupCount)
}

// maxHashed: of larger files, which are mostly a hole, only the data is read for the manifest.
const maxHashed = 16 << 20

// describeStore asks an opened store for everything.
func describeStore(ctx context.Context, v *Volume) ([]string, error) {
	m := &manifest{}
	s := v.Settings()
	m.add("store format %d storage %s id %s created %s", s.Format, s.Storage, s.StoreID, s.Created.Format(time.RFC3339))
	st, err := v.cat.Stats(ctx)
	if err != nil {
		return nil, err
	}
	m.add("counts files %d directories %d versions %d of %d bytes oldest %d next %d records %d damage %d", st.Files, st.Dirs, st.Versions, st.VersionBytes,
		st.OldestVersion.UnixNano(), st.NextIno, st.Seq, len(st.Damage))
	d := &describer{v: v, m: m, inodes: make(map[catalog.Ino]bool), names: make(map[catalog.Ino]map[string]bool)}
	return m.lines, errors.Join(d.records(ctx), d.tree(ctx), d.versions(ctx), d.moments(ctx, st.Seq), d.blobs(ctx))
}

type describer struct {
	v      *Volume
	m      *manifest
	inodes map[catalog.Ino]bool            // all that ever were
	names  map[catalog.Ino]map[string]bool // all names that ever were, by directory
}

func (d *describer) records(ctx context.Context) error {
	return d.v.cat.Records(ctx, 1, func(r catalog.Record) error {
		d.m.record(&r)
		for i := range r.Inodes {
			d.inodes[r.Inodes[i].Ino] = true
		}
		for i := range r.Dentries {
			n := &r.Dentries[i]
			if d.names[n.Parent] == nil {
				d.names[n.Parent] = make(map[string]bool)
			}
			d.names[n.Parent][n.Name] = true
		}
		return nil
	})
}

func (d *describer) tree(ctx context.Context) error {
	root, err := d.v.Get(ctx, catalog.Root)
	if err != nil {
		return err
	}
	return d.node(ctx, "", root, 0)
}

func (d *describer) node(ctx context.Context, p string, row catalog.Inode, cookie uint64) error {
	level, err := d.v.cat.Level(ctx, row.Ino)
	if err != nil {
		return err
	}
	content := ""
	if row.Mode&unix.S_IFMT == unix.S_IFREG {
		if content, err = d.content(ctx, row); err != nil {
			return fmt.Errorf("%q: %w", p, err)
		}
	}
	d.m.node(p, &row, cookie, level, content)
	names, err := d.v.ListXattr(ctx, row.Ino)
	if err != nil {
		return err
	}
	for _, name := range names {
		value, err := d.v.GetXattr(ctx, row.Ino, name)
		if err != nil {
			return err
		}
		d.m.xattr(p, name, value)
	}
	if row.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	if err := d.logs(ctx, p, row.Ino); err != nil {
		return err
	}
	for after := uint64(0); ; {
		entries, err := d.v.ReadDir(ctx, row.Ino, after, 5) // several calls for a directory
		if err != nil || len(entries) == 0 {
			return err
		}
		for _, e := range entries {
			if err := d.node(ctx, p+"/"+e.Name, e.Inode, e.Cookie); err != nil {
				return err
			}
		}
		after = entries[len(entries)-1].Cookie
	}
}

// content is the hash of a file's content and where its data is, as SEEK_DATA and SEEK_HOLE tell it. Of a huge file the data alone is hashed.
func (d *describer) content(ctx context.Context, row catalog.Inode) (string, error) {
	h, err := d.v.OpenFile(ctx, catalog.Actor{}, row.Ino, OpenFlags{Read: true})
	if err != nil {
		return "", err
	}
	defer h.Close(ctx)
	data := ""
	ranges := []run{{0, row.Size}}
	if row.Size > maxHashed {
		ranges = nil
	}
	for off := int64(0); ; {
		from, err := h.Seek(ctx, off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			return "", err
		}
		if off, err = h.Seek(ctx, from, unix.SEEK_HOLE); err != nil {
			return "", err
		}
		data += fmt.Sprintf(" %d-%d", from, off)
		if row.Size > maxHashed {
			ranges = append(ranges, run{from, off - from})
		}
	}
	sum := sha256.New()
	buf := make([]byte, 100_000) // not a multiple of a block
	for _, r := range ranges {
		for done := int64(0); done < r.n; {
			n, err := h.ReadAt(ctx, buf[:min(int64(len(buf)), r.n-done)], r.off+done)
			if err == nil && n == 0 {
				err = io.ErrUnexpectedEOF
			}
			if err != nil {
				return "", err
			}
			sum.Write(buf[:n])
			done += int64(n)
		}
	}
	return fmt.Sprintf(" sha256 %x data%s", sum.Sum(nil), data), nil
}

// logs adds the history of each name that the directory ever had.
func (d *describer) logs(ctx context.Context, p string, dir catalog.Ino) error {
	for _, name := range slices.Sorted(maps.Keys(d.names[dir])) {
		full := p + "/" + name
		row, err := d.v.Lookup(ctx, dir, name)
		if err == nil && row.Size > maxHashed {
			continue // its hash would be computed
		}
		if err != nil && !errors.Is(err, catalog.ErrNotExist) {
			return err
		}
		err = d.v.Log(ctx, full, func(e LogEntry) error {
			if e.Removed {
				d.m.add("log %s removed record %d time %d ino %d", quote(full), e.Seq, e.Time.UnixNano(), e.Inode)
				return nil
			}
			sum := sha256.New()
			if err := d.v.ReadPath(ctx, full, Moment{Number: e.Number}, sum); err != nil {
				return err
			}
			if got := fmt.Sprintf("%x", sum.Sum(nil)); got != e.SHA256 {
				return fmt.Errorf("version %d reads as %s, the log says %s", e.Number, got, e.SHA256)
			}
			d.m.add("log %s %d record %d time %d ino %d size %d sha256 %s %s", quote(full), e.Number, e.Seq, e.Time.UnixNano(), e.Inode, e.Size, e.SHA256,
				actorWords(catalog.Actor{Agent: e.Agent, Program: e.Program, UID: e.UID, PID: e.PID}))
			return nil
		})
		if err != nil {
			return fmt.Errorf("log of %q: %w", full, err)
		}
	}
	return nil
}

func (d *describer) versions(ctx context.Context) error {
	for _, ino := range slices.Sorted(maps.Keys(d.inodes)) {
		sum := summer{v: d.v}
		err := d.v.cat.Versions(ctx, ino, false, func(ver catalog.Version) error {
			text := "-"
			if ver.Size <= maxHashed {
				h, err := sum.of(ctx, catalog.Version{Ino: ver.Ino, Seq: ver.Seq, Size: ver.Size}) // read it even when its sum is known
				if err != nil {
					return err
				}
				text = h.String()
			}
			d.m.version(&ver, text)
			return nil
		})
		if err != nil {
			return fmt.Errorf("versions of inode %d: %w", ino, err)
		}
	}
	return nil
}

// moments adds the tree as it was after some of the records.
func (d *describer) moments(ctx context.Context, last catalog.Seq) error {
	for i := catalog.Seq(1); i <= 4; i++ {
		at := last * i / 5
		root, err := d.v.cat.GetAt(ctx, catalog.Root, at)
		if err == nil {
			err = d.moment(ctx, "", root, at)
		}
		if err != nil {
			return fmt.Errorf("the store after record %d: %w", at, err)
		}
	}
	return nil
}

func (d *describer) moment(ctx context.Context, p string, row catalog.Inode, at catalog.Seq) error {
	extents, err := d.v.cat.Extents(ctx, row.Ino, at)
	if err != nil {
		return err
	}
	names, err := d.v.cat.ListXattrAt(ctx, row.Ino, at)
	if err != nil {
		return err
	}
	d.m.moment(at, p, &row, len(extents), len(names))
	if row.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	entries, err := d.v.cat.ReadDirAt(ctx, row.Ino, 0, 4096, at)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := d.moment(ctx, p+"/"+e.Name, e.Inode, at); err != nil {
			return err
		}
	}
	return nil
}

func (m *manifest) moment(at catalog.Seq, p string, n *catalog.Inode, extents, xattrs int) {
	m.add("at %d %s ino %d mode %o nlink %d size %d version %d mtime %d extents %d xattrs %d", at, quote(p), n.Ino, n.Mode, n.Nlink, n.Size, n.Ver, n.Mtime,
		extents, xattrs)
}

func (d *describer) blobs(ctx context.Context) error {
	return d.v.blobs.List(ctx, blobstore.Hash{}, func(h blobstore.Hash) error {
		s, err := d.v.blobs.Sidecar(ctx, h)
		if err != nil {
			return err
		}
		var root blobstore.Root
		if len(s.Blocks) > 0 {
			root = blobstore.RootOf(s.Blocks)
		}
		d.m.blob(&s, root[:])
		return d.v.blobs.Verify(ctx, blobstore.Ref{Hash: h, Size: s.Size, Root: root})
	})
}
