package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"holdfast/catalog"
)

func agent(n int) catalog.Actor {
	return catalog.Actor{Agent: fmt.Sprintf("agent-%d", n), Program: "go", PID: uint32(n)}
}

func shared(t *testing.T, v *Volume, content string) catalog.Ino {
	t.Helper()
	row, err := v.WritePath(t.Context(), actor(), 0, "f", 0o644, strings.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	return row.Ino
}

func openBy(t *testing.T, v *Volume, who int, ino catalog.Ino, flags OpenFlags) *Handle {
	t.Helper()
	flags.Read, flags.Write = true, true
	h, err := v.OpenFile(t.Context(), agent(who), ino, flags)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func write(t *testing.T, h *Handle, off int64, text string) {
	t.Helper()
	if _, err := h.WriteAt(t.Context(), []byte(text), off, WriteFlags{}); err != nil {
		t.Fatal(err)
	}
}

func shut(t *testing.T, h *Handle) error {
	t.Helper()
	err := h.Flush(t.Context())
	h.Close(t.Context())
	return err
}

func conflicts(t *testing.T, v *Volume) []catalog.Conflict {
	t.Helper()
	list, err := v.Conflicts(t.Context(), 0, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// textAt is the content of a version of an inode.
func textAt(t *testing.T, v *Volume, ino catalog.Ino, num uint64) string {
	t.Helper()
	ver, err := v.cat.Version(t.Context(), ino, num)
	if err != nil {
		t.Fatal(err)
	}
	m, err := v.contentAt(t.Context(), ino, ver.Seq)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := v.copyOut(t.Context(), m, 0, ver.Size, &out); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestConflictOfTwoHandles(t *testing.T) {
	for name, flags := range map[string]OpenFlags{"overwrite": {}, "truncate": {Truncate: true}} {
		t.Run(name, func(t *testing.T) {
			v := openStore(t, newStore(t, StorageHybrid))
			defer closeStore(t, v)
			ino := shared(t, v, "the plan")
			a, b := openBy(t, v, 1, ino, OpenFlags{}), openBy(t, v, 2, ino, OpenFlags{})
			if flags.Truncate {
				if err := a.Truncate(t.Context(), 0); err != nil {
					t.Fatal(err)
				}
			}
			write(t, a, 0, "one's pl")
			if err := shut(t, a); err != nil {
				t.Fatal(err)
			}
			if flags.Truncate {
				if err := b.Truncate(t.Context(), 0); err != nil {
					t.Fatal(err)
				}
			}
			write(t, b, 0, "two's pl")
			if err := shut(t, b); err != nil {
				t.Fatal(err)
			}
			list := conflicts(t, v)
			if len(list) != 1 {
				t.Fatalf("%+v", list)
			}
			x := list[0]
			if x.Ino != ino || x.Path != "/f" || x.Lost != 2 || x.Won != 3 || x.LostBy != agent(1) || x.WonBy != agent(2) || x.Side != 0 {
				t.Fatalf("%+v", x)
			}
			if got := textAt(t, v, ino, x.Lost); got != "one's pl" {
				t.Errorf("the version that lost is %q", got)
			}
			if got := textAt(t, v, ino, x.Won); got != "two's pl" {
				t.Errorf("the version that won is %q", got)
			}
		})
	}
}

func TestNoConflict(t *testing.T) {
	ctx := context.Background()
	for name, run := range map[string]func(t *testing.T, v *Volume, ino catalog.Ino){
		"one after the other": func(t *testing.T, v *Volume, ino catalog.Ino) {
			for i := range 3 {
				h := openBy(t, v, i, ino, OpenFlags{})
				write(t, h, 0, fmt.Sprint(i))
				if err := shut(t, h); err != nil {
					t.Fatal(err)
				}
			}
		},
		"appends": func(t *testing.T, v *Volume, ino catalog.Ino) {
			a, b := openBy(t, v, 1, ino, OpenFlags{}), openBy(t, v, 2, ino, OpenFlags{})
			for i, h := range []*Handle{a, b, a, b, b, a} {
				row, err := v.Get(ctx, ino)
				if err != nil {
					t.Fatal(err)
				}
				write(t, h, row.Size, fmt.Sprintf("line %d\n", i))
				if err := h.Flush(ctx); err != nil {
					t.Fatal(err)
				}
			}
			a.Close(ctx)
			b.Close(ctx)
		},
		"appends as whole pages": func(t *testing.T, v *Volume, ino catalog.Ino) {
			a, b := openBy(t, v, 1, ino, OpenFlags{}), openBy(t, v, 2, ino, OpenFlags{})
			text := "the plan"
			for i, h := range []*Handle{a, b, a} {
				text += fmt.Sprintf("line %d\n", i)
				if _, err := b.WriteAt(ctx, []byte(text), 0, WriteFlags{Cached: true}); err != nil {
					t.Fatal(err)
				}
				if err := h.Flush(ctx); err != nil {
					t.Fatal(err)
				}
				if ver, err := v.cat.Version(ctx, ino, uint64(i+2)); err != nil || ver.Actor != h.who {
					t.Fatalf("version %d is by %+v (%v), %+v closed the file", i+2, ver.Actor, err, h.who)
				}
			}
			a.Close(ctx)
			b.Close(ctx)
		},
		"append to what was shortened": func(t *testing.T, v *Volume, ino catalog.Ino) {
			a, b := openBy(t, v, 1, ino, OpenFlags{}), openBy(t, v, 2, ino, OpenFlags{})
			if err := a.Truncate(ctx, 3); err != nil {
				t.Fatal(err)
			}
			if err := shut(t, a); err != nil {
				t.Fatal(err)
			}
			write(t, b, 3, " more")
			if err := shut(t, b); err != nil {
				t.Fatal(err)
			}
			if got := textAt(t, v, ino, 3); got != "the more" {
				t.Errorf("%q", got)
			}
		},
		"different bytes": func(t *testing.T, v *Volume, ino catalog.Ino) {
			a, b := openBy(t, v, 1, ino, OpenFlags{}), openBy(t, v, 2, ino, OpenFlags{})
			write(t, a, 0, "THE")
			if err := shut(t, a); err != nil {
				t.Fatal(err)
			}
			write(t, b, 4, "PLAN")
			if err := shut(t, b); err != nil {
				t.Fatal(err)
			}
		},
		"read only": func(t *testing.T, v *Volume, ino catalog.Ino) {
			r, err := v.OpenFile(ctx, agent(3), ino, OpenFlags{Read: true})
			if err != nil {
				t.Fatal(err)
			}
			h := openBy(t, v, 1, ino, OpenFlags{Truncate: true})
			write(t, h, 0, "x")
			if err := errors.Join(shut(t, h), r.Flush(ctx)); err != nil {
				t.Fatal(err)
			}
			r.Close(ctx)
		},
	} {
		t.Run(name, func(t *testing.T) {
			v := openStore(t, newStore(t, StorageHybrid))
			defer closeStore(t, v)
			run(t, v, shared(t, v, "the plan"))
			if list := conflicts(t, v); len(list) > 0 {
				t.Fatalf("%+v", list)
			}
		})
	}
}

// Programs that take turns with locks and sync each time, as databases do, get one conflict at their close, not one for each turn.
func TestConflictsOfSyncs(t *testing.T) {
	ctx := context.Background()
	v := openStore(t, newStore(t, StorageHybrid))
	defer closeStore(t, v)
	ino := shared(t, v, "counter 0")
	a, b := openBy(t, v, 1, ino, OpenFlags{}), openBy(t, v, 2, ino, OpenFlags{})
	for i := range 10 {
		h := []*Handle{a, b}[i%2]
		write(t, h, 8, fmt.Sprint((i+1)%10))
		if err := h.Fsync(ctx, false); err != nil {
			t.Fatal(err)
		}
	}
	if list := conflicts(t, v); len(list) != 0 {
		t.Fatalf("%+v", list)
	}
	if err := errors.Join(shut(t, a), shut(t, b)); err != nil {
		t.Fatal(err)
	}
	list := conflicts(t, v)
	if len(list) != 2 || list[0].Lost != 3 || list[0].Won != 4 || list[1].Lost != 2 || list[1].Won != 3 {
		t.Fatalf("%+v", list)
	}
}

// recorder is an Invalidator that says what it was told.
type recorder struct{ said chan string }

func (r recorder) InvalidateInode(ino catalog.Ino) { r.said <- fmt.Sprint("inode ", ino) }
func (r recorder) InvalidateEntry(parent catalog.Ino, name string) {
	r.said <- fmt.Sprint("entry ", parent, name)
}

func TestStrictDirectory(t *testing.T) {
	ctx := context.Background()
	for _, how := range []string{"close", "sync"} {
		t.Run(how, func(t *testing.T) {
			dir := newStore(t, StorageHybrid)
			v := openStore(t, dir)
			said := recorder{make(chan string, 10)}
			v.SetInvalidator(said)
			if err := v.SetXattr(ctx, actor(), catalog.Root, catalog.StrictXattr, []byte("1"), 0); err != nil {
				t.Fatal(err)
			}
			ino := shared(t, v, "the plan of all")
			<-said.said
			<-said.said
			a, b := openBy(t, v, 1, ino, OpenFlags{}), openBy(t, v, 2, ino, OpenFlags{})
			write(t, a, 0, "one")
			if err := a.Flush(ctx); err != nil {
				t.Fatal(err)
			}
			write(t, b, 0, "two")
			write(t, b, 20, strings.Repeat("long", 50_000))
			var err error
			if how == "close" {
				err = b.Flush(ctx)
			} else {
				err = b.Fsync(ctx, false)
			}
			if !errors.Is(err, catalog.ErrStale) || !errors.Is(err, ErrConflict) {
				t.Fatal("the second close:", err)
			}
			for range 2 {
				if s := <-said.said; s != "entry 1f" && s != fmt.Sprint("inode ", ino) {
					t.Fatal("the kernel was told", s)
				}
			}
			list := conflicts(t, v)
			if len(list) != 1 {
				t.Fatalf("%+v", list)
			}
			x := list[0]
			if x.Ino != ino || x.Side == 0 || x.Lost != 1 || x.Won != 2 || x.LostBy != agent(2) || x.WonBy != agent(1) {
				t.Fatalf("%+v", x)
			}
			want := "two plan of all\x00\x00\x00\x00\x00" + strings.Repeat("long", 50_000)
			if got := textAt(t, v, x.Side, 1); got != want {
				t.Errorf("kept aside: %q", got[:min(len(got), 40)])
			}
			var out bytes.Buffer
			if err := v.ReadPath(ctx, "f", Moment{}, &out); err != nil || out.String() != "one plan of all" {
				t.Fatalf("%v: the file is %q", err, out.String())
			}
			// Who was told may go on, upon what the other wrote.
			write(t, b, 0, "TWO")
			if err := b.Flush(ctx); err != nil {
				t.Fatal(err)
			}
			a.Close(ctx)
			b.Close(ctx)
			closeStore(t, v)
			v = openStore(t, dir)
			defer closeStore(t, v)
			out.Reset()
			if err := v.ReadPath(ctx, "f", Moment{}, &out); err != nil || out.String() != "TWO plan of all" {
				t.Fatalf("%v: the file is %q", err, out.String())
			}
			if got := textAt(t, v, x.Side, 1); got != want || len(conflicts(t, v)) != 1 {
				t.Error("what was kept aside is gone after a restart")
			}
		})
	}
}

func TestStrictIsOneOrZero(t *testing.T) {
	v := openStore(t, newStore(t, StorageHybrid))
	defer closeStore(t, v)
	for _, bad := range []string{"", "true", "yes", "2", "1\n"} { // whoever writes that believes that it is strict
		if err := v.SetXattr(t.Context(), actor(), catalog.Root, catalog.StrictXattr, []byte(bad), 0); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// A file below a strict directory can be let off.
func TestStrictIsInherited(t *testing.T) {
	ctx := context.Background()
	v := openStore(t, newStore(t, StorageHybrid))
	defer closeStore(t, v)
	ino := shared(t, v, "x")
	for _, step := range []struct {
		ino   catalog.Ino
		value string
		want  bool
	}{{ino, "0", false}, {catalog.Root, "1", false}, {ino, "1", true}, {catalog.Root, "0", true}} {
		if err := v.SetXattr(ctx, actor(), step.ino, catalog.StrictXattr, []byte(step.value), 0); err != nil {
			t.Fatal(err)
		}
		if got, err := v.cat.Strict(ctx, ino); err != nil || got != step.want {
			t.Fatalf("%+v: %v %v", step, got, err)
		}
	}
}

// byteModel knows of each byte of a file which version, and whose handle, changed it last.
type byteModel struct {
	size  int64
	ver   [300]uint64
	by    [300]*Handle
	dirty [300]bool // written since the last commit
	now   int64     // staged size
	limit int64     // the lowest that it was
	text  [300]byte // what was written last, and before the last commit
	saved [300]byte
}

// commit returns the newest version of another handle, after base, of which it changes a byte.
func (m *byteModel) commit(h *Handle, base, ver uint64) (lost uint64) {
	adds := m.limit >= m.size // only behind what is there: nothing is buried
	for i := range m.size {
		adds = adds && !m.dirty[i]
	}
	for i := range m.dirty {
		at := int64(i)
		if m.dirty[i] || m.limit < m.size && at >= m.limit || at >= m.size && at < m.now {
			if !adds && m.by[i] != h && m.ver[i] > base {
				lost = max(lost, m.ver[i])
			}
			m.ver[i], m.by[i] = ver, h
		}
	}
	clear(m.dirty[:])
	m.size, m.limit, m.saved = m.now, m.now, m.text
	return lost
}

// write returns bytes that differ from all that was there.
func (m *byteModel) write(off, n int64, from byte) string {
	for bytes.IndexByte(m.text[off:off+n], from) >= 0 || bytes.IndexByte(m.saved[off:off+n], from) >= 0 {
		from++
	}
	for i := off; i < off+n; i++ {
		m.dirty[i], m.text[i] = true, from
	}
	m.now = max(m.now, off+n)
	return strings.Repeat(string([]byte{from}), int(n))
}

func (m *byteModel) truncate(to int64) {
	clear(m.dirty[to:])
	m.now, m.limit = to, min(m.limit, to)
}

// TestConflictRandom lets three handles change, sync and close one file in any order. Each writes bytes of its own, so that every overlap is a change, and commits
// before the next one writes.
func TestConflictRandom(t *testing.T) {
	ctx := context.Background()
	r := seeded(t)
	v := openStore(t, newStore(t, StorageHybrid))
	defer closeStore(t, v)
	ino := shared(t, v, "start")
	m := &byteModel{size: 5, now: 5, limit: 5}
	ver := uint64(1)
	handles, bases := make([]*Handle, 3), make([]uint64, 3)
	var want []catalog.Conflict
	for range 600 {
		i := r.IntN(3)
		if handles[i] == nil {
			handles[i], bases[i] = openBy(t, v, i, ino, OpenFlags{}), ver
			continue
		}
		h := handles[i]
		changed := false
		for range r.IntN(3) {
			if r.IntN(5) == 0 {
				to := r.Int64N(250)
				changed = changed || to != m.now
				m.truncate(to)
				if err := h.Truncate(ctx, to); err != nil {
					t.Fatal(err)
				}
				continue
			}
			off, n := r.Int64N(200), 1+r.Int64N(40)
			if r.IntN(3) == 0 {
				off = min(m.now, 250)
			}
			write(t, h, off, m.write(off, n, byte(1+i*80)))
			changed = true
		}
		if changed {
			ver++
			if lost := m.commit(h, bases[i], ver); lost > 0 {
				want = append(want, catalog.Conflict{Ino: ino, Lost: lost, Won: ver, WonBy: agent(i)})
			}
			bases[i] = ver
		}
		if err := h.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		if r.IntN(4) == 0 {
			h.Close(ctx)
			handles[i] = nil
		}
		if open := handles[0] != nil || handles[1] != nil || handles[2] != nil; !open {
			clear(m.ver[:])
		}
	}
	for _, h := range handles {
		if h != nil {
			h.Close(ctx)
		}
	}
	got := conflicts(t, v)
	for i, w := range want {
		if i == len(got) || got[i].Lost != w.Lost || got[i].Won != w.Won || got[i].WonBy != w.WonBy {
			t.Fatalf("conflict %d of %d: %+v, want %+v", i, len(want), got[i:min(i+1, len(got))], w)
		}
	}
	if len(got) != len(want) || len(want) < 20 {
		t.Fatalf("%d conflicts, want %d", len(got), len(want))
	}
}
