package catalog

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"holdfast/blobstore"
	"holdfast/catalog/journal"
)

// moreFields has something in each of the fields of format 2.
func moreFields() Record {
	r := everyField()
	r.Op = OpPrune
	r.Snapshots = []Snapshot{{Name: "before the ü", Seq: 76, Time: -5, Pinned: true}, {Name: strings.Repeat("n", MaxName), Seq: Head, Time: math.MaxInt64, Auto: true, Removed: true}}
	r.Conflicts = []Conflict{{Ino: 12, Path: "/na\xffme", Lost: 3, Won: 4, Time: 99, LostBy: r.Actor, WonBy: Actor{Agent: "\xfe", UID: math.MaxUint32}},
		{Ino: 13, Lost: 1, Won: 9, Side: 77}}
	r.Pruned = &Pruned{
		Drops:     []Drop{{Ino: 12, Before: 1}, {Ino: 13, After: 5, Before: 1 << 40}, {Ino: 14, Before: Head}},
		Forgotten: []blobstore.Hash{{1}, {2, 31: 9}},
		Kept:      []Kept{{Policy: "/", Seq: 5}, {Policy: "/lo\xffgs", Seq: Head, Removed: true}},
		Versions:  1 << 33, Bytes: 1 << 50, Oldest: math.MinInt64, Conflicts: 5,
	}
	r.Delta = Delta{Files: -3, Dirs: 1 << 40}
	return r
}

// recordsOfFormat2 has one of the new fields each.
func recordsOfFormat2() []Record {
	bare := Record{Seq: 1, Time: time.Unix(0, 0).UTC(), Op: "x"}
	out := []Record{moreFields(), bare, bare, bare, bare, bare}
	out[1].Snapshots = []Snapshot{{Name: "a"}}
	out[2].Conflicts = []Conflict{{Ino: 1}}
	out[3].Pruned = &Pruned{}
	out[4].Delta.Files = 1
	out[5].Delta.Dirs = -1
	return out
}

func TestRecordMoreRoundTrip(t *testing.T) {
	var e Encoder
	for i, r := range recordsOfFormat2() {
		entry := entryOf(t, &e, &r)
		got, err := DecodeRecord(entry)
		if err != nil || !reflect.DeepEqual(got, r) || entry.Head[0] != moreFormat {
			t.Fatalf("record %d: %v\n got %+v\nwant %+v", i, err, got, r)
		}
		clear(entry.Head)
		clear(entry.Body)
		if !reflect.DeepEqual(got, r) {
			t.Fatal("the record shares memory with the entry")
		}
	}
}

