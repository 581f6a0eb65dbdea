// Command shoal makes many Linux hosts one Docker engine: agent, command line and lab in one binary.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/shoal-engine/shoal/cmd/shoal/cli"
	"github.com/shoal-engine/shoal/node/image/early"
	"github.com/shoal-engine/shoal/node/supervisor"
)

// version is set by the linker.
var version = "dev" //nolint:gochecknoglobals // the linker needs a variable

func main() {
	if supervisor.IsChild(os.Args) {
		supervisor.Main()
		return
	}
	if early.IsChild(os.Args) {
		os.Exit(early.Main(os.Args[2:]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	os.Exit(cli.Main(ctx, version, os.Args[1:], os.Stdout, os.Stderr))
}
