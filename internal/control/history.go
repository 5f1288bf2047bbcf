package control

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"holdfast/catalog"
	"holdfast/snapshots"
)

// History is the part of Ops that has to do with the past as a whole. Moments are relative to the time of the call.
type History interface {
	// Snapshots returns all snapshots, oldest moment first.
	Snapshots(ctx context.Context) ([]Snapshot, error)
	// ChangeSnapshot makes or changes one, durably, and returns it as it is afterwards; of one that was removed, as it was.
	ChangeSnapshot(ctx context.Context, who Caller, change SnapshotChange) (Snapshot, error)
	// Diff calls fn with each path at or below path that differs between two moments: see snapshots.Diff.
	Diff(ctx context.Context, from, to snapshots.Moment, path string, fn func(snapshots.Difference) error) error
	// Changes calls fn with each change of the store, oldest first: see snapshots.Changes.
	Changes(ctx context.Context, q snapshots.ChangeQuery, fn func(snapshots.Change) error) error
	// Restore makes path what it was, or with to, a directory, copies there what it was: see snapshots.Restore. fn is then called with
	// each thing that was done or left. It returns the number of the journal record, 0 when there was nothing to do and in a dry run.
	// When it fails nothing was changed, unless fn failed.
	Restore(ctx context.Context, who Caller, r RestoreRequest, fn func(snapshots.Step) error) (uint64, error)
	// Undo undoes changes: see snapshots.Undo, and Restore.
	Undo(ctx context.Context, who Caller, u snapshots.Undo, fn func(snapshots.Step) error) (uint64, error)
	Retention
}

// Snapshot describes a snapshot.
type Snapshot struct {
	Name      string    `json:"name"`
	Seq       uint64    `json:"seq"` // the state after this journal record
	Time      time.Time `json:"time"`
	Pinned    bool      `json:"pinned"`
	Automatic bool      `json:"automatic"`
}

// The actions of a SnapshotChange.
const (
	SnapshotCreate = "create"
	SnapshotRename = "rename"
	SnapshotPin    = "pin"
	SnapshotUnpin  = "unpin"
	SnapshotRemove = "remove"
)

// SnapshotChange says what is to be done with a snapshot.
type SnapshotChange struct {
	Action string
	Name   string // of SnapshotCreate: "" stands for the time now
	To     string // of SnapshotRename: the new name
}

// RestoreRequest says what is to be restored.
type RestoreRequest struct {
	Path   string
	At     snapshots.Moment
	To     string // a directory for a copy; "": in place
	DryRun bool
}

// stepLine is one line of a streamed restore or undo: a step, or behind the last one the number of the record.
type stepLine struct {
	Step *snapshots.Step `json:"step,omitempty"`
	Seq  uint64          `json:"seq,omitempty"`
}

const (
	routeSnapshots = "/v1/snapshots"
	routeDiff      = "/v1/diff"
	routeChanges   = "/v1/changes"
	routeRestore   = "/v1/restore"
	routeUndo      = "/v1/undo"
)

// historyParameters are the parameters of the operations of History.
func historyParameters(method, route string) []string {
	switch method + " " + route {
	case "GET " + routeSnapshots:
		return []string{}
	case "POST " + routeSnapshots:
		return []string{"action", "name", "to", "agent", "program"}
	case "GET " + routeDiff:
		return []string{"path", "from", "at"}
	case "GET " + routeChanges:
		return []string{"path", "by", "since"}
	case "POST " + routeRestore:
		return []string{"path", "at", "to", "dry", "agent", "program"}
	case "POST " + routeUndo:
		return []string{"path", "by", "since", "force", "dry", "agent", "program"}
	}
	return retentionParameters(method, route)
}

// historyRequest are the fields of a request of History.
type historyRequest struct {
	action string // "": none of these
	name   string
	to     string // a name of a snapshot, or a path
	by     string
	from   snapshots.Moment
	at     snapshots.Moment
	since  time.Time
	force  bool
	dry    bool
	policy PolicyChange // but for its path and DryRun
}

