// Package catalog is the versioned record of names, inodes, extents and versions. Mutations are appended to the journal and take
// effect in memory at once; a background applier makes the journal durable and then brings blobs.db and catalog.db up to date.
// Every row says from which journal sequence number it held, so any past moment can be asked for.
package catalog

import (
	"errors"
	"time"

	"holdfast/blobstore"
)

// Errors of the catalog; each is matched with errors.Is. fs turns them into errnos in one table.
var (
	ErrNotExist    = errors.New("no such file or directory")
	ErrExist       = errors.New("file exists")
	ErrNotDir      = errors.New("not a directory")
	ErrIsDir       = errors.New("is a directory")
	ErrNotEmpty    = errors.New("directory not empty")
	ErrNameTooLong = errors.New("name too long")
	ErrInvalid     = errors.New("invalid argument")
	ErrTooManyLink = errors.New("too many links")
	ErrNoXattr     = errors.New("no such attribute")
	ErrTooBig      = errors.New("value too large")
	ErrPerm        = errors.New("operation not permitted")
	ErrReadOnly    = errors.New("store is open read-only")
	ErrStale       = errors.New("no such inode")
	ErrNoSpace     = errors.New("no space left on the store's device")
	ErrDamaged     = errors.New("catalog damaged")
	ErrClosed      = errors.New("catalog is closed")
)

// Ino is an inode number: stable for the life of the store, never used again. It is also the FUSE node id.
type Ino uint64

// Root is the inode of the mount's root directory.
const Root Ino = 1

// Seq numbers the journal's records, from 1, without gaps.
type Seq uint64

// Head, as a moment, means now.
const Head Seq = 1<<63 - 1

const (
	// MaxName is the longest name of a directory entry, in bytes.
	MaxName = 255
	// MaxLinks is the largest number of names of an inode.
	MaxLinks = 65000
	// MaxSymlink is the longest target of a symbolic link, in bytes.
	MaxSymlink = 4095
	// MaxXattr is the largest value of an extended attribute, MaxXattrs the number of bytes that all of one inode may take.
	MaxXattr  = 64 << 10
	MaxXattrs = 256 << 10
	// MaxSize is the largest size of a file.
	MaxSize = 1<<63 - 1 - 4096
)

// FirstCookie is the position of the first dentry of a store: smaller ones are free for "." and "..".
const FirstCookie = 16

// Timestamps are nanoseconds since 1970 UTC.
type Timestamp = int64

// Inode is one row: the attributes of an inode as of a moment.
type Inode struct {
	_      struct{} `cbor:",toarray"`
	Ino    Ino
	Parent Ino    // the directory in which it was last given a name; for directories the ".." entry
	Mode   uint32 // file type and permissions as in st_mode
	UID    uint32
	GID    uint32
	Rdev   uint32
	Nlink  uint32 // 0: removed (or O_TMPFILE, not linked)
	Size   int64
	Atime  Timestamp
	Mtime  Timestamp
	Ctime  Timestamp
	Btime  Timestamp
	Ver    uint64 // number of its newest version; 0 when it has none
	Base   Seq    // the newest record that replaced all of the content: older extents never matter to this row
	Target string // symbolic link
}

// Dentry is one row: a name in a directory. Ino 0 says that the name was removed.
type Dentry struct {
	_      struct{} `cbor:",toarray"`
	Parent Ino
	Name   string
	Ino    Ino
	Type   uint32 // S_IFMT bits
	Cookie uint64 // grows with every dentry made in the store: readdir order and position. A removal carries the cookie of what it removes.
}

// Xattr is one row: an extended attribute. A nil Value says that it was removed.
type Xattr struct {
	_     struct{} `cbor:",toarray"`
	Ino   Ino
	Name  string
	Value []byte
}

