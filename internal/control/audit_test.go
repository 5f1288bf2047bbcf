package control

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/catalog"
	"holdfast/integrity/audit"
)

// TestAudit: what a client is told is what the volume says.
func TestAudit(t *testing.T) {
	dir := newStore(t)
	local := NewLocal(openVolume(t, dir), nil, nil)
	defer func() {
		if err := local.closeAudit(); err != nil {
			t.Error(err)
		}
	}()
	c := serve(t, dir, local)
	for i := range 5 {
		put(t, c, "/tasks/f", []byte(strings.Repeat("x", i)))
	}
	ctx := t.Context()
	entries := func(ops Ops, q audit.Query) (list []audit.Entry) {
		t.Helper()
		err := ops.AuditEntries(ctx, q, func(e *audit.Entry) error {
			list = append(list, *e)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	all := entries(local, audit.Query{})
	for name, q := range map[string]audit.Query{
		"all": {}, "path": {Path: "/tasks"}, "agent": {Agent: all[len(all)-1].Agent}, "operation": {Operation: catalog.OpMkdir}, "newest": {Newest: 3},
		"since": {Since: all[3].Time}, "until": {Until: all[3].Time}, "nothing": {Operation: "nothing"},
	} {
		if got, want := entries(c, q), entries(local, q); !slices.Equal(got, want) || len(want) == 0 && name != "nothing" {
			t.Errorf("%s: %d entries, want %d", name, len(got), len(want))
		}
	}
	head, err := c.AuditHead(ctx)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := audit.ReadKeys(filepath.Join(dir, audit.DirName))
	if err != nil {
		t.Fatal(err)
	}
	text, err := c.AuditProof(ctx, "/tasks/f", Selector{})
	if err != nil {
		t.Fatal(err)
	}
	p, err := audit.ParseProof(text)
	if err != nil {
		t.Fatal(err)
	}
	row, err := c.Stat(ctx, "/tasks/f")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := p.Check(keys); err != nil || uint64(got.Entries[0].Inode) != row.Ino || got.Entries[0].Size != 4 {
		t.Errorf("%+v, %v", got, err)
	}
	if text, err = c.AuditExtension(ctx, head); err != nil {
		t.Fatal(err)
	}
	if x, err := audit.ParseExtension(text); err != nil || !bytes.Equal(x.Old, head) {
		t.Errorf("%+v, %v", x, err)
	}
	if _, err := c.AuditProof(ctx, "/tasks", Selector{}); !errors.Is(err, catalog.ErrNotExist) {
		t.Errorf("a proof of a directory: %v", err)
	}
	if _, err := c.AuditExtension(ctx, []byte("rubbish")); !errors.Is(err, audit.ErrMalformed) {
		t.Errorf("rubbish is a tree head: %v", err)
	}
	other := NewLocal(openVolume(t, newStore(t)), nil, nil)
	defer other.closeAudit()
	foreign, err := other.AuditHead(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.AuditExtension(ctx, foreign); !errors.Is(err, audit.ErrTampered) {
		t.Errorf("a tree head of another store: %v", err)
	}
}

// received is the next value; a test that waits for what never comes fails in the end.
func received[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	select {
	case v := <-c:
		return v
	case <-ctx.Done():
		t.Fatal("it never came")
	}
	var none T
	return none
}

// TestAuditFollow: what is written arrives while the call goes on, and the call ends when its context does.
func TestAuditFollow(t *testing.T) {
	dir := newStore(t)
	local := NewLocal(openVolume(t, dir), nil, nil)
	defer local.closeAudit()
	c := serve(t, dir, local)
	ctx, cancel := context.WithCancel(t.Context())
	seen, done := make(chan audit.Entry, 100), make(chan error, 1)
	go func() {
		done <- c.AuditEntries(ctx, audit.Query{Follow: true, Operation: catalog.OpWrite}, func(e *audit.Entry) error {
			seen <- *e
			return nil
		})
	}()
	for i := range 3 {
		put(t, local, "/tasks/f", []byte(strings.Repeat("x", i+1)))
		if e := received(t, seen); e.Size != int64(i+1) {
			t.Errorf("%+v", e)
		}
	}
	cancel()
	if err := received(t, done); !errors.Is(err, context.Canceled) {
		t.Errorf("the end of following: %v", err)
	}
	// The daemon ends it, too: no request is left when its log is closed.
	go func() {
		done <- c.AuditEntries(t.Context(), audit.Query{Follow: true, Newest: 1}, func(e *audit.Entry) error {
			seen <- *e
			return nil
		})
	}()
	received(t, seen)
	if err := local.closeAudit(); err != nil {
		t.Fatal(err)
	}
	if err := received(t, done); err != nil {
		t.Errorf("the end of the log: %v", err)
	}
}

func TestAuditRequests(t *testing.T) {
	at := time.Date(2026, 1, 31, 12, 0, 0, 7, time.UTC)
	for _, q := range []request{
		{method: http.MethodGet, route: routeAudit, path: "/a b", history: historyRequest{by: "x", since: at},
			audit: auditRequest{op: "write", until: at, newest: 3, follow: true}},
		{method: http.MethodGet, route: routeAudit, path: "/"},
		{method: http.MethodPost, route: routeHead},
		{method: http.MethodPost, route: routeProof, path: "/f", at: Selector{Number: 2}},
		{method: http.MethodPost, route: routeExtension, audit: auditRequest{old: []byte("holdfast/\n+—")}},
	} {
		r, err := http.NewRequest(q.method, "http://h"+q.target(), nil)
		if err != nil {
			t.Fatal(err)
		}
		got, err := parseRequest(r)
		if err != nil || got.target() != q.target() || got.path != q.path {
			t.Errorf("%s became %+v, %v", q.target(), got, err)
		}
	}
	for _, bad := range []string{
		"GET /v1/audit", "GET /v1/audit?path=/&newest=0", "GET /v1/audit?path=/&newest=-1", "GET /v1/audit?path=/&follow=yes", "GET /v1/audit?path=/&until=now",
		"GET /v1/audit?path=/&op=" + strings.Repeat("x", 33), "POST /v1/audit/extension?old=%21", "POST /v1/audit/extension?old=", "POST /v1/audit/proof", "GET /v1/audit/head",
		"POST /v1/audit/head?path=/",
	} {
		method, target, _ := strings.Cut(bad, " ")
		r, err := http.NewRequest(method, "http://h"+target, nil)
		if err != nil {
			t.Fatal(err)
		}
		if q, err := parseRequest(r); !errors.Is(err, ErrRequest) {
			t.Errorf("%s: %+v, %v", bad, q, err)
		}
	}
}
