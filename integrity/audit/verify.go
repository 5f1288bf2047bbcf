package audit

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sys/unix"

	"holdfast/catalog"
	"holdfast/catalog/journal"
)

// VerifyOptions say what is verified, and against what.
type VerifyOptions struct {
	JournalDir string          // the directory of the segments
	AuditDir   string          // the audit directory, for its tree heads and its tree; "": without them
	Keys       []note.Verifier // see ParseKeys; their name tells the store's id
	Since      []byte          // a signed tree head that was kept elsewhere; nil: none
	FS         journal.FS      // default: the operating system's
}

// The kinds of problems.
const (
	KindDamaged    = "damaged"    // bytes of the journal are not what their checksums or the chain say
	KindMissing    = "missing"    // records are not there
	KindAltered    = "altered"    // records are not those that were signed
	KindRollback   = "rollback"   // the log does not extend the tree head that was kept elsewhere
	KindDropped    = "dropped"    // what a record said was taken away, and not by retention
	KindOrder      = "order"      // a record has an earlier time than the one before
	KindCheckpoint = "checkpoint" // a tree head is not one, or is signed by the wrong key
	KindTree       = "tree"       // the file of the tree is not what the journal says; the next mount mends it
	// maxFound bounds the problems of each kind that are listed.
	maxFound = 1000
)

// Problem is one thing that is wrong. The names of its JSON fields are stable.
type Problem struct {
	Kind    string      `json:"kind"`
	File    string      `json:"file"` // within the store
	Offset  int64       `json:"offset"`
	Record  catalog.Seq `json:"record"`      // the first that is concerned; 0: none
	Last    catalog.Seq `json:"last_record"` // and the last
	Time    *time.Time  `json:"time"`        // of the record, or of the newest intact one before it, or of the tree head
	Details string      `json:"details"`
}

// Report is what Verify found. The names of its JSON fields are stable.
type Report struct {
	OK       bool        `json:"ok"`
	Store    string      `json:"store_id"`
	Segments int         `json:"segments"`
	Bytes    int64       `json:"bytes"` // of the segments
	Records  uint64      `json:"records"`
	Last     catalog.Seq `json:"last_record"`
	Dropped  uint64      `json:"dropped"`    // records of which compaction has left number, time and hash
	Heads    int         `json:"heads"`      // signed tree heads that hold
	Signed   catalog.Seq `json:"signed"`     // the newest record under one of them
	SignedAt *time.Time  `json:"signed_at"`  // when that was signed; nil when nothing was
	Extends  bool        `json:"extends"`    // the tree head that was kept elsewhere holds
	Torn     string      `json:"torn"`       // an unfinished write at the end of the log, which is no damage
	Problems []Problem   `json:"problems"`   // in order of records, as far as they have to do with records
	MoreLeft int         `json:"more_found"` // problems that are not listed
}

// target is a tree head that the log must lead to.
type target struct {
	TreeHead
	since bool
}

// verifier is one Verify in progress.
type verifier struct {
	opt VerifyOptions
	rep Report

	targets []target // by size
	front   frontier // over what the journal says
	out     []tlog.Hash

	// The tree file, read beside the journal.
	tree     *bufio.Reader
	treeSize int64     // leaves in it
	differ   *place    // the first record that is another one than the tree file says
	theirs   *frontier // over what the tree file says, once it differs
	badNode  *place    // the record at which the tree file holds a wrong hash of its own

	lost     bool  // too many records are missing: the tree ends before them
	prev     place // the newest record that was read
	lastTime int64
	gaps     map[catalog.Seq]int64 // by first record: the time of the newest record before it
	good     int64                 // size of the newest tree head that holds
	behind   place                 // the record behind it
	bad      []target              // tree heads that do not hold
	badAt    place                 // of the first of them: see miss
	badLast  catalog.Seq
	exact    bool

	dropped  catalog.Seq // the newest record that was dropped
	droppedP place
	horizon  catalog.Seq // up to which retention may have taken away
	count    map[string]int
}

// place is where a record lies.
type place struct {
	seq  catalog.Seq
	time int64
	file string
	off  int64
}

