// Package distribution serves a host's images, and through them the cluster's, as an OCI registry.
//
// It is a handler of the OCI distribution API, version 1.1, over two small interfaces:
// Blobs, which the host's image store gives, and Names, which the cluster gives. What
// names mean here is told in docs/registry.md and decided in names.go.
package distribution
