// Command bench measures Holdfast beside the disk's own filesystem, go-fuse's loopback, and a do-nothing FUSE filesystem with the same
// mount options. docs/benchmarks.md says how to run it and how to read what it prints; scripts/bench builds and runs it.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	// A second interrupt kills at once.
	context.AfterFunc(ctx, stop)
	if err := app().RunContext(ctx, os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func app() *cli.App {
	dir := &cli.StringFlag{Name: "dir", Value: os.TempDir(), Usage: "make the scratch folder below `FOLDER`, on the disk to measure"}
	program := &cli.StringFlag{Name: "holdfast", Usage: "the `PROGRAM` to measure (default: holdfast beside this one)"}
	return &cli.App{
		Name:            "bench",
		Usage:           "measure Holdfast, and compare",
		HideHelpCommand: true,
		Commands: []*cli.Command{
			{
				Name: "run", Usage: "measure every row and print the tables", Action: runCommand,
				Flags: []cli.Flag{
					dir, program,
					&cli.StringFlag{Name: "rows", Usage: "only rows whose name matches `REGEX`"},
					&cli.StringFlag{Name: "targets", Value: strings.Join(targetNames(), ","), Usage: "only these targets, as `A,B`"},
					&cli.IntFlag{Name: "rounds", Usage: "rounds of each row; the median counts (default: 3, quick: 1)"},
					&cli.BoolFlag{Name: "quick", Usage: "smaller work: shows that everything runs, in about a minute"},
					&cli.BoolFlag{Name: "no-trips", Usage: "do not count FUSE requests"},
					&cli.BoolFlag{Name: "only-trips", Usage: "count FUSE requests, measure no rates"},
					&cli.StringFlag{Name: "json", Usage: "write the result to `FILE`"},
					&cli.StringFlag{Name: "markdown", Usage: "put the tables between the marks in `FILE`"},
					&cli.Int64Flag{Name: "image", Usage: "measure on a fresh ext4 of `GIB` in a file below --dir (root only)"},
					&cli.StringFlag{Name: "profile", Usage: "have Holdfast write a CPU profile of each row into `FOLDER`"},
				},
			},
			{
				Name: "limits", Usage: "measure mount time, memory and listings at size", Action: limitsCommand,
				Flags: []cli.Flag{
					dir, program,
					&cli.IntFlag{Name: "files", Value: 1_000_000, Usage: "files in the store that is mounted and walked"},
					&cli.Int64Flag{Name: "stream-mib", Value: 10 << 10, Usage: "size of the file that is streamed, in MiB"},
					&cli.StringFlag{Name: "entries", Value: "50000,100000,200000", Usage: "sizes of the directories that are listed"},
				},
			},
			{Name: "show", Usage: "print the tables of a result", ArgsUsage: "RESULT.json", Action: showCommand,
				Flags: []cli.Flag{&cli.StringFlag{Name: "markdown", Usage: "put the tables between the marks in `FILE` instead"}}},
			{Name: "compare", Usage: "compare two results", ArgsUsage: "BEFORE.json AFTER.json", Action: compareCommand},
			{Name: "worker", Hidden: true, Action: func(*cli.Context) error { return workerProcess() }},
			{Name: "serve", Hidden: true, ArgsUsage: "loopback ROOT MOUNT | floor MOUNT", Action: serveCommand},
		},
	}
}

func logger() *slog.Logger { return slog.New(slog.NewTextHandler(os.Stderr, nil)) }

// holdfastProgram is the program to measure.
func holdfastProgram(c *cli.Context) (string, error) {
	path := c.String("holdfast")
	if path == "" {
		self, err := os.Executable()
		if err != nil {
			return "", fmt.Errorf("find this program: %w", err)
		}
		path = filepath.Join(filepath.Dir(self), "holdfast")
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("find holdfast: %w", err)
	}
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("find holdfast: %w; build it with go build -o bin/holdfast ./cmd/holdfast or name it with --holdfast", err)
	}
	return path, nil
}

func limitsCommand(c *cli.Context) error {
	program, err := holdfastProgram(c)
	if err != nil {
		return err
	}
	o := limitOptions{dir: c.String("dir"), holdfast: program, files: c.Int("files"), stream: c.Int64("stream-mib") << 20, log: logger()}
	if o.files < 1 || o.stream < 1<<20 {
		return errors.New("--files and --stream-mib must be 1 at least")
	}
	for _, s := range strings.Split(c.String("entries"), ",") {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return fmt.Errorf("--entries: %q is not a number of entries", s)
		}
		o.lists = append(o.lists, n)
	}
	return runLimits(c.Context, os.Stdout, o)
}

func showCommand(c *cli.Context) error {
	if c.NArg() != 1 {
		return errors.New("show wants one RESULT.json")
	}
	r, err := readResult(c.Args().First())
	if err != nil {
		return err
	}
	if page := c.String("markdown"); page != "" {
		return replaceFigures(page, r)
	}
	return report(os.Stdout, r, false)
}

func compareCommand(c *cli.Context) error {
	if c.NArg() != 2 {
		return errors.New("compare wants BEFORE.json and AFTER.json")
	}
	a, err := readResult(c.Args().Get(0))
	if err != nil {
		return err
	}
	b, err := readResult(c.Args().Get(1))
	if err != nil {
		return err
	}
	if a.Machine != b.Machine {
		fmt.Printf("The machines differ: %+v and %+v.\n\n", a.Machine, b.Machine)
	}
	return compareTable(a, b).text(os.Stdout)
}
