package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"holdfast/blobstore"
	"holdfast/integrity"
	"holdfast/internal/control"
)

// errDamageFound is damage that is left: exit code 26.
var errDamageFound = errors.New("damage was found and is not healed")

func (e *env) checkCommand() spec {
	return spec{
		name: "check", usage: "verify files, or the whole store", args: "[PATH]", min: 0, max: 1, onStore: true,
		help: pathHelp + `
Without PATH all of the store is checked: every content, second copy and parity, the catalog against the journal, the journal, and the versions of every file.
It lists all that is wrong in one pass, by the names of the files. --repair heals what can be healed. It exits with 0 when nothing is damaged (any more), with 26
when something is.
--json writes one JSON document a line: {"result": ...} for each check that failed (with --passed for each), and last {"summary": ...}.

Example: holdfast check ~/mnt/tasks --all --repair`,
		flags: []cli.Flag{
			&cli.BoolFlag{Name: "all", Usage: "all versions, not only the newest"},
			&cli.BoolFlag{Name: "repair", Usage: "heal what is damaged"},
			&cli.BoolFlag{Name: "passed", Usage: "show what passed, too"},
		},
		run: e.runCheck,
	}
}

func (e *env) runCheck(ctx context.Context, c *cli.Context) error {
	args := checkArgs{Versions: c.Bool("all"), Repair: c.Bool("repair"), Passed: c.Bool("passed")}
	return e.check(ctx, c, c.Args().First(), args)
}

func (e *env) check(ctx context.Context, c *cli.Context, arg string, args checkArgs) error {
	t, err := storeHere(c)
	if arg != "" {
		if t, err = locate(c, arg); err == nil {
			args.Path = t.path
		}
	}
	if err != nil {
		return err
	}
	return e.with(ctx, t, !args.Repair, func(ops control.Ops) error {
		var sum *integrity.Summary
		err := control.CallEach(ctx, ops, caller("check"), opCheck, args, func(l checkLine) error {
			if l.Summary != nil {
				sum = l.Summary
			}
			if c.Bool("json") {
				return e.document(l)
			}
			if l.Result == nil {
				return nil
			}
			_, err := fmt.Fprintln(e.stdout, e.quote(resultLine(l.Result)))
			return err
		})
		if err != nil {
			return explain(t, err)
		}
		if sum == nil {
			return fmt.Errorf("%w: there is no summary", control.ErrDisconnected)
		}
		if !c.Bool("json") {
			if _, err := fmt.Fprintln(e.stdout, summaryLine(sum)); err != nil {
				return err
			}
		}
		if !sum.Healthy() {
			return fmt.Errorf("%w: %d of %d; `holdfast check --repair` heals what can be healed, `holdfast recover` lists what waits for you", errDamageFound, sum.Failed-sum.Healed,
				sum.Failed)
		}
		return nil
	})
}

// resultLine is a result for people.
func resultLine(r *integrity.Result) string {
	what := r.Path
	if what == "" {
		what = r.DataID
	}
	state := "ok"
	switch {
	case !r.Passed && r.RecoverySuccessful:
		state = "HEALED"
	case !r.Passed:
		state = "DAMAGED"
	}
	line := fmt.Sprintf("%s  %s  %s", state, r.Type, what)
	if r.Details != "" {
		line += ": " + r.Details
	}
	return line
}

func summaryLine(s *integrity.Summary) string {
	line := fmt.Sprintf("%d files, %d contents, %s, %d checks in %s: ", s.Files, s.Blobs, formatBytes(s.Bytes), s.Checks, s.Took.Round(time.Millisecond))
	switch {
	case s.Failed == 0:
		line += "nothing is damaged"
	case s.Healed == s.Failed:
		line += fmt.Sprintf("%d damages, all healed", s.Failed)
	default:
		line += fmt.Sprintf("%d damages, %d healed", s.Failed, s.Healed)
	}
	if s.Skipped > 0 {
		line += fmt.Sprintf("; %d could not be read", s.Skipped)
	}
	return line
}

func (e *env) levelCommand() spec {
	return spec{
		name: "level", usage: "show or set how well files are guarded", args: "PATH [basic|advanced|critical|inherit]", min: 1, max: 2, onStore: true,
		help: pathHelp + `
basic: every read is verified and every version kept. advanced: and what is large can be rebuilt from parity. critical: and there is a second copy, and a close returns
when both are on stable storage. A level holds for a file, or a directory and all that is below it; inherit takes it away again. It is the extended attribute
user.holdfast.level.
--json writes one JSON document with path, level and own.

Example: holdfast level ~/mnt/tasks critical`,
		run: e.runLevel,
	}
}

