// Package acceptance holds the tests of Holdfast as a whole: the real binary serves a real mount, and real programs, many
// processes and failures work on it. It exports nothing; other packages never import it.
//
// Plain `go test` runs what needs only Go, root and /dev/fuse. The build tag "system" adds what needs Debian packages, loop
// devices or minutes: scripts/test installs those and runs everything. docs/testing.md lists the tests.
//
// HOLDFAST_TEST_DIR names an existing directory to run the tests of file behaviour in, instead of on a fresh mount: they pass on
// ext4, which shows that the tests are right. Tests of killed daemons, full disks and damage need Holdfast and fail there.
// HOLDFAST_TEST_BIN names a holdfast binary to test instead of building one. HOLDFAST_TEST_SEED repeats a random run.
package acceptance
