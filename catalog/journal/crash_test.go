package journal

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

var seedFlag = flag.Uint64("seed", 0, "seed of the random tests; 0 draws one")

func newRand(t testing.TB) *rand.Rand {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d (repeat with -seed)", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// randomRecord has a number of its own, so that no record can stand for another.
func randomRecord(rng *rand.Rand, id uint64) testRecord {
	r := testRecord{head: binary.BigEndian.AppendUint64(nil, id)}
	r.head = append(r.head, make([]byte, rng.IntN(60))...)
	if rng.IntN(3) > 0 {
		r.body = make([]byte, rng.IntN(1500))
	}
	for _, b := range [][]byte{r.head[8:], r.body} {
		if rng.IntN(3) > 0 { // else zeros: the content may look like the space behind the end
			for i := range b {
				b[i] = byte(rng.Uint32())
			}
		}
	}
	return r
}

// crashModel is what a log may and must hold.
type crashModel struct {
	appended []testRecord // [i] is record i+1; Append returned success
	flying   *testRecord  // Append did not return: it may be there
	synced   int          // a Sync that returned covers so many
}

func (cm *crashModel) check(t *testing.T, l *Log) {
	t.Helper()
	var got []testRecord
	if err := l.Replay(t.Context(), 1, func(e Entry) error {
		got = append(got, testRecord{bytes.Clone(e.Head), bytes.Clone(e.Body)})
		return nil
	}); err != nil {
		t.Fatalf("replay after a crash: %v", err)
	}
	if len(l.Damaged()) > 0 {
		t.Fatalf("damage after a crash: %v", l.Damaged())
	}
	may := cm.appended
	if cm.flying != nil {
		may = append(may[:len(may):len(may)], *cm.flying)
	}
	if len(got) < cm.synced || len(got) > len(may) {
		t.Fatalf("%d records after a crash; %d were durable, %d written", len(got), cm.synced, len(may))
	}
	for i := range got {
		if !bytes.Equal(got[i].head, may[i].head) || !bytes.Equal(got[i].body, may[i].body) {
			t.Fatalf("record %d after a crash is another one", i+1)
		}
	}
	*cm = crashModel{appended: got, synced: len(got)} // Open has made durable what it found
}

// Power cuts at random points between and inside the log's calls, again and again on the same store. The recovered log holds every record
// whose Sync returned, and is a beginning of what was appended.
func TestPowerCut(t *testing.T) {
	rng := newRand(t)
	for run := range 250 {
		m := newMemFS()
		var cm crashModel
		id := uint64(run) << 32
		for range 6 {
			cut := 1 + rng.IntN(60)
			m.fault = func(call int, _, _ string) error {
				if call >= cut {
					return errCut
				}
				return nil
			}
			l, err := Open(t.Context(), Options{Dir: "store/journal", StoreID: testStore, FS: m, SegmentBytes: headerSize + 3000, AppliedSeq: uint64(cm.synced)})
			for err == nil {
				id++
				switch rng.IntN(8) {
				case 0, 1:
					if err = l.Sync(t.Context()); err == nil {
						cm.synced = len(cm.appended)
					}
				case 2:
					if rng.IntN(4) == 0 {
						if err = l.Close(); err == nil {
							cm.synced = len(cm.appended)
							l, err = Open(t.Context(), Options{Dir: "store/journal", StoreID: testStore, FS: m, SegmentBytes: headerSize + 3000})
						}
					}
				default:
					r := randomRecord(rng, id)
					var seq uint64
					if seq, _, err = l.Append(0, r.head, r.body); err != nil {
						cm.flying = &r
					} else if cm.appended = append(cm.appended, r); seq != uint64(len(cm.appended)) {
						t.Fatalf("record %d got number %d", len(cm.appended), seq)
					}
				}
			}
			if !errors.Is(err, errCut) {
				t.Fatal(err)
			}
			m = m.crash(rng)
			if l, err = Open(t.Context(), Options{Dir: "store/journal", StoreID: testStore, FS: m, AppliedSeq: uint64(rng.IntN(cm.synced + 1))}); err != nil {
				t.Fatalf("open after a crash: %v", err)
			}
			cm.check(t, l)
			if rep := verify(t, "store/journal", m, uint64(cm.synced)); !rep.OK() || rep.Last != uint64(len(cm.appended)) {
				t.Fatalf("verify after a crash: %+v %v", rep, rep.Damage)
			}
			m.calls = 0
		}
	}
}

// Each call to the filesystem fails once, in turn, with each error: the caller is told, no number is used up by what was not
// appended, nothing is reported durable after a failed fdatasync, and what is reported is there.
func TestFailureAtEachCall(t *testing.T) {
	for _, errno := range []error{syscall.ENOSPC, syscall.EIO} {
		for _, forGood := range []bool{false, true} {
			for at := 1; ; at++ {
				if failAt(t, at, errno, forGood) {
					break
				}
			}
		}
	}
}

// failAt runs a fixed workload; it returns true when that makes fewer than at calls.
func failAt(t *testing.T, at int, errno error, forGood bool) (done bool) {
	t.Helper()
	m := newMemFS()
	failed := ""
	m.fault = func(call int, op, name string) error {
		if call == at || forGood && call > at {
			failed += op + " " + name + " "
			return errno
		}
		return nil
	}
	what := func() string { return fmt.Sprintf("call %d (%s) with %v, for good %v", at, failed, errno, forGood) }
	l, err := Open(t.Context(), Options{Dir: "store/journal", StoreID: testStore, FS: m, SegmentBytes: headerSize + 600})
	if err != nil {
		if !errors.Is(err, errno) {
			t.Fatalf("%s: Open says %v", what(), err)
		}
		return false
	}
	var cm crashModel
	poisoned := false
	for i := range 24 {
		r := recordN(uint64(i))
		seq, _, err := l.Append(0, r.head, r.body)
		if err == nil {
			if cm.appended = append(cm.appended, r); seq != uint64(len(cm.appended)) || poisoned {
				t.Fatalf("%s: record %d got number %d, poisoned %v", what(), len(cm.appended), seq, poisoned)
			}
		} else if failed == "" || !errors.Is(err, errno) {
			t.Fatalf("%s: Append says %v", what(), err)
		}
		poisoned = poisoned || errors.Is(err, ErrPoisoned)
		if i%4 == 3 {
			err := l.Sync(t.Context())
			if err == nil {
				if cm.synced = len(cm.appended); poisoned {
					t.Fatalf("%s: Sync reports success on a poisoned log", what())
				}
			} else if poisoned = true; !errors.Is(err, ErrPoisoned) || !errors.Is(err, errno) {
				t.Fatalf("%s: Sync says %v", what(), err)
			}
		}
	}
	if failed == "" {
		return true
	}
	if op, rest, _ := strings.Cut(failed, " "); op == "fdatasync" && strings.HasPrefix(rest, "store/journal/"+segmentName(1)+" ") && !poisoned {
		t.Fatalf("%s: the log goes on", what())
	}
	if err := l.Close(); (err != nil) != poisoned {
		t.Fatalf("%s: Close says %v, poisoned %v", what(), err, poisoned)
	}
	m.fault = nil
	after := mustOpen(t, Options{Dir: "store/journal", FS: m})
	cm.check(t, after)
	// What the log found there on opening is durable, even where an fdatasync had failed before.
	again := mustOpen(t, Options{Dir: "store/journal", FS: m.crash(rand.New(rand.NewPCG(uint64(at), 1)))})
	cm.check(t, again)
	return false
}

// A failed fdatasync is reported to everyone who waits for it, and to everyone after.
func TestFailedSyncIsForEveryone(t *testing.T) {
	m := newMemFS()
	l := mustOpen(t, Options{Dir: "store/journal", FS: m})
	mustAppend(t, l, 1, 10)
	m.mu.Lock()
	m.fault = func(_ int, op, _ string) error {
		if op == "fdatasync" {
			m.fault = nil
			return syscall.EIO
		}
		return nil
	}
	m.mu.Unlock()
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if err := l.Sync(t.Context()); !errors.Is(err, ErrPoisoned) || !errors.Is(err, syscall.EIO) {
				t.Errorf("Sync: %v", err)
			}
		})
	}
	wg.Wait()
	if _, _, err := l.Append(0, nil); !errors.Is(err, ErrPoisoned) || l.Synced() != 0 {
		t.Fatal(err, l.Synced())
	}
	if err := l.Close(); !errors.Is(err, ErrPoisoned) {
		t.Fatal(err)
	}
}

