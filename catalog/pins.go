package catalog

import (
	"context"
	"sync"

	"holdfast/blobstore"
)

// pins are the blobs that somebody is about to name in a record, or stages to name later, and the moments that somebody reads: retention
// leaves both alone.
type pins struct {
	mu      sync.Mutex
	blobs   map[blobstore.Hash]int
	leaving map[blobstore.Hash]struct{}      // a record that forgets them is being written: nobody may rely on them any more
	dying   map[blobstore.Hash]chan struct{} // being deleted; closed when that is done
	moments map[Seq]int
}

func newPins() pins {
	return pins{blobs: make(map[blobstore.Hash]int), leaving: make(map[blobstore.Hash]struct{}), dying: make(map[blobstore.Hash]chan struct{}), moments: make(map[Seq]int)}
}

// Pin keeps blobs from being deleted until Unpin, as often as it is called. Whoever means to name a blob in a Commit, and has not its body
// in that very Commit, pins it before he asks HasBlob for it or hands it to the blobstore, and lets go after the Commit. It waits for the
// deletion of a blob that is under way; the blob is gone then.
func (c *Catalog) Pin(ctx context.Context, hashes ...blobstore.Hash) error {
	for i, h := range hashes {
		if err := c.pins.pin(ctx, h); err != nil {
			c.Unpin(hashes[:i]...)
			return err
		}
	}
	return nil
}

func (p *pins) pin(ctx context.Context, h blobstore.Hash) error {
	for {
		p.mu.Lock()
		wait := p.dying[h]
		if wait == nil {
			p.blobs[h]++
			p.mu.Unlock()
			return nil
		}
		p.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Unpin lets go of blobs, each of them once.
func (c *Catalog) Unpin(hashes ...blobstore.Hash) {
	c.pins.mu.Lock()
	defer c.pins.mu.Unlock()
	for _, h := range hashes {
		if c.pins.blobs[h]--; c.pins.blobs[h] <= 0 {
			delete(c.pins.blobs, h)
		}
	}
}

// pinNew pins the blobs that a commit introduces: one of the same name may just be on its way out.
func (c *Catalog) pinNew(ctx context.Context, cm *Commit) error {
	for i := range cm.Blobs {
		if err := c.pins.pin(ctx, cm.Blobs[i].Ref.Hash); err != nil {
			for j := range i {
				c.Unpin(cm.Blobs[j].Ref.Hash)
			}
			return err
		}
	}
	return nil
}

func (c *Catalog) unpinNew(cm *Commit) {
	for i := range cm.Blobs {
		c.Unpin(cm.Blobs[i].Ref.Hash)
	}
}

// leave marks a blob as one that nobody may rely on any more; false when it is pinned. The caller calls left afterwards.
func (p *pins) leave(h blobstore.Hash) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.blobs[h] > 0 {
		return false
	}
	p.leaving[h] = struct{}{}
	return true
}

func (p *pins) left(list []blobstore.Hash) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, h := range list {
		delete(p.leaving, h)
	}
}

func (p *pins) isLeaving(h blobstore.Hash) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.leaving[h]
	return ok
}

// kill marks a blob as being deleted; false when it is pinned. The caller calls buried afterwards.
func (p *pins) kill(h blobstore.Hash) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.blobs[h] > 0 || p.dying[h] != nil {
		return false
	}
	p.dying[h] = make(chan struct{})
	return true
}

func (p *pins) buried(list []blobstore.Hash) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, h := range list {
		close(p.dying[h])
		delete(p.dying, h)
	}
}

// Hold keeps retention from thinning the moment away, as far as it is there when Hold is called, until Release: what is read of it stays
// readable, blobs included. Moments may be held more than once.
func (c *Catalog) Hold(at Seq) {
	c.pins.mu.Lock()
	defer c.pins.mu.Unlock()
	c.pins.moments[at]++
}

// Release ends one Hold of the moment.
func (c *Catalog) Release(at Seq) {
	c.pins.mu.Lock()
	defer c.pins.mu.Unlock()
	if c.pins.moments[at]--; c.pins.moments[at] <= 0 {
		delete(c.pins.moments, at)
	}
}

func (p *pins) held() (all []Seq) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for at := range p.moments {
		all = append(all, at)
	}
	return all
}
