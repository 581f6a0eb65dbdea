package server_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/api/apitest"
	"github.com/shoal-engine/shoal/api/server"
)

// dockers are Docker's own clients, an old and a new one, where a machine has them.
var dockers = []string{"/usr/bin/docker", "/usr/local/bin/docker"}

// cli runs a docker command against a server.
type cli struct {
	*testing.T
	binary, socket, dir string
}

// serve runs a server over a Fake that holds busybox, and returns its socket.
func serve(t *testing.T) (*apitest.Fake, string) {
	f := apitest.NewFake("fake", 1)
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "docker.sock"))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	s := server.NewServer(server.Config{Engine: f, Version: "1.2.3"})
	go func() { done <- s.Run(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
		require.NoError(t, f.Close())
	})
	return f, l.Addr().String()
}

func eachDocker(t *testing.T, test func(*testing.T, cli)) {
	found := false
	for _, binary := range dockers {
		if _, err := os.Stat(binary); err != nil {
			continue
		}
		found = true
		t.Run(strings.ReplaceAll(strings.Trim(binary, "/"), "/", "-"), func(t *testing.T) {
			_, socket := serve(t)
			c := cli{t, binary, socket, t.TempDir()}
			archive := filepath.Join(c.dir, "busybox.tar")
			require.NoError(t, os.WriteFile(archive, apitest.Busybox(t), 0o600))
			require.Contains(t, c.ok("load", "-i", archive), "Loaded image: busybox:latest")
			test(t, c)
		})
	}
	if !found {
		t.Skip("needs a docker binary")
	}
}

// run runs a command and returns what it said and its exit code.
func (c cli) run(stdin string, args ...string) (stdout, stderr string, code int) {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.binary, args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+c.socket, "DOCKER_CONFIG="+c.dir)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		require.NoError(c, err)
	}
	require.NoError(c, ctx.Err(), "docker %v hangs; it said %s%s", args, out.String(), errs.String())
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// ok runs a command that has to succeed.
func (c cli) ok(args ...string) string {
	c.Helper()
	stdout, stderr, code := c.run("", args...)
	require.Zero(c, code, "docker %v: %s", args, stderr)
	return stdout
}

func TestDockerRuns(t *testing.T) {
	eachDocker(t, func(t *testing.T, c cli) {
		for _, r := range []struct {
			name, stdin    string
			args           []string
			stdout, stderr string
			code           int
		}{
			{"output", "", []string{"busybox", "sh", "-c", "echo out; echo err >&2"}, "out\n", "err\n", 0},
			{"exit code", "", []string{"busybox", "sh", "-c", "exit 3"}, "", "", 3},
			{"piped stdin", "piped\nlines\n", []string{"-i", "busybox", "cat"}, "piped\nlines\n", "", 0},
			{"shell on stdin", "echo from stdin\nexit 4\n", []string{"-i", "busybox", "sh"}, "from stdin\n", "", 4},
			{"no such command", "", []string{"busybox", "nosuch"}, "", "executable file not found", 127},
			{"not executable", "", []string{"busybox", "/etc/passwd"}, "", "permission denied", 126},
			{"no such image", "", []string{"no-such-image"}, "", "pull access denied", 125},
			{"bad name", "", []string{"--name", "!", "busybox"}, "", "Invalid container name", 125},
		} {
			stdout, stderr, code := c.run(r.stdin, append([]string{"run", "--rm"}, r.args...)...)
			assert.Equal(t, r.stdout, stdout, r.name)
			assert.Contains(t, stderr, r.stderr, r.name)
			assert.Equal(t, r.code, code, r.name)
		}
		assert.Empty(t, c.ok("ps", "-aq"), "--rm leaves nothing")
	})
}

