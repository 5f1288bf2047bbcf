package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"holdfast/integrity/audit"
)

// keep writes what a command says into a file outside of the store.
func keep(t testing.TB, args ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kept")
	write(t, path, ok(t, args...))
	return path
}

func reportOf(t testing.TB, code int, args ...string) audit.Report {
	t.Helper()
	r := run(t, append([]string{"audit", "verify", "--json"}, args...)...)
	var rep audit.Report
	if err := json.Unmarshal([]byte(r.stdout), &rep); err != nil || r.code != code || rep.OK != (code == exitOK) {
		t.Fatalf("verify %q: %+v, %v", args, r, err)
	}
	return rep
}

// TestAuditCommands drives the commands as a user does, mounted and not.
func TestAuditCommands(t *testing.T) {
	p := newPlace(t)
	fails(t, exitFailure, []string{"not signed yet", "audit checkpoint"}, "audit", "verify", p.store)
	fails(t, exitFailure, []string{"not signed yet"}, "audit", "key", p.store)
	p.mount()
	as(t, "agent-1", p.dir, `echo one > tasks/a; echo two > tasks/a`)
	kept := keep(t, "audit", "checkpoint", p.dir)
	key := keep(t, "audit", "key", p.dir)
	as(t, "agent-2", p.dir, `mkdir tasks/sub; mv tasks/a tasks/b; echo three > tasks/b`)
	for _, isMounted := range []bool{true, false} {
		t.Run(fmt.Sprint("mounted=", isMounted), func(t *testing.T) {
			where := p.dir
			if !isMounted {
				ok(t, "umount", p.dir)
				where = p.store
			}
			if rep := reportOf(t, exitOK, "--since-checkpoint", kept, "--key", key, where); !rep.Extends || rep.Heads < 2 {
				t.Errorf("%+v", rep)
			}
			if out := ok(t, "audit", "verify", "--since-checkpoint", kept, where); !strings.Contains(out, "nothing was changed") || !strings.Contains(out, "extends the checkpoint") {
				t.Errorf("verify: %s", out)
			}
			found := lines[audit.Entry](t, ok(t, "audit", "find", "--agent", "agent-1", "--op", "write", "--json", where))
			if len(found) != 2 || found[0].Path != "/tasks/a" || found[0].Version != 1 || found[1].Version != 2 || len(found[1].SHA256) != 64 {
				t.Errorf("find: %+v", found)
			}
			if got := lines[audit.Entry](t, ok(t, "audit", "find", "--path", "/tasks/sub", "--json", where)); len(got) != 1 || got[0].Operation != "mkdir" || got[0].Agent != "agent-2" {
				t.Errorf("find --path: %+v", got)
			}
			if got := ok(t, "audit", "find", "--since", "0s", where); got != "" {
				t.Errorf("what was done since now: %s", got)
			}
			tail := ok(t, "audit", "tail", "-n", "3", where)
			if strings.Count(tail, "\n") != 3 || !strings.Contains(tail, "/tasks/b") || !strings.Contains(tail, "agent-2") {
				t.Errorf("tail: %s", tail)
			}
			file := where + "/tasks/b"
			if !isMounted {
				file = where + ":/tasks/b"
			}
			proof := keep(t, "audit", "prove", file)
			if out := ok(t, "audit", "verify", "--proof", proof, "--key", key); !strings.Contains(out, "agent-2") || !strings.Contains(out, "is in the log") {
				t.Errorf("verify --proof: %s", out)
			}
			ext := keep(t, "audit", "prove", "--extends", kept, where)
			if out := ok(t, "audit", "verify", "--proof", ext, "--key", key, "--json"); !strings.Contains(out, `"extends":`) {
				t.Errorf("verify --proof of an extension: %s", out)
			}
			text := read(t, proof)
			write(t, proof, strings.Replace(text, "\nrecord ", "\nrecord 1", 1))
			fails(t, exitDamage, []string{proof}, "audit", "verify", "--proof", proof, "--key", key)
			fails(t, exitFailure, []string{"no such"}, "audit", "prove", file+"@99")
		})
	}
	// The bare segments and the public key are enough.
	rep := reportOf(t, exitOK, "--journal", filepath.Join(p.store, "journal"), "--key", key, "--since-checkpoint", kept)
	if !rep.Extends || rep.Heads != 1 {
		t.Errorf("%+v", rep)
	}
}

