package integrity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/blobstore"
	"holdfast/catalog"
	"holdfast/internal/patience"
	"holdfast/internal/volume"
)

const (
	defaultInterval = 7 * 24 * time.Hour
	defaultSlice    = 5 * time.Minute
	defaultAtStart  = 20_000
	defaultDrain    = 5 * time.Second
	// workNice is the niceness of the background work's threads: programs that wait come first.
	workNice = 19
	// maxQueue bounds the blobs that wait for parity or a second copy; what does not fit is found by the scrub.
	maxQueue = 4096
	// lostAgain is how long a blob that could not be healed is not tried again by reads.
	lostAgain = 30 * time.Second
	// maxPaths bounds the paths that are looked up of one blob.
	maxPaths = 100
)

// Options say what an Engine looks after.
type Options struct {
	Volume *volume.Volume
	// Sources returns the backups there are now, in the order in which they are asked. It is called at each heal: places come and go. nil: there are none.
	Sources func() []Source
	// Restore makes a path what it was after a record, as snapshots.Restore does; with dryRun it only finds out whether it can. nil: there are no rollbacks.
	Restore func(ctx context.Context, path string, at catalog.Seq, dryRun bool) error
	Log     *slog.Logger     // default: the volume's
	Now     func() time.Time // default: time.Now
	// Interval is within which everything is to be scrubbed once, Slice how often the scrub does a part of it; defaults a week and five minutes.
	Interval time.Duration
	Slice    time.Duration
	// Patience is how long a source may give no sign of life before it counts as failed. Default 30 seconds.
	Patience time.Duration
	// Drain is how long Close waits for parity and second copies that are still to be made; what is left is made after the next Start. Default 5 seconds; negative: not at all.
	Drain time.Duration
	// CompareAtStart: a catalog.db that was not closed cleanly is compared with the journal before New returns when the store has at most so many records, else as soon as
	// Start was called. Default 20,000; negative: only the scrub compares.
	CompareAtStart int64
}

// Engine heals, checks and scrubs one volume. Its methods may be called concurrently. Close comes before the volume's Close.
type Engine struct {
	opt     Options
	vol     *volume.Volume
	cat     *catalog.Catalog
	blobs   blobstore.Store
	guarded blobstore.Guarded
	log     *slog.Logger
	now     func() time.Time
	state   *state
	ring    *ring
	scrub   *Scrubber

	run    string // begins the ids of the checks
	checks atomic.Uint64

	ctx     context.Context // ends with Close
	stop    context.CancelFunc
	workers sync.WaitGroup

	rowsTurn sync.Mutex // guards the next two
	rowsSeen time.Time  // when a heal last looked at the structure of blobs.db
	rowsMade bool       // and whether it was made anew then

	mu       sync.Mutex
	closed   bool
	started  bool
	sources  string                     // the names of those that there were last
	silent   map[string]*patience.Place // calls to sources, by their names
	flights  map[blobstore.Hash]*flight // heals in progress
	lost     map[blobstore.Hash]time.Time
	queue    []task
	queued   map[task]bool
	doing    taskKind                // what work does; taskNone: nothing
	hopeless map[blobstore.Hash]bool // no single flipped bit explains what is stored of them
	overflow bool                    // something did not fit into queue
	wake     chan struct{}
	turned   chan struct{} // has a token when work has done a task
	degraded error
	waiting  map[string]bool // what is listed as damaged

	catalogTurn sync.Mutex // held by who makes catalog.db anew
}

// task is background work on one blob.
type task struct {
	kind taskKind
	ref  blobstore.Ref
}

type taskKind int

const (
	taskNone     taskKind = iota
	taskLevel             // parity, for blobs of advanced and critical files
	taskCritical          // and a second copy
	taskLost              // try harder than a read can, then roll back what may be
	taskLook              // somebody has touched its files
	taskCatalog           // catalog.db is damaged; of no blob
	taskCompare           // catalog.db may lack rows; of no blob
	taskAgain             // what is listed as damaged may be healed now
)

// flight is a heal that is under way, whoever asked for it.
type flight struct {
	done chan struct{}
	err  error
}

