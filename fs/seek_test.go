package fs_test

import (
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func seek(f *os.File, off int64, whence int) (int64, error) {
	return unix.Seek(int(f.Fd()), off, whence)
}

func testSeekHole(t *testing.T, p place) {
	const mb = 1 << 20
	f := open(t, p.path("f"), os.O_CREATE|os.O_RDWR)
	_, err := f.WriteAt(pattern(mb), 2*mb)
	check(t, err)
	check(t, f.Truncate(4*mb))
	verify := func(when string) {
		t.Helper()
		for _, c := range []struct {
			whence     int
			from, want int64
		}{
			{unix.SEEK_DATA, 0, 2 * mb}, {unix.SEEK_HOLE, 0, 0}, {unix.SEEK_HOLE, 2 * mb, 3 * mb}, {unix.SEEK_DATA, 2*mb + 5, 2*mb + 5},
			{unix.SEEK_HOLE, 3 * mb, 3 * mb}, {unix.SEEK_HOLE, 4*mb - 1, 4*mb - 1},
		} {
			got, err := seek(f, c.from, c.whence)
			if err != nil || got != c.want {
				t.Errorf("%s: seek %d from %d: %d (%v), want %d", when, c.whence, c.from, got, err, c.want)
			}
		}
		for _, off := range []int64{3 * mb, 4 * mb, 5 * mb} {
			_, err := seek(f, off, unix.SEEK_DATA)
			wantErrno(t, when+": data behind the last", err, unix.ENXIO)
		}
		_, err := seek(f, 5*mb, unix.SEEK_HOLE)
		wantErrno(t, when+": hole behind the end", err, unix.ENXIO)
	}
	verify("unflushed")
	check(t, f.Sync())
	verify("committed")
	f = open(t, p.path("f"), os.O_RDONLY)
	verify("reopened")
}

// testSeekWhileWriting: what was just written and is still in the kernel's cache must never be called a hole, and looking for holes while
// others write must not stop anybody.
func testSeekWhileWriting(t *testing.T, p place) {
	const step, steps = 64 << 10, 60
	f := open(t, p.path("f"), os.O_CREATE|os.O_RDWR)
	check(t, f.Truncate(2*step*steps))
	var others sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		others.Go(func() {
			r, err := os.Open(p.path("f"))
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Close()
			for {
				select {
				case <-stop:
					return
				default:
				}
				for off := int64(0); ; {
					data, err := seek(r, off, unix.SEEK_DATA)
					if err != nil {
						break
					}
					if off, err = seek(r, data, unix.SEEK_HOLE); err != nil {
						break
					}
				}
			}
		})
	}
	block := pattern(step)
	for i := range int64(steps) {
		at := 2 * step * i
		_, err := f.WriteAt(block, at)
		check(t, err)
		if got, err := seek(f, at, unix.SEEK_DATA); err != nil || got != at {
			t.Errorf("data that was just written at %d is found at %d (%v)", at, got, err)
		}
		if got, err := seek(f, at, unix.SEEK_HOLE); err != nil || got < at+step {
			t.Errorf("data that was just written at %d ends at %d (%v)", at, got, err)
		}
	}
	// Behind the end that the store knows of.
	end := int64(2 * step * steps)
	_, err := f.WriteAt(block, end+step)
	check(t, err)
	if got, err := seek(f, end, unix.SEEK_DATA); err != nil || got > end+step {
		t.Errorf("data behind the old end is found at %d (%v), want %d at most", got, err, end+step)
	}
	close(stop)
	others.Wait()
}
