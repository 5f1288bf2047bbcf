package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"holdfast/catalog"
	"holdfast/internal/control"
)

func TestRetentionCommands(t *testing.T) {
	for _, isMounted := range []bool{false, true} {
		t.Run(fmt.Sprint("mounted=", isMounted), func(t *testing.T) {
			p := newPlace(t)
			if isMounted {
				p.mount()
			}
			show := func(args ...string) []control.Policy {
				t.Helper()
				return lines[control.Policy](t, ok(t, append([]string{"retention", "show", "--json"}, args...)...))
			}
			on := []string{"--store", p.store}
			if list := show(on...); len(list) != 1 || list[0].Path != "/" || list[0].KeepAll.String() != "1d" || list[0].Weekly.String() != "1y" {
				t.Errorf("of a new store: %+v", list)
			}
			if out := ok(t, append([]string{"retention", "show"}, on...)...); !strings.HasPrefix(out, "/: every moment for 1d, hours for 7d, days for 30d, weeks for 1y (default)") {
				t.Errorf("show: %s", out)
			}
			toml := read(t, filepath.Join(p.store, "holdfast.toml"))
			set := []string{"retention", "set", p.store + ":/status", "--keep-all", "1d12h", "--hourly", "0", "--max-versions", "100", "--max-bytes", "10GiB"}
			dry := ok(t, append(set, "--dry-run")...)
			wantText(t, "after a dry run", read(t, filepath.Join(p.store, "holdfast.toml")), toml)
			wantText(t, "set", ok(t, set...), dry)
			if !strings.Contains(dry, "/status: every moment for 36h, hours for 0, days for 30d") || !strings.Contains(dry, "100 versions") || !strings.Contains(dry, "10.0 GiB") {
				t.Errorf("set: %s", dry)
			}
			if list := show(p.store + ":/status/a/b"); len(list) != 1 || list[0].Path != "/status" || list[0].MaxBytes != 10<<30 || len(list[0].Own) != 4 {
				t.Errorf("below /status: %+v", list)
			}
			if list := show(p.store + ":/tasks"); len(list) != 1 || list[0].Path != "/" {
				t.Errorf("of /tasks: %+v", list)
			}
			if isMounted {
				if list := show(p.dir + "/status/a"); list[0].Path != "/status" {
					t.Errorf("by the path in the mount: %+v", list)
				}
			}
			fails(t, exitFailure, []string{"none", "no such"}, "retention", "set", p.store+":/none", "--hourly", "1d")
			fails(t, exitFailure, []string{"tasks", "no retention of its own"}, "retention", "unset", p.store+":/tasks")
			ok(t, "retention", "unset", p.store+":/status", "--dry-run")
			if list := show(on...); len(list) != 2 {
				t.Errorf("after a dry run: %+v", list)
			}
			ok(t, "retention", "unset", p.store+":/status")
			if list := show(on...); len(list) != 1 {
				t.Errorf("after unset: %+v", list)
			}
		})
	}
}

// beats rewrites a small file n times, in place, as a program that reports that it is alive does; then two more times with a snapshot between.
func beats(t *testing.T, p place, n int) (first uint64) {
	t.Helper()
	beat := func(text string) { write(t, p.dir+"/status/beat", text) }
	beat("first")
	first = statusOf(t, p.store).JournalSeq
	for i := range n {
		beat(fmt.Sprintf("{\"alive\": %d}", i))
	}
	ok(t, "snapshot", "create", "kept", "--store", p.store)
	beat("then")
	beat("now")
	return first
}

