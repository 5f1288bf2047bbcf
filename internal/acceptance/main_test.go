package acceptance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	dirVar  = "HOLDFAST_TEST_DIR"
	binVar  = "HOLDFAST_TEST_BIN"
	seedVar = "HOLDFAST_TEST_SEED"
	roleVar = "HOLDFAST_TEST_ROLE" // set in the worker processes that a test starts
)

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVar); role != "" {
		if err := runRole(role, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	if os.Getenv(binVar) != "" || os.Getenv(dirVar) != "" {
		return m.Run()
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		fmt.Fprintln(os.Stderr, "these tests mount a filesystem and /dev/fuse is missing: load the fuse module, or start the container with --device /dev/fuse --cap-add SYS_ADMIN")
		return 1
	}
	tmp, err := os.MkdirTemp("", "holdfast-bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(tmp)
	bin := filepath.Join(tmp, "holdfast")
	args := []string{"build", "-o", bin}
	env := append(os.Environ(), "CGO_ENABLED=0")
	if raceBuild {
		args = append(args, "-race")
		env = append(os.Environ(), "CGO_ENABLED=1")
		if os.Getenv("GORACE") == "" {
			os.Setenv("GORACE", "atexit_sleep_ms=50") // for the daemons, which else wait a second before they end
		}
	}
	cmd := exec.Command("go", append(args, "holdfast/cmd/holdfast")...)
	cmd.Env = env
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building holdfast: %v\n%s", err, out)
		return 1
	}
	if err := os.Setenv(binVar, bin); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// newRand returns a generator whose seed is printed, and can be given in HOLDFAST_TEST_SEED.
func newRand(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv(seedVar); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("%s: %v", seedVar, err)
		}
		seed = n
	}
	t.Logf("seed: %s=%d", seedVar, seed)
	return rand.New(rand.NewPCG(seed, seed^0x9e3779b97f4a7c15))
}

// randomBytes returns n bytes that do not compress.
func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := 0; i+8 <= n; i += 8 {
		v := r.Uint64()
		for j := range 8 {
			b[i+j] = byte(v >> (8 * j))
		}
	}
	for i := n &^ 7; i < n; i++ {
		b[i] = byte(r.Uint32())
	}
	return b
}

// command is a program that a test runs.
type command struct {
	dir   string
	env   []string // added to the environment
	stdin string
	fail  bool // it is expected to fail
	asUID uint32
}

// run runs a program to its end and returns what it printed; an unexpected exit fails the test with the end of the output.
func (c command) run(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = c.dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Env = append(cmd.Env, c.env...)
	cmd.Stdin = strings.NewReader(c.stdin)
	cmd.SysProcAttr = credential(c.asUID)
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	switch {
	case errors.Is(err, exec.ErrNotFound):
		t.Fatalf("%s is not installed: scripts/test installs what the tests need", name)
	case ctx.Err() != nil:
		t.Fatalf("%s %s did not end in time:\n%s", name, strings.Join(args, " "), tail(out))
	case (err != nil) != c.fail:
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, tail(out))
	}
	return string(out)
}

// tail returns the end of an output.
func tail(out []byte) []byte {
	const most = 8 << 10
	if len(out) > most {
		out = out[len(out)-most:]
		if i := bytes.IndexByte(out, '\n'); i >= 0 {
			out = out[i+1:]
		}
	}
	return out
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
