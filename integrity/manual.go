package integrity

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"holdfast/blobstore"
	"holdfast/catalog"
)

// Damaged calls fn with each thing that could not be healed and waits for a person, in order of its name, until fn returns an error, which Damaged returns.
func (e *Engine) Damaged(ctx context.Context, fn func(Damaged) error) error {
	for after := ""; ; {
		page, err := e.state.damaged(ctx, after)
		if err != nil || len(page) == 0 {
			return err
		}
		for i := range page {
			after = page[i].dataID
			d, err := e.describe(ctx, &page[i])
			if err != nil {
				return err
			}
			if err := fn(d); err != nil {
				return err
			}
		}
	}
}

// DamagedNames returns up to max names of what Damaged lists, behind after, in their order.
func (e *Engine) DamagedNames(ctx context.Context, after string, max int) (names []string, err error) {
	for len(names) < max {
		page, err := e.state.damaged(ctx, after)
		if err != nil || len(page) == 0 {
			return names, err
		}
		for i := 0; i < len(page) && len(names) < max; i++ {
			after = page[i].dataID
			names = append(names, after)
		}
	}
	return names, nil
}

// loadWaiting reads what is listed as damaged.
func (e *Engine) loadWaiting(ctx context.Context) error {
	for after := ""; ; {
		page, err := e.state.damaged(ctx, after)
		if err != nil || len(page) == 0 {
			return err
		}
		for i := range page {
			after = page[i].dataID
			e.waiting[after] = true
		}
	}
}

// list puts something on the list of what waits for a person.
func (e *Engine) list(ctx context.Context, d *damagedRow) {
	e.mu.Lock()
	e.waiting[d.dataID] = true
	e.mu.Unlock()
	if err := e.state.setDamaged(context.WithoutCancel(ctx), d); err != nil {
		e.log.Warn("what is damaged cannot be listed", "data", d.dataID, "error", err)
	}
}

// unlist takes something off that list.
func (e *Engine) unlist(ctx context.Context, dataID string) {
	e.mu.Lock()
	was := e.waiting[dataID]
	delete(e.waiting, dataID)
	e.mu.Unlock()
	if !was {
		return
	}
	if err := e.state.clearDamaged(context.WithoutCancel(ctx), dataID); err != nil {
		e.log.Warn("what is intact again is still listed as damaged", "data", dataID, "error", err)
	}
}

// forgetGone takes off the list what is not there any more: blobs that nothing names, and files.
func (e *Engine) forgetGone(ctx context.Context) error {
	e.mu.Lock()
	var ids []string
	for id := range e.waiting {
		ids = append(ids, id)
	}
	e.mu.Unlock()
	for _, id := range ids {
		there := true
		var err error
		if h, parseErr := blobstore.ParseHash(strings.TrimPrefix(id, secondID)); parseErr == nil {
			_, there, err = e.cat.HasBlob(ctx, h)
		} else if n, ok := strings.CutPrefix(id, inodeID); ok {
			there, err = e.hasInode(ctx, n)
		}
		if err != nil {
			return err
		}
		if !there {
			e.unlist(ctx, id)
		}
	}
	return nil
}

func (e *Engine) hasInode(ctx context.Context, number string) (bool, error) {
	n, err := strconv.ParseUint(number, 10, 64)
	if err != nil {
		return false, nil
	}
	_, err = e.cat.Get(ctx, catalog.Ino(n))
	if errors.Is(err, catalog.ErrStale) || errors.Is(err, catalog.ErrNotExist) {
		return false, nil
	}
	return true, err
}

// DamagedItem is what is known of one thing that waits for a person. catalog.ErrNotExist when it does not wait (any more).
func (e *Engine) DamagedItem(ctx context.Context, dataID string) (Damaged, error) {
	row, err := e.damagedRow(ctx, dataID)
	if err != nil {
		return Damaged{}, err
	}
	return e.describe(ctx, &row)
}

