package audit

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"holdfast/catalog"
	"holdfast/catalog/journal"
)

const (
	proofFirst     = "holdfast proof 1"
	extensionFirst = "holdfast extension 1"
	// MaxProof bounds the text of a proof, in bytes: the head of a record in base64, and room for the rest.
	MaxProof = journal.MaxHead/3*4 + 64<<10
	// maxHashes is more than a tree of maxRecords leaves needs.
	maxHashes = 128
)

// Proof shows that a record is in the log, and what it says. It needs no store and no journal to be checked, only a public key.
type Proof struct {
	Seq  catalog.Seq
	Prev [32]byte // the chain hash of the record before
	// Frame and Head are the record: its chain hash is SHA-256(Prev || Frame || Head), see docs/format.md.
	Frame  [32]byte
	Head   []byte
	Hashes tlog.RecordProof // from the record's leaf to the root
	Signed []byte           // the signed tree head
}

// Proven is what a proof shows.
type Proven struct {
	Entries []Entry  // of the record
	Head    TreeHead // in which it is
	Key     int      // the place of the key that signed it, among those that Check was given
}

// Text is the proof as it is stored: lines, an empty line, and the signed tree head.
func (p Proof) Text() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\nrecord %d\nprevious %s\nframe %s\nhead %s\n", proofFirst, p.Seq, tlog.Hash(p.Prev), tlog.Hash(p.Frame),
		base64.StdEncoding.EncodeToString(p.Head))
	writeHashes(&b, p.Hashes)
	b.WriteByte('\n')
	b.Write(p.Signed)
	return b.Bytes()
}

func writeHashes(b *bytes.Buffer, hashes []tlog.Hash) {
	for _, h := range hashes {
		fmt.Fprintf(b, "hash %s\n", h)
	}
}

// lineReader takes a proof apart.
type lineReader struct {
	rest []byte
	err  error
}

// next returns the value of the next line, which begins with the word; "" after an error.
func (r *lineReader) next(word string) string {
	line, rest, ok := bytes.Cut(r.rest, []byte("\n"))
	value, found := strings.CutPrefix(string(line), word+" ")
	if r.err == nil && (!ok || !found) {
		r.err = fmt.Errorf("%w: a line %q of the proof is missing", ErrMalformed, word)
	}
	if r.err != nil {
		return ""
	}
	r.rest = rest
	return value
}

func (r *lineReader) hash(word string) tlog.Hash {
	h, err := tlog.ParseHash(r.next(word))
	if r.err == nil && err != nil {
		r.err = fmt.Errorf("%w: %q of the proof is not a hash", ErrMalformed, word)
	}
	return h
}

// hashes reads the lines of hashes and the empty line behind them.
func (r *lineReader) hashes() (list []tlog.Hash) {
	for r.err == nil && bytes.HasPrefix(r.rest, []byte("hash ")) {
		if len(list) == maxHashes {
			r.err = fmt.Errorf("%w: the proof has more than %d hashes", ErrMalformed, maxHashes)
			return nil
		}
		list = append(list, r.hash("hash"))
	}
	rest, ok := bytes.CutPrefix(r.rest, []byte("\n"))
	if r.err == nil && !ok {
		r.err = fmt.Errorf("%w: the empty line of the proof is missing", ErrMalformed)
	}
	r.rest = rest
	return list
}

func (r *lineReader) first(line string) {
	rest, ok := bytes.CutPrefix(r.rest, []byte(line+"\n"))
	if !ok {
		r.err = fmt.Errorf("%w: it does not begin with %q", ErrMalformed, line)
	}
	r.rest = rest
}

