package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"holdfast/fs/floor"
	"holdfast/fs/loopback"
)

// countWord makes the floor count its requests, which slows it down.
const countWord = "count"

// newPeer is the loopback or the floor, served by this same program in a process of its own. Only a floor that is told to counts.
func newPeer(name, base string, count bool, log *slog.Logger) (*served, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	s := &served{name: name, base: base, mnt: filepath.Join(base, "mnt"), log: log, speaks: true}
	if name == nameFloor {
		s.argv = []string{self, "serve", name, s.mnt}
		if count {
			s.argv = append(s.argv, countWord)
			s.counters = askCounters
		}
		return s, nil
	}
	root := filepath.Join(base, "root")
	s.argv = []string{self, "serve", name, root, s.mnt}
	s.keeps = true
	s.make = func(context.Context, *served) error { return os.MkdirAll(root, 0o755) }
	return s, nil
}

// askCounters asks a peer of this program for its counters: a line goes in, a line of JSON comes out.
func askCounters(ctx context.Context, s *served) (map[string]uint64, error) {
	if _, err := io.WriteString(s.proc.in, "counters\n"); err != nil {
		return nil, fmt.Errorf("ask %s for its counters: %w", s.name, err)
	}
	timer := time.NewTimer(10 * time.Second)
	defer timer.Stop()
	select {
	case line := <-s.proc.out.ch:
		return parseCounters([]byte(line))
	case <-timer.C:
		return nil, fmt.Errorf("ask %s for its counters: no answer", s.name)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func parseCounters(b []byte) (map[string]uint64, error) {
	var m map[string]uint64
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("counters: %w", err)
	}
	return m, nil
}

// serveCommand serves the loopback or the floor until SIGTERM or the end of standard input, which says that the benchmark has died.
func serveCommand(c *cli.Context) error {
	ctx, stop := signal.NotifyContext(c.Context, unix.SIGTERM)
	defer stop()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a := c.Args().Slice()
	switch {
	case len(a) == 3 && a[0] == nameLoopback:
		go answer(cancel, func() map[string]uint64 { return nil })
		return loopback.Serve(ctx, a[1], a[2], sayReady)
	case len(a) == 2 && a[0] == nameFloor:
		go answer(cancel, func() map[string]uint64 { return nil })
		return serveFloor(ctx, a[1], false, slog.New(slog.DiscardHandler))
	case len(a) == 3 && a[0] == nameFloor && a[2] == countWord:
		var r requestLog
		go answer(cancel, r.counts)
		return serveFloor(ctx, a[1], true, slog.New(&r))
	}
	return errors.New("serve wants loopback ROOT MOUNT or floor MOUNT [count]")
}

func serveFloor(ctx context.Context, mnt string, debug bool, log *slog.Logger) error {
	s, err := floor.Mount(mnt, debug, log)
	if err != nil {
		return fmt.Errorf("serve the floor: %w", err)
	}
	sayReady()
	end := context.AfterFunc(ctx, func() {
		if err := s.Unmount(false); err != nil {
			fmt.Fprintln(os.Stderr, "unmount the floor:", err)
		}
	})
	defer end()
	s.Wait()
	return nil
}

// sayReady needs no look at errors: who does not hear it ends this process.
func sayReady() { fmt.Println(readyWord) }

// requestLog counts the requests in the debug log of the protocol library, whose lines for what it receives read "rx 12: LOOKUP n1 ...".
type requestLog struct {
	mu   sync.Mutex
	seen map[string]uint64
}

func (r *requestLog) Enabled(context.Context, slog.Level) bool { return true }
func (r *requestLog) WithAttrs([]slog.Attr) slog.Handler       { return r }
func (r *requestLog) WithGroup(string) slog.Handler            { return r }

func (r *requestLog) Handle(_ context.Context, rec slog.Record) error {
	op, ok := requestName(rec.Message)
	if !ok {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen == nil {
		r.seen = map[string]uint64{}
	}
	r.seen[op]++
	return nil
}

func requestName(line string) (string, bool) {
	f := strings.Fields(line)
	if len(f) < 3 || f[0] != "rx" {
		return "", false
	}
	return f[2], true
}

func (r *requestLog) counts() map[string]uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.seen)
}

// answer writes the counters for each line that comes in; at the end of input it calls over.
func answer(over func(), counters func() map[string]uint64) {
	defer over()
	enc := json.NewEncoder(os.Stdout)
	for s := bufio.NewScanner(os.Stdin); s.Scan(); {
		if err := enc.Encode(counters()); err != nil {
			return
		}
	}
}

// newHoldfast is Holdfast in hybrid mode: the real program, served in the foreground.
func newHoldfast(base, program string, log *slog.Logger) *served {
	store := filepath.Join(base, "store")
	s := &served{name: nameHoldfast, base: base, mnt: filepath.Join(base, "mnt"), log: log, keeps: true}
	s.argv = []string{program, "mount", "--foreground", store, s.mnt}
	s.make = func(ctx context.Context, _ *served) error { return output(ctx, nil, program, "init", store) }
	s.counters = func(ctx context.Context, _ *served) (map[string]uint64, error) {
		var st struct {
			Requests map[string]uint64 `json:"requests"`
		}
		err := output(ctx, &st, program, "status", "--json", store)
		return st.Requests, err
	}
	return s
}

// profile has Holdfast write a CPU profile of each of its processes: prefix.pprof for the first, prefix-restart1.pprof for the next, and so on.
func (s *served) profile(prefix string) {
	starts := 0
	plain := s.argv
	s.before = func() {
		name := prefix
		if starts > 0 {
			name = fmt.Sprintf("%s-restart%d", prefix, starts)
		}
		starts++
		s.argv = slices.Insert(slices.Clone(plain), 2, "-o", "cpuprofile="+name+".pprof")
	}
}

// output runs a program to its end and reads its output as JSON into v, unless v is nil.
func output(ctx context.Context, v any, argv ...string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return fmt.Errorf("%s %s: %w: %s", filepath.Base(argv[0]), argv[1], err, exit.Stderr)
		}
		return fmt.Errorf("%s %s: %w", filepath.Base(argv[0]), argv[1], err)
	}
	if v == nil {
		return nil
	}
	if err := json.Unmarshal(out, v); err != nil {
		return fmt.Errorf("%s %s: %w", filepath.Base(argv[0]), argv[1], err)
	}
	return nil
}
