package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"
)

const pathHelp = `PATH is a path inside a mount, or STORE:/path for a store whether it is mounted or not
(with --store STORE, PATH is the path inside the store as it stands).`

// spec describes a command; env.command adds what all of them have in common.
type spec struct {
	name    string
	usage   string // one line
	args    string // the arguments, for the help
	help    string // the rest of the help, with an example
	min     int
	max     int // -1: any number
	flags   []cli.Flag
	onStore bool // takes PATH arguments: has --store
	noJSON  bool
	run     func(ctx context.Context, c *cli.Context) error
}

func (e *env) app() *cli.App {
	app := &cli.App{
		Name:      "holdfast",
		Usage:     "a filesystem that keeps every version of every file",
		UsageText: "holdfast COMMAND [options] [arguments]",
		Description: "Every close of a file is a version that is kept, verified when it is read, and reachable with log and cat.\n\n" +
			"Example:\n" +
			"  holdfast init ~/store\n" +
			"  holdfast mount ~/store ~/work\n" +
			"  echo one > ~/work/tasks/1.txt; echo two > ~/work/tasks/1.txt\n" +
			"  holdfast log ~/work/tasks/1.txt\n" +
			"  holdfast cat ~/work/tasks/1.txt@1\n" +
			"  holdfast umount ~/work\n\n" +
			"Exit codes: 0 done, 1 failed, 2 wrong usage, 10 no such store, 11 in use by another process, 12 retention has\n" +
			"thinned the moment away, 26 damage found, 130 interrupted.",
		HideVersion:     true,
		HideHelpCommand: true,
		Writer:          e.stdout,
		ErrWriter:       e.stderr,
		ExitErrHandler:  func(*cli.Context, error) {},
		OnUsageError: func(_ *cli.Context, err error, _ bool) error {
			return &usageError{plainFlagError(err) + "; see `holdfast --help`"}
		},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return &usageError{fmt.Sprintf("there is no command %q; see `holdfast --help`", c.Args().First())}
			}
			return &usageError{"which command? See `holdfast --help`"}
		},
	}
	for _, s := range []spec{
		e.initCommand(), e.mountCommand(), e.umountCommand(), e.statusCommand(), e.logCommand(), e.catCommand(),
		e.putCommand(), e.getCommand(), e.lsCommand(), e.rmCommand(), e.snapshotCommand(), e.diffCommand(), e.restoreCommand(),
		e.undoCommand(), e.retentionCommand(), e.gcCommand(), e.backupCommand(), e.checkCommand(), e.levelCommand(), e.scrubCommand(),
		e.recoverCommand(), e.monitorCommand(), e.drillCommand(), e.auditCommand(), e.versionCommand(),
	} {
		app.Commands = append(app.Commands, e.command(s))
	}
	return app
}

func (e *env) command(s spec) *cli.Command {
	flags := s.flags
	if s.onStore {
		flags = append(flags, &cli.StringFlag{Name: "store", Usage: "the store that PATH lies in", TakesFile: true})
	}
	if !s.noJSON {
		flags = append(flags, &cli.BoolFlag{Name: "json", Usage: "write the result, and errors, as JSON"})
	}
	help := strings.TrimSpace(s.help)
	if s.onStore {
		help = pathHelp + "\n\n" + help
	}
	return &cli.Command{
		Name:               s.name,
		Usage:              s.usage,
		UsageText:          strings.TrimSpace("holdfast " + s.name + " [options] " + s.args),
		Description:        help,
		Flags:              flags,
		HideHelpCommand:    true,
		CustomHelpTemplate: "",
		OnUsageError:       func(_ *cli.Context, err error, _ bool) error { return usagef(s.name, "%s", plainFlagError(err)) },
		Action: func(c *cli.Context) error {
			if n := c.NArg(); n < s.min || s.max >= 0 && n > s.max {
				return usagef(s.name, "wants %s, got %d arguments", wants(s), n)
			}
			return s.run(c.Context, c)
		},
	}
}

func wants(s spec) string {
	if s.args == "" {
		return "no arguments"
	}
	return s.args
}

// plainFlagError rewords what the flag parser says.
func plainFlagError(err error) string {
	text := err.Error()
	if name, ok := strings.CutPrefix(text, "flag provided but not defined: "); ok {
		return "there is no option " + name
	}
	if name, ok := strings.CutPrefix(text, "flag needs an argument: "); ok {
		return "option " + name + " needs a value"
	}
	return text
}

// arrange moves the options of a command before its arguments, since the flag parser stops at the first argument, and takes bundled
// short options (-la) apart. What follows "--" is left alone.
func arrange(app *cli.App, args []string) []string {
	if len(args) > 1 {
		switch args[1] {
		case "--version", "-v":
			args = append([]string{args[0], "version"}, args[2:]...)
		case "help":
			args = append(append([]string{args[0]}, args[2:]...), "--help")
		}
	}
	if len(args) < 2 || strings.HasPrefix(args[1], "-") {
		return args
	}
	cmd := app.Command(args[1])
	if cmd == nil {
		return args
	}
	takesValue := map[string]bool{"help": false, "h": false}
	for _, f := range cmd.Flags {
		df, ok := f.(cli.DocGenerationFlag)
		for _, n := range f.Names() {
			takesValue[n] = ok && df.TakesValue()
		}
	}
	var options, rest []string
	for i := 2; i < len(args); i++ {
		a := args[i]
		if a == "--" {
			rest = append(rest, args[i+1:]...)
			break
		}
		if a == "-" || !strings.HasPrefix(a, "-") {
			rest = append(rest, a)
			continue
		}
		for _, o := range unbundle(a, takesValue) {
			options = append(options, o)
			a = o
		}
		if a == "--help" || a == "-help" || a == "-h" {
			return []string{args[0], args[1], "--help"} // the parser would look for a help topic that is called as the first argument
		}
		if name := strings.TrimLeft(a, "-"); takesValue[name] {
			if i++; i == len(args) {
				return args // the parser says what is missing
			}
			options = append(options, args[i])
		}
	}
	return append(append(append(args[:2:2], options...), "--"), rest...)
}

// unbundle takes "-la" apart when every letter is an option; only the last may take a value.
func unbundle(a string, takesValue map[string]bool) []string {
	letters, short := strings.CutPrefix(a, "-")
	if _, known := takesValue[letters]; known || !short || len(letters) < 2 || strings.ContainsAny(letters, "-=") {
		return []string{a}
	}
	var parts []string
	for i, l := range letters {
		value, known := takesValue[string(l)]
		if !known || value && i < len(letters)-1 {
			return []string{a}
		}
		parts = append(parts, "-"+string(l))
	}
	return parts
}
