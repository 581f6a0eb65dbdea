package integration

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// skopeo runs inside a node's network, where localhost:5000 is that node's registry.
func skopeo(t *testing.T, n int, args ...string) result {
	t.Helper()
	if _, err := exec.LookPath("skopeo"); err != nil {
		t.Skip("needs skopeo")
	}
	return inside(t, n, append([]string{"skopeo"}, args...)...)
}

// TestPushedImageIsTheClusters pushes to one node with another tool, runs on another
// node, and reads from the third, which never had it.
func TestPushedImageIsTheClusters(t *testing.T) {
	r := skopeo(t, 1, "copy", "-q", "--dest-tls-verify=false", "docker-archive:"+uniqueImage(t, "any:1"), "docker://localhost:5000/team/pushed:1")
	require.Zero(t, r.code, r.err)
	for n := 1; n <= 3; n++ {
		require.Contains(t, ok(t, n, "images", "--format", "{{.Repository}}:{{.Tag}}"), "localhost:5000/team/pushed:1")
	}
	want := skopeo(t, 1, "inspect", "--raw", "--tls-verify=false", "docker://localhost:5000/team/pushed:1")
	require.Zero(t, want.code, want.err)
	c := name(t)
	ok(t, 1, "run", "-d", "--name", c, "-e", "constraint:node==node2", "localhost:5000/team/pushed:1")
	ok(t, 3, "rm", "-f", c)

	dir := t.TempDir()
	r = skopeo(t, 3, "copy", "-q", "--src-tls-verify=false", "docker://127.0.0.1:5000/team/pushed:1", "dir:"+dir)
	require.Zero(t, r.code, r.err)
	got := skopeo(t, 3, "inspect", "--raw", "dir:"+dir)
	require.Equal(t, want.out, got.out, "the way through the cluster keeps the digest")
	require.NotContains(t, shoal(t, 1, "image", "where", "localhost:5000/team/pushed:1").out, "node3", "passing an image on is not having it")

	r = skopeo(t, 2, "delete", "--tls-verify=false", "docker://localhost:5000/team/pushed:1")
	require.Zero(t, r.code, r.err)
	require.NotContains(t, ok(t, 3, "images"), "team/pushed")
}

// TestClusterImagesAreServed reads what docker load brought, by the names that tools use.
func TestClusterImagesAreServed(t *testing.T) {
	for _, path := range []string{"busybox", "library/busybox", "docker.io/library/busybox"} {
		r := skopeo(t, 2, "inspect", "--tls-verify=false", "--raw", "docker://localhost:5000/"+path)
		require.Zero(t, r.code, "%s: %s", path, r.err)
	}
	r := skopeo(t, 2, "list-tags", "--tls-verify=false", "docker://localhost:5000/busybox")
	require.Contains(t, r.out, "latest", r.err)
}

// TestDockerPushToTheCluster pushes a name of the cluster to the cluster.
func TestDockerPushToTheCluster(t *testing.T) {
	ok(t, 1, "tag", "busybox", "localhost:5000/mine:1")
	require.Contains(t, ok(t, 2, "push", "localhost:5000/mine:1"), "digest: sha256:")
	require.Contains(t, ok(t, 3, "run", "--rm", "localhost:5000/mine:1", "echo", "hello"), "hello")
	ok(t, 3, "rmi", "localhost:5000/mine:1")
}

// TestDistributionConformance runs the specification's own suite. Left out are the
// digests that the store doesn't keep.
func TestDistributionConformance(t *testing.T) {
	suite := filepath.Join(t.TempDir(), "conformance")
	out, err := exec.Command("go", "build", "-o", suite, "github.com/opencontainers/distribution-spec/conformance").CombinedOutput()
	require.NoError(t, err, "%s", out)
	r := inside(t, 2, "env", "OCI_REGISTRY=localhost:5000", "OCI_TLS=disabled", "OCI_DATA_SHA512=false", "OCI_VERSION=1.1",
		"OCI_API_BLOBS_UPLOAD_CANCEL=true", "OCI_API_BLOBS_DIGEST_HEADER=true", "OCI_API_MANIFESTS_DIGEST_HEADER=true",
		"OCI_RESULTS_DIR="+t.TempDir(), suite)
	require.Zero(t, r.code, r.err)
	require.True(t, strings.HasPrefix(r.out, "Test results\nOCI Conformance Test: Pass\n"))
}
