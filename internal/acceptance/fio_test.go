//go:build system

package acceptance

import "testing"

// fioCases are fio jobs that write what they can verify: each block carries its checksum, offset and a sequence number.
func fioCases() map[string][]string {
	return map[string][]string{
		"sequential":         {"--rw=write", "--bs=64k", "--size=32m"},
		"sequential direct":  {"--rw=write", "--bs=1m", "--size=32m", "--direct=1"},
		"random":             {"--rw=randwrite", "--bs=4k", "--size=12m"},
		"random direct":      {"--rw=randwrite", "--bs=4k", "--size=6m", "--direct=1"},
		"mapped":             {"--rw=randwrite", "--bs=4k", "--size=12m", "--ioengine=mmap"},
		"unaligned":          {"--rw=randwrite", "--bsrange=512-40000", "--bs_unaligned=1", "--size=12m"},
		"four jobs":          {"--rw=randwrite", "--bs=16k", "--size=6m", "--numjobs=4"},
		"fsync":              {"--rw=randwrite", "--bs=8k", "--size=4m", "--fsync=8"},
		"mixed with reads":   {"--rw=randrw", "--bs=8k", "--size=8m", "--direct=1"},
		"asynchronous, deep": {"--rw=randwrite", "--bs=16k", "--size=8m", "--ioengine=libaio", "--iodepth=16", "--direct=1"},
		"large":              {"--rw=write", "--bs=1m", "--size=128m"},
	}
}

// TestFio verifies each job as it runs, and once more from the store after a remount.
func TestFio(t *testing.T) {
	for name, args := range fioCases() {
		t.Run(name, func(t *testing.T) {
			p := newPlace(t, placeOptions{})
			base := []string{"--name=job", "--directory=" + p.dir, "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--verify_state_save=0", "--randrepeat=1", "--group_reporting", "--output-format=terse"}
			command{}.run(t, "fio", append(base, args...)...)
			p.reopen()
			command{}.run(t, "fio", append(append(base, "--verify_only=1"), args...)...)
		})
	}
}
