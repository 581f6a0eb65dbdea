package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/listing"
	nodeimage "github.com/shoal-engine/shoal/node/image"
)

// CreateContainer implements api.Containers.
func (n *Node) CreateContainer(ctx context.Context, o api.CreateOptions) (container.CreateResponse, error) {
	none := container.CreateResponse{}
	if err := n.up(ctx); err != nil {
		return none, err
	}
	if o.Config == nil {
		return none, api.InvalidArgument("config cannot be empty in order to create a container")
	}
	r, warnings, err := n.plan(ctx, o)
	if err != nil {
		return none, err
	}
	if r.Name, err = n.claimName(r.ID, o.Name); err != nil {
		return none, err
	}
	defer n.volumes.letGo(r.ID)
	c, err := n.make(ctx, r)
	if err != nil {
		n.index.unclaim(r.Name, r.ID)
		n.volumes.letGo(r.ID)
		n.removeVolumes(r)
		return none, err
	}
	n.index.add(c)
	n.emit(r, events.ActionCreate, nil)
	if warnings == nil {
		warnings = []string{}
	}
	return container.CreateResponse{ID: r.ID, Warnings: warnings}, nil
}

// plan turns options into a record without touching anything.
func (n *Node) plan(ctx context.Context, o api.CreateOptions) (record, []string, error) {
	r := record{ID: o.ID, Created: time.Now().UTC(), State: state{Status: container.StateCreated}}
	if r.ID == "" {
		r.ID = newID(64)
	}
	if !validID(r.ID) {
		return r, nil, api.InvalidArgument("invalid container ID: %q", r.ID)
	}
	config, host := *o.Config, container.HostConfig{}
	if o.HostConfig != nil {
		host = *o.HostConfig
	}
	r.Config, r.HostConfig = &config, &host
	complete(&host, n.host.cgroupVersion)
	warnings, err := checkHost(&host)
	if err != nil {
		return r, nil, err
	}
	img, err := n.images.Get(ctx, config.Image)
	if errdefs.IsNotFound(err) {
		if coming, e := n.images.Coming(ctx, config.Image); e == nil {
			img, err = coming, nil
		}
	}
	if err != nil {
		return r, nil, err
	}
	more, err := n.checkPlatform(o, img)
	if err != nil {
		return r, nil, err
	}
	warnings = append(warnings, more...)
	r.Image, r.OS, r.Arch = img.ID, img.Platform.OS, img.Platform.Architecture
	if manifest := img.Manifest; manifest.Digest != "" {
		r.Manifest = &manifest
	}
	mergeImage(&config, img.Config)
	if err := checkConfig(&config); err != nil {
		return r, nil, err
	}
	if test := config.Healthcheck; test != nil && len(test.Test) > 0 && test.Test[0] != "NONE" {
		warnings = append(warnings, "Health checks are not supported. The container's health is not watched.")
	}
	if r.Path, r.Args, err = command(&config); err != nil {
		return r, nil, err
	}
	if err := n.nameHost(&r); err != nil {
		return r, nil, err
	}
	if r.Endpoints, err = endpointsAsked(o.Networking, &host); err != nil {
		return r, nil, err
	}
	from, err := n.volumesFrom(host.VolumesFrom)
	if err != nil {
		return r, nil, err
	}
	r.Mounts, err = parseMounts(&config, &host, from)
	return r, warnings, err
}

// checkPlatform refuses an image of another platform than was asked for, and
// warns of one that the host may not be able to run.
func (n *Node) checkPlatform(o api.CreateOptions, img nodeimage.Image) ([]string, error) {
	has, want := img.Platform, o.Platform
	if want.Architecture == "" && want.OS == "" {
		if has.Architecture == "" || has.Architecture == n.host.arch {
			return nil, nil
		}
		return []string{fmt.Sprintf("The requested image's platform (%s) does not match the detected host platform (%s) "+
			"and no specific platform was requested", platformText(has.OS, has.Architecture, has.Variant),
			platformText("linux", n.host.arch, ""))}, nil
	}
	if want.OS != "" && want.OS != has.OS || want.Architecture != "" && want.Architecture != has.Architecture {
		return nil, api.NotFound("image with reference %s was found but its platform (%s) does not match the specified platform (%s)",
			o.Config.Image, platformText(has.OS, has.Architecture, has.Variant), platformText(want.OS, want.Architecture, want.Variant))
	}
	return nil, nil
}

