package server

import (
	"net/http"

	"github.com/moby/moby/api/types/container"

	"github.com/shoal-engine/shoal/api"
)

func execRoutes() []route {
	return []route{
		{method: "POST", path: "/containers/{id}/exec", id: "ContainerExec", doc: "Prepare a further process in a container",
			body: container.ExecCreateRequest{}, status: 201, answer: container.ExecCreateResponse{}, handle: createExec},
		{method: "POST", path: "/exec/{id}/start", id: "ExecStart", doc: "Run a prepared process and connect with it",
			body: container.ExecStartRequest{}, status: 101, answer: multiType, handle: startExec},
		{method: "POST", path: "/exec/{id}/resize", id: "ExecResize", doc: "Resize a process's terminal",
			query: []param{{"h", "integer", "lines"}, {"w", "integer", "columns"}}, status: 201, handle: resizeExec},
		{method: "GET", path: "/exec/{id}/json", id: "ExecInspect", doc: "Inspect a process",
			status: 200, answer: container.ExecInspectResponse{}, handle: inspectExec},
	}
}

func createExec(c *call) error {
	var b container.ExecCreateRequest
	if err := c.decode(&b); err != nil {
		return err
	}
	if len(b.Cmd) == 0 {
		return api.InvalidArgument("No exec command specified")
	}
	if c.version.below(42) {
		b.ConsoleSize = nil
	}
	made, err := c.engine.CreateExec(c.r.Context(), c.arg, b)
	if err != nil {
		return err
	}
	return c.json(http.StatusCreated, made)
}

func startExec(c *call) error {
	var b container.ExecStartRequest
	if err := c.decode(&b); err != nil {
		return err
	}
	o := api.ExecStartOptions{Detach: b.Detach, Tty: b.Tty}
	if b.ConsoleSize != nil && !c.version.below(42) {
		o.Size = api.TerminalSize{Height: b.ConsoleSize[0], Width: b.ConsoleSize[1]}
	}
	s, err := c.engine.StartExec(c.r.Context(), c.arg, o)
	if err != nil {
		return err
	}
	if b.Detach {
		c.w.WriteHeader(http.StatusOK)
		return nil
	}
	return c.hijack(s, true)
}

func resizeExec(c *call) error {
	size, err := c.size()
	if err != nil {
		return err
	}
	if err := c.engine.ResizeExec(c.r.Context(), c.arg, size); err != nil {
		return err
	}
	c.w.WriteHeader(http.StatusCreated)
	return nil
}

func inspectExec(c *call) error {
	i, err := c.engine.InspectExec(c.r.Context(), c.arg)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, i)
}
