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
	// maxSeen bounds the blobs that one check remembers, so as not to read them twice.
	maxSeen = 1 << 17
	// clockSlack is how far a time may lie in the future: clocks are set.
	clockSlack = 2 * time.Minute
	// maxDepth bounds how deep directories are nested.
	maxDepth = 1 << 12
)

// checker is one check in progress, by one goroutine.
type checker struct {
	e    *Engine
	o    CheckOptions
	fn   func(Result) error
	sum  Summary
	seen map[blobstore.Hash]bool // whether it is healthy

	journal *catalog.JournalReport // of the one attempt to heal the journal

	records, rows *walk // through the journal and catalog.db
}

func (e *Engine) newChecker(o CheckOptions, fn func(Result) error) *checker {
	if e.vol.ReadOnly() {
		o.Repair = false
	}
	return &checker{e: e, o: o, fn: fn, seen: make(map[blobstore.Hash]bool), records: new(walk), rows: new(walk)}
}

// Check makes the five checks of a file, or of every file below a directory, and calls fn with each result that failed (with o.Passed each), until fn returns an error, which
// Check returns. Everything is checked in one pass, whatever fails. An error says that the check could not be made: catalog.ErrNotExist.
func (e *Engine) Check(ctx context.Context, p string, o CheckOptions, fn func(Result) error) (Summary, error) {
	began := e.now()
	c := e.newChecker(o, fn)
	p = path.Clean("/" + p)
	row, err := e.vol.Resolve(ctx, p)
	if err != nil {
		return c.sum, err
	}
	err = c.entry(ctx, p, row, 0)
	c.sum.Took = e.now().Sub(began)
	return c.sum, err
}

// CheckStore checks the whole store: every blob and second copy, the catalog against the journal, the journal, and the versions of every file, removed ones included.
func (e *Engine) CheckStore(ctx context.Context, o CheckOptions, fn func(Result) error) (Summary, error) {
	began := e.now()
	c := e.newChecker(o, fn)
	pos := position{Phase: phaseBlobs}
	var err error
	for pos.Phase != phaseDone && err == nil {
		err = c.step(ctx, &pos)
	}
	c.sum.Took = e.now().Sub(began)
	return c.sum, err
}

func (c *checker) entry(ctx context.Context, p string, row catalog.Inode, depth int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	switch row.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return c.file(ctx, p, row.Ino)
	case unix.S_IFDIR:
	default:
		return nil
	}
	if depth > maxDepth {
		return fmt.Errorf("%s: %w: the directories are nested too deep", p, catalog.ErrTooBig)
	}
	for after := uint64(0); ; {
		entries, err := c.e.vol.ReadDir(ctx, row.Ino, after, 512)
		if err != nil {
			return c.unreadable(ctx, p, fmt.Sprintf("inode %d", row.Ino), err)
		}
		if len(entries) == 0 {
			return nil
		}
		for i := range entries {
			after = entries[i].Cookie
			if err := c.entry(ctx, path.Join(p, entries[i].Name), entries[i].Inode, depth+1); err != nil {
				return err
			}
		}
	}
}

// unreadable reports that the catalog could not be read; an error that is no damage ends the check.
func (c *checker) unreadable(ctx context.Context, p, id string, err error) error {
	if !errors.Is(err, catalog.ErrDamaged) || ctx.Err() != nil {
		return err
	}
	return c.failed(ctx, c.e.result(Checksum, id, p), err.Error())
}

// failed reports a failed check of something that is not a blob.
func (c *checker) failed(ctx context.Context, r Result, details string) error {
	r.Passed, r.Details = false, details
	c.sum.Failed++
	c.e.note(ctx, &r)
	return c.fn(r)
}

func (c *checker) passed(r Result, details string) error {
	c.sum.Checks++
	if !c.o.Passed {
		return nil
	}
	r.Details = details
	return c.fn(r)
}

