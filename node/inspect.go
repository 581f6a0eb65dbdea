package node

import (
	"context"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	mobynet "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/storage"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/listing"
	"github.com/shoal-engine/shoal/node/network"
)

// storageDriver is what inspection and info call the way layers are stacked.
const storageDriver = "overlay2"

// ListContainers implements api.Observers.
func (n *Node) ListContainers(ctx context.Context, o api.ListOptions) ([]container.Summary, error) {
	all, err := n.summaries(ctx, o.Size)
	if err != nil {
		return nil, err
	}
	return listing.Containers(all, n.widen(ctx, o))
}

// widen adds to a filter by ancestor the IDs of what its references mean now.
func (n *Node) widen(ctx context.Context, o api.ListOptions) api.ListOptions {
	if !o.Filters.Has("ancestor") {
		return o
	}
	refs := slices.Clone(o.Filters["ancestor"])
	for _, ref := range o.Filters["ancestor"] {
		if img, err := n.images.Get(ctx, ref); err == nil {
			refs = append(refs, img.ID.String())
		}
	}
	o.Filters = maps.Clone(o.Filters)
	o.Filters["ancestor"] = refs
	return o
}

// summaries describes all containers, newest first.
func (n *Node) summaries(ctx context.Context, size bool) ([]container.Summary, error) {
	if err := n.up(ctx); err != nil {
		return nil, err
	}
	var records []record
	for _, c := range n.index.all() {
		records = append(records, c.get())
	}
	slices.SortFunc(records, func(a, b record) int {
		if d := b.Created.Compare(a.Created); d != 0 {
			return d
		}
		return strings.Compare(a.ID, b.ID)
	})
	all := make([]container.Summary, 0, len(records))
	for _, r := range records {
		s := n.summary(r)
		if size {
			if rw, root, err := n.sizes(ctx, r); err == nil {
				s.SizeRw, s.SizeRootFs = rw, root
			}
		}
		all = append(all, s)
	}
	return all, nil
}

func (n *Node) summary(r record) container.Summary {
	s := container.Summary{
		ID: r.ID, Names: []string{"/" + r.Name}, Image: r.Config.Image, ImageID: r.Image.String(),
		ImageManifestDescriptor: r.Manifest,
		Command:                 commandText(r), Created: r.Created.Unix(), Labels: r.Config.Labels, State: r.State.Status,
		Status: listing.Status(r.State.Status, r.State.StartedAt, r.State.FinishedAt, r.State.ExitCode, "", time.Now()),
		Ports:  n.portList(r), Mounts: mountPoints(r),
		NetworkSettings: &container.NetworkSettingsSummary{Networks: n.endpoints(r)},
		Health:          &container.HealthSummary{Status: container.NoHealthcheck},
	}
	s.HostConfig.NetworkMode = string(r.HostConfig.NetworkMode)
	s.HostConfig.Annotations = r.HostConfig.Annotations
	return s
}

// commandText is the command as a listing shows it, words with blanks quoted.
func commandText(r record) string {
	words := []string{r.Path}
	for _, a := range r.Args {
		if strings.ContainsAny(a, " \t\n") {
			a = "'" + a + "'"
		}
		words = append(words, a)
	}
	return strings.Join(words, " ")
}

// portList is what docker ps shows: published ports of a running container, and
// exposed ones.
func (n *Node) portList(r record) []container.PortSummary {
	list := []container.PortSummary{}
	if !r.State.live() {
		return list
	}
	published := map[mobynet.Port]bool{}
	e, _ := n.network.Endpoint(r.ID)
	for _, p := range e.Ports {
		port, _ := mobynet.PortFrom(p.ContainerPort, p.Proto)
		published[port] = true
		ip := p.HostIP
		if !ip.IsValid() {
			ip = netip.IPv4Unspecified()
		}
		list = append(list, container.PortSummary{
			IP: ip, PrivatePort: p.ContainerPort, PublicPort: p.HostPort, Type: string(p.Proto),
		})
	}
	for port := range r.Config.ExposedPorts {
		if !published[port] {
			list = append(list, container.PortSummary{PrivatePort: port.Num(), Type: string(port.Proto())})
		}
	}
	slices.SortFunc(list, func(a, b container.PortSummary) int {
		if d := int(a.PrivatePort) - int(b.PrivatePort); d != 0 {
			return d
		}
		return int(a.PublicPort) - int(b.PublicPort)
	})
	return list
}