func platformText(parts ...string) string { return path.Join(parts...) }

// mergeImage completes a container's configuration with its image's: what the
// caller said wins.
func mergeImage(c *container.Config, img dockerspec.DockerOCIImageConfig) {
	if c.User == "" {
		c.User = img.User
	}
	if c.WorkingDir == "" {
		c.WorkingDir = img.WorkingDir
	}
	if c.StopSignal == "" {
		c.StopSignal = img.StopSignal
	}
	if len(c.Shell) == 0 {
		c.Shell = img.Shell
	}
	if len(c.Entrypoint) == 0 {
		if len(c.Cmd) == 0 {
			c.Cmd = img.Cmd
		}
		if c.Entrypoint == nil {
			c.Entrypoint = img.Entrypoint
		}
	}
	if len(c.Entrypoint) == 1 && c.Entrypoint[0] == "" {
		c.Entrypoint = nil // how a client says that it wants none
	}
	if c.Healthcheck == nil {
		c.Healthcheck = img.Healthcheck
	}
	c.Env = mergeEnv(c.Env, img.Env)
	c.Labels = mergeMaps(c.Labels, img.Labels)
	if c.Labels == nil {
		c.Labels = map[string]string{}
	}
	c.Volumes = mergeMaps(c.Volumes, img.Volumes)
	ports := network.PortSet{}
	for p := range img.ExposedPorts {
		if port, err := network.ParsePort(p); err == nil {
			ports[port] = struct{}{}
		}
	}
	if c.ExposedPorts = mergeMaps(c.ExposedPorts, ports); len(c.ExposedPorts) == 0 {
		c.ExposedPorts = nil
	}
}

func mergeMaps[K comparable, V any](over, under map[K]V) map[K]V {
	m := maps.Clone(under)
	if m == nil {
		return maps.Clone(over)
	}
	maps.Copy(m, over)
	return m
}

// mergeEnv appends the variables of under that over doesn't set.
func mergeEnv(over, under []string) []string {
	set := map[string]bool{}
	for _, e := range over {
		name, _, _ := strings.Cut(e, "=")
		set[name] = true
	}
	env := slices.Clone(over)
	for _, e := range under {
		if name, _, _ := strings.Cut(e, "="); !set[name] {
			env = append(env, e)
		}
	}
	return env
}

func command(c *container.Config) (string, []string, error) {
	all := slices.Concat(c.Entrypoint, c.Cmd)
	if len(all) == 0 || all[0] == "" && len(all) == 1 {
		return "", nil, api.InvalidArgument("no command specified")
	}
	return all[0], all[1:], nil
}

// nameHost settles what the container calls its host.
func (n *Node) nameHost(r *record) error {
	if r.HostConfig.NetworkMode.IsContainer() && r.Config.Hostname != "" {
		return api.InvalidArgument("conflicting options: hostname and the network mode")
	}
	if r.Config.Hostname != "" {
		return nil
	}
	r.Config.Hostname = r.ID[:12]
	if r.HostConfig.NetworkMode.IsHost() || r.HostConfig.UTSMode.IsHost() {
		r.Config.Hostname = n.host.hostname()
	}
	return nil
}

// endpointsAsked is what the caller said of the networks to be.
func endpointsAsked(asked *network.NetworkingConfig, host *container.HostConfig) (map[string]*network.EndpointSettings, error) {
	mode := host.NetworkMode.NetworkName()
	own := &network.EndpointSettings{}
	if asked != nil {
		for name, e := range asked.EndpointsConfig {
			if name == network.NetworkDefault {
				name = network.NetworkBridge
			}
			if name != mode {
				return nil, api.NotFound("network %s not found", name)
			}
			if e != nil {
				own = e.Copy()
			}
		}
	}
	if host.NetworkMode.IsContainer() {
		return nil, nil
	}
	return map[string]*network.EndpointSettings{mode: own}, nil
}

