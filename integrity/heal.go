package integrity

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"holdfast/blobstore"
	"holdfast/catalog"
)

const (
	// flipInline bounds the blobs in which a read looks for a flipped bit, and for how long; what is larger, up to blobstore.MaxSmall, is tried in the background.
	flipInline  = 8 << 10
	flipSoon    = time.Second
	flipPatient = 5 * time.Minute
)

// errUseless: a remedy has nothing to offer for this blob. It is no attempt.
var errUseless = errors.New("not applicable")

// Heal implements volume.Guard: it mends a blob, from any intact copy, so that the next read of it succeeds. Heals of one blob at the same time are one. ErrNotHealed when
// nothing could mend it: it then waits for a person, or for a rollback if the policy of its directory says so.
func (e *Engine) Heal(ctx context.Context, ref blobstore.Ref, _ error) error {
	return e.heal(ctx, ref, false)
}

// heal is Heal; again tries also what a moment ago could not be healed.
func (e *Engine) heal(ctx context.Context, ref blobstore.Ref, again bool) error {
	if e.vol.ReadOnly() {
		return fmt.Errorf("blob %s: %w: the store is open read-only", ref.Hash, ErrNotHealed)
	}
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return errEnded()
	}
	if at, ok := e.lost[ref.Hash]; ok && !again {
		if e.now().Sub(at) < lostAgain {
			e.mu.Unlock()
			return fmt.Errorf("blob %s: %w; see its page in .integrity/manual", ref.Hash, ErrNotHealed)
		}
		delete(e.lost, ref.Hash)
	}
	f := e.flights[ref.Hash]
	if f == nil {
		f = &flight{done: make(chan struct{})}
		e.flights[ref.Hash] = f
		e.workers.Go(func() {
			f.err = e.mend(e.ctx, ref)
			e.mu.Lock()
			delete(e.flights, ref.Hash)
			e.mu.Unlock()
			close(f.done)
		})
	}
	e.mu.Unlock()
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// mend is one heal.
func (e *Engine) mend(ctx context.Context, ref blobstore.Ref) error {
	if err := e.cat.Pin(ctx, ref.Hash); err != nil {
		return err
	}
	defer e.cat.Unpin(ref.Hash)
	switch _, ok, err := e.cat.HasBlob(ctx, ref.Hash); {
	case err != nil:
		return err
	case !ok:
		return fmt.Errorf("blob %s: %w: nothing names it any more", ref.Hash, blobstore.ErrNotFound)
	}
	// It may have been mended since, or have arrived.
	if _, ok := e.cat.PendingBody(ref.Hash); ok {
		return nil
	}
	found, err := e.guarded.Inspect(ctx, ref)
	if err != nil && !isDamage(err) {
		return err
	}
	id := ref.Hash.String()
	damage := damageOf(ref, found, err)
	if damage == nil {
		e.unlist(ctx, id)
		return nil
	}
	names := e.paths(ctx, ref.Hash)
	r := e.result(Checksum, id, first(names))
	r.Passed, r.Details, r.RecoveryAttempted = false, damage.Error(), true
	e.tell(EventDamage, id, r.Path, "damage found: "+r.Details)
	source, quarantined, err := e.try(ctx, ref, found, e.remedies(ref, found, false), r.Path)
	if err != nil && ctx.Err() == nil {
		// A database whose structure is damaged takes nothing in, or loses it again.
		if anew, _ := e.rebuildBlobs(ctx); anew {
			source, _, err = e.try(ctx, ref, nil, e.remedies(ref, nil, false), r.Path)
		}
	}
	r.RecoverySuccessful = err == nil
	if ctx.Err() != nil {
		return ctx.Err()
	}
	e.note(ctx, &r)
	if err != nil {
		return e.giveUp(ctx, ref, &r, quarantined, names)
	}
	e.healed(ctx, ref, r.Path, source)
	return nil
}

