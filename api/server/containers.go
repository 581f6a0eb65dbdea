package server

import (
	"net/http"
	"regexp"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"github.com/shoal-engine/shoal/api"
)

// idHeader carries the ID a caller chose for a container.
const idHeader = "X-Shoal-Container-Id"

func containerRoutes() []route {
	const one = "/containers/{id}"
	filters := param{"filters", "string", "JSON of keys and values, {\"k\":[\"v\"]} or {\"k\":{\"v\":true}}"}
	timeout := param{"t", "integer", "seconds to wait before killing"}
	signal := param{"signal", "string", "name or number of a signal"}
	return []route{
		{method: "GET", path: "/containers/json", id: "ContainerList", doc: "List containers",
			query: []param{{"all", "boolean", "also those that don't run"}, {"limit", "integer", "this many of the newest"},
				{"size", "boolean", "with sizes"}, filters},
			status: 200, answer: []container.Summary{}, handle: listContainers},
		{method: "POST", path: "/containers/create", id: "ContainerCreate", doc: "Create a container",
			query: []param{{"name", "string", "name"}, {"platform", "string", "os/architecture/variant"}},
			body:  createBody{}, status: 201, answer: container.CreateResponse{}, handle: createContainer},
		{method: "POST", path: "/containers/prune", id: "ContainerPrune", doc: "Remove containers that don't run",
			query: []param{filters}, status: 200, answer: container.PruneReport{}, handle: pruneContainers},
		{method: "GET", path: one + "/json", id: "ContainerInspect", doc: "Inspect a container",
			query:  []param{{"size", "boolean", "with sizes"}},
			status: 200, answer: container.InspectResponse{}, handle: inspectContainer},
		{method: "POST", path: one + "/start", id: "ContainerStart", doc: "Start a container",
			query: []param{{"detachKeys", "string", "keys that detach"}}, status: 204, handle: startContainer},
		{method: "POST", path: one + "/stop", id: "ContainerStop", doc: "Stop a container",
			query: []param{timeout, signal}, status: 204, handle: stopContainer},
		{method: "POST", path: one + "/restart", id: "ContainerRestart", doc: "Stop a container and start it again",
			query: []param{timeout, signal}, status: 204, handle: restartContainer},
		{method: "POST", path: one + "/kill", id: "ContainerKill", doc: "Send a container a signal",
			query: []param{signal}, status: 204, handle: killContainer},
		{method: "POST", path: one + "/pause", id: "ContainerPause", doc: "Freeze a container's processes",
			status: 204, handle: pauseContainer},
		{method: "POST", path: one + "/unpause", id: "ContainerUnpause", doc: "Thaw a container's processes",
			status: 204, handle: unpauseContainer},
		{method: "POST", path: one + "/rename", id: "ContainerRename", doc: "Give a container another name",
			query: []param{{"name", "string", "new name"}}, status: 204, handle: renameContainer},
		{method: "DELETE", path: one, id: "ContainerDelete", doc: "Remove a container",
			query: []param{{"v", "boolean", "with its anonymous volumes"}, {"force", "boolean", "kill it first"},
				{"link", "boolean", "remove a link instead"}},
			status: 204, handle: removeContainer},
	}
}

func listContainers(c *call) error {
	f, err := c.filters()
	if err != nil {
		return err
	}
	limit, err := c.int("limit")
	if err != nil {
		return err
	}
	all, err := c.engine.ListContainers(c.r.Context(), api.ListOptions{
		All: c.flag("all"), Size: c.flag("size"), Limit: limit, Filters: f,
	})
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, c.oldSummaries(all))
}

// createBody is what a create request says. Up to API 1.51 it may ask for a MAC
// address of the whole container.
type createBody struct {
	*container.Config
	HostConfig       *container.HostConfig     `json:"HostConfig,omitempty"`
	NetworkingConfig *network.NetworkingConfig `json:"NetworkingConfig,omitempty"`
	MacAddress       network.HardwareAddr      `json:"MacAddress,omitempty"`
}

var fullID = regexp.MustCompile(`^[0-9a-f]{64}$`)

func createContainer(c *call) error {
	var b createBody
	if err := c.decode(&b); err != nil {
		return err
	}
	o, err := b.options(c.version)
	if err != nil {
		return err
	}
	if o.Platform, err = c.platform(); err != nil {
		return err
	}
	o.Name = strings.TrimPrefix(c.query.Get("name"), "/")
	if o.ID = c.r.Header.Get(idHeader); o.ID != "" && !fullID.MatchString(o.ID) {
		return api.InvalidArgument("%s must be 64 hexadecimal digits in lower case", idHeader)
	}
	made, err := c.engine.CreateContainer(c.r.Context(), o)
	if err != nil {
		return err
	}
	if made.Warnings == nil {
		made.Warnings = []string{}
	}
	return c.json(http.StatusCreated, made)
}

