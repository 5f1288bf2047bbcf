package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
)

const (
	// logName is the daemon's log in the store; the older part of it has ".1" behind the name.
	logName = "holdfast.log"
	maxLog  = 8 << 20
)

// logFile is a log of bounded size: when it would grow over max bytes it is renamed, replacing the one renamed before, and begun again.
// It opens at the first write. Writers may be concurrent.
type logFile struct {
	path string
	max  int64

	mu   sync.Mutex
	f    *os.File
	size int64
}

func newLogFile(store string) *logFile {
	return &logFile{path: filepath.Join(store, logName), max: maxLog}
}

func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f != nil && l.size > 0 && l.size+int64(len(p)) > l.max {
		if err := l.rotate(); err != nil {
			return 0, err
		}
	}
	if l.f == nil {
		if err := l.open(); err != nil {
			return 0, err
		}
		if l.size > 0 && l.size+int64(len(p)) > l.max {
			if err := l.rotate(); err != nil {
				return 0, err
			}
			if err := l.open(); err != nil {
				return 0, err
			}
		}
	}
	n, err := l.f.Write(p)
	l.size += int64(n)
	return n, err
}

func (l *logFile) open() error {
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file; move it elsewhere", l.path)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	// A crash of the daemon is told here, since nobody reads its standard error.
	if err := debug.SetCrashOutput(f, debug.CrashOptions{}); err != nil {
		return errors.Join(err, f.Close())
	}
	l.f, l.size = f, st.Size()
	return nil
}

func (l *logFile) rotate() error {
	err := l.f.Close()
	l.f, l.size = nil, 0
	if e := os.Rename(l.path, l.path+".1"); e != nil && !errors.Is(e, fs.ErrNotExist) {
		err = errors.Join(err, e)
	}
	return err
}

// Close closes the file; a later Write opens it again.
func (l *logFile) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		return nil
	}
	err := l.f.Close()
	l.f = nil
	return err
}
