package main

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/control"
)

func statusOf(t testing.TB, arg string) control.Status {
	t.Helper()
	var st control.Status
	if err := json.Unmarshal([]byte(ok(t, "status", "--json", arg)), &st); err != nil {
		t.Fatal(err)
	}
	return st
}

func lines[T any](t testing.TB, text string) []T {
	t.Helper()
	var all []T
	for line := range strings.Lines(text) {
		var v T
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		all = append(all, v)
	}
	return all
}

func TestInit(t *testing.T) {
	base := t.TempDir()
	for _, mode := range []string{"file", "database", "hybrid"} {
		var made initResult
		dir := filepath.Join(base, "new", mode)
		if err := json.Unmarshal([]byte(ok(t, "init", dir, "--json", "--storage", mode)), &made); err != nil {
			t.Fatal(err)
		}
		st := statusOf(t, dir)
		if made.Store != dir || made.Storage != mode || len(made.ID) != 32 || st.ID != made.ID || st.Storage != mode || st.Mounted || st.Mount != nil ||
			st.Directories != 6 || st.Files != 0 || !st.Created.Equal(made.Created) {
			t.Errorf("init made %+v, status says %+v", made, st)
		}
		fails(t, exitFailure, []string{dir, "already"}, "init", dir)
		wantText(t, "directories", ok(t, "ls", dir+":"), "config\nlogs\nmessages\nstatus\ntasks\n")
	}
	full := filepath.Join(base, "full")
	if err := os.Mkdir(full, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, full+"/x", "")
	fails(t, exitFailure, []string{full, "not empty"}, "init", full)
	fails(t, exitFailure, []string{full}, "init", full+"/x/y")
	if out := ok(t, "init", base+"/text"); !strings.Contains(out, base+"/text") {
		t.Errorf("init says %q", out)
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{
		{}, {"frobnicate"}, {"--frobnicate"}, {"init"}, {"init", "a", "b"}, {"init", "--storage", "paper", "x"}, {"init", "--frobnicate", "x"},
		{"mount", "a"}, {"mount", "a", "b", "c"}, {"umount"}, {"status", "a", "b"}, {"log"}, {"cat"}, {"cat", "a", "b"}, {"put", "a"},
		{"get", "a"}, {"ls"}, {"rm"}, {"version", "x"}, {"ls", "--store"}, {"ls", "-lz", "x"}, {"put", "--mode", "9", "/dev/null", "x"},
		{"put", "--mode", "77777", "-", "x"}, {"ls", ""}, {"mount", "-o", "cpuprofile=", "a", "b"},
		{"audit"}, {"audit", "frob"}, {"audit", "prove"}, {"audit", "tail", "-n", "0"}, {"audit", "verify", "--proof", "x"}, {"audit", "verify", "a", "b"},
		{"gc", "x"}, {"retention"}, {"retention", "frob"}, {"retention", "set", "x"}, {"retention", "set", "--hourly", "7d"}, {"retention", "unset"},
		{"retention", "set", "x", "--hourly", "soon"}, {"retention", "set", "x", "--max-versions", "-1"}, {"retention", "set", "x", "--max-bytes", "lots"},
		{"retention", "show", "x", "--daily", "7d"}, {"retention", "set", "x", "--keep-all", "200y"},
	} {
		fails(t, exitUsage, []string{"--help`"}, args...)
	}
	all := ok(t, "--help")
	for _, c := range []string{"init", "mount", "umount", "status", "log", "cat", "put", "get", "ls", "rm", "snapshot", "diff", "restore", "undo",
		"audit", "backup", "check", "level", "scrub", "recover", "monitor", "retention", "gc", "version"} {
		out := ok(t, c, "--help")
		if !strings.Contains(out, "Example: holdfast "+c) || !strings.Contains(out, "--json") || ok(t, "help", c) != out {
			t.Errorf("help of %s:\n%s", c, out)
		}
		if !strings.Contains(all, "\n   "+c+" ") {
			t.Errorf("%s is not in the help", c)
		}
	}
	if out := ok(t, "--version"); !strings.HasPrefix(out, "holdfast ") || out != ok(t, "version") {
		t.Errorf("version: %q", out)
	}
	var f failure
	r := run(t, "ls", "/nonexistent:/x", "--json")
	if err := json.Unmarshal([]byte(r.stderr), &f); err != nil || f.Code != exitNoStore || r.code != exitNoStore || !strings.Contains(f.Error, "/nonexistent") {
		t.Errorf("an error as JSON: %+v, %v", r, err)
	}
}

// TestCommands runs the same script on a store that is mounted and on one that is not, with each way to name a path.
func TestCommands(t *testing.T) {
	for _, isMounted := range []bool{false, true} {
		for _, how := range []string{"STORE:/path", "--store", "path in the mount"} {
			if how == "path in the mount" && !isMounted {
				continue
			}
			t.Run(fmt.Sprintf("mounted=%v/%s", isMounted, how), func(t *testing.T) {
				t.Parallel()
				p := newPlace(t)
				if isMounted {
					p.mount()
				}
				s := script{t, func(path string) []string {
					switch how {
					case "STORE:/path":
						return []string{p.store + ":" + path}
					case "--store":
						return []string{path, "--store", p.store}
					}
					return []string{p.dir + path}
				}}
				s.versions()
				if how == "STORE:/path" {
					s.contents()
					s.listing()
					s.removal()
				}
				if isMounted != (how == "STORE:/path") {
					s.strangeNames()
				}
				if isMounted {
					// The kernel has seen all of it.
					wantText(t, "through the mount", read(t, p.dir+"/tasks/v"), "three")
					ok(t, "umount", p.dir)
				}
				wantText(t, "unmounted", ok(t, "cat", p.store+":/tasks/v"), "three")
			})
		}
	}
}

type script struct {
	t  *testing.T
	at func(path string) []string // the arguments that name a path
}

func (s script) args(command string, more ...any) []string {
	args := []string{command}
	for _, m := range more {
		switch m := m.(type) {
		case string:
			args = append(args, m)
		case []string:
			args = append(args, m...)
		}
	}
	return args
}

func (s script) contents() {
	t := s.t
	src := filepath.Join(t.TempDir(), "src.bin")
	big := strings.Repeat("0123456789abcdef", 40_000)
	write(t, src, big)
	if err := os.Chmod(src, 0o750); err != nil {
		t.Fatal(err)
	}
	ok(t, s.args("put", src, s.at("/tasks/big"))...)
	wantText(t, "cat", ok(t, s.args("cat", s.at("/tasks/big"))...), big)
	var e control.Entry
	if err := json.Unmarshal([]byte(ok(t, s.args("put", "--json", src, s.at("/tasks"))...)), &e); err != nil || e.Name != "src.bin" ||
		e.Size != int64(len(big)) || e.Mode&0o7777 != 0o750 {
		t.Errorf("put into a directory: %+v, %v", e, err)
	}
	dest := filepath.Join(t.TempDir(), "out")
	ok(t, s.args("get", s.at("/tasks/src.bin"), dest)...)
	wantText(t, "get", read(t, dest), big)
	if st, err := os.Stat(dest); err != nil || st.Mode().Perm() != 0o750 {
		t.Errorf("get made mode %v, %v", st.Mode(), err)
	}
	var g getResult
	if err := json.Unmarshal([]byte(ok(t, s.args("get", "--json", s.at("/tasks/src.bin"), filepath.Dir(dest))...)), &g); err != nil ||
		g.Dest != filepath.Join(filepath.Dir(dest), "src.bin") || g.Size != int64(len(big)) {
		t.Errorf("get into a directory: %+v, %v", g, err)
	}
	wantText(t, "get to standard output", ok(t, s.args("get", s.at("/tasks/big"), "-")...), big)
	write(t, dest, "precious")
	fails(t, exitFailure, []string{"/tasks/none", "no such file"}, s.args("get", s.at("/tasks/none"), dest)...)
	wantText(t, "the destination of a get that failed", read(t, dest), "precious")
	if left, err := os.ReadDir(filepath.Dir(dest)); err != nil || len(left) != 2 {
		t.Errorf("get left %v, %v", left, err)
	}
	fails(t, exitFailure, []string{"/none/x"}, s.args("put", src, s.at("/none/x"))...)
	fails(t, exitFailure, []string{"directory"}, s.args("put", "-", s.at("/tasks"))...)
	fails(t, exitFailure, []string{"directory"}, s.args("put", filepath.Dir(src), s.at("/tasks/d"))...)
	fails(t, exitFailure, []string{"/nonexistent"}, s.args("put", "/nonexistent", s.at("/tasks/d"))...)
	fails(t, exitFailure, []string{"directory"}, s.args("cat", s.at("/tasks"))...)
}

func (s script) versions() {
	t := s.t
	texts := []string{"one", "two", "three"}
	for _, text := range texts {
		if r := runWith(t, text, s.args("put", "--mode", "600", "-", s.at("/tasks/v"))...); r.code != 0 {
			t.Fatalf("%+v", r)
		}
	}
	entries := lines[control.LogEntry](t, ok(t, s.args("log", "--json", s.at("/tasks/v"))...))
	if len(entries) != 3 {
		t.Fatalf("log: %+v", entries)
	}
	text := ok(t, s.args("log", s.at("/tasks/v"))...)
	for i, l := range entries {
		sum := fmt.Sprintf("%x", sha256.Sum256([]byte(texts[i])))
		if l.Number != i+1 || l.Size != int64(len(texts[i])) || l.SHA256 != sum || l.Agent != "tester" || l.Program != "holdfast put" || l.PID == 0 ||
			l.UID != uint32(os.Getuid()) {
			t.Errorf("entry %d: %+v", i, l)
		}
		if !strings.Contains(text, sum) {
			t.Errorf("the log does not show %s:\n%s", sum, text)
		}
		number, when := fmt.Sprintf("@%d", i+1), "@"+l.Time.Format(time.RFC3339Nano)
		wantText(t, number, ok(t, s.args("cat", s.at("/tasks/v"+number))...), texts[i])
		wantText(t, when, ok(t, s.args("cat", s.at("/tasks/v"+when))...), texts[i])
		wantText(t, "--at", ok(t, s.args("cat", "--at", number[1:], s.at("/tasks/v"))...), texts[i])
	}
	wantText(t, "now", ok(t, s.args("cat", s.at("/tasks/v@0s"))...), "three")
	fails(t, exitFailure, []string{"/tasks/v", "no such file"}, s.args("cat", s.at("/tasks/v@10h"))...)
	fails(t, exitFailure, []string{"version 9"}, s.args("cat", s.at("/tasks/v@9"))...)
	fails(t, exitUsage, []string{"when"}, s.args("cat", "--at", "when", s.at("/tasks/v"))...)
	fails(t, exitFailure, []string{"/tasks/none"}, s.args("log", s.at("/tasks/none"))...)
}

func (s script) listing() {
	t := s.t
	for _, name := range []string{".hidden", "b", "a"} {
		if r := runWith(t, name, s.args("put", "-", s.at("/status/"+name))...); r.code != 0 {
			t.Fatalf("%+v", r)
		}
	}
	wantText(t, "ls", ok(t, s.args("ls", s.at("/status"))...), "a\nb\n")
	wantText(t, "ls -a", ok(t, s.args("ls", "-a", s.at("/status"))...), ".hidden\na\nb\n")
	long := ok(t, s.args("ls", "-la", s.at("/status"))...)
	if strings.Count(long, "\n") != 3 || !strings.HasPrefix(long, "-rw-r--r--   1 ") || !strings.Contains(long, " v1 ") {
		t.Errorf("ls -la:\n%s", long)
	}
	entries := lines[control.Entry](t, ok(t, s.args("ls", "--json", "--all", s.at("/status"))...))
	if len(entries) != 3 || entries[1].Name != "a" || entries[1].Size != 1 || entries[1].Type != "file" || entries[1].Version != 1 || entries[1].Ino == 0 {
		t.Errorf("ls --json: %+v", entries)
	}
	if one := ok(t, s.args("ls", s.at("/status/a"))...); !strings.HasSuffix(one, "/status/a\n") {
		t.Errorf("ls of a file: %q", one)
	}
	fails(t, exitFailure, []string{"/none"}, s.args("ls", s.at("/none"))...)
}

func (s script) removal() {
	t := s.t
	ok(t, s.args("rm", s.at("/status/a"))...)
	fails(t, exitFailure, []string{"/status/a", "no such file"}, s.args("rm", s.at("/status/a"))...)
	fails(t, exitFailure, []string{"/status", "not empty"}, s.args("rm", s.at("/status"))...)
	wantText(t, "a removed file", ok(t, s.args("cat", s.at("/status/a@1"))...), "a")
	if log := ok(t, s.args("log", s.at("/status/a"))...); !strings.Contains(log, "removed") {
		t.Errorf("log of a removed file:\n%s", log)
	}
	var r rmResult
	if err := json.Unmarshal([]byte(ok(t, s.args("rm", "-r", "--json", s.at("/status"))...)), &r); err != nil || r.Path != "/status" {
		t.Errorf("rm --json: %+v, %v", r, err)
	}
	fails(t, exitFailure, []string{"/status"}, s.args("ls", s.at("/status"))...)
}

func (s script) strangeNames() {
	t := s.t
	for _, name := range []string{"user@example.com", "report@2", "-dash", "with space", "a:b", "per%41cent", "\xff\xfe", "new\nline"} {
		if r := runWith(t, "content of "+name, s.args("put", "-", s.at("/logs/"+name))...); r.code != 0 {
			t.Errorf("put %q: %+v", name, r)
			continue
		}
		wantText(t, name, ok(t, s.args("cat", s.at("/logs/"+name))...), "content of "+name)
		wantText(t, name+"@1", ok(t, s.args("cat", s.at("/logs/"+name+"@1"))...), "content of "+name)
	}
	// A file's own name comes before the version of another.
	if r := runWith(t, "v1", s.args("put", "-", s.at("/logs/report"))...); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	wantText(t, "report@2", ok(t, s.args("cat", s.at("/logs/report@2"))...), "content of report@2")
	fails(t, exitFailure, []string{"version 2"}, s.args("cat", "--at", "2", s.at("/logs/report"))...)
	names := lines[control.Entry](t, ok(t, s.args("ls", "--json", s.at("/logs"))...))
	if !slices.ContainsFunc(names, func(e control.Entry) bool { return string(e.NameBase64) == "\xff\xfe" }) {
		t.Errorf("a name that is not UTF-8 is lost in JSON: %+v", names)
	}
}

func TestStatus(t *testing.T) {
	p := newPlace(t)
	before := time.Now()
	pid := p.mount()
	for i := range 3 {
		write(t, fmt.Sprintf("%s/tasks/%d", p.dir, i), strings.Repeat("x", 100_000))
	}
	write(t, p.dir+"/tasks/0", "second version")
	st := statusOf(t, p.dir+"/tasks")
	if !st.Mounted || st.Mount == nil || st.Mount.PID != pid || st.Mount.Dir != p.dir || st.Mount.Since.Before(before) || st.Mount.ReadOnly ||
		st.Store != p.store || st.Format != 1 || st.Files != 3 || st.Directories != 6 || st.Versions < 4 || st.OldestVersion == nil ||
		st.JournalBytes <= 0 || st.JournalSeq == 0 || st.Problems == nil || len(st.Problems) != 0 || st.Requests["CREATE"] != 3 {
		t.Errorf("status: %+v, %+v", st, st.Mount)
	}
	// The names are a promise.
	var fields map[string]any
	if err := json.Unmarshal([]byte(ok(t, "status", p.store, "--json")), &fields); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		"store", "id", "format", "storage", "created", "mounted", "mount", "files", "directories", "versions", "oldest_version", "version_bytes", "blobs", "unique_bytes",
		"stored_bytes", "journal_bytes", "journal_seq", "synced_seq", "history", "open_files", "staged_bytes", "health", "problems", "requests",
	} {
		if _, ok := fields[name]; !ok {
			t.Errorf("status --json lacks %q", name)
		}
		delete(fields, name)
	}
	if len(fields) > 0 {
		t.Errorf("status --json has fields that nobody promised: %v", fields)
	}
	text := ok(t, "status", p.store)
	for _, w := range []string{p.store, p.dir, fmt.Sprint(pid), "3 files", "CREATE 3"} {
		if !strings.Contains(text, w) {
			t.Errorf("%q is not in:\n%s", w, text)
		}
	}
	if all := ok(t, "status"); !strings.Contains(all, p.dir) || !strings.Contains(all, "serving") {
		t.Errorf("status of all mounts:\n%s", all)
	}
	ok(t, "umount", p.dir)
	st = statusOf(t, p.store)
	if st.Mounted || st.Mount != nil || st.Requests != nil || st.Files != 3 || st.Blobs != 2 || st.UniqueBytes != 100_014 || st.VersionBytes < st.UniqueBytes || st.StoredBytes <= 0 ||
		st.StoredBytes > st.UniqueBytes {
		t.Errorf("status unmounted: %+v", st)
	}
	fails(t, exitNoStore, []string{p.dir}, "status", p.dir)
}