// TestHeartbeats: of a file that is rewritten again and again, gc leaves what the policy keeps; the numbers of the versions stay what they were, and what is
// thinned away is refused by every command, and by the mount, as such.
func TestHeartbeats(t *testing.T) {
	p := newPlace(t)
	p.mount()
	ok(t, "retention", "set", p.dir+"/status", "--keep-all", "0", "--hourly", "0", "--daily", "0", "--weekly", "0")
	const n = 400
	first := beats(t, p, n)
	write(t, p.dir+"/tasks/plan", "plan")
	write(t, p.dir+"/tasks/plan", "new plan")
	file, was := p.dir+"/status/beat", fmt.Sprintf("{\"alive\": %d}", n-1)
	before := statusOf(t, p.store)
	numbers := make(map[uint64]int)
	for _, l := range lines[control.LogEntry](t, ok(t, "log", "--json", file)) {
		numbers[l.Seq] = l.Number
	}
	gc := func(options ...string) (rep catalog.PruneReport) {
		t.Helper()
		if err := json.Unmarshal([]byte(ok(t, append([]string{"gc", "--json", "--store", p.store}, options...)...)), &rep); err != nil {
			t.Fatal(err)
		}
		return rep
	}
	dry := gc("--dry-run")
	if st := statusOf(t, p.store); st.JournalSeq != before.JournalSeq || st.Versions != before.Versions || !dry.DryRun {
		t.Errorf("a dry run: %+v", dry)
	}
	if out := ok(t, "gc", "--dry-run", "--store", p.store); !strings.Contains(out, "/: every moment is kept") || !strings.Contains(out, "/status: between them lie ") ||
		!strings.Contains(out, "Would free ") {
		t.Errorf("gc --dry-run says\n%s", out)
	}
	rep := gc()
	if rep.Versions() < n || rep.Versions() != dry.Versions() || rep.Blobs != dry.Blobs || rep.Blobs < n/2 || rep.Policies[1].Path != "/status" || rep.Policies[0].Versions != 0 {
		t.Errorf("gc: %+v; the dry run said %+v", rep, dry)
	}
	st := statusOf(t, p.store)
	if gone := before.Versions - st.Versions; gone < n || st.Versions < 4 || st.History.Snapshots != 1 || st.History.Bytes > before.History.Bytes+100 {
		t.Errorf("%d versions are gone; %+v, before %+v", gone, st, before)
	}
	log := lines[control.LogEntry](t, ok(t, "log", "--json", file))
	if len(log) != 2 || log[0].Number < n || log[1].Number != len(numbers) || numbers[log[0].Seq] != log[0].Number || numbers[log[1].Seq] != log[1].Number {
		t.Errorf("the log: %+v", log)
	}
	fails(t, exitThinned, []string{"thinned away"}, "cat", file+"@7")
	wantText(t, "the kept version", ok(t, "cat", fmt.Sprint(file, "@", log[0].Number)), was)
	for path, want := range map[string]string{file: "now", p.dir + "/.snapshots/kept/status/beat": was, p.dir + "/tasks/plan": "new plan"} {
		wantText(t, path, read(t, path), want)
	}
	thinnedMoment(t, p, fmt.Sprint("@v", first+n/2))
	ok(t, "umount", p.dir)
	for _, args := range [][]string{{"diff", fmt.Sprint("@v", first+9), "now", p.store + ":/status"}, {"restore", p.store + ":/status", "--at", fmt.Sprint("@v", first+9)}} {
		fails(t, exitThinned, []string{"thinned away"}, args...)
	}
	if rep := gc(); rep.Versions() != 0 {
		t.Errorf("gc of what is thinned already, not mounted: %+v", rep)
	}
}

