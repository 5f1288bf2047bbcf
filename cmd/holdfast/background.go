package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxDaemonOutput bounds what is read of a daemon that does not speak the protocol, in bytes.
const maxDaemonOutput = 64 << 10

// daemonStatus is the one line that a daemon writes to its status pipe.
type daemonStatus struct {
	Ready bool   `json:"ready"`
	Error string `json:"error,omitempty"`
	Code  int    `json:"code,omitempty"` // the exit code
}

// daemonError is an error that the daemon met before its mount answered.
type daemonError struct{ daemonStatus }

func (e *daemonError) Error() string { return e.daemonStatus.Error }

// startDaemon runs this program again as the daemon, in a session of its own, and returns its process id when the mount answers. On an error, or
// when ctx ends before that, no daemon stays.
func startDaemon(ctx context.Context, m mountConfig) (int, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	// The daemon gets no descriptor that this process inherited: it would hold other programs' pipes and locks for as long as it runs.
	if err := closeOnExec(); err != nil {
		return 0, errors.Join(err, w.Close())
	}
	cmd := exec.Command("/proc/self/exe", m.daemonArgs()...)
	cmd.Args[0] = "holdfast"
	cmd.Dir = "/"
	cmd.Stderr = w // of a daemon that dies before it can report
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return 0, errors.Join(fmt.Errorf("start the daemon: %w", err), w.Close())
	}
	if err := w.Close(); err != nil {
		return 0, err
	}
	kill := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
	defer kill()
	text, err := io.ReadAll(io.LimitReader(r, maxDaemonOutput))
	if err != nil {
		return 0, fmt.Errorf("wait for the daemon: %w", err)
	}
	var st daemonStatus
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	if json.Unmarshal(lines[len(lines)-1], &st) == nil && st.Ready {
		return cmd.Process.Pid, ctx.Err()
	}
	state := cmd.Wait()
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	if st.Error != "" {
		return 0, &daemonError{st}
	}
	return 0, fmt.Errorf("the daemon ended before the mount answered (%v); see %s/%s: %s", state, m.store, logName, lastLines(string(text)))
}

func lastLines(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-5):], "; ")
}

// daemonArgs are the arguments that make this program the daemon of m; the status pipe is descriptor 3.
func (m mountConfig) daemonArgs() []string {
	args := []string{"mount", "--foreground", "--status-fd", strconv.Itoa(3)}
	for _, f := range []struct {
		set  bool
		name string
	}{{m.readOnly, "--read-only"}, {m.allowOther, "--allow-other"}, {m.debug, "--debug"}} {
		if f.set {
			args = append(args, f.name)
		}
	}
	if m.cpuProfile != "" {
		args = append(args, "-o", "cpuprofile="+m.cpuProfile)
	}
	for _, o := range m.options {
		args = append(args, "-o", o)
	}
	return append(args, "--", m.store, m.dir)
}

// closeOnExec marks every descriptor but the first three.
func closeOnExec() error {
	err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC)
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("mark descriptors close-on-exec: %w", err)
	}
	// Linux before 5.11
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if fd, err := strconv.Atoi(entry.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}

// announce tells the process that started the daemon how it went, and lets go of it: descriptor 2 was the same pipe.
func announce(fd int, st daemonStatus) error {
	if fd == 0 {
		return nil
	}
	line, err := json.Marshal(st)
	if err != nil {
		return err
	}
	pipe := os.NewFile(uintptr(fd), "status pipe")
	if pipe == nil {
		return fmt.Errorf("--status-fd %d is not a descriptor", fd)
	}
	_, err = pipe.Write(append(line, '\n'))
	return errors.Join(err, pipe.Close(), silence(2))
}

// silence makes the descriptor one of /dev/null.
func silence(fd int) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	return unix.Dup3(int(null.Fd()), fd, 0)
}