const childEnv = "JOURNAL_TEST_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		appendForever(dir)
	}
	os.Exit(m.Run())
}

// appendForever appends and says so, until it is killed.
func appendForever(dir string) {
	l, err := Open(context.Background(), Options{Dir: dir, StoreID: testStore, SegmentBytes: headerSize + 20000})
	for err == nil {
		last, _ := l.Last()
		r := recordN(last + 1)
		if last, _, err = l.Append(int64(last+1)*1000, r.head, r.body); err == nil {
			_, err = fmt.Println(last)
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// Whatever Append returned survives kill -9.
func TestKilledProcess(t *testing.T) {
	rng := newRand(t)
	dir := filepath.Join(t.TempDir(), "journal")
	last := uint64(0)
	for range 6 {
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), childEnv+"="+dir)
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		kill := 1 + rng.IntN(300)
		for n := 0; lines.Scan(); n++ {
			seq, err := strconv.ParseUint(lines.Text(), 10, 64)
			if err != nil || seq != last+1 {
				t.Fatalf("record %q follows record %d", lines.Text(), last)
			}
			if last = seq; n == kill {
				child.Process.Kill()
			}
		}
		child.Wait()
		l := mustOpen(t, Options{Dir: dir})
		seqs, damage := replayAll(t, l)
		found := uint64(len(seqs))
		if len(damage)+len(l.Damaged()) > 0 || found < last || found > last+1 {
			t.Fatalf("%d records after the kill, %d were reported; damage %v %v", found, last, damage, l.Damaged())
		}
		last = found
		l.Close()
	}
}

// What a failed write leaves does not stay behind a shorter record, where the end of the segment would look damaged.
func TestFailedWriteLeavesNothing(t *testing.T) {
	m := newMemFS()
	l := mustOpen(t, Options{Dir: "store/journal", FS: m, SegmentBytes: headerSize + 4000})
	mustAppend(t, l, 1, 3)
	m.fault = func(_ int, op, _ string) error {
		if op == "write" {
			return syscall.ENOSPC
		}
		return nil
	}
	if _, _, err := l.Append(0, bytes.Repeat([]byte("x"), 3000)); !errors.Is(err, syscall.ENOSPC) || errors.Is(err, ErrPoisoned) {
		t.Fatal(err)
	}
	m.fault = nil
	mustAppend(t, l, 4, 4)
	if rep := verify(t, "store/journal", m, 0); !rep.OK() || rep.Entries != 4 {
		t.Fatalf("%+v", rep)
	}
}

// A torn tail on a full disk: no copy of it can be kept, and the log opens all the same. Any other failure is one.
func TestTornTailOnFullDisk(t *testing.T) {
	whole := build(t, 5, 1<<20, false)[segmentName(1)]
	for _, op := range []string{"mkdir", "create", "write", "fdatasync", "syncdir"} {
		for _, errno := range []error{syscall.ENOSPC, syscall.EIO} {
			m := load(map[string][]byte{segmentName(1): whole[:len(whole)-3]})
			m.fault = func(_ int, got, name string) error {
				if got == op && strings.HasPrefix(name, "store/quarantine") {
					return errno
				}
				return nil
			}
			l, err := Open(t.Context(), Options{Dir: "store/journal", StoreID: testStore, FS: m})
			if errno == syscall.EIO {
				if !errors.Is(err, errno) {
					t.Fatalf("%s: %v", op, err)
				}
				continue
			}
			if err != nil {
				t.Fatalf("%s: %v", op, err)
			}
			mustAppend(t, l, 5, 6)
			seqs, _ := replayAll(t, l)
			wantSeqs(t, seqs, 1, 6)
		}
	}
}

// The kernel reports a failed write-back once. Whoever syncs the same segment next is told too.
func TestFailedSyncIsRemembered(t *testing.T) {
	m := newMemFS()
	l := mustOpen(t, Options{Dir: "store/journal", FS: m})
	mustAppend(t, l, 1, 3)
	m.fault = func(_ int, op, _ string) error {
		m.fault = nil
		return syscall.EIO
	}
	s := l.cur
	for range 2 {
		if err := s.datasync(); !errors.Is(err, syscall.EIO) {
			t.Fatal(err)
		}
	}
}
