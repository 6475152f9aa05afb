//go:build !race

package main

// raceFlag builds the daemon of the tests as they are built themselves.
const raceFlag = "-race=false"

// memoryFactor is how much more memory that makes it take.
const memoryFactor = 1
