package volume

import (
	"context"

	"holdfast/catalog"
)

// CreateSnapshot gives the present state a name, durably: see catalog.CreateSnapshot. What open files have staged is not part of it.
func (v *Volume) CreateSnapshot(ctx context.Context, who catalog.Actor, name string) (catalog.Snapshot, error) {
	s, err := v.cat.CreateSnapshot(ctx, who, name, false)
	if err == nil {
		err = v.cat.Sync(ctx)
	}
	return s, err
}

// Snapshots returns all snapshots, oldest moment first.
func (v *Volume) Snapshots(ctx context.Context) ([]catalog.Snapshot, error) {
	return v.cat.Snapshots(ctx)
}

// Snapshot returns the snapshot of that name; catalog.ErrNotExist.
func (v *Volume) Snapshot(ctx context.Context, name string) (catalog.Snapshot, error) {
	return v.cat.Snapshot(ctx, name)
}

// RenameSnapshot is catalog.RenameSnapshot, durable on return.
func (v *Volume) RenameSnapshot(ctx context.Context, who catalog.Actor, from, to string) (catalog.Snapshot, error) {
	s, err := v.cat.RenameSnapshot(ctx, who, from, to)
	if err == nil {
		err = v.cat.Sync(ctx)
	}
	return s, err
}

// PinSnapshot is catalog.PinSnapshot, durable on return.
func (v *Volume) PinSnapshot(ctx context.Context, who catalog.Actor, name string, pin bool) (catalog.Snapshot, error) {
	s, err := v.cat.PinSnapshot(ctx, who, name, pin)
	if err == nil {
		err = v.cat.Sync(ctx)
	}
	return s, err
}

// RemoveSnapshot is catalog.RemoveSnapshot, durable on return.
func (v *Volume) RemoveSnapshot(ctx context.Context, who catalog.Actor, name string) error {
	err := v.cat.RemoveSnapshot(ctx, who, name)
	if err == nil {
		err = v.cat.Sync(ctx)
	}
	return err
}