// New returns an Engine for a volume, and makes it the volume's guard: what reads find damaged is healed from then on. The caller closes it, before the
// volume. Without Start there is no background work.
func New(ctx context.Context, opt Options) (*Engine, error) {
	if opt.Log == nil {
		opt.Log = opt.Volume.Logger()
	}
	if opt.Now == nil {
		opt.Now = time.Now
	}
	if opt.Interval <= 0 {
		opt.Interval = defaultInterval
	}
	if opt.Slice <= 0 {
		opt.Slice = defaultSlice
	}
	if opt.Patience <= 0 {
		opt.Patience = patience.Default
	}
	if opt.Drain == 0 {
		opt.Drain = defaultDrain
	}
	if opt.CompareAtStart == 0 {
		opt.CompareAtStart = defaultAtStart
	}
	guarded, ok := opt.Volume.Blobs().(blobstore.Guarded)
	if !ok {
		return nil, fmt.Errorf("%w: this blob store cannot be inspected", catalog.ErrInvalid)
	}
	e := &Engine{
		opt: opt, vol: opt.Volume, cat: opt.Volume.Catalog(), blobs: opt.Volume.Blobs(), guarded: guarded, log: opt.Log, now: opt.Now,
		flights: make(map[blobstore.Hash]*flight), lost: make(map[blobstore.Hash]time.Time), queued: make(map[task]bool), hopeless: make(map[blobstore.Hash]bool), waiting: make(map[string]bool), silent: make(map[string]*patience.Place),
		wake: make(chan struct{}, 1), turned: make(chan struct{}, 1), ring: newRing(opt.Now()), run: strconv.FormatInt(opt.Now().UnixNano(), 36),
	}
	var aside error
	var err error
	if e.state, aside, err = openState(ctx, e.vol.Dir(), e.vol.ReadOnly(), e.now()); err != nil {
		return nil, err
	}
	if aside != nil {
		e.log.Warn("the record of earlier failures could not be read; it is in the quarantine, and a new one is begun", "error", aside)
	}
	e.ctx, e.stop = context.WithCancel(context.WithoutCancel(ctx))
	if e.scrub, err = newScrubber(ctx, e); err != nil {
		return nil, errors.Join(err, e.state.close())
	}
	if err := e.loadWaiting(ctx); err != nil {
		return nil, errors.Join(err, e.state.close())
	}
	e.vol.SetGuard(e)
	if e.cat.Damaged() {
		e.CatalogDamaged(nil)
	}
	e.startedAnew(ctx)
	if err := e.compareAtStart(ctx); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
}

// Start begins the background work: parity and second copies after closes, the scrub, and the watch on the store's directory. It returns at once. In a volume that is
// open read-only there is none.
func (e *Engine) Start() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.started || e.closed || e.vol.ReadOnly() {
		return
	}
	e.started = true
	e.beginOwing()
	e.workers.Go(func() { e.work(e.ctx) })
	e.workers.Go(func() { e.scrub.loop(e.ctx) })
	e.workers.Go(func() {
		if err := e.watch(e.ctx); err != nil && e.ctx.Err() == nil {
			e.log.Warn("foreign changes of the store's directory are found by the scrub only", "error", err)
		}
	})
}

// Close ends the background work and the heals that are under way, after which damage is an error for the volume. It is to be called once.
func (e *Engine) Close() error {
	e.drain()
	e.vol.SetGuard(nil)
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	e.stop()
	e.ring.end()
	e.workers.Wait()
	e.endOwing()
	return e.state.close()
}

func errEnded() error { return fmt.Errorf("integrity: %w", catalog.ErrClosed) }

// Scrubber is the engine's scrubber.
func (e *Engine) Scrubber() *Scrubber { return e.scrub }

// result begins a Result.
func (e *Engine) result(t CheckType, dataID, path string) Result {
	return Result{CheckID: e.run + "-" + strconv.FormatUint(e.checks.Add(1), 10), DataID: dataID, Path: path, Type: t, Timestamp: e.now().UTC(), Passed: true}
}

// note records a failure. That it cannot be recorded changes nothing else.
func (e *Engine) note(ctx context.Context, r *Result) {
	if err := e.state.addFailure(context.WithoutCancel(ctx), r); err != nil {
		e.log.Warn("a failure cannot be recorded", "data", r.DataID, "error", err)
	}
}

// add queues background work.
func (e *Engine) add(kind taskKind, refs ...blobstore.Ref) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, ref := range refs {
		t := task{kind, ref}
		switch {
		case e.closed || e.queued[t]:
		case len(e.queue) >= maxQueue:
			e.overflow = true
		default:
			e.queue = append(e.queue, t)
			e.queued[t] = true
		}
	}
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// Stored implements volume.Guard.
func (e *Engine) Stored(level string, refs []blobstore.Ref) {
	if level == catalog.LevelCritical {
		e.add(taskCritical, refs...)
		return
	}
	for _, ref := range refs {
		if ref.Size > blobstore.MaxSmall {
			e.add(taskLevel, ref)
		}
	}
}

// SecondCopy implements volume.Guard.
func (e *Engine) SecondCopy(err error) {
	e.mu.Lock()
	was := e.degraded
	e.degraded = err
	e.mu.Unlock()
	switch {
	case err != nil && was == nil:
		e.tell(EventDegraded, "", "", "the store is degraded: "+err.Error())
	case err == nil && was != nil:
		e.tell(EventDegraded, "", "", "the place of the second copies works again; what is missing is copied now")
		e.scrub.resilver()
	}
}

