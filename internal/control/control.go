// Package control is how commands reach a store, whether a daemon has it mounted or not. Ops is what can be done to a store;
// Local does it on an opened volume, Server offers an Ops on the socket STORE/control.sock, and Client speaks to that socket.
// Dial picks the one that fits, so that a command does not care.
//
// The protocol is HTTP/1.1 over a unix socket that only the owner of the daemon and root may use. Results of one value are a
// JSON document, results of many are JSON lines with a closing line, contents are raw bytes with an error trailer. Errors carry
// a code, and errors.Is holds on the client for the sentinel that the code stands for.
package control

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"path"
	"strings"
	"time"

	"holdfast/catalog"
)

const (
	// SocketName is the name of the control socket inside a store.
	SocketName = "control.sock"
	// MaxPath is the longest path that a request may carry, in bytes.
	MaxPath = 32 << 10
	// MaxActor is the longest agent or program name that a request may carry, in bytes.
	MaxActor = 256
)

var (
	// ErrBusy: the mount has open files or working directories in it and was not unmounted.
	ErrBusy = errors.New("the mount is busy")
	// ErrNotMounted: there is no mount to act on.
	ErrNotMounted = errors.New("the store is not mounted")
	// ErrRequest: the request was not understood, or is larger than allowed.
	ErrRequest = errors.New("invalid request")
	// ErrDisconnected: the daemon went away, or broke off, before it had answered. Nothing is known of a change that was asked for;
	// a content that was being put is either there as a whole or not at all.
	ErrDisconnected = errors.New("the daemon closed the connection")
	// ErrForbidden: the caller is neither the owner of the daemon nor root.
	ErrForbidden = errors.New("only the user who mounted the store, and root, may control it")
)

// Ops is what a command can do to a store. Paths are absolute within the store, with "/" its root; "." and ".." are resolved
// without leaving it, and symbolic links are not followed. All methods may be called concurrently. Errors match those of
// catalog, blobstore and volume, and of this package.
type Ops interface {
	// Status describes the store and, when it is mounted, the mount.
	Status(ctx context.Context) (Status, error)
	// Stat describes what path leads to now.
	Stat(ctx context.Context, path string) (Entry, error)
	// List calls fn for each entry of a directory, in no particular order, until fn returns an error, which List returns.
	List(ctx context.Context, path string, fn func(Entry) error) error
	// Log calls fn for each version that path has led to, and each removal, oldest first, until fn returns an error, which Log
	// returns. path need not exist any more.
	Log(ctx context.Context, path string, fn func(LogEntry) error) error
	// Get writes the content of a file, as it is now or was, to w and returns the bytes written. On error w may have received
	// a part of the content, all of it verified.
	Get(ctx context.Context, path string, at Selector, w io.Writer) (int64, error)
	// Put makes what r yields the content of path, atomically: a reader sees the old file or the new one, and on any error, one of
	// r included, the old one stays. mode holds the permission bits, if there was no file. On return the content is on stable storage.
	Put(ctx context.Context, who Caller, path string, mode uint32, r io.Reader) (Entry, error)
	// Remove removes the name: a directory that is not empty only with recursive. Its versions stay reachable by Log and Get.
	Remove(ctx context.Context, who Caller, path string, recursive bool) error
	// Unmount ends the mount: ErrBusy when it is in use, unless lazy, which takes it out of the tree at once and ends it when
	// the last user has gone. ErrNotMounted when there is none.
	Unmount(ctx context.Context, lazy bool) error
	History
	Audit
	// Call does what one of the Services offers under a name, with arguments that encode as JSON, and calls fn with each document of the answer, until fn
	// returns an error, which Call returns. ErrRequest when there is no such operation. See CallEach.
	Call(ctx context.Context, who Caller, name string, args any, fn func(json.RawMessage) error) error
	// Close releases the connection, or closes the volume that Dial opened.
	Close() error
}

// Status describes a store. The names of its JSON fields are stable.
type Status struct {
	Store   string    `json:"store"` // the store's directory
	ID      string    `json:"id"`
	Format  int       `json:"format"`
	Storage string    `json:"storage"` // "file", "database" or "hybrid"
	Created time.Time `json:"created"`
	Mounted bool      `json:"mounted"`
	Mount   *Mount    `json:"mount"` // nil when not mounted

	Files         int64       `json:"files"`
	Directories   int64       `json:"directories"`
	Versions      int64       `json:"versions"`
	OldestVersion *time.Time  `json:"oldest_version"` // nil when there is no version
	VersionBytes  int64       `json:"version_bytes"`  // of all versions, each counted whole
	Blobs         int64       `json:"blobs"`
	UniqueBytes   int64       `json:"unique_bytes"` // of all versions, after deduplication
	StoredBytes   int64       `json:"stored_bytes"` // of all versions, after deduplication and compression
	JournalBytes  int64       `json:"journal_bytes"`
	JournalSeq    uint64      `json:"journal_seq"` // number of the newest record
	SyncedSeq     uint64      `json:"synced_seq"`  // number of the newest record that is on stable storage
	History       HistoryCost `json:"history"`
	OpenFiles     int         `json:"open_files"`
	StagedBytes   int64       `json:"staged_bytes"` // in memory, of files that are being written
	Health        *Health     `json:"health"`       // of the data; nil when nobody looks after it
	Problems      []string    `json:"problems"`     // what is wrong with the store, as far as is known; empty when nothing is

	Requests map[string]uint64 `json:"requests"` // FUSE requests served since the mount, by operation; nil when not mounted
}

