package apitest

import (
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-engine/shoal/api/imagetar"
)

// busyboxPath is where Debian's busybox-static lives.
const busyboxPath = "/bin/busybox"

// Archive is a docker-save archive of one image; layers come lowest first.
func Archive(t testing.TB, ref string, cfg ocispec.ImageConfig, layers ...[]imagetar.File) []byte {
	t.Helper()
	b, err := imagetar.Bytes(imagetar.Image{Refs: []string{ref}, Config: cfg, Layers: layers})
	if err != nil {
		t.Fatalf("build archive: %v", err)
	}
	return b
}

// Busybox is a docker-save archive of busybox:latest made of this machine's own
// static busybox; the test is skipped where there is none.
func Busybox(t testing.TB) []byte {
	t.Helper()
	i, err := imagetar.Busybox(busyboxPath)
	if err != nil {
		t.Skipf("needs busybox-static: %v", err)
	}
	b, err := imagetar.Bytes(i)
	if err != nil {
		t.Fatalf("build archive: %v", err)
	}
	return b
}
