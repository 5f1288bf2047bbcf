// Package volume is an opened store: its lock, settings, catalog and blobs, and the files that are open in it.
package volume