// volumesFrom gathers the volumes and bind mounts of other containers.
func (n *Node) volumesFrom(specs []string) ([]mountPoint, error) {
	var all []mountPoint
	for _, spec := range specs {
		ref, mode, _ := strings.Cut(spec, ":")
		options, ok := parseMode(mode)
		if !ok {
			return nil, api.InvalidArgument("invalid mode: %s", mode)
		}
		c, err := n.index.find(ref)
		if err != nil {
			return nil, err
		}
		for _, p := range c.get().Mounts {
			if p.Type == mount.TypeTmpfs {
				continue
			}
			p.Anonymous, p.Fill = false, false // it stays the other's
			p.RW = p.RW && !slices.Contains(options, "ro")
			all = append(all, p)
		}
	}
	return all, nil
}

// claimName takes the name asked for, or makes one up.
func (n *Node) claimName(id, name string) (string, error) {
	name = strings.TrimPrefix(name, "/")
	if name != "" {
		if err := listing.ValidateName(name); err != nil {
			return "", err
		}
		return name, n.index.claim(name, id)
	}
	source := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	for try := range 10 {
		name = listing.RandomName(source, try > 0)
		if n.index.claim(name, id) == nil {
			return name, nil
		}
	}
	return id[:12], n.index.claim(id[:12], id)
}

// make puts a planned container on disk, wholly or not at all.
func (n *Node) make(ctx context.Context, r record) (c *ctr, err error) {
	dir := n.containerDir(r.ID)
	if err := os.Mkdir(dir, 0o710); errors.Is(err, fs.ErrExist) {
		return nil, api.Conflict("Conflict. The container ID %q is already in use", r.ID)
	} else if err != nil {
		return nil, fmt.Errorf("make the container's directory: %w", err)
	}
	defer func() {
		if err != nil {
			n.discard(r)
		}
	}()
	if err := n.images.Prepare(ctx, r.ID, r.Image); err != nil {
		return nil, fmt.Errorf("prepare the container's file system: %w", err)
	}
	for i := range r.Mounts {
		if err := n.settleMount(r.ID, &r.Mounts[i]); err != nil {
			return nil, err
		}
	}
	if err := r.save(dir); err != nil {
		return nil, fmt.Errorf("write the record of container %s: %w", r.ID, err)
	}
	return newCtr(dir, r), nil
}

// settleMount makes the volume or the directory that a mount is of.
func (n *Node) settleMount(id string, p *mountPoint) error {
	switch p.Type {
	case mount.TypeVolume:
		if p.Anonymous {
			p.Name = newID(64)
		}
		made, err := n.volumes.hold(p.volume(id), id)
		if err != nil {
			return api.InvalidArgument("%w", err)
		}
		if made {
			n.volumeChanged(events.ActionCreate, p.Name)
		}
		p.Source = n.volumes.data(p.Name)
		if p.Mode == "" && !p.RW {
			p.Mode = "ro"
		}
	case mount.TypeBind:
		return makeSource(*p)
	}
	return nil
}

// volume describes the volume that a mount of a container is of.
func (p mountPoint) volume(container string) volumeInfo {
	i := volumeInfo{Name: p.Name, Labels: p.Labels}
	if p.Anonymous {
		i.Container = container
	}
	return i
}

// makeSource makes a missing directory on the host, as -v does.
func makeSource(p mountPoint) error {
	if !p.MakeSource {
		return nil
	}
	if _, err := os.Stat(p.Source); !errors.Is(err, fs.ErrNotExist) {
		return nil // a real trouble shows when it is mounted
	}
	if err := os.MkdirAll(p.Source, 0o755); err != nil {
		return api.InvalidArgument("error while creating mount source path '%s': %w", p.Source, err)
	}
	return nil
}

func (n *Node) containerDir(id string) string { return filepath.Join(n.cfg.Root, "containers", id) }
