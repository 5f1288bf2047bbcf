//go:build !race

package main

// raceBuild says that the test was built with the race detector; the program then is too.
const raceBuild = false
