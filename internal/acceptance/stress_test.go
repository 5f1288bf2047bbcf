//go:build system

package acceptance

import (
	"regexp"
	"strings"
	"testing"
)

// stressLeftOut are the stressors of stress-ng's filesystem class that do not run, with the reason for each.
func stressLeftOut() map[string]string {
	return map[string]string{
		"bind-mount":  "stress-ng itself disables it: it may hang the machine",
		"binderfs":    "mounts Android's binder filesystem; it does not touch the filesystem under test",
		"fiemap":      "FUSE has no FS_IOC_FIEMAP, and the stressor then does nothing; TestFsx walks files by SEEK_HOLE",
		"inode-flags": "FUSE offers no FS_IOC_SETFLAGS here, and the stressor then does nothing",
		"eventfd":     "uses event descriptors; it does not touch the filesystem under test",
		"io":          "calls syncfs on every mount of the machine and takes an interrupted call for a failure, as later releases do not; FUSE servers see no syncfs",
		"procfs":      "reads /proc; it does not touch the filesystem under test",
		"verity":      "fs-verity is an ioctl that neither FUSE nor this machine's ext4 offers",
	}
}

// TestStressNG runs each stressor of the filesystem class with --verify for a second.
func TestStressNG(t *testing.T) {
	p := newPlace(t, placeOptions{})
	// stress-ng prints the class to its standard error or output, as "class 'filesystem' stressors: access ...".
	out := command{}.run(t, "sh", "-c", "stress-ng --class 'filesystem?' 2>&1 || true")
	_, list, ok := strings.Cut(out, "stressors:")
	names := strings.Fields(list)
	if !ok || len(names) < 30 {
		t.Fatalf("stress-ng does not list its filesystem class: %q", out)
	}
	leftOut := stressLeftOut()
	for _, name := range names {
		if why := leftOut[name]; why != "" {
			t.Logf("left out: %s: %s", name, why)
			continue
		}
		t.Run(name, func(t *testing.T) {
			args := []string{"--" + name, "2", "--timeout", "1"}
			if name == "xattr" {
				// One of its rounds fills a file with attributes, of which ext4 takes a few dozen and Holdfast thousands.
				args = []string{"--xattr", "1", "--xattr-ops", "1", "--timeout", "60"}
			}
			args = append(args, "--verify", "--metrics-brief", "--temp-path", p.dir)
			out := command{dir: p.dir}.run(t, "stress-ng", args...)
			for _, bad := range []string{"skipping stress test", "unsuccessful run", "fail:", "No stress workers invoked"} {
				if strings.Contains(out, bad) {
					t.Errorf("stress-ng says %q:\n%s", bad, out)
				}
			}
			// A stressor that finds nothing it can do ends well all the same.
			if did := regexp.MustCompile(`\] ` + name + ` +([0-9]+) `).FindStringSubmatch(out); did == nil || did[1] == "0" {
				t.Errorf("the stressor did nothing:\n%s", out)
			}
		})
	}
	p.checkReopened()
}
