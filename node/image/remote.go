package image

import (
	"context"
	"encoding/json"

	"github.com/distribution/reference"
	authtypes "github.com/moby/moby/api/types/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-engine/shoal/api"
)

// Login tries credentials at the registry that a.ServerAddress names. Unauthenticated
// if it refuses them.
func (s *Store) Login(ctx context.Context, a authtypes.AuthConfig) (authtypes.AuthResponse, error) {
	if s.cfg.Registry == nil {
		return authtypes.AuthResponse{}, api.Unavailable("this node reaches no registries")
	}
	if err := s.cfg.Registry.Login(ctx, a); err != nil {
		return authtypes.AuthResponse{}, err
	}
	return authtypes.AuthResponse{Status: "Login Succeeded"}, nil
}

// Distribution says what a reference means at its registry, and on which platforms
// it runs. It fetches no layers and keeps nothing.
func (s *Store) Distribution(ctx context.Context, ref string, a authtypes.AuthConfig) (authtypes.DistributionInspect, error) {
	out := authtypes.DistributionInspect{Platforms: []ocispec.Platform{}}
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return out, api.InvalidArgument("%w", err)
	}
	if s.cfg.Registry == nil {
		return out, api.Unavailable("this node reaches no registries")
	}
	named = reference.TagNameOnly(named)
	repo := s.cfg.Registry.Repository(named, a)
	if c, ok := named.(reference.Canonical); ok {
		out.Descriptor.Digest = c.Digest()
	} else if out.Descriptor, err = repo.Resolve(ctx, named.(reference.Tagged).Tag()); err != nil {
		return out, err
	}
	body, err := repo.Manifest(ctx, out.Descriptor.Digest)
	if err != nil {
		return out, err
	}
	doc, err := decodeDocument(body)
	if err != nil {
		return out, err
	}
	out.Descriptor.MediaType, out.Descriptor.Size = doc.mediaType, int64(len(body))
	if doc.index != nil {
		for _, m := range doc.index.Manifests {
			if m.Platform != nil {
				out.Platforms = append(out.Platforms, *m.Platform)
			}
		}
		return out, nil
	}
	config, err := repo.Config(ctx, doc.manifest.Config)
	if err != nil {
		return out, err
	}
	var p ocispec.Platform
	if err := json.Unmarshal(config, &p); err != nil {
		return out, api.InvalidArgument("image config: %w", err)
	}
	out.Platforms = append(out.Platforms, p)
	return out, nil
}
