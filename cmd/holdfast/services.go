package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"time"

	"holdfast/blobstore"
	"holdfast/catalog"
	"holdfast/integrity"
	"holdfast/internal/control"
	"holdfast/internal/volume"
	"holdfast/snapshots"
	"holdfast/snapshots/backup"
)

// services are the parts of Holdfast that work on an open volume beside the mount: what they offer to commands, and what they do by themselves.
type services struct {
	operations []control.Operation
	background []func(ctx context.Context) // each runs until its context ends
	closers    []func() error              // called in reverse

	engine *integrity.Engine
	keeper *backup.Keeper

	log     *slog.Logger
	stop    context.CancelFunc
	stopped []chan struct{}
}

// stopGrace bounds how long the end waits for what works by itself.
const stopGrace = 15 * time.Second

// newServices makes the services of a volume, for a command or for a daemon. They do nothing by themselves until start.
func newServices(ctx context.Context, vol *volume.Volume, log *slog.Logger) (_ *services, err error) {
	s := &services{log: log}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if err := s.addIntegrity(ctx, vol, log); err != nil {
		return nil, err
	}
	keeper := backup.NewKeeper(backup.KeeperOptions{Store: vol, StoreID: vol.Settings().StoreID, Made: vol.Settings().Created, Places: vol.Backups,
		Marks: backupMarks{vol.Blobs()}, Done: s.retry(ctx, log), Log: log})
	s.keeper = keeper
	s.operations = append(s.operations, backupOperations(keeper)...)
	if !vol.ReadOnly() {
		s.background = append(s.background, keeper.Run)
	}
	return s, nil
}

// addIntegrity makes the engine that heals, checks and scrubs.
func (s *services) addIntegrity(ctx context.Context, vol *volume.Volume, log *slog.Logger) error {
	o := integrity.Options{Volume: vol, Log: log}
	o.Sources = func() (list []integrity.Source) {
		for _, b := range vol.Backups() { // as holdfast.toml says now
			list = append(list, backup.NewSource(b.Path, vol.Settings().StoreID, log))
		}
		return list
	}
	who := catalog.Actor{Agent: "holdfast", Program: "holdfast", UID: uint32(os.Getuid()), PID: uint32(os.Getpid())}
	o.Restore = func(ctx context.Context, path string, at catalog.Seq, dryRun bool) error {
		_, err := snapshots.Restore{Path: path, At: at, DryRun: dryRun}.Run(ctx, vol, who)
		return err
	}
	var err error
	if s.engine, err = integrity.New(ctx, o); err != nil {
		return err
	}
	s.closers = append(s.closers, s.engine.Close)
	s.operations = append(s.operations, integrityOperations(vol, s.engine)...)
	return nil
}

// retry returns a function that lets the engine try again what it could not heal: a backup was made, so a place is there.
func (s *services) retry(ctx context.Context, log *slog.Logger) func() {
	ctx = context.WithoutCancel(ctx)
	return func() {
		if err := s.engine.Retry(ctx); err != nil {
			log.Warn("what is damaged is not tried again", "error", err)
		}
	}
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
	s.engine.Start()
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

// backupMarks says in the sidecars of a store which blobs are backed up.
type backupMarks struct{ blobs blobstore.Store }

// MarkBackedUp counts one more backup of each blob. One that has gone meanwhile is passed over; one that cannot be marked does not keep the others from it.
func (m backupMarks) MarkBackedUp(ctx context.Context, hashes []blobstore.Hash, at time.Time) error {
	var first error
	for _, h := range hashes {
		if err := ctx.Err(); err != nil {
			return err
		}
		sc, err := m.blobs.Sidecar(ctx, h)
		if err == nil {
			err = m.blobs.SetBackup(ctx, h, sc.BackupCount+1, at)
		}
		if err != nil && !errors.Is(err, blobstore.ErrNotFound) && first == nil {
			first = err
		}
	}
	return first
}

// Health implements control.HealthReporter.
func (s *services) Health(ctx context.Context) (control.Health, error) {
	st, err := s.engine.Status(ctx)
	if err != nil {
		return control.Health{}, err
	}
	h := control.Health{Healthy: st.Healthy, Summary: st.Summary}
	if t := st.Scrub.LastCycle; !t.IsZero() {
		h.LastCheck = &t
	}
	if t := st.Scrub.OldestCheck; !t.IsZero() {
		h.OldestCheck = &t
	}
	for _, b := range s.keeper.States() {
		if b.Newest != nil && (h.NewestBackup == nil || b.Newest.After(*h.NewestBackup)) {
			h.NewestBackup = b.Newest
		}
	}
	return h, nil
}

// Operations implements control.Services.
func (s *services) Operations() []control.Operation { return s.operations }

// Close implements control.Services: it waits until all have ended, but no longer than stopGrace for backups.
func (s *services) Close() error {
	if s.stop != nil {
		s.stop()
	}
	late, cancel := context.WithTimeout(context.Background(), stopGrace)
	defer cancel()
	for _, done := range s.stopped {
		select {
		case <-done:
		case <-late.Done():
			s.log.Error("the end does not wait for a backup whose place does not answer; what it was writing is taken up by the next one")
		}
	}
	var errs []error
	for _, f := range slices.Backward(s.closers) {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}
