package snapshots

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"holdfast/catalog"
)

// Errors of moments. Each also matches the error of the catalog that says which errno a program gets.
var (
	// ErrMalformed: the text is neither a moment nor the possible name of a snapshot.
	ErrMalformed = fmt.Errorf("not a moment: %w", catalog.ErrInvalid)
	// ErrFuture: the moment has not come yet.
	ErrFuture = fmt.Errorf("the moment lies in the future: %w", catalog.ErrNotExist)
	// ErrBefore: the moment is older than the store, or than the directory whose past is asked for.
	ErrBefore = fmt.Errorf("nothing was there yet at the moment: %w", catalog.ErrNotExist)
	// ErrNoSnapshot: no snapshot has that name.
	ErrNoSnapshot = fmt.Errorf("no such snapshot: %w", catalog.ErrNotExist)
)

// MomentError says why a text leads to no moment. errors.Is finds the sentinel in Err.
type MomentError struct {
	Text   string // as it was given, cut to a bearable length
	Reason string // what is wrong with it, and what to do
	Err    error
}

func (e *MomentError) Error() string { return fmt.Sprintf("%q: %s", e.Text, e.Reason) }
func (e *MomentError) Unwrap() error { return e.Err }

func momentError(err error, text, format string, args ...any) error {
	if len(text) > 80 {
		text = text[:80] + "..."
	}
	return &MomentError{Text: text, Reason: fmt.Sprintf(format, args...), Err: err}
}

const (
	momentForms = "a moment is @10m, @2h30m, @1d, @today, @yesterday, @2026-01-31T12:00:00Z or @v1234"

	// Nanoseconds since 1970 in 64 bits end in 2262.
	firstYear, lastYear = 1970, 2261
)

// Moment says which state of the store is meant. Exactly one of Name, Time and Seq is set.
type Moment struct {
	Name string      // the snapshot of that name
	Time time.Time   // the state at that time: after the last record that is not later
	Seq  catalog.Seq // the state after that journal record
	// Relative: the same text means another moment later.
	Relative bool
}

// String returns a text that ParseMoment reads as the same moment, now and later.
func (m Moment) String() string {
	switch {
	case m.Name != "":
		return m.Name
	case m.Seq != 0:
		return "@v" + strconv.FormatUint(uint64(m.Seq), 10)
	}
	return "@" + m.Time.UTC().Format(time.RFC3339Nano)
}

// ParseMoment reads the name of a snapshot, or behind an "@": a time in RFC 3339; how long before now, in weeks, days, hours, minutes and
// seconds ("10m", "2h30m", "1d12h", "1w"); "now", "today" and "yesterday", which are the midnights that began these days where now is
// local; or "v" and the number of a journal record. ErrMalformed; ErrFuture for a time behind now.
func ParseMoment(text string, now time.Time) (Moment, error) {
	at, ok := strings.CutPrefix(text, "@")
	if !ok {
		if err := CheckName(text); err != nil {
			return Moment{}, err
		}
		return Moment{Name: text}, nil
	}
	if len(text) > catalog.MaxName {
		return Moment{}, momentError(ErrMalformed, text, "it is too long; %s", momentForms)
	}
	if digits, ok := strings.CutPrefix(at, "v"); ok && isDigits(digits) {
		n, err := strconv.ParseUint(digits, 10, 63)
		if err != nil || n >= uint64(catalog.Head) {
			return Moment{}, momentError(ErrFuture, text, "no journal record has such a number yet")
		}
		if n == 0 {
			return Moment{}, momentError(ErrMalformed, text, "journal records are numbered from 1")
		}
		return Moment{Seq: catalog.Seq(n)}, nil
	}
	m, ok := parseTime(at, now)
	if !ok {
		return Moment{}, momentError(ErrMalformed, text, "%s", momentForms)
	}
	if y := m.Time.UTC().Year(); y < firstYear || y > lastYear {
		return Moment{}, momentError(ErrMalformed, text, "it lies outside the years %d to %d", firstYear, lastYear)
	}
	if m.Time.After(now) {
		return Moment{}, momentError(ErrFuture, text, "it lies in the future; it is %s now", now.UTC().Format(time.RFC3339))
	}
	return m, nil
}

// parseTime reads what follows the "@", record numbers apart.
func parseTime(s string, now time.Time) (Moment, bool) {
	day := func(back int) Moment {
		y, m, d := now.Date()
		return Moment{Time: time.Date(y, m, d-back, 0, 0, 0, 0, now.Location()), Relative: true}
	}
	switch s {
	case "now":
		return Moment{Time: now, Relative: true}, true
	case "today":
		return day(0), true
	case "yesterday":
		return day(1), true
	}
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return Moment{Time: t}, true
	}
	if ago, ok := parseAgo(s); ok {
		return Moment{Time: now.Add(-ago), Relative: true}, true
	}
	return Moment{}, false
}

