package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"holdfast/catalog"
	"holdfast/integrity/audit"
	"holdfast/internal/volume"
)

// Mounted is what a Local knows of the mount that its volume serves.
type Mounted struct {
	Mount    Mount
	Requests func() map[string]uint64 // FUSE requests so far, by operation
	Unmount  func(lazy bool) error    // ErrBusy when the mount is in use

	Audit      *audit.Log // nil when it could not be opened
	AuditError error      // why
}

// Local is an Ops over a volume of this process.
type Local struct {
	vol      *volume.Volume
	mounted  *Mounted
	services Services // nil: none
	owned    bool

	auditMu sync.Mutex
	audit   *audit.Log // opened by auditLog
}

// NewLocal returns an Ops over vol; mounted is nil when it is not mounted, services when there are none. Close closes neither vol nor services.
func NewLocal(vol *volume.Volume, mounted *Mounted, services Services) *Local {
	return &Local{vol: vol, mounted: mounted, services: services}
}

// Close closes the services and the volume if Dial opened them.
func (l *Local) Close() error {
	if !l.owned {
		return l.closeAudit()
	}
	var err error
	if l.services != nil {
		err = l.services.Close()
	}
	// What is staged must be saved even by a command that was interrupted.
	return errors.Join(err, l.closeAudit(), l.vol.Close(context.Background()))
}

// Status implements Ops.
func (l *Local) Status(ctx context.Context) (Status, error) {
	st, err := l.vol.Stats(ctx)
	if err != nil {
		return Status{}, err
	}
	set := l.vol.Settings()
	out := Status{
		Store: l.vol.Dir(), ID: set.StoreID, Format: set.Format, Storage: set.Storage, Created: set.Created.UTC(),
		Files: st.Files, Directories: st.Dirs, Versions: st.Versions,
		VersionBytes: st.VersionBytes, Blobs: st.Blobs.Blobs, UniqueBytes: st.Blobs.PlainBytes, StoredBytes: st.Blobs.StoredBytes,
		JournalBytes: st.JournalBytes, JournalSeq: uint64(st.Seq), SyncedSeq: uint64(st.Synced),
		OpenFiles: st.OpenFiles, StagedBytes: st.Staged, Problems: []string{},
	}
	if r, ok := l.services.(HealthReporter); ok {
		h, err := r.Health(ctx)
		if err != nil {
			return Status{}, err
		}
		out.Health = &h
	}
	if out.History, err = l.historyCost(ctx, st); err != nil {
		return Status{}, err
	}
	if !st.OldestVersion.IsZero() {
		t := st.OldestVersion.UTC()
		out.OldestVersion = &t
	}
	if st.LastError != nil {
		out.Problems = append(out.Problems, st.LastError.Error())
	}
	for _, d := range st.Damage {
		out.Problems = append(out.Problems, d.Error())
	}
	if l.mounted != nil {
		m := l.mounted.Mount
		out.Mounted, out.Mount, out.Requests = true, &m, l.mounted.Requests()
		out.Problems = append(out.Problems, l.mounted.auditProblems()...)
	}
	return out, nil
}

// Stat implements Ops.
func (l *Local) Stat(ctx context.Context, p string) (Entry, error) {
	p, err := CleanPath(p)
	if err != nil {
		return Entry{}, err
	}
	row, err := l.vol.Resolve(ctx, p)
	if err != nil {
		return Entry{}, err
	}
	return entry(path.Base(p), row), nil
}

func entry(name string, row catalog.Inode) Entry {
	e := Entry{
		Name: name, Ino: uint64(row.Ino), Type: typeName(row.Mode), Mode: row.Mode, Nlink: row.Nlink, UID: row.UID, GID: row.GID,
		Size: row.Size, Mtime: time.Unix(0, row.Mtime).UTC(), Version: row.Ver, Target: row.Target,
	}
	if !utf8.ValidString(e.Name) {
		e.NameBase64 = []byte(e.Name)
	}
	if !utf8.ValidString(e.Target) {
		e.TargetBase64 = []byte(e.Target)
	}
	return e
}

func typeName(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "dir"
	case unix.S_IFLNK:
		return "symlink"
	case unix.S_IFIFO:
		return "fifo"
	case unix.S_IFSOCK:
		return "socket"
	case unix.S_IFCHR:
		return "char"
	case unix.S_IFBLK:
		return "block"
	}
	return "unknown"
}

// List implements Ops.
func (l *Local) List(ctx context.Context, p string, fn func(Entry) error) error {
	p, err := CleanPath(p)
	if err != nil {
		return err
	}
	dir, err := l.vol.Resolve(ctx, p)
	if err != nil {
		return err
	}
	if dir.Mode&unix.S_IFMT != unix.S_IFDIR {
		return pathError("list", p, catalog.ErrNotDir)
	}
	const batch = 1024
	for after := uint64(0); ; {
		entries, err := l.vol.ReadDir(ctx, dir.Ino, after, batch)
		if err != nil {
			return pathError("list", p, err)
		}
		if len(entries) == 0 {
			return nil
		}
		for _, e := range entries {
			if err := fn(entry(e.Name, e.Inode)); err != nil {
				return err
			}
		}
		after = entries[len(entries)-1].Cookie
	}
}

// Log implements Ops.
func (l *Local) Log(ctx context.Context, p string, fn func(LogEntry) error) error {
	p, err := CleanPath(p)
	if err != nil {
		return err
	}
	return l.vol.Log(ctx, p, func(e volume.LogEntry) error {
		return fn(LogEntry{
			Number: e.Number, Time: e.Time.UTC(), Size: e.Size, SHA256: e.SHA256, Agent: e.Agent, Program: e.Program,
			UID: e.UID, PID: e.PID, Seq: uint64(e.Seq), Ino: uint64(e.Inode), Removed: e.Removed,
		})
	})
}

// Get implements Ops.
func (l *Local) Get(ctx context.Context, p string, at Selector, w io.Writer) (int64, error) {
	p, err := CleanPath(p)
	if err != nil {
		return 0, err
	}
	out := &sink{w: w}
	err = l.vol.ReadPath(ctx, p, volume.Moment{Number: at.Number, Time: at.Time, Seq: catalog.Seq(at.Seq)}, out)
	return out.n, err
}

// Put implements Ops.
func (l *Local) Put(ctx context.Context, who Caller, p string, mode uint32, r io.Reader) (Entry, error) {
	p, err := CleanPath(p)
	if err != nil {
		return Entry{}, err
	}
	row, err := l.vol.WritePath(ctx, who.actor(), who.GID, p, mode, contextReader{ctx, r})
	if err != nil {
		return Entry{}, err
	}
	return entry(path.Base(p), row), nil
}

func (c Caller) actor() catalog.Actor {
	return catalog.Actor{Agent: c.Agent, Program: c.Program, UID: c.UID, PID: c.PID}
}

// contextReader stops a copy when its context ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.r.Read(p)
	// A sender that broke off in the middle must not look like the end of the content.
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("%w before the content had arrived (%v)", ErrDisconnected, err)
	}
	return n, err
}

// Remove implements Ops.
func (l *Local) Remove(ctx context.Context, who Caller, p string, recursive bool) error {
	p, err := CleanPath(p)
	if err != nil {
		return err
	}
	return l.vol.RemovePath(ctx, who.actor(), p, recursive)
}

// Unmount implements Ops.
func (l *Local) Unmount(_ context.Context, lazy bool) error {
	if l.mounted == nil {
		return fmt.Errorf("%s: %w", l.vol.Dir(), ErrNotMounted)
	}
	return l.mounted.Unmount(lazy)
}
