package control

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Selector says which state of a file is meant; the zero value means the newest. At most one field is set.
type Selector struct {
	Number int       // the version with this number in the log, from 1
	Time   time.Time // the version that was the newest at this moment
}

// IsZero says that the newest version is meant.
func (s Selector) IsZero() bool { return s.Number == 0 && s.Time.IsZero() }

func (s Selector) String() string {
	switch {
	case s.Number != 0:
		return strconv.Itoa(s.Number)
	case !s.Time.IsZero():
		return s.Time.UTC().Format(time.RFC3339Nano)
	}
	return ""
}

// ParseSelector reads a version number of the log ("3"), a time in RFC 3339 ("2026-01-31T12:00:00Z"), or how long before now
// ("90s", "10m", "2h30m", "7d").
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
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		if t.Year() < 1970 || t.Year() > 2261 { // nanoseconds since 1970 in 64 bits end in 2262
			return Selector{}, fmt.Errorf("%w: the time %s lies outside 1970 to 2261", ErrRequest, s)
		}
		return Selector{Time: t}, nil
	}
	if d, ok := parseAgo(s); ok {
		t := now.Add(-d)
		if t.Year() < 1970 {
			return Selector{}, fmt.Errorf("%w: %s ago lies before 1970", ErrRequest, s)
		}
		return Selector{Time: t}, nil
	}
	return Selector{}, fmt.Errorf("%w: %q is neither a version number (3), nor a time (2026-01-31T12:00:00Z), nor a duration ago (10m, 7d)", ErrRequest, s)
}

// parseAgo reads a Go duration, or a whole number of days as "7d".
func parseAgo(s string) (time.Duration, bool) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		return time.Duration(n) * 24 * time.Hour, err == nil
	}
	d, err := time.ParseDuration(s)
	return d, err == nil && d >= 0
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
