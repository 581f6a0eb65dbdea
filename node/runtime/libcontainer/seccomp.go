package libcontainer

import (
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/seccomp"
)

// ErrNoSeccomp says that a container asks for a filter that this build can't
// install.
var ErrNoSeccomp = errors.New("this build can't install seccomp filters (it lacks the build tag seccomp): " +
	"run the container with --security-opt seccomp=unconfined, or use a build that can")

// SeccompEnabled says whether filters can be installed.
func SeccompEnabled() bool { return seccomp.Enabled }

// keptFilters is how many compiled filters are remembered. Almost all containers
// share a handful, one for each set of capabilities.
const keptFilters = 32

// filters remembers what filters were compiled to.
type filters struct {
	mu       sync.Mutex
	compiled map[string]*configs.Seccomp
}

// precompile replaces a filter's rules by the program they make, where the build
// can do that; see mksupervisor.
func (f *filters) precompile(c *configs.Seccomp) (*configs.Seccomp, error) {
	if c == nil || !canPrecompile || c.ListenerPath != "" || c.ListenerMetadata != "" {
		return c, nil
	}
	key, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode filter: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if done, ok := f.compiled[string(key)]; ok {
		return done, nil
	}
	done, err := precompile(c)
	if err != nil {
		return nil, fmt.Errorf("compile filter: %w", err)
	}
	if f.compiled == nil || len(f.compiled) >= keptFilters {
		f.compiled = map[string]*configs.Seccomp{}
	}
	f.compiled[string(key)] = done
	return done, nil
}
