//go:build race

package acceptance

// raceBuild says that the test was built with the race detector; the daemon then is too.
const raceBuild = true
