package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"holdfast/blobstore"
	"holdfast/internal/patience"
	"holdfast/internal/volume"
)

const (
	// lookEvery is how often a Keeper looks for backups that are due, retryAfter how long it waits after one that failed.
	lookEvery  = time.Minute
	retryAfter = 15 * time.Minute
	// firstAfter is how old a store is when its first backup is due: a new one has nothing to lose yet.
	firstAfter = 10 * time.Minute
	// clockSlack is how far ahead the clock of the place's disk may be.
	clockSlack = 2 * time.Minute
	// longestPause bounds the pauses that a backup in the background makes.
	longestPause = 100 * time.Millisecond
)

// Keeper makes the backups that a store's settings ask for. Methods may be called concurrently.
type Keeper struct {
	store  Store
	id     string
	places func() []volume.Backup
	marks  Marks
	made   time.Time
	log    *slog.Logger
	now    func() time.Time

	done   func()
	mu     sync.Mutex
	state  map[string]*State  // by directory; guarded by mu
	access map[string]*access // by directory; guarded by mu
	work   sync.WaitGroup
	// marking is held while blobs are marked, which counts up: places are written beside each other.
	marking sync.Mutex
}

// access is what is known of a place beside its backups.
type access struct {
	turn  chan struct{}  // holds a token while the place is written
	calls patience.Place // that list it
}

// Marks is told of what was copied, so that sidecars can say so. May be nil.
type Marks interface {
	MarkBackedUp(ctx context.Context, hashes []blobstore.Hash, at time.Time) error
}

// State is how it stands with a place.
type State struct {
	volume.Backup
	Newest    *time.Time `json:"newest"` // nil: there is none
	Backups   int        `json:"backups"`
	Due       *time.Time `json:"due"`                  // nil: only when asked for
	LastError string     `json:"last_error,omitempty"` // of the newest try; "" when it went well
	failed    time.Time
}

// KeeperOptions say what a Keeper works on.
type KeeperOptions struct {
	Store   Store
	StoreID string
	Made    time.Time              // when the store was made
	Places  func() []volume.Backup // with absolute paths; asked each time
	Marks   Marks
	Done    func()           // called after a backup was made; may be nil
	Log     *slog.Logger     // default: discards
	Now     func() time.Time // default time.Now
}

// NewKeeper returns one; Run makes it work.
func NewKeeper(o KeeperOptions) *Keeper {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Done == nil {
		o.Done = func() {}
	}
	return &Keeper{store: o.Store, id: o.StoreID, places: o.Places, marks: o.Marks, made: o.Made, log: o.Log, now: o.Now, done: o.Done,
		state: make(map[string]*State), access: make(map[string]*access)}
}

// accessTo returns what is known of the place at dir.
func (k *Keeper) accessTo(dir string) *access {
	k.mu.Lock()
	defer k.mu.Unlock()
	a := k.access[dir]
	if a == nil {
		a = &access{turn: make(chan struct{}, 1)}
		k.access[dir] = a
	}
	return a
}