// endpoints describes the networks of a container; one that doesn't run has no
// address there.
func (n *Node) endpoints(r record) map[string]*mobynet.EndpointSettings {
	all := map[string]*mobynet.EndpointSettings{}
	for name, asked := range r.Endpoints {
		e := network.Endpoint{}
		if r.State.live() {
			e, _ = n.network.Endpoint(r.ID)
		}
		id := n.networkID(name)
		if e.NetworkID != "" {
			id = e.NetworkID
		}
		all[name] = settings(asked, e, id)
	}
	return all
}

func mountPoints(r record) []container.MountPoint {
	all := []container.MountPoint{}
	for _, m := range r.Mounts {
		all = append(all, m.MountPoint)
	}
	return all
}

// sizes are what a container wrote, and that with its image.
func (n *Node) sizes(ctx context.Context, r record) (rw, root int64, err error) {
	if rw, err = n.images.Usage(ctx, r.ID); err != nil {
		return 0, 0, err
	}
	root = rw
	if img, err := n.images.Get(ctx, r.Image.String()); err == nil {
		root += img.Size
	}
	return rw, root, nil
}

// InspectContainer implements api.Observers.
func (n *Node) InspectContainer(ctx context.Context, id string, o api.InspectOptions) (container.InspectResponse, error) {
	c, err := n.find(ctx, id)
	if err != nil {
		return container.InspectResponse{}, err
	}
	r := c.get()
	i := container.InspectResponse{
		ID: r.ID, Created: stamp(r.Created), Path: r.Path, Args: slices.Clone(r.Args), State: inspectState(r.State),
		Image: r.Image.String(), ImageManifestDescriptor: r.Manifest,
		ResolvConfPath: filepath.Join(c.dir, "resolv.conf"), HostnamePath: filepath.Join(c.dir, "hostname"),
		HostsPath: filepath.Join(c.dir, "hosts"), LogPath: logPath(c.dir, r),
		Name: "/" + r.Name, RestartCount: r.RestartCount, Driver: storageDriver, Platform: r.OS,
		HostConfig: r.HostConfig, Config: r.Config, Mounts: mountPoints(r), ExecIDs: c.execIDs(),
		GraphDriver:     &storage.DriverData{Name: storageDriver},
		NetworkSettings: n.inspectNetwork(r),
	}
	if i.Args == nil {
		i.Args = []string{}
	}
	if o.Size {
		rw, root, err := n.sizes(ctx, r)
		if err != nil {
			return i, fmt.Errorf("measure container %s: %w", r.ID, err)
		}
		i.SizeRw, i.SizeRootFs = &rw, &root
	}
	return i, nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

func inspectState(s state) *container.State {
	return &container.State{
		Status: s.Status, Running: s.active(), Paused: s.Status == container.StatePaused,
		Restarting: s.Status == container.StateRestarting, OOMKilled: s.OOMKilled,
		Pid: s.Pid, ExitCode: s.ExitCode, Error: s.Error,
		StartedAt: stamp(s.StartedAt), FinishedAt: stamp(s.FinishedAt),
	}
}

// execIDs are the execs that run; nil if there are none, as Docker says it.
func (c *ctr) execIDs() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var ids []string
	for id, x := range c.execs {
		x.mu.Lock()
		if x.exit == nil {
			ids = append(ids, id)
		}
		x.mu.Unlock()
	}
	slices.Sort(ids)
	return ids
}

func (n *Node) inspectNetwork(r record) *container.NetworkSettings {
	s := &container.NetworkSettings{Ports: mobynet.PortMap{}, Networks: n.endpoints(r)}
	if !r.State.live() {
		return s
	}
	e, connected := n.network.Endpoint(r.ID)
	s.Ports = portMap(r, e.Ports)
	if connected {
		s.SandboxKey = e.NetnsPath
		s.SandboxID = hex.EncodeToString([]byte(e.EndpointID))
		if len(e.EndpointID) == 64 {
			s.SandboxID = e.EndpointID
		}
	}
	return s
}