// file makes the five checks of a file: of its inode, and with o.Versions of all that the path led to.
func (c *checker) file(ctx context.Context, p string, ino catalog.Ino) error {
	c.sum.Files++
	inodes := []catalog.Ino{ino}
	if c.o.Versions {
		spans, err := c.e.vol.PathHistory(ctx, p)
		if err != nil && !errors.Is(err, catalog.ErrNotExist) {
			return c.unreadable(ctx, p, fmt.Sprintf("inode %d", ino), err)
		}
		for _, s := range spans {
			if s.Ino != ino && s.Type&unix.S_IFMT == unix.S_IFREG {
				inodes = append(inodes, s.Ino)
			}
		}
	}
	done := make(map[catalog.Ino]bool)
	for _, ino := range inodes {
		if done[ino] {
			continue
		}
		done[ino] = true
		if err := c.checksum(ctx, p, ino); err != nil {
			return err
		}
		if err := c.chain(ctx, p, ino, c.o.Versions); err != nil {
			return err
		}
	}
	return nil
}

// checksum checks what a file is made of.
func (c *checker) checksum(ctx context.Context, p string, ino catalog.Ino) error {
	id := fmt.Sprintf("inode %d", ino)
	bad, blobs := int64(0), int64(0)
	look := func(ref blobstore.Ref) error {
		blobs++
		ok, err := c.blob(ctx, p, ref)
		if !ok {
			bad++
		}
		return err
	}
	live, err := c.e.cat.Extents(ctx, ino, catalog.Head)
	if errors.Is(err, catalog.ErrStale) {
		return nil // retention has taken it away
	}
	if err != nil {
		return c.unreadable(ctx, p, id, err)
	}
	for i := range live {
		if err := look(live[i].Blob); err != nil {
			return err
		}
	}
	if c.o.Versions {
		for after := (catalog.BlobUser{}); ; {
			page, err := c.e.cat.InodeBlobs(ctx, ino, after, 512)
			if err != nil {
				return c.unreadable(ctx, p, id, err)
			}
			if len(page) == 0 {
				break
			}
			for i := range page {
				if err := look(page[i].Extent.Blob); err != nil {
					return err
				}
			}
			after = page[len(page)-1]
		}
	}
	if bad == 0 {
		return c.passed(c.e.result(Checksum, id, p), fmt.Sprintf("%d extents of content are intact", blobs))
	}
	c.sum.Checks++
	return nil
}

// blob checks one blob, heals it if it may, and reports what was found. It says whether the blob is healthy now.
func (c *checker) blob(ctx context.Context, p string, ref blobstore.Ref) (bool, error) {
	if ok, known := c.seen[ref.Hash]; known {
		return ok, nil
	}
	healthy, err := c.freshBlob(ctx, p, ref)
	if err != nil {
		return false, err
	}
	if len(c.seen) >= maxSeen {
		clear(c.seen)
	}
	c.seen[ref.Hash] = healthy
	return healthy, nil
}

func (c *checker) freshBlob(ctx context.Context, p string, ref blobstore.Ref) (bool, error) {
	if err := c.e.cat.Pin(ctx, ref.Hash); err != nil {
		return false, err
	}
	defer c.e.cat.Unpin(ref.Hash)
	c.sum.Blobs++
	c.sum.Bytes += ref.Size
	found, err := c.e.inspect(ctx, ref)
	cause := damageOf(ref, found, err)
	if cause == nil {
		if err != nil {
			if ctx.Err() != nil {
				return false, ctx.Err()
			}
			c.sum.Skipped++
			c.e.log.Warn("a blob cannot be checked", "blob", ref.Hash, "error", err)
		} else if c.o.Repair {
			c.e.unlist(ctx, ref.Hash.String())
		}
		return err == nil, nil
	}
	if known, ok, err := c.e.cat.HasBlob(ctx, ref.Hash); err != nil || !ok {
		return true, err // it has gone with the history that named it
	} else if known != ref {
		return false, c.failed(ctx, c.e.result(SizeVerification, ref.Hash.String(), p),
			fmt.Sprintf("an extent says that the blob has %d bytes, the list of blobs %d, or they disagree about its root", ref.Size, known.Size))
	}
	r := c.e.result(Checksum, ref.Hash.String(), p)
	if p == "" {
		r.Path = first(c.e.paths(ctx, ref.Hash))
	}
	r.Passed, r.Details = false, cause.Error()
	c.sum.Failed++
	if c.o.Repair {
		healErr := c.e.heal(ctx, ref, true)
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		r.RecoveryAttempted, r.RecoverySuccessful = true, healErr == nil
		if healErr == nil {
			c.sum.Healed++
		} else {
			r.Details += "; " + healErr.Error()
		}
	} else {
		c.e.note(ctx, &r)
		c.e.list(ctx, &damagedRow{dataID: r.DataID, size: ref.Size, root: ref.Root, since: c.e.now(), details: r.Details})
	}
	return r.Healthy(), c.fn(r)
}

