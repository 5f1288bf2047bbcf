package integrity

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"holdfast/catalog"
)

const (
	scrubKey = "scrub"
	// A cycle is planned to end after this share of the interval, so that it ends in time.
	cycleShare = 0.8
	// leastSlice is what a slice checks at least, in bytes.
	leastSlice = 16 << 20
	// How long a piece of work is followed by a pause, as a multiple of it: while others use the store, and while nobody does.
	sliceActive, sliceCalm = 19, 3
	fullActive, fullCalm   = 4, 0
	hurry                  = 4 // divides both when the scrub is behind
)

// scrubRecord is what is remembered of the scrub over restarts.
type scrubRecord struct {
	Pos       position   `json:"position"`
	Cycle     int64      `json:"cycle"`
	Started   time.Time  `json:"started"`
	Before    time.Time  `json:"before"` // when the cycle before began
	Blobs     int64      `json:"blobs"`
	Bytes     int64      `json:"bytes"`
	Found     int64      `json:"found"`
	Healed    int64      `json:"healed"`
	Skipped   int64      `json:"skipped,omitempty"` // could not be checked
	LastCycle time.Time  `json:"last_cycle"`
	Last      CycleTotal `json:"last"` // what the last whole cycle did
	Held      ScrubState `json:"held"` // ScrubPaused or ScrubStopped; else empty
}

// Scrubber checks everything in the store in turn, a slice every few minutes, and goes on where it was after a restart. Within a cycle each thing is checked once, in a fixed order, so what
// comes next is always what was checked longest ago.
type Scrubber struct {
	e *Engine

	mu      sync.Mutex
	rec     scrubRecord
	running bool // a slice or a cycle is in progress
	full    bool // a whole cycle was asked for
	missing bool // second copies and parity are to be made up for, soon
	lacking bool // and that has not been done yet
	behind  bool
	rate    float64
	lastErr error
	changed chan struct{} // closed at each change of what Status says of the state

	records, rows walk // of the slices, which are made by one goroutine
}

func newScrubber(ctx context.Context, e *Engine) (*Scrubber, error) {
	s := &Scrubber{e: e, changed: make(chan struct{})}
	text, err := e.state.text(ctx, scrubKey)
	if err != nil {
		return nil, err
	}
	if text == "" || json.Unmarshal([]byte(text), &s.rec) != nil || !validPhase(s.rec.Pos.Phase) || s.rec.Cycle < 1 {
		s.rec = scrubRecord{}
		s.rec.begin(e.now(), false)
	}
	return s, nil
}

func validPhase(p string) bool {
	switch p {
	case phaseBlobs, phaseSecond, phaseCatalog, phaseJournal, phaseVersions:
		return true
	}
	return false
}

// begin begins the next cycle. whole says that the one before has checked everything: what is not checked yet in the new one was checked after the beginning of the last that did.
func (r *scrubRecord) begin(now time.Time, whole bool) {
	before := r.Before
	if whole {
		before = r.Started
	}
	*r = scrubRecord{Pos: position{Phase: phaseBlobs}, Cycle: r.Cycle + 1, Started: now.UTC(), Before: before, LastCycle: r.LastCycle, Last: r.Last, Held: r.Held}
}

// signal tells those who wait that the state has changed. mu is held.
func (s *Scrubber) signal() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// Start begins a whole cycle now, and returns at once; Wait waits for its end. What was paused or stopped goes on. ErrBusy when one is running.
func (s *Scrubber) Start(ctx context.Context) error {
	if s.e.vol.ReadOnly() {
		return catalog.ErrReadOnly
	}
	s.mu.Lock()
	if s.full {
		s.mu.Unlock()
		return ErrBusy
	}
	s.full, s.rec.Held = true, ""
	s.rec.begin(s.e.now(), false)
	cycle := s.rec.Cycle
	err := s.save(ctx)
	s.signal()
	s.mu.Unlock()
	s.e.tell(EventScrub, "", "", fmt.Sprintf("scrub: cycle %d was asked for", cycle))
	s.e.mu.Lock()
	started := s.e.started
	s.e.mu.Unlock()
	if !started {
		s.e.Start()
	}
	return err
}

// Pause holds the scrub where it is, over restarts, too.
func (s *Scrubber) Pause(ctx context.Context) error { return s.hold(ctx, ScrubPaused, "scrub: paused") }

// Resume goes on after Pause, also with a cycle that Start began, and after Stop with slices.
func (s *Scrubber) Resume(ctx context.Context) error { return s.hold(ctx, "", "scrub: goes on") }

