package control

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"holdfast/internal/volume"
)

const (
	// lockPatience is how long Dial waits for another command to finish with a store that is not mounted.
	lockPatience = 10 * time.Second
	lockRetry    = 20 * time.Millisecond
)

// DialOptions say how to reach a store.
type DialOptions struct {
	ReadOnly bool         // nothing will be changed: commands that only read can share a store that is not mounted
	Log      *slog.Logger // of a volume that Dial opens; default: discards
	// Services makes what Call offers, on a volume that Dial opens. default: nothing is offered
	Services func(ctx context.Context, vol *volume.Volume, log *slog.Logger) (Services, error)
}

// Dial reaches the store in the directory: through its daemon when one has it mounted, else by opening it in this process, waiting
// for a while when another command has it open. Errors: volume.ErrNoStore, volume.ErrLocked, ErrForbidden and those of volume.Open. The caller closes the Ops.
func Dial(ctx context.Context, store string, opt DialOptions) (Ops, error) {
	if _, err := volume.ReadSettings(store); err != nil {
		return nil, err
	}
	deadline := time.Now().Add(lockPatience)
	for {
		c, err := Connect(ctx, store)
		if err == nil {
			return c, nil
		}
		if !errors.Is(err, ErrNotMounted) {
			return nil, err
		}
		vol, err := volume.Open(ctx, volume.Options{Dir: store, ReadOnly: opt.ReadOnly, Log: opt.Log})
		if err == nil {
			return ownLocal(ctx, vol, opt)
		}
		if !errors.Is(err, volume.ErrLocked) || time.Now().After(deadline) {
			return nil, err
		}
		if err := pause(ctx, lockRetry); err != nil {
			return nil, err
		}
	}
}

func ownLocal(ctx context.Context, vol *volume.Volume, opt DialOptions) (Ops, error) {
	l := &Local{vol: vol, owned: true}
	if opt.Services != nil {
		var err error
		if l.services, err = opt.Services(ctx, vol, opt.Log); err != nil {
			return nil, errors.Join(err, vol.Close(context.WithoutCancel(ctx)))
		}
	}
	return l, nil
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
