package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMountLifecycle(t *testing.T) {
	p := newPlace(t)
	pid := p.mount()
	write(t, p.dir+"/tasks/a", "one")
	write(t, p.dir+"/tasks/a", "two")

	other := t.TempDir()
	words := []string{p.store, p.dir, fmt.Sprint(pid)}
	fails(t, exitLocked, words, "mount", p.store, other)
	fails(t, exitLocked, words, "mount", "-f", p.store, other)
	fails(t, exitLocked, words, "mount", p.store, p.dir)

	ok(t, "umount", p.dir)
	if mounted(t, p.dir) {
		t.Error("after umount it is still mounted")
	}
	if _, err := os.Stat(p.dir + "/tasks"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after umount the directory still shows the store: %v", err)
	}
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) && !isZombie(pid) {
		t.Errorf("after umount the daemon is still there: %v", err)
	}
	// At once, and at another directory, by names of all sorts.
	p.dir = filepath.Join(other, "with space, comma\\ and\nnewline")
	if err := os.Mkdir(p.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	p.mount()
	wantText(t, "after a remount", read(t, p.dir+"/tasks/a"), "two")
	wantText(t, "log", fmt.Sprint(strings.Count(ok(t, "log", p.dir+"/tasks/a"), "\n")), "2")
	ok(t, "umount", p.store)
	if mounted(t, p.dir) {
		t.Error("after umount STORE it is still mounted")
	}
}

// isZombie: without an init process that collects them, an ended daemon keeps its number.
func isZombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && strings.Contains(string(stat), ") Z ")
}

func TestMountThatCannotBe(t *testing.T) {
	p := newPlace(t)
	full := t.TempDir()
	write(t, full+"/here", "")
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, "")
	inside := filepath.Join(p.store, "staging")
	fails(t, exitNoStore, []string{full, "holdfast init"}, "mount", full, p.dir)
	fails(t, exitNoStore, []string{"/nonexistent"}, "mount", "/nonexistent", p.dir)
	fails(t, exitFailure, []string{p.dir + "/none", "make the directory"}, "mount", p.store, p.dir+"/none")
	fails(t, exitFailure, []string{file, "directory"}, "mount", p.store, file)
	fails(t, exitFailure, []string{full, "not empty", "nonempty"}, "mount", p.store, full)
	fails(t, exitFailure, []string{inside, "inside"}, "mount", p.store, inside)
	fails(t, exitFailure, []string{p.store}, "mount", p.store, filepath.Dir(p.store))
	fails(t, exitFailure, []string{"option"}, "mount", "-o", "nosuchoption=1", p.store, p.dir)
	r := run(t, "mount", "--json", p.store, full)
	var f failure
	if err := json.Unmarshal([]byte(r.stderr), &f); err != nil || f.Code != exitFailure || !strings.Contains(f.Error, full) || r.code != f.Code {
		t.Errorf("mount --json that fails: %+v, %v", r, err)
	}
	if mounted(t, full) || mounted(t, p.dir) {
		t.Error("a mount that failed is there")
	}

	over := p
	over.dir = full
	over.mount("-o", "nonempty,noexec", "-o", "nodev")
	if _, err := os.Stat(full + "/here"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the mount does not cover its directory: %v", err)
	}
	second := newPlace(t)
	fails(t, exitFailure, []string{full, "mounted there already"}, "mount", "-o", "nonempty", second.store, full)
	ok(t, "umount", full)
	if _, err := os.Stat(full + "/here"); err != nil {
		t.Error(err)
	}
}

func TestKilledDaemon(t *testing.T) {
	p := newPlace(t)
	pid := p.mount()
	write(t, p.dir+"/tasks/a", "closed before the kill")
	kill(t, pid, syscall.SIGKILL)
	gone(t, pid)
	var st unix.Statfs_t // which the kernel's caches do not answer
	if err := unix.Statfs(p.dir, &st); !errors.Is(err, unix.ENOTCONN) {
		t.Fatalf("the dead mount says %v", err)
	}
	var all struct{ Mounts []mountState }
	if err := json.Unmarshal([]byte(ok(t, "status", "--json")), &all); err != nil {
		t.Fatal(err)
	}
	found := false
	for _, m := range all.Mounts {
		if m.Dir == p.dir {
			found = m.State == "dead" && m.Store == p.store
		}
	}
	if !found {
		t.Errorf("status does not show the dead mount: %+v", all)
	}
	wantText(t, "cat through the dead mount", ok(t, "cat", p.dir+"/tasks/a"), "closed before the kill")

	pid = p.mount()
	wantText(t, "after the next mount", read(t, p.dir+"/tasks/a"), "closed before the kill")
	kill(t, pid, syscall.SIGKILL)
	gone(t, pid)
	ok(t, "umount", p.dir)
	if _, err := os.Stat(p.dir); err != nil || mounted(t, p.dir) {
		t.Errorf("umount has not taken the dead mount away: %v", err)
	}

	// Mounted elsewhere, the dead mount goes as well.
	pid = p.mount()
	kill(t, pid, syscall.SIGKILL)
	gone(t, pid)
	old := p.dir
	p.dir = t.TempDir()
	p.mount()
	if mounted(t, old) {
		t.Error("the dead mount of the store is still there")
	}
}

