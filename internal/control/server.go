package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxHeader bounds the head of a request: a path of MaxPath bytes, each as %XX, and room for the rest.
	maxHeader = 3*MaxPath + 16<<10
	// maxConns bounds the connections that are served at once; further ones wait to be accepted.
	maxConns = 256
	// headerTimeout bounds how long a connection may take to send the head of a request. Bodies have no such limit: a content is
	// as long as it is, and comes as fast as its source.
	headerTimeout = 10 * time.Second
	idleTimeout   = 60 * time.Second

	// trailerError carries, behind a content that was broken off, why. A content without it is complete.
	trailerError = "Holdfast-Error"
)

// Server offers an Ops on the control socket of a store.
type Server struct {
	ops  Ops
	log  *slog.Logger
	dir  socketDir
	ln   *net.UnixListener
	http *http.Server
	done chan struct{} // closed when Serve has returned
	once sync.Once
}

// Listen makes the control socket of the store, mode 0600, and serves ops on it until Shutdown. The caller holds the store's lock,
// so a socket that is already there belongs to a daemon that was killed, and is replaced. ops is not closed.
func Listen(ctx context.Context, store string, ops Ops, log *slog.Logger) (*Server, error) {
	dir, err := openSocketDir(store)
	if err != nil {
		return nil, err
	}
	ln, err := dir.listen(ctx)
	if err != nil {
		return nil, errors.Join(err, dir.dir.Close())
	}
	s := &Server{ops: ops, log: log, dir: dir, ln: ln, done: make(chan struct{})}
	s.http = &http.Server{
		Handler:           http.HandlerFunc(s.handle),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		ConnContext:       withPeer,
	}
	go func() {
		defer close(s.done)
		if err := s.http.Serve(newLimit(ln, maxConns)); err != nil && !errors.Is(err, http.ErrServerClosed) {
			log.Error("the control socket has stopped", "error", err)
		}
	}()
	return s, nil
}

// Shutdown stops accepting, removes the socket, and waits until the requests in progress have been answered; when ctx ends first they
// are broken off. The caller still holds the store's lock. It may be called more than once.
func (s *Server) Shutdown(ctx context.Context) error {
	var err error
	s.once.Do(func() {
		err = s.dir.unlink()
		if e := s.http.Shutdown(ctx); e != nil {
			err = errors.Join(err, s.http.Close())
			if !errors.Is(e, context.Canceled) && !errors.Is(e, context.DeadlineExceeded) {
				err = errors.Join(err, e)
			}
		}
		<-s.done
		err = errors.Join(err, s.dir.dir.Close())
	})
	return err
}

type peerKey struct{}

func withPeer(ctx context.Context, c net.Conn) context.Context {
	cred, err := peer(c)
	if err != nil {
		return ctx // handle refuses a connection without a peer
	}
	return context.WithValue(ctx, peerKey{}, cred)
}

func (s *Server) handle(w http.ResponseWriter, r *http.Request) {
	cred, ok := r.Context().Value(peerKey{}).(unix.Ucred)
	if !ok || (cred.Uid != 0 && int(cred.Uid) != os.Geteuid()) {
		s.fail(w, r, ErrForbidden)
		return
	}
	if r.Method == http.MethodGet && serveProfile(w, r) {
		return
	}
	q, err := parseRequest(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	q.who.UID, q.who.GID, q.who.PID = cred.Uid, cred.Gid, uint32(cred.Pid)
	if s.serveAudit(w, r, q) || s.serveHistory(w, r, q) {
		return
	}
	ctx := r.Context()
	switch q.method + " " + q.route {
	case "GET " + routeStatus:
		st, err := s.ops.Status(ctx)
		s.answer(w, r, st, err)
	case "GET " + routeStat:
		e, err := s.ops.Stat(ctx, q.path)
		s.answer(w, r, e, err)
	case "GET " + routeList:
		stream(s, w, r, func(send func(Entry) error) error { return s.ops.List(ctx, q.path, send) })
	case "GET " + routeLog:
		stream(s, w, r, func(send func(LogEntry) error) error { return s.ops.Log(ctx, q.path, send) })
	case "GET " + routeContent:
		s.get(w, r, q)
	case "PUT " + routeContent:
		s.put(w, r, q)
	case "DELETE " + routeNode:
		s.answer(w, r, struct{}{}, s.ops.Remove(ctx, q.who, q.path, q.recursive))
	case "POST " + routeCall:
		s.call(w, r, q)
	case "POST " + routeUnmount:
		s.answer(w, r, struct{}{}, s.ops.Unmount(ctx, q.lazy))
	}
}

// serveProfile answers the requests of Go's pprof tool, for those who may use the socket at all.
func serveProfile(w http.ResponseWriter, r *http.Request) bool {
	switch r.URL.Path {
	case "/debug/pprof/profile":
		pprof.Profile(w, r)
	case "/debug/pprof/heap", "/debug/pprof/allocs", "/debug/pprof/goroutine", "/debug/pprof/mutex", "/debug/pprof/block":
		pprof.Index(w, r)
	default:
		return false
	}
	return true
}

// fail answers with an error before anything else was sent.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	wire, status := toWire(err)
	if status >= http.StatusInternalServerError {
		s.log.Warn("a control request failed", "method", r.Method, "request", r.URL.Path, "error", err)
	}
	s.send(w, status, wire)
}

