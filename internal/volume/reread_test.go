package volume

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// TestSettingsAreReadAgain edits holdfast.toml while the store is open.
func TestSettingsAreReadAgain(t *testing.T) {
	v := openStore(t, newStore(t, StorageHybrid))
	defer closeStore(t, v)
	name := filepath.Join(v.Dir(), settingsFile)
	before, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	edit := func(more string) {
		t.Helper()
		if err := os.WriteFile(name, append(bytes.Clone(before), more...), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	edit("\n[[backup]]\npath = '/elsewhere'\nevery = '1h'\n\n[[recovery]]\npath = '/config'\nrollback = 'automatic'\n")
	if list := v.Backups(); len(list) != 2 || list[1].Path != "/elsewhere" || v.Settings().RollbackOf("/config/x") != RollbackAutomatic {
		t.Errorf("what was added does not count: %+v", list)
	}
	edit("\n[[backup]]\npath = ''\n")
	if list := v.Backups(); len(list) != 2 {
		t.Errorf("settings that are wrong count: %+v", list)
	}
	edit("")
	if list := v.Backups(); len(list) != 1 || v.Settings().RollbackOf("/config/x") != RollbackAsk {
		t.Errorf("what was taken away counts still: %+v", list)
	}
}
