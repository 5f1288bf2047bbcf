package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"holdfast/internal/control"
	"holdfast/snapshots"
)

func (e *env) snapshotCommand() spec {
	return spec{
		name: "snapshot", usage: "name the present state, list, rename, pin and remove such names",
		args: "create [NAME] | list | show NAME | rename OLD NEW | pin NAME | unpin NAME | rm NAME", min: 1, max: 3, onStore: true,
		help: `A snapshot is a name for a moment; making one takes as long in a large store as in a small one. It is looked at in .snapshots/NAME of the mount.
Without NAME, create names it after the time. A pinned snapshot is never removed by retention, nor by rm. The store is that of the directory the command is
called in, or --store STORE.
--json writes one JSON document a line, with the fields name, seq, time, pinned, automatic.

Example: holdfast snapshot create before-the-merge --store ~/store`,
		flags: []cli.Flag{&cli.BoolFlag{Name: "dry-run", Aliases: []string{"n"}, Usage: "change nothing, only check and say what would be done"}},
		run:   e.runSnapshot,
	}
}

// storeHere is the root of the store that --store names, or that the current directory lies in.
func storeHere(c *cli.Context) (target, error) {
	if c.String("store") != "" {
		return locate(c, "/")
	}
	t, err := locate(c, ".")
	t.path = "/"
	return t, err
}

func (e *env) runSnapshot(ctx context.Context, c *cli.Context) error {
	action, args := c.Args().First(), c.Args().Tail()
	want := map[string][2]int{"create": {0, 1}, "list": {0, 0}, "show": {1, 1}, "rename": {2, 2}, "pin": {1, 1}, "unpin": {1, 1}, "rm": {1, 1}}
	n, known := want[action]
	if !known {
		return usagef("snapshot", "there is no %q; it is create, list, show, rename, pin, unpin or rm", action)
	}
	if len(args) < n[0] || len(args) > n[1] {
		return usagef("snapshot", "%s wants %d names, got %d", action, n[1], len(args))
	}
	for i, name := range args {
		check := snapshots.CheckName
		if action == "create" || i == 1 {
			check = snapshots.CheckNewName
		}
		if err := check(name); err != nil {
			return explainSnapshot(err)
		}
	}
	t, err := storeHere(c)
	if err != nil {
		return err
	}
	read := action == "list" || action == "show" || c.Bool("dry-run")
	return e.with(ctx, t, read, func(ops control.Ops) error {
		if action == "list" {
			list, err := ops.Snapshots(ctx)
			for i := 0; err == nil && i < len(list); i++ {
				err = e.showSnapshot(c, list[i])
			}
			return err
		}
		if action == "show" || c.Bool("dry-run") {
			return e.checkSnapshot(ctx, c, ops, action, args)
		}
		change := control.SnapshotChange{Action: action}
		if action == "rm" {
			change.Action = control.SnapshotRemove
		}
		if len(args) > 0 {
			change.Name = args[0]
		}
		if len(args) > 1 {
			change.To = args[1]
		}
		s, err := ops.ChangeSnapshot(ctx, caller("snapshot"), change)
		if err != nil {
			return err
		}
		if action == "rm" && !c.Bool("json") {
			return nil
		}
		return e.showSnapshot(c, s)
	})
}

// explainSnapshot makes the misuse of a name a mistake in how the command was called.
func explainSnapshot(err error) error {
	if errors.Is(err, snapshots.ErrMalformed) {
		return usagef("snapshot", "%v", err)
	}
	return err
}

// checkSnapshot shows a snapshot, or says of an action whether it could be done.
func (e *env) checkSnapshot(ctx context.Context, c *cli.Context, ops control.Ops, action string, args []string) error {
	list, err := ops.Snapshots(ctx)
	if err != nil {
		return err
	}
	found := make(map[string]control.Snapshot)
	for _, s := range list {
		found[s.Name] = s
	}
	made := "" // a name that must be free
	switch {
	case action == "create" && len(args) > 0:
		made = args[0]
	case action == "rename":
		made = args[1]
	}
	if made != "" {
		if _, taken := found[made]; taken {
			return fmt.Errorf("there is a snapshot %s already; choose another name", quoteAlways(made))
		}
	}
	if action == "create" {
		return nil
	}
	s, ok := found[args[0]]
	if !ok {
		return fmt.Errorf("there is no snapshot %s; `holdfast snapshot list` shows those that there are", quoteAlways(args[0]))
	}
	if action == "rm" && s.Pinned {
		return fmt.Errorf("snapshot %s is pinned; unpin it first", quoteAlways(s.Name))
	}
	return e.showSnapshot(c, s)
}

func (e *env) showSnapshot(c *cli.Context, s control.Snapshot) error {
	if c.Bool("json") {
		return e.document(s)
	}
	kind := ""
	if s.Automatic {
		kind = "  automatic"
	}
	if s.Pinned {
		kind += "  pinned"
	}
	_, err := fmt.Fprintf(e.stdout, "%s  v%-8d  %s%s\n", formatTime(s.Time), s.Seq, e.quote(s.Name), kind)
	return err
}
