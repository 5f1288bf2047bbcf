package volume

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	// reserveFile holds disk space that nothing else gets, so that a store can be opened on a full disk: SQLite needs some for
	// its shared index before it can read anything. It is given up while the store is opened and closed, and taken again afterwards.
	reserveFile = "reserve"
	reserveMost = 2 << 20 // bytes
	reserveMin  = 128 << 10
)

// releaseReserve gives the space up. The store's lock is held.
func releaseReserve(dir string) error {
	err := os.Remove(filepath.Join(dir, reserveFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// takeReserve sets space aside, less of it when the disk is nearly full; none is no error. The store's lock is held.
func takeReserve(dir string) error {
	f, err := os.OpenFile(filepath.Join(dir, reserveFile), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		if errors.Is(err, unix.ENOSPC) {
			return nil
		}
		return err
	}
	defer f.Close()
	for size := int64(reserveMost); size >= reserveMin; size /= 2 {
		err = unix.Fallocate(int(f.Fd()), 0, 0, size)
		if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
			break
		}
		if err := f.Truncate(0); err != nil {
			return err
		}
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}