func TestDockerManagesContainers(t *testing.T) {
	eachDocker(t, func(t *testing.T, c cli) {
		id := strings.TrimSpace(c.ok("run", "-d", "--name", "web", "-l", "tier=front", "busybox", "sleep", "1000"))
		assert.Regexp(t, `^[0-9a-f]{64}$`, id)
		ps := c.ok("ps")
		assert.Contains(t, ps, id[:12])
		assert.Contains(t, ps, "Up Less than a second")
		assert.Contains(t, ps, `"sleep 1000"`)
		assert.Equal(t, "web\n", c.ok("ps", "--filter", "label=tier=front", "--format", "{{.Names}}"))
		assert.Equal(t, "true sleep 172.17.0.1\n",
			c.ok("inspect", "-f", "{{.State.Running}} {{.Path}} {{.NetworkSettings.Gateway}}", "web"),
			"the fields of old times are there for old and new clients before 1.52")

		stdout, stderr, code := c.run("", "exec", "web", "sh", "-c", "echo x; echo y >&2; exit 5")
		assert.Equal(t, []any{"x\n", "y\n", 5}, []any{stdout, stderr, code})
		stdout, _, code = c.run("in\n", "exec", "-i", "web", "cat")
		assert.Equal(t, []any{"in\n", 0}, []any{stdout, code})
		_, _, code = c.run("", "exec", "web", "nosuch")
		assert.Equal(t, 127, code)
		assert.Contains(t, c.ok("top", "web"), "sleep 1000")

		_, stderr, code = c.run("", "run", "--name", "web", "busybox")
		assert.Equal(t, 125, code)
		assert.Contains(t, stderr, `The container name "/web" is already in use by container "`+id+`"`)
		_, stderr, _ = c.run("", "rm", "web")
		assert.Contains(t, stderr, "container is running")
		c.ok("rename", "web", "www")
		c.ok("pause", "www")
		assert.Contains(t, c.ok("ps"), "(Paused)")
		c.ok("unpause", "www")
		c.ok("restart", "-t", "0", "www")
		c.ok("stop", "-t", "0", "www")
		c.ok("stop", "-t", "0", "www") // 304 is no error
		assert.Equal(t, "137\n", c.ok("wait", "www"))
		assert.Contains(t, c.ok("ps", "-a", "--filter", "exited=137"), "Exited (137)")
		c.ok("start", "www")
		c.ok("start", "www")
		c.ok("kill", "www")
		c.ok("rm", "www")
		_, stderr, code = c.run("", "inspect", "www")
		assert.Equal(t, 1, code)
		assert.Regexp(t, "(?i)no such object: www", stderr)
	})
}

func TestDockerReadsLogs(t *testing.T) {
	eachDocker(t, func(t *testing.T, c cli) {
		id := strings.TrimSpace(c.ok("run", "-d", "busybox", "sh", "-c", "echo a; echo b >&2; sleep 0.2; echo c"))
		stdout, stderr, code := c.run("", "logs", "-f", id)
		assert.Equal(t, []any{"a\nc\n", "b\n", 0}, []any{stdout, stderr, code})
		assert.Equal(t, "c\n", c.ok("logs", "--tail", "1", id))
		assert.Regexp(t, `^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z a\n`, c.ok("logs", "-t", id))
		attached, _, code := c.run("", "start", "-a", id)
		assert.Equal(t, []any{"a\nc\n", 0}, []any{attached, code})
		tty := strings.TrimSpace(c.ok("run", "-dt", "busybox", "echo", "tty"))
		c.ok("wait", tty)
		assert.Equal(t, "tty\r\n", c.ok("logs", tty))
		// Clients cut times to seconds: one second on is the end of this one.
		until := strconv.FormatInt(time.Now().Unix()+1, 10)
		assert.Contains(t, c.ok("events", "--since", "1h", "--until", until, "--filter", "event=die"), "container die "+id)
	})
}

