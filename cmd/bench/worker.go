package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"
)

// job is what a worker process is asked to do: one operation, many times, in one directory that exists.
type job struct {
	Op    string
	Dir   string
	Files int           // files to work on
	Size  int64         // bytes of a file
	Ops   int           // at most so many operations; 0: as the operation has it
	Max   time.Duration // end after this time even when operations are left; 0: never
	Seed  uint64
	Sync  bool // fsync before each close
	Text  bool // content that compresses
	Warm  bool // do it once before the clock starts
}

// measured is what a worker reports. Times are of CLOCK_MONOTONIC, which all processes share, in nanoseconds.
type measured struct {
	Ops     int
	Bytes   int64
	StartNS int64
	EndNS   int64  // when the last operation returned
	CloseNS int64  // when the close after it returned, for operations that keep a file open
	Sum     string `json:",omitempty"` // SHA-256 of the content, for operations that compute it
	Err     string `json:",omitempty"`
}

// prepared is a job with its names and data made. warm, when it is there, runs untimed shortly before run does.
type prepared struct {
	warm func() error
	run  func(m *measured) error
}

// operations are what a worker can do.
func operations() map[string]func(job) (prepared, error) {
	return map[string]func(job) (prepared, error){
		"create":      prepareCreate,
		"create-tree": prepareCreateTree,
		"stat":        prepareStat,
		"read":        prepareRead,
		"list":        prepareList,
		"overwrite":   prepareOverwrite,
		"replace":     prepareReplace,
		"move":        prepareMove,
		"unlink":      prepareUnlink,
		"append":      prepareAppend,
		"append-open": prepareAppendOpen,
		"write-large": prepareWriteLarge,
		"read-large":  prepareReadLarge,
		"write-4k":    prepareWrite4K,
		"hash-write":  prepareHashWrite,
		"hash-read":   prepareHashRead,
	}
}

// What goes over the pipes between this program and a worker.
const (
	workerReady  = "ready"
	workerWarm   = "warm"
	workerWarmed = "warmed"
	workerGo     = "go"
)

// workerProcess makes this process a worker: nothing of Go's runtime may interrupt the timed part. The process is short-lived.
func workerProcess() error {
	runtime.LockOSThread()
	debug.SetGCPercent(-1)
	return serveWorker(os.Stdin, os.Stdout)
}

// serveWorker is the whole life of a worker process: a job comes as a line of JSON, "ready" goes out when everything is prepared, "warm" comes
// in and "warmed" goes out, "go" comes in and what was measured goes out as a line of JSON. An error goes out as a result at any time.
func serveWorker(in io.Reader, out io.Writer) error {
	r := bufio.NewReader(in)
	line, err := r.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("read the job: %w", err)
	}
	var j job
	if err := json.Unmarshal(line, &j); err != nil {
		return fmt.Errorf("read the job: %w", err)
	}
	fail := func(err error) error {
		return json.NewEncoder(out).Encode(measured{Err: fmt.Sprintf("%s in %s: %v", j.Op, j.Dir, err)})
	}
	p, err := prepare(j)
	if err != nil {
		return fail(err)
	}
	if err := exchange(r, out, workerReady, workerWarm); err != nil {
		return err
	}
	if p.warm != nil {
		if err := p.warm(); err != nil {
			return fail(err)
		}
	}
	if err := exchange(r, out, workerWarmed, workerGo); err != nil {
		return err
	}
	m := measured{StartNS: now()}
	if err := p.run(&m); err != nil {
		return fail(err)
	}
	return json.NewEncoder(out).Encode(m)
}

// exchange says a word and waits for another.
func exchange(in *bufio.Reader, out io.Writer, say, want string) error {
	if _, err := fmt.Fprintln(out, say); err != nil {
		return fmt.Errorf("say %s: %w", say, err)
	}
	line, err := in.ReadString('\n')
	if err != nil {
		return fmt.Errorf("wait for %s: %w", want, err)
	}
	if line != want+"\n" {
		return fmt.Errorf("read %q instead of %q", line, want)
	}
	return nil
}

func prepare(j job) (prepared, error) {
	op, ok := operations()[j.Op]
	if !ok {
		return prepared{}, fmt.Errorf("no operation %q", j.Op)
	}
	p, err := op(j)
	if err != nil {
		return prepared{}, fmt.Errorf("prepare: %w", err)
	}
	return p, nil
}

// now is CLOCK_MONOTONIC. The error is ignored: the clock exists on every Linux.
func now() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return ts.Nano()
}

// repeat calls one(0), one(1) ... until n calls are made or the job's time is over, and notes what was done. The clock is asked
// after every 16 calls only.
func repeat(m *measured, j job, n int, one func(i int) error) error {
	if j.Ops > 0 {
		n = min(n, j.Ops)
	}
	i := 0
	for ; i < n; i++ {
		if err := one(i); err != nil {
			return err
		}
		if i%16 == 15 && j.Max > 0 && now()-m.StartNS > int64(j.Max) {
			i++
			break
		}
	}
	m.EndNS = now()
	m.CloseNS = m.EndNS
	m.Ops = i
	return nil
}
