package control

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"holdfast/snapshots"
)

// Selector says which state of a file is meant; the zero value means the newest. At most one field is set.
type Selector struct {
	Number int       // the version with this number in the log, from 1
	Time   time.Time // the version that was the newest at this moment
	Seq    uint64    // the version that was the newest after this journal record, from 1
}

// IsZero says that the newest version is meant.
func (s Selector) IsZero() bool { return s.Number == 0 && s.Time.IsZero() && s.Seq == 0 }

func (s Selector) String() string {
	switch {
	case s.Number != 0:
		return strconv.Itoa(s.Number)
	case s.Seq != 0:
		return "v" + strconv.FormatUint(s.Seq, 10)
	case !s.Time.IsZero():
		return s.Time.UTC().Format(time.RFC3339Nano)
	}
	return ""
}

// ParseSelector reads a version number of the log ("3"), or a moment as snapshots.ParseMoment does, the "@" apart, which may be missing: a time
// in RFC 3339 ("2026-01-31T12:00:00Z"), how long before now ("90s", "10m", "2h30m", "7d"), "today", "yesterday", or a journal record ("v1234").
func ParseSelector(s string, now time.Time) (Selector, error) {
	if len(s) > 64 {
		return Selector{}, fmt.Errorf("%w: %q... is neither a version number, nor a time, nor a duration", ErrRequest, s[:64])
	}
	if n, err := strconv.Atoi(s); err == nil && s[0] != '+' && s[0] != '-' {
		if n < 1 {
			return Selector{}, fmt.Errorf("%w: version numbers start at 1", ErrRequest)
		}
		return Selector{Number: n}, nil
	}
	m, err := snapshots.ParseMoment("@"+strings.TrimPrefix(s, "@"), now)
	if err != nil {
		return Selector{}, fmt.Errorf("%w: %q is neither a version number (3) nor a moment: %w", ErrRequest, s, err)
	}
	return Selector{Time: m.Time, Seq: uint64(m.Seq)}, nil
}

// SplitTarget separates "PATH@SELECTOR" at its last "@". ok is false when there is none, or what follows it is not a selector:
// target is then a path as a whole. A file may itself be called so; look for it first.
func SplitTarget(target string, now time.Time) (path string, at Selector, ok bool) {
	i := strings.LastIndexByte(target, '@')
	if i < 0 {
		return target, Selector{}, false
	}
	at, err := ParseSelector(target[i+1:], now)
	if err != nil {
		return target, Selector{}, false
	}
	return target[:i], at, true
}
