package cli

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/cmd/shoal/config"
	"github.com/shoal-engine/shoal/node/image"
	"github.com/shoal-engine/shoal/node/network"
)

// finding is one thing the doctor looked at.
type finding struct {
	Check  string
	Status string // ok, warn, fail
	Detail string
	Help   string `json:",omitempty"`
}

func doctorCommand(g *globals) *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use: "doctor", Short: "Say what this host has and lacks", Args: cobra.NoArgs,
		Long: "Look at everything an agent needs of this host, and at the agent itself.\nExit code 1: something that is needed is missing.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := config.Load(path)
			if err != nil {
				return exitError{exitUsage, err}
			}
			found := diagnose(c)
			found = append(found, g.agentFinding(cmd))
			err = g.printer(cmd).list(found, "CHECK\tSTATUS\tDETAIL", func(row func(...any)) {
				for _, f := range found {
					detail := f.Detail
					if f.Help != "" {
						detail += "; " + f.Help
					}
					row(f.Check, f.Status, detail)
				}
			})
			if err != nil {
				return err
			}
			for _, f := range found {
				if f.Status == "fail" {
					return exitError{exitFailed, nil}
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&path, "config", config.DefaultPath, "configuration file")
	return g.jsonFlag(cmd)
}

func (g *globals) agentFinding(cmd *cobra.Command) finding {
	f := finding{Check: "agent", Status: "ok", Detail: "answers"}
	c, err := g.control()
	if err == nil {
		err = c.Ping(cmd.Context())
	}
	if err != nil {
		f.Status, f.Detail, f.Help = "warn", err.Error(), "start it with `systemctl start shoal` or `shoal agent`"
	}
	return f
}

// diagnose looks at the host.
func diagnose(c config.Config) []finding {
	found := []finding{checkRoot(), checkKernel(), checkOverlay(), checkCgroups(), checkSeccomp(), checkDisk(c.Data), checkLayers(c.Data), checkClient()}
	for _, p := range network.Probe() {
		f := finding{Check: "network: " + p.Name, Status: "ok", Detail: p.Detail}
		if !p.OK {
			f.Status = "warn"
		}
		found = append(found, f)
	}
	return found
}

func checkRoot() finding {
	if os.Getuid() == 0 {
		return finding{"root", "ok", "yes", ""}
	}
	return finding{"root", "fail", "the agent would run as an ordinary user", "run it as root, or by systemd"}
}

func checkKernel() finding {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return finding{"kernel", "fail", err.Error(), ""}
	}
	release := unix.ByteSliceToString(u.Release[:])
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil || major < 5 || (major == 5 && minor < 10) {
		return finding{"kernel", "fail", release, "5.10 or newer is needed"}
	}
	return finding{"kernel", "ok", release, ""}
}

func checkOverlay() finding {
	raw, _ := os.ReadFile("/proc/filesystems")
	if strings.Contains(string(raw), "\toverlay\n") {
		return finding{"overlayfs", "ok", "mounts", ""}
	}
	return finding{"overlayfs", "warn", "not loaded", "without it every container gets a copy of its image: `modprobe overlay`"}
}

func checkCgroups() finding {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		raw, _ := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
		return missingControllers("v2", strings.Fields(string(raw)))
	}
	entries, err := os.ReadDir("/sys/fs/cgroup")
	if err != nil || len(entries) == 0 {
		return finding{"cgroups", "fail", "none mounted at /sys/fs/cgroup", "mount cgroup2 there"}
	}
	var names []string
	for _, e := range entries {
		names = append(names, strings.Split(e.Name(), ",")...)
	}
	return missingControllers("v1", names)
}

func missingControllers(version string, have []string) finding {
	var missing []string
	for _, want := range []string{"memory", "cpu", "pids"} {
		found := false
		for _, h := range have {
			found = found || h == want
		}
		if !found {
			missing = append(missing, want)
		}
	}
	if len(missing) > 0 {
		return finding{"cgroups", "warn", version + ", without " + strings.Join(missing, ", "), "limits of these are not enforced"}
	}
	return finding{"cgroups", "ok", version, ""}
}

func checkSeccomp() finding {
	raw, _ := os.ReadFile("/proc/self/status")
	if strings.Contains(string(raw), "\nSeccomp:") {
		return finding{"seccomp", "ok", "in the kernel", ""}
	}
	return finding{"seccomp", "fail", "not in the kernel", "containers would not be confined: the agent refuses to start them"}
}

// existing is the nearest directory above a path that is there.
func existing(dir string) string {
	for {
		if _, err := os.Stat(dir); err == nil || dir == "/" {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

// checkLayers says in which of the ways that there are layers will be kept.
func checkLayers(data string) finding {
	images, tars := image.Probe(existing(data))
	switch {
	case tars == nil:
		return finding{"layers", "ok", "EROFS images; those that come without compression stay tars", ""}
	case images == nil:
		return finding{"layers", "ok", "EROFS images; those that come without compression are written twice: " + tars.Error(), ""}
	}
	return finding{"layers", "warn", "directories: " + images.Error(), "Linux 6.12 with EROFS unpacks and removes images several times faster"}
}

func checkDisk(data string) finding {
	dir := existing(data)
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return finding{"disk", "fail", err.Error(), ""}
	}
	free := s.Bavail * uint64(s.Bsize)
	detail := fmt.Sprintf("%s free below %s", units.BytesSize(float64(free)), dir)
	switch {
	case s.Type == unix.TMPFS_MAGIC:
		return finding{"disk", "warn", detail + ", in memory", "set `data` to a real file system"}
	case free < 2<<30:
		return finding{"disk", "warn", detail, "images need room"}
	}
	return finding{"disk", "ok", detail, ""}
}

func checkClient() finding {
	if path, err := exec.LookPath("docker"); err == nil {
		return finding{"docker client", "ok", path, ""}
	}
	return finding{"docker client", "warn", "none", "apt-get install docker-cli (or docker.io)"}
}
