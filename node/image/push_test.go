package image_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	authtypes "github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/node/image"
	"github.com/shoal-engine/shoal/node/image/registry"
	"github.com/shoal-engine/shoal/transfer"
)

// passwd is what htpasswd -nbBC 4 me secret says.
const passwd = "me:$2y$04$NJHDEaery2qt2Ziw9RqKkOrRQ8DJeZ9UMFQVHqFaSxcaUXxKdocD6\n"

// debian runs Debian's registry on loopback and says where. With a password only
// me:secret gets in.
func debian(t *testing.T, password bool) (host, root string) {
	t.Helper()
	program, err := exec.LookPath("docker-registry")
	require.NoError(t, err, "make setup installs it")
	root = t.TempDir()
	auth := ""
	if password {
		require.NoError(t, os.WriteFile(filepath.Join(root, "passwd"), []byte(passwd), 0o600))
		auth = "auth: {htpasswd: {realm: here, path: " + filepath.Join(root, "passwd") + "}}\n"
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	host = l.Addr().String()
	require.NoError(t, l.Close())
	config := filepath.Join(root, "config.yml")
	require.NoError(t, os.WriteFile(config, []byte("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"+
		"storage: {filesystem: {rootdirectory: "+filepath.Join(root, "data")+"}}\n"+auth+"http: {addr: '"+host+"'}\n"), 0o600))
	cmd := exec.Command(program, "serve", config)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		require.NoError(t, cmd.Process.Kill())
		_ = cmd.Wait() // says that it was killed
	})
	require.Eventually(t, func() bool {
		res, err := http.Get("http://" + host + "/v2/")
		if err == nil {
			_ = res.Body.Close()
		}
		return err == nil
	}, time.Minute, 10*time.Millisecond)
	return host, root
}

// reaching lets a store reach registries.
func reaching(t testing.TB, fs ...transfer.Fetcher) func(*image.Config) {
	t.Helper()
	c, err := registry.New(registry.Config{Pause: time.Millisecond})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return func(cfg *image.Config) { cfg.Registry, cfg.Fetchers = c, fs }
}

func push(s *image.Store, o api.PushOptions) (said string, results []api.PushResult, err error) {
	var b strings.Builder
	stream, err := s.Push(context.Background(), o)
	if err != nil {
		return "", nil, err
	}
	for p, err := range api.All(stream) {
		if err != nil {
			return b.String(), results, err
		}
		var r api.PushResult
		if p.Aux != nil && json.Unmarshal(*p.Aux, &r) == nil && r.Digest != "" {
			results = append(results, r)
		}
		if p.Progress == nil && p.Status != "" {
			b.WriteString(p.ID + ": " + p.Status + "\n")
		}
	}
	return b.String(), results, nil
}

func skopeo(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("skopeo", args...).CombinedOutput()
	require.NoError(t, err, "%s", out)
	return string(out)
}

