package node

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestExchangeFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	size := func(name string) int64 {
		fi, err := os.Stat(name)
		require.NoError(t, err)
		return fi.Size()
	}
	for _, b := range []string{"first", "second", strings.Repeat("long", 3000), "short", "last"} {
		require.NoError(t, exchangeFile(path, []byte(b)))
		got, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, b, strings.TrimRight(string(got), " "))
		require.GreaterOrEqual(t, size(path), int64(len(b)+recordRoom), "room for a longer one")
		require.FileExists(t, path+spareSuffix)
	}
	before := size(path) + size(path+spareSuffix)
	require.NoError(t, exchangeFile(path, []byte("another")))
	require.Equal(t, before, size(path)+size(path+spareSuffix), "takes no further place")
	require.Error(t, exchangeFile(filepath.Join(path, "not a directory"), nil))
}
