package cli

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/shoal-engine/shoal/integration/lab"
)

// labCommand is the try-out cluster; tests and benchmarks script it, so its form
// never changes.
func labCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "Run a throw-away cluster on this machine, each node in a network namespace",
		Long: `Run a throw-away cluster on this machine: N agents, each in a network namespace
of its own with its own address. Needs root and Linux.

  shoal lab up --nodes 3
  export DOCKER_HOST=unix:///run/shoal-lab/node1/shoal.sock
  docker ps
  shoal lab down`,
	}
	cmd.PersistentFlags().StringVar(&dir, "dir", lab.DefaultDir, "the lab's directory")
	cmd.AddCommand(labUp(&dir), labStatus(&dir), labExec(&dir), labPartition(&dir), labHeal(&dir), labShape(&dir), labDown(&dir))
	for _, f := range []struct {
		use, short string
		do         func(context.Context, *lab.Lab, int) error
	}{
		{"kill", "Kill node N's agent with SIGKILL; its containers go on", func(ctx context.Context, l *lab.Lab, n int) error { return l.Kill(ctx, n) }},
		{"stop", "Stop node N's agent gracefully; its containers go on", func(ctx context.Context, l *lab.Lab, n int) error { return l.Stop(ctx, n) }},
		{"start", "Start node N's agent again", func(ctx context.Context, l *lab.Lab, n int) error { return l.Start(ctx, n) }},
		{"pause", "Freeze node N's agent", func(_ context.Context, l *lab.Lab, n int) error { return l.Pause(n) }},
		{"resume", "Thaw node N's agent", func(_ context.Context, l *lab.Lab, n int) error { return l.Resume(n) }},
	} {
		cmd.AddCommand(&cobra.Command{
			Use: f.use + " N", Short: f.short, Args: cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				l, n, err := openNode(dir, args[0])
				if err != nil {
					return err
				}
				return f.do(cmd.Context(), l, n)
			},
		})
	}
	return cmd
}

func openNode(dir, arg string) (*lab.Lab, int, error) {
	l, err := lab.Open(dir)
	if err != nil {
		return nil, 0, err
	}
	n, err := strconv.Atoi(strings.TrimPrefix(arg, "node"))
	if err != nil {
		return nil, 0, fmt.Errorf("%q is not a node: want its number, 1 to %d", arg, l.Nodes())
	}
	return l, n, nil
}

func labUp(dir *string) *cobra.Command {
	var nodes int
	var rate string
	cmd := &cobra.Command{
		Use: "up", Short: "Start a lab", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			bits, err := lab.ParseRate(rate)
			if err != nil {
				return err
			}
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			l, err := lab.Up(cmd.Context(), *dir, lab.Options{Nodes: nodes, Rate: bits, Binary: self, Out: cmd.ErrOrStderr()})
			if err != nil {
				return err
			}
			return printStatus(cmd, l, printer{out: cmd.OutOrStdout()})
		},
	}
	cmd.Flags().IntVar(&nodes, "nodes", 3, "how many nodes")
	cmd.Flags().StringVar(&rate, "rate", "", "speed of every node's link both ways, such as 100mbit (default: as fast as it goes)")
	return cmd
}

func labStatus(dir *string) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "status", Short: "Show nodes, addresses and sockets", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := lab.Open(*dir)
			if err != nil {
				return err
			}
			return printStatus(cmd, l, printer{cmd.OutOrStdout(), asJSON})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printStatus(cmd *cobra.Command, l *lab.Lab, p printer) error {
	nodes := l.Status(cmd.Context())
	err := p.list(nodes, "NODE\tADDRESS\tAGENT\tROLE\tDOCKER_HOST", func(row func(...any)) {
		for _, n := range nodes {
			row(n.Name, n.Address, n.Agent, n.Role, "unix://"+n.Socket)
		}
	})
	if err == nil && !p.json && len(nodes) > 0 {
		fmt.Fprintf(cmd.OutOrStdout(), "\nexport DOCKER_HOST=unix://%s\n", nodes[0].Socket)
	}
	return err
}

func labExec(dir *string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "exec N -- CMD...",
		Short: "Run a command inside node N's network, with node N's DNS",
		Args:  cobra.MinimumNArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			l, n, err := openNode(*dir, args[0])
			if err != nil {
				return err
			}
			argv := args[1:]
			if argv[0] == "--" {
				argv = argv[1:]
			}
			if len(argv) == 0 {
				return exitError{exitUsage, fmt.Errorf("say which command to run in node %d's network", n)}
			}
			err = l.Enter(n, argv)
			if isNotFound(err) {
				return exitError{127, err}
			}
			return err
		},
	}
	cmd.Flags().SetInterspersed(false)
	return cmd
}

func isNotFound(err error) bool {
	var e *exec.Error
	return errorsAs(err, &e)
}

func labPartition(dir *string) *cobra.Command {
	return &cobra.Command{
		Use: "partition 1,2/3", Short: "Split the network into groups", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			l, err := lab.Open(*dir)
			if err != nil {
				return err
			}
			groups, err := lab.ParseGroups(args[0], l.Nodes())
			if err != nil {
				return err
			}
			return l.Partition(groups)
		},
	}
}

func labHeal(dir *string) *cobra.Command {
	return &cobra.Command{
		Use: "heal", Short: "End every partition", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			l, err := lab.Open(*dir)
			if err != nil {
				return err
			}
			return l.Heal()
		},
	}
}

func labShape(dir *string) *cobra.Command {
	var rate string
	cmd := &cobra.Command{
		Use: "shape N --rate R", Short: "Change the speed of node N's link", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			l, n, err := openNode(*dir, args[0])
			if err != nil {
				return err
			}
			bits, err := lab.ParseRate(rate)
			if err != nil {
				return err
			}
			return l.Shape(n, bits)
		},
	}
	cmd.Flags().StringVar(&rate, "rate", "", "speed both ways, such as 100mbit; none lifts the limit")
	_ = cmd.MarkFlagRequired("rate") // fails only for a flag that isn't there
	return cmd
}

func labDown(dir *string) *cobra.Command {
	return &cobra.Command{
		Use: "down", Short: "End the lab and remove all it made", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := lab.Open(*dir)
			if err != nil {
				return err
			}
			return l.Down(cmd.Context())
		},
	}
}
