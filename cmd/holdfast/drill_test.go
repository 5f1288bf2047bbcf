package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/integrity/drill"
)

// TestDrillAsAUser drills a copy of a real store, which stays as it is, and leaves nothing behind.
func TestDrillAsAUser(t *testing.T) {
	p := newPlace(t)
	p.mount()
	as(t, "agent-1", p.dir, "echo plan > tasks/plan.md; seq 30000 > logs/numbers")
	ok(t, "umount", p.dir)
	scratch := t.TempDir()
	t.Setenv("TMPDIR", scratch)
	r := run(t, "drill", p.store, "--damages", "6", "--seed", "5", "--json")
	var rep drill.Report
	if err := json.Unmarshal([]byte(r.stdout), &rep); err != nil || r.code != 0 || rep.Seed != 5 || rep.Total.Damages < 6 || rep.Source == "" || rep.Total.Found != rep.Total.Damages {
		t.Errorf("%+v, %+v, %v", r, rep, err)
	}
	r = run(t, "drill", "--damages", "2", "--seed", "5")
	if r.code != 0 || !strings.HasPrefix(r.stdout, "| damage") || !strings.Contains(r.stdout, "Seed 5") {
		t.Errorf("%+v", r)
	}
	if r := run(t, "drill", "--damages", "0"); r.code != exitUsage {
		t.Errorf("%+v", r)
	}
	if left, err := filepath.Glob(filepath.Join(scratch, "*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
	if _, err := os.Stat(filepath.Join(p.store, "catalog.db.sums")); err != nil {
		t.Errorf("the store was written to: %v", err)
	}
}
