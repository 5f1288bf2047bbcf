package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
)

// runOptions say what is measured.
type runOptions struct {
	dir      string
	holdfast string // the program
	rows     *regexp.Regexp
	targets  []string
	rounds   int
	quick    bool
	rates    bool
	trips    bool
	image    int64 // bytes of a fresh ext4 to measure on; 0: measure on what is there
	scale    scale
	root     bool                   // the kernel's caches can be dropped
	sync     func(dir string) error // syncToDisk
	look     time.Duration          // quietEvery
	profile  string                 // folder for Holdfast's CPU profiles; empty: none
	log      *slog.Logger
}

func runCommand(c *cli.Context) error {
	o := runOptions{dir: c.String("dir"), rounds: c.Int("rounds"), quick: c.Bool("quick"), rates: !c.Bool("only-trips"),
		trips: !c.Bool("no-trips"), targets: strings.Split(c.String("targets"), ","), root: os.Geteuid() == 0, scale: fullScale(), sync: syncToDisk, look: quietEvery, log: logger()}
	var err error
	if o.rows, err = regexp.Compile(c.String("rows")); err != nil {
		return fmt.Errorf("--rows: %w", err)
	}
	for _, name := range o.targets {
		if !slices.Contains(targetNames(), name) {
			return fmt.Errorf("--targets: there is no target %q, only %s", name, strings.Join(targetNames(), ", "))
		}
	}
	if o.rounds == 0 {
		o.rounds = defaultRounds
		if o.quick {
			o.rounds = 1
		}
	}
	if o.quick {
		o.scale = quickScale()
	}
	if o.rounds < 1 {
		return errors.New("--rounds must be 1 at least")
	}
	if o.image = c.Int64("image") << 30; o.image < 0 {
		return errors.New("--image must not be negative")
	}
	if slices.Contains(o.targets, nameHoldfast) {
		if o.holdfast, err = holdfastProgram(c); err != nil {
			return err
		}
	}
	if o.profile = c.String("profile"); o.profile != "" {
		if o.profile, err = filepath.Abs(o.profile); err != nil {
			return fmt.Errorf("--profile: %w", err)
		}
		if err := os.MkdirAll(o.profile, 0o755); err != nil {
			return fmt.Errorf("--profile: %w", err)
		}
	}
	r, err := measure(c.Context, o)
	if err != nil {
		return err
	}
	if path := c.String("json"); path != "" {
		if err := writeResult(path, r); err != nil {
			return err
		}
	}
	if page := c.String("markdown"); page != "" {
		if err := replaceFigures(page, r); err != nil {
			return err
		}
	}
	return report(os.Stdout, r, false)
}

