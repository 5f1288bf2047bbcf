package main

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/urfave/cli/v2"

	"holdfast/internal/volume"
)

// buildResult is what version --json writes.
type buildResult struct {
	Version  string `json:"version"`
	Revision string `json:"revision"` // empty when built outside a repository
	Modified bool   `json:"modified"` // there were changes that the revision does not have
	Go       string `json:"go"`
	Format   int    `json:"format"` // the newest store format it reads and writes
}

func (e *env) versionCommand() spec {
	return spec{name: "version", usage: "tell the version of the program", help: "Example: holdfast version --json", run: e.runVersion}
}

func (e *env) runVersion(_ context.Context, c *cli.Context) error {
	b := buildResult{Version: "(devel)", Go: runtime.Version(), Format: volume.Format}
	if info, ok := debug.ReadBuildInfo(); ok {
		if info.Main.Version != "" {
			b.Version = info.Main.Version
		}
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				b.Revision = s.Value
			case "vcs.modified":
				b.Modified = s.Value == "true"
			}
		}
	}
	if c.Bool("json") {
		return e.document(b)
	}
	revision := b.Revision
	if revision == "" {
		revision = "revision unknown"
	}
	if b.Modified {
		revision += ", modified"
	}
	_, err := fmt.Fprintf(e.stdout, "holdfast %s (%s), %s, store format %d\n", b.Version, revision, b.Go, b.Format)
	return err
}