func (e *Engine) damagedRow(ctx context.Context, dataID string) (damagedRow, error) {
	if dataID == "" {
		return damagedRow{}, catalog.ErrNotExist
	}
	// The greatest name below it.
	page, err := e.state.damaged(ctx, dataID[:len(dataID)-1])
	for err == nil && len(page) > 0 {
		for i := range page {
			if page[i].dataID == dataID {
				return page[i], nil
			}
		}
		if page[len(page)-1].dataID > dataID {
			break
		}
		page, err = e.state.damaged(ctx, page[len(page)-1].dataID)
	}
	if err != nil {
		return damagedRow{}, err
	}
	return damagedRow{}, fmt.Errorf("%s: %w: nothing of that name waits for a recovery", dataID, catalog.ErrNotExist)
}

func (e *Engine) describe(ctx context.Context, row *damagedRow) (Damaged, error) {
	d := Damaged{DataID: row.dataID, Size: row.size, Since: row.since, Details: row.details, Quarantine: row.quarantine, Paths: []string{}, Tried: []Attempt{}}
	if h, err := blobstore.ParseHash(row.dataID); err == nil {
		d.Paths = append(d.Paths, e.paths(ctx, h)...)
	}
	tried, _, err := e.state.attempts(ctx, "id > ?1 AND data_id = ?2 ORDER BY id DESC LIMIT 20", 0, row.dataID)
	if err != nil {
		return d, err
	}
	for i := len(tried) - 1; i >= 0; i-- {
		d.Tried = append(d.Tried, tried[i])
	}
	return d, nil
}

// ManualPage says in plain words what is broken, what was tried, and what to do.
func ManualPage(d *Damaged) string {
	if _, err := blobstore.ParseHash(d.DataID); err != nil {
		return otherPage(d)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "What is broken\n  The content %s (%d bytes) is damaged", d.DataID, d.Size)
	if len(d.Tried) > 0 {
		b.WriteString(", and no intact copy of it was found")
	}
	fmt.Fprintf(&b, ".\n  Found: %s\n  Why: %s\n", d.Since.Format(time.RFC3339), d.Details)
	b.WriteString("\nWho has it\n")
	if len(d.Paths) == 0 {
		b.WriteString("  No file that is kept: it will go with the next thinning of the history.\n")
	}
	for _, p := range d.Paths {
		fmt.Fprintf(&b, "  %s\n", p)
	}
	b.WriteString("  Reads of the damaged part give an input/output error, never wrong bytes. Everything else can be read.\n\nWhat was tried\n")
	if len(d.Tried) == 0 {
		b.WriteString("  Nothing yet, or there was no other copy. A read of it, the scrub and `holdfast check --repair` try.\n")
	}
	for i := range d.Tried {
		a := &d.Tried[i]
		outcome := "worked"
		if !a.Successful {
			outcome = "did not work: " + a.Details
		}
		fmt.Fprintf(&b, "  %s %s from %s: %s\n", a.Time.Format(time.RFC3339), a.Strategy, a.Source, outcome)
	}
	b.WriteString("\nWhat to do, one of:\n")
	fmt.Fprintf(&b, "  - If you have the file elsewhere: cp GOOD-FILE .integrity/manual/%s\n    It is taken only if it is that content exactly (its SHA-256 is checked).\n", d.DataID)
	if len(d.Paths) > 0 && !strings.HasPrefix(d.Paths[0], "(") {
		p := strings.TrimSuffix(d.Paths[0], " (an earlier version)")
		fmt.Fprintf(&b, "  - Make the last intact version the newest: holdfast recover --strategy %s %s\n", VersionRollback, p)
		fmt.Fprintf(&b, "  - Look at earlier versions first: holdfast log %s\n", p)
	}
	b.WriteString("  - Attach a backup that has it, and: holdfast recover --strategy BACKUP_RESTORE\n")
	if d.Quarantine != "" {
		fmt.Fprintf(&b, "  - The damaged bytes, as they were stored, are in %s of the store's directory.\n", d.Quarantine)
	}
	return b.String()
}

