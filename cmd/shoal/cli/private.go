package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/shoal-engine/shoal/cmd/shoal/control"
)

func imagePrivateCommand(g *globals) *cobra.Command {
	var nodes []string
	cmd := &cobra.Command{
		Use: "private [IMAGE]", Short: "Let only some nodes hold an image, or list such images", Args: cobra.MaximumNArgs(1),
		Long: `Let only some nodes hold an image: --node names them, tag:KEY=VALUE stands for
all nodes with that tag. It takes effect at once: transfers to others end.

Layers that also belong to an image which isn't private stay public. A later image
that gets the name, and has no other, is private to the same nodes. Nodes that hold
the image and may not are named; they keep it until somebody removes it there.

Without --node, show who may hold the image; without an image, list all.

  shoal image private app:1 --node node1 --node tag:zone=eu`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := g.control()
			if err != nil {
				return err
			}
			var list []control.PrivateImage
			switch {
			case len(nodes) == 0:
				list, err = c.PrivateImages(cmd.Context(), strings.Join(args, ""))
			case len(args) == 0:
				return exitError{exitUsage, fmt.Errorf("image private: name the image")}
			default:
				var p control.PrivateImage
				p, err = c.MakePrivate(cmd.Context(), args[0], nodes)
				list = []control.PrivateImage{p}
			}
			if err != nil {
				return err
			}
			if err := g.showPrivate(cmd, list); err != nil {
				return err
			}
			if len(nodes) > 0 {
				for _, n := range list[0].Others {
					fmt.Fprintf(cmd.ErrOrStderr(), "node %s holds the image and may not: `docker rmi` through that node's node.sock removes it there\n", n)
				}
			}
			return nil
		},
	}
	cmd.Flags().StringArrayVar(&nodes, "node", nil, "a node that may hold the image, or tag:KEY=VALUE; may be repeated")
	return g.jsonFlag(cmd)
}

func (g *globals) showPrivate(cmd *cobra.Command, list []control.PrivateImage) error {
	return g.printer(cmd).list(list, "IMAGE\tPRIVATE TO\tHELD BY\tHELD AGAINST IT BY\tDIGEST", func(row func(...any)) {
		for _, p := range list {
			who := p.Nodes
			for _, t := range p.Tags {
				who = append(who, "tag:"+t)
			}
			row(strings.Join(p.Names, ","), strings.Join(who, ","), strings.Join(p.Holders, ","), strings.Join(p.Others, ","), p.Digest)
		}
	})
}

func imagePublicCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "public IMAGE", Short: "Let every node hold an image again", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := g.control()
			if err != nil {
				return err
			}
			return c.MakePublic(cmd.Context(), args[0])
		},
	}
}
