package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

const (
	markBegin = "<!-- figures: begin -->"
	markEnd   = "<!-- figures: end -->"
)

var errNoMarks = errors.New("the file has no place for the figures")

// report writes everything of a result: as text, or as Markdown.
func report(w io.Writer, r *Result, markdown bool) error {
	para := func(format string, args ...any) error {
		_, err := fmt.Fprintf(w, format+"\n\n", args...)
		return err
	}
	state := ""
	if r.Modified {
		state = ", with changes"
	}
	quick := ""
	if r.Quick {
		quick = " (quick: smaller and rough)"
	}
	if err := para("%s, commit %s%s, %d rounds%s. %s, %d cores, %d MiB, Linux %s, %s, %s.", r.Time.Format("2006-01-02 15:04 MST"), r.Commit, state,
		r.Rounds, quick, r.Machine.CPU, r.Machine.Cores, r.Machine.MemoryMiB, r.Machine.Kernel, r.Machine.Go, r.Machine.Disk); err != nil {
		return err
	}
	if r.SHA256 > 0 {
		if err := para("SHA-256 on one core: %.0f MiB/s.", r.SHA256); err != nil {
			return err
		}
	}
	for _, part := range []struct {
		title string
		t     *table
	}{
		{"Rates, medians; more is better; /floor, /ext4, /loopback: Holdfast's as a multiple of that", rateTable(r)},
		{"FUSE requests for one operation", tripTable(r)},
		{"Goals", goalTable(r)},
	} {
		if len(part.t.rows) == 0 {
			continue
		}
		var err error
		if markdown {
			err = errors.Join(para("### %s", part.title), part.t.markdown(w))
		} else {
			err = errors.Join(para("%s", part.title), part.t.text(w))
		}
		if err := errors.Join(err, para("")); err != nil {
			return err
		}
	}
	for _, n := range r.Notes {
		if err := para("Note: %s", n); err != nil {
			return err
		}
	}
	return nil
}

// replaceFigures puts the report of r between the marks in a Markdown file.
func replaceFigures(path string, r *Result) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("put the figures into a page: %w", err)
	}
	var b bytes.Buffer
	if err := report(&b, r, true); err != nil {
		return err
	}
	page, err := between(old, bytes.TrimSpace(b.Bytes()))
	if err != nil {
		return fmt.Errorf("%s: %w: it needs the lines %q and %q", path, err, markBegin, markEnd)
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".figures-")
	if err != nil {
		return fmt.Errorf("put the figures into a page: %w", err)
	}
	_, err = tmp.Write(page)
	err = errors.Join(err, tmp.Chmod(0o644), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("put the figures into a page: %w", err), os.Remove(tmp.Name()))
	}
	return nil
}

// between replaces what stands between the marks.
func between(page, text []byte) ([]byte, error) {
	head, rest, ok := bytes.Cut(page, []byte(markBegin))
	if !ok {
		return nil, errNoMarks
	}
	_, foot, ok := bytes.Cut(rest, []byte(markEnd))
	if !ok {
		return nil, errNoMarks
	}
	return bytes.Join([][]byte{head, []byte(markBegin + "\n"), text, []byte("\n" + markEnd), foot}, nil), nil
}
