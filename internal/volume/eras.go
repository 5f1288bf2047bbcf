package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"holdfast/catalog"
)

// Under returns where name led in the directories that above, in the order of From, led to, as long as above led there: the history of a path from
// that of the path above it. A directory that is there now is followed back to the beginning, so that its files keep the versions that they had
// while it had other names; otherwise the spans of a path do not overlap.
func (v *Volume) Under(ctx context.Context, above []catalog.NameSpan, name string) ([]catalog.NameSpan, error) {
	var out []catalog.NameSpan
	for _, p := range above {
		if p.Type&unix.S_IFMT != unix.S_IFDIR {
			continue
		}
		spans, err := v.cat.NameHistory(ctx, p.Ino, name)
		if err != nil {
			return nil, err
		}
		for _, s := range spans {
			s.From, s.To = max(s.From, p.From), min(s.To, p.To)
			if s.From < s.To {
				out = append(out, s)
			}
		}
	}
	slices.SortStableFunc(out, func(a, b catalog.NameSpan) int { return cmp.Compare(a.From, b.From) })
	if n := len(out); n > 0 && out[n-1].To == catalog.Head && out[n-1].Type&unix.S_IFMT == unix.S_IFDIR {
		out[n-1].From = 0
	}
	return out, nil
}

// PathHistory returns every inode that p has led to, and when: see Under. ErrNotExist when there never was such a path.
func (v *Volume) PathHistory(ctx context.Context, p string) ([]catalog.NameSpan, error) {
	spans := []catalog.NameSpan{{Ino: catalog.Root, Type: unix.S_IFDIR, To: catalog.Head}}
	for name := range strings.SplitSeq(strings.Trim(path.Clean("/"+p), "/"), "/") {
		if name == "" {
			break
		}
		var err error
		if spans, err = v.Under(ctx, spans, name); err != nil {
			return nil, fmt.Errorf("%s: %w", p, err)
		}
	}
	if len(spans) == 0 {
		return nil, fmt.Errorf("%s: %w, now or earlier", p, catalog.ErrNotExist)
	}
	return spans, nil
}

// Era is a span in which a path led to one regular file, and the versions that the file had in it, the one that it came with included. A version is
// known by its number in the history of the path, which stays what it is when retention thins other versions out: see Number.
type Era struct {
	catalog.NameSpan
	First, Last uint64 // numbers of the inode's versions; Last is below First when there are none
	Before      uint64 // versions of all earlier eras
}

// Count is how many versions the eras up to this one have, or had.
func (e *Era) Count() uint64 { return e.Before + e.Last + 1 - e.First }

// Number is the number, in the history of the path, of the inode's version ver.
func (e *Era) Number(ver uint64) uint64 { return e.Before + ver + 1 - e.First }

// Eras returns the eras of a history. What old, the eras of the same path as they were earlier, says of spans that have ended is not read again.
func (v *Volume) Eras(ctx context.Context, spans []catalog.NameSpan, old []Era) ([]Era, error) {
	known := make(map[catalog.NameSpan]Era)
	for _, e := range old {
		if e.To != catalog.Head {
			known[e.NameSpan] = e
		}
	}
	var out []Era
	before := uint64(0)
	for _, s := range spans {
		if s.Type&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		e, ok := known[s]
		if !ok {
			var err error
			if e, err = v.eraOf(ctx, s); err != nil {
				return nil, err
			}
		}
		e.Before = before
		before = e.Count()
		out = append(out, e)
	}
	return out, nil
}

// eraOf returns the era of a span that led to a regular file; its Before is for the caller to fill.
func (v *Volume) eraOf(ctx context.Context, s catalog.NameSpan) (Era, error) {
	first, err := v.firstVersion(ctx, s)
	if err != nil {
		return Era{}, err
	}
	last := s.To
	if last != catalog.Head {
		last--
	}
	e := Era{NameSpan: s, First: max(first, 1)}
	if e.Last, err = v.versionAt(ctx, s.Ino, last); err != nil {
		return Era{}, err
	}
	e.Last = max(e.Last, e.First-1)
	return e, nil
}

// firstVersion returns the number of the version that the file of a span came with; 0 when it was made there, also when retention has thinned that away. Of one
// that came from another name and was thinned, it is that of the first moment that is kept.
func (v *Volume) firstVersion(ctx context.Context, s catalog.NameSpan) (uint64, error) {
	row, err := v.cat.GetAt(ctx, s.Ino, s.From)
	if !errors.Is(err, catalog.ErrThinned) {
		return versionOf(row, err)
	}
	at, err := v.cat.ExactFrom(ctx, s.Ino, s.From)
	if err != nil {
		return 0, err
	}
	if row, err = v.cat.GetAt(ctx, s.Ino, at); err != nil {
		return versionOf(row, err)
	}
	made, err := v.cat.TimeOf(ctx, s.From)
	if err == nil && row.Btime >= made.UnixNano() {
		return 0, nil
	}
	return row.Ver, err
}

// versionAt returns the number of the newest version that an inode had after the record at, or, where that is thinned away, at the first moment after
// it that is kept. 0 when there was none.
func (v *Volume) versionAt(ctx context.Context, ino catalog.Ino, at catalog.Seq) (uint64, error) {
	row, err := v.cat.GetAt(ctx, ino, at)
	if errors.Is(err, catalog.ErrThinned) {
		if at, err = v.cat.ExactFrom(ctx, ino, at); err == nil {
			row, err = v.cat.GetAt(ctx, ino, at)
		}
	}
	return versionOf(row, err)
}

func versionOf(row catalog.Inode, err error) (uint64, error) {
	if errors.Is(err, catalog.ErrStale) || errors.Is(err, catalog.ErrNotExist) {
		return 0, nil
	}
	return row.Ver, err
}
