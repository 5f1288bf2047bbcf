package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/control"
	"holdfast/snapshots"
)

// as runs a shell script, in a process of its own, as an agent.
func as(t testing.TB, agent, dir, script string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-ec", script)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "HOLDFAST_AGENT="+agent)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %s: %v\n%s", agent, script, err, out)
	}
}

// listing is what a person sees of a tree: names, types, modes, owners, sizes, times, contents.
func listing(t testing.TB, dir string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-ec", `find . -printf '%p %y %m %U:%G %s %T@ %n %l\n' | sort; find . -type f | sort | xargs -r sha256sum`)
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// instant is a time, in the form of --since, that lies between what was done before and what is done after.
func instant(t testing.TB, p place) string {
	t.Helper()
	seq := statusOf(t, p.store).JournalSeq
	all := lines[snapshots.Change](t, ok(t, "log", "--since", "1h", "--json", p.store+":/"))
	at := all[len(all)-1]
	if uint64(at.Seq) > seq {
		t.Fatalf("the log ends with %d, the journal with %d", at.Seq, seq)
	}
	return time.Now().UTC().Format(time.RFC3339Nano)
}

// TestUndoAsAUser: one agent runs amok while another works; it is undone without stopping the other, and the undo is undone.
func TestUndoAsAUser(t *testing.T) {
	p := newPlace(t)
	p.mount()
	as(t, "agent-1", p.dir+"/tasks", `mkdir -p parser/deep; echo one > parser/1; echo two > parser/deep/2; ln parser/1 parser/1b; ln -s 1 parser/sym
		chmod 640 parser/1; touch -d 2020-01-02 parser/deep/2 parser/deep; echo plan > plan; head -c 300000 /dev/urandom > big`)
	before := listing(t, p.dir+"/tasks")
	since := instant(t, p)
	stop := make(chan struct{})
	worked := make(chan error, 1)
	go func() { // the other goes on working, in another directory, and reads what it wrote
		for i := 0; ; i++ {
			select {
			case <-stop:
				worked <- nil
				return
			default:
			}
			name := fmt.Sprintf("%s/logs/%d", p.dir, i%20)
			text := fmt.Sprint(i)
			err := os.WriteFile(name, []byte(text), 0o644)
			if got, e := os.ReadFile(name); err == nil && (e != nil || string(got) != text) {
				err = fmt.Errorf("%s holds %q, %v", name, got, e)
			}
			if err != nil {
				worked <- err
				return
			}
		}
	}()
	as(t, "agent-2", p.dir+"/tasks", `rm -rf parser; echo junk > plan; mv big small; mkdir mess; echo x > mess/x; truncate -s 10 small`)
	wild := listing(t, p.dir+"/tasks")
	if log := ok(t, "log", "--agent", "agent-2", "--since", "1h", p.dir); !strings.Contains(log, "/tasks/parser/deep/2") || strings.Contains(log, "agent-1") {
		t.Errorf("log --agent:\n%s", log)
	}
	ok(t, "undo", "--agent", "agent-2", "--since", since, "--dry-run", p.dir)
	wantText(t, "after a dry run", listing(t, p.dir+"/tasks"), wild)
	out := ok(t, "undo", "--agent", "agent-2", "--since", since, p.dir)
	if got := listing(t, p.dir+"/tasks"); got != before {
		t.Errorf("after the undo (%s):\n%s\nwant\n%s", out, got, before)
	}
	if !strings.Contains(out, "/tasks/parser/deep/2  restored") || !strings.Contains(out, "0 left") {
		t.Errorf("undo says\n%s", out)
	}
	// The commands run as the agent "tester".
	ok(t, "undo", "--agent", "tester", "--since", since, p.dir)
	if got := listing(t, p.dir+"/tasks"); got != wild {
		t.Errorf("after the undo was undone:\n%s\nwant\n%s", got, wild)
	}
	// A restored directory can be worked in.
	ok(t, "undo", "--agent", "tester", "--since", since, p.dir)
	ok(t, "restore", p.dir+"/tasks", "--at", since)
	as(t, "agent-1", p.dir+"/tasks", `echo more >> parser/1; mkdir parser/deep/er; mv parser parser2`)
	close(stop)
	if err := <-worked; err != nil {
		t.Error(err)
	}
	ok(t, "umount", p.dir)
	ok(t, "restore", p.store+":/tasks", "--at", since)
	p.mount()
	if got := listing(t, p.dir+"/tasks"); got != before {
		t.Errorf("restored while it was not mounted:\n%s\nwant\n%s", got, before)
	}
}

// TestUndoAroundAWorkingDirectory: an agent has its working directory in what another one removes; after the undo all can work there.
func TestUndoAroundAWorkingDirectory(t *testing.T) {
	p := newPlace(t)
	p.mount()
	as(t, "agent-1", p.dir, `mkdir tasks/d; echo one > tasks/d/f`)
	h := hold(t, p.dir+"/tasks/d", "exec 3< f")
	since := instant(t, p)
	as(t, "agent-2", p.dir, `rm -rf tasks/d`)
	ok(t, "undo", "--agent", "agent-2", "--since", since, p.dir)
	as(t, "agent-1", p.dir, `test "$(cat tasks/d/f)" = one; echo two > tasks/d/g; mkdir tasks/d/sub`)
	h.letGo()
}

func TestSnapshotCommands(t *testing.T) {
	for _, isMounted := range []bool{false, true} {
		t.Run(fmt.Sprint("mounted=", isMounted), func(t *testing.T) {
			p := newPlace(t)
			if isMounted {
				p.mount()
			}
			on := []string{"--store", p.store}
			cmd := func(args ...string) []string { return append(append([]string{"snapshot"}, args...), on...) }
			ok(t, append(cmd("create", "first"), "--dry-run")...)
			if out := ok(t, cmd("list")...); out != "" {
				t.Errorf("after a dry run: %s", out)
			}
			ok(t, cmd("create", "first")...)
			r := runWith(t, "text", "put", "-", p.store+":/tasks/f")
			if r.code != exitOK {
				t.Fatal(r)
			}
			ok(t, cmd("create")...)
			list := lines[control.Snapshot](t, ok(t, cmd("list", "--json")...))
			if len(list) != 2 || list[0].Name != "first" || list[0].Seq >= list[1].Seq || list[0].Pinned || list[0].Automatic {
				t.Errorf("list: %+v", list)
			}
			if _, err := time.Parse(time.RFC3339, list[1].Name); err != nil {
				t.Errorf("a snapshot without a name: %+v", list[1])
			}
			wantText(t, "diff", ok(t, "diff", "first", list[1].Name, p.store+":/"), "+ /tasks/f\n")
			ok(t, cmd("pin", "first")...)
			fails(t, exitFailure, []string{"first", "pinned", "unpin"}, cmd("rm", "first")...)
			fails(t, exitFailure, []string{"first", "pinned", "unpin"}, append(cmd("rm", "first"), "--dry-run")...)
			fails(t, exitFailure, []string{"first", "another name"}, cmd("create", "first")...)
			fails(t, exitFailure, []string{"first", "another name"}, cmd("rename", list[1].Name, "first")...)
			ok(t, cmd("rename", "first", "1st")...)
			fails(t, exitFailure, []string{"first", "no snapshot"}, cmd("show", "first")...)
			shown := lines[control.Snapshot](t, ok(t, cmd("show", "1st", "--json")...))
			if len(shown) != 1 || shown[0].Name != "1st" || !shown[0].Pinned || shown[0].Seq != list[0].Seq {
				t.Errorf("show: %+v", shown)
			}
			ok(t, cmd("unpin", "1st")...)
			ok(t, cmd("rm", "1st")...)
			fails(t, exitFailure, []string{"1st"}, cmd("pin", "1st")...)
			for _, name := range []string{"a/b", "@x", "a@b", "\x01", "", "versions", "7", "10m", "today", strings.Repeat("x", 256), "..", "a\nb"} {
				if r := run(t, cmd("create", name)...); name != "" && (r.code != exitUsage && r.code != exitFailure || r.stderr == "" || r.stdout != "") {
					t.Errorf("create %q: %+v", name, r)
				}
			}
			if isMounted {
				ok(t, "umount", p.dir)
			}
		})
	}
}

// TestBadMoments: each is a clear error, and nothing happens.
func TestBadMoments(t *testing.T) {
	p := newPlace(t)
	runWith(t, "text", "put", "-", p.store+":/tasks/f")
	seq := statusOf(t, p.store).JournalSeq
	path := p.store + ":/tasks/f"
	for _, bad := range []string{"2200-01-01T00:00:00Z", "@2026-13-01T00:00:00Z", "@", "@v0", "@10x", "a/b", "\x01", "@-5m", "@99999999999999999999w", "@v1.5"} {
		for _, args := range [][]string{{"restore", path, "--at", bad}, {"diff", bad, "now", path}, {"diff", "now", bad, path},
			{"undo", "--agent", "a", "--since", bad, path}, {"log", "--agent", "a", "--since", bad, path}} {
			fails(t, exitUsage, nil, args...)
		}
	}
	for _, args := range [][]string{{"restore", path}, {"undo", path}, {"undo", "--since", "1m"}, {"undo", "--since", "v3", path}, {"snapshot"}, {"snapshot", "frob"},
		{"snapshot", "rename", "x", "--store", p.store}, {"diff", "now"}, {"log"}} {
		fails(t, exitUsage, []string{"--help`"}, args...)
	}
	fails(t, exitFailure, []string{"v999999", "newest"}, "restore", path, "--at", "v999999")
	fails(t, exitFailure, []string{"nosuch", "no snapshot"}, "restore", path, "--at", "nosuch")
	fails(t, exitFailure, []string{"made later"}, "restore", path, "--at", "@1970-01-02T00:00:00Z")
	fails(t, exitFailure, []string{"never"}, "restore", p.store+":/never", "--at", "now")
	fails(t, exitFailure, []string{"never"}, "diff", "now", "now", p.store+":/never")
	fails(t, exitFailure, []string{"none"}, "restore", path, "--at", "now", "--to", p.store+":/none")
	if out := ok(t, "undo", "--agent", "nobody", "--since", "1h", path); !strings.HasPrefix(out, "Nothing was changed") {
		t.Error(out)
	}
	if now := statusOf(t, p.store).JournalSeq; now != seq {
		t.Errorf("%d records were written", now-seq)
	}
}

// TestKilledDuringRestore: the daemon is killed while it restores, again and again. Afterwards all of it is there, or nothing.
func TestKilledDuringRestore(t *testing.T) {
	p := newPlace(t)
	pid := p.mount()
	as(t, "agent-1", p.dir+"/tasks", `for d in 1 2 3 4 5 6 7 8; do mkdir $d; for f in 1 2 3 4 5 6 7 8 9; do echo $d$f > $d/$f; done; done`)
	full := listing(t, p.dir+"/tasks")
	ok(t, "snapshot", "create", "full", "--store", p.store)
	as(t, "agent-2", p.dir+"/tasks", `rm -rf [1-8]; echo x > x`)
	empty := listing(t, p.dir+"/tasks")
	ok(t, "snapshot", "create", "empty", "--store", p.store)
	for i := range 6 {
		to := []string{"full", "empty"}[i%2]
		cmd := command(t, "restore", p.dir+"/tasks", "--at", to)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if i > 0 { // at another point each time: when the journal has grown, or when the command has got somewhere
			path := filepath.Join(p.store, "journal")
			size := sizeOf(path)
			ended := make(chan struct{})
			go func() {
				cmd.Wait() // a killed daemon makes it fail
				close(ended)
			}()
			tick := time.NewTicker(time.Duration(i) * 200 * time.Microsecond)
		wait:
			for {
				select {
				case <-tick.C:
					if sizeOf(path) != size || i%3 == 0 {
						break wait
					}
				case <-ended:
					break wait
				}
			}
			tick.Stop()
			kill(t, pid, syscall.SIGKILL)
			<-ended
		} else {
			kill(t, pid, syscall.SIGKILL)
			cmd.Wait()
		}
		gone(t, pid)
		pid = p.mount()
		got := listing(t, p.dir+"/tasks")
		if got != full && got != empty {
			t.Fatalf("after the kill %d:\n%s", i, got)
		}
	}
	ok(t, "restore", p.dir+"/tasks", "--at", "full")
	wantText(t, "afterwards", listing(t, p.dir+"/tasks"), full)
}

func sizeOf(dir string) (n int64) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0
	}
	for _, e := range entries {
		if st, err := e.Info(); err == nil {
			n += st.Size()
		}
	}
	return n
}

