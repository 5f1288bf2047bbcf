package volume

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestBackupsOfSettings(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s, err := Init(t.Context(), dir, InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if all := s.BackupsIn(dir); len(all) != 1 || all[0].Path != filepath.Join(dir, "backup") || all[0].Every.String() != "1d" || all[0].Keep != 7 {
		t.Errorf("a new store has %+v", all)
	}
	name := filepath.Join(dir, settingsFile)
	base, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"[[backup]]\npath = \"/mnt/disk\"\nevery = \"12h\"\nkeep = 3\nlevel = \"advanced\"": "",
		"[[backup]]\npath = \"/mnt/disk\"":                                                  "",
		"[[backup]]\npath = \"\"":                                                           "path",
		"[[backup]]\nevery = \"1h\"":                                                        "path",
		"[[backup]]\npath = \"backup/\"":                                                    "two backups",
		"[[backup]]\npath = \"/x\"\nevery = \"1s\"":                                         "shortest",
		"[[backup]]\npath = \"/x\"\nevery = \"-1h\"":                                        "length of time",
		"[[backup]]\npath = \"/x\"\nkeep = -1":                                              "kept",
		"[[backup]]\npath = \"/x\"\nlevel = \"extreme\"":                                    "level",
		"[[backup]]\npath = \"/" + strings.Repeat("long", 2000) + `"`:                       "path",
		strings.Repeat("[[backup]]\npath = \"/x\"\n", maxBackups):                           "places",
	} {
		if err := os.WriteFile(name, slices.Concat(base, []byte(text)), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := ReadSettings(dir)
		switch {
		case want == "" && (err != nil || len(s.Backups) != 2 || s.BackupsIn(dir)[1].Keep == 0):
			t.Errorf("%q: %+v, %v", text, s.Backups, err)
		case want != "" && (!errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), want)):
			t.Errorf("%q: %v, want a word about %q", text, err, want)
		}
	}
}
