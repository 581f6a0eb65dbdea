package cluster

import (
	"cmp"
	"context"
	"hash/fnv"
	"maps"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/volume"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/listing"
	"github.com/shoal-engine/shoal/cluster/catalog"
	"github.com/shoal-engine/shoal/scheduler"
)

// nodeStatus tells in a volume's status where it is.
const nodeStatus = "node"

// ListVolumes implements api.Volumes. It reads the catalog, so it answers whatever the
// nodes do.
func (r *Router) ListVolumes(ctx context.Context, f api.Filters) (volume.ListResponse, error) {
	r.sync(ctx, listSync)
	v := r.reader.View()
	type key struct{ node, name string }
	used := map[key]bool{}
	for _, c := range v.Containers() {
		for _, m := range c.Summary.Mounts {
			if m.Type == mount.TypeVolume {
				used[key{r.nodeName(c.NodeID), m.Name}] = true
			}
		}
	}
	var all []volume.Volume
	for _, x := range v.Volumes() {
		if x.Made {
			all = append(all, r.placed(x.Volume, x.NodeID))
		}
	}
	found, err := listing.Volumes(all, f, func(v volume.Volume) bool {
		node, _ := v.Status[nodeStatus].(string)
		return used[key{node, v.Name}]
	})
	return volume.ListResponse{Volumes: found}, err
}

// placed is a volume with the name of its node.
func (r *Router) placed(v volume.Volume, node string) volume.Volume {
	v.Status = maps.Clone(v.Status)
	if v.Status == nil {
		v.Status = map[string]any{}
	}
	v.Status[nodeStatus] = r.nodeName(node)
	return v
}

// volumesNamed are those of a view that have a name, what the name means first: this
// node's, or else the oldest.
func (r *Router) volumesNamed(v catalog.View, name string) []catalog.Volume {
	var found []catalog.Volume
	for _, x := range v.Volumes() {
		if x.Name == name {
			found = append(found, x)
		}
	}
	slices.SortFunc(found, func(a, b catalog.Volume) int {
		if here := a.NodeID == r.self; here != (b.NodeID == r.self) {
			if here {
				return -1
			}
			return 1
		}
		return cmp.Or(a.Claimed.Compare(b.Claimed), strings.Compare(a.NodeID, b.NodeID))
	})
	return found
}