// Stop ends the cycle that Start began, and holds the scrub until it is started again.
func (s *Scrubber) Stop(ctx context.Context) error {
	s.mu.Lock()
	s.full = false
	s.mu.Unlock()
	return s.hold(ctx, ScrubStopped, "scrub: stopped")
}

func (s *Scrubber) hold(ctx context.Context, state ScrubState, text string) error {
	s.mu.Lock()
	same := s.rec.Held == state
	s.rec.Held = state
	err := s.save(ctx)
	s.signal()
	s.mu.Unlock()
	if !same {
		s.e.tell(EventScrub, "", "", text)
	}
	return err
}

// save writes the record. mu is held.
func (s *Scrubber) save(ctx context.Context) error {
	text, err := json.Marshal(&s.rec)
	if err != nil {
		return err
	}
	return s.e.state.setText(context.WithoutCancel(ctx), scrubKey, string(text))
}

// Status says how far the scrub is.
func (s *Scrubber) Status(ctx context.Context) (ScrubStatus, error) {
	st, err := s.e.cat.Stats(ctx)
	if err != nil {
		return ScrubStatus{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out := ScrubStatus{
		State: ScrubIdle, Cycle: s.rec.Cycle, Phase: s.rec.Pos.Phase, Fraction: s.rec.Pos.fraction(st.Seq, st.NextIno), Started: s.rec.Started,
		Blobs: s.rec.Blobs, Bytes: s.rec.Bytes, Found: s.rec.Found, Healed: s.rec.Healed, Made: s.rec.Pos.Made, LastCycle: s.rec.LastCycle, Last: s.rec.Last,
		Interval: s.e.opt.Interval, Behind: s.behind, BytesPerSec: s.rate,
	}
	switch s.rec.Pos.Phase {
	case phaseBlobs, phaseSecond:
		out.Position = s.rec.Pos.Hash.String()
	case phaseVersions:
		out.Position = fmt.Sprintf("inode %d", s.rec.Pos.Ino)
	default:
		out.Position = fmt.Sprintf("record %d", s.rec.Pos.Seq)
	}
	if !s.rec.LastCycle.IsZero() {
		out.OldestCheck = s.rec.Before // what comes next was checked in the cycle before this one
	}
	switch {
	case s.rec.Held != "":
		out.State = s.rec.Held
	case s.running || s.full:
		out.State = ScrubRunning
	}
	return out, nil
}

// Wait returns when no cycle that Start began is running any more: nil when it ended, or why it was held or failed.
func (s *Scrubber) Wait(ctx context.Context) error {
	for {
		s.mu.Lock()
		full, held, next, last := s.full, s.rec.Held, s.changed, s.lastErr
		s.mu.Unlock()
		switch {
		case held != "":
			return fmt.Errorf("the scrub is %s: %w", held, catalog.ErrInvalid)
		case !full:
			return last
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.e.ctx.Done():
			return errEnded()
		case <-next:
		}
	}
}

// resilver asks for what is missing to be made.
func (s *Scrubber) resilver() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.missing, s.lacking = true, true
	s.signal()
}

// lacks notes that something is missing that cannot be made now.
func (s *Scrubber) lacks() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lacking = true
}

// unmade says whether second copies or parity may be missing.
func (s *Scrubber) unmade() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lacking
}

// loop does the slices, until ctx ends.
func (s *Scrubber) loop(ctx context.Context) {
	beNice(s.e.log)
	tick := time.NewTicker(s.e.opt.Slice)
	defer tick.Stop()
	for {
		s.mu.Lock()
		held, full, missing, next := s.rec.Held != "", s.full, s.missing, s.changed
		s.missing = false
		s.mu.Unlock()
		s.e.mu.Lock()
		overflow := s.e.overflow
		s.e.overflow = false
		s.e.mu.Unlock()
		if overflow {
			s.resilver()
			continue
		}
		switch {
		case ctx.Err() != nil:
			return
		case missing:
			s.makeUp(ctx)
			continue
		case full && !held:
			s.report(ctx, s.slice(ctx, true))
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-next:
		case <-tick.C:
			if !held {
				s.report(ctx, s.slice(ctx, false))
			}
			if err := s.e.lookForSources(ctx); err != nil && ctx.Err() == nil {
				s.e.log.Warn("what is damaged is not tried again", "error", err)
			}
			if err := s.e.vol.Second().Err(); err != nil { // nobody may write a critical file for long: see whether it is back
				s.resilver()
			}
		}
	}
}

