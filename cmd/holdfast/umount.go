package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"holdfast/fs"
	"holdfast/internal/control"
	"holdfast/internal/volume"
)

// lazyPatience is how long umount --lazy waits for a daemon that nothing keeps.
const lazyPatience = 500 * time.Millisecond

func (e *env) umountCommand() spec {
	return spec{
		name: "umount", usage: "end a mount", args: "DIR|STORE", min: 1, max: 1,
		help: `Returns when the daemon has saved everything and ended, so that the store can be mounted again at once. A mount whose daemon was
killed is taken away. With --lazy a mount in use disappears at once, and its daemon ends when the last open file is closed.

Example: holdfast umount ~/work`,
		flags: []cli.Flag{&cli.BoolFlag{Name: "lazy", Aliases: []string{"l"}, Usage: "also when files in it are open"}},
		run:   e.runUmount,
	}
}

// umountResult is what umount --json writes.
type umountResult struct {
	Store string `json:"store"`
	Dir   string `json:"dir"`
	Ended bool   `json:"ended"` // the daemon has ended and the store is free
}

func (e *env) runUmount(ctx context.Context, c *cli.Context) error {
	m, err := findUmount(c.Args().First())
	if err != nil {
		return err
	}
	ended, err := unmount(ctx, m, c.Bool("lazy"))
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return e.document(umountResult{m.Store, m.Dir, ended})
	}
	if !ended {
		_, err = fmt.Fprintf(e.stderr, "%s is detached; the store %s stays in use until the last file in it is closed\n", m.Dir, m.Store)
	}
	return err
}

// findUmount finds the mount that the argument names, by its directory or its store.
func findUmount(arg string) (mountEntry, error) {
	mounts, err := listMounts()
	if err != nil {
		return mountEntry{}, err
	}
	dirs := []string{physical(arg)}
	if p, err := realPath(arg); err == nil {
		dirs = append(dirs, p)
	}
	for _, dir := range dirs {
		for i := len(mounts) - 1; i >= 0; i-- { // the topmost first
			if mounts[i].Dir == dir || mounts[i].Store == dir {
				return mounts[i], nil
			}
		}
	}
	for _, dir := range dirs {
		if isStore(dir) {
			return mountEntry{Store: dir}, nil
		}
	}
	if _, err := os.Lstat(arg); err != nil {
		return mountEntry{}, err
	}
	return mountEntry{}, fmt.Errorf("%s is no Holdfast mount and no store; `holdfast status` lists the mounts: %w", arg, control.ErrNotMounted)
}

// unmount ends the mount and waits for its daemon; ended is false when the daemon of a lazily detached mount goes on.
func unmount(ctx context.Context, m mountEntry, lazy bool) (ended bool, err error) {
	daemon, err := control.Connect(ctx, m.Store)
	switch {
	case err == nil:
		defer daemon.Close()
	case errors.Is(err, control.ErrNotMounted), errors.Is(err, os.ErrNotExist):
		if m.Dir == "" {
			return false, fmt.Errorf("%s: %w", m.Store, control.ErrNotMounted)
		}
		return unmountDirectly(ctx, m, lazy)
	case errors.Is(err, control.ErrForbidden) && m.Dir != "":
		return false, err
	default:
		return false, err
	}
	st, err := daemon.Status(ctx)
	if err == nil && m.Dir != "" && (st.Mount == nil || st.Mount.Dir != m.Dir) {
		return unmountDirectly(ctx, m, lazy) // a second, read-only mount of the store
	}
	if err == nil {
		err = daemon.Unmount(ctx, lazy)
	}
	// A daemon that is ending already has what is wanted.
	if err != nil && !errors.Is(err, control.ErrDisconnected) && !errors.Is(err, control.ErrNotMounted) {
		return false, err
	}
	return waitEnded(ctx, daemon.PID(), lazy)
}

func waitEnded(ctx context.Context, pid int, lazy bool) (bool, error) {
	if !lazy {
		return true, control.WaitProcess(ctx, pid)
	}
	short, cancel := context.WithTimeout(ctx, lazyPatience)
	defer cancel()
	err := control.WaitProcess(short, pid)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return false, nil
	}
	return err == nil, err
}

// unmountDirectly ends a mount that no daemon answers for: one whose daemon was killed, or a read-only one without a control socket.
func unmountDirectly(ctx context.Context, m mountEntry, lazy bool) (bool, error) {
	stale, err := fs.StaleMount(m.Dir)
	if err != nil || stale {
		return true, err
	}
	pid := volume.LockHolder(m.Store)
	if err := unmountError(m.Dir, fs.Unmount(m.Dir, lazy)); err != nil {
		return false, err
	}
	if pid == 0 || !isDaemon(pid) {
		return true, nil
	}
	return waitEnded(ctx, pid, lazy)
}

// isDaemon guards against a process number that was used again.
func isDaemon(pid int) bool {
	name, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(pid), "comm"))
	return err == nil && strings.HasPrefix(string(name), "holdfast")
}
