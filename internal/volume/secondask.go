package volume

import (
	"context"
	"errors"
	"fmt"
	"time"

	"holdfast/blobstore"
	"holdfast/catalog"
	"holdfast/internal/patience"
)

// purpose says what an operation on the second copies is for.
type purpose int

const (
	reading purpose = iota // ErrNotFound when there is no place
	writing                // makes the place when it is below the store and missing
	walking                // as reading, for as long as it takes
)

// ask calls fn with the open store of the second copies, and is not held up for ever by a place that does not answer: see patience.Call; bytes is about how much fn reads or writes
// without a sign of life. Once the place has not answered it counts as failed, and is not tried before it has. fn writes to nothing that its caller uses. Errors of the place itself are
// remembered, and for a moment answered without trying again.
func ask[T any](ctx context.Context, x *Second, why purpose, bytes int64, fn func(blobstore.Store, *patience.Pulse) (T, error)) (v T, err error) {
	failed, err := x.mayAsk(why == writing)
	if err != nil {
		return v, err
	}
	patient := x.patience
	if why == walking {
		patient = patience.Forever
	}
	v, err = patience.Call(ctx, &x.calls, patient, bytes, func(p *patience.Pulse) (T, error) { return inPlace(ctx, x, why, p, fn) })
	return v, x.outcome(ctx, why == writing, failed, err)
}

// mayAsk says why the place is not to be tried now; else how it failed the last time.
func (x *Second) mayAsk(write bool) (failed, err error) {
	if write && x.readOnly {
		return nil, catalog.ErrReadOnly
	}
	x.stateMu.Lock()
	defer x.stateMu.Unlock()
	if x.failed != nil && (x.calls.Stuck() > 0 || time.Until(x.retry) > 0) {
		return nil, x.failed
	}
	return x.failed, nil
}

// inPlace opens the place, unless it is open, and calls fn.
func inPlace[T any](ctx context.Context, x *Second, why purpose, p *patience.Pulse, fn func(blobstore.Store, *patience.Pulse) (T, error)) (v T, err error) {
	if why != writing && !x.exists() {
		return v, fmt.Errorf("%s: %w: there are no second copies", x.dir, blobstore.ErrNotFound)
	}
	if err := x.reach(ctx); err != nil {
		return v, err
	}
	x.mu.RLock()
	defer x.mu.RUnlock()
	if x.store == nil {
		return v, fmt.Errorf("%s: %w: it is closed", x.dir, ErrSecond)
	}
	return fn(x.store, p)
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
	if failed != nil && write && x.calls.Stuck() == 0 {
		x.failed = nil
	}
	return err
}
