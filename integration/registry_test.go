package integration

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-engine/shoal/integration/lab"
)

// passwd lets me:secret in; it is what htpasswd -nbBC 4 says.
const passwd = "me:$2y$04$14VZ/WBCgtUp7LsWvqfgV.taQJX/.AQ/eBSYL1A3h3gJ1.g3zlPq2\n"

// registry runs Debian's registry in node n's network, and says its address and how to
// end it.
func registry(t *testing.T, n, port int, password bool) (host string, stop func()) {
	t.Helper()
	return loggedRegistry(t, n, port, password, nil)
}

// loggedRegistry writes a line for each request, as web servers do.
func loggedRegistry(t *testing.T, n, port int, password bool, log *os.File) (host string, stop func()) {
	t.Helper()
	dir := t.TempDir()
	auth := ""
	if password {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "passwd"), []byte(passwd), 0o600))
		auth = "auth: {htpasswd: {realm: here, path: " + filepath.Join(dir, "passwd") + "}}\n"
	}
	host = fmt.Sprintf("%s:%d", lab.Address(n), port)
	config := filepath.Join(dir, "config.yml")
	require.NoError(t, os.WriteFile(config, []byte(fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: %t}}\n", log == nil)+
		"storage: {filesystem: {rootdirectory: "+filepath.Join(dir, "data")+"}}\n"+auth+"http: {addr: '"+host+"'}\n"), 0o600))
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, shared.shoal, "lab", "exec", "--dir", shared.lab.Dir(), fmt.Sprint(n), "--", "docker-registry", "serve", config)
	if log != nil {
		cmd.Stdout = log
	}
	require.NoError(t, cmd.Start())
	stop = func() {
		cancel()
		_ = cmd.Wait() // says that it was killed
	}
	t.Cleanup(stop)
	within(t, time.Minute, "the registry's answer", func() bool {
		return inside(t, n, "curl", "-sS", "-o", "/dev/null", "-m", "2", "http://"+host+"/v2/").code == 0
	})
	return host, stop
}

// forget removes a name with the test.
func forget(t *testing.T, ref string) {
	t.Helper()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		_ = shared.command(ctx, 1, "rmi", "-f", ref).Run() // it may be gone
	})
}

// as is a docker client with a configuration of its own.
func as(t *testing.T, dir string, n int, stdin string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := shared.command(ctx, n, append([]string{"--config", dir}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	return runCommand(t, cmd)
}

func imageID(t *testing.T, n int, ref string) string {
	t.Helper()
	return ok(t, n, "image", "inspect", "-f", "{{.Id}}", ref)
}

// TestRegistries pushes through one node and pulls through others.
func TestRegistries(t *testing.T) {
	host, stop := registry(t, 1, 5099, false)
	ref := host + "/team/app:1"
	forget(t, ref)
	ok(t, 2, "tag", "web:1", ref)
	id := imageID(t, 1, "web:1")
	out := ok(t, 3, "push", ref)
	require.Contains(t, out, "The push refers to repository ["+host+"/team/app]")
	require.Contains(t, out, ": Pushed")
	require.Contains(t, out, "1: digest: sha256:")
	require.Contains(t, ok(t, 1, "push", "-a", host+"/team/app"), "Layer already exists")

	ok(t, 1, "rmi", ref)
	require.NotZero(t, docker(t, 2, "image", "inspect", ref).code)
	out = ok(t, 2, "pull", ref)
	require.Contains(t, out, "1: Pulling from team/app")
	require.Contains(t, out, "Status: ")
	for n := 1; n <= 3; n++ {
		require.Equal(t, id, imageID(t, n, ref), "it is an image of the whole cluster")
	}
	c := name(t)
	ok(t, 1, "run", "-d", "--name", c, "-e", "constraint:node==node3", ref)

	// Another tool changes what the tag means; a pull through any node shows it.
	r := inside(t, 1, "skopeo", "copy", "-q", "--dest-tls-verify=false", "docker-archive:"+shared.busybox, "docker://"+ref)
	require.Zero(t, r.code, r.err)
	require.Equal(t, id, imageID(t, 2, ref), "nothing changes by itself")
	require.Contains(t, ok(t, 3, "pull", ref), "Status: Downloaded newer image for "+ref)
	for n := 1; n <= 3; n++ {
		require.Equal(t, imageID(t, n, "busybox"), imageID(t, n, ref))
	}
	require.Equal(t, "hi", ok(t, 2, "run", "--rm", ref, "echo", "hi"))

	r = docker(t, 2, "pull", host+"/team/app:none")
	require.Equal(t, 1, r.code)
	require.Contains(t, r.err, "manifest for "+host+"/team/app:none not found: manifest unknown: manifest unknown")
	require.Contains(t, docker(t, 2, "push", host+"/team/none").err, "An image does not exist locally with the tag: "+host+"/team/none")

	// Without the registry the tag goes on meaning what it meant.
	stop()
	require.Contains(t, ok(t, 3, "pull", ref), "Status: Image is up to date")
	require.Contains(t, docker(t, 1, "pull", host+"/else").err, "connection refused")
}

func TestRegistryLogin(t *testing.T) {
	host, _ := registry(t, 2, 5098, true)
	ref := host + "/private:1"
	me, nobody := t.TempDir(), t.TempDir()
	r := as(t, me, 3, "guess", "login", "-u", "me", "--password-stdin", host)
	require.NotZero(t, r.code)
	require.Contains(t, r.err, "unauthorized")
	r = as(t, me, 3, "secret", "login", "-u", "me", "--password-stdin", host)
	require.Zero(t, r.code, r.err)
	require.Contains(t, r.out, "Login Succeeded")

	ok(t, 1, "tag", "busybox", ref)
	forget(t, ref)
	require.NotZero(t, as(t, nobody, 1, "", "push", ref).code)
	r = as(t, me, 1, "", "push", ref)
	require.Zero(t, r.code, r.err)
	ok(t, 1, "rmi", ref)
	r = as(t, nobody, 3, "", "pull", ref)
	require.Equal(t, 1, r.code)
	require.Contains(t, r.err, "pull access denied for "+host+"/private, repository does not exist or may require 'docker login'")
	r = as(t, me, 3, "", "pull", ref)
	require.Zero(t, r.code, r.err)
	require.Equal(t, imageID(t, 1, "busybox"), imageID(t, 2, ref))
}
