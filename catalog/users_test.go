package catalog

import (
	"bytes"
	"context"
	"math/rand/v2"
	"slices"
	"testing"

	"holdfast/blobstore"
)

// TestUsers compares who uses which blob, before and after the records are applied, with a list of all that was written.
func TestUsers(t *testing.T) {
	ctx := context.Background()
	r := rand.New(rand.NewPCG(7, 7))
	c := newCatalog(t, nil)
	type use struct {
		ino Ino
		seq Seq
		off int64
	}
	uses := make(map[blobstore.Hash][]use)
	ranges := make(map[Ino][]use)
	var inodes []Ino
	for i := range 6 {
		inodes = append(inodes, createFile(t, c, Root, string(rune('a'+i))).Ino)
	}
	check := func() {
		t.Helper()
		for h, want := range uses {
			got, err := c.BlobUsers(ctx, h, 1000)
			if err != nil || len(got) != len(want) {
				t.Fatalf("%s: %d users, want %d: %v", h, len(got), len(want), err)
			}
			for _, u := range got {
				if !slices.Contains(want, use{u.Ino, u.From, u.Extent.Off}) {
					t.Fatalf("%s: nobody wrote %+v", h, u)
				}
			}
		}
		var all []blobstore.Hash
		for after := (blobstore.Hash{}); ; {
			page, err := c.Blobs(ctx, after, 5)
			if err != nil {
				t.Fatal(err)
			}
			if len(page) == 0 {
				break
			}
			for _, b := range page {
				if bytes.Compare(b.Ref.Hash[:], after[:]) <= 0 {
					t.Fatal("not in order")
				}
				after = b.Ref.Hash
				all = append(all, after)
			}
		}
		if len(all) != len(uses) {
			t.Fatalf("%d blobs, want %d", len(all), len(uses))
		}
		var seen []Ino
		for after := Ino(0); ; {
			page, err := c.VersionedInodes(ctx, after, 2)
			if err != nil {
				t.Fatal(err)
			}
			if len(page) == 0 {
				break
			}
			after = page[len(page)-1]
			seen = append(seen, page...)
		}
		var written []Ino
		for ino, want := range ranges {
			written = append(written, ino)
			var got []use
			for after := (BlobUser{}); ; {
				page, err := c.InodeBlobs(ctx, ino, after, 3)
				if err != nil {
					t.Fatal(err)
				}
				if len(page) == 0 {
					break
				}
				after = page[len(page)-1]
				for _, u := range page {
					got = append(got, use{u.Ino, u.From, u.Extent.Off})
				}
			}
			if !slices.Equal(got, want) {
				t.Fatalf("inode %d: %v, want %v", ino, got, want)
			}
		}
		slices.Sort(written)
		if !slices.Equal(seen, written) {
			t.Fatalf("inodes %v, want %v", seen, written)
		}
	}
	for i := range 120 {
		ino := inodes[r.IntN(len(inodes))]
		body := []byte{byte(r.IntN(40)), 1}
		blob := bodyBlob(body)
		ref := blob.Ref
		off := int64(10 * i) // never over another: rows that are cut are rows of their own
		row, err := c.Commit(ctx, Actor{}, Commit{Ino: ino, Size: off + 2, NewVersion: true, Blobs: []NewBlob{blob},
			Splice: Splice{Cut: NoCut, Extents: []Extent{{Off: off, Len: 2, Blob: ref}}}})
		if err != nil {
			t.Fatal(err)
		}
		v, err := c.Version(ctx, ino, row.Ver)
		if err != nil {
			t.Fatal(err)
		}
		u := use{ino, v.Seq, off}
		uses[ref.Hash] = append(uses[ref.Hash], u)
		ranges[ino] = append(ranges[ino], u)
		if r.IntN(10) == 0 {
			check()
		}
		if r.IntN(20) == 0 {
			if err := c.Flush(ctx); err != nil {
				t.Fatal(err)
			}
			check()
		}
	}
	if err := c.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	check()
}
