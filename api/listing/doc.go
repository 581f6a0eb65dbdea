// Package listing computes what Docker's listings say: which objects a filter admits, in which order, and how they are named and described.
//
// Everything here is pure, so that a node, a cluster and the in-memory engine
// cannot disagree about what "docker ps" means.
package listing
