//go:build system

package acceptance

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// nobody is the unprivileged user that PostgreSQL runs as.
const nobody = 65534

// postgres is a server whose data directory is in a place.
type postgres struct {
	t         *testing.T
	bin, data string
	sockets   string
	pid       int // of the main process, once started
}

func newPostgres(t *testing.T, p *place) *postgres {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test runs PostgreSQL as another user and must itself run as root")
	}
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	must(t, err)
	if len(found) == 0 {
		t.Fatal("PostgreSQL's server programs are not installed: scripts/test installs what the tests need")
	}
	sockets, err := os.MkdirTemp("", "pg-")
	must(t, err)
	t.Cleanup(func() {
		if log, err := os.ReadFile(filepath.Join(sockets, "log")); err == nil && t.Failed() {
			t.Logf("the server's log:\n%s", tail(log))
		}
		os.RemoveAll(sockets)
	})
	pg := &postgres{t: t, bin: filepath.Dir(found[len(found)-1]), data: filepath.Join(p.dir, "pg"), sockets: sockets}
	for _, d := range []string{sockets, pg.data} {
		if d == pg.data {
			must(t, os.Mkdir(d, 0o700))
		}
		must(t, os.Chown(d, nobody, nobody))
	}
	pg.run("initdb", "-D", pg.data, "-U", "test", "--data-checksums", "--locale=C", "-E", "UTF8", "--auth=trust")
	return pg
}

func (pg *postgres) run(program string, args ...string) string {
	pg.t.Helper()
	return command{dir: pg.sockets, asUID: nobody, env: []string{"HOME=" + pg.sockets, "PGHOST=" + pg.sockets, "PGUSER=test", "PGDATABASE=postgres"}}.run(pg.t, filepath.Join(pg.bin, program), args...)
}

func (pg *postgres) start() {
	pg.t.Helper()
	pg.run("pg_ctl", "start", "-w", "-s", "-D", pg.data, "-l", filepath.Join(pg.sockets, "log"),
		"-o", "-c listen_addresses= -k "+pg.sockets+" -c shared_buffers=32MB -c max_connections=20")
	b, err := os.ReadFile(filepath.Join(pg.data, "postmaster.pid"))
	must(pg.t, err)
	first, _, _ := strings.Cut(string(b), "\n")
	pg.pid, err = strconv.Atoi(first)
	must(pg.t, err)
	pg.t.Cleanup(pg.abort)
}

func (pg *postgres) stop() {
	pg.t.Helper()
	pg.run("pg_ctl", "stop", "-w", "-s", "-D", pg.data, "-m", "fast")
	pg.pid = 0
}

// TestPostgreSQL runs pgbench, checks every page's checksum and every index over remounts.
func TestPostgreSQL(t *testing.T) {
	p := newPlace(t, placeOptions{allowOther: true})
	pg := newPostgres(t, p)
	pg.start()
	pg.run("pgbench", "-i", "-q", "-s", "2")
	pg.run("pgbench", "-c", "4", "-j", "2", "-t", "200", "-n")
	check := func() {
		t.Helper()
		out := pg.run("psql", "-AtX", "-c", "select (select count(*) from pgbench_history), (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history)")
		if strings.TrimSpace(out) != "800|t" {
			t.Errorf("the bank's books say %q", out)
		}
		pg.run("pg_amcheck", "--install-missing", "--heapallindexed", "-d", "postgres")
	}
	check()
	pg.stop()
	pg.run("pg_checksums", "--check", "-D", pg.data)
	p.checkReopened()
	pg.run("pg_checksums", "--check", "-D", pg.data)
	pg.start()
	check()
	pg.stop()
}

// TestPostgreSQLSurvivesKill kills the daemon under a running database: every transaction that was acknowledged is there.
func TestPostgreSQLSurvivesKill(t *testing.T) {
	p := newPlace(t, placeOptions{allowOther: true})
	if p.mount == nil {
		t.Fatalf("this test needs Holdfast: unset %s", dirVar)
	}
	pg := newPostgres(t, p)
	pg.start()
	pg.run("psql", "-qX", "-c", "create table acks(n int primary key)")
	acked := pg.insertUntilKilled(p.mount, 300)
	t.Logf("%d transactions were acknowledged", acked)
	p.mount.detach()
	p.mount.start()
	// The server is known to be gone, but where nobody reaps it, its process number still looks alive to the next one.
	must(t, os.Remove(filepath.Join(pg.data, "postmaster.pid")))
	pg.start()
	out := strings.TrimSpace(pg.run("psql", "-AtX", "-c", "select count(*) filter (where n <= "+strconv.Itoa(acked)+") from acks"))
	if out != strconv.Itoa(acked) {
		t.Errorf("%s of %d acknowledged transactions survived", out, acked)
	}
	pg.run("pg_amcheck", "--install-missing", "--heapallindexed", "-d", "postgres")
	pg.stop()
	pg.run("pg_checksums", "--check", "-D", pg.data)
}

// insertUntilKilled inserts 1, 2, 3... each in a transaction of its own, kills the daemon when n were acknowledged, ends the
// server, and returns the last number that was acknowledged.
func (pg *postgres) insertUntilKilled(m *mount, n int) int {
	t := pg.t
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(pg.bin, "psql"), "-X", "-At", "-v", "ON_ERROR_STOP=1")
	cmd.Env = append(os.Environ(), "HOME="+pg.sockets, "PGHOST="+pg.sockets, "PGUSER=test", "PGDATABASE=postgres")
	cmd.SysProcAttr = credential(nobody)
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	go func() {
		defer in.Close()
		for i := 1; ; i++ {
			// The number is printed after the transaction of the insert has ended.
			if _, err := fmt.Fprintf(in, "insert into acks values(%d);\nselect %d;\n", i, i); err != nil {
				return
			}
		}
	}()
	acked := 0
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		i, err := strconv.Atoi(lines.Text())
		if err != nil {
			continue
		}
		if acked = i; acked == n {
			m.kill()
			pg.abort()
		}
	}
	if err := cmd.Wait(); err == nil {
		t.Error("psql ended without an error though its server was killed")
	}
	return acked
}

// abort ends a server that still runs without a word to its data directory, and waits for it.
func (pg *postgres) abort() {
	if pg.pid == 0 {
		return
	}
	fd, err := unix.PidfdOpen(pg.pid, 0)
	if err != nil {
		return // it has ended by itself
	}
	defer unix.Close(fd)
	unix.Kill(pg.pid, unix.SIGQUIT)
	unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 60_000)
	pg.pid = 0
}
