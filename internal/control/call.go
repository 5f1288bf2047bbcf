package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
)

// maxArguments bounds the arguments of a call, in bytes.
const maxArguments = 1 << 20

// Services are parts of Holdfast that offer operations to commands beside those of Ops: backups, integrity, audit.
type Services interface {
	// Operations returns what is offered, always the same.
	Operations() []Operation
	// Close ends them. The volume is still open.
	Close() error
}

// HealthReporter is what Services may be besides.
type HealthReporter interface {
	Health(ctx context.Context) (Health, error)
}

// Operation is something that a command can ask a store for by name. NewOperation makes one.
type Operation struct {
	Name string
	run  func(ctx context.Context, who Caller, args json.RawMessage, send func(any) error) error
}

// NewOperation returns an operation with arguments of type A. run sends the documents of its answer, in order; each encodes as JSON of up to 1 MiB. It ends
// when ctx does, or send fails. Arguments that are not an A are ErrRequest; run bounds what they may say.
func NewOperation[A any](name string, run func(ctx context.Context, who Caller, args A, send func(any) error) error) Operation {
	return Operation{name, func(ctx context.Context, who Caller, raw json.RawMessage, send func(any) error) error {
		var args A
		d := json.NewDecoder(bytes.NewReader(raw))
		d.DisallowUnknownFields()
		if err := d.Decode(&args); err != nil {
			return fmt.Errorf("%w: the arguments of %s do not fit; are the command and the daemon of the same release? (%w)", ErrRequest, name, err)
		}
		return run(ctx, who, args, send)
	}}
}

// CallEach is Ops.Call with documents of type T.
func CallEach[T any](ctx context.Context, ops Ops, who Caller, name string, args any, fn func(T) error) error {
	return ops.Call(ctx, who, name, args, func(raw json.RawMessage) error {
		var v T
		if err := json.Unmarshal(raw, &v); err != nil {
			return fmt.Errorf("the answer of %s does not parse: %w", name, err)
		}
		return fn(v)
	})
}

// CallOne is Ops.Call of an operation that answers with one document.
func CallOne[T any](ctx context.Context, ops Ops, who Caller, name string, args any) (v T, err error) {
	n := 0
	err = CallEach(ctx, ops, who, name, args, func(item T) error {
		v = item
		n++
		return nil
	})
	if err == nil && n != 1 {
		err = fmt.Errorf("%s answered with %d documents", name, n)
	}
	return v, err
}

// Call implements Ops.
func (l *Local) Call(ctx context.Context, who Caller, name string, args any, fn func(json.RawMessage) error) error {
	raw, err := json.Marshal(args)
	if err != nil {
		return err
	}
	return l.dispatch(ctx, who, name, raw, func(v any) error {
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		return fn(b)
	})
}

func (l *Local) dispatch(ctx context.Context, who Caller, name string, args json.RawMessage, send func(any) error) error {
	if l.services != nil {
		for _, op := range l.services.Operations() {
			if op.Name == name {
				return op.run(ctx, who, args, send)
			}
		}
	}
	return fmt.Errorf("%w: there is no operation %.64q; are the command and the daemon of the same release?", ErrRequest, name)
}

// Call implements Ops. The ids in who are those of this process, whatever they say.
func (c *Client) Call(ctx context.Context, who Caller, name string, args any, fn func(json.RawMessage) error) error {
	raw, err := json.Marshal(args)
	if err != nil {
		return err
	}
	if len(raw) > maxArguments {
		return fmt.Errorf("%w: the arguments of %s are larger than %d bytes", ErrRequest, name, maxArguments)
	}
	q := request{method: http.MethodPost, route: routeCall, who: who, history: historyRequest{name: name}}
	return items(ctx, c, q, bytes.NewReader(raw), fn)
}

// call answers a Call: items one on a line, each sent at once, since an operation may follow what happens.
func (s *Server) call(w http.ResponseWriter, r *http.Request, q request) {
	raw, err := io.ReadAll(io.LimitReader(r.Body, maxArguments+1))
	if err == nil && len(raw) > maxArguments {
		err = fmt.Errorf("%w: the arguments are larger than %d bytes", ErrRequest, maxArguments)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	buf := bufio.NewWriterSize(w, 64<<10)
	enc, flush, sent := json.NewEncoder(buf), http.NewResponseController(w), false
	err = s.ops.Call(r.Context(), q.who, q.history.name, json.RawMessage(raw), func(item json.RawMessage) error {
		if !sent {
			sent = true
			w.Header().Set("Content-Type", "application/jsonl")
		}
		return errors.Join(enc.Encode(line[json.RawMessage]{Item: &item}), buf.Flush(), flush.Flush())
	})
	if err != nil && !sent {
		s.fail(w, r, err)
		return
	}
	last := line[json.RawMessage]{End: true}
	if err != nil {
		wire, _ := toWire(err)
		last.Error = &wire
	}
	if err := errors.Join(enc.Encode(last), buf.Flush()); err != nil {
		s.log.Debug("the caller has gone", "error", err)
	}
}