func TestDamageHasItsExitCode(t *testing.T) {
	p := newPlace(t, "--storage", "file")
	// status is basic: nothing has a second copy of what is in it.
	text := make([]byte, 300_000)
	for i := range text {
		text[i] = byte(i * i >> 7)
	}
	if r := runWith(t, string(text), "put", "-", p.store+":/status/f"); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	if r := runWith(t, "intact", "put", "-", p.store+":/status/g"); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	sum := fmt.Sprintf("%x", sha256.Sum256(text))
	damaged := 0
	err := filepath.WalkDir(p.store+"/blobs", func(path string, d iofs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasPrefix(d.Name(), sum) || strings.HasSuffix(d.Name(), ".json") {
			return err
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		b := make([]byte, 1)
		st, err := f.Stat()
		if err != nil {
			return err
		}
		if _, err := f.ReadAt(b, st.Size()/2); err != nil {
			return err
		}
		b[0] ^= 1
		damaged++
		_, err = f.WriteAt(b, st.Size()/2)
		return err
	})
	if err != nil || damaged != 1 {
		t.Fatalf("%d blobs were damaged, %v", damaged, err)
	}
	r := run(t, "cat", p.store+":/status/f")
	if r.code != exitDamage || !strings.Contains(r.stderr, "damaged") || !strings.HasPrefix(string(text), r.stdout) {
		t.Errorf("cat of a damaged file: exit code %d, %d bytes, %s", r.code, len(r.stdout), r.stderr)
	}
	dest := filepath.Join(t.TempDir(), "out")
	if r := run(t, "get", p.store+":/status/f", dest); r.code != exitDamage {
		t.Errorf("get of a damaged file: %+v", r)
	}
	if _, err := os.Stat(dest); err == nil {
		t.Error("a damaged file was put out")
	}
	p.mount()
	if r := run(t, "cat", p.dir+"/status/f"); r.code != exitDamage {
		t.Errorf("cat of a damaged file, mounted: exit code %d, %s", r.code, r.stderr)
	}
	wantText(t, "the other file", ok(t, "cat", p.dir+"/status/g"), "intact")
}

// TestInterrupt: an interrupted put changes nothing, mounted or not.
func TestInterrupt(t *testing.T) {
	p := newPlace(t)
	for _, isMounted := range []bool{false, true} {
		if r := runWith(t, "old", "put", "-", p.store+":/tasks/f"); r.code != 0 {
			t.Fatalf("%+v", r)
		}
		if isMounted {
			p.mount()
		}
		cmd := command(t, "put", "-", p.store+":/tasks/f")
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// More than the pipe holds: when Write returns the command is reading.
		// Its input stays open: it must not wait for the end of it.
		if _, err := in.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
		kill(t, cmd.Process.Pid, syscall.SIGINT)
		if code := exitOf(t, cmd.Wait(), cmd.Args); code != exitInterrupted {
			t.Errorf("mounted=%v: exit code %d", isMounted, code)
		}
		wantText(t, "after an interrupted put", ok(t, "cat", p.store+":/tasks/f"), "old")
		// The daemon hears of it a moment after the command has ended.
		until(t, "nothing is left of the put", func() bool { return ok(t, "ls", "-a", p.store+":/tasks") == "f\n" })
	}
}

// TestCommandsAtOnce: commands on a store that is not mounted wait for each other.
func TestCommandsAtOnce(t *testing.T) {
	p := newPlace(t)
	var wg sync.WaitGroup
	const n = 6
	for i := range n {
		wg.Go(func() {
			cmd := command(t, "put", "-", p.store+":/tasks/f")
			cmd.Stdin = strings.NewReader(fmt.Sprint(i))
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	wg.Wait()
	if l := lines[control.LogEntry](t, ok(t, "log", "--json", p.store+":/tasks/f")); len(l) != n {
		t.Errorf("%d puts made %d versions", n, len(l))
	}
}

// TestWholeOutputOrError: a reader that goes away ends a command, a full disk is an error.
func TestWholeOutputOrError(t *testing.T) {
	p := newPlace(t)
	if r := runWith(t, strings.Repeat("x", 1<<20), "put", "-", p.store+":/tasks/f"); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	for _, args := range [][]string{
		{"cat", p.store + ":/tasks/f"}, {"get", p.store + ":/tasks/f", "-"}, {"ls", p.store + ":/tasks"}, {"log", p.store + ":/tasks/f"},
		{"status", p.store}, {"status", "--json", p.store}, {"version"},
	} {
		cmd := command(t, args...)
		var errs strings.Builder
		cmd.Stdout, cmd.Stderr = full, &errs
		if code := exitOf(t, cmd.Run(), args); code != exitFailure || !strings.Contains(errs.String(), "no space") {
			t.Errorf("holdfast %q to a full disk: exit code %d, %s", args, code, errs.String())
		}
	}
	cmd := command(t, "cat", p.store+":/tasks/f")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	out.Close()
	if err := cmd.Wait(); err == nil {
		t.Error("cat to a reader that went away succeeded")
	}
}

// TestLongNames: get works with names that are as long as can be.
func TestLongNames(t *testing.T) {
	p := newPlace(t)
	name := strings.Repeat("n", 255)
	if r := runWith(t, "text", "put", "-", p.store+":/tasks/"+name); r.code != exitOK {
		t.Fatal(r)
	}
	to := t.TempDir()
	ok(t, "get", p.store+":/tasks/"+name, filepath.Join(to, name))
	wantText(t, "the copy", read(t, filepath.Join(to, name)), "text")
	fails(t, exitFailure, []string{filepath.Join(to, "none", "x") + ": "}, "get", p.store+":/tasks/"+name, filepath.Join(to, "none", "x"))
	if left, err := os.ReadDir(to); err != nil || len(left) != 1 {
		t.Errorf("%v, %v", left, err)
	}
}

// TestStatusOfADeadMount: the mount of a killed daemon still says which store it is of.
func TestStatusOfADeadMount(t *testing.T) {
	p := newPlace(t)
	pid := p.mount()
	kill(t, pid, syscall.SIGKILL)
	gone(t, pid)
	if out := ok(t, "status", p.dir); !strings.Contains(out, p.store) {
		t.Errorf("status says\n%s", out)
	}
	ok(t, "umount", p.dir)
}
