package fs

import (
	"bytes"
	"os/user"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"holdfast/catalog"
)

const (
	// agentVariable is the environment variable by which a process names the agent that it works for.
	agentVariable = "HOLDFAST_AGENT"

	maxAgent   = 128       // bytes of an agent's name
	maxEnviron = 256 << 10 // bytes of a process's environment that are looked through
	procChunk  = 16 << 10
	maxUsers   = 1024 // user names that are remembered

	// Reading a process's environment can hang for as long as the process likes (its memory may be backed by a filesystem that does not
	// answer), so it is waited for that long at most, and so many readers may hang.
	environPatience = 50 * time.Millisecond
	environReaders  = 8
)

// procReader reads what /proc says of processes.
type procReader struct {
	root    string
	bufs    sync.Pool     // of *[]byte, procChunk long
	readers chan struct{} // one token for each reader of environments

	mu    sync.Mutex
	users map[uint32]string
}

func newProcReader(root string) *procReader {
	return &procReader{
		root:    root,
		bufs:    sync.Pool{New: func() any { b := make([]byte, procChunk); return &b }},
		readers: make(chan struct{}, environReaders),
		users:   make(map[uint32]string),
	}
}

func (p *procReader) path(pid uint32, file string) string {
	return p.root + "/" + strconv.FormatUint(uint64(pid), 10) + "/" + file
}

// read calls use with the first bytes of a file, without the runtime's poller.
func (p *procReader) read(path string, use func([]byte)) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	buf := p.bufs.Get().(*[]byte)
	defer p.bufs.Put(buf)
	n, err := unix.Read(fd, *buf)
	if err != nil {
		return err
	}
	use((*buf)[:n])
	return nil
}

// comm is the name of a thread.
func (p *procReader) comm(pid uint32) (name string, err error) {
	err = p.read(p.path(pid, "comm"), func(b []byte) { name = clean(bytes.TrimSuffix(b, []byte("\n"))) })
	return name, err
}

// maxComm is the longest name of a thread, with its line end.
const maxComm = 64

