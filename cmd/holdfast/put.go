package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"holdfast/catalog"
	"holdfast/internal/control"
)

func (e *env) putCommand() spec {
	return spec{
		name: "put", usage: "store a file as the new version of a path", args: "SRC|- PATH", min: 2, max: 2, onStore: true,
		help: `The content comes from the file SRC, or from standard input for -. PATH is replaced in one step, once the whole content
is on stable storage: until then, and after any error, it is what it was. A directory as PATH means the name of SRC in it.

Example: holdfast put report.json ~/store:/tasks/report.json`,
		flags: []cli.Flag{&cli.StringFlag{Name: "mode", Usage: "permissions of a new file in `OCTAL` digits (default: those of SRC, 644 for -)"}},
		run:   e.runPut,
	}
}

func (e *env) runPut(ctx context.Context, c *cli.Context) error {
	name := c.Args().Get(0)
	mode := uint32(0o644)
	var src io.Reader
	if name == "-" {
		src = interruptible(ctx, e.stdin)
	} else {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			return err
		}
		if st.IsDir() {
			return fmt.Errorf("%s is a directory; put stores one file", name)
		}
		if st.Mode().IsRegular() {
			mode = uint32(st.Mode().Perm())
		}
		src = interruptible(ctx, f)
	}
	if text := c.String("mode"); text != "" {
		m, err := strconv.ParseUint(text, 8, 32)
		if err != nil || m&^0o7777 != 0 {
			return usagef("put", "--mode is up to four octal digits, as in 640, not %q", text)
		}
		mode = uint32(m)
	}
	t, err := locate(c, c.Args().Get(1))
	if err != nil {
		return err
	}
	return e.with(ctx, t, false, func(ops control.Ops) error {
		if t.path, err = destination(ctx, ops, t, name); err != nil {
			return err
		}
		p := e.newProgress(name)
		written, err := ops.Put(ctx, caller("put"), t.path, mode, p.reader(src))
		p.done()
		if err != nil {
			return explain(t, err)
		}
		if c.Bool("json") {
			return e.document(written)
		}
		return nil
	})
}

// destination is the path to put to: a directory, or a path that ends with a slash, means the source's name in it.
func destination(ctx context.Context, ops control.Ops, t target, src string) (string, error) {
	st, err := ops.Stat(ctx, t.path)
	isDir := err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
	switch {
	case err != nil && !errors.Is(err, catalog.ErrNotExist):
		return "", explain(t, err)
	case isDir && src == "-":
		return "", fmt.Errorf("%s: %w; name the file to put in it", t.arg, catalog.ErrIsDir)
	case isDir:
		return path.Join(t.path, filepath.Base(src)), nil
	case strings.HasSuffix(t.arg, "/"):
		if err == nil {
			err = catalog.ErrNotDir
		}
		return "", explain(t, err)
	}
	return t.path, nil
}

// interruptible is r, but for a Read that fails when ctx ends: a pipe or a terminal may never yield anything, and an interrupt must not
// wait for it.
func interruptible(ctx context.Context, r io.Reader) io.Reader {
	if f, ok := r.(*os.File); ok {
		if st, err := f.Stat(); err == nil && st.Mode().IsRegular() {
			return r
		}
	}
	out, in := io.Pipe()
	context.AfterFunc(ctx, func() { in.CloseWithError(ctx.Err()) })
	go func() {
		// No error gets lost: CloseWithError hands it to the reader, nil as the end of the file.
		_, err := io.CopyBuffer(in, struct{ io.Reader }{r}, make([]byte, 128<<10))
		in.CloseWithError(err)
	}()
	return out
}
