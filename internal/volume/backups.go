package volume

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"holdfast/catalog"
)

const (
	maxBackups = 16
	minEvery   = time.Minute
)

// Backup is one [[backup]] of holdfast.toml: a place that gets backups by itself.
type Backup struct {
	Path  string `toml:"path" json:"path"`                       // a directory; relative to the store's
	Every Span   `toml:"every,omitempty" json:"every"`           // 0: only when asked for
	Keep  int    `toml:"keep,omitempty" json:"keep"`             // how many backups stay; 0: DefaultKeep
	Level string `toml:"level,omitempty" json:"level,omitempty"` // files of this level or a higher one; "": all
}

// DefaultKeep is how many backups stay in a place that does not say so.
const DefaultKeep = 7

// defaultBackup is what a new store has: what is critical, once a day, for a week.
func defaultBackup() Backup {
	return Backup{Path: "backup", Every: Span(day), Keep: DefaultKeep, Level: catalog.LevelCritical}
}

// In returns b with an absolute path, as seen from the store in dir, and without zeros that stand for something.
func (b Backup) In(dir string) Backup {
	if !filepath.IsAbs(b.Path) {
		b.Path = filepath.Join(dir, b.Path)
	}
	if b.Keep == 0 {
		b.Keep = DefaultKeep
	}
	return b
}

func (b *Backup) validate() error {
	if b.Path == "" || len(b.Path) > catalog.MaxPath || strings.ContainsRune(b.Path, 0) {
		return fmt.Errorf("a backup has the path %q", b.Path[:min(len(b.Path), 200)])
	}
	if b.Every != 0 && time.Duration(b.Every) < minEvery || b.Every < 0 || b.Every > Span(maxSpan) {
		return fmt.Errorf("the backup in %s is to be made every %s; the shortest is %s", b.Path, b.Every, Span(minEvery))
	}
	if b.Keep < 0 || b.Keep > 1<<16 {
		return fmt.Errorf("of the backups in %s %d are to be kept", b.Path, b.Keep)
	}
	switch b.Level {
	case "", catalog.LevelBasic, catalog.LevelAdvanced, catalog.LevelCritical:
		return nil
	}
	return fmt.Errorf("the level of the backup in %s is %q, and not basic, advanced or critical", b.Path, b.Level)
}

func validateBackups(list []Backup) error {
	if len(list) > maxBackups {
		return fmt.Errorf("%w: there are %d places for backups, at most %d are possible", ErrFormat, len(list), maxBackups)
	}
	seen := make(map[string]bool)
	for i := range list {
		if err := list[i].validate(); err != nil {
			return fmt.Errorf("%w: %w", ErrFormat, err)
		}
		if p := filepath.Clean(list[i].Path); seen[p] {
			return fmt.Errorf("%w: there are two backups in %s", ErrFormat, p)
		} else {
			seen[p] = true
		}
	}
	return nil
}

// Backups returns the places of holdfast.toml, with absolute paths.
func (v *Volume) Backups() []Backup { return v.Settings().BackupsIn(v.dir) }

// BackupsIn returns the places as seen from the store in dir, with absolute paths.
func (s Settings) BackupsIn(dir string) []Backup {
	out := make([]Backup, len(s.Backups))
	for i, b := range s.Backups {
		out[i] = b.In(dir)
	}
	return out
}
