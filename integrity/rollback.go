package integrity

import (
	"context"
	"errors"
	"fmt"
	"path"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/blobstore"
	"holdfast/catalog"
	"holdfast/internal/volume"
)

const (
	// maxBack bounds the versions of a path that are looked at for one that is intact.
	maxBack = 1000
	// maxRounds bounds the moments that are tried for a directory.
	maxRounds = 64
)

// rollBackUsers takes the files that have a damaged blob now back to their last intact versions, where the policy of their directory allows it.
func (e *Engine) rollBackUsers(ctx context.Context, ref blobstore.Ref) error {
	if e.opt.Restore == nil {
		return nil
	}
	users, err := e.users(ctx, ref.Hash)
	if err != nil {
		return err
	}
	set := e.vol.Settings()
	var errs []error
	for _, u := range users {
		if !u.now || u.path == "" {
			continue
		}
		if set.RollbackOf(u.path) != volume.RollbackAutomatic {
			e.tell(EventManual, ref.Hash.String(), u.path, "damaged; an earlier version may be intact, and the policy of the directory is to ask: holdfast recover "+u.path)
			continue
		}
		_, err := e.rollBack(ctx, u.path, ref.Hash.String(), false)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// intact is a memory of which blobs are intact, for as long as one question is answered.
type intact struct {
	e     *Engine
	known map[blobstore.Hash]bool
}

func (e *Engine) remember() *intact { return &intact{e, make(map[blobstore.Hash]bool)} }

// blob reports whether a blob can be read, as it is or after it was healed.
func (k *intact) blob(ctx context.Context, ref blobstore.Ref) (bool, error) {
	if ok, known := k.known[ref.Hash]; known {
		return ok, nil
	}
	found, err := k.e.inspect(ctx, ref)
	cause := damageOf(ref, found, err)
	switch {
	case cause == nil && err != nil:
		return false, err
	case cause != nil && contentDamaged(found) || cause != nil && err != nil:
		cause = k.e.Heal(ctx, ref, cause)
	default:
		cause = nil
	}
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	if len(k.known) > 1<<16 {
		clear(k.known)
	}
	k.known[ref.Hash] = cause == nil
	return cause == nil, nil
}

// inspect is Inspect; a body that has not reached the blob store yet is intact.
func (e *Engine) inspect(ctx context.Context, ref blobstore.Ref) ([]blobstore.Finding, error) {
	for try := 0; ; try++ {
		if _, ok := e.cat.PendingBody(ref.Hash); ok {
			return nil, nil
		}
		found, err := e.guarded.Inspect(ctx, ref)
		if errors.Is(err, blobstore.ErrNotFound) && try == 0 {
			continue
		}
		return found, err
	}
}

// file reports whether all that a file had after the record at can be read.
func (k *intact) file(ctx context.Context, ino catalog.Ino, at catalog.Seq) (bool, error) {
	list, err := k.e.cat.Extents(ctx, ino, at)
	if err != nil {
		return false, err
	}
	for i := range list {
		if ok, err := k.blob(ctx, list[i].Blob); !ok || err != nil {
			return false, err
		}
	}
	return true, nil
}

// lastIntact finds the newest version of a path that is intact, apart from the newest of all, and the moment that shows it.
func (e *Engine) lastIntact(ctx context.Context, p string, k *intact) (at catalog.Seq, number uint64, err error) {
	spans, err := e.vol.PathHistory(ctx, p)
	if err != nil {
		return 0, 0, err
	}
	eras, err := e.vol.Eras(ctx, spans, nil)
	if err != nil {
		return 0, 0, err
	}
	looked := 0
	for i := len(eras) - 1; i >= 0; i-- {
		era := &eras[i]
		for num := era.Last; num >= era.First && num > 0 && looked < maxBack; num-- {
			ver, err := e.cat.Version(ctx, era.Ino, num)
			if errors.Is(err, catalog.ErrNotExist) {
				continue // thinned away
			}
			if err != nil {
				return 0, 0, err
			}
			looked++
			at, err := e.cat.ExactFrom(ctx, era.Ino, max(ver.Seq, era.From))
			if err != nil {
				return 0, 0, err
			}
			if at >= era.To {
				continue
			}
			ok, err := k.file(ctx, era.Ino, at)
			if err != nil && ctx.Err() != nil {
				return 0, 0, err
			}
			if ok && err == nil {
				return at, era.Number(num), nil
			}
		}
	}
	return 0, 0, fmt.Errorf("%s: %w: none of its versions is intact", p, ErrNotHealed)
}

// rollBack makes the last intact version of a path its newest one.
func (e *Engine) rollBack(ctx context.Context, p, dataID string, dryRun bool) (Attempt, error) {
	began := e.now()
	a := Attempt{Time: began.UTC(), DataID: dataID, Path: p, Strategy: VersionRollback}
	err := errors.New("rollbacks need the history of the store, which this program has not opened")
	if e.opt.Restore != nil {
		var at catalog.Seq
		var number uint64
		if at, number, err = e.lastIntact(ctx, p, e.remember()); err == nil {
			a.Source = fmt.Sprintf("version %d (@v%d)", number, at)
			err = e.opt.Restore(ctx, p, at, dryRun)
		}
	}
	return a, e.rolledBack(ctx, &a, began, err, dryRun)
}

func (e *Engine) rolledBack(ctx context.Context, a *Attempt, began time.Time, err error, dryRun bool) error {
	a.Took, a.Successful = e.now().Sub(began), err == nil
	if err != nil {
		a.Details = err.Error()
	}
	if dryRun {
		return err
	}
	e.record(ctx, a)
	if err == nil {
		e.tell(EventRollback, a.DataID, a.Path, a.Path+" was taken back to "+a.Source+", which is intact")
	}
	return err
}

// rollBackDir takes a directory back to its last moment at which all that is in it was intact.
func (e *Engine) rollBackDir(ctx context.Context, dir string, dryRun bool) (Attempt, error) {
	began := e.now()
	a := Attempt{Time: began.UTC(), DataID: "directory", Path: dir, Strategy: TimestampRollback}
	err := errors.New("rollbacks need the history of the store, which this program has not opened")
	if e.opt.Restore != nil {
		var at catalog.Seq
		if at, err = e.lastIntactMoment(ctx, dir); err == nil {
			a.Source = fmt.Sprintf("@v%d", at)
			if t, err := e.cat.TimeOf(ctx, at); err == nil {
				a.Source = fmt.Sprintf("%s (@v%d)", t.UTC().Format(time.RFC3339), at)
			}
			err = e.opt.Restore(ctx, dir, at, dryRun)
		}
	}
	return a, e.rolledBack(ctx, &a, began, err, dryRun)
}

// lastIntactMoment goes back from now: whenever a file of the tree is damaged at a moment, the next moment to try is before the record that made it so.
func (e *Engine) lastIntactMoment(ctx context.Context, dir string) (catalog.Seq, error) {
	k := e.remember()
	at, err := e.vol.Newest(ctx)
	if err != nil {
		return 0, err
	}
	for range maxRounds {
		row, err := e.vol.ResolveAt(ctx, dir, at)
		if err != nil {
			return 0, fmt.Errorf("%s: %w: no moment of it is intact (%w)", dir, ErrNotHealed, err)
		}
		before := at
		if err := k.earliest(ctx, row.Ino, at, &before, 0); err != nil {
			return 0, err
		}
		if before == at {
			return at, nil
		}
		if before == 0 {
			break
		}
		at = before
	}
	return 0, fmt.Errorf("%s: %w: no moment of it is intact", dir, ErrNotHealed)
}

// earliest lowers before to behind which nothing of what is damaged below dir at the moment was written.
func (k *intact) earliest(ctx context.Context, dir catalog.Ino, at catalog.Seq, before *catalog.Seq, depth int) error {
	const deepest = 1 << 12
	if depth > deepest {
		return fmt.Errorf("%w: the directories are nested too deep", catalog.ErrTooBig)
	}
	for after := uint64(0); ; {
		entries, err := k.e.vol.ReadDirAt(ctx, dir, after, 512, at)
		if err != nil {
			return err
		}
		if len(entries) == 0 {
			return nil
		}
		for i := range entries {
			x := &entries[i]
			after = x.Cookie
			switch {
			case x.Thinned:
			case x.Inode.Mode&unix.S_IFMT == unix.S_IFDIR:
				err = k.earliest(ctx, x.Inode.Ino, at, before, depth+1)
			case x.Inode.Mode&unix.S_IFMT == unix.S_IFREG:
				err = k.since(ctx, x.Inode.Ino, at, before)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", x.Name, err)
			}
		}
	}
}

// since lowers before to behind the record that put what is damaged into a file.
func (k *intact) since(ctx context.Context, ino catalog.Ino, at catalog.Seq, before *catalog.Seq) error {
	list, err := k.e.cat.Extents(ctx, ino, at)
	if err != nil {
		return err
	}
	for i := range list {
		ok, err := k.blob(ctx, list[i].Blob)
		if err != nil {
			return err
		}
		if ok {
			continue
		}
		users, err := k.e.cat.BlobUsers(ctx, list[i].Blob.Hash, 16*maxPaths)
		if err != nil {
			return err
		}
		for _, u := range users {
			if u.Ino != ino || u.From > at || u.From == 0 {
				continue
			}
			was, err := k.beforeEmpty(ctx, ino, u.From-1)
			if err != nil {
				return err
			}
			*before = min(*before, was)
		}
	}
	return nil
}

// Recover heals what is damaged of a path, a file or all that is below a directory, by the strategies of o, in their order. A rollback that was asked for by its name, or is
// the only thing left, is made whatever the policy is. catalog.ErrNotExist; ErrNotHealed when damage is left.
func (e *Engine) Recover(ctx context.Context, p string, o RecoverOptions) (Recovery, error) {
	p = path.Clean("/" + p)
	rec := Recovery{Path: p, DryRun: o.DryRun, Attempts: []Attempt{}}
	row, err := e.vol.Resolve(ctx, p)
	if err != nil {
		return rec, err
	}
	isDir := row.Mode&unix.S_IFMT == unix.S_IFDIR
	switch o.Strategy {
	case TimestampRollback:
		if !isDir {
			return rec, fmt.Errorf("%s: %w: %s is for directories; use %s for a file", p, ErrStrategy, o.Strategy, VersionRollback)
		}
		return e.recoverDir(ctx, rec)
	case VersionRollback:
		if isDir {
			return rec, fmt.Errorf("%s: %w: %s is for one file; use %s for a directory", p, ErrStrategy, o.Strategy, TimestampRollback)
		}
		a, err := e.rollBack(ctx, p, "inode "+fmt.Sprint(row.Ino), o.DryRun)
		rec.Attempts, rec.Healthy = append(rec.Attempts, a), err == nil && !o.DryRun
		rec.Plan = fmt.Sprintf("%s becomes what it was at %s", p, a.Source)
		return rec, err
	case "", ChecksumMatch, BackupRestore, ManualRecovery:
	default:
		return rec, fmt.Errorf("%w: %q", ErrStrategy, o.Strategy)
	}
	return e.recoverBlobs(ctx, rec, o)
}

func (e *Engine) recoverDir(ctx context.Context, rec Recovery) (Recovery, error) {
	a, err := e.rollBackDir(ctx, rec.Path, rec.DryRun)
	rec.Attempts, rec.Healthy = append(rec.Attempts, a), err == nil && !rec.DryRun
	rec.Plan = fmt.Sprintf("all of %s becomes what it was at %s", rec.Path, a.Source)
	return rec, err
}

// recoverBlobs mends the damaged blobs of a path one by one, then rolls back the files that are still damaged if all strategies were asked for.
func (e *Engine) recoverBlobs(ctx context.Context, rec Recovery, o RecoverOptions) (Recovery, error) {
	var left []string // paths of files whose newest version is damaged
	damaged := make(map[string]bool)
	began := e.now()
	sum, err := e.Check(ctx, rec.Path, CheckOptions{Versions: o.Versions}, func(r Result) error {
		ref, ok := e.damagedRef(ctx, &r)
		if !ok || damaged[r.DataID] {
			return nil
		}
		damaged[r.DataID] = true
		rec.Damaged++
		if o.DryRun {
			rec.Plan += fmt.Sprintf("%s (blob %s): %s; ", r.Path, r.DataID, r.Details)
			return nil
		}
		if err := e.healBy(ctx, ref, o.Strategy, r.Path); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			left = append(left, r.Path)
		}
		return nil
	})
	if err != nil {
		return rec, err
	}
	if o.DryRun {
		rec.Healthy = sum.Failed == 0
		if rec.Damaged > 0 {
			rec.Plan += "each is tried by " + fmt.Sprint(Strategies())
		}
		return rec, nil
	}
	err = e.Recoveries(ctx, 0, func(_ int64, a Attempt) error {
		if damaged[a.DataID] && !a.Time.Before(began.UTC()) {
			rec.Attempts = append(rec.Attempts, a)
		}
		return nil
	})
	if err != nil {
		return rec, err
	}
	var failed []error
	for _, p := range left {
		if o.Strategy != "" {
			failed = append(failed, fmt.Errorf("%s: %w", p, ErrNotHealed))
			continue
		}
		a, err := e.rollBack(ctx, p, "file", false)
		rec.Attempts = append(rec.Attempts, a)
		if err != nil {
			failed = append(failed, err)
		}
	}
	rec.Healthy = len(failed) == 0
	return rec, errors.Join(failed...)
}

// damagedRef is the blob that a failed check is about; false when it is about something else.
func (e *Engine) damagedRef(ctx context.Context, r *Result) (blobstore.Ref, bool) {
	if r.Passed || r.Type != Checksum {
		return blobstore.Ref{}, false
	}
	h, err := blobstore.ParseHash(r.DataID)
	if err != nil {
		return blobstore.Ref{}, false
	}
	ref, ok, err := e.cat.HasBlob(ctx, h)
	return ref, ok && err == nil
}

// healBy mends a blob by one strategy, or by all that give its own bytes back.
func (e *Engine) healBy(ctx context.Context, ref blobstore.Ref, s Strategy, p string) error {
	if s == "" {
		return e.heal(ctx, ref, true)
	}
	found, err := e.guarded.Inspect(ctx, ref)
	if err != nil && !isDamage(err) {
		return err
	}
	if s == ManualRecovery {
		cause := damageOf(ref, found, err)
		r := e.result(Checksum, ref.Hash.String(), p)
		if cause != nil {
			r.Details = cause.Error()
		}
		kept, err := e.quarantine(ctx, ref.Hash)
		if err != nil {
			return err
		}
		e.tell(EventManual, r.DataID, p, "waits for a person: see .integrity/manual")
		return e.giveUp(ctx, ref, &r, kept, []string{p})
	}
	var list []remedy
	for _, r := range e.remedies(ref, found, true) {
		if r.strategy == s {
			list = append(list, r)
		}
	}
	source, _, err := e.try(ctx, ref, found, list, p)
	if err == nil {
		e.healed(ctx, ref, p, source)
	}
	return err
}

// beforeEmpty goes back from the record at for as long as the file was there and had no version yet: a file that is being made is no state to go back to.
func (k *intact) beforeEmpty(ctx context.Context, ino catalog.Ino, at catalog.Seq) (catalog.Seq, error) {
	const most = 1000
	for range most {
		if at == 0 {
			break
		}
		row, err := k.e.cat.GetAt(ctx, ino, at)
		if errors.Is(err, catalog.ErrStale) || errors.Is(err, catalog.ErrNotExist) {
			break
		}
		if err != nil {
			return 0, err
		}
		if row.Ver > 0 || row.Nlink == 0 {
			break
		}
		at--
	}
	return at, nil
}
