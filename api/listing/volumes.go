package listing

import (
	"regexp"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/volume"

	"github.com/shoal-engine/shoal/api"
)

// AnonymousLabel marks, as Docker does it, volumes that nobody gave a name.
const AnonymousLabel = "com.docker.volume.anonymous"

var volumeForm = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

// maxVolumeName is what a file system takes for a directory's name.
const maxVolumeName = 255

// CheckVolumeName refuses in Docker's words what can't be a local volume's name.
func CheckVolumeName(name string) error {
	switch {
	case len(name) == 1:
		return api.InvalidArgument("volume name is too short, names should be at least two alphanumeric characters")
	case len(name) > maxVolumeName:
		return api.InvalidArgument("create %s…: volume name is longer than %d bytes", name[:32], maxVolumeName)
	case !volumeForm.MatchString(name):
		return api.InvalidArgument("create %s: %q includes invalid characters for a local volume name, "+
			"only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path", name, name)
	}
	return nil
}

// CheckVolume refuses what the engine's only driver, local, can't make.
func CheckVolume(o volume.CreateRequest) error {
	if o.Name != "" {
		if err := CheckVolumeName(o.Name); err != nil {
			return err
		}
	}
	switch {
	case o.Driver != "" && o.Driver != "local":
		return api.NotFound("create %s: error looking up volume plugin %s: plugin %q not found", o.Name, o.Driver, o.Driver)
	case o.ClusterVolumeSpec != nil:
		return api.NotImplemented("create %s: cluster volumes are not supported", o.Name)
	case len(o.DriverOpts) > 0:
		return api.InvalidArgument("create %s: options of the local volume driver are not supported", o.Name)
	}
	return nil
}

// NoSuchVolume is Docker's error for a name that means nothing.
func NoSuchVolume(name string) error { return api.NotFound("get %s: no such volume", name) }

// VolumeInUse is Docker's error for removing a volume that containers have.
func VolumeInUse(name string, containers []string) error {
	return api.Conflict("remove %s: volume is in use - [%s]", name, strings.Join(containers, ", "))
}

// Volumes is what "docker volume ls" shows of all, by name. used says whether a
// container has a volume. all itself is left untouched.
func Volumes(all []volume.Volume, f api.Filters, used func(volume.Volume) bool) ([]volume.Volume, error) {
	if err := f.Only("dangling", "driver", "label", "name"); err != nil {
		return nil, err
	}
	dangling, err := boolFilter(f, "dangling")
	if err != nil {
		return nil, err
	}
	names := patterns(f["name"])
	found := []volume.Volume{}
	for _, v := range all {
		if (dangling == nil || *dangling != used(v)) && f.Match("driver", v.Driver) && f.MatchLabels("label", v.Labels) && matchPattern(f["name"], names, v.Name) {
			found = append(found, v)
		}
	}
	slices.SortStableFunc(found, func(a, b volume.Volume) int { return strings.Compare(a.Name, b.Name) })
	return found, nil
}

// PrunableVolumes are those of unused volumes that a prune removes.
func PrunableVolumes(unused []volume.Volume, f api.Filters) ([]volume.Volume, error) {
	if err := f.Only("all", "label", "label!"); err != nil {
		return nil, err
	}
	all, err := boolFilter(f, "all")
	if err != nil {
		return nil, err
	}
	found := []volume.Volume{}
	for _, v := range unused {
		_, anonymous := v.Labels[AnonymousLabel]
		if (anonymous || all != nil && *all) && matchLabels(f, v.Labels) {
			found = append(found, v)
		}
	}
	return found, nil
}
