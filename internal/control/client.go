package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// maxDocument bounds a JSON answer and a line of a streamed one, in bytes.
const maxDocument = 1 << 20

// Client speaks to the daemon that has a store mounted.
type Client struct {
	store string
	dir   socketDir
	http  *http.Client
	pid   int
	once  sync.Once
}

// Connect reaches the daemon of the store. ErrNotMounted when none listens. The caller closes the Client.
func Connect(ctx context.Context, store string) (*Client, error) {
	dir, err := openSocketDir(store)
	if err != nil {
		return nil, err
	}
	first, err := dir.dial(ctx)
	if err != nil {
		if errors.Is(err, errNoDaemon) {
			err = fmt.Errorf("%s: %w", store, ErrNotMounted)
		}
		return nil, errors.Join(err, dir.dir.Close())
	}
	cred, err := peer(first)
	if err != nil {
		return nil, errors.Join(err, first.Close(), dir.dir.Close())
	}
	c := &Client{store: store, dir: dir, pid: int(cred.Pid)}
	spare := make(chan net.Conn, 1)
	spare <- first
	c.http = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			select {
			case conn := <-spare:
				return conn, nil
			default:
				return dir.dial(ctx)
			}
		},
		DisableCompression: true,
		MaxIdleConns:       4,
		// A put sends its content once the daemon asks for it: until then an error can be answered without any being sent.
		ExpectContinueTimeout:  time.Hour,
		MaxResponseHeaderBytes: 64 << 10,
		WriteBufferSize:        128 << 10,
		ReadBufferSize:         128 << 10,
	}}
	return c, nil
}

// PID is the process id of the daemon, by the kernel's word.
func (c *Client) PID() int { return c.pid }

// Close releases the connections.
func (c *Client) Close() error {
	var err error
	c.once.Do(func() {
		c.http.CloseIdleConnections()
		err = c.dir.dir.Close()
	})
	return err
}

// do sends a request and returns a successful answer, whose body the caller closes; any other answer is returned as its error.
func (c *Client) do(ctx context.Context, q request, body io.Reader) (*http.Response, error) {
	if slices.Contains(parameters(q.method, q.route), "path") {
		var err error
		if q.path, err = CleanPath(q.path); err != nil {
			return nil, err
		}
	}
	r, err := http.NewRequestWithContext(ctx, q.method, "http://holdfast"+q.target(), body)
	if err != nil {
		return nil, err
	}
	if body != nil {
		r.Header.Set("Expect", "100-continue")
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return nil, c.broken(ctx, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	var w wireError
	if err := decode(resp.Body, &w); err != nil {
		return nil, fmt.Errorf("%s: the daemon answered %s: %w", c.store, resp.Status, err)
	}
	return nil, fromWire(w)
}

// broken says what a failed exchange means.
func (c *Client) broken(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var op *net.OpError
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, errNoDaemon) || errors.As(err, &op) ||
		strings.Contains(err.Error(), "server closed idle connection") {
		return fmt.Errorf("%s: %w before it had answered; look at its log, and try again", c.store, ErrDisconnected)
	}
	return fmt.Errorf("%s: talking to the daemon: %w", c.store, err)
}

func decode(r io.Reader, v any) error {
	text, err := io.ReadAll(io.LimitReader(r, maxDocument+1))
	if err != nil {
		return err
	}
	if len(text) > maxDocument {
		return fmt.Errorf("an answer longer than %d bytes", maxDocument)
	}
	return json.Unmarshal(text, v)
}

// value does a request whose answer is one JSON document.
func value[T any](ctx context.Context, c *Client, q request, body io.Reader) (T, error) {
	var v T
	resp, err := c.do(ctx, q, body)
	if err != nil {
		return v, err
	}
	defer resp.Body.Close()
	if err := decode(resp.Body, &v); err != nil {
		return v, c.broken(ctx, err)
	}
	return v, nil
}

// items does a request whose answer is streamed.
func items[T any](ctx context.Context, c *Client, q request, body io.Reader, fn func(T) error) error {
	resp, err := c.do(ctx, q, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	sc := bufio.NewScanner(resp.Body)
	sc.Buffer(make([]byte, 0, 64<<10), maxDocument)
	for sc.Scan() {
		var l line[T]
		if err := json.Unmarshal(bytes.TrimSpace(sc.Bytes()), &l); err != nil {
			if cut := sc.Err(); cut != nil { // in the middle of a line
				return c.broken(ctx, cut)
			}
			return fmt.Errorf("%s: the daemon's answer does not parse: %w", c.store, err)
		}
		switch {
		case l.Error != nil:
			return fromWire(*l.Error)
		case l.End:
			return nil
		case l.Item != nil:
			if err := fn(*l.Item); err != nil {
				return err
			}
		}
	}
	err = sc.Err()
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return c.broken(ctx, err)
}

// Status implements Ops.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return value[Status](ctx, c, request{method: http.MethodGet, route: routeStatus}, nil)
}

// Stat implements Ops.
func (c *Client) Stat(ctx context.Context, path string) (Entry, error) {
	e, err := value[Entry](ctx, c, request{method: http.MethodGet, route: routeStat, path: path}, nil)
	e.unseal()
	return e, err
}

// List implements Ops.
func (c *Client) List(ctx context.Context, path string, fn func(Entry) error) error {
	return items(ctx, c, request{method: http.MethodGet, route: routeList, path: path}, nil, func(e Entry) error {
		e.unseal()
		return fn(e)
	})
}

// Log implements Ops.
func (c *Client) Log(ctx context.Context, path string, fn func(LogEntry) error) error {
	return items(ctx, c, request{method: http.MethodGet, route: routeLog, path: path}, nil, fn)
}

// sink keeps apart the errors of the writer and those of the connection.
type sink struct {
	w   io.Writer
	n   int64
	err error
}

func (s *sink) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	s.n += int64(n)
	s.err = err
	return n, err
}

