package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/mod/sumdb/note"

	"holdfast/catalog"
	"holdfast/integrity/audit"
	"holdfast/internal/control"
)

// maxEvidence bounds a file with keys or a tree head, in bytes.
const maxEvidence = 64 << 10

func (e *env) auditCommand() spec {
	return spec{
		name: "audit", usage: "who did what, and the proof that nobody has rewritten it",
		args: "tail [PATH] | find [PATH] | verify [STORE|DIR] | checkpoint [STORE|DIR] | prove PATH[@VERSION] | key [STORE|DIR]", min: 1, max: 2, onStore: true,
		help: `tail        the newest entries of the audit trail; -f waits for more, -n says how many
find        entries by --agent, --op, --since, --until, at or below PATH
verify      check the journal against everything that was signed. It needs no mount, reads the store's files only, and exits with 26 when something is not
            what it was: record, time and file are named. With --since-checkpoint it finds out whether history was rewritten or rolled back since the
            checkpoint in that file was made; keep one, and the public key, where the store's owner cannot reach them.
            --journal DIR checks bare segments; --proof FILE checks a proof and needs no store; both want --key.
checkpoint  sign what was recorded until now, and write the signed tree head
prove       write a proof that a version is in the log: who wrote it when, and its hash. With --extends FILE instead of PATH, a proof that the log extends
            the checkpoint in FILE
key         write the public key
Without STORE, DIR or PATH the store is that of the directory the command is called in, or --store STORE.
--json: tail and find write one document a line with the fields seq, time, agent, program, uid, pid, operation, path, inode, version, size, sha256, digest, chain;
verify one document with ok and problems.

Example: holdfast audit checkpoint ~/work > kept; holdfast audit key ~/work > key
         holdfast audit verify --since-checkpoint kept --key key ~/store
Example: holdfast audit find --agent agent-7 --since 1h ~/work/tasks`,
		flags: []cli.Flag{
			&cli.BoolFlag{Name: "follow", Aliases: []string{"f"}, Usage: "tail: wait for more"},
			&cli.Int64Flag{Name: "number", Aliases: []string{"n"}, Value: 10, Usage: "tail: how many of the newest records"},
			&cli.StringFlag{Name: "agent", Usage: "find, tail: what this agent did"},
			&cli.StringFlag{Name: "path", Usage: "find, tail: what was done at or below this path of the store"},
			&cli.StringFlag{Name: "op", Usage: "find, tail: one kind of operation, such as write, create, unlink, rename"},
			&cli.StringFlag{Name: "since", Usage: "find: after this time"},
			&cli.StringFlag{Name: "until", Usage: "find: up to this time"},
			&cli.StringFlag{Name: "since-checkpoint", Usage: "verify: a file with a checkpoint that was kept elsewhere", TakesFile: true},
			&cli.StringFlag{Name: "key", Usage: "verify: a file with the public key to be trusted, instead of the store's own", TakesFile: true},
			&cli.StringFlag{Name: "journal", Usage: "verify: a directory with segments of a journal, instead of a store", TakesFile: true},
			&cli.StringFlag{Name: "proof", Usage: "verify: a file with a proof, instead of a store", TakesFile: true},
			&cli.StringFlag{Name: "extends", Usage: "prove: a file with a checkpoint of this store", TakesFile: true},
		},
		run: e.runAudit,
	}
}

func (e *env) runAudit(ctx context.Context, c *cli.Context) error {
	action := c.Args().First()
	actions := map[string]func(context.Context, *cli.Context) error{
		"tail": e.auditEntries, "find": e.auditEntries, "verify": e.auditVerify, "checkpoint": e.auditCheckpoint, "prove": e.auditProve, "key": e.auditKey,
	}
	run, ok := actions[action]
	if !ok {
		return usagef("audit", "there is no %s; it is tail, find, verify, checkpoint, prove or key", quoteAlways(action))
	}
	return run(ctx, c)
}

// auditPath is the path, or the store, that the second argument means.
func auditPath(c *cli.Context) (target, error) {
	arg := c.Args().Get(1)
	if arg == "" || c.String("store") != "" {
		if arg != "" {
			return locate(c, arg)
		}
		return storeHere(c)
	}
	if isStore(arg) {
		return target{arg: arg}.in(arg, "/")
	}
	return locate(c, arg)
}

// auditTime reads the value of --since or --until.
func (e *env) auditTime(c *cli.Context, flag string) (time.Time, error) {
	if !c.IsSet(flag) {
		return time.Time{}, nil
	}
	m, err := e.moment("audit", "@"+strings.TrimPrefix(c.String(flag), "@"))
	if err == nil && m.Time.IsZero() {
		err = usagef("audit", "--%s wants a time, such as 10m or 2026-01-31T12:00:00Z, not %s", flag, quoteAlways(c.String(flag)))
	}
	return m.Time, err
}

