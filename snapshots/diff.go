package snapshots

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"holdfast/catalog"
	"holdfast/internal/volume"
)

// The kinds of a Difference.
const (
	DiffAdded   = "added"
	DiffRemoved = "removed"
	DiffChanged = "changed"
	DiffRenamed = "renamed" // the same inode at another path, changed or not
)

// The fields in which what was changed or renamed differs.
const (
	FieldContent = "content"
	FieldMode    = "mode"
	FieldOwner   = "owner"
	FieldTimes   = "times" // mtime; of a directory it follows from the names in it, and is not told
	FieldXattrs  = "xattrs"
	FieldType    = "type" // one path, two inodes of different type
)

// Difference is one path that differs between two moments.
type Difference struct {
	Kind   string   `json:"kind"`
	Path   string   `json:"path"`           // at the second moment; of what was removed, at the first
	From   string   `json:"from,omitempty"` // of what was renamed: its path at the first moment
	Type   string   `json:"type"`           // "file", "dir", "symlink" or "other"
	Fields []string `json:"fields,omitempty"`
	Size   int64    `json:"size"` // at the moment of Path
	Ino    uint64   `json:"ino"`
}

// maxTouched bounds the inodes that a diff remembers from the journal; when more were touched both trees are walked.
const maxTouched = 1 << 18

// Diff calls fn with each path at or below p that differs between the states after the records a and b, until fn returns an error, which Diff
// returns. A directory comes before what is in it; there is no other order. Where the journal tells what was touched between the moments, only that is
// looked at; otherwise both trees are. Memory is bounded by the largest directory. catalog.ErrNotExist when p was there at neither moment.
func Diff(ctx context.Context, vol *volume.Volume, a, b catalog.Seq, p string, fn func(Difference) error) error {
	p = path.Clean("/" + p)
	rowA, errA := vol.ResolveAt(ctx, p, a)
	rowB, errB := vol.ResolveAt(ctx, p, b)
	for _, err := range []error{errA, errB} {
		if errors.Is(err, catalog.ErrThinned) || err != nil && !errors.Is(err, catalog.ErrNotExist) && !errors.Is(err, catalog.ErrNotDir) {
			return err
		}
	}
	if errA != nil && errB != nil {
		return fmt.Errorf("%s: %w, at neither of the moments", p, catalog.ErrNotExist)
	}
	d := &differ{ctx: ctx, vol: vol, a: a, b: b, top: p, fn: fn}
	if err := d.findTouched(); err != nil {
		return err
	}
	if errA != nil {
		rowA = catalog.Inode{}
	}
	if errB != nil {
		rowB = catalog.Inode{}
	}
	if p == "/" {
		p = ""
	}
	return d.pair(p, rowA, rowB, 0)
}

type differ struct {
	ctx  context.Context
	vol  *volume.Volume
	a, b catalog.Seq
	top  string
	fn   func(Difference) error

	touched map[catalog.Ino]struct{} // and all directories above; nil: not known

	dir   catalog.Ino // whose names, after the record dirAt, are in byIno
	dirAt catalog.Seq
	byIno map[catalog.Ino]string
}

// findTouched reads the journal between the moments.
func (d *differ) findTouched() error {
	from, to := min(d.a, d.b), max(d.a, d.b)
	set := make(map[catalog.Ino]struct{})
	stop := errors.New("not from the journal")
	err := d.vol.Records(d.ctx, from+1, func(r catalog.Record) error {
		if r.Seq > to {
			return stop
		}
		for i := range r.Inodes {
			if row := &r.Inodes[i]; row.Nlink > 1 && !isDir(row.Mode) {
				set = nil // its other names are known to the tree only
				return stop
			}
			set[r.Inodes[i].Ino] = struct{}{}
		}
		for i := range r.Xattrs {
			set[r.Xattrs[i].Ino] = struct{}{}
		}
		if len(set) > maxTouched {
			set = nil
			return stop
		}
		return nil
	})
	switch {
	case errors.Is(err, catalog.ErrDamaged):
		return nil // the trees tell it all
	case err != nil && !errors.Is(err, stop):
		return err
	case set == nil:
		return nil
	}
	all := make(map[catalog.Ino]struct{}, len(set))
	for ino := range set {
		for _, at := range []catalog.Seq{d.a, d.b} {
			err := d.mark(all, ino, at)
			if errors.Is(err, catalog.ErrThinned) {
				return nil // it may be elsewhere: what is not kept of the trees is found when it is walked to
			}
			if err != nil {
				return err
			}
		}
	}
	d.touched = all
	return nil
}

