// Package drill proves that damage is found, healed and never served. It makes a small store, or copies a slice of a real one, in a scratch place, damages the copy in every way that it
// knows, one way after the other, and compares what the store then says with a plain model of what it held.
//
// The real store is only read. A drill is repeatable: the number of an exercise and the seed decide everything about it.
package drill

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"holdfast/internal/volume"
)

// ErrFailed: something was served wrong, was not found, or was not healed although its level promises it.
var ErrFailed = errors.New("the drill found a hole")

const (
	defaultDamages = 300
	defaultBytes   = 6 << 20
	defaultFiles   = 60
	// maxProblems bounds the problems that a report lists; all are counted.
	maxProblems = 200
)

// Options say what to drill.
type Options struct {
	Dir      string         // the scratch place is made below it; default os.TempDir()
	Source   *volume.Volume // a slice of it is copied; nil: a store that is made from the seed
	MaxBytes int64          // of the slice; default 6 MiB
	MaxFiles int            // of the slice; default 60
	Damages  int            // default 300; somewhat more may be made, so that all exercises are whole
	Seed     uint64
	Only     int // repeat the exercise of this number alone; 0: all
	Workers  int // default GOMAXPROCS
	Keep     bool
	Log      *slog.Logger // of the scratch stores; default: discards
	Progress func(done, of int)
	Problem  func(Problem) // called with each as it is found
}

// Row counts what became of the damages of one kind, storage and level.
type Row struct {
	Storage string `json:"storage"`
	Kind    string `json:"kind"`
	Level   string `json:"level"` // "all" where what was damaged belongs to files of all levels
	Counts
}

// Counts are numbers of damages.
type Counts struct {
	Damages  int `json:"damages"`
	Found    int `json:"found"`    // reported by a start, a read or a check, or made up for by a start
	Served   int `json:"served"`   // something wrong was read or listed
	Healed   int `json:"healed"`   // everything was as before in the end
	Promised int `json:"promised"` // to heal, by level and kind
	Broken   int `json:"broken"`   // promised, and not healed
}

func (c *Counts) add(o *Counts) {
	c.Damages += o.Damages
	c.Found += o.Found
	c.Served += o.Served
	c.Healed += o.Healed
	c.Promised += o.Promised
	c.Broken += o.Broken
}

// Problem is a damage that was not dealt with as it should be.
type Problem struct {
	Number int    `json:"number"` // of the exercise: Options.Only repeats it
	What   string `json:"what"`   // "served", "not found", "not healed", "false alarm"
	Damage string `json:"damage"`
	Detail string `json:"detail"`
}

// Report is what a drill found out.
type Report struct {
	Seed     uint64        `json:"seed"`
	Source   string        `json:"source"` // the store that was copied; "" when it was made
	Files    int           `json:"files"`  // in each scratch store
	Bytes    int64         `json:"bytes"`
	Took     time.Duration `json:"took_ns"`
	Total    Counts        `json:"total"`
	Rows     []Row         `json:"rows"` // in order of kind, storage, level
	Alarms   int           `json:"false_alarms"`
	Problems []Problem     `json:"problems"`
	// CheckMedian is how long the check of a whole scratch store took that found and healed the damage; HealMedian how long a single heal took.
	CheckMedian time.Duration `json:"check_median_ns"`
	HealMedian  time.Duration `json:"heal_median_ns"`
	Dir         string        `json:"dir,omitempty"` // when it was kept
}

// Err is nil when all went as it must, else ErrFailed with the first problems.
func (r *Report) Err() error {
	t := &r.Total
	if t.Served == 0 && t.Found == t.Damages && t.Broken == 0 && r.Alarms == 0 {
		return nil
	}
	return fmt.Errorf("%w: of %d damages %d were not found, %d served something wrong, %d were not healed as promised; %d false alarms; --seed %d repeats it",
		ErrFailed, t.Damages, t.Damages-t.Found, t.Served, t.Broken, r.Alarms, r.Seed)
}

