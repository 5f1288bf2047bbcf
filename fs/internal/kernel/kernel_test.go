package kernel

import (
	"math"
	"strings"
	"testing"
	"time"
)

func TestParseInfo(t *testing.T) {
	table := `22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw
36 22 0:45 / /mnt/a\040b\134c\012d rw,nosuid,nodev,noatime shared:2 master:3 - fuse.holdfast /srv/my\040store rw,user_id=0
no mount at all
x 22 0:45 / /mnt rw - fuse.holdfast /s rw
37 22 0:46 / /mnt/b ro - fuse.sshfs host: rw
`
	got, err := parseInfo(strings.NewReader(table))
	if err != nil || len(got) != 3 {
		t.Fatalf("%d mounts (%v), want 3", len(got), err)
	}
	want := Info{ID: 36, Device: "0:45", Dir: "/mnt/a b\\c\nd", Type: "fuse.holdfast", Source: "/srv/my store", Options: "rw,nosuid,nodev,noatime,rw,user_id=0"}
	if got[1] != want {
		t.Errorf("got %+v, want %+v", got[1], want)
	}
	if got[0].IsOurs() || !got[1].IsOurs() || got[2].IsOurs() {
		t.Error("took another filesystem for ours, or ours for another")
	}
	if _, err := parseInfo(strings.NewReader(strings.Repeat("x", 2*maxMountLine))); err == nil {
		t.Error("an endless line is not refused")
	}
}

func FuzzParseInfo(f *testing.F) {
	f.Add(`36 22 0:45 / /mnt/a\040b rw shared:2 - fuse.holdfast /srv rw`)
	f.Add(`36 22 0:45 / \0 rw - x \999 \`)
	f.Add(" - ")
	f.Fuzz(func(t *testing.T, text string) {
		all, err := parseInfo(strings.NewReader(text))
		if err != nil {
			return
		}
		for _, m := range all {
			if len(m.Dir) > len(text) || len(m.Source) > len(text) {
				t.Errorf("grew: %+v", m)
			}
		}
	})
}

func TestTimes(t *testing.T) {
	for _, ns := range []int64{0, 1, -1, 999_999_999, -999_999_999, 1_000_000_000, -1_000_000_000, -1_000_000_001, math.MaxInt64, math.MinInt64, math.MinInt64 + 1} {
		sec, nsec := split(ns)
		if nsec >= nanos {
			t.Errorf("%d: %d nanoseconds", ns, nsec)
		}
		if want := time.Unix(0, ns); int64(sec) != want.Unix() || int(nsec) != want.Nanosecond() {
			t.Errorf("%d is split into %d %d, want %d %d", ns, int64(sec), nsec, want.Unix(), want.Nanosecond())
		}
		if got := Join(sec, nsec); got != ns {
			t.Errorf("%d becomes %d", ns, got)
		}
	}
	for _, c := range []struct {
		sec  int64
		want int64
	}{{math.MaxInt64, math.MaxInt64}, {1 << 40, math.MaxInt64}, {-1 << 40, math.MinInt64}, {math.MinInt64, math.MinInt64}} {
		if got := Join(uint64(c.sec), 5); got != c.want {
			t.Errorf("%d seconds become %d, want %d", c.sec, got, c.want)
		}
	}
	if got := Join(1, math.MaxUint32); got != 2*nanos-1 {
		t.Errorf("too many nanoseconds become %d", got)
	}
}

func TestWithin(t *testing.T) {
	for _, c := range []struct {
		path, dir string
		want      bool
	}{{"/a/b", "/a", true}, {"/a", "/a", true}, {"/ab", "/a", false}, {"/a", "/a/b", false}, {"/a", "/", true}} {
		if got := within(c.path, c.dir); got != c.want {
			t.Errorf("%s within %s: %v", c.path, c.dir, got)
		}
	}
}
