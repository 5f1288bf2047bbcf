// Package integrity finds damage in a store, heals it, and keeps a record of both.
//
// An Engine belongs to one open volume. Reads ask it to heal what they find damaged; it checks paths on request, scrubs the whole store slice
// by slice, watches the store's directory for foreign changes, makes the parity and the second copies that levels ask for, and remembers every
// failure and every attempt at recovery in STORE/integrity.db, which may be lost without loss of data.
package integrity
