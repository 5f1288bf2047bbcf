package acceptance

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
)

// writer is one program that works in a directory of its own, and knows after each operation what must be there: all that was
// acknowledged, and of the operation that did not return either nothing or all (or a state that the operation passes through).
type writer struct {
	dir  string
	rnd  *rand.Rand
	big  bool // writes files of several hash blocks too
	acks acks

	have   world   // what is there after all operations that returned; a name that is not in it does not exist
	states []world // what may be there after a crash now: the state that was last acknowledged for good, and all since
	what   string  // the operation under way, in words

	log       *os.File // held open, appended to, fsynced now and then
	logAll    []byte   // what was written to it
	logSynced int      // how much of it fsync acknowledged
}

// acks says which operations a crash may not undo.
type acks int

const (
	byClose    acks = iota // each that returned: the daemon is killed
	byFsync                // each that returned, and all are followed by fsync: the power fails
	byAnyFsync             // those before the last fsync of any file: the power fails, and what survives must be a moment of the past
)

// world maps names to content. As a change, nil content says that the name does not exist.
type world map[string][]byte

const writerNames = 25

func newWriter(dir string, seed uint64, big bool, a acks) *writer {
	return &writer{dir: dir, rnd: rand.New(rand.NewPCG(seed, 7)), big: big, acks: a, have: world{}, states: []world{{}}}
}

// work does operations until one fails, and counts each acknowledged one with done.
func (w *writer) work(done func()) error {
	err := os.MkdirAll(w.dir, 0o755)
	if err == nil {
		err = w.openLog()
	}
	if err != nil {
		return err
	}
	defer w.log.Close()
	for {
		if err := w.step(); err != nil {
			return fmt.Errorf("%s in %s: %w", w.what, filepath.Base(w.dir), err)
		}
		w.returned()
		done()
	}
}

