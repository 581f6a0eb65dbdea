package server

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/network"
)

// This file says what answers looked like before the newest version of the API.

func (c *call) oldSummaries(all []container.Summary) []container.Summary {
	out := make([]container.Summary, 0, len(all))
	for _, s := range all {
		s.Names, s.Ports, s.Mounts = orEmpty(s.Names), orEmpty(s.Ports), orEmpty(s.Mounts)
		if s.Labels == nil {
			s.Labels = map[string]string{}
		}
		if c.version.below(52) {
			s.Health = nil
		}
		if c.version.below(48) {
			s.ImageManifestDescriptor = nil
		}
		if c.version.below(46) {
			s.HostConfig.Annotations = nil
		}
		out = append(out, s)
	}
	return out
}

func orEmpty[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// oldInspect is what API 1.51 and before said more about a container's network.
type oldInspect struct {
	container.InspectResponse
	NetworkSettings oldNetworkSettings
}

type oldNetworkSettings struct {
	container.NetworkSettings
	Bridge                                       string
	HairpinMode                                  bool
	LinkLocalIPv6Address                         string
	LinkLocalIPv6PrefixLen                       int
	SecondaryIPAddresses, SecondaryIPv6Addresses []string
	EndpointID                                   string
	Gateway, GlobalIPv6Address                   netip.Addr
	GlobalIPv6PrefixLen                          int
	IPAddress                                    netip.Addr
	IPPrefixLen                                  int
	IPv6Gateway                                  netip.Addr
	MacAddress                                   network.HardwareAddr
}

func (c *call) oldInspect(i container.InspectResponse) any {
	if c.version.below(48) {
		i.ImageManifestDescriptor = nil
	}
	if !c.version.below(52) {
		return i
	}
	old := oldInspect{InspectResponse: i}
	if i.NetworkSettings != nil {
		old.NetworkSettings.NetworkSettings = *i.NetworkSettings
		if e := defaultEndpoint(i); e != nil {
			n := &old.NetworkSettings
			n.EndpointID, n.Gateway, n.IPAddress, n.IPPrefixLen = e.EndpointID, e.Gateway, e.IPAddress, e.IPPrefixLen
			n.GlobalIPv6Address, n.GlobalIPv6PrefixLen = e.GlobalIPv6Address, e.GlobalIPv6PrefixLen
			n.IPv6Gateway, n.MacAddress = e.IPv6Gateway, e.MacAddress
		}
	}
	return old
}

// defaultEndpoint is what the fields of old times were about: the connection with
// the engine's default network, whatever that is called.
func defaultEndpoint(i container.InspectResponse) *network.EndpointSettings {
	all := i.NetworkSettings.Networks
	if e := all[network.NetworkBridge]; e != nil {
		return e
	}
	if i.HostConfig != nil && (i.HostConfig.NetworkMode == "" || i.HostConfig.NetworkMode == network.NetworkDefault) {
		for _, name := range slices.Sorted(maps.Keys(all)) {
			return all[name]
		}
	}
	return nil
}

// oldImage adds what API 1.43 and before said about sizes.
type oldImage struct {
	image.Summary
	VirtualSize int64 `json:",omitempty"`
}

func (c *call) oldImages(all []image.Summary) []oldImage {
	out := make([]oldImage, 0, len(all))
	for _, s := range all {
		s.RepoTags, s.RepoDigests = orEmpty(s.RepoTags), orEmpty(s.RepoDigests)
		if c.version.below(43) && len(s.RepoTags) == 0 && len(s.RepoDigests) == 0 {
			s.RepoTags, s.RepoDigests = []string{"<none>:<none>"}, []string{"<none>@<none>"}
		}
		if c.version.below(48) {
			s.Descriptor = nil
		}
		if c.version.below(47) {
			s.Manifests = nil
		}
		o := oldImage{Summary: s}
		if c.version.below(44) {
			o.VirtualSize = s.Size
		}
		out = append(out, o)
	}
	return out
}

// oldImageInspect is what API 1.51 and before said about an image even where
// there was nothing to say.
type oldImageInspect struct {
	image.InspectResponse
	Parent, Comment, DockerVersion, Author string
	VirtualSize                            int64 `json:",omitempty"`
}

func (c *call) oldImageInspect(i image.InspectResponse) any {
	i.RepoTags, i.RepoDigests = orEmpty(i.RepoTags), orEmpty(i.RepoDigests)
	if c.version.below(53) {
		i.Identity = nil
	}
	if c.version.below(48) {
		i.Descriptor, i.Manifests = nil, nil
	}
	if !c.version.below(52) {
		return i
	}
	old := oldImageInspect{InspectResponse: i, Comment: i.Comment, Author: i.Author}
	if c.version.below(44) {
		old.VirtualSize = i.Size
	}
	return old
}

// oldEvent repeats what an event is about in the fields that API 1.22 replaced and
// 1.52 dropped.
type oldEvent struct {
	Status string `json:"status,omitempty"`
	ID     string `json:"id,omitempty"`
	From   string `json:"from,omitempty"`
	events.Message
}

func (c *call) oldEvent(m events.Message) any {
	if !c.version.below(52) {
		return m
	}
	old := oldEvent{Message: m}
	switch m.Type {
	case events.ContainerEventType:
		old.Status, old.ID, old.From = string(m.Action), m.Actor.ID, m.Actor.Attributes["image"]
	case events.ImageEventType:
		old.Status, old.ID = string(m.Action), m.Actor.ID
	}
	return old
}

func (c *call) oldNetwork(n network.Inspect) network.Inspect {
	if n.Containers == nil {
		n.Containers = map[string]network.EndpointResource{}
	}
	if n.Labels == nil {
		n.Labels = map[string]string{}
	}
	if n.Options == nil {
		n.Options = map[string]string{}
	}
	if c.version.below(52) {
		n.Status = nil
	}
	return n
}
