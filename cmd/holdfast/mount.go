package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"holdfast/fs"
	"holdfast/internal/volume"
)

// mountConfig is what a mount was asked to be. Paths are absolute and without symbolic links.
type mountConfig struct {
	store, dir string
	foreground bool
	readOnly   bool
	allowOther bool
	debug      bool
	options    []string // for fs.Mount
	cpuProfile string   // where a profile of the daemon's whole run goes; empty: none
	statusFD   int      // where the daemon says that it is ready, or why not; 0: nowhere
}

func (e *env) mountCommand() spec {
	return spec{
		name: "mount", usage: "mount a store at a directory", args: "STORE DIR", min: 2, max: 2,
		help: `Returns when the mount answers; the daemon goes on in the background and writes its log to STORE/holdfast.log (8 MiB, and
one older one). It ends when the mount is unmounted, by ` + "`holdfast umount DIR`" + `, fusermount3 -u, or SIGTERM to the daemon.

-o options: ro, allow_other, nonempty (mount over a directory that is not empty), debug, cpuprofile=FILE, and those of mount(8) that the
kernel knows, such as suid, dev, noexec.

Example: holdfast mount ~/store ~/work`,
		flags: []cli.Flag{
			&cli.BoolFlag{Name: "foreground", Aliases: []string{"f"}, Usage: "stay in the foreground and log to standard error"},
			&cli.BoolFlag{Name: "read-only", Usage: "nothing can be changed through the mount"},
			&cli.BoolFlag{Name: "allow-other", Usage: "other users may use the mount, as far as its permissions let them"},
			&cli.BoolFlag{Name: "debug", Usage: "log every request"},
			&cli.StringSliceFlag{Name: "option", Aliases: []string{"o"}, Usage: "mount `OPTION`s, separated by commas"},
			&cli.IntFlag{Name: "status-fd", Hidden: true},
		},
		run: e.runMount,
	}
}

// mountResult is what mount --json writes.
type mountResult struct {
	Store string `json:"store"`
	Dir   string `json:"dir"`
	PID   int    `json:"pid"`
}

func (e *env) runMount(ctx context.Context, c *cli.Context) error {
	m, err := mountArgs(c)
	if err != nil {
		return err
	}
	if m.foreground {
		return e.serve(ctx, m)
	}
	pid, err := startDaemon(ctx, m)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return e.document(mountResult{m.store, m.dir, pid})
	}
	return nil
}

func mountArgs(c *cli.Context) (mountConfig, error) {
	m := mountConfig{
		foreground: c.Bool("foreground"), readOnly: c.Bool("read-only"), allowOther: c.Bool("allow-other"),
		debug: c.Bool("debug"), statusFD: c.Int("status-fd"),
	}
	for _, o := range c.StringSlice("option") {
		name, value, _ := strings.Cut(o, "=")
		switch name {
		case "":
		case "ro":
			m.readOnly = true
		case "rw":
			m.readOnly = false
		case "allow_other":
			m.allowOther = true
		case "debug":
			m.debug = true
		case "cpuprofile":
			p, err := filepath.Abs(value)
			if err != nil || value == "" {
				return m, usagef("mount", "-o cpuprofile=FILE names no file")
			}
			m.cpuProfile = p
		default:
			m.options = append(m.options, o)
		}
	}
	store := c.Args().Get(0)
	if _, err := volume.ReadSettings(store); err != nil {
		return m, err
	}
	var err error
	if m.store, err = realPath(store); err != nil {
		return m, err
	}
	m.dir, err = mountPoint(c.Args().Get(1))
	if err != nil {
		return m, err
	}
	return m, nil
}

// mountPoint is the real path of the directory to mount at. A dead mount may lie on it: its own inode is not asked then.
func mountPoint(arg string) (string, error) {
	dir, err := realPath(arg)
	if errors.Is(err, unix.ENOTCONN) {
		return physical(arg), nil
	}
	if errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("%s: %w; make the directory first", arg, unix.ENOENT)
	}
	if err != nil {
		return "", err
	}
	st, err := os.Stat(dir)
	if errors.Is(err, unix.ENOTCONN) {
		return dir, nil
	}
	if err != nil {
		return "", err
	}
	if !st.IsDir() {
		return "", fmt.Errorf("%s: %w; a mount needs a directory", arg, unix.ENOTDIR)
	}
	return dir, nil
}

// clearMountPoint takes away the dead mounts of the store and the one at the directory. The caller holds the store's lock.
func clearMountPoint(m mountConfig) error {
	mounts, err := listMounts()
	if err != nil {
		return err
	}
	for _, old := range slices.Backward(mounts) {
		if old.Dir != m.dir && old.Store != m.store {
			continue
		}
		if _, err := fs.StaleMount(old.Dir); err != nil {
			return err
		}
	}
	return nil
}