// The bytes change only together with the format version.
func TestRecordMoreGolden(t *testing.T) {
	name := filepath.Join("testdata", "record2.golden")
	var out strings.Builder
	for _, r := range recordsOfFormat2() {
		out.WriteString(hex.EncodeToString(entryOf(t, new(Encoder), &r).Head) + "\n")
	}
	if *recordGolden {
		if err := os.WriteFile(name, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil || out.String() != string(want) {
		t.Fatalf("the encoding of records has changed (%v):\n%s", err, out.String())
	}
}

// What follows the fields of format 1 as the CBOR library writes it.
type (
	cborSnapshot struct {
		_     struct{} `cbor:",toarray"`
		Name  []byte
		Seq   uint64
		Time  int64
		Flags uint64
	}
	cborConflict struct {
		_             struct{} `cbor:",toarray"`
		Ino           uint64
		Path          []byte
		Lost, Won     uint64
		Side          uint64
		Time          int64
		LostBy, WonBy cborActor
	}
	cborDrop struct {
		_                  struct{} `cbor:",toarray"`
		Ino, After, Before uint64
	}
	cborKept struct {
		_       struct{} `cbor:",toarray"`
		Policy  []byte
		Seq     uint64
		Removed uint64
	}
	cborPruned struct {
		_         struct{} `cbor:",toarray"`
		Drops     []cborDrop
		Forgotten [][]byte
		Kept      []cborKept
		Versions  int64
		Bytes     int64
		Oldest    int64
		Conflicts uint64
	}
)

// moreAsCBOR is the head of a record of format 2 as the library writes it.
func moreAsCBOR(t *testing.T, r *Record) []byte {
	t.Helper()
	mode := coreDeterministic(t)
	one, err := mode.Marshal(asCBOR(r))
	if err != nil {
		t.Fatal(err)
	}
	actor := func(a Actor) cborActor {
		return cborActor{Agent: []byte(a.Agent), Program: []byte(a.Program), UID: a.UID, PID: a.PID}
	}
	snapshots, conflicts := []cborSnapshot{}, []cborConflict{}
	for _, s := range r.Snapshots {
		snapshots = append(snapshots, cborSnapshot{Name: []byte(s.Name), Seq: uint64(s.Seq), Time: s.Time, Flags: s.flags()})
	}
	for _, x := range r.Conflicts {
		conflicts = append(conflicts, cborConflict{Ino: uint64(x.Ino), Path: []byte(x.Path), Lost: x.Lost, Won: x.Won, Side: uint64(x.Side), Time: x.Time,
			LostBy: actor(x.LostBy), WonBy: actor(x.WonBy)})
	}
	parts := []any{snapshots, conflicts, []int64{}, []int64{}}
	if p := r.Pruned; p != nil {
		c := cborPruned{Drops: []cborDrop{}, Forgotten: [][]byte{}, Kept: []cborKept{}, Versions: p.Versions, Bytes: p.Bytes, Oldest: p.Oldest, Conflicts: uint64(p.Conflicts)}
		for _, d := range p.Drops {
			c.Drops = append(c.Drops, cborDrop{Ino: uint64(d.Ino), After: uint64(d.After), Before: uint64(d.Before)})
		}
		for _, h := range p.Forgotten {
			c.Forgotten = append(c.Forgotten, h[:])
		}
		for _, k := range p.Kept {
			removed := uint64(0)
			if k.Removed {
				removed = 1
			}
			c.Kept = append(c.Kept, cborKept{Policy: []byte(k.Policy), Seq: uint64(k.Seq), Removed: removed})
		}
		parts[2] = c
	}
	if r.Delta != (Delta{}) {
		parts[3] = []int64{r.Delta.Files, r.Delta.Dirs}
	}
	head := append([]byte{moreFormat, cborArray | lenMore}, one[1:]...)
	for _, p := range parts {
		b, err := mode.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		head = append(head, b...)
	}
	return head
}

func TestRecordMoreAgainstLibrary(t *testing.T) {
	for i, r := range recordsOfFormat2() {
		if got, want := entryOf(t, new(Encoder), &r).Head, moreAsCBOR(t, &r); !bytes.Equal(got, want) {
			t.Fatalf("record %d\n got %x\nwant %x", i, got, want)
		}
	}
}

func TestRecordMoreRules(t *testing.T) {
	for what, breakIt := range map[string]func(r *Record){
		"snapshot without name":      func(r *Record) { r.Snapshots[0].Name = "" },
		"snapshot named a/b":         func(r *Record) { r.Snapshots[0].Name = "a/b" },
		"snapshot named @a":          func(r *Record) { r.Snapshots[0].Name = "@a" },
		"snapshot of 64 bits":        func(r *Record) { r.Snapshots[0].Seq = 1 << 63 },
		"conflict about inode 0":     func(r *Record) { r.Conflicts[0].Ino = 0 },
		"conflict's side":            func(r *Record) { r.Conflicts[0].Side = maxIno },
		"conflict's version":         func(r *Record) { r.Conflicts[0].Lost = 1 << 63 },
		"conflict's path":            func(r *Record) { r.Conflicts[0].Path = strings.Repeat("p", MaxPath+1) },
		"conflict's agent":           func(r *Record) { r.Conflicts[0].WonBy.Agent = strings.Repeat("p", MaxActor+1) },
		"drop of inode 0":            func(r *Record) { r.Pruned.Drops[0].Ino = 0 },
		"drop of nothing":            func(r *Record) { r.Pruned.Drops[0].After = 1 },
		"drop of 64 bits":            func(r *Record) { r.Pruned.Drops[0].Before = 1 << 63 },
		"kept moment of 64 bits":     func(r *Record) { r.Pruned.Kept[0].Seq = 1 << 63 },
		"policy's path":              func(r *Record) { r.Pruned.Kept[0].Policy = strings.Repeat("p", MaxPath+1) },
		"negative versions":          func(r *Record) { r.Pruned.Versions = -1 },
		"negative bytes":             func(r *Record) { r.Pruned.Bytes = -1 },
		"very many versions":         func(r *Record) { r.Pruned.Versions = math.MaxInt64 / 2 },
		"conflicts of 64 bits":       func(r *Record) { r.Pruned.Conflicts = 1 << 63 },
		"very many files":            func(r *Record) { r.Delta.Files = math.MaxInt64 / 2 },
		"very many directories gone": func(r *Record) { r.Delta.Dirs = math.MinInt64 / 2 },
	} {
		r := moreFields()
		breakIt(&r)
		if _, _, err := new(Encoder).Encode(&r); !errors.Is(err, ErrBadRecord) {
			t.Errorf("%s: Encode says %v", what, err)
		}
		entry := journal.Entry{Seq: 1, Head: moreAsCBOR(t, &r)}
		for _, b := range r.Blobs {
			entry.Body = append(entry.Body, b.Body...)
		}
		if _, err := DecodeRecord(entry); !errors.Is(err, ErrBadRecord) {
			t.Errorf("%s: DecodeRecord says %v", what, err)
		}
	}
	// Format 2 without anything of format 2, and the other way round, are not the one encoding of a record.
	r := everyField()
	entry := entryOf(t, new(Encoder), &r)
	entry.Head = moreAsCBOR(t, &r)
	if _, err := DecodeRecord(entry); !errors.Is(err, ErrBadRecord) {
		t.Errorf("format 2 for nothing: %v", err)
	}
	r = moreFields()
	entry = entryOf(t, new(Encoder), &r)
	entry.Head[0] = recordFormat
	if _, err := DecodeRecord(entry); !errors.Is(err, ErrBadRecord) {
		t.Errorf("format 1 with what is of format 2: %v", err)
	}
}
