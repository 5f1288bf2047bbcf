package drill

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/blobstore"
	"holdfast/catalog"
	"holdfast/integrity"
	"holdfast/internal/volume"
)

// template is a scratch store that is copied for each exercise: as it was closed, and as it would be left by a process that is killed.
type template struct {
	clean   string
	crashed string
	model   *model
}

// spec is a file that a scratch store gets.
type spec struct {
	path     string // below the directory of its level
	contents [][]byte
	fate     fate
}

type fate int

const (
	stays   fate = iota
	moved        // renamed at the end
	removed      // at the end
)

func levels() []string {
	return []string{catalog.LevelBasic, catalog.LevelAdvanced, catalog.LevelCritical}
}

func levelDir(level string) string { return "/" + level }

func who() catalog.Actor {
	return catalog.Actor{Agent: "drill", Program: "holdfast", UID: 1000, PID: 1}
}

// random is the generator of one purpose of a drill.
func random(seed, purpose uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, purpose)) }

func noise(r *rand.Rand, n int) []byte {
	p := make([]byte, n)
	for i := 0; i < n; i += 8 {
		x := r.Uint64()
		for j := i; j < min(i+8, n); j++ {
			p[j], x = byte(x), x>>8
		}
	}
	return p
}

// prose is text that compresses, about as well as logs do.
func prose(r *rand.Rand, n int) []byte {
	var b bytes.Buffer
	for b.Len() < n {
		fmt.Fprintf(&b, "%08d agent-%d closed task %x with %d files\n", b.Len(), r.IntN(9), r.Uint32(), r.IntN(1000))
	}
	return b.Bytes()[:n]
}

// plan says what each scratch store holds, by level.
func (d *drill) plan(ctx context.Context) (map[string][]spec, error) {
	plan := make(map[string][]spec)
	r := random(d.o.Seed, 1<<40)
	if d.o.Source != nil {
		list, err := slice(ctx, d.o.Source, d.o.MaxBytes, d.o.MaxFiles)
		if err != nil {
			return nil, fmt.Errorf("copy a slice of %s: %w", d.o.Source.Dir(), err)
		}
		r.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		for i, s := range list {
			level := levels()[i%len(levels())]
			plan[level] = append(plan[level], s)
		}
	}
	// What each exercise needs is there in any case.
	for _, level := range levels() {
		plan[level] = append(plan[level],
			spec{path: "large-noise", contents: [][]byte{noise(r, 150<<10+r.IntN(9000))}},
			spec{path: "large-text", contents: [][]byte{prose(r, 270<<10+r.IntN(9000))}},
			spec{path: "one-block", contents: [][]byte{noise(r, blobstore.MaxSmall+1+r.IntN(20000))}},
			spec{path: "small-noise", contents: [][]byte{noise(r, 20<<10+r.IntN(9000))}},
			spec{path: "sub/notes.md", contents: [][]byte{prose(r, 700), prose(r, 1500), prose(r, 300+r.IntN(3000))}},
			spec{path: "sub/state", contents: [][]byte{noise(r, 9000), noise(r, 9000)}, fate: moved},
			spec{path: "sub/gone", contents: [][]byte{prose(r, 5000)}, fate: removed},
			spec{path: "sub/tiny", contents: [][]byte{noise(r, 1+r.IntN(100))}},
			spec{path: "empty", contents: [][]byte{{}}},
		)
	}
	return plan, nil
}

// slice reads files of a store, all as they are at one moment, and up to two earlier versions of each.
func slice(ctx context.Context, v *volume.Volume, maxBytes int64, maxFiles int) (list []spec, err error) {
	at, err := v.Newest(ctx)
	if err != nil {
		return nil, err
	}
	v.Hold(at)
	defer v.Release(at)
	left := maxBytes
	full := errors.New("enough")
	var walk func(dir string, ino catalog.Ino, depth int) error
	walk = func(dir string, ino catalog.Ino, depth int) error {
		for after := uint64(0); ; {
			entries, err := v.ReadDirAt(ctx, ino, after, 200, at)
			if err != nil || len(entries) == 0 || depth > 64 {
				return err
			}
			for i := range entries {
				after = entries[i].Cookie
				p := path.Join(dir, entries[i].Name)
				row := &entries[i].Inode
				switch {
				case entries[i].Thinned:
				case row.Mode&unix.S_IFMT == unix.S_IFDIR:
					if err := walk(p, row.Ino, depth+1); err != nil {
						return err
					}
				case row.Mode&unix.S_IFMT == unix.S_IFREG && row.Size <= left && row.Size <= 1<<20:
					body, err := readPast(ctx, v, row.Ino, at, row.Size)
					if err != nil {
						return fmt.Errorf("%s: %w", p, err)
					}
					left -= int64(len(body))
					list = append(list, spec{path: fmt.Sprintf("slice/%d%s", len(list), path.Ext(p)), contents: [][]byte{body}})
					if len(list) >= maxFiles || left <= 0 {
						return full
					}
				}
			}
		}
	}
	if err = walk("/", catalog.Root, 0); errors.Is(err, full) {
		err = nil
	}
	return list, err
}

