package defaults

import (
	"slices"
	"strings"

	"github.com/moby/sys/capability"

	"github.com/shoal-engine/shoal/api"
)

// docker is what a container may do if nobody says otherwise.
var docker = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW",
	"CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE",
	"CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// Capabilities are those of a container whose user added and dropped some; ALL
// in either list stands for each one. A privileged container has those that the
// kernel knows. InvalidArgument if a name is none.
func Capabilities(privileged bool, add, drop []string) ([]string, error) {
	all, err := supported()
	if err != nil {
		return nil, err
	}
	if add, err = normalize("CapAdd", add, all); err != nil {
		return nil, err
	}
	if drop, err = normalize("CapDrop", drop, all); err != nil {
		return nil, err
	}
	if privileged {
		return all, nil
	}
	base := docker
	switch {
	case slices.Contains(add, "ALL"):
		base, add = all, nil
	case slices.Contains(drop, "ALL"):
		base, drop = nil, nil
	}
	var caps []string
	for _, c := range slices.Concat(base, add) {
		if !slices.Contains(drop, c) && !slices.Contains(caps, c) {
			caps = append(caps, c)
		}
	}
	return caps, nil
}

func supported() ([]string, error) {
	known, err := capability.ListSupported()
	if err != nil {
		return nil, api.Internal("list capabilities: %w", err)
	}
	names := make([]string, len(known))
	for i, c := range known {
		names[i] = "CAP_" + strings.ToUpper(c.String())
	}
	return names, nil
}

func normalize(option string, names, all []string) ([]string, error) {
	var list []string
	for _, name := range names {
		c := strings.ToUpper(name)
		if c != "ALL" {
			c = "CAP_" + strings.TrimPrefix(c, "CAP_")
			if !slices.Contains(all, c) {
				return nil, api.InvalidArgument("invalid %s: unknown capability: %q", option, name)
			}
		}
		list = append(list, c)
	}
	return list, nil
}