// chain makes the checks of a file's versions and of their sizes; deep ones compute the digest of each anew from its record, which reads the journal.
func (c *checker) chain(ctx context.Context, p string, ino catalog.Ino, deep bool) error {
	id := fmt.Sprintf("inode %d", ino)
	v, err := c.e.readVersions(ctx, ino)
	switch {
	case errors.Is(err, catalog.ErrStale):
		return nil
	case err != nil:
		return c.unreadable(ctx, p, id, err)
	}
	c.e.listVersions(ctx, id, &v)
	if deep && v.n > 0 {
		_, _, err := c.e.cat.VerifyVersions(ctx, ino, func(x catalog.VersionProblem) error {
			if x.Kind == catalog.ProblemDigest || x.Kind == catalog.ProblemRecord { // the others were looked for above
				add(&v.chain, "version %d: %s", x.Num, x.Detail)
			}
			return nil
		})
		if err != nil && !errors.Is(err, catalog.ErrStale) {
			return c.unreadable(ctx, p, id, err)
		}
	}
	for _, x := range []struct {
		t        CheckType
		problems []string
		fine     string
	}{
		{HashChain, v.chain, fmt.Sprintf("each of %d versions names the one before", v.n)},
		{Timestamp, v.times, fmt.Sprintf("the times of %d versions are in order", v.n)},
		{SizeVerification, v.sizes, "sizes agree"},
		{VersionControl, v.numbers, fmt.Sprintf("%d versions, the newest is number %d", v.n, v.head)},
	} {
		r := c.e.result(x.t, id, p)
		if len(x.problems) == 0 {
			if err := c.passed(r, x.fine); err != nil {
				return err
			}
			continue
		}
		c.sum.Checks++
		for _, text := range x.problems {
			if err := c.failed(ctx, c.e.result(x.t, id, p), text); err != nil {
				return err
			}
		}
	}
	return nil
}

// versionFacts is what the checks of a file's versions found.
type versionFacts struct {
	n, head                      uint64
	chain, times, sizes, numbers []string
}

// problems are not listed without end.
const maxProblems = 20

func add(list *[]string, format string, args ...any) {
	if len(*list) < maxProblems {
		*list = append(*list, fmt.Sprintf(format, args...))
	}
}

// readVersions walks the versions of a file, beside changes of it.
func (e *Engine) readVersions(ctx context.Context, ino catalog.Ino) (f versionFacts, err error) {
	for range 3 {
		row, err := e.cat.Get(ctx, ino)
		if err != nil {
			return f, err
		}
		f, err = e.versionsOf(ctx, &row)
		if err != nil {
			return f, err
		}
		now, err := e.cat.Get(ctx, ino)
		if err != nil || now.Ver == row.Ver && now.Size == row.Size {
			return f, err
		}
	}
	return f, nil
}

