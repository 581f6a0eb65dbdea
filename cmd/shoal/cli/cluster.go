package cli

import (
	"fmt"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
)

func initCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "init", Short: "Start a cluster with this host", Args: cobra.NoArgs,
		Long: "Start a cluster with this host as its first node. The agent must run.\nPrints the command that brings other hosts in.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := g.control()
			if err != nil {
				return err
			}
			if err := c.Init(cmd.Context()); err != nil {
				return err
			}
			token, err := c.Token(cmd.Context())
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "This host is the first of a cluster. On each other host run its agent, then:\n\n  shoal join %s\n\n", token)
			return nil
		},
	}
}

func joinCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "join TOKEN", Short: "Bring this host into a cluster", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := g.control()
			if err != nil {
				return err
			}
			if err := c.Join(cmd.Context(), strings.TrimSpace(args[0])); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "This host is in the cluster.")
			return nil
		},
	}
}

func leaveCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "leave", Short: "Take this host out of its cluster", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := g.control()
			if err != nil {
				return err
			}
			return c.Leave(cmd.Context())
		},
	}
}

func tokenCommand(g *globals) *cobra.Command {
	var rotate bool
	cmd := &cobra.Command{
		Use: "token", Short: "Print the token that hosts join with", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := g.control()
			if err != nil {
				return err
			}
			get := c.Token
			if rotate {
				get = c.RotateToken
			}
			token, err := get(cmd.Context())
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), token)
			return nil
		},
	}
	cmd.Flags().BoolVar(&rotate, "rotate", false, "make a new one; the old one is worth nothing from then on")
	return cmd
}

func nodeCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "node", Short: "List and remove the cluster's hosts"}
	cmd.AddCommand(g.jsonFlag(&cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the hosts", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := g.control()
			if err != nil {
				return err
			}
			nodes, err := c.Nodes(cmd.Context())
			if err != nil {
				return err
			}
			return g.printer(cmd).list(nodes, "NAME\tID\tADDRESS\tSTATUS\tROLE\tCPUS\tMEMORY\tCONTAINERS\tTAGS", func(row func(...any)) {
				for _, n := range nodes {
					status := "ready"
					if !n.Ready() {
						status = "down"
					}
					row(n.Name, shortID(n.ID), n.Host, status, n.Role(), n.CPUs, units.BytesSize(float64(n.Memory)), n.Containers, joinTags(n.Tags))
				}
			})
		},
	}), nodeRemoveCommand(g))
	return cmd
}

func nodeRemoveCommand(g *globals) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "rm NODE", Short: "Forget a host that is down for good, or shut one out", Args: cobra.ExactArgs(1),
		Long: `Forget a host. Its connections are cut, also in the middle of a transfer, and its
containers' names and ports are free from then on. It can't come back without a new
token: the present one changes, as the host knows it.

A host that is up leaves by itself with ` + "`shoal leave`" + `; --force removes it
without asking it. Its containers go on running there, as that host's alone.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := g.control()
			if err != nil {
				return err
			}
			if err := c.RemoveNode(cmd.Context(), args[0], force); err != nil {
				return err
			}
			fmt.Fprintln(cmd.ErrOrStderr(), "The join token has changed; `shoal token` prints the new one.")
			return nil
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "also a host that is up")
	return cmd
}

// shortID is the end of a peer ID: all of them begin alike.
func shortID(id string) string { return id[max(0, len(id)-8):] }
