// Package fs serves an opened store as a mounted filesystem. It is the only package that knows FUSE.
//
// Node ids are inode numbers and are never used again, so nothing is kept for the nodes that the kernel knows, FORGET has nothing to
// do, and file handles (name_to_handle_at, NFS) stay valid over eviction and restart. One mount owns the store: the kernel may
// cache names, attributes, directories and contents without limit, and changes that do not come through the mount are
// announced to it (FileSystem implements volume.Invalidator).
//
// # What is ours and what is the kernel's
//
// Permissions are checked by the kernel (default_permissions). Locks, POSIX and flock, are the kernel's: a single mount
// needs no other place for them. With the writeback cache the kernel owns size and mtime of regular files, and tells us before FLUSH.
// Clearing set-id bits and file capabilities on write, truncation and change of owner is the store's duty (HANDLE_KILLPRIV_V2).
// The umask has been applied by the kernel. POSIX ACLs are not supported: system.posix_acl_* answers EOPNOTSUPP. atime changes only when it is set, as on a
// mount with noatime. Ioctls are not forwarded to anything: ENOTTY.
//
// Signals do not interrupt requests: regular files on a local filesystem never return EINTR, and programs count on it.
// What `sync` alone promises is what close promises; fsync (of a file or a directory) reaches stable storage. The kernel does not tell an
// ordinary FUSE server of syncfs.
//
// # Trees
//
// The mount is made of trees: the store itself, and virtual ones that appear under a name in the root, or in every directory. Each serves its own
// inode numbers; node ids of virtual trees lie above 1<<62. The tree of the past, `.snapshots`, is in every directory and listed in none. It tells for
// how long each of its names may be relied on: what a moment was for ever, which moment "@10m" is for a second.
package fs
