// Package wire is what an agent and its supervisor say to each other.
//
// A connection carries one call: a Request, a Reply, and after a Reply to attach
// or exec the streams. Bytes to the supervisor are the process's stdin, whose end
// is a shutdown of that direction; bytes from it are the output, raw of a
// terminal and otherwise in Docker's frames. The connection closes when no more
// output comes.
//
// A supervisor lives through upgrades of its agent, so both ignore fields they do
// not know, fields only grow in number, and operations are told apart by name.
package wire
