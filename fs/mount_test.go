package fs_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/fs"
	"holdfast/internal/fusetest"
	"holdfast/internal/volume"
)

// mountLine is the mount's line of the mount table.
func mountLine(t *testing.T, dir string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	check(t, err)
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == dir {
			return line
		}
	}
	t.Fatalf("%s is not in the mount table", dir)
	return ""
}

func TestMountTable(t *testing.T) {
	m := fusetest.New(t, fusetest.Options{})
	line := mountLine(t, m.Dir)
	for _, want := range []string{" - fuse.holdfast " + m.Store + " ", "nosuid", "nodev", "default_permissions"} {
		if !strings.Contains(line, want) {
			t.Errorf("the mount table says %q, without %q", line, want)
		}
	}
	if strings.Contains(line, "allow_other") {
		t.Errorf("others are let in unasked: %q", line)
	}
	mounts, err := fs.Mounts()
	check(t, err)
	found := false
	for _, i := range mounts {
		found = found || i == fs.MountInfo{Dir: m.Dir, Source: m.Store}
	}
	if !found {
		t.Errorf("%s is not among %v", m.Dir, mounts)
	}
	got, err := fs.At(m.Dir)
	if err != nil || got.Source != m.Store {
		t.Errorf("At: %+v %v", got, err)
	}
	link := filepath.Join(t.TempDir(), "link")
	check(t, os.Symlink(m.Dir, link))
	if got, err := fs.At(link); err != nil || got.Dir != m.Dir {
		t.Errorf("At through a symbolic link: %+v %v", got, err)
	}
	for _, dir := range []string{t.TempDir(), "/", filepath.Join(m.Dir, "messages")} {
		if _, err := fs.At(dir); !errors.Is(err, fs.ErrNotMounted) {
			t.Errorf("At(%s): %v", dir, err)
		}
	}
	if stale, err := fs.StaleMount(m.Dir); stale || err != nil {
		t.Errorf("a mount that works is called stale (%v)", err)
	}
	if isRoot() {
		readAhead := strings.Fields(line)[2]
		b, err := os.ReadFile(filepath.Join("/sys/class/bdi", readAhead, "read_ahead_kb"))
		if err != nil || strings.TrimSpace(string(b)) != "1024" {
			t.Errorf("readahead is %q (%v)", b, err)
		}
	}
}

func TestMountPointRefused(t *testing.T) {
	base := t.TempDir()
	store := filepath.Join(base, "store")
	ctx := context.Background()
	_, err := volume.Init(ctx, store, volume.InitOptions{})
	check(t, err)
	vol, err := volume.Open(ctx, volume.Options{Dir: store})
	check(t, err)
	defer vol.Close(ctx)
	file := filepath.Join(base, "file")
	full := filepath.Join(base, "full")
	inside := filepath.Join(store, "inside")
	check(t, os.MkdirAll(inside, 0o755))
	check(t, os.MkdirAll(filepath.Join(full, "x"), 0o755))
	check(t, os.WriteFile(file, nil, 0o644))
	check(t, os.Symlink(inside, filepath.Join(base, "link")))
	for dir, want := range map[string]string{
		filepath.Join(base, "none"): "no such file", file: "not a directory", full: "not empty", base: "hide the store",
		inside: "inside the store", filepath.Join(base, "link"): "inside the store", store: "hide the store",
	} {
		_, err := fs.Mount(context.Background(), vol, dir, fs.MountOptions{})
		if !errors.Is(err, fs.ErrMountPoint) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), dir) {
			t.Errorf("mounting on %s: %v, want %q", dir, err, want)
		}
	}
	m := fusetest.New(t, fusetest.Options{Kind: fusetest.Mem})
	_, err = fs.Mount(ctx, vol, m.Dir, fs.MountOptions{})
	if !errors.Is(err, fs.ErrMountPoint) || !strings.Contains(err.Error(), "mounted there already") {
		t.Errorf("mounting twice: %v", err)
	}
	if isRoot() {
		empty := t.TempDir()
		_, err := fs.Mount(ctx, vol, empty, fs.MountOptions{Options: []string{"nosuchoption"}})
		if err == nil || !strings.Contains(err.Error(), "option") {
			t.Errorf("an unknown option: %v", err)
		}
	}
}

