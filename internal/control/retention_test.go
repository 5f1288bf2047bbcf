package control

import (
	"errors"
	"reflect"
	"slices"
	"testing"
	"time"

	"holdfast/catalog"
	"holdfast/internal/volume"
)

// TestRetentionOfAStore sets, shows and removes policies and thins, in the process and over the socket.
func TestRetentionOfAStore(t *testing.T) {
	for name, open := range map[string]func(*testing.T, string) Ops{
		"local":  func(t *testing.T, dir string) Ops { return NewLocal(openVolume(t, dir), nil, nil) },
		"client": func(t *testing.T, dir string) Ops { return serve(t, dir, NewLocal(openVolume(t, dir), nil, nil)) },
	} {
		t.Run(name, func(t *testing.T) { testRetention(t, open(t, newStore(t))) })
	}
}

func testRetention(t *testing.T, ops Ops) {
	ctx := t.Context()
	policies := func() []Policy {
		t.Helper()
		list, err := ops.Policies(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	day := 24 * time.Hour
	first := policies()
	if len(first) != 1 || first[0].Path != "/" || first[0].KeepAll != volume.Span(day) || first[0].Weekly != volume.Span(365*day) || !first[0].Exists ||
		len(first[0].Own) != 0 || first[0].Own == nil || first[0].Horizon != nil || first[0].Oldest == nil {
		t.Fatalf("of a new store: %+v", first)
	}
	none, three, mega := volume.Span(0), 3, volume.Bytes(1<<20)
	change := PolicyChange{Set: volume.Retention{Path: "/tasks/../tasks/", KeepAll: &none, Hourly: &none, MaxVersions: &three, MaxBytes: &mega}, DryRun: true}
	dry, err := ops.SetPolicy(ctx, change)
	if err != nil || !reflect.DeepEqual(policies(), first) {
		t.Fatalf("a dry run: %v, %+v", err, policies())
	}
	change.DryRun = false
	set, err := ops.SetPolicy(ctx, change)
	if err != nil || !reflect.DeepEqual(set, dry) {
		t.Fatalf("set: %+v, %v; the dry run said %+v", set, err, dry)
	}
	if set.Path != "/tasks" || set.KeepAll != 0 || set.Daily != first[0].Daily || set.MaxVersions != 3 || set.MaxBytes != 1<<20 ||
		!slices.Equal(set.Own, []string{"keep_all", "hourly", "max_versions", "max_bytes"}) {
		t.Errorf("set: %+v", set)
	}
	if list := policies(); len(list) != 2 || !reflect.DeepEqual(list[1], set) || !reflect.DeepEqual(PolicyOf(list, "/tasks/a/b"), set) ||
		PolicyOf(list, "/tasksx").Path != "/" || PolicyOf(list, "/").Path != "/" {
		t.Errorf("%+v", list)
	}
	for want, bad := range map[error]PolicyChange{
		catalog.ErrNotExist: {Set: volume.Retention{Path: "/none", MaxVersions: &three}},
		catalog.ErrNotDir:   {Set: volume.Retention{Path: "/tasks/file", MaxVersions: &three}},
		ErrRequest:          {Set: volume.Retention{Path: "/tasks"}},
	} {
		put(t, ops, "/tasks/file", []byte("text"))
		if _, err := ops.SetPolicy(ctx, bad); !errors.Is(err, want) {
			t.Errorf("%+v: %v, want %v", bad, err, want)
		}
	}
	if _, err := ops.SetPolicy(ctx, PolicyChange{Set: volume.Retention{Path: "/logs"}, Remove: true}); !errors.Is(err, catalog.ErrNotExist) {
		t.Errorf("what is not there was removed: %v", err)
	}
	testPrune(t, ops)
	back, err := ops.SetPolicy(ctx, PolicyChange{Set: volume.Retention{Path: "/tasks"}, Remove: true})
	if list := policies(); err != nil || back.Path != "/" || len(list) != 1 {
		t.Errorf("removed: %+v, %v; there is %+v", back, err, list)
	}
}

// testPrune thins /tasks, of which nothing but the present is kept.
func testPrune(t *testing.T, ops Ops) {
	ctx := t.Context()
	for i := range 5 {
		put(t, ops, "/tasks/beat", []byte{byte(i)})
	}
	old, err := ops.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	put(t, ops, "/tasks/beat", []byte("last"))
	dry, err := ops.Prune(ctx, true)
	if err != nil || !dry.DryRun || dry.Versions() == 0 {
		t.Fatalf("a dry run: %+v, %v", dry, err)
	}
	rep, err := ops.Prune(ctx, false)
	if err != nil || rep.DryRun || rep.Versions() < dry.Versions() || len(rep.Policies) != 2 || rep.Policies[1].Path != "/tasks" {
		t.Fatalf("%+v, %v; the dry run said %+v", rep, err, dry)
	}
	if _, err := ops.Get(ctx, "/tasks/beat", Selector{Seq: old.JournalSeq - 2}, new(sink)); !errors.Is(err, catalog.ErrThinned) || !errors.Is(err, catalog.ErrNotExist) {
		t.Errorf("a moment that is thinned away: %v", err)
	}
	if got := get(t, ops, "/tasks/beat", Selector{}); string(got) != "last" {
		t.Errorf("afterwards it holds %q", got)
	}
	list, err := ops.Policies(ctx)
	if err != nil || list[1].Horizon == nil || list[0].Horizon != nil {
		t.Errorf("%+v, %v", list, err)
	}
	st, err := ops.Status(ctx)
	if err != nil || st.History.Bytes < 0 || st.History.Oldest == nil || st.History.Horizon != nil {
		t.Errorf("%+v, %v", st.History, err)
	}
}