func readPast(ctx context.Context, v *volume.Volume, ino catalog.Ino, at catalog.Seq, size int64) ([]byte, error) {
	h, err := v.OpenPast(ctx, ino, at)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	body := make([]byte, size)
	n, err := h.ReadAt(ctx, body, 0)
	return body[:n], err
}

// openStore opens a scratch store with an engine that does nothing by itself: what is found is found by reads and checks.
func openStore(ctx context.Context, dir string, o volume.Options) (*volume.Volume, *integrity.Engine, error) {
	o.Dir = dir
	v, err := volume.Open(ctx, o)
	if err != nil {
		return nil, nil, err
	}
	e, err := integrity.New(ctx, integrity.Options{Volume: v, Log: o.Log})
	if err != nil {
		return nil, nil, errors.Join(err, v.Close(ctx))
	}
	return v, e, nil
}

func closeStore(ctx context.Context, v *volume.Volume, e *integrity.Engine) error {
	return errors.Join(e.Close(), v.Close(ctx))
}

// builder fills a scratch store.
type builder struct {
	v *volume.Volume
	e *integrity.Engine
	m *model
}

func buildTemplate(ctx context.Context, dir, storage string, plan map[string][]spec, log *slog.Logger) (*template, error) {
	live := filepath.Join(dir, "live")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if _, err := volume.Init(ctx, live, volume.InitOptions{Storage: storage, UID: 1000, GID: 1000}); err != nil {
		return nil, err
	}
	b := &builder{m: &model{entries: make(map[string]*entry), files: make(map[string]*file)}}
	// In two sessions, so that the databases and their logs both have something, and the journal has records that were applied long ago.
	for session := range 2 {
		var err error
		if b.v, b.e, err = openStore(ctx, live, volume.Options{Log: log}); err != nil {
			return nil, err
		}
		if err = b.session(ctx, plan, session); err == nil && session == 1 {
			if err = b.finish(ctx); err == nil {
				err = copyTree(live, filepath.Join(dir, "crashed"))
			}
		}
		if err := errors.Join(err, closeStore(ctx, b.v, b.e)); err != nil {
			return nil, err
		}
	}
	t := &template{clean: filepath.Join(dir, "clean"), crashed: filepath.Join(dir, "crashed"), model: b.m}
	return t, os.Rename(live, t.clean)
}

// session writes half of the files, and sees that all that their levels promise is there.
func (b *builder) session(ctx context.Context, plan map[string][]spec, session int) error {
	for _, level := range levels() {
		dir := levelDir(level)
		if session == 0 {
			row, err := b.mkdir(ctx, dir)
			if err != nil {
				return err
			}
			if err := b.v.SetXattr(ctx, who(), row.Ino, catalog.LevelXattr, []byte(level), 0); err != nil {
				return err
			}
			if err := b.v.SetXattr(ctx, who(), row.Ino, "user.drill", []byte("attribute of "+dir), 0); err != nil {
				return err
			}
		}
		for i, s := range plan[level] {
			if i%2 != session {
				continue
			}
			if err := b.write(ctx, level, path.Join(dir, s.path), s); err != nil {
				return fmt.Errorf("%s: %w", s.path, err)
			}
		}
	}
	sum, err := b.e.CheckStore(ctx, integrity.CheckOptions{Repair: true}, func(r integrity.Result) error {
		return fmt.Errorf("%w: a new store is damaged: %+v", ErrFailed, r)
	})
	if err == nil && !sum.Healthy() {
		err = fmt.Errorf("%w: a new store is damaged", ErrFailed)
	}
	return err
}

func (b *builder) mkdir(ctx context.Context, p string) (catalog.Inode, error) {
	parent, err := b.v.Resolve(ctx, path.Dir(p))
	if errors.Is(err, catalog.ErrNotExist) {
		parent, err = b.mkdir(ctx, path.Dir(p))
	}
	if err != nil {
		return catalog.Inode{}, err
	}
	return b.v.Create(ctx, who(), parent.Ino, path.Base(p), catalog.NewInode{Mode: unix.S_IFDIR | 0o755})
}

