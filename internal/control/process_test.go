package control

import (
	"os"
	"os/exec"
	"testing"
)

// TestExited tells a process that has exited, and that nobody has collected yet, from one that runs.
func TestExited(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := pidfdOpen(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !p.exited() {
		t.Error("it has exited, and is said to run")
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if p.exited() || (process{pid: os.Getpid()}).exited() {
		t.Error("one that is not there, or runs, is said to have exited")
	}
}
