//go:build system

package acceptance

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestRestoreOnAFullDisk: a restore that the disk has no room for is refused as a whole, and works once there is room.
func TestRestoreOnAFullDisk(t *testing.T) {
	d := newDisk(t, 96)
	m := newMount(t, placeOptions{storage: "hybrid", parent: d.dir})
	m.start()
	dir := filepath.Join(m.dir, "data")
	must(t, os.Mkdir(dir, 0o755))
	const files = 2000
	for i := range files {
		must(t, os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), []byte(fmt.Sprint("content ", i)), 0o644))
	}
	holdfast := func(args ...string) (string, error) {
		out, err := exec.CommandContext(t.Context(), os.Getenv(binVar), args...).CombinedOutput()
		return string(out), err
	}
	if out, err := holdfast("snapshot", "create", "full", "--store", m.store); err != nil {
		t.Fatal(err, out)
	}
	must(t, os.RemoveAll(dir))
	f := &filler{t: t, dir: filepath.Join(m.dir, "tasks"), rnd: newRand(t), closed: map[string][]byte{}}
	for _, size := range []int{300 << 10, 20 << 10, 500} {
		f.fill(size)
	}
	// What is left of the disk may do for a few records, but not for this one, or it does.
	out, err := holdfast("restore", dir, "--at", "full")
	entries, listErr := os.ReadDir(dir)
	switch {
	case err == nil && len(entries) == files:
		t.Log("there was room for it")
	case err == nil || !strings.Contains(out, "no space"):
		t.Fatalf("a restore on a full disk: %v, %s; %d files", err, out, len(entries))
	case !os.IsNotExist(listErr):
		t.Fatalf("after it failed there are %d files, %v", len(entries), listErr)
	}
	f.check("after the restore")
	m.stopFull()
	grow(t, d, 192)
	m.start()
	if out, err := holdfast("restore", dir, "--at", "full"); err != nil {
		t.Fatal(err, out)
	}
	for i := range files {
		got, err := os.ReadFile(filepath.Join(dir, fmt.Sprint(i)))
		if err != nil || string(got) != fmt.Sprint("content ", i) {
			t.Fatalf("%d: %q, %v", i, got, err)
		}
	}
	f.check("in the end")
	m.stop()
}

// grow gives a disk that nobody uses more room.
func grow(t *testing.T, d *disk, mib int64) {
	t.Helper()
	d.detach()
	must(t, os.Truncate(d.image, mib<<20))
	command{}.run(t, "e2fsck", "-fy", d.image)
	command{}.run(t, "resize2fs", d.image)
	d.attach()
}
