// Package backup keeps copies of a store in another place: a directory, best on another disk. A place holds blobs, each once for all backups
// in it, and a manifest for each backup: every name with its attributes, and which blobs its content is. What is there already is not
// copied again. Backups are consistent: all of one is of the same moment. The format is in docs/format.md.
package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/blobstore"
	"holdfast/internal/durable"
)

const (
	placeFile   = "holdfast-backup.json"
	manifestDir = "backups"
	stagingDir  = "staging"
	lockFile    = "lock"
	suffix      = ".jsonl.zst"
	// maxManifests bounds what a place can list.
	maxManifests = 1 << 16
)

var (
	// ErrNotExist: there is no such backup, or the directory is no place for backups.
	ErrNotExist = errors.New("no such backup")
	// ErrOther: the place belongs to another store.
	ErrOther = errors.New("the place holds the backups of another store")
	// ErrBusy: another process is writing to the place.
	ErrBusy = errors.New("another process is working on the backups there")
)

// Place is a directory with backups of one store. The caller closes it.
// Methods may be called concurrently unless they say otherwise.
type Place struct {
	dir   string
	id    string
	blobs blobstore.Store
	lock  *os.File // nil: open for reading
	log   *slog.Logger
}

type placeSettings struct {
	Format  int    `json:"format"`
	StoreID string `json:"store_id"`
}

// Options say which place to open.
type Options struct {
	Dir string
	// StoreID is the store that the backups must be of; "" when any will do, which a place that does not exist yet cannot be opened with.
	StoreID  string
	ReadOnly bool
	Log      *slog.Logger // default: discards
}

// Open opens the place in o.Dir, and makes it unless it is opened for reading. Errors: ErrNotExist, ErrOther, ErrBusy.
func Open(ctx context.Context, o Options) (_ *Place, err error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	p := &Place{dir: o.Dir, log: o.Log}
	s, err := readPlace(o.Dir)
	switch {
	case errors.Is(err, ErrNotExist) && !o.ReadOnly && o.StoreID != "":
		s, err = makePlace(o.Dir, o.StoreID)
	case err == nil && o.StoreID != "" && s.StoreID != o.StoreID:
		err = fmt.Errorf("%s: %w; give each store a directory of its own", o.Dir, ErrOther)
	}
	if err != nil {
		return nil, err
	}
	p.id = s.StoreID
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	if !o.ReadOnly {
		if p.lock, err = lockPlace(o.Dir); err != nil {
			return nil, err
		}
		// What an earlier run was copying when it ended.
		if err := emptyDir(filepath.Join(o.Dir, stagingDir)); err != nil {
			return nil, err
		}
	}
	p.blobs, err = blobstore.Open(ctx, blobstore.Options{Dir: o.Dir, Mode: blobstore.ModeHybrid, ReadOnly: o.ReadOnly, CacheBytes: 4 << 20, Log: o.Log})
	if err != nil {
		return nil, fmt.Errorf("open the backups in %s: %w", o.Dir, err)
	}
	return p, nil
}

func readPlace(dir string) (s placeSettings, err error) {
	f, err := os.Open(filepath.Join(dir, placeFile))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return s, fmt.Errorf("%s: %w: it has no %s", dir, ErrNotExist, placeFile)
	}
	if err != nil {
		return s, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 1<<16))
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(text, &s); err != nil || len(s.StoreID) != 32 {
		return s, fmt.Errorf("%s: %w: write it anew as {\"format\":1,\"store_id\":\"...\"} with the store_id of the store's holdfast.toml", f.Name(), ErrDamaged)
	}
	if s.Format != format {
		return s, fmt.Errorf("%s: its format is %d, this program reads %d: use the program that made it", dir, s.Format, format)
	}
	return s, nil
}

// makePlace makes a place in a directory that is missing or empty.
func makePlace(dir, id string) (placeSettings, error) {
	s := placeSettings{Format: format, StoreID: id}
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 && !onlyOurs(entries) {
		return s, fmt.Errorf("%s: there are other files in it; choose a directory that is empty or does not exist", dir)
	}
	for _, sub := range []string{"", manifestDir, stagingDir} {
		if err := durable.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return s, err
		}
	}
	text, err := json.Marshal(s)
	if err != nil {
		return s, err
	}
	// Written last: until it is there, the directory is no place for backups.
	return s, durable.WriteFile(filepath.Join(dir, placeFile), append(text, '\n'), 0o600)
}

