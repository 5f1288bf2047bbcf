package main

import (
	"bufio"
	"context"
	"errors"

	"github.com/urfave/cli/v2"

	"holdfast/internal/control"
)

const versionHelp = `@VERSION is a number of the log, @TIME a time as in 2026-01-31T12:00:00Z or how long ago, as in @10m or @7d.
A file that is itself called so comes first; --at says it apart from the path.`

func atFlag() cli.Flag {
	return &cli.StringFlag{Name: "at", Usage: "the `VERSION` or time that is meant"}
}

func (e *env) catCommand() spec {
	return spec{
		name: "cat", usage: "write a file, as it is or was, to standard output", args: "PATH[@VERSION|@TIME]", min: 1, max: 1, onStore: true,
		help:  versionHelp + "\n\nExample: holdfast cat ~/work/tasks/1.txt@1",
		flags: []cli.Flag{atFlag()}, run: e.runCat,
	}
}

func (e *env) runCat(ctx context.Context, c *cli.Context) error {
	t, err := locate(c, c.Args().First())
	if err != nil {
		return err
	}
	return e.with(ctx, t, true, func(ops control.Ops) error {
		t, at, err := e.version(ctx, c, ops, t)
		if err != nil {
			return err
		}
		out := bufio.NewWriterSize(e.stdout, 64<<10)
		_, err = ops.Get(ctx, t.path, at, out)
		return errors.Join(explain(t, err), out.Flush())
	})
}
