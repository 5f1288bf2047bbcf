package volume

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"path"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/blobstore"
	"holdfast/catalog"
)

// LogEntry is one version of a path, or its removal.
type LogEntry struct {
	Number  int         `json:"number"` // from 1, in the order of the path's history; 0 for a removal
	Seq     catalog.Seq `json:"seq"`    // the journal record
	Time    time.Time   `json:"time"`
	Size    int64       `json:"size"`
	SHA256  string      `json:"sha256"` // of the whole content
	Agent   string      `json:"agent"`
	Program string      `json:"program"`
	UID     uint32      `json:"uid"`
	PID     uint32      `json:"pid"`
	Inode   catalog.Ino `json:"inode"`
	Removed bool        `json:"removed,omitempty"`
}

// Log calls fn with each version that p had, oldest first, whichever inode held the name at the time, until fn returns an error. Neither p nor its directory need exist now. ErrNotExist when there never was such a path.
// A damaged version has an empty SHA256.
func (v *Volume) Log(ctx context.Context, p string, fn func(LogEntry) error) error {
	sum := summer{v: v}
	return v.walkVersions(ctx, p, func(number int, ver catalog.Version, removed time.Time) error {
		e := LogEntry{Number: number, Seq: ver.Seq, Inode: ver.Ino, Removed: number == 0, Time: removed}
		if number > 0 {
			e.Time, e.Size = time.Unix(0, ver.Time).UTC(), ver.Size
			e.Agent, e.Program, e.UID, e.PID = ver.Actor.Agent, ver.Actor.Program, ver.Actor.UID, ver.Actor.PID
			h, err := sum.of(ctx, ver)
			switch {
			case err == nil:
				e.SHA256 = h.String()
			case ctx.Err() != nil:
				return ctx.Err()
			default:
				v.log.Warn("a version cannot be read", "path", p, "number", number, "error", err)
			}
		}
		return fn(e)
	})
}

// walkVersions calls fn with each version of p and its number, oldest first, and with number 0 and a time where the name was taken away.
func (v *Volume) walkVersions(ctx context.Context, p string, fn func(int, catalog.Version, time.Time) error) error {
	if path.Clean("/"+p) == "/" {
		return fmt.Errorf("%s: %w: it names the root, which has no versions", p, catalog.ErrInvalid)
	}
	spans, err := v.PathHistory(ctx, p)
	if err != nil {
		return err
	}
	before := uint64(0)
	for i, s := range spans {
		if s.Type&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		e, err := v.eraOf(ctx, s) // one at a time: a file that is replaced again and again has very many
		if err != nil {
			return err
		}
		e.Before = before
		before = e.Count()
		for from := e.First; from <= e.Last; {
			list, err := v.cat.VersionRange(ctx, e.Ino, from, e.Last+1)
			if err != nil {
				return err
			}
			if len(list) == 0 {
				break
			}
			for _, ver := range list {
				from = ver.Num + 1
				if err := fn(int(e.Number(ver.Num)), ver, time.Time{}); err != nil {
					return err
				}
			}
		}
		if s.To != catalog.Head && (i+1 == len(spans) || spans[i+1].From > s.To) {
			at, err := v.cat.TimeOf(ctx, s.To)
			if err != nil {
				return err
			}
			if err := fn(0, catalog.Version{Ino: s.Ino, Seq: s.To}, at); err != nil {
				return err
			}
		}
	}
	return nil
}

// Moment selects a version of a path: by its number in the log, the newest that the log shows up to a time, or the state after a journal record.
// The zero Moment is now.
type Moment struct {
	Number int
	Time   time.Time
	Seq    catalog.Seq
}

