package integrity

import (
	"context"

	"holdfast/blobstore"
)

type healKey struct{}

// healOf is a heal of a blob, or of its second copy.
type healOf struct {
	hash   blobstore.Hash
	second bool
}

// recorded is ctx for a heal, which records itself what becomes of its blob.
func recorded(ctx context.Context, h healOf) context.Context {
	return context.WithValue(ctx, healKey{}, h)
}

// Mended implements volume.Guard: what a blob store mends on its way is a damage that was found and healed, like any other.
func (e *Engine) Mended(ctx context.Context, m blobstore.Mending, second bool) {
	if ctx.Value(healKey{}) == (healOf{m.Hash, second}) {
		return
	}
	ctx = context.WithoutCancel(ctx)
	id, where := m.Hash.String(), ""
	if second {
		where = "second copy: "
	}
	path := first(e.paths(ctx, m.Hash))
	r := e.result(Checksum, id, path)
	r.Passed, r.Details, r.RecoveryAttempted, r.RecoverySuccessful = false, where+m.Cause.Error(), m.Source != "", m.Err == nil
	e.tell(EventDamage, id, path, "damage found: "+r.Details)
	if r.RecoveryAttempted {
		a := Attempt{Time: r.Timestamp, DataID: id, Path: path, Strategy: ChecksumMatch, Source: m.Source, Successful: m.Err == nil, Bytes: m.Bytes}
		if second {
			a.Source += ", for the second copy"
		}
		if m.Err != nil {
			a.Details, a.Bytes = m.Err.Error(), 0
		}
		e.record(ctx, &a)
	}
	e.note(ctx, &r)
	ref, known, err := e.cat.HasBlob(ctx, m.Hash)
	if err != nil || !known {
		ref = blobstore.Ref{Hash: m.Hash}
	}
	switch {
	case second && m.Err == nil:
		e.tell(EventHealed, id, path, "the second copy was healed from "+m.Source)
	case second:
	case m.Err == nil:
		e.healed(ctx, ref, path, m.Source)
	case known && !e.vol.ReadOnly():
		e.add(taskLook, ref)
	}
}
