package integrity

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/blobstore"
)

const (
	// watchWait is how long a file is left alone after it was touched, before it is looked at: what the store itself does is over then.
	watchWait = 500 * time.Millisecond
	// maxTouched bounds the blobs that wait to be looked at; more are left to the scrub.
	maxTouched = 1 << 14
)

// watch looks at blobs whose files are changed in place or removed by somebody: the store itself only ever replaces them by a rename. It returns
// when ctx ends, or with an error when the system does not let it watch.
func (e *Engine) watch(ctx context.Context) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("inotify: %w", err)
	}
	w := &watcher{e: e, dir: filepath.Join(e.vol.Dir(), "blobs"), dirs: make(map[int32]string), touched: make(map[blobstore.Hash]bool)}
	w.f = os.NewFile(uintptr(fd), "inotify") // of the runtime's poller: Close ends a Read
	stop := context.AfterFunc(ctx, func() { w.f.Close() })
	defer stop()
	defer w.f.Close()
	if err := w.add(fd, w.dir); err != nil {
		return err
	}
	entries, err := os.ReadDir(w.dir)
	if err != nil {
		return err
	}
	for _, d := range entries {
		if d.IsDir() && len(d.Name()) == 2 {
			if err := w.add(fd, filepath.Join(w.dir, d.Name())); err != nil {
				return err
			}
		}
	}
	return w.run(ctx, fd)
}

type watcher struct {
	e       *Engine
	f       *os.File
	dir     string
	dirs    map[int32]string        // by watch descriptor
	touched map[blobstore.Hash]bool // true: changed in place; false: only removed
}

func (w *watcher) add(fd int, dir string) error {
	wd, err := unix.InotifyAddWatch(fd, dir, unix.IN_MODIFY|unix.IN_DELETE|unix.IN_MOVED_FROM|unix.IN_CREATE|unix.IN_ONLYDIR)
	if err != nil {
		return fmt.Errorf("watch %s: %w", dir, err)
	}
	w.dirs[int32(wd)] = dir
	return nil
}

func (w *watcher) run(ctx context.Context, fd int) error {
	buf := make([]byte, 64<<10)
	var deadline time.Time // of those that were touched first: somebody may go on touching
	for {
		switch {
		case len(w.touched) == 0:
			deadline = time.Time{}
		case deadline.IsZero():
			deadline = time.Now().Add(watchWait)
		}
		if err := w.f.SetReadDeadline(deadline); err != nil {
			return err
		}
		n, err := w.f.Read(buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			if err := w.look(ctx); err != nil {
				return err
			}
		case err != nil:
			return err
		default:
			w.events(fd, buf[:n])
		}
		if len(w.touched) >= maxTouched || !deadline.IsZero() && time.Now().After(deadline) {
			if err := w.look(ctx); err != nil {
				return err
			}
		}
	}
}

// events reads what the kernel says.
func (w *watcher) events(fd int, p []byte) {
	for len(p) >= unix.SizeofInotifyEvent {
		wd, mask := int32(binary.NativeEndian.Uint32(p)), binary.NativeEndian.Uint32(p[4:])
		n := int(binary.NativeEndian.Uint32(p[12:]))
		p = p[unix.SizeofInotifyEvent:]
		if n > len(p) {
			return
		}
		name := strings.TrimRight(string(p[:n]), "\x00")
		p = p[n:]
		switch {
		case mask&unix.IN_Q_OVERFLOW != 0:
			w.e.tell(EventForeign, "", "", "more files of the store were changed at once than can be watched; the scrub looks at all of them")
		case mask&unix.IN_IGNORED != 0:
			delete(w.dirs, wd)
		case w.dirs[wd] == w.dir:
			if mask&unix.IN_CREATE != 0 && mask&unix.IN_ISDIR != 0 && len(name) == 2 {
				if err := w.add(fd, filepath.Join(w.dir, name)); err != nil {
					w.e.log.Warn("a directory of the store is not watched", "error", err)
				}
			}
		case mask&unix.IN_CREATE == 0:
			base, _, _ := strings.Cut(name, ".")
			if h, err := blobstore.ParseHash(base); err == nil {
				w.touched[h] = w.touched[h] || mask&unix.IN_MODIFY != 0
			}
		}
	}
}

// look queues what was touched and is named by the catalog.
func (w *watcher) look(ctx context.Context) error {
	for h, changed := range w.touched {
		delete(w.touched, h)
		if !changed && w.complete(h) {
			continue // the store has put another file in its place: compression does
		}
		ref, ok, err := w.e.cat.HasBlob(ctx, h)
		if ctx.Err() != nil {
			return nil
		}
		if err == nil && ok {
			w.e.add(taskLook, ref)
		}
	}
	return nil
}

// complete says whether content and sidecar of a blob are there.
func (w *watcher) complete(h blobstore.Hash) bool {
	name := filepath.Join(w.dir, h.String()[:2], h.String())
	_, plain := os.Stat(name)
	_, packed := os.Stat(name + ".zst")
	_, sidecar := os.Stat(name + ".json")
	return (plain == nil || packed == nil) && sidecar == nil
}