// thinnedMoment looks for a moment of /status that is not kept.
func thinnedMoment(t *testing.T, p place, at string) {
	t.Helper()
	seq := statusOf(t, p.store).JournalSeq
	dir := p.dir + "/status"
	for _, args := range [][]string{{"restore", dir, "--at", at}, {"restore", dir + "/beat", "--at", at, "--dry-run"}, {"restore", dir, "--at", at, "--to", p.dir + "/tasks"},
		{"diff", at, "now", dir}, {"diff", "now", at, dir}} {
		fails(t, exitThinned, []string{"thinned away", "kept", "@v"}, args...)
		var f failure
		if r := run(t, append(args, "--json")...); json.Unmarshal([]byte(r.stderr), &f) != nil || f.Code != exitThinned || r.code != exitThinned {
			t.Errorf("%q --json: %+v", args, r)
		}
	}
	for _, path := range []string{"/.snapshots/" + at + "/status/beat", "/status/.snapshots/" + at + "/beat"} {
		if _, err := os.Stat(p.dir + path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if log := read(t, filepath.Join(p.store, "holdfast.log")); !strings.Contains(log, "thinned away") {
		t.Errorf("the daemon's log says nothing of it:\n%s", log)
	}
	// Elsewhere everything can be undone, and told apart.
	wantText(t, "diff elsewhere", ok(t, "diff", at, "now", p.dir+"/tasks"), "+ /tasks/plan\n")
	if out := ok(t, "undo", "--agent", "nobody", "--since", "1h", p.dir); !strings.HasPrefix(out, "Nothing was changed") {
		t.Error(out)
	}
	if out := ok(t, "undo", "--since", "1h", "--dry-run", p.dir+"/status"); !strings.Contains(out, "retention has thinned away") {
		t.Errorf("undo says\n%s", out)
	}
	if now := statusOf(t, p.store).JournalSeq; now != seq {
		t.Errorf("%d records were written", now-seq)
	}
}

// TestConflictAsAUser: two agents open one plan and both change it. The later close is what the file holds; what it buried is one cp away.
func TestConflictAsAUser(t *testing.T) {
	p := newPlace(t)
	p.mount()
	write(t, p.dir+"/tasks/plan.md", "the plan of all")
	opened := func(agent, text string) (finish func()) {
		cmd := exec.CommandContext(t.Context(), "sh", "-ec", `exec 3<>plan.md; echo ready; read x; printf "$1" >&3; exec 3>&-`, "sh", text)
		cmd.Dir, cmd.Env = p.dir+"/tasks", append(os.Environ(), "HOLDFAST_AGENT="+agent)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 6)); err != nil {
			t.Fatal(err)
		}
		return func() {
			fmt.Fprintln(in, "go")
			in.Close()
			if err := cmd.Wait(); err != nil {
				t.Errorf("%s: %v", agent, err)
			}
		}
	}
	one, two := opened("agent-1", "ONE'S PLAN"), opened("agent-2", "two's plan")
	one()
	two()
	wantText(t, "the head", read(t, p.dir+"/tasks/plan.md"), "two's planf all")
	for _, dir := range []string{p.dir + "/.snapshots/conflicts", p.dir + "/tasks/.snapshots/conflicts"} {
		found, err := filepath.Glob(dir + "/*-lost-agent-1.md")
		if err != nil || len(found) != 1 {
			t.Fatalf("%s: %q, %v", dir, found, err)
		}
		records, err := filepath.Glob(dir + "/*.json")
		if err != nil || len(records) != 1 {
			t.Fatalf("%s: %q, %v", dir, records, err)
		}
		var x struct {
			Path string
			Lost struct {
				Agent, Content string
				Version        int
			}
			Won struct {
				Agent   string
				Version int
			}
		}
		if err := json.Unmarshal([]byte(read(t, records[0])), &x); err != nil || x.Path != "/tasks/plan.md" || x.Lost.Agent != "agent-1" || x.Won.Agent != "agent-2" ||
			x.Lost.Content != filepath.Base(found[0]) || x.Won.Version != x.Lost.Version+1 {
			t.Errorf("%s says %+v, %v", records[0], x, err)
		}
		as(t, "ann", p.dir, "cp "+found[0]+" tasks/lost.md")
		wantText(t, "what was buried", read(t, p.dir+"/tasks/lost.md"), "ONE'S PLANf all")
		if err := os.WriteFile(found[0], nil, 0o644); !errors.Is(err, syscall.EROFS) && !errors.Is(err, syscall.EACCES) {
			t.Errorf("writing to the past: %v", err)
		}
	}
}