func TestDockerManagesImages(t *testing.T) {
	eachDocker(t, func(t *testing.T, c cli) {
		assert.Equal(t, "busybox:latest\n", c.ok("images", "--format", "{{.Repository}}:{{.Tag}}"))
		c.ok("tag", "busybox", "registry.example:5000/a/b:1")
		assert.Contains(t, c.ok("images"), "registry.example:5000/a/b")
		id := c.ok("images", "-q", "--no-trunc", "busybox")
		assert.Equal(t, id, c.ok("inspect", "-f", "{{.Id}}", "registry.example:5000/a/b:1"))
		assert.Contains(t, c.ok("history", "busybox"), "ADD ")
		file := filepath.Join(c.dir, "saved.tar")
		c.ok("save", "-o", file, "registry.example:5000/a/b:1")
		assert.Contains(t, c.ok("rmi", "registry.example:5000/a/b:1"), "Untagged: registry.example:5000/a/b:1")
		assert.Contains(t, c.ok("load", "-i", file), "Loaded image: registry.example:5000/a/b:1")
		root := filepath.Join(c.dir, "root.tar")
		require.NoError(t, os.WriteFile(root, bytes.Repeat([]byte{0}, 1024), 0o600))
		assert.Contains(t, c.ok("import", root, "empty:1"), "sha256:")
		c.ok("rmi", "empty:1")
		_, stderr, code := c.run("", "rmi", "nosuch")
		assert.Equal(t, 1, code)
		assert.Contains(t, stderr, "No such image: nosuch")
		assert.Contains(t, c.ok("network", "ls"), "bridge")
		assert.Contains(t, c.ok("info"), "Server Version: 0.0.0-fake")
		assert.Contains(t, c.ok("version"), "1.56 (minimum version 1.40)")
	})
}

const pythonScript = `
import docker, sys, io
c = docker.DockerClient(base_url='unix://' + sys.argv[1], version='auto', timeout=60)
assert c.ping()
assert c.images.load(open(sys.argv[2], 'rb').read())[0].tags == ['busybox:latest']
assert c.containers.run('busybox', ['echo', 'hi'], remove=True) == b'hi\n'
try:
    c.containers.run('busybox', ['sh', '-c', 'echo no >&2; exit 3'], remove=True)
    assert False
except docker.errors.ContainerError as e:
    assert e.exit_status == 3 and e.stderr == b'no\n', e
w = c.containers.run('busybox', ['sleep', '1000'], detach=True, name='ww', labels={'a': 'b'})
assert [x.name for x in c.containers.list(filters={'label': 'a=b'})] == ['ww']
code, out = w.exec_run(['sh', '-c', 'echo x; exit 7'])
assert (code, out) == (7, b'x\n'), (code, out)
code, out = w.exec_run(['sh', '-c', 'echo x; echo y >&2'], demux=True)
assert out == (b'x\n', b'y\n'), out
w.stop(timeout=0)
assert w.wait()['StatusCode'] == 137
w.remove()
s = c.containers.create('busybox', ['cat'], stdin_open=True)
sock = s.attach_socket(params={'stdin': 1, 'stdout': 1, 'stream': 1})
s.start()
sock._sock.sendall(b'over the socket\n')
got = b''
while len(got) < 24:
    got += sock._sock.recv(100)
assert got[8:] == b'over the socket\n', got
s.remove(force=True)
l = c.containers.run('busybox', ['sh', '-c', 'echo 1; echo 2'], detach=True)
l.wait()
assert l.logs() == b'1\n2\n' and list(l.logs(stream=True, follow=True)) == [b'1\n2\n'] or list(l.logs(stream=True)) == [b'1\n', b'2\n']
l.remove()
try:
    c.containers.get('nosuch'); assert False
except docker.errors.NotFound as e:
    assert 'No such container: nosuch' in str(e)
try:
    c.images.pull('nosuch'); assert False
except docker.errors.NotFound: pass
i = c.images.get('busybox')
i.tag('other', 'v1')
assert b''.join(c.images.get('other:v1').save())
c.images.remove('other:v1')
assert {n.name for n in c.networks.list()} == {'bridge', 'host', 'none'}
assert c.info()['Name'] == 'fake' and c.version()['ApiVersion'] == '1.56'
`

func TestDockerPyWorks(t *testing.T) {
	for _, python := range []string{"/usr/bin/python3", "/usr/local/bin/python3"} {
		if exec.Command(python, "-c", "import docker").Run() != nil {
			continue
		}
		t.Run(strings.ReplaceAll(strings.Trim(python, "/"), "/", "-"), func(t *testing.T) {
			_, socket := serve(t)
			archive := filepath.Join(t.TempDir(), "busybox.tar")
			require.NoError(t, os.WriteFile(archive, apitest.Busybox(t), 0o600))
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			out, err := exec.CommandContext(ctx, python, "-c", pythonScript, socket, archive).CombinedOutput()
			require.NoError(t, err, "%s", out)
		})
	}
}
