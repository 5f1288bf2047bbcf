package integrity

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"holdfast/blobstore"
	"holdfast/internal/patience"
)

// maxAgain bounds the blobs that are tried again when a source has come.
const maxAgain = 1024

// errLeft: who waited for the bytes has gone.
var errLeft = errors.New("nobody waits for this content any more")

// backups are the sources there are now.
func (e *Engine) backups() []Source {
	if e.opt.Sources == nil {
		return nil
	}
	return e.opt.Sources()
}

// lookForSources tries again what is damaged when there are other sources than before.
func (e *Engine) lookForSources(ctx context.Context) error {
	var names []string
	for _, s := range e.backups() {
		names = append(names, s.Name())
	}
	now := strings.Join(names, "\x00")
	e.mu.Lock()
	same := now == e.sources
	e.sources = now
	e.mu.Unlock()
	if same {
		return nil
	}
	return e.Retry(ctx)
}

// Retry tries again to heal what is listed as damaged, in the background: something may have come that has it. Reads try at once, too.
func (e *Engine) Retry(ctx context.Context) error {
	e.mu.Lock()
	clear(e.lost)
	e.mu.Unlock()
	n := 0
	for after := ""; n < maxAgain; {
		page, err := e.state.damaged(ctx, after)
		if err != nil || len(page) == 0 {
			return err
		}
		for i := range page {
			after = page[i].dataID
			if h, err := blobstore.ParseHash(after); err == nil {
				e.add(taskAgain, blobstore.Ref{Hash: h, Size: page[i].size, Root: page[i].root})
				n++
			}
		}
	}
	return nil
}

// fromSource takes a blob from a backup. One that does not answer is not asked again before it has.
func (e *Engine) fromSource(ctx context.Context, s Source, ref blobstore.Ref) (int64, error) {
	e.mu.Lock()
	place := e.silent[s.Name()]
	if place == nil {
		place = new(patience.Place)
		e.silent[s.Name()] = place
	}
	e.mu.Unlock()
	if place.Stuck() > 0 {
		return 0, fmt.Errorf("%s: %w yet to what it was asked before", s.Name(), patience.ErrSilent)
	}
	return e.adopt(ctx, ref, func(w io.Writer) error {
		out := &untilLeft{w: w}
		defer out.leave()
		_, err := patience.Call(ctx, place, e.opt.Patience, 0, func(p *patience.Pulse) (struct{}, error) {
			return struct{}{}, s.Fetch(ctx, ref, &beatingWriter{out, p})
		})
		return err
	})
}

// untilLeft passes on what is written, until leave was called.
type untilLeft struct {
	mu   sync.Mutex
	w    io.Writer
	left bool
}

func (u *untilLeft) Write(p []byte) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.left {
		return 0, errLeft
	}
	return u.w.Write(p)
}

func (u *untilLeft) leave() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.left = true
}

// beatingWriter is a writer whose writes are signs of life.
type beatingWriter struct {
	w     io.Writer
	pulse *patience.Pulse
}

func (b *beatingWriter) Write(p []byte) (int, error) {
	n, err := b.w.Write(p)
	b.pulse.Beat(0)
	return n, err
}
