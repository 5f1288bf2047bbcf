package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"holdfast/internal/control"
)

// statusPatience is how long the list of mounts waits for each daemon.
const statusPatience = 5 * time.Second

func (e *env) statusCommand() spec {
	return spec{
		name: "status", usage: "describe a store, or list the mounts", args: "[STORE|DIR]", min: 0, max: 1,
		help: `With a store, or a path inside a mount: who has it mounted since when, and what it holds. Without: all mounts of this machine.

Example: holdfast status --json ~/work`,
		run: e.runStatus,
	}
}

// mountState is one mount in status --json without an argument.
type mountState struct {
	Dir      string     `json:"dir"`
	Store    string     `json:"store"`
	State    string     `json:"state"` // "serving", "dead" (its daemon is gone) or "unknown"
	PID      int        `json:"pid"`   // 0 when unknown
	Since    *time.Time `json:"since"` // nil when unknown
	ReadOnly bool       `json:"read_only"`
	Error    string     `json:"error,omitempty"`
}

func (e *env) runStatus(ctx context.Context, c *cli.Context) error {
	if !c.Args().Present() {
		return e.listMounts(ctx, c)
	}
	store, err := findStore(c.Args().First())
	if err != nil {
		return err
	}
	ops, err := e.open(ctx, store, true)
	if err != nil {
		return err
	}
	st, err := ops.Status(ctx)
	if err = errors.Join(err, ops.Close()); err != nil {
		return err
	}
	if c.Bool("json") {
		return e.document(st)
	}
	return writeStatus(e.stdout, st)
}

// findStore is the store that the argument is, or in whose mount it lies.
func findStore(arg string) (string, error) {
	if isStore(arg) {
		return realPath(arg)
	}
	mounts, err := listMounts()
	if err != nil {
		return "", err
	}
	if m, _, ok := findMount(mounts, arg); ok {
		return m.Store, nil
	}
	return "", noStore(arg)
}

func (e *env) listMounts(ctx context.Context, c *cli.Context) error {
	mounts, err := listMounts()
	if err != nil {
		return err
	}
	states := make([]mountState, 0, len(mounts))
	for _, m := range mounts {
		states = append(states, stateOf(ctx, m))
	}
	if c.Bool("json") {
		return e.document(struct {
			Mounts []mountState `json:"mounts"`
		}{states})
	}
	if len(states) == 0 {
		_, err := fmt.Fprintln(e.stdout, "No store is mounted.")
		return err
	}
	w := tabwriter.NewWriter(e.stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "DIR\tSTORE\tSTATE\tPID\tSINCE")
	for _, s := range states {
		pid, since := "-", "-"
		if s.PID != 0 {
			pid = fmt.Sprint(s.PID)
		}
		if s.Since != nil {
			since = formatTime(*s.Since)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", quoteAlways(s.Dir), quoteAlways(s.Store), s.State, pid, since)
	}
	return w.Flush()
}

func stateOf(ctx context.Context, m mountEntry) mountState {
	s := mountState{Dir: m.Dir, Store: m.Store, State: "unknown"}
	ctx, cancel := context.WithTimeout(ctx, statusPatience)
	defer cancel()
	c, err := control.Connect(ctx, m.Store)
	if errors.Is(err, control.ErrNotMounted) {
		s.State = "dead"
		return s
	}
	if err != nil {
		s.Error = err.Error()
		return s
	}
	defer c.Close()
	s.PID = c.PID()
	st, err := c.Status(ctx)
	if err != nil {
		s.Error = err.Error()
		return s
	}
	if st.Mount != nil && st.Mount.Dir == m.Dir {
		s.State, s.PID, s.Since, s.ReadOnly = "serving", st.Mount.PID, &st.Mount.Since, st.Mount.ReadOnly
	}
	return s
}

// historyText says what the past costs and how far it reaches.
func historyText(h control.HistoryCost) string {
	text := fmt.Sprintf("%s that only the past has, %d snapshots", formatBytes(h.Bytes), h.Snapshots)
	switch {
	case h.Horizon != nil && h.Oldest != nil:
		text += fmt.Sprintf("; every moment since %s, the oldest before that %s", formatTime(*h.Horizon), formatTime(*h.Oldest))
	case h.Oldest != nil:
		text += "; every moment since " + formatTime(*h.Oldest)
	}
	return text
}

func sinceText(t *time.Time, never string) string {
	if t == nil {
		return never
	}
	return formatTime(*t)
}

func writeStatus(out io.Writer, st control.Status) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	row("store", "%s (%s, format %d)", st.Store, st.Storage, st.Format)
	row("made", "%s", formatTime(st.Created))
	if st.Mount != nil {
		mode := ""
		if st.Mount.ReadOnly {
			mode = ", read-only"
		}
		row("mounted at", "%s by process %d since %s%s", st.Mount.Dir, st.Mount.PID, formatTime(st.Mount.Since), mode)
	} else {
		row("mounted", "no")
	}
	row("holds", "%d files, %d directories, %d versions", st.Files, st.Directories, st.Versions)
	if st.OldestVersion != nil {
		row("oldest version", "%s", formatTime(*st.OldestVersion))
	}
	row("history", "%s", historyText(st.History))
	row("contents", "%s in all versions, %s in %d blobs after deduplication, stored in %s", formatBytes(st.VersionBytes), formatBytes(st.UniqueBytes), st.Blobs, formatBytes(st.StoredBytes))
	row("journal", "%s, %d records, %d on stable storage", formatBytes(st.JournalBytes), st.JournalSeq, st.SyncedSeq)
	if h := st.Health; h != nil {
		row("health", "%s", quoteAlways(h.Summary))
		row("last check", "%s", sinceText(h.LastCheck, "not everything has been checked yet"))
		row("last backup", "%s", sinceText(h.NewestBackup, "none"))
	}
	if st.OpenFiles > 0 {
		row("open", "%d files, %s not yet a version", st.OpenFiles, formatBytes(st.StagedBytes))
	}
	for _, p := range st.Problems {
		row("problem", "%s", quoteAlways(p))
	}
	if len(st.Requests) > 0 {
		names := slices.SortedFunc(maps.Keys(st.Requests), func(a, b string) int {
			return cmp.Or(cmp.Compare(st.Requests[b], st.Requests[a]), cmp.Compare(a, b))
		})
		var parts []string
		for _, n := range names {
			if st.Requests[n] > 0 {
				parts = append(parts, fmt.Sprintf("%s %d", n, st.Requests[n]))
			}
		}
		row("requests", "%s", strings.Join(parts, ", "))
	}
	return w.Flush()
}
