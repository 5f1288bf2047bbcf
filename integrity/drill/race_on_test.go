//go:build race

package drill_test

// damages is how many TestDrill makes: the database, in pure Go, is many times slower under the race detector.
const damages = 25
