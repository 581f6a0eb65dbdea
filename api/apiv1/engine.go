package apiv1

import (
	"context"
	"io"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"
)

// Engine runs containers from images. A node, a whole cluster and a client of
// either implement it alike.
//
// All methods may be called concurrently. A cancelled context ends the call and
// every stream the call returned. Errors carry a class of package errdefs
// (NotFound, Conflict, InvalidArgument, NotModified, Unavailable, …); the text is
// what Docker's clients show and, where they parse it, Docker's own.
//
// Wherever a method takes a container's id, a full ID, an unambiguous prefix of
// one, or a name with or without its leading slash will do.
type Engine interface {
	Containers
	Observers
	Terminals
	Execs
	Images
	Archives
	Registries
	Networks
	Volumes
	System
}

// Containers is the life of containers.
type Containers interface {
	// CreateContainer makes a container from an image the engine has or can reach
	// and returns its ID. It starts nothing. Errors: NotFound for the image
	// ("No such image: x"), Conflict for a taken name, InvalidArgument.
	CreateContainer(ctx context.Context, o CreateOptions) (container.CreateResponse, error)
	// StartContainer returns once the container's process runs. A container that
	// runs already is NotModified. A command that can't be run leaves exit code
	// 127 (not found) or 126 (not executable) behind and returns InvalidArgument.
	StartContainer(ctx context.Context, id string, o StartOptions) error
	// StopContainer signals, waits o.Timeout seconds, kills, and returns after the
	// container ended. One that doesn't run is NotModified.
	StopContainer(ctx context.Context, id string, o StopOptions) error
	RestartContainer(ctx context.Context, id string, o StopOptions) error
	// KillContainer sends a signal. A container that doesn't run is Conflict.
	KillContainer(ctx context.Context, id, signal string) error
	PauseContainer(ctx context.Context, id string) error
	UnpauseContainer(ctx context.Context, id string) error
	RenameContainer(ctx context.Context, id, name string) error
	// RemoveContainer forgets a container and its files. A running one is Conflict
	// unless o.Force.
	RemoveContainer(ctx context.Context, id string, o RemoveOptions) error
	// PruneContainers removes every stopped container that the filters admit.
	PruneContainers(ctx context.Context, f Filters) (container.PruneReport, error)
}

// Observers look at containers without changing them.
type Observers interface {
	ListContainers(ctx context.Context, o ListOptions) ([]container.Summary, error)
	InspectContainer(ctx context.Context, id string, o InspectOptions) (container.InspectResponse, error)
	// TopContainer lists the container's processes as ps prints them; psArgs
	// empty means -ef.
	TopContainer(ctx context.Context, id string, psArgs []string) (container.TopResponse, error)
	// ContainerLogs streams what the container wrote, oldest first.
	ContainerLogs(ctx context.Context, id string, o LogsOptions) (Output, error)
	// WaitContainer returns once the wait is registered, so that a start that
	// follows can't be missed; Recv then blocks until the condition holds and
	// yields exactly one value before io.EOF.
	WaitContainer(ctx context.Context, id string, c container.WaitCondition) (Stream[container.WaitResponse], error)
}

// Terminals connect callers with a container's standard streams.
type Terminals interface {
	// AttachContainer returns once the streams are connected; attaching before
	// start loses no byte. Reading the session yields output (framed as
	// Output.Multiplexed says) and io.EOF when the container ends; CloseWrite ends
	// the container's stdin where the container was made with StdinOnce.
	AttachContainer(ctx context.Context, id string, o AttachOptions) (Session, error)
	ResizeContainer(ctx context.Context, id string, s TerminalSize) error
}

// Execs are further processes in running containers.
//
// An exec's ID starts with the first 24 digits of its container's ID, so that
// whoever knows where the container is knows where the exec is.
type Execs interface {
	CreateExec(ctx context.Context, containerID string, o container.ExecCreateRequest) (container.ExecCreateResponse, error)
	// StartExec runs the process. With o.Detach the session is nil and the call
	// returns once the process runs. A command that can't be run makes exit code
	// 126 or 127; the reason is written into the session.
	StartExec(ctx context.Context, execID string, o ExecStartOptions) (Session, error)
	ResizeExec(ctx context.Context, execID string, s TerminalSize) error
	InspectExec(ctx context.Context, execID string) (container.ExecInspectResponse, error)
}

