package control

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strconv"
	"time"

	"holdfast/catalog"
	"holdfast/integrity/audit"
	"holdfast/internal/volume"
)

// Audit is the part of Ops that has to do with evidence of what happened.
type Audit interface {
	// AuditEntries calls fn with each entry of the audit trail that the query means, oldest first, until fn returns an error, which AuditEntries returns. With
	// Follow it goes on with what is written until ctx ends or the store is closed, which is no error; fn may be called with nil when there is nothing more for now.
	AuditEntries(ctx context.Context, q audit.Query, fn func(*audit.Entry) error) error
	// AuditHead signs what was recorded, and returns the signed tree head.
	AuditHead(ctx context.Context) ([]byte, error)
	// AuditProof returns the text of a proof that a version of path is in the log: see audit.ParseProof.
	AuditProof(ctx context.Context, path string, at Selector) ([]byte, error)
	// AuditExtension returns the text of a proof that the log extends a tree head that was signed before: see audit.ParseExtension.
	AuditExtension(ctx context.Context, old []byte) ([]byte, error)
}

const (
	routeAudit     = "/v1/audit"
	routeHead      = "/v1/audit/head"
	routeProof     = "/v1/audit/proof"
	routeExtension = "/v1/audit/extension"
	// maxHead bounds a signed tree head in a request, in bytes.
	maxHead = 16 << 10
	// proofPart is how much of a proof goes on one line, in bytes.
	proofPart = 64 << 10
)

func auditParameters(method, route string) []string {
	switch method + " " + route {
	case "GET " + routeAudit:
		return []string{"path", "by", "op", "since", "until", "newest", "follow"}
	case "POST " + routeHead:
		return []string{}
	case "POST " + routeProof:
		return []string{"path", "number", "time", "seq"}
	case "POST " + routeExtension:
		return []string{"old"}
	}
	return nil
}

// auditRequest are the fields that only requests of Audit have.
type auditRequest struct {
	op     catalog.Op
	until  time.Time
	newest int64
	follow bool
	old    []byte
}

// set reads a parameter; ok is false when it is none of these.
func (a *auditRequest) set(name, v string) (ok bool, err error) {
	switch name {
	case "op":
		if len(v) > 32 {
			return true, fmt.Errorf("%w: op is longer than an operation's name", ErrRequest)
		}
		a.op = catalog.Op(v)
	case "until":
		a.until, err = time.Parse(time.RFC3339Nano, v)
		if err != nil || a.until.Year() < 1970 || a.until.Year() > 2261 {
			err = fmt.Errorf("%w: until is not in RFC 3339, or lies outside 1970 to 2261", ErrRequest)
		}
	case "newest":
		if a.newest, err = strconv.ParseInt(v, 10, 62); err != nil || a.newest < 1 {
			err = fmt.Errorf("%w: newest is not a number of entries", ErrRequest)
		}
	case "follow":
		a.follow, err = parseFlag(v)
	case "old":
		if a.old, err = base64.StdEncoding.DecodeString(v); err != nil || len(a.old) == 0 || len(a.old) > maxHead {
			err = fmt.Errorf("%w: old is not a tree head in base64", ErrRequest)
		}
	default:
		return false, nil
	}
	return true, err
}

// get returns the text of a parameter; ok is false when it is not to be sent.
func (a *auditRequest) get(name string) (v string, ok bool) {
	switch name {
	case "op":
		return string(a.op), a.op != ""
	case "until":
		return a.until.UTC().Format(time.RFC3339Nano), !a.until.IsZero()
	case "newest":
		return strconv.FormatInt(a.newest, 10), a.newest > 0
	case "follow":
		return formatFlag(a.follow), true
	case "old":
		return base64.StdEncoding.EncodeToString(a.old), true
	}
	return "", false
}

// serveAudit answers the requests of Audit; false: it is none.
func (s *Server) serveAudit(w http.ResponseWriter, r *http.Request, q request) bool {
	ctx := r.Context()
	switch q.method + " " + q.route {
	case "GET " + routeAudit:
		s.serveEntries(w, r, audit.Query{Path: q.path, Agent: q.history.by, Operation: q.audit.op, Since: q.history.since, Until: q.audit.until,
			Newest: q.audit.newest, Follow: q.audit.follow})
	case "POST " + routeHead:
		head, err := s.ops.AuditHead(ctx)
		s.answer(w, r, head, err)
	case "POST " + routeProof:
		streamText(s, w, r, func() ([]byte, error) { return s.ops.AuditProof(ctx, q.path, q.at) })
	case "POST " + routeExtension:
		if q.audit.old == nil {
			s.fail(w, r, fmt.Errorf("%w: old is missing", ErrRequest))
			return true
		}
		streamText(s, w, r, func() ([]byte, error) { return s.ops.AuditExtension(ctx, q.audit.old) })
	default:
		return false
	}
	return true
}

// serveEntries is stream for entries that may go on without end: whenever there is nothing more for now, what there was is on its way.
func (s *Server) serveEntries(w http.ResponseWriter, r *http.Request, query audit.Query) {
	if !query.Follow {
		stream(s, w, r, func(send func(audit.Entry) error) error {
			return s.ops.AuditEntries(r.Context(), query, func(e *audit.Entry) error {
				if e == nil {
					return nil
				}
				return send(*e)
			})
		})
		return
	}
	buf := bufio.NewWriterSize(w, 64<<10)
	enc := json.NewEncoder(buf)
	flush := func() error { return errors.Join(buf.Flush(), http.NewResponseController(w).Flush()) }
	w.Header().Set("Content-Type", "application/jsonl")
	err := s.ops.AuditEntries(r.Context(), query, func(e *audit.Entry) error {
		if e == nil {
			return flush()
		}
		return enc.Encode(line[audit.Entry]{Item: e})
	})
	last := line[audit.Entry]{End: true}
	if err != nil {
		wire, _ := toWire(err)
		last.Error = &wire
	}
	if err := errors.Join(enc.Encode(last), flush()); err != nil {
		s.log.Debug("the caller has gone", "error", err)
	}
}

