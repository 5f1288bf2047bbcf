package sqldb

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
	"zombiezen.com/go/sqlite"
)

// Errors; each is matched with errors.Is. ErrFull also matches ENOSPC, ErrIO also EIO.
var (
	ErrCorrupt    = errors.New("database is damaged")
	ErrFull       = fmt.Errorf("database cannot grow: %w", unix.ENOSPC)
	ErrIO         = fmt.Errorf("database cannot be read or written: %w", unix.EIO)
	ErrBusy       = errors.New("database is locked by another process")
	ErrVersion    = errors.New("database has another format version")
	ErrReadOnly   = errors.New("database is open read-only")
	ErrConstraint = errors.New("database constraint failed")
	ErrClosed     = errors.New("database is closed")
)

// mapErr turns an error of the driver into one that wraps a sentinel, names the file and keeps SQLite's own words.
func mapErr(path string, err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	code := sqlite.ErrCode(err)
	var sentinel error
	switch code.ToPrimary() {
	case sqlite.ResultCorrupt, sqlite.ResultNotADB:
		sentinel = ErrCorrupt
	case sqlite.ResultError:
		// The statements are constants that fit the schema. SQLite refuses one only when the file's header or schema says
		// something else: "unsupported file format", "no such column".
		sentinel = ErrCorrupt
	case sqlite.ResultFull:
		sentinel = ErrFull
	case sqlite.ResultIOErr:
		sentinel = ErrIO
		if code == sqlite.ResultIOErrShortRead {
			sentinel = ErrCorrupt // the file ends inside a page
		}
	case sqlite.ResultBusy, sqlite.ResultLocked:
		sentinel = ErrBusy
	case sqlite.ResultReadOnly:
		sentinel = ErrReadOnly
	case sqlite.ResultConstraint:
		sentinel = ErrConstraint
	default:
		return fmt.Errorf("%s: %w", path, err)
	}
	return fmt.Errorf("%s: %w (%w)", path, sentinel, err)
}
