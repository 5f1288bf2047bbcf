package control

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"

	"holdfast/catalog"
	"holdfast/internal/volume"
)

// Retention is the part of History that decides how much of the past is kept.
type Retention interface {
	// Prune frees what the policies do not keep, or with dryRun says what that would be: see volume.Prune. It may take minutes, and ends early, with
	// what it has done until then, when ctx ends.
	Prune(ctx context.Context, dryRun bool) (catalog.PruneReport, error)
	// Policies returns the policies, that of the root first and each behind those of the directories above it.
	Policies(ctx context.Context) ([]Policy, error)
	// SetPolicy changes what holdfast.toml says of a directory, durably, and returns the policy that is in force there afterwards. catalog.ErrNotExist
	// when there is no such directory, or when nothing can be removed.
	SetPolicy(ctx context.Context, change PolicyChange) (Policy, error)
}

// Policy says how much is kept of what is below a directory, as far as no directory in between has a policy of its own. The names of its JSON fields are stable.
type Policy struct {
	Path string `json:"path"`
	// Every moment is kept for so long, then the last of each hour, day and week until they are so old.
	KeepAll volume.Span `json:"keep_all"`
	Hourly  volume.Span `json:"hourly"`
	Daily   volume.Span `json:"daily"`
	Weekly  volume.Span `json:"weekly"`

	MaxVersions int      `json:"max_versions"` // of one file; 0: no bound
	MaxBytes    int64    `json:"max_bytes"`    // that only the past has; 0: no bound
	Own         []string `json:"own"`          // which of these are set for this directory; the others come from above, or are the defaults
	Exists      bool     `json:"exists"`       // false: there is no such directory now, so nothing is under this policy

	Oldest  *time.Time `json:"oldest"`  // the oldest moment that is kept as a whole
	Horizon *time.Time `json:"horizon"` // every moment since is kept; nil: nothing was thinned yet
	Moments int        `json:"moments"` // that are kept before the horizon
}

// PolicyChange says what is to be done with the policy of a directory.
type PolicyChange struct {
	Set    volume.Retention // Path, and what is set; what is not comes from above
	Remove bool             // take away what is set for Set.Path
	DryRun bool             // only say what would be in force
}

const (
	routePrune    = "/v1/prune"
	routePolicies = "/v1/policies"
)

// retentionParameters are the parameters of the operations of Retention.
func retentionParameters(method, route string) []string {
	switch method + " " + route {
	case "POST " + routePrune:
		return []string{"dry"}
	case "GET " + routePolicies:
		return []string{}
	case "POST " + routePolicies:
		return []string{"path", "keep_all", "hourly", "daily", "weekly", "max_versions", "max_bytes", "remove", "dry"}
	}
	return nil
}

// span returns the field of the policy that a parameter is about; nil when it is none of those.
func (c *PolicyChange) span(name string) **volume.Span {
	switch name {
	case "keep_all":
		return &c.Set.KeepAll
	case "hourly":
		return &c.Set.Hourly
	case "daily":
		return &c.Set.Daily
	case "weekly":
		return &c.Set.Weekly
	}
	return nil
}

// set reads a parameter; ok is false when it is none of these.
func (c *PolicyChange) set(name, v string) (ok bool, err error) {
	if field := c.span(name); field != nil {
		s, err := volume.ParseSpan(v)
		if err != nil {
			return true, fmt.Errorf("%w: %s: %w", ErrRequest, name, err)
		}
		*field = &s
		return true, nil
	}
	switch name {
	case "max_versions":
		n, err := strconv.ParseUint(v, 10, 31)
		if err != nil {
			return true, fmt.Errorf("%w: max_versions is not a number of versions", ErrRequest)
		}
		versions := int(n)
		c.Set.MaxVersions = &versions
	case "max_bytes":
		b, err := volume.ParseBytes(v)
		if err != nil {
			return true, fmt.Errorf("%w: max_bytes: %w", ErrRequest, err)
		}
		c.Set.MaxBytes = &b
	case "remove":
		c.Remove, err = parseFlag(v)
	default:
		return false, nil
	}
	return true, err
}

// get returns the text of a parameter; ok is false when it is not to be sent.
func (c *PolicyChange) get(name string) (v string, ok bool) {
	if field := c.span(name); field != nil {
		if *field == nil {
			return "", false
		}
		return (*field).String(), true
	}
	switch {
	case name == "max_versions" && c.Set.MaxVersions != nil:
		return strconv.Itoa(*c.Set.MaxVersions), true
	case name == "max_bytes" && c.Set.MaxBytes != nil:
		return c.Set.MaxBytes.String(), true
	case name == "remove":
		return formatFlag(c.Remove), true
	}
	return "", false
}

// complete says what is wrong with a change as a whole.
func (c *PolicyChange) complete() error {
	given := c.Set.Own()
	switch {
	case c.Remove && len(given) > 0:
		return fmt.Errorf("%w: what is removed cannot be set", ErrRequest)
	case !c.Remove && len(given) == 0:
		return fmt.Errorf("%w: nothing is set", ErrRequest)
	}
	return nil
}

