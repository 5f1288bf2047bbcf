package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"holdfast/internal/control"
	"holdfast/snapshots"
)

func (e *env) logCommand() spec {
	return spec{
		name: "log", usage: "list the versions of a file, or what an agent has changed", args: "PATH | --agent AGENT [--since TIME] [PATH]", min: 0, max: 1, onStore: true,
		help: `One line for each version, the oldest first: number, time, size, SHA-256 and who wrote it. PATH need not exist any more.
--json writes one JSON document a line, with the fields number, time, size, sha256, agent, program, uid, pid, seq, ino, removed.
With --agent or --since, one line for each change at or below PATH (default: everywhere): time, journal record, what, path and who;
--json then has the fields seq, time, op, path, agent, program, uid, pid. TIME is how long ago (1h, 2h30m), @yesterday, or 2026-01-31T12:00:00Z.

Example: holdfast log ~/work/tasks/1.txt`,
		flags: []cli.Flag{
			&cli.StringFlag{Name: "agent", Usage: "the changes of this agent"},
			&cli.StringFlag{Name: "since", Usage: "the changes after this time"},
		},
		run: e.runLog,
	}
}

func (e *env) runLog(ctx context.Context, c *cli.Context) error {
	if c.IsSet("agent") || c.IsSet("since") {
		return e.runChanges(ctx, c)
	}
	if c.NArg() == 0 {
		return usagef("log", "wants PATH, or --agent AGENT, or --since TIME")
	}
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

// runChanges lists what the journal says.
func (e *env) runChanges(ctx context.Context, c *cli.Context) error {
	since, err := e.since(c)
	if err != nil {
		return err
	}
	agent, err := agentFlag(c)
	if err != nil {
		return err
	}
	t, err := e.maybePath(c)
	if err != nil {
		return err
	}
	q := snapshots.ChangeQuery{Agent: agent, Since: since, Path: t.path}
	return e.with(ctx, t, true, func(ops control.Ops) error {
		return explain(t, ops.Changes(ctx, q, func(ch snapshots.Change) error {
			if c.Bool("json") {
				return e.document(ch)
			}
			l := control.LogEntry{Agent: ch.Agent, Program: ch.Program, UID: ch.UID, PID: ch.PID}
			_, err := fmt.Fprintf(e.stdout, "%s  v%-8d  %-8s  %s  %s\n", formatTime(ch.Time), ch.Seq, ch.Op, e.quote(ch.Path), who(l))
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