// streamText answers with a text that may be longer than a document.
func streamText(s *Server, w http.ResponseWriter, r *http.Request, run func() ([]byte, error)) {
	stream(s, w, r, func(send func([]byte) error) error {
		text, err := run()
		for len(text) > 0 && err == nil {
			n := min(proofPart, len(text))
			err = send(text[:n])
			text = text[n:]
		}
		return err
	})
}

func (c *Client) text(ctx context.Context, q request) (text []byte, err error) {
	err = items(ctx, c, q, nil, func(part []byte) error {
		if len(text)+len(part) > audit.MaxProof {
			return fmt.Errorf("%s: the daemon's answer is longer than a proof can be", c.store)
		}
		text = append(text, part...)
		return nil
	})
	return text, err
}

// AuditEntries implements Audit.
func (c *Client) AuditEntries(ctx context.Context, q audit.Query, fn func(*audit.Entry) error) error {
	return items(ctx, c, request{method: http.MethodGet, route: routeAudit, path: q.Path, history: historyRequest{by: q.Agent, since: q.Since},
		audit: auditRequest{op: q.Operation, until: q.Until, newest: q.Newest, follow: q.Follow}}, nil, func(e audit.Entry) error { return fn(&e) })
}

// AuditHead implements Audit.
func (c *Client) AuditHead(ctx context.Context) ([]byte, error) {
	return value[[]byte](ctx, c, request{method: http.MethodPost, route: routeHead}, nil)
}

// AuditProof implements Audit.
func (c *Client) AuditProof(ctx context.Context, path string, at Selector) ([]byte, error) {
	return c.text(ctx, request{method: http.MethodPost, route: routeProof, path: path, at: at})
}

// AuditExtension implements Audit.
func (c *Client) AuditExtension(ctx context.Context, old []byte) ([]byte, error) {
	if len(old) > maxHead {
		return nil, fmt.Errorf("%w: a signed tree head has at most %d bytes", audit.ErrMalformed, maxHead)
	}
	return c.text(ctx, request{method: http.MethodPost, route: routeExtension, audit: auditRequest{old: old}})
}

// auditLog is the audit log of the volume: the daemon's, or one that is opened when it is first asked for.
func (l *Local) auditLog(ctx context.Context) (*audit.Log, error) {
	l.auditMu.Lock()
	defer l.auditMu.Unlock()
	if l.mounted != nil {
		if l.mounted.Audit == nil {
			return nil, errors.Join(audit.ErrClosed, l.mounted.AuditError)
		}
		return l.mounted.Audit, nil
	}
	if l.audit == nil {
		var err error
		l.audit, err = audit.Open(ctx, audit.Options{Dir: filepath.Join(l.vol.Dir(), audit.DirName), Journal: l.vol.JournalView(), ReadOnly: l.vol.ReadOnly()})
		if err != nil {
			l.audit = nil
			return nil, err
		}
	}
	return l.audit, nil
}

// closeAudit closes the audit log that auditLog has opened.
func (l *Local) closeAudit() error {
	l.auditMu.Lock()
	defer l.auditMu.Unlock()
	if l.audit == nil {
		return nil
	}
	err := l.audit.Close(context.Background())
	l.audit = nil
	return err
}

// auditProblems says what is known to be wrong with the evidence.
func (m *Mounted) auditProblems() []string {
	switch {
	case m.Audit != nil:
		return m.Audit.Problems()
	case m.AuditError != nil:
		return []string{"nothing is signed: " + m.AuditError.Error()}
	}
	return nil
}

// AuditEntries implements Audit.
func (l *Local) AuditEntries(ctx context.Context, q audit.Query, fn func(*audit.Entry) error) error {
	var err error
	if q.Path, err = CleanPath(q.Path); err != nil {
		return err
	}
	a, err := l.auditLog(ctx)
	if err != nil {
		return err
	}
	return a.Entries(ctx, q, func(e *audit.Entry) error {
		if e != nil {
			e.Path, e.Agent, e.Program = text(e.Path), text(e.Agent), text(e.Program)
		}
		return fn(e)
	})
}

// AuditHead implements Audit.
func (l *Local) AuditHead(ctx context.Context) ([]byte, error) {
	a, err := l.auditLog(ctx)
	if err != nil {
		return nil, err
	}
	return a.Head(ctx)
}

// AuditProof implements Audit.
func (l *Local) AuditProof(ctx context.Context, p string, at Selector) ([]byte, error) {
	p, err := CleanPath(p)
	if err != nil {
		return nil, err
	}
	a, err := l.auditLog(ctx)
	if err != nil {
		return nil, err
	}
	v, err := l.vol.FindVersion(ctx, p, volume.Moment{Number: at.Number, Time: at.Time, Seq: catalog.Seq(at.Seq)})
	if err != nil {
		return nil, err
	}
	proof, err := a.Prove(ctx, v.Seq)
	if err != nil {
		return nil, pathError("prove", p, err)
	}
	return proof.Text(), nil
}

// AuditExtension implements Audit.
func (l *Local) AuditExtension(ctx context.Context, old []byte) ([]byte, error) {
	a, err := l.auditLog(ctx)
	if err != nil {
		return nil, err
	}
	x, err := a.ProveExtends(ctx, old)
	if err != nil {
		return nil, err
	}
	return x.Text(), nil
}