// onlyOurs says that nothing is there but what a makePlace that was killed leaves, or a new filesystem has.
func onlyOurs(entries []os.DirEntry) bool {
	return !slices.ContainsFunc(entries, func(e os.DirEntry) bool {
		n := e.Name()
		return n != manifestDir && n != stagingDir && n != "lost+found" && !strings.HasPrefix(n, "."+placeFile)
	})
}

func lockPlace(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s: %w; try again when it has ended", dir, ErrBusy)
		}
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return f, nil
}

func emptyDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return durable.MkdirAll(dir, 0o700)
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return err
}

// Close gives the place up.
func (p *Place) Close() error {
	var errs []error
	if p.blobs != nil {
		errs = append(errs, p.blobs.Close())
	}
	if p.lock != nil {
		errs = append(errs, p.lock.Close())
	}
	return errors.Join(errs...)
}

// Dir is the directory of the place.
func (p *Place) Dir() string { return p.dir }

// Name tells where a healed blob came from.
func (p *Place) Name() string { return "backup " + p.dir }

// Fetch writes the content of a blob to w, verified block by block. blobstore.ErrNotFound when no backup in the place has it, blobstore.ErrDamaged when
// it has rotted here too: what was written to w is then not to be used.
func (p *Place) Fetch(ctx context.Context, ref blobstore.Ref, w io.Writer) error {
	buf := make([]byte, min(ref.Size, 1<<20))
	for off := int64(0); off < ref.Size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := p.blobs.ReadAt(ctx, ref, buf[:min(int64(len(buf)), ref.Size-off)], off)
		if err != nil {
			return err
		}
		if n == 0 {
			return &blobstore.DamageError{Hash: ref.Hash, Part: "size", Detail: "it is shorter than its size says"}
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}

// Info describes a backup.
type Info struct {
	Name  string    `json:"name"`
	Time  time.Time `json:"time"`
	Bytes int64     `json:"bytes"` // that its manifest takes

	written time.Time // its manifest
}

// List returns the backups of the place, oldest first, by the names of their manifests.
func (p *Place) List() ([]Info, error) { return list(p.dir) }

func list(dir string) ([]Info, error) {
	d, err := os.Open(filepath.Join(dir, manifestDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer d.Close()
	entries, err := d.ReadDir(maxManifests)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	var out []Info
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), suffix)
		at, err := parseName(name)
		if !ok || err != nil {
			continue
		}
		info, err := e.Info()
		if err != nil {
			return nil, err
		}
		out = append(out, Info{Name: name, Time: at, Bytes: info.Size(), written: info.ModTime()})
	}
	slices.SortFunc(out, func(a, b Info) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// nameLayout is that of the names of backups: the moment in UTC. They sort by time.
const nameLayout = "2006-01-02T15:04:05.000Z"

func parseName(name string) (time.Time, error) { return time.Parse(nameLayout, name) }

// find returns the backup that is called name; "" and "latest" mean the newest.
func (p *Place) find(name string) (Info, error) {
	all, err := p.List()
	if err != nil {
		return Info{}, err
	}
	for i := len(all) - 1; i >= 0; i-- {
		if name == "" || name == "latest" || all[i].Name == name {
			return all[i], nil
		}
	}
	if name == "" || name == "latest" {
		return Info{}, fmt.Errorf("%s: %w: there is none yet", p.dir, ErrNotExist)
	}
	return Info{}, fmt.Errorf("%s: %w: %q; `holdfast backup list` shows those that there are", p.dir, ErrNotExist, name)
}

func (p *Place) manifestPath(name string) string {
	return filepath.Join(p.dir, manifestDir, name+suffix)
}

// each calls fn with each entry of a backup.
func (p *Place) each(ctx context.Context, name string, fn func(Entry) error) (Header, error) {
	f, err := os.Open(p.manifestPath(name))
	if err != nil {
		return Header{}, err
	}
	defer f.Close()
	m, err := newManifestReader(f)
	if err != nil {
		return Header{}, fmt.Errorf("backup %s: %w", name, err)
	}
	defer m.close()
	if m.Header.StoreID != p.id || m.Header.Name != name {
		return m.Header, fmt.Errorf("backup %s: %w: its manifest is that of another one", name, ErrDamaged)
	}
	for {
		if err := ctx.Err(); err != nil {
			return m.Header, err
		}
		e, err := m.Next()
		if errors.Is(err, io.EOF) {
			return m.Header, nil
		}
		if err != nil {
			return m.Header, fmt.Errorf("backup %s: %w", name, err)
		}
		if err := fn(e); err != nil {
			return m.Header, err
		}
	}
}
