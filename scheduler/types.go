package scheduler

import "github.com/shoal-engine/shoal/api"

// View is the cluster as one decision sees it. Place only reads it, so one view
// may serve many decisions at once.
type View struct {
	Nodes []NodeInfo // in an order that is the same on every host, such as by name
}

// NodeInfo is one node that a container may go to.
type NodeInfo struct {
	ID, Name string
	Tags     map[string]string
	OS, Arch string // as Go and OCI spell them; empty if not known, which fits everything
	CPUs     int    // 0 if not known, which fits everything
	Memory   int64  // bytes; 0 if not known, which fits everything
	// Reserved is the memory in bytes that the node's containers claimed.
	Reserved int64
	// Running counts containers that run or are about to: claims count, so that a
	// burst of creations spreads too.
	Running    int
	Containers []ContainerInfo // every container there, also stopped ones; for affinities
	// Images holds every string by which an image on the node is known: familiar
	// names with tag ("busybox:latest"), IDs and digests.
	Images map[string]bool
	// Reachable says whether the node can take a container now.
	Reachable bool
}

// ContainerInfo is what affinities look at.
type ContainerInfo struct {
	ID, Name string // the name without its slash
	Tags     map[string]string
}

// Request is what one container needs. The zero value fits every reachable node.
type Request struct {
	// Image is any of the strings of NodeInfo.Images. A node that has it is
	// preferred between nodes that are equally busy; it is not required.
	Image string
	// Platform narrows by OS and architecture; the variant is left to the node.
	Platform api.Platform
	Memory   int64   // bytes to be free
	CPUs     float64 // cores to exist
	Rules    []Rule  // constraints and affinities
	Pins     []Pin   // all must hold
	// Only, if not nil, are the IDs of the nodes that may hold the image, and Why is what
	// keeps it from the others.
	Only map[string]bool
	Why  string
}

// Pin ties a container to one node.
type Pin struct {
	NodeID string
	Why    string // names the node and the reason: "volume data is on node3"
}

// Decision is a node and what spoke for it.
type Decision struct {
	NodeID, NodeName string
	Fit              int  // nodes that could have taken the container
	Running          int  // containers running on the chosen node before
	HasImage         bool // the image need not be fetched
	Soft             int  // soft rules that the node meets
}