// Verify checks the journal from its segments and public keys alone: each record against its checksums, the chain and its bodies' hashes, each signed tree head against
// the tree of the chain hashes, and that the log extends Since. The store may be in use. All problems are found in one pass; memory does not grow with the
// journal. The error says only that the check could not be made; ErrMalformed when Since or a key cannot be read, ErrTampered when Since is signed by another key.
func Verify(ctx context.Context, o VerifyOptions) (Report, error) {
	if o.FS == nil {
		o.FS = journal.OS()
	}
	if len(o.Keys) == 0 {
		return Report{}, fmt.Errorf("%w: there is no public key", ErrMalformed)
	}
	store, err := StoreOf(o.Keys[0].Name())
	if err != nil {
		return Report{}, err
	}
	v := &verifier{opt: o, gaps: make(map[catalog.Seq]int64), count: make(map[string]int)}
	v.rep.Store, v.rep.Problems = strings.TrimPrefix(o.Keys[0].Name(), originPrefix), []Problem{}
	if err := v.readHeads(); err != nil {
		return Report{}, err
	}
	closeTree, err := v.openTree()
	if err != nil {
		return Report{}, err
	}
	defer closeTree()
	bound := int64(0)
	if n := len(v.targets); n > 0 {
		bound = v.targets[n-1].Size
	}
	jr, err := journal.Walk(ctx, o.JournalDir, journal.VerifyOptions{StoreID: store, AppliedSeq: uint64(bound), FS: o.FS}, func(e journal.Entry) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return v.record(e)
	})
	if err != nil {
		return Report{}, err
	}
	v.finish(jr)
	return v.rep, nil
}

func (v *verifier) add(p Problem) {
	if v.count[p.Kind]++; v.count[p.Kind] > maxFound {
		v.rep.MoreLeft++
		return
	}
	v.rep.Problems = append(v.rep.Problems, p)
}

func nanos(t int64) *time.Time {
	if t == 0 {
		return nil
	}
	at := time.Unix(0, t).UTC()
	return &at
}

