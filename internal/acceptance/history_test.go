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

// TestGCOnAFullDisk: gc needs room for little, and makes room. On a disk that is full it does so or is refused for want of space; nothing that is kept is lost, and
// once it is through the store goes on.
func TestGCOnAFullDisk(t *testing.T) {
	d := newDisk(t, 96)
	m := newMount(t, placeOptions{storage: "hybrid", parent: d.dir})
	m.start()
	holdfast := func(args ...string) (string, error) {
		out, err := exec.CommandContext(t.Context(), os.Getenv(binVar), args...).CombinedOutput()
		return string(out), err
	}
	run := func(args ...string) {
		t.Helper()
		if out, err := holdfast(args...); err != nil {
			t.Fatal(args, err, out)
		}
	}
	run("retention", "set", filepath.Join(m.dir, "logs"), "--keep-all", "0", "--hourly", "0", "--daily", "0", "--weekly", "0")
	rnd := newRand(t)
	kept := randomBytes(rnd, 2<<20)
	old := filepath.Join(m.dir, "logs", "old")
	must(t, os.WriteFile(old, kept, 0o644))
	run("snapshot", "create", "kept", "--store", m.store)
	for range 12 { // what gc can free: 24 MiB that only the past has, and very many small versions
		must(t, os.WriteFile(old, randomBytes(rnd, 2<<20), 0o644))
	}
	beat := filepath.Join(m.dir, "logs", "beat")
	for i := range 3000 {
		must(t, os.WriteFile(beat, []byte(fmt.Sprint("alive ", i)), 0o644))
	}
	f := &filler{t: t, dir: filepath.Join(m.dir, "tasks"), rnd: rnd, closed: map[string][]byte{}}
	for _, size := range []int{300 << 10, 20 << 10, 500} {
		f.fill(size)
	}
	check := func(when string) {
		t.Helper()
		f.check(when)
		for path, want := range map[string]string{filepath.Join(m.dir, ".snapshots", "kept", "logs", "old"): string(kept), beat: "alive 2999"} {
			if got, err := os.ReadFile(path); err != nil || string(got) != want {
				t.Fatalf("%s: %s holds %d bytes, %v; want %d", when, path, len(got), err, len(want))
			}
		}
	}
	out, err := holdfast("gc", "--dry-run", "--store", m.store) // it needs room for a copy of catalog.db
	if err != nil && !strings.Contains(out, "no space") {
		t.Fatal(err, out)
	}
	out, err = holdfast("gc", "--store", m.store)
	if err != nil && !strings.Contains(out, "no space") {
		t.Fatalf("gc on a full disk: %v, %s", err, out)
	}
	t.Logf("gc on the full disk: %v, %s", err, out)
	check("after gc on the full disk")
	if err != nil {
		m.stopFull()
		grow(t, d, 192)
		m.start()
		check("with more room")
	}
	run("gc", "--store", m.store)
	check("after gc")
	if err := f.write("afterwards", randomBytes(rnd, 4<<20)); err != nil {
		t.Errorf("gc has made no room: %v", err)
	}
	m.stop()
	m.start()
	check("in the end")
	m.stop()
}
