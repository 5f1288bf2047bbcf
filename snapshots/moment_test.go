package snapshots

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/catalog"
)

func noon() time.Time { return time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC) }

func TestParseMoment(t *testing.T) {
	zone := time.FixedZone("east", 5*3600)
	for _, test := range []struct {
		text string
		now  time.Time
		want Moment
	}{
		{"@10m", noon(), Moment{Time: noon().Add(-10 * time.Minute), Relative: true}},
		{"@2h30m", noon(), Moment{Time: noon().Add(-150 * time.Minute), Relative: true}},
		{"@1d", noon(), Moment{Time: noon().AddDate(0, 0, -1), Relative: true}},
		{"@1w2d3h4m5s", noon(), Moment{Time: noon().AddDate(0, 0, -9).Add(-3*time.Hour - 4*time.Minute - 5*time.Second), Relative: true}},
		{"@0s", noon(), Moment{Time: noon(), Relative: true}},
		{"@now", noon(), Moment{Time: noon(), Relative: true}},
		{"@today", noon(), Moment{Time: noon().Add(-12 * time.Hour), Relative: true}},
		{"@yesterday", noon(), Moment{Time: noon().Add(-36 * time.Hour), Relative: true}},
		{"@today", noon().In(zone), Moment{Time: time.Date(2026, 1, 31, 0, 0, 0, 0, zone), Relative: true}},
		{"@2026-01-31T11:00:00Z", noon(), Moment{Time: noon().Add(-time.Hour)}},
		{"@2026-01-31T12:00:00.5+01:00", noon(), Moment{Time: noon().Add(-time.Hour + 500*time.Millisecond)}},
		{"@2026-01-31T12:00:00Z", noon(), Moment{Time: noon()}},
		{"@v1", noon(), Moment{Seq: 1}},
		{"@v1234", noon(), Moment{Seq: 1234}},
		{"before-the-merge", noon(), Moment{Name: "before-the-merge"}},
		{"2026-01-31T11:00:00Z", noon(), Moment{Name: "2026-01-31T11:00:00Z"}},
		{"tagesende ü", noon(), Moment{Name: "tagesende ü"}},
	} {
		got, err := ParseMoment(test.text, test.now)
		if err != nil || got.Name != test.want.Name || got.Seq != test.want.Seq || got.Relative != test.want.Relative || !got.Time.Equal(test.want.Time) {
			t.Errorf("%q: %+v, %v, want %+v", test.text, got, err, test.want)
		}
	}
}

func TestParseMomentRefuses(t *testing.T) {
	for text, want := range map[string]error{
		"": ErrMalformed, "@": ErrMalformed, "@@10m": ErrMalformed, "@ 10m": ErrMalformed, "@10": ErrMalformed, "@m": ErrMalformed,
		"@-10m": ErrMalformed, "@+10m": ErrMalformed, "@1d-2h": ErrMalformed, "@1d+2h": ErrMalformed, "@2h1d": ErrMalformed, "@1d1d": ErrMalformed,
		"@d": ErrMalformed, "@1.5d": ErrMalformed, "@99999d": ErrMalformed, "@9999w": ErrMalformed, "@1000000h": ErrMalformed, "@9223372036s9223372036s": ErrMalformed,
		"@v": ErrMalformed, "@v0": ErrMalformed, "@v-1": ErrMalformed, "@v+1": ErrMalformed, "@V1": ErrMalformed, "@v1x": ErrMalformed,
		"@2026-01-31": ErrMalformed, "@2026-13-31T12:00:00Z": ErrMalformed, "@2026-01-31T12:00:00": ErrMalformed, "@2026-01-31 12:00:00Z": ErrMalformed,
		"@1969-12-31T23:59:59Z": ErrMalformed, "@9999-01-01T00:00:00Z": ErrMalformed, "@tomorrow": ErrMalformed,
		"@2026-01-31T12:00:01Z": ErrFuture, "@2027-01-01T00:00:00Z": ErrFuture, "@v99999999999999999999": ErrFuture, "@v9223372036854775807": ErrFuture,
		"@" + strings.Repeat("1", 300): ErrMalformed,
		"a/b":                          ErrMalformed, "a@b": ErrMalformed, "a\nb": ErrMalformed, "a\x7f": ErrMalformed, "\xff": ErrMalformed, ".": ErrMalformed, "..": ErrMalformed,
		".git": ErrMalformed, "-rf": ErrMalformed, "README": ErrMalformed, "versions": ErrMalformed, "deleted": ErrMalformed, "conflicts": ErrMalformed,
		strings.Repeat("a", 256): ErrMalformed, "\x00": ErrMalformed, "a\u0085": ErrMalformed,
	} {
		got, err := ParseMoment(text, noon())
		if !errors.Is(err, want) {
			t.Errorf("%q gave %+v, %v; want %v", text, got, err, want)
		}
		errno := catalog.ErrInvalid
		if want == ErrFuture {
			errno = catalog.ErrNotExist
		}
		if !errors.Is(err, errno) {
			t.Errorf("%q: %v does not match %v", text, err, errno)
		}
	}
}

