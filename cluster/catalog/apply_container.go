package catalog

import (
	"maps"
	"slices"

	"github.com/moby/moby/api/types/container"

	"github.com/shoal-engine/shoal/api"
)

// Ports that are chosen for a container lie in this range, as Docker's do.
const (
	firstDynamicPort = 49153
	lastDynamicPort  = 65535
)

// keepGone is how many removed containers are remembered, so that reports which
// were under way at the removal don't bring one back.
const keepGone = 4096

func claimContainer(t tx, c ClaimContainer) (Result, error) {
	if c.ID == "" || c.Name == "" || c.NodeID == "" {
		return Result{}, api.InvalidArgument("a claim needs an ID, a name and a node")
	}
	if old, ok := first[Container](t.Txn, tableContainer, "id", c.ID); ok {
		return claimed(old), nil
	}
	if _, ok := first[gone](t.Txn, tableGone, "id", c.ID); ok {
		return Result{}, api.Conflict("container %s was removed", c.ID)
	}
	if _, ok := first[Node](t.Txn, tableNode, "id", c.NodeID); !ok {
		return Result{}, api.Unavailable("node %s is not in the cluster any more", c.NodeID)
	}
	if other, ok := first[Container](t.Txn, tableContainer, "name", c.Name); ok {
		return Result{}, nameTaken(c.Name, other.ID)
	}
	var spare string
	if c.Replaces != "" {
		if old, err := findContainer(t.Txn, c.Replaces); err == nil {
			spare = old.ID
		}
	}
	x := &Container{
		ID: c.ID, Name: c.Name, NodeID: c.NodeID, Summary: c.Summary, Tags: c.Tags,
		Memory: c.Memory, Created: t.at,
	}
	x.Summary.ID, x.Summary.Names = c.ID, []string{"/" + c.Name}
	x.Summary.Created = t.at.Unix()
	var claims []*portClaim
	var err error
	if x.Ports, claims, err = choosePorts(t, x, c.Ports, spare); err != nil {
		return Result{}, err
	}
	for _, p := range claims {
		if err := put(t, tablePort, p); err != nil {
			return Result{}, err
		}
	}
	return claimed(x), put(t, tableContainer, x)
}

func claimed(c *Container) Result {
	shown := *c
	return Result{Container: &shown}
}

func nameTaken(name, id string) error {
	return api.Conflict("Conflict. The container name \"/%s\" is already in use by container \"%s\". You have to remove (or rename) that container to be able to reuse that name.", name, id)
}

// choosePorts fills in the ports that were left open and returns the claims to
// write. Ports of the container spare may be named but are not claimed.
func choosePorts(t tx, c *Container, wanted []Port, spare string) ([]Port, []*portClaim, error) {
	ports := slices.Clone(wanted)
	var claims []*portClaim
	for i, p := range ports {
		p.Proto = protoOf(p)
		if p.HostPort == 0 {
			free, ok := freePort(t, c, p, claims)
			if !ok {
				return nil, nil, api.Internal("driver failed programming external connectivity on endpoint %s: all ports are allocated", c.Name)
			}
			p.HostPort = free
		}
		ports[i] = p
		holder := portHolder(t, c, p, claims)
		if holder != "" && holder == spare {
			continue
		}
		if holder != "" {
			return nil, nil, portTaken(c.Name, p)
		}
		claims = append(claims, &portClaim{Port: p, ContainerID: c.ID, NodeID: c.NodeID})
	}
	return ports, claims, nil
}

func portTaken(name string, p Port) error {
	ip := "0.0.0.0"
	if p.HostIP.IsValid() {
		ip = p.HostIP.String()
	}
	return api.Internal("driver failed programming external connectivity on endpoint %s: Bind for %s:%d failed: port is already allocated", name, ip, p.HostPort)
}

// freePort probes the dynamic range from a place that the seed chooses.
func freePort(t tx, c *Container, p Port, pending []*portClaim) (uint16, bool) {
	const n = lastDynamicPort - firstDynamicPort + 1
	for i := range uint64(n) {
		p.HostPort = uint16(firstDynamicPort + (t.seed+i)%n)
		if portHolder(t, c, p, pending) == "" {
			return p.HostPort, true
		}
	}
	return 0, false
}

