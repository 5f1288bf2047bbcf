package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// work runs a job as a worker process would and returns what it reports.
func work(t *testing.T, j job) measured {
	t.Helper()
	line, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := serveWorker(strings.NewReader(string(line)+"\n"+workerWarm+"\n"+workerGo+"\n"), &out); err != nil {
		t.Fatal(err)
	}
	answers := strings.SplitAfter(out.String(), "\n")
	var m measured
	if err := json.Unmarshal([]byte(answers[len(answers)-2]), &m); err != nil {
		t.Fatalf("%v in %q", err, out.String())
	}
	return m
}

// TestWorkerOperations runs every operation on a plain directory, and looks at what it left behind.
func TestWorkerOperations(t *testing.T) {
	const files = 50
	for name := range operations() {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			j := job{Op: name, Dir: dir, Files: files, Size: smallSize, Ops: files, Seed: 7}
			want := files
			switch name {
			case "list":
				work(t, job{Op: "create", Dir: dir, Files: files, Size: 1})
				j.Ops, j.Warm, want = 3, true, 3*files
			case "read-large", "hash-read":
				j.Size = 3<<20 + 5
				work(t, job{Op: "write-large", Dir: dir, Size: j.Size, Seed: j.Seed})
				want = 1
			case "write-large", "hash-write":
				j.Size, want = 3<<20+5, 1
			case "append", "append-open", "write-4k":
				j.Size = 2 << 20
			}
			m := work(t, j)
			if m.Err != "" || m.Ops != want || m.EndNS < m.StartNS || m.CloseNS < m.EndNS {
				t.Fatalf("measured %+v, want %d operations", m, want)
			}
			checkLeft(t, name, dir, j, m)
		})
	}
}

func checkLeft(t *testing.T, name, dir string, j job, m measured) {
	t.Helper()
	files := func(sub string) int {
		e, err := os.ReadDir(filepath.Join(dir, sub))
		if err != nil {
			t.Fatal(err)
		}
		return len(e)
	}
	size := func(want int64) {
		st, err := os.Stat(filepath.Join(dir, "large.bin"))
		if err != nil || st.Size() != want {
			t.Errorf("the file has %v, %v, want %d bytes", st, err, want)
		}
	}
	switch name {
	case "create", "stat", "read", "list", "overwrite", "replace":
		if n := files(""); n != j.Files {
			t.Errorf("%d files, want %d", n, j.Files)
		}
	case "create-tree":
		if n := files("d0000"); n != j.Files {
			t.Errorf("%d files, want %d", n, j.Files)
		}
	case "move":
		if a, b := files("todo"), files("done"); a != 0 || b != j.Files {
			t.Errorf("%d files left and %d moved", a, b)
		}
	case "unlink":
		if n := files(""); n != 0 {
			t.Errorf("%d files left", n)
		}
	case "append", "append-open":
		size(j.Size + int64(j.Ops)*appendLine)
	case "write-4k":
		size(j.Size)
	case "write-large", "read-large", "hash-write", "hash-read":
		size(j.Size)
		if m.Bytes != j.Size {
			t.Errorf("%d bytes measured", m.Bytes)
		}
		b, err := os.ReadFile(filepath.Join(dir, "large.bin"))
		if err != nil {
			t.Fatal(err)
		}
		if sum := sha256.Sum256(b); m.Sum != "" && m.Sum != hex.EncodeToString(sum[:]) || m.Sum == "" && strings.HasPrefix(name, "hash") {
			t.Errorf("sum %q", m.Sum)
		}
	}
}

