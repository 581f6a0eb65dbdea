// Package cluster makes many nodes one engine.
//
// Router is that engine: it decides which node a call is for, claims what must be
// unique in the catalog, and passes the call on. Publisher tells the catalog what
// happens on this node. Cluster makes both out of keys, gossip and the catalog's
// replica, lets further nodes join, and does the leader's duties.
//
// State on disk, under Config.Dir:
//
//	cluster.json  what is needed to find the others again: the cluster's name and
//	              keys, and the nodes' addresses as last seen
//	catalog/      the replica; see package catalog
package cluster
