package drill

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"holdfast/catalog"
	"holdfast/integrity"
	"holdfast/internal/volume"
)

// run is one exercise.
type run struct {
	exercise
	number int
	place  *place
	rnd    *rand.Rand
	log    *slog.Logger

	injected  []injection
	reported  map[string]bool // what checks, reads and the start said is damaged
	details   []string        // a few of these reports
	wrong     []string        // what was served that was not right
	left      []string        // what was not as before in the end
	alarms    int
	problems  []Problem
	checkTook time.Duration
	healsTook []time.Duration
}

func castagnoli(p []byte) uint32 { return crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)) }

// do makes the exercise. An error says that it could not be made.
func (r *run) do(ctx context.Context) error {
	from := r.place.template.clean
	if r.state == stateCrashed {
		from = r.place.template.crashed
	}
	if err := r.place.restore(from); err != nil {
		return fmt.Errorf("copy the scratch store: %w", err)
	}
	r.reported = make(map[string]bool)
	if r.state != stateLive {
		if err := r.inject(); err != nil {
			return err
		}
	}
	v, e, err := openStore(ctx, r.place.dir, volume.Options{Log: r.log})
	if err != nil {
		r.report("start", err.Error())
		r.left = append(r.left, "the store does not open: "+err.Error())
		r.judge()
		return ctx.Err()
	}
	err = r.opened(ctx, v, e)
	closeErr := closeStore(ctx, v, e)
	if err != nil || ctx.Err() != nil {
		return errors.Join(err, ctx.Err())
	}
	if closeErr != nil {
		r.left = append(r.left, "close: "+closeErr.Error())
	}
	if r.rnd.IntN(4) == 0 {
		if err := r.again(ctx); err != nil {
			return err
		}
	}
	r.judge()
	return nil
}

// inject makes the damages.
func (r *run) inject() error {
	d := &draw{rnd: r.rnd, dir: r.place.dir, storage: r.storage, level: r.level, state: r.state, m: r.place.template.model, open: r.state == stateLive, hit: make(map[string]bool)}
	if r.kind.control {
		return nil
	}
	for range r.damages() {
		var err error
		for try := 0; ; try++ {
			d.in = injection{silent: r.kind.silent}
			hit := maps.Clone(d.hit)
			if err = r.kind.draw(d); !errors.Is(err, errAgain) || try == 1000 {
				break
			}
			d.hit = hit
		}
		if errors.Is(err, errAgain) && len(r.injected) > 0 {
			return nil // nothing is left that could be damaged independently
		}
		if err != nil {
			return fmt.Errorf("make the damage: %w", err)
		}
		r.injected = append(r.injected, d.in)
	}
	return nil
}

func (r *run) report(id, detail string) {
	if !r.reported[id] && len(r.details) < 5 {
		r.details = append(r.details, detail)
	}
	r.reported[id] = true
}

func (r *run) tour(ctx context.Context, v *volume.Volume) (failed []string, err error) {
	t, err := r.place.template.model.tour(ctx, v)
	r.wrong = append(r.wrong, t.wrong...)
	for _, f := range t.failed {
		r.report("read", f)
	}
	return t.failed, err
}

// opened is what is done in a store that was opened: it is read, checked and healed, in different orders.
func (r *run) opened(ctx context.Context, v *volume.Volume, e *integrity.Engine) error {
	r.started(ctx, v)
	if r.state == stateLive {
		if _, err := r.tour(ctx, v); err != nil {
			return err
		}
		if err := r.inject(); err != nil {
			return err
		}
	}
	order := r.rnd.IntN(3)
	if order == 0 {
		if _, err := r.check(ctx, e, false); err != nil {
			return err
		}
	}
	if order < 2 {
		if _, err := r.tour(ctx, v); err != nil {
			return err
		}
	}
	began := time.Now()
	if _, err := r.check(ctx, e, true); err != nil {
		return err
	}
	r.checkTook = time.Since(began)
	r.started(ctx, v)
	if err := r.failures(ctx, e); err != nil {
		return err
	}
	left, err := r.check(ctx, e, false)
	if err != nil {
		return err
	}
	r.left = append(r.left, left...)
	failed, err := r.tour(ctx, v)
	if err != nil {
		return err
	}
	r.left = append(r.left, failed...)
	return r.guarded(ctx, v)
}

