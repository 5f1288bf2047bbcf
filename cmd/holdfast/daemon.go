package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"runtime/pprof"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/fs"
	"holdfast/integrity/view"
	"holdfast/internal/control"
	"holdfast/internal/volume"
)

const (
	// lockPatience is how long a mount waits for a command that works on the store.
	lockPatience = 5 * time.Second
	// busyGrace is how long a daemon that was told to end serves the files that are still open in the detached mount.
	busyGrace = 10 * time.Second
	// controlGrace is how long it then waits for commands that it is still serving.
	controlGrace = 30 * time.Second

	// memoryLimit is where the garbage collector stops trading memory for speed, in bytes of Go memory; SQLite's comes on top of it.
	// Copying 4,355 files in, reading them, and streaming 700 MiB in and out peaked at 128 MiB resident with it (174 MiB with GOGC=200,
	// 112 MiB with GOGC=50 and more CPU). GOMEMLIMIT in the environment overrules it.
	memoryLimit = 192 << 20
)

// daemon serves one mount.
type daemon struct {
	m   mountConfig
	log *slog.Logger
	vol *volume.Volume
	aud *auditor
	srv *fs.Server
	svc *services
	ctl *control.Server // nil when the store's directory cannot be written
}

// serve mounts the store and returns when the mount has ended and the store is closed. It reports to the status pipe first.
func (e *env) serve(ctx context.Context, m mountConfig) (err error) {
	var out io.Writer = e.stderr
	if m.statusFD != 0 {
		unix.CloseOnExec(m.statusFD)
		file := newLogFile(m.store)
		defer func() { err = errors.Join(err, file.Close()) }()
		out = file
	}
	level := slog.LevelInfo
	if m.debug {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: level}))
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)

	d := &daemon{m: m, log: log}
	stopProfile := func() error { return nil }
	if err = harden(log); err == nil {
		stopProfile, err = startProfile(m.cpuProfile)
	}
	if err == nil {
		err = d.start(ctx)
	}
	if err != nil {
		status := daemonStatus{Error: err.Error(), Code: exitCode(err)}
		return errors.Join(err, stopProfile(), announce(m.statusFD, status))
	}
	log.Info("mounted", "store", m.store, "dir", m.dir, "pid", os.Getpid(), "read_only", m.readOnly)
	err = announce(m.statusFD, daemonStatus{Ready: true})
	d.wait(signals)
	err = errors.Join(err, d.finish(), stopProfile())
	if err != nil {
		log.Error("ended with an error", "error", err)
		return err
	}
	log.Info("ended", "store", m.store)
	return nil
}

// harden sets the process up for a long life: as many files open as the system lets, bounded memory, no claim on the directory it was started
// in, and files in the store that are nobody else's business. The modes of what is made in the mount are rows of the catalog: the umask does
// not reach them.
func harden(log *slog.Logger) error {
	unix.Umask(0o077)
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := closeOnExec(); err != nil {
		return err
	}
	// Started as /proc/self/exe, it would be called "exe".
	if err := os.WriteFile("/proc/self/comm", []byte("holdfast"), 0); err != nil {
		log.Warn("the process keeps its name", "error", err)
	}
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return fmt.Errorf("read the limit of open files: %w", err)
	}
	lim.Cur = lim.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		log.Warn("the limit of open files stays as it is", "error", err)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
	return nil
}

func startProfile(path string) (stop func() error, err error) {
	if path == "" {
		return func() error { return nil }, nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return func() error { return nil }, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return func() error { return nil }, errors.Join(err, f.Close())
	}
	return func() error {
		pprof.StopCPUProfile()
		return f.Close()
	}, nil
}

