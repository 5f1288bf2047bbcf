package integrity

import (
	"context"
	"sync"
	"time"
)

// maxEvents is how many events are kept in memory for those who read them late.
const maxEvents = 4096

// ring keeps the newest events. Its numbers begin at the microsecond of its making, so that those of a later run are greater.
type ring struct {
	mu    sync.Mutex
	first uint64 // number of list[0]
	list  []Event
	next  chan struct{} // closed when an event is added
	ended bool
}

func newRing(now time.Time) *ring {
	return &ring{first: uint64(max(now.UnixMicro(), 1)), next: make(chan struct{})}
}

func (r *ring) add(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return
	}
	if len(r.list) == maxEvents {
		r.list = append(r.list[:0:0], r.list[maxEvents/4:]...)
		r.first += maxEvents / 4
	}
	e.Seq = r.first + uint64(len(r.list))
	r.list = append(r.list, e)
	close(r.next)
	r.next = make(chan struct{})
}

// end wakes all readers for the last time.
func (r *ring) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.ended {
		r.ended = true
		close(r.next)
	}
}

// after returns up to max events with greater numbers, and what to wait for when there are none; ended says that none will come.
func (r *ring) after(seq uint64, max int) (list []Event, next <-chan struct{}, ended bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	from := 0
	switch {
	case len(r.list) == 0 || seq >= r.first+uint64(len(r.list))-1 && seq != 0:
		return nil, r.next, r.ended
	case seq+1 < r.first && seq != 0:
		list = append(list, Event{Seq: r.first - 1, Time: r.list[0].Time, Kind: EventGap, Missed: r.first - 1 - seq,
			Text: "earlier events are not kept any more; the failures and recoveries are"})
	case seq >= r.first:
		from = int(seq - r.first + 1)
	}
	return append(list, r.list[from:min(len(r.list), from+max)]...), r.next, r.ended
}

// Events returns up to max events with numbers greater than after, oldest first, and waits until there is one. 0: from the oldest that is kept. A reader that was
// too slow gets one of kind EventGap first, with the number of the last that it missed. ErrClosed of catalog when the engine is closed and no more will come.
func (e *Engine) Events(ctx context.Context, after uint64, max int) ([]Event, error) {
	for {
		list, next, ended := e.ring.after(after, max)
		switch {
		case len(list) > 0:
			return list, nil
		case ended:
			return nil, errEnded()
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-next:
		}
	}
}

// LastEvent is the number of the newest event: Events after it are those to come.
func (e *Engine) LastEvent() uint64 {
	e.ring.mu.Lock()
	defer e.ring.mu.Unlock()
	return e.ring.first + uint64(len(e.ring.list)) - 1
}

// tell adds an event and logs it.
func (e *Engine) tell(kind EventKind, dataID, path, text string) {
	e.ring.add(Event{Time: e.now().UTC(), Kind: kind, DataID: dataID, Path: path, Text: text})
	switch kind {
	case EventDamage, EventLost, EventDegraded, EventForeign:
		e.log.Warn(text, "event", kind, "data", dataID, "path", path)
	default:
		e.log.Info(text, "event", kind, "data", dataID, "path", path)
	}
}
