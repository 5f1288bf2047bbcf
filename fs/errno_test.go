package fs

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	iofs "io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// sentinels lists the exported errors that the packages below declare, as "package.ErrName", from their sources.
func sentinels(t *testing.T) map[string]bool {
	t.Helper()
	all := make(map[string]bool)
	for name, dir := range map[string]string{
		"blobstore": "../blobstore", "catalog": "../catalog", "volume": "../internal/volume", "integrity": "../integrity", "audit": "../integrity/audit",
	} {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("no sources in %s (%v)", dir, err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range f.Decls {
				g, ok := d.(*ast.GenDecl)
				if !ok || g.Tok != token.VAR {
					continue
				}
				for _, s := range g.Specs {
					for _, id := range s.(*ast.ValueSpec).Names {
						if strings.HasPrefix(id.Name, "Err") {
							all[name+"."+id.Name] = true
						}
					}
				}
			}
		}
	}
	return all
}

func TestErrnoTableIsComplete(t *testing.T) {
	want := sentinels(t)
	if len(want) < 20 {
		t.Fatalf("found only %d sentinel errors below: the test does not see them", len(want))
	}
	have := make(map[string]bool)
	for _, row := range errnoTable() {
		have[row.name] = true
		if !want[row.name] && !strings.HasPrefix(row.name, "context.") {
			t.Errorf("the table has %s, which no package declares", row.name)
		}
	}
	for name := range want {
		if !have[name] {
			t.Errorf("%s is not in the table: programs would get EIO for it by accident", name)
		}
	}
}

func TestErrnos(t *testing.T) {
	table := errnoTable()
	for _, row := range table {
		for _, err := range []error{row.err, fmt.Errorf("inode 7: %w", row.err), errors.Join(errors.New("first"), row.err)} {
			errno, foreseen := toErrno(table, err)
			if errno != row.errno || !foreseen {
				t.Errorf("%s: %v, want %v", row.name, errno, row.errno)
			}
		}
		// What retention has thinned away is not there, in the past; the present is never thinned.
		if row.errno == unix.ENOENT && row.name != "catalog.ErrNotExist" && row.name != "catalog.ErrThinned" {
			t.Errorf("%s becomes ENOENT: a program would think that its file is gone", row.name)
		}
		if row.errno == unix.ENOSYS || row.errno == unix.EOPNOTSUPP {
			t.Errorf("%s becomes %v: the kernel would stop asking", row.name, row.errno)
		}
	}
	// A table in which a lost blob is an ENOENT would be noticed.
	if errno, _ := toErrno([]errnoRow{{"x", io.EOF, unix.ENOENT}}, io.EOF); errno != unix.ENOENT {
		t.Error("the table is not what decides")
	}
}

// TestErrnosFromBelow: an error of the disk, whatever it is, never becomes one that says something about the user's file.
func TestErrnosFromBelow(t *testing.T) {
	table := errnoTable()
	_, missing := os.Open(filepath.Join(t.TempDir(), "no such file"))
	allowed := map[unix.Errno]bool{unix.EIO: true, unix.ENOSPC: true, unix.EDQUOT: true, unix.EROFS: true}
	for e := unix.Errno(1); e < 134; e++ {
		for _, err := range []error{
			&os.PathError{Op: "open", Path: "blobs/ab", Err: e}, os.NewSyscallError("fdatasync", e),
			&os.LinkError{Op: "rename", Old: "a", New: "b", Err: e}, fmt.Errorf("commit: %w", &iofs.PathError{Err: e}),
		} {
			if errno, _ := toErrno(table, err); !allowed[errno] {
				t.Errorf("%v becomes %v", err, errno)
			}
		}
		// Bare, it is what a layer chose; a few would still be lies.
		errno, _ := toErrno(table, fmt.Errorf("inode 7: %w", e))
		if errno == unix.ENOENT || errno == unix.ENOSYS || errno == unix.EACCES || errno == unix.EINTR {
			t.Errorf("bare %v becomes %v", e, errno)
		}
	}
	for _, err := range []error{missing, os.ErrNotExist, io.ErrUnexpectedEOF, errors.New("anything"), os.ErrDeadlineExceeded} {
		if errno, foreseen := toErrno(table, err); errno != unix.EIO || foreseen {
			t.Errorf("%v becomes %v (foreseen: %v)", err, errno, foreseen)
		}
	}
	if errno, _ := toErrno(table, fmt.Errorf("x: %w", context.Canceled)); errno != unix.EINTR {
		t.Errorf("a cancelled context becomes %v", errno)
	}
}
