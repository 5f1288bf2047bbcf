package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"
)

// Machine is what the figures depend on besides the program.
type Machine struct {
	CPU       string `json:"cpu"`
	Cores     int    `json:"cores"`
	MemoryMiB int64  `json:"memory_mib"`
	Kernel    string `json:"kernel"`
	Go        string `json:"go"`
	Disk      string `json:"disk"` // filesystem and device below the scratch folder
}

// lookAtMachine describes this machine and the disk below dir.
func lookAtMachine(dir string) (Machine, error) {
	m := Machine{Cores: runtime.NumCPU(), Go: runtime.Version()}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return m, fmt.Errorf("look at the machine: %w", err)
	}
	m.Kernel = unix.ByteSliceToString(u.Release[:])
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return m, fmt.Errorf("look at the machine: %w", err)
	}
	m.MemoryMiB = int64(info.Totalram) * int64(info.Unit) >> 20
	cpu, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return m, fmt.Errorf("look at the machine: %w", err)
	}
	m.CPU = cpuModel(cpu)
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return m, fmt.Errorf("look at the machine: %w", err)
	}
	defer mounts.Close()
	if m.Disk, err = diskBelow(mounts, dir); err != nil {
		return m, fmt.Errorf("look at the machine: %w", err)
	}
	if fs, dev, ok := strings.Cut(m.Disk, " on /dev/"); ok && fs == "ext4" {
		// The file names the journal's thread.
		if task, err := os.ReadFile(filepath.Join("/sys/fs/ext4", filepath.Base(dev), "journal_task")); err == nil && strings.TrimSpace(string(task)) == "<none>" {
			m.Disk += withoutJournal
		}
	}
	return m, nil
}

const withoutJournal = ", without a journal"

// cpuModel is the first model name in /proc/cpuinfo.
func cpuModel(cpuinfo []byte) string {
	for line := range bytes.Lines(cpuinfo) {
		if k, v, ok := bytes.Cut(line, []byte(":")); ok && string(bytes.TrimSpace(k)) == "model name" {
			return string(bytes.TrimSpace(v))
		}
	}
	return "unknown"
}

// diskBelow finds in a mountinfo (proc_pid_mountinfo(5)) what is mounted where dir lies: the longest mount point that is a prefix, and of
// equal ones the last, which hides the others.
func diskBelow(mountinfo io.Reader, dir string) (string, error) {
	best, disk := -1, "unknown"
	s := bufio.NewScanner(mountinfo)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		before, after, ok := strings.Cut(s.Text(), " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 5 || len(g) < 2 {
			continue
		}
		point := f[4]
		inside := dir == point || strings.HasPrefix(dir, strings.TrimSuffix(point, "/")+"/")
		if inside && len(point) >= best {
			best, disk = len(point), g[0]+" on "+g[1]
		}
	}
	return disk, s.Err()
}

// sourceState is the commit that this program was built from, and whether the source differed from it.
func sourceState() (commit string, modified bool) {
	commit = "unknown"
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return commit, false
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			commit = s.Value[:min(len(s.Value), 12)]
		case "vcs.modified":
			modified = s.Value == "true"
		}
	}
	return commit, modified
}

// sha256Rate is the speed of SHA-256 on one core in MiB/s: the best of three tries of so many bytes, from a buffer that is larger than the processor's
// own caches when n is.
func sha256Rate(n int) float64 {
	b := randomBytes(1, min(n, cycleSize))
	best := 0.0
	for range 3 {
		start := now()
		h := sha256.New()
		for left := n; left > 0; left -= len(b) {
			h.Write(b[:min(left, len(b))])
		}
		h.Sum(nil)
		best = max(best, float64(n)/(1<<20)/seconds(now()-start))
	}
	return best
}

var errTooLittle = errors.New("not enough free space")

// checkFree wants at least need bytes free on the disk below dir.
func checkFree(dir string, need int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("look at the disk below %s: %w", dir, err)
	}
	if free := int64(st.Bavail) * st.Bsize; free < need {
		return fmt.Errorf("%w below %s: %d MiB are needed, %d are free; name another folder with --dir", errTooLittle, dir, need>>20, free>>20)
	}
	return nil
}

// tool runs a program of the system and returns what it says.
func tool(ctx context.Context, argv ...string) (string, error) {
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, bytes.TrimSpace(out))
	}
	return string(bytes.TrimSpace(out)), nil
}

const (
	imageFile  = "image.ext4"
	imageMount = "image"
)

// mountImage makes an ext4 of the given size, as mkfs makes it, in a file in base, and mounts it beside it. It bypasses the page cache of the disk
// below, so that nothing is cached twice. The caller calls unmount, which leaves the file.
func mountImage(ctx context.Context, base string, size int64) (unmount func() error, err error) {
	if err := checkFree(base, size+size/16); err != nil {
		return nil, err
	}
	file, dir := filepath.Join(base, imageFile), filepath.Join(base, imageMount)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make an image: %w", err)
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make an image: %w", err)
	}
	// All space is taken at once: otherwise the first write of each block would allocate below.
	if err := errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, size), f.Close()); err != nil {
		return nil, fmt.Errorf("make an image: %w", err)
	}
	if _, err := tool(ctx, "mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", file); err != nil {
		return nil, fmt.Errorf("make an image: %w", err)
	}
	loop, err := tool(ctx, "losetup", "--direct-io=on", "--find", "--show", file)
	if err != nil {
		return nil, fmt.Errorf("make an image: %w", err)
	}
	detach := func() error {
		_, err := tool(context.WithoutCancel(ctx), "losetup", "--detach", loop)
		return err
	}
	if err := unix.Mount(loop, dir, "ext4", unix.MS_RELATIME, ""); err != nil {
		return nil, errors.Join(fmt.Errorf("mount the image: %w", err), detach())
	}
	return func() error {
		if err := unix.Unmount(dir, 0); err != nil {
			return errors.Join(fmt.Errorf("unmount %s: %w", dir, err), detach())
		}
		return detach()
	}, nil
}

// scratch makes a new folder below dir for all that is measured.
func scratch(dir string) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make the scratch folder: %w", err)
	}
	path, err := os.MkdirTemp(dir, "holdfast-bench-")
	if err != nil {
		return "", fmt.Errorf("make the scratch folder: %w", err)
	}
	return filepath.Abs(path)
}
