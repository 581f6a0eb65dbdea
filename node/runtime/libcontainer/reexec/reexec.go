// Package reexec turns this process into a container's first one when libcontainer started it for that.
//
// libcontainer runs its parent's executable again inside each container, where
// code in C enters the namespaces before Go starts, and code in Go does the rest.
// That belongs into an init function of a package that needs nothing else: it
// runs before most other packages of a large program are initialised, which a
// container would pay for with milliseconds.
package reexec

import (
	"os"

	"github.com/opencontainers/runc/libcontainer"
	_ "github.com/opencontainers/runc/libcontainer/nsenter" // the code in C
)

func init() {
	// "init" alone may be a command of the program.
	if len(os.Args) == 2 && os.Args[1] == "init" && os.Getenv("_LIBCONTAINER_INITPIPE") != "" {
		libcontainer.Init()
	}
}
