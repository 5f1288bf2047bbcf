package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"holdfast/fs"
	"holdfast/internal/control"
	"holdfast/snapshots"
)

const momentHelp = `MOMENT is the name of a snapshot, a time (@2026-01-31T12:00:00Z), how long ago (@10m, @2h30m, @1d), @today, @yesterday, or a
journal record (@v1234); the @ may be left out.`

// moment reads a MOMENT. What is no moment by itself is the name of a snapshot.
func (e *env) moment(command, text string) (snapshots.Moment, error) {
	m, err := snapshots.ParseMoment("@"+strings.TrimPrefix(text, "@"), e.now())
	if errors.Is(err, snapshots.ErrMalformed) && !strings.HasPrefix(text, "@") {
		m, err = snapshots.ParseMoment(text, e.now())
	}
	if err == nil && !m.Relative && !m.Time.IsZero() && !strings.HasPrefix(text, "@") && snapshots.CheckName(text) == nil {
		m = snapshots.Moment{Name: text} // an automatic snapshot, if there is one of that name; else the time
	}
	if err != nil {
		return m, usagef(command, "%v", err)
	}
	return m, nil
}

// since reads the value of --since: as a MOMENT that is a time.
func (e *env) since(c *cli.Context) (time.Time, error) {
	if !c.IsSet("since") {
		return time.Time{}, nil
	}
	m, err := e.moment(c.Command.Name, "@"+strings.TrimPrefix(c.String("since"), "@"))
	if err == nil && m.Time.IsZero() {
		err = usagef(c.Command.Name, "--since wants a time, such as 10m or 2026-01-31T12:00:00Z, not %s", quoteAlways(c.String("since")))
	}
	return m.Time, err
}

func (e *env) restoreCommand() spec {
	return spec{
		name: "restore", usage: "make a file or directory what it was", args: "PATH --at MOMENT", min: 1, max: 1, onStore: true,
		help: momentHelp + `
What was not there at the moment is removed from PATH; with --to DIR nothing is replaced, and a copy is made in that directory instead. Content is not copied: a
large file takes as long as a small one. Modes, owners, times, extended attributes and links come back too. It is done as a whole or not at all, is a new
version, and can be undone: what was there before stays in the history.
--json writes one JSON document a line: the fields action (restored, changed, removed, left), path, and reason for what was left; the last has seq, the
number of the journal record that did it.

Example: holdfast restore ~/work/tasks --at @10m`,
		flags: []cli.Flag{
			&cli.StringFlag{Name: "at", Usage: "the moment"},
			&cli.StringFlag{Name: "to", Usage: "an existing directory that gets a copy, by its path in the store or in the mount", TakesFile: true},
			&cli.BoolFlag{Name: "dry-run", Aliases: []string{"n"}, Usage: "change nothing, only say what would be done"},
		},
		run: e.runRestore,
	}
}

func (e *env) runRestore(ctx context.Context, c *cli.Context) error {
	if !c.IsSet("at") {
		return usagef("restore", "which moment? Give --at MOMENT")
	}
	at, err := e.moment("restore", c.String("at"))
	if err != nil {
		return err
	}
	t, err := locate(c, c.Args().First())
	if err != nil {
		return err
	}
	r := control.RestoreRequest{Path: t.path, At: at, DryRun: c.Bool("dry-run")}
	if c.IsSet("to") {
		to, err := locate(c, c.String("to"))
		if err != nil {
			return err
		}
		if to.store != t.store {
			return usagef("restore", "%s lies in another store; copy it from .snapshots instead", quoteAlways(to.arg))
		}
		r.To = to.path
	}
	return e.with(ctx, t, false, func(ops control.Ops) error {
		return e.showSteps(c, t, func(fn func(snapshots.Step) error) (uint64, error) { return ops.Restore(ctx, caller("restore"), r, fn) })
	})
}

func (e *env) undoCommand() spec {
	return spec{
		name: "undo", usage: "take back what an agent has changed, or what anybody has in a directory", args: "--since TIME [--agent AGENT] [PATH]",
		min: 0, max: 1, onStore: true,
		help: `TIME is how long ago (10m, 2h30m, 1d), @today, @yesterday or a time (2026-01-31T12:00:00Z). With --agent, PATH may be left out, and the whole store is meant.
Names, contents and attributes that were changed since TIME become what they were. It is done as a whole or not at all, is a new version, and can be undone
in the same way, by naming the agent that called undo. What another agent has built on since is left as it is and reported, unless --force.
--json writes one JSON document a line, as restore does; what was left has a reason, and the agent that has built on it.

Example: holdfast undo --agent agent-3 --since 10m`,
		flags: []cli.Flag{
			&cli.StringFlag{Name: "agent", Usage: "take back the changes of this agent only"},
			&cli.StringFlag{Name: "since", Usage: "the changes after this time"},
			&cli.BoolFlag{Name: "force", Usage: "also what others have built on since"},
			&cli.BoolFlag{Name: "dry-run", Aliases: []string{"n"}, Usage: "change nothing, only say what would be done"},
		},
		run: e.runUndo,
	}
}

