package main

import (
	"errors"
	"fmt"

	"holdfast/fs"
	"holdfast/internal/control"
	"holdfast/internal/volume"
)

// mountEntry is a Holdfast mount that the kernel knows, served by a living daemon or not.
type mountEntry struct {
	Dir   string
	Store string
}

func listMounts() ([]mountEntry, error) {
	found, err := fs.Mounts()
	if err != nil {
		return nil, fmt.Errorf("list the mounts: %w", err)
	}
	entries := make([]mountEntry, 0, len(found))
	for _, m := range found {
		entries = append(entries, mountEntry{Dir: m.Dir, Store: m.Source})
	}
	return entries, nil
}

func mountsOf(store string) ([]mountEntry, error) {
	all, err := listMounts()
	var of []mountEntry
	for _, m := range all {
		if m.Store == store {
			of = append(of, m)
		}
	}
	return of, err
}

// explainLock says where a store that is in use is mounted, which the store's lock does not know.
func explainLock(err error, store string) error {
	var locked *volume.LockedError
	if !errors.As(err, &locked) {
		return err
	}
	mounts, listErr := mountsOf(store)
	if listErr != nil || len(mounts) == 0 {
		return err
	}
	return fmt.Errorf("%w: process %d has %s mounted at %s; use that mount, or `holdfast umount %s` first",
		volume.ErrLocked, locked.PID, store, mounts[0].Dir, mounts[0].Dir)
}

// unmountError is what the commands know of fs's errors.
func unmountError(dir string, err error) error {
	switch {
	case errors.Is(err, fs.ErrBusy):
		return fmt.Errorf("%s: %w: files in it are open, or a process works in it (`fuser -vm %s` names them); --lazy unmounts all the same",
			dir, control.ErrBusy, dir)
	case errors.Is(err, fs.ErrNotMounted):
		return fmt.Errorf("%s: %w", dir, control.ErrNotMounted)
	}
	return err
}
