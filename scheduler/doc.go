// Package scheduler decides where a container goes: a view of the nodes and a request in, a node and the reasons out.
package scheduler