func TestUmountNothing(t *testing.T) {
	p := newPlace(t)
	fails(t, exitFailure, []string{p.dir, "not mounted"}, "umount", p.dir)
	fails(t, exitFailure, []string{p.store, "not mounted"}, "umount", p.store)
	fails(t, exitFailure, []string{"/nonexistent"}, "umount", "/nonexistent")
	fails(t, exitFailure, []string{"/proc"}, "umount", "/proc")
}

func TestBusyMount(t *testing.T) {
	p := newPlace(t)
	pid := p.mount()
	h := hold(t, p.dir+"/tasks", "true")
	fails(t, exitFailure, []string{p.dir, "busy", "--lazy"}, "umount", p.dir)
	r := run(t, "umount", "--lazy", p.dir)
	if r.code != exitOK || !strings.Contains(r.stderr, "detached") {
		t.Errorf("umount --lazy: %+v", r)
	}
	if mounted(t, p.dir) {
		t.Error("after umount --lazy it is still in the tree")
	}
	fails(t, exitLocked, []string{p.store, fmt.Sprint(pid)}, "mount", p.store, p.dir)
	h.letGo()
	gone(t, pid)
	p.mount()
	var u umountResult
	if err := json.Unmarshal([]byte(ok(t, "umount", "--json", "-l", p.dir)), &u); err != nil || !u.Ended || u.Dir != p.dir || u.Store != p.store {
		t.Errorf("umount --json: %+v, %v", u, err)
	}
}

func TestTermination(t *testing.T) {
	p := newPlace(t)
	pid := p.mount()
	write(t, p.dir+"/tasks/a", "x")
	kill(t, pid, syscall.SIGTERM)
	gone(t, pid)
	if mounted(t, p.dir) {
		t.Error("SIGTERM left the mount")
	}
	if log := read(t, p.store+"/"+logName); !strings.Contains(log, "msg=ended") || strings.Contains(log, "level=ERROR") {
		t.Errorf("the log says:\n%s", log)
	}

	// Busy: it is detached, and what is written and closed after that is kept.
	pid = p.mount()
	h := hold(t, p.dir, "exec 3>tasks/b; echo early >&3; cd /")
	kill(t, pid, syscall.SIGTERM)
	until(t, "the busy mount is detached", func() bool { return !mounted(t, p.dir) })
	h.letGo()
	gone(t, pid)
	wantText(t, "a file closed after SIGTERM", ok(t, "cat", p.store+":/tasks/b"), "early\n")

	// A second signal ends it at once.
	pid = p.mount()
	hold(t, p.dir, "exec 3<tasks/b")
	kill(t, pid, syscall.SIGTERM)
	until(t, "the busy mount is detached", func() bool { return !mounted(t, p.dir) })
	kill(t, pid, syscall.SIGTERM)
	gone(t, pid)
	p.mount()
	wantText(t, "the store afterwards", read(t, p.dir+"/tasks/b"), "early\n")
}

func TestForeground(t *testing.T) {
	p := newPlace(t)
	for sig, want := range map[syscall.Signal]int{syscall.SIGTERM: exitOK, syscall.SIGINT: exitInterrupted, syscall.SIGHUP: exitOK} {
		t.Cleanup(p.cleanUp)
		cmd := command(t, "mount", "--foreground", p.store, p.dir)
		stderr, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stderr = stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		until(t, "the mount is there", func() bool { return strings.Contains(read(t, stderr.Name()), "msg=mounted") })
		write(t, p.dir+"/tasks/"+sig.String(), "x")
		kill(t, cmd.Process.Pid, sig)
		if code := exitOf(t, cmd.Wait(), cmd.Args); code != want {
			t.Errorf("%v: exit code %d, want %d\n%s", sig, code, want, read(t, stderr.Name()))
		}
		if mounted(t, p.dir) {
			t.Errorf("%v left the mount", sig)
		}
		stderr.Close()
	}
	if _, err := os.Stat(p.store + "/" + logName); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("in the foreground the log goes to standard error, and yet: %v", err)
	}
}

