package drill

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"holdfast/blobstore"
	"holdfast/catalog"
	"holdfast/internal/volume"
)

// model is what a scratch store holds, kept beside it in memory.
type model struct {
	entries map[string]*entry
	files   map[string]*file // by path: regular files, removed ones included
	blobs   []*blob          // in order of their names
	bytes   int64            // of all contents
}

// entry is a name, and what it leads to.
type entry struct {
	inode  catalog.Inode
	xattrs map[string]string
}

// file is a path that leads, or led, to a regular file.
type file struct {
	level    string
	contents [][]byte // of its versions, oldest first
	log      []volume.LogEntry
	removed  bool
}

// blob is a blob that the catalog names.
type blob struct {
	ref   blobstore.Ref
	level string // the highest of the files that have it
	paths []string
}

func (b *blob) id() string { return b.ref.Hash.String() }

// tour is what somebody saw who looked at everything in a store.
type tour struct {
	wrong  []string // what was not as it is
	failed []string // what could not be read
}

const maxSeen = 50

func (t *tour) bad(format string, args ...any) {
	if len(t.wrong) < maxSeen {
		t.wrong = append(t.wrong, fmt.Sprintf(format, args...))
	}
}

// err takes an error for what it is: damage is a truthful answer, "no such file" and the like are not.
func (t *tour) err(what string, err error) {
	for _, lie := range []error{catalog.ErrNotExist, catalog.ErrStale, catalog.ErrNoXattr, catalog.ErrThinned, catalog.ErrNotDir, catalog.ErrIsDir, catalog.ErrInvalid} {
		if errors.Is(err, lie) {
			t.bad("%s: %v", what, err)
			return
		}
	}
	if len(t.failed) < maxSeen {
		t.failed = append(t.failed, fmt.Sprintf("%s: %v", what, err))
	}
}

// tour looks at everything that a user can see, and compares it with the model.
func (m *model) tour(ctx context.Context, v *volume.Volume) (t tour, err error) {
	seen := make(map[string]bool)
	m.walk(ctx, v, &t, "/", catalog.Root, seen, 0)
	if len(t.failed) == 0 {
		for _, p := range slices.Sorted(maps.Keys(m.entries)) {
			if !seen[p] {
				t.bad("%s is not listed", p)
			}
		}
	}
	for _, p := range slices.Sorted(maps.Keys(m.files)) {
		if err := ctx.Err(); err != nil {
			return t, err
		}
		m.readFile(ctx, v, &t, p)
	}
	return t, ctx.Err()
}

func (m *model) walk(ctx context.Context, v *volume.Volume, t *tour, dir string, ino catalog.Ino, seen map[string]bool, depth int) {
	if depth > 64 {
		t.bad("%s: the directories never end", dir)
		return
	}
	for after := uint64(0); ; {
		list, err := v.ReadDir(ctx, ino, after, 100)
		if err != nil {
			t.err("list "+dir, err)
			return
		}
		if len(list) == 0 {
			return
		}
		for i := range list {
			p := path.Join(dir, list[i].Name)
			after = list[i].Cookie
			e := m.entries[p]
			switch {
			case e == nil:
				t.bad("%s is listed and was never there", p)
				continue
			case seen[p]:
				t.bad("%s is listed twice", p)
				continue
			case list[i].Inode != e.inode:
				t.bad("%s: its attributes are %+v, not %+v", p, list[i].Inode, e.inode)
			}
			seen[p] = true
			m.lookUp(ctx, v, t, p, e)
			if e.inode.Mode&unix.S_IFMT == unix.S_IFDIR {
				m.walk(ctx, v, t, p, list[i].Inode.Ino, seen, depth+1)
			}
		}
	}
}

// lookUp asks for an entry by its name.
func (m *model) lookUp(ctx context.Context, v *volume.Volume, t *tour, p string, e *entry) {
	row, err := v.Resolve(ctx, p)
	switch {
	case err != nil:
		t.err("stat "+p, err)
		return
	case row != e.inode:
		t.bad("stat %s: %+v, not %+v", p, row, e.inode)
		return
	}
	names, err := v.ListXattr(ctx, row.Ino)
	if err != nil {
		t.err("attributes of "+p, err)
		return
	}
	if want := slices.Sorted(maps.Keys(e.xattrs)); !slices.Equal(names, want) {
		t.bad("attributes of %s: %q, not %q", p, names, want)
		return
	}
	for _, name := range names {
		value, err := v.GetXattr(ctx, row.Ino, name)
		if err != nil {
			t.err("attribute "+name+" of "+p, err)
		} else if string(value) != e.xattrs[name] {
			t.bad("attribute %s of %s: %q", name, p, value)
		}
	}
}

// readFile reads the history of a path and the content of each of its versions.
func (m *model) readFile(ctx context.Context, v *volume.Volume, t *tour, p string) {
	f := m.files[p]
	if !f.removed {
		readContent(ctx, v, t, p, volume.Moment{}, f.contents[len(f.contents)-1])
	}
	var log []volume.LogEntry
	err := v.Log(ctx, p, func(e volume.LogEntry) error {
		log = append(log, e)
		return nil
	})
	if err != nil {
		t.err("log of "+p, err)
		return
	}
	if len(log) != len(f.log) {
		t.bad("log of %s: %d entries, not %d", p, len(log), len(f.log))
		return
	}
	for i, e := range log {
		want := f.log[i]
		if e.SHA256 == "" && want.SHA256 != "" {
			t.err("log of "+p, fmt.Errorf("version %d: %w", e.Number, blobstore.ErrDamaged))
			want.SHA256 = ""
		}
		if e != want {
			t.bad("log of %s: %+v, not %+v", p, e, want)
		}
	}
	past := f.contents[:len(f.contents)-1]
	if f.removed {
		past = f.contents
	}
	for i, body := range past {
		readContent(ctx, v, t, p, volume.Moment{Number: i + 1}, body)
	}
}

func readContent(ctx context.Context, v *volume.Volume, t *tour, p string, at volume.Moment, want []byte) {
	w := &comparer{want: want}
	err := v.ReadPath(ctx, p, at, w)
	what := p
	if at.Number > 0 {
		what = fmt.Sprintf("%s@%d", p, at.Number)
	}
	switch {
	case w.differs:
		t.bad("%s: wrong bytes were read", what)
	case err != nil:
		t.err("read "+what, err)
	case len(w.want) > 0:
		t.bad("%s: it ends %d bytes early", what, len(w.want))
	}
}

// comparer compares what is written to it with what should be.
type comparer struct {
	want    []byte
	differs bool
}

func (c *comparer) Write(p []byte) (int, error) {
	if !bytes.HasPrefix(c.want, p) {
		c.differs = true
		return len(p), nil
	}
	c.want = c.want[len(p):]
	return len(p), nil
}
