package cli

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

func tagCommand(g *globals) *cobra.Command {
	var node bool
	cmd := &cobra.Command{
		Use:   "tag OBJECT [KEY=VALUE|KEY-]...",
		Short: "Show or change the tags of a container or a node",
		Long: `Show or change the tags of a container or, with --node, of a node.

KEY=VALUE sets a tag, KEY- takes it away, no change shows what there is. A
container's labels are its tags at first; names, load balancers and placement
follow the tags at once.

  shoal tag web lb.host=shop.example lb.weight=50
  shoal tag web canary-
  shoal tag --node node2 zone=b`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := g.control()
			if err != nil {
				return err
			}
			set, drop, err := parseTags(args[1:])
			if err != nil {
				return exitError{exitUsage, err}
			}
			var tags map[string]string
			if node {
				tags, err = c.TagNode(cmd.Context(), args[0], set, drop)
			} else {
				tags, err = c.TagContainer(cmd.Context(), args[0], set, drop)
			}
			if err != nil {
				return err
			}
			return g.printer(cmd).list(tags, "KEY\tVALUE", func(row func(...any)) {
				for _, k := range slices.Sorted(maps.Keys(tags)) {
					row(k, tags[k])
				}
			})
		},
	}
	cmd.Flags().BoolVar(&node, "node", false, "OBJECT is a node")
	return g.jsonFlag(cmd)
}

func parseTags(args []string) (set map[string]string, drop []string, err error) {
	set = map[string]string{}
	for _, a := range args {
		if k, v, ok := strings.Cut(a, "="); ok && k != "" {
			set[k] = v
		} else if k, ok := strings.CutSuffix(a, "-"); ok && k != "" {
			drop = append(drop, k)
		} else {
			return nil, nil, fmt.Errorf("%q is neither KEY=VALUE nor KEY-", a)
		}
	}
	return set, drop, nil
}

func joinTags(tags map[string]string) string {
	var words []string
	for _, k := range slices.Sorted(maps.Keys(tags)) {
		words = append(words, k+"="+tags[k])
	}
	return strings.Join(words, ",")
}