// ParseProof is the inverse of Text; it checks the form only. ErrMalformed.
func ParseProof(text []byte) (p Proof, err error) {
	if len(text) > MaxProof {
		return p, fmt.Errorf("%w: a proof has at most %d bytes", ErrMalformed, MaxProof)
	}
	r := &lineReader{rest: text}
	r.first(proofFirst)
	seq, err := strconv.ParseUint(r.next("record"), 10, 63)
	p.Seq = catalog.Seq(seq)
	p.Prev, p.Frame = r.hash("previous"), r.hash("frame")
	head, headErr := base64.StdEncoding.DecodeString(r.next("head"))
	p.Head, p.Hashes = head, r.hashes()
	switch p.Signed = bytes.Clone(r.rest); {
	case r.err != nil:
		return Proof{}, r.err
	case err != nil || headErr != nil || seq == 0 || seq > maxRecords || len(p.Head) > journal.MaxHead || len(p.Signed) > maxNote:
		return Proof{}, fmt.Errorf("%w: the proof's number or record is out of range", ErrMalformed)
	case !bytes.Equal(p.Text(), text):
		return Proof{}, fmt.Errorf("%w: the proof is not in its canonical form", ErrMalformed)
	}
	return p, nil
}

// Check verifies a proof with the public keys alone. ErrTampered when it does not hold, ErrMalformed when it cannot be read.
func (p Proof) Check(keys []note.Verifier) (out Proven, err error) {
	if out.Head, out.Key, err = OpenHead(p.Signed, keys); err != nil {
		return Proven{}, err
	}
	seq, at, headLen, bodyLen := journal.FrameOf(p.Frame)
	if catalog.Seq(seq) != p.Seq || headLen != int64(len(p.Head)) || bodyLen > journal.MaxBody {
		return Proven{}, fmt.Errorf("%w: the frame is that of record %d, with a head of %d bytes", ErrTampered, seq, headLen)
	}
	chain := journal.ChainOf(p.Prev, p.Frame, p.Head)
	if out.Head.Size < int64(p.Seq) {
		return Proven{}, fmt.Errorf("%w: the tree head covers %d records, and the proof is of record %d", ErrTampered, out.Head.Size, p.Seq)
	}
	if err := tlog.CheckRecord(p.Hashes, out.Head.Size, out.Head.Root, int64(p.Seq)-1, leafOf(chain)); err != nil {
		return Proven{}, fmt.Errorf("%w: record %d is not in the tree that was signed", ErrTampered, p.Seq)
	}
	e := journal.Entry{Seq: seq, Time: at, Head: p.Head, BodyLen: bodyLen, BodyDropped: true, Chain: chain}
	if out.Entries, err = entriesOf(e); err != nil {
		return Proven{}, fmt.Errorf("%w: record %d: %w", ErrMalformed, seq, err)
	}
	return out, nil
}

// Extension shows that the log of one tree head is the beginning of that of a later one: nothing was changed or left out in between.
type Extension struct {
	Hashes   tlog.TreeProof
	Old, New []byte // signed tree heads
}

// Text is the extension as it is stored.
func (x Extension) Text() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\n", extensionFirst)
	writeHashes(&b, x.Hashes)
	b.WriteByte('\n')
	b.Write(x.Old)
	b.Write(x.New)
	return b.Bytes()
}

// ParseExtension is the inverse of Text; it checks the form only. ErrMalformed.
func ParseExtension(text []byte) (x Extension, err error) {
	if len(text) > MaxProof {
		return x, fmt.Errorf("%w: a proof has at most %d bytes", ErrMalformed, MaxProof)
	}
	r := &lineReader{rest: text}
	r.first(extensionFirst)
	x.Hashes = r.hashes()
	if r.err != nil {
		return Extension{}, r.err
	}
	origin, _, _ := bytes.Cut(r.rest, []byte("\n"))
	pieces := splitHeads(r.rest, string(origin))
	if len(pieces) != 2 {
		return Extension{}, fmt.Errorf("%w: the proof has %d tree heads, not two", ErrMalformed, len(pieces))
	}
	x.Old, x.New = bytes.Clone(pieces[0].data), bytes.Clone(pieces[1].data)
	if len(x.Old) > maxNote || len(x.New) > maxNote || !bytes.Equal(x.Text(), text) {
		return Extension{}, fmt.Errorf("%w: the proof is not in its canonical form", ErrMalformed)
	}
	return x, nil
}