// serveRetention answers the requests of Retention; false: it is none.
func (s *Server) serveRetention(w http.ResponseWriter, r *http.Request, q request) bool {
	ctx := r.Context()
	switch q.method + " " + q.route {
	case "POST " + routePrune:
		rep, err := s.ops.Prune(ctx, q.history.dry)
		s.answer(w, r, rep, err)
	case "GET " + routePolicies:
		stream(s, w, r, func(send func(Policy) error) error {
			list, err := s.ops.Policies(ctx)
			for i := 0; err == nil && i < len(list); i++ {
				err = send(list[i])
			}
			return err
		})
	case "POST " + routePolicies:
		change := q.history.policy
		change.Set.Path, change.DryRun = q.path, q.history.dry
		p, err := s.ops.SetPolicy(ctx, change)
		s.answer(w, r, p, err)
	default:
		return false
	}
	return true
}

// Prune implements Retention.
func (c *Client) Prune(ctx context.Context, dryRun bool) (catalog.PruneReport, error) {
	return value[catalog.PruneReport](ctx, c, request{method: http.MethodPost, route: routePrune, history: historyRequest{dry: dryRun}}, nil)
}

// Policies implements Retention.
func (c *Client) Policies(ctx context.Context) ([]Policy, error) {
	var list []Policy
	err := items(ctx, c, request{method: http.MethodGet, route: routePolicies}, nil, func(p Policy) error {
		list = append(list, p)
		return nil
	})
	return list, err
}

// SetPolicy implements Retention.
func (c *Client) SetPolicy(ctx context.Context, change PolicyChange) (Policy, error) {
	q := request{method: http.MethodPost, route: routePolicies, path: change.Set.Path, history: historyRequest{policy: change, dry: change.DryRun}}
	if err := change.complete(); err != nil {
		return Policy{}, err
	}
	return value[Policy](ctx, c, q, nil)
}

// Prune implements Retention.
func (l *Local) Prune(ctx context.Context, dryRun bool) (catalog.PruneReport, error) {
	rep, err := l.vol.Prune(ctx, dryRun)
	for i := range rep.Policies {
		rep.Policies[i].Path = text(rep.Policies[i].Path)
	}
	return rep, err
}

// Policies implements Retention.
func (l *Local) Policies(ctx context.Context) ([]Policy, error) {
	states, err := l.vol.Retention(ctx)
	if err != nil {
		return nil, err
	}
	return l.policies(ctx, states)
}

func (l *Local) policies(ctx context.Context, states []volume.RetentionState) ([]Policy, error) {
	list := make([]Policy, 0, len(states))
	for i := range states {
		p, err := l.policy(ctx, &states[i])
		if err != nil {
			return nil, err
		}
		list = append(list, p)
	}
	return list, nil
}

func (l *Local) policy(ctx context.Context, s *volume.RetentionState) (Policy, error) {
	p := Policy{
		Path: text(s.Path), KeepAll: volume.Span(s.KeepAll), Hourly: volume.Span(s.Hourly), Daily: volume.Span(s.Daily), Weekly: volume.Span(s.Weekly),
		MaxVersions: s.MaxVersions, MaxBytes: s.MaxBytes, Own: s.Own, Exists: s.Dir != 0, Moments: max(0, len(s.Kept)-1),
	}
	if p.Own == nil {
		p.Own = []string{}
	}
	var err error
	oldest := catalog.Seq(1)
	if len(s.Kept) > 0 {
		oldest = s.Kept[0]
		if p.Horizon, err = l.timeOf(ctx, s.Kept[len(s.Kept)-1]); err != nil {
			return p, err
		}
	}
	p.Oldest, err = l.timeOf(ctx, oldest)
	return p, err
}

// timeOf returns the time of a record; nil when there is none yet.
func (l *Local) timeOf(ctx context.Context, seq catalog.Seq) (*time.Time, error) {
	at, err := l.vol.TimeOf(ctx, seq)
	if errors.Is(err, catalog.ErrNotExist) {
		return nil, nil
	}
	at = at.UTC()
	return &at, err
}

// SetPolicy implements Retention.
func (l *Local) SetPolicy(ctx context.Context, change PolicyChange) (Policy, error) {
	var err error
	if change.Set.Path, err = CleanPath(change.Set.Path); err != nil {
		return Policy{}, err
	}
	if err := change.complete(); err != nil {
		return Policy{}, err
	}
	states, err := l.vol.SetRetention(ctx, change.Set, volume.RetentionChange{Remove: change.Remove, DryRun: change.DryRun})
	if err != nil {
		return Policy{}, err
	}
	list, err := l.policies(ctx, states)
	if err != nil {
		return Policy{}, err
	}
	return PolicyOf(list, change.Set.Path), nil
}

// PolicyOf returns the one of policies, as Ops.Policies returns them, that is in force at a path.
func PolicyOf(policies []Policy, p string) Policy {
	var found Policy
	p = path.Clean("/" + p)
	for _, candidate := range policies {
		if candidate.Path == "/" || (candidate.Exists || candidate.Path == p) && (p == candidate.Path || strings.HasPrefix(p, candidate.Path+"/")) {
			found = candidate // the nearest comes last
		}
	}
	return found
}

// historyCost is what Status says of the past.
func (l *Local) historyCost(ctx context.Context, st volume.Stats) (HistoryCost, error) {
	cost := HistoryCost{Snapshots: st.Snapshots}
	var err error
	if cost.Bytes, err = l.vol.HistoryBytes(ctx); err != nil {
		return cost, err
	}
	states, err := l.vol.Retention(ctx)
	if err != nil {
		return cost, err
	}
	root, err := l.policy(ctx, &states[0])
	cost.Oldest, cost.Horizon = root.Oldest, root.Horizon
	return cost, err
}
