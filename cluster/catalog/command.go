package catalog

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"github.com/moby/moby/api/types/container"
)

// Kind numbers the commands. It is written into logs that later versions read:
// numbers are only ever added, never changed and never used again.
type Kind uint16

// The kinds of this version.
const (
	KindSetSettings     Kind = 1
	KindSetSecret       Kind = 2
	KindPutNode         Kind = 3
	KindRemoveNode      Kind = 4
	KindNodeTags        Kind = 5
	KindSetNodeDown     Kind = 6
	KindClaimContainer  Kind = 7
	KindClaimPorts      Kind = 8
	KindReleaseClaim    Kind = 9
	KindPutContainers   Kind = 10
	KindRemoveContainer Kind = 11
	KindRenameContainer Kind = 12
	KindContainerTags   Kind = 13
	KindPutImages       Kind = 14
	KindSetRef          Kind = 15
	KindDropRef         Kind = 16
	KindSetPrivate      Kind = 17
	KindDropPrivate     Kind = 18
	KindClaimVolume     Kind = 19
	KindReleaseVolume   Kind = 20
	KindPutVolumes      Kind = 21
)

// Command is one change of the catalog. All commands are idempotent: a caller
// that doesn't know whether its proposal went through proposes it again.
type Command interface{ Kind() Kind }

// SetSettings is written once, when the cluster begins; later ones are ignored.
type SetSettings struct {
	Name   string       // of the cluster
	Subnet netip.Prefix // that the nodes' slices are cut from
	Secret string       // that a joining node has to show
}

// SetSecret replaces what a joining node has to show.
type SetSecret struct{ Secret string }

// PutNode adds a node or updates what it says about itself. A new node is leased
// a slice of the cluster's subnet; a known one keeps its slice, its tags (new
// keys are added) and the time it joined. A taken name is a Conflict.
type PutNode struct{ Node Node }

// RemoveNode forgets a node with its containers, claims, images, volumes and rights.
type RemoveNode struct{ ID string }

// NodeTags edits a node's tags.
type NodeTags struct {
	ID     string
	Set    map[string]string
	Remove []string
}

// SetNodeDown records what gossip declared.
type SetNodeDown struct {
	ID   string
	Down bool
}

// ClaimContainer claims a container's ID, name and ports on a node, all or
// nothing. Ports with HostPort 0 get a free one. A claim of an ID that is
// claimed already answers with what was claimed.
type ClaimContainer struct {
	ID, Name, NodeID string
	Summary          container.Summary
	Tags             map[string]string
	Memory           int64
	Ports            []Port
	// Replaces is the ID or name of a container whose ports this one may name
	// too, because it takes its place: it gets them with ClaimPorts once the other
	// is gone.
	Replaces string
}

// ClaimPorts takes a container's ports again, which ended when it exited.
type ClaimPorts struct{ ID string }

// ReleaseClaim drops a claim that no node has confirmed.
type ReleaseClaim struct{ ID string }

// PutContainers is a node's report of its containers. Reports with a Seq at or
// below the node's last are stale and ignored. Unknown containers are adopted,
// under a longer name if theirs is taken.
type PutContainers struct {
	NodeID string
	Seq    uint64
	// Full says that confirmed containers of the node that aren't listed are gone.
	Full       bool
	Containers []Container
	Gone       []string
}

// RemoveContainer forgets a container and its claims. Reports about it that are
// still under way are ignored from then on. An unknown one is no error.
type RemoveContainer struct{ ID string }

// RenameContainer claims another name for a container and frees the present one. If
// From is set and isn't the present name, or Seen is set and it has been renamed more
// often than that, nothing happens.
type RenameContainer struct {
	ID, Name, From string
	Seen           *uint64 `json:",omitempty"`
}

// ContainerTags edits a container's tags.
type ContainerTags struct {
	ID     string
	Set    map[string]string
	Remove []string
}

// PutImages is a node's report of its images; Seq and Full as in PutContainers.
type PutImages struct {
	NodeID string
	Seq    uint64
	Full   bool
	Images []Image
	Gone   []string // digests
}

