package fs_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/internal/fusetest"
)

// TestErrorsReachPrograms: what the store cannot do, the program learns from the call that asked for it.
func TestErrorsReachPrograms(t *testing.T) {
	m := fusetest.New(t, fusetest.Options{Kind: fusetest.Mem})
	path := filepath.Join(m.Dir, "f")
	write(t, path, "content")
	f := open(t, path, os.O_RDWR)
	_, err := f.WriteString("new")
	check(t, err)
	m.Fail("flush", unix.ENOSPC)
	wantErrno(t, "close", f.Close(), unix.ENOSPC)
	m.Fail("flush", 0)

	f = open(t, path, os.O_RDWR)
	_, err = f.WriteString("new")
	check(t, err)
	m.Fail("fsync", unix.EIO)
	wantErrno(t, "fsync", f.Sync(), unix.EIO)
	m.Fail("fsync", 0)
	check(t, f.Sync())

	_, err = f.WriteString("newer")
	check(t, err)
	m.Fail("write", unix.ENOSPC)
	wantErrno(t, "fsync after a write that failed", f.Sync(), unix.ENOSPC)
	m.Fail("write", 0)
	check(t, f.Close())

	d := open(t, m.Dir, os.O_RDONLY)
	m.Fail("sync", unix.EIO)
	wantErrno(t, "fsync of a directory", d.Sync(), unix.EIO)
	m.Fail("sync", 0)
	check(t, d.Sync())

	for _, c := range []struct {
		op string
		do func() error
	}{
		{"create", func() error { return os.WriteFile(filepath.Join(m.Dir, "new"), nil, 0o644) }},
		{"open", func() error { _, err := os.Open(path); return err }},
		{"unlink", func() error { return os.Remove(path) }},
		{"setattr", func() error { return os.Chmod(path, 0o600) }},
	} {
		m.Fail(c.op, unix.EIO)
		wantErrno(t, c.op, c.do(), unix.EIO)
		m.Fail(c.op, 0)
	}
	// A path error inside the store is not the user's: not ENOENT, and nothing that makes the kernel stop asking.
	for _, e := range []unix.Errno{unix.ENOENT, unix.ENOSYS, unix.EACCES, unix.EMFILE} {
		m.Fail("open", e)
		_, err := os.Open(path)
		wantErrno(t, "open when the store gets "+unix.ErrnoName(e), err, unix.EIO)
	}
	m.Fail("open", 0)
	wantContent(t, path, "newnewer")
}

// TestPanics: a handler that panics is the end of a request, not of the mount.
func TestPanics(t *testing.T) {
	m := fusetest.New(t, fusetest.Options{Kind: fusetest.Mem})
	path := filepath.Join(m.Dir, "f")
	write(t, path, "content")
	m.Panic("open")
	_, err := os.Open(path)
	wantErrno(t, "open", err, unix.EIO)
	m.Fail("open", 0)
	wantContent(t, path, "content")
	m.Stop()
	if log := m.Stderr(); !strings.Contains(log, "a test wanted this panic") || !strings.Contains(log, "OpenFile") {
		t.Errorf("the panic and where it came from are not in the log: %q", log)
	}
}

// TestActors: versions say who wrote them.
func TestActors(t *testing.T) {
	m := fusetest.New(t, fusetest.Options{})
	t.Setenv("HOLDFAST_AGENT", "reviewer-3")
	path := filepath.Join(m.Dir, "messages", "note")
	out, err := runShell(`echo one >"$1"; echo two >>"$1"`, path)
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	log := m.Log("/messages/note")
	if len(log) != 2 {
		t.Fatalf("%d versions, want 2: %+v", len(log), log)
	}
	for _, e := range log {
		if e.Agent != "reviewer-3" || e.Program != "sh" || e.UID != uint32(os.Getuid()) || e.PID == 0 {
			t.Errorf("version %d is by %q, program %q, user %d, process %d", e.Number, e.Agent, e.Program, e.UID, e.PID)
		}
	}
	if log[0].Size != 4 || log[1].Size != 8 {
		t.Errorf("versions of %d and %d bytes, want 4 and 8", log[0].Size, log[1].Size)
	}
}
