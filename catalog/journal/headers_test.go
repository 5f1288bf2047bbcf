package journal

import (
	"context"
	"testing"
)

// TestHeaders damages each byte of the header of a segment in turn below an open log: it is found, and healed, though no record is lost.
func TestHeaders(t *testing.T) {
	ctx := context.Background()
	files := build(t, 12, 600, true)
	m := load(files)
	l := mustOpen(t, Options{Dir: "store/journal", FS: m, SegmentBytes: 600})
	if list, err := l.Headers(ctx); err != nil || len(list) != 0 {
		t.Fatal(list, err)
	}
	if len(l.Segments()) < 2 {
		t.Fatal("there is one segment only")
	}
	for _, s := range l.Segments() {
		node := m.names["store/journal/"+s.Name]
		for at := 0; at < headerSize; at += 13 {
			was := node.data[at]
			node.data[at] ^= 0x10
			list, err := l.Headers(ctx)
			if err != nil || len(list) != 1 || list[0].Segment != s.Name || list[0].First != s.First || list[0].Last != s.First-1 {
				t.Fatalf("%s, byte %d: %v %v", s.Name, at, list, err)
			}
			node.data[at] = was
		}
	}
	s := l.Segments()[1]
	clear(m.names["store/journal/"+s.Name].data[:headerSize])
	rep, err := l.Heal(ctx, nil)
	if err != nil || len(rep.Healed) != 1 || rep.Healed[0].First != s.First || len(rep.Left) != 0 {
		t.Fatalf("%+v %v", rep, err)
	}
	if list, err := l.Headers(ctx); err != nil || len(list) != 0 {
		t.Fatal(list, err)
	}
}
