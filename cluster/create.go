package cluster

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	mathrand "math/rand/v2"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/listing"
	"github.com/shoal-engine/shoal/cluster/catalog"
	"github.com/shoal-engine/shoal/scheduler"
)

// replaceLabel names the container whose place a new one takes, as Compose says it:
// both exist for a moment, with the same published ports.
const replaceLabel = "com.docker.compose.replace"

// nameTries is how many names are invented for a container nobody named.
const nameTries = 8

// CreateContainer implements api.Containers: choose a node, claim ID, name and ports
// in one command, have the node make the container. A failure releases the claim; if
// this node dies in between, the leader does.
func (r *Router) CreateContainer(ctx context.Context, o api.CreateOptions) (container.CreateResponse, error) {
	var none container.CreateResponse
	p, err := r.plan(ctx, o)
	if err != nil {
		return none, err
	}
	claimed, err := r.claim(ctx, p)
	if err != nil {
		r.releaseVolumes(ctx, p.volumes)
		return none, err
	}
	made, err := r.make(ctx, p, claimed)
	if err != nil {
		undo, cancel := cleanup(ctx)
		defer cancel()
		_, released := r.store.Propose(undo, catalog.ReleaseClaim{ID: claimed.ID})
		if released != nil {
			r.log.Warn("a claim stays until the leader expires it", "container", claimed.ID, "error", released)
		}
		r.releaseVolumes(ctx, p.volumes)
		return none, err
	}
	for name, node := range p.volumes {
		r.await(ctx, settle, madeVolume(name, node))
	}
	if r.removed(ctx, claimed.ID) {
		return none, r.disown(ctx, claimed)
	}
	return made, nil
}

// removed says whether a claim that was granted is surely gone. A view without it may
// just be late.
func (r *Router) removed(ctx context.Context, id string) bool {
	if _, err := r.reader.View().Container(id); !errdefs.IsNotFound(err) {
		return false
	}
	if r.synced(ctx, missSync) != nil {
		return false
	}
	_, err := r.reader.View().Container(id)
	return errdefs.IsNotFound(err)
}

// disown removes a container from its node whose claim was removed while it was being
// made: nobody would ever see it again.
func (r *Router) disown(ctx context.Context, c *catalog.Container) error {
	ctx, cancel := cleanup(ctx)
	defer cancel()
	gone := api.Conflict("container %s was removed while it was being made", c.Name)
	e, err := r.engine(ctx, *c)
	if err != nil {
		return errors.Join(gone, err)
	}
	if err := e.RemoveContainer(ctx, c.ID, api.RemoveOptions{Force: true, Volumes: true}); err != nil && !errdefs.IsNotFound(err) {
		return errors.Join(gone, err)
	}
	return gone
}

// creation is a container on its way.
type creation struct {
	api.CreateOptions
	image   *clusterImage
	rules   []scheduler.Rule
	claim   catalog.ClaimContainer // without node and ports' numbers
	random  *mathrand.Rand
	unnamed bool
	volumes map[string]string // claimed for it: nodes by name
}

// plan checks a request and finds out all that doesn't depend on the node.
func (r *Router) plan(ctx context.Context, o api.CreateOptions) (*creation, error) {
	if o.Config == nil {
		return nil, api.InvalidArgument("config cannot be empty in order to create a container")
	}
	config, host := *o.Config, container.HostConfig{}
	if o.HostConfig != nil {
		host = *o.HostConfig
	}
	o.Config, o.HostConfig = &config, &host
	p := &creation{CreateOptions: o, unnamed: o.Name == "", volumes: map[string]string{}}
	var err error
	if !p.unnamed {
		if p.Name, err = validName(o.Name); err != nil {
			return nil, err
		}
	}
	if p.ID == "" {
		p.ID = newID()
	}
	seed := fnv.New64a()
	_, _ = seed.Write([]byte(p.ID)) // a hash takes everything
	p.random = mathrand.New(mathrand.NewPCG(seed.Sum64(), 0))
	if p.rules, err = rules(&config); err != nil {
		return nil, err
	}
	if p.image, err = r.image(ctx, config.Image); err != nil {
		return nil, err
	}
	ports, err := r.ports(ctx, p)
	if err != nil {
		return nil, err
	}
	p.claim = catalog.ClaimContainer{
		ID: p.ID, Summary: p.summary(), Tags: config.Labels, Memory: host.Memory, Ports: ports,
		Replaces: config.Labels[replaceLabel],
	}
	return p, nil
}

