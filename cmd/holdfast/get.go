package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"holdfast/internal/control"
)

func (e *env) getCommand() spec {
	return spec{
		name: "get", usage: "copy a file, as it is or was, out of a store", args: "PATH[@VERSION|@TIME] DEST|-", min: 2, max: 2, onStore: true,
		help: versionHelp + `
DEST is replaced in one step, once the whole content has been read and verified; - means standard output.

Example: holdfast get ~/store:/tasks/report.json@2h report.old.json`,
		flags: []cli.Flag{atFlag()}, run: e.runGet,
	}
}

// getResult is what get --json writes.
type getResult struct {
	Path string `json:"path"`
	Dest string `json:"dest"`
	Size int64  `json:"size"`
}

func (e *env) runGet(ctx context.Context, c *cli.Context) error {
	dest := c.Args().Get(1)
	if dest == "-" && c.Bool("json") {
		return usagef("get", "--json and - would both write to standard output")
	}
	t, err := locate(c, c.Args().Get(0))
	if err != nil {
		return err
	}
	return e.with(ctx, t, true, func(ops control.Ops) error {
		t, at, err := e.version(ctx, c, ops, t)
		if err != nil {
			return err
		}
		if dest == "-" {
			_, err := ops.Get(ctx, t.path, at, e.stdout)
			return explain(t, err)
		}
		if st, err := os.Stat(dest); err == nil && st.IsDir() {
			dest = filepath.Join(dest, path.Base(t.path))
		}
		mode := fs.FileMode(0o644)
		if st, err := ops.Stat(ctx, t.path); err == nil {
			mode = fs.FileMode(st.Mode) & fs.ModePerm
		}
		p := e.newProgress(t.arg)
		n, err := save(dest, mode, func(w io.Writer) (int64, error) { return ops.Get(ctx, t.path, at, p.writer(w)) })
		p.done()
		if err != nil {
			return explain(t, err)
		}
		if c.Bool("json") {
			return e.document(getResult{t.path, dest, n})
		}
		return nil
	})
}

// save makes what fill writes the content of dest, in one step when dest is a regular file or not there.
func save(dest string, mode fs.FileMode, fill func(io.Writer) (int64, error)) (n int64, err error) {
	if st, err := os.Stat(dest); err == nil {
		if !st.Mode().IsRegular() {
			f, err := os.OpenFile(dest, os.O_WRONLY, 0)
			if err != nil {
				return 0, err
			}
			n, err := fill(f)
			return n, errors.Join(err, f.Close())
		}
		mode = st.Mode().Perm()
		if dest, err = filepath.EvalSymlinks(dest); err != nil {
			return 0, err
		}
	}
	// O_EXCL with the wanted mode, so that the umask counts as for any other new file.
	f, err := create(dest, mode)
	if err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	n, err = fill(f)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return n, err
	}
	return n, os.Rename(f.Name(), dest)
}

func create(dest string, mode fs.FileMode) (*os.File, error) {
	for i := 0; ; i++ {
		name := filepath.Join(filepath.Dir(dest), fmt.Sprintf(".holdfast-%d-%d", os.Getpid(), i)) // dest may be as long as a name can be
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("write %s: %w", dest, err)
		}
		if err == nil {
			return f, nil
		}
	}
}
