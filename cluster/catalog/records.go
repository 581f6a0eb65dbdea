// Package catalog is the cluster's replicated state: who is in it, what runs where and under which claims.
package catalog

import (
	"context"
	"net/netip"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/volume"
)

// Node is one host.
type Node struct {
	ID   string // libp2p peer ID
	Name string // unique
	Host netip.Addr
	// Control and Bulk are the multiaddresses of its two libp2p hosts, Gossip its memberlist address.
	Control, Bulk []string
	Gossip        string
	OS, Arch      string
	CPUs          int
	Memory        int64        // bytes
	Subnet        netip.Prefix // its slice of the container network, leased when it joins
	Tags          map[string]string
	Version       string
	Joined        time.Time
	Voter         bool
	// Down is what the leader wrote after gossip declared the node dead.
	Down bool
}

// Container is one container and its claims. It exists from the claim on: before
// its node has made it, State is "" .
type Container struct {
	ID, Name string // the name without its slash, unique
	NodeID   string
	Summary  container.Summary // what docker ps shows; Status is computed when shown
	Tags     map[string]string // the labels at first, edited later
	State    container.ContainerState
	Started  time.Time
	Finished time.Time
	ExitCode int
	Memory   int64 // bytes reserved on its node
	// Addresses at which it is reached from every node, while it runs.
	Addresses []netip.Addr
	Ports     []Port
	// Denied says that it runs and another container has its ports: nothing leads from
	// them to it.
	Denied  bool `json:",omitempty"`
	Healthy bool // runs, and its health check, if it has one, passes
	Created time.Time
	// Renames is how often it got another name.
	Renames uint64 `json:",omitempty"`
	// Lost says that the node can't be reached now; views fill it, it isn't replicated.
	Lost bool
}

// Port is a published port: cluster-unique unless bound to one host's address.
type Port struct {
	HostIP        netip.Addr // invalid: every address of every node
	HostPort      uint16
	ContainerPort uint16
	Proto         string
}

// Image is what one node says it holds.
type Image struct {
	NodeID  string
	Digest  string        // of the manifest or index its names point at
	Summary image.Summary // RepoTags are this node's
}

// Ref is a cluster-wide image name: familiar reference with tag -> digest.
type Ref struct{ Name, Digest string }

// Volume is a local volume of one node. Of a name there is one, unless nodes that had
// each their own came together.
type Volume struct {
	Name, NodeID string
	// Made says that the node has reported it; before, there is only a claim.
	Made    bool
	Volume  volume.Volume // as the node shows it
	Claimed time.Time     // or first reported
}

// View is the catalog at one moment. It never changes and costs next to nothing.
// Slices and maps that it returns belong to it: read only.
type View interface {
	// Index grows with every change.
	Index() uint64
	Nodes() []Node // by name
	Node(idOrName string) (Node, bool)
	Containers() []Container // newest first
	// Container takes an ID, an unambiguous prefix or a name; NotFound and
	// InvalidArgument (ambiguous) errors carry Docker's text.
	Container(ref string) (Container, error)
	Images() []Image
	// Ref resolves a familiar reference to the digest the cluster means by it.
	Ref(name string) (Ref, bool)
	// Holders are the nodes that hold the image with that digest whole.
	Holders(digest string) []Node
	// Volumes are those of all nodes, by name.
	Volumes() []Volume
	// Private are the images that only some nodes may hold, by digest.
	Private() []Private
}

// Reader gives views and says when they changed.
type Reader interface {
	View() View
	// Wait blocks until the view's index is above after.
	Wait(ctx context.Context, after uint64) error
}
