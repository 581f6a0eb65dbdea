package defaults

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/api"
)

// errNoDevice says that a path is something other than a device.
var errNoDevice = errors.New("not a device node")

// addDevices adds the devices that the options name, or every device of the host
// to a privileged container, with the rules that allow their use.
func addDevices(s *specs.Spec, o Options) error {
	devices := o.Devices
	if o.Privileged {
		all, err := devicesBelow("/dev", "/dev")
		if err != nil {
			return err
		}
		s.Linux.Devices = all
		s.Linux.Resources.Devices = append([]specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}, o.Resources.Devices...)
		devices = nil
	} else {
		s.Linux.Resources.Devices = append(deviceRules(), o.Resources.Devices...)
	}
	for _, d := range devices {
		found, err := hostDevices(d)
		if err != nil {
			return api.InvalidArgument("error gathering device information while adding custom device %q: %w", d.HostPath, err)
		}
		access := d.Access
		if access == "" {
			access = "rwm"
		}
		for _, f := range found {
			s.Linux.Devices = append(s.Linux.Devices, f)
			s.Linux.Resources.Devices = append(s.Linux.Resources.Devices,
				specs.LinuxDeviceCgroup{Allow: true, Type: f.Type, Major: &f.Major, Minor: &f.Minor, Access: access})
		}
	}
	return nil
}

// deviceRules forbid every device but Docker's few.
func deviceRules() []specs.LinuxDeviceCgroup {
	rule := func(allow bool, major, minor int64) specs.LinuxDeviceCgroup {
		return specs.LinuxDeviceCgroup{Allow: allow, Type: "c", Major: &major, Minor: &minor, Access: "rwm"}
	}
	return []specs.LinuxDeviceCgroup{
		{Allow: false, Access: "rwm"},
		rule(true, 1, 5), rule(true, 1, 3), rule(true, 1, 9), rule(true, 1, 8),
		rule(true, 5, 0), rule(true, 5, 1), rule(false, 10, 229),
	}
}

func hostDevices(d Device) ([]specs.LinuxDevice, error) {
	path, err := filepath.EvalSymlinks(d.HostPath)
	if err != nil {
		return nil, err
	}
	inside := d.ContainerPath
	if inside == "" {
		inside = d.HostPath
	}
	device, err := deviceAt(path, inside)
	if err == nil {
		return []specs.LinuxDevice{device}, nil
	}
	if info, statErr := os.Stat(path); statErr != nil || !info.IsDir() {
		return nil, err
	}
	found, err := devicesBelow(path, inside)
	if err == nil && len(found) == 0 {
		err = errNoDevice
	}
	return found, err
}

// devicesBelow finds the devices of a directory, but for those that every
// container has of its own.
func devicesBelow(dir, inside string) ([]specs.LinuxDevice, error) {
	var found []specs.LinuxDevice
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
				return nil // gone meanwhile, or not ours to give
			}
			return err
		}
		switch path {
		case "/dev/pts", "/dev/shm", "/dev/fd", "/dev/mqueue", "/dev/.lxc", "/dev/.lxd-mounts", "/dev/.udev":
			if e.IsDir() {
				return filepath.SkipDir
			}
			return nil
		case "/dev/console":
			return nil
		}
		if e.Type()&fs.ModeDevice == 0 {
			return nil
		}
		device, err := deviceAt(path, filepath.Join(inside, strings.TrimPrefix(path, dir)))
		if err == nil {
			found = append(found, device)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	return found, nil
}

func deviceAt(path, inside string) (specs.LinuxDevice, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return specs.LinuxDevice{}, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	kind := ""
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFBLK:
		kind = "b"
	case unix.S_IFCHR:
		kind = "c"
	default:
		return specs.LinuxDevice{}, errNoDevice
	}
	mode := fs.FileMode(st.Mode &^ unix.S_IFMT)
	return specs.LinuxDevice{
		Type: kind, Path: inside, FileMode: &mode, UID: &st.Uid, GID: &st.Gid,
		Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
	}, nil
}
