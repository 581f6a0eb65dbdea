//go:build !shoal_precompiled

package libcontainer

import "github.com/opencontainers/runc/libcontainer/configs"

const canPrecompile = false

func precompile(c *configs.Seccomp) (*configs.Seccomp, error) { return c, nil }
