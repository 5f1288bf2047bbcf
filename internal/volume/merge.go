package volume

import (
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"

	"holdfast/blobstore"
	"holdfast/catalog"
)

const (
	mergeAfter   = 64       // extents added to a file since its last merge that make it worth a look
	mergeAtLeast = 16       // neighbouring small extents that are worth a merge
	mergeSmall   = 64 << 10 // an extent below this size is small
	mergeUpTo    = 4 << 20  // bytes that one merge makes into one extent
	mergeTracked = 4096     // inodes whose extents are counted
)

// merger counts the extents that commits add to files and says whose are to be merged. What it forgets, at a restart for one, is
// counted again as it is written on.
type merger struct {
	mu    sync.Mutex
	added map[catalog.Ino]int
	queue chan catalog.Ino
}

func (m *merger) init() {
	m.added = make(map[catalog.Ino]int)
	m.queue = make(chan catalog.Ino, 64)
}

func (m *merger) note(ino catalog.Ino, extents int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.added) >= mergeTracked && m.added[ino] == 0 {
		clear(m.added)
	}
	m.added[ino] += extents
	if m.added[ino] < mergeAfter {
		return
	}
	select {
	case m.queue <- ino:
		delete(m.added, ino)
	default: // the next commit asks again
	}
}

func (v *Volume) mergeLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case ino := <-v.merges.queue:
			if err := v.mergeExtents(ctx, ino); err != nil && ctx.Err() == nil {
				v.log.Warn("cannot merge the extents of a file; its content is as before", "inode", ino, "error", err)
			}
		}
	}
}

// mergeExtents makes runs of small neighbouring extents of a file into one each. The content stays the same, and history keeps the old ones.
func (v *Volume) mergeExtents(ctx context.Context, ino catalog.Ino) error {
	f := v.acquire(ino)
	defer v.releaseFile(f)
	for from := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		f.mu.Lock()
		err := f.load(ctx)
		var group []span
		if err == nil {
			group = f.mergeable(from)
		}
		f.mu.Unlock()
		if err != nil || group == nil {
			if errors.Is(err, catalog.ErrStale) {
				return nil
			}
			return err
		}
		if err := f.merge(ctx, group); err != nil {
			return err
		}
		from = group[len(group)-1].end()
	}
}

// mergeable finds the first run of small neighbouring extents at or behind from.
func (f *file) mergeable(from int64) []span {
	var group []span
	total := int64(0)
	f.base.walk(from, f.limit, func(s span) bool {
		joins := s.n < mergeSmall && (len(group) == 0 || group[len(group)-1].end() == s.off)
		if joins && total+s.n <= mergeUpTo {
			group = append(group, s)
			total += s.n
			return true
		}
		if len(group) >= mergeAtLeast {
			return false
		}
		group, total = group[:0], 0
		if s.n < mergeSmall {
			group, total = append(group, s), s.n
		}
		return true
	})
	if len(group) < mergeAtLeast {
		return nil
	}
	return group
}

// merge stores the bytes of group as one blob and puts that in their place, unless the file has changed there in the meantime.
func (f *file) merge(ctx context.Context, group []span) error {
	from, end := group[0].off, group[len(group)-1].end()
	body := make([]byte, 0, end-from)
	for _, s := range group {
		at := len(body)
		body = body[:at+int(s.n)]
		if err := f.v.readBlob(ctx, *s.blob, body[at:], s.pos); err != nil {
			return err
		}
	}
	level, err := f.v.cat.Level(ctx, f.ino)
	if err != nil {
		return err
	}
	cm := catalog.Commit{Ino: f.ino, Op: catalog.OpMerge, Splice: catalog.Splice{Ino: f.ino, Cut: catalog.NoCut}}
	ref, pinned, err := f.v.storeMerged(ctx, &cm, body, level)
	defer func() { f.v.cat.Unpin(pinned...) }()
	if err != nil {
		return err
	}
	cm.Splice.Extents = []catalog.Extent{{Off: from, Len: end - from, Blob: ref}}

	f.mu.Lock()
	defer f.mu.Unlock()
	i := 0
	f.base.walk(from, end, func(s span) bool {
		same := i < len(group) && s.off == group[i].off && s.n == group[i].n && s.pos == group[i].pos && s.blob.Hash == group[i].blob.Hash
		if same {
			i++
		}
		return same
	})
	row, err := f.v.cat.Get(ctx, f.ino)
	if err != nil {
		return err
	}
	if i != len(group) || row.Nlink == 0 || end > row.Size {
		return nil
	}
	cm.Size = row.Size
	if _, err := f.v.cat.Commit(ctx, catalog.Actor{Agent: "holdfast", Program: "holdfast", PID: uint32(os.Getpid())}, cm); err != nil {
		return err
	}
	f.base.apply(cm.Splice)
	return f.v.beginCopies(ctx, commitIdle, level, &cm)()
}

// storeMerged stores body as one blob, small or large. pinned is to be unpinned after the Commit.
func (v *Volume) storeMerged(ctx context.Context, cm *catalog.Commit, body []byte, level string) (ref blobstore.Ref, pinned []blobstore.Hash, err error) {
	if len(body) <= blobstore.MaxSmall {
		ref := blobstore.Ref{Hash: sha256.Sum256(body), Size: int64(len(body))}
		cm.Blobs = append(cm.Blobs, catalog.NewBlob{Ref: ref, Level: level, Body: body})
		return ref, nil, nil
	}
	stage, err := newStaging(filepath.Join(v.dir, stagingDir), uint64(cm.Ino), 0, &v.buffers)
	if err != nil {
		return blobstore.Ref{}, nil, err
	}
	defer stage.discard()
	if err := stage.write(body, 0); err != nil {
		return blobstore.Ref{}, nil, err
	}
	sum, err := stage.sum(ctx, int64(len(body)))
	if err != nil {
		return blobstore.Ref{}, nil, err
	}
	if err := v.cat.Pin(ctx, sum.Ref.Hash); err != nil {
		return blobstore.Ref{}, nil, err
	}
	pinned = []blobstore.Hash{sum.Ref.Hash}
	stage.adopted = true
	if err := v.blobs.Adopt(ctx, sum, blobstore.Meta{Level: level, Time: time.Now()}, stage.path(), false); err != nil {
		os.Remove(stage.path())
		return blobstore.Ref{}, pinned, err
	}
	cm.Blobs = append(cm.Blobs, catalog.NewBlob{Ref: sum.Ref, Level: level})
	cm.UnsyncedBlobs = true
	return sum.Ref, pinned, nil
}
