package acceptance

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// runRole is the main function of a worker process: the test binary started again, with the role in the environment.
func runRole(role string, args []string) error {
	if len(args) < 2 {
		return errors.New("a worker needs a directory and its number")
	}
	dir := args[0]
	id, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	if role == "open" {
		return holdOpen(dir, id, os.Stdin, os.Stdout)
	}
	// All begin together: when the test closes their standard input.
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	switch role {
	case "append":
		return appendLines(dir, id)
	case "claim":
		return claimTasks(dir, id)
	case "storm":
		return storm(dir, id)
	}
	return fmt.Errorf("no worker is called %q", role)
}

// startWorkers runs n processes of a role at once and returns what each printed.
func startWorkers(t *testing.T, role, dir string, n int) []string {
	t.Helper()
	exe, err := os.Executable()
	must(t, err)
	cmds := make([]*exec.Cmd, n)
	outs := make([]bytes.Buffer, n)
	errs := make([]bytes.Buffer, n)
	var gates []io.Closer
	for i := range cmds {
		c := exec.CommandContext(t.Context(), exe, dir, strconv.Itoa(i))
		c.Env = append(os.Environ(), roleVar+"="+role)
		c.Stdout, c.Stderr = &outs[i], &errs[i]
		gate, err := c.StdinPipe()
		must(t, err)
		must(t, c.Start())
		cmds[i] = c
		gates = append(gates, gate)
	}
	for _, g := range gates {
		must(t, g.Close())
	}
	res := make([]string, n)
	for i, c := range cmds {
		if err := c.Wait(); err != nil {
			t.Errorf("worker %d (%s): %v: %s", i, role, err, tail(errs[i].Bytes()))
		}
		res[i] = outs[i].String()
	}
	if t.Failed() {
		t.FailNow()
	}
	return res
}

const (
	appendWriters = 16
	appendCount   = 200
)

// appendLine is the i-th line of a writer: between 20 and 6000 bytes that can be checked.
func appendLine(id, i int) string {
	return fmt.Sprintf("%02d %05d %s\n", id, i, strings.Repeat(string(rune('a'+id)), 10+(id*7919+i*104729)%5980))
}