// SetRef makes a name mean a digest in the whole cluster.
type SetRef struct{ Ref Ref }

// DropRef forgets a name; if Digest is set, only if that is what it means.
type DropRef struct{ Name, Digest string }

// SetPrivate makes an image private, in place of what was said of it before. Nodes that
// aren't in the cluster are NotFound.
type SetPrivate struct{ Private Private }

// DropPrivate makes an image, by its digest or its ID, one that every node may hold.
type DropPrivate struct{ Digest, ID string }

// ClaimVolume makes a name mean a volume on a node, before the node has made it. If
// the name means one already, the answer is that one.
type ClaimVolume struct{ Name, NodeID string }

// ReleaseVolume drops the claim of a volume that its node has not made.
type ReleaseVolume struct{ Name, NodeID string }

// PutVolumes is a node's report of its volumes; Seq and Full as in PutContainers.
type PutVolumes struct {
	NodeID  string
	Seq     uint64
	Full    bool
	Volumes []Volume
	Gone    []string // names
}

// Kind implements Command, here and below.
func (SetSettings) Kind() Kind     { return KindSetSettings }
func (SetSecret) Kind() Kind       { return KindSetSecret }
func (PutNode) Kind() Kind         { return KindPutNode }
func (RemoveNode) Kind() Kind      { return KindRemoveNode }
func (NodeTags) Kind() Kind        { return KindNodeTags }
func (SetNodeDown) Kind() Kind     { return KindSetNodeDown }
func (ClaimContainer) Kind() Kind  { return KindClaimContainer }
func (ClaimPorts) Kind() Kind      { return KindClaimPorts }
func (ReleaseClaim) Kind() Kind    { return KindReleaseClaim }
func (PutContainers) Kind() Kind   { return KindPutContainers }
func (RemoveContainer) Kind() Kind { return KindRemoveContainer }
func (RenameContainer) Kind() Kind { return KindRenameContainer }
func (ContainerTags) Kind() Kind   { return KindContainerTags }
func (PutImages) Kind() Kind       { return KindPutImages }
func (SetRef) Kind() Kind          { return KindSetRef }
func (DropRef) Kind() Kind         { return KindDropRef }
func (SetPrivate) Kind() Kind      { return KindSetPrivate }
func (DropPrivate) Kind() Kind     { return KindDropPrivate }
func (ClaimVolume) Kind() Kind     { return KindClaimVolume }
func (ReleaseVolume) Kind() Kind   { return KindReleaseVolume }
func (PutVolumes) Kind() Kind      { return KindPutVolumes }

// Result is what a command answered.
type Result struct {
	Index     uint64     // of the view that shows the change
	Container *Container `json:",omitempty"` // ClaimContainer, ClaimPorts
	Node      *Node      `json:",omitempty"` // PutNode
	Volume    *Volume    `json:",omitempty"` // ClaimVolume
	Was       string     `json:",omitempty"` // RenameContainer: the name until now
	// Seq of PutContainers, PutImages and PutVolumes is their own, 0 if they were stale: that the node's
	// last report has the same number doesn't make it the same report.
	Seq uint64 `json:",omitempty"`
}

// entry is a command on its way: with what the proposer adds so that appliers
// need neither clock nor chance.
type entry struct {
	version   uint8
	kind      Kind
	ignorable bool // an older replica that doesn't know the kind may skip it
	at        time.Time
	seed      uint64
	body      []byte // JSON
}

// entryVersion is the layout of the body; it grows when a kind's body changes
// in a way that JSON's missing fields don't cover.
const entryVersion = 1

func newEntry(c Command, at time.Time, seed uint64) (entry, error) {
	body, err := json.Marshal(c)
	if err != nil {
		return entry{}, fmt.Errorf("encode command %d: %w", c.Kind(), err)
	}
	return entry{version: entryVersion, kind: c.Kind(), at: at.UTC(), seed: seed, body: body}, nil
}
