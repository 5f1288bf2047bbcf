package volume

import (
	"context"

	"holdfast/blobstore"
	"holdfast/catalog"
)

// ReadBlob fills p from the blob's offset off on, all of it or with an error. Every byte was verified.
func (v *Volume) ReadBlob(ctx context.Context, ref blobstore.Ref, p []byte, off int64) error {
	return v.readBlob(ctx, ref, p, off)
}

// Hold is catalog.Hold.
func (v *Volume) Hold(at catalog.Seq) { v.cat.Hold(at) }

// Release is catalog.Release.
func (v *Volume) Release(at catalog.Seq) { v.cat.Release(at) }
