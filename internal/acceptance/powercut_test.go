//go:build system

package acceptance

import (
	"fmt"
	"path/filepath"
	"testing"
)

// TestPowerCut stops the disk below the store in the middle of a storm, as a power cut does: what was not synced is gone. Some
// writers sync each file they write and may lose nothing of it. The others only sync now and then, any file: all that came
// before it must be there, and what came after must be a moment of the past, not a mixture.
func TestPowerCut(t *testing.T) {
	for _, storage := range []string{"file", "hybrid", "database"} {
		t.Run(storage, func(t *testing.T) {
			const rounds = 4
			rnd := newRand(t)
			d := newDisk(t, 512)
			m := newMount(t, placeOptions{storage: storage, parent: d.dir})
			m.start()
			c := &crowd{}
			for i := range 4 {
				a := byFsync
				if i%2 == 1 {
					a = byAnyFsync
				}
				dir := filepath.Join(m.dir, "tasks", fmt.Sprint("writer", i))
				c.writers = append(c.writers, newWriter(dir, rnd.Uint64(), i < 2, a))
			}
			for round := range rounds {
				err := c.runUntil(20+rnd.Int64N(300), func() {
					d.cutPower()
					m.kill()
				})
				if err != nil {
					t.Fatalf("round %d, before the cut: %v", round, err)
				}
				m.detach()
				d.detach()
				command{}.run(t, "e2fsck", "-p", d.image) // replays ext4's journal; fails if ext4 itself is damaged
				d.attach()
				m.start()
				if err := c.check(); err != nil {
					t.Fatalf("round %d, after the cut: %v", round, err)
				}
			}
			m.stop()
			d.detach()
			d.attach()
			m.start()
			if err := c.check(); err != nil {
				t.Fatalf("after unmounting: %v", err)
			}
			m.stop()
		})
	}
}
