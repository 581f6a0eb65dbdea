package image

import (
	"strconv"
)

// procPath is a path to base in an open directory, for calls that take no directory;
// without base, to the open file itself.
func procPath(fd int, base string) string {
	path := "/proc/self/fd/" + strconv.Itoa(fd)
	if base != "" {
		path += "/" + base
	}
	return path
}
