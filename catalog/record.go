package catalog

import (
	"errors"

	"holdfast/blobstore"
	"holdfast/catalog/journal"
)

// ErrBadRecord: bytes that are no valid record, or a record that breaks the rules of its fields.
var ErrBadRecord = errors.New("not a valid record")

// Encoder turns records into the heads and bodies of journal entries. It owns the buffers that it returns. The zero value is
// ready; not for concurrent use.
type Encoder struct{}

// Encode returns the head of r and its bodies, in order, for journal.Append: valid until the next Encode; bodies are r's own
// slices. Seq is not encoded, Time is the entry's. ErrBadRecord when r breaks a rule that DecodeRecord checks.
func (e *Encoder) Encode(r *Record) (head []byte, bodies [][]byte, err error) {
	return nil, nil, errors.ErrUnsupported
}

// DecodeRecord reads a record from its journal entry and checks every field and the name of every body. Nothing of the entry is
// kept but copies. Bodies that the journal has dropped are nil. ErrBadRecord otherwise.
func DecodeRecord(e journal.Entry) (Record, error) { return Record{}, errors.ErrUnsupported }

// VersionDigest is the digest of a version: the SHA-256 of its canonical encoding with Prev and its splice, without Digest and Seq.
func VersionDigest(v Version, s Splice) blobstore.Hash { return blobstore.Hash{} }
