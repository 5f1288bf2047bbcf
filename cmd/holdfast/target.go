package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"holdfast/catalog"
	"holdfast/fs"
	"holdfast/internal/control"
	"holdfast/internal/volume"
	"holdfast/snapshots"
)

// target is a path inside a store.
type target struct {
	store string // absolute
	path  string // absolute within the store
	arg   string // as the user wrote it
}

// locate finds the store that an argument lies in, see pathHelp.
func locate(c *cli.Context, arg string) (target, error) {
	t := target{arg: arg}
	if store := c.String("store"); store != "" {
		if _, err := volume.ReadSettings(store); err != nil {
			return t, err
		}
		return t.in(store, arg)
	}
	if arg == "" {
		return t, usagef(c.Command.Name, "the path is empty")
	}
	if store, ok := strings.CutSuffix(arg, ":"); ok && isStore(store) {
		return t.in(store, "/")
	}
	for i := range len(arg) - 1 {
		if arg[i] == ':' && arg[i+1] == '/' && isStore(arg[:i]) {
			return t.in(arg[:i], arg[i+1:])
		}
	}
	mounts, err := listMounts()
	if err != nil {
		return t, err
	}
	if m, rel, ok := findMount(mounts, arg); ok {
		return t.in(m.Store, rel)
	}
	if store, _, ok := strings.Cut(arg, ":/"); ok && store != "" {
		_, err := volume.ReadSettings(store)
		return t, err
	}
	return t, noStore(arg)
}

func noStore(arg string) error {
	return fmt.Errorf("%s: %w, nor inside a mount of one; give a path inside a mount (`holdfast status` lists them) or STORE:/path",
		quoteAlways(arg), volume.ErrNoStore)
}

func isStore(dir string) bool {
	if dir == "" {
		return false
	}
	_, err := volume.ReadSettings(dir)
	return !errors.Is(err, volume.ErrNoStore) && !errors.Is(err, os.ErrPermission) && !errors.Is(err, os.ErrInvalid) &&
		!errors.Is(err, unix.ENOTCONN) // a mount whose daemon was killed
}

func (t target) in(store, path string) (target, error) {
	var err error
	if t.store, err = realPath(store); err != nil {
		return t, err
	}
	t.path, err = control.CleanPath(path)
	return t, err
}

// findMount returns the mount that path lies in, and the path inside it. The last component may be a symbolic link, which is then
// what is meant, and need not exist; neither need directories above it, since a removed file has a log too.
func findMount(mounts []mountEntry, path string) (mountEntry, string, bool) {
	candidates := []string{physical(path)}
	if p, err := filepath.EvalSymlinks(path); err == nil {
		if p, err = filepath.Abs(p); err == nil {
			candidates = append(candidates, p)
		}
	}
	for _, p := range candidates {
		var best mountEntry
		rel, found := "", false
		for _, m := range mounts {
			r, ok := strings.CutPrefix(p, m.Dir)
			if ok && (r == "" || r[0] == '/') && len(m.Dir) >= len(best.Dir) {
				best, rel, found = m, "/"+strings.TrimPrefix(r, "/"), true
			}
		}
		if found {
			return best, rel, true
		}
	}
	return mountEntry{}, "", false
}

// physical returns path as an absolute one without symbolic links in the directories that exist of it; the last component is not followed.
func physical(path string) string {
	abs, err := filepath.Abs(path)
	if err != nil {
		return path
	}
	if abs == "/" {
		return abs
	}
	rest := filepath.Base(abs)
	for dir := filepath.Dir(abs); ; dir = filepath.Dir(dir) {
		if p, err := filepath.EvalSymlinks(dir); err == nil {
			return filepath.Join(p, rest)
		}
		if dir == "/" {
			return abs
		}
		rest = filepath.Join(filepath.Base(dir), rest)
	}
}

// realPath is the absolute path of an existing directory without symbolic links.
func realPath(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(abs)
}

// open reaches the store: through its daemon when it is mounted, else by opening it, which only one command can do at a time.
func (e *env) open(ctx context.Context, store string, readOnly bool) (control.Ops, error) {
	log := slog.New(slog.NewTextHandler(e.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	// What opening makes in the store is for its owner only; what get makes elsewhere is not concerned.
	umask := unix.Umask(0o077)
	defer unix.Umask(umask)
	ops, err := control.Dial(ctx, store, control.DialOptions{ReadOnly: readOnly, Log: log, Services: dialServices})
	if err != nil {
		return nil, explainLock(err, store)
	}
	return ops, nil
}

// with runs fn on the store that t lies in.
func (e *env) with(ctx context.Context, t target, readOnly bool, fn func(control.Ops) error) error {
	ops, err := e.open(ctx, t.store, readOnly)
	if err != nil {
		return err
	}
	return errors.Join(fn(ops), ops.Close())
}

// version tells which state of t is meant, by --at or by an "@" at its end. A file that is itself called so comes first.
func (e *env) version(ctx context.Context, c *cli.Context, ops control.Ops, t target) (target, control.Selector, error) {
	if c.IsSet("at") {
		at, err := control.ParseSelector(c.String("at"), e.now())
		return t, at, err
	}
	path, at, ok := control.SplitTarget(t.path, e.now())
	if !ok {
		return t, at, e.future(ctx, ops, t.path)
	}
	if _, err := ops.Stat(ctx, t.path); err == nil {
		return t, control.Selector{}, nil
	} else if !errors.Is(err, catalog.ErrNotExist) && !errors.Is(err, catalog.ErrNotDir) {
		return t, at, err
	}
	t.path = path
	return t, at, nil
}

// future is snapshots.ErrFuture when a path ends in "@" and a time that has not come yet, and no file is called so.
func (e *env) future(ctx context.Context, ops control.Ops, path string) error {
	i := strings.LastIndexByte(path, '@')
	if i < 0 {
		return nil
	}
	if _, err := snapshots.ParseMoment(path[i:], e.now()); !errors.Is(err, snapshots.ErrFuture) {
		return nil
	} else if _, statErr := ops.Stat(ctx, path); !errors.Is(statErr, catalog.ErrNotExist) && !errors.Is(statErr, catalog.ErrNotDir) {
		return nil
	} else {
		return err
	}
}

// caller is who this process acts for.
func caller(command string) control.Caller {
	agent := fs.AgentName(os.Getenv("HOLDFAST_AGENT"))
	if agent == "" {
		if u, err := user.Current(); err == nil {
			agent = fs.AgentName(u.Username)
		} else {
			agent = strconv.Itoa(os.Getuid())
		}
	}
	return control.Caller{
		Agent: agent, Program: "holdfast " + command,
		UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), PID: uint32(os.Getpid()),
	}
}

// explain names what the user called a thing, where the error names only its place in the store.
func explain(t target, err error) error {
	if err == nil || strings.Contains(err.Error(), t.arg) {
		return err
	}
	return fmt.Errorf("%s: %w", quoteAlways(t.arg), err)
}