func TestPushAndPullThroughDebiansRegistry(t *testing.T) {
	host, _ := debian(t, false)
	src := open(t, reaching(t))
	noise := make([]byte, 3<<20)
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	load(t, src, layout(t, host+"/team/app:1", func(b []byte) []byte { return gz(t, b) }, ocispec.MediaTypeImageLayerGzip, nil,
		tarOf(t, file("a", string(noise))), tarOf(t, file("b", "hello"))))
	img := get(t, src, host+"/team/app:1")
	require.NoError(t, src.Tag(context.Background(), host+"/team/app:1", host+"/team/app:2"))
	require.NoError(t, src.Tag(context.Background(), host+"/team/app:1", host+"/other:1"))
	var told []string
	src.OnChange(func(action, id, name string) { told = append(told, action+" "+id+" "+name) })

	said, results, err := push(src, api.PushOptions{Ref: host + "/team/app:1"})
	require.NoError(t, err)
	a, b := img.Layers[0].Digest.Encoded()[:12], img.Layers[1].Digest.Encoded()[:12]
	lines := strings.Split(strings.TrimSpace(said), "\n")
	require.Equal(t, ": The push refers to repository ["+host+"/team/app]", lines[0])
	require.Contains(t, lines, a+": Preparing")
	require.Contains(t, lines, a+": Pushed")
	require.Contains(t, lines, b+": Pushed")
	require.Equal(t, fmt.Sprintf(": 1: digest: %s size: %d", img.Target.Digest, img.Target.Size), lines[len(lines)-1])
	require.Equal(t, []api.PushResult{{Tag: "1", Digest: img.Target.Digest.String(), Size: int(img.Target.Size)}}, results)
	require.Equal(t, []string{"push " + img.ID.String() + " " + host + "/team/app:1"}, told)

	said, results, err = push(src, api.PushOptions{Ref: host + "/team/app"})
	require.NoError(t, err)
	require.Contains(t, said, a+": Layer already exists")
	require.Len(t, results, 2, "all tags")
	said, _, err = push(src, api.PushOptions{Ref: host + "/other:1"})
	require.NoError(t, err)
	require.Contains(t, said, a+": Mounted from team/app")
	_, _, err = push(src, api.PushOptions{Ref: host + "/none:1"})
	require.True(t, errdefs.IsNotFound(err))
	require.EqualError(t, err, "An image does not exist locally with the tag: "+host+"/none")
	_, _, err = push(src, api.PushOptions{Ref: host + "/team/app@" + img.Target.Digest.String()})
	require.True(t, errdefs.IsInvalidArgument(err))

	s := open(t, reaching(t))
	out, err := pull(s, api.PullOptions{Ref: host + "/team/app:2"})
	require.NoError(t, err)
	lines = strings.Split(strings.TrimSpace(out), "\n")
	require.Equal(t, "2: Pulling from team/app", lines[0])
	require.Contains(t, lines, a+": Pull complete")
	require.Equal(t, ": Digest: "+img.Target.Digest.String(), lines[len(lines)-2])
	got := get(t, s, host+"/team/app:2")
	require.Equal(t, img.Target.Digest, got.Target.Digest)
	body, err := os.ReadFile(filepath.Join(mount(t, s, "c", got.ID).Path, "b"))
	require.NoError(t, err)
	require.Equal(t, "hello", string(body))
	out, err = pull(open(t, reaching(t)), api.PullOptions{Ref: host + "/team/app@" + img.Target.Digest.String()})
	require.NoError(t, err)
	require.Contains(t, out, "Downloaded newer image")
	_, err = pull(s, api.PullOptions{Ref: host + "/team/app:3"})
	require.EqualError(t, err, "manifest for "+host+"/team/app:3 not found: manifest unknown: manifest unknown")
	require.True(t, errdefs.IsNotFound(err))

	// And by another tool, out and in.
	dir := t.TempDir()
	skopeo(t, "copy", "--src-tls-verify=false", "docker://"+host+"/team/app:1", "oci:"+dir+":x")
	skopeo(t, "copy", "--dest-tls-verify=false", "--dest-compress-format=zstd", "oci:"+dir+":x", "docker://"+host+"/by/skopeo:1")
	_, err = pull(s, api.PullOptions{Ref: host + "/by/skopeo:1"})
	require.NoError(t, err)
	require.Equal(t, img.DiffIDs, get(t, s, host+"/by/skopeo:1").DiffIDs)
}

func TestRegistryWithPasswords(t *testing.T) {
	host, _ := debian(t, true)
	s := open(t, reaching(t))
	load(t, s, layered(t, host+"/app:1", tarOf(t, file("a", "x"))))
	for name, auth := range map[string]authtypes.AuthConfig{"none": {}, "wrong": {Username: "me", Password: "guess"}} {
		_, _, err := push(s, api.PushOptions{Ref: host + "/app:1", Auth: auth})
		require.True(t, errdefs.IsUnauthorized(err), "%s: %v", name, err)
	}
	me := authtypes.AuthConfig{Username: "me", Password: "secret"}
	_, _, err := push(s, api.PushOptions{Ref: host + "/app:1", Auth: me})
	require.NoError(t, err)
	other := open(t, reaching(t))
	_, err = pull(other, api.PullOptions{Ref: host + "/app:1"})
	require.True(t, errdefs.IsNotFound(err))
	require.ErrorContains(t, err, "pull access denied for "+host+"/app, repository does not exist or may require 'docker login'")
	_, err = pull(other, api.PullOptions{Ref: host + "/app:1", Auth: me})
	require.NoError(t, err)
}

// TestRegistryDecidesAndPeersSend: the tag means what the registry says, the bytes
// come from peers; where the registry can't say, what is known is good enough.
func TestRegistryDecidesAndPeersSend(t *testing.T) {
	host, root := debian(t, false)
	ref := host + "/app:1"
	src := open(t, reaching(t))
	load(t, src, layered(t, ref, tarOf(t, file("a", "old"))))
	old := get(t, src, ref)
	_, _, err := push(src, api.PushOptions{Ref: ref})
	require.NoError(t, err)
	peer := &from{src: src}
	s := open(t, reaching(t, peer))
	_, err = pull(s, api.PullOptions{Ref: ref})
	require.NoError(t, err)
	require.EqualValues(t, 3, peer.calls.Load(), "manifest, config and layer")

	load(t, src, layered(t, ref, tarOf(t, file("a", "new"))))
	_, _, err = push(src, api.PushOptions{Ref: ref})
	require.NoError(t, err)
	out, err := pull(s, api.PullOptions{Ref: ref, Known: old.Target.Digest.String()})
	require.NoError(t, err)
	require.Contains(t, out, "Downloaded newer image")
	require.Equal(t, get(t, src, ref).ID, get(t, s, ref).ID)

	// The registry forgets the tag, then everything.
	require.NoError(t, os.RemoveAll(filepath.Join(root, "data")))
	out, err = pull(s, api.PullOptions{Ref: ref, Known: old.Target.Digest.String()})
	require.NoError(t, err)
	require.Equal(t, old.ID, get(t, s, ref).ID, "what the cluster means by it")
	require.Contains(t, out, old.Target.Digest.String())
	out, err = pull(s, api.PullOptions{Ref: ref})
	require.NoError(t, err)
	require.Contains(t, out, "Image is up to date")
	_, err = pull(s, api.PullOptions{Ref: "localhost:1/app"})
	require.ErrorContains(t, err, "connection refused")
	require.NoError(t, s.Tag(context.Background(), ref, "localhost:1/app"))
	_, err = pull(s, api.PullOptions{Ref: "localhost:1/app"})
	require.NoError(t, err)
}

