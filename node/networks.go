package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"time"

	mobynet "github.com/moby/moby/api/types/network"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/listing"
)

// fixedNetworkID is the ID of a network that every host has and that nobody made.
func fixedNetworkID(name string) string {
	sum := sha256.Sum256([]byte("network " + name))
	return hex.EncodeToString(sum[:])
}

// networkID is the ID of one of this host's networks.
func (n *Node) networkID(name string) string {
	if name == mobynet.NetworkBridge {
		if id := n.network.Info().ID; id != "" {
			return id
		}
	}
	return fixedNetworkID(name)
}

// ListNetworks implements api.Networks.
func (n *Node) ListNetworks(ctx context.Context, f api.Filters) ([]mobynet.Inspect, error) {
	all, err := n.allNetworks(ctx)
	if err != nil {
		return nil, err
	}
	found, err := listing.Networks(all, f)
	for i := range found {
		found[i].Containers = map[string]mobynet.EndpointResource{} // a listing leaves them out, as Docker's does
	}
	return found, err
}

// InspectNetwork implements api.Networks.
func (n *Node) InspectNetwork(ctx context.Context, id string, o api.NetworkInspectOptions) (mobynet.Inspect, error) {
	all, err := n.allNetworks(ctx)
	if err != nil {
		return mobynet.Inspect{}, err
	}
	var found []mobynet.Inspect
	for _, w := range all {
		if o.Scope != "" && o.Scope != w.Scope {
			continue
		}
		if w.ID == id || w.Name == id {
			return w, nil
		}
		if id != "" && strings.HasPrefix(w.ID, id) {
			found = append(found, w)
		}
	}
	switch len(found) {
	case 0:
		return mobynet.Inspect{}, api.NotFound("network %s not found", id)
	case 1:
		return found[0], nil
	}
	return mobynet.Inspect{}, api.InvalidArgument("network %s is ambiguous (%d matches found based on ID prefix)", id, len(found))
}

// allNetworks describes bridge, host and none, with who is connected.
func (n *Node) allNetworks(ctx context.Context) ([]mobynet.Inspect, error) {
	if err := n.up(ctx); err != nil {
		return nil, err
	}
	info := n.network.Info()
	bridge := describeNetwork(mobynet.NetworkBridge, n.networkID(mobynet.NetworkBridge), "bridge")
	bridge.IPAM.Config = []mobynet.IPAMConfig{{Subnet: info.Subnet, Gateway: info.Gateway}}
	bridge.Options = map[string]string{
		"com.docker.network.bridge.default_bridge":       "true",
		"com.docker.network.bridge.enable_icc":           "true",
		"com.docker.network.bridge.enable_ip_masquerade": "true",
		"com.docker.network.bridge.host_binding_ipv4":    "0.0.0.0",
		"com.docker.network.bridge.name":                 info.Bridge,
		"com.docker.network.driver.mtu":                  decimal(uint64(info.MTU)),
	}
	all := []mobynet.Inspect{
		bridge,
		describeNetwork(mobynet.NetworkHost, fixedNetworkID(mobynet.NetworkHost), "host"),
		describeNetwork(mobynet.NetworkNone, fixedNetworkID(mobynet.NetworkNone), "null"),
	}
	for _, c := range n.index.all() {
		r := c.get()
		if !r.State.live() {
			continue
		}
		for name := range r.Endpoints {
			e, _ := n.network.Endpoint(r.ID)
			for i := range all {
				if all[i].Name == name {
					all[i].Containers[r.ID] = mobynet.EndpointResource{
						Name: r.Name, EndpointID: e.EndpointID,
						MacAddress: mobynet.HardwareAddr(e.MAC), IPv4Address: e.Address,
					}
				}
			}
		}
	}
	return all, nil
}

func describeNetwork(name, id, driver string) mobynet.Inspect {
	return mobynet.Inspect{
		Network: mobynet.Network{
			Name: name, ID: id, Scope: "local", Driver: driver, EnableIPv4: true, Created: time.Unix(0, 0).UTC(),
			IPAM:    mobynet.IPAM{Driver: "default", Config: []mobynet.IPAMConfig{}},
			Options: map[string]string{}, Labels: map[string]string{},
		},
		Containers: map[string]mobynet.EndpointResource{},
	}
}