// mark puts an inode and the directories above it into the set.
func (d *differ) mark(all map[catalog.Ino]struct{}, ino catalog.Ino, at catalog.Seq) error {
	for range maxWalkDepth {
		all[ino] = struct{}{}
		if ino == catalog.Root {
			return nil
		}
		row, err := d.vol.GetAt(d.ctx, ino, at)
		if errors.Is(err, catalog.ErrStale) {
			return nil
		}
		if err != nil || row.Nlink == 0 {
			return err
		}
		ino = row.Parent
	}
	return errTooDeep
}

// pair compares what one path led to at both moments; the zero Inode: nothing.
func (d *differ) pair(p string, a, b catalog.Inode, depth int) error {
	if depth > maxWalkDepth {
		return errTooDeep
	}
	if a.Ino == b.Ino {
		return d.same(p, "", a, b, depth)
	}
	if a.Ino != 0 && b.Ino != 0 && (a.Mode^b.Mode)&unix.S_IFMT == 0 {
		alive, err := d.either(a.Ino, d.b, b.Ino, d.a)
		if err != nil {
			return err
		}
		if !alive && isDir(a.Mode) { // it was removed and made anew
			return d.same(p, "", a, b, depth)
		}
		if !alive { // a program wrote a new file and renamed it over the old one
			fields, err := d.fields(a, b)
			if err != nil || len(fields) == 0 {
				return err
			}
			return d.tell(DiffChanged, p, "", b, fields)
		}
	}
	if a.Ino != 0 {
		if err := d.gone(p, a, depth); err != nil {
			return err
		}
	}
	if b.Ino != 0 {
		return d.come(p, b, depth)
	}
	return nil
}

func (d *differ) either(x catalog.Ino, at catalog.Seq, y catalog.Ino, at2 catalog.Seq) (bool, error) {
	_, ok, err := d.alive(x, at)
	if err != nil || ok {
		return ok, err
	}
	_, ok, err = d.alive(y, at2)
	return ok, err
}

// alive returns the row of an inode, and whether it had a name, after a record.
func (d *differ) alive(ino catalog.Ino, at catalog.Seq) (catalog.Inode, bool, error) {
	row, err := d.vol.GetAt(d.ctx, ino, at)
	if errors.Is(err, catalog.ErrStale) {
		return row, false, nil
	}
	return row, err == nil && row.Nlink > 0, err
}

func (d *differ) tell(kind, p, from string, row catalog.Inode, fields []string) error {
	if p == "" {
		p = "/"
	}
	return d.fn(Difference{Kind: kind, Path: p, From: from, Type: typeOf(row.Mode), Fields: fields, Size: row.Size, Ino: uint64(row.Ino)})
}

func typeOf(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "dir"
	case unix.S_IFLNK:
		return "symlink"
	}
	return "other"
}

