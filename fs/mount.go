package fs

import (
	"context"
	"fmt"
	"log/slog"

	"holdfast/fs/internal/kernel"
	"holdfast/internal/volume"
)

// Errors of mounting and unmounting.
var (
	// ErrMountPoint: the directory cannot be mounted on; the text says why.
	ErrMountPoint = kernel.ErrMountPoint
	// ErrBusy: programs still use the mount.
	ErrBusy = kernel.ErrBusy
	// ErrNotMounted: nothing is mounted on the directory.
	ErrNotMounted = kernel.ErrNotMounted
)

// MountOptions say how to mount a store.
type MountOptions struct {
	// AllowOther lets other users in, whom permission bits then hold to what they may do. Without it even root gets EACCES, unless
	// root has mounted.
	AllowOther bool
	// ReadOnly mounts read-only; a store that is open read-only is always mounted so.
	ReadOnly bool
	// Options are those of mount -o, one each. nosuid and nodev are on unless root passes suid and dev: set-id bits and device nodes are
	// kept in full, and come into effect only on request. nonempty allows a directory with files in it.
	Options []string
	FSName  string // what the mount table shows as the source (default: the store's directory)
	Debug   bool   // log every request, at debug level
	Log     *slog.Logger
	Virtual []Virtual // trees besides the store's own; Mount adds `.snapshots`
}

// Server is a mounted store.
type Server struct {
	*FileSystem
	kernel *kernel.Server
	vol    *volume.Volume // nil: another tree
}

// Mount mounts vol on dir, with its past in `.snapshots`: by mount(2) for root, by fusermount3 for others. On return requests are
// served; ctx bounds nothing after that. The caller unmounts and waits before it closes vol.
func Mount(ctx context.Context, vol *volume.Volume, dir string, opt MountOptions) (*Server, error) {
	if opt.FSName == "" {
		opt.FSName = vol.Dir()
	}
	opt.ReadOnly = opt.ReadOnly || vol.ReadOnly()
	opt.Virtual = append([]Virtual{Snapshots(vol, opt.Log)}, opt.Virtual...)
	s, err := mountOver(ctx, store{vol}, dir, vol.Dir(), opt)
	if err != nil {
		return nil, err
	}
	s.vol = vol
	vol.SetInvalidator(s.FileSystem)
	return s, nil
}

// MountTree mounts any tree on dir, as Mount does a volume.
func MountTree(ctx context.Context, tree Tree, dir string, opt MountOptions) (*Server, error) {
	return mountOver(ctx, tree, dir, "", opt)
}

// mountOver is MountTree for a tree that is kept in the directory behind, which the mount must neither hide nor lie in.
func mountOver(ctx context.Context, tree Tree, dir, behind string, opt MountOptions) (*Server, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.FSName == "" {
		opt.FSName = kernel.Type
	}
	f, err := New(ctx, tree, opt.Virtual, opt.Log)
	if err != nil {
		return nil, err
	}
	k, err := kernel.Mount(f, dir, kernel.Options{
		Store: behind, Source: opt.FSName, AllowOther: opt.AllowOther, ReadOnly: opt.ReadOnly,
		Extra: opt.Options, Debug: opt.Debug, Log: opt.Log,
	})
	if err != nil {
		return nil, err
	}
	return &Server{FileSystem: f, kernel: k}, nil
}

// Dir is the mount point, absolute.
func (s *Server) Dir() string { return s.kernel.Dir() }

// Wait returns when the mount is gone, whoever unmounted it, and every request is answered.
func (s *Server) Wait() {
	s.kernel.Wait()
	if s.vol != nil {
		s.vol.SetInvalidator(nil)
	}
}

// Done is closed when the mount is gone and every request is answered.
func (s *Server) Done() <-chan struct{} { return s.kernel.Done() }

// Unmount takes the mount down. ErrBusy when programs use it, unless lazy is set: then it leaves the tree at once, and ends when the
// last of them is done with it. Wait waits for the end.
func (s *Server) Unmount(lazy bool) error { return s.kernel.Unmount(lazy) }

// Unmount takes down the mount on dir, whichever process serves it.
func Unmount(dir string, lazy bool) error {
	m, err := At(dir)
	if err != nil {
		return err
	}
	return kernel.Unmount(m.Dir, lazy)
}

// MountInfo is a store that is mounted.
type MountInfo struct {
	Dir    string `json:"dir"`
	Source string `json:"source"` // the store's directory
}

// Mounts lists the mounted stores that this process can see, dead ones too.
func Mounts() ([]MountInfo, error) {
	table, err := kernel.Table()
	if err != nil {
		return nil, err
	}
	var all []MountInfo
	for _, m := range table {
		if m.IsOurs() {
			all = append(all, MountInfo{Dir: m.Dir, Source: m.Source})
		}
	}
	return all, nil
}

// At returns the mount whose mount point is dir. ErrNotMounted when dir is not the mount point of a store. A mount that does not
// answer is found as well: it is not touched.
func At(dir string) (MountInfo, error) {
	abs, err := kernel.Resolve(dir)
	if err != nil {
		return MountInfo{}, err
	}
	m, ok, err := kernel.At(abs)
	if err != nil {
		return MountInfo{}, err
	}
	if !ok || !m.IsOurs() {
		return MountInfo{}, fmt.Errorf("%s: %w: it is not the mount point of a store", dir, ErrNotMounted)
	}
	return MountInfo{Dir: m.Dir, Source: m.Source}, nil
}

// StaleMount unmounts what a daemon that has died left on dir, and reports whether it did. A mount that answers stays.
func StaleMount(dir string) (bool, error) { return kernel.CleanStale(dir) }