// set reads a parameter; ok is false when it is none of these.
func (h *historyRequest) set(name, v string) (ok bool, err error) {
	switch name {
	case "action":
		switch v {
		case SnapshotCreate, SnapshotRename, SnapshotPin, SnapshotUnpin, SnapshotRemove:
			h.action = v
		default:
			err = fmt.Errorf("%w: there is no such action", ErrRequest)
		}
	case "name":
		h.name, err = snapshotName(v)
	case "to":
		if len(v) > MaxPath {
			err = fmt.Errorf("%w: to is too long", ErrRequest)
		}
		h.to = v
	case "by":
		h.by, err = actorName(v)
	case "from":
		h.from, err = absoluteMoment(v)
	case "at":
		h.at, err = absoluteMoment(v)
	case "since":
		h.since, err = time.Parse(time.RFC3339Nano, v)
		if err != nil || h.since.Year() < 1970 || h.since.Year() > 2261 {
			err = fmt.Errorf("%w: since is not in RFC 3339, or lies outside 1970 to 2261", ErrRequest)
		}
		h.since = h.since.UTC()
	case "force":
		h.force, err = parseFlag(v)
	case "dry":
		h.dry, err = parseFlag(v)
	default:
		return h.policy.set(name, v)
	}
	return true, err
}

// snapshotName bounds a name; whether there can be such a snapshot is for the catalog to say.
func snapshotName(v string) (string, error) {
	if len(v) > catalog.MaxName {
		return "", fmt.Errorf("%w: the name is longer than %d bytes", ErrRequest, catalog.MaxName)
	}
	return v, nil
}