// portHolder is the ID of another container whose claim collides with p, or "".
// A container may claim the same port again for another address.
func portHolder(t tx, c *Container, p Port, pending []*portClaim) string {
	for _, o := range pointers[portClaim](t.Txn, tablePort, "id_prefix", portPrefix(p.Proto, p.HostPort)) {
		if o.ContainerID != c.ID && collide(o, c.NodeID, p) {
			return o.ContainerID
		}
	}
	for _, o := range pending {
		if o.Port.HostPort == p.HostPort && o.Port.Proto == p.Proto && collide(o, c.NodeID, p) {
			return o.ContainerID
		}
	}
	return ""
}

// collide compares two claims of the same protocol and number. A port bound to one
// address is only taken there; the loopback address is another one on every node.
func collide(o *portClaim, node string, p Port) bool {
	switch {
	case everywhere(o.Port.HostIP), everywhere(p.HostIP):
		return true
	case o.Port.HostIP != p.HostIP:
		return false
	default:
		return !p.HostIP.IsLoopback() || o.NodeID == node
	}
}

func claimPorts(t tx, c ClaimPorts) (Result, error) {
	x, ok := first[Container](t.Txn, tableContainer, "id", c.ID)
	if !ok {
		return Result{}, api.NotFound("No such container: %s", c.ID)
	}
	_, claims, err := choosePorts(t, x, x.Ports, "")
	if err != nil {
		return Result{}, err
	}
	if x.Denied {
		granted := *x
		granted.Denied, x = false, &granted
		if err := put(t, tableContainer, x); err != nil {
			return Result{}, err
		}
	}
	for _, p := range claims {
		if err := put(t, tablePort, p); err != nil {
			return Result{}, err
		}
	}
	return claimed(x), nil
}

func releasePorts(t tx, id string) error {
	for _, p := range pointers[portClaim](t.Txn, tablePort, "container", id) {
		if err := drop(t, tablePort, p); err != nil {
			return err
		}
	}
	return nil
}

// forget deletes a container and its claims.
func forget(t tx, c *Container) error {
	if err := releasePorts(t, c.ID); err != nil {
		return err
	}
	return drop(t, tableContainer, c)
}

func releaseClaim(t tx, c ReleaseClaim) (Result, error) {
	x, ok := first[Container](t.Txn, tableContainer, "id", c.ID)
	if !ok || x.State != "" {
		return Result{}, nil
	}
	return Result{}, forget(t, x)
}

func removeContainer(t tx, c RemoveContainer) (Result, error) {
	x, ok := first[Container](t.Txn, tableContainer, "id", c.ID)
	if !ok {
		return Result{}, nil
	}
	return Result{}, bury(t, x)
}

// bury forgets a container and remembers that it is gone.
func bury(t tx, c *Container) error {
	if err := forget(t, c); err != nil {
		return err
	}
	s := rowSettings(t)
	s.Gone++
	if err := put(t, tableSettings, &s); err != nil {
		return err
	}
	if s.Gone > keepGone {
		if old, ok := first[gone](t.Txn, tableGone, "order", orderKey(s.Gone-keepGone)); ok {
			if err := drop(t, tableGone, old); err != nil {
				return err
			}
		}
	}
	return put(t, tableGone, &gone{ID: c.ID, Order: s.Gone})
}

func renameContainer(t tx, c RenameContainer) (Result, error) {
	x, ok := first[Container](t.Txn, tableContainer, "id", c.ID)
	if !ok {
		return Result{}, api.NotFound("No such container: %s", c.ID)
	}
	if c.From != "" && c.From != x.Name || c.Seen != nil && *c.Seen != x.Renames {
		return claimed(x), nil
	}
	if other, ok := first[Container](t.Txn, tableContainer, "name", c.Name); ok && other.ID != c.ID {
		return Result{}, nameTaken(c.Name, other.ID)
	}
	renamed := *x
	if c.Name != x.Name {
		renamed.Renames++
	}
	renamed.Name, renamed.Summary.Names = c.Name, []string{"/" + c.Name}
	res := claimed(&renamed)
	res.Was = x.Name
	return res, put(t, tableContainer, &renamed)
}

func containerTags(t tx, c ContainerTags) (Result, error) {
	old, ok := first[Container](t.Txn, tableContainer, "id", c.ID)
	if !ok {
		return Result{}, api.NotFound("No such container: %s", c.ID)
	}
	x := *old
	var err error
	if x.Tags, err = edited(old.Tags, c.Set, c.Remove); err != nil {
		return Result{}, err
	}
	return Result{}, put(t, tableContainer, &x)
}

