package integrity

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/zeebo/blake3"

	"holdfast/blobstore"
	"holdfast/catalog"
)

const (
	// maxMoments bounds the moments at which other versions are looked at for the bytes of one blob.
	maxMoments = 24
	// maxVersioned bounds the blobs that are put together from other versions.
	maxVersioned = 1 << 30
)

// fromVersions looks for the bytes of a damaged blob in other blobs: before and after a range of a file had this blob as its content, it had others, and where extents were only
// merged, or a file was written anew, these hold the same bytes.
func (e *Engine) fromVersions(ctx context.Context, ref blobstore.Ref) (int64, error) {
	if ref.Size > maxVersioned || ref.Size == 0 {
		return 0, errUseless
	}
	users, err := e.cat.BlobUsers(ctx, ref.Hash, 16*maxPaths)
	if err != nil {
		return 0, err
	}
	p := patcher{e: e, ref: ref, users: users, extents: make(map[momentOf][]catalog.Extent)}
	for _, u := range users {
		p.addMoment(u.From - 1)
		if u.To != catalog.Head {
			p.addMoment(u.To)
		}
	}
	if len(p.moments) == 0 {
		return 0, errUseless
	}
	if sc, err := e.blobs.Sidecar(ctx, ref.Hash); err == nil && ref.Size > blobstore.BlockSize && blobstore.RootOf(sc.Blocks) == ref.Root {
		p.blocks = sc.Blocks
	}
	if p.blocks == nil {
		return p.asWhole(ctx)
	}
	return e.adopt(ctx, ref, func(w io.Writer) error { return p.byBlock(ctx, w) })
}

type momentOf struct {
	ino catalog.Ino
	at  catalog.Seq
}

// patcher puts a blob together from others.
type patcher struct {
	e       *Engine
	ref     blobstore.Ref
	users   []catalog.BlobUser
	moments []catalog.Seq
	blocks  []byte // the hashes of its blocks; nil when they are not known
	extents map[momentOf][]catalog.Extent
}

func (p *patcher) addMoment(at catalog.Seq) {
	if at > 0 && len(p.moments) < maxMoments && !slices.Contains(p.moments, at) {
		p.moments = append(p.moments, at)
	}
}

// asWhole tries each moment for all of a blob whose parts cannot be checked by themselves.
func (p *patcher) asWhole(ctx context.Context) (int64, error) {
	const most = 16 << 20
	if p.ref.Size > most {
		return 0, errUseless
	}
	buf := make([]byte, p.ref.Size)
	for _, at := range p.moments {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if p.gather(ctx, at, buf, 0) {
			n, err := p.e.adopt(ctx, p.ref, func(w io.Writer) error {
				_, err := w.Write(buf)
				return err
			})
			if err == nil {
				return n, nil
			}
		}
	}
	return 0, errUseless
}

// byBlock writes the blob, with each block from the store if it is intact there, else from wherever one is that has its hash.
func (p *patcher) byBlock(ctx context.Context, w io.Writer) error {
	buf := make([]byte, blobstore.BlockSize)
	for i := int64(0); i*blobstore.BlockSize < p.ref.Size; i++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		off := i * blobstore.BlockSize
		block := buf[:min(blobstore.BlockSize, p.ref.Size-off)]
		if err := p.e.vol.ReadStored(ctx, p.ref, block, off); err != nil && !p.findBlock(ctx, i, block) {
			return fmt.Errorf("block %d is in no other version: %w", i, errUseless)
		}
		if _, err := w.Write(block); err != nil {
			return err
		}
	}
	return nil
}

func (p *patcher) findBlock(ctx context.Context, i int64, block []byte) bool {
	for _, at := range p.moments {
		if p.gather(ctx, at, block, i*blobstore.BlockSize) && blake3.Sum256(block) == [32]byte(p.blocks[32*i:32*i+32]) {
			return true
		}
	}
	return false
}

// gather fills buf with what the files that use the blob had, at the moment, in the place of its bytes from off on; false when other blobs do not cover all of it.
func (p *patcher) gather(ctx context.Context, at catalog.Seq, buf []byte, off int64) bool {
	end := off + int64(len(buf))
	var spans [][2]int64 // filled parts of buf
	for _, u := range p.users {
		from, to := max(off, u.Extent.BlobOff), min(end, u.Extent.BlobOff+u.Extent.Len)
		if from >= to {
			continue
		}
		shift := u.Extent.Off - u.Extent.BlobOff // of the file against the blob
		for _, x := range p.at(ctx, u.Ino, at) {
			a, b := max(from+shift, x.Off), min(to+shift, x.Off+x.Len)
			if a >= b || x.Blob.Hash == p.ref.Hash {
				continue
			}
			part := buf[a-shift-off : b-shift-off]
			if p.e.vol.ReadStored(ctx, x.Blob, part, x.BlobOff+a-x.Off) == nil {
				spans = append(spans, [2]int64{a - shift, b - shift})
			}
		}
	}
	slices.SortFunc(spans, func(a, b [2]int64) int { return int(min(max(a[0]-b[0], -1), 1)) })
	next := off
	for _, s := range spans {
		if s[0] > next {
			return false
		}
		next = max(next, s[1])
	}
	return next == end
}

// at returns the extents of a file at a moment, none when they are not known.
func (p *patcher) at(ctx context.Context, ino catalog.Ino, at catalog.Seq) []catalog.Extent {
	k := momentOf{ino, at}
	list, ok := p.extents[k]
	if !ok {
		list, _ = p.e.cat.Extents(ctx, ino, at)
		p.extents[k] = list
	}
	return list
}
