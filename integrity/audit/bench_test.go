package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"holdfast/blobstore"
	"holdfast/catalog"
	"holdfast/catalog/journal"
)

// sampleRecord is a write of a small file.
func sampleRecord(i int) catalog.Record {
	body := fmt.Appendf(nil, "%0800d", i)
	ref := blobstore.Ref{Hash: sha256.Sum256(body), Size: int64(len(body))}
	who := catalog.Actor{Agent: "agent-7", Program: "python3", UID: 1000, PID: 4711}
	return catalog.Record{Op: catalog.OpWrite, Actor: who, Path: "/tasks/parser/notes.txt", Inodes: []catalog.Inode{{Ino: 12, Parent: 3, Mode: 0o100644, Nlink: 1, Size: ref.Size, Ver: 1}},
		Splices:  []catalog.Splice{{Ino: 12, Extents: []catalog.Extent{{Len: ref.Size, Blob: ref}}}},
		Versions: []catalog.Version{{Ino: 12, Num: 1, Size: ref.Size, Sum: ref.Hash, Actor: who}},
		Blobs:    []catalog.NewBlob{{Ref: ref, Level: catalog.LevelBasic, Body: body}}}
}

// BenchmarkFeed adds records to the tree: the leaf, its nodes, and their share of writing the file.
func BenchmarkFeed(b *testing.B) {
	tree, err := openTree(filepath.Join(b.TempDir(), treeName), false)
	if err != nil {
		b.Fatal(err)
	}
	chain := sha256.Sum256(nil)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		binary.LittleEndian.PutUint64(chain[:], uint64(i))
		if err := tree.add(leafOf(chain)); err != nil {
			b.Fatal(err)
		}
	}
	if err := errors.Join(tree.flush(), tree.close()); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkVerify checks a log of small files, offline: MB/s of segments and time for each record.
func BenchmarkVerify(b *testing.B) {
	const records = 50_000
	dir := b.TempDir()
	id := [16]byte{1}
	l, err := journal.Open(b.Context(), journal.Options{Dir: filepath.Join(dir, "journal"), StoreID: id})
	if err != nil {
		b.Fatal(err)
	}
	var enc catalog.Encoder
	var front frontier
	for i := range records {
		r := sampleRecord(i)
		head, bodies, err := enc.Encode(&r)
		if err != nil {
			b.Fatal(err)
		}
		if _, _, err := l.Append(int64(i), head, bodies...); err != nil {
			b.Fatal(err)
		}
		_, chain := l.Last()
		front.add(leafOf(chain), nil)
	}
	size := l.Bytes()
	if err := l.Close(); err != nil {
		b.Fatal(err)
	}
	skey, vkey, err := note.GenerateKey(bytes.NewReader(bytes.Repeat([]byte{7}, 64)), Origin(id))
	if err != nil {
		b.Fatal(err)
	}
	signer, err := note.NewSigner(skey)
	if err != nil {
		b.Fatal(err)
	}
	keys, err := ParseKeys(vkey)
	if err != nil {
		b.Fatal(err)
	}
	since, err := signHead(TreeHead{Origin: Origin(id), Size: records, Root: front.root()}, signer)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(size)
	for b.Loop() {
		r, err := Verify(b.Context(), VerifyOptions{JournalDir: filepath.Join(dir, "journal"), Keys: keys, Since: since})
		if err != nil || !r.OK || !r.Extends {
			b.Fatal(fmt.Errorf("%+v, %w", r, err))
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/records, "ns/record")
}