// measure does everything that o asks for, in a scratch folder that it removes.
func measure(ctx context.Context, o runOptions) (r *Result, err error) {
	folder, err := scratch(o.dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	base := folder
	if o.image > 0 {
		unmount, e := mountImage(ctx, folder, o.image)
		if e != nil {
			return nil, e
		}
		defer func() { err = errors.Join(err, unmount()) }()
		base = filepath.Join(folder, imageMount)
	}
	// What the largest workload takes at most: two targets never exist at the same time.
	if err := checkFree(base, 4*o.scale.large+2<<30); err != nil {
		return nil, err
	}
	r = &Result{Format: resultFormat, Time: time.Now().UTC().Truncate(time.Second), Quick: o.quick, Rounds: o.rounds}
	r.Commit, r.Modified = sourceState()
	if r.Machine, err = lookAtMachine(base); err != nil {
		return nil, err
	}
	r.Notes = notes(r.Machine, o.root)
	if o.rates {
		r.SHA256 = sha256Rate(o.scale.hashed)
		for i, w := range workloads() {
			if !slices.ContainsFunc(w.rows, func(d rowDef) bool { return o.rows.MatchString(d.Name) }) {
				continue
			}
			rows, err := measureRates(ctx, o, base, w, uint64(i+1)*seedStride)
			if err != nil {
				return nil, err
			}
			r.Rows = append(r.Rows, rows...)
		}
	}
	if o.trips {
		if r.Trips, err = measureTrips(ctx, o, base); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// notes are what a reader of the figures must know.
func notes(m Machine, root bool) []string {
	var n []string
	if !strings.HasPrefix(m.Disk, "ext4 ") {
		n = append(n, "the column ext4 is what lies below the scratch folder: "+m.Disk)
	}
	if strings.HasSuffix(m.Disk, withoutJournal) {
		n = append(n, "an ext4 without a journal skips the inodes of files that were removed in the last minutes, which makes creating slow there and below the loopback; "+
			"--image measures on a fresh one with a journal")
	}
	if root {
		n = append(n, "large-read-first: ext4 and the floor had all cached pages dropped, the loopback and Holdfast were started anew with the disk's pages still cached")
	} else {
		n = append(n, "not run by root: the kernel's caches could not be dropped, so rows that need that are empty")
	}
	return n
}

// measureRates does one workload: all targets in turn in the first round, all in the second, and so on; each round begins with another.
func measureRates(ctx context.Context, o runOptions, base string, w workload, seed uint64) ([]RowResult, error) {
	var rows []RowResult
	for _, d := range w.rows {
		rows = append(rows, RowResult{Name: d.Name, What: d.What, Unit: d.Unit, Values: map[string][]float64{}})
	}
	for round := range o.rounds {
		for i := range o.targets {
			name := o.targets[(i+round)%len(o.targets)]
			t, err := o.turn(base, name, w.rows[0].Name, false, seed+uint64(round))
			if err != nil {
				return nil, err
			}
			values, err := takeTurn(ctx, t, w)
			if err != nil {
				return nil, fmt.Errorf("%s on %s: %w", w.rows[0].Name, name, err)
			}
			for k := range rows {
				if v, ok := values[rows[k].Name]; ok {
					rows[k].Values[name] = append(rows[k].Values[name], v)
					o.log.Info("measured", "row", rows[k].Name, "target", name, "round", round+1, "value", int(v), "unit", rows[k].Unit)
				}
			}
		}
	}
	return rows, nil
}

// takeTurn starts the target, runs the workload and removes all of it again.
func takeTurn(ctx context.Context, t *turn, w workload) (values map[string]float64, err error) {
	defer func() { err = errors.Join(err, t.target.Stop()) }()
	if err := t.begin(ctx); err != nil {
		return nil, err
	}
	return w.run(ctx, t)
}

// turn makes a turn of the named target, which counts its requests when count is set; what names it in profiles.
func (o runOptions) turn(base, name, what string, count bool, seed uint64) (*turn, error) {
	t := &turn{scale: o.scale, seed: seed, log: o.log, root: o.root, sync: o.sync, look: o.look}
	dir := filepath.Join(base, name)
	switch name {
	case nameExt4:
		t.target = &plain{name: name, base: dir}
	case nameLoopback, nameFloor:
		s, err := newPeer(name, dir, count, o.log)
		if err != nil {
			return nil, err
		}
		t.target = s
	default:
		s := newHoldfast(dir, o.holdfast, o.log)
		if o.profile != "" {
			s.profile(filepath.Join(o.profile, fmt.Sprintf("%s-%d", what, seed%seedStride)))
		}
		t.target = s
	}
	return t, nil
}

// measureTrips counts the requests of each operation, once: counts do not vary as times do.
func measureTrips(ctx context.Context, o runOptions, base string) ([]Trip, error) {
	var trips []Trip
	for i, d := range tripDefs() {
		if !o.rows.MatchString(d.name) {
			continue
		}
		tr := Trip{Name: d.name, What: d.what, Counts: map[string]TripCounts{}}
		for _, name := range o.targets {
			if name == nameExt4 || name == nameLoopback {
				continue // they do not count
			}
			t, err := o.turn(base, name, "trips-"+d.name, true, uint64(1000+i)*seedStride)
			if err != nil {
				return nil, err
			}
			c, ok, err := tripTurn(ctx, d, t)
			if err != nil {
				return nil, fmt.Errorf("count the requests of %s on %s: %w", d.name, name, err)
			}
			if ok {
				tr.Counts[name] = c
			}
		}
		trips = append(trips, tr)
	}
	return trips, nil
}

func tripTurn(ctx context.Context, d tripDef, t *turn) (c TripCounts, ok bool, err error) {
	defer func() { err = errors.Join(err, t.target.Stop()) }()
	if err := t.begin(ctx); err != nil {
		return c, false, err
	}
	return countTrips(ctx, d, t)
}
