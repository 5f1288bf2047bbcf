package catalog

import (
	"context"
	"errors"
	"fmt"

	"holdfast/catalog/journal"
)

// VersionProblem is something wrong with a version of an inode.
type VersionProblem struct {
	Num    uint64 `json:"version"`
	Kind   string `json:"kind"` // one of the Problem constants
	Detail string `json:"detail"`
}

const (
	ProblemDigest = "digest" // it is not what its digest says, or the catalog and the journal say different things
	ProblemLink   = "link"   // it does not name the digest of the version before
	ProblemNumber = "number" // a number is missing that retention has not taken, or comes twice
	ProblemTime   = "time"   // it is older than the version before
	ProblemRecord = "record" // its record cannot be read
)

// VerifyVersions computes the chain of an inode's versions anew from the journal: the digest of each from its record, the link to the version before,
// numbers without gap (but for those that retention has taken), times that do not go back, and that catalog.db says the same. fn is called with each problem; its error ends it.
// It returns how many versions there are, and how many of them were proved by their record: compaction may have dropped what older ones said. It reads the
// journal from the first version to the last. ErrStale when there is no such inode.
func (c *Catalog) VerifyVersions(ctx context.Context, ino Ino, fn func(VersionProblem) error) (versions, proved int, err error) {
	v := &versionVerifier{c: c, ctx: ctx, ino: ino, fn: fn, rows: versionRows{c: c, ino: ino}}
	row, err := c.Get(ctx, ino)
	if err != nil {
		return 0, 0, err
	}
	v.end = row.Ver + 1
	if err := v.rows.next(ctx); err != nil {
		return 0, 0, err
	}
	if v.rows.ok {
		if err := v.journal(v.rows.v.Seq); err != nil {
			return v.versions, v.proved, err
		}
	}
	for v.rows.ok { // behind the last record that was read
		if err := v.take(nil); err != nil {
			return v.versions, v.proved, err
		}
	}
	if v.last.Num+1 < v.end {
		err := v.problem(v.last.Num+1, ProblemNumber, "the newest versions, up to %d, are missing", v.end-1)
		if err != nil {
			return v.versions, v.proved, err
		}
	}
	return v.versions, v.proved, nil
}

type versionVerifier struct {
	c    *Catalog
	ctx  context.Context
	ino  Ino
	fn   func(VersionProblem) error
	rows versionRows

	end              uint64 // behind the newest number
	last             Version
	versions, proved int
	lost             []*journal.DamageError
}

func (v *versionVerifier) problem(num uint64, kind, format string, args ...any) error {
	return v.fn(VersionProblem{Num: num, Kind: kind, Detail: fmt.Sprintf(format, args...)})
}

// journal reads the records from from on, until no version is left.
func (v *versionVerifier) journal(from Seq) error {
	enough := errors.New("enough")
	for {
		var inner error
		err := v.c.Records(v.ctx, from, func(r Record) error {
			from = r.Seq + 1
			for i := range r.Versions {
				if x := &r.Versions[i]; x.Ino == v.ino && inner == nil {
					inner = v.record(&r, x)
				}
			}
			if inner == nil && !v.rows.ok {
				inner = enough
			}
			return inner
		})
		var d *journal.DamageError
		switch {
		case errors.Is(inner, enough):
			return nil
		case inner != nil:
			return inner
		case errors.As(err, &d) && Seq(d.Last) >= from:
			v.lost = append(v.lost, d)
			from = Seq(d.Last) + 1
		case errors.Is(err, ErrDamaged) && d == nil: // a record that does not decode
			v.lost = append(v.lost, &journal.DamageError{First: uint64(from), Last: uint64(from), Why: err.Error()})
			from++
		default:
			return err
		}
	}
}

// record is a version that the journal has.
func (v *versionVerifier) record(r *Record, x *Version) error {
	for v.rows.ok && v.rows.v.Num < x.Num {
		if err := v.take(nil); err != nil {
			return err
		}
	}
	splice := Splice{Ino: x.Ino, Cut: NoCut}
	for i := range r.Splices {
		if r.Splices[i].Ino == x.Ino {
			splice = r.Splices[i]
		}
	}
	if got := VersionDigest(*x, splice); got != x.Digest {
		if err := v.problem(x.Num, ProblemDigest, "record %d states the digest %s, and what it says has the digest %s", r.Seq, x.Digest, got); err != nil {
			return err
		}
	}
	if !v.rows.ok || v.rows.v.Num != x.Num {
		return nil // retention took it, or the gap is reported by its number
	}
	x.Seq = r.Seq
	return v.take(x)
}

// take goes on to the next version of the catalog; said is what its record says, nil when there is none.
func (v *versionVerifier) take(said *Version) error {
	row := v.rows.v
	v.versions++
	if said != nil {
		v.proved++
		if row != *said {
			if err := v.problem(row.Num, ProblemDigest, "catalog.db does not say what record %d says", said.Seq); err != nil {
				return err
			}
		}
	} else {
		for _, d := range v.lost {
			if uint64(row.Seq) >= d.First && uint64(row.Seq) <= d.Last {
				if err := v.problem(row.Num, ProblemRecord, "record %d cannot be read: %v", row.Seq, d); err != nil {
					return err
				}
			}
		}
	}
	if err := v.follows(&row); err != nil {
		return err
	}
	v.last = row
	return v.rows.next(v.ctx)
}

// follows checks a version against the one before.
func (v *versionVerifier) follows(row *Version) error {
	last := &v.last
	switch {
	case row.Num != last.Num+1:
		if err := v.gap(last.Num+1, row); err != nil {
			return err
		}
	case row.Prev != last.Digest:
		if err := v.problem(row.Num, ProblemLink, "it names %s as the digest of the version before, which is %s", row.Prev, last.Digest); err != nil {
			return err
		}
	}
	if last.Num > 0 && (row.Time < last.Time || row.Seq <= last.Seq) {
		return v.problem(row.Num, ProblemTime, "it is of %s (record %d), and the version before of %s (record %d)",
			unixTime(row.Time), row.Seq, unixTime(last.Time), last.Seq)
	}
	return nil
}

// gap is about the numbers from from on and below that of row, which have no rows. Of the versions that retention takes away the newest stays, so that
// moments right before it are in the gap.
func (v *versionVerifier) gap(from uint64, row *Version) error {
	if row.Num <= from || row.Seq == 0 {
		return v.problem(row.Num, ProblemNumber, "version %d follows version %d", row.Num, v.last.Num)
	}
	_, before, err := v.c.gapAt(v.ctx, v.ino, row.Seq-1)
	if err != nil || before > 0 {
		return err
	}
	return v.problem(from, ProblemNumber, "the versions %d to %d are missing, and retention has not taken them", from, row.Num-1)
}

// versionRows are the versions of an inode, in order, as the catalog has them.
type versionRows struct {
	c    *Catalog
	ino  Ino
	page []Version
	from uint64
	v    Version
	ok   bool
}

func (r *versionRows) next(ctx context.Context) (err error) {
	if len(r.page) == 0 {
		if r.page, err = r.c.VersionRange(ctx, r.ino, r.from, maxIno); err != nil {
			return err
		}
	}
	if r.ok = len(r.page) > 0; r.ok {
		r.v, r.page = r.page[0], r.page[1:]
		r.from = r.v.Num + 1
	}
	return nil
}
