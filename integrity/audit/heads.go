package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sys/unix"

	"holdfast/internal/durable"
)

const (
	// thinAt is the size at which the file of tree heads is thinned, in bytes: of the older half every second one goes, never the first. So the whole past is
	// covered for ever, the more loosely the longer ago. It is more than two years of a head every five minutes before anything goes twice.
	thinAt = 16 << 20
	// maxHeads is the size above which the file is not what this program writes.
	maxHeads = 2 * thinAt
)

// piece is a part of the file of tree heads: one signed head, if it is intact.
type piece struct {
	off  int64
	data []byte
}

// splitHeads cuts the file of tree heads before each line that begins a head.
func splitHeads(b []byte, origin string) []piece {
	first := []byte(origin + "\n")
	var list []piece
	for off := 0; off < len(b); {
		end := len(b)
		for at := off + 1; at < len(b); {
			i := bytes.Index(b[at:], first)
			if i < 0 {
				break
			}
			if at += i; b[at-1] == '\n' {
				end = at
				break
			}
			at++
		}
		list = append(list, piece{int64(off), b[off:end]})
		off = end
	}
	return list
}

// headFile is the file of all tree heads ever signed.
type headFile struct {
	path string
	keys []note.Verifier
	f    *os.File // nil when read-only
	size int64

	heads  []TreeHead // those that are intact, as opened, in the order in which they were signed; dropped when they have been checked
	count  int        // of intact heads
	last   TreeHead   // the newest of them
	newest []byte     // and as it is signed; nil when there is none
	bad    int        // pieces that are no heads
}

func openHeads(path string, keys []note.Verifier, readOnly bool) (*headFile, error) {
	h := &headFile{path: path, keys: keys}
	b, err := readBounded(path, maxHeads)
	if errors.Is(err, fs.ErrNotExist) {
		b, err = nil, nil
	}
	if err != nil {
		return nil, err
	}
	h.size = int64(len(b))
	if len(keys) > 0 {
		h.read(b)
	}
	if readOnly {
		return h, nil
	}
	if h.f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600); err != nil {
		return nil, err
	}
	err = h.f.Truncate(h.size)
	if err == nil {
		err = durable.SyncDir(filepath.Dir(path))
	}
	if err != nil {
		return nil, errors.Join(err, h.f.Close())
	}
	return h, nil
}

// read takes what the file holds. The end of a head that was being written when the process ended is no part of it.
func (h *headFile) read(b []byte) {
	pieces := splitHeads(b, h.keys[0].Name())
	for i, p := range pieces {
		head, _, err := OpenHead(p.data, h.keys)
		switch {
		case err == nil:
			h.heads, h.newest, h.last, h.count = append(h.heads, head), bytes.Clone(p.data), head, h.count+1
		case i == len(pieces)-1 && errors.Is(err, ErrMalformed):
			h.size = p.off
		default:
			h.bad++
		}
	}
}

// add writes a signed head behind the others, durably.
func (h *headFile) add(head TreeHead, msg []byte) error {
	_, err := h.f.WriteAt(msg, h.size)
	if err == nil {
		err = unix.Fdatasync(int(h.f.Fd()))
	}
	if err != nil {
		return fmt.Errorf("write a tree head: %w", errors.Join(err, h.f.Truncate(h.size)))
	}
	h.size += int64(len(msg))
	h.newest, h.last, h.count = msg, head, h.count+1
	if h.size > thinAt {
		return h.thin()
	}
	return nil
}

// thin removes heads. What is no head stays: it is evidence.
func (h *headFile) thin() error {
	b, err := readBounded(h.path, maxHeads)
	if err != nil {
		return err
	}
	pieces := splitHeads(b, h.keys[0].Name())
	kept := make([]byte, 0, len(b))
	h.count = 0
	for i, p := range pieces {
		_, _, err := OpenHead(p.data, h.keys)
		if err == nil && i%2 == 1 && i < len(pieces)/2 {
			continue
		}
		if err == nil {
			h.count++
		}
		kept = append(kept, p.data...)
	}
	if err := durable.WriteFile(h.path, kept, 0o600); err != nil {
		return fmt.Errorf("thin the tree heads: %w", err)
	}
	f, err := os.OpenFile(h.path, os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	err = h.f.Close()
	h.f, h.size = f, int64(len(kept))
	return err
}

func (h *headFile) close() error {
	if h.f == nil {
		return nil
	}
	return h.f.Close()
}
