package main

import (
	"cmp"
	"context"
	"fmt"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"holdfast/internal/control"
)

func (e *env) lsCommand() spec {
	return spec{
		name: "ls", usage: "list a directory", args: "PATH", min: 1, max: 1, onStore: true,
		help: `--json writes one JSON document a line, with the fields name, ino, type, mode, nlink, uid, gid, size, mtime, version
and, for symbolic links, target. Names that are not UTF-8 are also given as name_base64.

Example: holdfast ls -l ~/store:/tasks`,
		flags: []cli.Flag{
			&cli.BoolFlag{Name: "long", Aliases: []string{"l"}, Usage: "with permissions, owner, size, time and number of the newest version"},
			&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "with names that start with a dot"},
		},
		run: e.runLs,
	}
}

func (e *env) runLs(ctx context.Context, c *cli.Context) error {
	t, err := locate(c, c.Args().First())
	if err != nil {
		return err
	}
	var entries []control.Entry
	err = e.with(ctx, t, true, func(ops control.Ops) error {
		st, err := ops.Stat(ctx, t.path)
		if err != nil {
			return explain(t, err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			st.Name = t.arg
			entries = append(entries, st)
			return nil
		}
		return explain(t, ops.List(ctx, t.path, func(x control.Entry) error {
			if c.Bool("all") || !strings.HasPrefix(x.Name, ".") {
				entries = append(entries, x)
			}
			return nil
		}))
	})
	if err != nil {
		return err
	}
	slices.SortFunc(entries, func(a, b control.Entry) int { return cmp.Compare(a.Name, b.Name) })
	names := names{}
	for _, x := range entries {
		switch {
		case c.Bool("json"):
			err = e.document(x)
		case c.Bool("long"):
			name := e.quote(x.Name)
			if x.Target != "" {
				name += " -> " + e.quote(x.Target)
			}
			_, err = fmt.Fprintf(e.stdout, "%s %3d %-8s %-8s %10d %s v%-4d %s\n", modeString(x.Mode), x.Nlink,
				names.user(x.UID), names.group(x.GID), x.Size, formatTime(x.Mtime), x.Version, name)
		default:
			_, err = fmt.Fprintln(e.stdout, e.quote(x.Name))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// names remembers the names of users (even keys) and groups (odd keys).
type names map[uint64]string

func (n names) user(id uint32) string {
	return n.find(uint64(id)<<1, id, func(s string) (string, error) {
		u, err := user.LookupId(s)
		if err != nil {
			return "", err
		}
		return u.Username, nil
	})
}

func (n names) group(id uint32) string {
	return n.find(uint64(id)<<1|1, id, func(s string) (string, error) {
		g, err := user.LookupGroupId(s)
		if err != nil {
			return "", err
		}
		return g.Name, nil
	})
}

func (n names) find(key uint64, id uint32, lookup func(string) (string, error)) string {
	name, ok := n[key]
	if !ok {
		var err error
		number := strconv.FormatUint(uint64(id), 10)
		if name, err = lookup(number); err != nil {
			name = number
		}
		n[key] = name
	}
	return name
}

// modeString writes st_mode as ls -l does.
func modeString(mode uint32) string {
	kind := "?"
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		kind = "-"
	case unix.S_IFDIR:
		kind = "d"
	case unix.S_IFLNK:
		kind = "l"
	case unix.S_IFIFO:
		kind = "p"
	case unix.S_IFSOCK:
		kind = "s"
	case unix.S_IFCHR:
		kind = "c"
	case unix.S_IFBLK:
		kind = "b"
	}
	b := []byte("rwxrwxrwx")
	for i := range b {
		if mode&(1<<(8-i)) == 0 {
			b[i] = '-'
		}
	}
	for _, s := range []struct {
		bit uint32
		at  int
		c   byte
	}{{unix.S_ISUID, 2, 's'}, {unix.S_ISGID, 5, 's'}, {unix.S_ISVTX, 8, 't'}} {
		if mode&s.bit == 0 {
			continue
		}
		if b[s.at] == '-' {
			b[s.at] = s.c - 'a' + 'A'
		} else {
			b[s.at] = s.c
		}
	}
	return kind + string(b)
}