func TestPushOfAnIndex(t *testing.T) {
	host, _ := debian(t, false)
	s := open(t, reaching(t), func(c *image.Config) { c.Platform = api.Platform{OS: "linux", Architecture: "amd64"} })
	var manifests []ocispec.Descriptor
	for _, arch := range []string{"arm64", "amd64"} {
		load(t, s, layout(t, host+"/"+arch+":1", func(b []byte) []byte { return b }, ocispec.MediaTypeImageLayer, nil, tarOf(t, file(arch, arch))))
		_, _, err := push(s, api.PushOptions{Ref: host + "/" + arch + ":1"})
		require.NoError(t, err)
		d := get(t, s, host+"/"+arch+":1").Manifest
		d.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
		manifests = append(manifests, d)
	}
	index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: manifests}
	index.SchemaVersion = 2
	raw, err := json.Marshal(index)
	require.NoError(t, err)
	put(t, s, raw)
	_, err = pull(s, api.PullOptions{Ref: host + "/app:1", Digest: digest.FromBytes(raw).String()})
	require.NoError(t, err)
	_, results, err := push(s, api.PushOptions{Ref: host + "/app:1"})
	require.NoError(t, err)
	require.Equal(t, digest.FromBytes(raw).String(), results[0].Digest, "all of it is here")
	require.Equal(t, string(raw), skopeo(t, "inspect", "--raw", "--tls-verify=false", "docker://"+host+"/app:1"))

	arm := api.Platform{OS: "linux", Architecture: "arm64"}
	other := open(t, reaching(t), func(c *image.Config) { c.Platform = api.Platform{OS: "linux", Architecture: "amd64"} })
	_, err = pull(other, api.PullOptions{Ref: host + "/app:1", Platform: arm})
	require.NoError(t, err)
	require.Equal(t, get(t, s, host+"/arm64:1").ID, get(t, other, host+"/app:1").ID)
	_, _, err = push(other, api.PushOptions{Ref: host + "/app:1"})
	require.True(t, errdefs.IsNotFound(err), "this host's platform is not here: %v", err)
	_, results, err = push(other, api.PushOptions{Ref: host + "/app:1", Platform: arm})
	require.NoError(t, err)
	require.Equal(t, manifests[0].Digest.String(), results[0].Digest)
}

func put(t *testing.T, s *image.Store, b []byte) {
	t.Helper()
	w, err := s.Ingest(context.Background(), descriptor(b))
	require.NoError(t, err)
	_, err = w.Write(b)
	require.NoError(t, err)
	require.NoError(t, w.Commit(context.Background()))
}

// TestLiarsAndRegistries: peers that send wrong bytes don't keep an image from coming.
func TestLiarsAndRegistries(t *testing.T) {
	host, _ := debian(t, false)
	src := open(t, reaching(t))
	load(t, src, layered(t, host+"/app:1", tarOf(t, file("a", strings.Repeat("x", 100_000)))))
	_, _, err := push(src, api.PushOptions{Ref: host + "/app:1"})
	require.NoError(t, err)
	s := open(t, reaching(t, &from{src: src, spoil: true}))
	_, err = pull(s, api.PullOptions{Ref: host + "/app:1"})
	require.NoError(t, err)
	require.Equal(t, get(t, src, host+"/app:1").ID, get(t, s, host+"/app:1").ID)
}

// TestCallersWithLessToShow: whoever waits for the transfer of a caller whom the
// registry refuses tries for itself.
func TestCallersWithLessToShow(t *testing.T) {
	host, _ := debian(t, true)
	me := authtypes.AuthConfig{Username: "me", Password: "secret"}
	src := open(t, reaching(t))
	load(t, src, layered(t, host+"/app:1", tarOf(t, file("a", "x"))))
	_, _, err := push(src, api.PushOptions{Ref: host + "/app:1", Auth: me})
	require.NoError(t, err)
	pinned := get(t, src, host+"/app:1").Target.Digest.String()
	for range 5 {
		s := open(t, reaching(t))
		var g errgroup.Group
		g.Go(func() error {
			if _, err := pull(s, api.PullOptions{Ref: host + "/app:1", Digest: pinned}); err != nil && !errdefs.IsNotFound(err) && !errdefs.IsUnauthorized(err) {
				return err
			}
			return nil
		})
		g.Go(func() error {
			_, err := pull(s, api.PullOptions{Ref: host + "/app:1", Digest: pinned, Auth: me})
			return err
		})
		require.NoError(t, g.Wait())
	}
}