// TestTimesComeBack: what an agent did to times alone is in its log, and is undone where it is seen: the kernel, too, must show the old times of what it has
// cached. Only what ann did is undone.
func TestTimesComeBack(t *testing.T) {
	p := newPlace(t)
	p.mount()
	as(t, "ann", p.dir+"/tasks", `mkdir dir dir/sub; echo text > file; echo linked > linked; ln linked dir/other; echo deep > dir/sub/deep
		touch -d 2020-01-02T03:04:05.678901234 file linked dir/sub/deep dir/sub dir`)
	before := listing(t, p.dir+"/tasks")
	for _, undo := range []func(since string) []string{
		func(since string) []string { return []string{"undo", "--agent", "ben", "--since", since, p.dir} },
		func(since string) []string { return []string{"restore", p.dir + "/tasks", "--at", since} },
	} {
		since := instant(t, p)
		for _, path := range []string{"file", "linked", "dir/sub/deep", "dir/sub", "dir"} { // each time the first that a process does
			as(t, "ben", p.dir+"/tasks", "exec touch -d 2001-01-01 "+path)
		}
		log := lines[snapshots.Change](t, ok(t, "log", "--since", since, "--json", p.dir))
		if len(log) != 5 {
			t.Errorf("%d changes, want 5: %+v", len(log), log)
		}
		for _, c := range log {
			if c.Agent != "ben" || c.Program != "touch" {
				t.Errorf("%s of %s is by %q with %q", c.Op, c.Path, c.Agent, c.Program)
			}
		}
		out := ok(t, undo(since)...)
		if got := listing(t, p.dir+"/tasks"); got != before {
			t.Errorf("afterwards (%s):\n%s\nwant\n%s", out, got, before)
		}
	}
}

