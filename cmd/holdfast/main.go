// Command holdfast makes stores, mounts them, and reads and writes them mounted or not. See `holdfast --help`.
package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"
)

func main() {
	// Commands end at the first interrupt; a second one kills, since the handler is gone by then.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT)
	context.AfterFunc(ctx, stop)
	e := &env{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, now: time.Now}
	os.Exit(e.run(ctx, os.Args))
}

// env is what a command sees of the process.
type env struct {
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
	now    func() time.Time
	json   bool // errors are written as JSON
}

// run runs the command and returns the process's exit code.
func (e *env) run(ctx context.Context, args []string) int {
	app := e.app()
	args = arrange(app, args)
	if i := slices.Index(args, "--"); slices.Contains(args[:max(i, 0)], "--json") || i < 0 && slices.Contains(args, "--json") {
		e.json = true
	}
	err := app.RunContext(ctx, args)
	if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
		err = errInterrupted
	}
	if err == nil {
		return exitOK
	}
	code := exitCode(err)
	e.report(err, code)
	return code
}
