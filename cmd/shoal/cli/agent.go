package cli

import (
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/shoal-engine/shoal/cmd/shoal/agent"
	"github.com/shoal-engine/shoal/cmd/shoal/config"
)

func agentCommand(version string) *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use: "agent", Short: "Run this host's part", Args: cobra.NoArgs,
		Long: `Run this host's part, until a signal ends it. Containers go on when the agent
ends, and an agent that starts again takes them over.

Everything is set in one file; docs/agent.toml shows every setting.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := config.Load(path)
			if err != nil {
				return exitError{exitUsage, err}
			}
			return agent.New(c, logger(c.Log, cmd.ErrOrStderr()), version).Run(cmd.Context())
		},
	}
	cmd.Flags().StringVar(&path, "config", config.DefaultPath, "configuration file")
	return cmd
}

func logger(c config.Log, out io.Writer) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(c.Level)) // the configuration was validated
	o := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(out, o))
	}
	return slog.New(slog.NewTextHandler(out, o))
}

func resetCommand() *cobra.Command {
	var path string
	var force bool
	cmd := &cobra.Command{
		Use: "reset", Short: "Remove all that an agent made on this host: containers, images, links, state", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := config.Load(path)
			if err != nil {
				return exitError{exitUsage, err}
			}
			if !force {
				return exitError{exitUsage, errors.New("this ends every container of the host and deletes " + c.Data + ": say --force if you mean it")}
			}
			if err := agent.Reset(cmd.Context(), c, logger(c.Log, cmd.ErrOrStderr())); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "Nothing of the agent is left but its configuration.")
			return nil
		},
	}
	cmd.Flags().StringVar(&path, "config", config.DefaultPath, "configuration file")
	cmd.Flags().BoolVar(&force, "force", false, "do it")
	return cmd
}

// defaultLog is how commands other than the agent log.
func defaultLog() config.Log { return config.Default().Log }