// TestMistakesOfTheCaller: mounted or not, the same mistake gets the same exit code and says what is wrong; nothing is taken for something else.
func TestMistakesOfTheCaller(t *testing.T) {
	p := newPlace(t)
	if r := runWith(t, "text", "put", "-", p.store+":/tasks/f"); r.code != exitOK {
		t.Fatal(r)
	}
	path := p.store + ":/tasks/f"
	for _, isMounted := range []bool{false, true} {
		if isMounted {
			p.mount()
		}
		for _, name := range []string{"@x", "a/b", "10m", "7", "x\x01"} {
			fails(t, exitUsage, []string{"snapshot"}, "snapshot", "create", "--store", p.store, "--", name)
			fails(t, exitUsage, []string{"snapshot"}, "snapshot", "rename", "--store", p.store, "--", "first", name)
		}
		fails(t, exitFailure, []string{"v999999", "newest"}, "cat", path, "--at", "@v999999")
		fails(t, exitFailure, []string{"v999999", "newest"}, "cat", path+"@v999999")
		fails(t, exitFailure, []string{"future"}, "cat", path+"@2199-01-01T00:00:00Z")
		fails(t, exitFailure, []string{"/tasks/none", "now or earlier"}, "undo", "--since", "1h", p.store+":/tasks/none")
		fails(t, exitFailure, []string{"/tasks/none", "now or earlier"}, "log", "--since", "1h", p.store+":/tasks/none")
		for _, args := range [][]string{{"snapshot", "create"}, {"snapshot", "rm", "x"}, {"retention", "set", path}, {"log", "a", "b"}} {
			if out := ok(t, append(args, "--help")...); !strings.Contains(out, "Example: holdfast "+args[0]) {
				t.Errorf("%v --help: %s", args, out)
			}
		}
	}
	// An agent is found by the name that it gave itself; no name is not everybody's.
	as(t, " odd\x1bagent ", p.dir+"/tasks", "echo odd > by")
	for _, args := range [][]string{{"undo", "--agent", "", "--since", "1h", p.dir}, {"undo", "--agent", " ", "--since", "1h", p.dir}, {"log", "--agent", "", p.dir}} {
		fails(t, exitUsage, []string{"--agent"}, args...)
	}
	if out := ok(t, "log", "--agent", " odd\x1bagent ", p.dir); strings.Count(out, "/tasks/by") != 2 {
		t.Errorf("its log: %s", out)
	}
	if out := ok(t, "undo", "--agent", " odd\x1bagent ", "--since", "1h", p.dir); !strings.Contains(out, "/tasks/by  removed") {
		t.Errorf("its undo: %s", out)
	}
	// A file may be called like a time that has not come yet.
	as(t, "ann", p.dir+"/tasks", "echo odd > odd@2199-01-01T00:00:00Z")
	if out := ok(t, "cat", p.dir+"/tasks/odd@2199-01-01T00:00:00Z"); out != "odd\n" {
		t.Errorf("it holds %q", out)
	}
	names := make(map[string]bool)
	for range 5 { // within one second
		for _, s := range lines[control.Snapshot](t, ok(t, "snapshot", "create", "--json", "--store", p.store)) {
			names[s.Name] = true
		}
	}
	for name := range names {
		if _, err := os.Stat(p.dir + "/.snapshots/" + name + "/tasks/f"); err != nil {
			t.Error(err)
		}
		ok(t, "restore", path, "--at", name)
	}
	if len(names) != 5 {
		t.Errorf("5 snapshots without a name are %v", names)
	}
}

// TestInterruptedInTheMiddleOfAnAnswer: the daemon's answer breaks off in the middle of a line when the command is interrupted; that is no damage to it.
func TestInterruptedInTheMiddleOfAnAnswer(t *testing.T) {
	p := newPlace(t)
	p.mount()
	as(t, "ann", p.dir+"/logs", `for i in $(seq 1500); do echo $i > a-file-with-a-name-of-some-length; done`)
	cmd := command(t, "log", "--since", "1h", "--json", p.dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var first [1]byte // it has begun; the pipe does not hold all that there is
	if _, err := io.ReadFull(out, first[:]); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, out); err != nil {
		t.Fatal(err)
	}
	if code := exitOf(t, cmd.Wait(), cmd.Args); code != exitInterrupted || !strings.Contains(said.String(), "interrupted") {
		t.Errorf("exit code %d, %s", code, said.String())
	}
}