// appendLines appends whole lines with one write each; every third one opens the file anew.
func appendLines(dir string, id int) error {
	open := func() (*os.File, error) {
		return os.OpenFile(filepath.Join(dir, "log"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	}
	f, err := open()
	if err != nil {
		return err
	}
	for i := range appendCount {
		if i%3 == 0 {
			if err := f.Close(); err != nil {
				return err
			}
			if f, err = open(); err != nil {
				return err
			}
		}
		if _, err := f.WriteString(appendLine(id, i)); err != nil {
			return err
		}
	}
	return f.Close()
}

// TestAppendersLoseNothing has 16 processes append to one file: no line is lost, torn, repeated or out of its writer's order.
func TestAppendersLoseNothing(t *testing.T) {
	p := newPlace(t, placeOptions{})
	startWorkers(t, "append", p.dir, appendWriters)
	check := func() {
		f, err := os.Open(filepath.Join(p.dir, "log"))
		must(t, err)
		defer f.Close()
		var next [appendWriters]int
		r := bufio.NewReaderSize(f, 64<<10)
		for n := 1; ; n++ {
			line, err := r.ReadString('\n')
			if err == io.EOF && line == "" {
				break
			}
			must(t, err)
			id, err := strconv.Atoi(strings.SplitN(line, " ", 2)[0])
			if err != nil || id < 0 || id >= appendWriters {
				t.Fatalf("line %d is torn: %.60q", n, line)
			}
			if line != appendLine(id, next[id]) {
				t.Fatalf("line %d is not the line %d of writer %d: %.60q", n, next[id], id, line)
			}
			next[id]++
		}
		for id, n := range next {
			if n != appendCount {
				t.Errorf("writer %d appended %d lines, %d are there", id, appendCount, n)
			}
		}
	}
	check()
	p.reopen()
	check()
}

const (
	claimWorkers = 8
	claimTasksN  = 150
)

// claimTasks takes tasks in the three ways that agents use: renaming the task, making a lock file, making a directory.
func claimTasks(dir string, id int) error {
	won := map[string]int{}
	for i := range claimTasksN {
		mine := filepath.Join(dir, "claimed", fmt.Sprintf("%03d.%d", i, id))
		if err := os.Rename(filepath.Join(dir, "open", fmt.Sprintf("%03d", i)), mine); err == nil {
			won["rename"]++
		} else if !errors.Is(err, os.ErrNotExist) {
			return err
		}
		f, err := os.OpenFile(filepath.Join(dir, "locks", fmt.Sprintf("%03d.lock", i)), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err == nil {
			won["create"]++
			_, err = fmt.Fprintln(f, id)
			err = errors.Join(err, f.Close())
		}
		if err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		if err := os.Mkdir(filepath.Join(dir, "locks", fmt.Sprintf("%03d.d", i)), 0o755); err == nil {
			won["mkdir"]++
		} else if !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return json.NewEncoder(os.Stdout).Encode(won)
}

// TestClaims has 8 processes race for the same tasks: each task is won exactly once, in each way of claiming.
func TestClaims(t *testing.T) {
	p := newPlace(t, placeOptions{})
	for _, d := range []string{"open", "claimed", "locks"} {
		must(t, os.Mkdir(filepath.Join(p.dir, d), 0o755))
	}
	for i := range claimTasksN {
		must(t, os.WriteFile(filepath.Join(p.dir, "open", fmt.Sprintf("%03d", i)), fmt.Appendf(nil, "task %d", i), 0o644))
	}
	sum := map[string]int{}
	for _, out := range startWorkers(t, "claim", p.dir, claimWorkers) {
		won := map[string]int{}
		must(t, json.Unmarshal([]byte(out), &won))
		for k, v := range won {
			sum[k] += v
		}
	}
	for _, way := range []string{"rename", "create", "mkdir"} {
		if sum[way] != claimTasksN {
			t.Errorf("%d tasks were claimed %d times by %s", claimTasksN, sum[way], way)
		}
	}
	p.checkReopened()
	claimed, err := os.ReadDir(filepath.Join(p.dir, "claimed"))
	must(t, err)
	for i, e := range claimed {
		got, err := os.ReadFile(filepath.Join(p.dir, "claimed", e.Name()))
		must(t, err)
		if want := fmt.Sprintf("task %d", i); string(got) != want {
			t.Errorf("%s holds %q, want %q", e.Name(), got, want)
		}
	}
	if len(claimed) != claimTasksN {
		t.Errorf("%d tasks are claimed, want %d", len(claimed), claimTasksN)
	}
}

const (
	stormWorkers = 8
	stormDirs    = 4
)

func stormOps() int {
	if raceBuild {
		return 150
	}
	return 600
}

// storm makes, replaces, renames, links and removes files of its own names in directories that all share, and prints what it left.
func storm(dir string, id int) error {
	rnd := rand.New(rand.NewPCG(uint64(id), 42))
	have := map[string]string{} // path to content
	path := func() string {
		return fmt.Sprintf("d%d/w%d-%d", rnd.IntN(stormDirs), id, rnd.IntN(40))
	}
	for i := range stormOps() {
		name, other := path(), path()
		content, exists := have[name]
		var err error
		switch k := rnd.IntN(10); {
		case k < 4:
			content = strings.Repeat(fmt.Sprintf("%s %d ", name, i), 1+rnd.IntN(40))
			err = os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644)
			have[name] = content
		case k < 6 && exists && name != other:
			err = os.Rename(filepath.Join(dir, name), filepath.Join(dir, other))
			delete(have, name)
			have[other] = content
		case k < 7 && exists && name != other:
			_, taken := have[other]
			err = os.Link(filepath.Join(dir, name), filepath.Join(dir, other))
			if taken {
				if !errors.Is(err, os.ErrExist) {
					return fmt.Errorf("link over %s: %v, want that it exists", other, err)
				}
				err = nil
				break
			}
			if err != nil {
				return err
			}
			// The names part again, so that later writes to one do not change the other.
			err = os.WriteFile(filepath.Join(dir, other+".new"), []byte(content), 0o644)
			err = errors.Join(err, os.Rename(filepath.Join(dir, other+".new"), filepath.Join(dir, other)))
			have[other] = content
		case k < 9:
			err = os.Remove(filepath.Join(dir, name))
			if !exists && errors.Is(err, os.ErrNotExist) {
				err = nil
			}
			delete(have, name)
		default:
			got, rerr := os.ReadFile(filepath.Join(dir, name))
			if exists && (rerr != nil || string(got) != content) {
				return fmt.Errorf("%s: %d bytes, %v; want %d bytes", name, len(got), rerr, len(content))
			}
			if !exists && !errors.Is(rerr, os.ErrNotExist) {
				return fmt.Errorf("%s: %v, want that it is not there", name, rerr)
			}
		}
		if err != nil {
			return err
		}
	}
	return json.NewEncoder(os.Stdout).Encode(have)
}

// TestStorm has 8 processes work in the same directories at once; in the end exactly the expected files are there.
func TestStorm(t *testing.T) {
	p := newPlace(t, placeOptions{})
	for i := range stormDirs {
		must(t, os.Mkdir(filepath.Join(p.dir, fmt.Sprintf("d%d", i)), 0o755))
	}
	want := map[string]string{}
	for _, out := range startWorkers(t, "storm", p.dir, stormWorkers) {
		must(t, json.Unmarshal([]byte(out), &want))
	}
	check := func() {
		var names []string
		for i := range stormDirs {
			d := fmt.Sprintf("d%d", i)
			list, err := os.ReadDir(filepath.Join(p.dir, d))
			must(t, err)
			for _, e := range list {
				names = append(names, d+"/"+e.Name())
			}
		}
		for _, name := range names {
			content, ok := want[name]
			if !ok {
				t.Errorf("%s is there and should not be", name)
				continue
			}
			got, err := os.ReadFile(filepath.Join(p.dir, name))
			must(t, err)
			if string(got) != content {
				t.Errorf("%s has %d bytes that differ from the %d written", name, len(got), len(content))
			}
		}
		for name := range want {
			if !slices.Contains(names, name) {
				t.Errorf("%s is missing", name)
			}
		}
	}
	check()
	p.reopen()
	check()
}

const openWorkers = 4

// openEach is how many files each worker holds open. The daemon is ten times as slow under the race detector.
func openEach() int {
	if raceBuild {
		return 200
	}
	return 5000
}

func openName(dir string, id, i int) string { return filepath.Join(dir, fmt.Sprintf("%d-%d", id, i)) }

// holdOpen opens its files, with unwritten data in each, says so, and writes the rest when all the others hold theirs.
func holdOpen(dir string, id int, stdin io.Reader, stdout io.Writer) error {
	files := make([]*os.File, openEach())
	for i := range files {
		f, err := os.OpenFile(openName(dir, id, i), os.O_CREATE|os.O_RDWR, 0o644)
		if err != nil {
			return fmt.Errorf("open file %d: %w", i, err)
		}
		files[i] = f
		if _, err := f.WriteString("first half "); err != nil {
			return fmt.Errorf("write file %d: %w", i, err)
		}
	}
	if _, err := fmt.Fprintln(stdout, "open"); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, stdin); err != nil {
		return err
	}
	for i, f := range files {
		if _, err := f.WriteString(strconv.Itoa(i)); err != nil {
			return fmt.Errorf("write file %d: %w", i, err)
		}
	}
	for i, f := range files {
		if err := f.Close(); err != nil {
			return fmt.Errorf("close file %d: %w", i, err)
		}
	}
	return nil
}

// TestManyOpenFiles holds 20,000 files open at once, in four processes, with unwritten data in each.
func TestManyOpenFiles(t *testing.T) {
	p := newPlace(t, placeOptions{})
	exe, err := os.Executable()
	must(t, err)
	var gates []io.WriteCloser
	var cmds []*exec.Cmd
	opened := make(chan error, openWorkers)
	for id := range openWorkers {
		c := exec.CommandContext(t.Context(), exe, p.dir, strconv.Itoa(id))
		c.Env = append(os.Environ(), roleVar+"=open")
		c.Stderr = os.Stderr
		gate, err := c.StdinPipe()
		must(t, err)
		out, err := c.StdoutPipe()
		must(t, err)
		must(t, c.Start())
		cmds, gates = append(cmds, c), append(gates, gate)
		go func() {
			_, err := bufio.NewReader(out).ReadString('\n')
			opened <- err
		}()
	}
	for range openWorkers {
		if err := <-opened; err != nil {
			t.Errorf("a worker could not open its %d files: %v", openEach(), err)
		}
	}
	for _, g := range gates {
		must(t, g.Close())
	}
	for _, c := range cmds {
		must(t, c.Wait())
	}
	p.reopen()
	for id := range openWorkers {
		for i := range openEach() {
			got, err := os.ReadFile(openName(p.dir, id, i))
			must(t, err)
			if string(got) != "first half "+strconv.Itoa(i) {
				t.Fatalf("file %d of worker %d holds %q", i, id, got)
			}
		}
	}
}
