package journal

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// misnamedSuffix is that of a segment on its way from a wrong name to its own.
const misnamedSuffix = ".seg.misnamed"

// rename gives segments that bear each other's names their own, as their headers state. A process that is killed meanwhile leaves names that the next
// opening understands. A segment whose own name another one has by right stays where it is.
func (l *Log) rename() error {
	names, err := l.fs.ReadDir(l.dir)
	if err != nil {
		return err
	}
	taken := make(map[string]bool) // names that stay
	var wrong [][2]string          // name, own name
	for _, name := range names {
		if !strings.HasSuffix(name, segmentSuffix) && !strings.HasSuffix(name, misnamedSuffix) {
			continue
		}
		own, err := l.ownName(name)
		if err != nil {
			return err
		}
		if own == "" || own == name {
			taken[name] = true
		} else {
			wrong = append(wrong, [2]string{name, own})
		}
	}
	for again := true; again; { // who cannot move keeps its name
		again = false
		claimed := make(map[string]bool)
		for i, w := range wrong {
			if taken[w[1]] || claimed[w[1]] {
				taken[w[0]] = true
				wrong = append(wrong[:i], wrong[i+1:]...)
				again = true
				break
			}
			claimed[w[1]] = true
		}
	}
	if len(wrong) == 0 {
		return nil
	}
	on := func(own string) string { return strings.TrimSuffix(own, segmentSuffix) + misnamedSuffix }
	for _, w := range wrong {
		l.log.Error("a journal segment bears the name of another one, and gets its own", "segment", w[0], "own", w[1])
		if temp := on(w[1]); temp != w[0] {
			if err := l.fs.Rename(filepath.Join(l.dir, w[0]), filepath.Join(l.dir, temp)); err != nil {
				return fmt.Errorf("rename a journal segment: %w", err)
			}
		}
	}
	for _, w := range wrong {
		if err := l.fs.Rename(filepath.Join(l.dir, on(w[1])), filepath.Join(l.dir, w[1])); err != nil {
			return fmt.Errorf("rename a journal segment: %w", err)
		}
	}
	return l.fs.SyncDir(l.dir)
}

// ownName is the name that the header of a file states; "" when it states none.
func (l *Log) ownName(name string) (string, error) {
	f, size, err := openSegment(l.fs, l.dir, name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if size < headerSize {
		return "", nil
	}
	block := make([]byte, headerSize)
	if _, err := f.ReadAt(block, 0); err != nil {
		return "", fmt.Errorf("read journal segment %s: %w", name, err)
	}
	h, why, err := parseHeader(block)
	if errors.Is(err, ErrVersion) || why != "" || h.store != l.store {
		return "", nil
	}
	return segmentName(h.first), err
}