// start opens the store, mounts it and makes the control socket. On error everything is undone.
func (d *daemon) start(ctx context.Context) (err error) {
	if err := checkFuse(); err != nil {
		return err
	}
	// From here on an interrupt ends the mount in order: see wait.
	work := context.WithoutCancel(ctx)
	if d.vol, err = openForMount(ctx, d.m, d.log); err != nil {
		return err
	}
	d.aud = startAuditor(work, d.vol, d.log)
	defer func() {
		if err != nil {
			d.aud.end(d.vol, d.log)
			err = errors.Join(err, d.vol.Close(work))
		}
	}()
	if d.svc, err = newServices(work, d.vol, d.log); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.svc.Close())
		}
	}()
	if err := clearMountPoint(d.m); err != nil {
		return err
	}
	engine := d.svc.engine
	state := view.New(view.Options{Engine: engine, Scrub: engine.Scrubber(), Audit: d.aud.evidence(), Store: d.vol})
	d.srv, err = fs.Mount(work, d.vol, d.m.dir, fs.MountOptions{
		AllowOther: d.m.allowOther, ReadOnly: d.m.readOnly, Options: d.m.options, FSName: d.m.store, Debug: d.m.debug, Log: d.log,
		Virtual: []fs.Virtual{fs.Integrity(d.vol, state)},
	})
	if err != nil {
		return err
	}
	ops := control.NewLocal(d.vol, &control.Mounted{
		Mount:    control.Mount{Dir: d.m.dir, PID: os.Getpid(), Since: time.Now().UTC(), ReadOnly: d.m.readOnly},
		Requests: d.srv.Requests,
		Unmount:  func(lazy bool) error { return unmountError(d.m.dir, d.srv.Unmount(lazy)) },
		Audit:    d.aud.log, AuditError: d.aud.err,
	}, d.svc)
	d.svc.start(work)
	d.ctl, err = control.Listen(work, d.m.store, ops, d.log)
	if err != nil && d.m.readOnly {
		d.log.Warn("no control socket: the commands will not reach this mount", "error", err)
		return nil
	}
	if err != nil {
		return errors.Join(err, d.srv.Unmount(true))
	}
	return nil
}

// checkFuse tells what is missing before the kernel or a helper says it less clearly.
func checkFuse() error {
	_, err := os.Stat("/dev/fuse")
	if err != nil {
		return fmt.Errorf("mounting needs /dev/fuse: %w; load the module (modprobe fuse), or start the container with --device /dev/fuse "+
			"and --cap-add SYS_ADMIN", err)
	}
	return nil
}

// openForMount opens the store, waiting for a while for a command that works on it, but not for another mount of it.
func openForMount(ctx context.Context, m mountConfig, log *slog.Logger) (*volume.Volume, error) {
	deadline := time.Now().Add(lockPatience)
	for {
		vol, err := volume.Open(context.WithoutCancel(ctx), volume.Options{Dir: m.store, ReadOnly: m.readOnly, Log: log})
		if !errors.Is(err, volume.ErrLocked) {
			return vol, err
		}
		if c, connectErr := control.Connect(ctx, m.store); connectErr == nil {
			return nil, errors.Join(explainLock(err, m.store), c.Close())
		}
		if time.Now().After(deadline) {
			return nil, explainLock(err, m.store)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// wait returns when the mount has ended, by itself or because of a signal.
func (d *daemon) wait(signals <-chan os.Signal) {
	var grace <-chan time.Time
	for {
		select {
		case <-d.srv.Done():
			d.srv.Wait()
			return
		case <-grace:
			d.log.Warn("files of the mount are still open; ending all the same", "dir", d.m.dir)
			return
		case s := <-signals:
			if s == syscall.SIGHUP && d.m.statusFD != 0 {
				continue
			}
			if grace != nil {
				d.log.Warn("a second signal: ending at once", "signal", s)
				return
			}
			d.log.Info("unmounting", "signal", s)
			grace = time.After(busyGrace)
			err := d.srv.Unmount(false)
			if errors.Is(err, fs.ErrBusy) {
				d.log.Warn("the mount is busy: detaching it; files that are open may still be closed", "dir", d.m.dir, "grace", busyGrace)
				err = d.srv.Unmount(true)
			}
			if err != nil {
				d.log.Error("cannot unmount", "dir", d.m.dir, "error", err)
			}
		}
	}
}

// finish closes what start opened, in reverse. The store is closed, and its lock free, on return.
func (d *daemon) finish() error {
	var errs []error
	d.aud.letGo()
	if d.ctl != nil {
		ctx, cancel := context.WithTimeout(context.Background(), controlGrace)
		defer cancel()
		errs = append(errs, d.ctl.Shutdown(ctx))
	}
	errs = append(errs, d.svc.Close())
	d.aud.end(d.vol, d.log) // what the services have written is signed, too
	return errors.Join(append(errs, d.vol.Close(context.Background()))...)
}
