package sqldb

import (
	"context"
	"fmt"
	"strings"

	"zombiezen.com/go/sqlite"
)

// Conn is a connection, lent to the function that Write, Read or Snapshot runs.
type Conn struct {
	c     *sqlite.Conn
	path  string
	stmts map[string]*Stmt
	busy  []*Stmt         // stepped since they were last reset
	ctx   context.Context // of a Read; nil in a Write, which is never torn
	older bool            // see Stmt.Older
}

// rest ends every iteration, so that no statement keeps an old state of the database alive.
func (c *Conn) rest() {
	for i, st := range c.busy {
		st.s.Reset() // reports the error that Step has reported already
		st.busy = false
		c.busy[i] = nil
	}
	c.busy = c.busy[:0]
	c.ctx = nil
}

func (c *Conn) transaction(begin string, fn func(*Conn) error) error {
	if err := c.Prep(begin).Exec(); err != nil {
		return err
	}
	committed := false
	defer func() {
		if !committed && !c.c.AutocommitEnabled() {
			c.ctx = nil
			c.rest()
			_ = c.Prep("ROLLBACK").Exec() // a failure leaves the transaction open, which give sees
		}
	}()
	if err := fn(c); err != nil {
		return err
	}
	ctx := c.ctx
	c.rest() // COMMIT fails while a statement is half way
	if err := c.Prep("COMMIT").Exec(); err != nil {
		return err
	}
	c.ctx = ctx
	committed = true
	return nil
}

// Prep returns the statement for one SQL text, ready to be bound and stepped.
func (c *Conn) Prep(query string) *Stmt {
	st := c.stmts[query]
	if st == nil {
		s, err := c.c.Prepare(query)
		if err != nil {
			return &Stmt{c: c, err: mapErr(c.path, err)}
		}
		st = &Stmt{c: c, s: s, params: s.BindParamCount()}
		c.stmts[query] = st
		return st
	}
	st.err = nil
	if st.busy {
		st.s.Reset()
	}
	if st.params > 0 {
		if err := st.s.ClearBindings(); err != nil {
			st.err = mapErr(c.path, err)
		}
	}
	return st
}

// Script runs statements that return nothing of interest, separated by semicolons; no comment may follow the last. They are not kept.
func (c *Conn) Script(script string) error {
	for script = strings.TrimSpace(script); script != ""; {
		s, trailing, err := c.c.PrepareTransient(script)
		if err != nil {
			return mapErr(c.path, err)
		}
		script = strings.TrimSpace(script[len(script)-trailing:])
		for more := true; more && err == nil; {
			more, err = s.Step()
		}
		s.Finalize() // reports the error that Step has reported already
		if err != nil {
			return mapErr(c.path, err)
		}
	}
	return nil
}

// Changes is the number of rows that the last INSERT, UPDATE or DELETE changed.
func (c *Conn) Changes() int { return c.c.Changes() }

// LastInsertRowID is the rowid of the last row that this connection inserted.
func (c *Conn) LastInsertRowID() int64 { return c.c.LastInsertRowID() }

// Stmt is a prepared statement. The Bind methods return the Stmt for chaining.
type Stmt struct {
	c      *Conn
	s      *sqlite.Stmt
	params int
	steps  uint8
	busy   bool
	err    error
}

// BindInt64 binds an integer to a parameter; parameters count from 1.
func (st *Stmt) BindInt64(param int, v int64) *Stmt {
	if st.err == nil {
		st.s.BindInt64(param, v)
	}
	return st
}

// BindBytes binds a copy of v as a BLOB; nil and empty both bind the empty BLOB, use BindNull for NULL.
func (st *Stmt) BindBytes(param int, v []byte) *Stmt {
	if st.err == nil {
		st.s.BindBytes(param, v)
	}
	return st
}

// BindText binds v as TEXT.
func (st *Stmt) BindText(param int, v string) *Stmt {
	if st.err == nil {
		st.s.BindText(param, v)
	}
	return st
}

// BindNull binds NULL, which every parameter is after Prep.
func (st *Stmt) BindNull(param int) *Stmt {
	if st.err == nil {
		st.s.BindNull(param)
	}
	return st
}

// Step goes to the next row; false at the end, after which (as after an error) the statement starts anew.
func (st *Stmt) Step() (bool, error) {
	if st.err != nil {
		return false, st.err
	}
	if st.c.ctx != nil {
		if st.steps++; st.steps%64 == 0 {
			if err := st.c.ctx.Err(); err != nil {
				return false, err
			}
		}
	}
	if !st.busy {
		st.busy = true
		st.c.busy = append(st.c.busy, st)
	}
	row, err := st.s.Step()
	if err != nil {
		return false, mapErr(st.c.path, err)
	}
	if !row {
		st.reset()
	}
	return row, nil
}

// Exec runs the statement to its end, passing over any rows.
func (st *Stmt) Exec() error {
	for {
		row, err := st.Step()
		if err != nil || !row {
			return err
		}
	}
}

// Done ends an iteration early. It is needed only to let go of the state of the database before Read or Write ends.
func (st *Stmt) Done() error {
	if st.err != nil {
		return st.err
	}
	st.reset()
	return nil
}

func (st *Stmt) reset() {
	st.s.Reset()
	st.busy = false
	if n := len(st.c.busy); n > 0 && st.c.busy[n-1] == st {
		st.c.busy = st.c.busy[:n-1]
		return
	}
	for i, b := range st.c.busy {
		if b == st {
			st.c.busy = append(st.c.busy[:i], st.c.busy[i+1:]...)
			return
		}
	}
}

// Int64 returns an integer column of the current row; columns count from 0. NULL is 0.
func (st *Stmt) Int64(col int) int64 { return st.s.ColumnInt64(col) }

// Text returns a column as a string.
func (st *Stmt) Text(col int) string { return st.s.ColumnText(col) }

// Len is the length in bytes of a BLOB or TEXT column. Check it before AppendBytes when the database is not to be trusted.
func (st *Stmt) Len(col int) int { return st.s.ColumnLen(col) }

// CopyBytes copies a BLOB column into dst and returns the number of bytes copied: the smaller of Len and len(dst).
func (st *Stmt) CopyBytes(col int, dst []byte) int { return st.s.ColumnBytes(col, dst) }

// AppendBytes appends a BLOB column to dst.
func (st *Stmt) AppendBytes(dst []byte, col int) []byte {
	n := st.s.ColumnLen(col)
	at := len(dst)
	if cap(dst)-at < n {
		grown := make([]byte, at, at+n)
		copy(grown, dst)
		dst = grown
	}
	dst = dst[:at+n]
	return dst[:at+st.s.ColumnBytes(col, dst[at:])]
}

// IsNull reports whether a column is NULL.
func (st *Stmt) IsNull(col int) bool { return st.s.ColumnIsNull(col) }

// IsBlob reports whether a column holds a BLOB.
func (st *Stmt) IsBlob(col int) bool { return st.s.ColumnType(col) == sqlite.TypeBlob }

// Older reports whether the database is open read-only and of a version older than Options.Version.
func (st *Stmt) Older() bool { return st.c.older }

// WantBytes copies a BLOB column that must have exactly len(dst) bytes; anything else is ErrCorrupt.
func (st *Stmt) WantBytes(col int, dst []byte) error {
	if st.s.ColumnType(col) != sqlite.TypeBlob || st.s.ColumnLen(col) != len(dst) {
		return fmt.Errorf("%s: %w: column %d should hold %d bytes and holds %d", st.c.path, ErrCorrupt, col, len(dst), st.s.ColumnLen(col))
	}
	st.s.ColumnBytes(col, dst)
	return nil
}
