package view

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/catalog"
	"holdfast/integrity"
)

// File is an open file of the directory. Its content is not to be cached.
type File interface {
	// ReadAt returns less than len(p) only at the end.
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	WriteAt(ctx context.Context, p []byte, off int64) (int, error)
	// Flush is a close(2): what was written takes effect, and the error is the program's.
	Flush(ctx context.Context) error
	Close()
	// Stream says that ReadAt does not look at its offset and may wait until ctx ends.
	Stream() bool
}

// Open opens a file; write says that it is to be written. catalog.ErrReadOnly when that cannot be, catalog.ErrIsDir.
func (t *Tree) Open(ctx context.Context, ino catalog.Ino, write bool) (File, error) {
	row, err := t.Get(ctx, ino)
	if err != nil {
		return nil, err
	}
	if row.Mode&unix.S_IFMT == unix.S_IFDIR {
		return nil, catalog.ErrIsDir
	}
	kind, n := split(ino)
	if write {
		switch {
		case kind == kindFixed && n == nodeScrub:
			return &command{t: t}, nil
		case kind == kindManual:
			d, err := t.manual(ctx, n)
			if err != nil {
				return nil, err
			}
			return &completion{t: t, id: d.DataID}, nil
		}
		return nil, catalog.ErrReadOnly
	}
	switch {
	case kind == kindFixed && n == nodeEvents:
		return newEventStream(t), nil
	case kind == kindFixed && n == nodeAudit:
		return &auditLines{t: t}, nil
	case kind == kindFixed && n == nodeRecoveries:
		return &recoveryLines{t: t}, nil
	case kind == kindCheck || kind == kindProof:
		b, err := t.mirrorText(ctx, kind, catalog.Ino(n))
		return &plain{b: b}, err
	case kind == kindFailure:
		b, _, err := t.failure(ctx, int64(n))
		return &plain{b: b}, err
	case kind == kindManual:
		d, err := t.manual(ctx, n)
		return &plain{b: []byte(integrity.ManualPage(&d))}, err
	}
	b, err := t.text(ctx, number(kind, n))
	return &plain{b: b}, err
}

// known is a text that is fresh enough, or nil.
func (t *Tree) known(ino catalog.Ino, age time.Duration) []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	if x, ok := t.texts[ino]; ok && t.o.Now().Sub(x.at) < age && !t.o.Now().Before(x.at) {
		return x.b
	}
	return nil
}

func (t *Tree) keep(ino catalog.Ino, b []byte) { t.keepOf(ino, b, 0) }

// isOf says whether what is kept is about that version of a file.
func (t *Tree) isOf(ino catalog.Ino, ver uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.texts[ino].ver == ver
}

func (t *Tree) keepOf(ino catalog.Ino, b []byte, ver uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for old := range t.texts {
		if len(t.texts) < maxTexts {
			break
		}
		delete(t.texts, old)
	}
	t.texts[ino] = text{b, t.o.Now(), ver}
}

// text makes one of the small fixed files, unless it was made a moment ago.
func (t *Tree) text(ctx context.Context, ino catalog.Ino) ([]byte, error) {
	if b := t.known(ino, fresh); b != nil {
		return b, nil
	}
	b, err := t.makeText(ctx, ino)
	if err != nil {
		return nil, err
	}
	t.keep(ino, b)
	return b, nil
}

func (t *Tree) makeText(ctx context.Context, ino catalog.Ino) ([]byte, error) {
	_, n := split(ino)
	switch n {
	case nodeReadme:
		return []byte(readme), nil
	case nodeStatus:
		s, err := t.o.Engine.Status(ctx)
		if err != nil {
			return nil, err
		}
		return jsonPage(s)
	case nodeSummary:
		s, err := t.o.Engine.Status(ctx)
		if err != nil {
			return nil, err
		}
		return summary(&s), nil
	case nodeCheckpoint:
		return t.o.Audit.Head(ctx)
	case nodeScrub:
		s, err := t.o.Scrub.Status(ctx)
		if err != nil {
			return nil, err
		}
		return jsonPage(s)
	}
	return nil, catalog.ErrStale
}

