// Package kernel is what a filesystem of ours agrees with the kernel: capabilities, timeouts, mount options, and how a mount
// is made, found, and taken down. Package fs and the benchmark floor share it, so that both are served under the same terms.
package kernel

import (
	"log/slog"
	"os"
	"runtime/debug"
	"slices"
	"syscall"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

const (
	// Type is the filesystem's type in the mount table, behind "fuse.".
	Type = "holdfast"
	// Valid is how long the kernel may rely on names and attributes, in seconds: one mount owns the store, and what changes
	// behind the kernel's back is invalidated explicitly.
	Valid = 365 * 24 * 3600
	// MaxWrite is the size of the largest READ and WRITE request, in bytes.
	MaxWrite = 1 << 20
	// maxBackground is how many asynchronous requests (readahead, writeback) the kernel keeps in flight.
	maxBackground = 64
	// readAheadKB replaces the kernel's 128 KiB, where we may set it.
	readAheadKB = 1024

	wanted = gofuse.CAP_WRITEBACK_CACHE | // the kernel collects small writes; it owns size and mtime of regular files
		gofuse.CAP_ATOMIC_O_TRUNC | // one OPEN instead of OPEN and SETATTR
		gofuse.CAP_HANDLE_KILLPRIV_V2 | // set-id bits are cleared by us
		gofuse.CAP_EXPORT_SUPPORT | // LOOKUP of "." finds an inode by its number
		gofuse.CAP_ASYNC_DIO |
		gofuse.CAP_PARALLEL_DIROPS |
		gofuse.CAP_DIRECT_IO_ALLOW_MMAP |
		gofuse.CAP_READDIRPLUS |
		gofuse.CAP_READDIRPLUS_AUTO |
		gofuse.CAP_CACHE_SYMLINKS |
		gofuse.CAP_EXPLICIT_INVAL_DATA
	refused = gofuse.CAP_PASSTHROUGH | // does not go with the writeback cache
		gofuse.CAP_AUTO_INVAL_DATA // would compare mtimes at each open
)

// Options say how to mount.
type Options struct {
	// Store is the directory that the mount must neither hide nor lie in. "": none.
	Store string
	// Source is what the mount table shows as the mounted thing.
	Source string
	// AllowOther lets users other than the one who mounts in; permission bits then decide, as on any filesystem.
	AllowOther bool
	ReadOnly   bool
	// Extra are mount options by name: suid, dev, exec and their opposites, and what the kernel's fuse understands.
	Extra []string
	Debug bool // log every request
	Log   *slog.Logger
}

func (o Options) fuseOptions() *gofuse.MountOptions {
	root := os.Geteuid() == 0
	m := &gofuse.MountOptions{
		AllowOther:               o.AllowOther,
		Name:                     Type,
		FsName:                   o.Source,
		MaxBackground:            maxBackground,
		MaxWrite:                 MaxWrite,
		MaxReadAhead:             MaxWrite,
		ExplicitDataCacheControl: true,
		EnableSymlinkCaching:     true,
		// Replies are made in memory: a pipe between would only add system calls.
		DisableSplice:        true,
		ExtraCapabilities:    wanted,
		DisabledCapabilities: refused,
		Debug:                o.Debug,
		Logger:               slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug),
		PanicHandler: func(v any) gofuse.Status {
			o.Log.Error("a request handler panicked", "panic", v, "stack", string(debug.Stack()))
			return gofuse.EIO
		},
		Options:           append([]string{"default_permissions"}, o.Extra...),
		DirectMountStrict: root,
	}
	m.Options = slices.DeleteFunc(m.Options, func(s string) bool { return s == "" || s == "rw" || s == "nonempty" })
	if !root {
		if o.ReadOnly {
			m.Options = append(m.Options, "ro")
		}
		return m
	}
	m.DirectMountFlags = syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOATIME
	if o.ReadOnly {
		m.DirectMountFlags |= syscall.MS_RDONLY
	}
	m.Options = slices.DeleteFunc(m.Options, func(s string) bool {
		switch s {
		case "ro":
			m.DirectMountFlags |= syscall.MS_RDONLY
		case "noatime":
		case "nodiratime":
		case "allow_other":
			m.AllowOther = true
		default:
			return false
		}
		return true
	})
	return m
}
