package view

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"
	"unicode/utf8"

	"holdfast/catalog"
	"holdfast/integrity"
	"holdfast/integrity/audit"
)

// auditLine is the length of each line of audit.jsonl, in bytes, filled up with spaces: so line n is at a place that is known, the file has a size that is right, and
// reading its end costs nothing for what is before it.
const auditLine = 512

// maxAuditRead bounds the lines that are made for one read.
const maxAuditRead = 256

// mutation is a line of audit.jsonl: one record of the journal.
type mutation struct {
	Seq       catalog.Seq `json:"seq"`
	Time      time.Time   `json:"time"`
	Agent     string      `json:"agent"`
	Program   string      `json:"program"`
	UID       uint32      `json:"uid"`
	PID       uint32      `json:"pid"`
	Operation catalog.Op  `json:"operation"`
	Path      string      `json:"path"`
	Inode     catalog.Ino `json:"inode"`
	Version   uint64      `json:"version"`
	SHA256    string      `json:"sha256"`
	Versions  int         `json:"versions,omitempty"` // when there is more than one: those are in `holdfast audit find`
	Cut       bool        `json:"cut,omitempty"`      // agent, program or path are longer than what is shown of them
	Dropped   bool        `json:"dropped,omitempty"`  // retention has taken away what it said
	Damaged   string      `json:"damaged,omitempty"`  // it cannot be read
}

// line is the mutation in exactly auditLine bytes.
func (m *mutation) line() ([]byte, error) {
	m.Agent, m.Cut = cutText(m.Agent, 48, m.Cut)
	m.Program, m.Cut = cutText(m.Program, 48, m.Cut)
	m.Damaged, _ = cutText(m.Damaged, 100, false)
	for room := len(m.Path); ; room -= 8 {
		m.Path, m.Cut = cutText(m.Path, room, m.Cut)
		b, err := jsonLine(m)
		if err != nil {
			return nil, err
		}
		if len(b) <= auditLine {
			b = append(bytes.TrimSuffix(b, []byte("\n")), bytes.Repeat([]byte(" "), auditLine-len(b))...)
			return append(b, '\n'), nil
		}
		if room <= 0 {
			return nil, fmt.Errorf("record %d: %w: its line is too long", m.Seq, catalog.ErrDamaged)
		}
	}
}

// cutText keeps the end of a text, which tells more of a path than its beginning.
func cutText(s string, most int, cut bool) (string, bool) {
	if len(s) <= most {
		return s, cut
	}
	s = s[len(s)-max(most, 0):]
	for len(s) > 0 && !utf8.RuneStart(s[0]) {
		s = s[1:]
	}
	return s, true
}

func (t *Tree) auditSize(ctx context.Context) (int64, error) {
	newest, err := t.o.Store.Newest(ctx)
	return int64(newest) * auditLine, err
}

// auditLines is audit.jsonl. It grows while it is open.
type auditLines struct {
	readOnly
	t *Tree
}

func (f *auditLines) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, catalog.ErrInvalid
	}
	total := 0
	for total < len(p) {
		first := catalog.Seq((off+int64(total))/auditLine) + 1
		b, err := f.t.mutations(ctx, first, maxAuditRead)
		if err != nil {
			if total > 0 {
				return total, nil // the next read says so
			}
			return 0, err
		}
		skip := int(off+int64(total)) % auditLine
		if skip >= len(b) {
			break
		}
		total += copy(p[total:], b[skip:])
	}
	return total, nil
}

