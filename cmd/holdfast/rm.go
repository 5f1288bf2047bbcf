package main

import (
	"context"

	"github.com/urfave/cli/v2"

	"holdfast/internal/control"
)

func (e *env) rmCommand() spec {
	return spec{
		name: "rm", usage: "remove a file or directory; its versions are kept", args: "PATH", min: 1, max: 1, onStore: true,
		help: `What was removed stays in the log of its path, and cat PATH@VERSION still reads it.

Example: holdfast rm -r ~/store:/logs/old`,
		flags: []cli.Flag{&cli.BoolFlag{Name: "recursive", Aliases: []string{"r"}, Usage: "remove a directory with everything in it"}},
		run:   e.runRm,
	}
}

// rmResult is what rm --json writes.
type rmResult struct {
	Store string `json:"store"`
	Path  string `json:"path"`
}

func (e *env) runRm(ctx context.Context, c *cli.Context) error {
	t, err := locate(c, c.Args().First())
	if err != nil {
		return err
	}
	return e.with(ctx, t, false, func(ops control.Ops) error {
		if err := ops.Remove(ctx, caller("rm"), t.path, c.Bool("recursive")); err != nil {
			return explain(t, err)
		}
		if c.Bool("json") {
			return e.document(rmResult{t.store, t.path})
		}
		return nil
	})
}