func (e *env) auditEntries(ctx context.Context, c *cli.Context) error {
	if c.Int64("number") < 1 {
		return usagef("audit", "-n wants a number of records from 1")
	}
	t, err := auditPath(c)
	if err != nil {
		return err
	}
	agent, err := agentFlag(c)
	if err != nil {
		return err
	}
	q := audit.Query{Path: t.path, Agent: agent, Operation: catalog.Op(c.String("op"))}
	if p := c.String("path"); p != "" {
		if q.Path, err = control.CleanPath(p); err != nil {
			return err
		}
	}
	if q.Since, err = e.auditTime(c, "since"); err != nil {
		return err
	}
	if q.Until, err = e.auditTime(c, "until"); err != nil {
		return err
	}
	if c.Args().First() == "tail" {
		q.Newest, q.Follow = c.Int64("number"), c.Bool("follow")
	}
	return e.with(ctx, t, true, func(ops control.Ops) error {
		return explain(t, ops.AuditEntries(ctx, q, func(l *audit.Entry) error {
			switch {
			case l == nil:
				return nil
			case c.Bool("json"):
				return e.document(l)
			}
			return e.showEntry(l)
		}))
	})
}

func (e *env) showEntry(l *audit.Entry) error {
	switch {
	case l.Damaged != "":
		_, err := fmt.Fprintf(e.stdout, "%-19s  v%-8d  damaged   up to v%d: %s\n", "", l.Seq, l.Last, l.Damaged)
		return err
	case l.Dropped:
		_, err := fmt.Fprintf(e.stdout, "%s  v%-8d  dropped   only its hash is left: %s\n", formatTime(l.Time), l.Seq, l.Chain)
		return err
	}
	what := ""
	if l.Version > 0 {
		what = fmt.Sprintf("  version %d, %s, %s", l.Version, formatBytes(l.Size), l.SHA256)
		if l.SHA256 == "" {
			what = fmt.Sprintf("  version %d, %s, digest %s", l.Version, formatBytes(l.Size), l.Digest)
		}
	}
	_, err := fmt.Fprintf(e.stdout, "%s  v%-8d  %-8s  %s  %s%s\n", formatTime(l.Time), l.Seq, quoteAlways(string(l.Operation)), e.quote(l.Path),
		who(control.LogEntry{Agent: l.Agent, Program: l.Program, UID: l.UID, PID: l.PID}), what)
	return err
}

// readEvidence reads a small file.
func readEvidence(path string, max int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, max+1))
	if err == nil && int64(len(b)) > max {
		err = fmt.Errorf("%w: %s has more than %d bytes", audit.ErrMalformed, path, max)
	}
	return b, err
}

// auditKeys are the keys to be trusted: those of --key, else those of the store.
func auditKeys(c *cli.Context, store string) ([]note.Verifier, error) {
	if path := c.String("key"); path != "" {
		text, err := readEvidence(path, maxEvidence)
		if err != nil {
			return nil, err
		}
		return audit.ParseKeys(string(text))
	}
	if store == "" {
		return nil, usagef("audit", "--journal and --proof want --key")
	}
	keys, err := audit.ReadKeys(filepath.Join(store, audit.DirName))
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%s: %w: it has no public key; mount it, or run `holdfast audit checkpoint`", store, audit.ErrNotSigned)
	}
	return keys, err
}

func (e *env) auditVerify(ctx context.Context, c *cli.Context) error {
	if path := c.String("proof"); path != "" {
		return e.verifyProof(c, path)
	}
	o := audit.VerifyOptions{JournalDir: c.String("journal")}
	store := ""
	if o.JournalDir == "" {
		t, err := auditPath(c)
		if err != nil {
			return err
		}
		store = t.store
		o.JournalDir, o.AuditDir = filepath.Join(store, "journal"), filepath.Join(store, audit.DirName)
	}
	var err error
	if o.Keys, err = auditKeys(c, store); err != nil {
		return err
	}
	if path := c.String("since-checkpoint"); path != "" {
		if o.Since, err = readEvidence(path, maxEvidence); err != nil {
			return err
		}
	}
	r, err := audit.Verify(ctx, o)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		err = e.document(r)
	} else {
		err = e.showReport(r, o.Since != nil)
	}
	if err == nil && !r.OK {
		err = fmt.Errorf("%w: %d problems; see what `holdfast audit verify` lists", audit.ErrTampered, len(r.Problems)+r.MoreLeft)
	}
	return err
}

