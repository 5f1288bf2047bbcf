package patience

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

// TestPulse: every piece that is read is a sign of life, and large steps get more time than small ones.
func TestPulse(t *testing.T) {
	p := &Pulse{began: time.Now(), patient: time.Hour}
	if p.left() > 0 {
		t.Error("it is waited for though it never said that it lives")
	}
	if _, err := io.ReadAll(p.Reader(strings.NewReader("text"))); err != nil || p.left() <= 0 {
		t.Error("a read is no sign of life", err)
	}
	small := p.left()
	if p.Beat(slowest * 3600); p.left() < small+50*time.Minute {
		t.Errorf("a step of %d bytes gets %v, a small one %v", slowest*3600, p.left(), small)
	}
}

// awaitNone waits until no call is stuck.
func awaitNone(t *testing.T, p *Place) {
	t.Helper()
	for p.Stuck() != 0 {
		select {
		case <-t.Context().Done():
			t.Fatal("a call never returns")
		case <-time.After(time.Millisecond):
		}
	}
}

func TestCall(t *testing.T) {
	var place Place
	if v, err := Call(t.Context(), &place, time.Hour, 0, func(*Pulse) (int, error) { return 7, io.EOF }); v != 7 || !errors.Is(err, io.EOF) {
		t.Error(v, err)
	}
	held := make(chan struct{})
	hangs := func(*Pulse) (int, error) { <-held; return 1, nil }
	if v, err := Call(t.Context(), &place, time.Millisecond, 0, hangs); v != 0 || !errors.Is(err, ErrSilent) || place.Stuck() != 1 {
		t.Error(v, err, place.Stuck())
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, d := range []time.Duration{time.Millisecond, Forever} {
		if v, err := Call(ctx, &place, d, 0, hangs); v != 0 || !errors.Is(err, context.Canceled) {
			t.Error(v, err)
		}
	}
	if place.Stuck() != 3 {
		t.Error(place.Stuck())
	}
	close(held)
	awaitNone(t, &place)
}

// TestCallThatLives gives signs of life, whatever the patience is.
func TestCallThatLives(t *testing.T) {
	var place Place
	turn := make(chan struct{})
	v, err := Call(t.Context(), &place, time.Hour, 0, func(p *Pulse) (int, error) {
		p.until.Store(0) // late
		go func() { p.Beat(0); close(turn) }()
		<-turn
		return 1, nil
	})
	if v != 1 || err != nil {
		t.Error(v, err)
	}
}
