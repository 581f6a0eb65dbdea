package image

import (
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is one image as the store holds it.
type Image struct {
	// ID is the digest that Docker's clients call the image's ID: the config's.
	ID digest.Digest
	// Target describes the manifest or index that the image's names point at.
	Target ocispec.Descriptor
	// Manifest is the manifest for this host's platform, Target itself or one of its index.
	Manifest ocispec.Descriptor
	Config   dockerspec.DockerOCIImageConfig
	Layers   []ocispec.Descriptor // compressed, bottom first
	// Tags and Digests are familiar names: "busybox:latest", "busybox@sha256:…".
	Tags, Digests []string
	Size          int64 // bytes on disk of layers, unpacked
	Updated       time.Time

	// The rest of the image's config file, as inspection shows it.
	Created         time.Time // zero if the config has none
	Author, Comment string
	Platform        ocispec.Platform
	DiffIDs         []digest.Digest // of the layers unpacked, bottom first
	// Chains name the unpacked layers, each with those below it; images that share one
	// have it once. LayerSizes are theirs, in bytes.
	Chains     []digest.Digest
	LayerSizes []int64
}

// Root is a container's root file system, ready or not to be used.
type Root struct {
	Path  string // where it is mounted
	Upper string // what the container wrote; empty where the host can't tell (no overlayfs)
}
