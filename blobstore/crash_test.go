package blobstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/blobstore"
	"holdfast/blobstore/blobstoretest"
	"holdfast/internal/sqldb"
)

const childEnv = "BLOBSTORE_TEST_CHILD"

// crashData is the n-th blob of the child.
func crashData(n int) []byte {
	sizes := []int{100, 5000, 60_000, 90_000, 300_000, 1_000_000}
	return blobstoretest.Data(uint64(n), sizes[n%len(sizes)], n%2 == 0)
}

// child stores blobs until it is killed, and prints the number of each when it is stored.
func child(t *testing.T, arg string) {
	mode, dir, _ := strings.Cut(arg, ":")
	s := openDir(t, dir, mode)
	stage := filepath.Join(dir, "staging")
	if err := os.MkdirAll(stage, 0o700); err != nil {
		t.Fatal(err)
	}
	for n := 0; ; n++ {
		data := crashData(n)
		var err error
		if len(data) <= blobstore.MaxSmall {
			err = s.PutBatch(context.Background(), []blobstore.Item{blobstoretest.ItemOf(data), blobstoretest.ItemOf(append(data, 1))})
		} else {
			p := filepath.Join(stage, "x")
			if err = os.WriteFile(p, data, 0o600); err == nil {
				err = s.Adopt(context.Background(), blobstoretest.Sum(data), blobstoretest.SomeMeta(), p, false)
			}
			if err == nil && n%3 > 0 {
				_, err = s.Protect(context.Background(), blobstoretest.Sum(data).Ref)
			}
		}
		if err == nil && n%9 == 8 {
			err = s.Delete(context.Background(), blobstoretest.Sum(crashData(n-8)).Ref.Hash) // always of the first size
		}
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("stored %d\n", n)
	}
}

// A process that stores blobs is killed at an arbitrary moment, again and again: everything that it had been told is stored is there, whole;
// what it was storing is whole, absent, or heals when it is stored again.
func TestKilled(t *testing.T) {
	if arg := os.Getenv(childEnv); arg != "" {
		child(t, arg)
	}
	for _, mode := range modes() {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			dir := blobstoretest.TempDir(t)
			rounds := 3
			if raceBuild {
				rounds = 2
			}
			for round := range rounds {
				stored := runAndKill(t, mode+":"+dir, 20+13*round)
				s := openDir(t, dir, mode)
				for n := range stored {
					data := crashData(n)
					ref := blobstoretest.Sum(data).Ref
					if n%9 == 0 && n+8 < stored+1 {
						continue // deleted, or being deleted
					}
					if err := s.Verify(t.Context(), ref); err != nil {
						t.Fatalf("blob %d of %d stored: %v", n, stored, err)
					}
					if found, err := s.Inspect(t.Context(), ref); err != nil || len(found) > 0 {
						t.Fatalf("blob %d of %d stored: %+v, %v", n, stored, found, err)
					}
					if _, ok, err := s.Parity(t.Context(), ref.Hash); err != nil || len(data) > blobstore.MaxSmall && ok != (n%3 > 0) {
						t.Fatalf("blob %d of %d stored: parity %v, %v", n, stored, ok, err)
					}
				}
				for n := stored; n < stored+2; n++ {
					data := crashData(n)
					if err := s.Verify(t.Context(), blobstoretest.Sum(data).Ref); err != nil && !errors.Is(err, blobstore.ErrNotFound) && !errors.Is(err, blobstore.ErrDamaged) {
						t.Fatal(err)
					}
					ref := blobstoretest.Put(t, s, data)
					blobstoretest.Check(t, s, ref, data)
					if n%3 > 0 {
						if _, err := s.Protect(t.Context(), ref); err != nil {
							t.Fatal(err)
						}
					}
					if found, err := s.Inspect(t.Context(), ref); err != nil || len(found) > 0 {
						t.Fatalf("blob %d, stored again: %+v, %v", n, found, err)
					}
				}
				s.Close()
				checkNoOrphans(t, dir)
			}
		})
	}
}

