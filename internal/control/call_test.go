package control

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"holdfast/catalog"
)

// echo is a Services for tests.
type echo struct{}

type echoArgs struct {
	Text  string `json:"text"`
	Times int    `json:"times"`
	Fail  bool   `json:"fail"`
}

type echoLine struct {
	N    int    `json:"n"`
	Text string `json:"text"`
	By   string `json:"by"`
}

func (echo) Operations() []Operation {
	return []Operation{
		NewOperation("echo", func(_ context.Context, who Caller, a echoArgs, send func(any) error) error {
			for n := range a.Times {
				if err := send(echoLine{n, a.Text, who.Agent}); err != nil {
					return err
				}
			}
			if a.Fail {
				return fmt.Errorf("echo: %w", catalog.ErrNoSpace)
			}
			return nil
		}),
		NewOperation("wait", func(ctx context.Context, _ Caller, _ struct{}, send func(any) error) error {
			if err := send(echoLine{Text: "waiting"}); err != nil {
				return err
			}
			<-ctx.Done()
			return ctx.Err()
		}),
	}
}

func (echo) Close() error { return nil }

func TestCall(t *testing.T) {
	dir := newStore(t)
	local := NewLocal(openVolume(t, dir), nil, echo{})
	for name, ops := range map[string]Ops{"local": local, "client": serve(t, dir, local), "memory": newMemory()} {
		t.Run(name, func(t *testing.T) {
			ctx, who := t.Context(), Caller{Agent: "agent-1", Program: "test"}
			got := 0
			err := CallEach(ctx, ops, who, "echo", echoArgs{Text: "<\xff\n", Times: 1000}, func(l echoLine) error {
				if l.N != got || l.By != "agent-1" || !strings.HasPrefix(l.Text, "<") {
					t.Errorf("line %d is %+v", got, l)
				}
				got++
				return nil
			})
			if err != nil || got != 1000 {
				t.Errorf("%d lines, %v", got, err)
			}
			if one, err := CallOne[echoLine](ctx, ops, who, "echo", echoArgs{Text: "x", Times: 1}); err != nil || one.Text != "x" {
				t.Errorf("%+v, %v", one, err)
			}
			if _, err := CallOne[echoLine](ctx, ops, who, "echo", echoArgs{Text: "x"}); err == nil {
				t.Error("no document is taken for one")
			}
			for times := range 2 {
				got = 0
				err := CallEach(ctx, ops, who, "echo", echoArgs{Times: times, Fail: true}, func(echoLine) error { got++; return nil })
				if !errors.Is(err, catalog.ErrNoSpace) || got != times {
					t.Errorf("failing behind %d lines: %v behind %d", times, err, got)
				}
			}
			stop := errors.New("stop")
			if err := CallEach(ctx, ops, who, "echo", echoArgs{Times: 3}, func(echoLine) error { return stop }); !errors.Is(err, stop) {
				t.Errorf("stopped: %v", err)
			}
			for what, err := range map[string]error{
				"an unknown operation": ops.Call(ctx, who, "nothing", struct{}{}, nil),
				"no operation":         ops.Call(ctx, who, "", struct{}{}, nil),
				"other arguments":      ops.Call(ctx, who, "echo", map[string]int{"number": 3}, nil),
				"arguments of a kind":  ops.Call(ctx, who, "echo", "text", nil),
			} {
				if !errors.Is(err, ErrRequest) {
					t.Errorf("%s: %v", what, err)
				}
			}
			// What is sent arrives while the operation goes on, and who has heard enough ends it.
			waiting, cancel := context.WithCancel(ctx)
			err = CallEach(waiting, ops, who, "wait", struct{}{}, func(echoLine) error { cancel(); return nil })
			if !errors.Is(err, context.Canceled) {
				t.Errorf("cancelled: %v", err)
			}
		})
	}
	if err := serve(t, newStore(t), newMemory()).Call(t.Context(), Caller{}, "echo", echoArgs{Text: strings.Repeat("x", maxArguments)}, nil); !errors.Is(err, ErrRequest) {
		t.Errorf("large arguments: %v", err)
	}
}
