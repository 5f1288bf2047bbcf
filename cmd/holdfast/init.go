package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"holdfast/internal/volume"
)

func (e *env) initCommand() spec {
	return spec{
		name: "init", usage: "make a store", args: "STORE", min: 1, max: 1,
		help: `STORE is a directory that does not exist yet, or is empty.

Storage modes: hybrid keeps small contents in a database and large ones as files; file keeps every content as a file
beside its description; database keeps everything in one database.

Example: holdfast init --storage hybrid ~/store`,
		flags: []cli.Flag{
			&cli.StringFlag{Name: "storage", Value: volume.StorageHybrid, Usage: "`MODE`: file, database or hybrid"},
			&cli.StringFlag{Name: "second-copy", Usage: "`DIR`, best on another disk, for the second copies of critical files; default: in the store"},
		},
		run: e.runInit,
	}
}

// initResult is what init --json writes.
type initResult struct {
	Store   string    `json:"store"`
	ID      string    `json:"id"`
	Format  int       `json:"format"`
	Storage string    `json:"storage"`
	Created time.Time `json:"created"`
}

func (e *env) runInit(ctx context.Context, c *cli.Context) error {
	mode := c.String("storage")
	switch mode {
	case volume.StorageFile, volume.StorageDatabase, volume.StorageHybrid:
	default:
		return usagef("init", "--storage is file, database or hybrid, not %q", mode)
	}
	dir, err := filepath.Abs(c.Args().First())
	if err != nil {
		return err
	}
	second := c.String("second-copy")
	if second != "" {
		if second, err = filepath.Abs(second); err != nil {
			return err
		}
	}
	unix.Umask(0o077) // nothing in a store is for others: what they may see, they see through a mount
	s, err := volume.Init(ctx, dir, volume.InitOptions{Storage: mode, SecondCopy: second, UID: uint32(os.Getuid()), GID: uint32(os.Getgid())})
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return e.document(initResult{dir, s.StoreID, s.Format, s.Storage, s.Created})
	}
	_, err = fmt.Fprintf(e.stdout, "Made the store %s (%s). Next: holdfast mount %s DIR\n", dir, s.Storage, c.Args().First())
	return err
}
