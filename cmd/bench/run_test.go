package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain lets the test program be the worker and server processes that it starts.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == "worker" || os.Args[1] == "serve") {
		main()
		return
	}
	// Under the race detector every process would sleep for a second before it ends.
	if err := os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE")); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

func tinyScale() scale {
	return scale{hashed: 1 << 20, warmUp: 3, small: 40, stats: 100, reads: 100, lists: 1, fsyncs: 5, appends: 20, lines: 100, sustained: 1100,
		large: 3 << 20, file4K: 1 << 20, writes4K: 20, max: time.Minute,
		past: pastScale{few: 20, many: 1100, versions: 300, snapshots: 3, moments: 9}}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// noSync stands for sync(2), which would wait for everything that the machine writes.
func noSync(string) error { return nil }

// TestMeasure runs all small rows on the disk and all rows but the slowest on a served filesystem, with little work.
func TestMeasure(t *testing.T) {
	dir := t.TempDir()
	o := runOptions{dir: dir, rounds: 1, scale: tinyScale(), rates: true, trips: true, sync: noSync, look: time.Millisecond, log: quiet()}
	for targets, rows := range map[string]string{nameExt4: "", nameLoopback: "^(create-1|create-4|list-warm|append-open|large-write|stat-warm|list)$"} {
		o.targets, o.rows = []string{targets}, regexp.MustCompile(rows)
		r, err := measure(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range workloads() {
			for _, d := range w.rows {
				row, ok := r.Row(d.Name)
				if !o.rows.MatchString(d.Name) {
					continue
				}
				// These need root, a restart, or a past.
				needs := isHistory(d.Name) || d.Name == rowListCold || d.Name == rowLargeCold || targets == nameExt4 && (d.Name == rowLargeFirst || d.Name == rowTextFirst)
				v, has := row.Median(targets)
				if !ok || has == needs || has && v <= 0 {
					t.Errorf("%s on %s: %v, %v", d.Name, targets, v, has)
				}
			}
		}
		if len(r.Trips) == 0 || len(r.Trips[0].Counts) != 0 {
			t.Errorf("requests of %s: %+v, which counts none", targets, r.Trips)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestMeasureRounds: every round of every target is kept.
func TestMeasureRounds(t *testing.T) {
	o := runOptions{dir: t.TempDir(), rounds: 3, scale: tinyScale(), rates: true, targets: []string{nameExt4},
		rows: regexp.MustCompile("^(append-open|create-settled)$"), sync: noSync, look: time.Millisecond, log: quiet()}
	r, err := measure(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{rowAppendOpen, rowSustained, rowSettled} {
		row, ok := r.Row(name)
		if !ok || len(row.Values[nameExt4]) != 3 {
			t.Errorf("%s: %+v", name, row)
		}
	}
	if len(r.Rows) != 3 {
		t.Errorf("rows %+v", r.Rows)
	}
}

// TestServerEnds: a server that never mounts, one that fails and one that dies give errors, and nothing stays mounted.
func TestServerEnds(t *testing.T) {
	base := t.TempDir()
	s := &served{name: "failing", base: filepath.Join(base, "a"), mnt: filepath.Join(base, "a", "mnt"), argv: []string{"sh", "-c", "echo the reason >&2; exit 3"}, log: quiet()}
	if err := s.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "the reason") {
		t.Errorf("a server that fails: %v", err)
	}
	if err := s.Stop(); err == nil {
		t.Error("its exit status was lost")
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	reason := errors.New("enough")
	cancel(reason)
	s = &served{name: "idle", base: filepath.Join(base, "b"), mnt: filepath.Join(base, "b", "mnt"), argv: []string{"cat"}, log: quiet()}
	if err := s.Start(ctx); !errors.Is(err, reason) {
		t.Errorf("a server that never mounts: %v", err)
	}

	peer, err := newPeer(nameLoopback, filepath.Join(base, "c"), false, quiet())
	if err != nil {
		t.Fatal(err)
	}
	if err := peer.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(peer.Dir(), "kept"), []byte("x"), 0o600); err != nil {
		t.Error(err)
	}
	if again, err := peer.Restart(t.Context()); err != nil || !again {
		t.Errorf("restart: %v, %v", again, err)
	}
	if b, err := os.ReadFile(filepath.Join(peer.Dir(), "kept")); err != nil || string(b) != "x" {
		t.Errorf("after a restart: %q, %v", b, err)
	}
	if err := unix.Kill(peer.PID(), unix.SIGKILL); err != nil {
		t.Error(err)
	}
	if err := peer.Stop(); err == nil {
		t.Error("a killed server was stopped without an error")
	}
	if mounted(peer.mnt) {
		t.Error("a killed server's mount is left")
	}
}

// TestStopKills: a server that does not end by itself is killed, its connection aborted, and that is an error.
func TestStopKills(t *testing.T) {
	p, err := startProcess([]string{"sh", "-c", "trap '' TERM; echo " + readyWord + "; read forever"})
	if err != nil {
		t.Fatal(err)
	}
	if line := <-p.out.ch; line != readyWord {
		t.Fatalf("it said %q", line)
	}
	aborted := false
	if err := p.stop(0, func() { aborted = true }); err == nil || !aborted {
		t.Errorf("stopped with %v, aborted %v", err, aborted)
	}
}

// TestRunJobsFails: the error of one worker of many is the result, and none is left waiting.
func TestRunJobsFails(t *testing.T) {
	dir := t.TempDir()
	good := job{Op: "create", Dir: dir, Files: 1, Size: 1}
	for name, bad := range map[string]job{
		"while it prepares": {Op: "stat", Dir: filepath.Join(dir, "missing"), Files: 1, Size: 1, Ops: 1},
		"while it is timed": {Op: "create", Dir: filepath.Join(dir, "missing"), Files: 1, Size: 1},
	} {
		good.Dir = t.TempDir()
		if _, err := runJobs(t.Context(), []job{good, bad}, hooks{}); err == nil || !strings.Contains(err.Error(), "missing") {
			t.Errorf("a worker that fails %s: %v", name, err)
		}
	}
	hookErr := errors.New("hook")
	good.Dir = t.TempDir()
	if _, err := runJobs(t.Context(), []job{good}, hooks{warmed: func() error { return hookErr }}); !errors.Is(err, hookErr) {
		t.Errorf("a hook that fails: %v", err)
	}
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	for _, n := range []string{"a", "b"} {
		if err := os.WriteFile(filepath.Join(dir, n), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := find(t.Context(), dir, 2); err != nil {
		t.Error(err)
	}
	if err := find(t.Context(), dir, 3); err == nil {
		t.Error("a missing file was not seen")
	}
}

func TestWatchRSS(t *testing.T) {
	failed := errors.New("failed")
	peak, err := watchRSS(t.Context(), os.Getpid(), func(context.Context) error { return failed })
	if !errors.Is(err, failed) || peak == 0 {
		t.Errorf("peak %d, %v", peak, err)
	}
	if _, err := watchRSS(t.Context(), 1<<30, func(context.Context) error { return nil }); err == nil {
		t.Error("a process that does not exist was watched")
	}
}

// TestNotes: what distorts the figures is said.
func TestNotes(t *testing.T) {
	for disk, want := range map[string]string{"ext4 on /dev/x": "", "ext4 on /dev/x" + withoutJournal: "--image", "tmpfs on tmpfs": "the column ext4"} {
		text := strings.Join(notes(Machine{Disk: disk}, true), "\n")
		if !strings.Contains(text, want) || want == "" && (strings.Contains(text, "--image") || strings.Contains(text, "column")) {
			t.Errorf("on %s: %q", disk, text)
		}
	}
	if text := strings.Join(notes(Machine{}, false), "\n"); !strings.Contains(text, "root") {
		t.Errorf("without root: %q", text)
	}
}

func TestRequestLog(t *testing.T) {
	var r requestLog
	log := slog.New(&r)
	for _, line := range []string{`rx 2: LOOKUP n1  "x" p1`, `tx 2: OK`, `rx 4: LOOKUP n1  "y" p1`, "rx 5:", ""} {
		log.Debug(line)
	}
	if got := r.counts(); len(got) != 1 || got["LOOKUP"] != 2 {
		t.Errorf("counted %v", got)
	}
}
