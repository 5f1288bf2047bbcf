package drill

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"holdfast/catalog"
	"holdfast/internal/sqldb"
)

// name is the file with the content of a blob.
func (s *stored) name() (string, error) {
	id := s.b.id()
	base := filepath.Join(s.dir, "blobs", id[:2], id)
	for _, end := range []string{"", ".zst"} {
		if _, err := os.Lstat(base + end); err == nil {
			return base + end, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return "", fmt.Errorf("blob %s is not in %s: %w", id, s.dir, errAgain)
}

// beside is the name of what lies beside the content.
func (s *stored) beside(end string) string {
	id := s.b.id()
	return filepath.Join(s.dir, "blobs", id[:2], id+end)
}

func (s *stored) load(ctx context.Context) ([]byte, error) {
	if !s.file {
		return s.loadRows(ctx)
	}
	name, err := s.name()
	if err != nil {
		return nil, err
	}
	return os.ReadFile(name)
}

// store puts other bytes in the place of the stored ones; nil removes them, as much or as little of the rest as rest says.
func (s *stored) store(ctx context.Context, p []byte, rest bool) error {
	if !s.file {
		return s.storeRows(ctx, p)
	}
	name, err := s.name()
	if err != nil {
		return err
	}
	if p != nil {
		return overwrite(name, p)
	}
	if rest {
		for _, end := range []string{".json", ".par"} {
			if err := os.Remove(s.beside(end)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return os.Remove(name)
}

// overwrite changes a file in place, as rot and scribbling do.
func overwrite(name string, p []byte) (err error) {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Truncate(int64(len(p))); err != nil {
		return err
	}
	_, err = f.WriteAt(p, 0)
	return err
}

// rowsOf reads the ids that lead to the content of a blob: that of its row, and of its first block when it has blocks.
func rowsOf(c *sqldb.Conn, b *blob) (id, first int64, err error) {
	st := c.Prep("SELECT b.id, l.first FROM blob b LEFT JOIN large l ON l.id = b.id WHERE b.hash = ?").BindBytes(1, b.ref.Hash[:])
	ok, err := st.Step()
	if err == nil && !ok {
		err = fmt.Errorf("blob %s has no row: %w", b.id(), errAgain)
	}
	if err != nil {
		return 0, 0, err
	}
	id = st.Int64(0)
	if !st.IsNull(1) {
		first = st.Int64(1)
	}
	return id, first, st.Done()
}

const blockSize = 128 << 10

func blocksOf(b *blob) int64 { return (b.ref.Size + blockSize - 1) / blockSize }

func (s *stored) loadRows(ctx context.Context) (p []byte, err error) {
	err = withDB(ctx, filepath.Join(s.dir, "blobs.db"), func(c *sqldb.Conn) error {
		id, first, err := rowsOf(c, s.b)
		if err != nil {
			return err
		}
		st := c.Prep("SELECT body FROM blob WHERE id = ?").BindInt64(1, id)
		if first > 0 {
			st = c.Prep("SELECT body FROM block WHERE id >= ? AND id < ? ORDER BY id").BindInt64(1, first).BindInt64(2, first+blocksOf(s.b))
		}
		for {
			ok, err := st.Step()
			if err != nil || !ok {
				return err
			}
			p = st.AppendBytes(p, 0)
		}
	})
	return p, err
}

// storeRows writes bytes back into the rows that they came from, cut where they were. What is missing at the end is missing in the last rows.
func (s *stored) storeRows(ctx context.Context, p []byte) error {
	return withDB(ctx, filepath.Join(s.dir, "blobs.db"), func(c *sqldb.Conn) error {
		id, first, err := rowsOf(c, s.b)
		switch {
		case err != nil:
			return err
		case p == nil:
			return c.Prep("DELETE FROM blob WHERE id = ?").BindInt64(1, id).Exec()
		case first == 0:
			return c.Prep("UPDATE blob SET body = ? WHERE id = ?").BindBytes(1, p).BindInt64(2, id).Exec()
		}
		var lengths []int
		st := c.Prep("SELECT length(body) FROM block WHERE id >= ? AND id < ? ORDER BY id").BindInt64(1, first).BindInt64(2, first+blocksOf(s.b))
		for {
			ok, err := st.Step()
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			lengths = append(lengths, int(st.Int64(0)))
		}
		for i, n := range lengths {
			n = min(n, len(p))
			if err := c.Prep("UPDATE block SET body = ? WHERE id = ?").BindBytes(1, p[:n]).BindInt64(2, first+int64(i)).Exec(); err != nil {
				return err
			}
			p = p[n:]
		}
		return nil
	})
}

// withDB opens a database of a scratch store that is not in use, whatever its version.
func withDB(ctx context.Context, path string, fn func(*sqldb.Conn) error) error {
	if _, err := os.Lstat(path); err != nil {
		return err
	}
	var db *sqldb.DB
	err := sqldb.ErrVersion
	for v := 1; errors.Is(err, sqldb.ErrVersion) && v < 100; v++ {
		db, err = sqldb.Open(ctx, sqldb.Options{Path: path, Version: v})
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", filepath.Base(path), err)
	}
	return errors.Join(db.Write(ctx, fn), db.Close())
}

// content damages the content of a blob of the level.
func (d *draw) content(c contentDamage) error {
	b, err := d.blob(nil)
	if err != nil {
		return err
	}
	s, err := d.own(b)
	if err != nil {
		return err
	}
	return d.apply(s, c)
}

func (d *draw) apply(s stored, c contentDamage) error {
	ctx := context.Background()
	p, err := s.load(ctx)
	if err != nil {
		return err
	}
	if len(p) == 0 {
		return errAgain
	}
	size := int64(len(p))
	out, touched := c.fn(d.rnd, bytes.Clone(p))
	if out != nil && (bytes.Equal(out, p) || same(out, s.b)) {
		return errAgain
	}
	rest := d.rnd.IntN(2) == 0
	if err := s.store(ctx, out, rest); err != nil {
		return err
	}
	d.hit[s.b.id()] = true
	d.in.ids = []string{s.b.id()}
	d.in.heals = promise(s.b, size, touched)
	if !large(s.b) && d.level != catalog.LevelCritical && rest {
		d.in.what = "with all beside it, "
	}
	d.in.what += fmt.Sprintf("%s of blob %s (%d of %d bytes as stored, %s)", c.name, s.b.id()[:12], min(touched, size), size, strings.Join(s.b.paths, " "))
	return nil
}

// tenth damages a tenth of the sectors of a large blob, all over it or in one piece.
func (d *draw) tenth() error {
	b, err := d.blob(large)
	if err != nil {
		return err
	}
	s, err := d.own(b)
	if err != nil {
		return err
	}
	return d.apply(s, contentDamage{"a tenth", func(_ *rand.Rand, p []byte) ([]byte, int64) {
		n := (len(p) + sector - 1) / sector
		k := n / 10
		var hit []int
		if d.rnd.IntN(2) == 0 {
			hit = d.rnd.Perm(n)[:k]
		} else {
			at := d.rnd.IntN(n - k + 1)
			for i := range k {
				hit = append(hit, at+i)
			}
		}
		for _, i := range hit {
			end := min((i+1)*sector, len(p))
			copy(p[i*sector:end], noise(d.rnd, end-i*sector))
		}
		return p, int64(k) * sector
	}})
}

// exchanged gives a blob the content of another one.
func (d *draw) exchanged() error {
	ctx := context.Background()
	a, err := d.blob(nil)
	if err != nil {
		return err
	}
	one, err := d.own(a)
	if err != nil {
		return err
	}
	b, err := d.blob(func(b *blob) bool { return b != a && isFile(d.storage, b) == one.file && large(a) == large(b) })
	if err != nil {
		return err
	}
	two := stored{one.dir, one.file, b}
	p, err := one.load(ctx)
	if err != nil {
		return err
	}
	q, err := two.load(ctx)
	if err != nil {
		return err
	}
	if bytes.Equal(p, q) || len(p) == 0 || len(q) == 0 {
		return errAgain
	}
	if err := errors.Join(one.store(ctx, q, false), two.store(ctx, p, false)); err != nil {
		return err
	}
	d.hit[a.id()], d.hit[b.id()] = true, true
	d.in.ids = []string{a.id(), b.id()}
	d.in.heals = promise(a, 0, 0) && promise(b, 0, 0)
	d.in.what = "blobs " + a.id()[:12] + " and " + b.id()[:12] + " exchanged"
	return nil
}

// sidecar damages what describes a blob.
func (d *draw) sidecar() error {
	b, err := d.blob(nil)
	if err != nil {
		return err
	}
	s, err := d.own(b)
	if err != nil {
		return err
	}
	d.in.ids, d.in.heals = []string{b.id()}, true
	d.hit[b.id()] = true
	if !s.file {
		return d.sidecarRow(b)
	}
	name := s.beside(".json")
	p, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	was := bytes.Clone(p)
	how := d.rnd.IntN(7)
	switch how {
	case 0:
		p, _ = flipped(d.rnd, p)
	case 1:
		p, _ = truncated(d.rnd, p)
	case 2:
		p = nil
	case 3:
		p = noise(d.rnd, 1+d.rnd.IntN(4000))
	case 4: // that of another blob, which is intact in itself
		other, err := d.blob(func(o *blob) bool { return o != b && isFile(d.storage, o) })
		if err != nil {
			return err
		}
		so := stored{s.dir, true, other}
		if p, err = os.ReadFile(so.beside(".json")); err != nil {
			return err
		}
	case 5: // a number in it
		i := bytes.Index(p, []byte(`"size":`)) + len(`"size":`)
		p = append(append(bytes.Clone(p[:i]), strconv.Itoa(d.rnd.IntN(1<<30))...), p[i+bytes.IndexByte(p[i:], ','):]...)
	case 6: // its level
		p = bytes.Replace(p, []byte(`"integrity_level":"`+b.level), []byte(`"integrity_level":"none`), 1)
	}
	if p != nil && bytes.Equal(p, was) {
		return errAgain
	}
	d.in.what = fmt.Sprintf("sidecar of blob %s, way %d", b.id()[:12], how)
	if p == nil {
		return os.Remove(name)
	}
	return overwrite(name, p)
}

// sidecarRow changes a column of a blob's row.
func (d *draw) sidecarRow(b *blob) error {
	columns := []string{"size", "stored", "zstd", "level", "version", "time", "backups", "last_backup", "sum"}
	col := columns[d.rnd.IntN(len(columns))]
	d.in.what = fmt.Sprintf("row of blob %s: column %s", b.id()[:12], col)
	return withDB(context.Background(), filepath.Join(d.dir, "blobs.db"), func(c *sqldb.Conn) error {
		return c.Prep("UPDATE blob SET "+col+" = ifnull("+col+", 0) + ? WHERE hash = ?").BindInt64(1, 1+int64(d.rnd.IntN(1<<20))).BindBytes(2, b.ref.Hash[:]).Exec()
	})
}

// parity damages the parity of a blob.
func (d *draw) parity() error {
	b, err := d.blob(large)
	if err != nil {
		return err
	}
	s, err := d.own(b)
	if err != nil {
		return err
	}
	d.in.ids, d.in.heals, d.in.noState = nil, true, true
	d.hit[b.id()] = true
	c := contentDamages()[d.rnd.IntN(len(contentDamages()))]
	d.in.what = "parity of blob " + b.id()[:12] + ": " + c.name
	if s.file {
		return d.damageFile(s.beside(".par"), c)
	}
	return withDB(context.Background(), filepath.Join(d.dir, "blobs.db"), func(conn *sqldb.Conn) error {
		st := conn.Prep("SELECT n, body FROM parity WHERE hash = ? ORDER BY n LIMIT 1 OFFSET ?").BindBytes(1, b.ref.Hash[:]).BindInt64(2, int64(d.rnd.IntN(2)))
		ok, err := st.Step()
		if err != nil || !ok {
			return errors.Join(err, errAgain)
		}
		n, p := st.Int64(0), st.AppendBytes(nil, 1)
		if err := st.Done(); err != nil {
			return err
		}
		was := bytes.Clone(p)
		if p, _ = c.fn(d.rnd, p); p == nil {
			return conn.Prep("DELETE FROM parity WHERE hash = ? AND n = ?").BindBytes(1, b.ref.Hash[:]).BindInt64(2, n).Exec()
		}
		if bytes.Equal(p, was) {
			return errAgain
		}
		return conn.Prep("UPDATE parity SET body = ? WHERE hash = ? AND n = ?").BindBytes(1, p).BindBytes(2, b.ref.Hash[:]).BindInt64(3, n).Exec()
	})
}

// second damages the second copy of a blob, or what describes it.
func (d *draw) second() error {
	b, err := d.blob(nil)
	if err != nil {
		return err
	}
	s, err := d.copyOf(b)
	if err != nil {
		return err
	}
	if s.file && d.rnd.IntN(4) == 0 {
		d.hit[b.id()] = true
		d.in.heals, d.in.noState = true, true
		c := contentDamages()[d.rnd.IntN(len(contentDamages()))]
		d.in.what = "sidecar of the second copy of blob " + b.id()[:12] + ": " + c.name
		return d.damageFile(s.beside(".json"), c)
	}
	c := contentDamages()[d.rnd.IntN(len(contentDamages()))]
	err = d.apply(s, c)
	d.in.what = "second copy: " + d.in.what
	d.in.ids, d.in.heals, d.in.noState = nil, true, true
	return err
}

// damageFile damages a file in place.
func (d *draw) damageFile(name string, c contentDamage) error {
	p, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(p) == 0 {
		return errAgain
	}
	if err != nil {
		return err
	}
	out, _ := c.fn(d.rnd, bytes.Clone(p))
	switch {
	case out == nil:
		return os.Remove(name)
	case bytes.Equal(out, p):
		return errAgain
	}
	return overwrite(name, out)
}
