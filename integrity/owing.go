package integrity

import (
	"context"
	"slices"
	"time"
)

// owingKey says, over restarts, that parity or second copies may be missing that files of their level were promised: the engine was killed, or ended before it had made them.
const owingKey = "owing"

// next takes the next task off the queue: what somebody was promised comes before what may be in vain and take long.
func (e *Engine) next() (t task, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.doing = taskNone
	select {
	case e.turned <- struct{}{}:
	default:
	}
	if len(e.queue) == 0 {
		return t, false
	}
	i := max(slices.IndexFunc(e.queue, func(t task) bool { return t.kind != taskLost && t.kind != taskAgain }), 0)
	t = e.queue[i]
	if i == 0 {
		e.queue = e.queue[1:]
	} else {
		e.queue = slices.Delete(e.queue, i, i+1)
	}
	delete(e.queued, t)
	e.doing = t.kind
	return t, true
}

// promised says whether a task makes what a level promises.
func (k taskKind) promised() bool { return k == taskLevel || k == taskCritical }

// promises says whether parity or second copies are still to be made. mu is held.
func (e *Engine) promises() bool {
	return e.overflow || e.degraded != nil || e.doing.promised() || slices.ContainsFunc(e.queue, func(t task) bool { return t.kind.promised() })
}

// drain waits until what is promised is made, for a while.
func (e *Engine) drain() {
	e.mu.Lock()
	wait := e.started && !e.closed && e.degraded == nil
	e.mu.Unlock()
	timer := time.NewTimer(e.opt.Drain)
	defer timer.Stop()
	for wait {
		e.mu.Lock()
		wait = e.promises()
		e.mu.Unlock()
		if wait {
			select {
			case <-e.turned:
			case <-timer.C:
				return
			}
		}
	}
}

// beginOwing asks for what the engine before did not make, and remembers that this one may be killed.
func (e *Engine) beginOwing() {
	ctx := context.WithoutCancel(e.ctx)
	was, err := e.state.text(ctx, owingKey)
	if err == nil && was != "" {
		e.scrub.resilver()
	}
	if err == nil {
		err = e.state.setText(ctx, owingKey, "1")
	}
	if err != nil {
		e.log.Warn("parity and second copies that are not made before the store is closed are made by the scrub only", "error", err)
	}
}

// endOwing remembers whether something is left to be made.
func (e *Engine) endOwing() {
	if e.vol.ReadOnly() {
		return
	}
	e.mu.Lock()
	owing, started := e.promises(), e.started
	e.mu.Unlock()
	switch {
	case owing || e.scrub.unmade():
		owing = true
	case !started:
		return // whatever was owing still is
	}
	text := ""
	if owing {
		text = "1"
	}
	if err := e.state.setText(context.WithoutCancel(e.ctx), owingKey, text); err != nil {
		e.log.Warn("it cannot be noted whether parity and second copies are missing", "error", err)
	}
}
