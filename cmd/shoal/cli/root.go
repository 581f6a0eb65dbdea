// Package cli is the command line of shoal.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/shoal-engine/shoal/cmd/shoal/config"
	"github.com/shoal-engine/shoal/cmd/shoal/control"
)

// Exit codes. They are documented in docs/cli.md and don't change.
const (
	exitOK       = 0
	exitFailed   = 1
	exitUsage    = 2
	exitNotThere = 3 // what was asked for doesn't exist, or didn't appear in time
)

// exitError is an error with an exit code of its own.
type exitError struct {
	code int
	error
}

func (e exitError) Unwrap() error { return e.error }

func errorsAs[T error](err error, target *T) bool { return errors.As(err, target) }

// Main runs the command line and returns the exit code.
func Main(ctx context.Context, version string, args []string, stdout, stderr io.Writer) int {
	root := newRoot(version)
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	var e exitError
	if errors.As(err, &e) {
		if e.error != nil && e.Error() != "" {
			fmt.Fprintln(stderr, "shoal:", e.error)
		}
		return e.code
	}
	fmt.Fprintln(stderr, "shoal:", err)
	if strings.HasPrefix(err.Error(), "unknown ") || strings.Contains(err.Error(), "arg(s)") {
		return exitUsage
	}
	return exitFailed
}

// globals are the flags that every command has.
type globals struct {
	host string
	json bool
}

func (g *globals) control() (*control.Client, error) {
	socket, err := socketPath(g.host)
	if err != nil {
		return nil, err
	}
	return control.New(socket), nil
}

func (g *globals) printer(cmd *cobra.Command) printer { return printer{cmd.OutOrStdout(), g.json} }

// socketPath is where the agent is: the flag, else SHOAL_HOST, else DOCKER_HOST if
// it names a Shoal socket, else the default.
func socketPath(flag string) (string, error) {
	host := flag
	if host == "" {
		host = os.Getenv("SHOAL_HOST")
	}
	if docker := os.Getenv("DOCKER_HOST"); host == "" && strings.HasSuffix(docker, "/shoal.sock") {
		host = docker
	}
	if host == "" {
		return config.Default().Socket(), nil
	}
	path, ok := strings.CutPrefix(host, "unix://")
	if !ok && strings.Contains(host, "://") {
		return "", fmt.Errorf("host %q: only unix:// sockets are served; on another machine, run shoal there", host)
	}
	return path, nil
}

func newRoot(version string) *cobra.Command {
	g := &globals{}
	root := &cobra.Command{
		Use:           "shoal",
		Short:         "Many Linux hosts, one Docker engine",
		SilenceUsage:  true,
		SilenceErrors: true,
		Long: `Shoal makes many Linux hosts one Docker engine.

  shoal agent                     run this host's part (usually by systemd)
  shoal init                      start a cluster with this host
  shoal join TOKEN                bring this host into a cluster
  docker -H unix:///run/shoal/shoal.sock ps    the whole cluster, from any host

  shoal lab up                    try it: three hosts on this machine`,
	}
	root.PersistentFlags().StringVarP(&g.host, "host", "H", "", "the agent's socket (default: SHOAL_HOST, else unix:///run/shoal/shoal.sock)")
	root.AddCommand(agentCommand(version), resetCommand(), initCommand(g), joinCommand(g), leaveCommand(g), tokenCommand(g),
		nodeCommand(g), tagCommand(g), imageCommand(g), resolveCommand(g), watchCommand(g), lbCommand(g), doctorCommand(g),
		labCommand(), versionCommand(g, version))
	return root
}

// jsonFlag gives a command --json.
func (g *globals) jsonFlag(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().BoolVar(&g.json, "json", false, "print JSON")
	return cmd
}

func versionCommand(g *globals, version string) *cobra.Command {
	return g.jsonFlag(&cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if g.json {
				return g.printer(cmd).value(map[string]string{"Version": version})
			}
			fmt.Fprintln(cmd.OutOrStdout(), "shoal", version)
			return nil
		},
	})
}
