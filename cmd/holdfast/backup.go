package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"

	"holdfast/internal/control"
	"holdfast/internal/volume"
	"holdfast/snapshots/backup"
)

func (e *env) backupCommand() spec {
	return spec{
		name: "backup", usage: "make, list, verify and restore backups in other places",
		args: "create [PLACE] | status | list [PLACE] | verify [PLACE] | restore DEST [PATH] | rm NAME", min: 1, max: 3, onStore: true,
		help: `A backup is all of the store, or what has a level, at one moment, in a PLACE: a directory, best on another disk. What is there already is not copied
again. holdfast.toml names the places that get backups by themselves ([[backup]] path, every, keep, level); a new store has one: what is critical, each
24 hours, the newest 7, in the directory "backup" of the store. PLACE is the first of these when it is left out. create works beside everything else.
restore writes the tree of a backup, or PATH of it, into the directory DEST; with --place it needs no store, for when that is lost. list,
verify, restore and rm need no store either then. verify reads every byte; it exits with 26 when something is damaged.
--json writes one JSON document a line.

Example: holdfast backup create /mnt/disk2/holdfast --store ~/store
Example: holdfast backup restore ./rescued /tasks --place /mnt/disk2/holdfast --name latest`,
		flags: []cli.Flag{
			&cli.StringFlag{Name: "place", Usage: "the directory of the backups"},
			&cli.BoolFlag{Name: "recheck", Usage: "create: read what is there already, and copy it again when it is damaged"},
			&cli.StringFlag{Name: "name", Usage: "of the backup to restore: see list", Value: "latest"},
		},
		run: e.runBackup,
	}
}

func (e *env) runBackup(ctx context.Context, c *cli.Context) error {
	action, args := c.Args().First(), c.Args().Tail()
	want := map[string][2]int{"create": {0, 1}, "status": {0, 0}, "list": {0, 1}, "verify": {0, 1}, "restore": {1, 2}, "rm": {1, 1}}
	n, known := want[action]
	if !known {
		return usagef("backup", "there is no %q; it is create, status, list, verify, restore or rm", action)
	}
	if len(args) < n[0] || len(args) > n[1] {
		return usagef("backup", "%s wants %d to %d arguments, got %d", action, n[0], n[1], len(args))
	}
	place := c.String("place")
	if n[1] == 1 && action != "rm" && len(args) == 1 {
		place = args[0]
	}
	switch action {
	case "create":
		return e.backupCreate(ctx, c, place)
	case "status":
		return e.backupStatus(ctx, c)
	}
	p, err := e.openPlace(ctx, c, place, action != "rm")
	if err != nil {
		return err
	}
	switch action {
	case "list":
		err = e.backupList(c, p)
	case "verify":
		err = e.backupVerify(ctx, c, p)
	case "restore":
		from := "/"
		if len(args) == 2 {
			from = args[1]
		}
		err = e.backupRestore(ctx, c, p, args[0], from)
	case "rm":
		var res backup.Rotated
		if res, err = p.Remove(ctx, args[0]); err == nil && c.Bool("json") {
			err = e.document(res)
		}
	}
	return errors.Join(err, p.Close())
}

// openPlace opens the place, or the first one of the store's settings.
func (e *env) openPlace(ctx context.Context, c *cli.Context, place string, readOnly bool) (*backup.Place, error) {
	if place == "" {
		t, err := storeHere(c)
		if err != nil {
			return nil, err
		}
		s, err := volume.ReadSettings(t.store)
		if err != nil {
			return nil, err
		}
		all := s.BackupsIn(t.store)
		if len(all) == 0 {
			return nil, usagef("backup", "holdfast.toml names no place for backups; give one with --place")
		}
		place = all[0].Path
	}
	return backup.Open(ctx, backup.Options{Dir: place, ReadOnly: readOnly})
}

// The operations of backups.
const (
	opBackupCreate = "backup.create"
	opBackupStatus = "backup.status"
)

type backupCreateArgs struct {
	Place   string `json:"place"` // absolute; "": the first of the settings
	Recheck bool   `json:"recheck"`
}

// backupLine is one line of the answer to opBackupCreate: how far it is, and last what was made.
type backupLine struct {
	Blobs int64           `json:"blobs"`
	Bytes int64           `json:"bytes"`
	Made  *backup.Created `json:"made,omitempty"`
}

