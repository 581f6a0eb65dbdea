package supervisor

import (
	"os"

	"github.com/shoal-engine/shoal/node/supervisor/daemon"
)

// IsChild says whether this process was started by Connect to be a supervisor. An
// executable that calls Connect asks this first of all, and calls Main if so:
// where no executable of its own is embedded, the supervisor is a second process
// of the same one.
func IsChild(args []string) bool {
	return len(args) > 1 && args[0] == argv0 && args[1] == "supervisor"
}

// Main is the supervisor. It does not return.
func Main() { os.Exit(daemon.Main(os.Args[2:])) }