// HistoryCost says what the past costs, and how far it reaches.
type HistoryCost struct {
	// Bytes is the content that files have no more, before deduplication and compression, as it was when the history was thinned or measured last.
	Bytes     int64      `json:"bytes"`
	Snapshots int        `json:"snapshots"`
	Oldest    *time.Time `json:"oldest_moment"` // that is kept as a whole where no directory has a policy of its own; nil in an empty store
	Horizon   *time.Time `json:"horizon"`       // every moment since is kept there; nil: nothing was thinned yet
}

// Health says how the data is.
type Health struct {
	Healthy      bool       `json:"healthy"`
	Summary      string     `json:"summary"`       // one line
	LastCheck    *time.Time `json:"last_check"`    // end of the last check of everything; nil: there was none yet
	OldestCheck  *time.Time `json:"oldest_check"`  // nothing was checked longer ago; nil: not everything was checked yet
	NewestBackup *time.Time `json:"newest_backup"` // in any place of the settings; nil: there is none
}

// Mount describes a mount and the daemon that serves it.
type Mount struct {
	Dir      string    `json:"dir"`
	PID      int       `json:"pid"`
	Since    time.Time `json:"since"`
	ReadOnly bool      `json:"read_only"`
}

// Entry describes a file or directory.
type Entry struct {
	Name string `json:"name"`
	// NameBase64 holds the name's bytes when they are not UTF-8, which JSON cannot say; Name is then an approximation.
	NameBase64 []byte    `json:"name_base64,omitempty"`
	Ino        uint64    `json:"ino"`
	Type       string    `json:"type"` // "file", "dir", "symlink", "fifo", "socket", "char", "block"
	Mode       uint32    `json:"mode"` // st_mode
	Nlink      uint32    `json:"nlink"`
	UID        uint32    `json:"uid"`
	GID        uint32    `json:"gid"`
	Size       int64     `json:"size"`
	Mtime      time.Time `json:"mtime"`
	Version    uint64    `json:"version"` // number of the newest version; 0 when it has none
	Target     string    `json:"target,omitempty"`
	// TargetBase64 is to Target as NameBase64 is to Name.
	TargetBase64 []byte `json:"target_base64,omitempty"`
}

// unseal restores the exact strings from what JSON carried.
func (e *Entry) unseal() {
	if e.NameBase64 != nil {
		e.Name = string(e.NameBase64)
	}
	if e.TargetBase64 != nil {
		e.Target = string(e.TargetBase64)
	}
}

// LogEntry describes one version of a path, or its removal.
type LogEntry struct {
	Number  int       `json:"number"` // from 1, the oldest; 0 for a removal
	Time    time.Time `json:"time"`
	Size    int64     `json:"size"`
	SHA256  string    `json:"sha256"` // 64 hexadecimal digits; empty for a removal, and for a version that cannot be read
	Agent   string    `json:"agent"`
	Program string    `json:"program"`
	UID     uint32    `json:"uid"`
	PID     uint32    `json:"pid"`
	Seq     uint64    `json:"seq"` // the journal record
	Ino     uint64    `json:"ino"`
	Removed bool      `json:"removed"`
}

// Caller is who asks for a change.
type Caller struct {
	Agent   string
	Program string
	UID     uint32
	GID     uint32
	PID     uint32
}

// CleanPath returns p as an absolute path within a store: "." and ".." resolved without leaving the root. It refuses what no
// file can be named: a NUL byte, a component longer than catalog.MaxName, a path longer than MaxPath.
func CleanPath(p string) (string, error) {
	if len(p) > MaxPath {
		return "", pathError("path", p[:64]+"...", catalog.ErrNameTooLong)
	}
	if strings.IndexByte(p, 0) >= 0 {
		return "", pathError("path", p, catalog.ErrInvalid)
	}
	c := path.Clean("/" + p)
	for name := range strings.SplitSeq(c, "/") {
		if len(name) > catalog.MaxName {
			return "", pathError("path", p, catalog.ErrNameTooLong)
		}
	}
	return c, nil
}