// record remembers an attempt.
func (e *Engine) record(ctx context.Context, a *Attempt) {
	if err := e.state.addAttempt(context.WithoutCancel(ctx), a); err != nil {
		e.log.Warn("an attempt at recovery cannot be recorded", "data", a.DataID, "error", err)
	}
}

// work does what is queued, until ctx ends.
func (e *Engine) work(ctx context.Context) {
	beNice(e.log)
	if err := e.lookForSources(ctx); err != nil && ctx.Err() == nil {
		e.log.Warn("what is damaged is not tried again", "error", err)
	}
	for {
		t, ok := e.next()
		if !ok {
			select {
			case <-ctx.Done():
				return
			case <-e.wake:
				continue
			}
		}
		if ctx.Err() != nil {
			return
		}
		if err := e.do(ctx, t); err != nil && ctx.Err() == nil {
			e.log.Warn("background work on a blob failed; the scrub tries again", "blob", t.ref.Hash, "error", err)
			if t.kind.promised() {
				e.scrub.lacks()
			}
		}
	}
}

func (e *Engine) do(ctx context.Context, t task) error {
	if t.kind == taskCatalog {
		return e.mendCatalog(ctx, "a read met a row or page that is damaged")
	}
	if t.kind == taskCompare {
		return e.compareCatalog(ctx, e.pace(fullActive, 1))
	}
	if err := e.cat.Pin(ctx, t.ref.Hash); err != nil {
		return err
	}
	defer e.cat.Unpin(t.ref.Hash)
	if _, ok, err := e.cat.HasBlob(ctx, t.ref.Hash); err != nil || !ok {
		return err
	}
	switch t.kind {
	case taskLevel, taskCritical:
		level := catalog.LevelAdvanced
		if t.kind == taskCritical {
			level = catalog.LevelCritical
		}
		_, err := e.uphold(ctx, t.ref, level)
		return err
	case taskLost:
		return e.tryHard(ctx, t.ref)
	case taskAgain:
		if err := e.heal(ctx, t.ref, true); !errors.Is(err, ErrNotHealed) {
			return err
		}
		return nil
	case taskLook:
		found, err := e.guarded.Inspect(ctx, t.ref)
		if cause := damageOf(t.ref, found, err); cause != nil {
			e.tell(EventForeign, t.ref.Hash.String(), first(e.paths(ctx, t.ref.Hash)), "a file of the store was changed by something else: "+cause.Error())
			err = e.Heal(ctx, t.ref, cause)
		}
		return err
	}
	return nil
}

// uphold makes what a level promises of a blob: the level in its sidecar, parity, a second copy. It returns how much was made.
func (e *Engine) uphold(ctx context.Context, ref blobstore.Ref, level string) (made int64, err error) {
	if level == catalog.LevelBasic {
		return 0, nil
	}
	if _, ok := e.cat.PendingBody(ref.Hash); !ok {
		if sc, err := e.blobs.Sidecar(ctx, ref.Hash); err == nil && rank(sc.IntegrityLevel) < rank(level) {
			if err := e.guarded.SetLevel(ctx, ref.Hash, level); err != nil && !isDamage(err) {
				return 0, err
			}
		}
	}
	if ref.Size > blobstore.MaxSmall {
		ok, err := e.guarded.Protect(ctx, ref)
		if isDamage(err) {
			if err = e.Heal(ctx, ref, err); err == nil {
				ok, err = e.guarded.Protect(ctx, ref)
			}
		}
		if err != nil {
			return made, err
		}
		if ok {
			made++
		}
	}
	if level != catalog.LevelCritical {
		return made, nil
	}
	ok, err := e.vol.Second().Has(ctx, ref)
	if err == nil && !ok {
		if err = e.vol.CopySecond(ctx, ref); isDamage(err) {
			if err = e.Heal(ctx, ref, err); err == nil {
				err = e.vol.CopySecond(ctx, ref)
			}
		}
		if err == nil {
			made++
		}
	}
	if err == nil || errors.Is(err, volume.ErrSecond) {
		e.SecondCopy(err)
	}
	return made, err
}

func rank(level string) int {
	switch level {
	case catalog.LevelCritical:
		return 2
	case catalog.LevelAdvanced:
		return 1
	}
	return 0
}

func isDamage(err error) bool {
	return errors.Is(err, blobstore.ErrDamaged) || errors.Is(err, blobstore.ErrNotFound)
}

// beNice lowers the priority of the goroutine's thread, which ends with it.
func beNice(log *slog.Logger) {
	lockThread()
	if err := unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), workNice); err != nil {
		log.Debug("background work has the priority of everything else", "error", err)
	}
	// The idle class of I/O, where the disk's scheduler knows classes.
	const whoProcess, classIdle = 1, 3 << 13
	_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, whoProcess, 0, classIdle)
}