// summary says in plain words how the store is, the most important thing in the first line.
func summary(s *integrity.Status) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\n\n", s.Summary)
	fmt.Fprintf(&b, "damages found so far: %d, healed: %d, waiting for a person: %d\n", s.Failures, s.Recovered, s.Damaged)
	if s.Degraded {
		fmt.Fprintf(&b, "second copies: %s\n", s.DegradedWhy)
	}
	if s.Missing > 0 {
		fmt.Fprintf(&b, "second copies and parities that are still to be made: %d\n", s.Missing)
	}
	c := s.Scrub
	fmt.Fprintf(&b, "scrub: %s, cycle %d, %s, %.0f %% done, %d blobs and %d bytes checked, %d damages found, %d healed\n", c.State, c.Cycle, c.Phase,
		100*c.Fraction, c.Blobs, c.Bytes, c.Found, c.Healed)
	if c.OldestCheck.IsZero() {
		b.WriteString("not everything has been checked since this store was made; the first cycle has not ended\n")
	} else {
		fmt.Fprintf(&b, "everything was checked after %s\n", c.OldestCheck.UTC().Format(time.RFC3339))
	}
	return b.Bytes()
}

// mirrorText makes the checks of a file, or the proof of its newest version.
func (t *Tree) mirrorText(ctx context.Context, kind int, ino catalog.Ino) ([]byte, error) {
	node := number(kind, uint64(ino))
	if b := t.known(node, freshChecks); b != nil {
		row, err := t.o.Store.Get(ctx, ino)
		if err != nil {
			return nil, err
		}
		if t.isOf(node, row.Ver) {
			return b, nil
		}
	}
	b, ver, err := t.makeMirror(ctx, kind, ino)
	if err != nil {
		return nil, err
	}
	t.keepOf(node, b, ver)
	return b, nil
}

// makeMirror returns the text, and the version of the file that it is about.
func (t *Tree) makeMirror(ctx context.Context, kind int, ino catalog.Ino) ([]byte, uint64, error) {
	row, err := t.o.Store.Get(ctx, ino)
	if err != nil {
		return nil, 0, err
	}
	if kind == kindProof {
		b, err := t.makeProof(ctx, &row)
		return b, row.Ver, err
	}
	b, err := t.makeChecks(ctx, &row)
	return b, row.Ver, err
}

func (t *Tree) makeProof(ctx context.Context, row *catalog.Inode) ([]byte, error) {
	if row.Ver == 0 {
		return nil, fmt.Errorf("%w: it has no version yet", catalog.ErrNotExist)
	}
	list, err := t.o.Store.VersionRange(ctx, row.Ino, row.Ver, row.Ver+1)
	if err != nil {
		return nil, err
	}
	if len(list) != 1 {
		return nil, fmt.Errorf("version %d: %w", row.Ver, catalog.ErrDamaged)
	}
	p, err := t.o.Audit.Prove(ctx, list[0].Seq)
	if err != nil {
		return nil, err
	}
	return p.Text(), nil
}

