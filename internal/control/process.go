package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// process is a handle on a process that stays valid when its number is used again.
type process struct{ fd, pid int }

func pidfdOpen(pid int) (process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return process{}, os.ErrProcessDone
	}
	if err != nil {
		return process{}, fmt.Errorf("watch process %d: %w", pid, err)
	}
	return process{fd, pid}, nil
}

func (p process) Close() error { return unix.Close(p.fd) }

// wait polls the handle, which becomes readable when the process has ended. One that has exited but for a thread that the kernel cannot end, because it waits for a network filesystem whose server
// is gone, has ended for us: nothing of it runs any more.
func (p process) wait(ctx context.Context) error {
	const slice = 100 * time.Millisecond // how late the end of ctx may be noticed; the end of the process is noticed at once
	const most = 10                      // slices in which such a thread may still end
	exited := 0
	for ctx.Err() == nil {
		fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(slice.Milliseconds()))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for a process: %w", err)
		}
		if n > 0 {
			return nil
		}
		if !p.exited() {
			exited = 0
		} else if exited++; exited == most {
			return nil
		}
	}
	return ctx.Err()
}

// exited says whether the process has exited and waits for its last threads to end.
func (p process) exited() bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	if err != nil {
		return false
	}
	_, rest, ok := strings.Cut(string(stat[bytes.LastIndexByte(stat, ')')+1:]), " ")
	return ok && strings.HasPrefix(rest, "Z")
}
