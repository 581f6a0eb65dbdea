// Package scale has tests only: hundreds of nodes that fetch one blob at once, with the
// code that real nodes run, over links in fake time. It is a package of its own because
// so many goroutines don't fit under the race detector.
package scale
