package audit

import (
	"context"
	"encoding/hex"
	"errors"
	"path"
	"strings"
	"time"

	"holdfast/blobstore"
	"holdfast/catalog"
	"holdfast/catalog/journal"
)

// followPause is how often a follower looks for what is new.
const followPause = 200 * time.Millisecond

// Entry is one line of the audit trail: a record of the journal, or one of the versions of a record that has several. The names of its JSON fields are stable.
type Entry struct {
	Seq       catalog.Seq `json:"seq"`
	Time      time.Time   `json:"time"`
	Agent     string      `json:"agent"`
	Program   string      `json:"program"`
	UID       uint32      `json:"uid"`
	PID       uint32      `json:"pid"`
	Operation catalog.Op  `json:"operation"`
	Path      string      `json:"path"` // of the principal object, at the time
	Inode     catalog.Ino `json:"inode"`
	Version   uint64      `json:"version"`          // 0: the record makes none
	Size      int64       `json:"size"`             // of the version
	SHA256    string      `json:"sha256"`           // of the version's content where the journal knows it, else ""
	Digest    string      `json:"digest,omitempty"` // of the version: see docs/format.md
	Chain     string      `json:"chain"`            // the journal's hash up to and with this record
	// Dropped says that compaction has left nothing of the record but number, time and chain.
	Dropped bool `json:"dropped,omitempty"`
	// Damaged says why records Seq to Last cannot be read.
	Damaged string      `json:"damaged,omitempty"`
	Last    catalog.Seq `json:"last,omitempty"`
}

// Query says which entries are meant; the zero value means all there are now.
type Query struct {
	From      catalog.Seq // the first record
	Newest    int64       // only so many of the newest records; 0: all
	Agent     string      // exactly this agent
	Path      string      // cleaned and absolute: at or below it
	Operation catalog.Op
	Since     time.Time // after it
	Until     time.Time // at or before it
	Follow    bool      // wait for what comes
}

// filtered says that the query asks for what a record says.
func (q *Query) filtered() bool {
	return q.Agent != "" || q.Path != "" && q.Path != "/" || q.Operation != ""
}

func (q *Query) match(e *Entry) bool {
	if !q.Since.IsZero() && !e.Time.After(q.Since) {
		return false
	}
	if !q.filtered() {
		return true
	}
	if e.Dropped || q.Agent != "" && e.Agent != q.Agent || q.Operation != "" && e.Operation != q.Operation {
		return false
	}
	if q.Path == "" || q.Path == "/" {
		return true
	}
	rest, ok := strings.CutPrefix(path.Clean("/"+e.Path), q.Path)
	return ok && (rest == "" || rest[0] == '/')
}

// Entries calls fn with each entry that the query means, oldest first, until fn returns an error, which Entries returns. A range that cannot be read is an entry of its
// own, unless the query is for something that it cannot match. With Follow it goes on with what is written until ctx ends, whose error it returns, or the log is closed; fn is called with
// nil when there is nothing more for now.
func (l *Log) Entries(ctx context.Context, q Query, fn func(*Entry) error) error {
	from := max(q.From, 1)
	if !q.Since.IsZero() {
		seq, err := l.j.SeqAt(ctx, q.Since)
		if err != nil {
			return err
		}
		from = max(from, seq+1)
	}
	if last, _ := l.j.End(); q.Newest > 0 && last > catalog.Seq(q.Newest) {
		from = max(from, last-catalog.Seq(q.Newest)+1)
	}
	f := l.j.Follow(from)
	tick := time.NewTicker(followPause)
	defer tick.Stop()
	for {
		done, err := l.read(ctx, f, &q, fn)
		if err != nil || done || !q.Follow {
			return err
		}
		if err := fn(nil); err != nil {
			return err
		}
		for last, _ := l.j.End(); last < f.Next(); last, _ = l.j.End() {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return ctx.Err()
			case <-l.closing:
				return nil
			}
		}
	}
}

// read shows what there is now; done says that nothing that comes can be meant.
func (l *Log) read(ctx context.Context, f *catalog.Follower, q *Query, fn func(*Entry) error) (done bool, err error) {
	stop := errors.New("stop")
	for {
		err := f.Read(ctx, func(e journal.Entry) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			if !q.Until.IsZero() && e.Time > q.Until.UnixNano() {
				return stop
			}
			e.Body, e.BodyDropped = nil, true // its hashes are in the head
			list, err := entriesOf(e)
			if err != nil {
				list = []Entry{{Seq: catalog.Seq(e.Seq), Time: time.Unix(0, e.Time).UTC(), Chain: hex.EncodeToString(e.Chain[:]), Damaged: err.Error(), Last: catalog.Seq(e.Seq)}}
			}
			for i := range list {
				if q.match(&list[i]) {
					if err := fn(&list[i]); err != nil {
						return err
					}
				}
			}
			return nil
		})
		var damage *journal.DamageError
		switch {
		case errors.Is(err, stop):
			return true, nil
		case !errors.As(err, &damage):
			return false, err
		}
		if !q.filtered() {
			e := Entry{Seq: catalog.Seq(damage.First), Last: catalog.Seq(damage.Last), Damaged: damage.Error()}
			if err := fn(&e); err != nil {
				return false, err
			}
		}
		f.SkipTo(catalog.Seq(damage.Last) + 1)
	}
}

// entriesOf reads what a journal entry says. catalog.ErrBadRecord when it is not a record.
func entriesOf(e journal.Entry) ([]Entry, error) {
	line := Entry{Seq: catalog.Seq(e.Seq), Time: time.Unix(0, e.Time).UTC(), Chain: hex.EncodeToString(e.Chain[:])}
	if e.HeadDropped {
		line.Dropped = true
		return []Entry{line}, nil
	}
	r, err := catalog.DecodeRecord(e)
	if err != nil {
		return nil, err
	}
	line.Agent, line.Program, line.UID, line.PID = r.Actor.Agent, r.Actor.Program, r.Actor.UID, r.Actor.PID
	line.Operation, line.Path = r.Op, r.Path
	if len(r.Versions) == 0 {
		line.Inode = principal(&r)
		return []Entry{line}, nil
	}
	list := make([]Entry, len(r.Versions))
	for i := range r.Versions {
		v := &r.Versions[i]
		list[i] = line
		list[i].Inode, list[i].Version, list[i].Size, list[i].Digest = v.Ino, v.Num, v.Size, v.Digest.String()
		if v.Sum != (blobstore.Hash{}) {
			list[i].SHA256 = v.Sum.String()
		}
	}
	return list, nil
}

// principal is the inode that a record is about: the one that its name leads to or led to, else the one whose row it writes.
func principal(r *catalog.Record) catalog.Ino {
	parents := make(map[catalog.Ino]bool, len(r.Dentries))
	for i := range r.Dentries {
		if r.Dentries[i].Ino != 0 {
			return r.Dentries[i].Ino
		}
		parents[r.Dentries[i].Parent] = true
	}
	if len(r.Xattrs) > 0 {
		return r.Xattrs[0].Ino
	}
	for i := range r.Inodes {
		if !parents[r.Inodes[i].Ino] {
			return r.Inodes[i].Ino
		}
	}
	return 0
}
