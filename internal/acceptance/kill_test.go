package acceptance

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

// TestKillLosesNothingClosed is the promise that everything else rests on: what close has acknowledged is there, byte for byte,
// after the daemon was killed in the middle of a storm, in each storage mode, kill after kill on the same store.
func TestKillLosesNothingClosed(t *testing.T) {
	for _, storage := range []string{"file", "hybrid", "database"} {
		t.Run(storage, func(t *testing.T) {
			const writers = 4
			rounds := 8
			if raceBuild {
				rounds = 3
			}
			rnd := newRand(t)
			m := newMount(t, placeOptions{storage: storage})
			m.start()
			c := &crowd{}
			for i := range writers {
				dir := filepath.Join(m.dir, "tasks", fmt.Sprint("writer", i))
				c.writers = append(c.writers, newWriter(dir, rnd.Uint64(), i%2 == 0, byClose))
			}
			for round := range rounds {
				if err := c.runUntil(20+rnd.Int64N(400), m.kill); err != nil {
					t.Fatalf("round %d, before the kill: %v", round, err)
				}
				if round%2 == 0 {
					m.detach() // otherwise the next daemon finds the dead mount
				}
				m.killWhileStarting(rnd, round%4)
				m.start()
				if err := c.check(); err != nil {
					t.Fatalf("round %d, after the kill: %v", round, err)
				}
			}
			m.stop()
			m.start()
			if err := c.check(); err != nil {
				t.Fatalf("after unmounting: %v", err)
			}
		})
	}
}

// killWhileStarting starts the daemon n times and kills it in the middle of its recovery: after a number of system calls
// that differs each time.
func (m *mount) killWhileStarting(rnd *rand.Rand, n int) {
	m.t.Helper()
	for range n {
		m.daemon = m.launch()
		calls := rnd.Int64N(300)
		for ended := false; !ended && ioCalls(m.daemon.cmd.Process.Pid) < calls; {
			select {
			case <-m.daemon.done:
				m.t.Fatalf("the daemon ended while it recovered: %v; its log:\n%s", m.daemon.err, m.log())
			default:
				ended = isMounted(m.dir) && answers(m.dir)
			}
		}
		m.kill()
		if rnd.IntN(2) == 0 {
			m.detach()
		}
	}
}

func answers(dir string) bool {
	_, err := os.Stat(dir)
	return err == nil
}

// ioCalls returns the number of read and write calls of a process so far.
func ioCalls(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	if err != nil {
		return 1 << 62
	}
	var sum int64
	for line := range bytes.Lines(b) {
		name, value, _ := bytes.Cut(bytes.TrimSpace(line), []byte(": "))
		if string(name) == "syscr" || string(name) == "syscw" {
			n, err := strconv.ParseInt(string(value), 10, 64)
			if err == nil {
				sum += n
			}
		}
	}
	return sum
}

// TestWritersModel runs the writers where nothing fails: what they expect is then exactly what is there. It runs on ext4 too.
func TestWritersModel(t *testing.T) {
	rnd := newRand(t)
	p := newPlace(t, placeOptions{})
	w := newWriter(filepath.Join(p.dir, "w"), rnd.Uint64(), true, byClose)
	must(t, os.MkdirAll(w.dir, 0o755))
	must(t, w.openLog())
	ops := 800
	if raceBuild {
		ops = 100
	}
	for i := range ops {
		if err := w.step(); err != nil {
			t.Fatalf("operation %d, %s: %v", i, w.what, err)
		}
		w.returned()
	}
	must(t, w.log.Close())
	w.logSynced = len(w.logAll)
	must(t, w.check())
	p.reopen()
	must(t, w.check())
}