// Images is what the engine holds.
type Images interface {
	ListImages(ctx context.Context, o ImageListOptions) ([]image.Summary, error)
	// InspectImage takes a reference, an ID or an unambiguous prefix of one.
	InspectImage(ctx context.Context, ref string, o ImageInspectOptions) (image.InspectResponse, error)
	ImageHistory(ctx context.Context, ref string, p Platform) ([]image.HistoryResponseItem, error)
	TagImage(ctx context.Context, source, target string) error
	// RemoveImage untags, and deletes what no tag and no container needs any more.
	RemoveImage(ctx context.Context, ref string, o ImageRemoveOptions) ([]image.DeleteResponse, error)
	PruneImages(ctx context.Context, f Filters) (PruneImagesReport, error)
}

// Archives move images into and out of the engine. Their progress streams fail
// with an error from the call itself if nothing was done yet, else from Recv.
type Archives interface {
	// PullImage makes the engine hold an image: what the registry means by a tag now,
	// or else what the engine knows of it; the bytes come from peers first.
	PullImage(ctx context.Context, o PullOptions) (Stream[Progress], error)
	// PushImage sends an image to the registry that its name says. The stream ends
	// with a PushResult for each tag. NotFound if the name means nothing here.
	PushImage(ctx context.Context, o PushOptions) (Stream[Progress], error)
	// LoadImages reads a docker-save or OCI layout archive, plain or compressed.
	LoadImages(ctx context.Context, archive io.Reader, o LoadOptions) (Stream[Progress], error)
	// ImportImage makes a one-layer image of a root file system tar.
	ImportImage(ctx context.Context, tar io.Reader, o ImportOptions) (Stream[Progress], error)
	// SaveImages writes an archive that both docker load and OCI tools read.
	SaveImages(ctx context.Context, refs []string, p Platform) (io.ReadCloser, error)
}

// Registries are where images come from and go to. The calls ask them and keep nothing.
type Registries interface {
	// Login tries credentials at the registry that a.ServerAddress names;
	// Unauthenticated if it refuses them.
	Login(ctx context.Context, a registry.AuthConfig) (registry.AuthResponse, error)
	// InspectDistribution says what a reference means at its registry.
	InspectDistribution(ctx context.Context, ref string, a registry.AuthConfig) (registry.DistributionInspect, error)
}

// Networks are what containers are connected to.
type Networks interface {
	ListNetworks(ctx context.Context, f Filters) ([]network.Inspect, error)
	InspectNetwork(ctx context.Context, id string, o NetworkInspectOptions) (network.Inspect, error)
}

// Volumes are directories that outlive containers. Of a name there is one, whichever
// host of the engine it is on.
type Volumes interface {
	ListVolumes(ctx context.Context, f Filters) (volume.ListResponse, error)
	// InspectVolume is NotFound ("get x: no such volume") for an unknown name.
	InspectVolume(ctx context.Context, name string) (volume.Volume, error)
	// CreateVolume makes a volume, and a name if it has none. One that is there
	// already is returned as it is.
	CreateVolume(ctx context.Context, o volume.CreateRequest) (volume.Volume, error)
	// RemoveVolume is Conflict for one that a container has, running or not. With
	// force, one that isn't there is no error.
	RemoveVolume(ctx context.Context, name string, force bool) error
	// PruneVolumes removes volumes that no container has: those without a name of
	// their own, with the filter all=true every one.
	PruneVolumes(ctx context.Context, f Filters) (volume.PruneReport, error)
}

// System is the engine itself.
type System interface {
	Ping(ctx context.Context) (Ping, error)
	Version(ctx context.Context) (system.VersionResponse, error)
	Info(ctx context.Context) (system.Info, error)
	// DiskUsage measures what takes space. What wasn't asked for is nil; the rest has
	// its items.
	DiskUsage(ctx context.Context, o DiskUsageOptions) (system.DiskUsage, error)
	// Events replays what happened since o.Since, then follows.
	Events(ctx context.Context, o EventsOptions) (Stream[events.Message], error)
}
