package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"holdfast/catalog"
	"holdfast/integrity"
	"holdfast/internal/control"
	"holdfast/internal/volume"
)

// The operations of integrity.
const (
	opCheck    = "integrity.check"
	opStatus   = "integrity.status"
	opScrub    = "integrity.scrub"
	opRecover  = "integrity.recover"
	opDamaged  = "integrity.damaged"
	opComplete = "integrity.complete"
	opEvents   = "integrity.events"
	opFailures = "integrity.failures"
	opLevel    = "integrity.level"
)

type checkArgs struct {
	Path     string `json:"path"` // "": the whole store
	Versions bool   `json:"versions"`
	Repair   bool   `json:"repair"`
	Passed   bool   `json:"passed"`
}

// checkLine is one line of the answer to opCheck: a result, or last the summary.
type checkLine struct {
	Result  *integrity.Result  `json:"result,omitempty"`
	Summary *integrity.Summary `json:"summary,omitempty"`
}

type scrubArgs struct {
	Action string `json:"action"` // start, pause, resume, stop, status, wait
}

type recoverArgs struct {
	Path     string             `json:"path"`
	Strategy integrity.Strategy `json:"strategy"`
	DryRun   bool               `json:"dry_run"`
	Versions bool               `json:"versions"`
}

type completeArgs struct {
	ID   string `json:"id"`
	File string `json:"file"` // absolute
}

type failuresArgs struct {
	After int64 `json:"after"`
}

type levelArgs struct {
	Path  string `json:"path"`
	Set   string `json:"set"`   // "": only say what it is
	Unset bool   `json:"unset"` // as above the path again
}

// levelResult is what level says.
type levelResult struct {
	Path  string `json:"path"`
	Level string `json:"level"`
	Own   bool   `json:"own"` // the path has it itself; otherwise it is that of a directory above
}

func integrityOperations(vol *volume.Volume, e *integrity.Engine) []control.Operation {
	return []control.Operation{
		control.NewOperation(opCheck, func(ctx context.Context, _ control.Caller, a checkArgs, send func(any) error) error {
			o := integrity.CheckOptions{Versions: a.Versions, Repair: a.Repair, Passed: a.Passed}
			each := func(r integrity.Result) error { return send(checkLine{Result: &r}) }
			var sum integrity.Summary
			var err error
			if a.Path == "" {
				sum, err = e.CheckStore(ctx, o, each)
			} else {
				sum, err = e.Check(ctx, a.Path, o, each)
			}
			if err != nil {
				return err
			}
			return send(checkLine{Summary: &sum})
		}),
		control.NewOperation(opStatus, func(ctx context.Context, _ control.Caller, _ struct{}, send func(any) error) error {
			s, err := e.Status(ctx)
			if err != nil {
				return err
			}
			return send(s)
		}),
		control.NewOperation(opScrub, func(ctx context.Context, _ control.Caller, a scrubArgs, send func(any) error) error {
			return scrubOperation(ctx, e.Scrubber(), a.Action, send)
		}),
		control.NewOperation(opRecover, func(ctx context.Context, _ control.Caller, a recoverArgs, send func(any) error) error {
			r, err := e.Recover(ctx, a.Path, integrity.RecoverOptions{Strategy: a.Strategy, DryRun: a.DryRun, Versions: a.Versions})
			if len(r.Attempts) > 0 || err == nil {
				err = errors.Join(send(r), err)
			}
			return err
		}),
		control.NewOperation(opDamaged, func(ctx context.Context, _ control.Caller, _ struct{}, send func(any) error) error {
			return e.Damaged(ctx, func(d integrity.Damaged) error { return send(d) })
		}),
		control.NewOperation(opComplete, func(ctx context.Context, who control.Caller, a completeArgs, _ func(any) error) error {
			return complete(ctx, e, who, a)
		}),
		control.NewOperation(opEvents, func(ctx context.Context, _ control.Caller, _ struct{}, send func(any) error) error {
			for after := e.LastEvent(); ; {
				list, err := e.Events(ctx, after, 100)
				if errors.Is(err, catalog.ErrClosed) {
					return nil
				}
				if err != nil {
					return err
				}
				for i := range list {
					if err := send(list[i]); err != nil {
						return err
					}
					after = list[i].Seq
				}
			}
		}),
		control.NewOperation(opFailures, func(ctx context.Context, _ control.Caller, a failuresArgs, send func(any) error) error {
			return e.Failures(ctx, a.After, func(_ int64, r integrity.Result) error { return send(r) })
		}),
		control.NewOperation(opLevel, func(ctx context.Context, who control.Caller, a levelArgs, send func(any) error) error {
			r, err := levelOperation(ctx, vol, who, a)
			if err != nil {
				return err
			}
			return send(r)
		}),
	}
}

func scrubOperation(ctx context.Context, s *integrity.Scrubber, action string, send func(any) error) error {
	var err error
	switch action {
	case "start":
		err = s.Start(ctx)
	case "pause":
		err = s.Pause(ctx)
	case "resume":
		err = s.Resume(ctx)
	case "stop":
		err = s.Stop(ctx)
	case "wait":
		err = s.Wait(ctx)
	case "status":
	default:
		err = fmt.Errorf("%w: there is no %q", control.ErrRequest, action)
	}
	if err != nil {
		return err
	}
	st, err := s.Status(ctx)
	if err != nil {
		return err
	}
	return send(st)
}

// complete reads the file that the caller names. Only the owner of the daemon and root get this far, but the daemon may be root where the caller is not: who cannot
// read the file does not learn from here what is in it.
func complete(ctx context.Context, e *integrity.Engine, who control.Caller, a completeArgs) error {
	if !filepath.IsAbs(a.File) {
		return fmt.Errorf("%w: the file is not an absolute path", control.ErrRequest)
	}
	f, err := os.Open(a.File)
	if err != nil {
		return err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return errors.Join(err, fmt.Errorf("%s: %w: it is no regular file", a.File, catalog.ErrInvalid))
	}
	return e.Complete(ctx, a.ID, f)
}

func levelOperation(ctx context.Context, vol *volume.Volume, who control.Caller, a levelArgs) (levelResult, error) {
	row, err := vol.Resolve(ctx, a.Path)
	if err != nil {
		return levelResult{}, err
	}
	actor := catalog.Actor{Agent: who.Agent, Program: who.Program, UID: who.UID, PID: who.PID}
	switch {
	case a.Set != "":
		err = vol.SetXattr(ctx, actor, row.Ino, catalog.LevelXattr, []byte(a.Set), 0)
	case a.Unset:
		if err = vol.RemoveXattr(ctx, actor, row.Ino, catalog.LevelXattr); errors.Is(err, catalog.ErrNoXattr) {
			err = nil
		}
	}
	if err != nil {
		return levelResult{}, err
	}
	r := levelResult{Path: a.Path}
	if _, err := vol.GetXattr(ctx, row.Ino, catalog.LevelXattr); err == nil {
		r.Own = true
	}
	r.Level, err = vol.Catalog().Level(ctx, row.Ino)
	return r, err
}