func (e *env) runLevel(ctx context.Context, c *cli.Context) error {
	t, err := locate(c, c.Args().First())
	if err != nil {
		return err
	}
	args := levelArgs{Path: t.path}
	switch level := c.Args().Get(1); level {
	case "", "basic", "advanced", "critical":
		args.Set = level
	case "inherit":
		args.Unset = true
	default:
		return usagef("level", "a level is basic, advanced, critical or inherit, not %q", level)
	}
	return e.with(ctx, t, args.Set == "" && !args.Unset, func(ops control.Ops) error {
		r, err := control.CallOne[levelResult](ctx, ops, caller("level"), opLevel, args)
		if err != nil {
			return explain(t, err)
		}
		if c.Bool("json") {
			return e.document(r)
		}
		from := "inherited"
		if r.Own {
			from = "its own"
		}
		_, err = fmt.Fprintf(e.stdout, "%s: %s (%s)\n", e.quote(t.arg), r.Level, from)
		return err
	})
}

func (e *env) scrubCommand() spec {
	return spec{
		name: "scrub", usage: "check everything in the background", args: "start | pause | resume | stop | status", min: 1, max: 1, onStore: true,
		help: `A mounted store is scrubbed by itself: a slice every five minutes, so that everything is checked once a week. start begins a whole pass now; with --wait the command
ends when the pass has. The store is that of the directory the command is called in, or --store STORE. A store that is not mounted is scrubbed by start --wait only.
With --errors-only it prints nothing but what was found damaged. It exits with 26 when something damaged is left.
--json writes one JSON document a line: the failures, and last the state.

Example: holdfast scrub start --wait --store ~/store`,
		flags: []cli.Flag{
			&cli.BoolFlag{Name: "wait", Usage: "wait until the pass has ended"},
			&cli.BoolFlag{Name: "errors-only", Usage: "print damage only"},
		},
		run: e.runScrub,
	}
}

func (e *env) runScrub(ctx context.Context, c *cli.Context) error {
	switch action := c.Args().First(); action {
	case "start", "pause", "resume", "stop", "status":
		return e.scrub(ctx, c, action, c.Bool("wait"), c.Bool("errors-only"))
	default:
		return usagef("scrub", "there is no %q; it is start, pause, resume, stop or status", action)
	}
}

func (e *env) scrub(ctx context.Context, c *cli.Context, action string, wait, errorsOnly bool) error {
	t, err := storeHere(c)
	if err != nil {
		return err
	}
	return e.with(ctx, t, action == "status" && !wait, func(ops control.Ops) error {
		who := caller("scrub")
		if _, mounted := ops.(*control.Client); !mounted && action == "start" && !wait {
			return usagef("scrub", "the store is not mounted: the pass would end with this command; use --wait")
		}
		st, err := control.CallOne[integrity.ScrubStatus](ctx, ops, who, opScrub, scrubArgs{action})
		if err != nil {
			return err
		}
		if !wait {
			return e.showScrub(c, &st, errorsOnly)
		}
		return e.awaitScrub(ctx, c, ops, who, errorsOnly)
	})
}

func (e *env) awaitScrub(ctx context.Context, c *cli.Context, ops control.Ops, who control.Caller, errorsOnly bool) error {
	st, err := control.CallOne[integrity.ScrubStatus](ctx, ops, who, opScrub, scrubArgs{"wait"})
	if err != nil {
		return err
	}
	if err := e.showFailures(ctx, c, ops, who, st.Last.Began); err != nil {
		return err
	}
	if err := e.showPass(c, &st, errorsOnly); err != nil {
		return err
	}
	s, err := control.CallOne[integrity.Status](ctx, ops, who, opStatus, struct{}{})
	if err != nil {
		return err
	}
	if s.Damaged > 0 || s.CatalogError != "" || st.Last.Found > st.Last.Healed {
		return fmt.Errorf("%w: %s", errDamageFound, s.Summary)
	}
	return nil
}

// showFailures shows what was found since a time.
func (e *env) showFailures(ctx context.Context, c *cli.Context, ops control.Ops, who control.Caller, since time.Time) error {
	return control.CallEach(ctx, ops, who, opFailures, failuresArgs{}, func(r integrity.Result) error {
		if r.Timestamp.Before(since) {
			return nil
		}
		if c.Bool("json") {
			return e.document(r)
		}
		_, err := fmt.Fprintln(e.stdout, e.quote(resultLine(&r)))
		return err
	})
}