func (s *Server) answer(w http.ResponseWriter, r *http.Request, v any, err error) {
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.send(w, http.StatusOK, v)
}

func (s *Server) send(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		s.log.Error("an answer could not be encoded", "error", err)
		status, body = http.StatusInternalServerError, []byte(`{"error":"the answer could not be encoded","code":"other"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	w.WriteHeader(status)
	if _, err := w.Write(body); err != nil {
		s.log.Debug("the caller has gone", "error", err)
	}
}

// line is one line of a streamed result: an item, or the end with or without an error.
type line[T any] struct {
	Item  *T         `json:"item,omitempty"`
	End   bool       `json:"end,omitempty"`
	Error *wireError `json:"error,omitempty"`
}

// stream answers with the items that run sends, one on a line, and a last line that says how it ended; an error before the first item is
// answered as for a single value.
func stream[T any](s *Server, w http.ResponseWriter, r *http.Request, run func(send func(T) error) error) {
	buf := bufio.NewWriterSize(w, 64<<10)
	enc := json.NewEncoder(buf)
	sent := false
	err := run(func(item T) error {
		if !sent {
			sent = true
			w.Header().Set("Content-Type", "application/jsonl")
		}
		return enc.Encode(line[T]{Item: &item})
	})
	if err != nil && !sent {
		s.fail(w, r, err)
		return
	}
	last := line[T]{End: true}
	if err != nil {
		wire, _ := toWire(err)
		last.Error = &wire
	}
	if err := errors.Join(enc.Encode(last), buf.Flush()); err != nil {
		s.log.Debug("the caller has gone", "error", err)
	}
}

// firstWrite delays the head of the answer until there is content to send, so that an error before it gets a status of its own.
type firstWrite struct {
	w    http.ResponseWriter
	sent bool
}

func (f *firstWrite) Write(p []byte) (int, error) {
	if !f.sent {
		f.sent = true
		f.w.Header().Set("Content-Type", "application/octet-stream")
		f.w.Header().Set("Trailer", trailerError)
		f.w.WriteHeader(http.StatusOK)
	}
	return f.w.Write(p)
}

func (s *Server) get(w http.ResponseWriter, r *http.Request, q request) {
	out := &firstWrite{w: w}
	_, err := s.ops.Get(r.Context(), q.path, q.at, out)
	switch {
	case err != nil && !out.sent:
		s.fail(w, r, err)
	case err != nil:
		wire, _ := toWire(err)
		text, merr := json.Marshal(wire)
		if merr != nil {
			text = []byte(`{"error":"the content was broken off","code":"other"}`)
		}
		w.Header().Set(trailerError, string(text))
		s.log.Warn("a content was broken off", "path", q.path, "error", err)
	case !out.sent:
		w.WriteHeader(http.StatusOK)
	}
}

func (s *Server) put(w http.ResponseWriter, r *http.Request, q request) {
	e, err := s.ops.Put(r.Context(), q.who, q.path, q.mode, r.Body)
	if err == nil {
		s.answer(w, r, e, nil)
		return
	}
	// The caller may still be sending. It gets the answer at once and stops; what it sent until then is dropped, so that closing the
	// connection does not take the answer away from it.
	rc := http.NewResponseController(w)
	full := rc.EnableFullDuplex()
	w.Header().Set("Connection", "close")
	s.fail(w, r, err)
	if full == nil && rc.Flush() == nil {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			s.log.Debug("the caller has gone", "error", err)
		}
	}
}

// limit is a listener with at most a number of open connections.
type limit struct {
	net.Listener
	slots chan struct{}
	done  chan struct{}
	once  sync.Once
}

func newLimit(ln net.Listener, n int) *limit {
	return &limit{Listener: ln, slots: make(chan struct{}, n), done: make(chan struct{})}
}

func (l *limit) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.done:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &limitConn{UnixConn: c.(*net.UnixConn), slots: l.slots}, nil
}

func (l *limit) Close() error {
	l.once.Do(func() { close(l.done) })
	return l.Listener.Close()
}

type limitConn struct {
	*net.UnixConn
	slots chan struct{}
	once  sync.Once
}

func (c *limitConn) Close() error {
	err := c.UnixConn.Close()
	c.once.Do(func() { <-c.slots })
	return err
}

// compile-time check that the contract of Ops fits its two implementations
var (
	_ Ops = (*Client)(nil)
	_ Ops = (*Local)(nil)
)