// Run makes a drill. Whatever it finds is in the report; an error says that the drill could not be made. The scratch place is gone afterwards, unless o.Keep is set.
func Run(ctx context.Context, o Options) (rep Report, err error) {
	began := time.Now()
	if o.Dir == "" {
		o.Dir = os.TempDir()
	}
	if o.MaxBytes <= 0 {
		o.MaxBytes = defaultBytes
	}
	if o.MaxFiles <= 0 {
		o.MaxFiles = defaultFiles
	}
	if o.Damages <= 0 {
		o.Damages = defaultDamages
	}
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	if o.Seed == 0 {
		o.Seed = new(maphash.Hash).Sum64()>>16 | 1
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	rep.Seed = o.Seed
	dir, err := os.MkdirTemp(o.Dir, "holdfast-drill-*")
	if err != nil {
		return rep, fmt.Errorf("make a scratch place for the drill: %w", err)
	}
	defer func() {
		if o.Keep {
			rep.Dir = dir
			return
		}
		if rmErr := os.RemoveAll(dir); rmErr != nil && err == nil {
			err = fmt.Errorf("remove the scratch place of the drill: %w", rmErr)
		}
	}()
	d := &drill{o: o, dir: dir, list: exercises()}
	if err := d.build(ctx, &rep); err != nil {
		return rep, err
	}
	err = d.all(ctx)
	d.summarize(&rep)
	rep.Took = time.Since(began)
	return rep, err
}

// drill is a drill in progress.
type drill struct {
	o         Options
	dir       string
	list      []exercise // that are repeated in turn
	templates map[string]*template

	mu       sync.Mutex
	next     int // number of the next exercise
	done     int // damages
	planned  int
	rows     map[rowKey]*Counts
	alarms   int
	problems []Problem
	checks   []time.Duration
	heals    []time.Duration
}

type rowKey struct{ kind, storage, level string }

// build makes the stores that are copied and damaged, one for each storage.
func (d *drill) build(ctx context.Context, rep *Report) error {
	d.templates = make(map[string]*template)
	d.rows = make(map[rowKey]*Counts)
	plan, err := d.plan(ctx)
	if err != nil {
		return err
	}
	if d.o.Source != nil {
		rep.Source = d.o.Source.Dir()
	}
	for _, storage := range storages() {
		t, err := buildTemplate(ctx, filepath.Join(d.dir, storage), storage, plan, d.o.Log)
		if err != nil {
			return fmt.Errorf("make a scratch store with the storage %s: %w", storage, err)
		}
		d.templates[storage] = t
		rep.Files, rep.Bytes = len(t.model.files), t.model.bytes
	}
	return nil
}

func storages() []string {
	return []string{volume.StorageFile, volume.StorageHybrid, volume.StorageDatabase}
}

// all makes the exercises, some at a time, each worker in scratch stores of its own.
func (d *drill) all(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var workers sync.WaitGroup
	for i := range d.o.Workers {
		workers.Go(func() {
			if err := d.worker(ctx, i); err != nil {
				stop(err)
			}
		})
	}
	workers.Wait()
	return context.Cause(ctx)
}

func (d *drill) worker(ctx context.Context, i int) error {
	places := make(map[string]*place)
	for _, storage := range storages() {
		places[storage] = &place{dir: filepath.Join(d.dir, fmt.Sprintf("work%d", i), storage), template: d.templates[storage]}
	}
	for {
		n, ok := d.take()
		if !ok {
			return nil
		}
		x := d.list[(n-1)%len(d.list)]
		r := &run{number: n, exercise: x, place: places[x.storage], rnd: random(d.o.Seed, uint64(n)), log: d.o.Log}
		if err := r.do(ctx); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("exercise %d of seed %d (%s): %w", n, d.o.Seed, x, err)
		}
		d.note(r)
	}
}

// take returns the number of the next exercise.
func (d *drill) take() (int, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.o.Only > 0 {
		d.next++
		return d.o.Only, d.next == 1
	}
	if d.planned >= d.o.Damages {
		return 0, false
	}
	d.planned += d.list[d.next%len(d.list)].damages()
	d.next++
	return d.next, true
}

// note counts what became of an exercise.
func (d *drill) note(r *run) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range r.injected {
		in := &r.injected[i]
		key := rowKey{r.kind.name, r.storage, in.level}
		c := d.rows[key]
		if c == nil {
			c = new(Counts)
			d.rows[key] = c
		}
		c.add(&in.counts)
	}
	d.alarms += r.alarms
	d.problems = append(d.problems, r.problems...)
	if d.o.Problem != nil {
		for _, p := range r.problems {
			d.o.Problem(p)
		}
	}
	d.checks = append(d.checks, r.checkTook)
	d.heals = append(d.heals, r.healsTook...)
	d.done += len(r.injected)
	if d.o.Progress != nil {
		d.o.Progress(d.done, d.o.Damages)
	}
}

func (d *drill) summarize(rep *Report) {
	for key, c := range d.rows {
		rep.Rows = append(rep.Rows, Row{Storage: key.storage, Kind: key.kind, Level: key.level, Counts: *c})
		rep.Total.add(c)
	}
	order := make(map[string]int)
	for i, k := range kinds() {
		order[k.name] = i
	}
	slices.SortFunc(rep.Rows, func(a, b Row) int {
		if n := order[a.Kind] - order[b.Kind]; n != 0 {
			return n
		}
		if n := strings.Compare(a.Storage, b.Storage); n != 0 {
			return n
		}
		return strings.Compare(a.Level, b.Level)
	})
	slices.SortFunc(d.problems, func(a, b Problem) int { return a.Number - b.Number })
	rep.Problems = d.problems[:min(len(d.problems), maxProblems)]
	rep.Alarms = d.alarms
	rep.CheckMedian, rep.HealMedian = median(d.checks), median(d.heals)
}

func median(list []time.Duration) time.Duration {
	if len(list) == 0 {
		return 0
	}
	list = slices.Clone(list)
	slices.Sort(list)
	return list[len(list)/2]
}
