package blobstoretest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"holdfast/blobstore"
)

// change runs fn on a blob that is there.
func (m *Mem) change(ctx context.Context, h blobstore.Hash, fn func(*memBlob)) error {
	leave, err := m.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	b, ok := m.blobs[h]
	if !ok {
		return fmt.Errorf("blob %s: %w", h, blobstore.ErrNotFound)
	}
	fn(&b)
	m.blobs[h] = b
	return nil
}

// Inspect implements blobstore.Guarded.
func (m *Mem) Inspect(ctx context.Context, ref blobstore.Ref) ([]blobstore.Finding, error) {
	if ref.Size < 0 {
		return nil, blobstore.ErrInvalid
	}
	err := m.Verify(ctx, ref)
	if errors.Is(err, blobstore.ErrDamaged) {
		return []blobstore.Finding{{Part: blobstore.PartContent, Detail: err.Error()}}, nil
	}
	return nil, err
}

// Protect implements blobstore.Guarded: it notes that it was asked.
func (m *Mem) Protect(ctx context.Context, ref blobstore.Ref) (made bool, err error) {
	if err := m.Verify(ctx, ref); err != nil || ref.Size <= blobstore.MaxSmall {
		return false, err
	}
	err = m.change(ctx, ref.Hash, func(b *memBlob) { made, b.parity = !b.parity, true })
	return made, err
}

// Parity implements blobstore.Guarded.
func (m *Mem) Parity(ctx context.Context, h blobstore.Hash) (n int64, ok bool, err error) {
	err = m.change(ctx, h, func(b *memBlob) {
		if ok = b.parity; ok {
			n = int64(len(b.data)/8 + 1)
		}
	})
	return n, ok, err
}

// Repair implements blobstore.Guarded. Nothing of a Mem is ever damaged.
func (m *Mem) Repair(ctx context.Context, ref blobstore.Ref) (blobstore.Repaired, error) {
	return blobstore.Repaired{}, m.Verify(ctx, ref)
}

// Raw implements blobstore.Guarded.
func (m *Mem) Raw(ctx context.Context, h blobstore.Hash) (r io.ReadCloser, n int64, err error) {
	err = m.change(ctx, h, func(b *memBlob) { r, n = io.NopCloser(bytes.NewReader(b.data)), int64(len(b.data)) })
	return r, n, err
}

// SetLevel implements blobstore.Guarded.
func (m *Mem) SetLevel(ctx context.Context, h blobstore.Hash, level string) error {
	if level == "" {
		level = "basic"
	}
	if rank(level) < 0 {
		return blobstore.ErrInvalid
	}
	return m.change(ctx, h, func(b *memBlob) { b.meta.Level = level })
}

// SetBackup implements blobstore.Guarded.
func (m *Mem) SetBackup(ctx context.Context, h blobstore.Hash, count int, last time.Time) error {
	if count < 0 {
		return blobstore.ErrInvalid
	}
	return m.change(ctx, h, func(b *memBlob) { b.backups, b.last = count, last })
}

// Inspect implements blobstore.Guarded.
func (f *Faulty) Inspect(ctx context.Context, ref blobstore.Ref) (found []blobstore.Finding, err error) {
	err = f.call("Inspect", func() (err error) { found, err = f.Store.Inspect(ctx, ref); return err }, nil)
	return found, err
}

// Protect implements blobstore.Guarded.
func (f *Faulty) Protect(ctx context.Context, ref blobstore.Ref) (made bool, err error) {
	err = f.call("Protect", func() (err error) { made, err = f.Store.Protect(ctx, ref); return err }, nil)
	return made, err
}

// Parity implements blobstore.Guarded.
func (f *Faulty) Parity(ctx context.Context, h blobstore.Hash) (n int64, ok bool, err error) {
	err = f.call("Parity", func() (err error) { n, ok, err = f.Store.Parity(ctx, h); return err }, nil)
	return n, ok, err
}

// Repair implements blobstore.Guarded.
func (f *Faulty) Repair(ctx context.Context, ref blobstore.Ref) (done blobstore.Repaired, err error) {
	err = f.call("Repair", func() (err error) { done, err = f.Store.Repair(ctx, ref); return err }, nil)
	return done, err
}

// Raw implements blobstore.Guarded. What comes with an injected error is closed.
func (f *Faulty) Raw(ctx context.Context, h blobstore.Hash) (r io.ReadCloser, n int64, err error) {
	err = f.call("Raw", func() (err error) { r, n, err = f.Store.Raw(ctx, h); return err }, nil)
	if err != nil && r != nil {
		r.Close()
		r = nil
	}
	return r, n, err
}

// SetLevel implements blobstore.Guarded.
func (f *Faulty) SetLevel(ctx context.Context, h blobstore.Hash, level string) error {
	return f.call("SetLevel", func() error { return f.Store.SetLevel(ctx, h, level) }, nil)
}

// SetBackup implements blobstore.Guarded.
func (f *Faulty) SetBackup(ctx context.Context, h blobstore.Hash, count int, last time.Time) error {
	return f.call("SetBackup", func() error { return f.Store.SetBackup(ctx, h, count, last) }, nil)
}