// showPass shows what a pass that has ended did.
func (e *env) showPass(c *cli.Context, s *integrity.ScrubStatus, errorsOnly bool) error {
	if c.Bool("json") {
		return e.document(s)
	}
	if errorsOnly {
		return nil
	}
	l := &s.Last
	_, err := fmt.Fprintf(e.stdout, "pass %d: %d contents, %s, all checked; %d damages found, %d healed, %d parities and copies made\n", l.Cycle, l.Blobs, formatBytes(l.Bytes),
		l.Found, l.Healed, l.Made)
	return err
}

func (e *env) showScrub(c *cli.Context, s *integrity.ScrubStatus, errorsOnly bool) error {
	if c.Bool("json") {
		return e.document(s)
	}
	if errorsOnly {
		return nil
	}
	checked := "not everything has been checked yet"
	if !s.OldestCheck.IsZero() {
		checked = "everything was checked after " + formatTime(s.OldestCheck)
	}
	_, err := fmt.Fprintf(e.stdout, "%s: pass %d, %s, %.0f %%; %d contents, %s, %d damages found, %d healed, %d parities and copies made; %s\n", s.State, s.Cycle, s.Phase,
		100*s.Fraction, s.Blobs, formatBytes(s.Bytes), s.Found, s.Healed, s.Made, checked)
	return err
}

func (e *env) recoverCommand() spec {
	return spec{
		name: "recover", usage: "heal a file or directory, or list what waits for you", args: "[PATH | SHA256 FILE]", min: 0, max: 2, onStore: true,
		help: pathHelp + `
Without arguments it lists what could not be healed. With PATH it tries the strategies in their order: checksum_match (any intact copy: second copy, journal, parity ...),
backup_restore, version_rollback (the last intact version becomes the newest), timestamp_rollback (a directory's last intact moment), manual_recovery; --strategy
takes one of them. A rollback makes a new version: it can be undone. With SHA256 and FILE a content that waits is completed by the file, if it is that content.
It exits with 26 when damage is left.

Example: holdfast recover ~/mnt/tasks/plan.md --strategy version_rollback --dry-run`,
		flags: []cli.Flag{
			&cli.StringFlag{Name: "strategy", Usage: "one `STRATEGY` only"},
			&cli.BoolFlag{Name: "dry-run", Aliases: []string{"n"}, Usage: "change nothing, only say what would be done"},
			&cli.BoolFlag{Name: "all", Usage: "all versions, not only the newest"},
		},
		run: e.runRecover,
	}
}

func (e *env) runRecover(ctx context.Context, c *cli.Context) error {
	strategy, err := integrity.ParseStrategy(c.String("strategy"))
	if err != nil {
		return usagef("recover", "%v", err)
	}
	if c.NArg() == 1 {
		t, err := locate(c, c.Args().First())
		if err != nil {
			return err
		}
		return e.recoverPath(ctx, c, t, recoverArgs{Path: t.path, Strategy: strategy, DryRun: c.Bool("dry-run"), Versions: c.Bool("all")})
	}
	t, err := storeHere(c)
	if err != nil {
		return err
	}
	if c.NArg() == 2 {
		file, err := filepath.Abs(c.Args().Get(1))
		if err != nil {
			return err
		}
		id := strings.ToLower(c.Args().First())
		if _, err := blobstore.ParseHash(id); err != nil {
			return usagef("recover", "%v", err)
		}
		return e.with(ctx, t, false, func(ops control.Ops) error {
			err := control.CallEach(ctx, ops, caller("recover"), opComplete, completeArgs{id, file}, func(struct{}) error { return nil })
			if err == nil && !c.Bool("json") {
				_, err = fmt.Fprintf(e.stdout, "%s is whole again\n", id)
			}
			return err
		})
	}
	left := 0
	err = e.with(ctx, t, true, func(ops control.Ops) error {
		return control.CallEach(ctx, ops, caller("recover"), opDamaged, struct{}{}, func(d integrity.Damaged) error {
			left++
			if c.Bool("json") {
				return e.document(d)
			}
			_, err := fmt.Fprintf(e.stdout, "%s\n", integrity.ManualPage(&d))
			return err
		})
	})
	switch {
	case err == nil && left > 0:
		return fmt.Errorf("%w: %d wait for you", errDamageFound, left)
	case err == nil && !c.Bool("json"):
		_, err = fmt.Fprintln(e.stdout, "nothing is damaged, as far as is known")
	}
	return err
}

