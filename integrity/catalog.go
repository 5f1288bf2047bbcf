package integrity

import (
	"context"
	"errors"
	"fmt"

	"holdfast/blobstore"
	"holdfast/catalog"
	"holdfast/catalog/journal"
)

const (
	catalogID = "catalog"
	journalID = "journal"
	// maxCatalog bounds the findings of one step that are reported one by one.
	maxCatalog = 200
	stepRows   = 4096
)

// CatalogDamaged implements volume.Guard.
func (e *Engine) CatalogDamaged(error) { e.add(taskCatalog, blobstore.Ref{}) }

// mendCatalog makes catalog.db anew from the journal, unless that was done since it was found damaged.
func (e *Engine) mendCatalog(ctx context.Context, cause string) error {
	e.catalogTurn.Lock()
	defer e.catalogTurn.Unlock()
	if !e.cat.Damaged() {
		return nil
	}
	r := e.result(Checksum, catalogID, "")
	r.Passed, r.Details, r.RecoveryAttempted = false, cause, true
	e.tell(EventDamage, catalogID, "", "catalog.db is damaged; it is made anew from the journal")
	began := e.now()
	err := e.cat.Rebuild(ctx)
	if errors.Is(err, catalog.ErrDamaged) {
		if _, healErr := e.cat.HealJournal(ctx); healErr == nil {
			err = e.cat.Rebuild(ctx)
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	a := Attempt{Time: began.UTC(), DataID: catalogID, Strategy: ChecksumMatch, Source: "journal", Successful: err == nil, Took: e.now().Sub(began)}
	if err != nil {
		a.Details = err.Error()
	}
	e.record(ctx, &a)
	r.RecoverySuccessful = err == nil
	e.note(ctx, &r)
	if err != nil {
		e.list(ctx, &damagedRow{dataID: catalogID, since: e.now(), details: cause + "; it could not be made anew: " + err.Error()})
		e.tell(EventLost, catalogID, "", "catalog.db could not be made anew: "+err.Error())
		return fmt.Errorf("catalog.db: %w: %w", ErrNotHealed, err)
	}
	e.unlist(ctx, catalogID)
	e.tell(EventHealed, catalogID, "", "catalog.db was made anew from the journal")
	return nil
}

// stepCatalog compares rows of catalog.db with what the journal says. When they differ all of it is made anew.
func (c *checker) stepCatalog(ctx context.Context, pos *position) error {
	var found []catalog.Finding
	n := 0
	next, err := c.e.cat.Compare(ctx, pos.Seq, stepRows, func(f catalog.Finding) error {
		if f.Table == journalID {
			return nil // the next phase finds it, and heals it
		}
		if n++; len(found) < maxCatalog {
			found = append(found, f)
		}
		return nil
	})
	switch {
	case errors.Is(err, catalog.ErrReadOnly):
		next = 0
	case errors.Is(err, catalog.ErrDamaged):
		found, next = append(found, catalog.Finding{Table: catalogID, Detail: err.Error()}), 0
	case err != nil:
		return err
	}
	w := c.rows
	if pos.Seq == 0 {
		w.begin()
	}
	if len(found) > 0 {
		w.whole = false
	}
	if pos.Seq = next; next == 0 {
		if w.whole && !errors.Is(err, catalog.ErrReadOnly) {
			c.e.unlist(ctx, catalogID)
		}
		w.whole = false
		pos.next(phaseJournal)
	}
	if len(found) == 0 {
		return nil
	}
	healed := errors.New("not tried")
	if c.o.Repair {
		healed = c.e.mendCatalog(ctx, found[0].String())
		if ctx.Err() != nil {
			return ctx.Err()
		}
		pos.next(phaseJournal)
	}
	for i := range found {
		if err := c.catalogResult(ctx, &found[i], n-len(found), healed); err != nil {
			return err
		}
	}
	return nil
}

// catalogResult reports one difference; more are not reported.
func (c *checker) catalogResult(ctx context.Context, f *catalog.Finding, more int, healed error) error {
	r := c.e.result(Checksum, catalogID, "")
	if f.Ino != 0 {
		if p, err := c.e.cat.Path(ctx, f.Ino); err == nil {
			r.Path = p
		}
	}
	r.Passed, r.Details = false, f.String()
	if more > 0 {
		r.Details += fmt.Sprintf(" (and %d more)", more)
	}
	c.sum.Failed++
	if c.o.Repair {
		r.RecoveryAttempted, r.RecoverySuccessful = true, healed == nil
		if healed == nil {
			c.sum.Healed++
		}
		return c.fn(r) // mendCatalog has recorded it
	}
	c.e.note(ctx, &r)
	c.e.listOther(ctx, catalogID, false, r.Details)
	return c.fn(r)
}

// compareAtStart compares a catalog.db that was not closed cleanly with the journal, before anything is read: of single rows that are there each read finds whether they are intact, but
// not that rows are missing. A large one is compared in the background as soon as there is one.
func (e *Engine) compareAtStart(ctx context.Context) error {
	st, err := e.cat.Stats(ctx)
	if err != nil || st.KnownIntact || e.vol.ReadOnly() || e.opt.CompareAtStart < 0 {
		return err
	}
	if int64(st.Seq) > e.opt.CompareAtStart {
		e.add(taskCompare, blobstore.Ref{})
		return nil
	}
	return e.compareCatalog(ctx, func(context.Context) error { return nil })
}

// compareCatalog compares all of catalog.db with the journal, and makes it anew when it is damaged. pause is called between two steps.
func (e *Engine) compareCatalog(ctx context.Context, pause func(context.Context) error) error {
	c := e.newChecker(CheckOptions{Repair: true}, func(r Result) error {
		e.log.Warn("catalog.db was not closed cleanly, and is damaged", "details", r.Details, "healed", r.RecoverySuccessful)
		return nil
	})
	pos := position{Phase: phaseCatalog}
	for pos.Phase == phaseCatalog {
		if err := c.stepCatalog(ctx, &pos); err != nil {
			return err
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
	return nil
}

// journalDamage reports damage to records, and heals the journal, once in a walk, if it may.
func (c *checker) journalDamage(ctx context.Context, d *journal.DamageError) error {
	r := c.e.result(Checksum, fmt.Sprintf("%s %d", journalID, d.First), "")
	r.Passed, r.Details = false, d.Error()
	c.sum.Failed++
	if c.o.Repair {
		r.RecoveryAttempted = true
		began := c.e.now()
		a := Attempt{Time: began.UTC(), DataID: r.DataID, Strategy: ChecksumMatch, Source: "blobs and catalog.db"}
		if c.journal == nil {
			rep, err := c.e.cat.HealJournal(ctx)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				a.Details = err.Error()
			}
			c.journal = &rep
		}
		for _, x := range c.journal.Healed {
			a.Successful = a.Successful || x.First == d.First
		}
		if !a.Successful && a.Details == "" {
			a.Details = "it cannot be proved what these records said; " + c.journal.Why
		}
		a.Took = c.e.now().Sub(began)
		c.e.record(ctx, &a)
		if r.RecoverySuccessful = a.Successful; a.Successful {
			c.sum.Healed++
			c.e.tell(EventHealed, r.DataID, "", "records of the journal were healed")
		}
	}
	c.e.note(ctx, &r)
	if c.e.listOther(ctx, r.DataID, r.RecoverySuccessful, r.Details); !r.RecoverySuccessful && c.records.bad != nil {
		c.records.bad[r.DataID] = true
	}
	return c.fn(r)
}
