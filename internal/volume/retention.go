package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2"
	"golang.org/x/sys/unix"

	"holdfast/catalog"
	"holdfast/internal/durable"
)

const (
	day     = 24 * time.Hour
	maxSpan = 100 * 365 * day
	// maxRetention bounds the directories with a policy of their own.
	maxRetention = 256
)

// Span is a length of time as settings state it: "24h", "7d", "2w", "1y" and sums of those, "1d12h".
type Span time.Duration

// ParseSpan reads a Span: whole years (of 365 days), weeks and days, then what time.ParseDuration reads, each of them optional but not all. It is not
// negative and at most 100 years.
func ParseSpan(text string) (Span, error) {
	bad := fmt.Errorf("%w: %q is no length of time; write 24h, 7d, 2w or 1y", catalog.ErrInvalid, text[:min(len(text), 64)])
	if text == "0" {
		return 0, nil
	}
	rest, total := text, time.Duration(0)
	for _, unit := range []struct {
		suffix string
		length time.Duration
	}{{"y", 365 * day}, {"w", 7 * day}, {"d", day}} {
		head, tail, ok := strings.Cut(rest, unit.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(head, 10, 16)
		if err != nil || time.Duration(n) > maxSpan/unit.length {
			return 0, bad
		}
		total, rest = total+time.Duration(n)*unit.length, tail
	}
	if rest != "" {
		d, err := time.ParseDuration(rest)
		if err != nil || rest[0] < '0' || rest[0] > '9' || d > maxSpan {
			return 0, bad
		}
		total += d
	}
	if text == "" || total > maxSpan {
		return 0, bad
	}
	return Span(total), nil
}

// String returns a text that ParseSpan reads.
func (s Span) String() string {
	d := time.Duration(s)
	switch {
	case d == 0:
		return "0"
	case d%(365*day) == 0:
		return fmt.Sprintf("%dy", d/(365*day))
	case d%day == 0:
		return fmt.Sprintf("%dd", d/day)
	case d%time.Hour == 0:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d%time.Minute == 0:
		return fmt.Sprintf("%dm", d/time.Minute)
	}
	return d.String()
}

// MarshalText implements encoding.TextMarshaler.
func (s Span) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Span) UnmarshalText(text []byte) (err error) {
	*s, err = ParseSpan(string(text))
	return err
}

// Bytes is an amount as settings state it: a number of bytes, or one with the unit KiB, MiB, GiB or TiB.
type Bytes int64

// ParseBytes reads an amount that is not negative.
func ParseBytes(text string) (Bytes, error) {
	digits, shift := text, 0
	for i, unit := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if d, ok := strings.CutSuffix(text, unit); ok {
			digits, shift = strings.TrimSuffix(d, " "), 10*(i+1)
		}
	}
	n, err := strconv.ParseUint(digits, 10, 63)
	if err != nil || n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("%w: %q is no amount of bytes; write 1048576, 512MiB or 10GiB", catalog.ErrInvalid, text[:min(len(text), 64)])
	}
	return Bytes(n << shift), nil
}