// openComm returns the name of a thread, and the file that it was read from, -1 when there is none.
func (p *procReader) openComm(tid uint32) (string, int) {
	fd, err := unix.Open(p.path(tid, "comm"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", -1
	}
	var buf [maxComm]byte
	n, err := unix.Pread(fd, buf[:], 0)
	if err != nil {
		unix.Close(fd)
		return "", -1
	}
	return clean(bytes.TrimSuffix(buf[:n], []byte("\n"))), fd
}

// still reports whether the thread lives and has the name that it had.
func (p *procReader) still(e caller) bool {
	if e.name < 0 {
		return false
	}
	var buf [maxComm]byte
	n, err := unix.Pread(e.name, buf[:], 0)
	if err != nil {
		return false
	}
	now := bytes.TrimSuffix(buf[:n], []byte("\n"))
	return string(now) == e.comm || clean(now) == e.comm
}

// describe finds out who a thread belongs to. What cannot be found stays empty. The caller closes name.
func (p *procReader) describe(tid, uid uint32) caller {
	e := caller{actor: catalog.Actor{UID: uid, PID: tid}}
	e.comm, e.name = p.openComm(tid)
	e.actor.Program = e.comm
	if pid := p.process(tid); pid != tid {
		e.actor.PID = pid
		if name, err := p.comm(pid); err == nil {
			e.actor.Program = name
		}
	}
	e.actor.Agent = p.agent(tid)
	if e.actor.Agent == "" {
		e.actor.Agent = p.container(tid)
	}
	if e.actor.Agent == "" {
		e.actor.Agent = p.user(uid)
		if e.actor.Program != "" {
			e.actor.Agent += "/" + e.actor.Program
		}
	}
	return e
}

// process is the process of a thread. Requests carry the number of the thread.
func (p *procReader) process(tid uint32) uint32 {
	// The signal 0 is never sent; ESRCH says that no such process has a thread of that number.
	if err := unix.Tgkill(int(tid), int(tid), 0); err != unix.ESRCH {
		return tid
	}
	pid := tid
	err := p.read(p.path(tid, "status"), func(b []byte) {
		_, rest, ok := bytes.Cut(b, []byte("\nTgid:"))
		if !ok {
			return
		}
		line, _, _ := bytes.Cut(rest, []byte("\n"))
		if n, err := strconv.ParseUint(string(bytes.TrimSpace(line)), 10, 32); err == nil {
			pid = uint32(n)
		}
	})
	if err != nil {
		return tid // it is gone
	}
	return pid
}

// agent is the value of HOLDFAST_AGENT in the environment with which the process was started.
func (p *procReader) agent(pid uint32) string {
	select {
	case p.readers <- struct{}{}:
	default:
		return ""
	}
	found := make(chan string, 1)
	go func() {
		defer func() { <-p.readers }()
		found <- p.environ(p.path(pid, "environ"))
	}()
	patience := time.NewTimer(environPatience)
	defer patience.Stop()
	select {
	case name := <-found:
		return name
	case <-patience.C:
		return ""
	}
}

// environ looks for the variable in the file at path, which holds NAME=value pairs, each ended by a zero byte.
func (p *procReader) environ(path string) string {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	buf := p.bufs.Get().(*[]byte)
	defer p.bufs.Put(buf)
	var s environScanner
	for total := 0; total < maxEnviron; {
		n, err := unix.Read(fd, *buf)
		if n <= 0 || err != nil {
			break
		}
		if s.feed((*buf)[:n]) {
			break
		}
		total += n
	}
	return s.value()
}

// environScanner finds the variable in an environment that comes in pieces.
type environScanner struct {
	line []byte // the beginning of the pair that the last piece ended in
	skip bool   // the rest of that pair is of no interest
	got  []byte
	done bool
}

// feed looks through one more piece and reports whether the variable was found.
func (s *environScanner) feed(b []byte) bool {
	const prefix = agentVariable + "="
	for len(b) > 0 && !s.done {
		piece, rest, ended := bytes.Cut(b, []byte{0})
		b = rest
		if !s.skip {
			s.line = append(s.line, piece[:min(len(piece), len(prefix)+maxAgent-min(len(s.line), len(prefix)+maxAgent))]...)
			n := min(len(s.line), len(prefix))
			s.skip = string(s.line[:n]) != prefix[:n]
		}
		if !ended {
			return false
		}
		if !s.skip && bytes.HasPrefix(s.line, []byte(prefix)) {
			s.got, s.done = s.line[len(prefix):], true
			return true
		}
		s.line, s.skip = s.line[:0], false
	}
	return s.done
}

func (s *environScanner) value() string { return clean(s.got) }

// container is the last part of the process's control group, when it says more than what every session has.
func (p *procReader) container(pid uint32) (name string) {
	if err := p.read(p.path(pid, "cgroup"), func(b []byte) { name = cgroupName(string(b)) }); err != nil {
		return "" // it is gone
	}
	return name
}

// cgroupName takes the name from the content of /proc/PID/cgroup: lines of "hierarchy:controllers:path".
func cgroupName(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	parts := strings.SplitN(line, ":", 3)
	if len(parts) < 3 {
		return ""
	}
	last := parts[2][strings.LastIndexByte(parts[2], '/')+1:]
	base := last
	for _, suffix := range []string{".scope", ".service", ".slice"} {
		base = strings.TrimSuffix(base, suffix)
	}
	switch {
	case base == "", base == "init", base == "user", base == "system", base == "app", base == "session",
		strings.HasPrefix(base, "user@"), strings.HasPrefix(base, "user-"), strings.HasPrefix(base, "session-"),
		strings.HasPrefix(base, "vte-spawn-"), strings.HasPrefix(base, "app-"), strings.HasSuffix(last, ".slice"):
		return ""
	}
	return clean([]byte(base))
}

// user is the name of a user, or "uid-N".
func (p *procReader) user(uid uint32) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if name, ok := p.users[uid]; ok {
		return name
	}
	id := strconv.FormatUint(uint64(uid), 10)
	name := "uid-" + id
	if u, err := user.LookupId(id); err == nil && u.Username != "" {
		name = clean([]byte(u.Username))
	}
	if len(p.users) >= maxUsers {
		clear(p.users)
	}
	p.users[uid] = name
	return name
}

// AgentName is the name by which the store knows an agent that calls itself name in HOLDFAST_AGENT: fit for logs and terminals, which is valid UTF-8
// without what cannot be printed, of bounded length.
func AgentName(name string) string { return clean([]byte(name)) }

func clean(b []byte) string {
	s := strings.ToValidUTF8(string(b[:min(len(b), maxAgent)]), "?")
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.TrimSpace(s))
}