// TestStaleMount: the mount of a daemon that was killed is recognised and cleaned up, and the store mounts again with what was closed.
func TestStaleMount(t *testing.T) {
	m := fusetest.New(t, fusetest.Options{})
	write(t, filepath.Join(m.Dir, "messages", "kept"), "closed before the crash")
	m.Kill()
	if err := unix.Statfs(m.Dir, new(unix.Statfs_t)); err != unix.ENOTCONN {
		t.Errorf("statfs of a dead mount: %v", err)
	}
	if got, err := fs.At(m.Dir); err != nil || got.Source != m.Store {
		t.Errorf("At a dead mount: %+v %v", got, err)
	}
	_, err := fs.MountTree(context.Background(), fusetest.NewMemory(0, 0), m.Dir, fs.MountOptions{})
	if !errors.Is(err, fs.ErrMountPoint) || !strings.Contains(err.Error(), "died") {
		t.Errorf("mounting over a dead mount: %v", err)
	}
	stale, err := fs.StaleMount(m.Dir)
	if err != nil || !stale {
		t.Fatalf("the dead mount is not cleaned up: %v %v", stale, err)
	}
	if stale, err := fs.StaleMount(m.Dir); stale || err != nil {
		t.Errorf("cleaning up twice: %v %v", stale, err)
	}
	m.Start()
	wantContent(t, filepath.Join(m.Dir, "messages", "kept"), "closed before the crash")
}

func TestUnmountBusy(t *testing.T) {
	m := fusetest.New(t, fusetest.Options{})
	path := filepath.Join(m.Dir, "tasks", "open")
	f := open(t, path, os.O_CREATE|os.O_RDWR)
	_, err := f.WriteString("before ")
	check(t, err)
	if err := fs.Unmount(m.Dir, false); !errors.Is(err, fs.ErrBusy) || !strings.Contains(err.Error(), "lazily") {
		t.Errorf("unmounting a mount in use: %v", err)
	}
	check(t, fs.Unmount(m.Dir, true))
	if err := fs.Unmount(m.Dir, true); !errors.Is(err, fs.ErrNotMounted) {
		t.Errorf("unmounting twice: %v", err)
	}
	// What is open goes on working, and is kept.
	_, err = f.WriteString("and after")
	check(t, err)
	check(t, f.Close())
	m.Remount()
	wantContent(t, path, "before and after")
}

func TestReadOnlyMount(t *testing.T) {
	m := fusetest.New(t, fusetest.Options{})
	path := filepath.Join(m.Dir, "config", "f")
	write(t, path, "content")
	m.Stop()
	m.SetReadOnly(true)
	m.Start()
	wantContent(t, path, "content")
	for what, err := range map[string]error{
		"write":    os.WriteFile(path, nil, 0o644),
		"create":   os.WriteFile(path+"2", nil, 0o644),
		"unlink":   os.Remove(path),
		"mkdir":    os.Mkdir(path+"d", 0o755),
		"chmod":    os.Chmod(path, 0o600),
		"truncate": os.Truncate(path, 0),
		"xattr":    unix.Setxattr(path, "user.a", nil, 0),
		"utimes":   os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0)),
	} {
		wantErrno(t, what, err, unix.EROFS)
	}
	m.Stop()
	m.SetReadOnly(false)
	m.Start()
	wantContent(t, path, "content")
}

