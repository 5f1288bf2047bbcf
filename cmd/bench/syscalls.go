package main

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The client calls the kernel with RawSyscall, on one locked thread of a process of its own: what is measured is the filesystem,
// not Go's scheduler or poller. Paths are made before the clock starts.

// cpath is a path that ends with a NUL, ready for the kernel.
type cpath = *byte

func mkpath(format string, args ...any) (cpath, error) {
	return unix.BytePtrFromString(fmt.Sprintf(format, args...))
}

func errnoOf(e unix.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}

func sysOpen(p cpath, flags int, mode uint32) (int, error) {
	at := unix.AT_FDCWD
	fd, _, e := unix.RawSyscall6(unix.SYS_OPENAT, uintptr(at), uintptr(unsafe.Pointer(p)), uintptr(flags), uintptr(mode), 0, 0)
	return int(fd), errnoOf(e)
}

func sysClose(fd int) error {
	_, _, e := unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0)
	return errnoOf(e)
}

// sysWrite writes all of b with one call; a short write is an error.
func sysWrite(fd int, b []byte) error {
	n, _, e := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	if e == 0 && int(n) != len(b) {
		return fmt.Errorf("wrote %d of %d bytes", n, len(b))
	}
	return errnoOf(e)
}

func sysPwrite(fd int, b []byte, off int64) error {
	n, _, e := unix.RawSyscall6(unix.SYS_PWRITE64, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), uintptr(off), 0, 0)
	if e == 0 && int(n) != len(b) {
		return fmt.Errorf("wrote %d of %d bytes", n, len(b))
	}
	return errnoOf(e)
}

func sysRead(fd int, b []byte) (int, error) {
	n, _, e := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}

func sysFsync(fd int) error {
	_, _, e := unix.RawSyscall(unix.SYS_FSYNC, uintptr(fd), 0, 0)
	return errnoOf(e)
}

func sysLstat(dirfd int, p cpath, st *unix.Stat_t) error {
	_, _, e := unix.RawSyscall6(unix.SYS_NEWFSTATAT, uintptr(dirfd), uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(st)),
		unix.AT_SYMLINK_NOFOLLOW, 0, 0)
	return errnoOf(e)
}

func sysRename(from, to cpath) error {
	at := unix.AT_FDCWD
	_, _, e := unix.RawSyscall6(unix.SYS_RENAMEAT2, uintptr(at), uintptr(unsafe.Pointer(from)), uintptr(at), uintptr(unsafe.Pointer(to)), 0, 0)
	return errnoOf(e)
}

func sysMkdir(p cpath) error {
	at := unix.AT_FDCWD
	_, _, e := unix.RawSyscall(unix.SYS_MKDIRAT, uintptr(at), uintptr(unsafe.Pointer(p)), 0o755)
	return errnoOf(e)
}

func sysUnlink(p cpath) error {
	at := unix.AT_FDCWD
	_, _, e := unix.RawSyscall(unix.SYS_UNLINKAT, uintptr(at), uintptr(unsafe.Pointer(p)), 0)
	return errnoOf(e)
}

func sysGetdents(fd int, b []byte) (int, error) {
	n, _, e := unix.RawSyscall(unix.SYS_GETDENTS64, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}

// Offsets in a linux_dirent64.
const (
	direntReclen = 16
	direntName   = 19
)

// listDir reads the open directory fd from where it stands to its end and stats every entry but "." and "..", as ls -l does. It
// returns the number of entries.
func listDir(fd int, buf []byte) (int, error) {
	var st unix.Stat_t
	entries := 0
	for {
		n, err := sysGetdents(fd, buf)
		if err != nil {
			return entries, fmt.Errorf("read directory: %w", err)
		}
		if n == 0 {
			return entries, nil
		}
		for rest := buf[:n]; len(rest) > 0; {
			if len(rest) < direntName+1 {
				return entries, fmt.Errorf("the kernel gave a directory entry of %d bytes", len(rest))
			}
			l := int(binary.NativeEndian.Uint16(rest[direntReclen:]))
			if l < direntName+1 || l > len(rest) {
				return entries, fmt.Errorf("the kernel gave a directory entry of length %d", l)
			}
			name := rest[direntName:l]
			rest = rest[l:]
			if name[0] == '.' && (name[1] == 0 || name[1] == '.' && name[2] == 0) {
				continue
			}
			if err := sysLstat(fd, &name[0], &st); err != nil {
				return entries, fmt.Errorf("stat %s: %w", unix.ByteSliceToString(name), err)
			}
			entries++
		}
	}
}