// TestWorkerRefuses shows that a filesystem that answers wrongly does not count as a fast one.
func TestWorkerRefuses(t *testing.T) {
	if m := work(t, job{Op: "no such"}); m.Err == "" {
		t.Error("an unknown operation was done")
	}
	if m := work(t, job{Op: "create", Dir: filepath.Join(t.TempDir(), "missing"), Files: 1, Size: 1}); m.Err == "" {
		t.Error("a missing directory was used")
	}
	dir := t.TempDir()
	work(t, job{Op: "create", Dir: dir, Files: 3, Size: 1})
	if m := work(t, job{Op: "list", Dir: dir, Files: 4, Ops: 1}); m.Err == "" {
		t.Error("a lost entry was not seen")
	}
	j := job{Op: "write-large", Dir: dir, Size: 2 << 20, Seed: 3}
	work(t, j)
	path := filepath.Join(dir, "large.bin")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	j.Op = "read-large"
	for what, bad := range map[string][]byte{
		"a wrong page":  slicesOf(b[:pageSize*3], b[:pageSize], b[pageSize*4:]),
		"a short file":  b[:len(b)-1],
		"a longer file": append(b[:len(b):len(b)], 0),
	} {
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if m := work(t, j); m.Err == "" {
			t.Errorf("%s was not seen", what)
		}
	}
}

func slicesOf(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func TestWorkerWords(t *testing.T) {
	dir := t.TempDir()
	line := fmt.Sprintf(`{"Op":"create","Dir":%q,"Files":1,"Size":1}`, dir)
	for _, in := range []string{"", "{\n", line + "\n", line + "\ngo\n", line + "\nwarm\nstop\n"} {
		if err := serveWorker(strings.NewReader(in), &bytes.Buffer{}); err == nil {
			t.Errorf("%q was taken", in)
		}
	}
	if e, err := os.ReadDir(dir); err != nil || len(e) != 0 {
		t.Errorf("something was done without go: %v, %v", e, err)
	}
}

func TestRepeatEnds(t *testing.T) {
	m := measured{StartNS: now() - int64(time.Hour)}
	if err := repeat(&m, job{Max: time.Nanosecond}, 1000, func(int) error { return nil }); err != nil || m.Ops != 16 {
		t.Errorf("%d operations (%v) after the time was over, want 16", m.Ops, err)
	}
	m = measured{StartNS: now()}
	if err := repeat(&m, job{Ops: 3}, 1000, func(int) error { return nil }); err != nil || m.Ops != 3 {
		t.Errorf("%d operations (%v), want 3", m.Ops, err)
	}
}

func TestAddUp(t *testing.T) {
	a := measured{Ops: 10, Bytes: 1 << 20, StartNS: 100, EndNS: 200, CloseNS: 200}
	b := measured{Ops: 20, Bytes: 1 << 20, StartNS: 150, EndNS: 1_000_000_100, CloseNS: 2_000_000_100}
	m := addUp(a, b)
	if m != addUp(b, a) {
		t.Error("the order matters")
	}
	if m.opsRate() != 30 || m.closeRate() != 15 || m.byteRate() != 1 {
		t.Errorf("%+v: rates %v, %v, %v, want 30, 15, 1", m, m.opsRate(), m.closeRate(), m.byteRate())
	}
}

// TestStreams: content must be the same for the same seed and differ otherwise, or files would be deduplicated.
func TestStreams(t *testing.T) {
	for _, text := range []bool{false, true} {
		read := func(seed uint64) []byte {
			s := newStream(seed, text, 3<<20)
			var all []byte
			for off := int64(0); off < 3<<20; off += chunkSize {
				all = append(all, s.chunk(off, chunkSize)...)
			}
			return all
		}
		a, b, c := read(1), read(1), read(2)
		if !bytes.Equal(a, b) {
			t.Error("the same seed gives other bytes")
		}
		seen := map[[32]byte]bool{}
		for _, all := range [][]byte{a, c} {
			for i := 0; i < len(all); i += pageSize {
				seen[sha256.Sum256(all[i:i+pageSize])] = true
			}
		}
		if want := 2 * len(a) / pageSize; len(seen) != want {
			t.Errorf("%d different pages of %d", len(seen), want)
		}
	}
	const cycle = 2 << 20
	s := newStream(5, false, cycle)
	first := append([]byte(nil), s.chunk(0, chunkSize)...)
	if bytes.Equal(first, s.chunk(cycle, chunkSize)) {
		t.Error("a stream repeats after a cycle")
	}
	if err := s.check(first[1:], 1); err != nil {
		t.Errorf("a read that begins within a page: %v", err)
	}
	if err := s.check(first, chunkSize); err == nil {
		t.Error("bytes of another place were taken")
	}
}