// same compares one inode at both moments; from is its path at the first where that is another one.
func (d *differ) same(p, from string, a, b catalog.Inode, depth int) error {
	if d.touched != nil && from == "" {
		if _, ok := d.touched[a.Ino]; !ok {
			return nil
		}
	}
	fields, err := d.fields(a, b)
	if err != nil {
		return err
	}
	if from != "" && from != p {
		err = d.tell(DiffRenamed, p, from, b, fields)
	} else if len(fields) > 0 {
		err = d.tell(DiffChanged, p, "", b, fields)
	}
	if err != nil || !isDir(b.Mode) {
		return err
	}
	names := make(map[string]catalog.Inode)
	if err := walkDir(d.ctx, d.vol, a.Ino, d.a, func(e catalog.DirEntry) error {
		names[e.Name] = e.Inode
		return nil
	}); err != nil {
		return err
	}
	if err := walkDir(d.ctx, d.vol, b.Ino, d.b, func(e catalog.DirEntry) error {
		old := names[e.Name]
		delete(names, e.Name)
		return d.pair(p+"/"+e.Name, old, e.Inode, depth+1)
	}); err != nil {
		return err
	}
	for name, old := range names {
		if err := d.pair(p+"/"+name, old, catalog.Inode{}, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// gone tells of a name that leads to something else, or nowhere, at the second moment.
func (d *differ) gone(p string, a catalog.Inode, depth int) error {
	b, ok, err := d.alive(a.Ino, d.b)
	if err != nil {
		return err
	}
	if ok && (isDir(a.Mode) || b.Nlink >= a.Nlink) {
		to, err := d.pathAt(b, d.b)
		if err != nil {
			return err
		}
		return d.same(to, p, a, b, depth)
	}
	if err := d.tell(DiffRemoved, p, "", a, nil); err != nil || !isDir(a.Mode) {
		return err
	}
	return walkDir(d.ctx, d.vol, a.Ino, d.a, func(e catalog.DirEntry) error {
		return d.gone(p+"/"+e.Name, e.Inode, depth+1)
	})
}

// come tells of a name that led to something else, or nowhere, at the first moment.
func (d *differ) come(p string, b catalog.Inode, depth int) error {
	a, ok, err := d.alive(b.Ino, d.a)
	if err != nil {
		return err
	}
	if ok && (isDir(b.Mode) || a.Nlink >= b.Nlink) {
		from, err := d.pathAt(a, d.a)
		if err != nil || within(from, d.top) {
			return err // it is told where it was
		}
		return d.same(p, from, a, b, depth)
	}
	if err := d.tell(DiffAdded, p, "", b, nil); err != nil || !isDir(b.Mode) {
		return err
	}
	return walkDir(d.ctx, d.vol, b.Ino, d.b, func(e catalog.DirEntry) error {
		return d.come(p+"/"+e.Name, e.Inode, depth+1)
	})
}

// pathAt is a path that an inode had after the record at.
func (d *differ) pathAt(row catalog.Inode, at catalog.Seq) (string, error) {
	p := ""
	for range maxWalkDepth {
		if row.Ino == catalog.Root {
			if p == "" {
				p = "/"
			}
			return p, nil
		}
		name, err := d.nameIn(row.Parent, row.Ino, at)
		if err != nil {
			return "", err
		}
		p = "/" + name + p
		if row, err = d.vol.GetAt(d.ctx, row.Parent, at); err != nil {
			return "", err
		}
	}
	return "", errTooDeep
}

// nameIn is a name that an inode had in a directory. The names of the directory that was asked for last are kept.
func (d *differ) nameIn(dir, ino catalog.Ino, at catalog.Seq) (string, error) {
	if d.dir != dir || d.dirAt != at {
		d.dir, d.dirAt, d.byIno = dir, at, make(map[catalog.Ino]string)
		if err := walkDir(d.ctx, d.vol, dir, at, func(e catalog.DirEntry) error {
			d.byIno[e.Inode.Ino] = e.Name
			return nil
		}); err != nil {
			return "", err
		}
	}
	if name, ok := d.byIno[ino]; ok {
		return name, nil
	}
	return fmt.Sprintf("(inode %d)", ino), nil
}

// fields says in what two inodes, or one at two moments, differ.
func (d *differ) fields(a, b catalog.Inode) ([]string, error) {
	return differences(d.ctx, d.vol, a, d.a, b, d.b)
}

func differences(ctx context.Context, vol *volume.Volume, a catalog.Inode, atA catalog.Seq, b catalog.Inode, atB catalog.Seq) ([]string, error) {
	var list []string
	add := func(yes bool, field string) {
		if yes {
			list = append(list, field)
		}
	}
	content := a.Size != b.Size || a.Target != b.Target || a.Rdev != b.Rdev
	if !content && a.Mode&unix.S_IFMT == unix.S_IFREG && (a.Ver != b.Ver || a.Ino != b.Ino) {
		same, err := sameContent(ctx, vol, a, atA, b, atB)
		if err != nil {
			return nil, err
		}
		content = !same
	}
	add((a.Mode^b.Mode)&unix.S_IFMT != 0, FieldType)
	add(content && !isDir(a.Mode), FieldContent)
	add((a.Mode^b.Mode)&0o7777 != 0, FieldMode)
	add(a.UID != b.UID || a.GID != b.GID, FieldOwner)
	add(a.Mtime != b.Mtime && !isDir(b.Mode), FieldTimes)
	if a.Ctime != b.Ctime || a.Ino != b.Ino {
		xa, err := xattrsAt(ctx, vol, a.Ino, atA)
		if err != nil {
			return nil, err
		}
		xb, err := xattrsAt(ctx, vol, b.Ino, atB)
		if err != nil {
			return nil, err
		}
		add(!slices.Equal(xa, xb), FieldXattrs)
	}
	return list, nil
}

// sameContent compares what files are made of: equal pieces are equal content, and different pieces count as different.
func sameContent(ctx context.Context, vol *volume.Volume, a catalog.Inode, atA catalog.Seq, b catalog.Inode, atB catalog.Seq) (bool, error) {
	xa, err := vol.Extents(ctx, a.Ino, atA)
	if err != nil {
		return false, err
	}
	xb, err := vol.Extents(ctx, b.Ino, atB)
	if err != nil {
		return false, err
	}
	return slices.EqualFunc(xa, xb, func(x, y catalog.Extent) bool {
		return x.Off == y.Off && x.Len == y.Len && x.BlobOff == y.BlobOff && x.Blob.Hash == y.Blob.Hash
	}), nil
}

// xattrsAt lists names and values in turn.
func xattrsAt(ctx context.Context, vol *volume.Volume, ino catalog.Ino, at catalog.Seq) ([]string, error) {
	names, err := vol.ListXattrAt(ctx, ino, at)
	if err != nil {
		return nil, err
	}
	var list []string
	for _, name := range names {
		value, err := vol.GetXattrAt(ctx, ino, name, at)
		if err != nil {
			return nil, err
		}
		list = append(list, name, string(value))
	}
	return list, nil
}
