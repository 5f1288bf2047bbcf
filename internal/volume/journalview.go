package volume

import (
	"context"
	"fmt"
	"time"

	"holdfast/catalog"
)

// JournalView is catalog.JournalView.
func (v *Volume) JournalView() catalog.JournalView { return v.cat.JournalView() }

// FindVersion returns the version of a path that is meant by a moment, without reading its content. ErrNotExist when there is none.
func (v *Volume) FindVersion(ctx context.Context, p string, at Moment) (catalog.Version, error) {
	var found *catalog.Version
	err := v.walkVersions(ctx, p, func(number int, ver catalog.Version, removed time.Time) error {
		when := removed
		if number > 0 {
			when = time.Unix(0, ver.Time)
		}
		switch {
		case at.Number > 0:
			if number == at.Number {
				found = &ver
			}
		case at.Seq > 0 && ver.Seq > at.Seq, !at.Time.IsZero() && when.After(at.Time):
		case number == 0:
			found = nil
		default:
			found = &ver
		}
		return nil
	})
	if err != nil {
		return catalog.Version{}, err
	}
	if found == nil {
		return catalog.Version{}, fmt.Errorf("%s: %w: it has no such version; `holdfast log` lists them", p, catalog.ErrNotExist)
	}
	return *found, nil
}