// volumes finds by a name, here and then in the whole cluster.
func (r *Router) volumes(ctx context.Context, name string) ([]catalog.Volume, error) {
	found := r.volumesNamed(r.reader.View(), name)
	if len(found) > 0 {
		return found, nil
	}
	behind := r.synced(ctx, missSync)
	if found = r.volumesNamed(r.reader.View(), name); len(found) > 0 {
		return found, nil
	}
	// A node may not have reported yet what it made a moment ago.
	var mu sync.Mutex
	err := r.everywhere(ctx, func(n node) error {
		v, err := n.InspectVolume(ctx, name)
		if err != nil {
			if errdefs.IsNotFound(err) {
				return nil
			}
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		found = append(found, catalog.Volume{Name: name, NodeID: n.ID, Made: true, Volume: v})
		return nil
	})
	switch {
	case len(found) > 0:
		return found, nil
	case err != nil:
		return nil, err
	case behind != nil:
		return nil, api.Unavailable("volume %s isn't known on this node, which can't ask the others now: %w", name, behind)
	}
	return nil, listing.NoSuchVolume(name)
}

// InspectVolume implements api.Volumes. Of a volume whose node can't be reached it says
// what is known here.
func (r *Router) InspectVolume(ctx context.Context, name string) (volume.Volume, error) {
	found, err := r.volumes(ctx, name)
	if err != nil {
		return volume.Volume{}, err
	}
	x := found[0]
	e, err := r.onNode(ctx, x.NodeID)
	if err == nil {
		var v volume.Volume
		if v, err = e.InspectVolume(ctx, name); err == nil {
			return r.placed(v, x.NodeID), nil
		}
	}
	if errdefs.IsUnavailable(err) && x.Made && ctx.Err() == nil {
		return r.placed(x.Volume, x.NodeID), nil
	}
	return volume.Volume{}, err
}

// onNode is the engine of a node that can be reached.
func (r *Router) onNode(ctx context.Context, id string) (api.Engine, error) {
	if id != r.self && lostNodes(r.reader.View())(id) {
		return nil, api.Unavailable("node %s can't be reached", r.nodeName(id))
	}
	return r.peer(ctx, id)
}

// CreateVolume implements api.Volumes: on this node, or where the constraints among its
// labels want it.
func (r *Router) CreateVolume(ctx context.Context, o volume.CreateRequest) (volume.Volume, error) {
	var none volume.Volume
	if err := listing.CheckVolume(o); err != nil {
		return none, err
	}
	if o.Name == "" {
		o.Name, o.Labels = newID(), maps.Clone(o.Labels)
		if o.Labels == nil {
			o.Labels = map[string]string{}
		}
		o.Labels[listing.AnonymousLabel] = ""
	}
	node, err := r.volumeNode(o)
	if err != nil {
		return none, err
	}
	res, err := r.store.Propose(ctx, catalog.ClaimVolume{Name: o.Name, NodeID: node})
	if err != nil {
		return none, err
	}
	node = res.Volume.NodeID
	e, err := r.onNode(ctx, node)
	if err == nil {
		var v volume.Volume
		if v, err = e.CreateVolume(ctx, o); err == nil {
			r.await(ctx, settle, madeVolume(o.Name, node))
			return r.placed(v, node), nil
		}
	}
	if res.Volume.Made {
		if errdefs.IsUnavailable(err) && ctx.Err() == nil {
			return r.placed(res.Volume.Volume, node), nil // it is there already
		}
		return none, err
	}
	r.releaseVolumes(ctx, map[string]string{o.Name: node})
	return none, err
}

// volumeNode chooses where a new volume goes.
func (r *Router) volumeNode(o volume.CreateRequest) (string, error) {
	rules, err := scheduler.ParseLabels(o.Labels)
	if err != nil || len(rules) == 0 {
		return r.self, err
	}
	seed := fnv.New64a()
	_, _ = seed.Write([]byte(o.Name)) // a hash takes everything
	d, err := scheduler.Place(r.schedule(r.reader.View()), scheduler.Request{Rules: rules},
		mathrand.New(mathrand.NewPCG(seed.Sum64(), 0)))
	return d.NodeID, err
}

// madeVolume says whether a claim has become a volume, or nothing.
func madeVolume(name, node string) func(catalog.View) bool {
	return func(v catalog.View) bool {
		return !slices.ContainsFunc(v.Volumes(), func(x catalog.Volume) bool {
			return x.Name == name && x.NodeID == node && !x.Made
		})
	}
}

// releaseVolumes drops claims of volumes, nodes by name, as far as nothing came of them.
func (r *Router) releaseVolumes(ctx context.Context, claimed map[string]string) {
	ctx, cancel := cleanup(ctx)
	defer cancel()
	for name, node := range claimed {
		if _, err := r.store.Propose(ctx, catalog.ReleaseVolume{Name: name, NodeID: node}); err != nil {
			r.log.Warn("a volume's claim stays until the leader expires it", "volume", name, "error", err)
		}
	}
}

// RemoveVolume implements api.Volumes. A name that several nodes have is nobody's to
// guess at.
func (r *Router) RemoveVolume(ctx context.Context, name string, force bool) error {
	found, err := r.volumes(ctx, name)
	if errdefs.IsNotFound(err) && force {
		return nil
	}
	if err != nil {
		return err
	}
	if len(found) > 1 {
		var nodes []string
		for _, x := range found {
			nodes = append(nodes, r.nodeName(x.NodeID))
		}
		slices.Sort(nodes)
		return api.Conflict("remove %s: several nodes have a volume of that name (%s): remove it on the node's own socket",
			name, strings.Join(nodes, ", "))
	}
	x := found[0]
	e, err := r.onNode(ctx, x.NodeID)
	if err == nil {
		err = e.RemoveVolume(ctx, name, force)
	}
	switch {
	case errdefs.IsNotFound(err) && !x.Made:
		r.releaseVolumes(ctx, map[string]string{name: x.NodeID})
		return err
	case errdefs.IsUnavailable(err):
		return api.Unavailable("remove %s: it is on node %s: %w", name, r.nodeName(x.NodeID), err)
	case err != nil:
		return err
	}
	r.await(ctx, settle, r.withoutVolumes(x.NodeID, []string{name}))
	return nil
}

// withoutVolumes says whether a view has none of a node's volumes of those names.
func (r *Router) withoutVolumes(node string, names []string) func(catalog.View) bool {
	return func(v catalog.View) bool {
		return !slices.ContainsFunc(v.Volumes(), func(x catalog.Volume) bool {
			return x.NodeID == node && slices.Contains(names, x.Name)
		})
	}
}

// anonymous are the volumes of a container that have no name of their own.
func anonymous(v catalog.View, c catalog.Container) []string {
	var names []string
	for _, x := range v.Volumes() {
		_, nameless := x.Volume.Labels[listing.AnonymousLabel]
		if x.NodeID == c.NodeID && nameless &&
			slices.ContainsFunc(c.Summary.Mounts, func(m container.MountPoint) bool { return m.Name == x.Name }) {
			names = append(names, x.Name)
		}
	}
	return names
}

// PruneVolumes implements api.Volumes: every reachable node prunes its own.
func (r *Router) PruneVolumes(ctx context.Context, f api.Filters) (volume.PruneReport, error) {
	var mu sync.Mutex
	report := volume.PruneReport{VolumesDeleted: []string{}}
	gone := map[string][]string{}
	err := r.everywhere(ctx, func(n node) error {
		part, err := n.PruneVolumes(ctx, f)
		mu.Lock()
		defer mu.Unlock()
		report.VolumesDeleted = append(report.VolumesDeleted, part.VolumesDeleted...)
		report.SpaceReclaimed += part.SpaceReclaimed
		gone[n.ID] = part.VolumesDeleted
		return err
	})
	slices.Sort(report.VolumesDeleted)
	r.await(ctx, settle, func(v catalog.View) bool {
		for node, names := range gone {
			if !r.withoutVolumes(node, names)(v) {
				return false
			}
		}
		return true
	})
	return report, err
}

// asked are the names of the volumes that a container asks for.
func (p *creation) asked() []string {
	var names []string
	for _, b := range p.HostConfig.Binds {
		if source, _, ok := strings.Cut(b, ":"); ok && source != "" && !strings.HasPrefix(source, "/") {
			names = append(names, source)
		}
	}
	for _, m := range p.HostConfig.Mounts {
		if m.Type == mount.TypeVolume && m.Source != "" {
			names = append(names, m.Source)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// placeTries bounds how often a container is placed anew because others claimed its
// volumes meanwhile.
const placeTries = 8

// placeWithVolumes places a container and claims those of its volumes that there aren't yet.
func (r *Router) placeWithVolumes(ctx context.Context, p *creation) (scheduler.Decision, error) {
	for range placeTries {
		d, err := r.place(p)
		if err != nil {
			return d, err
		}
		elsewhere, err := r.claimVolumes(ctx, p, d.NodeID)
		if err != nil || !elsewhere {
			return d, err
		}
	}
	return scheduler.Decision{}, api.Conflict("the volumes %s are on several nodes", strings.Join(p.asked(), ", "))
}

// claimVolumes claims volumes on a node; elsewhere says that another node has one.
func (r *Router) claimVolumes(ctx context.Context, p *creation, node string) (elsewhere bool, err error) {
	for _, name := range p.asked() {
		if listing.CheckVolumeName(name) != nil {
			continue // the node will refuse it
		}
		if there := r.volumesNamed(r.reader.View(), name); len(there) > 0 {
			if there[0].NodeID != node { // since the container was placed
				return true, nil
			}
			continue
		}
		res, err := r.store.Propose(ctx, catalog.ClaimVolume{Name: name, NodeID: node})
		if err != nil {
			return false, err
		}
		if res.Volume.NodeID != node {
			r.await(ctx, settle, func(v catalog.View) bool { return len(r.volumesNamed(v, name)) > 0 })
			return true, nil
		}
		if !res.Volume.Made {
			p.volumes[name] = node
		}
	}
	return false, nil
}