// advance notes that a node's report number seq is in, of the kind that field picks.
// One that came late, or twice, isn't fresh and changes nothing.
func advance(t tx, nodeID string, seq uint64, field func(*nodeSeq) *uint64) (fresh bool, err error) {
	if _, ok := first[Node](t.Txn, tableNode, "id", nodeID); !ok {
		return false, api.NotFound("node %s not found", nodeID)
	}
	now := nodeSeq{NodeID: nodeID}
	if s, ok := first[nodeSeq](t.Txn, tableSeq, "id", nodeID); ok {
		now = *s
	}
	if seq <= *field(&now) {
		return false, nil
	}
	*field(&now) = seq
	return true, put(t, tableSeq, &now)
}

func putContainers(t tx, c PutContainers) (Result, error) {
	fresh, err := advance(t, c.NodeID, c.Seq, func(s *nodeSeq) *uint64 { return &s.Containers })
	if err != nil || !fresh {
		return Result{}, err
	}
	listed := map[string]bool{}
	for i := range c.Containers {
		listed[c.Containers[i].ID] = true
		if err := report(t, c.NodeID, &c.Containers[i]); err != nil {
			return Result{}, err
		}
	}
	lost := c.Gone
	if c.Full {
		for _, x := range pointers[Container](t.Txn, tableContainer, "node", c.NodeID) {
			if !listed[x.ID] && x.State != "" {
				lost = append(lost, x.ID)
			}
		}
	}
	for _, id := range lost {
		x, ok := first[Container](t.Txn, tableContainer, "id", id)
		if !ok || x.NodeID != c.NodeID {
			continue
		}
		if err := bury(t, x); err != nil {
			return Result{}, err
		}
	}
	return Result{Seq: c.Seq}, nil
}

// report merges what a node says of one container into what is claimed: name,
// tags and placement are the catalog's, the rest is the node's.
func report(t tx, node string, said *Container) error {
	if _, ok := first[gone](t.Txn, tableGone, "id", said.ID); ok || said.ID == "" {
		return nil
	}
	old, known := first[Container](t.Txn, tableContainer, "id", said.ID)
	if known && old.NodeID != node {
		return nil
	}
	x := *said
	x.NodeID, x.Lost = node, false
	if known {
		x.Name, x.Renames, x.Tags = old.Name, old.Renames, old.Tags
		x.Created, x.Memory, x.Ports = old.Created, old.Memory, old.Ports
	} else {
		adopt(t, &x)
	}
	x.Summary.ID, x.Summary.Names = x.ID, []string{"/" + x.Name}
	if err := reportPorts(t, &x, known); err != nil {
		return err
	}
	return put(t, tableContainer, &x)
}

// adopt fits in a container that was made without a claim.
func adopt(t tx, x *Container) {
	if x.Created.IsZero() {
		x.Created = t.at
	}
	if x.Tags == nil {
		x.Tags = maps.Clone(x.Summary.Labels)
	}
	if x.Name == "" {
		x.Name = x.ID
	}
	if _, taken := first[Container](t.Txn, tableContainer, "name", x.Name); taken {
		x.Name += "-" + x.ID[:min(12, len(x.ID))]
	}
}

// reportPorts gives the ports of an ended container back and takes those of one
// that runs, as far as they are free. One that runs without is marked: where it came
// by a start, the router ends it again.
func reportPorts(t tx, x *Container, known bool) error {
	x.Denied = false
	if ended(x.State) {
		return releasePorts(t, x.ID)
	}
	if known && !Live(x.State) {
		return nil
	}
	for i, p := range x.Ports {
		p.Proto = protoOf(p)
		x.Ports[i] = p
		if p.HostPort == 0 {
			continue
		}
		if portHolder(t, x, p, nil) != "" {
			x.Denied = x.Denied || Live(x.State)
			continue
		}
		if err := put(t, tablePort, &portClaim{Port: p, ContainerID: x.ID, NodeID: x.NodeID}); err != nil {
			return err
		}
	}
	return nil
}

func ended(s container.ContainerState) bool {
	return s == container.StateExited || s == container.StateDead
}

// Live says whether a container in that state has processes, or soon has again.
func Live(s container.ContainerState) bool {
	return s == container.StateRunning || s == container.StatePaused || s == container.StateRestarting
}
