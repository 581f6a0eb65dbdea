package apitest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/stdcopy"
)

// Target is an engine under test. It may hold containers and images of others,
// and several tests may share it.
type Target struct {
	Engine api.Engine
	// Image is a busybox that the engine holds; empty means busybox:latest, which
	// is loaded if it is missing.
	Image string
}

// limit is what one test may take, the slowest engine and a busy machine included.
const limit = 2 * time.Minute

// Run holds an engine against the contract. target is called for every test and may
// return the same engine each time.
func Run(t *testing.T, target func(t *testing.T) Target) {
	RunIn(t, func(t *testing.T, test func(t *testing.T)) { test(t) }, target)
}

// RunIn is Run with something around every test, such as a bubble of fake time.
func RunIn(t *testing.T, around func(t *testing.T, test func(t *testing.T)), target func(t *testing.T) Target) {
	for _, group := range []struct {
		name  string
		tests map[string]func(*suite)
	}{
		{"Lifecycle", lifecycleTests()}, {"Errors", errorTests()}, {"Streams", streamTests()},
		{"Execs", execTests()}, {"Listing", listingTests()}, {"Events", eventTests()},
		{"Images", imageTests()}, {"System", systemTests()}, {"Volumes", volumeTests()}, {"DiskUsage", usageTests()},
	} {
		t.Run(group.name, func(t *testing.T) {
			for name, test := range group.tests {
				t.Run(name, func(t *testing.T) {
					around(t, func(t *testing.T) {
						ctx, cancel := context.WithTimeout(t.Context(), limit)
						defer cancel()
						s := &suite{T: t, ctx: ctx, Target: target(t), label: fmt.Sprintf("shoal-test-%d", rand.Uint64())}
						s.holdBusybox()
						test(s)
					})
				})
			}
		})
	}
}

// suite is one test's view of its target.
type suite struct {
	*testing.T
	Target
	ctx   context.Context // of the one test
	label string          // on everything the test makes, and nowhere else
}

func (s *suite) holdBusybox() {
	s.Helper()
	if s.Image != "" {
		return
	}
	s.Image = "busybox:latest"
	_, err := s.Engine.InspectImage(s.ctx, s.Image, api.ImageInspectOptions{})
	if errdefs.IsNotFound(err) {
		s.load(Busybox(s))
		return
	}
	require.NoError(s, err)
}

// load loads an archive and returns what the engine said.
func (s *suite) load(archive []byte) string {
	s.Helper()
	progress, err := s.Engine.LoadImages(s.ctx, bytes.NewReader(archive), api.LoadOptions{})
	require.NoError(s, err)
	return s.drain(progress)
}

func (s *suite) drain(progress api.Stream[api.Progress]) string {
	s.Helper()
	said := ""
	for p, err := range api.All(progress) {
		require.NoError(s, err)
		said += p.Stream + p.Status
	}
	return said
}

// options are what create asks for; the test's label is on it.
func (s *suite) options(cmd ...string) api.CreateOptions {
	return api.CreateOptions{
		Config: &container.Config{Image: s.Image, Cmd: cmd, Labels: map[string]string{s.label: "yes"}},
		// Most tests need no network; what an engine has by default is its own affair.
		HostConfig: &container.HostConfig{NetworkMode: "none"},
	}
}

// interactive lets stdin in, as docker run -i does.
func interactive(o api.CreateOptions) api.CreateOptions {
	o.Config.OpenStdin, o.Config.StdinOnce = true, true
	o.Config.AttachStdin, o.Config.AttachStdout, o.Config.AttachStderr = true, true, true
	return o
}

// create makes a container that is removed after the test.
func (s *suite) create(o api.CreateOptions) string {
	s.Helper()
	made, err := s.Engine.CreateContainer(s.ctx, o)
	require.NoError(s, err)
	require.Regexp(s, `^[0-9a-f]{64}$`, made.ID)
	s.remove(made.ID)
	return made.ID
}

// remove registers the removal of a container.
func (s *suite) remove(id string) {
	s.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), limit)
		defer cancel()
		err := s.Engine.RemoveContainer(ctx, id, api.RemoveOptions{Force: true, Volumes: true})
		if err != nil && !errdefs.IsNotFound(err) {
			s.Errorf("remove %s: %v", id, err)
		}
	})
}

func (s *suite) start(id string) {
	s.Helper()
	require.NoError(s, s.Engine.StartContainer(s.ctx, id, api.StartOptions{}))
}

// running makes and starts a container that stays.
func (s *suite) running() string {
	s.Helper()
	id := s.create(s.options("sleep", "1000"))
	s.start(id)
	return id
}

// finished makes a container, starts it and waits for its end.
func (s *suite) finished(cmd ...string) string {
	s.Helper()
	id := s.create(s.options(cmd...))
	wait := s.wait(id, container.WaitConditionNextExit)
	s.start(id)
	s.recv(wait)
	return id
}

func (s *suite) wait(id string, c container.WaitCondition) api.Stream[container.WaitResponse] {
	s.Helper()
	w, err := s.Engine.WaitContainer(s.ctx, id, c)
	require.NoError(s, err)
	s.Cleanup(func() { _ = w.Close() })
	return w
}

// recv is the one value of a wait.
func (s *suite) recv(w api.Stream[container.WaitResponse]) int {
	s.Helper()
	got, err := w.Recv()
	require.NoError(s, err)
	require.Nil(s, got.Error)
	_, err = w.Recv()
	require.Equal(s, io.EOF, err, "a wait has one value")
	return int(got.StatusCode)
}

func (s *suite) inspect(id string) container.InspectResponse {
	s.Helper()
	i, err := s.Engine.InspectContainer(s.ctx, id, api.InspectOptions{})
	require.NoError(s, err)
	require.NotNil(s, i.State)
	require.NotNil(s, i.Config)
	require.NotNil(s, i.HostConfig)
	return i
}

// attach connects with all of a container's streams.
func (s *suite) attach(id string, stdin bool) api.Session {
	s.Helper()
	session, err := s.Engine.AttachContainer(s.ctx, id, api.AttachOptions{
		Stdin: stdin, Stdout: true, Stderr: true, Stream: true,
	})
	require.NoError(s, err)
	s.Cleanup(func() { _ = session.Close() })
	return session
}

// split reads a stream to its end, taking frames apart where there are any.
func (s *suite) split(r io.Reader, multiplexed bool) (stdout, stderr string) {
	s.Helper()
	var out, err bytes.Buffer
	var e error
	if multiplexed {
		_, e = stdcopy.Copy(&out, &err, r)
	} else {
		_, e = io.Copy(&out, r)
	}
	require.NoError(s, e)
	return out.String(), err.String()
}

// logs reads all that the options choose.
func (s *suite) logs(id string, o api.LogsOptions) (stdout, stderr string) {
	s.Helper()
	out, err := s.Engine.ContainerLogs(s.ctx, id, o)
	require.NoError(s, err)
	defer out.Close()
	return s.split(out, out.Multiplexed)
}

// everything is all of a log.
func everything() api.LogsOptions { return api.LogsOptions{Stdout: true, Stderr: true, Tail: -1} }

// name is unique.
func (s *suite) name(prefix string) string { return prefix + "-" + s.label }
