// Command shoal-supervisor is the supervisor alone, without the rest of shoal, or the
// keeper of an image that arrives: it starts faster, and every container's first process is a copy of it. It is
// embedded in the large executable and not meant to be started by hand.
package main

import (
	"fmt"
	"os"

	"github.com/shoal-engine/shoal/node/image/early"
	"github.com/shoal-engine/shoal/node/supervisor/daemon"
)

func main() {
	if early.IsChild(os.Args) {
		os.Exit(early.Main(os.Args[2:]))
	}
	if len(os.Args) < 2 || os.Args[1] != "supervisor" {
		fmt.Fprintln(os.Stderr, "shoal-supervisor is started by shoal")
		os.Exit(2)
	}
	os.Exit(daemon.Main(os.Args[2:]))
}