// TestRemount: numbers, attributes and contents are the same when the daemon has been away, and file handles stay valid.
func TestRemount(t *testing.T) {
	m := fusetest.New(t, fusetest.Options{})
	dir := filepath.Join(m.Dir, "logs")
	path := func(name string) string { return filepath.Join(dir, name) }
	write(t, path("file"), "content")
	check(t, os.Link(path("file"), path("link")))
	check(t, os.Symlink("file", path("sym")))
	check(t, os.Mkdir(path("dir"), 0o2750))
	check(t, unix.Setxattr(path("file"), "user.a", []byte("v"), 0))
	ts := []unix.Timespec{timespec(-5), timespec(123_456_789_123_456_789)}
	check(t, unix.UtimesNanoAt(unix.AT_FDCWD, path("dir"), ts, 0))
	// Times that the kernel told late, before and after a close.
	f := open(t, path("file2"), os.O_CREATE|os.O_WRONLY)
	_, err := f.WriteString("x")
	check(t, err)
	check(t, unix.Futimes(int(f.Fd()), []unix.Timeval{{Sec: 7}, {Sec: 8}}))
	check(t, f.Close())
	names := []string{"file", "link", "sym", "dir", "file2", "."}
	before := make(map[string]unix.Stat_t)
	for _, name := range names {
		st := lstat(t, path(name))
		st.Dev = 0
		before[name] = st
	}
	handle := handleOf(t, path("file"))
	m.Remount()
	if handle != nil {
		// First of all, while the kernel knows nothing of the file.
		if got := readHandle(t, m.Dir, *handle); got != "content" {
			t.Errorf("the file handle leads to %q", got)
		}
	}
	for _, name := range names {
		st := lstat(t, path(name))
		st.Dev = 0
		if want := before[name]; st != want {
			t.Errorf("%s after remounting:\n got %+v\nwant %+v", name, st, want)
		}
	}
	wantContent(t, path("link"), "content")
	buf := make([]byte, 10)
	if n, err := unix.Getxattr(path("file"), "user.a", buf); err != nil || string(buf[:n]) != "v" {
		t.Errorf("attribute: %q %v", buf[:max(n, 0)], err)
	}
	if handle != nil {
		check(t, os.Remove(path("file")))
		check(t, os.Remove(path("link")))
		m.Remount()
		fd, err := openHandle(m.Dir, *handle)
		if err != unix.ESTALE {
			t.Errorf("the handle of a removed file: %v, want %v", err, unix.ESTALE)
			unix.Close(fd)
		}
	}
}

// handleOf returns the file handle of a path; nil without the right to use it.
func handleOf(t *testing.T, path string) *unix.FileHandle {
	t.Helper()
	h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, path, 0)
	check(t, err)
	if !isRoot() {
		return nil
	}
	return &h
}

func openHandle(mnt string, h unix.FileHandle) (int, error) {
	dir, err := unix.Open(mnt, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir)
	return unix.OpenByHandleAt(dir, h, unix.O_RDONLY)
}

func readHandle(t *testing.T, mnt string, h unix.FileHandle) string {
	t.Helper()
	fd, err := openHandle(mnt, h)
	check(t, err)
	defer unix.Close(fd)
	buf := make([]byte, 100)
	n, err := unix.Read(fd, buf)
	check(t, err)
	return string(buf[:n])
}

// TestFileHandleOutlivesEviction: the kernel forgets an inode and finds it again by its number.
func TestFileHandleOutlivesEviction(t *testing.T) {
	if !isRoot() {
		return
	}
	m := fusetest.New(t, fusetest.Options{})
	path := filepath.Join(m.Dir, "status", "deep", "er")
	check(t, os.MkdirAll(path, 0o755))
	write(t, filepath.Join(path, "f"), "found again")
	h := handleOf(t, filepath.Join(path, "f"))
	d := handleOf(t, path)
	forgotten := m.Requests()["FORGET"]
	for try := 0; m.Requests()["FORGET"] == forgotten; try++ {
		if try == 50 {
			t.Fatal("the kernel does not forget anything when it is told to")
		}
		check(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("2\n"), 0))
	}
	if got := readHandle(t, m.Dir, *h); got != "found again" {
		t.Errorf("read %q", got)
	}
	fd, err := openHandle(m.Dir, *d)
	check(t, err)
	defer unix.Close(fd)
	// ".." is how the kernel finds its way up.
	if got, err := os.Readlink("/proc/self/fd/" + itoa(fd)); err != nil || got != path {
		t.Errorf("the directory is at %q (%v)", got, err)
	}
}

