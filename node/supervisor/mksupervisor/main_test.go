package main

import (
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestChangeFitsTheLibrary(t *testing.T) {
	modfile, err := makeModule(t.Context(), t.TempDir())
	require.NoError(t, err)
	out, err := exec.CommandContext(t.Context(), "go", "vet", "-modfile", modfile, "-tags", tags, module+"/"+pkg).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

func TestRenameRefusesWhatItDoesNotKnow(t *testing.T) {
	_, err := rename([]byte("package patchbpf\n"))
	require.Error(t, err)
	code, err := rename([]byte("package patchbpf\nfunc PatchAndLoad(x int) {}\n"))
	require.NoError(t, err)
	require.Equal(t, "package patchbpf\nfunc patchAndLoad(x int) {}\n", string(code))
}
