package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"holdfast/blobstore"
	"holdfast/catalog"
	"holdfast/integrity"
	"holdfast/integrity/audit"
	"holdfast/integrity/drill"
	"holdfast/internal/control"
	"holdfast/internal/volume"
	"holdfast/snapshots/backup"
)

// The exit codes; scripts rely on them.
const (
	exitOK          = 0
	exitFailure     = 1
	exitUsage       = 2
	exitNoStore     = 10
	exitLocked      = 11
	exitThinned     = 12
	exitDamage      = 26
	exitInterrupted = 130
)

var (
	errUsage       = errors.New("wrong usage")
	errInterrupted = errors.New("interrupted")
)

// exitCode is the one place where errors become exit codes; the first that matches counts.
func exitCode(err error) int {
	if err == nil {
		return exitOK
	}
	var daemon *daemonError
	if errors.As(err, &daemon) {
		return daemon.Code
	}
	for _, k := range []struct {
		err  error
		code int
	}{
		{errInterrupted, exitInterrupted},
		{errUsage, exitUsage},
		{control.ErrRequest, exitUsage},
		{volume.ErrNoStore, exitNoStore},
		{volume.ErrLocked, exitLocked},
		{catalog.ErrThinned, exitThinned},
		{blobstore.ErrDamaged, exitDamage},
		{blobstore.ErrNotFound, exitDamage}, // a blob that the catalog names
		{catalog.ErrDamaged, exitDamage},
		{errDamageFound, exitDamage},
		{drill.ErrFailed, exitDamage},
		{integrity.ErrNotHealed, exitDamage},
		{audit.ErrTampered, exitDamage},
		{audit.ErrMalformed, exitDamage}, // what is no evidence proves nothing
		{backup.ErrDamaged, exitDamage},
	} {
		if errors.Is(err, k.err) {
			return k.code
		}
	}
	return exitFailure
}

// usageError is a mistake in how a command was called; errors.Is(err, errUsage) holds.
type usageError struct{ msg string }

func (e *usageError) Error() string { return e.msg }
func (e *usageError) Unwrap() error { return errUsage }

func usagef(command, format string, args ...any) error {
	return &usageError{fmt.Sprintf("%s: %s; see `holdfast %s --help`", command, fmt.Sprintf(format, args...), command)}
}

// failure is an error as --json shows it.
type failure struct {
	Error string `json:"error"`
	Code  int    `json:"code"` // the exit code
}

// report writes the error to standard error, as one line.
func (e *env) report(err error, code int) {
	text := strings.TrimSpace(strings.ReplaceAll(err.Error(), "\n", "; "))
	if e.json {
		// Strings and a number always encode; a writer that fails leaves nobody to tell.
		line, _ := json.Marshal(failure{text, code})
		fmt.Fprintf(e.stderr, "%s\n", line)
		return
	}
	fmt.Fprintf(e.stderr, "holdfast: %s\n", text)
}
