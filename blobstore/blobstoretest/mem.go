package blobstoretest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"holdfast/blobstore"
)

// Mem is a Store in memory, for tests of what uses a Store. The zero value is empty and ready.
type Mem struct {
	mu     sync.Mutex
	blobs  map[blobstore.Hash]memBlob
	closed bool
}

type memBlob struct {
	data   []byte
	blocks []byte
	root   blobstore.Root
	meta   blobstore.Meta

	parity  bool
	backups int
	last    time.Time // of the last backup
}

var _ blobstore.Store = (*Mem)(nil)

func rank(level string) int { return slices.Index([]string{"basic", "advanced", "critical"}, level) }

func (m *Mem) enter(ctx context.Context) (leave func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil, blobstore.ErrClosed
	}
	return m.mu.Unlock, nil
}

// find is called with the lock held. Like every Store, it takes what ref says seriously.
func (m *Mem) find(ref blobstore.Ref) (memBlob, error) {
	b, ok := m.blobs[ref.Hash]
	switch {
	case !ok:
		return b, fmt.Errorf("blob %s: %w", ref.Hash, blobstore.ErrNotFound)
	case int64(len(b.data)) != ref.Size:
		return b, &blobstore.DamageError{Hash: ref.Hash, Part: "size", Detail: fmt.Sprintf("it has %d bytes, not %d", len(b.data), ref.Size)}
	case ref.Root != (blobstore.Root{}) && ref.Root != b.root:
		return b, &blobstore.DamageError{Hash: ref.Hash, Part: "root", Detail: "it has another root"}
	}
	return b, nil
}

// ReadAt implements blobstore.Store.
func (m *Mem) ReadAt(ctx context.Context, ref blobstore.Ref, p []byte, off int64) (int, error) {
	if off < 0 || ref.Size < 0 {
		return 0, blobstore.ErrInvalid
	}
	leave, err := m.enter(ctx)
	if err != nil {
		return 0, err
	}
	defer leave()
	if len(p) == 0 || off >= ref.Size && off > 0 {
		return 0, nil
	}
	b, err := m.find(ref)
	if err != nil {
		return 0, err
	}
	return copy(p, b.data[off:]), nil
}

func (m *Mem) put(sum blobstore.Summed, meta blobstore.Meta, data []byte) {
	if m.blobs == nil {
		m.blobs = make(map[blobstore.Hash]memBlob)
	}
	if meta.Level == "" {
		meta.Level = "basic"
	}
	if old, ok := m.blobs[sum.Ref.Hash]; ok {
		if rank(meta.Level) > rank(old.meta.Level) {
			old.meta.Level = meta.Level
			m.blobs[sum.Ref.Hash] = old
		}
		return
	}
	m.blobs[sum.Ref.Hash] = memBlob{data: bytes.Clone(data), blocks: sum.Blocks, root: sum.Ref.Root, meta: meta}
}

// PutBatch implements blobstore.Store.
func (m *Mem) PutBatch(ctx context.Context, items []blobstore.Item) error {
	for _, it := range items {
		if len(it.Data) > blobstore.MaxSmall || Sum(it.Data).Ref != it.Ref || it.Meta.Level != "" && rank(it.Meta.Level) < 0 || it.Meta.Version < 0 {
			return fmt.Errorf("put blob %s: %w", it.Ref.Hash, blobstore.ErrInvalid)
		}
	}
	leave, err := m.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	for _, it := range items {
		m.put(Sum(it.Data), it.Meta, it.Data)
	}
	return nil
}

// Adopt implements blobstore.Store.
func (m *Mem) Adopt(ctx context.Context, sum blobstore.Summed, meta blobstore.Meta, path string, _ bool) error {
	leave, err := m.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if have := Sum(data); have.Ref != sum.Ref || !bytes.Equal(have.Blocks, sum.Blocks) || meta.Level != "" && rank(meta.Level) < 0 || meta.Version < 0 {
		return fmt.Errorf("adopt blob %s: %w", sum.Ref.Hash, blobstore.ErrInvalid)
	}
	m.put(sum, meta, data)
	return os.Remove(path)
}

// Sync implements blobstore.Store.
func (m *Mem) Sync(ctx context.Context) error {
	leave, err := m.enter(ctx)
	if err == nil {
		leave()
	}
	return err
}

// Sidecar implements blobstore.Store.
func (m *Mem) Sidecar(ctx context.Context, h blobstore.Hash) (blobstore.Sidecar, error) {
	leave, err := m.enter(ctx)
	if err != nil {
		return blobstore.Sidecar{}, err
	}
	defer leave()
	b, ok := m.blobs[h]
	if !ok {
		return blobstore.Sidecar{}, fmt.Errorf("blob %s: %w", h, blobstore.ErrNotFound)
	}
	sc := blobstore.Sidecar{
		DataID: h.String(), Timestamp: b.meta.Time.UTC().Round(0), Checksum: "sha256:" + h.String(), Size: int64(len(b.data)), Version: b.meta.Version,
		IntegrityLevel: b.meta.Level, Encoding: "raw", StoredSize: int64(len(b.data)), Blocks: b.blocks,
		BackupCount: b.backups,
	}
	if !b.last.IsZero() {
		last := b.last.UTC().Round(0)
		sc.LastBackup = &last
	}
	if sc.Timestamp.IsZero() {
		sc.Timestamp = time.Now().UTC()
	}
	if len(b.blocks) > 0 {
		sc.BlockSize = blobstore.BlockSize
	}
	line, err := json.Marshal(sc)
	if err != nil {
		return sc, err
	}
	d := sha256.Sum256(line)
	sc.Sum = hex.EncodeToString(d[:])
	return sc, nil
}

// Verify implements blobstore.Store.
func (m *Mem) Verify(ctx context.Context, ref blobstore.Ref) error {
	leave, err := m.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	_, err = m.find(ref)
	return err
}

// Delete implements blobstore.Store.
func (m *Mem) Delete(ctx context.Context, h blobstore.Hash) error {
	leave, err := m.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	delete(m.blobs, h)
	return nil
}

// DeleteBatch implements blobstore.Store.
func (m *Mem) DeleteBatch(ctx context.Context, hashes []blobstore.Hash) error {
	if len(hashes) > blobstore.MaxDelete {
		return fmt.Errorf("delete %d blobs at once: %w", len(hashes), blobstore.ErrInvalid)
	}
	leave, err := m.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	for _, h := range hashes {
		delete(m.blobs, h)
	}
	return nil
}

// List implements blobstore.Store.
func (m *Mem) List(ctx context.Context, after blobstore.Hash, fn func(blobstore.Hash) error) error {
	leave, err := m.enter(ctx)
	if err != nil {
		return err
	}
	var names []blobstore.Hash
	for h := range m.blobs {
		if bytes.Compare(h[:], after[:]) > 0 {
			names = append(names, h)
		}
	}
	leave()
	slices.SortFunc(names, func(a, b blobstore.Hash) int { return bytes.Compare(a[:], b[:]) })
	for _, h := range names {
		if err := fn(h); err != nil {
			return err
		}
	}
	return nil
}

// Stats implements blobstore.Store.
func (m *Mem) Stats(ctx context.Context) (st blobstore.Stats, err error) {
	leave, err := m.enter(ctx)
	if err != nil {
		return st, err
	}
	defer leave()
	for _, b := range m.blobs {
		st.Blobs++
		st.PlainBytes += int64(len(b.data))
		st.StoredBytes += int64(len(b.data))
	}
	return st, nil
}

// Close implements blobstore.Store.
func (m *Mem) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	return nil
}