// Get implements Ops.
func (c *Client) Get(ctx context.Context, path string, at Selector, w io.Writer) (int64, error) {
	resp, err := c.do(ctx, request{method: http.MethodGet, route: routeContent, path: path, at: at}, nil)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	out := &sink{w: w}
	if _, err := io.CopyBuffer(out, struct{ io.Reader }{resp.Body}, make([]byte, 128<<10)); err != nil {
		if out.err != nil {
			return out.n, out.err
		}
		return out.n, c.broken(ctx, err)
	}
	if text := resp.Trailer.Get(trailerError); text != "" {
		var wire wireError
		if err := json.Unmarshal([]byte(text), &wire); err != nil {
			return out.n, fmt.Errorf("%s: the content was broken off: %s", path, text)
		}
		return out.n, fromWire(wire)
	}
	return out.n, nil
}

// source keeps the error of the reader: an exchange that it broke off failed for that reason.
type source struct {
	r   io.Reader
	mu  sync.Mutex
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.mu.Lock()
		s.err = err
		s.mu.Unlock()
	}
	return n, err
}

func (s *source) failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Put implements Ops. The ids in who are those of this process, whatever they say.
func (c *Client) Put(ctx context.Context, who Caller, path string, mode uint32, r io.Reader) (Entry, error) {
	src := &source{r: r}
	v, err := value[Entry](ctx, c, request{method: http.MethodPut, route: routeContent, path: path, mode: mode, who: who}, src)
	if e := src.failed(); err != nil && e != nil {
		return Entry{}, e
	}
	v.unseal()
	return v, err
}

// Remove implements Ops. The ids in who are those of this process, whatever they say.
func (c *Client) Remove(ctx context.Context, who Caller, path string, recursive bool) error {
	_, err := value[struct{}](ctx, c, request{method: http.MethodDelete, route: routeNode, path: path, recursive: recursive, who: who}, nil)
	return err
}

// Unmount implements Ops. When it has returned the daemon is about to end; Wait waits for that.
func (c *Client) Unmount(ctx context.Context, lazy bool) error {
	_, err := value[struct{}](ctx, c, request{method: http.MethodPost, route: routeUnmount, lazy: lazy}, nil)
	return err
}

// Wait returns when the daemon has ended, so that its locks are free, or with ctx's error.
func (c *Client) Wait(ctx context.Context) error { return WaitProcess(ctx, c.pid) }

// WaitProcess returns when the process has ended (at once when there is none), or with ctx's error.
func WaitProcess(ctx context.Context, pid int) error {
	fd, err := pidfdOpen(pid)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer fd.Close()
	return fd.wait(ctx)
}