func (t *Tree) makeChecks(ctx context.Context, row *catalog.Inode) ([]byte, error) {
	p, err := t.pathOf(ctx, row.Ino)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	sum, err := t.o.Engine.Check(ctx, p, integrity.CheckOptions{Passed: true}, func(r integrity.Result) error {
		line, err := jsonLine(r)
		if err != nil {
			return err
		}
		if b.Len()+len(line) <= maxText {
			b.Write(line)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	line, err := jsonLine(map[string]any{"summary": sum, "healthy": sum.Healthy(), "version": row.Ver})
	if err != nil {
		return nil, err
	}
	b.Write(line)
	return b.Bytes(), nil
}

func jsonLine(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return b.Bytes(), err
}

func jsonPage(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	err := enc.Encode(v)
	return b.Bytes(), err
}

// readOnly is the part of a File that is only read.
type readOnly struct{}

func (readOnly) WriteAt(context.Context, []byte, int64) (int, error) { return 0, unix.EBADF }
func (readOnly) Flush(context.Context) error                         { return nil }
func (readOnly) Close()                                              {}
func (readOnly) Stream() bool                                        { return false }

// plain is a file as it was when it was opened.
type plain struct {
	readOnly
	b []byte
}

func (f *plain) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, catalog.ErrInvalid
	}
	if off >= int64(len(f.b)) {
		return 0, nil
	}
	return copy(p, f.b[off:]), nil
}

// command is scrub, open for writing: a word that is carried out at the end of its line, or when the file is closed.
type command struct {
	t    *Tree
	mu   sync.Mutex
	text []byte
}

const maxCommand = 64

func (*command) ReadAt(context.Context, []byte, int64) (int, error) { return 0, unix.EBADF }

func (c *command) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	if off < 0 || off > int64(len(c.text)) || off+int64(len(p)) > maxCommand {
		return 0, fmt.Errorf("%w: write start, pause, resume or stop", catalog.ErrInvalid)
	}
	c.text = append(c.text[:off], p...)
	if p[len(p)-1] != '\n' {
		return len(p), nil
	}
	// A whole line is carried out at once: shells do not look at the outcome of their close.
	if err := c.carryOut(ctx); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Flush carries out a word without an end of line.
func (c *command) Flush(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.carryOut(ctx)
}

func (c *command) carryOut(ctx context.Context) error {
	word := strings.TrimSpace(string(c.text))
	c.text = nil
	s := c.t.o.Scrub
	switch word {
	case "":
		return nil
	case "start":
		return s.Start(ctx)
	case "pause":
		return s.Pause(ctx)
	case "resume":
		return s.Resume(ctx)
	case "stop":
		return s.Stop(ctx)
	}
	return fmt.Errorf("%w: %q; write start, pause, resume or stop", catalog.ErrInvalid, word)
}

func (*command) Close()       {}
func (*command) Stream() bool { return false }

// completion is a file of manual, open for writing: the content that is missing, from its beginning to its end, goes to the engine while it is written.
type completion struct {
	t  *Tree
	id string

	mu    sync.Mutex
	next  int64 // the offset that is expected
	pipe  *io.PipeWriter
	stop  context.CancelFunc
	ended chan error
	done  bool
}

func (*completion) ReadAt(context.Context, []byte, int64) (int, error) { return 0, unix.EBADF }

func (c *completion) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done || off != c.next {
		return 0, fmt.Errorf("%w: the content is to be written once, from its beginning to its end", catalog.ErrInvalid)
	}
	if c.pipe == nil {
		var r *io.PipeReader
		r, c.pipe = io.Pipe()
		c.ended = make(chan error, 1)
		work, stop := context.WithCancel(context.WithoutCancel(ctx))
		c.stop = stop
		go func() {
			err := c.t.o.Engine.Complete(work, c.id, r)
			r.CloseWithError(errors.Join(err, io.ErrClosedPipe)) // who still writes learns of it
			c.ended <- err
		}()
	}
	n, err := c.pipe.Write(p)
	c.next += int64(n)
	if err != nil {
		c.done = true
		if cause := <-c.ended; cause != nil {
			err = cause
		}
		c.stop()
		return n, err
	}
	return n, nil
}

// Flush ends the content. A close before anything was written, of which shells make some, is none.
func (c *completion) Flush(context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pipe == nil || c.done {
		return nil
	}
	c.done = true
	if err := c.pipe.Close(); err != nil {
		return err
	}
	err := <-c.ended
	c.stop()
	return err
}

// Close of what was never flushed takes it back.
func (c *completion) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pipe != nil && !c.done {
		c.done = true
		c.pipe.CloseWithError(errors.New("the content was broken off"))
		c.stop()
		if err := <-c.ended; err == nil { // it was complete after all
			return
		}
	}
}

func (*completion) Stream() bool { return false }
