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
// in either list stands for each one that this process could pass on itself, and a
// privileged container has those, too: asking for more would keep the container
// from starting. InvalidArgument if a name is none.
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
	ours, err := bounding()
	if err != nil {
		return nil, err
	}
	if privileged {
		return ours, nil
	}
	base := docker
	switch {
	case slices.Contains(add, "ALL"):
		base, add = ours, nil
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
	return names(known), nil
}

// bounding are the capabilities that this process, and so the supervisor that it
// starts, may give away.
func bounding() ([]string, error) {
	known, err := capability.ListSupported()
	if err != nil {
		return nil, api.Internal("list capabilities: %w", err)
	}
	own, err := capability.NewPid2(0)
	if err == nil {
		err = own.Load()
	}
	if err != nil {
		return nil, api.Internal("read this process's capabilities: %w", err)
	}
	return names(slices.DeleteFunc(known, func(c capability.Cap) bool { return !own.Get(capability.BOUNDING, c) })), nil
}

func names(caps []capability.Cap) []string {
	list := make([]string, len(caps))
	for i, c := range caps {
		list[i] = "CAP_" + strings.ToUpper(c.String())
	}
	return list
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