// options checks what no engine can make sense of.
func (b createBody) options(v version) (api.CreateOptions, error) {
	if b.Config == nil {
		return api.CreateOptions{}, api.InvalidArgument("config cannot be empty in order to create a container")
	}
	o := api.CreateOptions{Config: b.Config, HostConfig: b.HostConfig, Networking: b.NetworkingConfig}
	if o.HostConfig == nil {
		o.HostConfig = &container.HostConfig{}
	}
	if o.Networking == nil {
		o.Networking = &network.NetworkingConfig{}
	}
	if v.below(52) && len(b.MacAddress) > 0 {
		setMAC(&o, b.MacAddress)
	}
	if v.below(42) {
		o.HostConfig.ConsoleSize = [2]uint{} // clients of that time sent nonsense here
	}
	return o, nil
}

// setMAC moves a container's MAC address to where it belongs since 1.44: the
// network that the container is started in.
func setMAC(o *api.CreateOptions, mac network.HardwareAddr) {
	name := string(o.HostConfig.NetworkMode)
	if name == "" {
		name = network.NetworkDefault
	}
	if o.Networking.EndpointsConfig == nil {
		o.Networking.EndpointsConfig = map[string]*network.EndpointSettings{}
	}
	e := o.Networking.EndpointsConfig[name]
	if e == nil {
		e = &network.EndpointSettings{}
		o.Networking.EndpointsConfig[name] = e
	}
	if len(e.MacAddress) == 0 {
		e.MacAddress = mac
	}
}

func pruneContainers(c *call) error {
	f, err := c.filters()
	if err != nil {
		return err
	}
	report, err := c.engine.PruneContainers(c.r.Context(), f)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, report)
}

func inspectContainer(c *call) error {
	i, err := c.engine.InspectContainer(c.r.Context(), c.arg, api.InspectOptions{Size: c.flag("size")})
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, c.oldInspect(i))
}

func startContainer(c *call) error {
	o := api.StartOptions{DetachKeys: c.query.Get("detachKeys")}
	if err := c.engine.StartContainer(c.r.Context(), c.arg, o); err != nil {
		return err
	}
	return c.noContent()
}

func (c *call) stopOptions() (api.StopOptions, error) {
	o := api.StopOptions{}
	if !c.version.below(42) {
		o.Signal = c.query.Get("signal")
	}
	if t := c.query.Get("t"); t != "" {
		n, err := strconv.Atoi(t)
		if err != nil {
			return o, api.InvalidArgument("invalid t: %q is no number", t)
		}
		o.Timeout = &n
	}
	return o, nil
}

func stopContainer(c *call) error {
	o, err := c.stopOptions()
	if err != nil {
		return err
	}
	if err := c.engine.StopContainer(c.r.Context(), c.arg, o); err != nil {
		return err
	}
	return c.noContent()
}

func restartContainer(c *call) error {
	o, err := c.stopOptions()
	if err != nil {
		return err
	}
	if err := c.engine.RestartContainer(c.r.Context(), c.arg, o); err != nil {
		return err
	}
	return c.noContent()
}

func killContainer(c *call) error {
	if err := c.engine.KillContainer(c.r.Context(), c.arg, c.query.Get("signal")); err != nil {
		return err
	}
	return c.noContent()
}

func pauseContainer(c *call) error {
	if err := c.engine.PauseContainer(c.r.Context(), c.arg); err != nil {
		return err
	}
	return c.noContent()
}

func unpauseContainer(c *call) error {
	if err := c.engine.UnpauseContainer(c.r.Context(), c.arg); err != nil {
		return err
	}
	return c.noContent()
}

func renameContainer(c *call) error {
	if err := c.engine.RenameContainer(c.r.Context(), c.arg, strings.TrimPrefix(c.query.Get("name"), "/")); err != nil {
		return err
	}
	return c.noContent()
}

func removeContainer(c *call) error {
	o := api.RemoveOptions{Force: c.flag("force"), Volumes: c.flag("v"), Links: c.flag("link")}
	if err := c.engine.RemoveContainer(c.r.Context(), c.arg, o); err != nil {
		return err
	}
	return c.noContent()
}