// healed does what follows a heal.
func (e *Engine) healed(ctx context.Context, ref blobstore.Ref, path, source string) {
	id := ref.Hash.String()
	e.mu.Lock()
	delete(e.lost, ref.Hash)
	delete(e.hopeless, ref.Hash)
	e.mu.Unlock()
	e.unlist(ctx, id)
	e.tell(EventHealed, id, path, "healed from "+source)
	level, err := e.levelOf(ctx, ref.Hash)
	if err == nil && level != catalog.LevelBasic {
		e.Stored(level, []blobstore.Ref{ref})
	}
}

// giveUp lists a blob among those that wait for a person, and queues what a read does not wait for.
func (e *Engine) giveUp(ctx context.Context, ref blobstore.Ref, r *Result, quarantined string, names []string) error {
	e.mu.Lock()
	if len(e.lost) > 1<<16 {
		clear(e.lost)
	}
	e.lost[ref.Hash] = e.now()
	e.mu.Unlock()
	d := damagedRow{dataID: r.DataID, size: ref.Size, root: ref.Root, since: e.now(), details: r.Details, quarantine: quarantined}
	e.list(ctx, &d)
	e.tell(EventLost, r.DataID, r.Path, "not healed: no intact copy was found; "+strings.Join(names[:min(len(names), 3)], ", "))
	e.add(taskLost, ref)
	return fmt.Errorf("blob %s: %w: no intact copy was found; see its page in .integrity/manual", r.DataID, ErrNotHealed)
}

// damageOf puts what Inspect found into one error; nil when all is intact.
func damageOf(ref blobstore.Ref, found []blobstore.Finding, err error) error {
	switch {
	case errors.Is(err, blobstore.ErrNotFound):
		return fmt.Errorf("blob %s: %w", ref.Hash, blobstore.ErrNotFound)
	case err != nil && isDamage(err):
		return err
	case len(found) == 0:
		return nil
	}
	f := found[0]
	part := string(f.Part)
	if f.Part == blobstore.PartBlock {
		part = fmt.Sprintf("block %d", f.Index)
	}
	detail := f.Detail
	if n := len(found) - 1; n > 0 {
		detail = fmt.Sprintf("%s (and %d more places)", detail, n)
	}
	return &blobstore.DamageError{Hash: ref.Hash, Part: part, Detail: detail}
}

// contentDamaged says whether the content itself is, not only what describes or protects it.
func contentDamaged(found []blobstore.Finding) bool {
	for _, f := range found {
		switch f.Part {
		case blobstore.PartContent, blobstore.PartBlock, blobstore.PartMissing:
			return true
		case blobstore.PartSidecar, blobstore.PartParity, blobstore.PartRow:
		}
	}
	return false
}

// remedy is one way to mend a blob.
type remedy struct {
	strategy Strategy
	source   string
	run      func(ctx context.Context) (int64, error) // bytes written; errUseless
}

// remedies lists the ways to mend a blob, in the order of trying. patient ones are not for a read that waits.
func (e *Engine) remedies(ref blobstore.Ref, found []blobstore.Finding, patient bool) []remedy {
	own := remedy{ChecksumMatch, "what the store has of it", func(ctx context.Context) (int64, error) {
		done, err := e.guarded.Repair(ctx, ref)
		return done.Bytes, err
	}}
	var list []remedy
	if len(found) > 0 && !contentDamaged(found) {
		list = append(list, own)
	}
	list = append(list,
		remedy{ChecksumMatch, "second copy", func(ctx context.Context) (int64, error) { return e.fromSecond(ctx, ref) }},
		remedy{ChecksumMatch, "journal", func(ctx context.Context) (int64, error) { return e.fromJournal(ctx, ref) }})
	if len(found) == 0 || contentDamaged(found) {
		if ref.Size > blobstore.MaxSmall {
			own.source = "parity"
		}
		list = append(list, own)
	}
	list = append(list, remedy{ChecksumMatch, "other versions", func(ctx context.Context) (int64, error) { return e.fromVersions(ctx, ref) }})
	if patient || ref.Size <= flipInline {
		limit := flipSoon
		if patient {
			limit = flipPatient
		}
		list = append(list, remedy{ChecksumMatch, "flipped bit", func(ctx context.Context) (int64, error) { return e.fromFlip(ctx, ref, limit) }})
	}
	for _, src := range e.backups() {
		list = append(list, remedy{BackupRestore, src.Name(), func(ctx context.Context) (int64, error) { return e.fromSource(ctx, src, ref) }})
	}
	return list
}

