// Package early serves one file, some bytes of which have still to arrive, to the
// kernel.
//
// A keeper is a process of its own, as agents die and containers don't: it answers the
// reads of a file on FUSE from a file on disk, those bytes that the agent said are
// there and proven. It asks the agent for others and lets the reader wait, for a
// bounded time. What isn't proven is never read, whatever becomes of the agent; when
// the keeper dies, the kernel fails reads. It ends when nothing of its file is in use.
package early
