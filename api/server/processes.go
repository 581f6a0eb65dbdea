package server

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/stdcopy"
)

func processRoutes() []route {
	const one = "/containers/{id}"
	attach := []param{{"stdin", "boolean", "connect stdin"}, {"stdout", "boolean", "connect stdout"},
		{"stderr", "boolean", "connect stderr"}, {"logs", "boolean", "replay what was written"},
		{"stream", "boolean", "follow what is written"}, {"detachKeys", "string", "keys that detach"}}
	return []route{
		{method: "GET", path: one + "/top", id: "ContainerTop", doc: "List a container's processes",
			query:  []param{{"ps_args", "string", "arguments of ps, -ef if empty"}},
			status: 200, answer: container.TopResponse{}, handle: topContainer},
		{method: "GET", path: one + "/logs", id: "ContainerLogs", doc: "Read what a container wrote",
			query: []param{{"stdout", "boolean", "with stdout"}, {"stderr", "boolean", "with stderr"},
				{"follow", "boolean", "until the container ends"}, {"since", "string", "Unix time"},
				{"until", "string", "Unix time"}, {"timestamps", "boolean", "before every line"},
				{"tail", "string", "this many lines from the end, or all"}, {"details", "boolean", "with extra attributes"}},
			status: 200, answer: multiType, handle: containerLogs},
		{method: "POST", path: one + "/wait", id: "ContainerWait", doc: "Wait for a container",
			query:  []param{{"condition", "string", "not-running, next-exit or removed"}},
			status: 200, answer: container.WaitResponse{}, handle: waitContainer},
		{method: "POST", path: one + "/attach", id: "ContainerAttach", doc: "Connect with a container's streams",
			query: attach, status: 101, answer: multiType, handle: attachContainer},
		{method: "GET", path: one + "/attach/ws", id: "ContainerAttachWebsocket",
			doc: "Connect with a container's streams over a websocket", query: attach, status: 101, handle: attachWebsocket},
		{method: "POST", path: one + "/resize", id: "ContainerResize", doc: "Resize a container's terminal",
			query: []param{{"h", "integer", "lines"}, {"w", "integer", "columns"}}, status: 200, handle: resizeContainer},
	}
}

func topContainer(c *call) error {
	top, err := c.engine.TopContainer(c.r.Context(), c.arg, strings.Fields(c.query.Get("ps_args")))
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, top)
}

func (c *call) logsOptions() (o api.LogsOptions, err error) {
	o = api.LogsOptions{
		Stdout: c.flag("stdout"), Stderr: c.flag("stderr"), Follow: c.flag("follow"),
		Timestamps: c.flag("timestamps"), Details: c.flag("details"), Tail: -1,
	}
	if !o.Stdout && !o.Stderr {
		return o, api.InvalidArgument("Bad parameters: you must choose at least one stream")
	}
	if n, err := strconv.Atoi(c.query.Get("tail")); err == nil { // Docker takes anything else for all
		o.Tail = n
	}
	if o.Since, err = c.time("since"); err != nil {
		return o, err
	}
	o.Until, err = c.time("until")
	return o, err
}

func containerLogs(c *call) error {
	o, err := c.logsOptions()
	if err != nil {
		return err
	}
	out, err := c.engine.ContainerLogs(c.r.Context(), c.arg, o)
	if err != nil {
		return err
	}
	defer out.Close()
	stop := context.AfterFunc(c.r.Context(), func() { _ = out.Close() })
	defer stop()
	w := flushing(c.w)
	w.begin(c.streamType(out.Multiplexed))
	if _, err := io.Copy(w, out); err != nil && c.r.Context().Err() == nil {
		if out.Multiplexed {
			_, _ = w.Write(stdcopy.Append(nil, stdcopy.System, []byte(err.Error())))
		}
		return err
	}
	return nil
}

func waitContainer(c *call) error {
	condition := container.WaitConditionNotRunning
	switch v := container.WaitCondition(c.query.Get("condition")); v {
	case container.WaitConditionNotRunning, container.WaitConditionNextExit, container.WaitConditionRemoved:
		condition = v
	case "":
	default:
		return api.InvalidArgument("invalid condition: %q", string(v))
	}
	s, err := c.engine.WaitContainer(c.r.Context(), c.arg, condition)
	if err != nil {
		return err
	}
	defer s.Close()
	w := flushing(c.w)
	w.begin("application/json")
	got, err := s.Recv()
	if c.r.Context().Err() != nil {
		return c.r.Context().Err()
	}
	if err != nil {
		got = container.WaitResponse{StatusCode: -1, Error: &container.WaitExitError{Message: err.Error()}}
	}
	return writeLine(w, "", got)
}

func (c *call) attachOptions() api.AttachOptions {
	return api.AttachOptions{
		Stdin: c.flag("stdin"), Stdout: c.flag("stdout"), Stderr: c.flag("stderr"),
		Logs: c.flag("logs"), Stream: c.flag("stream"), DetachKeys: c.query.Get("detachKeys"),
	}
}

func attachContainer(c *call) error {
	o := c.attachOptions()
	s, err := c.engine.AttachContainer(c.r.Context(), c.arg, o)
	if err != nil {
		return err
	}
	return c.hijack(s, o.Stdin)
}

func (c *call) size() (api.TerminalSize, error) {
	h, errH := strconv.ParseUint(c.query.Get("h"), 10, 32)
	w, errW := strconv.ParseUint(c.query.Get("w"), 10, 32)
	if err := errors.Join(errH, errW); err != nil {
		return api.TerminalSize{}, api.InvalidArgument("invalid resize height or width: %w", err)
	}
	return api.TerminalSize{Height: uint(h), Width: uint(w)}, nil
}

func resizeContainer(c *call) error {
	size, err := c.size()
	if err != nil {
		return err
	}
	if err := c.engine.ResizeContainer(c.r.Context(), c.arg, size); err != nil {
		return err
	}
	c.w.WriteHeader(http.StatusOK)
	return nil
}