func (e *env) recoverPath(ctx context.Context, c *cli.Context, t target, args recoverArgs) error {
	return e.with(ctx, t, args.DryRun, func(ops control.Ops) error {
		err := control.CallEach(ctx, ops, caller("recover"), opRecover, args, func(r integrity.Recovery) error {
			if c.Bool("json") {
				return e.document(r)
			}
			for _, a := range r.Attempts {
				outcome := "failed"
				if a.Successful {
					outcome = "done"
				}
				if args.DryRun {
					outcome = "would be tried"
				}
				if _, err := fmt.Fprintf(e.stdout, "%s: %s from %s: %s %s\n", e.quote(a.Path), a.Strategy, a.Source, outcome, a.Details); err != nil {
					return err
				}
			}
			if r.Plan != "" && args.DryRun {
				_, err := fmt.Fprintln(e.stdout, r.Plan)
				return err
			}
			if r.Damaged == 0 && len(r.Attempts) == 0 {
				_, err := fmt.Fprintf(e.stdout, "%s: nothing is damaged\n", e.quote(t.arg))
				return err
			}
			return nil
		})
		return explain(t, err)
	})
}

func (e *env) monitorCommand() spec {
	return spec{
		name: "monitor", usage: "watch the state of the data", args: "start | check [PATH] | status | scan", min: 1, max: 2, onStore: true,
		help: `start shows what happens until it is interrupted: damage found, healed, rolled back, foreign changes of the store's files; the background checks of a mounted store go on
if they were paused. check verifies PATH, or everything, now. status says how the store is; it exits with 26 when it is not healthy. scan is a whole scrub
now, and waits for its end. The store is that of the directory the command is called in, or --store STORE.
--json writes one JSON document a line.

Example: holdfast monitor status --store ~/store --json`,
		run: e.runMonitor,
	}
}

func (e *env) runMonitor(ctx context.Context, c *cli.Context) error {
	action := c.Args().First()
	if c.NArg() > 1 && action != "check" {
		return usagef("monitor", "%s takes no arguments", action)
	}
	switch action {
	case "start":
		return e.monitorStart(ctx, c)
	case "check":
		return e.check(ctx, c, c.Args().Get(1), checkArgs{})
	case "status":
		return e.monitorStatus(ctx, c)
	case "scan":
		return e.scrub(ctx, c, "start", true, false)
	}
	return usagef("monitor", "there is no %q; it is start, check, status or scan", action)
}

func (e *env) monitorStart(ctx context.Context, c *cli.Context) error {
	t, err := storeHere(c)
	if err != nil {
		return err
	}
	return e.with(ctx, t, false, func(ops control.Ops) error {
		if _, mounted := ops.(*control.Client); !mounted {
			return fmt.Errorf("%s: %w: the daemon of a mount is what monitors it", t.store, control.ErrNotMounted)
		}
		who := caller("monitor")
		st, err := control.CallOne[integrity.ScrubStatus](ctx, ops, who, opScrub, scrubArgs{"status"})
		if err == nil && (st.State == integrity.ScrubPaused || st.State == integrity.ScrubStopped) {
			_, err = control.CallOne[integrity.ScrubStatus](ctx, ops, who, opScrub, scrubArgs{"resume"})
		}
		if err != nil {
			return err
		}
		return control.CallEach(ctx, ops, who, opEvents, struct{}{}, func(ev integrity.Event) error {
			if c.Bool("json") {
				return e.document(ev)
			}
			_, err := fmt.Fprintf(e.stdout, "%s  %-8s  %s\n", formatTime(ev.Time), ev.Kind, e.quote(ev.Text))
			return err
		})
	})
}

func (e *env) monitorStatus(ctx context.Context, c *cli.Context) error {
	t, err := storeHere(c)
	if err != nil {
		return err
	}
	return e.with(ctx, t, true, func(ops control.Ops) error {
		s, err := control.CallOne[integrity.Status](ctx, ops, caller("monitor"), opStatus, struct{}{})
		if err != nil {
			return err
		}
		if c.Bool("json") {
			err = e.document(s)
		} else if _, err = fmt.Fprintf(e.stdout, "%s\n", s.Summary); err == nil {
			err = e.showScrub(c, &s.Scrub, false)
		}
		if err == nil && !s.Healthy {
			err = fmt.Errorf("%w: %s", errDamageFound, s.Summary)
		}
		return err
	})
}