// started takes what the start says that it found.
func (r *run) started(ctx context.Context, v *volume.Volume) {
	st, err := v.Catalog().Stats(ctx)
	if err != nil {
		r.report("start", err.Error())
		return
	}
	for _, d := range st.Damage {
		r.report("start", d.Error())
	}
}

// check checks the whole store and returns what is not healed. A check that cannot be made because of damage is a report as well.
func (r *run) check(ctx context.Context, e *integrity.Engine, repair bool) (left []string, err error) {
	_, err = e.CheckStore(ctx, integrity.CheckOptions{Repair: repair}, func(res integrity.Result) error {
		text := fmt.Sprintf("%s %s %s: %s", res.Type, res.DataID, res.Path, res.Details)
		r.report(res.DataID, text)
		if !res.Healthy() {
			left = append(left, text)
		}
		return nil
	})
	if err != nil && ctx.Err() == nil {
		r.report("check", err.Error())
		return append(left, "the check ends: "+err.Error()), nil
	}
	return left, err
}

// failures takes what reads have found.
func (r *run) failures(ctx context.Context, e *integrity.Engine) error {
	err := e.Failures(ctx, 0, func(_ int64, res integrity.Result) error {
		r.report(res.DataID, res.Details)
		return nil
	})
	if err != nil {
		return err
	}
	return e.Recoveries(ctx, 0, func(_ int64, a integrity.Attempt) error {
		if a.Successful {
			r.healsTook = append(r.healsTook, a.Took)
		}
		return nil
	})
}

// guarded looks for what the levels promise: parity and second copies.
func (r *run) guarded(ctx context.Context, v *volume.Volume) error {
	for _, b := range r.place.template.model.blobs {
		if b.level == catalog.LevelBasic {
			continue
		}
		if large(b) {
			if _, ok, err := v.Blobs().Parity(ctx, b.ref.Hash); err != nil || !ok {
				r.left = append(r.left, fmt.Sprintf("blob %s has no parity: %v", b.id(), err))
			}
		}
		if b.level == catalog.LevelCritical {
			if ok, err := v.Second().Has(ctx, b.ref); err != nil || !ok {
				r.left = append(r.left, fmt.Sprintf("blob %s has no second copy: %v", b.id(), err))
			}
		}
	}
	return ctx.Err()
}

// again opens the store once more: what was healed is healed for good.
func (r *run) again(ctx context.Context) error {
	v, e, err := openStore(ctx, r.place.dir, volume.Options{Log: r.log})
	if err != nil {
		r.left = append(r.left, "the store does not open again: "+err.Error())
		return ctx.Err()
	}
	failed, err := r.tour(ctx, v)
	r.left = append(r.left, failed...)
	return errors.Join(err, closeStore(ctx, v, e))
}

// judge counts what became of each damage.
func (r *run) judge() {
	said := strings.Join(r.details, " | ")
	problem := func(what, damage, detail string) {
		r.problems = append(r.problems, Problem{Number: r.number, What: what, Damage: r.String() + ": " + damage, Detail: detail})
	}
	if r.kind.control && len(r.reported)+len(r.wrong)+len(r.left) > 0 {
		r.alarms++
		problem("false alarm", "none", strings.Join(append(append(r.wrong, r.left...), said), " | "))
	}
	for i := range r.injected {
		in := &r.injected[i]
		c := &in.counts
		c.Damages = 1
		found := len(r.reported) > 0
		for _, id := range in.ids {
			found = found && r.reported[id]
		}
		// Of several at once, what cannot be opened or read is reported as a whole.
		if r.kind.several > 0 && (r.reported["start"] || r.reported["check"]) {
			found = true
		}
		if found || in.silent && len(r.left) == 0 {
			c.Found = 1
		} else {
			problem("not found", in.what, "reported: "+fmt.Sprint(slices.Sorted(maps.Keys(r.reported)))+" "+said+" left: "+strings.Join(r.left, " | "))
		}
		if len(r.wrong) > 0 {
			c.Served = 1
			problem("served", in.what, strings.Join(r.wrong, " | "))
		}
		if len(r.left) == 0 && len(r.wrong) == 0 {
			c.Healed = 1
		}
		if in.heals {
			c.Promised = 1
			if c.Healed == 0 {
				c.Broken = 1
				problem("not healed", in.what, strings.Join(r.left, " | "))
			}
		}
	}
}