// Check verifies the extension with the public keys alone, and returns the two tree heads. Errors as of Proof.Check.
func (x Extension) Check(keys []note.Verifier) (before, after TreeHead, err error) {
	if before, _, err = OpenHead(x.Old, keys); err != nil {
		return before, after, err
	}
	if after, _, err = OpenHead(x.New, keys); err != nil {
		return before, after, err
	}
	if after.Size < before.Size {
		return before, after, fmt.Errorf("%w: the later tree head covers %d records, the earlier one %d", ErrTampered, after.Size, before.Size)
	}
	if err := tlog.CheckTree(x.Hashes, after.Size, after.Root, before.Size, before.Root); err != nil {
		return before, after, fmt.Errorf("%w: the tree of %d records does not extend that of %d", ErrTampered, after.Size, before.Size)
	}
	return before, after, nil
}

// Prove returns a proof that a record is in the log, under the newest tree head, which is signed before when it does not cover the record. Errors: catalog.ErrNotExist, catalog.ErrDamaged,
// ErrNotSigned (read-only), ErrTampered when what the record says does not lead to what was signed.
func (l *Log) Prove(ctx context.Context, seq catalog.Seq) (Proof, error) {
	link, err := l.j.Link(ctx, seq)
	if err != nil {
		return Proof{}, err
	}
	if link.HeadDropped {
		return Proof{}, fmt.Errorf("journal record %d: %w: retention has taken away what it said", seq, catalog.ErrThinned)
	}
	p := Proof{Seq: seq, Prev: link.Prev, Frame: link.Frame, Head: link.Head}
	err = l.prove(ctx, int64(seq), func(size int64, signed []byte) error {
		p.Signed = signed
		if leaf, err := l.tree.leaf(int64(seq) - 1); err == nil && leaf == lostLeaf() {
			return fmt.Errorf("%w: the record could not be read when its turn came", ErrNotSigned)
		}
		if p.Hashes, err = tlog.ProveRecord(size, int64(seq)-1, l.tree); err != nil {
			return err
		}
		_, err = p.Check(l.keys.public)
		return err
	})
	if err != nil {
		return Proof{}, fmt.Errorf("prove record %d: %w", seq, err)
	}
	return p, nil
}

// ProveExtends returns a proof that the newest tree head extends an older one of this store. Errors: ErrMalformed, ErrNotSigned (read-only), and ErrTampered when it does not:
// the journal was changed or rolled back since.
func (l *Log) ProveExtends(ctx context.Context, old []byte) (Extension, error) {
	before, _, err := OpenHead(old, l.keys.public)
	if err != nil {
		return Extension{}, err
	}
	x := Extension{Old: old}
	err = l.prove(ctx, 1, func(size int64, signed []byte) error {
		if size < before.Size {
			return fmt.Errorf("%w: the journal has %d records, and the tree head of %s covers %d: it was rolled back", ErrTampered, size,
				before.Time.Format("2006-01-02 15:04:05"), before.Size)
		}
		x.New = signed
		if x.Hashes, err = tlog.ProveTree(size, before.Size, l.tree); err != nil {
			return err
		}
		_, _, err = x.Check(l.keys.public)
		return err
	})
	if err != nil {
		return Extension{}, fmt.Errorf("prove that the log was only added to: %w", err)
	}
	return x, nil
}

// prove calls fn with a signed tree head that covers the record. When the proof does not hold, the tree may be damaged: it is made anew once, from the journal.
func (l *Log) prove(ctx context.Context, seq int64, fn func(size int64, signed []byte) error) error {
	signed, err := l.Head(ctx)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return ErrClosed
	}
	size := l.heads.last.Size
	switch {
	case l.tree == nil:
		return fmt.Errorf("%w: the tree of the audit log is missing or damaged; mount the store for writing, which makes it anew", ErrNotSigned)
	case size < seq:
		return fmt.Errorf("%w: the newest tree head covers %d records", ErrNotSigned, size)
	}
	if l.heads.newest != nil {
		signed = bytes.Clone(l.heads.newest)
	}
	err = fn(size, signed)
	if err == nil || l.opt.ReadOnly || ctx.Err() != nil || errors.Is(err, ErrNotSigned) {
		return err
	}
	l.log.Warn("a proof does not hold; the tree of the audit log is made anew", "error", err)
	if err := l.setAside(); err != nil {
		return err
	}
	l.follow = l.j.Follow(1)
	if err := l.update(ctx, size); err != nil {
		return err
	}
	l.dropOld()
	return fn(size, signed)
}