// ReadPath writes the content that p has, or had at the moment, to w. Every byte was verified before it was written.
func (v *Volume) ReadPath(ctx context.Context, p string, at Moment, w io.Writer) error {
	var err error
	switch {
	case at == (Moment{}):
		return v.readNow(ctx, p, w)
	case at.Seq > 0:
		err = v.readAtSeq(ctx, p, at.Seq, w)
	default:
		err = v.readVersion(ctx, p, at, w)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	return nil
}

func (v *Volume) readVersion(ctx context.Context, p string, at Moment, w io.Writer) error {
	if at.Number > 0 {
		return v.readNumber(ctx, p, at.Number, w)
	}
	if err := v.knownAt(ctx, p, at.Time); err != nil {
		return err
	}
	var found *catalog.Version
	gone := false
	err := v.walkVersions(ctx, p, func(number int, ver catalog.Version, removed time.Time) error {
		switch {
		case number == 0:
			if !removed.After(at.Time) {
				gone = true
			}
		case !time.Unix(0, ver.Time).After(at.Time):
			found, gone = &ver, false
		}
		return nil
	})
	if err != nil {
		return err
	}
	if found == nil || gone {
		return fmt.Errorf("%w at %s", catalog.ErrNotExist, at.Time.Format(time.RFC3339))
	}
	m, err := v.versionContent(ctx, found)
	if err != nil {
		return err
	}
	return v.copyOut(ctx, m, 0, found.Size, w)
}

// knownAt is catalog.ErrThinned when retention has thinned away what p was at a time: the version before that is left may not be what it held then.
func (v *Volume) knownAt(ctx context.Context, p string, at time.Time) error {
	seq, err := v.cat.SeqAt(ctx, at)
	if err != nil {
		return err
	}
	spans, err := v.PathHistory(ctx, p)
	if err != nil {
		return err
	}
	for _, s := range spans {
		if s.From <= seq && seq < s.To {
			return v.cat.Exact(ctx, s.Ino, seq)
		}
	}
	dir, err := v.Resolve(ctx, path.Dir(path.Clean("/"+p)))
	if errors.Is(err, catalog.ErrNotExist) || errors.Is(err, catalog.ErrNotDir) {
		return nil
	}
	if err != nil {
		return err
	}
	return v.cat.Exact(ctx, dir.Ino, seq)
}

// readNumber is ReadPath for a number of the log. It looks at the eras only, not at the versions in them.
func (v *Volume) readNumber(ctx context.Context, p string, number int, w io.Writer) error {
	spans, err := v.PathHistory(ctx, p)
	if err != nil {
		return err
	}
	before := uint64(0)
	for _, s := range spans {
		if s.Type&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		e, err := v.eraOf(ctx, s)
		if err != nil {
			return err
		}
		e.Before = before
		if before = e.Count(); before < uint64(number) {
			continue
		}
		num := e.First + uint64(number) - e.Before - 1
		list, err := v.cat.VersionRange(ctx, e.Ino, num, num+1)
		if err != nil {
			return err
		}
		if len(list) == 0 {
			return fmt.Errorf("version %d: %w; `holdfast log` lists those that are left", number, catalog.ErrThinned)
		}
		m, err := v.versionContent(ctx, &list[0])
		if err != nil {
			return err
		}
		return v.copyOut(ctx, m, 0, list[0].Size, w)
	}
	return fmt.Errorf("%w: it has no version %d", catalog.ErrNotExist, number)
}

func (v *Volume) readAtSeq(ctx context.Context, p string, seq catalog.Seq, w io.Writer) error {
	newest, err := v.Newest(ctx)
	if err != nil {
		return err
	}
	if seq > newest {
		return fmt.Errorf("%w at record v%d, which is not there yet: the newest is v%d", catalog.ErrNotExist, seq, newest)
	}
	row, err := v.ResolveAt(ctx, p, seq)
	if err != nil {
		return fmt.Errorf("%w after record %d", err, seq)
	}
	switch row.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		return catalog.ErrIsDir
	default:
		return fmt.Errorf("%w: it was no regular file then", catalog.ErrInvalid)
	}
	m, err := v.contentAt(ctx, row.Ino, seq)
	if err != nil {
		return err
	}
	return v.copyOut(ctx, m, 0, row.Size, w)
}

