package blobstore

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

const (
	// compressName is the file in blobs that names what waits to be compressed, a line each.
	compressName = ".compress"
	compressLine = 2*len(Hash{}) + 1
)

// compressList remembers what waits to be compressed, for the next start: a process that ends has compressed some of it only. It is a help, and no part of the store: when it cannot be
// written, or is lost, blobs stay raw. Calls are one at a time. nil: nothing is remembered.
type compressList struct {
	root  int // the directory
	log   *slog.Logger
	lines int
}

// read returns what was left, at most maxQueue blobs, each once. What is no list of names counts for nothing.
func (l *compressList) read() (list []Hash) {
	fd, err := retryEINTR(func() (int, error) {
		return unix.Openat(l.root, compressName, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil
	}
	f := os.NewFile(uintptr(fd), compressName)
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, int64(2*maxQueue*compressLine)))
	if err != nil {
		l.log.Debug("what was to be compressed is not known any more", "err", err)
	}
	seen := make(map[Hash]bool)
	for ; len(text) >= compressLine && len(list) < maxQueue; text = text[compressLine:] {
		h, err := ParseHash(string(text[:compressLine-1]))
		if err == nil && text[compressLine-1] == '\n' && !seen[h] {
			seen[h] = true
			list = append(list, h)
		}
	}
	l.clear()
	return list
}

// add appends h, the last of queue. When the file has become long it is made anew.
func (l *compressList) add(h Hash, queue []Hash) {
	if l == nil {
		return
	}
	text := []byte(h.String() + "\n")
	flags := unix.O_WRONLY | unix.O_APPEND | unix.O_CREAT | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	if l.lines++; l.lines > 2*maxQueue-1 {
		text, l.lines, flags = nil, len(queue), flags|unix.O_TRUNC
		for _, h := range queue {
			text = append(text, h.String()+"\n"...)
		}
	}
	fd, err := retryEINTR(func() (int, error) { return unix.Openat(l.root, compressName, flags, 0o600) })
	if err == nil {
		_, err = unix.Write(fd, text)
		err = errors.Join(err, unix.Close(fd))
	}
	if err != nil {
		l.log.Debug("what is to be compressed is forgotten when the store is closed", "err", err)
	}
}

// clear says that nothing waits any more.
func (l *compressList) clear() {
	if l == nil {
		return
	}
	l.lines = 0
	if err := unix.Unlinkat(l.root, compressName, 0); err != nil && !slices.Contains([]error{unix.ENOENT, unix.EISDIR}, err) {
		l.log.Debug("the list of what was to be compressed cannot be removed", "err", err)
	}
}
