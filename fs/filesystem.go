package fs

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"holdfast/catalog"
)

// opcode numbers requests as the protocol does.
type opcode uint32

const (
	opLookup      opcode = 1
	opForget      opcode = 2
	opGetAttr     opcode = 3
	opSetAttr     opcode = 4
	opReadlink    opcode = 5
	opSymlink     opcode = 6
	opMknod       opcode = 8
	opMkdir       opcode = 9
	opUnlink      opcode = 10
	opRmdir       opcode = 11
	opRename      opcode = 12
	opLink        opcode = 13
	opOpen        opcode = 14
	opRead        opcode = 15
	opWrite       opcode = 16
	opStatFS      opcode = 17
	opRelease     opcode = 18
	opFsync       opcode = 20
	opSetXattr    opcode = 21
	opGetXattr    opcode = 22
	opListXattr   opcode = 23
	opRemoveXattr opcode = 24
	opFlush       opcode = 25
	opOpenDir     opcode = 27
	opReadDir     opcode = 28
	opReleaseDir  opcode = 29
	opFsyncDir    opcode = 30
	opAccess      opcode = 34
	opCreate      opcode = 35
	opIoctl       opcode = 39
	opFallocate   opcode = 43
	opReadDirPlus opcode = 44
	opLseek       opcode = 46
	opCopyRange   opcode = 47
	opTmpfile     opcode = 51
	opStatx       opcode = 52

	opcodes = 64
)

// opcodeNames gives each request the name that it has in the protocol.
func opcodeNames() map[opcode]string {
	return map[opcode]string{
		opLookup: "LOOKUP", opForget: "FORGET", opGetAttr: "GETATTR", opSetAttr: "SETATTR", opReadlink: "READLINK", opSymlink: "SYMLINK",
		opMknod: "MKNOD", opMkdir: "MKDIR", opUnlink: "UNLINK", opRmdir: "RMDIR", opRename: "RENAME", opLink: "LINK", opOpen: "OPEN",
		opRead: "READ", opWrite: "WRITE", opStatFS: "STATFS", opRelease: "RELEASE", opFsync: "FSYNC", opSetXattr: "SETXATTR",
		opGetXattr: "GETXATTR", opListXattr: "LISTXATTR", opRemoveXattr: "REMOVEXATTR", opFlush: "FLUSH", opOpenDir: "OPENDIR",
		opReadDir: "READDIR", opReleaseDir: "RELEASEDIR", opFsyncDir: "FSYNCDIR", opAccess: "ACCESS", opCreate: "CREATE",
		opIoctl: "IOCTL", opFallocate: "FALLOCATE", opReadDirPlus: "READDIRPLUS", opLseek: "LSEEK", opCopyRange: "COPY_FILE_RANGE",
		opTmpfile: "TMPFILE", opStatx: "STATX",
	}
}

// FileSystem answers the kernel's requests from trees. It implements the raw protocol interface of go-fuse, and
// volume.Invalidator.
type FileSystem struct {
	gofuse.RawFileSystem // what is not implemented here: ENOSYS

	// ctx is that of every request: interrupts are ignored, see the package's documentation.
	ctx     context.Context
	log     *slog.Logger
	trees   []*branch
	handles handles
	writers writers
	callers *callers
	errnos  []errnoRow
	results sync.Pool // of *readResult
	counts  [opcodes]atomic.Uint64
	faults  limiter

	server    atomic.Pointer[gofuse.Server]
	noOpenDir bool // the kernel can do without OPENDIR; set by Init, before the first request
}

// New makes a filesystem of trees that is not mounted yet. ctx carries values only: its end does not end requests.
func New(ctx context.Context, store Tree, virtual []Virtual, log *slog.Logger) (*FileSystem, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	trees, err := plant(store, virtual)
	if err != nil {
		return nil, err
	}
	f := &FileSystem{
		RawFileSystem: gofuse.NewDefaultRawFileSystem(),
		ctx:           context.WithoutCancel(ctx),
		log:           log,
		trees:         trees,
		callers:       newCallers("/proc"),
		errnos:        errnoTable(),
	}
	f.results.New = func() any { return &readResult{pool: &f.results} }
	return f, nil
}

func (f *FileSystem) String() string { return "holdfast" }

// SetDebug is part of the protocol interface; debugging is an option of the mount.
func (f *FileSystem) SetDebug(bool) {}

// Init is called when the mount is made, before the first request.
func (f *FileSystem) Init(s *gofuse.Server) {
	f.noOpenDir = s.KernelSettings().Flags64()&gofuse.CAP_NO_OPENDIR_SUPPORT != 0
	f.server.Store(s)
}

// OnUnmount is called after the last request. The kernel does not always send RELEASE for what was open.
func (f *FileSystem) OnUnmount() {
	f.server.Store(nil)
	for _, h := range f.handles.drain() {
		h.Close(f.ctx)
	}
	f.callers.close()
}

// Requests is the number of requests answered so far, by the name that they have in the protocol.
func (f *FileSystem) Requests() map[string]uint64 {
	all := make(map[string]uint64)
	for op, name := range opcodeNames() {
		if n := f.counts[op].Load(); n > 0 {
			all[name] = n
		}
	}
	return all
}

func (f *FileSystem) count(op opcode) { f.counts[op].Add(1) }

// InvalidateInode makes the kernel forget the attributes and contents that it holds of an inode of the store. Like
// InvalidateEntry it may wait for requests in progress: no lock may be held that a request needs.
func (f *FileSystem) InvalidateInode(ino catalog.Ino) { f.invalidateInode(uint64(ino)) }

// InvalidateEntry makes the kernel forget a name of the store, or that there is none.
func (f *FileSystem) InvalidateEntry(parent catalog.Ino, name string) {
	if s := f.server.Load(); s != nil {
		f.notified(uint64(parent), s.EntryNotify(uint64(parent), name))
	}
}

func (f *FileSystem) invalidateInode(node uint64) {
	if s := f.server.Load(); s != nil {
		f.notified(node, s.InodeNotify(node, 0, 0))
	}
}

// notified looks at the kernel's answer: that it does not know the node is fine.
func (f *FileSystem) notified(node uint64, st gofuse.Status) {
	if st != gofuse.OK && st != gofuse.ENOENT && st != gofuse.Status(unix.ENODEV) && st != gofuse.EBADF {
		f.log.Warn("the kernel did not take an invalidation", "node", node, "errno", st.String())
	}
}

// complain logs a failed request, a few times a second at most: a damaged file that is read in a loop must not fill the log.
func (f *FileSystem) complain(op opcode, node uint64, errno unix.Errno, err error) {
	ok, skipped := f.faults.allow(time.Now())
	if !ok {
		return
	}
	f.log.Error("request failed", "request", opcodeNames()[op], "node", node, "errno", unix.ErrnoName(errno), "error", err, "not_logged_before", skipped)
}

// limiter lets a few events a second pass.
type limiter struct {
	mu      sync.Mutex
	second  int64
	passed  int
	skipped int
}

const maxFaultsPerSecond = 5

// allow reports whether the event may pass, and how many were held back since the last that did.
func (l *limiter) allow(now time.Time) (ok bool, skipped int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := now.Unix(); s != l.second {
		l.second, l.passed = s, 0
	}
	if l.passed == maxFaultsPerSecond {
		l.skipped++
		return false, 0
	}
	l.passed++
	skipped, l.skipped = l.skipped, 0
	return true, skipped
}
