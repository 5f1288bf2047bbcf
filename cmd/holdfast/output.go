package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"

	"golang.org/x/sys/unix"
)

// document writes v as one JSON document on one line.
func (e *env) document(v any) error {
	enc := json.NewEncoder(e.stdout)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// isTerminal reports whether a person sees what is written to, or types what is read from, f.
func isTerminal(f any) bool {
	file, ok := f.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	return err == nil
}

// formatBytes writes a size for people, in binary units.
func formatBytes(n int64) string {
	if n < 1024 {
		return strconv.FormatInt(n, 10) + " B"
	}
	f, units := float64(n)/1024, "KMGTPE"
	for f >= 1023.95 && len(units) > 1 {
		f, units = f/1024, units[1:]
	}
	return fmt.Sprintf("%.1f %ciB", f, units[0])
}

func formatTime(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }

// quote makes a name safe for a terminal: control characters could move its cursor or worse.
func (e *env) quote(name string) string {
	if isTerminal(e.stdout) {
		return quoteAlways(name)
	}
	return name
}

func quoteAlways(name string) string {
	if strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }) {
		return strconv.Quote(name)
	}
	return name
}

// progress shows on a terminal how far a long transfer is; elsewhere it does nothing.
type progress struct {
	w     io.Writer
	label string
	now   func() time.Time
	start time.Time
	shown time.Time
	n     int64
}

// newProgress returns nil, which is a progress that shows nothing, unless standard error is a terminal.
func (e *env) newProgress(label string) *progress {
	if e.json || !isTerminal(e.stderr) {
		return nil
	}
	return &progress{w: e.stderr, label: quoteAlways(label), now: e.now, start: e.now()}
}

func (p *progress) add(n int) {
	if p == nil {
		return
	}
	p.n += int64(n)
	now := p.now()
	if since := now.Sub(p.start); since < time.Second || now.Sub(p.shown) < 200*time.Millisecond {
		return
	} else {
		fmt.Fprintf(p.w, "\r\033[K%s: %s, %s/s", p.label, formatBytes(p.n), formatBytes(int64(float64(p.n)/since.Seconds())))
	}
	p.shown = now
}

// done takes the line away.
func (p *progress) done() {
	if p != nil && !p.shown.IsZero() {
		fmt.Fprint(p.w, "\r\033[K")
	}
}

func (p *progress) reader(r io.Reader) io.Reader {
	if p == nil {
		return r
	}
	return readerFunc(func(b []byte) (int, error) {
		n, err := r.Read(b)
		p.add(n)
		return n, err
	})
}

func (p *progress) writer(w io.Writer) io.Writer {
	if p == nil {
		return w
	}
	return writerFunc(func(b []byte) (int, error) {
		n, err := w.Write(b)
		p.add(n)
		return n, err
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
