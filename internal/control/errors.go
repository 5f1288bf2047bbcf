package control

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"syscall"

	"holdfast/blobstore"
	"holdfast/catalog"
	"holdfast/integrity"
	"holdfast/integrity/audit"
	"holdfast/internal/volume"
)

// maxMessage bounds the text of an error that comes from the other side, in bytes.
const maxMessage = 8 << 10

// errorKind ties a code of the protocol to the error that errors.Is finds on both sides.
type errorKind struct {
	code   string
	err    error
	status int
}

// errorKinds is the table of the errors that keep their meaning over the socket; the first that matches counts. The codes are
// part of the protocol: they may be added to, not changed.
func errorKinds() []errorKind {
	return []errorKind{
		{"thinned", catalog.ErrThinned, http.StatusGone},
		{"not-exist", catalog.ErrNotExist, http.StatusNotFound},
		{"exist", catalog.ErrExist, http.StatusConflict},
		{"not-dir", catalog.ErrNotDir, http.StatusConflict},
		{"is-dir", catalog.ErrIsDir, http.StatusConflict},
		{"not-empty", catalog.ErrNotEmpty, http.StatusConflict},
		{"name-too-long", catalog.ErrNameTooLong, http.StatusBadRequest},
		{"invalid", catalog.ErrInvalid, http.StatusBadRequest},
		{"perm", catalog.ErrPerm, http.StatusForbidden},
		{"read-only", catalog.ErrReadOnly, http.StatusForbidden},
		{"stale", catalog.ErrStale, http.StatusGone},
		{"no-space", catalog.ErrNoSpace, http.StatusInsufficientStorage},
		{"no-space", syscall.ENOSPC, http.StatusInsufficientStorage},
		{"quota", syscall.EDQUOT, http.StatusInsufficientStorage},
		{"catalog-damaged", catalog.ErrDamaged, http.StatusInternalServerError},
		{"blob-damaged", blobstore.ErrDamaged, http.StatusInternalServerError},
		{"blob-not-found", blobstore.ErrNotFound, http.StatusInternalServerError},
		{"not-healed", integrity.ErrNotHealed, http.StatusInternalServerError},
		{"scrub-busy", integrity.ErrBusy, http.StatusConflict},
		{"wrong-content", integrity.ErrWrongContent, http.StatusConflict},
		{"strategy", integrity.ErrStrategy, http.StatusBadRequest},
		{"closed", catalog.ErrClosed, http.StatusServiceUnavailable},
		{"no-store", volume.ErrNoStore, http.StatusNotFound},
		{"locked", volume.ErrLocked, http.StatusConflict},
		{"format", volume.ErrFormat, http.StatusConflict},
		{"tampered", audit.ErrTampered, http.StatusInternalServerError},
		{"not-signed", audit.ErrNotSigned, http.StatusConflict},
		{"malformed", audit.ErrMalformed, http.StatusBadRequest},
		{"audit-closed", audit.ErrClosed, http.StatusServiceUnavailable},
		{"busy", ErrBusy, http.StatusConflict},
		{"not-mounted", ErrNotMounted, http.StatusConflict},
		{"request", ErrRequest, http.StatusBadRequest},
		{"forbidden", ErrForbidden, http.StatusForbidden},
		{"io", syscall.EIO, http.StatusInternalServerError},
		{"canceled", context.Canceled, http.StatusServiceUnavailable},
		{"deadline", context.DeadlineExceeded, http.StatusServiceUnavailable},
	}
}

// wireError is an error as the protocol carries it.
type wireError struct {
	Error string `json:"error"`
	Code  string `json:"code"`
}

// toWire returns err for the other side, and the HTTP status that goes with it.
func toWire(err error) (wireError, int) {
	w := wireError{Error: err.Error(), Code: "other"}
	if len(w.Error) > maxMessage {
		w.Error = w.Error[:maxMessage]
	}
	for _, k := range errorKinds() {
		if errors.Is(err, k.err) {
			w.Code = k.code
			return w, k.status
		}
	}
	return w, http.StatusInternalServerError
}

// remoteError is an error of the daemon as its client sees it.
type remoteError struct {
	msg  string
	kind error
}

func (e *remoteError) Error() string { return e.msg }
func (e *remoteError) Unwrap() error { return e.kind }

// fromWire is the inverse of toWire; a code that this program does not know leads to an error without a sentinel.
func fromWire(w wireError) error {
	if len(w.Error) > maxMessage {
		w.Error = w.Error[:maxMessage]
	}
	if w.Error == "" {
		w.Error = "the daemon reported an error without a text (code " + w.Code + ")"
	}
	for _, k := range errorKinds() {
		if k.code == w.Code {
			return &remoteError{w.Error, k.err}
		}
	}
	return &remoteError{w.Error, nil}
}

func pathError(op, path string, err error) error {
	return fmt.Errorf("%s %s: %w", op, path, err)
}
