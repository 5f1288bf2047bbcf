package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"holdfast/internal/control"
	"holdfast/internal/volume"
)

func (e *env) retentionCommand() spec {
	return spec{
		name: "retention", usage: "show, or change, how much of the past is kept", args: "show [PATH] | set PATH OPTIONS | unset PATH", min: 1, max: 2, onStore: true,
		help: `Every moment is kept for a while (24h), then the last of each hour (7d), of each day (30d) and of each week (1y). A directory can have a policy of its own, which
holds for all below it; what it does not set comes from above, but for --max-bytes. Pinned snapshots, those made by hand, and what they hold, stay in any case.
set puts its options in the place of all that was set for PATH; unset takes them away. A change holds from the next gc on, and is kept in holdfast.toml. What
is thinned away does not come back.
SPAN is 24h, 7d, 2w, 1y, a sum such as 1d12h, or 0; BYTES is 1048576, 512MiB or 10GiB.
--json writes one JSON document a line, with the fields path, keep_all, hourly, daily, weekly, max_versions, max_bytes, own, exists, oldest, horizon, moments.

Example: holdfast retention set ~/work/status --keep-all 1h --hourly 1d --daily 0 --weekly 0`,
		flags: []cli.Flag{
			&cli.StringFlag{Name: "keep-all", Usage: "keep every moment for `SPAN`"},
			&cli.StringFlag{Name: "hourly", Usage: "then the last of each hour, until it is `SPAN` old"},
			&cli.StringFlag{Name: "daily", Usage: "then the last of each day, until it is `SPAN` old"},
			&cli.StringFlag{Name: "weekly", Usage: "then the last of each week, until it is `SPAN` old"},
			&cli.StringFlag{Name: "max-versions", Usage: "at most `N` versions of one file, the newest; 0: no bound"},
			&cli.StringFlag{Name: "max-bytes", Usage: "at most `BYTES` that only the past has; 0: no bound"},
			&cli.BoolFlag{Name: "dry-run", Aliases: []string{"n"}, Usage: "change nothing, only say what would be in force"},
		},
		run: e.runRetention,
	}
}

func (e *env) runRetention(ctx context.Context, c *cli.Context) error {
	action := c.Args().First()
	set, err := retentionOptions(c)
	if err != nil {
		return err
	}
	switch {
	case action != "show" && action != "set" && action != "unset":
		return usagef("retention", "there is no %q; it is show, set or unset", action)
	case action != "show" && c.NArg() != 2:
		return usagef("retention", "%s wants PATH", action)
	case action == "set" && len(set.Own()) == 0:
		return usagef("retention", "what is to be kept? Give --keep-all, --hourly, --daily, --weekly, --max-versions or --max-bytes")
	case action != "set" && len(set.Own()) > 0:
		return usagef("retention", "%s takes none of these options", action)
	}
	var t target
	if c.NArg() == 2 {
		t, err = locate(c, c.Args().Get(1))
	} else {
		t, err = storeHere(c)
	}
	if err != nil {
		return err
	}
	return e.with(ctx, t, action == "show" || c.Bool("dry-run"), func(ops control.Ops) error {
		if action == "show" {
			return e.showRetention(ctx, c, ops, t)
		}
		set.Path = t.path
		p, err := ops.SetPolicy(ctx, control.PolicyChange{Set: set, Remove: action == "unset", DryRun: c.Bool("dry-run")})
		if err != nil {
			return explain(t, err)
		}
		return e.showPolicy(c, p)
	})
}

func (e *env) showRetention(ctx context.Context, c *cli.Context, ops control.Ops, t target) error {
	list, err := ops.Policies(ctx)
	if err != nil {
		return err
	}
	if c.NArg() == 2 {
		return e.showPolicy(c, control.PolicyOf(list, t.path))
	}
	for _, p := range list {
		if err := e.showPolicy(c, p); err != nil {
			return err
		}
	}
	return nil
}

// retentionOptions reads what set sets.
func retentionOptions(c *cli.Context) (r volume.Retention, err error) {
	for _, o := range []struct {
		name string
		to   **volume.Span
	}{{"keep-all", &r.KeepAll}, {"hourly", &r.Hourly}, {"daily", &r.Daily}, {"weekly", &r.Weekly}} {
		if !c.IsSet(o.name) {
			continue
		}
		s, err := volume.ParseSpan(c.String(o.name))
		if err != nil {
			return r, usagef("retention", "--%s: %v", o.name, err)
		}
		*o.to = &s
	}
	if c.IsSet("max-versions") {
		n, err := strconv.ParseUint(c.String("max-versions"), 10, 31)
		if err != nil {
			return r, usagef("retention", "--max-versions wants a number, not %s", quoteAlways(c.String("max-versions")))
		}
		versions := int(n)
		r.MaxVersions = &versions
	}
	if c.IsSet("max-bytes") {
		b, err := volume.ParseBytes(c.String("max-bytes"))
		if err != nil {
			return r, usagef("retention", "--max-bytes: %v", err)
		}
		r.MaxBytes = &b
	}
	return r, nil
}

// showPolicy writes one policy.
func (e *env) showPolicy(c *cli.Context, p control.Policy) error {
	if c.Bool("json") {
		return e.document(p)
	}
	text := fmt.Sprintf("%s: every moment for %s, hours for %s, days for %s, weeks for %s", e.quote(p.Path), p.KeepAll, p.Hourly, p.Daily, p.Weekly)
	if p.MaxVersions > 0 {
		text += fmt.Sprintf(", at most %d versions of a file", p.MaxVersions)
	}
	if p.MaxBytes > 0 {
		text += fmt.Sprintf(", at most %s that only the past has", formatBytes(p.MaxBytes))
	}
	switch {
	case len(p.Own) > 0:
		text += " (set here: " + strings.Join(p.Own, ", ") + ")"
	default:
		text += " (default)"
	}
	if !p.Exists {
		text += "; there is no such directory now"
	}
	if p.Horizon != nil {
		text += fmt.Sprintf("; thinned up to %s, %d moments are left of before", formatTime(*p.Horizon), p.Moments)
	}
	_, err := fmt.Fprintln(e.stdout, text)
	return err
}
