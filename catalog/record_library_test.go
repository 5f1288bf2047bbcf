package catalog

import (
	"testing"

	"github.com/fxamacker/cbor/v2"

	"holdfast/blobstore"
)

// The same structures as the CBOR library sees them.
type (
	cborRef struct {
		_    struct{} `cbor:",toarray"`
		Hash []byte
		Size int64
		Root []byte
	}
	cborActor struct {
		_              struct{} `cbor:",toarray"`
		Agent, Program []byte
		UID, PID       uint32
	}
	cborInode struct {
		_                                struct{} `cbor:",toarray"`
		Ino, Parent                      uint64
		Mode, UID, GID, Rdev, Nlink      uint32
		Size, Atime, Mtime, Ctime, Btime int64
		Ver, Base                        uint64
		Target                           []byte
	}
	cborDentry struct {
		_      struct{} `cbor:",toarray"`
		Parent uint64
		Name   []byte
		Ino    uint64
		Type   uint32
		Cookie uint64
	}
	cborXattr struct {
		_     struct{} `cbor:",toarray"`
		Ino   uint64
		Name  []byte
		Value []byte
	}
	cborHole struct {
		_        struct{} `cbor:",toarray"`
		Off, Len int64
	}
	cborExtent struct {
		_        struct{} `cbor:",toarray"`
		Off, Len int64
		Blob     cborRef
		BlobOff  int64
	}
	cborSplice struct {
		_       struct{} `cbor:",toarray"`
		Ino     uint64
		Cut     int64
		Holes   []cborHole
		Extents []cborExtent
	}
	cborVersion struct {
		_          struct{} `cbor:",toarray"`
		Ino, Num   uint64
		Time, Size int64
		Sum        []byte
		Prev       []byte
		Digest     []byte
		Actor      cborActor
	}
	cborBlob struct {
		_       struct{} `cbor:",toarray"`
		Ref     cborRef
		Level   []byte
		BodyLen int64
	}
	cborRecord struct {
		_        struct{} `cbor:",toarray"`
		Op       []byte
		Actor    cborActor
		Path     []byte
		Inodes   []cborInode
		Dentries []cborDentry
		Xattrs   []cborXattr
		Splices  []cborSplice
		Versions []cborVersion
		Blobs    []cborBlob
	}
)

func asCBOR(r *Record) cborRecord {
	sum := func(h [32]byte) []byte {
		if h == [32]byte{} {
			return []byte{}
		}
		return h[:]
	}
	ref := func(r blobstore.Ref) cborRef { return cborRef{Hash: r.Hash[:], Size: r.Size, Root: sum(r.Root)} }
	actor := func(a Actor) cborActor {
		return cborActor{Agent: []byte(a.Agent), Program: []byte(a.Program), UID: a.UID, PID: a.PID}
	}
	c := cborRecord{Op: []byte(r.Op), Actor: actor(r.Actor), Path: []byte(r.Path), Inodes: []cborInode{}, Dentries: []cborDentry{},
		Xattrs: []cborXattr{}, Splices: []cborSplice{}, Versions: []cborVersion{}, Blobs: []cborBlob{}}
	for _, n := range r.Inodes {
		c.Inodes = append(c.Inodes, cborInode{Ino: uint64(n.Ino), Parent: uint64(n.Parent), Mode: n.Mode, UID: n.UID, GID: n.GID, Rdev: n.Rdev,
			Nlink: n.Nlink, Size: n.Size, Atime: n.Atime, Mtime: n.Mtime, Ctime: n.Ctime, Btime: n.Btime, Ver: n.Ver, Base: uint64(n.Base), Target: []byte(n.Target)})
	}
	for _, d := range r.Dentries {
		c.Dentries = append(c.Dentries, cborDentry{Parent: uint64(d.Parent), Name: []byte(d.Name), Ino: uint64(d.Ino), Type: d.Type, Cookie: d.Cookie})
	}
	for _, x := range r.Xattrs {
		c.Xattrs = append(c.Xattrs, cborXattr{Ino: uint64(x.Ino), Name: []byte(x.Name), Value: x.Value})
	}
	for _, s := range r.Splices {
		cs := cborSplice{Ino: uint64(s.Ino), Cut: s.Cut, Holes: []cborHole{}, Extents: []cborExtent{}}
		for _, h := range s.Holes {
			cs.Holes = append(cs.Holes, cborHole{Off: h.Off, Len: h.Len})
		}
		for _, x := range s.Extents {
			cs.Extents = append(cs.Extents, cborExtent{Off: x.Off, Len: x.Len, Blob: ref(x.Blob), BlobOff: x.BlobOff})
		}
		c.Splices = append(c.Splices, cs)
	}
	for _, v := range r.Versions {
		c.Versions = append(c.Versions, cborVersion{Ino: uint64(v.Ino), Num: v.Num, Time: v.Time, Size: v.Size, Sum: sum(v.Sum), Prev: sum(v.Prev),
			Digest: v.Digest[:], Actor: actor(v.Actor)})
	}
	for _, n := range r.Blobs {
		size := int64(len(n.Body))
		if n.Body == nil {
			size = noBody
		}
		c.Blobs = append(c.Blobs, cborBlob{Ref: ref(n.Ref), Level: []byte(n.Level), BodyLen: size})
	}
	return c
}

func coreDeterministic(t testing.TB) cbor.EncMode {
	mode, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		t.Fatal(err)
	}
	return mode
}
