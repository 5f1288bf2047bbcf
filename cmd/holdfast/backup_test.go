package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/blobstore"
	"holdfast/snapshots/backup"
)

// TestBackupAsAUser: a store is backed up while it is mounted, and when it is not; then it is lost, and its tree comes back from the backups alone.
func TestBackupAsAUser(t *testing.T) {
	p := newPlace(t)
	// The daemon makes by itself the backup that a new store asks for, when that is ten minutes old.
	settings := strings.Split(read(t, p.store+"/holdfast.toml"), "\n")
	for i, line := range settings {
		if strings.HasPrefix(line, "created = ") {
			settings[i] = "created = 2020-01-02T03:04:05Z"
		}
	}
	write(t, p.store+"/holdfast.toml", strings.Join(settings, "\n"))
	p.mount()
	until(t, "an automatic backup", func() bool {
		all, err := os.ReadDir(filepath.Join(p.store, "backup", "backups"))
		return err == nil && len(all) == 1
	})
	as(t, "agent-1", p.dir+"/tasks", `mkdir -p parser/deep; echo one > parser/1; echo two > parser/deep/2; ln parser/1 parser/1b; ln -s 1 parser/sym
		chmod 640 parser/1; touch -d 2020-01-02 parser/deep/2 parser/deep; head -c 300000 /dev/urandom > big; mkfifo pipe; echo x > ../logs/log`)
	place := filepath.Join(t.TempDir(), "place")
	before := listing(t, p.dir)
	var made []backup.Created
	made = append(made, lines[backup.Created](t, ok(t, "backup", "create", place, "--store", p.store, "--json"))...)
	if len(made) != 1 || made[0].Files != 4 || made[0].Copied == 0 || made[0].Place != place {
		t.Fatalf("%+v", made)
	}
	states := lines[backup.State](t, ok(t, "backup", "status", "--store", p.store, "--json"))
	if len(states) != 1 || states[0].Path != filepath.Join(p.store, "backup") || states[0].Newest == nil || states[0].LastError != "" || states[0].Level != "critical" {
		t.Errorf("%+v", states)
	}
	var side blobstore.Sidecar
	large, err := filepath.Glob(filepath.Join(p.store, "blobs/*/*.json"))
	if err != nil || len(large) != 1 || json.Unmarshal([]byte(read(t, large[0])), &side) != nil || side.BackupCount == 0 || side.LastBackup == nil {
		t.Errorf("the sidecars %v do not say that they are backed up: %+v, %v", large, side, err)
	}
	as(t, "agent-2", p.dir+"/tasks", "echo more > later")
	ok(t, "umount", p.dir)
	if again := lines[backup.Created](t, ok(t, "backup", "create", place, "--store", p.store, "--json")); len(again) != 1 || again[0].Copied != 1 {
		t.Errorf("%+v", again)
	}
	if out := ok(t, "backup", "create", "--store", p.store); !strings.Contains(out, p.store+"/backup") {
		t.Errorf("%s", out)
	}
	for _, dir := range []string{place, filepath.Join(p.store, "backup")} {
		if out := ok(t, "backup", "verify", dir); !strings.Contains(out, " 0 damaged") {
			t.Errorf("%s", out)
		}
	}
	// The store is lost.
	if err := os.RemoveAll(p.store); err != nil {
		t.Fatal(err)
	}
	if list := lines[backup.Info](t, ok(t, "backup", "list", place, "--json")); len(list) != 2 || list[0].Name != made[0].Name {
		t.Errorf("%+v", list)
	}
	out := filepath.Join(t.TempDir(), "out")
	ok(t, "backup", "restore", out, "--place", place, "--name", made[0].Name)
	wantText(t, "the tree of the first backup", noDirSizes(listing(t, out)), noDirSizes(before))
	ok(t, "backup", "restore", out+"2", "/tasks/later", "--place", place)
	wantText(t, "a file of the second", read(t, out+"2/later"), "more\n")

	fails(t, exitFailure, []string{"/tasks/none"}, "backup", "restore", out+"3", "/tasks/none", "--place", place)
	fails(t, exitFailure, []string{"backup list"}, "backup", "restore", out+"4", "--place", place, "--name", "yesterday")
	fails(t, exitFailure, []string{"files in it"}, "backup", "restore", out, "--place", place)
	fails(t, exitFailure, []string{out}, "backup", "list", out)
	fails(t, exitUsage, []string{"--help`"}, "backup", "copy")
	fails(t, exitUsage, []string{"--help`"}, "backup", "restore")
	fails(t, exitFailure, []string{"backup list"}, "backup", "rm", "../../x", "--place", place)

	// Damage is found, named, and told by the exit code.
	large, err = filepath.Glob(filepath.Join(place, "blobs/*/*.json"))
	if err != nil || len(large) != 1 {
		t.Fatal(large, err)
	}
	content := strings.TrimSuffix(large[0], ".json")
	b := []byte(read(t, content))
	b[123456] ^= 1
	write(t, content, string(b))
	if r := run(t, "backup", "verify", place); r.code != exitDamage || !strings.Contains(r.stdout, "/tasks/big") || !strings.Contains(r.stderr, "--recheck") {
		t.Errorf("verify: %+v", r)
	}
	fails(t, exitDamage, []string{"/tasks/big"}, "backup", "restore", out+"5", "--place", place)
	ok(t, "backup", "rm", made[0].Name, "--place", place)
	if list := lines[backup.Info](t, ok(t, "backup", "list", place, "--json")); len(list) != 1 {
		t.Errorf("%+v", list)
	}
}

// noDirSizes leaves out the sizes of directories, which each filesystem counts its own way.
func noDirSizes(text string) string {
	all := strings.Split(text, "\n")
	for i, l := range all {
		if f := strings.Fields(l); len(f) == 7 && f[1] == "d" {
			f[4], f[6] = "", ""
			all[i] = strings.Join(f, " ")
		}
	}
	return strings.Join(all, "\n")
}
