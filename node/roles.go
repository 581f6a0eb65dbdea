package node

import (
	"context"
	"io"

	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-engine/shoal/api"
	nodeimage "github.com/shoal-engine/shoal/node/image"
	"github.com/shoal-engine/shoal/node/network"
)

// Images is what a node needs of its image store.
type Images interface {
	// Get takes a reference, an ID or an unambiguous prefix. Docker's "No such image: x" if NotFound.
	Get(ctx context.Context, ref string) (nodeimage.Image, error)
	// Coming is Get for an image that isn't here whole, but so far that containers can
	// be made of it.
	Coming(ctx context.Context, ref string) (nodeimage.Image, error)
	List(ctx context.Context) ([]nodeimage.Image, error)
	History(ctx context.Context, ref string) ([]image.HistoryResponseItem, error)
	Tag(ctx context.Context, source, target string) error
	// Remove untags or deletes. inUse names the containers (by short ID) that need an image.
	Remove(ctx context.Context, ref string, o api.ImageRemoveOptions, inUse func(id digest.Digest) []string) ([]image.DeleteResponse, error)
	Pull(ctx context.Context, o api.PullOptions) (api.Stream[api.Progress], error)
	// Login tries credentials at a registry; Distribution asks one what a reference means.
	Login(ctx context.Context, a registry.AuthConfig) (registry.AuthResponse, error)
	Distribution(ctx context.Context, ref string, a registry.AuthConfig) (registry.DistributionInspect, error)
	Push(ctx context.Context, o api.PushOptions) (api.Stream[api.Progress], error)
	Load(ctx context.Context, archive io.Reader, o api.LoadOptions) (api.Stream[api.Progress], error)
	Import(ctx context.Context, tar io.Reader, o api.ImportOptions) (api.Stream[api.Progress], error)
	Save(ctx context.Context, refs []string, p api.Platform) (io.ReadCloser, error)
	// OnChange registers a function called after each change with Docker's action
	// (load, import, pull, push, tag, untag, delete), the image's ID and, where there is one, its name.
	// It is called before Run and never concurrently with itself.
	OnChange(func(action, id, name string))
	// OnTrouble registers a function called when the image of a container has stopped
	// arriving, or (stop) proves to be wrong, so that the container must not go on. It is
	// called before Run.
	OnTrouble(func(container string, reason error, stop bool))

	// Prepare makes a container's writable layer over an image; Mount makes it
	// usable and returns the path; Unmount undoes Mount; Discard undoes Prepare.
	// All four are idempotent.
	Prepare(ctx context.Context, containerID string, img digest.Digest) error
	Mount(ctx context.Context, containerID string) (nodeimage.Root, error)
	Unmount(ctx context.Context, containerID string) error
	Discard(ctx context.Context, containerID string) error
	// Usage is the size in bytes of what the container wrote.
	Usage(ctx context.Context, containerID string) (int64, error)
}

// Networker is what a node needs of its network.
type Networker interface {
	// Connect makes a container's network namespace and everything in it. An
	// endpoint of the same container that is still there is replaced. Taken ports
	// are an error with Docker's text ("… port is already allocated").
	Connect(ctx context.Context, r network.Request) (network.Endpoint, error)
	// Disconnect frees all that Connect made; again is no error.
	Disconnect(ctx context.Context, containerID string) error
	// Endpoint finds what Connect made, also by an agent before this one.
	Endpoint(containerID string) (network.Endpoint, bool)
	// Info describes the host's container network.
	Info() network.Info
}
