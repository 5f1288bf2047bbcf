package fs

import (
	"strings"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"holdfast/catalog"
)

const (
	maxXattrName = 255

	eopnotsupp = gofuse.Status(unix.EOPNOTSUPP)
	e2big      = gofuse.Status(unix.E2BIG)
)

// xattrName says whether attributes of that name are kept: user, trusted and security are, each under the kernel's rules for who may use
// it (trusted and security need privileges). system is the kernel's own space, where POSIX ACLs live, which are not supported.
func xattrName(name string) gofuse.Status {
	space, rest, ok := strings.Cut(name, ".")
	switch {
	case len(name) > maxXattrName:
		return gofuse.ERANGE
	case !ok || rest == "":
		return eopnotsupp
	case space == "user", space == "trusted", space == "security":
		return gofuse.OK
	}
	return eopnotsupp
}

// fill copies value to dest, or says how large dest has to be.
func fill(dest []byte, value string) (uint32, gofuse.Status) {
	if len(dest) < len(value) {
		return uint32(len(value)), gofuse.ERANGE
	}
	return uint32(copy(dest, value)), gofuse.OK
}

// GetXAttr returns the size of a value, and the value when it fits into dest.
func (f *FileSystem) GetXAttr(_ <-chan struct{}, in *gofuse.InHeader, name string, dest []byte) (uint32, gofuse.Status) {
	f.count(opGetXattr)
	b, ino := f.at(in.NodeId)
	if b == nil {
		return 0, estale
	}
	if st := xattrName(name); st != gofuse.OK {
		return 0, st
	}
	value, err := b.GetXattr(f.ctx, ino, name)
	if err != nil {
		return 0, f.status(opGetXattr, in.NodeId, err)
	}
	if len(dest) < len(value) {
		return uint32(len(value)), gofuse.ERANGE
	}
	return uint32(copy(dest, value)), gofuse.OK
}

// ListXAttr lists names, each with a zero byte behind it. trusted names are for root's eyes.
func (f *FileSystem) ListXAttr(_ <-chan struct{}, in *gofuse.InHeader, dest []byte) (uint32, gofuse.Status) {
	f.count(opListXattr)
	b, ino := f.at(in.NodeId)
	if b == nil {
		return 0, estale
	}
	names, err := b.ListXattr(f.ctx, ino)
	if err != nil {
		return 0, f.status(opListXattr, in.NodeId, err)
	}
	var list strings.Builder
	for _, name := range names {
		if in.Uid != 0 && strings.HasPrefix(name, "trusted.") {
			continue
		}
		list.WriteString(name)
		list.WriteByte(0)
	}
	return fill(dest, list.String())
}

// SetXAttr sets an attribute.
func (f *FileSystem) SetXAttr(_ <-chan struct{}, in *gofuse.SetXAttrIn, name string, value []byte) gofuse.Status {
	f.count(opSetXattr)
	b, ino := f.at(in.NodeId)
	if b == nil {
		return estale
	}
	if st := xattrName(name); st != gofuse.OK {
		return st
	}
	if len(value) > catalog.MaxXattr {
		return e2big
	}
	// The request's buffer is used again; the value stays.
	kept := append(make([]byte, 0, len(value)), value...)
	err := b.SetXattr(f.ctx, f.callers.actor(in.Caller), ino, name, kept, uint(in.Flags))
	return f.status(opSetXattr, in.NodeId, err)
}

// RemoveXAttr removes an attribute.
func (f *FileSystem) RemoveXAttr(_ <-chan struct{}, in *gofuse.InHeader, name string) gofuse.Status {
	f.count(opRemoveXattr)
	b, ino := f.at(in.NodeId)
	if b == nil {
		return estale
	}
	if st := xattrName(name); st != gofuse.OK {
		return st
	}
	return f.status(opRemoveXattr, in.NodeId, b.RemoveXattr(f.ctx, f.callers.actor(in.Caller), ino, name))
}