// try goes through the remedies until one works, and proves that it has. The damaged bytes are kept in the quarantine, first.
func (e *Engine) try(ctx context.Context, ref blobstore.Ref, found []blobstore.Finding, list []remedy, path string) (source, quarantined string, err error) {
	ctx = recorded(ctx, healOf{hash: ref.Hash})
	if contentDamaged(found) {
		if quarantined, err = e.quarantine(ctx, ref.Hash); err != nil {
			e.log.Warn("the damaged bytes of a blob cannot be kept", "blob", ref.Hash, "error", err)
		}
	}
	err = ErrNotHealed
	for i := range list {
		r := &list[i]
		began := e.now()
		a := Attempt{Time: began.UTC(), DataID: ref.Hash.String(), Path: path, Strategy: r.strategy, Source: r.source}
		n, runErr := r.run(ctx)
		if ctx.Err() != nil {
			return "", quarantined, ctx.Err()
		}
		if errors.Is(runErr, errUseless) {
			continue
		}
		if runErr == nil {
			runErr = e.whole(ctx, ref)
		}
		a.Took, a.Bytes, a.Successful = e.now().Sub(began), n, runErr == nil
		if runErr != nil {
			a.Details = runErr.Error()
		}
		e.record(ctx, &a)
		if runErr == nil {
			return r.source, quarantined, nil
		}
	}
	return "", quarantined, err
}

// whole inspects a blob whose content was mended, and mends what is left of it: sidecar, parity.
func (e *Engine) whole(ctx context.Context, ref blobstore.Ref) error {
	for again := false; ; again = true {
		found, err := e.guarded.Inspect(ctx, ref)
		if err != nil {
			return err
		}
		if len(found) == 0 {
			return nil
		}
		if again || contentDamaged(found) {
			return damageOf(ref, found, nil)
		}
		if _, err := e.guarded.Repair(ctx, ref); err != nil {
			return err
		}
	}
}

func (e *Engine) fromSecond(ctx context.Context, ref blobstore.Ref) (int64, error) {
	ok, err := e.vol.Second().Has(ctx, ref)
	if err != nil {
		return 0, err
	}
	if !ok {
		// Its sidecar may be what is damaged there.
		if err := e.vol.Second().Verify(ctx, ref); err != nil {
			if errors.Is(err, blobstore.ErrNotFound) {
				err = errUseless
			}
			return 0, err
		}
	}
	return e.adopt(ctx, ref, func(w io.Writer) error {
		_, err := io.Copy(w, e.vol.SecondReader(ctx, ref))
		return err
	})
}

func (e *Engine) fromJournal(ctx context.Context, ref blobstore.Ref) (int64, error) {
	if ref.Size > blobstore.MaxSmall {
		return 0, errUseless
	}
	body, err := e.cat.JournalBody(ctx, ref.Hash)
	if errors.Is(err, catalog.ErrNotExist) {
		return 0, errUseless
	}
	if err != nil {
		return 0, err
	}
	return e.adopt(ctx, ref, func(w io.Writer) error {
		_, err := w.Write(body)
		return err
	})
}

