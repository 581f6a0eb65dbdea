package apiv1

import (
	"slices"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/system"
)

// Progress is one line of a long job, as Docker's clients draw it.
type Progress = jsonstream.Message

// CreateOptions describe a container to be.
type CreateOptions struct {
	// ID is the container's ID where the caller chose it (a cluster does, so that
	// the claim on the name and the container agree); empty means the engine chooses.
	ID string
	// Name without a leading slash; empty means the engine invents one.
	Name       string
	Platform   Platform
	Config     *container.Config
	HostConfig *container.HostConfig
	Networking *network.NetworkingConfig
}

// Platform is what an image runs on; the zero value means this engine's own.
type Platform struct{ OS, Architecture, Variant string }

// TerminalSize is in characters.
type TerminalSize struct{ Height, Width uint }

// StartOptions of a container; DetachKeys exist for attached starts by clients.
type StartOptions struct{ DetachKeys string }

// StopOptions say how a container is asked to end. Signal empty means the
// container's own stop signal, else SIGTERM. Timeout is in seconds: nil means the
// container's own, else 10; negative waits for ever.
type StopOptions struct {
	Signal  string
	Timeout *int
}

// RemoveOptions of a container.
type RemoveOptions struct{ Force, Volumes, Links bool }

// ListOptions of containers. Limit > 0 implies All.
type ListOptions struct {
	All, Size bool
	Limit     int
	Filters   Filters
}

// InspectOptions of a container.
type InspectOptions struct{ Size bool }

// LogsOptions choose log lines. Since and Until zero mean no bound; Tail negative
// means all.
type LogsOptions struct {
	Stdout, Stderr, Follow, Timestamps, Details bool
	Since, Until                                time.Time
	Tail                                        int
}

// AttachOptions choose streams. Logs replays what was written before; Stream
// follows what is written from now on.
type AttachOptions struct {
	Stdin, Stdout, Stderr, Logs, Stream bool
	DetachKeys                          string
}

// ExecStartOptions say how an exec starts. Stdin, stdout and stderr were chosen
// when it was created.
type ExecStartOptions struct {
	Detach, Tty bool
	Size        TerminalSize
}

// ImageListOptions choose images.
type ImageListOptions struct {
	All, SharedSize, Manifests, Identity bool
	Filters                              Filters
}

// ImageInspectOptions choose detail.
type ImageInspectOptions struct {
	Manifests bool
	Platform  Platform
}

// ImageRemoveOptions say how far a removal goes.
type ImageRemoveOptions struct{ Force, NoPrune bool }

// PruneImagesReport says what a prune deleted.
type PruneImagesReport struct {
	Deleted   []ImageDeletion
	Reclaimed uint64
}

// ImageDeletion is one thing that was untagged or deleted.
type ImageDeletion struct{ Untagged, Deleted string }

// PullOptions name an image. Digest, if set, is the manifest's and pins what Ref
// will mean on this engine. Known, if set, is what Ref shall mean if its registry
// can't be asked or doesn't know. Early says that containers are to be made of it, so
// that the pull may end as soon as that is possible, if the engine allows it.
type PullOptions struct {
	Ref, Digest, Known string
	Early              bool
	Platform           Platform
	Auth               registry.AuthConfig
}

// PushOptions name what is pushed: a tag, or by a name without one all tags of a
// repository. Of an index, the zero Platform pushes all that is there.
type PushOptions struct {
	Ref      string
	Platform Platform
	Auth     registry.AuthConfig
}

// PushResult is what the aux field of a push's progress says of each tag.
type PushResult struct {
	Tag, Digest string
	Size        int // of the manifest
}

// LoadOptions of an archive.
type LoadOptions struct {
	Quiet    bool
	Platform Platform
}

// ImportOptions of a root file system.
type ImportOptions struct {
	Ref, Message string
	Changes      []string
	Platform     Platform
}

// NetworkInspectOptions choose detail and, where a name is ambiguous, scope.
type NetworkInspectOptions struct {
	Verbose bool
	Scope   string
}

// DiskUsageOptions choose what is measured; no kinds mean all.
type DiskUsageOptions struct{ Kinds []system.DiskUsageObject }

// Wants says whether a kind is to be measured.
func (o DiskUsageOptions) Wants(k system.DiskUsageObject) bool {
	return len(o.Kinds) == 0 || slices.Contains(o.Kinds, k)
}

// EventsOptions choose events. Since zero means from now on; Until zero means for
// ever.
type EventsOptions struct {
	Since, Until time.Time
	Filters      Filters
}

// Ping is what clients negotiate with.
type Ping struct {
	APIVersion, MinAPIVersion, OSType, BuilderVersion, Swarm string
	Experimental                                             bool
}
