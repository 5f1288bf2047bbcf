//go:build race

package blobstore_test

// raceBuild says that the race detector looks on: it is after what runs at the same time, not after every size and place.
const raceBuild = true