// report notes how a slice ended. One that failed ends a cycle that was asked for.
func (s *Scrubber) report(ctx context.Context, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastErr = err
	if err != nil {
		s.full = false
		if ctx.Err() == nil {
			s.e.log.Error("the scrub cannot go on; it tries again later", "error", err)
		}
	}
	s.signal()
}

func (s *Scrubber) makeUp(ctx context.Context) {
	c := s.e.newChecker(CheckOptions{Repair: true}, func(Result) error { return nil })
	s.mu.Lock()
	s.lacking = false // whoever misses something meanwhile says so
	s.mu.Unlock()
	made, err := c.resilver(ctx, s.e.pace(sliceActive, 1))
	if err != nil || c.sum.Skipped > 0 || s.e.vol.Second().Err() != nil {
		s.lacks()
	}
	switch {
	case err != nil && ctx.Err() == nil:
		s.e.log.Error("what is missing of second copies and parity could not be made; the scrub makes it later", "error", err)
	case made > 0:
		s.e.tell(EventScrub, "", "", fmt.Sprintf("%d second copies and parities that were missing were made", made))
	}
}

// slice checks the next part of the cycle: until it is as far as it should be by now, or, with full, until its end.
func (s *Scrubber) slice(ctx context.Context, full bool) error {
	s.mu.Lock()
	s.running = true
	pos := s.rec.Pos
	cycle := s.rec.Cycle
	behind := s.behind
	s.signal()
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.running = false
		s.mu.Unlock()
	}()
	active, calm := float64(sliceActive), float64(sliceCalm)
	if full {
		active, calm = fullActive, fullCalm
	} else if behind {
		active, calm = active/hurry, calm/hurry
	}
	pause := s.e.pace(active, calm)
	c := s.e.newChecker(CheckOptions{Repair: true}, func(Result) error { return nil })
	c.records, c.rows = &s.records, &s.rows
	began, total := time.Now(), int64(0)
	for {
		before := c.sum
		err := c.step(ctx, &pos)
		clear(c.seen) // a blob that is damaged again is to be seen
		more, saveErr := s.advance(ctx, cycle, &pos, &before, &c.sum, full, time.Since(began))
		total += c.sum.Bytes - before.Bytes
		if err != nil || saveErr != nil || !more {
			if err == nil {
				err = saveErr
			}
			return err
		}
		if !full && total >= leastSlice && !s.due(ctx, &pos, time.Since(began)) {
			return nil
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// advance takes what a step did into the record. It reports whether the walk goes on: not when it was held, its cycle was begun anew, or has ended.
func (s *Scrubber) advance(ctx context.Context, cycle int64, pos *position, before, sum *Summary, full bool, took time.Duration) (more bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rec.Cycle != cycle {
		return false, nil
	}
	r := &s.rec
	r.Pos = *pos
	r.Blobs += sum.Blobs - before.Blobs
	r.Bytes += sum.Bytes - before.Bytes
	r.Found += sum.Failed - before.Failed
	r.Healed += sum.Healed - before.Healed
	r.Skipped += sum.Skipped - before.Skipped
	if took > 0 {
		s.rate = float64(sum.Bytes) / took.Seconds()
	}
	if pos.Phase == phaseDone {
		now := s.e.now()
		s.e.tell(EventScrub, "", "", fmt.Sprintf("scrub: cycle %d has ended: %d blobs, %d bytes, %d damaged, %d of them healed", r.Cycle, r.Blobs, r.Bytes, r.Found, r.Healed))
		r.LastCycle = now.UTC()
		r.Last = CycleTotal{Cycle: r.Cycle, Began: r.Started, Blobs: r.Blobs, Bytes: r.Bytes, Found: r.Found, Healed: r.Healed, Made: r.Pos.Made}
		r.begin(now, r.Skipped == 0)
		s.behind = false
		if full {
			s.full = false
		}
		s.signal()
		return false, s.save(ctx)
	}
	return r.Held == "", s.save(ctx)
}

// due says whether the cycle is less far than it should be by now, and how it does.
func (s *Scrubber) due(ctx context.Context, pos *position, took time.Duration) bool {
	st, err := s.e.cat.Stats(ctx)
	if err != nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	planned := float64(s.e.opt.Interval) * cycleShare
	want := float64(s.e.now().Sub(s.rec.Started)) / planned
	late := pos.fraction(st.Seq, st.NextIno) < want
	s.behind = late && took >= s.e.opt.Slice
	return late && took < s.e.opt.Slice
}
