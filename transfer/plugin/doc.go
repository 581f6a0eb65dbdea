// Package plugin lets a program in any language carry blobs.
//
// A plugin is an executable, shoal-transport-NAME, that answers requests on its
// standard input and output. Here it becomes a transfer.Fetcher, and somebody to
// offer blobs to. The protocol is in docs/transport-plugins.md; wire.go speaks it.
//
// # What a plugin may do to us
//
// Nothing: it is asked one thing at a time by a process of its own, with bounds on
// every size and time, and what it sends counts only once the store has verified it.
// A process that breaks the rules is killed, with its whole process group, and there
// is no new one for a second at first, then for longer, up to a minute.
//
// Plugins run as root, so a plugin is trusted with the host as any of root's programs
// is. That is why only files are run that nobody but root can have written.
package plugin
