package control

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// process is a handle on a process that stays valid when its number is used again.
type process struct{ fd int }

func pidfdOpen(pid int) (process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return process{}, os.ErrProcessDone
	}
	if err != nil {
		return process{}, fmt.Errorf("watch process %d: %w", pid, err)
	}
	return process{fd}, nil
}

func (p process) Close() error { return unix.Close(p.fd) }

// wait polls the handle, which becomes readable when the process has ended.
func (p process) wait(ctx context.Context) error {
	const slice = 100 * time.Millisecond // how late the end of ctx may be noticed; the end of the process is noticed at once
	for ctx.Err() == nil {
		fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(slice.Milliseconds()))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for a process: %w", err)
		}
		if n > 0 {
			return nil
		}
	}
	return ctx.Err()
}