// TestBehindTheMount: what a command changes in the store is seen at once, though the kernel caches without limit.
func TestBehindTheMount(t *testing.T) {
	m := fusetest.New(t, fusetest.Options{})
	dir := filepath.Join(m.Dir, "messages")
	write(t, filepath.Join(dir, "f"), "old")
	wantContent(t, filepath.Join(dir, "f"), "old")
	if _, err := os.Lstat(filepath.Join(dir, "g")); !os.IsNotExist(err) {
		t.Fatal(err)
	}
	readNames := func() string {
		entries, err := os.ReadDir(dir)
		check(t, err)
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return strings.Join(names, " ")
	}
	readNames()
	if got := readNames(); got != "f" {
		t.Fatalf("the directory has %q", got)
	}
	old := open(t, filepath.Join(dir, "f"), os.O_RDONLY)
	m.Behind("/messages/f", "new and longer")
	m.Behind("/messages/g", "also new")
	wantContent(t, filepath.Join(dir, "f"), "new and longer")
	wantContent(t, filepath.Join(dir, "g"), "also new")
	if got := readNames(); got != "f g" {
		t.Errorf("the directory has %q", got)
	}
	// Whoever had it open reads on what was there.
	buf := make([]byte, 10)
	if n, _ := old.ReadAt(buf, 0); string(buf[:n]) != "old" {
		t.Errorf("the open file reads %q", buf[:n])
	}
}

func TestUnprivilegedMount(t *testing.T) {
	if !isRoot() {
		return // every other test is this one
	}
	if _, err := exec.LookPath("fusermount3"); err != nil {
		t.Fatalf("this test needs fusermount3 (package fuse3): %v", err)
	}
	if st, err := os.Stat("/dev/fuse"); err != nil || st.Mode()&0o006 != 0o006 {
		if os.Getenv(ownDevice) == "" {
			inOwnNamespace(t)
			return
		}
		giveEverybodyFuse(t)
	}
	m := fusetest.New(t, fusetest.Options{User: nobody})
	line := mountLine(t, m.Dir)
	for _, want := range []string{" - fuse.holdfast " + m.Store + " ", "nosuid", "nodev", "user_id=65534"} {
		if !strings.Contains(line, want) {
			t.Errorf("the mount table says %q, without %q", line, want)
		}
	}
	path := filepath.Join(m.Dir, "tasks", "f")
	fusetest.As(t, nobody, nobody, nil, func() {
		if err := os.WriteFile(path, []byte("by its user"), 0o644); err != nil {
			t.Error(err)
		}
	})
	if _, err := os.Stat(path); !errors.Is(err, unix.EACCES) {
		t.Errorf("root is let into another user's mount: %v", err)
	}
	m.Remount()
	fusetest.As(t, nobody, nobody, nil, func() { wantContent(t, path, "by its user") })
}

const (
	ownDevice = "HOLDFAST_TEST_OWN_DEVICE"
	nobody    = 65534 // fusermount3 wants a user with a name
)

// inOwnNamespace runs the test that calls it once more, in a mount namespace in which it may put another device in the place of
// /dev/fuse: on some machines only root may open that.
func inOwnNamespace(t *testing.T) {
	t.Helper()
	exe, err := os.Executable()
	check(t, err)
	cmd := exec.Command(exe, "-test.run=^"+t.Name()+"$", "-test.count=1")
	cmd.Env = append(os.Environ(), ownDevice+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("in a namespace of its own: %v\n%s", err, out)
	}
}

