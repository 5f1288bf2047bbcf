// Package journal is an append-only, hash-chained log in segment files. It knows nothing of what its records mean.
package journal
