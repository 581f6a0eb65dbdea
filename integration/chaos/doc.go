// Package chaos breaks a cluster while it works, and compares what it said with what it did.
//
// A round has a seed. Drivers make, change and remove containers through every
// node; a nemesis kills, stops and freezes agents, splits the network and slows
// links, after a plan that the seed determines. A history keeps what was asked
// and answered. Three kinds of checks look at it:
//
//	watch.go      at any time: what must hold in every single answer
//	ownership.go  afterwards, of the answers alone: names have one owner at a time
//	final.go      once everything is whole again: nothing acknowledged is lost
//
// What got no clear answer may have happened or not; no check assumes either.
package chaos
