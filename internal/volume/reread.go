package volume

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// fileState tells whether a file is the one that it was.
type fileState struct {
	ino          uint64
	size         int64
	mtime, ctime unix.Timespec
}

// rereadSettings reads holdfast.toml again when it has changed, and takes over what may change while the store is open. One that is wrong is reported, once, and changes nothing.
// settingsMu is held.
func (v *Volume) rereadSettings() {
	var st unix.Stat_t
	if unix.Stat(filepath.Join(v.dir, settingsFile), &st) != nil {
		return // it is being made, or has gone: what was read counts
	}
	now := fileState{st.Ino, st.Size, st.Mtim, st.Ctim}
	if now == v.settingsFile {
		return
	}
	v.settingsFile = now
	s, err := ReadSettings(v.dir)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, ErrNoStore) {
		return
	}
	if err == nil && s.StoreID != v.settings.StoreID {
		err = ErrFormat
	}
	if err != nil {
		v.log.Error("holdfast.toml was changed, and cannot be used: what it said before still holds", "error", err)
		return
	}
	v.settings.Retention, v.settings.Backups, v.settings.Recovery = s.Retention, s.Backups, s.Recovery
}