func (e *env) showReport(r audit.Report, since bool) error {
	w := tabwriter.NewWriter(e.stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintf(w, "journal\t%d records in %d segments, %s, the newest is record %d\n", r.Records, r.Segments, formatBytes(r.Bytes), r.Last)
	if r.Dropped > 0 {
		fmt.Fprintf(w, "\tof %d records retention has left the hash only\n", r.Dropped)
	}
	if r.SignedAt != nil {
		fmt.Fprintf(w, "signed\tup to record %d, on %s; %d checkpoints hold\n", r.Signed, formatTime(*r.SignedAt), r.Heads)
	} else {
		fmt.Fprintln(w, "signed\tnothing")
	}
	if since && r.Extends {
		fmt.Fprintln(w, "kept\tthe log extends the checkpoint that was kept")
	}
	if r.Torn != "" {
		fmt.Fprintf(w, "torn\t%s\n", quoteAlways(r.Torn))
	}
	for _, p := range r.Problems {
		where := p.File
		if p.Offset > 0 {
			where += fmt.Sprintf(" at byte %d", p.Offset)
		}
		switch {
		case p.Record > 0 && p.Last > p.Record:
			where += fmt.Sprintf(", records %d to %d", p.Record, p.Last)
		case p.Record > 0:
			where += fmt.Sprintf(", record %d", p.Record)
		}
		if p.Time != nil {
			where += ", " + formatTime(*p.Time)
		}
		fmt.Fprintf(w, "%s\t%s: %s\n", p.Kind, where, quoteAlways(p.Details))
	}
	if r.MoreLeft > 0 {
		fmt.Fprintf(w, "\tand %d more\n", r.MoreLeft)
	}
	if r.OK {
		fmt.Fprintln(w, "result\tnothing was changed")
	}
	return w.Flush()
}

// proven is the result of verify --proof.
type proven struct {
	OK       bool          `json:"ok"`
	Signed   uint64        `json:"signed"` // records under the checkpoint of the proof
	SignedAt time.Time     `json:"signed_at"`
	Extends  uint64        `json:"extends,omitempty"` // records under the earlier checkpoint, for a proof that one extends the other
	Entries  []audit.Entry `json:"entries,omitempty"`
}

func (e *env) verifyProof(c *cli.Context, path string) error {
	keys, err := auditKeys(c, "")
	if err != nil {
		return err
	}
	text, err := readEvidence(path, audit.MaxProof)
	if err != nil {
		return err
	}
	res := proven{OK: true}
	if x, extErr := audit.ParseExtension(text); extErr == nil {
		before, after, err := x.Check(keys)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		res.Signed, res.SignedAt, res.Extends = uint64(after.Size), after.Time, uint64(before.Size)
	} else {
		p, err := audit.ParseProof(text)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		got, err := p.Check(keys)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		res.Signed, res.SignedAt, res.Entries = uint64(got.Head.Size), got.Head.Time, got.Entries
	}
	if c.Bool("json") {
		return e.document(res)
	}
	if res.Entries == nil {
		_, err = fmt.Fprintf(e.stdout, "the log of %d records, signed on %s, extends that of %d records\n", res.Signed, formatTime(res.SignedAt), res.Extends)
		return err
	}
	for i := range res.Entries {
		if err := e.showEntry(&res.Entries[i]); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(e.stdout, "is in the log of %d records that was signed on %s\n", res.Signed, formatTime(res.SignedAt))
	return err
}

// evidence writes a text; as JSON, its lines are in one member.
func (e *env) evidence(c *cli.Context, name string, text []byte) error {
	if c.Bool("json") {
		return json.NewEncoder(e.stdout).Encode(map[string]string{name: string(text)})
	}
	_, err := e.stdout.Write(text)
	return err
}

func (e *env) auditCheckpoint(ctx context.Context, c *cli.Context) error {
	t, err := auditPath(c)
	if err != nil {
		return err
	}
	return e.with(ctx, t, false, func(ops control.Ops) error {
		head, err := ops.AuditHead(ctx)
		if err != nil {
			return explain(t, err)
		}
		return e.evidence(c, "checkpoint", head)
	})
}

func (e *env) auditProve(ctx context.Context, c *cli.Context) error {
	if path := c.String("extends"); path != "" {
		old, err := readEvidence(path, maxEvidence)
		if err != nil {
			return err
		}
		t, err := auditPath(c)
		if err != nil {
			return err
		}
		return e.with(ctx, t, false, func(ops control.Ops) error {
			text, err := ops.AuditExtension(ctx, old)
			if err != nil {
				return explain(t, err)
			}
			return e.evidence(c, "proof", text)
		})
	}
	if c.NArg() < 2 {
		return usagef("audit", "prove wants PATH[@VERSION], or --extends FILE")
	}
	t, err := locate(c, c.Args().Get(1))
	if err != nil {
		return err
	}
	return e.with(ctx, t, false, func(ops control.Ops) error {
		t, at, err := e.version(ctx, c, ops, t)
		if err != nil {
			return err
		}
		text, err := ops.AuditProof(ctx, t.path, at)
		if err != nil {
			return explain(t, err)
		}
		return e.evidence(c, "proof", text)
	})
}

func (e *env) auditKey(_ context.Context, c *cli.Context) error {
	t, err := auditPath(c)
	if err != nil {
		return err
	}
	if _, err := auditKeys(c, t.store); err != nil {
		return err
	}
	text, err := readEvidence(filepath.Join(t.store, audit.DirName, "key.pub"), maxEvidence)
	if err != nil {
		return err
	}
	return e.evidence(c, "key", text)
}