// Run makes what is due, until ctx ends; places are written beside each other, so that one that does not answer keeps none of the others from it.
func (k *Keeper) Run(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	defer k.work.Wait()
	for {
		k.look(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// look begins the backups that are due, unless their place is being written.
func (k *Keeper) look(ctx context.Context) {
	for _, s := range k.States() {
		now := k.now()
		if s.Due == nil || now.Before(*s.Due) || !s.failed.IsZero() && now.Before(s.failed.Add(retryAfter)) || len(k.accessTo(s.Path).turn) > 0 {
			continue
		}
		k.work.Go(func() { k.makeDue(ctx, s.Backup, now) })
	}
}

func (k *Keeper) makeDue(ctx context.Context, b volume.Backup, now time.Time) {
	res, err := k.makeIn(ctx, b, CreateOptions{Level: b.Level, Now: now, Pause: pauses()})
	switch {
	case ctx.Err() != nil:
	case err != nil:
		k.log.Error("an automatic backup failed; it is tried again", "place", b.Path, "error", err)
	default:
		k.log.Info("backed up", "place", b.Path, "backup", res.Name, "files", res.Files, "copied", res.Copied, "bytes", res.CopiedBytes)
	}
}

// pauses returns a function that waits as long as has passed since it returned last, so that a backup takes half of one core at most.
func pauses() func(context.Context) error {
	last := time.Now()
	return func(ctx context.Context) error {
		work := time.Since(last)
		if work < time.Millisecond {
			return ctx.Err()
		}
		t := time.NewTimer(min(work, longestPause))
		defer t.Stop()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
		last = time.Now()
		return nil
	}
}

// Create makes a backup now in the place at dir, one of the settings, or the first of them when dir is ""; then it rotates. A dir that is none of them gets a
// backup of everything, and nothing is rotated. recheck is that of CreateOptions.
func (k *Keeper) Create(ctx context.Context, dir string, recheck bool, copied func(blobs, bytes int64)) (Created, error) {
	b, err := k.choose(dir)
	if err != nil {
		return Created{}, err
	}
	return k.makeIn(ctx, b, CreateOptions{Level: b.Level, Now: k.now(), Recheck: recheck, Copied: copied})
}

func (k *Keeper) choose(dir string) (volume.Backup, error) {
	all := k.places()
	if dir == "" && len(all) > 0 {
		return all[0], nil
	}
	for _, b := range all {
		if b.Path == dir {
			return b, nil
		}
	}
	if dir == "" {
		return volume.Backup{}, fmt.Errorf("%w: holdfast.toml names no place for backups; give one", ErrNotExist)
	}
	return volume.Backup{Path: dir}, nil
}

func (k *Keeper) makeIn(ctx context.Context, b volume.Backup, o CreateOptions) (res Created, err error) {
	turn := k.accessTo(b.Path).turn
	select {
	case turn <- struct{}{}:
		defer func() { <-turn }()
	case <-ctx.Done():
		return res, ctx.Err()
	}
	defer func() {
		if ctx.Err() == nil {
			k.note(b, err)
		}
	}()
	p, err := Open(ctx, Options{Dir: b.Path, StoreID: k.id, Log: k.log})
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	if res, err = p.Create(ctx, k.store, o); err != nil {
		return res, fmt.Errorf("back up to %s: %w", b.Path, err)
	}
	k.done()
	if k.marks != nil {
		k.marking.Lock()
		err := k.marks.MarkBackedUp(ctx, res.Blobs, o.Now)
		k.marking.Unlock()
		if err != nil {
			k.log.Warn("the sidecars do not say of all blobs that they are backed up", "error", err)
		}
	}
	if b.Keep > 0 {
		if _, err := p.Rotate(ctx, b.Keep); err != nil {
			return res, fmt.Errorf("the backup %s was made; removing old ones from %s: %w", res.Name, b.Path, err)
		}
	}
	return res, nil
}

// note remembers the outcome for a place of the settings; of others nothing is kept.
func (k *Keeper) note(b volume.Backup, err error) {
	if !slices.ContainsFunc(k.places(), func(known volume.Backup) bool { return known.Path == b.Path }) {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	s := &State{}
	if err != nil {
		s.LastError, s.failed = err.Error(), k.now()
	}
	k.state[b.Path] = s
}

// States returns how it stands with each place of the settings.
func (k *Keeper) States() []State {
	var out []State
	for _, b := range k.places() {
		s := State{Backup: b}
		k.mu.Lock()
		if known := k.state[b.Path]; known != nil {
			s.LastError, s.failed = known.LastError, known.failed
		}
		k.mu.Unlock()
		all, err := k.list(b.Path)
		if err != nil && s.LastError == "" {
			s.LastError = err.Error()
		}
		s.Backups = len(all)
		due := k.made.Add(firstAfter)
		if now := k.now(); k.made.After(now) { // by a clock that was wrong
			due = now
		}
		if len(all) > 0 {
			newest := all[len(all)-1].Time
			s.Newest = &newest
		}
		if last := lastMade(all, k.now()); !last.IsZero() {
			due = last.Add(time.Duration(b.Every))
		}
		if b.Every > 0 {
			s.Due = &due
		}
		out = append(out, s)
	}
	return out
}

// list is list for a place that may not answer.
func (k *Keeper) list(dir string) ([]Info, error) {
	const patient = 5 * time.Second
	a := k.accessTo(dir)
	if a.calls.Stuck() > 0 {
		return nil, fmt.Errorf("%s: %w", dir, patience.ErrSilent)
	}
	all, err := patience.Call(context.Background(), &a.calls, patient, 0, func(*patience.Pulse) ([]Info, error) { return list(dir) })
	if errors.Is(err, patience.ErrSilent) {
		err = fmt.Errorf("%s: %w", dir, err)
	}
	return all, err
}

// lastMade is when the newest backup was made. The clock may have been wrong then: a backup is called later than all before it, so that one of a day to come would put off all that
// follow. So the time of its file counts, too, and what is of a day to come does not.
func lastMade(all []Info, now time.Time) (last time.Time) {
	for i := range all {
		if at := earlier(all[i].Time, all[i].written); !at.After(now.Add(clockSlack)) && at.After(last) {
			last = at
		}
	}
	return last
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// Source is a place that is opened for each Fetch: it may come and go, as disks do.
type Source struct {
	dir, id string
	log     *slog.Logger
}

// NewSource returns the place at dir, of the store called id, as a source of blobs.
func NewSource(dir, id string, log *slog.Logger) Source { return Source{dir, id, log} }

// Name is that of the place.
func (s Source) Name() string { return (&Place{dir: s.dir}).Name() }

// Fetch is Place.Fetch. blobstore.ErrNotFound too when there is no place at all.
func (s Source) Fetch(ctx context.Context, ref blobstore.Ref, w io.Writer) error {
	p, err := Open(ctx, Options{Dir: s.dir, StoreID: s.id, ReadOnly: true, Log: s.log})
	if errors.Is(err, ErrNotExist) {
		return fmt.Errorf("%w: %w", blobstore.ErrNotFound, err)
	}
	if err != nil {
		return err
	}
	return errors.Join(p.Fetch(ctx, ref, w), p.Close())
}