// write makes the versions of a file, one close each.
func (b *builder) write(ctx context.Context, level, p string, s spec) error {
	dir, err := b.v.Resolve(ctx, path.Dir(p))
	if errors.Is(err, catalog.ErrNotExist) {
		dir, err = b.mkdir(ctx, path.Dir(p))
	}
	if err != nil {
		return err
	}
	row, h, err := b.v.CreateFile(ctx, who(), dir.Ino, path.Base(p), catalog.NewInode{Mode: unix.S_IFREG | 0o640}, volume.OpenFlags{Write: true})
	if err != nil {
		return err
	}
	f := &file{level: level, contents: s.contents, removed: s.fate == removed}
	for _, body := range s.contents {
		if err = h.Truncate(ctx, int64(len(body))); err == nil && len(body) > 0 {
			_, err = h.WriteAt(ctx, body, 0, volume.WriteFlags{})
		}
		if err == nil {
			err = h.Flush(ctx)
		}
		if err != nil {
			break
		}
	}
	h.Close(ctx)
	if err != nil {
		return err
	}
	if err := b.v.SetXattr(ctx, who(), row.Ino, "user.drill", []byte(p), 0); err != nil {
		return err
	}
	switch s.fate {
	case stays:
	case removed:
		_, err = b.v.Unlink(ctx, who(), dir.Ino, path.Base(p))
	case moved:
		to := path.Base(p) + ".moved"
		_, err = b.v.Rename(ctx, who(), dir.Ino, path.Base(p), dir.Ino, to, 0)
		p = path.Join(path.Dir(p), to)
		f.contents = f.contents[len(f.contents)-1:] // of the new name
	}
	b.m.files[p] = f
	return err
}

// finish fills in what of the model only the store knows: numbers, times, blobs. The contents are the builder's own.
func (b *builder) finish(ctx context.Context) error {
	v := b.v
	if err := b.settle(ctx); err != nil {
		return err
	}
	if err := b.remember(ctx, "/", catalog.Root); err != nil {
		return err
	}
	for p, f := range b.m.files {
		err := v.Log(ctx, p, func(e volume.LogEntry) error {
			f.log = append(f.log, e)
			return nil
		})
		if err != nil {
			return err
		}
		for _, body := range f.contents {
			b.m.bytes += int64(len(body))
		}
	}
	if err := b.blobs(ctx); err != nil {
		return err
	}
	t, err := b.m.tour(ctx, v)
	if err == nil && len(t.wrong)+len(t.failed) > 0 {
		err = fmt.Errorf("%w: a new store is not what was written to it: %q %q", ErrFailed, t.wrong, t.failed)
	}
	return err
}

// settle waits until the background has compressed what it will, gives that its parity, and makes everything durable.
func (b *builder) settle(ctx context.Context) error {
	last := int64(-1)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for calm := 0; calm < 4; {
		st, err := b.v.Blobs().Stats(ctx)
		if err != nil {
			return err
		}
		calm++
		if st.StoredBytes != last {
			last, calm = st.StoredBytes, 0
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	if _, err := b.e.CheckStore(ctx, integrity.CheckOptions{Repair: true}, func(integrity.Result) error { return nil }); err != nil {
		return err
	}
	if err := b.v.Catalog().Flush(ctx); err != nil {
		return err
	}
	if err := b.v.Sync(ctx); err != nil {
		return err
	}
	return b.v.Blobs().Sync(ctx)
}

func (b *builder) remember(ctx context.Context, dir string, ino catalog.Ino) error {
	for after := uint64(0); ; {
		list, err := b.v.ReadDir(ctx, ino, after, 100)
		if err != nil || len(list) == 0 {
			return err
		}
		for i := range list {
			after = list[i].Cookie
			e := &entry{inode: list[i].Inode, xattrs: make(map[string]string)}
			names, err := b.v.ListXattr(ctx, e.inode.Ino)
			if err != nil {
				return err
			}
			for _, name := range names {
				value, err := b.v.GetXattr(ctx, e.inode.Ino, name)
				if err != nil {
					return err
				}
				e.xattrs[name] = string(value)
			}
			p := path.Join(dir, list[i].Name)
			b.m.entries[p] = e
			if e.inode.Mode&unix.S_IFMT == unix.S_IFDIR {
				if err := b.remember(ctx, p, e.inode.Ino); err != nil {
					return err
				}
			}
		}
	}
}

// blobs lists the blobs, and the level that each has by its files.
func (b *builder) blobs(ctx context.Context) error {
	cat := b.v.Catalog()
	for after := (blobstore.Hash{}); ; {
		page, err := cat.Blobs(ctx, after, 100)
		if err != nil || len(page) == 0 {
			return err
		}
		for i := range page {
			after = page[i].Ref.Hash
			if page[i].Ref.Size == 0 {
				continue
			}
			x := &blob{ref: page[i].Ref, level: catalog.LevelBasic}
			users, err := cat.BlobUsers(ctx, after, 100)
			if err != nil {
				return err
			}
			for _, u := range users {
				level, err := cat.Level(ctx, u.Ino)
				if err == nil && slices.Index(levels(), level) > slices.Index(levels(), x.level) {
					x.level = level
				}
				if p, err := cat.Path(ctx, u.Ino); err == nil {
					x.paths = append(x.paths, p)
				}
			}
			b.m.blobs = append(b.m.blobs, x)
		}
	}
}