// Extent maps bytes [Off, Off+Len) of a file to a blob from BlobOff on. Bytes that no extent covers are zero.
type Extent struct {
	_       struct{} `cbor:",toarray"`
	Off     int64
	Len     int64
	Blob    blobstore.Ref
	BlobOff int64
}

// Splice is a change of content: first everything from Cut on is dropped, then each hole is emptied, then each extent replaces what lies under it.
// All is set when nothing of the old content remains (Cut 0), so that history before this record is not needed to read the file.
type Splice struct {
	_       struct{} `cbor:",toarray"`
	Ino     Ino
	Cut     int64 // math.MaxInt64: nothing is cut
	Holes   []Hole
	Extents []Extent
}

// Hole is a range of a file that reads as zeros.
type Hole struct {
	_   struct{} `cbor:",toarray"`
	Off int64
	Len int64
}

// Actor is who made a change.
type Actor struct {
	_       struct{} `cbor:",toarray"`
	Agent   string
	Program string
	UID     uint32
	PID     uint32
}

// Version is one row: a closed or fsynced state of a file.
type Version struct {
	_    struct{} `cbor:",toarray"`
	Ino  Ino
	Num  uint64 // from 1, without gaps
	Time Timestamp
	Size int64
	// Sum is the SHA-256 of the whole content where it is known (the content is one blob), else zero.
	Sum blobstore.Hash
	// Prev is the Digest of the version before; Digest the SHA-256 of this version's canonical encoding, its splice and Prev included.
	Prev   blobstore.Hash
	Digest blobstore.Hash
	Actor  Actor
	Seq    Seq `cbor:"-"` // the record that holds it; filled when read
}

// NewBlob is a blob that a record names for the first time. Body is the content of a small one; nil when the blobstore holds it already.
type NewBlob struct {
	Ref   blobstore.Ref
	Level string
	Body  []byte
}

// Op says what a record was for, in the audit trail.
type Op string

const (
	OpInit     Op = "init"
	OpCreate   Op = "create"
	OpMkdir    Op = "mkdir"
	OpMknod    Op = "mknod"
	OpSymlink  Op = "symlink"
	OpLink     Op = "link"
	OpUnlink   Op = "unlink"
	OpRmdir    Op = "rmdir"
	OpRename   Op = "rename"
	OpSetattr  Op = "setattr"
	OpSetxattr Op = "setxattr"
	OpWrite    Op = "write"
	OpMerge    Op = "merge"
	OpSnapshot Op = "snapshot"
	OpConflict Op = "conflict"
	OpRestore  Op = "restore"
	OpUndo     Op = "undo"
	OpPrune    Op = "prune"
)

// Record is one atomic mutation: the rows that hold from its Seq on.
type Record struct {
	Seq      Seq
	Time     time.Time
	Op       Op
	Actor    Actor
	Path     string // of the principal object when the record was written, for people
	Inodes   []Inode
	Dentries []Dentry
	Xattrs   []Xattr
	Splices  []Splice
	Versions []Version
	Blobs    []NewBlob

	Snapshots []Snapshot
	Conflicts []Conflict
	Pruned    *Pruned // what retention took away
	// Delta is the change in the number of named files and directories, where Op does not tell it: of the records of Transact.
	Delta Delta
}

// Delta counts named files and directories that come, or go.
type Delta struct {
	_     struct{} `cbor:",toarray"`
	Files int64
	Dirs  int64
}

// empty says that there is nothing to record.
func (r *Record) empty() bool {
	return len(r.Inodes)+len(r.Dentries)+len(r.Xattrs)+len(r.Snapshots)+len(r.Conflicts) == 0 && r.Pruned == nil
}

// DirEntry is one result of ReadDir.
type DirEntry struct {
	Name   string
	Cookie uint64 // pass it to ReadDir to go on behind this entry
	Inode  Inode
	// Thinned is set by ReadDirAt when the name is known and what it led to is not: retention has thinned it away, because it was moved to where
	// less is kept. Inode then has a number and a type only.
	Thinned bool
}
