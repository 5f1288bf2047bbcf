package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"holdfast/integrity/drill"
	"holdfast/internal/volume"
)

func (e *env) drillCommand() spec {
	return spec{
		name: "drill", usage: "damage scratch copies of a store and see that it is found and healed", args: "[STORE]", min: 0, max: 1,
		help: `Copies a slice of STORE, or makes a small store when there is none, to a scratch place, in each storage mode and with each level. Then it damages the copy, once for each
damage and in all ways that it knows: flipped bits, zeroed pages, cut, exchanged and removed files, edited sidecars, rows and records, torn logs, damaged parity and second
copies. Whatever is then read, listed or checked is compared with what was there. STORE itself is only read; it must not be mounted. The scratch place is below $TMPDIR, and
removed; with TMPDIR=/dev/shm the drill is much faster.
It exits with 26 when something wrong was served, something was not found, or not healed although its level promises that.
--json writes one JSON document.

Example: holdfast drill ~/store --damages 1000 --seed 7`,
		flags: []cli.Flag{
			&cli.IntFlag{Name: "damages", Value: 300, Usage: "make `N` damages"},
			&cli.Uint64Flag{Name: "seed", Usage: "repeat the drill that printed `S`"},
			&cli.IntFlag{Name: "only", Usage: "repeat only the exercise of the number `N`"},
			&cli.BoolFlag{Name: "keep", Usage: "leave the scratch place"},
		},
		run: e.runDrill,
	}
}

func (e *env) runDrill(ctx context.Context, c *cli.Context) (err error) {
	o := drill.Options{Damages: c.Int("damages"), Seed: c.Uint64("seed"), Only: c.Int("only"), Keep: c.Bool("keep")}
	if o.Damages < 1 || o.Damages > 1_000_000 || o.Only < 0 {
		return usagef("drill", "--damages is 1 to 1000000, --only a number that a drill has printed")
	}
	unix.Umask(0o077)
	if dir := c.Args().First(); dir != "" {
		v, err := volume.Open(ctx, volume.Options{Dir: dir, ReadOnly: true})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, v.Close(context.WithoutCancel(ctx))) }()
		o.Source = v
	}
	clearLine := ""
	if e.stderrIsTerminal() {
		clearLine = "\r\x1b[K"
		o.Progress = func(done, of int) { fmt.Fprintf(e.stderr, "\r%d of %d damages", done, of) }
	}
	o.Problem = func(p drill.Problem) {
		fmt.Fprintf(e.stderr, "%sexercise %d: %s: %s\n", clearLine, p.Number, p.What, p.Damage)
	}
	rep, err := drill.Run(ctx, o)
	fmt.Fprint(e.stderr, clearLine) // before the table
	if err != nil {
		if rep.Total.Damages > 0 && !c.Bool("json") { // what an interrupted one has found out so far
			err = errors.Join(err, drillTable(e.stdout, &rep))
		}
		return err
	}
	if c.Bool("json") {
		err = e.document(rep)
	} else {
		err = drillTable(e.stdout, &rep)
	}
	return errors.Join(err, rep.Err())
}

func (e *env) stderrIsTerminal() bool {
	f, ok := e.stderr.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// drillTable writes a report for people: by kind, the levels beside each other, all storages together.
func drillTable(w io.Writer, rep *drill.Report) error {
	type line struct {
		counts drill.Counts
		healed map[string]drill.Counts
	}
	levels := []string{"basic", "advanced", "critical", "all"}
	var order []string
	lines := make(map[string]*line)
	byLevel := &line{healed: make(map[string]drill.Counts)}
	for _, r := range rep.Rows {
		l := lines[r.Kind]
		if l == nil {
			l = &line{healed: make(map[string]drill.Counts)}
			lines[r.Kind] = l
			order = append(order, r.Kind)
		}
		for _, x := range []*line{l, byLevel} {
			sum := x.healed[r.Level]
			sum.Damages += r.Damages
			sum.Healed += r.Healed
			x.healed[r.Level] = sum
		}
		l.counts.Damages += r.Damages
		l.counts.Found += r.Found
		l.counts.Served += r.Served
		l.counts.Healed += r.Healed
	}
	byLevel.counts = rep.Total
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "| damage\t| made\t| found\t| served wrong\t| healed: basic\t| advanced\t| critical\t| of all levels\t|")
	fmt.Fprintln(t, "|---\t|--:\t|--:\t|--:\t|--:\t|--:\t|--:\t|--:\t|")
	write := func(name string, l *line) {
		fmt.Fprintf(t, "| %s\t| %d\t| %d\t| %d\t", name, l.counts.Damages, l.counts.Found, l.counts.Served)
		for _, level := range levels {
			share := ""
			if c := l.healed[level]; c.Damages > 0 {
				share = fmt.Sprintf("%d of %d", c.Healed, c.Damages)
			}
			fmt.Fprintf(t, "| %s\t", share)
		}
		fmt.Fprintln(t, "|")
	}
	for _, name := range order {
		write(name, lines[name])
	}
	write("all", byLevel)
	if err := t.Flush(); err != nil {
		return err
	}
	total := &rep.Total
	var b strings.Builder
	fmt.Fprintf(&b, "\nSeed %d, %s: %d damages to stores of %d files and %s, in the storages file, hybrid and database. %d found, %d served wrong, %d healed; of %d that must heal %d did not; %d false alarms.\n",
		rep.Seed, rep.Took.Round(time.Second), total.Damages, rep.Files, formatBytes(rep.Bytes), total.Found, total.Served, total.Healed, total.Promised, total.Broken, rep.Alarms)
	fmt.Fprintf(&b, "Medians: %s for the check of a store in which the damage is found and healed, %s for a single heal.\n", rep.CheckMedian.Round(time.Millisecond), rep.HealMedian.Round(10*time.Microsecond))
	for _, p := range rep.Problems {
		fmt.Fprintf(&b, "\nexercise %d: %s: %s\n  %s\n", p.Number, p.What, p.Damage, p.Detail)
	}
	if rep.Dir != "" {
		fmt.Fprintf(&b, "The scratch place is %s\n", rep.Dir)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
