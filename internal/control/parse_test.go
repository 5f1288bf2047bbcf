package control

import (
	"bufio"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"holdfast/catalog"

	"holdfast/internal/volume"
	"holdfast/snapshots"
)

func now() time.Time { return time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC) }

func TestParseSelector(t *testing.T) {
	for text, want := range map[string]Selector{
		"1":                           {Number: 1},
		"0042":                        {Number: 42},
		"2026-01-31T11:00:00Z":        {Time: now().Add(-time.Hour)},
		"2026-01-31T12:00:00.5+01:00": {Time: now().Add(-time.Hour + 500*time.Millisecond)},
		"10m":                         {Time: now().Add(-10 * time.Minute)},
		"1h30m":                       {Time: now().Add(-90 * time.Minute)},
		"7d":                          {Time: now().AddDate(0, 0, -7)},
		"0s":                          {Time: now()},
		"1d2h":                        {Time: now().Add(-26 * time.Hour)},
		"yesterday":                   {Time: now().Add(-36 * time.Hour)},
		"@10m":                        {Time: now().Add(-10 * time.Minute)},
		"v1234":                       {Seq: 1234},
	} {
		got, err := ParseSelector(text, now())
		if err != nil || got.Number != want.Number || got.Seq != want.Seq || !got.Time.Equal(want.Time) {
			t.Errorf("%q: %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{
		"", "0", "-1", "+1", "1.5", "tomorrow", "10", "-10m", "2h1d", "d", "v0", "v", "@@1m", "2026-01-31T12:00:01Z", "-1d", "99999d", "2026-01-31", "1969-12-31T23:59:59Z", "9999-01-01T00:00:00Z",
		"99999999999999999999", "example.com", strings.Repeat("1", 100), "1000000h",
	} {
		if got, err := ParseSelector(text, now()); err == nil && text != "10" {
			t.Errorf("%q passed as %v", text, got)
		}
	}
}

func TestSplitTarget(t *testing.T) {
	for target, want := range map[string]struct {
		path   string
		number int
		ok     bool
	}{
		"/a@3":                      {"/a", 3, true},
		"/a@b@3":                    {"/a@b", 3, true},
		"/a":                        {"/a", 0, false},
		"/user@example.com":         {"/user@example.com", 0, false},
		"/a@":                       {"/a@", 0, false},
		"/a@0":                      {"/a@0", 0, false},
		"/x@2026-01-31T12:00:00Z/y": {"/x@2026-01-31T12:00:00Z/y", 0, false},
	} {
		path, at, ok := SplitTarget(target, now())
		if path != want.path || at.Number != want.number || ok != want.ok {
			t.Errorf("%q: %q, %v, %v", target, path, at, ok)
		}
	}
	if path, at, ok := SplitTarget("/a@2026-01-31T12:00:00Z", now()); path != "/a" || !at.Time.Equal(now()) || !ok {
		t.Errorf("a time: %q, %v, %v", path, at, ok)
	}
}

func FuzzParseSelector(f *testing.F) {
	for _, s := range []string{"3", "10m", "7d", "2026-01-31T12:00:00Z", "", "@", "99999d", "1e9h", "-5m", "0x10"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		at, err := ParseSelector(s, now())
		if err != nil {
			return
		}
		if at.IsZero() || at.Number < 0 || at.Number > 0 && !at.Time.IsZero() {
			t.Fatalf("%q gave %+v", s, at)
		}
		if !at.Time.IsZero() && (at.Time.Year() < 1970 || at.Time.Year() > 2261) {
			t.Fatalf("%q gave a time out of range: %v", s, at.Time)
		}
		again, err := ParseSelector(at.String(), now())
		if err != nil || again.Number != at.Number || again.Seq != at.Seq || !again.Time.Equal(at.Time) {
			t.Fatalf("%q gave %v, which reads as %v, %v", s, at, again, err)
		}
	})
}

func FuzzCleanPath(f *testing.F) {
	for _, s := range []string{"/a/b", "../../etc/passwd", "", "a\x00b", "//", "/a/./../b", strings.Repeat("x", 300)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := CleanPath(s)
		if err != nil {
			return
		}
		if !strings.HasPrefix(p, "/") || strings.Contains(p, "\x00") {
			t.Fatalf("%q became %q", s, p)
		}
		for _, name := range strings.Split(p, "/") {
			if name == ".." || name == "." || len(name) > catalog.MaxName {
				t.Fatalf("%q became %q", s, p)
			}
		}
		if again, err := CleanPath(p); err != nil || again != p {
			t.Fatalf("%q became %q, and that %q, %v", s, p, again, err)
		}
	})
}