// otherPage is the page of what is no content.
func otherPage(d *Damaged) string {
	what, advice := d.DataID, "  holdfast check --all --repair tries again. holdfast backup create keeps what can be read.\n"
	switch {
	case d.DataID == catalogID:
		what = "catalog.db, the index of the store, does not say what the journal says"
		advice = "  See that there is room on the disk, then holdfast check --all --repair: the index is made anew from the journal.\n"
	case d.DataID == blobsDB:
		what = "blobs.db has a damaged structure"
		advice = "  See that there is room on the disk, then holdfast check --all --repair: the database is made anew from the rows that can be read.\n"
	case d.DataID == secondID+blobsDB:
		what = "blobs.db of the second copies has a damaged structure"
		advice = "  See that the place of the second copies can be written, then holdfast check --all --repair: it is made anew from the rows that can be read.\n"
	case strings.HasPrefix(d.DataID, journalID):
		what = "Records of the " + d.DataID + " and after cannot be read: who did it and why is not known any more. What came of it is in catalog.db"
		advice = "  Contents and names are not lost by this. holdfast backup create keeps them elsewhere; if you have a copy of the file in journal/ that is named above, from\n" +
			"  before the damage, end the mount, put it in its place, and holdfast check --all tells whether it is intact.\n"
	case strings.HasPrefix(d.DataID, inodeID):
		what = "The history of a file contradicts itself (" + d.DataID + ")"
		advice = "  Its newest content can be read. holdfast log shows its versions, holdfast audit verify tells whether somebody has changed the journal.\n"
	case strings.HasPrefix(d.DataID, secondID):
		what = "The second copy of the content " + strings.TrimPrefix(d.DataID, secondID) + " is damaged, and cannot be written anew"
		advice = "  The content itself can be read. See that the place of the second copies can be written, then holdfast check --all --repair.\n"
	}
	return fmt.Sprintf("What is broken\n  %s.\n  Found: %s\n  Why: %s\n\nWhat to do\n%s", what, d.Since.Format(time.RFC3339), d.Details, advice)
}

// Complete ends a recovery by hand: r yields the content that is missing. It is taken only if it is that content. catalog.ErrNotExist when nothing of that name waits,
// ErrWrongContent.
func (e *Engine) Complete(ctx context.Context, dataID string, r io.Reader) error {
	row, err := e.damagedRow(ctx, dataID)
	if err != nil {
		return err
	}
	h, err := blobstore.ParseHash(dataID)
	if err != nil {
		return fmt.Errorf("%s: %w: it is no content that could be given; its page says what to do", dataID, catalog.ErrInvalid)
	}
	ref := blobstore.Ref{Hash: h, Size: row.size, Root: row.root}
	if err := e.cat.Pin(ctx, h); err != nil {
		return err
	}
	defer e.cat.Unpin(h)
	names := e.paths(ctx, h)
	ctx = recorded(ctx, healOf{hash: h})
	began := e.now()
	a := Attempt{Time: began.UTC(), DataID: dataID, Path: first(names), Strategy: ManualRecovery, Source: "a person"}
	a.Bytes, err = e.adopt(ctx, ref, func(w io.Writer) error {
		_, err := io.Copy(w, r)
		return err
	})
	if errors.Is(err, blobstore.ErrInvalid) || errors.Is(err, blobstore.ErrDamaged) {
		err = fmt.Errorf("blob %s: %w: %w", dataID, ErrWrongContent, err)
	}
	if err == nil {
		err = e.whole(ctx, ref)
	}
	a.Took, a.Successful = e.now().Sub(began), err == nil
	if err != nil {
		a.Details = err.Error()
	}
	e.record(ctx, &a)
	if err != nil {
		return err
	}
	e.healed(ctx, ref, a.Path, "what a person gave")
	e.tell(EventManual, dataID, a.Path, "the recovery by hand is complete")
	return nil
}