// contents is what a person reads in the files of a directory.
func contents(t testing.TB, dir string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-ec", "for f in *; do echo $f; cat $f; done")
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// TestKilledDuringGC: the daemon is killed while it thins, again and again. What is kept stays, and the next gc goes on.
func TestKilledDuringGC(t *testing.T) {
	p := newPlace(t)
	pid := p.mount()
	ok(t, "retention", "set", p.dir+"/status", "--keep-all", "0", "--hourly", "0", "--daily", "0", "--weekly", "0")
	for round := range 5 {
		name := fmt.Sprint("round", round)
		as(t, "agent", p.dir, fmt.Sprintf(`for i in $(seq 150); do echo %d.$i > status/beat$((i %% 7)); done; echo %d > tasks/plan`, round, round))
		kept := contents(t, p.dir+"/status")
		ok(t, "snapshot", "create", name, "--store", p.store)
		as(t, "agent", p.dir, `for i in $(seq 60); do echo $i > status/beat$((i % 7)); done; rm status/beat3`)
		now := contents(t, p.dir+"/status")
		cmd := command(t, "gc", "--store", p.store)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() {
			cmd.Wait() // a killed daemon makes it fail
			close(ended)
		}()
		journal := filepath.Join(p.store, "journal")
		size := sizeOf(journal)
		until(t, "gc gets somewhere", func() bool {
			select {
			case <-ended:
				return true
			default:
				return round%2 == 0 || sizeOf(journal) != size
			}
		})
		kill(t, pid, syscall.SIGKILL)
		<-ended
		gone(t, pid)
		pid = p.mount()
		wantText(t, "the present", contents(t, p.dir+"/status"), now)
		wantText(t, "a snapshot", contents(t, p.dir+"/.snapshots/"+name+"/status"), kept)
	}
	ok(t, "gc", "--store", p.store)
	for round := range 5 {
		wantText(t, "a snapshot's file", read(t, fmt.Sprintf("%s/.snapshots/round%d/status/beat5", p.dir, round)), fmt.Sprintf("%d.%d\n", round, 145))
		wantText(t, "a version elsewhere", ok(t, "cat", fmt.Sprint(p.dir, "/tasks/plan@", round+1)), fmt.Sprintln(round))
	}
	if st := statusOf(t, p.store); len(st.Problems) > 0 {
		t.Errorf("%q", st.Problems)
	}
}

// TestMomentsBesideGC: while gc thins all the time and others work, each of some agents works in a directory of its own, notes now and then what it sees, and makes a
// snapshot. Each snapshot shows what was noted, from the first to the last, while it is made and afterwards.
func TestMomentsBesideGC(t *testing.T) {
	p := newPlace(t)
	p.mount()
	ok(t, "retention", "set", p.dir, "--keep-all", "0", "--hourly", "0", "--daily", "0", "--weekly", "0")
	const agents, rounds = 3, 8
	var notes [agents][rounds]string
	work := make(chan error, agents)
	for agent := range agents {
		dir := fmt.Sprint(p.dir, "/tasks/agent", agent)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		go func() {
			work <- func() error {
				rnd := rand.New(rand.NewPCG(uint64(agent), 5))
				model := make(map[string]string)
				for round := range rounds {
					for i := range 25 {
						name := fmt.Sprint("f", rnd.IntN(6))
						if err := agentStep(dir, name, fmt.Sprintf("%d.%d.%d", agent, round, i), rnd.IntN(5), model); err != nil {
							return err
						}
					}
					notes[agent][round] = fmt.Sprint(model)
					out, err := command(t, "snapshot", "create", fmt.Sprintf("a%d-r%d", agent, round), "--store", p.store).CombinedOutput()
					if err != nil {
						return fmt.Errorf("snapshot: %w: %s", err, out)
					}
					if got, err := seen(fmt.Sprintf("%s/.snapshots/a%d-r%d/tasks/agent%d", p.dir, agent, round, agent)); err != nil || got != notes[agent][round] {
						return fmt.Errorf("snapshot %d of agent %d shows %s, %w; want %s", round, agent, got, err, notes[agent][round])
					}
				}
				return nil
			}()
		}()
	}
	thinned := int64(0)
	gc := func() {
		t.Helper()
		var rep catalog.PruneReport
		if err := json.Unmarshal([]byte(ok(t, "gc", "--json", "--store", p.store)), &rep); err != nil {
			t.Fatal(err)
		}
		thinned += rep.Versions()
	}
	for left := agents; left > 0; {
		select {
		case err := <-work:
			if left--; err != nil {
				t.Error(err)
			}
		default:
			gc()
		}
	}
	check := func(when string) {
		t.Helper()
		for agent := range agents {
			for round := range rounds {
				dir := fmt.Sprintf("%s/.snapshots/a%d-r%d/tasks/agent%d", p.dir, agent, round, agent)
				if got, err := seen(dir); err != nil || got != notes[agent][round] {
					t.Errorf("%s: %s shows %s, %v; want %s", when, dir, got, err, notes[agent][round])
				}
			}
			if got, err := seen(fmt.Sprint(p.dir, "/tasks/agent", agent)); err != nil || got != notes[agent][rounds-1] {
				t.Errorf("%s: agent %d sees %s, %v", when, agent, got, err)
			}
		}
	}
	gc()
	check("after gc")
	if thinned < agents*rounds {
		t.Errorf("only %d versions were thinned meanwhile", thinned)
	}
	ok(t, "umount", p.dir)
	p.mount()
	check("mounted again")
}

// agentStep changes one file of a directory, and the model alike.
func agentStep(dir, name, text string, what int, model map[string]string) error {
	path := filepath.Join(dir, name)
	switch what {
	case 0:
		_, there := model[name]
		delete(model, name)
		if err := os.Remove(path); there || !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	case 1: // as programs do that replace a file
		model[name] = text
		return errors.Join(os.WriteFile(path+".tmp", []byte(text), 0o644), os.Rename(path+".tmp", path))
	default:
		model[name] = text
		return os.WriteFile(path, []byte(text), 0o644)
	}
}

// seen is what a directory's files hold.
func seen(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	files := make(map[string]string)
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return "", err
		}
		files[e.Name()] = string(text)
	}
	return fmt.Sprint(files), nil
}
