package main

import (
	"cmp"
	"context"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"holdfast/catalog"
	"holdfast/internal/control"
)

func (e *env) gcCommand() spec {
	return spec{
		name: "gc", usage: "free what retention does not keep", min: 0, max: 0, onStore: true,
		help: `The store is that of the directory the command is called in, or --store STORE. The daemon of a mount does the same by itself, in slices, beside its other
work: it looks every ten minutes. This does it now, and compacts the whole journal. What is there now, open files, and all that was there at the moment of a
snapshot that was made by hand or is pinned, always stay. The policies are those of ` + "`holdfast retention show`" + `.
--dry-run takes room for a copy of catalog.db. --json writes one JSON document, with the fields dry_run, policies, snapshots_removed, blobs, blob_bytes,
orphans, steps, compacted.

Example: holdfast gc --dry-run --store ~/store`,
		flags: []cli.Flag{&cli.BoolFlag{Name: "dry-run", Aliases: []string{"n"}, Usage: "change nothing, only say what would go and why"}},
		run:   e.runGC,
	}
}

func (e *env) runGC(ctx context.Context, c *cli.Context) error {
	t, err := storeHere(c)
	if err != nil {
		return err
	}
	return e.with(ctx, t, false, func(ops control.Ops) error {
		done := e.working(c, "thinning the history")
		rep, err := ops.Prune(ctx, c.Bool("dry-run"))
		done()
		if err != nil {
			return err
		}
		if c.Bool("json") {
			return e.document(rep)
		}
		return e.writeGC(e.stdout, rep)
	})
}

// working says on a terminal that something goes on, until the function that it returns is called.
func (e *env) working(c *cli.Context, what string) (done func()) {
	if c.Bool("json") || !isTerminal(e.stderr) {
		return func() {}
	}
	fmt.Fprintf(e.stderr, "%s...", what)
	return func() { fmt.Fprint(e.stderr, "\r\033[K") }
}

// writeGC says what went, or would go, and for which policy.
func (e *env) writeGC(out io.Writer, rep catalog.PruneReport) error {
	p := &printer{w: out}
	for _, r := range rep.Policies {
		e.writePolicyReport(p, r)
	}
	for _, name := range rep.Snapshots {
		p.line("snapshot %s: automatic, and no policy keeps it any more", e.quote(name))
	}
	if rep.Orphans > 0 {
		p.line("%d contents that no record ever named: what a killed process left", rep.Orphans)
	}
	verb := "Freed"
	if rep.DryRun {
		verb = "Would free"
	}
	p.line("%s %d versions and %d contents that nothing else names (%s).", verb, rep.Versions(), rep.Blobs+rep.Orphans, formatBytes(rep.BlobBytes))
	if s := rep.Compacted; s.Segments > 0 {
		p.line("Compacted %d segments of the journal: %s less; %d records keep only their place in the chain, %d lost contents that nothing names.",
			s.Segments, formatBytes(s.JournalBytes), s.Heads, s.Bodies)
	}
	return p.err
}

func (e *env) writePolicyReport(p *printer, r catalog.PolicyReport) {
	name := e.quote(r.Path)
	if r.Horizon.IsZero() {
		p.line("%s: every moment is kept; nothing is old enough to go", name)
		return
	}
	p.line("%s: every moment since %s is kept, and %d before", name, formatTime(r.Horizon), r.Moments)
	if r.Versions+r.Names+r.Removed == 0 {
		p.line("%s: nothing lies between them", name)
		return
	}
	p.line("%s: between them lie %d versions, %d names, %d removed files and directories (%s)", name, r.Versions, r.Names, r.Removed, formatBytes(r.Bytes))
	if n := cmp.Or(r.ByCount, r.BySize); n > 0 {
		p.line("%s: of these, %d are over the bound on versions of a file, %d over the bound on bytes", name, r.ByCount, r.BySize)
	}
}

// printer writes lines until one fails.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format+"\n", args...)
	}
}