// readHeads reads the tree heads of the store, and the one that was kept elsewhere.
func (v *verifier) readHeads() error {
	if v.opt.Since != nil {
		h, _, err := OpenHead(v.opt.Since, v.opt.Keys)
		if err != nil {
			return fmt.Errorf("the tree head that was kept elsewhere: %w", err)
		}
		v.targets = append(v.targets, target{h, true})
	}
	file := DirName + "/" + headsName
	b, err := []byte(nil), error(nil)
	if v.opt.AuditDir != "" {
		b, err = readBounded(filepath.Join(v.opt.AuditDir, headsName), maxHeads)
	}
	switch {
	case errors.Is(err, ErrMalformed):
		v.add(Problem{Kind: KindCheckpoint, File: file, Details: err.Error()})
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	oldest, pieces := len(v.opt.Keys), splitHeads(b, v.opt.Keys[0].Name())
	for i, p := range pieces {
		h, key, err := OpenHead(p.data, v.opt.Keys)
		switch {
		case err != nil && errors.Is(err, ErrMalformed) && i == len(pieces)-1:
			// A head that was being written when the process ended.
		case err != nil:
			v.add(Problem{Kind: KindCheckpoint, File: file, Offset: p.off, Details: err.Error()})
		case key > oldest:
			v.add(Problem{Kind: KindCheckpoint, File: file, Offset: p.off, Record: catalog.Seq(h.Size), Last: catalog.Seq(h.Size), Time: &h.Time,
				Details: "it is signed by a key that had been replaced before"})
		default:
			oldest = key
			v.targets = append(v.targets, target{h, false})
		}
	}
	slices.SortStableFunc(v.targets, func(a, b target) int { return int(min(max(a.Size-b.Size, -1), 1)) })
	return nil
}

// openTree opens the tree file, which tells which record it is that was changed, and what the hash of a lost one was. It is believed nothing that no signature confirms.
func (v *verifier) openTree() (func(), error) {
	if v.opt.AuditDir == "" {
		return func() {}, nil
	}
	f, err := os.OpenFile(filepath.Join(v.opt.AuditDir, treeName), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ELOOP) {
		v.noTree()
		return func() {}, nil
	}
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	v.tree = bufio.NewReaderSize(f, 256<<10)
	// What lies behind the newest tree head was never promised.
	for i := len(v.targets) - 1; i >= 0; i-- {
		if !v.targets[i].since {
			v.treeSize = v.targets[i].Size
			break
		}
	}
	if fi.Size()/tlog.HashSize < tlog.StoredHashCount(min(v.treeSize, maxRecords>>8)) {
		v.add(Problem{Kind: KindTree, File: DirName + "/" + treeName, Offset: fi.Size(), Details: "it is shorter than the newest tree head says"})
	}
	if v.treeSize == 0 && fi.Size() > 0 {
		v.add(Problem{Kind: KindCheckpoint, File: DirName + "/" + headsName, Details: "there is a tree, but no signed tree head of it"})
	}
	return func() { f.Close() }, nil
}

func (v *verifier) noTree() {
	if slices.ContainsFunc(v.targets, func(t target) bool { return !t.since }) {
		v.add(Problem{Kind: KindTree, File: DirName + "/" + treeName, Details: "it is missing"})
	}
}

// record takes the next intact record.
func (v *verifier) record(e journal.Entry) error {
	at := place{catalog.Seq(e.Seq), e.Time, fmt.Sprintf("journal/%016x.seg", e.Pos.Segment), e.Pos.Offset}
	if at.seq > v.prev.seq+1 {
		v.gaps[v.prev.seq+1] = v.prev.time
	}
	// What a segment's name claims to be missing must not keep us busy for years.
	v.lost = v.lost || int64(e.Seq)-v.front.n > maxLost
	for !v.lost && int64(e.Seq) > v.front.n+1 {
		if err := v.leaf(nil, place{seq: catalog.Seq(v.front.n + 1), time: v.prev.time, file: at.file, off: at.off}); err != nil {
			return err
		}
	}
	if !v.lost && int64(e.Seq) == v.front.n+1 {
		leaf := leafOf(e.Chain)
		if err := v.leaf(&leaf, at); err != nil {
			return err
		}
	}
	v.content(e, at)
	v.prev = at
	return nil
}

// content checks what a record says.
func (v *verifier) content(e journal.Entry, at place) {
	if e.HeadDropped {
		v.rep.Dropped++
		v.dropped, v.droppedP = at.seq, at
		return
	}
	if e.Time < v.lastTime {
		v.add(Problem{Kind: KindOrder, File: at.file, Offset: at.off, Record: at.seq, Last: at.seq, Time: nanos(e.Time),
			Details: fmt.Sprintf("record %d is older than one before it, of %s", e.Seq, time.Unix(0, v.lastTime).UTC().Format(time.RFC3339Nano))})
	}
	v.lastTime = max(v.lastTime, e.Time)
	r, err := catalog.DecodeRecord(e)
	if err != nil {
		v.add(Problem{Kind: KindDamaged, File: at.file, Offset: at.off, Record: at.seq, Last: at.seq, Time: nanos(e.Time), Details: err.Error()})
		return
	}
	if r.Pruned != nil {
		for _, k := range r.Pruned.Kept {
			if k.Policy == "/" && !k.Removed {
				v.horizon = max(v.horizon, k.Seq)
			}
		}
	}
}

// leaf adds the leaf of the next record to the tree; nil: it cannot be read, and the tree file has to say.
func (v *verifier) leaf(own *tlog.Hash, at place) error {
	file, ok, err := v.readTree()
	if err != nil {
		return err
	}
	leaf := lostLeaf()
	switch {
	case own == nil && ok:
		leaf = file
	case own != nil && (!ok || file != lostLeaf()):
		leaf = *own // a record that was signed as lost, and has come back, stays lost in the tree
	}
	if ok && v.theirs == nil && file != leaf {
		p := at
		v.differ, v.theirs = &p, v.front.clone()
	}
	v.out = v.front.add(leaf, v.out[:0])
	if ok && v.theirs != nil {
		_ = v.theirs.add(file, nil)
	}
	for _, want := range v.out[1:] {
		got, ok, err := v.readTree()
		if err != nil {
			return err
		}
		if ok && got != want && v.theirs == nil && v.badNode == nil {
			p := at
			v.badNode = &p
		}
	}
	if v.behind.seq == 0 && v.front.n == v.good+1 {
		v.behind = at
	}
	v.compare()
	return nil
}

// readTree reads the next hash of the tree file; ok is false behind its end.
func (v *verifier) readTree() (h tlog.Hash, ok bool, err error) {
	if v.tree == nil || v.front.n > v.treeSize || v.treeSize == 0 {
		return h, false, nil
	}
	switch _, err := io.ReadFull(v.tree, h[:]); {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		v.tree = nil
		return h, false, nil
	case err != nil:
		return h, false, fmt.Errorf("read the tree of the audit log: %w", err)
	}
	return h, true, nil
}

// compare holds the tree so far against the tree heads of its size.
func (v *verifier) compare() {
	for len(v.targets) > 0 && v.targets[0].Size == v.front.n {
		t := v.targets[0]
		v.targets = v.targets[1:]
		if v.front.root() != t.Root {
			v.miss(t)
			continue
		}
		v.rep.Heads++
		v.rep.Extends = v.rep.Extends || t.since
		if v.good < t.Size || v.rep.SignedAt == nil {
			v.good, v.behind = t.Size, place{}
			at := t.Time
			v.rep.Signed, v.rep.SignedAt = catalog.Seq(t.Size), &at
		}
	}
}

// miss notes a tree head that does not hold. The tree file names the record when its own root is what was signed; else the records behind the newest head that holds are suspect.
func (v *verifier) miss(t target) {
	v.bad = append(v.bad, t)
	if v.exact {
		return
	}
	if v.differ != nil && v.theirs != nil && v.theirs.n == v.front.n && v.theirs.root() == t.Root {
		v.badAt, v.badLast, v.exact = *v.differ, v.differ.seq, true
		return
	}
	if len(v.bad) == 1 {
		v.badAt, v.badLast = v.behind, catalog.Seq(t.Size)
	}
}
