package volume

import (
	"context"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"holdfast/catalog"
	"holdfast/internal/durable"
)

// What may happen when files of a directory are damaged, no copy is left, and an earlier version is intact.
const (
	RollbackAutomatic = "automatic" // the earlier version becomes the newest one
	RollbackAsk       = "ask"       // reads fail until a person has decided
)

// maxRollback bounds the directories with a policy.
const maxRollback = 1000

// RollbackPolicy says what may happen without asking in a directory and what is below it.
type RollbackPolicy struct {
	Path     string `toml:"path" json:"path"`
	Rollback string `toml:"rollback" json:"rollback"` // RollbackAutomatic or RollbackAsk
}

func validateRollback(list []RollbackPolicy) error {
	if len(list) > maxRollback {
		return fmt.Errorf("%w: %d directories have a policy of recovery, at most %d can", ErrFormat, len(list), maxRollback)
	}
	seen := make(map[string]bool)
	for _, r := range list {
		if len(r.Path) > catalog.MaxPath || r.Path != path.Clean("/"+r.Path) || strings.ContainsRune(r.Path, 0) || seen[r.Path] {
			return fmt.Errorf("%w: recovery of %q: the path must begin with /, be as short as possible, and be there once", ErrFormat, r.Path[:min(len(r.Path), 200)])
		}
		if r.Rollback != RollbackAutomatic && r.Rollback != RollbackAsk {
			return fmt.Errorf("%w: recovery of %s: rollback is %q, not automatic or ask", ErrFormat, r.Path, r.Rollback)
		}
		seen[r.Path] = true
	}
	return nil
}

// RollbackOf says which policy holds for a cleaned absolute path: that of the nearest directory above it that has one; else automatic for what is in /status
// and /logs, whose next version comes soon, and ask elsewhere.
func (s Settings) RollbackOf(p string) string {
	list := append([]RollbackPolicy{{"/", RollbackAsk}, {"/status", RollbackAutomatic}, {"/logs", RollbackAutomatic}}, s.Recovery...)
	best, mode := 0, RollbackAsk
	for _, r := range list {
		if (r.Path == "/" || p == r.Path || strings.HasPrefix(p, r.Path+"/")) && len(r.Path) >= best {
			best, mode = len(r.Path), r.Rollback
		}
	}
	return mode
}

// SetRollback sets the policy of a directory; "" takes it away. holdfast.toml is replaced atomically; comments in it are lost.
func (v *Volume) SetRollback(_ context.Context, r RollbackPolicy) error {
	if v.readOnly {
		return catalog.ErrReadOnly
	}
	r.Path = path.Clean("/" + r.Path)
	v.settingsMu.Lock()
	defer v.settingsMu.Unlock()
	s, err := ReadSettings(v.dir) // somebody may have edited it
	if err != nil {
		return err
	}
	s.Recovery = slices.DeleteFunc(s.Recovery, func(x RollbackPolicy) bool { return x.Path == r.Path })
	if r.Rollback != "" {
		s.Recovery = append(s.Recovery, r)
	}
	if err := s.validate(); err != nil {
		return fmt.Errorf("%w: %w", catalog.ErrInvalid, err)
	}
	text, err := toml.Marshal(s)
	if err != nil {
		return err
	}
	if err := durable.WriteFile(filepath.Join(v.dir, settingsFile), text, 0o600); err != nil {
		return err
	}
	v.settings = s
	return nil
}