func TestCheckNewName(t *testing.T) {
	for _, name := range []string{"before-the-merge", "v2-release", "10 minutes", "a.b"} {
		if err := CheckNewName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"7", "10m", "1d", "today", "yesterday", "now", "v12", "2026-01-31T11:00:00Z", "2199-01-31T11:00:00Z", "README", "a/b", ""} {
		if err := CheckNewName(name); !errors.Is(err, ErrMalformed) {
			t.Errorf("%q passed, or failed for another reason: %v", name, err)
		}
	}
}

func FuzzParseMoment(f *testing.F) {
	for _, s := range []string{"@10m", "@1w2d", "@yesterday", "@v12", "@2026-01-31T11:00:00Z", "name", "", "@", "a/b", "@99999d", "@1e9h", "@0x1h", "@1d\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, err := ParseMoment(s, noon())
		if err != nil {
			var me *MomentError
			if !errors.As(err, &me) || !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrFuture) {
				t.Fatalf("%q: an error of another kind: %v", s, err)
			}
			return
		}
		set := 0
		for _, is := range []bool{m.Name != "", !m.Time.IsZero(), m.Seq != 0} {
			if is {
				set++
			}
		}
		if set != 1 || m.Time.After(noon()) || !m.Time.IsZero() && m.Time.Year() < firstYear {
			t.Fatalf("%q gave %+v", s, m)
		}
		if strings.ContainsAny(m.Name, "/@\n\x00") {
			t.Fatalf("%q is the name %q", s, m.Name)
		}
		again, err := ParseMoment(m.String(), noon())
		if err != nil || again.Name != m.Name || again.Seq != m.Seq || !again.Time.Equal(m.Time) {
			t.Fatalf("%q gave %+v, written as %q, and that %+v, %v", s, m, m, again, err)
		}
	})
}

// fakeJournal has a record each minute from noon on.
type fakeJournal struct{ records int }

func (f fakeJournal) Newest(context.Context) (catalog.Seq, error) { return catalog.Seq(f.records), nil }

func (f fakeJournal) SeqAt(_ context.Context, t time.Time) (catalog.Seq, error) {
	if t.Before(noon()) {
		return 0, nil
	}
	return min(catalog.Seq(t.Sub(noon())/time.Minute)+1, catalog.Seq(f.records)), nil
}

func (f fakeJournal) TimeOf(_ context.Context, s catalog.Seq) (time.Time, error) {
	if s < 1 || s > catalog.Seq(f.records) {
		return time.Time{}, fmt.Errorf("record %d: %w", s, catalog.ErrNotExist)
	}
	return noon().Add(time.Duration(s-1) * time.Minute), nil
}

type fakeRegistry map[string]catalog.Snapshot

func (f fakeRegistry) Snapshot(_ context.Context, name string) (catalog.Snapshot, error) {
	s, ok := f[name]
	if !ok {
		return s, fmt.Errorf("snapshot %s: %w", name, catalog.ErrNotExist)
	}
	return s, nil
}

func (f fakeRegistry) Snapshots(context.Context) ([]catalog.Snapshot, error) {
	return slices.Collect(maps.Values(f)), nil
}

func TestResolve(t *testing.T) {
	j, reg := fakeJournal{100}, fakeRegistry{"good": {Name: "good", Seq: 7}}
	now := noon().Add(time.Hour)
	for text, want := range map[string]catalog.Seq{
		"@60m": 1, "@59m30s": 1, "@59m": 2, "@0s": 61, "@v5": 5, "@v100": 100, "good": 7, "@2026-01-31T12:10:00Z": 11,
	} {
		m, err := ParseMoment(text, now)
		if err != nil {
			t.Fatal(err)
		}
		if seq, err := m.Resolve(t.Context(), j, reg); err != nil || seq != want {
			t.Errorf("%q: record %d, %v, want %d", text, seq, err, want)
		}
	}
	for text, want := range map[string]error{"@61m": ErrBefore, "@v101": ErrFuture, "bad": ErrNoSnapshot, "@1970-01-01T00:00:00Z": ErrBefore} {
		m, err := ParseMoment(text, now)
		if err != nil {
			t.Fatal(err)
		}
		if seq, err := m.Resolve(t.Context(), j, reg); !errors.Is(err, want) || !errors.Is(err, catalog.ErrNotExist) {
			t.Errorf("%q: record %d, %v, want %v", text, seq, err, want)
		}
	}
}
