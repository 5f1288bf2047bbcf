//go:build system

package acceptance

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// disk is a small ext4 filesystem of its own, on a loop device.
type disk struct {
	t          *testing.T
	image, dir string
}

// newDisk makes a disk of so many MiB and mounts it; at the end of the test it is unmounted.
func newDisk(t *testing.T, mib int64) *disk {
	t.Helper()
	base := t.TempDir()
	d := &disk{t: t, image: filepath.Join(base, "image"), dir: filepath.Join(base, "disk")}
	f, err := os.Create(d.image)
	must(t, err)
	must(t, f.Truncate(mib<<20))
	must(t, f.Close())
	must(t, os.Mkdir(d.dir, 0o755))
	command{}.run(t, "mkfs.ext4", "-q", "-F", "-m", "0", "-b", "4096", d.image) // small disks get smaller blocks than real ones
	t.Cleanup(func() { unix.Unmount(d.dir, unix.MNT_DETACH) })
	d.attach()
	return d
}

func (d *disk) attach() {
	d.t.Helper()
	command{}.run(d.t, "mount", "-o", "loop", d.image, d.dir)
}

// detach unmounts the disk, which must not be busy any more.
func (d *disk) detach() {
	d.t.Helper()
	command{}.run(d.t, "umount", d.dir)
}

// cutPower stops all writing to the disk at once. What ext4 had not written yet is lost: dirty pages, and its own journal.
func (d *disk) cutPower() {
	d.t.Helper()
	f, err := os.Open(d.dir)
	must(d.t, err)
	defer f.Close()
	const (
		shutdown = 0x8004587d // EXT4_IOC_SHUTDOWN
		noFlush  = 2          // EXT4_GOING_FLAGS_NOLOGFLUSH
	)
	if err := unix.IoctlSetPointerInt(int(f.Fd()), shutdown, noFlush); err != nil {
		d.t.Fatalf("shutting ext4 down: %v", err)
	}
}