// rules takes the placement rules out of a container's environment and labels.
func rules(c *container.Config) ([]scheduler.Rule, error) {
	fromEnv, rest, err := scheduler.ParseEnv(c.Env)
	if err != nil {
		return nil, err
	}
	c.Env = rest
	fromLabels, err := scheduler.ParseLabels(c.Labels)
	return append(fromEnv, fromLabels...), err
}

// newID is a container's ID: 64 hexadecimal digits of chance.
func newID() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// summary is what listings show until the node reports.
func (p *creation) summary() container.Summary {
	s := container.Summary{
		Image: p.Config.Image, ImageID: p.image.id, Labels: p.Config.Labels,
		Command: strings.Join(append(slices.Clone(p.Config.Entrypoint), p.Config.Cmd...), " "),
		State:   container.StateCreated,
	}
	s.HostConfig.NetworkMode = string(p.HostConfig.NetworkMode)
	for _, name := range p.asked() {
		s.Mounts = append(s.Mounts, container.MountPoint{Type: mount.TypeVolume, Name: name, Driver: "local"})
	}
	return s
}

// claim places the container and claims what it needs.
func (r *Router) claim(ctx context.Context, p *creation) (*catalog.Container, error) {
	for try := range nameTries {
		c := p.claim
		c.Name = p.Name
		if p.unnamed {
			c.Name = listing.RandomName(p.random, try > 0)
		}
		d, err := r.placeWithVolumes(ctx, p)
		if err != nil {
			return nil, err
		}
		c.NodeID = d.NodeID
		res, err := r.store.Propose(ctx, c)
		if err == nil {
			r.log.Debug("container placed", "container", c.ID, "name", c.Name, "node", d.NodeName)
			return res.Container, nil
		}
		if !p.unnamed || !errdefs.IsConflict(err) {
			return nil, err
		}
	}
	return nil, api.Conflict("no free name found for the container; give it one")
}

// place asks the scheduler for a node.
func (r *Router) place(p *creation) (scheduler.Decision, error) {
	v := r.reader.View()
	pins, err := r.pins(v, p)
	if err != nil {
		return scheduler.Decision{}, err
	}
	may, why := only(v, p.image)
	return scheduler.Place(r.schedule(v), scheduler.Request{
		Only: may, Why: why,
		Image: p.image.digest, Platform: p.Platform, Memory: p.HostConfig.Memory,
		CPUs: float64(p.HostConfig.NanoCPUs) / 1e9, Rules: p.rules, Pins: pins,
	}, p.random)
}

// make has the chosen node make the container.
func (r *Router) make(ctx context.Context, p *creation, claimed *catalog.Container) (container.CreateResponse, error) {
	var none container.CreateResponse
	e, err := r.engine(ctx, *claimed)
	if err != nil {
		return none, err
	}
	o := p.CreateOptions
	o.ID, o.Name = claimed.ID, claimed.Name
	o.HostConfig = bound(p.HostConfig, claimed.Ports)
	if known, held := p.image.holders[claimed.NodeID]; !held || !known.knows(o.Config.Image) {
		if err := r.bring(ctx, e, p); err != nil {
			return none, fmt.Errorf("node %s: %w", r.nodeName(claimed.NodeID), err)
		}
	}
	var made container.CreateResponse
	err = granted(ctx, func() (err error) {
		made, err = e.CreateContainer(ctx, o)
		return err
	})
	if errdefs.IsNotFound(err) && strings.HasPrefix(err.Error(), "No such image") {
		// It was removed there since the view was made.
		if err := r.bring(ctx, e, p); err != nil {
			return none, errors.Join(listing.NoSuchImage(o.Config.Image), err)
		}
		made, err = e.CreateContainer(ctx, o)
	}
	return made, err
}

// bring makes a node hold the image of a container, under the name it was asked for by.
func (r *Router) bring(ctx context.Context, e api.Engine, p *creation) error {
	if err := fetch(ctx, e, p.image.pullName(p.Config.Image), p.image.digest, p.Platform); err != nil {
		return fmt.Errorf("fetch image %s: %w", p.image.name(), err)
	}
	return nil
}
