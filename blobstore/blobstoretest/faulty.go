package blobstoretest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"holdfast/blobstore"
)

// ErrInjected is what a failing call of a Faulty store returns.
var ErrInjected = errors.New("injected fault")

// Fault says how a call fails.
type Fault int

const (
	None    Fault = iota
	Before        // the error comes first: nothing is done
	After         // everything is done, and an error returned all the same
	Partial       // half of it is done: half of a batch, a blob whose staged file stays, a buffer with half its bytes
)

// Faulty passes calls on to another Store and makes chosen ones fail.
type Faulty struct {
	blobstore.Store
	// Decide is asked before each call, numbered from 1 over all methods but Close, whether and how it is to fail. op is the method's name.
	Decide func(n int, op string) Fault

	mu sync.Mutex
	n  int
}

var _ blobstore.Store = (*Faulty)(nil)

// FailNth makes one call fail.
func FailNth(s blobstore.Store, nth int, how Fault) *Faulty {
	return &Faulty{Store: s, Decide: func(n int, _ string) Fault {
		if n == nth {
			return how
		}
		return None
	}}
}

// Calls is the number of calls so far.
func (f *Faulty) Calls() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.n
}

// call runs do, or part in its place, as decided.
func (f *Faulty) call(op string, do, part func() error) error {
	f.mu.Lock()
	f.n++
	n := f.n
	f.mu.Unlock()
	injected := fmt.Errorf("call %d, %s: %w", n, op, ErrInjected)
	switch f.Decide(n, op) {
	case Before:
		return injected
	case After:
		return errors.Join(injected, do())
	case Partial:
		if part != nil {
			return errors.Join(injected, part())
		}
		return injected
	}
	return do()
}

// ReadAt implements blobstore.Store.
func (f *Faulty) ReadAt(ctx context.Context, ref blobstore.Ref, p []byte, off int64) (n int, err error) {
	err = f.call("ReadAt", func() (err error) { n, err = f.Store.ReadAt(ctx, ref, p, off); return err }, func() error {
		_, err := f.Store.ReadAt(ctx, ref, p[:len(p)/2], off)
		for i := len(p) / 2; i < len(p); i++ {
			p[i] = 0xaa
		}
		return err
	})
	if err != nil {
		n = 0
	}
	return n, err
}

// PutBatch implements blobstore.Store.
func (f *Faulty) PutBatch(ctx context.Context, items []blobstore.Item) error {
	return f.call("PutBatch", func() error { return f.Store.PutBatch(ctx, items) },
		func() error { return f.Store.PutBatch(ctx, items[:len(items)/2]) })
}

// Adopt implements blobstore.Store.
func (f *Faulty) Adopt(ctx context.Context, sum blobstore.Summed, meta blobstore.Meta, path string, durable bool) error {
	return f.call("Adopt", func() error { return f.Store.Adopt(ctx, sum, meta, path, durable) }, func() error {
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := f.Store.Adopt(ctx, sum, meta, path, durable); err != nil {
			return err
		}
		return os.WriteFile(path, data, 0o600)
	})
}

// Sync implements blobstore.Store.
func (f *Faulty) Sync(ctx context.Context) error {
	return f.call("Sync", func() error { return f.Store.Sync(ctx) }, nil)
}

// Sidecar implements blobstore.Store.
func (f *Faulty) Sidecar(ctx context.Context, h blobstore.Hash) (sc blobstore.Sidecar, err error) {
	err = f.call("Sidecar", func() (err error) { sc, err = f.Store.Sidecar(ctx, h); return err }, nil)
	return sc, err
}

// Verify implements blobstore.Store.
func (f *Faulty) Verify(ctx context.Context, ref blobstore.Ref) error {
	return f.call("Verify", func() error { return f.Store.Verify(ctx, ref) }, nil)
}

// Delete implements blobstore.Store.
func (f *Faulty) Delete(ctx context.Context, h blobstore.Hash) error {
	return f.call("Delete", func() error { return f.Store.Delete(ctx, h) }, nil)
}

// DeleteBatch implements blobstore.Store.
func (f *Faulty) DeleteBatch(ctx context.Context, hashes []blobstore.Hash) error {
	return f.call("DeleteBatch", func() error { return f.Store.DeleteBatch(ctx, hashes) },
		func() error { return f.Store.DeleteBatch(ctx, hashes[:len(hashes)/2]) })
}

// List implements blobstore.Store. A partial List stops after its first name.
func (f *Faulty) List(ctx context.Context, after blobstore.Hash, fn func(blobstore.Hash) error) error {
	stop := errors.New("stop")
	return f.call("List", func() error { return f.Store.List(ctx, after, fn) }, func() error {
		err := f.Store.List(ctx, after, func(h blobstore.Hash) error { return errors.Join(stop, fn(h)) })
		if errors.Is(err, stop) {
			return nil
		}
		return err
	})
}

// Stats implements blobstore.Store.
func (f *Faulty) Stats(ctx context.Context) (st blobstore.Stats, err error) {
	err = f.call("Stats", func() (err error) { st, err = f.Store.Stats(ctx); return err }, nil)
	return st, err
}