func (e *Engine) fromFlip(ctx context.Context, ref blobstore.Ref, limit time.Duration) (int64, error) {
	if ref.Size > blobstore.MaxSmall || ref.Size == 0 {
		return 0, errUseless
	}
	r, n, err := e.guarded.Raw(ctx, ref.Hash)
	if err != nil || n > blobstore.MaxSmall {
		if err == nil || errors.Is(err, blobstore.ErrNotFound) {
			err = errUseless
		}
		return 0, err
	}
	stored, err := io.ReadAll(io.LimitReader(r, n))
	if err := errors.Join(err, r.Close()); err != nil {
		return 0, err
	}
	look, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	plain := unflip(look, stored, ref)
	if plain == nil {
		return 0, fmt.Errorf("it is not a single bit: %w", blobstore.ErrDamaged)
	}
	return e.adopt(ctx, ref, func(w io.Writer) error {
		_, err := w.Write(plain)
		return err
	})
}

// adopt puts the content that fill writes in the place of what the store has of a blob, if it is the content that ref names. It is on stable storage on return.
func (e *Engine) adopt(ctx context.Context, ref blobstore.Ref, fill func(io.Writer) error) (int64, error) {
	level, err := e.levelOf(ctx, ref.Hash)
	if err != nil {
		level = catalog.LevelBasic // the catalog may be what is damaged
	}
	meta := blobstore.Meta{Level: level, Time: e.now()}
	if ref.Size <= blobstore.MaxSmall {
		var b bytes.Buffer
		if err := fill(&limited{w: &b, left: ref.Size}); err != nil {
			return 0, err
		}
		if err := e.blobs.PutBatch(ctx, []blobstore.Item{{Ref: ref, Meta: meta, Data: b.Bytes()}}); err != nil {
			return 0, err
		}
		return ref.Size, e.blobs.Sync(ctx)
	}
	f, err := os.CreateTemp(filepath.Join(e.vol.Dir(), "staging"), "0-*")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	defer os.Remove(f.Name()) // gone when it was adopted
	h := blobstore.NewHasher()
	if err := fill(&limited{w: io.MultiWriter(f, h), left: ref.Size}); err != nil {
		return 0, err
	}
	sum := h.Sum()
	if sum.Ref != ref {
		return 0, &blobstore.DamageError{Hash: ref.Hash, Part: "copy", Detail: "it hashes to " + sum.Ref.Hash.String()}
	}
	if err := e.blobs.Adopt(ctx, sum, meta, f.Name(), true); err != nil {
		return 0, err
	}
	return ref.Size, nil
}

// limited refuses more bytes than a blob has: a source is not trusted.
type limited struct {
	w    io.Writer
	left int64
}

func (l *limited) Write(p []byte) (int, error) {
	if int64(len(p)) > l.left {
		return 0, fmt.Errorf("%w: the copy is longer than the blob", ErrWrongContent)
	}
	n, err := l.w.Write(p)
	l.left -= int64(n)
	return n, err
}

// tryHard goes on with a blob that a read could not wait for: it looks for a flipped bit for longer, and then rolls back what may be.
func (e *Engine) tryHard(ctx context.Context, ref blobstore.Ref) error {
	found, err := e.guarded.Inspect(ctx, ref)
	if err != nil && !isDamage(err) {
		return err
	}
	if damageOf(ref, found, err) == nil {
		return nil
	}
	names := e.paths(ctx, ref.Hash)
	e.mu.Lock()
	hopeless := e.hopeless[ref.Hash]
	e.mu.Unlock()
	if !hopeless && ref.Size > flipInline && ref.Size <= blobstore.MaxSmall {
		var why error
		source, _, err := e.try(ctx, ref, nil, []remedy{{ChecksumMatch, "flipped bit", func(ctx context.Context) (n int64, err error) {
			n, why = e.fromFlip(ctx, ref, flipPatient)
			return n, why
		}}}, first(names))
		if err == nil {
			e.healed(ctx, ref, first(names), source)
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(why, blobstore.ErrDamaged) { // and not a full disk, say
			e.mu.Lock()
			if len(e.hopeless) > 1<<16 {
				clear(e.hopeless)
			}
			e.hopeless[ref.Hash] = true // the search takes minutes: once is enough
			e.mu.Unlock()
		}
	}
	return e.rollBackUsers(ctx, ref)
}
