package snapshots

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/catalog"
)

const (
	// conflictShift leaves room, in a position below `conflicts`, for the files of the conflicts of one record.
	conflictShift = 8
	conflictFirst = 16
	conflictPage  = 256
	// maxDepth bounds a walk from a file up to the directory whose conflicts are shown.
	maxDepth = 4096
)

// conflictsDir is the `conflicts` of a directory: for each change that another agent's close has buried a JSON file that says so, and the content
// that was buried.
type conflictsDir struct {
	plain
	t *Tree
	n *node
}

func (c conflictsDir) get(ctx context.Context) (catalog.Inode, error) {
	return c.t.below(ctx, c.n.root, c.n.num)
}

func (c conflictsDir) lookup(ctx context.Context, name string) (catalog.Inode, error) {
	if name == ".." {
		return home{t: c.t, dir: c.n.root}.get(ctx)
	}
	seq, ok := versionNumber(name)
	if !ok {
		return catalog.Inode{}, catalog.ErrNotExist
	}
	list, err := c.files(ctx, catalog.Seq(seq)-1, catalog.Seq(seq))
	if err != nil {
		return catalog.Inode{}, err
	}
	for _, e := range list {
		if e.Name == name {
			return e.Inode, nil
		}
	}
	return catalog.Inode{}, catalog.ErrNotExist
}

func (c conflictsDir) readDir(ctx context.Context, after uint64, limit int) ([]catalog.DirEntry, error) {
	var list []catalog.DirEntry
	behind := catalog.Seq(0) // the records behind it hold what is asked for
	if after >= conflictFirst {
		behind = max(catalog.Seq((after-conflictFirst)>>conflictShift), 1) - 1
	}
	for len(list) < limit {
		all, err := c.t.store.Conflicts(ctx, behind, conflictPage)
		if err != nil || len(all) == 0 {
			return list, err
		}
		last := all[len(all)-1].Seq
		files, err := c.files(ctx, behind, last)
		if err != nil {
			return nil, err
		}
		for _, e := range files {
			if e.Cookie > after && len(list) < limit {
				list = append(list, e)
			}
		}
		behind = last
	}
	return list, nil
}

// files makes the entries for the conflicts behind the record after, up to the record last.
func (c conflictsDir) files(ctx context.Context, after, last catalog.Seq) ([]catalog.DirEntry, error) {
	var list []catalog.DirEntry
	index := uint64(0)
	for after < last {
		all, err := c.t.store.Conflicts(ctx, after, conflictPage)
		if err != nil || len(all) == 0 {
			return list, err
		}
		for _, x := range all {
			if x.Seq > last {
				return list, nil
			}
			if x.Seq != after {
				after, index = x.Seq, 0
			}
			ok, err := c.within(ctx, x.Ino)
			if err != nil {
				return nil, err
			}
			if ok && index < 1<<conflictShift-1 {
				entries, err := c.entries(ctx, x, index)
				if err != nil {
					return nil, err
				}
				list = append(list, entries...)
			}
			index += 2
		}
	}
	return list, nil
}

// within reports whether a file is, or was last, below the directory.
func (c conflictsDir) within(ctx context.Context, ino catalog.Ino) (bool, error) {
	for range maxDepth {
		switch ino {
		case c.n.root:
			return true, nil
		case catalog.Root:
			return false, nil
		}
		row, err := c.t.store.GetAt(ctx, ino, catalog.Head)
		if errors.Is(err, catalog.ErrStale) {
			return c.n.root == catalog.Root, nil // retention has taken it
		}
		if err != nil {
			return false, err
		}
		ino = row.Parent
	}
	return false, nil
}

// conflictText is the content of the JSON file. Its field names are stable.
type conflictText struct {
	Path   string         `json:"path"` // of the file then
	Inode  catalog.Ino    `json:"inode"`
	Time   time.Time      `json:"time"`
	Record catalog.Seq    `json:"record"`
	Strict bool           `json:"strict"` // the directory is strict: the close that lost has failed
	Lost   conflictWriter `json:"lost"`
	Won    conflictWriter `json:"won"`
}

type conflictWriter struct {
	Version uint64 `json:"version"` // of the inode
	Agent   string `json:"agent"`
	Program string `json:"program"`
	UID     uint32 `json:"uid"`
	PID     uint32 `json:"pid"`
	Content string `json:"content,omitempty"` // the file beside this one that holds it
}

func writerOf(version uint64, a catalog.Actor) conflictWriter {
	return conflictWriter{Version: version, Agent: a.Agent, Program: a.Program, UID: a.UID, PID: a.PID}
}

// entries makes the files of one conflict. The content is missing when retention has taken it.
func (c conflictsDir) entries(ctx context.Context, x catalog.Conflict, index uint64) ([]catalog.DirEntry, error) {
	stem := fmt.Sprintf("%04d-%s-%s", x.Seq, time.Unix(0, x.Time).UTC().Format(time.RFC3339), sanitize(path.Base(x.Path), maxConflictName))
	if index > 0 {
		stem += fmt.Sprintf("-%d", index/2+1)
	}
	cookie := conflictFirst + uint64(x.Seq)<<conflictShift + index
	text := conflictText{
		Path: strings.ToValidUTF8(x.Path, "?"), Inode: x.Ino, Time: time.Unix(0, x.Time).UTC(), Record: x.Seq, Strict: x.Side != 0 && x.Won != 0,
		Lost: writerOf(x.Lost, x.LostBy), Won: writerOf(x.Won, x.WonBy),
	}
	var content []catalog.DirEntry
	ino := x.Ino
	if x.Side != 0 {
		ino = x.Side
	}
	part, err := c.t.store.VersionRange(ctx, ino, x.Lost, x.Lost+1)
	if err != nil {
		return nil, err
	}
	if len(part) > 0 {
		agent := agentPart(x.LostBy)
		name := stem + "-lost-" + agent + extension(x.Path)
		row, err := keptFile{t: c.t, n: c.t.nodes.file(c.n, name, ino, part[0].Seq)}.get(ctx)
		switch {
		case err == nil:
			text.Lost.Content = name
			content = []catalog.DirEntry{{Name: name, Cookie: cookie + 1, Inode: row}}
		case !errors.Is(err, catalog.ErrStale) && !errors.Is(err, catalog.ErrNotExist):
			return nil, err
		}
	}
	body, err := json.MarshalIndent(text, "", "  ")
	if err != nil {
		return nil, err
	}
	guard, err := c.t.store.GetAt(ctx, c.n.root, catalog.Head)
	if err != nil {
		return nil, err
	}
	n := c.t.nodes.text(c.n, stem+".json", string(body)+"\n", catalog.Inode{
		Mode: unix.S_IFREG | guard.Mode&0o444, UID: guard.UID, GID: guard.GID, Mtime: x.Time, Atime: x.Time, Ctime: x.Time, Btime: x.Time,
	})
	row, err := textFile{n: n}.get(ctx)
	if err != nil {
		return nil, err
	}
	return slices.Concat([]catalog.DirEntry{{Name: stem + ".json", Cookie: cookie, Inode: row}}, content), nil
}

// maxConflictName is how much of a file's name is in that of a conflict, in bytes.
const maxConflictName = 80

// textFile is a text of the tree itself.
type textFile struct {
	plain
	n *node
}

func (f textFile) get(context.Context) (catalog.Inode, error) {
	row := f.n.row
	row.Ino, row.Parent, row.Nlink, row.Size = f.n.num, f.n.parent.num, 1, int64(len(f.n.body))
	return row, nil
}

func (f textFile) open(context.Context) (*File, error) { return &File{text: f.n.body}, nil }
