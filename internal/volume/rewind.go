package volume

import (
	"context"
	"errors"
	"fmt"

	"holdfast/catalog"
)

// What restoring an earlier state needs beside Transact.

// Records is catalog.Records.
func (v *Volume) Records(ctx context.Context, from catalog.Seq, fn func(catalog.Record) error) error {
	return v.cat.Records(ctx, from, fn)
}

// Extents is catalog.Extents.
func (v *Volume) Extents(ctx context.Context, ino catalog.Ino, at catalog.Seq) ([]catalog.Extent, error) {
	return v.cat.Extents(ctx, ino, at)
}

// Path is catalog.Path.
func (v *Volume) Path(ctx context.Context, ino catalog.Ino) (string, error) {
	return v.cat.Path(ctx, ino)
}

// SaveOpen makes versions of what open files have staged, so that a state that is put in their place does not bury it. Files that are changed
// during the call may be missed. A file that cannot be saved is an error; the others are saved all the same.
func (v *Volume) SaveOpen(ctx context.Context) error {
	v.mu.RLock()
	changed := make([]*file, 0, len(v.files))
	for _, f := range v.files {
		if f.changedSince.Load() != 0 {
			changed = append(changed, f)
		}
	}
	v.mu.RUnlock()
	var errs []error
	for _, f := range changed {
		if err := f.commit(ctx, commitFlush); err != nil {
			errs = append(errs, fmt.Errorf("inode %d: what is open in it cannot be saved: %w", f.ino, err))
		}
		v.forget(f)
	}
	return errors.Join(errs...)
}
