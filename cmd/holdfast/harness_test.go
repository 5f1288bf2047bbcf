package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/fs"
	"holdfast/internal/control"
)

// TestMain builds the program once: the tests drive it as a user does. With the race detector the program has it too, and what it finds in any
// process, a daemon in the background too, fails the tests.
func TestMain(m *testing.M) {
	os.Exit(buildAndRun(m))
}

// program names the environment variable that tells the tests where the program is.
const program = "HOLDFAST_TEST_PROGRAM"

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "holdfast-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	bin := filepath.Join(dir, "holdfast")
	build := exec.Command("go", "build", "-o", bin, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	races := filepath.Join(dir, "race")
	if raceBuild {
		build.Args = []string{"go", "build", "-race", "-o", bin, "."}
		build.Env = append(os.Environ(), "CGO_ENABLED=1")
		// For the processes that are started from here on. By default each waits a second before it ends.
		if err := os.Setenv("GORACE", "atexit_sleep_ms=50 log_path="+races); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the program: %v\n%s", err, out)
		return 1
	}
	if err := os.Setenv(program, bin); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	found, err := filepath.Glob(races + ".*")
	for _, name := range found {
		text, err := os.ReadFile(name)
		fmt.Printf("%s%v\n", text, err)
	}
	if err != nil || len(found) > 0 {
		fmt.Printf("the race detector has found something in %d processes: %v\n", len(found), err)
		code = 1
	}
	return code
}

// result is how a run of the program ended.
type result struct {
	stdout, stderr string
	code           int
}

func command(t testing.TB, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), os.Getenv(program), args...)
	cmd.Env = append(os.Environ(), "HOLDFAST_AGENT=tester")
	return cmd
}

func run(t testing.TB, args ...string) result {
	t.Helper()
	return runWith(t, "", args...)
}

func runWith(t testing.TB, stdin string, args ...string) result {
	t.Helper()
	cmd := command(t, args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	code := exitOf(t, cmd.Run(), args)
	return result{out.String(), errs.String(), code}
}

func exitOf(t testing.TB, err error, args []string) int {
	t.Helper()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if !exit.Exited() {
			t.Fatalf("holdfast %q ended by %v", args, exit)
		}
		return exit.ExitCode()
	}
	if err != nil {
		t.Fatalf("holdfast %q: %v", args, err)
	}
	return 0
}

// ok runs the program, which must succeed and say nothing on standard error, and returns its output.
func ok(t testing.TB, args ...string) string {
	t.Helper()
	r := run(t, args...)
	if r.code != exitOK || r.stderr != "" {
		t.Fatalf("holdfast %q: exit code %d\n%s%s", args, r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// fails runs the program, which must fail with the code, nothing on standard output, and one line on standard error that holds the words.
func fails(t testing.TB, code int, words []string, args ...string) {
	t.Helper()
	r := run(t, args...)
	if r.code != code || r.stdout != "" || strings.Count(r.stderr, "\n") != 1 || !strings.HasPrefix(r.stderr, "holdfast: ") {
		t.Errorf("holdfast %q: exit code %d, want %d and one line\nstdout: %sstderr: %s", args, r.code, code, r.stdout, r.stderr)
	}
	for _, w := range words {
		if !strings.Contains(r.stderr, w) {
			t.Errorf("holdfast %q: %q is not in: %s", args, w, r.stderr)
		}
	}
}

// place is a store and a directory to mount it at.
type place struct {
	t          testing.TB
	store, dir string
}

func newPlace(t testing.TB, initOptions ...string) place {
	t.Helper()
	return newPlaceIn(t, t.TempDir(), initOptions...)
}

func newPlaceIn(t testing.TB, base string, initOptions ...string) place {
	t.Helper()
	base, err := filepath.EvalSymlinks(base)
	if err != nil {
		t.Fatal(err)
	}
	p := place{t, filepath.Join(base, "store"), filepath.Join(base, "mnt")}
	if err := os.MkdirAll(p.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	ok(t, append(append([]string{"init"}, initOptions...), p.store)...)
	return p
}

// mount mounts the store and returns the daemon's process id. At the end of the test nothing of it is left.
func (p place) mount(options ...string) int {
	p.t.Helper()
	p.t.Cleanup(p.cleanUp)
	var m mountResult
	text := ok(p.t, append(append([]string{"mount", "--json"}, options...), p.store, p.dir)...)
	if err := json.Unmarshal([]byte(text), &m); err != nil || m.Dir != p.dir || m.Store != p.store || m.PID < 2 {
		p.t.Fatalf("mount --json wrote %s, %v", text, err)
	}
	return m.PID
}

// cleanUp ends whatever mount is left of the place; a failed test may leave one.
func (p place) cleanUp() {
	for range 5 {
		if !mounted(p.t, p.dir) {
			return
		}
		cmd := exec.Command(os.Getenv(program), "umount", "--lazy", p.dir)
		if out, err := cmd.CombinedOutput(); err != nil {
			p.t.Errorf("cleaning up %s: %v: %s", p.dir, err, out)
		}
	}
}

func mounted(t testing.TB, dir string) bool {
	t.Helper()
	all, err := fs.Mounts()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		if m.Dir == dir {
			return true
		}
	}
	return false
}

// hang is when a test gives up on what never happens, so that it still cleans up.
const hang = time.Minute

// until waits for a condition that another process brings about.
func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), hang)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: it never happened", what)
		}
	}
}

// gone waits until a process has ended.
func gone(t testing.TB, pid int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), hang)
	defer cancel()
	if err := control.WaitProcess(ctx, pid); err != nil {
		t.Fatalf("process %d goes on: %v", pid, err)
	}
}

func kill(t testing.TB, pid int, sig syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, sig); err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func wantText(t testing.TB, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %.200q, want %.200q", what, got, want)
	}
}

// holder is a process that keeps something in a mount busy until let go.
type holder struct {
	cmd *exec.Cmd
	in  interface{ Close() error }
}

// hold runs a shell script that says "ready" when it holds what it should, and ends when its standard input does.
func hold(t testing.TB, dir, script string) holder {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", script+"; echo ready; read x")
	cmd.Dir = dir
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
	line := make([]byte, 6)
	if _, err := out.Read(line); err != nil || string(line) != "ready\n" {
		t.Fatalf("the holder says %q, %v", line, err)
	}
	h := holder{cmd, in}
	t.Cleanup(h.letGo)
	return h
}

// letGo ends the process and waits for it.
func (h holder) letGo() {
	h.in.Close()
	h.cmd.Wait() // "read" fails at the end of input: its exit code means nothing
}
