package main

import (
	"errors"
	"os"
	"strings"
	"testing"
)

func TestDiskBelow(t *testing.T) {
	const info = `22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:25 / /mnt rw shared:2 - tmpfs tmpfs rw
31 22 0:26 / /mnt/x rw - xfs /dev/vdb rw
32 22 0:27 / /mnt/x rw - btrfs /dev/vdc rw
broken line
`
	for dir, want := range map[string]string{
		"/home/me": "ext4 on /dev/vda",
		"/mnt":     "tmpfs on tmpfs",
		"/mnt/y/z": "tmpfs on tmpfs",
		"/mnt/x/z": "btrfs on /dev/vdc",
		"/mnt/xy":  "tmpfs on tmpfs",
		"/mntx":    "ext4 on /dev/vda",
	} {
		if got, err := diskBelow(strings.NewReader(info), dir); err != nil || got != want {
			t.Errorf("below %s: %q, %v, want %q", dir, got, err, want)
		}
	}
	if got, err := diskBelow(strings.NewReader(""), "/"); err != nil || got != "unknown" {
		t.Errorf("no mounts: %q, %v", got, err)
	}
}

func TestCPUModel(t *testing.T) {
	if got := cpuModel([]byte("processor\t: 0\nmodel name\t: Fast 9000 @ 1: GHz\nmodel name: other\n")); got != "Fast 9000 @ 1: GHz" {
		t.Errorf("model %q", got)
	}
	if got := cpuModel([]byte("no colon")); got != "unknown" {
		t.Errorf("model %q", got)
	}
}

func TestLookAtMachine(t *testing.T) {
	m, err := lookAtMachine(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if m.Cores < 1 || m.MemoryMiB < 1 || m.Kernel == "" || m.Go == "" || m.Disk == "unknown" {
		t.Errorf("machine %+v", m)
	}
}

func TestCheckFree(t *testing.T) {
	if err := checkFree(t.TempDir(), 1); err != nil {
		t.Error(err)
	}
	if err := checkFree(t.TempDir(), 1<<62); !errors.Is(err, errTooLittle) {
		t.Errorf("more than any disk has: %v", err)
	}
}

func TestParseCPUTicks(t *testing.T) {
	if n, err := parseCPUTicks([]byte("12 (a ) b) S 1 2 3 4 5 6 7 8 9 10 30 12 0 0 20")); err != nil || n != 42 {
		t.Errorf("ticks %d, %v, want 42", n, err)
	}
	for _, bad := range []string{"", "12 (a", "12 (a) S 1", "12 (a) S 1 2 3 4 5 6 7 8 9 10 x 12 0", "1 (a) S 1 2 3 4 5 6 7 8 9 10 1 -1 0"} {
		if _, err := parseCPUTicks([]byte(bad)); !errors.Is(err, errProcStat) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := cpuTicks(os.Getpid()); err != nil {
		t.Error(err)
	}
}

func TestParseResident(t *testing.T) {
	rss, hwm, err := parseResident([]byte("Name:\tx\nVmHWM:\t   20 kB\nVmRSS:\t    10 kB\nThreads:\t1\n"))
	if err != nil || rss != 10 || hwm != 20 {
		t.Errorf("resident %d, %d, %v, want 10, 20", rss, hwm, err)
	}
	for _, bad := range []string{"", "VmRSS: 1 kB\n", "VmRSS: x kB\nVmHWM: 1 kB\n", "VmRSS: -1 kB\nVmHWM: 1 kB\n", "VmRSS: 1 MB\nVmHWM: 1 kB\n"} {
		if _, _, err := parseResident([]byte(bad)); !errors.Is(err, errProcStat) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	rss, hwm, err = residentKiB(os.Getpid())
	if err != nil || rss == 0 || hwm < rss/2 {
		t.Errorf("of this process: %d, %d, %v", rss, hwm, err)
	}
}

func FuzzProcParsers(f *testing.F) {
	f.Add([]byte("12 (a ) b) S 1 2 3 4 5 6 7 8 9 10 30 12 0 0 20"))
	f.Add([]byte("VmHWM:\t   20 kB\nVmRSS:\t    10 kB\n"))
	f.Add([]byte("22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = parseCPUTicks(b)
		_, _, _ = parseResident(b)
		_, _ = diskBelow(strings.NewReader(string(b)), "/a")
		_ = cpuModel(b)
	})
}