// checkNoOrphans checks that no block is without its blob, nor a blob without its blocks.
func checkNoOrphans(t *testing.T, dir string) {
	t.Helper()
	p := filepath.Join(dir, "blobs.db")
	if _, err := os.Stat(p); err != nil {
		return
	}
	db, err := sqldb.Open(t.Context(), sqldb.Options{Path: p, ReadOnly: true, Version: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Read(t.Context(), func(c *sqldb.Conn) error {
		st := c.Prep(`SELECT (SELECT count(*) FROM block), (SELECT ifnull(sum(length(hashes) / 32), 0) FROM large), (SELECT count(*) FROM incomplete),
			(SELECT count(*) FROM blob) - (SELECT blobs FROM total)`)
		if _, err := st.Step(); err != nil {
			return err
		}
		if st.Int64(0) != st.Int64(1) || st.Int64(2) != 0 || st.Int64(3) != 0 {
			t.Errorf("%d blocks, %d wanted; %d incomplete; blobs counted wrong by %d", st.Int64(0), st.Int64(1), st.Int64(2), st.Int64(3))
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// Blocks that a crash left without their blob are removed when the store is opened.
func TestIncompleteBlobsAreDropped(t *testing.T) {
	dir := blobstoretest.TempDir(t)
	s := openDir(t, dir, blobstore.ModeDatabase)
	data := blobstoretest.Data(1, 300_000, false)
	ref := blobstoretest.Put(t, s, data)
	s.Close()
	for _, edit := range []string{"INSERT INTO incomplete VALUES (100, 5)", "INSERT INTO block VALUES (100, x'00')", "INSERT INTO block VALUES (103, x'00')"} {
		if editRows(t, dir, edit, blobstore.Hash{}) != 1 {
			t.Fatal(edit)
		}
	}
	s = openDir(t, dir, blobstore.ModeDatabase)
	blobstoretest.Check(t, s, ref, data)
	s.Close()
	checkNoOrphans(t, dir)
}

// What is said to be durable has been synced: content before it has its name, then the sidecar, then the directory of both names.
func TestSyncOrder(t *testing.T) {
	dir := blobstoretest.TempDir(t)
	s := openDir(t, dir, blobstore.ModeFile)
	defer s.Close()
	w := blobstore.WatchSyncs(s)
	fan := func(ref blobstore.Ref) string { return "blobs/" + ref.Hash.String()[:2] }
	expect := func(what string, want ...string) {
		t.Helper()
		got := w.Take()
		if len(got) != len(want) {
			t.Fatalf("%s: synced %q, want %q", what, got, want)
		}
		for i := range want {
			if !strings.HasPrefix(got[i], want[i]) && !strings.HasSuffix(got[i], want[i]) {
				t.Fatalf("%s: synced %q, want %q", what, got, want)
			}
		}
	}
	noise := blobstoretest.Data(1, 200_000, false)
	ref := blobstoretest.Adopt(t, s, noise, true)
	expect("adopt raw", "/staged", "blobs/.tmp/", fan(ref))
	ref2 := blobstoretest.Adopt(t, s, blobstoretest.Data(1, 200_000, true), true)
	expect("adopt compressed", "blobs/.tmp/", "blobs/.tmp/", fan(ref2))
	ref3 := blobstoretest.Adopt(t, s, blobstoretest.Data(2, 200_000, false), false)
	expect("adopt")
	blobstoretest.Adopt(t, s, blobstoretest.Data(2, 200_000, false), true)
	expect("adopt again", fan(ref3)+"/"+ref3.Hash.String(), fan(ref3)+"/"+ref3.Hash.String()+".json", fan(ref3))
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.Take()
	ref4 := blobstoretest.Put(t, s, []byte("small"))
	expect("put")
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	expect("sync", fan(ref4)+"/"+ref4.Hash.String(), fan(ref4)+"/"+ref4.Hash.String()+".json", fan(ref4))
	for i := range 40 {
		blobstoretest.Put(t, s, []byte{byte(i)})
	}
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	expect("sync of many", "filesystem of blobs")
	if _, err := s.Protect(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	expect("protect", "blobs/.tmp/", fan(ref))
	blobstoretest.Put(t, s, []byte("lost"))
	w.Fail = unix.EIO
	if err := s.Sync(t.Context()); !errors.Is(err, unix.EIO) {
		t.Errorf("got %v", err)
	}
	w.Fail = nil
	if err := s.Sync(t.Context()); !errors.Is(err, unix.EIO) {
		t.Errorf("a sync after a failed one claims that nothing is lost: %v", err)
	}
}

// The worker removes a raw blob only after its compressed form is durable.
func TestSyncBeforeRawGoes(t *testing.T) {
	dir := blobstoretest.TempDir(t)
	s := openDir(t, dir, blobstore.ModeFile)
	defer s.Close()
	w := blobstore.WatchSyncs(s)
	data := blobstoretest.Data(1, afterwards, true)
	ref := blobstoretest.Adopt(t, s, data, false)
	blobstore.WaitCompressed(s)
	got := w.Take()
	fan := "blobs/" + ref.Hash.String()[:2]
	if len(got) != 3 || !strings.HasPrefix(got[0], "blobs/.tmp/") || !strings.HasPrefix(got[1], "blobs/.tmp/") || got[2] != fan {
		t.Errorf("synced %q", got)
	}
	w.Fail = unix.EIO
	data[0]++
	ref = blobstoretest.Adopt(t, s, data, false)
	blobstore.WaitCompressed(s)
	if found := exists(dir, ref.Hash); found != "[][.json]" {
		t.Errorf("the compressed form could not be synced, and the files are %s", found)
	}
	w.Fail = nil
	blobstoretest.Check(t, s, ref, data)
}

// runAndKill starts a child, kills it when it has printed at least so many lines, and returns how many it had printed.
func runAndKill(t *testing.T, arg string, lines int) int {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
	cmd.Env = append(os.Environ(), childEnv+"="+arg)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var got []byte
	buf := make([]byte, 4096)
	killed := false
	for {
		n, err := out.Read(buf)
		got = append(got, buf[:n]...)
		if !killed && bytes.Count(got, []byte("\nstored"))+1 >= lines {
			cmd.Process.Kill()
			killed = true
		}
		if err != nil {
			break
		}
	}
	cmd.Wait()
	if !killed {
		t.Fatalf("the child ended by itself: %s", got)
	}
	return strings.Count(string(got[:bytes.LastIndexByte(got, '\n')+1]), "stored ")
}

// No file can grow beyond a limit for a while, as on a full disk: writes fail half way. Nothing stored before is harmed, nothing is left
// behind, and the same calls succeed later.
func TestWriteFailsHalfWay(t *testing.T) {
	for _, mode := range modes() {
		t.Run(mode, func(t *testing.T) {
			dir := blobstoretest.TempDir(t)
			s := openDir(t, dir, mode)
			defer s.Close()
			before := sampleBlobs(t, s)
			half := append(blobstoretest.Data(1, 1<<20, true), blobstoretest.Data(2, 1<<20, false)...)
			var items []blobstore.Item
			for i := range 40 {
				items = append(items, blobstoretest.ItemOf(blobstoretest.Data(uint64(100+i), blobstore.MaxSmall, false)))
			}
			staged := blobstoretest.Stage(t, half)
			limit := uint64(50_000)
			if mode != blobstore.ModeFile {
				limit = 1_500_000 // the log of the database has some size already
			}
			var errPut, errAdopt error
			limited(t, limit, func() {
				errPut = s.PutBatch(t.Context(), items)
				errAdopt = s.Adopt(t.Context(), blobstoretest.Sum(half), blobstoretest.SomeMeta(), staged, false)
			})
			if errPut == nil || mode != blobstore.ModeHybrid && errAdopt == nil {
				t.Fatalf("no write failed: %v, %v", errPut, errAdopt)
			}
			if left, err := os.ReadDir(filepath.Join(dir, "blobs", ".tmp")); mode != blobstore.ModeDatabase && (err != nil || len(left) > 0) {
				t.Errorf("left behind: %v, %v", left, err)
			}
			for _, b := range before {
				blobstoretest.Check(t, s, b.ref, b.data)
			}
			if err := s.PutBatch(t.Context(), items); err != nil {
				t.Fatal(err)
			}
			ref := blobstoretest.Adopt(t, s, half, true)
			blobstoretest.Check(t, s, ref, half)
			for _, it := range items {
				blobstoretest.Check(t, s, it.Ref, it.Data)
			}
			if st, err := s.Stats(t.Context()); err != nil || st.Blobs != int64(len(before)+len(items)+1) {
				t.Errorf("%+v, %v", st, err)
			}
		})
	}
}

// limited runs fn while this process can make no file larger than max bytes.
func limited(t *testing.T, maxSize uint64, fn func()) {
	t.Helper()
	signal.Ignore(syscall.SIGXFSZ)
	defer signal.Reset(syscall.SIGXFSZ)
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: maxSize, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
			t.Error(err)
		}
	}()
	fn()
}
