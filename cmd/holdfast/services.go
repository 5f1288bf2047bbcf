package main

import (
	"context"
	"errors"
	"log/slog"
	"slices"

	"holdfast/internal/control"
	"holdfast/internal/volume"
	"holdfast/snapshots/backup"
)

// services are the parts of Holdfast that work on an open volume beside the mount: what they offer to commands, and what they do by themselves.
type services struct {
	operations []control.Operation
	background []func(ctx context.Context) // each runs until its context ends
	closers    []func() error              // called in reverse

	stop    context.CancelFunc
	stopped []chan struct{}
}

// newServices makes the services of a volume, for a command or for a daemon. They do nothing by themselves until start.
func newServices(_ context.Context, vol *volume.Volume, log *slog.Logger) (*services, error) {
	s := new(services)
	keeper := backup.NewKeeper(backup.KeeperOptions{Store: vol, StoreID: vol.Settings().StoreID, Places: vol.Backups, Log: log})
	s.operations = append(s.operations, backupOperations(keeper)...)
	if !vol.ReadOnly() {
		s.background = append(s.background, keeper.Run)
	}
	return s, nil
}

// dialServices are the services of a command that opened the store itself.
func dialServices(ctx context.Context, vol *volume.Volume, log *slog.Logger) (control.Services, error) {
	s, err := newServices(ctx, vol, log)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// start lets them work by themselves, as they do in a daemon, until Close.
func (s *services) start(ctx context.Context) {
	ctx, s.stop = context.WithCancel(ctx)
	for _, run := range s.background {
		done := make(chan struct{})
		s.stopped = append(s.stopped, done)
		go func() {
			defer close(done)
			run(ctx)
		}()
	}
}

// Operations implements control.Services.
func (s *services) Operations() []control.Operation { return s.operations }

// Close implements control.Services: it waits until all have ended.
func (s *services) Close() error {
	if s.stop != nil {
		s.stop()
	}
	for _, done := range s.stopped {
		<-done
	}
	var errs []error
	for _, f := range slices.Backward(s.closers) {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}