// TestAuditOfTampering: the exit code, the record and the file.
func TestAuditOfTampering(t *testing.T) {
	p := newPlace(t)
	p.mount()
	as(t, "agent-1", p.dir, `for i in 1 2 3 4 5; do echo $i > tasks/$i; done`)
	old := filepath.Join(t.TempDir(), "old")
	ok(t, "umount", p.dir)
	if err := os.CopyFS(old, os.DirFS(p.store)); err != nil {
		t.Fatal(err)
	}
	p.mount()
	as(t, "agent-1", p.dir, `echo more > tasks/more`)
	kept := keep(t, "audit", "checkpoint", p.dir)
	ok(t, "umount", p.dir)
	r := run(t, "audit", "verify", "--since-checkpoint", kept, old)
	if r.code != exitDamage || !strings.Contains(r.stdout, "rollback") || !strings.Contains(r.stderr, "not what was signed") {
		t.Errorf("a store that was rolled back: %+v", r)
	}
	seg := filepath.Join(p.store, "journal", "0000000000000001.seg")
	b := []byte(read(t, seg))
	at := strings.Index(string(b), "tasks/3")
	b[at+6] = '4'
	write(t, seg, string(b))
	rep := reportOf(t, exitDamage, p.store)
	if i := slices.IndexFunc(rep.Problems, func(x audit.Problem) bool { return x.Kind == audit.KindDamaged }); i < 0 || rep.Problems[i].Record == 0 ||
		rep.Problems[i].File != "journal/0000000000000001.seg" || rep.Problems[i].Time == nil {
		t.Errorf("%+v", rep.Problems)
	}
	if r := run(t, "audit", "verify", p.store); r.code != exitDamage || !strings.Contains(r.stdout, "journal/0000000000000001.seg") {
		t.Errorf("%+v", r)
	}
}

// TestAuditFollows: tail -f shows what comes while it comes, and ends with the mount. A killed daemon leaves evidence that holds.
func TestAuditFollows(t *testing.T) {
	p := newPlace(t)
	pid := p.mount()
	cmd := command(t, "audit", "tail", "-f", "-n", "1", "--json", p.dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	sc := bufio.NewScanner(out)
	for i := range 3 {
		as(t, "agent-1", p.dir, fmt.Sprintf(`echo %d > tasks/f%d`, i, i))
		for seen := false; !seen; {
			if !sc.Scan() {
				t.Fatalf("tail -f ended early: %v", sc.Err())
			}
			seen = strings.Contains(sc.Text(), fmt.Sprintf(`"operation":"write","path":"/tasks/f%d"`, i))
		}
	}
	ok(t, "umount", p.dir)
	for sc.Scan() {
		continue
	}
	if code := exitOf(t, cmd.Wait(), cmd.Args); code != exitOK {
		t.Errorf("tail -f ended with code %d", code)
	}
	gone(t, pid)

	pid = p.mount()
	as(t, "agent-1", p.dir, `echo x > tasks/unsigned`)
	kill(t, pid, syscall.SIGKILL)
	gone(t, pid)
	p.cleanUp()
	reportOf(t, exitOK, p.store)
	p.mount()
	ok(t, "umount", p.dir)
	if rep := reportOf(t, exitOK, p.store); uint64(rep.Signed) != rep.Records {
		t.Errorf("after the next mount not everything is signed: %+v", rep)
	}
}

// TestMountWithADamagedKey: the mount works, says what is wrong, and signs nothing.
func TestMountWithADamagedKey(t *testing.T) {
	p := newPlace(t)
	ok(t, "audit", "checkpoint", p.store)
	write(t, filepath.Join(p.store, audit.DirName, "key"), "rubbish\n")
	p.mount()
	as(t, "agent-1", p.dir, `echo x > tasks/f`)
	st := statusOf(t, p.store)
	if len(st.Problems) != 1 || !strings.Contains(st.Problems[0], "nothing is signed") {
		t.Errorf("problems: %q", st.Problems)
	}
	fails(t, exitDamage, []string{"put the right one back"}, "audit", "checkpoint", p.dir)
	ok(t, "umount", p.dir)
}