// openLog goes on with what an earlier crash left of the log, which check has accepted.
func (w *writer) openLog() (err error) {
	w.log, err = os.OpenFile(filepath.Join(w.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	return err
}

func (w *writer) size() int {
	switch k := w.rnd.IntN(20); {
	case w.big && k == 0:
		return 1 + w.rnd.IntN(700<<10)
	case w.big && k < 3:
		return 60<<10 + w.rnd.IntN(80<<10)
	}
	return 1 + w.rnd.IntN(8<<10)
}

func (w *writer) content() []byte {
	b := randomBytes(w.rnd, w.size())
	if w.rnd.IntN(2) == 0 { // content that compresses
		for i := range b {
			b[i] = 'a' + b[i]%4
		}
	}
	return b
}

// begin says what the next operation may leave behind.
func (w *writer) begin(what string, changes ...world) {
	w.what = what
	for _, c := range changes {
		w.states = append(w.states, w.have.with(c))
	}
}

// with returns a copy of the world, changed.
func (o world) with(change world) world {
	res := maps.Clone(o)
	for name, b := range change {
		if b == nil {
			delete(res, name)
		} else {
			res[name] = b
		}
	}
	return res
}

func (w *writer) ack(change world) {
	w.have = w.have.with(change)
	w.states = append(w.states, w.have)
}

// returned settles what an operation did, when the crash to come may not undo it.
func (w *writer) returned() {
	w.what = ""
	if w.acks != byAnyFsync {
		w.settle()
	}
}

func (w *writer) settle() { w.states = []world{w.have} }

// step does one operation. On success its result is in have.
func (w *writer) step() error {
	name := fmt.Sprint("f", w.rnd.IntN(writerNames))
	old, exists := w.have[name]
	path := filepath.Join(w.dir, name)
	switch k := w.rnd.IntN(100); {
	case k < 30:
		return w.replace(name)
	case k < 45 && exists:
		add := w.content()
		return w.edit("append to "+name, name, append(old[:len(old):len(old)], add...), func(f *os.File) error {
			_, err := f.WriteAt(add, int64(len(old)))
			return err
		})
	case k < 58 && exists:
		off := w.rnd.IntN(len(old) + 1)
		patch := w.content()
		after := append([]byte(nil), old...)
		after = append(after[:off], append(patch, after[min(off+len(patch), len(after)):]...)...)
		return w.edit("overwrite part of "+name, name, after, func(f *os.File) error {
			_, err := f.WriteAt(patch, int64(off))
			return err
		})
	case k < 66 && exists:
		size := w.rnd.IntN(len(old) + 1)
		return w.edit("truncate "+name, name, append([]byte{}, old[:size]...), func(f *os.File) error { return f.Truncate(int64(size)) })
	case k < 80:
		return w.replaceByRename(name)
	case k < 85 && exists:
		after := world{name: nil}
		w.begin("remove "+name, after)
		if err := os.Remove(path); err != nil {
			return err
		}
		if err := w.syncDir(); err != nil {
			return err
		}
		w.ack(after)
		return nil
	case k < 92 && exists:
		to := name + "-moved"
		after := world{name: nil, to: old}
		w.begin("rename "+name, after)
		if err := os.Rename(path, filepath.Join(w.dir, to)); err != nil {
			return err
		}
		if err := w.syncDir(); err != nil {
			return err
		}
		w.ack(after)
		return nil
	default:
		return w.appendLog()
	}
}

func (w *writer) syncDir() error {
	if w.acks != byFsync {
		return nil
	}
	d, err := os.Open(w.dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (w *writer) finish(f *os.File) error {
	var err error
	if w.acks == byFsync {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// replace writes a file from its beginning, in one to three writes.
func (w *writer) replace(name string) error {
	data := w.content()
	after := world{name: data}
	w.begin("write "+name, after, world{name: {}})
	f, err := os.OpenFile(filepath.Join(w.dir, name), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	cut := w.rnd.IntN(len(data) + 1)
	_, err = f.Write(data[:cut])
	if err == nil {
		_, err = f.Write(data[cut:])
	}
	if err = errors.Join(err, w.finish(f)); err != nil {
		return err
	}
	if err := w.syncDir(); err != nil {
		return err
	}
	w.ack(after)
	return nil
}

// edit changes a file in place. Nothing but the old and the new content may be seen afterwards.
func (w *writer) edit(what, name string, data []byte, change func(*os.File) error) error {
	after := world{name: data}
	w.begin(what, after)
	f, err := os.OpenFile(filepath.Join(w.dir, name), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(change(f), w.finish(f)); err != nil {
		return err
	}
	w.ack(after)
	return nil
}

// replaceByRename writes a temporary file and renames it over the name: the name never leads to anything but old or new content.
func (w *writer) replaceByRename(name string) error {
	data, tmp := w.content(), name+".tmp"
	after := world{name: data, tmp: nil}
	w.begin("replace "+name, after, world{tmp: {}}, world{tmp: data})
	path := filepath.Join(w.dir, tmp)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, w.finish(f)); err != nil {
		return err
	}
	w.ack(world{tmp: data}) // from here on it must be there, under one name or the other
	w.returned()
	w.begin("rename over "+name, after)
	if err := os.Rename(path, filepath.Join(w.dir, name)); err != nil {
		return err
	}
	if err := w.syncDir(); err != nil {
		return err
	}
	w.ack(after)
	return nil
}

// appendLog appends to the file that stays open; what fsync has not acknowledged may be lost from the end.
func (w *writer) appendLog() error {
	line := fmt.Appendf(nil, "%d %s\n", len(w.logAll), strings.Repeat("x", w.rnd.IntN(300)))
	w.begin("append to the log")
	w.logAll = append(w.logAll, line...)
	if _, err := w.log.Write(line); err != nil {
		return err
	}
	if w.acks == byFsync || w.rnd.IntN(3) == 0 {
		if err := w.log.Sync(); err != nil {
			return err
		}
		w.logSynced = len(w.logAll)
		w.settle()
	}
	return nil
}

// check compares the directory with what must be there, and goes on from what is.
func (w *writer) check() error {
	got, err := w.read()
	if err != nil {
		return err
	}
	log := got["log"]
	if len(log) < w.logSynced || len(log) > len(w.logAll) || string(log) != string(w.logAll[:len(log)]) {
		return fmt.Errorf("%s: the log has %d bytes; %d were acknowledged by fsync and %d written, or they differ", filepath.Base(w.dir), len(log), w.logSynced, len(w.logAll))
	}
	w.logAll, w.logSynced = log, len(log)
	delete(got, "log")

	// The newest first: its difference is the one worth telling.
	var diffs []string
	for _, state := range slices.Backward(w.states) {
		diff := state.differs(got)
		if diff == "" {
			w.have, w.what = got, ""
			w.settle()
			return nil
		}
		if diffs = append(diffs, diff); len(diffs) > 5 {
			diffs = diffs[:5]
		}
	}
	return fmt.Errorf("%s: none of %d allowed states holds (operation under way: %q): %s", filepath.Base(w.dir), len(w.states), w.what, strings.Join(diffs, "; or "))
}

func (w *writer) read() (world, error) {
	list, err := os.ReadDir(w.dir)
	if errors.Is(err, os.ErrNotExist) && len(w.states[0]) == 0 {
		return world{}, nil
	}
	if err != nil {
		return nil, err
	}
	got := world{}
	for _, e := range list {
		b, err := os.ReadFile(filepath.Join(w.dir, e.Name()))
		if err != nil {
			return nil, err
		}
		got[e.Name()] = b
	}
	return got, nil
}

// differs names the first difference between what should be there and what is; "" means none.
func (want world) differs(got world) string {
	for name, b := range want {
		g, ok := got[name]
		if !ok {
			return fmt.Sprintf("%s is missing", name)
		}
		if string(g) != string(b) {
			return fmt.Sprintf("%s has %d bytes, want %d, or they differ", name, len(g), len(b))
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			return fmt.Sprintf("%s is there and should not be", name)
		}
	}
	return ""
}

// crowd runs writers at once.
type crowd struct {
	writers []*writer
	count   atomic.Int64
	broken  atomic.Bool // set before the failure that a test causes: errors of the writers are expected from then on
}

// runUntil lets all work until they have done n operations together, then calls cause, and waits until each has met an error.
// An error before cause is returned.
func (c *crowd) runUntil(n int64, cause func()) error {
	c.count.Store(0)
	c.broken.Store(false)
	reached := make(chan struct{})
	results := make(chan error, len(c.writers))
	for _, w := range c.writers {
		go func() {
			err := w.work(func() {
				if c.count.Add(1) == n {
					close(reached)
				}
			})
			if c.broken.Load() {
				err = nil
			}
			results <- err
		}()
	}
	var early error
	left := len(c.writers)
	select {
	case <-reached:
	case early = <-results:
		left--
	}
	c.broken.Store(true)
	cause()
	for range left {
		early = errors.Join(early, <-results)
	}
	return early
}

func (c *crowd) check() error {
	var errs []error
	for _, w := range c.writers {
		errs = append(errs, w.check())
	}
	return errors.Join(errs...)
}
