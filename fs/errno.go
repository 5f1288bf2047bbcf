package fs

import (
	"context"
	"errors"
	"os"
	"slices"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"holdfast/blobstore"
	"holdfast/catalog"
	"holdfast/integrity"
	"holdfast/integrity/audit"
	"holdfast/internal/volume"
)

// errnoRow says which errno a program gets for an error of the layers below.
type errnoRow struct {
	name  string // of the sentinel, for the test that compares this table with the packages
	err   error
	errno unix.Errno
}

// errnoTable is the one place where errors become errnos. The first row that matches counts. What is not in it is EIO: never ENOENT,
// which would tell a program that its file is gone, and never ENOSYS, which the kernel takes for the end of an operation.
func errnoTable() []errnoRow {
	return []errnoRow{
		{"blobstore.ErrDamaged", blobstore.ErrDamaged, unix.EIO},
		{"blobstore.ErrNotFound", blobstore.ErrNotFound, unix.EIO},
		{"blobstore.ErrClosed", blobstore.ErrClosed, unix.EIO},
		{"blobstore.ErrInvalid", blobstore.ErrInvalid, unix.EIO}, // a request of ours to the blobstore, not one of a program
		{"blobstore.ErrReadOnly", blobstore.ErrReadOnly, unix.EROFS},
		{"integrity.ErrWrongContent", integrity.ErrWrongContent, unix.EINVAL},
		{"integrity.ErrBusy", integrity.ErrBusy, unix.EBUSY},
		{"integrity.ErrNotHealed", integrity.ErrNotHealed, unix.EIO},
		{"integrity.ErrStrategy", integrity.ErrStrategy, unix.EINVAL},
		{"audit.ErrTampered", audit.ErrTampered, unix.EIO},
		{"audit.ErrMalformed", audit.ErrMalformed, unix.EIO},
		{"audit.ErrNotSigned", audit.ErrNotSigned, unix.EIO},
		{"audit.ErrClosed", audit.ErrClosed, unix.EIO},
		{"catalog.ErrDamaged", catalog.ErrDamaged, unix.EIO},
		{"catalog.ErrBadRecord", catalog.ErrBadRecord, unix.EIO},
		{"catalog.ErrClosed", catalog.ErrClosed, unix.EIO},
		{"catalog.ErrThinned", catalog.ErrThinned, unix.ENOENT},
		{"catalog.ErrNotExist", catalog.ErrNotExist, unix.ENOENT},
		{"catalog.ErrExist", catalog.ErrExist, unix.EEXIST},
		{"catalog.ErrNotDir", catalog.ErrNotDir, unix.ENOTDIR},
		{"catalog.ErrIsDir", catalog.ErrIsDir, unix.EISDIR},
		{"catalog.ErrNotEmpty", catalog.ErrNotEmpty, unix.ENOTEMPTY},
		{"catalog.ErrNameTooLong", catalog.ErrNameTooLong, unix.ENAMETOOLONG},
		{"catalog.ErrInvalid", catalog.ErrInvalid, unix.EINVAL},
		{"catalog.ErrTooManyLink", catalog.ErrTooManyLink, unix.EMLINK},
		{"catalog.ErrNoXattr", catalog.ErrNoXattr, unix.ENODATA},
		{"catalog.ErrTooBig", catalog.ErrTooBig, unix.E2BIG},
		{"catalog.ErrPerm", catalog.ErrPerm, unix.EPERM},
		{"catalog.ErrReadOnly", catalog.ErrReadOnly, unix.EROFS},
		{"volume.ErrConflict", volume.ErrConflict, unix.ESTALE},
		{"catalog.ErrStale", catalog.ErrStale, unix.ESTALE},
		{"catalog.ErrNoSpace", catalog.ErrNoSpace, unix.ENOSPC},
		{"volume.ErrNoStore", volume.ErrNoStore, unix.EIO},
		{"volume.ErrLocked", volume.ErrLocked, unix.EIO},
		{"volume.ErrFormat", volume.ErrFormat, unix.EIO},
		{"volume.ErrSecond", volume.ErrSecond, unix.EIO},
		{"context.Canceled", context.Canceled, unix.EINTR},
		{"context.DeadlineExceeded", context.DeadlineExceeded, unix.EINTR},
	}
}

// fromDisk are the errnos of the disk below that mean to a program what they mean to us.
func fromDisk(e unix.Errno) bool {
	return e == unix.ENOSPC || e == unix.EDQUOT || e == unix.EROFS || e == unix.EIO
}

// deliberate are the errnos that a layer below may choose for the program, when they are not wrapped in the error of a file of
// the store.
func deliberate(e unix.Errno) bool {
	return slices.Contains([]unix.Errno{
		unix.EBADF, unix.EBUSY, unix.E2BIG, unix.EFBIG, unix.EINVAL, unix.EISDIR, unix.EMLINK, unix.ENODATA, unix.ENOTDIR, unix.ENOTEMPTY,
		unix.ENXIO, unix.EOPNOTSUPP, unix.EOVERFLOW, unix.EPERM, unix.ERANGE, unix.ETXTBSY, unix.EXDEV,
	}, e)
}

// toErrno returns the errno for err, and whether err was foreseen.
func toErrno(table []errnoRow, err error) (unix.Errno, bool) {
	for i := range table {
		if errors.Is(err, table[i].err) {
			return table[i].errno, true
		}
	}
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return unix.EIO, false
	}
	if fromDisk(errno) {
		return errno, true
	}
	var (
		path *os.PathError
		call *os.SyscallError
		link *os.LinkError
	)
	if errors.As(err, &path) || errors.As(err, &call) || errors.As(err, &link) || !deliberate(errno) {
		return unix.EIO, false
	}
	return errno, true
}

// status turns the outcome of an operation into its answer. Failures that a program cannot have caused are logged.
func (f *FileSystem) status(op opcode, node uint64, err error) gofuse.Status {
	if err == nil {
		return gofuse.OK
	}
	errno, foreseen := toErrno(f.errnos, err)
	if !foreseen || errno == unix.EIO || errno == unix.EDQUOT || errno == unix.ENOSPC {
		f.complain(op, node, errno, err)
	}
	return gofuse.Status(errno)
}
