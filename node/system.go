package node

import (
	"context"
	"fmt"
	"os"
	goruntime "runtime"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/listing"
)

// The versions of Docker's API that a node's answers fit.
const (
	maxAPIVersion = "1.56"
	minAPIVersion = "1.40"
)

func decimal(n uint64) string { return strconv.FormatUint(n, 10) }

// Ping implements api.System.
func (n *Node) Ping(context.Context) (api.Ping, error) {
	return api.Ping{
		APIVersion: maxAPIVersion, MinAPIVersion: minAPIVersion, OSType: goruntime.GOOS,
		BuilderVersion: "1", Swarm: string(swarm.LocalNodeStateInactive),
	}, nil
}

// Version implements api.System.
func (n *Node) Version(context.Context) (system.VersionResponse, error) {
	details := map[string]string{
		"ApiVersion": maxAPIVersion, "MinAPIVersion": minAPIVersion, "Arch": n.host.arch, "Os": goruntime.GOOS,
		"GoVersion": goruntime.Version(), "KernelVersion": n.host.kernel, "GitCommit": n.cfg.Commit,
	}
	return system.VersionResponse{
		Platform: system.PlatformInfo{Name: "Shoal"},
		Version:  n.cfg.Version, APIVersion: maxAPIVersion, MinAPIVersion: minAPIVersion,
		Os: goruntime.GOOS, Arch: n.host.arch, GitCommit: n.cfg.Commit,
		GoVersion: goruntime.Version(), KernelVersion: n.host.kernel,
		Components: []system.ComponentVersion{{Name: "Engine", Version: n.cfg.Version, Details: details}},
	}, nil
}

// Info implements api.System.
func (n *Node) Info(ctx context.Context) (system.Info, error) {
	if err := n.up(ctx); err != nil {
		return system.Info{}, err
	}
	images, err := n.images.List(ctx)
	if err != nil {
		return system.Info{}, fmt.Errorf("count images: %w", err)
	}
	i := n.fixedInfo()
	i.Images = len(images)
	for _, c := range n.index.all() {
		i.Containers++
		switch c.get().State.Status {
		case container.StatePaused:
			i.ContainersPaused++
		case container.StateRunning, container.StateRestarting:
			i.ContainersRunning++
		default:
			i.ContainersStopped++
		}
	}
	i.NEventsListener = n.journal.followers(0)
	i.NGoroutines = goruntime.NumGoroutine()
	if fds, err := os.ReadDir("/proc/self/fd"); err == nil {
		i.NFd = len(fds)
	}
	if b, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward"); err == nil {
		i.IPv4Forwarding = len(b) > 0 && b[0] == '1'
	}
	i.SystemTime = time.Now().Format(time.RFC3339Nano)
	return i, nil
}

// fixedInfo is what doesn't change while the node runs.
func (n *Node) fixedInfo() system.Info {
	has := n.host.controllers
	return system.Info{
		ID: n.cfg.ID, Name: n.cfg.Name, Labels: orEmpty(n.cfg.Labels), ServerVersion: n.cfg.Version,
		Driver: storageDriver, DriverStatus: [][2]string{}, DockerRootDir: n.cfg.Root,
		Plugins: system.PluginsInfo{
			Volume: []string{"local"}, Network: []string{"bridge", "host", "null"}, Log: []string{"json-file", "none"},
		},
		MemoryLimit: has["memory"], SwapLimit: swapLimit(n.host.cgroupVersion),
		CPUCfsPeriod: has["cpu"], CPUCfsQuota: has["cpu"], CPUShares: has["cpu"], CPUSet: has["cpuset"],
		PidsLimit: has["pids"], OomKillDisable: n.host.cgroupVersion == "1" && has["memory"],
		LoggingDriver: "json-file", CgroupDriver: "cgroupfs", CgroupVersion: n.host.cgroupVersion,
		KernelVersion: n.host.kernel, OperatingSystem: n.host.system, OSVersion: n.host.systemVersion,
		OSType: goruntime.GOOS, Architecture: machine(n.host.arch), NCPU: n.host.cpus, MemTotal: n.host.memory,
		IndexServerAddress: "https://index.docker.io/v1/", RegistryConfig: &registry.ServiceConfig{},
		GenericResources: []swarm.GenericResource{},
		HTTPProxy:        os.Getenv("HTTP_PROXY"), HTTPSProxy: os.Getenv("HTTPS_PROXY"), NoProxy: os.Getenv("NO_PROXY"),
		Runtimes:       map[string]system.RuntimeWithStatus{runtimeName: {Runtime: system.Runtime{Path: runtimeName}}},
		DefaultRuntime: runtimeName, Swarm: swarm.Info{LocalNodeState: swarm.LocalNodeStateInactive},
		LiveRestoreEnabled: true, SecurityOptions: []string{"name=seccomp,profile=builtin"},
		CDISpecDirs: []string{}, Warnings: []string{},
	}
}

// swapLimit says whether memory and swap can be limited together.
func swapLimit(cgroupVersion string) bool {
	if cgroupVersion == "2" {
		_, err := os.Stat("/proc/swaps")
		return err == nil
	}
	_, err := os.Stat("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes")
	return err == nil
}

// machine is what uname calls an architecture.
func machine(arch string) string {
	switch arch {
	case "amd64":
		return "x86_64"
	case "arm64":
		return "aarch64"
	}
	return arch
}

// Events implements api.System.
func (n *Node) Events(ctx context.Context, o api.EventsOptions) (api.Stream[events.Message], error) {
	if !o.Since.IsZero() && !o.Until.IsZero() && o.Until.Before(o.Since) {
		return nil, api.InvalidArgument("`since` time (%s) cannot be after `until` time (%s)", stamp(o.Since), stamp(o.Until))
	}
	return n.journal.follow(ctx, o, func(m events.Message) bool { return listing.EventMatches(o.Filters, m) }), nil
}
