package agent

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestReserve(t *testing.T) {
	data := t.TempDir()
	require.NoError(t, spendReserve(data), "without one")
	for range 2 {
		require.NoError(t, keepReserve(data))
		fi, err := os.Stat(filepath.Join(data, reserveFile))
		require.NoError(t, err)
		require.EqualValues(t, reserveSize, fi.Size())
	}
	require.NoError(t, spendReserve(data))
	require.FileExists(t, filepath.Join(data, reserveFile), "there is room enough")
}
