package blobstore

import (
	"context"
	"errors"
	"sync"
)

// Mending is damage that the store met while it read, wrote or verified a blob, and that it made good, or worked around, without being asked to: what
// describes a blob made anew from its content, or content replaced by a writer that brought the same.
type Mending struct {
	Hash   Hash
	Part   Part   // what was damaged
	Cause  error  // how it was found
	Source string // where what took its place came from, for people
	Bytes  int64  // of plain content that were replaced
	// Err says why the damage is still there, although the call went on without what is damaged. nil: it is mended; durable after the next Sync.
	Err error
}

// SourceWriter is the Source of content that a writer brought.
const SourceWriter = "a write of the same content"

// Other sources of a Mending.
const (
	fromContent = "the content"
	fromOther   = "content that is stored in another form"
	fromNowhere = "nowhere: it is removed, and made anew in the background"
)

var (
	errMendReadOnly = errors.New("the store is open read-only")
	errNotMended    = errors.New("it is not mended on the way")
)

// call is the context of one call of the store. It gathers what the call has mended, to be told when no lock is held any more.
type call struct {
	context.Context
	mu   sync.Mutex
	list []Mending
}

type callKey struct{}

// Value implements context.Context.
func (c *call) Value(key any) any {
	if key == (callKey{}) {
		return c
	}
	return c.Context.Value(key)
}

// quiet is ctx for work whose result says what was mended.
func quiet(ctx context.Context) context.Context {
	return context.WithValue(ctx, callKey{}, (*call)(nil))
}

// mended notes m for the one who is to be told of it at the end of the call that ctx belongs to.
func mended(ctx context.Context, m Mending) {
	c, _ := ctx.Value(callKey{}).(*call)
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.list = append(c.list, m)
}

// replaced notes that a writer brought the content of a blob that was damaged, if it was, and what came of replacing it.
func replaced(ctx context.Context, ref Ref, damage, err error) {
	if damage != nil {
		mended(ctx, Mending{Hash: ref.Hash, Part: PartContent, Cause: damage, Source: SourceWriter, Bytes: ref.Size, Err: err})
	}
}

// parityMade notes that a parity was made in the place of one that was damaged, if it was: it could not be opened, or at one of its two ends only.
func parityMade(ctx context.Context, h Hash, old *parityReader, why error) {
	if why == nil && old != nil && old.partial {
		why = &DamageError{h, "parity", "it is damaged at one of its ends"}
	}
	if why != nil && !errors.Is(why, ErrNotFound) {
		mended(ctx, Mending{Hash: h, Part: PartParity, Cause: why, Source: fromContent})
	}
}

// parityGone notes that a parity was removed that, as why says if it is damage, could not be opened.
func parityGone(ctx context.Context, h Hash, why, err error) {
	if errors.Is(why, ErrDamaged) {
		mended(ctx, Mending{Hash: h, Part: PartParity, Cause: why, Source: fromNowhere, Err: err})
	}
}

// maxTold bounds the damages that are remembered as told.
const maxTold = 1 << 14

// teller tells Options.Mended. Damage that stays is told once, until it is mended.
type teller struct {
	fn   func(context.Context, Mending)
	mu   sync.Mutex
	told map[toldKey]struct{}
}

type toldKey struct {
	hash Hash
	part Part
}

// begin is the context for a call, when somebody is to be told what it mends.
func (t *teller) begin(ctx context.Context) context.Context {
	if t.fn == nil {
		return ctx
	}
	return &call{Context: ctx}
}

// end tells what the call with that context has mended. No lock is held.
func (t *teller) end(ctx context.Context) {
	c, ok := ctx.(*call)
	if !ok || len(c.list) == 0 {
		return
	}
	for _, m := range c.list {
		if t.news(&m) {
			t.fn(c.Context, m)
		}
	}
}

func (t *teller) news(m *Mending) bool {
	k := toldKey{m.Hash, m.Part}
	t.mu.Lock()
	defer t.mu.Unlock()
	if m.Err == nil {
		delete(t.told, k)
		return true
	}
	if _, known := t.told[k]; known {
		return false
	}
	if t.told == nil || len(t.told) >= maxTold {
		t.told = make(map[toldKey]struct{})
	}
	t.told[k] = struct{}{}
	return true
}
