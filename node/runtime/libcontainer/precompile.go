//go:build shoal_precompiled

package libcontainer

import (
	"errors"

	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/seccomp"
	"github.com/opencontainers/runc/libcontainer/seccomp/patchbpf"
)

// canPrecompile needs the overlay of mksupervisor; without it, this file is no Go.
const canPrecompile = true

// precompile has libseccomp compile a filter, and gives one that only loads the
// outcome. Its architectures and flags are in the program already.
func precompile(c *configs.Seccomp) (*configs.Seccomp, error) {
	wanted := *c
	wanted.ListenerMetadata = patchbpf.ExportMark
	_, err := seccomp.InitSeccomp(&wanted)
	var exported *patchbpf.Exported
	if !errors.As(err, &exported) {
		return nil, err
	}
	return &configs.Seccomp{
		DefaultAction: c.DefaultAction, DefaultErrnoRet: c.DefaultErrnoRet,
		ListenerMetadata: exported.Metadata,
	}, nil
}
