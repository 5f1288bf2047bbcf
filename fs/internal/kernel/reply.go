package kernel

import (
	"math"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"holdfast/catalog"
)

const nanos = 1_000_000_000

// split turns nanoseconds since 1970 into the protocol's seconds and nanoseconds; seconds before 1970 are negative numbers
// in two's complement, which is how the kernel reads them.
func split(ns catalog.Timestamp) (sec uint64, nsec uint32) {
	s, n := ns/nanos, ns%nanos
	if n < 0 {
		s, n = s-1, n+nanos
	}
	return uint64(s), uint32(n)
}

// Join is the reverse of split. Times that 64 bits of nanoseconds cannot hold (before 1677, after 2262) become the nearest that
// they can.
func Join(sec uint64, nsec uint32) catalog.Timestamp {
	const (
		last     = math.MaxInt64 / nanos // the last whole second in range
		lastNano = math.MaxInt64 % nanos
	)
	s, n := int64(sec), int64(min(nsec, nanos-1))
	if s < 0 && n > 0 {
		s, n = s+1, n-nanos // both on the same side of zero
	}
	switch {
	case s > last, s == last && n > lastNano:
		return math.MaxInt64
	case s < -last, s == -last && n < -lastNano-1:
		return math.MinInt64
	}
	return s*nanos + n
}

// Attr fills out with the attributes of n. node is the number by which the kernel knows it.
func Attr(out *gofuse.Attr, n *catalog.Inode, node uint64) {
	out.Ino = node
	out.Size = uint64(n.Size)
	out.Blocks = (uint64(n.Size) + 511) / 512
	out.Atime, out.Atimensec = split(n.Atime)
	out.Mtime, out.Mtimensec = split(n.Mtime)
	out.Ctime, out.Ctimensec = split(n.Ctime)
	out.Mode = n.Mode
	out.Nlink = n.Nlink
	out.Uid = n.UID
	out.Gid = n.GID
	out.Rdev = n.Rdev
	out.Blksize = 4096
	out.Flags = 0
}

// Entry fills out for n, whose name and attributes hold for valid seconds. The generation is always 0: numbers are never used
// again, and the kernel itself gives the root generation 0.
func Entry(out *gofuse.EntryOut, n *catalog.Inode, node, valid uint64) {
	out.NodeId = node
	out.Generation = 0
	out.EntryValid, out.EntryValidNsec = valid, 0
	out.AttrValid, out.AttrValidNsec = valid, 0
	Attr(&out.Attr, n, node)
}

// NoEntry tells the kernel that the name does not exist, and to remember that for valid seconds.
func NoEntry(out *gofuse.EntryOut, valid uint64) {
	*out = gofuse.EntryOut{EntryValid: valid}
}

// Statx fills out with the attributes of n and the time of its birth.
func Statx(out *gofuse.StatxOut, n *catalog.Inode, node, valid uint64) {
	out.AttrValid, out.AttrValidNsec = valid, 0
	out.Mask = unix.STATX_BASIC_STATS | unix.STATX_BTIME
	out.Blksize = 4096
	out.Nlink = n.Nlink
	out.Uid, out.Gid = n.UID, n.GID
	out.Mode = uint16(n.Mode)
	out.Ino = node
	out.Size = uint64(n.Size)
	out.Blocks = (uint64(n.Size) + 511) / 512
	out.Atime.Sec, out.Atime.Nsec = split(n.Atime)
	out.Btime.Sec, out.Btime.Nsec = split(n.Btime)
	out.Ctime.Sec, out.Ctime.Nsec = split(n.Ctime)
	out.Mtime.Sec, out.Mtime.Nsec = split(n.Mtime)
	out.RdevMajor = unix.Major(uint64(n.Rdev))
	out.RdevMinor = unix.Minor(uint64(n.Rdev))
}
