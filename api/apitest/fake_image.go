package apitest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/listing"
)

// fakeImage never changes once it is loaded.
type fakeImage struct {
	id     digest.Digest
	raw    []byte // the configuration, of which id is the digest
	config ocispec.Image
	layers [][]byte
	files  map[string]int64 // modes by absolute path
	size   int64
}

// maxArchive bounds what is taken into memory.
const maxArchive = 1 << 30

func newImage(raw []byte, layers [][]byte) (*fakeImage, error) {
	i := &fakeImage{id: digest.FromBytes(raw), raw: raw, layers: layers, files: map[string]int64{}}
	if err := json.Unmarshal(raw, &i.config); err != nil {
		return nil, api.InvalidArgument("read the image's config: %w", err)
	}
	links := map[string]string{}
	for _, l := range layers {
		i.size += int64(len(l))
		err := eachFile(bytes.NewReader(l), func(h *tar.Header, _ io.Reader) error {
			name := path.Join("/", h.Name)
			i.files[name] = h.Mode
			if h.Typeflag == tar.TypeSymlink {
				links[name] = path.Join(path.Dir(name), h.Linkname)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	for from, to := range links {
		if mode, ok := i.files[to]; ok {
			i.files[from] = mode
		}
	}
	return i, nil
}

func eachFile(r io.Reader, do func(*tar.Header, io.Reader) error) error {
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return api.InvalidArgument("read archive: %w", err)
		}
		if err := do(h, t); err != nil {
			return err
		}
	}
}

// loaded is an image of an archive and its names there.
type loaded struct {
	*fakeImage
	tags []string
}

// readArchive reads what docker save wrote.
func readArchive(r io.Reader) ([]loaded, error) {
	files := map[string][]byte{}
	all, err := io.ReadAll(io.LimitReader(r, maxArchive))
	if err != nil {
		return nil, err
	}
	plain := io.Reader(bytes.NewReader(all))
	if bytes.HasPrefix(all, []byte{0x1f, 0x8b}) {
		if plain, err = gzip.NewReader(plain); err != nil {
			return nil, api.InvalidArgument("read archive: %w", err)
		}
	}
	err = eachFile(plain, func(h *tar.Header, r io.Reader) error {
		b, err := io.ReadAll(r)
		files[path.Clean(h.Name)] = b
		return err
	})
	if err != nil {
		return nil, err
	}
	var manifest []struct {
		Config           string
		RepoTags, Layers []string
	}
	if err := json.Unmarshal(files["manifest.json"], &manifest); err != nil {
		return nil, api.InvalidArgument("the archive holds no images: %w", err)
	}
	var out []loaded
	for _, m := range manifest {
		var layers [][]byte
		for _, l := range m.Layers {
			layers = append(layers, files[path.Clean(l)])
		}
		i, err := newImage(files[path.Clean(m.Config)], layers)
		if err != nil {
			return nil, err
		}
		out = append(out, loaded{i, m.RepoTags})
	}
	return out, nil
}

// complete fills in what a container's configuration leaves to the image.
func (i *fakeImage) complete(c *container.Config) {
	from := i.config.Config
	if len(c.Entrypoint) == 0 {
		if len(c.Cmd) == 0 {
			c.Cmd = from.Cmd
		}
		if c.Entrypoint == nil {
			c.Entrypoint = from.Entrypoint
		}
	}
	env := slices.Clone(c.Env)
	for _, kv := range from.Env {
		k, _, _ := strings.Cut(kv, "=")
		if !slices.ContainsFunc(env, func(have string) bool { return strings.HasPrefix(have, k+"=") }) {
			env = append(env, kv)
		}
	}
	c.Env = env
	labels := maps.Clone(from.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, c.Labels)
	c.Labels = labels
}

// fullRef is a reference with everything Docker leaves out.
func fullRef(ref string) (string, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return "", api.InvalidArgument("invalid reference format: %q", ref)
	}
	return reference.TagNameOnly(named).String(), nil
}

func familiar(full string) string {
	named, err := reference.ParseNormalizedNamed(full)
	if err != nil {
		return full
	}
	return reference.FamiliarString(named)
}

// findImage takes a reference, an ID or a prefix of one. The lock is held.
func (f *Fake) findImage(ref string) (*fakeImage, error) {
	if full, err := fullRef(ref); err == nil && f.tags[full] != "" {
		return f.images[f.tags[full]], nil
	}
	var found *fakeImage
	hex := strings.TrimPrefix(ref, "sha256:")
	for id, i := range f.images {
		if len(hex) < 4 || !strings.HasPrefix(id.Encoded(), hex) {
			continue
		}
		if found != nil {
			return nil, api.InvalidArgument("multiple IDs found with provided prefix: %s", ref)
		}
		found = i
	}
	if found == nil {
		return nil, listing.NoSuchImage(ref)
	}
	return found, nil
}

// tagsOf are an image's names. The lock is held.
func (f *Fake) tagsOf(i *fakeImage) []string {
	tags := []string{}
	for full, id := range f.tags {
		if id == i.id && !strings.Contains(full, "@") {
			tags = append(tags, familiar(full))
		}
	}
	slices.Sort(tags)
	return tags
}

func (f *Fake) imageSummary(i *fakeImage) image.Summary {
	s := image.Summary{
		ID: i.id.String(), RepoTags: f.tagsOf(i), RepoDigests: []string{}, Labels: i.config.Config.Labels,
		Size: i.size, SharedSize: -1,
	}
	if i.config.Created != nil {
		s.Created = i.config.Created.Unix()
	}
	for _, c := range f.containers {
		if c.image == i.id {
			s.Containers++
		}
	}
	return s
}
