package supervisor

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestRemountKeepsOptions(t *testing.T) {
	flags, data := remountOptions("rw,nosuid,nodev,noexec,relatime", "rw,nsdelegate,memory_recursiveprot")
	require.EqualValues(t, unix.MS_REMOUNT|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RELATIME, flags)
	require.Equal(t, "favordynmods,nsdelegate,memory_recursiveprot", data)
	_, data = remountOptions("rw", "rw,favordynmods")
	require.Equal(t, "favordynmods", data)
}
