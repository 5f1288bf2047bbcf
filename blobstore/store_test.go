package blobstore_test

import (
	"testing"

	"holdfast/blobstore"
	"holdfast/blobstore/blobstoretest"
)

func modes() []string {
	return []string{blobstore.ModeFile, blobstore.ModeDatabase, blobstore.ModeHybrid}
}

func openDir(t testing.TB, dir, mode string) blobstore.Store {
	t.Helper()
	s, err := blobstore.Open(t.Context(), blobstore.Options{Dir: dir, Mode: mode})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// openIntact opens a store that nobody damages: nothing is there to be mended.
func openIntact(t *testing.T, dir, mode string) blobstore.Store {
	t.Helper()
	s, x := openTold(t, dir, mode, false)
	t.Cleanup(func() {
		if said := x.take(); len(said) > 0 {
			t.Errorf("nothing was damaged, and mended was %+v", said)
		}
	})
	return s
}

func TestConformance(t *testing.T) {
	for _, mode := range modes() {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			var dir string
			blobstoretest.Run(t, func(t *testing.T) blobstore.Store {
				dir = blobstoretest.TempDir(t)
				return openIntact(t, dir, mode)
			}, blobstoretest.Reopen(func(t *testing.T, _ blobstore.Store) blobstore.Store { return openIntact(t, dir, mode) }))
		})
	}
}

func TestFaults(t *testing.T) {
	for _, mode := range modes() {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			blobstoretest.RunFaults(t, func(t *testing.T) blobstore.Store { return openDir(t, blobstoretest.TempDir(t), mode) })
		})
	}
}