func TestReadOnlyMount(t *testing.T) {
	p := newPlace(t)
	p.mount()
	write(t, p.dir+"/tasks/a", "x")
	ok(t, "umount", p.dir)
	for _, option := range []string{"--read-only", "-oro"} {
		options := []string{option}
		if option == "-oro" {
			options = []string{"-o", "ro"}
		}
		p.mount(options...)
		if err := os.WriteFile(p.dir+"/tasks/b", nil, 0o644); !errors.Is(err, unix.EROFS) {
			t.Errorf("%s: writing: %v", option, err)
		}
		fails(t, exitFailure, []string{"read-only"}, "rm", p.dir+"/tasks/a")
		wantText(t, "read-only", read(t, p.dir+"/tasks/a")+ok(t, "cat", p.dir+"/tasks/a"), "xx")
		ok(t, "umount", p.dir)
	}
}

// TestDaemonLetsGo: the daemon holds neither descriptors nor the directory of the shell that started it, and its files are its own.
func TestDaemonLetsGo(t *testing.T) {
	p := newPlace(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := os.Remove(p.store + "/catalog.db"); err != nil { // the daemon makes it again
		t.Fatal(err)
	}
	cmd := command(t, "mount", p.store, p.dir)
	cmd.ExtraFiles, cmd.Dir = []*os.File{w, w, w}, t.TempDir() // more than one: the daemon's status pipe takes the place of the first
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out // Wait returns when all who hold these have gone
	t.Cleanup(p.cleanUp)
	if err := cmd.Run(); err != nil || out.String() != "" {
		t.Fatalf("%v: %s", err, out.String())
	}
	w.Close()
	if err := r.SetReadDeadline(time.Now().Add(hang)); err != nil {
		t.Fatal(err)
	}
	if n, err := r.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("the daemon holds a descriptor that it inherited: %d, %v", n, err)
	}
	pid := statusOf(t, p.dir).Mount.PID
	if cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); err != nil || cwd != "/" {
		t.Errorf("the daemon works in %s, %v", cwd, err)
	}
	if sid, err := unix.Getsid(pid); err != nil || sid != pid {
		t.Errorf("the daemon %d is in session %d, %v", pid, sid, err)
	}
	wantText(t, "its name", read(t, fmt.Sprintf("/proc/%d/comm", pid)), "holdfast\n")
	limits := read(t, fmt.Sprintf("/proc/%d/limits", pid))
	for line := range strings.Lines(limits) {
		if f := strings.Fields(line); strings.HasPrefix(line, "Max open files") && f[3] != f[4] {
			t.Errorf("the daemon may open %s of %s files", f[3], f[4])
		}
	}

	// Modes are the callers', in the mount; below, nothing is anybody else's business.
	old := unix.Umask(0)
	err = os.Mkdir(p.dir+"/tasks/open", 0o777)
	unix.Umask(old)
	if st, statErr := os.Stat(p.dir + "/tasks/open"); err != nil || statErr != nil || st.Mode().Perm() != 0o777 {
		t.Errorf("mkdir 777 under umask 0: %v, %v, %v", st.Mode(), err, statErr)
	}
	write(t, p.dir+"/tasks/small", "x")
	write(t, p.dir+"/tasks/large", strings.Repeat("x", 1<<20))
	ok(t, "umount", p.dir)
	err = filepath.WalkDir(p.store, func(path string, d iofs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := d.Info()
		if err == nil && st.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, st.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestMissingFuse hides /dev/fuse from the program, in a mount namespace of its own.
func TestMissingFuse(t *testing.T) {
	p := newPlace(t)
	dev := t.TempDir()
	script := `set -e; mount -t tmpfs none "$1"; touch "$1/null"; mount --bind /dev/null "$1/null"; mount --rbind "$1" /dev; shift; exec "$@"`
	cmd := exec.CommandContext(t.Context(), "unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh", dev,
		os.Getenv(program), "mount", p.store, p.dir)
	out, err := cmd.CombinedOutput()
	if code := exitOf(t, err, cmd.Args); code != exitFailure || !strings.Contains(string(out), "/dev/fuse") || !strings.Contains(string(out), "modprobe fuse") ||
		strings.Count(string(out), "\n") != 1 {
		t.Errorf("exit code %d: %s", code, out)
	}
}

// TestDaemonThatDies: a daemon that cannot even report must not leave its caller waiting.
func TestDaemonThatDies(t *testing.T) {
	p := newPlace(t)
	if err := os.Mkdir(p.store+"/control.sock", 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.cleanUp)
	fails(t, exitFailure, []string{"control.sock", "not a socket"}, "mount", p.store, p.dir)
	if mounted(t, p.dir) {
		t.Error("the mount is there although the daemon failed")
	}
	if err := os.Remove(p.store + "/control.sock"); err != nil {
		t.Fatal(err)
	}
	p.mount()
}