func (e *env) runUndo(ctx context.Context, c *cli.Context) error {
	if !c.IsSet("since") {
		return usagef("undo", "since when? Give --since TIME")
	}
	since, err := e.since(c)
	if err != nil {
		return err
	}
	agent, err := agentFlag(c)
	if err != nil {
		return err
	}
	if agent == "" && c.NArg() == 0 {
		return usagef("undo", "whose changes, or where? Give --agent AGENT, or PATH")
	}
	t, err := e.maybePath(c)
	if err != nil {
		return err
	}
	u := snapshots.Undo{Agent: agent, Since: since, Path: t.path, Force: c.Bool("force"), DryRun: c.Bool("dry-run")}
	return e.with(ctx, t, false, func(ops control.Ops) error {
		return e.showSteps(c, t, func(fn func(snapshots.Step) error) (uint64, error) { return ops.Undo(ctx, caller("undo"), u, fn) })
	})
}

// agentFlag is the agent that --agent names, "" when it is not given. An empty name, such as that of a variable that is not set, names nobody: it is
// not taken for everybody.
func agentFlag(c *cli.Context) (string, error) {
	agent := fs.AgentName(c.String("agent"))
	if agent == "" && c.IsSet("agent") {
		return "", usagef(c.Command.Name, "--agent wants the name of an agent, not %q", c.String("agent"))
	}
	return agent, nil
}

// maybePath is the path that was given, or the root of the store that the command is called in.
func (e *env) maybePath(c *cli.Context) (target, error) {
	if c.NArg() > 0 {
		return locate(c, c.Args().First())
	}
	return storeHere(c)
}

// stepsDone is the last line of restore --json and undo --json.
type stepsDone struct {
	Seq    uint64 `json:"seq"` // 0 when nothing was changed
	DryRun bool   `json:"dry_run"`
}

// showSteps runs a restore or an undo and shows what it has done.
func (e *env) showSteps(c *cli.Context, t target, run func(func(snapshots.Step) error) (uint64, error)) error {
	if !c.Bool("json") && isTerminal(e.stderr) {
		fmt.Fprintf(e.stderr, "%s: looking at what has changed...", quoteAlways(t.path))
		defer fmt.Fprint(e.stderr, "\r\033[K")
	}
	done, left := 0, 0
	seq, err := run(func(s snapshots.Step) error {
		if s.Action == snapshots.StepLeft {
			left++
		} else {
			done++
		}
		if c.Bool("json") {
			return e.document(s)
		}
		text := s.Action
		if s.Reason != "" {
			text += ": " + quoteAlways(s.Reason)
		}
		_, err := fmt.Fprintf(e.stdout, "%s  %s\n", e.quote(s.Path), text)
		return err
	})
	if err != nil {
		return explain(t, err)
	}
	if c.Bool("json") {
		return e.document(stepsDone{seq, c.Bool("dry-run")})
	}
	switch {
	case done == 0:
		_, err = fmt.Fprintf(e.stdout, "Nothing was changed, %d left.\n", left)
	case c.Bool("dry-run"):
		_, err = fmt.Fprintf(e.stdout, "%d would be changed, %d left; nothing was done.\n", done, left)
	default:
		_, err = fmt.Fprintf(e.stdout, "%d changed, %d left, in journal record v%d.\n", done, left, seq)
	}
	return err
}

func (e *env) diffCommand() spec {
	return spec{
		name: "diff", usage: "list what differs between two moments", args: "MOMENT MOMENT [PATH]", min: 2, max: 3, onStore: true,
		help: momentHelp + ` "now" is the present.
One line for each path: + added, - removed, M changed (and in what), R renamed. Without PATH, the store that the command is called in is meant.
--json writes one JSON document a line, with the fields kind, path, from (of what was renamed), type, fields, size, ino.

Example: holdfast diff @10m now ~/work/tasks`,
		run: e.runDiff,
	}
}

func (e *env) runDiff(ctx context.Context, c *cli.Context) error {
	var at [2]snapshots.Moment
	for i := range at {
		var err error
		if at[i], err = e.moment("diff", c.Args().Get(i)); err != nil {
			return err
		}
	}
	var t target
	var err error
	if c.NArg() == 3 {
		t, err = locate(c, c.Args().Get(2))
	} else {
		t, err = storeHere(c)
	}
	if err != nil {
		return err
	}
	marks := map[string]string{snapshots.DiffAdded: "+", snapshots.DiffRemoved: "-", snapshots.DiffChanged: "M", snapshots.DiffRenamed: "R"}
	return e.with(ctx, t, true, func(ops control.Ops) error {
		return explain(t, ops.Diff(ctx, at[0], at[1], t.path, func(d snapshots.Difference) error {
			if c.Bool("json") {
				return e.document(d)
			}
			text := e.quote(d.Path)
			if d.From != "" {
				text = e.quote(d.From) + " -> " + text
			}
			if len(d.Fields) > 0 {
				text += "  (" + strings.Join(d.Fields, ", ") + ")"
			}
			_, err := fmt.Fprintf(e.stdout, "%s %s\n", marks[d.Kind], text)
			return err
		}))
	})
}