func absoluteMoment(v string) (snapshots.Moment, error) {
	m, err := snapshots.ParseMoment(v, time.Now())
	if err != nil {
		return m, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	if m.Relative {
		return m, fmt.Errorf("%w: the moment is relative to a time that the daemon does not know", ErrRequest)
	}
	m.Time = m.Time.UTC()
	return m, nil
}

// get returns the text of a parameter; ok is false when it is not to be sent.
func (h *historyRequest) get(name string) (v string, ok bool) {
	switch name {
	case "action":
		return h.action, true
	case "name":
		return h.name, h.name != ""
	case "to":
		return h.to, h.to != ""
	case "by":
		return h.by, h.by != ""
	case "from":
		return h.from.String(), h.from != snapshots.Moment{}
	case "at":
		return h.at.String(), h.at != snapshots.Moment{}
	case "since":
		return h.since.UTC().Format(time.RFC3339Nano), !h.since.IsZero()
	case "force":
		return formatFlag(h.force), true
	case "dry":
		return formatFlag(h.dry), true
	}
	return h.policy.get(name)
}

// complete says what a request of History lacks.
func (q *request) complete() error {
	zero := snapshots.Moment{}
	switch q.method + " " + q.route {
	case "POST " + routeCall:
		if q.history.name == "" {
			return fmt.Errorf("%w: the name of the operation is missing", ErrRequest)
		}
	case "POST " + routeSnapshots:
		if q.history.action == "" || q.history.action != SnapshotCreate && q.history.name == "" {
			return fmt.Errorf("%w: the action or the name is missing", ErrRequest)
		}
	case "GET " + routeDiff:
		if q.history.from == zero || q.history.at == zero {
			return fmt.Errorf("%w: a moment is missing", ErrRequest)
		}
	case "POST " + routeRestore:
		if q.history.at == zero {
			return fmt.Errorf("%w: the moment is missing", ErrRequest)
		}
	case "POST " + routeUndo:
		if q.history.since.IsZero() {
			return fmt.Errorf("%w: since is missing", ErrRequest)
		}
	case "POST " + routePolicies:
		return q.history.policy.complete()
	}
	return nil
}

// setQuery adds the parameters of History to those of a request.
func (q request) setQuery(v url.Values, name string) {
	if text, ok := q.history.get(name); ok {
		v.Set(name, text)
	}
	if text, ok := q.audit.get(name); ok {
		v.Set(name, text)
	}
}

// serveHistory answers the requests of History; false: it is none.
func (s *Server) serveHistory(w http.ResponseWriter, r *http.Request, q request) bool {
	ctx, h := r.Context(), &q.history
	switch q.method + " " + q.route {
	case "GET " + routeSnapshots:
		stream(s, w, r, func(send func(Snapshot) error) error {
			list, err := s.ops.Snapshots(ctx)
			for i := 0; err == nil && i < len(list); i++ {
				err = send(list[i])
			}
			return err
		})
	case "POST " + routeSnapshots:
		snap, err := s.ops.ChangeSnapshot(ctx, q.who, SnapshotChange{Action: h.action, Name: h.name, To: h.to})
		s.answer(w, r, snap, err)
	case "GET " + routeDiff:
		stream(s, w, r, func(send func(snapshots.Difference) error) error { return s.ops.Diff(ctx, h.from, h.at, q.path, send) })
	case "GET " + routeChanges:
		query := snapshots.ChangeQuery{Agent: h.by, Since: h.since, Path: q.path}
		stream(s, w, r, func(send func(snapshots.Change) error) error { return s.ops.Changes(ctx, query, send) })
	case "POST " + routeRestore:
		req := RestoreRequest{Path: q.path, At: h.at, To: h.to, DryRun: h.dry}
		streamSteps(s, w, r, func(fn func(snapshots.Step) error) (uint64, error) { return s.ops.Restore(ctx, q.who, req, fn) })
	case "POST " + routeUndo:
		u := snapshots.Undo{Agent: h.by, Since: h.since, Path: q.path, Force: h.force, DryRun: h.dry}
		streamSteps(s, w, r, func(fn func(snapshots.Step) error) (uint64, error) { return s.ops.Undo(ctx, q.who, u, fn) })
	default:
		return s.serveRetention(w, r, q)
	}
	return true
}

func streamSteps(s *Server, w http.ResponseWriter, r *http.Request, run func(func(snapshots.Step) error) (uint64, error)) {
	stream(s, w, r, func(send func(stepLine) error) error {
		seq, err := run(func(step snapshots.Step) error { return send(stepLine{Step: &step}) })
		if err != nil {
			return err
		}
		return send(stepLine{Seq: seq})
	})
}

// Snapshots implements History.
func (c *Client) Snapshots(ctx context.Context) ([]Snapshot, error) {
	var list []Snapshot
	err := items(ctx, c, request{method: http.MethodGet, route: routeSnapshots}, nil, func(s Snapshot) error {
		list = append(list, s)
		return nil
	})
	return list, err
}

// ChangeSnapshot implements History. The ids in who are those of this process, whatever they say.
func (c *Client) ChangeSnapshot(ctx context.Context, who Caller, change SnapshotChange) (Snapshot, error) {
	q := request{method: http.MethodPost, route: routeSnapshots, who: who,
		history: historyRequest{action: change.Action, name: change.Name, to: change.To}}
	return value[Snapshot](ctx, c, q, nil)
}

// Diff implements History.
func (c *Client) Diff(ctx context.Context, from, to snapshots.Moment, path string, fn func(snapshots.Difference) error) error {
	q := request{method: http.MethodGet, route: routeDiff, path: path, history: historyRequest{from: from, at: to}}
	return items(ctx, c, q, nil, fn)
}

// Changes implements History.
func (c *Client) Changes(ctx context.Context, query snapshots.ChangeQuery, fn func(snapshots.Change) error) error {
	q := request{method: http.MethodGet, route: routeChanges, path: query.Path, history: historyRequest{by: query.Agent, since: query.Since}}
	return items(ctx, c, q, nil, fn)
}

// Restore implements History. The ids in who are those of this process, whatever they say.
func (c *Client) Restore(ctx context.Context, who Caller, r RestoreRequest, fn func(snapshots.Step) error) (uint64, error) {
	return c.steps(ctx, request{method: http.MethodPost, route: routeRestore, path: r.Path, who: who,
		history: historyRequest{at: r.At, to: r.To, dry: r.DryRun}}, fn)
}

// Undo implements History. The ids in who are those of this process, whatever they say.
func (c *Client) Undo(ctx context.Context, who Caller, u snapshots.Undo, fn func(snapshots.Step) error) (uint64, error) {
	return c.steps(ctx, request{method: http.MethodPost, route: routeUndo, path: u.Path, who: who,
		history: historyRequest{by: u.Agent, since: u.Since, force: u.Force, dry: u.DryRun}}, fn)
}

func (c *Client) steps(ctx context.Context, q request, fn func(snapshots.Step) error) (seq uint64, err error) {
	err = items(ctx, c, q, nil, func(l stepLine) error {
		if l.Step != nil {
			return fn(*l.Step)
		}
		seq = l.Seq
		return nil
	})
	return seq, err
}

// Snapshots implements History.
func (l *Local) Snapshots(ctx context.Context) ([]Snapshot, error) {
	rows, err := l.vol.Snapshots(ctx)
	list := make([]Snapshot, len(rows))
	for i, row := range rows {
		list[i] = snapshotOf(row)
	}
	return list, err
}

func snapshotOf(s catalog.Snapshot) Snapshot {
	return Snapshot{Name: s.Name, Seq: uint64(s.Seq), Time: time.Unix(0, s.Time).UTC(), Pinned: s.Pinned, Automatic: s.Auto}
}

// ChangeSnapshot implements History.
func (l *Local) ChangeSnapshot(ctx context.Context, who Caller, change SnapshotChange) (Snapshot, error) {
	for _, name := range []string{change.Name, change.To} {
		if name != "" {
			if err := snapshots.CheckName(name); err != nil {
				return Snapshot{}, err
			}
		}
	}
	var row catalog.Snapshot
	var err error
	switch change.Action {
	case SnapshotCreate:
		if change.Name != "" {
			err = snapshots.CheckNewName(change.Name)
		}
		if err == nil {
			row, err = l.vol.CreateSnapshot(ctx, who.actor(), change.Name)
		}
	case SnapshotRename:
		if err = snapshots.CheckNewName(change.To); err == nil {
			row, err = l.vol.RenameSnapshot(ctx, who.actor(), change.Name, change.To)
		}
	case SnapshotPin, SnapshotUnpin:
		row, err = l.vol.PinSnapshot(ctx, who.actor(), change.Name, change.Action == SnapshotPin)
	case SnapshotRemove:
		if row, err = l.vol.Snapshot(ctx, change.Name); err == nil {
			err = l.vol.RemoveSnapshot(ctx, who.actor(), change.Name)
		}
	default:
		err = fmt.Errorf("%w: there is no action %q", ErrRequest, change.Action)
	}
	if err != nil {
		return Snapshot{}, err
	}
	return snapshotOf(row), nil
}

// Diff implements History.
func (l *Local) Diff(ctx context.Context, from, to snapshots.Moment, p string, fn func(snapshots.Difference) error) error {
	p, err := CleanPath(p)
	if err != nil {
		return err
	}
	a, err := l.resolve(ctx, from)
	if err != nil {
		return err
	}
	b, err := l.resolve(ctx, to)
	if err != nil {
		return err
	}
	return snapshots.Diff(ctx, l.vol, a, b, p, func(d snapshots.Difference) error {
		d.Path, d.From = text(d.Path), text(d.From)
		return fn(d)
	})
}

// resolve finds a moment. A time may be given as the name of the snapshot that would be made at that time.
func (l *Local) resolve(ctx context.Context, m snapshots.Moment) (catalog.Seq, error) {
	seq, err := m.Resolve(ctx, l.vol, l.vol)
	if errors.Is(err, snapshots.ErrNoSnapshot) {
		if t, parseErr := time.Parse(time.RFC3339, m.Name); parseErr == nil {
			return snapshots.Moment{Time: t}.Resolve(ctx, l.vol, l.vol)
		}
	}
	return seq, err
}

// text makes a path fit for JSON and terminals.
func text(p string) string { return strings.ToValidUTF8(p, "\uFFFD") }

// Changes implements History.
func (l *Local) Changes(ctx context.Context, q snapshots.ChangeQuery, fn func(snapshots.Change) error) error {
	var err error
	if q.Path, err = CleanPath(q.Path); err != nil {
		return err
	}
	return snapshots.Changes(ctx, l.vol, q, func(c snapshots.Change) error {
		c.Path = text(c.Path)
		return fn(c)
	})
}

// Restore implements History.
func (l *Local) Restore(ctx context.Context, who Caller, r RestoreRequest, fn func(snapshots.Step) error) (uint64, error) {
	p, err := CleanPath(r.Path)
	if err != nil {
		return 0, err
	}
	to := ""
	if r.To != "" {
		if to, err = CleanPath(r.To); err != nil {
			return 0, err
		}
	}
	at, err := l.resolve(ctx, r.At)
	if err != nil {
		return 0, err
	}
	res, err := snapshots.Restore{Path: p, At: at, To: to, DryRun: r.DryRun}.Run(ctx, l.vol, who.actor())
	return tell(res, err, fn)
}

// Undo implements History.
func (l *Local) Undo(ctx context.Context, who Caller, u snapshots.Undo, fn func(snapshots.Step) error) (uint64, error) {
	var err error
	if u.Path, err = CleanPath(u.Path); err != nil {
		return 0, err
	}
	if u.Since.After(time.Now()) {
		return 0, fmt.Errorf("%w: %s", snapshots.ErrFuture, u.Since.UTC().Format(time.RFC3339))
	}
	res, err := u.Run(ctx, l.vol, who.actor())
	return tell(res, err, fn)
}

func tell(res snapshots.Result, err error, fn func(snapshots.Step) error) (uint64, error) {
	if err != nil {
		return 0, err
	}
	for _, s := range res.Steps {
		s.Path = text(path.Clean(s.Path))
		if err := fn(s); err != nil {
			return uint64(res.Seq), err
		}
	}
	return uint64(res.Seq), nil
}
