package node

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/listing"
)

// mountPoint is one mount of a container: what inspection shows, and what only
// the start needs to know.
type mountPoint struct {
	container.MountPoint
	Anonymous    bool   `json:",omitempty"` // a volume made for this container, removed with it
	Fill         bool   `json:",omitempty"` // the volume takes the image's files at the first start, if it is empty
	MakeSource   bool   `json:",omitempty"` // a missing directory on the host is made
	NonRecursive bool   `json:",omitempty"`
	Subpath      string `json:",omitempty"`
	Options      string `json:",omitempty"` // of a tmpfs
	// Labels are the volume's, if it is made for this mount.
	Labels map[string]string `json:",omitempty"`
}

var propagations = []string{"private", "rprivate", "slave", "rslave", "shared", "rshared"}

// modeGroups are the options after the second colon of -v; one of each is allowed.
var modeGroups = [][]string{
	{"rw", "ro"}, {"z", "Z"}, propagations, {"nocopy"}, {"consistent", "cached", "delegated"},
}

// parseMode splits the options of a -v mount.
func parseMode(mode string) (options []string, ok bool) {
	if mode == "" {
		return nil, true
	}
	options = strings.Split(mode, ",")
	for _, group := range modeGroups {
		n := 0
		for _, o := range options {
			if slices.Contains(group, o) {
				n++
			}
		}
		if n > 1 {
			return nil, false
		}
	}
	for _, o := range options {
		if !slices.ContainsFunc(modeGroups, func(g []string) bool { return slices.Contains(g, o) }) {
			return nil, false
		}
	}
	return options, true
}

// parseBind reads the SOURCE:TARGET[:MODE] of -v. A source that is no path names
// a volume.
func parseBind(spec string) (mountPoint, error) {
	parts := strings.Split(spec, ":")
	bad := api.InvalidArgument("invalid volume specification: '%s'", spec)
	if parts[0] == "" || len(parts) > 3 {
		return mountPoint{}, bad
	}
	m := mount.Mount{Target: parts[0]}
	mode := ""
	if len(parts) > 1 {
		m.Source, m.Target = parts[0], parts[1]
		if _, ok := parseMode(parts[1]); ok && len(parts) == 2 {
			return mountPoint{}, bad
		}
	}
	if len(parts) > 2 {
		mode = parts[2]
	}
	options, ok := parseMode(mode)
	if !ok {
		return mountPoint{}, api.InvalidArgument("invalid mode: %s", mode)
	}
	m.Type = mount.TypeVolume
	if path.IsAbs(m.Source) {
		m.Type = mount.TypeBind
	}
	m.ReadOnly = slices.Contains(options, "ro")
	if slices.Contains(options, "nocopy") {
		if m.Type == mount.TypeBind {
			return mountPoint{}, api.InvalidArgument("%w: invalid mount config for type %q: field VolumeOptions must not be specified", bad, m.Type)
		}
		m.VolumeOptions = &mount.VolumeOptions{NoCopy: true}
	}
	for _, o := range options {
		if slices.Contains(propagations, o) {
			m.BindOptions = &mount.BindOptions{Propagation: mount.Propagation(o)}
		}
	}
	p, err := parseMount(m)
	if err != nil {
		return mountPoint{}, api.InvalidArgument("%w: %w", bad, err)
	}
	p.Mode = mode
	p.MakeSource = m.Type == mount.TypeBind
	return p, nil
}

// parseMount reads what --mount gives; it doesn't look at the host.
func parseMount(m mount.Mount) (mountPoint, error) {
	refuse := func(err error) (mountPoint, error) {
		return mountPoint{}, api.InvalidArgument("invalid mount config for type %q: %w", m.Type, err)
	}
	if err := checkTarget(m.Target); err != nil {
		return refuse(err)
	}
	p := mountPoint{MountPoint: container.MountPoint{
		Type: m.Type, Destination: path.Clean(m.Target), RW: !m.ReadOnly,
	}}
	if m.BindOptions != nil && m.Type != mount.TypeBind {
		return refuse(errors.New("field BindOptions must not be specified"))
	}
	if m.VolumeOptions != nil && m.Type != mount.TypeVolume {
		return refuse(errors.New("field VolumeOptions must not be specified"))
	}
	if m.TmpfsOptions != nil && m.Type != mount.TypeTmpfs {
		return refuse(errors.New("field TmpfsOptions must not be specified"))
	}
	var err error
	switch m.Type {
	case mount.TypeBind:
		err = parseBindMount(m, &p)
	case mount.TypeVolume:
		err = parseVolumeMount(m, &p)
	case mount.TypeTmpfs:
		if m.Source != "" {
			return refuse(errors.New("field Source must not be specified"))
		}
		p.Options, err = tmpfsOptions(m.TmpfsOptions, m.ReadOnly)
	default:
		err = errors.New("mount type unknown")
	}
	if err != nil {
		return refuse(err)
	}
	return p, nil
}

func checkTarget(target string) error {
	switch {
	case target == "":
		return errors.New("field Target must not be empty")
	case path.Clean(target) == "/":
		return errors.New("invalid specification: destination can't be '/'")
	case !path.IsAbs(target):
		return fmt.Errorf("invalid mount path: '%s' mount path must be absolute", target)
	}
	return nil
}

