package main

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/integrity"
)

// sh runs a script with a place's mount as its directory and returns what it printed.
func sh(t testing.TB, dir, script string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-ec", script)
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	return string(out)
}

// blobFile is the file of the only large blob of a store in the mode hybrid or file.
func blobFile(t testing.TB, store string) string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(store, "blobs/??/????????????????????????????????????????????????????????????????"))
	if err != nil || len(all) != 1 {
		t.Fatalf("large blobs: %v, %v", all, err)
	}
	return all[0]
}

// flip changes a byte of a file in place.
func flip(t testing.TB, name string, off int64) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x40
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

// TestIntegrityDirectoryAsAUser reads and writes .integrity with the programs that people have.
func TestIntegrityDirectoryAsAUser(t *testing.T) {
	p := newPlace(t)
	p.mount()
	as(t, "agent-1", p.dir, "echo plan > tasks/plan.md; echo more >> tasks/plan.md; head -c 300000 /dev/urandom > logs/noise")
	dir := p.dir + "/.integrity"
	if got := sh(t, dir, "ls"); got != "README\naudit.jsonl\ncheckpoint\nchecks\nevents\nfailures\nmanual\nproof\nrecoveries.jsonl\nscrub\nstatus.json\nsummary\n" {
		t.Errorf("ls: %q", got)
	}
	if got := sh(t, dir, "head -n 1 summary"); !strings.HasPrefix(got, "healthy") {
		t.Errorf("summary: %q", got)
	}
	var s integrity.Status
	if err := json.Unmarshal([]byte(sh(t, dir, "cat status.json")), &s); err != nil || !s.Healthy {
		t.Errorf("status.json: %+v, %v", s, err)
	}
	// The five checks, by cat, grep, wc and cp.
	if got := sh(t, dir, "grep -c check_type checks/tasks/plan.md; cat checks/tasks/plan.md | wc -l; cp checks/tasks/plan.md ../tasks/copy; wc -l < ../tasks/copy"); len(strings.Fields(got)) != 3 ||
		!strings.HasPrefix(got, "5\n") {
		t.Errorf("checks: %q", got)
	}
	// The audit trail has a size, and an end that can be read without the rest.
	if got := sh(t, dir, `tail -n 3 audit.jsonl | grep -c '"seq"'; test "$(wc -c < audit.jsonl)" = "$(cat audit.jsonl | wc -c)" && echo same`); got != "3\nsame\n" {
		t.Errorf("audit.jsonl: %q", got)
	}
	if got := sh(t, dir, `grep '"path":"/tasks/plan.md"' audit.jsonl | grep -c '"agent":"agent-1"'`); got == "0\n" {
		t.Errorf("the changes of agent-1 are not there")
	}
	// tail -f sees what comes.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	follow := exec.CommandContext(ctx, "sh", "-c", "tail -n 0 -f audit.jsonl | grep -m 1 later")
	follow.Dir, follow.SysProcAttr, follow.Cancel = dir, &unix.SysProcAttr{Setpgid: true}, func() error { return unix.Kill(-follow.Process.Pid, unix.SIGKILL) }
	got := make(chan string, 1)
	go func() {
		out, err := follow.Output()
		if err != nil {
			out = append(out, err.Error()...)
		}
		got <- string(out)
	}()
	line := ""
	until(t, "tail -f to show a change", func() bool {
		sh(t, p.dir, "date +%N > tasks/later; date > tasks/later")
		select {
		case line = <-got:
			return true
		default:
			return false
		}
	})
	if !strings.Contains(line, `"path":"/tasks/later"`) {
		t.Errorf("tail -f: %q", line)
	}
	// The proof and the checkpoint verify without the store.
	sh(t, dir, "cp checkpoint "+filepath.Dir(p.store)+"/checkpoint; grep -q . proof/tasks/plan.md")
	ok(t, "audit", "verify", "--since-checkpoint", filepath.Dir(p.store)+"/checkpoint", "--store", p.store)
	// The scrub, by echo.
	sh(t, dir, "echo start > scrub")
	until(t, "the scrub to have been everywhere", func() bool {
		var st integrity.ScrubStatus
		return json.Unmarshal([]byte(sh(t, dir, "cat scrub")), &st) == nil && !st.LastCycle.IsZero()
	})
	if out, err := exec.CommandContext(t.Context(), "sh", "-c", "echo dance > '"+dir+"/scrub'").CombinedOutput(); err == nil {
		t.Errorf("an unknown word is taken: %s", out)
	}
	// It is nobody's to change.
	for _, script := range []string{"touch x", "rm summary", "mkdir d", "echo x > summary", "mv summary s", "ln summary s", "chmod 777 summary"} {
		if out, err := exec.CommandContext(t.Context(), "sh", "-c", "cd '"+dir+"' && "+script).CombinedOutput(); err == nil {
			t.Errorf("%s: %s", script, out)
		}
	}
	// Who waits for events can be interrupted, and does not keep the mount.
	wait := exec.CommandContext(t.Context(), "cat", dir+"/events")
	if err := wait.Start(); err != nil {
		t.Fatal(err)
	}
	until(t, "cat to wait", func() bool {
		file, err := os.Readlink("/proc/" + itoa(wait.Process.Pid) + "/fd/3")
		stat, serr := os.ReadFile("/proc/" + itoa(wait.Process.Pid) + "/stat")
		return err == nil && serr == nil && file == dir+"/events" && strings.Contains(string(stat), ") S ")
	})
	if err := wait.Process.Signal(unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := wait.Wait(); err == nil {
		t.Error("cat ended by itself")
	}
	ok(t, "umount", p.dir)
}

func itoa(n int) string { b, _ := json.Marshal(n); return string(b) }

// TestDamageAsAUser damages a store behind its mount's back, at each level, and looks at what a user sees: healed bytes, or an error with a way on.
func TestDamageAsAUser(t *testing.T) {
	p := newPlace(t)
	p.mount()
	as(t, "agent-1", p.dir, "head -c 700000 /dev/urandom > logs/noise; sha256sum < logs/noise > status/sum; echo small > tasks/small")
	if got := ok(t, "level", p.dir+"/logs/noise"); !strings.Contains(got, "advanced (inherited)") {
		t.Errorf("level: %s", got)
	}
	blob := ""
	until(t, "parity", func() bool {
		blob = blobFile(t, p.store)
		_, err := os.Stat(blob + ".par")
		return err == nil
	})
	want := sh(t, p.dir, "cat status/sum")
	ok(t, "check", "--store", p.store)
	ok(t, "umount", p.dir)
	for off := int64(1000); off < 700000; off += 90000 {
		flip(t, blob, off)
	}
	p.mount()
	if got := sh(t, p.dir, "sha256sum < logs/noise"); got != want {
		t.Errorf("a damaged file of level advanced reads as %s, want %s", got, want)
	}
	if got := sh(t, p.dir, "cat .integrity/recoveries.jsonl"); !strings.Contains(got, `"CHECKSUM_MATCH"`) || !strings.Contains(got, "/logs/noise") {
		t.Errorf("recoveries: %s", got)
	}
	if got := sh(t, p.dir, "ls .integrity/failures | wc -l"); got == "0\n" {
		t.Error("no failure is recorded")
	}
	if r := run(t, "check", p.dir+"/logs", "--json"); r.code != exitOK {
		t.Errorf("after healing: %+v", r)
	}

	// Without parity, copies and backups there is nothing to heal from: the read fails, the check says so, and a good copy completes it.
	good := filepath.Join(filepath.Dir(p.store), "good")
	sh(t, p.dir, "head -c 500000 /dev/urandom > status/lonely; cp status/lonely '"+good+"'; rm logs/noise")
	lonely := ""
	until(t, "the blob", func() bool {
		sum := strings.Fields(sh(t, p.dir, "sha256sum '"+good+"'"))[0]
		lonely = filepath.Join(p.store, "blobs", sum[:2], sum)
		_, err := os.Stat(lonely)
		return err == nil
	})
	ok(t, "umount", p.dir)
	for _, off := range []int64{0, 200000, 400000} {
		flip(t, lonely, off)
	}
	// status rolls back by itself, but there is no earlier version.
	r := run(t, "check", "--store", p.store)
	if r.code != exitDamage || !strings.Contains(r.stdout, "/status/lonely") {
		t.Errorf("check of a damaged store: %+v", r)
	}
	p.mount()
	if out, err := exec.CommandContext(t.Context(), "cat", p.dir+"/status/lonely").CombinedOutput(); err == nil || !strings.Contains(string(out), "Input/output error") {
		t.Errorf("reading what cannot be healed: %v", err)
	}
	if r := run(t, "monitor", "status", "--store", p.store); r.code != exitDamage || !strings.HasPrefix(r.stdout, "not healthy") {
		t.Errorf("monitor status: %+v", r)
	}
	hash := filepath.Base(lonely)
	if got := sh(t, p.dir, "cat .integrity/manual/"+hash); !strings.Contains(got, "/status/lonely") || !strings.Contains(got, "cp ") {
		t.Errorf("the page: %s", got)
	}
	if r := run(t, "recover", "--store", p.store); r.code != exitDamage || !strings.Contains(r.stdout, hash) {
		t.Errorf("recover: %+v", r)
	}
	if out, err := exec.CommandContext(t.Context(), "cp", "/etc/passwd", p.dir+"/.integrity/manual/"+hash).CombinedOutput(); err == nil {
		t.Errorf("another file is taken for it: %s", out)
	}
	sh(t, p.dir, "cp '"+good+"' .integrity/manual/"+hash+"; cmp '"+good+"' status/lonely")
	ok(t, "monitor", "status", "--store", p.store)
	ok(t, "scrub", "start", "--wait", "--store", p.store)
	if st := statusOf(t, p.store); st.Health == nil || !st.Health.Healthy || st.Health.LastCheck == nil || time.Since(*st.Health.LastCheck) > time.Hour {
		t.Errorf("status: %+v", st.Health)
	}
	if got := ok(t, "recover", "--store", p.store); !strings.Contains(got, "nothing is damaged") {
		t.Errorf("recover: %s", got)
	}
	ok(t, "umount", p.dir)
	ok(t, "check", "--store", p.store)
}
