package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"holdfast/internal/control"
)

func (e *env) logCommand() spec {
	return spec{
		name: "log", usage: "list the versions of a file", args: "PATH", min: 1, max: 1, onStore: true,
		help: `One line for each version, the oldest first: number, time, size, SHA-256 and who wrote it. PATH need not exist any more.
--json writes one JSON document a line, with the fields number, time, size, sha256, agent, program, uid, pid, seq, ino, removed.

Example: holdfast log ~/work/tasks/1.txt`,
		run: e.runLog,
	}
}

func (e *env) runLog(ctx context.Context, c *cli.Context) error {
	t, err := locate(c, c.Args().First())
	if err != nil {
		return err
	}
	return e.with(ctx, t, true, func(ops control.Ops) error {
		return explain(t, ops.Log(ctx, t.path, func(l control.LogEntry) error {
			if c.Bool("json") {
				return e.document(l)
			}
			if l.Removed {
				_, err := fmt.Fprintf(e.stdout, "%6s  %s  %10s\n", "-", formatTime(l.Time), "removed")
				return err
			}
			sum := l.SHA256
			if sum == "" {
				sum = "damaged" + strings.Repeat(" ", 57)
			}
			_, err := fmt.Fprintf(e.stdout, "%6d  %s  %10s  %s  %s\n", l.Number, formatTime(l.Time), formatBytes(l.Size), sum, who(l))
			return err
		}))
	})
}

func who(l control.LogEntry) string {
	name := quoteAlways(l.Agent)
	if name == "" {
		name = "?"
	}
	if l.Program != "" && !strings.HasSuffix(l.Agent, "/"+l.Program) {
		name += " with " + quoteAlways(l.Program)
	}
	return fmt.Sprintf("%s (uid %d, pid %d)", name, l.UID, l.PID)
}