func parseBindMount(m mount.Mount, p *mountPoint) error {
	if m.Source == "" {
		return errors.New("field Source must not be empty")
	}
	if !path.IsAbs(m.Source) {
		return fmt.Errorf("invalid mount path: '%s' mount path must be absolute", m.Source)
	}
	p.Source, p.Propagation = path.Clean(m.Source), mount.PropagationRPrivate
	if o := m.BindOptions; o != nil {
		if o.Propagation != "" {
			p.Propagation = o.Propagation
		}
		if !slices.Contains(propagations, string(p.Propagation)) {
			return fmt.Errorf("invalid propagation mode: %s", p.Propagation)
		}
		p.NonRecursive, p.MakeSource = o.NonRecursive, o.CreateMountpoint
	}
	return nil
}

func parseVolumeMount(m mount.Mount, p *mountPoint) error {
	p.Name, p.Driver, p.Fill = m.Source, "local", true
	p.Anonymous = m.Source == ""
	if p.Anonymous && m.ReadOnly {
		return errors.New("must not set ReadOnly mode when using anonymous volumes")
	}
	if !p.Anonymous {
		if err := listing.CheckVolumeName(p.Name); err != nil {
			return err
		}
	}
	o := m.VolumeOptions
	if o == nil {
		return nil
	}
	p.Fill, p.Labels = !o.NoCopy, o.Labels
	if d := o.DriverConfig; d != nil && d.Name != "" && d.Name != "local" {
		return fmt.Errorf("error looking up volume plugin %s: plugin %q not found", d.Name, d.Name)
	}
	if d := o.DriverConfig; d != nil && len(d.Options) > 0 {
		return errors.New("options of the local volume driver are not supported")
	}
	if o.Subpath != "" {
		switch {
		case p.Anonymous:
			return errors.New("must not set Subpath when using anonymous volumes")
		case !filepath.IsLocal(o.Subpath):
			return errors.New("subpath must be a relative path within the volume")
		}
		p.Subpath = o.Subpath
	}
	return nil
}

// tmpfsOptions writes options as mount(8) takes them.
func tmpfsOptions(o *mount.TmpfsOptions, readOnly bool) (string, error) {
	options := []string{}
	if readOnly {
		options = append(options, "ro")
	}
	if o == nil {
		return strings.Join(options, ","), nil
	}
	if o.Mode != 0 {
		options = append(options, fmt.Sprintf("mode=%o", uint32(o.Mode)&0o7777)) // clients count as chmod does
	}
	if o.SizeBytes != 0 {
		options = append(options, "size="+strconv.FormatInt(o.SizeBytes, 10))
	}
	for _, kv := range o.Options {
		if len(kv) < 1 || len(kv) > 2 {
			return "", errors.New("invalid option array length")
		}
		if kv[0] != "exec" && kv[0] != "noexec" {
			return "", errors.New("invalid option: " + kv[0])
		}
		options = append(options, strings.Join(kv, "="))
	}
	return strings.Join(options, ","), nil
}

// parseMounts gathers all that is mounted into a container: --mount and -v, what
// --volumes-from brings, --tmpfs, and the volumes of the image; a target that was
// asked for wins over one that comes along.
func parseMounts(config *container.Config, host *container.HostConfig, from []mountPoint) ([]mountPoint, error) {
	var asked []mountPoint
	for _, spec := range host.Binds {
		p, err := parseBind(spec)
		if err != nil {
			return nil, err
		}
		asked = append(asked, p)
	}
	for _, m := range host.Mounts {
		p, err := parseMount(m)
		if err != nil {
			return nil, err
		}
		if err := checkSource(p); err != nil {
			return nil, err
		}
		asked = append(asked, p)
	}
	for target, options := range host.Tmpfs {
		if err := checkTarget(target); err != nil {
			return nil, api.InvalidArgument("invalid mount config for type %q: %w", mount.TypeTmpfs, err)
		}
		asked = append(asked, mountPoint{
			MountPoint: container.MountPoint{Type: mount.TypeTmpfs, Destination: path.Clean(target), RW: true},
			Options:    options,
		})
	}
	taken := map[string]bool{}
	for _, p := range asked {
		if taken[p.Destination] {
			return nil, api.InvalidArgument("Duplicate mount point: %s", p.Destination)
		}
		taken[p.Destination] = true
	}
	for _, p := range from {
		if !taken[p.Destination] {
			taken[p.Destination] = true
			asked = append(asked, p)
		}
	}
	for target := range config.Volumes {
		p, err := parseBind(target)
		if err != nil {
			return nil, err
		}
		if !taken[p.Destination] {
			taken[p.Destination] = true
			asked = append(asked, p)
		}
	}
	// A parent is mounted before what lies in it.
	slices.SortFunc(asked, func(a, b mountPoint) int { return strings.Compare(a.Destination, b.Destination) })
	return asked, nil
}

// checkSource refuses a bind mount whose source must be there and isn't.
func checkSource(p mountPoint) error {
	if p.Type != mount.TypeBind || p.MakeSource {
		return nil
	}
	if _, err := os.Stat(p.Source); errors.Is(err, os.ErrNotExist) {
		return api.InvalidArgument("invalid mount config for type %q: bind source path does not exist: %s", p.Type, p.Source)
	} else if err != nil {
		return api.InvalidArgument("invalid mount config for type %q: %w", p.Type, err)
	}
	return nil
}
