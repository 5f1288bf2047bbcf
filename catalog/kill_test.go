package catalog

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/blobstore/blobstoretest"
)

const childStore = "HOLDFAST_CATALOG_TEST_CHILD"

// TestKilledProcess kills a process that changes a store; everything that it had acknowledged is there afterwards.
func TestKilledProcess(t *testing.T) {
	if dir := os.Getenv(childStore); dir != "" {
		childMain(t, dir)
		return
	}
	dir := blobstoretest.TempDir(t)
	total := 0
	for round := range 2 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledProcess$", "-test.count=1")
		cmd.Env = append(os.Environ(), childStore+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		acked := -1
		for sc := bufio.NewScanner(out); sc.Scan(); {
			if n, err := strconv.Atoi(sc.Text()); err == nil {
				acked = n
			}
			if acked >= total+150+37*round {
				break
			}
		}
		cmd.Process.Kill()
		cmd.Wait()
		if acked < total+150 {
			t.Fatalf("round %d: the child stopped at %d", round, acked)
		}
		o := testOptions(t, dir, newMemBlobs())
		c := openCatalog(t, o)
		total = 0
		for _, e := range listAll(t, 1000, func(after uint64, max int) ([]DirEntry, error) {
			return c.ReadDir(context.Background(), Root, after, max)
		}) {
			want := "body of " + e.Name
			ext := must[[]Extent](t)(c.Extents(context.Background(), e.Inode.Ino, Head))
			if n, err := strconv.Atoi(e.Name); err != nil || n > acked && e.Inode.Ver == 0 {
				continue // the one in progress
			}
			b, err := c.JournalBody(context.Background(), ext[0].Blob.Hash)
			if err != nil || string(b) != want {
				t.Fatalf("%s holds %q %v", e.Name, b, err)
			}
			total++
		}
		if total < acked+1 {
			t.Fatalf("%d files are there, %d were acknowledged", total, acked+1)
		}
		if err := c.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
}

func childMain(t *testing.T, dir string) {
	ctx, who := context.Background(), testActor()
	c, err := Open(ctx, testOptions(t, dir, newMemBlobs()))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Init(ctx, who, NewInode{Mode: 0o755}); err != nil && !errors.Is(err, ErrExist) {
		t.Fatal(err)
	}
	for i := 0; i < 1_000_000; i++ {
		name := strconv.Itoa(i)
		f, err := c.Create(ctx, who, Root, name, NewInode{Mode: unix.S_IFREG | 0o644})
		if errors.Is(err, ErrExist) {
			f, err = c.Lookup(ctx, Root, name)
		}
		if err != nil {
			t.Fatal(err)
		}
		if f.Ver == 0 {
			if _, err := c.Commit(ctx, who, whole(f.Ino, []byte("body of "+name))); err != nil {
				t.Fatal(err)
			}
		}
		fmt.Println(i)
	}
}