// String returns a text that ParseBytes reads.
func (b Bytes) String() string {
	for _, u := range []struct {
		name  string
		shift int
	}{{"TiB", 40}, {"GiB", 30}, {"MiB", 20}, {"KiB", 10}} {
		if b > 0 && b&(1<<u.shift-1) == 0 {
			return strconv.FormatInt(int64(b>>u.shift), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(b), 10)
}

// MarshalText implements encoding.TextMarshaler.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (b *Bytes) UnmarshalText(text []byte) (err error) {
	*b, err = ParseBytes(string(text))
	return err
}

// Retention is what one [[retention]] of holdfast.toml says of a directory and what is below it. What it leaves out is as above that directory.
type Retention struct {
	Path        string `toml:"path" json:"path"`                                     // from the root of the mount; "/" for all of it
	KeepAll     *Span  `toml:"keep_all,omitempty" json:"keep_all,omitempty"`         // every moment of so long
	Hourly      *Span  `toml:"hourly,omitempty" json:"hourly,omitempty"`             // then the last of each hour, until so old
	Daily       *Span  `toml:"daily,omitempty" json:"daily,omitempty"`               // then the last of each day
	Weekly      *Span  `toml:"weekly,omitempty" json:"weekly,omitempty"`             // then the last of each week
	MaxVersions *int   `toml:"max_versions,omitempty" json:"max_versions,omitempty"` // of one file; 0: no bound
	MaxBytes    *Bytes `toml:"max_bytes,omitempty" json:"max_bytes,omitempty"`       // that only the past has; 0: no bound
}

func (r *Retention) validate() error {
	if len(r.Path) > catalog.MaxPath || r.Path != path.Clean("/"+r.Path) || strings.ContainsRune(r.Path, 0) || !utf8.ValidString(r.Path) {
		return fmt.Errorf("retention of %q: the path must begin with /, be as short as possible, and be UTF-8", r.Path[:min(len(r.Path), 200)])
	}
	if r.MaxVersions != nil && (*r.MaxVersions < 0 || *r.MaxVersions > math.MaxInt32) {
		return fmt.Errorf("retention of %s: max_versions is %d", r.Path, *r.MaxVersions)
	}
	for _, s := range []*Span{r.KeepAll, r.Hourly, r.Daily, r.Weekly} {
		if s != nil && (*s < 0 || *s > Span(maxSpan)) {
			return fmt.Errorf("retention of %s: a length of time is out of range", r.Path)
		}
	}
	if r.MaxBytes != nil && *r.MaxBytes < 0 {
		return fmt.Errorf("retention of %s: max_bytes is negative", r.Path)
	}
	return nil
}

// Own returns the keys of holdfast.toml that r sets.
func (r *Retention) Own() []string {
	var out []string
	for _, k := range []struct {
		name string
		set  bool
	}{{"keep_all", r.KeepAll != nil}, {"hourly", r.Hourly != nil}, {"daily", r.Daily != nil}, {"weekly", r.Weekly != nil},
		{"max_versions", r.MaxVersions != nil}, {"max_bytes", r.MaxBytes != nil}} {
		if k.set {
			out = append(out, k.name)
		}
	}
	return out
}

func validateRetention(list []Retention) error {
	if len(list) > maxRetention {
		return fmt.Errorf("%w: %d directories have a retention of their own, at most %d can", ErrFormat, len(list), maxRetention)
	}
	seen := make(map[string]bool)
	for i := range list {
		if err := list[i].validate(); err != nil {
			return fmt.Errorf("%w: %w", ErrFormat, err)
		}
		if seen[list[i].Path] {
			return fmt.Errorf("%w: there are two retentions of %s", ErrFormat, list[i].Path)
		}
		seen[list[i].Path] = true
	}
	return nil
}

// over puts what r says over a policy.
func (r *Retention) over(p catalog.Policy) catalog.Policy {
	p.Path, p.Dir = r.Path, 0
	for _, f := range []struct {
		from *Span
		to   *time.Duration
	}{{r.KeepAll, &p.KeepAll}, {r.Hourly, &p.Hourly}, {r.Daily, &p.Daily}, {r.Weekly, &p.Weekly}} {
		if f.from != nil {
			*f.to = time.Duration(*f.from)
		}
	}
	if r.MaxVersions != nil {
		p.MaxVersions = *r.MaxVersions
	}
	if r.MaxBytes != nil {
		p.MaxBytes = int64(*r.MaxBytes)
	}
	return p
}

// policies returns what the settings say of each directory with a retention, the root first and each behind those above it; Dir is not filled but for
// the root. The bound on bytes is for a directory and what is below it together, so it is not handed down.
func (s Settings) policies() []catalog.Policy {
	list := slices.Clone(s.Retention)
	slices.SortFunc(list, func(a, b Retention) int { return cmp.Compare(a.Path, b.Path) })
	out := []catalog.Policy{catalog.DefaultPolicy()}
	for i := range list {
		r := &list[i]
		if r.Path == "/" {
			out[0] = r.over(out[0])
			out[0].Dir = catalog.Root
			continue
		}
		above := out[0]
		for _, p := range out {
			if p.Path != "/" && strings.HasPrefix(r.Path, p.Path+"/") {
				above = p // the longest comes last
			}
		}
		above.MaxBytes = 0
		out = append(out, r.over(above))
	}
	return out
}

// Policies returns the retention policies in force: that of the root first, and those of directories that exist.
func (v *Volume) Policies(ctx context.Context) ([]catalog.Policy, error) {
	list, err := v.placed(ctx, v.Settings())
	return slices.DeleteFunc(list, func(p catalog.Policy) bool { return p.Dir == 0 }), err
}

// placed returns the policies of settings, with Dir 0 where there is no such directory.
func (v *Volume) placed(ctx context.Context, s Settings) ([]catalog.Policy, error) {
	list := s.policies()
	for i := range list[1:] {
		p := &list[i+1]
		row, err := v.Resolve(ctx, p.Path)
		switch {
		case err == nil && row.Mode&unix.S_IFMT == unix.S_IFDIR:
			p.Dir = row.Ino
		case err != nil && !errors.Is(err, catalog.ErrNotExist) && !errors.Is(err, catalog.ErrNotDir):
			return nil, err
		}
	}
	return list, nil
}

// RetentionState is a policy and what has come of it.
type RetentionState struct {
	catalog.Policy
	Own  []string      // the keys of holdfast.toml that are set for this directory
	Kept []catalog.Seq // the moments before the horizon that are kept, and at the end the horizon; none before anything was thinned
}

// Retention returns the policies of holdfast.toml, that of the root first and each behind those above it; Dir is 0 where there is no such directory now.
func (v *Volume) Retention(ctx context.Context) ([]RetentionState, error) {
	return v.retentionOf(ctx, v.Settings())
}

func (v *Volume) retentionOf(ctx context.Context, s Settings) ([]RetentionState, error) {
	list, err := v.placed(ctx, s)
	if err != nil {
		return nil, err
	}
	out := make([]RetentionState, len(list))
	for i := range list {
		out[i].Policy = list[i]
		if k := slices.IndexFunc(s.Retention, func(r Retention) bool { return r.Path == list[i].Path }); k >= 0 {
			out[i].Own = s.Retention[k].Own()
		}
		if out[i].Kept, err = v.cat.KeptMoments(ctx, list[i].Path); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// RetentionChange says what SetRetention does.
type RetentionChange struct {
	Remove bool // what is set for the path is taken away
	DryRun bool // nothing is changed
}

// SetRetention puts r in the place of what holdfast.toml says of r.Path, which must be a directory, or takes it away. It holds from the
// next thinning on. holdfast.toml is replaced atomically; comments in it are lost. What is then in force is returned.
func (v *Volume) SetRetention(ctx context.Context, r Retention, change RetentionChange) ([]RetentionState, error) {
	if v.readOnly && !change.DryRun {
		return nil, catalog.ErrReadOnly
	}
	r.Path = path.Clean("/" + r.Path)
	if !change.Remove {
		row, err := v.Resolve(ctx, r.Path)
		if err == nil && row.Mode&unix.S_IFMT != unix.S_IFDIR {
			err = catalog.ErrNotDir
		}
		if err != nil {
			return nil, fmt.Errorf("retention of %s: %w", r.Path, err)
		}
	}
	v.settingsMu.Lock()
	defer v.settingsMu.Unlock()
	s, err := ReadSettings(v.dir) // somebody may have edited it
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(s.Retention, func(x Retention) bool { return x.Path == r.Path })
	switch {
	case change.Remove && i < 0:
		return nil, fmt.Errorf("%s: %w: it has no retention of its own", r.Path, catalog.ErrNotExist)
	case change.Remove:
		s.Retention = slices.Delete(s.Retention, i, i+1)
	case i >= 0:
		s.Retention[i] = r
	default:
		s.Retention = append(s.Retention, r)
	}
	if err := s.validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", catalog.ErrInvalid, err)
	}
	if change.DryRun {
		return v.retentionOf(ctx, s)
	}
	text, err := toml.Marshal(s)
	if err != nil {
		return nil, err
	}
	if err := durable.WriteFile(filepath.Join(v.dir, settingsFile), text, 0o600); err != nil {
		return nil, err
	}
	v.settings = s
	return v.retentionOf(ctx, s)
}

// HistoryBytes is catalog.HistoryBytes.
func (v *Volume) HistoryBytes(ctx context.Context) (int64, error) { return v.cat.HistoryBytes(ctx) }