func giveEverybodyFuse(t *testing.T) {
	t.Helper()
	check(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	node := filepath.Join(t.TempDir(), "fuse")
	check(t, unix.Mknod(node, unix.S_IFCHR, int(unix.Mkdev(10, 229))))
	check(t, unix.Chmod(node, 0o666))
	check(t, unix.Mount(node, "/dev/fuse", "", unix.MS_BIND, ""))
	t.Cleanup(func() { unix.Unmount("/dev/fuse", unix.MNT_DETACH) })
}

// TestVirtualTree: a tree under a name in the root is found, read and listed, keeps to itself, and its name cannot be taken.
func TestVirtualTree(t *testing.T) {
	m := fusetest.New(t, fusetest.Options{Virtual: ".virtual"})
	v := filepath.Join(m.Dir, ".virtual")
	st := lstat(t, v)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Ino < 1<<62 {
		t.Errorf("the tree's root is inode %#x with mode %o", st.Ino, st.Mode)
	}
	write(t, filepath.Join(v, "f"), "in the tree")
	wantContent(t, filepath.Join(v, "f"), "in the tree")
	check(t, os.Mkdir(filepath.Join(v, "d"), 0o755))
	if got, want := lstat(t, filepath.Join(v, "..")).Ino, lstat(t, m.Dir).Ino; got != want {
		t.Errorf("\"..\" of the tree is %d, want %d", got, want)
	}
	entries, err := os.ReadDir(v)
	if err != nil || len(entries) != 2 {
		t.Errorf("the tree lists %v (%v)", entries, err)
	}
	f := lstat(t, filepath.Join(v, "f"))
	for _, e := range entries {
		if info, err := e.Info(); err != nil || e.Name() == "f" && info.Sys().(*syscall.Stat_t).Ino != f.Ino {
			t.Errorf("%s: %v", e.Name(), err)
		}
	}
	in, out := filepath.Join(v, "f"), filepath.Join(m.Dir, "tasks", "f")
	wantErrno(t, "rename out of the tree", unix.Rename(in, out), unix.EXDEV)
	wantErrno(t, "link out of the tree", unix.Link(in, out), unix.EXDEV)
	wantErrno(t, "creation under the tree's name", unix.Mkdir(v, 0o755), unix.EEXIST)
	wantErrno(t, "removal of the tree", unix.Rmdir(v), unix.EBUSY)
	wantErrno(t, "rename of the tree", unix.Rename(v, filepath.Join(m.Dir, "x")), unix.EBUSY)
	wantErrno(t, "rename over the tree", unix.Rename(filepath.Join(m.Dir, "logs"), v), unix.EBUSY)
	if got, err := exec.Command("cp", in, out).CombinedOutput(); err != nil {
		t.Errorf("cp out of the tree: %v %s", err, got)
	}
	wantContent(t, out, "in the tree")
}

// TestMountOptions: device nodes and set-id programs come into effect on root's request only.
func TestMountOptions(t *testing.T) {
	if !isRoot() {
		return // nosuid and nodev cannot be lifted
	}
	m := fusetest.New(t, fusetest.Options{Kind: fusetest.Mem, Mount: []string{"suid", "dev", "noexec", "rw"}, Debug: true})
	line := mountLine(t, m.Dir)
	for word, want := range map[string]bool{"nosuid": false, "nodev": false, "noexec": true} {
		if strings.Contains(line, word) != want {
			t.Errorf("the mount table says %q; %s: want %v", line, word, want)
		}
	}
	null := filepath.Join(m.Dir, "null")
	check(t, unix.Mknod(null, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	f, err := os.OpenFile(null, os.O_WRONLY, 0)
	check(t, err)
	_, err = f.WriteString("into nothing")
	check(t, errors.Join(err, f.Close()))
	script := filepath.Join(m.Dir, "script")
	check(t, os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755))
	if err := exec.Command(script).Run(); !errors.Is(err, unix.EACCES) {
		t.Errorf("running a program of a noexec mount: %v", err)
	}
	m.Stop()
	if !strings.Contains(m.Stderr(), "MKNOD") {
		t.Error("with debugging on, requests are not logged")
	}
}

// TestTruncatingOpenKeepsTimes: the times of a file that is emptied and written again within a clock tick are the same when the daemon has been away.
func TestTruncatingOpenKeepsTimes(t *testing.T) {
	m := fusetest.New(t, fusetest.Options{})
	const files = 50
	path := func(i int) string { return filepath.Join(m.Dir, "tasks", fmt.Sprint(i)) }
	var before [files]unix.Stat_t
	for i := range files {
		for _, text := range []string{"first", "second", "third"} {
			check(t, os.WriteFile(path(i), []byte(text), 0o644))
		}
		check(t, unix.Stat(path(i), &before[i]))
	}
	m.Remount()
	for i := range files {
		var after unix.Stat_t
		check(t, unix.Stat(path(i), &after))
		if after.Mtim != before[i].Mtim {
			t.Errorf("%d: mtime was %v, is %v", i, before[i].Mtim, after.Mtim)
		}
	}
}
