//go:build !race

package drill_test

// damages is how many TestDrill makes.
const damages = 150
