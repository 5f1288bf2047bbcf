package main

import (
	"context"
	"log/slog"
	"path/filepath"
	"time"

	"holdfast/catalog"
	"holdfast/integrity/audit"
	"holdfast/integrity/view"
	"holdfast/internal/volume"
)

// auditGrace bounds how long the end of a mount waits for the last tree head. What it does not cover the next mount signs.
const auditGrace = 30 * time.Second

// auditor signs what a mount records.
type auditor struct {
	log  *audit.Log // nil when it could not be opened
	err  error      // why
	stop context.CancelFunc
	done chan struct{}
}

// startAuditor opens the audit log of the volume and signs in the background until end. A store whose evidence cannot be written is mounted all the same: that is
// reported as a problem.
func startAuditor(ctx context.Context, vol *volume.Volume, log *slog.Logger) *auditor {
	a := &auditor{done: make(chan struct{})}
	a.log, a.err = audit.Open(ctx, audit.Options{Dir: filepath.Join(vol.Dir(), audit.DirName), Journal: vol.JournalView(), ReadOnly: vol.ReadOnly(), Log: log})
	ctx, a.stop = context.WithCancel(ctx)
	if a.err != nil {
		log.Error("nothing is signed in this mount", "error", a.err)
		close(a.done)
		return a
	}
	go func() {
		defer close(a.done)
		a.log.Run(ctx)
	}()
	return a
}

// evidence is the log as .integrity shows it.
func (a *auditor) evidence() view.Audit {
	if a.log == nil {
		return noEvidence{a.err}
	}
	return a.log
}

// noEvidence stands for an audit log that could not be opened.
type noEvidence struct{ err error }

func (n noEvidence) Head(context.Context) ([]byte, error) { return nil, n.err }

func (n noEvidence) Prove(context.Context, catalog.Seq) (audit.Proof, error) {
	return audit.Proof{}, n.err
}

func (n noEvidence) Entries(context.Context, audit.Query, func(*audit.Entry) error) error {
	return n.err
}

// letGo ends the requests that follow the log, so that nobody waits for them.
func (a *auditor) letGo() {
	if a.log != nil {
		a.log.StopFollowing()
	}
}

// end signs a last tree head, over what is still staged, too. It comes before the volume is closed.
func (a *auditor) end(vol *volume.Volume, log *slog.Logger) {
	a.stop()
	<-a.done
	if a.log == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), auditGrace)
	defer cancel()
	if !vol.ReadOnly() {
		if err := vol.SaveOpen(ctx); err != nil {
			log.Debug("not everything is saved yet", "error", err) // closing the volume tries again, and tells
		}
	}
	if err := a.log.Close(ctx); err != nil {
		log.Error("the newest records are not signed; the next mount signs them", "error", err)
	}
}