func backupOperations(k *backup.Keeper) []control.Operation {
	return []control.Operation{
		control.NewOperation(opBackupCreate, func(ctx context.Context, _ control.Caller, a backupCreateArgs, send func(any) error) error {
			if a.Place != "" && !filepath.IsAbs(a.Place) {
				return fmt.Errorf("%w: the place is not an absolute path", control.ErrRequest)
			}
			ctx, cancel := context.WithCancelCause(ctx)
			defer cancel(nil)
			last := time.Now()
			res, err := k.Create(ctx, a.Place, a.Recheck, func(blobs, bytes int64) {
				if time.Since(last) < 200*time.Millisecond {
					return
				}
				last = time.Now()
				if err := send(backupLine{Blobs: blobs, Bytes: bytes}); err != nil {
					cancel(err) // the caller has gone
				}
			})
			if err != nil {
				return err
			}
			return send(backupLine{Blobs: res.Copied, Bytes: res.CopiedBytes, Made: &res})
		}),
		control.NewOperation(opBackupStatus, func(_ context.Context, _ control.Caller, _ struct{}, send func(any) error) error {
			for _, s := range k.States() {
				if err := send(s); err != nil {
					return err
				}
			}
			return nil
		}),
	}
}

func (e *env) backupCreate(ctx context.Context, c *cli.Context, place string) error {
	t, err := storeHere(c)
	if err != nil {
		return err
	}
	if place != "" {
		if place, err = filepath.Abs(place); err != nil {
			return err
		}
	}
	return e.with(ctx, t, false, func(ops control.Ops) error {
		bar := e.newProgress("copied")
		var made *backup.Created
		done := int64(0)
		err := control.CallEach(ctx, ops, caller("backup"), opBackupCreate, backupCreateArgs{place, c.Bool("recheck")}, func(l backupLine) error {
			bar.add(int(l.Bytes - done))
			done, made = l.Bytes, l.Made
			return nil
		})
		bar.done()
		if err != nil {
			return err
		}
		if c.Bool("json") {
			return e.document(made)
		}
		_, err = fmt.Fprintf(e.stdout, "%s in %s: %d files, %s; %d new contents copied, %s\n", made.Name, e.quote(made.Place), made.Files,
			formatBytes(made.Bytes), made.Copied, formatBytes(made.CopiedBytes))
		return err
	})
}

func (e *env) backupStatus(ctx context.Context, c *cli.Context) error {
	t, err := storeHere(c)
	if err != nil {
		return err
	}
	return e.with(ctx, t, true, func(ops control.Ops) error {
		return control.CallEach(ctx, ops, caller("backup"), opBackupStatus, struct{}{}, func(s backup.State) error {
			if c.Bool("json") {
				return e.document(s)
			}
			newest, due, level := "never", "when asked for", "all files"
			if s.Newest != nil {
				newest = formatTime(*s.Newest)
			}
			if s.Due != nil {
				due = formatTime(*s.Due)
			}
			if s.Level != "" && s.Level != "basic" {
				level = "files of level " + s.Level
				if s.Level == "advanced" {
					level += " or critical"
				}
			}
			if s.LastError != "" {
				due += "; the last try failed: " + s.LastError
			}
			_, err := fmt.Fprintf(e.stdout, "%s: %s; %d backups of %d kept, newest %s, next %s\n", e.quote(s.Path), level, s.Backups, s.Keep, newest, due)
			return err
		})
	})
}

func (e *env) backupList(c *cli.Context, p *backup.Place) error {
	all, err := p.List()
	for i := 0; err == nil && i < len(all); i++ {
		if c.Bool("json") {
			err = e.document(all[i])
		} else {
			_, err = fmt.Fprintf(e.stdout, "%s  %s\n", all[i].Name, formatTime(all[i].Time))
		}
	}
	return err
}

func (e *env) backupVerify(ctx context.Context, c *cli.Context, p *backup.Place) error {
	res, err := p.Verify(ctx, func(what string, err error) error {
		if c.Bool("json") {
			return e.document(map[string]string{"damaged": what, "error": err.Error()})
		}
		_, werr := fmt.Fprintf(e.stdout, "damaged: %s: %v\n", e.quote(what), err)
		return werr
	})
	if err != nil {
		return err
	}
	if c.Bool("json") {
		err = e.document(res)
	} else {
		_, err = fmt.Fprintf(e.stdout, "%d backups, %d contents, %s: %d damaged\n", res.Backups, res.Blobs, formatBytes(res.Bytes), res.Damaged)
	}
	if err == nil && res.Damaged > 0 {
		err = fmt.Errorf("%s: %w in %d places; `holdfast backup create --recheck` copies again what the store still has",
			p.Dir(), backup.ErrDamaged, res.Damaged)
	}
	return err
}

func (e *env) backupRestore(ctx context.Context, c *cli.Context, p *backup.Place, dest, from string) error {
	bar := e.newProgress("restored")
	res, err := p.Extract(ctx, c.String("name"), from, dest, func(string) { bar.add(1) })
	bar.done()
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return e.document(res)
	}
	for _, w := range res.Without {
		if _, err := fmt.Fprintf(e.stderr, "holdfast: not as it was: %s\n", quoteAlways(w)); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(e.stdout, "%d names, %s, from the backup %s\n", res.Entries, formatBytes(res.Bytes), res.Backup)
	return err
}