func (e *Engine) versionsOf(ctx context.Context, row *catalog.Inode) (f versionFacts, err error) {
	var last catalog.Version
	soon := e.now().Add(clockSlack).UnixNano()
	err = e.cat.Versions(ctx, row.Ino, false, func(v catalog.Version) error {
		if v.Num > row.Ver {
			return nil // made since
		}
		f.n++
		switch {
		case f.n > 1 && v.Num <= last.Num:
			add(&f.numbers, "version %d comes behind version %d", v.Num, last.Num)
		case f.n > 1 && v.Num == last.Num+1 && v.Prev != last.Digest:
			add(&f.chain, "version %d names another predecessor than version %d", v.Num, last.Num)
		case v.Num == 1 && v.Prev != (blobstore.Hash{}):
			add(&f.chain, "the first version names a predecessor")
		case v.Num > last.Num+1 && !e.thinned(ctx, row.Ino, &last, &v):
			add(&f.numbers, "versions %d to %d are missing, and retention has not taken them", last.Num+1, v.Num-1)
		}
		if f.n > 1 && v.Time < last.Time {
			add(&f.times, "version %d is older than version %d by %v", v.Num, last.Num, time.Duration(last.Time-v.Time))
		}
		if v.Time > soon {
			add(&f.times, "version %d is of %s, which is in the future: the clock was set back since, or is wrong", v.Num, time.Unix(0, v.Time).UTC().Format(time.RFC3339))
		}
		if f.n > 1 && v.Seq <= last.Seq {
			add(&f.numbers, "version %d was recorded before version %d", v.Num, last.Num)
		}
		if v.Size < 0 || v.Size > catalog.MaxSize {
			add(&f.sizes, "version %d has %d bytes", v.Num, v.Size)
		}
		last = v
		return nil
	})
	if err != nil {
		return f, err
	}
	f.head = row.Ver
	if row.Ver > 0 && last.Num != row.Ver {
		add(&f.numbers, "the file says that its newest version is number %d; the newest is %d", row.Ver, last.Num)
	}
	return f, e.sizesOf(ctx, row, &f)
}

// thinned says whether retention has taken what was between two versions.
func (e *Engine) thinned(ctx context.Context, ino catalog.Ino, last, v *catalog.Version) bool {
	return e.cat.Exact(ctx, ino, max(last.Seq, 1)) != nil || e.cat.Exact(ctx, ino, v.Seq-1) != nil
}

// sizesOf compares what a file is made of with its size, and with what the blob store says.
func (e *Engine) sizesOf(ctx context.Context, row *catalog.Inode, f *versionFacts) error {
	if row.Size < 0 || row.Size > catalog.MaxSize {
		add(&f.sizes, "the file has %d bytes", row.Size)
	}
	list, err := e.cat.Extents(ctx, row.Ino, catalog.Head)
	if err != nil {
		return err
	}
	end := int64(0)
	seen := make(map[blobstore.Hash]bool)
	for _, x := range list {
		switch {
		case x.Off < end:
			add(&f.sizes, "the extent at %d overlaps the one before", x.Off)
		case x.Len <= 0 || x.Off < 0 || x.Off > row.Size-x.Len:
			add(&f.sizes, "the extent at %d has %d bytes, and the file ends at %d", x.Off, x.Len, row.Size)
		case x.BlobOff < 0 || x.BlobOff > x.Blob.Size-x.Len:
			add(&f.sizes, "the extent at %d reaches over the end of its blob %s", x.Off, x.Blob.Hash)
		}
		end = x.Off + x.Len
		if seen[x.Blob.Hash] || len(seen) >= 1<<14 {
			continue
		}
		seen[x.Blob.Hash] = true
		if _, ok := e.cat.PendingBody(x.Blob.Hash); ok {
			continue
		}
		sc, err := e.blobs.Sidecar(ctx, x.Blob.Hash)
		switch {
		case isDamage(err): // CHECKSUM says so
		case err != nil:
			return err
		case sc.Size != x.Blob.Size:
			add(&f.sizes, "the sidecar of blob %s says %d bytes, the catalog %d", x.Blob.Hash, sc.Size, x.Blob.Size)
		}
	}
	return nil
}

var _ volume.Guard = (*Engine)(nil)
