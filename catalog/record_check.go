package catalog

import (
	"fmt"
	"math"
	"strings"

	"holdfast/blobstore"
)

// validate checks every rule about the fields that does not need more than the record.
func (r *Record) validate() error {
	bad := func(what string, i int, why string) error {
		return fmt.Errorf("%w (%s): %s %d: %s", ErrBadRecord, r.Op, what, i, why)
	}
	if len(r.Op) == 0 || len(r.Op) > maxOp {
		return fmt.Errorf("%w: its operation has %d bytes", ErrBadRecord, len(r.Op))
	}
	if len(r.Actor.Agent) > MaxActor || len(r.Actor.Program) > MaxActor {
		return fmt.Errorf("%w (%s): the name of an agent or a program has more than %d bytes", ErrBadRecord, r.Op, MaxActor)
	}
	if max(len(r.Inodes), len(r.Dentries), len(r.Xattrs), len(r.Splices), len(r.Versions), len(r.Blobs)) > MaxRows {
		return fmt.Errorf("%w (%s): it has more than %d rows of a kind", ErrBadRecord, r.Op, MaxRows)
	}
	for i := range r.Inodes {
		if why := r.Inodes[i].flaw(); why != "" {
			return bad("inode", i, why)
		}
	}
	for i := range r.Dentries {
		if why := r.Dentries[i].flaw(); why != "" {
			return bad("name", i, why)
		}
	}
	for i := range r.Xattrs {
		if why := r.Xattrs[i].flaw(); why != "" {
			return bad("attribute", i, why)
		}
	}
	for i := range r.Splices {
		if why := r.Splices[i].flaw(); why != "" {
			return bad("splice", i, why)
		}
	}
	for i := range r.Versions {
		if why := r.Versions[i].flaw(); why != "" {
			return bad("version", i, why)
		}
	}
	for i := range r.Blobs {
		n := &r.Blobs[i]
		if n.Ref.Size < 0 || len(n.Level) > maxLevel || n.Body != nil && (int64(len(n.Body)) != n.Ref.Size || len(n.Body) > blobstore.MaxSmall) {
			return bad("blob", i, "its size or level is out of range")
		}
	}
	return nil
}

// known says that an inode number is one: numbers fit into 63 bits everywhere.
func (i Ino) known() bool { return i > 0 && i <= math.MaxInt64 }

func (n *Inode) flaw() string {
	switch {
	case !n.Ino.known() || n.Parent > math.MaxInt64 || n.Ver > math.MaxInt64 || n.Base > Head:
		return "a number is out of range"
	case n.Size < 0 || n.Size > MaxSize:
		return fmt.Sprintf("its size is %d", n.Size)
	case len(n.Target) > MaxSymlink || strings.IndexByte(n.Target, 0) >= 0:
		return "its target is too long or holds a NUL"
	}
	return ""
}

func (n *Dentry) flaw() string {
	switch {
	case !n.Parent.known() || n.Ino > math.MaxInt64 || n.Cookie > math.MaxInt64:
		return "a number is out of range"
	case len(n.Name) == 0 || len(n.Name) > MaxName:
		return fmt.Sprintf("it has %d bytes", len(n.Name))
	case n.Name == "." || n.Name == ".." || strings.IndexByte(n.Name, '/') >= 0 || strings.IndexByte(n.Name, 0) >= 0:
		return fmt.Sprintf("%q cannot be one", n.Name)
	}
	return ""
}

func (x *Xattr) flaw() string {
	switch {
	case !x.Ino.known():
		return "its inode number is out of range"
	case len(x.Name) == 0 || len(x.Name) > MaxName || strings.IndexByte(x.Name, 0) >= 0:
		return fmt.Sprintf("its name is %q", x.Name)
	case len(x.Value) > MaxXattr:
		return fmt.Sprintf("its value has %d bytes", len(x.Value))
	}
	return ""
}

func (s *Splice) flaw() string {
	if !s.Ino.known() || s.Cut < 0 || max(len(s.Holes), len(s.Extents)) > MaxRows {
		return "its inode number, its cut or its length is out of range"
	}
	for i := range s.Holes {
		if h := &s.Holes[i]; h.Off < 0 || h.Len <= 0 || h.Len > math.MaxInt64-h.Off {
			return fmt.Sprintf("hole %d: %d bytes at %d", i, h.Len, h.Off)
		}
	}
	end := int64(0)
	for i := range s.Extents {
		x := &s.Extents[i]
		if x.Off < end || x.Len <= 0 || x.Len > MaxSize-x.Off {
			return fmt.Sprintf("extent %d: %d bytes at %d, the one before it ends at %d", i, x.Len, x.Off, end)
		}
		if x.BlobOff < 0 || x.Blob.Size < 0 || x.Len > x.Blob.Size-x.BlobOff {
			return fmt.Sprintf("extent %d: %d bytes at %d of a blob of %d", i, x.Len, x.BlobOff, x.Blob.Size)
		}
		end = x.Off + x.Len
	}
	return ""
}

func (v *Version) flaw() string {
	switch {
	case !v.Ino.known() || v.Num == 0 || v.Num > math.MaxInt64:
		return "its number is out of range"
	case v.Size < 0 || v.Size > MaxSize:
		return fmt.Sprintf("its size is %d", v.Size)
	case len(v.Actor.Agent) > MaxActor || len(v.Actor.Program) > MaxActor:
		return fmt.Sprintf("the name of its agent or program has more than %d bytes", MaxActor)
	}
	return ""
}