// FuzzRequest sends arbitrary heads through the HTTP parser and parseRequest: no panic, nothing out of bounds, and what was understood can be said again.
func FuzzRequest(f *testing.F) {
	for _, q := range []request{
		{method: "GET", route: routeStatus},
		{method: "GET", route: routeContent, path: "/a b", at: Selector{Number: 3}},
		{method: "GET", route: routeContent, path: "/\xff", at: Selector{Time: now()}},
		{method: "GET", route: routeContent, path: "/a", at: Selector{Seq: 1 << 40}},
		{method: "PUT", route: routeContent, path: "/f", mode: 0o4755, who: Caller{Agent: "ü", Program: "p"}},
		{method: "DELETE", route: routeNode, path: "/f", recursive: true},
		{method: "POST", route: routeUnmount, lazy: true},
		{method: "GET", route: routeLog, path: "/"},
		{method: "GET", route: routeSnapshots},
		{method: "POST", route: routeSnapshots, history: historyRequest{action: SnapshotRename, name: "a b", to: "c"}, who: Caller{Agent: "a"}},
		{method: "GET", route: routeDiff, path: "/a", history: historyRequest{from: snapshots.Moment{Seq: 7}, at: snapshots.Moment{Name: "x"}}},
		{method: "GET", route: routeChanges, path: "/", history: historyRequest{by: "agent", since: now()}},
		{method: "POST", route: routeRestore, path: "/a", history: historyRequest{at: snapshots.Moment{Time: now()}, to: "/b", dry: true}},
		{method: "POST", route: routeUndo, path: "/a", history: historyRequest{by: "agent", since: now(), force: true}},
		{method: "POST", route: routePrune, history: historyRequest{dry: true}},
		{method: "GET", route: routePolicies},
		{method: "POST", route: routePolicies, path: "/a", history: historyRequest{policy: PolicyChange{Remove: true}}},
		{method: "POST", route: routePolicies, path: "/a", history: historyRequest{dry: true, policy: PolicyChange{Set: volume.Retention{
			KeepAll: new(volume.Span), Hourly: new(volume.Span), Daily: new(volume.Span), Weekly: new(volume.Span), MaxVersions: new(int), MaxBytes: new(volume.Bytes)}}}},
	} {
		f.Add(q.method + " " + q.target() + " HTTP/1.1\r\nHost: h\r\n\r\n")
	}
	f.Add("GET /v1/stat?path=%00 HTTP/1.1\r\nHost: h\r\n\r\n")
	f.Add("GET /v1/stat?path=/../.. HTTP/1.1\r\nHost: h\r\n\r\n")
	f.Add("GET http://x/v1/stat?path=a;b HTTP/1.0\r\n\r\n")
	f.Fuzz(func(t *testing.T, head string) {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(head)))
		if err != nil {
			return
		}
		q, err := parseRequest(r)
		if err != nil {
			return
		}
		if len(q.path) > MaxPath || len(q.who.Agent) > MaxActor || len(q.who.Program) > MaxActor || q.mode > 0o7777 || q.at.Number < 0 {
			t.Fatalf("out of bounds: %+v", q)
		}
		again, err := http.ReadRequest(bufio.NewReader(strings.NewReader(q.method + " " + q.target() + " HTTP/1.1\r\nHost: h\r\n\r\n")))
		if err != nil {
			t.Fatalf("%q is no request: %v", q.target(), err)
		}
		back, err := parseRequest(again)
		if err != nil {
			t.Fatalf("%q is not understood: %v", q.target(), err)
		}
		if !back.at.Time.Equal(q.at.Time) {
			t.Fatalf("%v became %v", q.at, back.at)
		}
		back.at.Time = q.at.Time
		if !reflect.DeepEqual(q, back) {
			t.Fatalf("%+v became %+v", q, back)
		}
	})
}
