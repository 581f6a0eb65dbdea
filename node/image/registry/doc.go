// Package registry is a client of image registries.
//
// It speaks the distribution specification over net/http: what a node needs of it is
// small, and neither of the known libraries resumes a blob into a store that keeps
// what an earlier attempt, or a peer, left.
//
// # Who gets to see credentials
//
// The registry that an image's name says, on its own host and port, and the token
// server that this registry names, over TLS; in plain text only on loopback and
// where the configuration calls a host insecure. Mirrors, and hosts to which a
// registry redirects, get none. They can't lie either: what is fetched must match its
// digest, and a mirror that is asked what a tag means is one that the configuration
// trusts to know.
//
// # What is tried again
//
// Answers 408, 429 and 5xx and lost connections, with growing pauses, at most five
// times in a row without progress. A host that is not known or refuses the very first
// connection is not asked again. A blob goes on where it stopped.
package registry