// mutations makes up to most lines from the record first on.
func (t *Tree) mutations(ctx context.Context, first catalog.Seq, most int) ([]byte, error) {
	newest, err := t.o.Store.Newest(ctx)
	if err != nil || first > newest {
		return nil, err
	}
	count := int(min(catalog.Seq(most), newest-first+1))
	lines := make([]mutation, count)
	err = t.o.Audit.Entries(ctx, audit.Query{From: first}, func(e *audit.Entry) error {
		if e == nil || e.Seq >= first+catalog.Seq(count) {
			return errEnough
		}
		if e.Seq < first {
			return nil
		}
		m := &lines[e.Seq-first]
		if m.Seq == e.Seq { // a further version of the same record
			m.Versions = max(m.Versions, 1) + 1
			return nil
		}
		*m = mutation{Seq: e.Seq, Time: e.Time, Agent: e.Agent, Program: e.Program, UID: e.UID, PID: e.PID, Operation: e.Operation, Path: e.Path,
			Inode: e.Inode, Version: e.Version, SHA256: e.SHA256, Dropped: e.Dropped, Damaged: e.Damaged}
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return nil, err
	}
	out := make([]byte, 0, count*auditLine)
	for i := range lines {
		if lines[i].Seq == 0 {
			lines[i] = mutation{Seq: first + catalog.Seq(i), Damaged: "the record cannot be read; see holdfast audit verify"}
		}
		b, err := lines[i].line()
		if err != nil {
			return nil, err
		}
		out = append(out, b...)
	}
	return out, nil
}

// recoveryLines is recoveries.jsonl. It grows while it is open; who reads on where it was reads only what is new.
type recoveryLines struct {
	readOnly
	t *Tree

	mu    sync.Mutex
	next  int64 // the offset behind what was read
	after int64 // the attempt that ends there
	rest  []byte
}

func (f *recoveryLines) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, catalog.ErrInvalid
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if off < f.next {
		f.next, f.after, f.rest = 0, 0, nil
	}
	n := 0
	take := func() {
		if skip := min(off-f.next, int64(len(f.rest))); skip > 0 {
			f.rest, f.next = f.rest[skip:], f.next+skip
		}
		if f.next >= off {
			k := copy(p[n:], f.rest)
			f.rest, f.next, n = f.rest[k:], f.next+int64(k), n+k
			off += int64(k)
		}
	}
	take()
	if n == len(p) {
		return n, nil
	}
	err := f.t.o.Engine.Recoveries(ctx, f.after, func(id int64, a integrity.Attempt) error {
		b, err := jsonLine(a)
		if err != nil {
			return err
		}
		f.rest, f.after = b, id
		if take(); n == len(p) {
			return errEnough
		}
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) && n == 0 {
		return 0, err
	}
	return n, nil
}

// recoveriesSize adds up the lines; it is asked for again after a while only.
func (t *Tree) recoveriesSize(ctx context.Context) (int64, error) {
	ino := number(kindFixed, nodeRecoveries)
	if b := t.known(ino, fresh); b != nil {
		var size int64
		err := json.Unmarshal(b, &size)
		return size, err
	}
	var size int64
	err := t.o.Engine.Recoveries(ctx, 0, func(_ int64, a integrity.Attempt) error {
		b, err := jsonLine(a)
		size += int64(len(b))
		return err
	})
	if err == nil {
		t.keep(ino, fmt.Append(nil, size))
	}
	return size, err
}

// maxEventRead bounds the events of one read.
const maxEventRead = 128

// eventStream is events: what happens from its opening on.
type eventStream struct {
	readOnly
	t *Tree

	turn  chan struct{} // one reader at a time
	after uint64
	rest  []byte
}

func newEventStream(t *Tree) *eventStream {
	return &eventStream{t: t, after: t.o.Engine.LastEvent(), turn: make(chan struct{}, 1)}
}

func (*eventStream) Stream() bool { return true }

// ReadAt waits until something has happened. 0 bytes when nothing can any more.
func (f *eventStream) ReadAt(ctx context.Context, p []byte, _ int64) (int, error) {
	select {
	case f.turn <- struct{}{}:
		defer func() { <-f.turn }()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	if len(f.rest) == 0 {
		list, err := f.t.o.Engine.Events(ctx, f.after, maxEventRead)
		if errors.Is(err, catalog.ErrClosed) {
			return 0, nil
		}
		if err != nil {
			return 0, err
		}
		for i := range list {
			b, err := jsonLine(list[i])
			if err != nil {
				return 0, err
			}
			f.rest, f.after = append(f.rest, b...), list[i].Seq
		}
	}
	n := copy(p, f.rest)
	f.rest = f.rest[n:]
	return n, nil
}