func (v *Volume) readNow(ctx context.Context, p string, w io.Writer) error {
	row, err := v.Resolve(ctx, p)
	if err != nil {
		return err
	}
	if row.Mode&unix.S_IFMT == unix.S_IFLNK {
		return fmt.Errorf("%s: %w: it is a symbolic link to %s", p, catalog.ErrInvalid, row.Target)
	}
	h, err := v.OpenFile(ctx, catalog.Actor{}, row.Ino, OpenFlags{Read: true})
	if err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	defer h.Close(ctx)
	buf := v.buffers.Get().(*[]byte)
	defer v.buffers.Put(buf)
	for off := int64(0); ; {
		n, err := h.ReadAt(ctx, *buf, off)
		if err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		if n == 0 {
			return nil
		}
		if _, err := w.Write((*buf)[:n]); err != nil {
			return err
		}
		off += int64(n)
	}
}

// versionContent is the map of a version's content. Retention may have kept a later moment of it than its first.
func (v *Volume) versionContent(ctx context.Context, ver *catalog.Version) (spanMap, error) {
	at, err := v.cat.ExactFrom(ctx, ver.Ino, ver.Seq)
	if err != nil {
		return spanMap{}, err
	}
	return v.contentAt(ctx, ver.Ino, at)
}

// contentAt is the map of a file's content as of a record.
func (v *Volume) contentAt(ctx context.Context, ino catalog.Ino, seq catalog.Seq) (spanMap, error) {
	extents, err := v.cat.Extents(ctx, ino, seq)
	if err != nil {
		return spanMap{}, err
	}
	m := newSpanMap()
	for _, e := range extents {
		m.put(extentSpan(e))
	}
	return m, nil
}

// summer computes the SHA-256 of versions that the catalog does not know it of. Of versions that it is given in order, and that only grow, as a
// log's do, it reads each byte once.
type summer struct {
	v     *Volume
	ino   catalog.Ino
	spans []span
	size  int64
	state hash.Hash
}

func (s *summer) of(ctx context.Context, ver catalog.Version) (blobstore.Hash, error) {
	if ver.Sum != (blobstore.Hash{}) {
		return ver.Sum, nil
	}
	m, err := s.v.versionContent(ctx, &ver)
	if err != nil {
		return blobstore.Hash{}, err
	}
	if s.state == nil || s.ino != ver.Ino || ver.Size < s.size || !slices.EqualFunc(s.spans, spansBelow(m, s.size), sameBytes) {
		s.state, s.ino, s.size = sha256.New(), ver.Ino, 0
	}
	if err := s.v.copyOut(ctx, m, s.size, ver.Size, s.state); err != nil {
		s.state = nil
		return blobstore.Hash{}, err
	}
	s.size = ver.Size
	s.spans = spansBelow(m, ver.Size)
	return blobstore.Hash(s.state.Sum(nil)), nil
}

func spansBelow(m spanMap, size int64) []span {
	var out []span
	m.walk(0, size, func(s span) bool {
		out = append(out, s)
		return true
	})
	return out
}

func sameBytes(a, b span) bool {
	return a.off == b.off && a.n == b.n && a.pos == b.pos && a.blob.Hash == b.blob.Hash
}

// Stats describes the volume.
type Stats struct {
	catalog.Stats
	Blobs     blobstore.Stats `json:"blobs"`
	OpenFiles int             `json:"open_files"`
	Staged    int64           `json:"staged_bytes"` // in memory, of changes that are not committed yet
}

// Stats counts what the volume holds.
func (v *Volume) Stats(ctx context.Context) (Stats, error) {
	var s Stats
	var err error
	if s.Stats, err = v.cat.Stats(ctx); err != nil {
		return s, err
	}
	if s.Blobs, err = v.blobs.Stats(ctx); err != nil {
		return s, err
	}
	v.mu.RLock()
	s.OpenFiles = len(v.files)
	v.mu.RUnlock()
	s.Staged = v.staged.Load()
	return s, nil
}