// parseAgo reads whole weeks, then whole days, then what time.ParseDuration reads, each of them optional but not all.
func parseAgo(s string) (time.Duration, bool) {
	if s == "" {
		return 0, false
	}
	var total time.Duration
	for _, unit := range []struct {
		suffix string
		length time.Duration
	}{{"w", 7 * 24 * time.Hour}, {"d", 24 * time.Hour}} {
		i := strings.Index(s, unit.suffix)
		if i < 0 {
			continue
		}
		n, err := strconv.ParseUint(s[:i], 10, 16)
		if err != nil || !isDigits(s[:i]) {
			return 0, false
		}
		if time.Duration(n) > (math.MaxInt64-total)/unit.length {
			return 0, false
		}
		total += time.Duration(n) * unit.length
		s = s[i+len(unit.suffix):]
	}
	if s == "" {
		return total, true
	}
	if s[0] < '0' || s[0] > '9' { // no sign
		return 0, false
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 || total+d < total {
		return 0, false
	}
	return total + d, true
}

func isDigits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

// The names in `.snapshots` that no snapshot can have.
const (
	readmeName    = "README"
	versionsName  = "versions"
	deletedName   = "deleted"
	conflictsName = "conflicts"
)

// CheckName is ErrMalformed when no snapshot can be called name: see catalog.CheckSnapshotName; "@" and a "-" in front are for moments and flags. It
// says nothing about whether there is such a snapshot.
func CheckName(name string) error {
	switch {
	case strings.Contains(name, "@"):
		return momentError(ErrMalformed, name, "the name of a snapshot cannot contain @; %s", momentForms)
	case strings.HasPrefix(name, "-"):
		return momentError(ErrMalformed, name, "the name of a snapshot cannot begin with -")
	}
	if err := catalog.CheckSnapshotName(name); err != nil {
		return momentError(ErrMalformed, name, "%v", err)
	}
	return nil
}

// CheckNewName is CheckName for a name that a person chooses: it also refuses what commands would take for a version number, a time or a record
// ("7", "10m", "today", "v12"). Automatic snapshots are named by their time.
func CheckNewName(name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	if isDigits(name) {
		return momentError(ErrMalformed, name, "it would be taken for the number of a version; choose a name with letters")
	}
	if _, err := ParseMoment("@"+name, time.Now()); err == nil || !errors.Is(err, ErrMalformed) {
		return momentError(ErrMalformed, name, "it would be taken for a moment; choose another name")
	}
	return nil
}

// Journal is where moments are looked up. *volume.Volume is one.
type Journal interface {
	// Newest returns the number of the newest record, 0 when there is none.
	Newest(ctx context.Context) (catalog.Seq, error)
	// SeqAt returns the last record with a time at or before t; 0 when there is none.
	SeqAt(ctx context.Context, t time.Time) (catalog.Seq, error)
	// TimeOf returns the time of a record; catalog.ErrNotExist.
	TimeOf(ctx context.Context, seq catalog.Seq) (time.Time, error)
}

// Registry knows the snapshots of a store. *volume.Volume is one.
type Registry interface {
	// Snapshot returns the snapshot of that name; catalog.ErrNotExist.
	Snapshot(ctx context.Context, name string) (catalog.Snapshot, error)
	// Snapshots returns all of them, oldest moment first.
	Snapshots(ctx context.Context) ([]catalog.Snapshot, error)
}

// Resolve returns the record that the moment is the state after. ErrNoSnapshot, ErrFuture, ErrBefore. It
// does not say whether retention has kept the moment.
func (m Moment) Resolve(ctx context.Context, j Journal, reg Registry) (catalog.Seq, error) {
	switch {
	case m.Name != "":
		s, err := reg.Snapshot(ctx, m.Name)
		if errors.Is(err, catalog.ErrNotExist) {
			return 0, momentError(ErrNoSnapshot, m.Name, "there is no snapshot of that name; `holdfast snapshot list` shows those that there are")
		}
		return s.Seq, err
	case m.Seq != 0:
		newest, err := j.Newest(ctx)
		if err == nil && m.Seq > newest {
			err = momentError(ErrFuture, m.String(), "the newest journal record is v%d", newest)
		}
		return m.Seq, err
	}
	seq, err := j.SeqAt(ctx, m.Time)
	if err != nil || seq > 0 {
		return seq, err
	}
	first, err := j.TimeOf(ctx, 1)
	if errors.Is(err, catalog.ErrNotExist) {
		return 0, momentError(ErrBefore, m.String(), "the store is younger than that")
	}
	if err != nil {
		return 0, err
	}
	return 0, momentError(ErrBefore, m.String(), "the store was made later, at %s", first.UTC().Format(time.RFC3339))
}
