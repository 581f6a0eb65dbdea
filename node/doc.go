// Package node is this host as an engine.
//
// What a node keeps lies under its root:
//
//	containers/<id>/config.json       the container's record; see record.go
//	containers/<id>/<id>-json.log     what it wrote, rotated as .1, .2, …
//	containers/<id>/hosts, hostname, resolv.conf
//	containers/<id>/config.json.corrupt  a record that could not be read, set aside
//	volumes/<name>/_data              a local volume
//	volumes/<name>/volume.json        who made it, and whether it has a name of its own
//
// A container's directory is made before anything else of the container exists and
// removed after everything else of it is gone. So an agent that was killed at any
// point finds every half-made or half-removed container by its directory, and one
// without a record is a leftover.
//
// # Locks
//
// In the order in which they may be taken; none is taken while one below it is held.
//
//  1. ctr.op: one change of a container's life at a time (start, end, remove, …).
//     Held over system calls. Whoever needs it of two containers never holds both.
//  2. index.mu: names and IDs. Held for a look-up.
//  3. ctr.mu: a container's record and what waits on it. Held while the record is
//     written, never while the runtime, the network or the image store is asked.
//  4. journal.mu: events.
//
// index.mu and ctr.mu are never held together.
package node
