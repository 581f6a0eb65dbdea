// Package clustertest runs whole clusters in one process, on networks in memory.
package clustertest

import (
	"context"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/apitest"
)

// Hosts are the engines of the nodes of one cluster. They fetch images from each
// other, as nodes do.
type Hosts struct {
	reach func(from, to string) bool

	mu  sync.Mutex
	all map[string]*Host
}

// Host is one node's engine.
type Host struct {
	*apitest.Fake
	// BeforeCreate, if set, is called before a container is made.
	BeforeCreate func(name string)
	// BeforeRename, if set, is called before a container is renamed. With an error it
	// isn't.
	BeforeRename func(id string) error

	hosts *Hosts
	id    string
}

// CreateContainer implements api.Containers.
func (h *Host) CreateContainer(ctx context.Context, o api.CreateOptions) (container.CreateResponse, error) {
	if h.BeforeCreate != nil {
		h.BeforeCreate(o.Name)
	}
	return h.Fake.CreateContainer(ctx, o)
}

// RenameContainer implements api.Containers.
func (h *Host) RenameContainer(ctx context.Context, id, name string) error {
	if h.BeforeRename != nil {
		if err := h.BeforeRename(id); err != nil {
			return err
		}
	}
	return h.Fake.RenameContainer(ctx, id, name)
}

// NewHosts makes an empty set. reach says whether a host can fetch from another.
func NewHosts(reach func(from, to string) bool) *Hosts {
	return &Hosts{reach: reach, all: map[string]*Host{}}
}

// Host is the engine of a node, made at the first call.
func (h *Hosts) Host(id string, seed uint64) *Host {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.all[id] == nil {
		h.all[id] = &Host{Fake: apitest.NewFake(id, seed), hosts: h, id: id}
	}
	return h.all[id]
}

// Close ends all containers.
func (h *Hosts) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.all {
		if err := e.Fake.Close(); err != nil {
			return err
		}
	}
	return nil
}

// holder is another host that has an image.
func (h *Host) holder(ctx context.Context, ref string) *Host {
	h.hosts.mu.Lock()
	defer h.hosts.mu.Unlock()
	for id, o := range h.hosts.all {
		if id == h.id || !h.hosts.reach(h.id, id) {
			continue
		}
		if _, err := o.InspectImage(ctx, ref, api.ImageInspectOptions{}); err == nil {
			return o
		}
	}
	return nil
}

// PullImage takes the image with the digest from another host, if one has it. A tag
// means what the registry says, if it knows.
func (h *Host) PullImage(ctx context.Context, o api.PullOptions) (api.Stream[api.Progress], error) {
	if o.Digest == "" {
		s, err := h.Fake.PullImage(ctx, o)
		if !errdefs.IsNotFound(err) || o.Known == "" {
			return s, err
		}
		o.Digest = o.Known
	}
	if _, err := h.InspectImage(ctx, o.Digest, api.ImageInspectOptions{}); errdefs.IsNotFound(err) {
		from := h.holder(ctx, o.Digest)
		if from == nil {
			return nil, api.NotFound("manifest for %s@%s not found", o.Ref, o.Digest)
		}
		archive, err := from.SaveImages(ctx, []string{o.Digest}, o.Platform)
		if err != nil {
			return nil, err
		}
		defer archive.Close()
		s, err := h.Fake.LoadImages(ctx, archive, api.LoadOptions{})
		if err != nil {
			return nil, err
		}
		for _, err := range api.All(s) {
			if err != nil {
				return nil, err
			}
		}
	}
	if err := h.TagImage(ctx, o.Digest, o.Ref); err != nil {
		return nil, err
	}
	return api.One(ctx, func(context.Context) (api.Progress, error) {
		return api.Progress{Status: "Status: Downloaded newer image for " + o.Ref}, nil
	}), nil
}
