package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"holdfast/blobstore"
	"holdfast/catalog"
)

const (
	// secondPatience is how long an operation on the place of the second copies may give no sign of life before the place counts as failed: a network filesystem whose
	// server is gone blocks for ever. What needs time in proportion to its size gets as much more as a disk needs that writes secondSlowest bytes a second.
	secondPatience = 30 * time.Second
	secondSlowest  = 8 << 20
	// secondGrace is how long an operation is waited for whose caller has gone.
	secondGrace = 2 * time.Second
)

// purpose says what an operation on the second copies is for.
type purpose int

const (
	reading purpose = iota // ErrNotFound when there is no place
	writing                // makes the place when it is below the store and missing
	walking                // as reading, for as long as it takes
)

// pulse is the sign of life of an operation.
type pulse struct {
	began    time.Time
	patience time.Duration
	until    atomic.Int64 // since began, in nanoseconds: when it counts as stuck
}

// beat says that the operation lives, and that its next step is about so many bytes.
func (p *pulse) beat(bytes int64) {
	p.until.Store(int64(time.Since(p.began) + p.patience + time.Duration(min(bytes/secondSlowest, 1<<20))*time.Second))
}

// left is how long it is still waited for.
func (p *pulse) left() time.Duration { return time.Duration(p.until.Load()) - time.Since(p.began) }

// beating is a reader whose reads are signs of life.
type beating struct {
	io.Reader
	pulse *pulse
}

func (b *beating) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	b.pulse.beat(0)
	return n, err
}

// answer is what came of an operation.
type answer[T any] struct {
	v   T
	err error
}

// ask calls fn with the open store of the second copies, in a goroutine of its own: a system call that never returns holds up nobody longer than the patience of x, about
// bytes of content. From then on the place counts as failed, without being tried, until the call has returned. fn writes to nothing that its caller uses. Errors of the place itself
// are remembered, and for a moment answered without trying again.
func ask[T any](ctx context.Context, x *Second, why purpose, bytes int64, fn func(blobstore.Store, *pulse) (T, error)) (v T, err error) {
	failed, err := x.mayAsk(why == writing)
	if err != nil {
		return v, err
	}
	p := &pulse{began: time.Now(), patience: x.patience}
	p.beat(bytes)
	done := make(chan answer[T], 1)
	var state atomic.Int32 // of the operation: 1 when it has ended, 2 when nobody waits any more
	go func() {
		a := inPlace(ctx, x, why, p, fn)
		done <- a
		if !state.CompareAndSwap(0, 1) {
			x.unstick()
		}
	}()
	timer := time.NewTimer(p.left())
	defer timer.Stop()
	over, gone := ctx.Done(), false
	for {
		select {
		case a := <-done:
			return a.v, x.outcome(ctx, why == writing, failed, a.err)
		case <-over:
			over, gone = nil, true
			timer.Reset(min(secondGrace, x.patience))
			continue
		case <-timer.C:
		}
		if !gone && (why == walking || p.left() > 0) {
			timer.Reset(max(p.left(), x.patience/2))
			continue
		}
		if !state.CompareAndSwap(0, 2) {
			a := <-done
			return a.v, x.outcome(ctx, why == writing, failed, a.err)
		}
		return v, x.stick(ctx)
	}
}

// mayAsk says why the place is not to be tried now; else how it failed the last time.
func (x *Second) mayAsk(write bool) (failed, err error) {
	if write && x.readOnly {
		return nil, catalog.ErrReadOnly
	}
	x.stateMu.Lock()
	defer x.stateMu.Unlock()
	if x.failed != nil && (x.stuck > 0 || time.Until(x.retry) > 0) {
		return nil, x.failed
	}
	return x.failed, nil
}

// stick notes that an operation is not waited for any more. When that is because its caller has gone, it may be only slow.
func (x *Second) stick(ctx context.Context) error {
	x.stateMu.Lock()
	defer x.stateMu.Unlock()
	x.stuck++
	if ctx.Err() != nil {
		return ctx.Err()
	}
	x.failed = fmt.Errorf("%s: %w: it has not answered for %v", x.dir, ErrSecond, x.patience)
	x.retry = time.Now().Add(secondRetry)
	return x.failed
}

// unstick notes that an operation that nobody waited for has ended after all.
func (x *Second) unstick() {
	x.stateMu.Lock()
	defer x.stateMu.Unlock()
	x.stuck--
}

// inPlace opens the place, unless it is open, and calls fn.
func inPlace[T any](ctx context.Context, x *Second, why purpose, p *pulse, fn func(blobstore.Store, *pulse) (T, error)) (a answer[T]) {
	if why != writing && !x.exists() {
		a.err = fmt.Errorf("%s: %w: there are no second copies", x.dir, blobstore.ErrNotFound)
		return a
	}
	if a.err = x.reach(ctx); a.err != nil {
		return a
	}
	x.mu.RLock()
	defer x.mu.RUnlock()
	if x.store == nil {
		a.err = fmt.Errorf("%s: %w: it is closed", x.dir, ErrSecond)
		return a
	}
	a.v, a.err = fn(x.store, p)
	return a
}

// outcome remembers what the error of an operation says of the place, and returns it as an error of the place if it is one. failed is why it could not be used before.
func (x *Second) outcome(ctx context.Context, write bool, failed, err error) error {
	if ctx.Err() != nil {
		return err
	}
	x.stateMu.Lock()
	defer x.stateMu.Unlock()
	if err != nil && !isDamage(err) {
		if !errors.Is(err, ErrSecond) {
			err = fmt.Errorf("%s: %w: %w", x.dir, ErrSecond, err)
		}
		x.failed, x.retry = err, time.Now().Add(secondRetry)
		return err
	}
	if failed != nil && write && x.stuck == 0 {
		x.failed = nil
	}
	return err
}
