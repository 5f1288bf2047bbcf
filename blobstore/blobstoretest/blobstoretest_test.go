package blobstoretest_test

import (
	"testing"

	"holdfast/blobstore"
	"holdfast/blobstore/blobstoretest"
)

func TestMem(t *testing.T) {
	blobstoretest.Run(t, func(*testing.T) blobstore.Store { return new(blobstoretest.Mem) })
}

func TestMemFaults(t *testing.T) {
	blobstoretest.RunFaults(t, func(*testing.T) blobstore.Store { return new(blobstoretest.Mem) })
}

func TestFaultyPassesOn(t *testing.T) {
	blobstoretest.Run(t, func(*testing.T) blobstore.Store {
		return blobstoretest.FailNth(new(blobstoretest.Mem), 0, blobstoretest.None)
	})
}
