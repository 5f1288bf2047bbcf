// Package patience calls what may never return: a system call on a network filesystem whose server is gone blocks for ever, and nothing can interrupt it.
package patience

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"
)

// ErrSilent: a call has not returned in time. It may still return, and what it does until then is done.
var ErrSilent = errors.New("there is no answer")

const (
	// Default is how long to wait for a sign of life of a disk or a server.
	Default = 30 * time.Second
	// slowest is how many bytes a second the slowest disk writes that is waited for.
	slowest = 8 << 20
	// grace is how long a call is waited for whose caller has gone.
	grace = 2 * time.Second
)

// Place counts the calls to one place that nobody waits for any more. Its zero value is ready.
type Place struct{ stuck atomic.Int64 }

// Stuck is how many calls there are that have not returned, and that nobody waits for.
func (p *Place) Stuck() int64 { return p.stuck.Load() }

// Pulse is the sign of life of a call.
type Pulse struct {
	began   time.Time
	patient time.Duration
	until   atomic.Int64 // since began, in nanoseconds
}

// Beat says that the call lives, and that its next step takes as long as writing so many bytes.
func (p *Pulse) Beat(bytes int64) {
	p.until.Store(int64(time.Since(p.began) + p.patient + time.Duration(min(max(bytes, 0)/slowest, 1<<20))*time.Second))
}

// left is how long the call is still waited for.
func (p *Pulse) left() time.Duration { return time.Duration(p.until.Load()) - time.Since(p.began) }

// Reader returns a reader from r whose reads are signs of life.
func (p *Pulse) Reader(r io.Reader) io.Reader { return &beating{r, p} }

type beating struct {
	io.Reader
	pulse *Pulse
}

func (b *beating) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	b.pulse.Beat(0)
	return n, err
}

// Forever is a patience without an end: only the caller's context ends the waiting.
const Forever = time.Duration(1<<63 - 1)

// Call calls fn in a goroutine of its own and returns what it returns. It waits until fn has given no sign of life for d, the first one counting as one about bytes, and then
// returns ErrSilent; when ctx has ended it waits for a moment only, and returns the error of ctx. fn may go on after that, so it writes to nothing that its caller uses.
func Call[T any](ctx context.Context, place *Place, d time.Duration, bytes int64, fn func(*Pulse) (T, error)) (v T, err error) {
	type answer struct {
		v   T
		err error
	}
	p := &Pulse{began: time.Now(), patient: d}
	if d != Forever {
		p.Beat(bytes)
	}
	done := make(chan answer, 1)
	var left atomic.Bool // by the caller, or ended: whoever is first
	go func() {
		v, err := fn(p)
		done <- answer{v, err}
		if !left.CompareAndSwap(false, true) {
			place.stuck.Add(-1)
		}
	}()
	wait := func() time.Duration {
		if d == Forever {
			return time.Hour
		}
		return p.left()
	}
	timer := time.NewTimer(wait())
	defer timer.Stop()
	over, gone := ctx.Done(), false
	for {
		select {
		case a := <-done:
			return a.v, a.err
		case <-over:
			over, gone = nil, true
			timer.Reset(min(grace, d))
			continue
		case <-timer.C:
		}
		if more := wait(); !gone && more > 0 {
			timer.Reset(more)
			continue
		}
		place.stuck.Add(1)
		if !left.CompareAndSwap(false, true) {
			place.stuck.Add(-1)
			a := <-done
			return a.v, a.err
		}
		if gone {
			return v, ctx.Err()
		}
		return v, fmt.Errorf("%w for %v", ErrSilent, d)
	}
}
